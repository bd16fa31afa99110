/* Conditions: the tree of a `when` or an `items` in words, as a sentence or as a list of what has to hold. */

import { count, h } from "./elements.js";

const OPS = {
  eq: "is", ne: "is not", lt: "is below", le: "is at most", gt: "is above", ge: "is at least", in: "is one of",
};
const SOME = 6;

/** Names of facts as people say them: "user.country" becomes "country of the person". */
const NAMES = {
  "user.segment": "segment", "user.events": "number of events", "history.cart": "items left in the cart",
  "history.visits": "visit", "time.date": "date", "time.hour": "hour (UTC)", "time.weekday": "weekday (UTC)",
  "time.local_hour": "hour of the person", "time.local_weekday": "weekday of the person",
};

function named(attribute) {
  const [family, ...rest] = attribute.split(".");
  const plain = rest.join(".").replaceAll("_", " ");
  if (NAMES[attribute]) return NAMES[attribute];
  if (family === "user" && rest.length) return `${plain} of the person`;
  return family === "context" && rest.length ? `${plain} of the request` : attribute.replaceAll("_", " ");
}

const one = (value) => (typeof value === "string" ? `“${value}”` : typeof value === "number" ? count.format(value) : String(value));

function several(values) {
  const all = [values].flat();
  const rest = all.length - SOME;
  return all.slice(0, SOME).map(one).join(", ") + (rest > 0 ? ` and ${count.format(rest)} more` : "");
}

function did({ did: type, items, days, at_least: times = 1 }) {
  const often = times === 1 ? "at least once" : `at least ${count.format(times)} times`;
  const what = type === "any" ? "did anything" : `has an event “${type}”`;
  return `${what} ${often}${days ? ` within ${count.format(days)} days` : ""}${items ? `, with items where ${say(items)}` : ""}`;
}

function leaf(node) {
  if ("did" in node) return did(node);
  const { attribute, op, value } = node;
  if (op === "exists") return `${named(attribute)} ${value ? "is known" : "is not known"}`;
  if (op === "within_days") return `${named(attribute)} lies within the last ${count.format(value)} days`;
  if (op === "between") return `${named(attribute)} is between ${one(value[0])} and ${one(value[1])}`;
  if (op === "contains") return `${named(attribute)} include ${[value].flat().length > 1 ? "one of " : ""}${several(value)}`;
  return `${named(attribute)} ${OPS[op] ?? op} ${several(value)}`;
}

/** A tree as one sentence. */
export function say(node) {
  const group = node.all ?? node.any;
  if (node.not) return `not (${say(node.not)})`;
  if (!group) return leaf(node);
  if (group.length === 1) return say(group[0]);
  return group.map((child) => (child.all || child.any ? `(${say(child)})` : say(child))).join(node.all ? " and " : " or ");
}

/** A tree as a list; what belongs together is indented. */
export function outline(node) {
  const group = node.all ?? node.any ?? (node.not && [node.not]);
  if (!group) return h("ul", { class: "outline" }, h("li", {}, leaf(node)));
  const head = node.all ? "All of" : node.any ? "At least one of" : "Not";
  const children = group.map((child) => h("li", {}, child.all || child.any || child.not ? outline(child) : leaf(child)));
  return h("div", { class: "outline" }, (group.length > 1 || node.not) && h("small", {}, head), h("ul", {}, children));
}
