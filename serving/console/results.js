/* Results: what an experiment has found, metric by metric, with intervals on one scale. */

import { amount, h, percent, plural, signed } from "./elements.js";
import { axis, interval, portion, scaleOf } from "./charts.js";

const NAMES = { retention_7: "Came back, days 1–7", retention_28: "Came back, days 22–28" };
const SHARES = new Set(["conversion", "retention_7", "retention_28"]);
const HOLDOUT = "holdout";

export const metricName = (metric) => NAMES[metric] ?? metric.charAt(0).toUpperCase() + metric.slice(1).replaceAll("_", " ");
/** What is told of an arm beside the first: the lift, or the plain difference where the lift is not known or where it alone,
    which is less certain, leaves open what the verdict says. Bounds that meet are of people who all did the same: null. */
function changeOf(metric, { lift, difference, verdict }) {
  const open = lift && verdict && lift.low <= 0 && lift.high >= 0;
  if (lift && !open) return [lift, percent];
  return [difference && difference.low < difference.high ? difference : null, (value) => written(metric, value)];
}

const written = (metric, value) => (value === null ? "–" : (SHARES.has(metric) ? percent : amount)(value));
const range = ({ low, high }, write = percent) => `${signed(low, write)} to ${signed(high, write)}`;
const sure = (alpha) => percent(1 - alpha);

/** The arms that are compared with the first one. */
const compared = ({ arms }) => arms.slice(1);

// ------------------------------------------------------------------------------------------------------------- in words

/** What the primary metric says of one arm. */
function sentence({ id, metrics }, { primary, arms }) {
  const { difference, verdict } = metrics[primary];
  const [change, write] = changeOf(primary, metrics[primary]);
  const name = metricName(primary).toLowerCase();
  if (difference && !change) return [h("b", {}, id), ` cannot be compared yet: ${name} is the same for everybody.`];
  if (!change) return [h("b", {}, id), " cannot be compared yet: too few people in it, or in ", h("b", {}, arms[0].id), "."];
  const found = h("b", {}, signed(change.estimate, write));
  const bounds = `, between ${signed(change.low, write)} and ${signed(change.high, write)}`;
  if (!verdict) return [h("b", {}, id), ` is open: ${name} `, found, bounds, "."];
  return [h("b", {}, id), ` is ${verdict} than `, h("b", {}, arms[0].id), `: ${name} `, found, bounds, "."];
}

export function conclusion(found) {
  const lines = compared(found).filter(({ id }) => id !== HOLDOUT).map((arm) => {
    const tone = arm.metrics[found.primary].verdict ?? "undecided";
    return h("li", { class: tone }, sentence(arm, found));
  });
  return h("div", { class: "conclusion" }, h("ul", {}, lines),
    h("small", {}, `The bounds hold with ${sure(found.alpha)}, however often one looks.`));
}

/** Whether the arms have the people they should have. */
export function balance({ sample_ratio: { alarm, p_value: chance }, mixed }) {
  const chances = chance < 0.001 ? "p below 0.001" : `p = ${chance.toFixed(chance < 0.1 ? 3 : 2)}`;
  const others = mixed > 0 && h("small", {}, `${plural(mixed, "person", "people")} met several arms, by several ids, and ${
    mixed === 1 ? "is" : "are"} left out.`);
  if (!alarm) return h("p", { class: "note", "data-balance": "fine" }, `The arms have the people they should have (${chances}). `, others);
  return h("div", { class: "alarm", role: "alert", "data-balance": "alarm" },
    h("strong", {}, "The arms do not have the people they should have"),
    h("p", {}, `Something loses people of one arm (${chances}). Nothing else here can be trusted until it is found: look for errors, `,
      "redirects or filters that only one arm has."), others);
}

/** The people of one arm beside those that it should have. */
export function populace(id, found) {
  const { expected, found: counts } = found.sample_ratio;
  const arm = found.arms.find((one) => one.id === id);
  const all = Object.values(counts).reduce((sum, one) => sum + one, 0);
  const people = h("p", {}, h("b", {}, plural(arm.people, "person", "people")), h("small", {}, ` ${plural(arm.answers, "answer")}`));
  if (!(id in expected) || !all) return people;
  const share = counts[id] / all;
  return [people, portion(share, expected[id]), h("small", {}, `${percent(share)}, should be ${percent(expected[id])}`)];
}

// ------------------------------------------------------------------------------------------------------------ the table

const head = (bound) => h("thead", {}, h("tr", {},
  ["", "Arm", "A person", "First arm"].map((name) => h("th", { scope: "col" }, name)),
  h("th", { scope: "col", class: "plot" }, h("span", { class: "sr" }, "Change as a share of the first arm"), bound && axis(bound)),
  h("th", { scope: "col" }, "Change"), h("th", { scope: "col" }, h("span", { class: "sr" }, "Verdict"))));

/** One arm beside the first by one metric. */
function line(metric, arm, control, bound, name) {
  const { lift, difference, verdict, people, mean } = arm.measured;
  const tone = verdict ?? "undecided";
  const [change, write] = changeOf(metric, arm.measured);
  const label = change ? `${signed(change.estimate, write)}, ${range(change, write)}` : "not known yet";
  const some = people > 0 && people !== arm.people && h("small", {}, ` of ${plural(people, "person", "people")}`);
  return h("tr", { "data-arm": arm.id, "data-metric": metric, "data-verdict": tone },
    name, h("td", { class: "arm" }, arm.id), h("td", { class: "mean" }, written(metric, mean), some),
    h("td", { class: "mean first" }, written(metric, control.mean)),
    h("td", { class: "plot" }, lift ? interval(lift, bound, { tone, label })
      : h("small", {}, change ? "Not as a share: the first arm may be at zero" : difference ? "The same for everybody so far" : "Too few people so far")),
    h("td", { class: `change ${change ? "" : "unknown"}` }, change ? [h("b", {}, signed(change.estimate, write)), h("small", {}, range(change, write))] : "–"),
    h("td", { class: "verdict" }, verdict && h("span", { class: `chip ${verdict}` }, verdict)));
}

/** A table of groups, each `{ metric, label, note, control, arms }` with what was measured of the arms. */
function table(groups, main) {
  const lifts = (some) => some.flatMap(({ arms }) => arms.map(({ measured }) => measured.lift)).filter(Boolean);
  const bound = scaleOf(lifts(groups), lifts(groups.filter(main)));
  const bodies = groups.map(({ metric, label, note, control, arms }) => h("tbody", {}, arms.map((arm, place) => {
    const name = !place && h("th", { scope: "rowgroup", rowspan: arms.length }, label, note && h("small", {}, note));
    return line(metric, arm, control, bound, name);
  })));
  return h("div", { class: "scroll" }, h("table", { class: "forest" }, head(bound), bodies));
}

/** Every metric of every arm, the primary one first. */
export function metrics(found) {
  const names = Object.keys(found.arms[0].metrics);
  const sorted = [found.primary, ...names.filter((name) => name !== found.primary)];
  const explained = (metric) => Math.max(...compared(found).map((arm) => arm.metrics[metric].explained));
  const groups = sorted.map((metric) => ({
    metric, label: metricName(metric),
    note: [metric === found.primary && "primary", explained(metric) >= 0.01 && `${percent(explained(metric))} explained by before`]
      .filter(Boolean).join(" · "),
    control: found.arms[0].metrics[metric],
    arms: compared(found).map((arm) => ({ id: arm.id, people: arm.people, measured: arm.metrics[metric] })),
  }));
  return table(groups, ({ metric }) => metric === found.primary);
}

/** The primary metric by segment, the largest first. */
export function segments(found) {
  const [control, ...others] = found.arms.map(({ id }) => id);
  const groups = found.segments.map(({ value, people, arms }) => ({
    metric: found.primary, label: value ?? "unknown", note: plural(people, "person", "people"), control: arms[control],
    arms: others.map((id) => ({ id, people: arms[id].people, measured: arms[id] })),
  }));
  return table(groups, () => true);
}

// ----------------------------------------------------------------------------------------------------------- guardrails

const STATES = {
  holds: ["holds", "better"], open: ["open", ""], broken: ["broken", "worse"], unknown: ["not known yet", ""],
};

function stateOf(lift, margin) {
  if (!lift) return "unknown";
  if (lift.high < -margin) return "broken";
  return lift.low >= -margin ? "holds" : "open";
}

/** Every guardrail beside what is known of each arm: it stops one that is surely beyond the margin. */
export function guardrails(rails, found) {
  const control = found.arms[0].id;
  const arms = compared(found).filter(({ id }) => id !== HOLDOUT);
  const lifts = rails.flatMap(({ metric }) => arms.map((arm) => arm.metrics[metric].lift)).filter(Boolean);
  const margins = rails.map(({ margin }) => ({ low: -1.3 * margin, high: 0 }));
  const bound = scaleOf(lifts, margins);
  const rows = rails.flatMap(({ metric, margin }) => arms.map((arm) => {
    const { lift } = arm.metrics[metric];
    const state = stateOf(lift, margin);
    const [word, tone] = STATES[state];
    const label = lift ? `${range(lift)}, at most ${percent(margin)} below is allowed` : word;
    return h("li", { "data-guardrail": metric, "data-state": state },
      h("p", {}, h("b", {}, metricName(metric)), h("small", {}, `${arm.id}, at most ${percent(margin)} below ${control}`)),
      lift ? interval(lift, bound, { tone, margin, label }) : h("small", {}, "Too few people so far"),
      h("span", { class: `chip ${tone}` }, word));
  }));
  return h("ul", { class: "rails" }, rows);
}
