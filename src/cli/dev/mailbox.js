// Shows /dev/mailbox.json and loads it again every second. No script of an email runs: its text is set
// as text, and its HTML is in a sandboxed frame. The page is also the sign-in page of `dev`: it
// reads the session token that /recovery stores.
const $ = (selector, root = document) => root.querySelector(selector);
const list = $('#mails');
const state = $('#state');
const filter = $('#filter');
const sure = $('#sure');
const time = new Intl.DateTimeFormat(document.documentElement.lang, { timeStyle: 'medium' });
let shown = '';
/** The emails in the list, by what tells them apart. */
const nodes = new Map();

$('#curl').textContent =
  `curl -i ${location.origin}/api/auth/recovery/start \\\n  --json '{"email":"trader.vi@example.com"}'`;

function show(mail) {
  const node = $('#mail').content.cloneNode(true).firstElementChild;
  $('.subject', node).textContent = mail.subject;
  $('.to', node).textContent = mail.to.join(', ');
  $('.from', node).textContent = mail.from;
  $('time', node).textContent = time.format(new Date(mail.received_at));
  $('.text', node).textContent = mail.text;
  node.dataset.words = `${mail.to.join(' ')} ${mail.subject}`.toLocaleLowerCase();
  // A hundred frames at once would be slow.
  node.addEventListener('toggle', () => { $('.html', node).srcdoc = `<base target="_blank">${mail.html}`; }, { once: true });
  const code = mail.text.match(/^(\d{8})\s*$/m)?.[1];
  if (code) {
    const line = $('.code', node);
    line.hidden = false;
    $('output', line).textContent = code;
    $('button', line).addEventListener('click', async () => {
      await navigator.clipboard.writeText(code);
      $('span', line).textContent = $('span', line).dataset.copied;
    });
  }
  return node;
}

/** Changes the list to these emails, newest first. What the user opened stays open. */
function update(mails) {
  const known = new Map(mails.map((mail) => [`${mail.received_at} ${mail.to}`, mail]));
  for (const [id, node] of nodes) {
    if (known.has(id)) continue;
    node.remove();
    nodes.delete(id);
  }
  const before = list.firstElementChild;
  for (const [id, mail] of [...known].reverse()) {
    if (nodes.has(id)) continue;
    nodes.set(id, show(mail));
    list.prepend(nodes.get(id));
  }
  const newest = list.firstElementChild;
  if (newest && newest !== before) {
    if (before && !before.matches(':focus-within')) before.open = false;
    newest.open = true;
  }
  $('#tools').hidden = mails.length === 0;
  if (mails.length === 0) filter.value = '';
  sift();
}

/** Shows only the emails that the filter matches, and says how many there are. */
function sift() {
  const words = filter.value.trim().toLocaleLowerCase();
  for (const node of list.children) node.hidden = !node.dataset.words.includes(words);
  const all = list.children.length;
  const matching = list.querySelectorAll(':scope > :not([hidden])').length;
  const { none, some, matching: part } = state.dataset;
  const text = all === 0 ? none : words ? part : some;
  state.textContent = text.replace('##', all).replace('#', words ? matching : all);
}

async function load() {
  try {
    const answer = await fetch('/dev/mailbox.json');
    const text = await answer.text();
    if (text !== shown) {
      shown = text;
      update(JSON.parse(text));
    }
  } catch {
    state.textContent = state.dataset.gone;
    shown = '';
  }
}

async function refresh() {
  await load();
  setTimeout(refresh, 1000);
}

filter.addEventListener('input', sift);
$('#clear').addEventListener('click', () => sure.showModal());
$('#keep').addEventListener('click', () => sure.close());
$('#delete').addEventListener('click', async () => {
  sure.close();
  await fetch('/dev/mailbox.json', { method: 'DELETE' }).catch(() => {});
  await load();
});

async function showSession() {
  const token = sessionStorage.getItem('vos_session_token');
  sessionStorage.removeItem('vos_session_token');
  if (!token) return;
  const answer = await fetch('/api/auth/session', { headers: { 'X-Session-Token': token } });
  if (!answer.ok) return;
  $('#session b').textContent = (await answer.json()).identity.traits.email;
  $('#session').hidden = false;
}

refresh();
showSession();
