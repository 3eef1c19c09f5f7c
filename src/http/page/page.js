// The recovery page. Its steps are: email, code, new password, signed in.
//
// The first part is a complete client of the API that /openapi.json describes; your own page can
// start from it. The rest is the user interface. This file contains no texts: they are in the HTML,
// and error messages come from the service in the requested language.

// ---- The API

// Resolves to the answer's members, its status, the id of the recovery, and the seconds to wait
// before another try (0: none). An error is {error, message, status} with details such as
// attempts_left and advice. Throws if there is no answer. If the answer is not from the service,
// such as the error page of a proxy, the thrown error has `answered: true`.
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
    signal: timeout(30_000),
  });
  const { headers: received, status } = answer;
  const id = received.get('X-Recovery-Id');
  const members = await answer.json().catch(() => Promise.reject(Object.assign(new Error(), { answered: true })));
  return { ...members, status, id, wait: Number(received.get('Retry-After')) };
}

// Safari before 16, Chrome before 103 and Firefox before 100 have no AbortSignal.timeout.
function timeout(milliseconds) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), milliseconds);
  return controller.signal;
}

// Answers 200 for every valid address, so an answer never reveals who has an account. If the cookie
// belongs to a recovery of the same address that is valid for some minutes more, the same code is
// sent again.
const startRecovery = (email, ticket) =>
  call('POST', '/api/auth/recovery/start', { email }, ticket ? { 'X-Recovery-Ticket': ticket } : {});
// The state of the cookie's recovery: 200 with {recovery: {id, email, state, expires_at,
// attempts_left, resend_at}, now}, or 401 if there is no recovery that can be continued. All times
// are the server's.
const fetchRecovery = () => call('GET', '/api/auth/recovery');
// All tabs share the cookie. With the id of the recovery that the page shows, a request cannot act
// on another one: the answer is 401 recovery_id_mismatch, and no attempt is spent.
// With the same key, a request whose answer was lost can be sent again for two minutes: if it had
// succeeded, it succeeds again.
const headersOf = (id, key) => ({ 'X-Recovery-Id': id, 'Idempotency-Key': key });
const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
// 400 with attempts_left for a wrong code; 401: start again. Spaces in the code are ignored.
const verifyCode = (code, id, key) => call('POST', '/api/auth/recovery/verify', { code }, headersOf(id, key));
// 200 signs the user in: sessionToken, jwt, session. 400 with advice for a refused password; 401:
// start again.
const resetPassword = (password, id, key) =>
  call('POST', '/api/auth/recovery/reset-password', { password }, headersOf(id, key));
const logOut = (token) => call('POST', '/api/auth/logout', {}, { 'X-Session-Token': token });

// ---- State

const settings = document.body.dataset;
// Seconds between two emails, so that the first can arrive. The service also has a limit, which its
// answers state.
const RESEND_WAIT = 30;

// The server's time by its last answer with `now`, plus the time since then by the browser's
// monotonic clock. That clock may stop while the device sleeps, so the page asks again afterwards.
let clockOffset = 0;
const now = () => clockOffset + performance.now() / 1000;
function setClock(time) {
  const offset = seconds(time) - performance.now() / 1000;
  // Before the first of these answers, the page counts from the time it was opened.
  if (clockOffset === 0) for (const name of Object.keys(deadlines)) deadlines[name] += deadlines[name] && offset;
  clockOffset = offset;
}
const seconds = (time) => Date.parse(time) / 1000 || 0;

// The recovery by the last answer to `fetchRecovery`; null if there is none. It is not kept across
// reloads.
let recovery = null;
// Deadlines in the server's time: of the code and the password step, and until a form can be sent
// again.
const deadlines = {};
const remaining = (name) => Math.max(0, Math.ceil((deadlines[name] ?? 0) - now()));
// The step that the server expects next.
const nextStep = () => ({ code_sent: 'code', verified: 'password' })[recovery?.state] ?? 'email';

// Browsers can block storage. Then a reload forgets the email, and no session is handed over.
const storage = {
  read: (key) => attempt(() => sessionStorage.getItem(key)) ?? '',
  write: (key, value) => attempt(() => (sessionStorage.setItem(key, value), true)) ?? false,
  remove: (key) => attempt(() => sessionStorage.removeItem(key)),
};
function attempt(action) {
  try {
    return action();
  } catch {
    return null;
  }
}

// The text of the email field is kept across reloads.
const EMAIL_KEY = 'vos_recovery_email';
let typedEmail = storage.read(EMAIL_KEY);
function setTypedEmail(text) {
  typedEmail = text;
  storage.write(EMAIL_KEY, text);
}
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
    isFirstCode = true;
    lostPress = null;
    checkLength();
  }
  recovery = fetched;
  typedEmail ||= fetched?.email ?? '';
  deadlines.code = deadlines.password = 0;
  deadlines[nextStep()] = seconds(fetched?.expires_at);
  deadlines.resend = Math.max(seconds(fetched?.resend_at), deadlines.pause ?? 0);
}

// Fetches the recovery and shows it. If it is neither the one on the screen nor `expected`, another
// tab has started it, and the page says so. If the recovery has ended, the page shows the error
// `why`. Returns false if there was no usable answer, and 'repeated' if it has repeated a lost press,
// whose answer is then on the screen.
let fetches = 0;
async function refresh({ stay = true, expected = history.state?.id, why = null, quietly = false } = {}) {
  const thisFetch = ++fetches;
  const answer = await fetchRecovery().catch(() => null);
  if (answer?.now) setClock(answer.now);
  if (thisFetch !== fetches || ![200, 401].includes(answer?.status)) return false;
  if (answer.status === 401 && lostPress?.step === step && !lostPress.isRepeat) {
    await send(Object.assign(lostPress, { isRepeat: true }));
    return 'repeated';
  }
  const before = history.state?.step ?? step;
  const wasInProgress = before === 'code' || before === 'password';
  const ended = endedBy(why ?? answer, before);
  const previousId = recovery?.id;
  if (wasInProgress && !answer.recovery) typedEmail = recovery?.email ?? typedEmail;
  setRecovery(answer.recovery ?? null);
  const target = stay && before === 'email' ? 'email' : nextStep();
  if (target === step && target === before && recovery?.id === previousId) render();
  else go(target, { replace: before !== 'email' || quietly, quietly });
  if (!recovery && wasInProgress) showError($('#start'), ended);
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
  // Without an attempt, or with an expired code, the user needs another code.
  const needsCode = recovery?.attempts_left === 0 || (deadlines.code && remaining('code') === 0);
  $('#code').classList.toggle('needs-code', step === 'code' && needsCode);
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
  for (const button of all('[data-wait]')) button.setAttribute('aria-disabled', remaining(button.dataset.wait) > 0);
  if (remaining(step) === 60) $('#news').textContent = $('#news').dataset.lastMinute;
}

function showError(form, { message, advice = [], attempts_left: attemptsLeft, status, isChanged, needsHelp = status >= 429 }) {
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const parts = [isChanged ? $('#maybe-changed').content.cloneNode(true) : element('p', message)];
  if (attemptsLeft !== undefined) parts.push(element('p', `${settings.attemptsLeft} ${attemptsLeft}`));
  if (advice.length) {
    const list = element('ul', '');
    list.append(...advice.map((one) => element('li', one)));
    parts.push(list);
  }
  // Support can help with rate limits and outages.
  if (needsHelp) parts.push($('#support').content.cloneNode(true));
  $('.error', form).replaceChildren(...parts);
  document.title = `${settings.error} ${$(`#${step} h1`).textContent} · ${name}`;
}

function clearMessages() {
  for (const error of all('.error')) error.replaceChildren();
  for (const field of Object.values(FIELDS)) field.removeAttribute('aria-invalid');
  $('#resent').textContent = $('#news').textContent = '';
  showOnlineState();
}

function showOnlineState() {
  $('#network').textContent = navigator.onLine ? '' : $('#network').dataset.offline;
}

// The press of a code or a password whose answer was lost. It is repeated with its key: once by
// itself when the service says that the recovery has moved on, and when the user presses again.
let lostPress = null;

// Sends a form once, even if its button is pressed again.
async function submit(form, read, request, succeed) {
  if (form.getAttribute('aria-busy') === 'true' || remaining(form.id) > 0) return;
  const press = { form, step, values: read(), request, succeed, key: randomKey() };
  if (lostPress?.form === form) {
    // The lost press may have succeeded, and its key belongs to its values.
    if (String(press.values) === String(lostPress.values)) press.key = lostPress.key;
    else if (!(await isStillExpected(press))) return;
    lostPress = press;
  }
  await send(press);
}

// Whether the service still waits for this press of other values than the lost one.
async function isStillExpected({ form, step: before }) {
  form.setAttribute('aria-busy', 'true');
  const fetched = await refresh();
  form.setAttribute('aria-busy', 'false');
  if (!fetched) sayNoAnswer();
  return fetched === true && step === before;
}

// Sends a press and handles every answer. `succeed` handles a 200.
async function send(press) {
  const { form, values, request, succeed, key } = press;
  // An answer to a fetch that is in progress would be out of date.
  fetches += 1;
  clearMessages();
  form.setAttribute('aria-busy', 'true');
  const answer = await request(...values, key).catch(({ answered = false }) => ({ isLost: true, answered }));
  // An error of the service's database may hide a success, too. A busy service has done nothing.
  const mayHaveSucceeded = answer.isLost || (answer.status >= 500 && answer.error !== 'hashing_busy');
  if (['verify', 'reset'].includes(form.id)) {
    if (mayHaveSucceeded) lostPress = press;
    else if (answer.status < 401) lostPress = null;
    else if (answer.status === 401) press.isRepeat = true;
  }
  if (answer.isLost) await handleLostAnswer(form, answer.answered);
  else if (answer.status === 200) await succeed(answer);
  else if (answer.status === 401) await handleEndedRecovery(answer);
  else handleRefusal(form, answer);
  form.setAttribute('aria-busy', 'false');
}

// If a recovery ends at the password step because it was used, or after an answer was lost and
// before it expired, the password has probably been changed.
function endedBy(error, at) {
  const isEarly = lostPress?.step === at && remaining('password') > 0;
  return { ...error, isChanged: at === 'password' && (error.error === 'recovery_session_used' || isEarly) };
}

// Without an answer, it is unknown whether the server has handled the request: fetch the state.
async function handleLostAnswer(form, answered) {
  const before = step;
  if ((await refresh()) === 'repeated') return;
  if (form.id === 'start' && recovery?.email === sentEmail.toLowerCase()) go(nextStep());
  if (step !== before || $('#network').textContent) return;
  if (answered) showError(form, { message: $('#network').dataset.noService, needsHelp: true });
  else sayNoAnswer();
}

function sayNoAnswer() {
  const { noAnswer, offline } = $('#network').dataset;
  $('#network').textContent = navigator.onLine ? noAnswer : offline;
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
  const ended = endedBy(answer, step);
  setRecovery(null);
  go('email', { replace: true });
  showError($('#start'), ended);
}

function handleRefusal(form, answer) {
  if (answer.wait > 0) deadlines[form.id] = now() + answer.wait;
  if (answer.attempts_left !== undefined) recovery.attempts_left = answer.attempts_left;
  show(step);
  showError(form, answer);
  if (answer.status === 400 && form.id !== 'resend') {
    FIELDS[step].setAttribute('aria-invalid', 'true');
    FIELDS[step].focus();
    if (step === 'code') FIELDS.code.select();
  }
}

// ---- The steps

// `read` returns the arguments of `request`, which also gets the press's key.
function onSubmit(id, read, request, succeed) {
  const form = $(`#${id}`);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    submit(form, read, request, succeed);
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
  () => [(sentEmail = cleanAddress(FIELDS.email.value)), ticket],
  startRecovery,
  (answer) => handleCodeSent(answer, sentEmail),
);
onSubmit('resend', () => [recovery.email, ticket], startRecovery, async (answer) => {
  await handleCodeSent(answer, recovery.email);
  if (step === 'code') $('#resent').textContent = $('#resent').dataset.text;
});
onSubmit('verify', () => [digitsOf(FIELDS.code.value), recovery.id], verifyCode, async (answer) => {
  FIELDS.code.value = '';
  await advance(answer, { email: recovery.email, state: 'verified' });
});
onSubmit('reset', () => [FIELDS.password.value, recovery.id], resetPassword, async (answer) => {
  // A sign-in page of this host gets the session token by session storage, in this tab only and
  // never in a URL. A page of another host cannot read it, so the session is ended and the user
  // signs in with the new password.
  const isHandedOver = 'handsOver' in settings && storage.write(SESSION_TOKEN_KEY, answer.sessionToken);
  if (!isHandedOver) await logOut(answer.sessionToken).catch(() => {});
  for (const text of all('[data-handed-over]')) text.hidden = (text.dataset.handedOver === 'yes') !== isHandedOver;
  typedEmail = '';
  storage.remove(EMAIL_KEY);
  setRecovery(null);
  go('done', { replace: true });
});

// The user may paste more than the code, such as a whole line of the email. Digits of every script
// count; invisible and bidirectional characters do not.
function digitsOf(text) {
  const digits = text.replace(/\P{Decimal_Number}/gu, '').replace(/\P{ASCII}/gu, digitValue);
  return digits.length === 8 ? digits : text;
}
// Unicode encodes the digits of a script as ten code points in a row, from zero.
function digitValue(digit) {
  const point = digit.codePointAt(0);
  let zero = point;
  while (/\p{Decimal_Number}/u.test(String.fromCodePoint(zero - 1))) zero -= 1;
  return (point - zero) % 10;
}
// The first complete code is submitted at once, whether it was typed, pasted or filled in. After a
// wrong code the button submits, because attempts are few.
let isFirstCode = true;
FIELDS.code.addEventListener('input', () => {
  clearMessages();
  if (!isFirstCode || !/^\d{8}$/.test(digitsOf(FIELDS.code.value))) return;
  isFirstCode = false;
  $('#verify').requestSubmit?.();
});

// Removes what people paste around an address: invisible and bidirectional characters, mailto:, a
// name and <>, and a final dot; a full-width @ becomes an @.
function cleanAddress(text) {
  const visible = text.normalize('NFC').replace(/[\p{Cf}\p{Cc}]/gu, '').replace('＠', '@').trim();
  const bare = visible.replace(/^.*<([^<>]*)>$/, '$1').replace(/^mailto:/i, '').replace(/\?.*$/, '');
  return bare.trim().replace(/\.$/, '');
}
// When the user leaves the field, it shows the address that will be sent, and likely mistakes.
function checkAddress() {
  const address = cleanAddress(FIELDS.email.value);
  if (address) FIELDS.email.value = address;
  setTypedEmail(FIELDS.email.value);
  const [local, domain] = address.split(/@(?=[^@]*$)/);
  const similar = domain && similarDomain(domain.toLowerCase());
  $('#address-ascii').hidden = !/[^\x20-\x7e]/.test(local ?? '');
  $('#address-domain').hidden = !domain || isDomain(domain);
  $('#address-typo').hidden = !similar;
  $('#address-typo input').value = similar ? `${local}@${similar}` : '';
}
// Email needs a domain with a dot that is a valid host name (UTS 46, by the browser's URL parser).
function isDomain(domain) {
  const host = attempt(() => new URL(`https://${domain}`).hostname) ?? '';
  return /^[a-z0-9-]+(\.[a-z0-9-]+)+$/.test(host) && !/^[\d.]+$/.test(host);
}
const COMMON_DOMAINS = ['gmail.com', 'yahoo.com', 'yahoo.com.vn', 'outlook.com', 'outlook.com.vn', 'hotmail.com', 'icloud.com'];
// The common domain that differs by one missing, extra, wrong or swapped letter, if there is one.
function similarDomain(domain) {
  if (COMMON_DOMAINS.includes(domain)) return null;
  return COMMON_DOMAINS.find((common) => isOneTypo(domain, common)) ?? null;
}
function isOneTypo(typed, meant) {
  let at = 0;
  while (at < typed.length && typed[at] === meant[at]) at += 1;
  const [a, b] = [typed.slice(at), meant.slice(at)];
  const isSwapped = a.length > 1 && a[0] === b[1] && a[1] === b[0] && a.slice(2) === b.slice(2);
  return isSwapped || a.slice(1) === b || a === b.slice(1) || a.slice(1) === b.slice(1);
}
FIELDS.email.addEventListener('change', checkAddress);
$('#address-typo input').addEventListener('click', (event) => {
  setTypedEmail((FIELDS.email.value = event.target.value));
  checkAddress();
  $('#start button').focus();
});

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
  setTypedEmail(FIELDS.email.value);
  delete deadlines.start;
  clearMessages();
  tick();
});
$('#other-email').addEventListener('click', () => go('email'));
$('#have-code').addEventListener('click', () => go(nextStep()));
$('#go-on').addEventListener('click', () => history.replaceState({ step: 'email' }, ''));

addEventListener('online', showOnlineState);
addEventListener('offline', showOnlineState);

// In-app browsers add parameters of their own, and some cut links off.
function takeTicket() {
  const found = new URLSearchParams(location.hash.slice(1)).get('t');
  if (found === null) return;
  ticket = /^[\w-]{40,}$/.test(found) ? found : null;
  history.replaceState({ step: 'email' }, '', location.pathname);
  show('email');
  $('#ticket-damaged').hidden = ticket !== null;
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
// Until this line has run, the page says that it could not start.
$('#unready').remove();
