/* Simulation: what a draft of a rule would do to requests that were answered before. */

import { amount, count, h, percent, plural, signed } from "./elements.js";
import { shift } from "./charts.js";

const MANY = 8; // rows of a comparison before the rest is folded away
const BOTH = 5; // items that rise, and as many that fall, before the rest
const decimal = (value) => (value ?? 0).toFixed(2);
const widest = (rows) => Math.max(...rows.flatMap(({ current, draft }) => [current ?? 0, draft ?? 0]), 1e-9);

function figure(value, unit, tone = "") {
  return h("div", { class: `figure ${tone}` }, h("b", {}, value), ` ${unit}`);
}

function headline({ changed, replayed, overlap, conflicts, never }) {
  const odds = conflicts.length;
  return h("div", { class: "figures" },
    figure(`${count.format(changed)} of ${count.format(replayed)}`, changed === 1 ? "list changes" : "lists change"),
    overlap !== null && figure(percent(overlap), "of the items stay"),
    figure(count.format(odds), odds === 1 ? "rule at odds" : "rules at odds", odds ? "bad" : ""),
    figure(count.format(never.length), never.length === 1 ? "rule never fires" : "rules never fire"));
}

function odds({ conflicts }) {
  if (!conflicts.length) return h("p", { class: "note" }, "No rule stands in its way.");
  const lines = conflicts.map((one) => h("li", { "data-conflict": one.other }, h("b", {}, one.other), `: ${one.text}`));
  return h("div", { class: "alarm" }, h("strong", {}, "At odds with other rules"), h("ul", {}, lines));
}

/** Rows of a figure now and with the draft, drawn on one scale; `write` puts it into words. */
function compare(title, note, rows, write, shown = MANY) {
  if (!rows.length) return null;
  const bound = widest(rows);
  const lines = rows.map((one) => h("li", { "data-moved": one.label },
    h("span", { class: "name", title: one.label }, one.label), shift(one, bound, `${write(one.current ?? 0)} now, ${write(one.draft ?? 0)} with the draft`),
    h("small", {}, `${write(one.current ?? 0)} → ${write(one.draft ?? 0)}`)));
  const rest = lines.splice(shown);
  return h("section", { class: "compare" }, h("h4", {}, title), note && h("p", { class: "note" }, note), h("ul", {}, lines),
    rest.length > 0 && h("details", {}, h("summary", {}, `${rest.length} more`), h("ul", {}, rest)));
}

const moved = (rows) => rows.filter(({ current, draft }) => Math.abs((current ?? 0) - (draft ?? 0)) >= 0.0005);

function exposure({ rising, falling }) {
  const named = (list) => list.map((one) => ({ ...one, label: one.title || one.item_id }));
  const rows = named([...rising.slice(0, BOTH), ...falling.slice(0, BOTH), ...rising.slice(BOTH), ...falling.slice(BOTH)]);
  const shown = Math.min(BOTH, rising.length) + Math.min(BOTH, falling.length);
  return compare("Exposure of items", "In a list on average: 1 on the first place, less below.", rows, decimal, shown);
}

function categories(found) {
  const rows = moved(found.categories).map((one) => ({ ...one, label: one.category }));
  return compare("Share of the places by category", null, rows, percent);
}

function bands(found) {
  const name = ({ above, up_to: to }) =>
    (above === null ? (to === null ? "any price" : `up to ${amount(to)}`) : to === null ? `above ${amount(above)}` : `${amount(above)} to ${amount(to)}`);
  return compare("Share of the places by price", null, moved(found.price_bands).map((one) => ({ ...one, label: name(one) })), percent);
}

function means(found) {
  const names = { age_days: "age in days" };
  const known = Object.entries(found.means).filter(([, { current, draft }]) => current !== null && draft !== null);
  if (!known.length) return null;
  const rows = known.map(([name, { current, draft }]) => h("tr", {},
    h("th", { scope: "row" }, names[name] ?? name.replaceAll("_", " ")), h("td", {}, amount(current)), h("td", {}, amount(draft)),
    h("td", {}, current > 0 ? signed(draft / current - 1) : "–")));
  return plainTable("Means over the places", ["", "Now", "Draft", "Change"], rows);
}

function plainTable(title, heads, rows) {
  return h("section", { class: "compare" }, h("h4", {}, title), h("div", { class: "scroll" }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))));
}

/** On how many of the requests each rule had something to do; those that never had say so. */
function fired({ fired: rules, never, replayed, rule }) {
  const idle = new Set(never);
  const rows = rules.map((one) => h("tr", { "data-fired": one.rule, "data-never": idle.has(one.rule) },
    h("th", { scope: "row" }, one.rule === rule ? h("b", {}, one.rule) : one.rule, idle.has(one.rule) && h("span", { class: "chip" }, "never")),
    h("td", {}, percent(one.current / replayed)), h("td", {}, percent(one.draft / replayed))));
  return rows.length ? plainTable("Fired on", ["Rule", "Now", "Draft"], rows) : null;
}

/** The heads of the two lists of one request; what is only on one of them stands out. */
function example({ current, draft }, at) {
  const has = (list) => new Set(list.map(({ item_id: id }) => id));
  const side = (name, list, ours) => h("div", {}, h("small", {}, name), h("ol", {}, list.map(({ item_id: id, title }) =>
    h("li", { class: ours.has(id) ? "" : name === "Now" ? "gone" : "come", title: title || id }, title || id))));
  return h("li", {}, h("small", {}, `Request ${at + 1}`),
    h("div", { class: "sides" }, side("Now", current, has(draft)), side("With the draft", draft, has(current))));
}

function examples(found) {
  if (!found.examples.length) return null;
  return h("section", { class: "compare wide" }, h("h4", {}, "Where it changes most"), h("ul", { class: "examples" }, found.examples.map(example)));
}

/** Why there is nothing to show: pages are counted whether the draft speaks of their placements or not. */
function nothing({ logged, pages }) {
  if (logged) return h("p", { class: "empty" }, "No logged request could be asked again.");
  const many = plural(pages, "request for a whole page is", "requests for whole pages are");
  return h("p", { class: "empty" }, "No list of its placements was logged.",
    h("small", {}, pages > 0 && `${many} not asked again. `,
      "Lists are logged as they are answered: open some, wait a second, and try it again."));
}

export function renderSimulation(found) {
  if (!found.replayed) return [nothing(found)];
  const few = found.replayed < found.logged && `; there was no time for ${plural(found.logged - found.replayed, "more", "more")}`;
  const idle = found.never.includes(found.rule)
    && h("p", { class: "hint" }, "The draft itself did nothing on any of these requests: nothing was found out about it.");
  return [headline(found), idle, odds(found),
    h("div", { class: "grid" }, [exposure, categories, bands, means, fired, examples].map((draw) => draw(found))),
    h("small", {}, `${plural(found.replayed, "logged request")} asked again in ${found.seconds.toFixed(1)} s${few || ""}, as if the draft held for everybody`)];
}
