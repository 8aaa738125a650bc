// The history: what was drawn here, kept in this browser's own database and nowhere else.

import { el, make, picture } from "./dom.js";
import { ago, plural } from "./words.js";

const KEPT = 60; // requests; the oldest is forgotten first
const SIDE = 256; // pixels; what is larger is kept smaller
const STORE = "past";

// The records, newest first. A browser that keeps no database has them until the page is left.
class Records {
  #db = null;
  #memory = [];
  #next = 1;

  async open() {
    try {
      const request = indexedDB.open("atelier", 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
      this.#db = await settled(request);
    } catch {
      el("past-where").textContent = "Kept until this page is left: the browser allows no more.";
    }
  }

  #store(mode) {
    return this.#db.transaction(STORE, mode).objectStore(STORE);
  }

  async all() {
    if (!this.#db) return this.#memory;
    return (await settled(this.#store("readonly").getAll())).reverse();
  }

  async add(record) {
    if (!this.#db) {
      this.#memory = [{ ...record, id: this.#next++ }, ...this.#memory].slice(0, KEPT);
      return;
    }
    await settled(this.#store("readwrite").add(record));
    const keys = await settled(this.#store("readonly").getAllKeys());
    for (const id of keys.slice(0, -KEPT)) await settled(this.#store("readwrite").delete(id));
  }

  async remove(id) {
    if (this.#db) await settled(this.#store("readwrite").delete(id));
    else this.#memory = this.#memory.filter((record) => record.id !== id);
  }

  async clear() {
    if (this.#db) await settled(this.#store("readwrite").clear());
    this.#memory = [];
  }
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

const records = new Records();

// `onAgain(record)` draws once more, `onFill(record)` only fills the form.
export async function openPast(hooks) {
  await records.open();
  el("forget").addEventListener("click", () => forget(hooks));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) show(hooks); }); // other tabs draw too
  await show(hooks);
}

export async function keep({ body, pictures, versions, models }, hooks) {
  const thumbs = await Promise.all(pictures.map(thumb));
  await records.add({ at: Date.now(), body, versions, models, thumbs });
  await show(hooks);
}

// What is large is kept at SIDE pixels; small pictures as they are, to the pixel.
async function thumb({ src, seed }) {
  const image = picture(src, "");
  await image.decode();
  const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight);
  if (scale >= 1) return { src, seed };
  const canvas = make("canvas", { width: Math.round(image.naturalWidth * scale), height: Math.round(image.naturalHeight * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return { src: canvas.toDataURL("image/webp", 0.85), seed };
}

async function show(hooks) {
  const all = await records.all();
  el("past").hidden = all.length === 0;
  el("history").replaceChildren(...all.map((record) => card(record, hooks)));
}

function card(record, hooks) {
  const { body, thumbs } = record;
  const button = (textContent, act, label) => {
    const made = make("button", { type: "button", className: "quiet", textContent, aria: { label: `${label}: ${body.prompt}` } });
    made.addEventListener("click", act);
    return made;
  };
  const remove = button("×", async () => {
    await records.remove(record.id);
    await show(hooks);
    (el("past").hidden ? el("prompt") : el("past-title")).focus();
  }, "Forget");
  remove.classList.add("icon");
  return make("li", {},
    make("div", { className: `thumbs of-${Math.min(4, thumbs.length)}` }, ...thumbs.slice(0, 4).map(({ src }) => picture(src, ""))),
    make("div", { className: "told" },
      make("p", { textContent: body.prompt, title: body.prompt }),
      make("p", { className: "note", textContent: told(record) }),
      make("div", { className: "acts" },
        button("Make this again", () => hooks.onAgain(record), "Make this again"),
        button("Edit", () => hooks.onFill(record), "Edit"), remove)));
}

function told({ at, body, versions, models }) {
  const drawn = models === "both" ? `versions ${versions.join(" and ")}` : `version ${versions[0]}`;
  return [ago(at), drawn, body.style, body.size?.replace("x", " × "), plural(body.n, "picture"), body.seed === undefined ? "" : `seed ${body.seed}`]
    .filter(Boolean).join(" · ");
}

// Asks once more on the button itself; whoever goes elsewhere has decided against it.
function forget(hooks) {
  const button = el("forget");
  if (button.dataset.sure) {
    delete button.dataset.sure;
    button.textContent = "Forget all";
    records.clear().then(() => show(hooks)).then(() => el("prompt").focus());
    return;
  }
  button.dataset.sure = "asked";
  button.textContent = "Really forget all?";
  button.addEventListener("blur", () => { delete button.dataset.sure; button.textContent = "Forget all"; }, { once: true });
}
