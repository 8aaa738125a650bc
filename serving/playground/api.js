// Talking to the server: the key, JSON questions, a drawing as a stream of events, and taking it back.

const KEY = "atelier-key"; // in sessionStorage: this tab only, forgotten when it is closed
let key = "";
try { key = sessionStorage.getItem(KEY) || ""; } catch { /* forbidden by the browser: kept until the page is left */ }

export const currentKey = () => key;

export function setKey(value) {
  key = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* as above */ }
}

// An answer other than a picture. `status` 0: there was no answer at all.
export class Refused extends Error {
  constructor(status, error, { retryAfter = null, requestId = null } = {}) {
    super(error.message);
    Object.assign(this, { status, error, retryAfter, requestId });
  }
}

const headers = (more = {}) => ({ ...more, ...(key && { Authorization: `Bearer ${key}` }) });

async function refusal(answer) {
  let error = { message: `The server answered ${answer.status}.` };
  try { error = (await answer.json()).error || error; } catch { /* from a proxy between: its number must do */ }
  return new Refused(answer.status, error, {
    retryAfter: seconds(answer.headers.get("Retry-After")) ?? error.retry_after ?? null,
    requestId: answer.headers.get("X-Request-ID"),
  });
}

const seconds = (header) => (/^\d+$/.test(header || "") ? Number(header) : null);

async function reach(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The server cannot be reached." });
  }
}

export async function getJson(path) {
  const answer = await reach(path, { headers: headers() });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// The events of one drawing, as they come. `id` is the name by which it can be taken back.
export async function* drawing(body, id, signal) {
  const answer = await reach("/v1/images/generations", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json", "X-Request-ID": id }),
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const requestId = answer.headers.get("X-Request-ID") || id;
  try {
    for await (const event of events(answer.body)) {
      if (event.type === "error") {
        throw new Refused(event.error.status || event.status || 500, event.error, {
          retryAfter: event.error.retry_after ?? null, requestId,
        });
      }
      yield event;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refused) throw error;
    throw new Refused(0, { message: "The connection was lost." });
  }
}

// Server-sent events: lines "data: …", an empty line ends one event.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data += line.slice(5).trimStart();
      else if (line === "" && data) {
        if (data === "[DONE]") return;
        yield JSON.parse(data);
        data = "";
      }
    }
  }
}

// The server stops within one step. Nothing to do when it has finished meanwhile, or cannot be reached.
export async function takeBack(id) {
  try {
    await fetch(`/v1/requests/${encodeURIComponent(id)}`, { method: "DELETE", headers: headers(), keepalive: true });
  } catch { /* closing the connection, which follows, takes it back too */ }
}
