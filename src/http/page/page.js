// The recovery page: email, code, new password, signed in.
//
// The first part is all that a client has to know of the API, which /openapi.json describes; a page of your own can begin
// with it. The rest is what people see. No words are here: the page's own are in its HTML, and the errors say themselves
// what was wrong and what to do, in the language that is asked for.

// ---- The API

// Gives the answer's status, its members, the id of the recovery, and after how many seconds to try again (0: at once). An
// error is {error, message, status} and what helps: attempts_left, advice. Throws if there is no answer.
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
    signal: AbortSignal.timeout(30_000),
  });
  const { headers: sent, status } = answer;
  return { ...(await answer.json()), status, id: sent.get('X-Recovery-Id'), wait: Number(sent.get('Retry-After')) };
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
const served = performance.getEntriesByType('navigation')[0].responseStart;
const now = () => Number(facts.now) + (performance.now() - served) / 1000;

// What the server said last, in answer to `ask`; null while there is no recovery. Nothing of it is kept for a reload.
let recovery = null;
// When things end, by the server's time: the code, the password, the waits of the forms.
const ends = {};
const remaining = (end) => Math.max(0, Math.ceil((ends[end] ?? 0) - now()));
// The step that the server waits for.
const nextStep = () => ({ code_sent: 'code', verified: 'password' })[recovery?.state] ?? 'email';

// What stands in the field of the address, for a reload.
const KEPT = 'vos_recovery_email';
let typed = sessionStorage.getItem(KEPT) ?? '';
// Where the sign-in page of this host finds the session token. It takes it out, and asks GET /api/auth/session for the rest.
const HANDED_OVER = 'vos_session_token';

// An operator's ticket comes in the fragment, which no server sees, and leaves the address bar at once.
let ticket = null;

function learn(told) {
  // What was typed was meant for the recovery on the screen.
  if (told?.id !== recovery?.id) {
    FIELDS.code.value = FIELDS.password.value = '';
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
  for (const button of all('[data-wait]')) button.ariaDisabled = remaining(button.dataset.wait) > 0;
  if (remaining(step) === 60) $('#news').textContent = $('#news').dataset.lastMinute;
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
  // What the server is being asked at this moment is out of date when it comes.
  asked += 1;
  clear();
  form.ariaBusy = 'true';
  const answer = await request().catch(() => null);
  if (!answer) await isLost(form);
  else if (answer.status === 200) await succeed(answer);
  else if (answer.status === 401) await isOver(answer);
  else isRefused(form, answer);
  form.ariaBusy = 'false';
}

// Whether the server has done what it was asked is not known: the server is asked.
async function isLost(form) {
  const before = step;
  await refresh();
  if (form.id === 'start' && recovery?.email === sent.toLowerCase()) go(nextStep());
  if (step !== before || $('#network').textContent) return;
  $('#network').textContent = navigator.onLine ? $('#network').dataset.noAnswer : $('#network').dataset.offline;
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
    FIELDS[step].ariaInvalid = 'true';
    FIELDS[step].focus();
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
onSubmit('start', () => start((sent = FIELDS.email.value.trim()), ticket), (answer) => codeWasSent(answer, sent));
onSubmit('resend', () => start(recovery.email, ticket), async (answer) => {
  await codeWasSent(answer, recovery.email);
  if (step === 'code') $('#resent').textContent = $('#resent').dataset.text;
});
onSubmit('verify', () => verify(digitsOf(FIELDS.code.value), recovery.id), async (answer) => {
  FIELDS.code.value = '';
  await goOn(answer, { email: recovery.email, state: 'verified' });
});
onSubmit('reset', () => reset(FIELDS.password.value, recovery.id), async (answer) => {
  // A sign-in page of this host is handed the session, in this tab alone; never in a URL. Another host's could not read it
  // there, so the session is ended: its page signs in with the new password.
  if ('handsOver' in facts) sessionStorage.setItem(HANDED_OVER, answer.sessionToken);
  else await logOut(answer.sessionToken).catch(() => {});
  typed = '';
  sessionStorage.removeItem(KEPT);
  learn(null);
  go('done', { instead: true });
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
  typed = FIELDS.email.value;
  sessionStorage.setItem(KEPT, typed);
  delete ends.start;
  clear();
  tick();
});
$('#other-email').addEventListener('click', () => go('email'));
$('#have-code').addEventListener('click', () => go(nextStep()));
$('#go-on').addEventListener('click', () => history.replaceState({ step: 'email' }, ''));

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
