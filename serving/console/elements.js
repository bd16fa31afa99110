/* Elements: how the page builds them, how it writes figures, and the generated picture of an item. Titles and every other
   text of the service are untrusted: here they become text nodes, and nothing here turns text into markup. */

export const count = new Intl.NumberFormat("en");
const money = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
export const milliseconds = (value) => `${value < 10 ? value.toFixed(value < 1 ? 2 : 1) : Math.round(value)} ms`;

const shares = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 3 });
const moments = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const minus = (text) => text.replace("-", "−");

export const amount = (value) => minus(money.format(value));
export const percent = (value) => minus(shares.format(value));
/** A change with its sign, written by one of the two above. */
export const signed = (value, write = percent) => `${value > 0 ? "+" : ""}${write(value)}`;
export const plural = (number, one, many = `${one}s`) => `${count.format(number)} ${number === 1 ? one : many}`;
export const moment = (timestamp) => moments.format(new Date(timestamp));

function ago(timestamp) {
  const seconds = (Date.parse(timestamp) - Date.now()) / 1000;
  const [unit, size] = [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]].find(
    ([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  return unit === "second" && seconds > -10 ? "just now" : relative.format(Math.round(seconds / size), unit);
}

export const $ = (id) => document.getElementById(id);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter(Boolean));
  return node;
}

export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
export const button = (name, attributes, ...children) => h("button", { type: "button", class: name, ...attributes }, ...children);
/** How long ago a moment is, with the moment itself behind it. */
export const since = (timestamp) => h("time", { datetime: timestamp, title: moment(timestamp) }, ago(timestamp));
export const empty = (tag, text, hint) => h(tag, { class: "empty" }, text, hint && h("small", {}, hint));

/** Names of the service as words: "similar_to_recent" becomes "Similar to recent". */
export const words = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replace(/[_-]+/g, " ");

export const facts = (values) => Object.entries(values ?? {}).map(([name, value]) =>
  h("div", {}, h("dt", {}, words(name)), h("dd", {}, Array.isArray(value) ? value.join(", ") : String(value))));

/** FNV-1a with a final mix: the same picture for the same item, in every browser. */
function hash(text) {
  let value = 0x811c9dc5;
  for (const unit of text) value = Math.imul(value ^ unit.codePointAt(0), 0x01000193);
  value = Math.imul(value ^ (value >>> 16), 0x7feb352d);
  return (value ^ (value >>> 15)) >>> 0;
}

const FORMS = [
  ["M-6 44a26 26 0 1 0 52 0a26 26 0 1 0-52 0", "M35 16a15 15 0 1 0 30 0a15 15 0 1 0-30 0"],
  ["M0 64A64 64 0 0 1 64 0V64Z", "M0 0H30A30 30 0 0 1 0 30Z"],
  ["M-8 40 40-8H64L-8 64Z", "M16 72 72 16V40L40 72Z"],
  ["M30 42a12 12 0 0 1 12-12H64V64H30Z", "M4 16a12 12 0 1 0 24 0a12 12 0 1 0-24 0"],
  ["M0 36Q16 20 32 36T64 36V64H0Z", "M37 16a9 9 0 1 0 18 0a9 9 0 1 0-18 0"],
];

/** The generated picture of an item: its first category gives colour and form, the item itself their arrangement. */
export function tile(item) {
  const family = hash(item.categories?.[0] ?? item.item_id);
  const own = hash(item.item_id + JSON.stringify(item.attributes ?? {}));
  const names = (item.title || item.item_id).match(/[\p{L}\p{N}]+/gu) ?? ["–"];
  const initials = names.slice(0, 2).map((word) => [...word][0]).join("");
  const picture = svg("svg", { class: "tile", viewBox: "0 0 64 64", "aria-hidden": "true" },
    svg("rect", { class: "ground", width: 64, height: 64 }),
    svg("g", { transform: `rotate(${(own % 4) * 90} 32 32)` }, FORMS[family % FORMS.length].map((d) => svg("path", { d }))),
    svg("text", { x: 32, y: 33 }, initials.toUpperCase()));
  picture.style.setProperty("--hue", (family >>> 3) % 360);
  picture.style.setProperty("--turn", 24 + ((own >>> 2) % 40));
  return picture;
}

/** Categories and price of an item, as far as it has them. */
export const meta = ({ categories, price }) =>
  [categories?.join(", "), typeof price === "number" && amount(price)].filter(Boolean).join(" · ");

/** A sentence above everything, an open dialog included, for a few seconds. */
export function toast(message, kind = "note") {
  const box = $("toast");
  box.className = kind;
  box.textContent = message;
  if (box.matches(":popover-open")) box.hidePopover();
  box.showPopover();
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => box.hidePopover(), kind === "error" ? 8000 : 3500);
}
