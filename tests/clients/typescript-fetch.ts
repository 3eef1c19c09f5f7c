// A recovery, a session and a logout by the client that openapi-generator makes for typescript-fetch: typescript-fetch.js URL.
import { AuthErrorFromJSON, AuthenticationApi, Configuration, ResponseError, SessionsApi } from './generated/index.js';
import { check, codeAfter, email, fetchWithCookies, url } from './common.js';

async function refused(call: Promise<unknown>) {
  try {
    await call;
  } catch (error) {
    check(error instanceof ResponseError, 'an answer of the service');
    return AuthErrorFromJSON(await error.response.json());
  }
  throw new Error('it was not refused');
}

const basePath = url;
const recovery = new AuthenticationApi(new Configuration({ basePath, fetchApi: fetchWithCookies }));

let xRecoveryId = '';
const code = await codeAfter(async () => {
  const started = await recovery.postApiAuthRecoveryStartRaw({ authRecoveryStartRequest: { email } });
  check((await started.value()).status === 'code_sent', 'code_sent');
  xRecoveryId = started.raw.headers.get('x-recovery-id')!;
});
const { recovery: state } = await recovery.getRecovery();
check(state.id === xRecoveryId && state.state === 'code_sent', 'the recovery waits for its code');
const malformed = await refused(recovery.postApiAuthRecoveryVerify({ authRecoveryVerifyRequest: { code: 'x' } }));
check(malformed.error === 'code_malformed' && malformed.field === 'code', 'code_malformed');
const verified = await recovery.postApiAuthRecoveryVerify({ xRecoveryId, authRecoveryVerifyRequest: { code } });
check(verified.status === 'verified', 'verified');
const signedIn = await recovery.postApiAuthRecoveryResetPassword({
  xRecoveryId,
  authRecoveryResetRequest: { password: 'night train in autumn rain' },
});
check(signedIn.identity?.traits['email'] === email, 'the account of the address');

const sessions = new SessionsApi(new Configuration({ basePath, apiKey: signedIn.sessionToken, fetchApi: fetchWithCookies }));
const refreshed = await sessions.refreshSession();
check(refreshed.sessionToken === signedIn.sessionToken && refreshed.session.active, 'the session continues');
check((await sessions.logout({})).status === 'signed_out', 'signed_out');
check((await refused(sessions.refreshSession())).error === 'session_invalid', 'session_invalid');
// A code that the document does not know.
check(AuthErrorFromJSON({ error: 'of_tomorrow', message: '…', status: 400, more: 1 }).error === 'of_tomorrow', 'a new code');
console.log('openapi-generator, typescript-fetch: start, verify, reset, session, logout');
