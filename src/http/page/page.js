// The recovery page: email, code, new password, signed in.
//
// The first part is all that a client has to know of the API, which /openapi.json describes; a page of your own can begin
// with it. The rest is what people see. No words are here: the page's own are in its HTML, and the errors say themselves
// what was wrong and what to do, in the language that is asked for.

// ---- The API

// Returns the status, the members of the answer, the id of the recovery, and after how many seconds to try again (0: at
// once). An error is {error, message, status} and what helps: attempts_left, advice. Throws if there is no answer, or one
// that is not the service's: then `answered` is true, for example for the error page of a proxy.
async function call(method, path, body, headers = {}) {
  const answer = await fetch(path, {
    method,
    // The recovery is a cookie that scripts cannot read: the browser has to keep it and send it along.
    credentials: 'include',
    headers: {
      ...(body && { 'Content-Type': 'application/json' }),
      'Accept-Language': document.documentElement.lang,
      ...headers,
    },
    body: body && JSON.stringify(body),
    signal: timeout(30_000),
  });
  const { headers: sent, status } = answer;
  const members = await answer.json().catch(() => Promise.reject(Object.assign(new Error(), { answered: true })));
  return { ...members, status, id: sent.get('X-Recovery-Id'), wait: Number(sent.get('Retry-After')) };
}

// AbortSignal.timeout is missing before Safari 16, Chrome 103 and Firefox 100.
function timeout(milliseconds) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), milliseconds);
  return controller.signal;
}

// 200 for every address that could be one, so an answer never says who has an account. With the cookie of a recovery of the
// same address that has some minutes to live, it sends the same code again.
const start = (email, ticket) =>
  call('POST', '/api/auth/recovery/start', { email }, ticket ? { 'X-Recovery-Ticket': ticket } : {});
// What the cookie's recovery is waiting for: 200 with {recovery: {id, email, state, expires_at, attempts_left, resend_at}},
// or 401: there is none that goes on.
const ask = () => call('GET', '/api/auth/recovery');
// All tabs share the cookie. With the id of the recovery that a page shows, no request can meet another one: that is 401
// recovery_id_mismatch, and costs nothing.
const meaning = (id) => ({ 'X-Recovery-Id': id });
// 400 with attempts_left for a wrong code; 401: start again. Spaces in the code do not matter.
const verify = (code, id) => call('POST', '/api/auth/recovery/verify', { code }, meaning(id));
// 200 is a sign-in: sessionToken, jwt, session. 400 with advice for a password that is refused; 401: start again.
const reset = (password, id) => call('POST', '/api/auth/recovery/reset-password', { password }, meaning(id));
const logOut = (token) => call('POST', '/api/auth/logout', {}, { 'X-Session-Token': token });

// ---- What is known

const facts = document.body.dataset;
// Between two emails, so that the first can arrive. The service has its own limit, which it tells.
const RESEND_WAIT = 30;

// Time is the server's, as it was when it served this page, and what has passed since by a clock that nobody sets.
const served = performance.getEntriesByType?.('navigation')[0]?.responseStart ?? 0;
const now = () => Number(facts.now) + (performance.now() - served) / 1000;

// What the server said last, in answer to `ask`; null while there is no recovery. Nothing of it is kept for a reload.
let recovery = null;
// When things end, by the server's time: the code, the password, the waits of the forms.
const ends = {};
const remaining = (end) => Math.max(0, Math.ceil((ends[end] ?? 0) - now()));
// The step that the server waits for.
const nextStep = () => ({ code_sent: 'code', verified: 'password' })[recovery?.state] ?? 'email';

// The browser may block storage: then a reload forgets the address, and no session can be handed over.
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

// The content of the email field, for a reload.
const KEPT = 'vos_recovery_email';
let typed = storage.read(KEPT);
// Where the sign-in page of this host finds the session token. It takes it out, and asks GET /api/auth/session for the rest.
const HANDED_OVER = 'vos_session_token';

// An operator's ticket comes in the fragment, which no server sees, and leaves the address bar at once.
let ticket = null;

function learn(told) {
  // What was typed was meant for the recovery on the screen.
  if (told?.id !== recovery?.id) {
    FIELDS.code.value = FIELDS.password.value = '';
    isFirstCode = true;
    judgeLength();
  }
  recovery = told;
  typed ||= told?.email ?? '';
  const at = (time) => Date.parse(time) / 1000 || 0;
  ends.code = ends.password = 0;
  ends[nextStep()] = at(told?.expires_at);
  ends.resend = Math.max(at(told?.resend_at), ends.pause ?? 0);
}

// Asks the server and shows what it says. A recovery that is not the one on the screen, or not `expected`, was started
// elsewhere in this browser, and that is said; so is `why` one has ended. False if the server could not be asked.
let asked = 0;
async function refresh({ stay = true, expected = history.state?.id, why = null, quietly = false } = {}) {
  const mine = ++asked;
  const answer = await ask().catch(() => null);
  if (mine !== asked || ![200, 401].includes(answer?.status)) return false;
  const before = history.state?.step ?? step;
  const wasUnderWay = before === 'code' || before === 'password';
  const wasKnown = recovery?.id;
  if (wasUnderWay && !answer.recovery) typed = recovery?.email ?? typed;
  learn(answer.recovery ?? null);
  const target = stay && before === 'email' ? 'email' : nextStep();
  if (target === step && target === before && recovery?.id === wasKnown) render();
  else go(target, { instead: before !== 'email' || quietly, quietly });
  if (!recovery && wasUnderWay) complain($('#start'), why ?? answer);
  if (recovery && (wasUnderWay || !stay) && expected && expected !== recovery.id)
    $('#network').textContent = $('#network').dataset.other;
  return true;
}

// ---- What is seen

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector) => document.querySelectorAll(selector);
const FIELDS = { email: $('#address'), code: $('#digits'), password: $('#secret') };
const name = document.title;
let step = 'email';

function show(wanted) {
  step = wanted === 'email' || wanted === 'done' ? wanted : nextStep();
  clear();
  for (const section of all('section')) section.hidden = section.id !== step;
  const section = $(`#${step}`);
  document.title = `${$('h1', section).textContent} · ${name}`;
  $('#back').hidden = step === 'done';
  $('#ticket').hidden = !ticket;
  FIELDS.email.value = typed;
  render();
}

function render() {
  $('#account').value = $('.address').textContent = recovery?.email ?? '';
  $('#attempts').hidden = recovery?.attempts_left === undefined;
  $('#attempts b').textContent = recovery?.attempts_left;
  // Without an attempt or with an expired code, another code is what helps.
  $('#code').classList.toggle('needs-code', step === 'code' && (recovery?.attempts_left === 0 || remaining('code') === 0));
  tick();
}

// Moves on, as a place in the browser's history: its back button leads to the address, and forward again. A step that is
// over (`instead`) is no place to come back to. `quietly`: nobody has pressed anything, so the focus stays where it is.
function go(wanted, { instead = false, quietly = false } = {}) {
  show(wanted);
  history[instead ? 'replaceState' : 'pushState']({ step, id: recovery?.id }, '');
  if (!quietly) (FIELDS[step] ?? $(`#${step} h1`)).focus();
}

// Twice a second: what is left of everything that ends.
function tick() {
  for (const line of all('[data-until]')) {
    const left = remaining(line.dataset.until);
    line.hidden = left === 0;
    const time = $('time', line);
    if (time) time.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, '0')}`;
  }
  for (const line of all('[data-after]')) line.hidden = !ends[line.dataset.after] || remaining(line.dataset.after) > 0;
  for (const button of all('[data-wait]')) button.setAttribute('aria-disabled', remaining(button.dataset.wait) > 0);
  if (remaining(step) === 60) $('#news').textContent = $('#news').dataset.lastMinute;
}

function complain(form, { message, advice = [], attempts_left: attemptsLeft, status, needsHelp = status >= 429 }) {
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const parts = [element('p', message)];
  if (attemptsLeft !== undefined) parts.push(element('p', `${facts.attemptsLeft} ${attemptsLeft}`));
  if (advice.length) {
    const list = element('ul', '');
    list.append(...advice.map((one) => element('li', one)));
    parts.push(list);
  }
  // Limits and outages are what support can help with.
  if (needsHelp) parts.push($('#support').cloneNode(true).content);
  $('.error', form).replaceChildren(...parts);
  document.title = `${facts.error} ${$('h1', $(`#${step}`)).textContent} · ${name}`;
}

function clear() {
  for (const error of all('.error')) error.replaceChildren();
  for (const field of Object.values(FIELDS)) field.removeAttribute('aria-invalid');
  $('#resent').textContent = $('#news').textContent = '';
  sayWhetherOnline();
}

function sayWhetherOnline() {
  $('#network').textContent = navigator.onLine ? '' : $('#network').dataset.offline;
}

// Sends a form once, however often it is pressed, and does what every answer asks for; 200 is for `succeed`.
async function send(form, request, succeed) {
  if (form.getAttribute('aria-busy') === 'true' || remaining(form.id) > 0) return;
  // What the server is being asked at this moment is out of date when it comes.
  asked += 1;
  clear();
  form.setAttribute('aria-busy', 'true');
  const answer = await request().catch(({ answered = false }) => ({ isLost: true, answered }));
  if (answer.isLost) await isLost(form, answer.answered);
  else if (answer.status === 200) await succeed(answer);
  else if (answer.status === 401) await isOver(answer);
  else isRefused(form, answer);
  form.setAttribute('aria-busy', 'false');
}

// Whether the server has done what it was asked is not known: the server is asked.
async function isLost(form, answered) {
  const before = step;
  await refresh();
  if (form.id === 'start' && recovery?.email === sent.toLowerCase()) go(nextStep());
  if (step !== before || $('#network').textContent) return;
  const { noAnswer, noService, offline } = $('#network').dataset;
  if (answered) complain(form, { message: noService, needsHelp: true });
  else $('#network').textContent = navigator.onLine ? noAnswer : offline;
}

// The recovery on the screen is over, or the cookie is of another one.
async function isOver(answer) {
  const isOther = answer.error === 'recovery_id_mismatch';
  if (await refresh({ why: isOther ? null : answer })) return;
  if (isOther) {
    $('#network').textContent = answer.message;
    return;
  }
  typed = recovery?.email ?? typed;
  learn(null);
  go('email', { instead: true });
  complain($('#start'), answer);
}

function isRefused(form, answer) {
  if (answer.wait > 0) ends[form.id] = now() + answer.wait;
  if (answer.attempts_left !== undefined) recovery.attempts_left = answer.attempts_left;
  show(step);
  complain(form, answer);
  if (answer.status === 400 && form.id !== 'resend') {
    FIELDS[step].setAttribute('aria-invalid', 'true');
    FIELDS[step].focus();
    if (step === 'code') FIELDS.code.select();
  }
}

// ---- The steps

function onSubmit(id, request, succeed) {
  const form = $(`#${id}`);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    send(form, request, succeed);
  });
}

// Goes where the server says that things are; while it does not say, where its last answer leads.
async function goOn({ id }, otherwise) {
  if (await refresh({ stay: false, expected: id })) return;
  learn({ id, ...otherwise });
  go(nextStep(), { instead: step !== 'email' });
}

async function codeWasSent(answer, email) {
  ends.pause = now() + RESEND_WAIT;
  ticket = null;
  await goOn(answer, { email, state: 'code_sent' });
}

// The field may have been changed before the answer comes.
let sent = '';
onSubmit('start', () => start((sent = cleaned(FIELDS.email.value)), ticket), (answer) => codeWasSent(answer, sent));
onSubmit('resend', () => start(recovery.email, ticket), async (answer) => {
  await codeWasSent(answer, recovery.email);
  if (step === 'code') $('#resent').textContent = $('#resent').dataset.text;
});
onSubmit('verify', () => verify(digitsOf(FIELDS.code.value), recovery.id), async (answer) => {
  FIELDS.code.value = '';
  await goOn(answer, { email: recovery.email, state: 'verified' });
});
onSubmit('reset', () => reset(FIELDS.password.value, recovery.id), async (answer) => {
  // A sign-in page of this host takes the session over, in this tab only and never in a URL. If it cannot, because it is on
  // another host or storage is blocked, the session is ended: people sign in with the new password.
  const isHandedOver = 'handsOver' in facts && storage.write(HANDED_OVER, answer.sessionToken);
  if (!isHandedOver) await logOut(answer.sessionToken).catch(() => {});
  for (const text of all('[data-handed-over]')) text.hidden = (text.dataset.handedOver === 'yes') !== isHandedOver;
  typed = '';
  storage.remove(KEPT);
  learn(null);
  go('done', { instead: true });
});

// What was pasted may be more than the code: a whole line of the email. Digits of any script count; invisible and
// bidirectional characters do not.
function digitsOf(text) {
  const digits = text.replace(/\P{Nd}/gu, '').replace(/\P{ASCII}/gu, digitValue);
  return digits.length === 8 ? digits : text;
}
// Digits of a script are ten code points in a row, from zero.
function digitValue(digit) {
  const point = digit.codePointAt(0);
  let zero = point;
  while (/\p{Nd}/u.test(String.fromCodePoint(zero - 1))) zero -= 1;
  return (point - zero) % 10;
}
// The first complete code is sent at once: typed, pasted or filled in. After a wrong one the button sends, as attempts are few.
let isFirstCode = true;
FIELDS.code.addEventListener('input', () => {
  clear();
  if (!isFirstCode || !/^\d{8}$/.test(digitsOf(FIELDS.code.value))) return;
  isFirstCode = false;
  $('#verify').requestSubmit?.();
});

// What people paste around an address: invisible and bidirectional characters, mailto:, <…>, a full-width @, a final dot.
function cleaned(text) {
  const visible = text.normalize('NFC').replace(/[\p{Cf}\p{Cc}]/gu, '').replace('＠', '@').trim();
  const bare = visible.replace(/^.*<([^<>]*)>$/, '$1').replace(/^mailto:/i, '').replace(/\?.*$/, '');
  return bare.trim().replace(/\.$/, '');
}
// Shows the address that will be sent when the field is left, and what is probably wrong with it.
function judgeAddress() {
  const address = cleaned(FIELDS.email.value);
  if (address && address !== FIELDS.email.value) keepTyped((FIELDS.email.value = address));
  const [local, domain] = address.split(/@(?=[^@]*$)/);
  const likely = domain && likelyDomain(domain.toLowerCase());
  $('#address-ascii').hidden = !/[^\x20-\x7e]/.test(local ?? '');
  $('#address-domain').hidden = !domain || isDomain(domain);
  $('#address-typo').hidden = !likely;
  $('#address-typo input').value = likely ? `${local}@${likely}` : '';
}
// A dot, and labels that the browser's URL parser (UTS 46) takes.
function isDomain(domain) {
  const host = attempt(() => new URL(`https://${domain}`).hostname);
  return Boolean(host) && /^(?!.*--.*\.{2})[a-z0-9-]+(\.[a-z0-9-]+)+$/.test(host) && !/^[\d.]+$/.test(host);
}
const DOMAINS = ['gmail.com', 'yahoo.com', 'yahoo.com.vn', 'outlook.com', 'outlook.com.vn', 'hotmail.com', 'icloud.com'];
// A common domain that one slip leads to: a letter too many or too few, another one, or two swapped.
function likelyDomain(domain) {
  if (DOMAINS.includes(domain)) return null;
  return DOMAINS.find((known) => isOneSlip(domain, known)) ?? null;
}
function isOneSlip(typed, meant) {
  let at = 0;
  while (at < typed.length && typed[at] === meant[at]) at += 1;
  const [a, b] = [typed.slice(at), meant.slice(at)];
  const swapped = a.length > 1 && a[0] === b[1] && a[1] === b[0] && a.slice(2) === b.slice(2);
  return swapped || a.slice(1) === b || a === b.slice(1) || a.slice(1) === b.slice(1);
}
function keepTyped(text) {
  typed = text;
  storage.write(KEPT, typed);
}
FIELDS.email.addEventListener('change', judgeAddress);
$('#address-typo input').addEventListener('click', (event) => {
  keepTyped((FIELDS.email.value = event.target.value));
  judgeAddress();
  $('#start button').focus();
});

// The server's own rule of length, counted as it counts: code points of the composed form (NFC). It judges the rest itself,
// once, because a password is not sent as it is typed.
function judgeLength() {
  const length = [...FIELDS.password.value.normalize('NFC')].length;
  const missing = Number(facts.minChars) - length;
  const excess = length - Number(facts.maxChars);
  const verdicts = { 'too-short': length > 0 && missing > 0, 'long-enough': missing <= 0 && excess <= 0, 'too-long': excess > 0 };
  for (const [id, holds] of Object.entries(verdicts)) $(`#${id}`).hidden = !holds;
  for (const [id, count] of [['too-short', missing], ['too-long', excess]]) {
    $(`#${id} b`).textContent = count;
    const plural = $(`#${id} .plural`);
    if (plural) plural.hidden = count === 1;
  }
}

FIELDS.password.addEventListener('input', judgeLength);
$('#reveal').addEventListener('change', (event) => {
  FIELDS.password.type = event.target.checked ? 'text' : 'password';
});
// Another address has waits of its own.
FIELDS.email.addEventListener('input', () => {
  keepTyped(FIELDS.email.value);
  delete ends.start;
  clear();
  tick();
});
$('#other-email').addEventListener('click', () => go('email'));
$('#have-code').addEventListener('click', () => go(nextStep()));
$('#go-on').addEventListener('click', () => history.replaceState({ step: 'email' }, ''));

addEventListener('online', sayWhetherOnline);
addEventListener('offline', sayWhetherOnline);

// In-app browsers and link shorteners add parameters of their own, and some cut links off.
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
// The other language is another document: it has to get the ticket, too.
$('#language').addEventListener('click', (event) => {
  if (ticket) event.target.hash = `t=${ticket}`;
});

// Another tab may have gone on meanwhile.
function isBack() {
  if (document.visibilityState !== 'visible' || step === 'done' || $('[aria-busy="true"]')) return;
  refresh({ quietly: true });
}
document.addEventListener('visibilitychange', isBack);
addEventListener('pageshow', (event) => event.persisted && isBack());
addEventListener('online', isBack);

const isNew = history.state === null;
history.replaceState({ step: 'email', ...history.state }, '');
show(history.state.step === 'done' ? 'done' : 'email');
takeTicket();
if (step !== 'done') refresh({ stay: !isNew || ticket !== null, quietly: true });
setInterval(tick, 500);
// Until here, the page says that it could not start.
$('#unready').remove();
