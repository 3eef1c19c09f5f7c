// Shows /dev/mailbox.json and reloads it every second. No script of an email runs: its text is set
// as text, and its HTML is in a sandboxed frame. The page is also the sign-in page of `dev`: it
// reads the session token that /recovery stores.
const $ = (selector, root = document) => root.querySelector(selector);
const list = $('#mails');
const state = $('#state');
const time = new Intl.DateTimeFormat(document.documentElement.lang, { timeStyle: 'medium' });
let shown = '';

$('#curl').textContent =
  `curl -i ${location.origin}/api/auth/recovery/start \\\n  --json '{"email":"trader.vi@example.com"}'`;

function show(mail) {
  const node = $('#mail').content.cloneNode(true);
  $('.subject', node).textContent = mail.subject;
  $('.to', node).textContent = mail.to.join(', ');
  $('.from', node).textContent = mail.from;
  $('time', node).textContent = time.format(new Date(mail.received_at));
  $('.text', node).textContent = mail.text;
  $('.html', node).srcdoc = mail.html;
  const code = mail.text.match(/^\s*(\d{4} \d{4})\s*$/m)?.[1];
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

async function refresh() {
  try {
    const answer = await fetch('/dev/mailbox.json');
    const text = await answer.text();
    if (text !== shown) {
      shown = text;
      const mails = JSON.parse(text);
      list.replaceChildren(...mails.map(show));
      state.textContent = mails.length === 0 ? state.dataset.none : state.dataset.some.replace('#', mails.length);
    }
  } catch {
    state.textContent = state.dataset.gone;
    shown = '';
  }
  setTimeout(refresh, 1000);
}

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
