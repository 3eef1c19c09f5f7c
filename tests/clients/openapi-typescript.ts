// A recovery, a session and a logout by openapi-fetch with the types that openapi-typescript makes: openapi-typescript.js URL.
import createClient from 'openapi-fetch';

import { check, codeAfter, email, fetchWithCookies, url } from './common.js';
import type { components, paths } from './generated/api.js';

const client = createClient<paths>({ baseUrl: url, fetch: fetchWithCookies });

let id = '';
const code = await codeAfter(async () => {
  const { data, response } = await client.POST('/api/auth/recovery/start', { body: { email } });
  check(data?.status === 'code_sent', 'code_sent');
  id = response.headers.get('x-recovery-id')!;
});
const params = { header: { 'X-Recovery-Id': id } };
const state = await client.GET('/api/auth/recovery');
check(state.data?.recovery.id === id && state.data.recovery.state === 'code_sent', 'the recovery waits for its code');
const malformed = await client.POST('/api/auth/recovery/verify', { params, body: { code: 'x' } });
check(malformed.error?.error === 'code_malformed' && malformed.error.field === 'code', 'code_malformed');
const verified = await client.POST('/api/auth/recovery/verify', { params, body: { code } });
check(verified.data?.status === 'verified', 'verified');
const reset = await client.POST('/api/auth/recovery/reset-password', {
  params,
  body: { password: 'night train in autumn rain' },
});
check(reset.data?.identity?.traits['email'] === email, 'the account of the address');

const headers = { 'X-Session-Token': reset.data.sessionToken };
const refreshed = await client.GET('/api/auth/session', { headers });
check(refreshed.data?.session.active, 'the session continues');
const signedOut = await client.POST('/api/auth/logout', { headers });
check(signedOut.data?.status === 'signed_out', 'signed_out');
const ended = await client.GET('/api/auth/session', { headers });
check(ended.error?.error === 'session_invalid', 'session_invalid');
// A code that the document does not know.
const tomorrow: components['schemas']['AuthError'] = { error: 'of_tomorrow', message: '…', status: 400 };
check(tomorrow.error === 'of_tomorrow', 'a new code');
console.log('openapi-typescript: start, verify, reset, session, logout');
