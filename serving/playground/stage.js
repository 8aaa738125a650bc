// The stage: what is being drawn and what was drawn, one lane for each model that draws.

import { address, el, make, picture } from "./dom.js";
import { categoryInWords, categoryNames, duration, listed, plural } from "./words.js";

// One row of pictures. `title` is shown when two models draw side by side.
export class Lane {
  constructor(n, size, prompt, title = "") {
    this.prompt = prompt;
    this.size = size;
    this.known = { state: "queued", step: 0, left: null }; // where the drawing stands, as far as it was told
    this.pictures = []; // {src, seed, version, format, prompt}, by place; a hole where none came
    this.said = make("p", { className: "said", textContent: "Sending…" });
    this.bar = make("progress", { aria: { label: title ? `Progress, ${title}` : "Progress" } });
    this.run = make("div", { className: "run" }, this.said, this.bar);
    this.tiles = Array.from({ length: n }, () => this.#blank());
    this.grid = make("div", { className: `pictures of-${n}` }, ...this.tiles);
    this.node = make("section", { className: "lane drawing" }, title && make("h3", { textContent: title }), this.run, this.grid);
  }

  #blank() {
    const [width, height] = this.size;
    const frame = make("div", { className: "frame" });
    frame.style.aspectRatio = `${width} / ${height}`;
    return make("figure", {}, frame);
  }

  progress({ state, ahead, step, steps, seconds_left: left }) {
    Object.assign(this.known, { state, step, left });
    const parts = state === "queued"
      ? ["In the queue", ahead > 0 ? `${ahead} before yours` : "yours is next"]
      : [steps > 1 ? `Step ${Math.min(step + 1, steps)} of ${steps}` : "Drawing"];
    if (left !== null && left !== undefined) parts.push(left < 1 ? "nearly done" : `about ${duration(left)} left`);
    this.said.textContent = parts.filter(Boolean).join(" · ");
    if (state === "queued" || steps <= 1) this.bar.removeAttribute("value");
    else { this.bar.max = steps; this.bar.value = step; }
  }

  preview({ image_index: place = 0, b64_json: b64, output_format: format, step, steps }) {
    const tile = this.tiles[place];
    if (!tile || this.pictures[place]) return;
    const alt = `Preview after step ${step} of ${steps}: ${this.prompt}`;
    const src = address(b64, format);
    const shown = tile.firstChild.firstChild; // the same element goes on: a new one would be blank for a moment
    if (shown) Object.assign(shown, { src, alt });
    else tile.firstChild.append(picture(src, alt));
    tile.classList.add("preview");
    // a preview may come before the event that says how far the drawing is
    const { state, step: before, left } = this.known;
    if (state === "queued" || step > before) this.progress({ state: "drawing", ahead: 0, step, steps, seconds_left: left });
  }

  // A finished picture. `onLook(place)` is called when somebody wants to see it large, `onSeed(seed)` to keep its seed.
  finished(event, { onLook, onSeed }) {
    const { image_index: place = 0, b64_json: b64, output_format: format = "png", seed, model_version: version } = event;
    const src = address(b64, format);
    this.pictures[place] = { src, seed, version, format, prompt: this.prompt };
    const alt = `${this.prompt}, seed ${seed}`;
    const look = make("button", { type: "button", className: "frame look", title: "Look at it large" }, picture(src, alt));
    look.style.aspectRatio = this.tiles[place].firstChild.style.aspectRatio;
    look.addEventListener("click", () => onLook(place));
    const keep = make("button", {
      type: "button", className: "link", textContent: `seed ${seed}`, title: "Keep this seed for the next pictures",
      aria: { label: `Keep seed ${seed}` },
    });
    keep.addEventListener("click", () => onSeed(seed));
    keep.hidden = !onSeed; // of a model that has no use for one
    const save = make("a", {
      href: src, download: fileName(this.prompt, version, seed, format), textContent: "Save",
      aria: { label: `Save the picture of seed ${seed}` },
    });
    this.#fill(place, look, make("figcaption", {}, keep, save));
  }

  // A picture that was drawn and is not shown: in words, never as a black picture.
  refused({ image_index: place = 0, error }) {
    const why = categoryNames(error.categories).map((name) => categoryInWords(name).what);
    const text = why.length ? `Not shown: it came out as ${listed(why)}.` : error.message;
    const frame = make("div", { className: "frame withheld" }, make("p", { textContent: text }));
    frame.style.aspectRatio = this.tiles[place].firstChild.style.aspectRatio;
    this.#fill(place, frame, make("figcaption", {}, make("span", { textContent: "Try another seed or other words." })));
  }

  #fill(place, ...children) {
    const tile = this.tiles[place];
    tile.classList.remove("preview");
    tile.classList.add("filled");
    tile.replaceChildren(...children);
  }

  get shown() {
    return this.pictures.filter(Boolean);
  }

  close(text) {
    this.said.textContent = text;
    this.bar.remove();
    this.node.classList.remove("drawing");
    for (const tile of this.tiles) if (!tile.classList.contains("filled")) tile.remove();
  }
}

function fileName(prompt, version, seed, format) {
  const words = prompt.normalize("NFKD").toLowerCase().match(/[a-z0-9]+/g) || [];
  return `${[...words.slice(0, 6), `v${version}`, seed].join("-").slice(0, 80)}.${format === "jpeg" ? "jpg" : format}`;
}

export function showLanes(...lanes) {
  el("lanes").className = `lanes${lanes.length > 1 ? " beside" : ""}`;
  el("lanes").replaceChildren(...lanes.map(({ node }) => node));
}

export function showNothing(text = "Your pictures appear here") {
  el("lanes").className = "lanes";
  el("lanes").replaceChildren(make("div", { className: "nothing" }, make("img", { src: "/favicon.svg", alt: "", width: 72, height: 72 }), make("p", { textContent: text })));
  showCaption("");
  showNotices([]);
}

export function showCaption(text) {
  el("caption").textContent = text;
}

export function showNotices(notices) {
  el("notices").replaceChildren(...notices.map((textContent) => make("li", { textContent })));
  el("notices").hidden = notices.length === 0;
}

// The pictures of the stage, one at a time and as large as the window allows.
const seen = { pictures: [], at: 0 };

export function look(pictures, at) {
  Object.assign(seen, { pictures, at });
  showSeen();
  el("view").showModal();
}

function showSeen() {
  const { pictures, at } = seen;
  const { src, seed, version, prompt } = pictures[at];
  el("view-picture").replaceChildren(picture(src, `${prompt}, seed ${seed}`));
  el("view-prompt").textContent = prompt;
  el("view-place").textContent = `${at + 1} of ${pictures.length} · seed ${seed} · version ${version}`;
  for (const id of ["view-before", "view-after"]) el(id).hidden = pictures.length < 2;
}

function turn(by) {
  const { length } = seen.pictures;
  seen.at = (seen.at + by + length) % length;
  showSeen();
}

el("view-before").addEventListener("click", () => turn(-1));
el("view-after").addEventListener("click", () => turn(1));
el("view").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) turn(by);
});
