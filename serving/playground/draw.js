// One drawing from the press of the button to its pictures: asked for, followed, taken back, explained when refused.

import { drawing, Refused, takeBack } from "./api.js";
import { announce, el, make } from "./dom.js";
import { Lane, look, showCaption, showLanes, showNothing, showNotices } from "./stage.js";
import { duration, explained, fieldInWords, listed, plural } from "./words.js";

const PREVIEWS = 3; // of each picture, evenly over the steps
let running = null; // the drawing under way: {controller, ids}
let countdown = 0; // the timer of "Try again in … s"

export const isRunning = () => running !== null;

export function cancel() {
  if (!running) return;
  const { controller, ids } = running;
  ids.forEach(takeBack); // first, so that the server is told before the connection is gone
  controller.abort();
}

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// Draws `body` with each of `models` ({title, version?}) at once.
// `hooks`: size [width, height] in pixels, onKept({pictures, body, version}), onSeed(seed), onRefused(explained, body).
export async function draw(body, models, hooks) {
  cancel();
  hideTrouble();
  const mine = running = { controller: new AbortController(), ids: models.map(newId) };
  const lanes = models.map(({ title }) => new Lane(body.n, hooks.size, body.prompt, models.length > 1 ? title : ""));
  showLanes(...lanes);
  showCaption(body.prompt);
  showNotices([]);
  busy(true);
  announce("Sent.");
  document.title = "Drawing… · Atelier";
  const ends = await Promise.allSettled(models.map(({ version }, i) =>
    follow({ ...body, ...(version && { version }) }, mine, mine.ids[i], lanes[i], i === 0, hooks)));
  if (running !== mine) return; // a newer drawing has taken the stage
  running = null;
  busy(false);
  conclude(ends, lanes, body, models, hooks);
}

async function follow(body, { controller }, id, lane, speaks, hooks) {
  const started = performance.now();
  const told = { state: "", half: false };
  const done = { version: "", notices: new Set(), refused: 0, body };
  const onLook = (place) => look(lane.shown, lane.shown.indexOf(lane.pictures[place]));
  const asked = { ...body, response_format: "b64_json", stream: true, progress: true, partial_images: PREVIEWS };
  for await (const event of drawing(asked, id, controller.signal)) {
    if (event.type === "image_generation.progress") {
      lane.progress(event);
      if (speaks) tell(event, told);
    } else if (event.type === "image_generation.partial_image") {
      lane.preview(event);
    } else if (event.type === "image_generation.completed") {
      lane.finished(event, { onLook, onSeed: hooks.onSeed });
      done.version = event.model_version;
      notices(event).forEach((notice) => done.notices.add(notice));
    } else if (event.type === "image_generation.refused") {
      lane.refused(event);
      done.refused += 1;
    }
  }
  if (lane.shown.length + done.refused < body.n) throw new Refused(0, { message: "The connection was lost." });
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  done.said = `${done.version ? `Drawn by version ${done.version}` : "Done"} in ${seconds} s`;
  lane.close(done.said);
  return done;
}

function notices({ truncated, negative_truncated: negative, ignored }) {
  const found = [];
  if (truncated) found.push("The prompt is longer than this model reads: its end had no effect.");
  if (negative) found.push("What it shall not show is longer than this model reads: its end had no effect.");
  if (ignored?.length) found.push(`This model has no use for: ${listed(ignored.map(fieldInWords))}.`);
  return found;
}

// Said aloud: where it stands when that changes, and once at half time; not every step.
function tell({ state, ahead, step, steps, seconds_left: left }, told) {
  if (state !== told.state) {
    const time = left ? `, about ${duration(left)}` : "";
    announce(state === "queued" ? `In the queue, ${plural(ahead, "request")} before yours${time}.` : `Drawing${time}.`);
    told.state = state;
  } else if (state === "drawing" && !told.half && steps > 1 && step * 2 >= steps) {
    told.half = true;
    announce("Half done.");
  }
}

function conclude(ends, lanes, body, models, hooks) {
  const made = ends.map(({ value }) => value).filter(Boolean);
  const failed = ends.map(({ reason }) => reason).filter(Boolean);
  const shown = interleaved(lanes.map((lane) => lane.shown));
  document.title = document.hidden && shown.length ? "Ready · Atelier" : "Atelier";
  showNotices([...new Set(made.flatMap((one) => [...one.notices]))]);
  if (made.length) {
    if (shown.length) hooks.onKept({ body, pictures: shown, versions: made.map(({ version }) => version) });
    const refused = made.reduce((sum, one) => sum + one.refused, 0);
    announce(`${plural(shown.length, "picture")} ready.${refused ? ` ${plural(refused, "picture")} not shown.` : ""}`);
  }
  const cancelled = failed.some((error) => error.name === "AbortError" || error.error?.code === "cancelled");
  lanes.forEach((lane, i) => { if (ends[i].reason) lane.close(cancelled ? "Cancelled" : lane.shown.length ? "Not all were drawn" : "Not drawn"); });
  if (!made.length && !shown.length) showNothing(cancelled ? "Cancelled. Nothing was drawn." : "Nothing was drawn.");
  if (cancelled) announce("Cancelled.");
  else if (failed.length) showTrouble(failed[0], body, models, hooks);
}

// First pictures first: of two models, those of one seed stand together.
function interleaved(rows) {
  return Array.from({ length: Math.max(...rows.map((row) => row.length)) }, (_, i) => rows.map((row) => row[i])).flat().filter(Boolean);
}

function busy(on) {
  el("cancel").hidden = !on;
  el("go").textContent = on ? "Drawing…" : "Draw";
  el("go").setAttribute("aria-disabled", String(on)); // not `disabled`: the focus stays where it is
  el("lanes").setAttribute("aria-busy", String(on));
}

export function hideTrouble() {
  clearInterval(countdown);
  el("trouble").hidden = true;
  el("trouble").replaceChildren();
  el("again").hidden = true;
}

function showTrouble(error, body, models, hooks) {
  if (!(error instanceof Refused)) console.error(error);
  const told = error instanceof Refused ? explained(error)
    : { title: "This page has made a mistake", lines: ["Load it anew and try again. The browser's console has the details."] };
  complain(told.title, told.lines, told.matches);
  if (told.retryAfter) countDown(told.retryAfter, () => draw(body, models, hooks));
  hooks.onRefused(told, error);
}

// Says what is wrong, above the pictures. `matches` are the words of the prompt that were taken amiss.
export function complain(title, lines = [], matches = []) {
  const words = matches.flatMap((word, i) => [i ? ", " : "", make("mark", { textContent: word })]);
  el("trouble").replaceChildren(
    make("h3", { textContent: title }),
    words.length ? make("p", {}, "Because of: ", ...words) : "",
    ...lines.map((textContent) => make("p", { textContent })));
  el("trouble").hidden = false;
}

// A button that can be pressed when the server said it is worth trying. Short waits are counted, long ones told as a time.
function countDown(seconds, again) {
  const button = make("button", { type: "button", className: "quiet" });
  const until = Date.now() + seconds * 1000;
  button.addEventListener("click", () => { if (Date.now() >= until) again(); });
  const show = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.setAttribute("aria-disabled", String(left > 0));
    const at = new Date(until).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    button.textContent = left <= 0 ? "Try again" : left > 120 ? `Try again after ${at}` : `Try again in ${left} s`;
    if (left > 0) return;
    clearInterval(countdown);
    announce("You can try again now.");
  };
  el("again").replaceChildren(button); // beside the alert, not in it: a screen reader must not read every second of it
  el("again").hidden = false;
  countdown = setInterval(show, 250);
  show();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden && !running) document.title = "Atelier"; });
