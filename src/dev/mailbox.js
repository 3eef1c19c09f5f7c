// Shows /dev/mailbox.json, and asks for it again every second. A mail's text is set as text, and its HTML stands in a
// sandboxed frame: nothing of it runs here.
const list = document.querySelector('#mails');
const state = document.querySelector('#state');
const template = document.querySelector('#mail');
let shown = '';

document.querySelector('#curl').textContent =
  `curl -i ${location.origin}/api/auth/recovery/start \\\n  --json '{"email":"trader.vi@example.com"}'`;

function show(mail) {
  const node = template.content.cloneNode(true);
  const part = (name) => node.querySelector(name);
  part('.subject').textContent = mail.subject;
  part('.meta').textContent =
    `to ${mail.to.join(', ')} · from ${mail.from} · ${new Date(mail.received_at).toLocaleTimeString()}`;
  part('.text').textContent = mail.text;
  part('.html').srcdoc = mail.html;
  const code = mail.text.match(/^\s*(\d{4} \d{4})\s*$/m)?.[1];
  if (code) {
    part('.code').hidden = false;
    part('.code output').textContent = code;
    part('.code button').addEventListener('click', () => navigator.clipboard.writeText(code));
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
      if (mails.length > 0) state.textContent = mails.length === 1 ? '1 mail' : `${mails.length} mails`;
    }
  } catch {
    state.textContent = 'vos-auth dev does not answer. Is it still running?';
    shown = '';
  }
  setTimeout(refresh, 1000);
}

refresh();
