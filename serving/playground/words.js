// What the page says, in plain words: durations, settings, moderation categories and the server's errors.

export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function ago(then, now = Date.now()) {
  const seconds = Math.max(0, (now - then) / 1000);
  if (seconds < 45) return "just now";
  if (seconds < 86_400) return `${duration(Math.max(60, seconds))} ago`;
  return new Date(then).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

export const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

export function sizeInWords(size) {
  const [width, height] = size.split("x").map(Number);
  const shape = width === height ? "" : width > height ? " wide" : " tall";
  return `${width} × ${height}${shape}`;
}

const FIELDS = {
  num_inference_steps: "steps", guidance_scale: "guidance", negative_prompt: "what it shall not show", seed: "seed",
  sampler: "sampler", style: "style", size: "size", n: "number of pictures", prompt: "prompt",
};
export const fieldInWords = (name) => FIELDS[name] || name;

// Category → what it is called here, and what to change. A category without its own entry gets that of its first part.
const CATEGORIES = {
  "sexual": ["sexual content", "Show people clothed, or leave them out."],
  "sexual/minors": ["sexual content with minors", "This is never drawn."],
  "violence": ["violence", "Tell the scene without anybody being hurt."],
  "violence/graphic": ["graphic violence", "Leave out blood, wounds and the dead."],
  "self-harm": ["self-harm", "This is not drawn. If it is about you, please talk to somebody you trust, or to a helpline near you."],
  "hate": ["hate", "Leave out what demeans people for what they are."],
  "harassment": ["harassment", "Leave out what demeans or threatens somebody."],
  "illicit": ["crime, weapons or drugs", "Leave out how such things are made, bought or used."],
  "blocked_word": ["a word that is not allowed here", "Say it in other words."],
  "privacy": ["personal details of somebody", "Leave out names, addresses and numbers of real people."],
};

export function categoryInWords(name) {
  const [what, change] = CATEGORIES[name] || CATEGORIES[name.split("/")[0]] || [];
  return { what: what || name.replace(/^concept\//, "").replaceAll(/[_/-]+/g, " "), change: change || "Say it in other words." };
}

export const MODERATION = new Set(["content_policy_violation", "moderation_blocked"]);

// Code → a title, and a sentence in place of the server's where the page itself shows what that says.
const KNOWN = {
  queue_full: ["Very many people are drawing just now", "Your prompt is kept. The button tells when there is room again."],
  rate_limit_exceeded: ["That was a lot of requests in a short time", "A short pause, and it goes on."],
  insufficient_quota: ["The pictures of this key are used up for now"],
  no_model: ["No model has been released yet"],
  shutting_down: ["The server is just being stopped"],
  timeout: ["This took too long"],
};

// An error of the server → what to show: a title, sentences, the field concerned, seconds until trying again makes sense.
export function explained({ status, error, retryAfter, requestId }) {
  const { code, message, param } = error;
  if (MODERATION.has(code)) return moderated(error);
  if (status === 0) return { title: "The server cannot be reached", lines: ["Is it still running? Your prompt stays here."] };
  const [known, instead] = KNOWN[code] || [];
  const lines = [instead || message].filter(Boolean);
  if (status >= 500 && status !== 503 && requestId) lines.push(`Whoever runs this server finds it in the log under ${requestId}.`);
  const title = known
    || (status === 401 ? "An API key is needed" : status === 403 ? "This key is not allowed to do that"
      : status === 429 ? "The server asks for a pause" : status === 503 ? "The server cannot draw just now"
        : status >= 500 ? "Something went wrong on the server" : "This cannot be drawn as asked");
  return { title, lines, param, retryAfter };
}

function moderated({ message, param, categories, matches }) {
  const found = categoryNames(categories).map(categoryInWords);
  const subject = param === "negative_prompt" ? "What you want left out" : "This prompt";
  const lines = found.length ? [...new Set(found.map(({ change }) => change))] : [message].filter(Boolean);
  const blocked = categoryNames(categories).includes("blocked_word");
  const title = blocked ? `${subject} holds a word that is not allowed here`
    : found.length ? `${subject} was read as ${listed(found.map(({ what }) => what))}` : `${subject} is not drawn here`;
  return { title, lines, param: param || "prompt", matches: matches || [] };
}

// {"violence": {...}} or ["violence"]; of an object whose values are true and false only the true ones.
export function categoryNames(categories) {
  if (Array.isArray(categories)) return categories;
  return Object.entries(categories || {}).filter(([, found]) => found !== false).map(([name]) => name);
}

export function listed(words) {
  const once = [...new Set(words)];
  return once.length < 2 ? once.join("") : `${once.slice(0, -1).join(", ")} and ${once.at(-1)}`;
}
