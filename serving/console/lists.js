/* Lists: the two slates as cards that glide to their new places, and what sets one apart from the other. */

import { $, button, empty, h, meta, svg, tile } from "./elements.js";
import { calm, catalogue, learn, light, state, titleOf } from "./state.js";

export const ACTIONS = [["view", "View"], ["cart", "Add to cart"], ["purchase", "Buy"]];

function reason({ text, item_id }) {
  return h("li", {}, item_id ? button("link", { "data-about": item_id, onclick: () => light(item_id) }, text) : text);
}

function movement(before, now) {
  if (before === null || before === now) return h("span", { class: "move" });
  if (before === undefined) return h("span", { class: "move new" }, "new");
  const [direction, by] = before > now ? ["up", before - now] : ["down", now - before];
  const arrow = svg("svg", { viewBox: "0 0 8 8", "aria-hidden": "true" }, svg("path", { d: "M4 1 7.5 7H.5Z" }));
  return h("span", { class: `move ${direction}`, role: "img", "aria-label": `${direction} ${by}` }, arrow, String(by));
}

function card(entry, answer, before, send) {
  const item = catalogue.get(entry.item_id);
  const name = titleOf(entry.item_id);
  const act = (type) => send(type, entry.item_id, { recommendation_id: answer.recommendation_id, position: entry.position });
  return h("li", { class: "card", "data-item-id": entry.item_id, "data-position": entry.position },
    h("div", { class: "place" }, h("span", { class: "rank" }, String(entry.position + 1)), movement(before, entry.position)),
    tile(item),
    h("div", { class: "what" },
      button("open", { onclick: () => act("click"), "aria-label": `Click ${name}`, title: name }, name),
      h("p", { class: "meta" }, meta(item)),
      h("ul", { class: "reasons", title: entry.reasons.map(({ text }) => text).join(" · ") }, entry.reasons.map(reason))),
    h("div", { class: "acts" }, ACTIONS.map(([type, label]) =>
      button("quiet", { "data-action": type, onclick: () => act(type), "aria-label": `${label}: ${name}` }, label))));
}

/** Rebuilds one list from an answer; `send(type, item_id, origin)` is what a card does when somebody acts on it. */
export function renderList(list, answer, send) {
  const standing = [...list.root.querySelectorAll(":scope > .card:not(.ghost)")];
  const old = new Map(standing.map((node) => [node.dataset.itemId, node]));
  const tops = new Map([...old].map(([id, node]) => [id, node.offsetTop]));
  const focus = document.activeElement?.closest(".card");
  const held = list.root.contains(focus) && { ...focus.dataset, action: document.activeElement.dataset.action };
  const scope = JSON.stringify([state.person, state.category]);
  const known = list.scope === scope && list.answer?.items.length;
  const ranks = known ? new Map(list.answer.items.map((entry) => [entry.item_id, entry.position])) : null;
  answer.items.forEach((entry) => learn({ item_id: entry.item_id, ...entry.item }));
  const cards = answer.items.map((entry) => card(entry, answer, ranks ? ranks.get(entry.item_id) : null, send));
  const nothing = empty("li", "No item is allowed here.", "See below what was removed, and why.");
  list.root.replaceChildren(...(cards.length ? cards : [nothing]));
  Object.assign(list, { answer, scope });
  if (held) refocus(cards, held);
  animate(list.root, cards, old, tops);
}

/** After a rebuild the keyboard stays on the same item, or on the same place if the item has left. */
function refocus(cards, { itemId, position, action }) {
  const target = cards.find((node) => node.dataset.itemId === itemId) ?? cards[Math.min(position, cards.length - 1)];
  target?.querySelector(action ? `[data-action="${action}"]` : ".open").focus({ preventScroll: true });
}

/** FLIP: every card starts where it was and glides to where it is now; what left fades where it stood. */
function animate(root, cards, old, tops) {
  if (calm.matches || !old.size) return;
  const timing = { duration: 520, easing: "cubic-bezier(.2, .8, .2, 1)" };
  for (const node of cards) {
    const top = tops.get(node.dataset.itemId);
    const moved = { transform: `translateY(${top - node.offsetTop}px)` };
    const entered = { opacity: 0, transform: "translateX(20px)" };
    if (top !== node.offsetTop) node.animate([top === undefined ? entered : moved, { transform: "none" }], timing);
  }
  const stays = new Set(cards.map((node) => node.dataset.itemId));
  for (const [id, node] of old) {
    if (stays.has(id)) continue;
    node.classList.add("ghost");
    node.inert = true;
    delete node.dataset.itemId;
    node.style.top = `${tops.get(id)}px`;
    root.append(node);
    node.animate([{ opacity: 0.8 }, { opacity: 0 }], { duration: 240, fill: "forwards" }).finished.finally(() => node.remove());
  }
}

/** How far the two lists differ, in one sentence; where nothing is known of the person, chance alone sets them apart. */
export function compare([personal, everyone], known) {
  const shared = new Set(everyone.answer?.items.map((entry) => entry.item_id));
  const own = personal.answer?.items.filter((entry) => !shared.has(entry.item_id)).length;
  const differ = own ? `${own} of ${personal.answer.items.length} chosen for this person` : "The same items as for everyone";
  const sentence = known ? differ : "Nothing known yet";
  $("personalized-note").textContent = personal.answer?.items.length && everyone.answer ? sentence : "";
}
