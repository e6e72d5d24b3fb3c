// The gateway's API: its key, its errors, its events.

const KEY = "notify-api-key";
const TIMEOUT = 35_000; // milliseconds: the gateway itself gives a request 30 s

/** What the gateway answered instead: `status` 0 where it did not answer at all. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  const token = key.get();
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

// Ids of users go past what a number of JavaScript holds: those stay text.
const exact = (text) => JSON.parse(text.replace(/"user_id":(\d{16,})/g, '"user_id":"$1"'));

async function answered(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The gateway does not answer.");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, problem.detail ?? answer.statusText);
}

async function told(path, options) {
  const answer = await answered(path, { ...options, signal: AbortSignal.timeout(TIMEOUT) });
  try {
    return exact(await answer.text());
  } catch {
    throw new Problem(0, "The gateway's answer breaks off.");
  }
}

/** GET, as an object; raises `Problem`. */
export function get(path, query = {}) {
  const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null));
  return told(`${path}${wanted.size ? `?${wanted}` : ""}`, { headers: headers() });
}

/** POST JSON text or an object; raises `Problem`. */
export function post(path, body, more = {}) {
  const text = typeof body === "string" ? body : JSON.stringify(body ?? {});
  return told(path, { method: "POST", headers: headers({ "Content-Type": "application/json", ...more }), body: text });
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const done = () => { clearTimeout(timer); signal.removeEventListener("abort", done); resolve(); };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
  });

/**
 * Changes of status until `signal` says so, each handed to `heard`. A broken stream is taken up again where it was.
 * Not `EventSource`: that can not send a key. While nobody looks at the tab nothing is kept open: a browser has six
 * connections to a host, for all its tabs.
 */
export async function listen(query, heard, signal) {
  let last = null;
  while (!signal.aborted) {
    if (document.hidden) {
      await pause(1000, signal);
      continue;
    }
    const looked = new AbortController();
    signal.addEventListener("abort", () => looked.abort(), { signal: looked.signal });
    document.addEventListener("visibilitychange", () => document.hidden && looked.abort(), { signal: looked.signal });
    try {
      const path = `api/events?${new URLSearchParams(query)}`;
      const more = last ? { "Last-Event-ID": last } : {};
      const stream = await answered(path, { headers: headers(more), signal: looked.signal });
      const reader = stream.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const events = (rest + part.value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
          last = fields.id ?? last;
          if (fields.event === "status") heard(exact(fields.data));
        }
      }
    } catch (error) {
      if (signal.aborted || [401, 403, 422].includes(error.status)) return;
    } finally {
      looked.abort();
    }
    await pause(1000, signal);
  }
}
