/* Combobox: a text field with a list of choices, and the two kinds of choices the page offers, people and items. */

import { $, empty, h, meta, tile } from "./elements.js";
import { api } from "./service.js";

/** The listbox pattern of the ARIA guide: arrows move, Enter chooses, Escape closes; `options(text)` may be slow. */
export function combobox(input, { options, choose, rest }) {
  const box = $(input.getAttribute("aria-controls"));
  let [shown, active, turn, timer] = [[], 0, 0, 0];
  const mark = (index) => {
    if (!shown.length) return;
    active = (index + shown.length) % shown.length;
    [...box.children].forEach((node, at) => node.setAttribute("aria-selected", at === active));
    box.children[active].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", box.children[active].id);
  };
  const toggle = (open) => {
    box.hidden = !open;
    input.setAttribute("aria-expanded", open);
    input.removeAttribute("aria-activedescendant");
  };
  const forget = () => {
    clearTimeout(timer);
    timer = 0;
    return (turn += 1);
  };
  const take = ({ value }) => (input.blur(), choose(value));
  const option = (one, at) => h("li",
    { role: "option", id: `${box.id}-${at}`, "data-value": one.value, onclick: () => take(one) },
    one.picture, h("span", {}, one.label), h("small", {}, one.hint));
  const open = async (text) => {
    const mine = forget();
    const [answer, message] = await options(text).then((all) => [all, "Nothing found"], (error) => [[], error.message]);
    if (mine !== turn) return;
    shown = answer;
    box.replaceChildren(...(shown.length ? shown.map(option) : [empty("li", message)]));
    toggle(true);
    mark(0);
  };
  const enter = async () => {
    if (timer) await open(input.value.trim()); // somebody types faster than the list follows
    if (!box.hidden && shown[active]) take(shown[active]);
  };
  const keys = {
    ArrowDown: () => (box.hidden ? open("") : mark(active + 1)),
    ArrowUp: () => mark(active - 1),
    Enter: enter,
    Escape: () => (forget(), toggle(false)),
  };
  input.addEventListener("focus", () => (input.select(), open("")));
  input.addEventListener("input", () => (forget(), (timer = setTimeout(() => open(input.value.trim()), 120))));
  input.addEventListener("blur", () => (forget(), toggle(false), (input.value = rest())));
  input.addEventListener("keydown", (event) => keys[event.key] && (event.preventDefault(), keys[event.key]()));
  box.addEventListener("pointerdown", (event) => event.preventDefault());
}

/** People by id or attribute, an exact id first; what is no known id can be become all the same. */
export async function people(text) {
  const { users } = await api.users();
  const all = users.map(({ user_id: id, attributes }) =>
    ({ value: id, label: id, hint: Object.values(attributes ?? {}).flat().join(" · ") }));
  const near = all.filter(({ label, hint }) => `${label} ${hint}`.toLowerCase().includes(text.toLowerCase()));
  const exact = near.filter(({ value }) => value === text);
  const typed = text && !exact.length ? [{ value: text, label: `Become “${text}”`, hint: "any id will do" }] : [];
  return [...exact, ...near.filter(({ value }) => value !== text), ...typed];
}

export async function goods(text) {
  const { items } = await api.items(text);
  return items.map((item) => ({ value: item.item_id, label: item.title || item.item_id, hint: meta(item), picture: tile(item) }));
}
