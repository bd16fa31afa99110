/* A rule in words: what it does, with which items, for whom, where and when. */

import { h, moment, percent } from "./elements.js";
import { outline, say } from "./conditions.js";

/** What happens, as the beginning of a sentence about items. */
function action({ type, factor, position, attribute, limit }) {
  if (type === "pin") return `Pin the best to place ${position + 1}`;
  if (type === "cap") return `At most ${limit} of the same ${attribute.replaceAll("_", " ")} on a list`;
  if (type === "boost") return `Score times ${factor}`;
  if (type === "bury") return factor === 0 ? "Put last" : `Score times ${factor}`;
  return type === "include" ? "Show nothing but" : "Never show";
}

/** A rule in one line. */
export function brief(rule) {
  if (!rule) return "Removes the rule";
  const items = rule.items ? `: items where ${say(rule.items)}` : "";
  return action(rule.action) + items;
}

const line = (name, ...content) => h("div", {}, h("dt", {}, name), h("dd", {}, content));

export function spelled(rule) {
  const { placements = [], when, items, starts_at: starts, ends_at: ends, priority = 0, enabled = true } = rule;
  const time = [starts && `from ${moment(starts)}`, ends && `until ${moment(ends)}`].filter(Boolean).join(" ");
  return h("dl", { class: "spelled" },
    line("What", h("b", {}, action(rule.action))), items && line("Items", outline(items)),
    line("When", when ? outline(when) : "always"), line("Where", placements.length ? placements.join(", ") : "on every list"),
    time && line("From when to when", time), priority !== 0 && line("Priority", String(priority)),
    !enabled && line("Switch", "off: it holds only for arms of experiments that switch it on"),
    rule.description && line("Note", rule.description));
}

const PLAIN = { when: "always", items: "all items", placements: "every list", starts_at: "no start", ends_at: "no end" };

/** A value of one field of a rule, as people say it. */
export function value(field, raw) {
  if (raw === null || raw === undefined || (Array.isArray(raw) && !raw.length)) return PLAIN[field] ?? "nothing";
  if (field === "action") return action(raw);
  if (field === "when" || field === "items") return say(raw);
  if (field === "starts_at" || field === "ends_at") return moment(raw);
  if (field === "share") return percent(raw);
  return Array.isArray(raw) ? raw.join(", ") : String(raw);
}
