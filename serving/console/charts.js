/* Charts: an interval on a scale around zero, and a figure before and after. Positions are percentages, so they stretch with
   the page. */

import { percent, signed, svg } from "./elements.js";

const NICE = [1, 2, 2.5, 5, 10];
const ceil = (value) => {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * NICE.find((step) => step * unit >= value * 0.999);
};
const reach = ({ low, high }) => Math.max(Math.abs(low), Math.abs(high));
const clamp = (value) => Math.max(-1, Math.min(1, value));

/** How far a scale goes on either side of zero, so that `main` is whole and a few very wide intervals do not squeeze the others:
    they run over the edge, and an arrow says so. */
export function scaleOf(intervals, main = []) {
  const wide = intervals.map(reach).sort((one, other) => one - other);
  if (!wide.length) return null;
  const usual = wide[Math.floor((wide.length - 1) / 2)];
  return ceil(Math.max(Math.min(wide.at(-1), 3 * usual), ...main.map(reach), 0.005));
}

const at = (value, bound) => `${50 + 48 * clamp(value / bound)}%`;

function upright(name, value, bound) {
  return svg("line", { class: name, x1: at(value, bound), x2: at(value, bound), y1: 0, y2: "100%" });
}

/** The scale itself, for above a column of intervals. */
export function axis(bound) {
  const mark = (value, anchor) => svg("text", { x: at(value, bound), y: 12, "text-anchor": anchor }, signed(value));
  return svg("svg", { class: "axis", "aria-hidden": "true" }, mark(-bound, "start"), mark(0, "middle"), mark(bound, "end"));
}

/** An interval: its bounds as a bar, its estimate as a dot, zero as a line, and the margin of a guardrail as a dashed one. */
export function interval({ estimate, low, high }, bound, { tone = "", margin, label = "" } = {}) {
  const over = (side, d) => svg("svg", { x: at(side * bound, bound), y: 0, overflow: "visible" }, svg("path", { class: "over", d }));
  const arrows = [low < -bound && over(-1, "M1 6-6 12 1 18Z"), high > bound && over(1, "M-1 6 6 12-1 18Z")];
  return svg("svg", { class: `interval ${tone}`, role: "img", "aria-label": label },
    upright("zero", 0, bound), margin !== undefined && upright("margin", -margin, bound),
    svg("line", { class: "span", x1: at(low, bound), x2: at(high, bound), y1: 12, y2: 12 }),
    arrows, Math.abs(estimate) <= bound && svg("circle", { cx: at(estimate, bound), cy: 12, r: 4.5 }));
}

/** A figure from 0 to `bound` before and after: a ring where it was, a dot where it would be. */
export function shift({ current, draft }, bound, label = "") {
  const x = (value) => `${2 + 96 * Math.min(1, value / bound)}%`;
  const [from, to] = [current ?? 0, draft ?? 0];
  return svg("svg", { class: `shift ${to < from ? "less" : "more"}`, role: "img", "aria-label": label },
    svg("line", { class: "track", x1: "2%", x2: "98%", y1: 10, y2: 10 }),
    svg("line", { class: "span", x1: x(from), x2: x(to), y1: 10, y2: 10 }),
    svg("circle", { class: "was", cx: x(from), cy: 10, r: 4 }), svg("circle", { class: "is", cx: x(to), cy: 10, r: 4.5 }));
}

/** A share found beside the share that there should be. */
export function portion(found, expected) {
  return svg("svg", { class: "portion", role: "img", "aria-label": `${percent(found)}, should be ${percent(expected)}` },
    svg("rect", { class: "track", width: "100%", height: "100%", rx: 4 }),
    svg("rect", { class: "is", width: `${100 * Math.min(1, found)}%`, height: "100%", rx: 4 }),
    svg("line", { class: "should", x1: `${100 * expected}%`, x2: `${100 * expected}%`, y1: -3, y2: "100%" }));
}
