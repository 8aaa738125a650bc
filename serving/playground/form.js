// The form: what the server allows goes in, what is asked for comes out.

import { el, make } from "./dom.js";
import { sizeInWords } from "./words.js";

const FIELD_OF = { // the server's name of a field → the control that holds it
  prompt: "prompt", negative_prompt: "negative", n: "n", seed: "seed", style: "style", size: "size",
  num_inference_steps: "steps", guidance_scale: "guidance", sampler: "sampler",
};
const LEFT = 100; // characters: from here on it is said how many are left
let settings = null;

export function applySettings(found, first) {
  settings = found;
  for (const id of ["steps", "guidance", "negative", "sampler"]) el(id).disabled = !found.uses_steps;
  el("choices").hidden = !found.uses_steps;
  el("seed").disabled = !found.uses_seed;
  el("seed-field").hidden = !found.uses_seed;
  options(el("size"), found.sizes.map((size, i) => new Option(sizeInWords(size), i ? size : "")));
  el("size-field").hidden = found.sizes.length < 2;
  options(el("sampler"), found.samplers.map((name, i) => new Option(name, i ? name : "")));
  el("sampler-field").hidden = found.samplers.length < 2;
  if (!first) return;
  el("n").max = found.max_images;
  el("n").value = Math.min(4, found.max_images);
  el("steps").max = found.max_steps;
  el("prompt").maxLength = el("negative").maxLength = found.max_prompt_chars;
  el("prompt").placeholder = found.examples[0] || "";
  toDefaults();
  el("examples").hidden = found.examples.length === 0;
  el("examples").replaceChildren(...found.examples.map((text) => make("li", {}, example(text))));
}

function example(text) {
  const chip = make("button", { type: "button", textContent: text });
  chip.addEventListener("click", () => { el("prompt").value = text; el("form").requestSubmit(); });
  return chip;
}

// New options, and what was chosen stays chosen where it is still there. An open list is left alone while nothing changes.
function options(select, entries) {
  const same = select.childElementCount === entries.length && entries.every((entry, i) => entry.isEqualNode(select.children[i]));
  if (same) return;
  const chosen = select.value;
  select.replaceChildren(...entries);
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

// Styles in two groups: templates, which fit every model, and adapters, trained for one version.
export function applyStyles(styles) {
  const option = ({ id, caption, available, model_version: version, palette }) => {
    const made = new Option(available ? id : `${id} (${version ? `made for version ${version}` : "for another model"})`, id);
    made.disabled = !available;
    made.title = palette?.length ? `${caption}; colours: ${palette.join(", ")}` : caption;
    return made;
  };
  const group = (label, kind) => {
    const of = styles.filter((style) => style.kind === kind).map(option);
    return of.length ? [make("optgroup", { label }, ...of)] : [];
  };
  options(el("style"), [new Option("none", ""), ...group("Ways of drawing", "template"), ...group("Trained for this model", "adapter")]);
  if (el("style").selectedOptions[0].disabled) el("style").value = "";
  el("style-field").hidden = !styles.some(({ available }) => available);
}

export function showChallenger(there) {
  el("with-field").hidden = !there;
  if (!there) radio("champion").checked = true;
}

const radio = (value) => document.querySelector(`input[name="with"][value="${value}"]`);

// Which models draw: "champion", "challenger" or "both".
export const drawsWith = () => document.querySelector("input[name='with']:checked").value;

export function asked() {
  const body = { prompt: el("prompt").value.trim(), n: Number(el("n").value) };
  if (settings.uses_steps) {
    body.num_inference_steps = Number(el("steps").value);
    body.guidance_scale = Number(el("guidance").value);
    if (el("negative").value.trim()) body.negative_prompt = el("negative").value.trim();
    if (el("sampler").value) body.sampler = el("sampler").value;
  }
  for (const id of ["size", "style"]) if (el(id).value) body[id] = el(id).value;
  // chosen here when it is left open, so that both models, a second try and the history have the same one
  if (settings.uses_seed) body.seed = el("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 : Number(el("seed").value);
  return body;
}

export function pixels(body) {
  return (body.size || settings.sizes[0] || "1x1").split("x").map(Number);
}

// The form as it was for `body`. What this server no longer has falls back to its default.
export function fill(body, models) {
  el("prompt").value = body.prompt;
  el("n").value = body.n;
  el("seed").value = body.seed ?? "";
  el("steps").value = body.num_inference_steps ?? settings.default_steps;
  el("guidance").value = body.guidance_scale ?? settings.default_guidance;
  el("negative").value = body.negative_prompt || "";
  for (const id of ["size", "style", "sampler"]) choose(el(id), body[id] || "");
  if (!el("with-field").hidden) radio(models).checked = true;
  showNumbers();
}

function choose(select, value) {
  select.value = value;
  if (select.selectedIndex < 0 || select.selectedOptions[0].disabled) select.selectedIndex = 0;
}

export function keepSeed(seed) {
  el("seed").value = seed;
  showNumbers();
}

export function toDefaults() {
  el("steps").value = settings.default_steps;
  el("guidance").value = settings.default_guidance;
  el("negative").value = "";
  el("sampler").selectedIndex = 0;
  showNumbers();
}

export function showNumbers() {
  for (const id of ["n", "steps", "guidance"]) el(`${id}-out`).value = el(id).value;
  el("seed-clear").hidden = el("seed").value === "";
  const left = el("prompt").maxLength - el("prompt").value.length;
  el("prompt-left").textContent = left <= LEFT ? `${left} characters left.` : "";
}

// Marks the control of the field that the server named, and goes there. What was refused is selected, ready to be changed.
export function markWrong(param, matches = []) {
  clearWrong();
  const control = el(FIELD_OF[(param || "").split(".")[0]] || "");
  if (!control) return;
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-errormessage", "trouble");
  if (el("choices").contains(control)) el("choices").open = true;
  // not on a telephone, whose keyboard would come up and hide what is said
  if (!matchMedia("(pointer: coarse)").matches) control.focus({ preventScroll: true });
  const text = control.value.toLowerCase();
  const spans = matches.map((word) => [text.indexOf(word.toLowerCase()), word.length]).filter(([at]) => at >= 0);
  if (spans.length) control.setSelectionRange(Math.min(...spans.map(([at]) => at)), Math.max(...spans.map(([at, n]) => at + n)));
}

export function clearWrong() {
  for (const control of document.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-errormessage");
  }
}

el("form").addEventListener("input", () => { showNumbers(); clearWrong(); });
el("seed-clear").addEventListener("click", () => { el("seed").value = ""; showNumbers(); el("seed").focus(); });
el("defaults").addEventListener("click", toDefaults);
