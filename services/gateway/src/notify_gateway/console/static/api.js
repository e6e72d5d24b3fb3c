// A client of the gateway's API: it sends the key, turns errors into `Problem` and reads the event stream.

const KEY = "notify-api-key";
const TIMEOUT = 35_000; // milliseconds; longer than the gateway's own limit of 30 s, so that its error arrives first

/** An error response of the gateway; `status` is 0 if the gateway did not respond. */
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

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The gateway does not respond.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(response.status, problem.detail ?? response.statusText);
}

async function requestJson(path, options) {
  const response = await request(path, { ...options, signal: AbortSignal.timeout(TIMEOUT) });
  try {
    return await response.json();
  } catch {
    throw new Problem(0, "The gateway's response was cut off.");
  }
}

/** Return the JSON response to a GET request; throw `Problem`. */
export function get(path, query = {}) {
  const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null));
  return requestJson(`${path}${parameters.size ? `?${parameters}` : ""}`, { headers: headers() });
}

/** POST an object and return the JSON response; throw `Problem`. */
export function post(path, body, more = {}) {
  const text = JSON.stringify(body ?? {});
  return requestJson(path, { method: "POST", headers: headers({ "Content-Type": "application/json", ...more }), body: text });
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const done = () => { clearTimeout(timer); signal.removeEventListener("abort", done); resolve(); };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
  });

/**
 * Pass each status change to `receive` until `signal` is aborted. A broken stream resumes where it broke off.
 *
 * This uses `fetch` because `EventSource` cannot send a key. The stream is closed while the tab is hidden, because all
 * tabs of a browser share six connections to a host.
 */
export async function subscribe(query, receive, signal) {
  let last = null;
  while (!signal.aborted) {
    if (document.hidden) {
      await pause(1000, signal);
      continue;
    }
    const connection = new AbortController();
    signal.addEventListener("abort", () => connection.abort(), { signal: connection.signal });
    document.addEventListener("visibilitychange", () => document.hidden && connection.abort(), { signal: connection.signal });
    try {
      const path = `v1/events?${new URLSearchParams(query)}`;
      const more = last ? { "Last-Event-ID": last } : {};
      const stream = await request(path, { headers: headers(more), signal: connection.signal });
      const reader = stream.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const events = (rest + part.value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
          last = fields.id ?? last;
          if (fields.event === "status") receive(JSON.parse(fields.data));
        }
      }
    } catch (error) {
      if (signal.aborted || [401, 403, 422].includes(error.status)) return;
    } finally {
      connection.abort();
    }
    await pause(1000, signal);
  }
}
