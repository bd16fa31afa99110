/* Changes: what the audit has about one thing, the latest first: who, when, what, and why. */

import { h, percent, since } from "./elements.js";
import { fill, panel } from "./board.js";
import { api } from "./service.js";

const VERBS = { create: "made it", update: "changed it", delete: "removed it", rollback: "took it back" };

function worded(name, value) {
  if (value === null || value === undefined) return "–";
  if (["share", "traffic", "holdout"].includes(name)) return percent(value);
  if (typeof value !== "object") return String(value);
  const text = JSON.stringify(value);
  return text.length > 60 ? "…" : text;
}

/** The fields that differ, each in a few words. */
function differences({ before, after, difference }) {
  if (!before || !after) return [];
  return Object.entries(difference).map(([name, changed]) => {
    const [was, is] = [worded(name, changed.before), worded(name, changed.after)];
    return h("li", {}, h("b", {}, name.replaceAll("_", " ")), was === "…" || is === "…" ? " written anew" : ` ${was} → ${is}`);
  });
}

const who = (by) => (/^[0-9a-f]{12}$/.test(by) ? `Key ${by}` : by);

function entry(one, noun) {
  return h("li", {}, h("p", {}, h("b", {}, who(one.by)), ` ${VERBS[one.action]}`, noun && ` (${noun}) `, " ", h("small", {}, since(one.at))),
    h("ul", {}, differences(one)), one.why && h("blockquote", {}, one.why));
}

/** A panel that fills itself; `kinds` maps kinds of the audit to what they are called here. */
export function changes(id, kinds, signal) {
  const list = h("ol", { class: "changes" });
  const ask = () => Promise.all(Object.keys(kinds).map((kind) => api.changes(kind, id, signal)));
  const render = (pages) => {
    const found = pages.flatMap(({ entries }) => entries).sort((one, other) => other.version - one.version).slice(0, 20);
    return found.map((one) => entry(one, kinds[one.kind]));
  };
  fill(list, ask, render, signal);
  return panel("What happened", "From the audit, the latest first", list);
}
