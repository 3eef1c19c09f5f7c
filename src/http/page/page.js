// The recovery page. Its steps are: email, code, new password, signed in.
//
// The first part is a complete client of the API that /openapi.json describes; your own page can
// start from it. The rest is the user interface. This file contains no texts: they are in the HTML,
// and error messages come from the service in the requested language.

// ---- The API

// Resolves to the answer's members, its status, the id of the recovery, and the seconds to wait
// before another try (0: none). An error is {error, message, status} with details such as
// attempts_left and advice. Throws if there is no answer.
async function call(method, path, body, headers = {}) {
  const answer = await fetch(path, {
    method,
    // The recovery cookie is HttpOnly: the browser must store and send it.
    credentials: 'include',
    headers: {
      ...(body && { 'Content-Type': 'application/json' }),
      'Accept-Language': document.documentElement.lang,
      ...headers,
    },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });
  const { headers: received, status } = answer;
  const id = received.get('X-Recovery-Id');
  return { ...(await answer.json()), status, id, wait: Number(received.get('Retry-After')) };
}

// Answers 200 for every valid address, so an answer never reveals who has an account. If the cookie
// belongs to a recovery of the same address that is valid for some minutes more, the same code is
// sent again.
const startRecovery = (email, ticket) =>
  call('POST', '/api/auth/recovery/start', { email }, ticket ? { 'X-Recovery-Ticket': ticket } : {});
// The state of the cookie's recovery: 200 with {recovery: {id, email, state, expires_at,
// attempts_left, resend_at}}, or 401 if there is no recovery that can be continued.
const fetchRecovery = () => call('GET', '/api/auth/recovery');
// All tabs share the cookie. With the id of the recovery that the page shows, a request cannot act
// on another one: the answer is 401 recovery_id_mismatch, and no attempt is spent.
const recoveryIdHeader = (id) => ({ 'X-Recovery-Id': id });
// 400 with attempts_left for a wrong code; 401: start again. Spaces in the code are ignored.
const verifyCode = (code, id) => call('POST', '/api/auth/recovery/verify', { code }, recoveryIdHeader(id));
// 200 signs the user in: sessionToken, jwt, session. 400 with advice for a refused password; 401:
// start again.
const resetPassword = (password, id) =>
  call('POST', '/api/auth/recovery/reset-password', { password }, recoveryIdHeader(id));
const logOut = (token) => call('POST', '/api/auth/logout', {}, { 'X-Session-Token': token });

// ---- State

const settings = document.body.dataset;
// Seconds between two emails, so that the first can arrive. The service also has a limit, which its
// answers state.
const RESEND_WAIT = 30;

// The server's time: its time when it served this page, plus the time since then by the browser's
// monotonic clock.
const servedAt = performance.getEntriesByType('navigation')[0].responseStart;
const now = () => Number(settings.now) + (performance.now() - servedAt) / 1000;

// The recovery by the last answer to `fetchRecovery`; null if there is none. It is not kept across
// reloads.
let recovery = null;
// Deadlines in the server's time: of the code and the password step, and until a form can be sent
// again.
const deadlines = {};
const remaining = (name) => Math.max(0, Math.ceil((deadlines[name] ?? 0) - now()));
// The step that the server expects next.
const nextStep = () => ({ code_sent: 'code', verified: 'password' })[recovery?.state] ?? 'email';

// The text of the email field is kept across reloads.
const EMAIL_KEY = 'vos_recovery_email';
let typedEmail = sessionStorage.getItem(EMAIL_KEY) ?? '';
// The sign-in page of this host reads the session token here, removes it, and fetches the rest from
// GET /api/auth/session.
const SESSION_TOKEN_KEY = 'vos_session_token';

// The recovery ticket of an operator. It comes in the URL's fragment, which browsers do not send,
// and is removed from the address bar at once.
let ticket = null;

function setRecovery(fetched) {
  // The typed code and password belong to the previous recovery.
  if (fetched?.id !== recovery?.id) {
    FIELDS.code.value = FIELDS.password.value = '';
    checkLength();
  }
  recovery = fetched;
  typedEmail ||= fetched?.email ?? '';
  const seconds = (time) => Date.parse(time) / 1000 || 0;
  deadlines.code = deadlines.password = 0;
  deadlines[nextStep()] = seconds(fetched?.expires_at);
  deadlines.resend = Math.max(seconds(fetched?.resend_at), deadlines.pause ?? 0);
}

// Fetches the recovery and shows it. If it is neither the one on the screen nor `expected`, another
// tab has started it, and the page says so. If the recovery has ended, the page shows the error
// `why`. Returns false if there was no usable answer.
let fetches = 0;
async function refresh({ stay = true, expected = history.state?.id, why = null, quietly = false } = {}) {
  const thisFetch = ++fetches;
  const answer = await fetchRecovery().catch(() => null);
  if (thisFetch !== fetches || ![200, 401].includes(answer?.status)) return false;
  const before = history.state?.step ?? step;
  const wasInProgress = before === 'code' || before === 'password';
  const previousId = recovery?.id;
  if (wasInProgress && !answer.recovery) typedEmail = recovery?.email ?? typedEmail;
  setRecovery(answer.recovery ?? null);
  const target = stay && before === 'email' ? 'email' : nextStep();
  if (target === step && target === before && recovery?.id === previousId) render();
  else go(target, { replace: before !== 'email' || quietly, quietly });
  if (!recovery && wasInProgress) showError($('#start'), why ?? answer);
  if (recovery && (wasInProgress || !stay) && expected && expected !== recovery.id)
    $('#network').textContent = $('#network').dataset.other;
  return true;
}

// ---- User interface

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector) => document.querySelectorAll(selector);
const FIELDS = { email: $('#address'), code: $('#digits'), password: $('#secret') };
const name = document.title;
let step = 'email';

function show(target) {
  step = target === 'email' || target === 'done' ? target : nextStep();
  clearMessages();
  for (const section of all('section')) section.hidden = section.id !== step;
  const section = $(`#${step}`);
  document.title = `${$('h1', section).textContent} · ${name}`;
  $('#back').hidden = step === 'done';
  $('#ticket').hidden = !ticket;
  FIELDS.email.value = typedEmail;
  render();
}

function render() {
  $('#account').value = $('.address').textContent = recovery?.email ?? '';
  $('#attempts').hidden = recovery?.attempts_left === undefined;
  $('#attempts b').textContent = recovery?.attempts_left;
  tick();
}

// Shows a step and adds it to the browser's history, so that the back button leads to the email
// step. `replace` replaces a finished step, to which the user cannot return. `quietly` leaves the
// focus where it is, because the user did not act.
function go(target, { replace = false, quietly = false } = {}) {
  show(target);
  history[replace ? 'replaceState' : 'pushState']({ step, id: recovery?.id }, '');
  if (!quietly) (FIELDS[step] ?? $(`#${step} h1`)).focus();
}

// Updates all countdowns, twice a second.
function tick() {
  for (const line of all('[data-until]')) {
    const left = remaining(line.dataset.until);
    line.hidden = left === 0;
    const time = $('time', line);
    if (time) time.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, '0')}`;
  }
  for (const line of all('[data-after]')) line.hidden = !deadlines[line.dataset.after] || remaining(line.dataset.after) > 0;
  for (const button of all('[data-wait]')) button.ariaDisabled = remaining(button.dataset.wait) > 0;
  if (remaining(step) === 60) $('#news').textContent = $('#news').dataset.lastMinute;
}

function showError(form, { message, advice = [] }) {
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const list = element('ul', '');
  list.append(...advice.map((one) => element('li', one)));
  $('.error', form).replaceChildren(element('p', message), ...(advice.length ? [list] : []));
}

function clearMessages() {
  for (const error of all('.error')) error.replaceChildren();
  for (const field of Object.values(FIELDS)) field.ariaInvalid = null;
  $('#resent').textContent = $('#news').textContent = '';
  showOnlineState();
}

function showOnlineState() {
  $('#network').textContent = navigator.onLine ? '' : $('#network').dataset.offline;
}

// Sends a form once, even if its button is pressed again, and handles every answer. `succeed`
// handles a 200.
async function submit(form, request, succeed) {
  if (form.ariaBusy === 'true' || remaining(form.id) > 0) return;
  // An answer to a fetch that is in progress would be out of date.
  fetches += 1;
  clearMessages();
  form.ariaBusy = 'true';
  const answer = await request().catch(() => null);
  if (!answer) await handleLostAnswer(form);
  else if (answer.status === 200) await succeed(answer);
  else if (answer.status === 401) await handleEndedRecovery(answer);
  else handleRefusal(form, answer);
  form.ariaBusy = 'false';
}

// Without an answer, it is unknown whether the server has handled the request: fetch the state.
async function handleLostAnswer(form) {
  const before = step;
  await refresh();
  if (form.id === 'start' && recovery?.email === sentEmail.toLowerCase()) go(nextStep());
  if (step !== before || $('#network').textContent) return;
  $('#network').textContent = navigator.onLine ? $('#network').dataset.noAnswer : $('#network').dataset.offline;
}

// The recovery on the screen has ended, or the cookie belongs to another one.
async function handleEndedRecovery(answer) {
  const isOther = answer.error === 'recovery_id_mismatch';
  if (await refresh({ why: isOther ? null : answer })) return;
  if (isOther) {
    $('#network').textContent = answer.message;
    return;
  }
  typedEmail = recovery?.email ?? typedEmail;
  setRecovery(null);
  go('email', { replace: true });
  showError($('#start'), answer);
}

function handleRefusal(form, answer) {
  if (answer.wait > 0) deadlines[form.id] = now() + answer.wait;
  if (answer.attempts_left !== undefined) recovery.attempts_left = answer.attempts_left;
  show(step);
  showError(form, answer);
  if (answer.status === 400 && form.id !== 'resend') {
    FIELDS[step].ariaInvalid = 'true';
    FIELDS[step].focus();
  }
}

// ---- The steps

function onSubmit(id, request, succeed) {
  const form = $(`#${id}`);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    submit(form, request, succeed);
  });
}

// Shows the step that the server expects. If it does not answer, the step that follows from its
// last answer.
async function advance({ id }, otherwise) {
  if (await refresh({ stay: false, expected: id })) return;
  setRecovery({ id, ...otherwise });
  go(nextStep(), { replace: step !== 'email' });
}

async function handleCodeSent(answer, email) {
  deadlines.pause = now() + RESEND_WAIT;
  ticket = null;
  await advance(answer, { email, state: 'code_sent' });
}

// The address of the last start. The user may change the field before the answer arrives.
let sentEmail = '';
onSubmit(
  'start',
  () => startRecovery((sentEmail = FIELDS.email.value.trim()), ticket),
  (answer) => handleCodeSent(answer, sentEmail),
);
onSubmit('resend', () => startRecovery(recovery.email, ticket), async (answer) => {
  await handleCodeSent(answer, recovery.email);
  if (step === 'code') $('#resent').textContent = $('#resent').dataset.text;
});
onSubmit('verify', () => verifyCode(digitsOf(FIELDS.code.value), recovery.id), async (answer) => {
  FIELDS.code.value = '';
  await advance(answer, { email: recovery.email, state: 'verified' });
});
onSubmit('reset', () => resetPassword(FIELDS.password.value, recovery.id), async (answer) => {
  // A sign-in page of this host gets the session token by session storage, in this tab only and
  // never in a URL. A page of another host cannot read it, so the session is ended and the user
  // signs in with the new password.
  if ('handsOver' in settings) sessionStorage.setItem(SESSION_TOKEN_KEY, answer.sessionToken);
  else await logOut(answer.sessionToken).catch(() => {});
  typedEmail = '';
  sessionStorage.removeItem(EMAIL_KEY);
  setRecovery(null);
  go('done', { replace: true });
});

// The user may paste more than the code, such as a whole line of the email.
function digitsOf(text) {
  const digits = text.replace(/\D/g, '');
  return digits.length === 8 ? digits : text;
}

// Checks the length as the server does: in code points of the composed form (NFC). The server
// checks the other rules once, because a password is not sent while the user types it.
function checkLength() {
  const length = [...FIELDS.password.value.normalize('NFC')].length;
  const missing = Number(settings.minChars) - length;
  const excess = length - Number(settings.maxChars);
  const visible = { 'too-short': length > 0 && missing > 0, 'long-enough': missing <= 0 && excess <= 0, 'too-long': excess > 0 };
  for (const [id, isVisible] of Object.entries(visible)) $(`#${id}`).hidden = !isVisible;
  for (const [id, count] of [['too-short', missing], ['too-long', excess]]) {
    $(`#${id} b`).textContent = count;
    const plural = $(`#${id} .plural`);
    if (plural) plural.hidden = count === 1;
  }
}

FIELDS.password.addEventListener('input', checkLength);
$('#reveal').addEventListener('change', (event) => {
  FIELDS.password.type = event.target.checked ? 'text' : 'password';
});
// The wait before a resend is per address.
FIELDS.email.addEventListener('input', () => {
  typedEmail = FIELDS.email.value;
  sessionStorage.setItem(EMAIL_KEY, typedEmail);
  delete deadlines.start;
  clearMessages();
  tick();
});
$('#other-email').addEventListener('click', () => go('email'));
$('#have-code').addEventListener('click', () => go(nextStep()));
$('#go-on').addEventListener('click', () => history.replaceState({ step: 'email' }, ''));

addEventListener('online', showOnlineState);
addEventListener('offline', showOnlineState);

function takeTicket() {
  const found = location.hash.match(/^#t=([\w-]+)$/)?.[1];
  if (!found) return;
  ticket = found;
  history.replaceState({ step: 'email' }, '', location.pathname);
  show('email');
}
addEventListener('hashchange', takeTicket);
addEventListener('popstate', (event) => {
  show(event.state?.step ?? 'email');
  if (event.state?.step !== step) history.replaceState({ step, id: recovery?.id }, '');
});
// The other language is another document, which needs the ticket too.
$('#language').addEventListener('click', (event) => {
  if (ticket) event.target.hash = `t=${ticket}`;
});

// Another tab may have continued the recovery meanwhile.
function refreshOnReturn() {
  if (document.visibilityState !== 'visible' || step === 'done' || $('[aria-busy="true"]')) return;
  refresh({ quietly: true });
}
document.addEventListener('visibilitychange', refreshOnReturn);
addEventListener('pageshow', (event) => event.persisted && refreshOnReturn());
addEventListener('online', refreshOnReturn);

const isFirstVisit = history.state === null;
history.replaceState({ step: 'email', ...history.state }, '');
show(history.state.step === 'done' ? 'done' : 'email');
takeTicket();
if (step !== 'done') refresh({ stay: !isFirstVisit || ticket !== null, quietly: true });
setInterval(tick, 500);
