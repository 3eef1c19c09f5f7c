// What both TypeScript clients need beside the API: a cookie jar, and the mailbox of `vos-auth dev`.
export const url = process.argv[2]!;
export const email = 'trader.en@example.com';

export function check(holds: unknown, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

let jar = new Map<string, string>();

/** `fetch` that keeps cookies, as a browser does. */
export async function fetchWithCookies(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
  const request = new Request(input, init);
  if (jar.size > 0) request.headers.set('cookie', [...jar].map((pair) => pair.join('=')).join('; '));
  const answer = await fetch(request);
  for (const cookie of answer.headers.getSetCookie()) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie)!;
    if (cookie.includes('Max-Age=0')) jar.delete(name!);
    else jar.set(name!, value!);
  }
  return answer;
}

async function codes(): Promise<string[]> {
  const mails = (await (await fetch(`${url}/dev/mailbox.json`)).json()) as { to: string[]; text: string }[];
  const own = mails.filter(({ to }) => to.includes(email));
  return own.flatMap(({ text }) => /^\s*(\d{4} \d{4})\s*$/m.exec(text)?.[1] ?? []);
}

/** The code that an action has sent. */
export async function codeAfter(action: () => Promise<void>): Promise<string> {
  const known = (await codes()).length;
  await action();
  for (let tries = 0; tries < 600; tries += 1) {
    const now = await codes();
    if (now.length > known) return now[0]!;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('the email does not arrive');
}
