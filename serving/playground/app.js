// The page at /: puts its parts together. Everything it loads comes from this server, everything it keeps stays here.

import { currentKey, getJson, Refused, setKey } from "./api.js";
import { announce, el } from "./dom.js";
import { cancel, complain, draw, hideTrouble, isRunning } from "./draw.js";
import * as form from "./form.js";
import { challenger, champion, onTrial, openModels, readModels } from "./models.js";
import { keep, openPast } from "./past.js";
import { showNothing } from "./stage.js";

const EVERY_MS = 5000; // how often it is asked which version is served, while somebody looks
const OFFERS_MS = 30_000; // the same of styles and challengers
let settings = null;

async function readSettings() {
  const before = settings;
  try {
    settings = await getJson("/playground/settings");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    showServed("the server does not answer", false);
    return;
  }
  form.applySettings(settings, before === null);
  el("key-open").hidden = !settings.key_required;
  if (before?.model_version !== settings.model_version) await readOffers();
  showVersions();
}

// What needs a key: styles, and the versions with the gate's reasons.
async function readOffers() {
  if (settings === null || (settings.key_required && !currentKey())) return;
  try {
    form.applyStyles((await getJson("/v1/styles")).data);
    await readModels();
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // said when a picture is asked for
  }
  form.showChallenger(challenger() !== undefined);
  showVersions();
}

function showVersions() {
  const { model, model_version: version } = settings;
  const trial = onTrial() ? ` · ${onTrial().version} on trial` : "";
  showServed(version === null ? "no model released yet" : `${model} · version ${version}${trial}`, version !== null);
}

function showServed(text, ready) {
  if (el("served-text").textContent !== text) el("served-text").textContent = text;
  el("served").classList.toggle("ready", ready);
}

async function start() {
  await began; // pressed as soon as it was there: the form does not know yet what this server allows
  if (isRunning() || settings === null) return;
  const body = form.asked();
  hideTrouble();
  form.clearWrong();
  if (!body.prompt) {
    complain("Say first what the picture shall show");
    form.markWrong("prompt");
    return;
  }
  if (settings.key_required && !currentKey()) { openKey(); return; }
  const models = form.drawsWith();
  const lanes = lanesOf();
  draw(body, lanes[models], {
    size: form.pixels(body),
    onSeed: settings.uses_seed ? (seed) => { form.keepSeed(seed); announce(`Seed ${seed} is kept for the next pictures.`); } : null,
    onKept: (made) => keep({ ...made, models }, history),
    onRefused: refused,
  });
  if (matchMedia("(max-width: 820px)").matches) el("lanes").scrollIntoView({ block: "start", behavior: smooth() });
}

// What draws: for each choice the lanes with the version that each is asked for. Without a challenger nothing is asked for.
function lanesOf() {
  if (!challenger()) return { champion: [{}] };
  const [one, two] = [champion(), challenger()].map(({ role, version }) => ({ title: role[0].toUpperCase() + role.slice(1), version }));
  return { champion: [one], challenger: [two], both: [one, two] };
}

const smooth = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth");

function refused({ param, matches }, { status, error }) {
  if (status === 401) {
    setKey("");
    openKey(error.code === "missing_api_key" ? "" : error.message);
  } else {
    form.markWrong(param, matches);
  }
}

const history = {
  onAgain: async (record) => { if (await filled(record)) start(); },
  onFill: async (record) => { if (await filled(record)) el("prompt").focus(); },
};

async function filled(record) {
  await began;
  if (settings === null) return false; // the server is away, as is said above
  form.fill(record.body, record.models);
  scrollTo({ top: 0, behavior: smooth() });
  return true;
}

function openKey(message = "") {
  el("key").value = currentKey();
  el("key-wrong").textContent = message;
  el("key-wrong").hidden = !message;
  if (!el("key-dialog").open) el("key-dialog").showModal();
}

el("form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
el("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  const anywhere = event.ctrlKey || event.metaKey;
  if (!anywhere && (event.target !== el("prompt") || event.shiftKey)) return;
  event.preventDefault();
  start();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isRunning() && !document.querySelector("dialog[open]")) cancel();
});
el("cancel").addEventListener("click", () => { cancel(); el("prompt").focus({ preventScroll: true }); });
el("served").addEventListener("click", openModels);
el("key-open").addEventListener("click", () => openKey());
el("key-dialog").addEventListener("close", async () => {
  if (el("key-dialog").returnValue !== "save") return;
  setKey(el("key").value.trim());
  hideTrouble();
  await readOffers();
  if (currentKey() && el("prompt").value.trim()) start();
});

showNothing();
const began = readSettings();
await openPast(history);
await began;
setInterval(() => { if (!document.hidden) readSettings(); }, EVERY_MS);
setInterval(() => { if (!document.hidden) readOffers(); }, OFFERS_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) readOffers(); });
