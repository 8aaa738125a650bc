// Finding and making elements. Text is always set as text: nothing on this page is ever read as HTML.

export const el = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const { aria = {}, ...own } = properties;
  const node = Object.assign(document.createElement(tag), own);
  for (const [name, value] of Object.entries(aria)) node.setAttribute(name === "role" ? name : `aria-${name}`, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// For the eyes nothing changes; a screen reader says it when it has finished what it is saying.
export function announce(text) {
  el("live").textContent = text;
}

export const address = (b64, format = "png") => `data:image/${format};base64,${b64}`;

// Small pictures are shown with their pixels, as they are; large ones as any photograph.
export function picture(src, alt) {
  const image = make("img", { alt, decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 128));
  image.src = src;
  return image;
}
