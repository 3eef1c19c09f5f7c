// The recovery page: email, code, new password, signed in.
//
// The first part is all that a client has to know of the API, which /openapi.json describes; a page of your own can begin
// with it. The rest is what people see. No words are here: the page's own are in its HTML, and the errors say themselves
// what was wrong and what to do, in the language that is asked for.

// ---- The API

// Posts, and gives the answer's status, its members, and after how many seconds to try again (0: at once). An error is
// {error, message, status} and what helps: attempts_left, advice. Throws if there is no answer.
async function post(path, body, headers = {}) {
  const answer = await fetch(path, {
    method: 'POST',
    // The recovery is a cookie that scripts cannot read: the browser has to keep it and send it along.
    credentials: 'include',
    headers: { 'Content-Type': 'application/json', 'Accept-Language': document.documentElement.lang, ...headers },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });
  return { ...(await answer.json()), status: answer.status, wait: Number(answer.headers.get('Retry-After')) };
}

// 200 for every address that could be one, so an answer never says who has an account. With the cookie of a recovery of the
// same address that has some minutes to live, it sends the same code again.
const start = (email, ticket) =>
  post('/api/auth/recovery/start', { email }, ticket ? { 'X-Recovery-Ticket': ticket } : {});
// 400 with attempts_left for a wrong code; 401: start again. Spaces in the code do not matter.
const verify = (code) => post('/api/auth/recovery/verify', { code });
// 200 is a sign-in: sessionToken, jwt, session. 400 with advice for a password that is refused; 401: start again.
const reset = (password) => post('/api/auth/recovery/reset-password', { password });
const logOut = (token) => post('/api/auth/logout', {}, { 'X-Session-Token': token });

// ---- What is kept

const facts = document.body.dataset;
const CODE_LIFE = Number(facts.codeLife);
const RESEND_LIFE = Number(facts.resendLife);
const RESET_LIFE = Number(facts.resetLife);
// Between two mails, so that the first can arrive. The service has its own limit, which it tells.
const RESEND_WAIT = 30;

// Time is the server's, as it was when it served this page, and what has passed since by a clock that nobody sets.
const served = performance.getEntriesByType('navigation')[0].responseStart;
const now = () => Number(facts.now) + (performance.now() - served) / 1000;

// How far this tab has come: the step, what stands in the field of the address, the address that a code was sent to, the
// attempts left, and when things end. No code, password or token.
const KEPT = 'vos_recovery';
// Where the sign-in page of this host finds the session token. It takes it out, and asks GET /api/auth/session for the rest.
const HANDED_OVER = 'vos_session_token';
const nothing = (typed = '') => ({ step: 'email', typed, email: '', ends: {} });
let progress = { ...nothing(), ...JSON.parse(sessionStorage.getItem(KEPT)) };
const keep = () => sessionStorage.setItem(KEPT, JSON.stringify(progress));
const remaining = (end) => Math.max(0, Math.ceil((progress.ends[end] ?? 0) - now()));

// An operator's ticket comes in the fragment, which no server sees, and leaves the address bar at once.
let ticket = null;

// ---- What is seen

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector) => document.querySelectorAll(selector);
const FIELDS = { email: $('#address'), code: $('#digits'), password: $('#secret') };
const name = document.title;

function show(step) {
  const possible = { code: 'code' in progress.ends, password: 'password' in progress.ends, done: progress.isDone };
  progress.step = possible[step] ? step : 'email';
  keep();
  clear();
  for (const section of all('section')) section.hidden = section.id !== progress.step;
  const section = $(`#${progress.step}`);
  document.title = `${$('h1', section).textContent} · ${name}`;
  $('#back').hidden = progress.step === 'done';
  $('#ticket').hidden = !ticket;
  FIELDS.email.value = progress.typed;
  $('#account').value = $('.address').textContent = progress.email;
  $('#attempts').hidden = !('attempts' in progress);
  $('#attempts b').textContent = progress.attempts;
  tick();
}

// Moves on, as a place in the browser's history: its back button leads to the address, and forward again. A step that is
// over (`instead`) is no place to come back to.
function go(step, instead = false) {
  history[instead ? 'replaceState' : 'pushState']({ step }, '');
  show(step);
  (FIELDS[progress.step] ?? $(`#${progress.step} h1`)).focus();
}

// Twice a second: what is left of everything that ends.
function tick() {
  for (const line of all('[data-until]')) {
    const left = remaining(line.dataset.until);
    line.hidden = left === 0;
    const time = $('time', line);
    if (time) time.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, '0')}`;
  }
  for (const line of all('[data-after]')) line.hidden = remaining(line.dataset.after) > 0;
  for (const button of all('[data-wait]')) button.ariaDisabled = remaining(button.dataset.wait) > 0;
  if (remaining(progress.step) === 60) $('#news').textContent = $('#news').dataset.lastMinute;
}

function complain(form, { message, advice = [] }) {
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const list = element('ul', '');
  list.append(...advice.map((one) => element('li', one)));
  $('.error', form).replaceChildren(element('p', message), ...(advice.length ? [list] : []));
}

function clear() {
  for (const error of all('.error')) error.replaceChildren();
  for (const field of Object.values(FIELDS)) field.ariaInvalid = null;
  $('#resent').textContent = $('#news').textContent = '';
  sayWhetherOnline();
}

function sayWhetherOnline() {
  $('#network').textContent = navigator.onLine ? '' : $('#network').dataset.offline;
}

// Sends a form once, however often it is pressed, and does what every answer asks for; 200 is for `succeed`.
async function send(form, request, succeed) {
  if (form.ariaBusy === 'true' || remaining(form.id) > 0) return;
  clear();
  form.ariaBusy = 'true';
  const answer = await request().catch(() => null);
  form.ariaBusy = 'false';
  if (!answer) {
    $('#network').textContent = navigator.onLine ? $('#network').dataset.noAnswer : $('#network').dataset.offline;
    return;
  }
  if (answer.status === 200) return succeed(answer);
  if (answer.wait > 0) progress.ends[form.id] = now() + answer.wait;
  if (answer.attempts_left !== undefined) progress.attempts = answer.attempts_left;
  if (answer.status === 401) {
    // The recovery is over; its address is not.
    progress = nothing(progress.email);
    go('email', true);
    return complain($('#start'), answer);
  }
  show(progress.step);
  complain(form, answer);
  if (answer.status === 400 && form.id !== 'resend') {
    FIELDS[progress.step].ariaInvalid = 'true';
    FIELDS[progress.step].focus();
  }
}

// ---- The steps

function codeWasSent(email) {
  const isSame = email.toLowerCase() === progress.email.toLowerCase();
  const goesOn = isSame && remaining('code') >= RESEND_LIFE && progress.attempts !== 0;
  if (!goesOn) progress = { ...nothing(email), email, ends: { code: now() + CODE_LIFE } };
  progress.ends.resend = now() + RESEND_WAIT;
  ticket = null;
}

function onSubmit(id, request, succeed) {
  const form = $(`#${id}`);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    send(form, request, succeed);
  });
}

onSubmit('start', () => start(FIELDS.email.value, ticket), () => {
  codeWasSent(FIELDS.email.value.trim());
  go('code');
});
onSubmit('resend', () => start(progress.email, ticket), () => {
  codeWasSent(progress.email);
  show('code');
  $('#resent').textContent = $('#resent').dataset.text;
});
onSubmit('verify', () => verify(digitsOf(FIELDS.code.value)), () => {
  FIELDS.code.value = '';
  progress = { ...nothing(progress.email), email: progress.email, ends: { password: now() + RESET_LIFE } };
  go('password', true);
});
onSubmit('reset', () => reset(FIELDS.password.value), async (answer) => {
  FIELDS.password.value = '';
  // A sign-in page of this host is handed the session, in this tab alone; never in a URL. Another host's could not read it
  // there, so the session is ended: its page signs in with the new password.
  if ('handsOver' in facts) sessionStorage.setItem(HANDED_OVER, answer.sessionToken);
  else await logOut(answer.sessionToken).catch(() => {});
  progress = { ...nothing(), isDone: true };
  go('done', true);
});

// What was pasted may be more than the code: a whole line of the mail.
function digitsOf(text) {
  const digits = text.replace(/\D/g, '');
  return digits.length === 8 ? digits : text;
}

// The server's own rule of length, counted as it counts: code points of the composed form (NFC). It judges the rest itself,
// once, because a password is not sent as it is typed.
function judgeLength() {
  const length = [...FIELDS.password.value.normalize('NFC')].length;
  const missing = Number(facts.minChars) - length;
  const excess = length - Number(facts.maxChars);
  const verdicts = { 'too-short': length > 0 && missing > 0, 'long-enough': missing <= 0 && excess <= 0, 'too-long': excess > 0 };
  for (const [id, holds] of Object.entries(verdicts)) $(`#${id}`).hidden = !holds;
  $('#too-short b').textContent = missing;
  $('#too-long b').textContent = excess;
}

FIELDS.password.addEventListener('input', judgeLength);
$('#reveal').addEventListener('change', (event) => {
  FIELDS.password.type = event.target.checked ? 'text' : 'password';
});
// Another address has waits of its own.
FIELDS.email.addEventListener('input', () => {
  progress.typed = FIELDS.email.value;
  delete progress.ends.start;
  keep();
  clear();
  tick();
});
$('#other-email').addEventListener('click', () => go('email'));
$('#have-code').addEventListener('click', () => go('code'));
$('#go-on').addEventListener('click', () => sessionStorage.removeItem(KEPT));

addEventListener('online', sayWhetherOnline);
addEventListener('offline', sayWhetherOnline);

function takeTicket() {
  const found = location.hash.match(/^#t=([\w-]+)$/)?.[1];
  if (!found) return;
  ticket = found;
  history.replaceState({ step: 'email' }, '', location.pathname);
  show('email');
}
addEventListener('hashchange', takeTicket);
addEventListener('popstate', (event) => show(event.state?.step ?? 'email'));
// The other language is another document: it has to get the ticket, too.
$('#language').addEventListener('click', (event) => {
  if (ticket) event.target.hash = `t=${ticket}`;
});

show(history.state?.step ?? progress.step);
history.replaceState({ step: progress.step }, '');
takeTicket();
setInterval(tick, 500);
