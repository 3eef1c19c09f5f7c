// The support console. An operator signs in, finds an account, sees why no code came, and helps.
//
// The first part is a client of the admin API that /openapi.json of this address describes. The rest
// is the user interface. This file contains no texts: they are in the HTML, and error messages come
// from the service in the language of the page.

// ---- The API

// The operator's token, for this tab only. It is in no URL and in no cookie. A client certificate
// needs no token: the browser presents it by itself.
const TOKEN_KEY = 'vos_operator_token';
// When the token was last used, in milliseconds.
const USED_KEY = 'vos_operator_used';
// What the sign-in form says after the page has signed the operator out.
const SAID_KEY = 'vos_operator_said';
const IDLE = 15 * 60_000;

// Browsers can block storage. Then a reload signs the operator out.
const storage = {
  read: (key) => attempt(() => sessionStorage.getItem(key)) ?? '',
  write: (key, value) => attempt(() => sessionStorage.setItem(key, value)),
  remove: (key) => attempt(() => sessionStorage.removeItem(key)),
};
function attempt(action) {
  try {
    return action();
  } catch {
    return null;
  }
}

let token = storage.read(TOKEN_KEY);

// An error in words. `status` is 0 if there was no answer.
class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// Resolves to the members of a 2xx answer, and throws a Refusal otherwise.
async function call(method, path, { body, reason } = {}) {
  const answer = await fetch(path, {
    method,
    cache: 'no-store',
    headers: {
      'Accept-Language': document.documentElement.lang,
      ...(token && { Authorization: `Bearer ${token}` }),
      ...(body && { 'Content-Type': 'application/json' }),
      // A header holds only Latin letters, so the reason is an extended value (RFC 8187).
      ...(reason && { 'X-Reason': `UTF-8''${encodeURIComponent(reason)}` }),
    },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  }).catch(() => {
    throw new Refusal(say(method === 'GET' ? 'no_answer' : 'unknown_outcome'));
  });
  const members = await answer.json().catch(() => null);
  if (answer.ok && (members || answer.status === 204)) return members ?? {};
  // A proxy that answers in place of the service does not answer in JSON.
  throw new Refusal(members?.message ?? say(method === 'GET' ? 'no_service' : 'unknown_outcome'), answer.status);
}

const query = (parameters) => new URLSearchParams(parameters);
const accountPath = (id, rest = '') => `/admin/accounts/${encodeURIComponent(id)}${rest}`;
const whoAmI = () => call('GET', '/admin/self');
const findBy = (name, value) => call('GET', `/admin/accounts?${query({ [name]: value, limit: PAGE })}`);
const showAccount = (id) => call('GET', accountPath(id));
const eventsOf = (id, before) => call('GET', accountPath(id, `/events?${query({ limit: EVENTS, ...(before && { before }) })}`));
const ownEvents = () => call('GET', `/admin/operators/${encodeURIComponent(me.name)}/events?${query({ limit: MOST })}`);
const showOutbox = () => call('GET', '/admin/outbox');
const listRequests = () => call('GET', `/admin/requests?${query({ limit: MOST, open: true })}`);

// What an operator can do. `on` is what it is done to: an account, or a request.
const ACTS = {
  ticket: (on) => ['POST', accountPath(on.id, '/ticket')],
  lift: (on) => ['POST', '/admin/limits/lift', { email: on.email }],
  end: (on) => ['DELETE', accountPath(on.id, '/sessions')],
  recover: (on, email) => ['POST', accountPath(on.id, '/recover-to'), { email }],
  set: (on, email) => ['PUT', accountPath(on.id, '/email'), { email }],
  disable: (on) => ['POST', accountPath(on.id, '/disable')],
  enable: (on) => ['POST', accountPath(on.id, '/enable')],
  approve: (on) => ['POST', `/admin/requests/${on.id}/approve`],
  refuse: (on) => ['DELETE', `/admin/requests/${on.id}`],
};

// ---- State

const PAGE = 50;
// Pages of events, most of which are lookups, which are not shown.
const EVENTS = 200;
const MOST = 1000;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const TOKEN = /^vosop_[\w-]{43}$/;
// How long a request waits for its approval, and an approved ticket for its operator.
const APPROVAL = 10 * 60_000;

// The operator: name, role, and the names of the calls that the role may make.
let me = null;
const may = (name) => me.may.includes(name);
// The overview of the account on the screen; null on the home screen.
let shown = null;
// The events on the screen, and from where older ones are read.
let events = [];
let older = null;
// What the open dialog does, and to what.
let act = null;
// An answer that arrives after the operator has gone on is not shown.
let visit = 0;

// ---- Words and times

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const lang = document.documentElement.lang;
const name = document.title;
const words = new Map(all('data', $('#words').content).map((one) => [one.value, one.textContent]));

// A text with its places filled in. A word of another release is shown as it is.
const say = (key, values = {}) => (words.get(key) ?? key.replace(/^\w+\./, '')).replace(/\{(\w+)\}/g, (_, place) => values[place] ?? '');
// The same as nodes, so that a time can be in a sentence.
function nodesOf(key, values) {
  const parts = (words.get(key) ?? key).split(/\{(\w+)\}/);
  return parts.map((part, place) => (place % 2 ? (values[part] ?? '') : part));
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const clock = new Intl.DateTimeFormat(lang, { dateStyle: 'short', timeStyle: 'short' });
const exact = new Intl.DateTimeFormat(lang, { dateStyle: 'full', timeStyle: 'long' });
const ago = new Intl.RelativeTimeFormat(lang, { numeric: 'auto' });

function relative(time) {
  const seconds = (time - Date.now()) / 1000;
  for (const [unit, length] of [['day', 86_400], ['hour', 3600], ['minute', 60]])
    if (Math.abs(seconds) >= length) return ago.format(Math.trunc(seconds / length), unit);
  return ago.format(Math.trunc(seconds), 'second');
}

// A time as people read it; the exact one with its zone is its title.
function time(text, after = 0) {
  if (!text) return '';
  const at = new Date(Date.parse(text) + after);
  return element('time', { dateTime: at.toISOString(), title: exact.format(at) }, `${clock.format(at)} (${relative(at)})`);
}

// The browser and the system of a User-Agent, which is its title.
function device(agent) {
  if (!agent) return say('unknown');
  const first = (names) => names.find(([sign]) => agent.includes(sign))?.[1];
  const browser = first([['Edg', 'Edge'], ['OPR/', 'Opera'], ['Firefox', 'Firefox'], ['Chrome', 'Chrome'], ['Safari', 'Safari']]);
  const system = first([['Android', 'Android'], ['iPhone', 'iPhone'], ['iPad', 'iPad'], ['Windows', 'Windows'], ['Mac OS', 'macOS'], ['Linux', 'Linux']]);
  return element('span', { title: agent }, [browser, system].filter(Boolean).join(', ') || agent.slice(0, 40));
}

// ---- Lists

// Fills a table or a list; without rows, with the sentence that it has for that.
function fill(selector, rows) {
  const body = $(selector);
  if (rows.length === 0 && body.dataset.none) {
    const none = body.tagName === 'TBODY' ? element('td', { colSpan: 3 }, body.dataset.none) : body.dataset.none;
    rows = [element(body.tagName === 'TBODY' ? 'tr' : 'li', {}, none)];
  }
  body.replaceChildren(...rows);
}

const row = (...cells) =>
  element('tr', {}, ...cells.map((cell) => (cell?.tagName === 'TD' ? cell : element('td', {}, ...[cell].flat()))));
const tag = (state) => element('span', { className: state === 'active' ? 'tag' : 'tag bad' }, say(`state.${state}`));
const tags = ({ state, bouncing_since: bouncing }) => [tag(state), ...(bouncing ? [tag('bouncing')] : [])];
const accountLink = (id, text) => element('a', { href: `#${id}` }, text);

function whatOf({ what, call: called, outcome }) {
  if (what !== 'operator_call') return say(`event.${what}`);
  const name = say(called ? `call.${called}` : 'event.operator_call');
  return outcome === 'allowed' ? name : `${name} (${say(`outcome.${outcome}`)})`;
}

function whoOf({ operator, reason, client_ip: ip, user_agent: agent }) {
  if (operator) return [operator, ...(reason ? [element('small', {}, reason)] : [])];
  return ip ? [say('owner', { ip }), element('small', {}, device(agent))] : [say('service')];
}

const isLookup = (event) => event.what === 'operator_call' && event.outcome === 'allowed';

// ---- Why no code came

// The findings about an account, the most important first: a word, its values, whether it is bad,
// and what helps.
function findings({ account, limits, mails, recoveries }, outbox) {
  const found = [];
  const add = (word, values = {}, isBad = false, ...helps) => found.push({ word, values, isBad, helps });
  const isActive = account.state === 'active';
  const empty = (...names) => limits.filter(({ name, left }) => names.includes(name) && left === 0);
  if (!isActive) add('disabled', {}, true, 'enable');
  if (account.bouncing_since) add('bouncing', { at: time(account.bouncing_since) }, true, 'recover', 'set');
  if (outbox?.mail === 'unavailable') add('relays', {}, true);
  const [limited] = empty('recoveries_per_day', 'recoveries');
  if (limited) add('limited', { at: time(limited.full_at) }, true, 'ticket', 'lift');
  const code = mails.find(({ kind }) => kind === 'recovery_code');
  if (code && isActive) {
    const values = { at: time(code.at), attempts: code.attempts, error: code.last_error };
    add(code.state, values, ['given_up', 'expired', 'retrying'].includes(code.state));
  }
  const [newest] = recoveries;
  if (newest?.state === 'spent') add('spent', {}, true);
  if (['code_sent', 'verified', 'used'].includes(newest?.state))
    add(newest.state, { at: time(newest.expires_at), left: newest.attempts_left });
  const [locked] = empty('failed_logins_per_day', 'failed_logins');
  if (locked) add('login_limited', { at: time(locked.full_at) }, true, 'lift');
  if (!code && !newest && isActive) add('none');
  return found;
}

function renderFindings(outbox) {
  const buttons = (helps) =>
    helps.map((help) => $(`#acts [data-act="${help}"]`)).filter((button) => !button.hidden).map((button) => button.cloneNode(true));
  const items = findings(shown, outbox).map(({ word, values, isBad, helps }) =>
    element('li', { className: isBad ? 'bad' : '' }, ...nodesOf(`why.${word}`, values), element('div', {}, ...buttons(helps))),
  );
  $('#why').replaceChildren(...items);
}

// ---- The account

function renderAccount(outbox, requests) {
  const { account, sessions, recoveries, limits, mails } = shown;
  const isActive = account.state === 'active';
  $('#email').textContent = account.email;
  const fact = (word, value) => (value ? [' · ', say(`facts.${word}`), ': ', value] : []);
  $('#facts').replaceChildren(
    ...tags(account).flatMap((one) => [one, ' ']),
    element('code', {}, account.id),
    ...fact('created', time(account.created_at)),
    ...fact('external_id', account.traits?.external_id),
    ...fact('locale', account.locale && say(`locale.${account.locale}`)),
    ...(account.password ? fact('password', time(account.password_changed_at)) : [' · ', say('facts.no_password')]),
  );
  for (const button of all('#acts button')) {
    const isPossible = { disable: isActive, enable: !isActive, ticket: isActive, recover: isActive }[button.dataset.act] ?? true;
    button.hidden = !isPossible || !may(button.dataset.may);
  }
  $('#reads-only').hidden = may('account.ticket');
  renderFindings(outbox);
  fill('#waiting', requests.filter((one) => one.account_id === account.id).map(renderRequest));
  fill('#mails', mails.map((mail) => row(time(mail.at), say(`mail.${mail.kind}`), fateOf(mail))));
  fill('#limits', limits.map((limit) => row(say(`limit.${limit.name}`), leftOf(limit), limit.left < limit.capacity ? time(limit.full_at) : '')));
  const stateOf = (one) => nodesOf(`recovery.${one.state}`, { at: time(one.expires_at) });
  fill('#recoveries', recoveries.map((one) => row(time(one.created_at), stateOf(one), String(one.attempts_left))));
  fill('#sessions', sessions.map((one) => row(time(one.last_seen_at), device(one.user_agent), one.client_ip)));
}

function fateOf({ state, attempts, last_error: error }) {
  const more = [attempts ? say('fate.attempts', { attempts }) : '', error].filter(Boolean).join(': ');
  return [say(`fate.${state}`), ...(more ? [element('small', {}, more)] : [])];
}

const leftOf = ({ left, capacity }) => element('td', { className: left === 0 ? 'over' : '' }, `${left} / ${capacity}`);

function renderEvents() {
  const visible = events.filter((event) => $('#with-reads').checked || !isLookup(event));
  fill('#events', visible.map((event) => row(time(event.at), whatOf(event), whoOf(event))));
  $('#older').hidden = !older;
}

async function readEvents(id) {
  const [thisVisit, before] = [visit, older];
  const page = await eventsOf(id, before);
  // Another account is on the screen, or the same page was read by another click.
  if (thisVisit !== visit || older !== before) return;
  events = events.concat(page.events);
  older = page.next;
  renderEvents();
}

// An open request, with what this operator can do about it.
function renderRequest(request) {
  const { kind, state, asked_by: by, approved_by: approver, new_email: email, reason } = request;
  const isAsked = state === 'asked';
  const at = isAsked || kind === 'ticket' ? time(isAsked ? request.asked_at : request.approved_at, APPROVAL) : time(request.effective_at);
  const text = element('div', {}, ...nodesOf(`request.${kind}`, { by, email }), element('small', {}, reason));
  text.append(element('small', {}, ...nodesOf(isAsked ? 'request.asked' : `request.approved.${kind}`, { at, approver, by })));
  const button = (name) => {
    const made = element('button', { type: 'button' }, say(`name.${name}`));
    made.addEventListener('click', () => openAct(name, request, say(`name.${name}`)));
    return made;
  };
  const buttons = [];
  // Who may not ask for another address may not approve it.
  const isTheirs = kind === 'ticket' || may('account.recover_to');
  if (isAsked && isTheirs && by.toLowerCase() !== me.name.toLowerCase() && may('request.approve')) buttons.push(button('approve'));
  if (may('request.cancel')) buttons.push(button('refuse'));
  const where = shown ? [] : [accountLink(request.account_id, request.old_email ?? request.account_id)];
  return element('li', {}, text, ...where, ...buttons);
}

const openRequests = async () => (may('request.list') ? (await listRequests()).requests : []);

// ---- Screens

function show(id) {
  for (const section of all('main > section')) section.hidden = section.id !== id;
  $('#find').hidden = id === 'sign-in';
  $('#trouble').textContent = '';
  const title = $(`#${id} h1`).textContent;
  document.title = title ? `${title} · ${name}` : name;
}

// Shows the screen of the URL's fragment: an account by its id, or home. An error is shown above the
// screen that was there before.
async function go({ keepSaid = false } = {}) {
  const thisVisit = ++visit;
  const id = location.hash.slice(1);
  if (!keepSaid) $('#said').textContent = '';
  try {
    await (UUID.test(id) ? goToAccount(id, thisVisit) : goHome(thisVisit));
  } catch (error) {
    if (thisVisit !== visit) return;
    if ($('#find').hidden) show('home');
    trouble(error);
  }
  // The button that opened a dialog may be gone.
  if (document.activeElement === document.body) $(shown ? '#email' : '#wanted').focus();
}

async function goToAccount(id, thisVisit) {
  const [overview, outbox, requests] = await Promise.all([showAccount(id), showOutbox(), openRequests()]);
  if (thisVisit !== visit) return;
  const isOther = shown?.account.id !== overview.account.id;
  [shown, events, older] = [overview, [], null];
  renderAccount(outbox, requests);
  renderEvents();
  show('account');
  if (isOther) $('#email').focus();
  const page = await eventsOf(id);
  if (thisVisit !== visit) return;
  [events, older] = [page.events, page.next];
  renderEvents();
}

async function goHome(thisVisit) {
  const isOther = shown !== null;
  shown = null;
  $('#all-requests').hidden = !may('request.list');
  show('home');
  if (isOther) $('#wanted').focus();
  const [requests, own] = await Promise.all([openRequests(), ownEvents()]);
  if (thisVisit !== visit) return;
  fill('#requests', requests.map(renderRequest));
  const linked = (event) => (event.account_id ? accountLink(event.account_id, event.account_id.slice(-12)) : '');
  const what = (event) => [whatOf(event), ...(event.reason ? [element('small', {}, event.reason)] : [])];
  fill('#own-events', own.events.filter((event) => !isLookup(event)).slice(0, 10).map((event) => row(time(event.at), what(event), linked(event))));
}

function trouble(error) {
  if (error.status === 401) return leave(error.message);
  if (!(error instanceof Refusal)) throw error;
  $('#trouble').textContent = error.message;
}

// Forgets the token and everything on the screen.
function leave(message = '') {
  for (const key of [TOKEN_KEY, USED_KEY]) storage.remove(key);
  storage.write(SAID_KEY, message);
  location.reload();
}

// Sends a form once, even if its button is pressed again.
function onSubmit(selector, work) {
  const form = $(selector);
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (form.getAttribute('aria-busy') === 'true') return;
    form.setAttribute('aria-busy', 'true');
    await work().catch(trouble);
    form.setAttribute('aria-busy', 'false');
  });
}

// Says what is wrong with a field, and brings the operator there.
function refuse(error, field, message) {
  $(error).textContent = message;
  $(field).setAttribute('aria-invalid', 'true');
  $(field).focus();
}

// ---- Sign in

onSubmit('#enter', async () => {
  const typed = $('#token').value.trim();
  if (!TOKEN.test(typed)) return refuse('#enter-error', '#token', say(typed ? 'token_malformed' : 'no_token'));
  token = typed;
  try {
    await enter();
  } catch (error) {
    token = '';
    if (!(error instanceof Refusal)) throw error;
    refuse('#enter-error', '#token', error.message);
  }
});
$('#token').addEventListener('input', () => {
  $('#enter-error').textContent = '';
  $('#token').removeAttribute('aria-invalid');
});

async function enter() {
  me = await whoAmI();
  if (token) {
    storage.write(TOKEN_KEY, token);
    use();
  }
  $('#token').value = '';
  $('#operator').textContent = me.name;
  $('#role').textContent = say(`role.${me.role}`);
  $('#who').hidden = false;
  // A certificate cannot be put away by a page.
  $('#sign-out').hidden = !token;
  await go();
}

$('#sign-out').addEventListener('click', () => leave());

// A certificate stays with the machine, which has a lock screen of its own.
function use() {
  if (token) storage.write(USED_KEY, String((lastUse = Date.now())));
}
let lastUse = Number(storage.read(USED_KEY)) || 0;
const isIdle = () => token !== '' && Date.now() - lastUse > IDLE;
for (const kind of ['keydown', 'pointerdown']) addEventListener(kind, () => me && !isIdle() && use(), true);
setInterval(() => me && isIdle() && leave(say('idle')), 1000);

// ---- Find

// What the operator typed is an id, an address, or the beginning of one; or an id in another system.
async function find(wanted) {
  const isAddress = /^\S+@\S+\.\S+$/.test(wanted);
  const first = UUID.test(wanted) ? ['id'] : isAddress ? ['email'] : [];
  for (const by of [...first, 'prefix', 'external_id']) {
    // Something with an @ may still not be an address. It can be the beginning of one.
    const page = await findBy(by, wanted).catch((error) => {
      if (by === 'email' && error.status === 400) return { accounts: [] };
      throw error;
    });
    if (page.accounts.length) return page;
  }
  return { accounts: [] };
}

onSubmit('#find', async () => {
  const wanted = $('#wanted').value.trim();
  const note = $('#find-note');
  if (!wanted) return (note.textContent = say('no_wanted')), $('#wanted').focus();
  const { accounts, next } = await find(wanted);
  note.textContent = '';
  const isOne = accounts.length === 1;
  if (!isOne) note.textContent = say(accounts.length === 0 ? 'found_none' : next ? 'found_many' : 'found_some', { count: accounts.length });
  fill('#found', isOne ? [] : accounts.map((one) => element('li', {}, accountLink(one.id, one.email), ...tags(one))));
  const target = isOne ? accounts[0].id : '';
  if (location.hash.slice(1) === target) await go();
  else location.hash = target;
});

// ---- Help

function openAct(what, on, title) {
  act = { what, on };
  $('#act-name').textContent = $('#confirm-name').textContent = title;
  $('#act-on').textContent = on.email ?? on.old_email ?? on.account_id;
  $('#act-about').textContent = say(`about.${what}`);
  $('#act-address').hidden = !['recover', 'set'].includes(what);
  for (const field of ['#new-email', '#reason', '#link']) $(field).value = '';
  clearAct();
  showGiven(false);
  $('#act').showModal();
  $($('#act-address').hidden ? '#reason' : '#new-email').focus();
}

function clearAct() {
  $('#act-error').textContent = $('#copied').textContent = '';
  for (const field of ['#new-email', '#reason']) $(field).removeAttribute('aria-invalid');
}

function showGiven(isGiven) {
  $('#carry-out').hidden = isGiven;
  $('#given').hidden = !isGiven;
  $('#act').setAttribute('aria-labelledby', isGiven ? 'given-name' : 'act-name');
}

onSubmit('#carry-out', async () => {
  clearAct();
  const { what, on } = act;
  const [email, reason] = [$('#new-email').value.trim(), $('#reason').value.trim()];
  if (!$('#act-address').hidden && !email) return refuse('#act-error', '#new-email', say('no_email'));
  if (!reason) return refuse('#act-error', '#reason', say('no_reason'));
  const [method, path, body] = ACTS[what](on, email);
  act.isTried = true;
  try {
    finish(what, on, await call(method, path, { body, reason }));
  } catch (error) {
    if (error.status === 401 || !(error instanceof Refusal)) throw error;
    refuse('#act-error', body?.email && error.status === 400 ? '#new-email' : '#reason', error.message);
    if (error.status !== 400) $('#reason').removeAttribute('aria-invalid');
  }
});

// Says what was done. A link is shown for as long as the dialog is open, and kept nowhere.
function finish(what, on, answer) {
  if (answer.ticket) return give('ticket', answer.link ?? answer.ticket, [], answer.expires_at);
  if (answer.request) {
    const rest = what === 'ticket' ? [' ', say('given.request.ticket')] : [];
    return give('request', `${location.origin}/console#${on.id}`, rest);
  }
  const key = what === 'approve' ? `done.approve.${on.kind}` : `done.${what}`;
  $('#said').replaceChildren(...(answer.changed === false ? [say('unchanged')] : nodesOf(key, { ...answer, at: time(answer.effective_at) })));
  $('#act').close();
}

function give(kind, link, rest, until) {
  $('#given-name').textContent = say(`given.${kind}`);
  $('#given-about').replaceChildren(...nodesOf(`given.${kind}.about`, { at: time(until) }), ...rest);
  $('#link').value = link;
  // Browsers close a dialog at a second Escape, whatever the page says. The link is not shown again.
  if (!$('#act').open) $('#act').showModal();
  showGiven(true);
  $('#copy').focus();
}

$('#copy').addEventListener('click', async () => {
  $('#link').select();
  const isCopied = await navigator.clipboard.writeText($('#link').value).then(() => true, () => false);
  $('#copied').textContent = isCopied ? $('#copied').dataset.text : $('#copied').dataset.byHand;
});
$('#link').addEventListener('focus', () => $('#link').select());

$('#act').addEventListener('close', () => {
  $('#link').value = '';
  if (act?.isTried) go({ keepSaid: true });
  act = null;
});
document.addEventListener('click', ({ target }) => {
  const button = target.closest?.('[data-act]');
  if (button) openAct(button.dataset.act, shown.account, button.textContent);
  if (target.closest?.('[data-close]') && !isWorking()) $('#act').close();
});
// A dialog that is closed could not show the link that is on its way.
const isWorking = () => $('#carry-out').getAttribute('aria-busy') === 'true';
$('#act').addEventListener('cancel', (event) => isWorking() && event.preventDefault());
for (const field of ['#new-email', '#reason']) $(field).addEventListener('input', clearAct);

$('#with-reads').addEventListener('change', renderEvents);
$('#older').addEventListener('click', () => readEvents(shown.account.id).catch(trouble));
$('#again').addEventListener('click', () => go());
addEventListener('hashchange', () => me && go());
// The other language is another document. It shows the same account.
$('#language').addEventListener('click', (event) => (event.target.hash = location.hash));

// ---- Start

async function start() {
  const said = storage.read(SAID_KEY);
  storage.remove(SAID_KEY);
  if (isIdle()) {
    token = '';
    storage.remove(TOKEN_KEY);
  }
  if (token || (!said && 'certificates' in document.body.dataset)) {
    try {
      await enter();
      return;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (token || error.status !== 401) $('#enter-error').textContent = error.message;
      if (error.status === 401) storage.remove(TOKEN_KEY);
      token = '';
    }
  }
  show('sign-in');
  if (said) $('#enter-error').textContent = said;
  $('#token').focus();
}
start();
// Until this line has run, the page says that it could not start.
$('#unready').remove();
