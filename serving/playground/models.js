// Champion beside challenger: what is served, what wants to be, and what the gate says about each.

import { getJson } from "./api.js";
import { el, make } from "./dom.js";

const VERDICTS = {
  pass: ["passed the gate", "good"], fail: ["did not pass the gate", "bad"],
  inconclusive: ["not decided: too few pictures", "bad"], forced: ["put in place by a person, against the gate", "bad"],
};
let models = [];
let mayChoose = false; // whether this key may ask for a version by name

// Known champion and challengers, champion first; empty before the first release.
export async function readModels() {
  ({ models, compare: mayChoose } = await getJson("/playground/models"));
  show();
  return models;
}

// What is tried beside the champion, and what of it this key may ask for.
export const onTrial = () => models.find(({ role }) => role !== "champion");
export const challenger = () => (mayChoose ? models.find(({ role, served }) => role !== "champion" && served) : undefined);
export const champion = () => models.find(({ role }) => role === "champion");

function show() {
  el("models").replaceChildren(...models.map(card));
  el("models").className = `models${models.length > 1 ? " beside" : ""}`;
  el("models-note").textContent = models.length === 0
    ? "No model has been released yet: the first one that passes the gate appears here by itself."
    : models.length === 1
      ? "There is no challenger now. When the next model has been judged, it appears here beside this one."
      : "Both were judged on the same prompts and seeds. The challenger takes over only if it passes every rule.";
}

function card({ version, role, verdict, failures, reasons, share, compared }) {
  const [said, tone] = VERDICTS[verdict] || ["not judged", ""];
  const [why, ...judged] = verdict === "forced" ? reasons : [null, ...reasons];
  const held = judged.filter((reason) => !failures.includes(reason));
  const rule = (mark, word) => (reason) => make("li", { className: mark },
    make("span", { className: "hidden", textContent: `${word}: ` }), sentence(reason));
  return make("section", { className: "model", aria: { label: `Version ${version}, ${role}` } },
    make("h3", { textContent: `Version ${version}` }),
    make("p", { className: "badges" }, make("span", { className: "badge", textContent: role }),
      make("span", { className: `badge ${tone}`, textContent: said })),
    why ? make("p", { className: "note", textContent: sentence(why) }) : null,
    share ? make("p", { className: "note", textContent: shared(role, share) }) : null,
    compared ? figures(compared) : null,
    failures.length || held.length
      ? make("ul", { className: "reasons" }, ...failures.map(rule("no", "Failed")), ...held.map(rule("yes", "Held")))
      : make("p", { className: "note", textContent: "The record holds no reasons." }));
}

const shared = (role, share) => (role === "shadow"
  ? `Draws along with ${percent(share)} of the requests; nobody is sent its pictures.` : `Draws ${percent(share)} of the requests.`);

// What was measured on the same requests; null where nothing was.
function figures({ requests, seconds, champion_seconds: before, difference, quality, champion_quality: qualityBefore }) {
  const lines = [`Compared on ${requests === 1 ? "1 request" : `${requests} requests`}.`];
  if (seconds !== null && before !== null) lines.push(`${seconds.toFixed(2)} s a request, the champion ${before.toFixed(2)} s.`);
  if (difference !== null) lines.push(`Its pictures differ from the champion's by ${percent(difference)} on average.`);
  if (quality !== null && qualityBefore !== null) {
    lines.push(`Likeness of picture and prompt ${quality.toFixed(3)}, the champion ${qualityBefore.toFixed(3)}.`);
  }
  return make("ul", { className: "figures" }, ...lines.map((textContent) => make("li", { textContent })));
}

const percent = (share) => new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 2 }).format(share);

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function openModels() {
  el("models-dialog").showModal();
}
