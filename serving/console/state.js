/* State: who is asking and in which context, the items seen so far, and the one item that is highlighted. */

import { $, h, toast } from "./elements.js";

export const calm = matchMedia("(prefers-reduced-motion: reduce)");
export const state = { person: "", category: "", lit: null, pending: null, session: draw("session") };
export const catalogue = new Map();

/** A fresh id that nobody has used before. */
export function draw(kind) {
  return `${kind}-${[...crypto.getRandomValues(new Uint8Array(4))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Remembers what was seen of an item; its title appears wherever only its id could be shown so far. */
export function learn(item) {
  catalogue.set(item.item_id, { ...catalogue.get(item.item_id), ...item });
  for (const name of item.categories ?? []) offer($("category"), name);
  const waiting = document.querySelectorAll(`[data-title-of="${CSS.escape(item.item_id)}"]`);
  for (const node of waiting) node.textContent = titleOf(item.item_id);
}

export const titleOf = (id) => catalogue.get(id)?.title || id;
export const title = (id) => h("span", { "data-title-of": id }, titleOf(id));

/** Adds an option that is not there yet, in alphabetical order after the first, which means "no choice". */
export function offer(select, value) {
  const options = [...select.options];
  if (options.some((option) => option.value === value)) return;
  select.insertBefore(new Option(value), options.slice(1).find((option) => option.value.localeCompare(value) > 0) ?? null);
}

export function context() {
  return Object.fromEntries([...new FormData($("context"))].filter(([, value]) => value));
}

/** Highlights one item wherever it stands, and every reason that refers to it; again to let go. */
export function light(id) {
  state.lit = state.lit === id ? null : id;
  const marked = applyLight();
  const shown = marked.find((node) => node.matches(".card, #history > li") && node.checkVisibility());
  if (shown) shown.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  else if (state.lit) toast(`${titleOf(id)} is in neither list nor history`);
}

export function applyLight() {
  return [...document.querySelectorAll("[data-item-id], [data-about]")].filter((node) => {
    const lit = state.lit !== null && (node.dataset.itemId === state.lit || node.dataset.about === state.lit);
    node.classList.toggle("lit", lit);
    return lit && !node.dataset.about;
  });
}
