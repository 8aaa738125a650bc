"use strict";

const EXAMPLES = [
  "a small red circle at the top left",
  "a large blue star",
  "a green heart on white",
  "a yellow square in the middle",
];
const KEPT = 24; // pictures in the history of this tab
const el = (id) => document.getElementById(id);
let settings = { key_required: true, max_images: 8, image_size: null };
let running = null; // AbortController of the request under way

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// The tab's own memory. A browser may forbid it or have no room: then the page simply forgets.
function remember(name, value) {
  try { sessionStorage.setItem(name, value); return true; } catch { return false; }
}
function recall(name) {
  try { return sessionStorage.getItem(name); } catch { return null; }
}
let key = recall("atelier-key") || "";
let past = [];
try { past = JSON.parse(recall("atelier-past")) || []; } catch { /* not ours: begin anew */ }

async function readSettings(first) {
  try {
    const answer = await fetch("/playground/settings", { cache: "no-store" });
    if (!answer.ok) throw new Error();
    settings = await answer.json();
  } catch {
    showServed("the server does not answer", false);
    return;
  }
  if (settings.model_version === null) showServed("no model released yet", false);
  else showServed(`${settings.model} · version ${settings.model_version} · ${settings.image_size} px`, true);
  for (const id of ["steps", "guidance", "negative"]) el(id).disabled = !settings.uses_steps;
  el("choices").hidden = !settings.uses_steps;
  el("seed").disabled = !settings.uses_seed;
  if (!first) return;
  el("key-open").hidden = !settings.key_required;
  el("n").max = settings.max_images;
  el("steps").max = settings.max_steps;
  el("steps").value = settings.default_steps;
  el("guidance").value = settings.default_guidance;
  el("prompt").maxLength = settings.max_prompt_chars;
  el("negative").maxLength = settings.max_prompt_chars;
  showNumbers();
}

// Styles by name: an adapter that was trained for the served version.
async function readStyles() {
  if (settings.model_version === null || (settings.key_required && !key)) return;
  let known = [];
  try {
    const answer = await fetch("/v1/styles", { cache: "no-store", headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (answer.ok) known = (await answer.json()).data.filter((style) => style.available);
  } catch { /* the server is away: settings say so */ }
  const chosen = el("style").value;
  el("style").replaceChildren(new Option("none", ""), ...known.map(({ id, caption }) => {
    const option = new Option(id, id);
    option.title = caption;
    return option;
  }));
  el("style").value = known.some(({ id }) => id === chosen) ? chosen : "";
  el("style-field").hidden = known.length === 0;
}

function showServed(text, ready) {
  const place = el("served");
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("ready", ready);
}

function showNumbers() {
  for (const id of ["n", "steps", "guidance"]) el(`${id}-out`).value = el(id).value;
}

function showError(message) {
  el("error").textContent = message;
  el("error").hidden = !message;
}

function asked() {
  const body = {
    prompt: el("prompt").value.trim(),
    n: Number(el("n").value),
    response_format: "b64_json",
  };
  if (settings.uses_steps) {
    body.num_inference_steps = Number(el("steps").value);
    body.guidance_scale = Number(el("guidance").value);
    if (el("negative").value.trim()) body.negative_prompt = el("negative").value.trim();
  }
  if (el("style").value) body.style = el("style").value;
  if (settings.uses_seed && el("seed").value !== "") body.seed = Number(el("seed").value);
  return body;
}

async function explain(answer) {
  let message = `The server answered ${answer.status}.`;
  try { message = (await answer.json()).error.message; } catch { /* not from the image API */ }
  return message;
}

async function draw(body) {
  showError("");
  if (!body.prompt) {
    showError("Say first what the picture shall show.");
    el("prompt").focus();
    return;
  }
  if (settings.key_required && !key) { openKey(); return; }
  running?.abort();
  const mine = running = new AbortController();
  const started = performance.now();
  const seconds = () => ((performance.now() - started) / 1000).toFixed(1);
  el("go").disabled = true;
  el("cancel").hidden = false;
  showBlanks(body.n, true);
  el("caption").textContent = body.prompt;
  el("status").textContent = "Drawing…";
  if (matchMedia("(max-width: 760px)").matches) el("pictures").scrollIntoView({ block: "nearest" });
  try {
    const answer = await fetch("/v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
      body: JSON.stringify(body),
      signal: mine.signal,
    });
    if (!answer.ok) {
      const message = await explain(answer);
      if (answer.status === 401) { key = ""; remember("atelier-key", ""); openKey(message); }
      throw new Error(message);
    }
    const made = await answer.json();
    showPictures(made, body);
    el("status").textContent = `Drawn by version ${made.model_version} in ${seconds()} s.`;
    keep(made, body);
  } catch (error) {
    if (mine !== running) return; // a newer request has taken the place
    showBlanks(1, false);
    el("caption").textContent = "";
    el("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.name !== "AbortError") {
      showError(error instanceof TypeError ? "The server cannot be reached. Is it still running?" : error.message);
    }
  } finally {
    if (mine === running) {
      running = null;
      el("go").disabled = false;
      el("cancel").hidden = true;
    }
  }
}

function showBlanks(n, drawing) {
  const place = el("pictures");
  place.className = `pictures${n === 1 ? " one" : ""} ${drawing ? "drawing" : "idle"}`;
  const hint = drawing ? "" : "Your pictures appear here";
  place.replaceChildren(...Array.from({ length: n }, () => make("div", { className: "blank", textContent: hint })));
}

const address = (b64) => `data:image/png;base64,${b64}`;

function showPictures(made, body) {
  const place = el("pictures");
  place.className = `pictures${made.data.length === 1 ? " one" : ""}`;
  place.replaceChildren(...made.data.map((picture) => make("figure", {},
    make("img", { src: address(picture.b64_json), alt: `${body.prompt}, seed ${picture.seed}` }),
    make("figcaption", {}, make("span", { textContent: `seed ${picture.seed}` }),
      make("a", {
        href: address(picture.b64_json), download: `atelier-v${made.model_version}-${picture.seed}.png`,
        textContent: "Save", ariaLabel: `Save the picture of seed ${picture.seed}`,
      })))));
  const { truncated, negative_truncated: negative } = made.data[0];
  const cut = [truncated && "prompt", negative && "negative prompt"].filter(Boolean).join(" and ");
  el("caption").textContent = cut
    ? `${body.prompt} (${cut} longer than the model reads: the end was left out)` : body.prompt;
}

function keep(made, body) {
  const seed = made.data[0].seed;
  past.unshift({ body: { ...body, seed }, version: made.model_version, picture: made.data[0].b64_json });
  past.length = Math.min(past.length, KEPT);
  while (past.length && !remember("atelier-past", JSON.stringify(past))) past.pop();
  showPast();
}

function showPast() {
  el("past").hidden = past.length === 0;
  el("history").replaceChildren(...past.map(({ body, version, picture }) => {
    const again = make("button", { className: "quiet", type: "button", textContent: "Make this again" });
    again.setAttribute("aria-label", `Make this again: ${body.prompt}`);
    again.addEventListener("click", () => { fill(body); el("form").scrollIntoView({ block: "start" }); draw(body); });
    return make("li", {}, make("img", { src: address(picture), alt: "" }), make("div", {},
      make("p", { textContent: body.prompt, title: body.prompt }),
      make("p", { className: "note", textContent: `version ${version}${body.style ? ` · ${body.style}` : ""} · seed ${body.seed} · ×${body.n}` }),
      again));
  }));
}

function fill(body) {
  el("prompt").value = body.prompt;
  el("n").value = body.n;
  el("seed").value = body.seed;
  el("steps").value = body.num_inference_steps ?? settings.default_steps;
  el("guidance").value = body.guidance_scale ?? settings.default_guidance;
  el("negative").value = body.negative_prompt || "";
  el("style").value = body.style || "";
  if (el("style").selectedIndex < 0) el("style").value = "";
  showNumbers();
}

function openKey(message) {
  el("key").value = key;
  if (message) showError(message);
  if (!el("key-dialog").open) el("key-dialog").showModal();
}

el("examples").append(...EXAMPLES.map((text) => {
  const chip = make("button", { type: "button", textContent: text });
  chip.addEventListener("click", () => { el("prompt").value = text; draw(asked()); });
  return make("li", {}, chip);
}));
el("form").addEventListener("submit", (event) => { event.preventDefault(); draw(asked()); });
el("form").addEventListener("input", showNumbers);
el("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) draw(asked());
});
el("cancel").addEventListener("click", () => running?.abort());
el("forget").addEventListener("click", () => { past = []; remember("atelier-past", "[]"); showPast(); el("prompt").focus(); });
el("key-open").addEventListener("click", () => openKey());
el("key-dialog").addEventListener("close", () => {
  if (el("key-dialog").returnValue !== "save") return;
  key = el("key").value.trim();
  remember("atelier-key", key);
  showError("");
  readStyles();
  if (key && el("prompt").value.trim()) draw(asked());
});

showBlanks(1, false);
showPast();
showNumbers();
readSettings(true).then(readStyles);
setInterval(async () => {
  if (document.hidden) return;
  const before = settings.model_version;
  await readSettings(false);
  if (settings.model_version !== before) readStyles();
}, 4000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) readStyles(); });
