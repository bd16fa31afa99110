/* Trace: how a list came about, drawn as a flow of stages in the order the service ran them, and the best candidates. */

import { $, button, count, empty, h, milliseconds, svg, tile, words } from "./elements.js";
import { api } from "./service.js";
import { catalogue, learn, light, title, titleOf } from "./state.js";

const KINDS = { source: "Sources", filter: "Filters", selector: "Selection" };
const total = (amounts) => amounts.reduce((sum, amount) => sum + amount, 0);
const removedBy = (stage) => Math.max(stage.in - stage.out, stage.removed?.length ?? 0);
const found = (stage) => stage.found ?? stage.out;

/** Stages side by side where they are of one kind and follow each other; a scorer always stands alone. */
function group(stages) {
  const groups = [];
  for (const stage of stages) {
    if (groups.at(-1)?.kind === stage.kind && stage.kind !== "scorer") groups.at(-1).stages.push(stage);
    else groups.push({ kind: stage.kind, label: KINDS[stage.kind] ?? words(stage.name), stages: [stage] });
  }
  // What several sources found overlaps: the stage after them knows how many distinct candidates there are.
  groups.forEach((one, at) => {
    const next = groups[at + 1];
    one.out = one.kind === "source" && next && next.kind !== "filter" ? next.stages[0].in : one.stages.at(-1).out;
  });
  return groups;
}

function figure({ kind, stages, out }) {
  if (kind === "source") return [out, "candidates"];
  if (kind === "filter") return [stages[0].in - out, `of ${count.format(stages[0].in)} removed`];
  if (kind === "scorer") return stages[0].effects ? [stages[0].effects.length, "adjusted"] : [out, "scored"];
  return [out, "selected"];
}

/** A ribbon as wide as the items in play (by cube root): sources draw strands out of it, what is lost stays as a shade. */
function ribbon(groups, shown) {
  const first = groups[0].kind === "source" ? groups[0].out : groups[0].stages[0].in;
  const alive = [first, ...groups.map(({ out }) => out), shown];
  const width = alive.map((amount) => Math.max(1.5, 52 * Math.cbrt(amount / Math.max(...alive, 1))));
  const middle = (step) => [30 - width[step] / 2, width[step]];
  const band = (name, step, [top, height], [end, last]) => {
    const [rise, fall] = [end - top, top + height - end - last];
    const d = `M${step * 100} ${top}c50 0 50 ${rise} 100 ${rise}v${last}c-50 0-50 ${fall}-100 ${fall}Z`;
    return svg("path", { class: name, d });
  };
  const strands = (stages, step) => {
    const [sum, height] = [Math.max(total(stages.map(found)), 1), Math.min(width[step], width[step + 1])];
    const gap = (width[step] - height) / Math.max(stages.length - 1, 1);
    let [from, to] = [middle(step)[0], middle(step + 1)[0]];
    return stages.map((stage) => {
      const [before, after] = [height, width[step + 1]].map((whole) => (whole * found(stage)) / sum);
      [from, to] = [from + before + gap, to + after];
      return band("alive", step, [from - before - gap, before], [to - after, after]);
    });
  };
  const steps = [...groups, { kind: "slate" }];
  const shade = ({ kind }, step) => band("lost", step, middle(step), middle(kind === "source" ? step + 1 : step));
  const flow = ({ kind, stages }, step) =>
    kind === "source" ? strands(stages, step) : [band("alive", step, middle(step), middle(step + 1))];
  const box = `0 0 ${(groups.length + 1) * 100} 60`;
  return svg("svg", { class: "ribbon", viewBox: box, preserveAspectRatio: "none", "aria-hidden": "true" },
    steps.map(shade), steps.flatMap(flow));
}

function outcome({ item_id, title: name, reason: why, rule, effect }) {
  if (name) learn({ item_id, title: name });
  return h("li", { "data-item-id": item_id }, button("link", { onclick: () => light(item_id) }, title(item_id)),
    h("small", {}, why ?? `${effect} by ${rule}`));
}

function amount(stage) {
  if (stage.kind === "source") return count.format(found(stage));
  if (stage.kind === "filter") return `−${count.format(removedBy(stage))}`;
  if (stage.kind === "scorer") return ""; // its column's figure says it
  return `${count.format(stage.in)} → ${count.format(stage.out)}`;
}

function renderStage(stage, widest) {
  const results = [...(stage.removed ?? []), ...(stage.effects ?? [])];
  const head = [h("b", {}, words(stage.name)), h("span", {}, amount(stage), h("small", {}, milliseconds(stage.milliseconds)))];
  const bar = stage.kind === "source" && h("i", { class: "bar" });
  if (bar) bar.style.setProperty("--share", found(stage) / Math.max(widest, 1));
  const more = stage.kind === "filter" ? removedBy(stage) - results.length : 0;
  const rest = more > 0 && h("li", {}, h("small", {}, `and ${count.format(more)} more`));
  const list = h("ul", { class: "outcomes" }, results.map(outcome), rest);
  const body = results.length
    ? h("details", { "data-key": stage.name, ontoggle: fetchTitles }, h("summary", {}, head), list)
    : h("div", { class: "head" }, head);
  return h("div", { class: "stage", "data-stage": stage.name, "data-kind": stage.kind }, body, bar,
    stage.note && h("p", {}, stage.note));
}

function renderColumn(kind, label, [value, unit], ...content) {
  const size = h("p", { class: "figure" }, h("b", {}, count.format(value)), ` ${unit}`);
  return h("li", { "data-kind": kind }, h("h3", {}, label), size, ...content);
}

function renderGroup(one) {
  const widest = Math.max(...one.stages.map(found));
  return renderColumn(one.kind, one.label, figure(one), one.stages.map((stage) => renderStage(stage, widest)));
}

function renderSlate(items) {
  const tiles = items.map(({ item_id: id }) => {
    const names = { "aria-label": titleOf(id), title: titleOf(id) };
    return button("mini", { "data-about": id, onclick: () => light(id), ...names }, tile(catalogue.get(id)));
  });
  return renderColumn("slate", "Slate", [items.length, "shown"], h("div", { class: "tiles" }, tiles));
}

const decimal = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

/** Names of the sources that found a candidate, each with its own score where the service tells it. */
function foundBy({ source_scores: scores = {}, sources = Object.keys(scores) }) {
  return sources.map((name) => h("span", {}, words(name), name in scores && h("b", {}, ` ${decimal(scores[name])}`)));
}

function renderCandidate(one) {
  if (one.title) learn({ item_id: one.item_id, title: one.title });
  return h("tr", { "data-item-id": one.item_id },
    h("td", {}, Number.isInteger(one.position) ? String(one.position + 1) : "–"),
    h("th", { scope: "row" }, button("link", { onclick: () => light(one.item_id) }, title(one.item_id))),
    h("td", { class: "from" }, foundBy(one)),
    [one.retrieval_score, one.ranker_score, one.final_score].map((score) => h("td", {}, decimal(score))));
}

function renderCandidates(candidates) {
  const heads = ["Place", "Item", "Found by", "Retrieval", "Ranker", "Final"].map((name) => h("th", { scope: "col" }, name));
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, candidates.map(renderCandidate)));
  return h("details", { class: "candidates", "data-key": "candidates", ontoggle: fetchTitles },
    h("summary", {}, `The ${candidates.length} strongest candidates`), h("div", { class: "scroll" }, table));
}

export function renderTrace(root, { trace, items }) {
  const open = new Set([...root.querySelectorAll("details[open]")].map((node) => node.dataset.key));
  const stages = trace?.stages ?? [];
  const spent = milliseconds(total(stages.map((stage) => stage.milliseconds)));
  $("trace-note").textContent = stages.length ? `${stages.length} stages in ${spent}` : "";
  if (!stages.length) return root.replaceChildren(empty("p", "There is no trace: the service sent none, or no list."));
  const groups = group(stages);
  const columns = h("ol", {}, groups.map(renderGroup), renderSlate(items));
  const flow = h("div", { class: "flow" }, ribbon(groups, items.length), columns);
  flow.style.setProperty("--columns", groups.length + 1);
  const candidates = trace.candidates?.length ? [renderCandidates(trace.candidates)] : [];
  root.replaceChildren(h("div", { class: "scroll" }, flow), ...candidates);
  root.querySelectorAll("details").forEach((node) => (node.open = open.has(node.dataset.key)));
}

/** Titles of items that no list has shown are asked for when somebody looks, and only once. */
function fetchTitles({ target }) {
  if (!target.open) return;
  const ids = new Set([...target.querySelectorAll("[data-title-of]")].map((node) => node.dataset.titleOf));
  for (const id of ids) if (!catalogue.has(id)) api.item(id).then(learn, () => catalogue.set(id, { item_id: id }));
}
