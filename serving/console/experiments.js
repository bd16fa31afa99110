/* Experiments: who gets which of several arms, what came of it, and the steps that a person may take. */

import { button, facts, h, moment, percent, plural, since } from "./elements.js";
import { begin, board, chip, fill, panel } from "./board.js";
import { changes } from "./changes.js";
import { outline } from "./conditions.js";
import { balance, conclusion, guardrails, metricName, metrics, populace, segments } from "./results.js";
import { api } from "./service.js";
import { ask, shareField } from "./step.js";

const FIRST = `{
    "traffic": 0.2, "primary": "revenue",
    "arms": [{"id": "as_is"},
             {"id": "margin", "placements": {"home": {"values": {"price": 0.3}}}}]}`;
const ORDER = ["running", "planned", "draft", "over", "stopped"];
const TONES = { running: "good", planned: "good" };
const chosen = new Map(); // by which segment each experiment is looked at

// ------------------------------------------------------------------------------------------------------------- the list

function stateOf({ state, starts_at: starts, ends_at: ends }) {
  if (state !== "running") return state;
  if (starts && Date.parse(starts) > Date.now()) return "planned";
  return ends && Date.parse(ends) <= Date.now() ? "over" : "running";
}

const weightOf = (arm, arms) => arm.weight ?? 1 / arms.length;

function split(arms) {
  const parts = arms.map((arm) => {
    const part = h("i", { class: arm.stopped ? "off" : "" });
    part.style.setProperty("flex-grow", weightOf(arm, arms));
    return part;
  });
  return h("span", { class: "split", "aria-hidden": "true" }, parts);
}

function row(one) {
  const state = stateOf(one);
  const stopped = one.arms.filter((arm) => arm.stopped).length;
  return [h("span", { class: "name" }, one.id), chip(state, TONES[state]),
    h("small", {}, one.arms.map(({ id }) => id).join(" · "), stopped > 0 && `, ${plural(stopped, "arm")} stopped`), split(one.arms)];
}

const first = (all) => [...all].sort((one, other) => ORDER.indexOf(stateOf(one)) - ORDER.indexOf(stateOf(other)))[0];
const nothing = () => begin("Write an experiment as a draft, and start it here", "v1/experiments/margin", FIRST);

// ------------------------------------------------------------------------------------------------------------ the steps

const sharedOut = ({ arms }) => arms.map((arm) => `${arm.id} ${percent(weightOf(arm, arms))}`).join(", ");

const partOf = ({ traffic = 1 }) => traffic;

function traffic(one) {
  return shareField("Share of the people who take part", partOf(one) || 0.05, (share) => {
    if (!(share > 0 && share <= 1)) return "More than 0 % and at most 100 %.";
    if (one.state === "running" && share === partOf(one)) return "As it is now.";
    if (one.state !== "draft" && share < partOf(one)) return "Less than now: those who drop out get what everybody gets.";
    return one.state === "draft" ? "It can be raised later; nobody changes arms by that." : "Nobody who takes part changes arms.";
  });
}

function write(one, change, reason, tools, sentence) {
  return api.write("experiments", { ...one, ...change }, reason).then((answer) => (tools.did(sentence), answer));
}

const STEPS = {
  start: (one, tools) => ask({
    title: `Start ${one.id}?`, label: "Start it", fields: [traffic(one)],
    text: [`People are shared out: ${sharedOut(one)}. From then on the arms stay as they are.`],
    act: ({ share, reason }) => write(one, { state: "running", traffic: share }, reason, tools, `${one.id} is running`),
  }, tools),
  again: (one, tools) => ask({
    title: `Let ${one.id} go on?`, label: "Let it go on", fields: [traffic(one)],
    text: ["Everybody gets the arm that they had. What people did in between counts as well."],
    act: ({ share, reason }) => write(one, { state: "running", traffic: share }, reason, tools, `${one.id} is running`),
  }, tools),
  ramp: (one, tools) => ask({
    title: `Who takes part in ${one.id}?`, label: "Change it", fields: [traffic(one)], text: [`Now ${percent(partOf(one))}.`],
    act: ({ share, reason }) => write(one, { traffic: share }, reason, tools, `${percent(share)} take part in ${one.id}`),
  }, tools),
  stop: (one, tools) => ask({
    title: `Stop ${one.id}?`, label: "Stop it", tone: "danger",
    text: ["Within a second everybody gets what everybody gets. What was found stays, and it can go on later."],
    act: ({ reason }) => write(one, { state: "stopped" }, reason, tools, `${one.id} is stopped`),
  }, tools),
  stopArm: (one, tools, arm) => ask({
    title: `Stop the arm ${arm.id}?`, label: "Stop the arm", tone: "danger", why: { required: "", maxlength: 256 },
    text: ["Its people get what everybody gets; nobody is moved into another arm."],
    act: ({ reason }) => write(one, { arms: withArm(one, arm.id, reason) }, reason, tools, `${arm.id} is stopped`),
  }, tools),
  resumeArm: (one, tools, arm) => ask({
    title: `Give the arm ${arm.id} again?`, label: "Give it again", text: [`It was stopped: ${arm.stopped}`],
    act: ({ reason }) => write(one, { arms: withArm(one, arm.id, null) }, reason, tools, `${arm.id} is given again`),
  }, tools),
};

const withArm = ({ arms }, id, stopped) => arms.map((arm) => (arm.id === id ? { ...arm, stopped } : arm));

function steps(one, tools) {
  const step = (name, text, look = "quiet") => button(look, { "data-act": name, onclick: () => STEPS[name](one, tools) }, text);
  if (one.state === "draft") return [step("start", "Start", "primary")];
  if (one.state === "stopped") return [step("again", "Let it go on")];
  return [step("ramp", "Change who takes part"), step("stop", "Stop")];
}

// ----------------------------------------------------------------------------------------------------------- one of them

const listed = (values) => Object.entries(values).map(([name, value]) => `${name.replaceAll("_", " ")} ${JSON.stringify(value)}`).join(", ");

/** What an arm gives instead of what everybody gets, a line each. */
function gives({ placements = {}, rules_on: on = [], rules_off: off = [], layouts = {}, contents = {}, release }) {
  const lines = [
    ...Object.entries(placements).map(([id, fields]) => [`Placement ${id}: `, h("code", {}, listed(fields))]),
    ...on.map((id) => `Rule ${id} holds`), ...off.map((id) => `Rule ${id} does not hold`),
    ...Object.entries(layouts).map(([page, layout]) => `Page ${page} has the layout ${layout}`),
    ...Object.entries(contents).map(([id, weights]) => [`Content ${id}: `, h("code", {}, listed(weights))]),
    ...(release ? [`Model release ${release} answers`] : []),
  ];
  return h("ul", {}, (lines.length ? lines : ["What everybody gets"]).map((line) => h("li", {}, line)));
}

function armCard(one, arm, place, tools) {
  const act = (name, text) => button("quiet", { "data-act": `${name}-${arm.id}`, onclick: () => STEPS[name](one, tools, arm) }, text);
  const step = place > 0 && one.state === "running" && (arm.stopped ? act("resumeArm", "Give it again") : act("stopArm", "Stop this arm"));
  return h("li", { class: arm.stopped ? "off" : "", "data-arm": arm.id },
    h("header", {}, h("h4", {}, arm.id), chip(place ? percent(weightOf(arm, one.arms)) : `${percent(weightOf(arm, one.arms))} · first`)),
    gives(arm), h("div", { class: "populace" }), arm.stopped && h("p", { class: "alarm" }, `Stopped: ${arm.stopped}`), step);
}

function described(one) {
  const { layer = "default", slice = { start: 0, end: 1 }, holdout = 0, primary = "conversion", people, starts_at: starts, ends_at: ends } = one;
  const part = slice.start > 0 || slice.end < 1 ? `, ${percent(slice.start)} to ${percent(slice.end)}` : "";
  return facts({
    Judged_by: metricName(primary), Takes_part: percent(partOf(one)), Layer: layer + part,
    ...(holdout > 0 && { Kept_out: percent(holdout) }), ...(people && { Planned_for: plural(people, "person", "people") }),
    ...(starts && { From: moment(starts) }), ...(ends && { Until: moment(ends) }),
  });
}

function headPanel(one, tools) {
  const state = stateOf(one);
  return h("section", { class: "panel lead" },
    h("header", {}, h("h2", { tabindex: -1 }, one.id), chip(state, TONES[state]), h("div", { class: "acts" }, steps(one, tools))),
    one.description && h("p", {}, one.description),
    one.problem && h("div", { class: "alarm" }, h("strong", {}, "It does not fit what is in service"), h("p", {}, one.problem)),
    h("dl", {}, described(one)),
    one.when && h("div", { class: "who" }, h("h4", {}, "Only people and requests where"), outline(one.when)),
    h("small", {}, `Version ${one.version}, changed by ${one.updated_by} `, since(one.updated_at)));
}

/** What the results may be compared by: what people are known by, as far as this key may read it. */
async function offerAttributes(select, known) {
  const { users } = await api.users().catch(() => ({ users: [] }));
  const names = [...new Set(users.flatMap(({ attributes }) => Object.keys(attributes)))].sort();
  for (const name of names) if (!known.includes(name)) select.append(new Option(name.replaceAll("_", " "), name));
}

function segmentPicker(one, look) {
  const by = chosen.get(one.id) ?? "";
  const known = [...new Set(["", "activity", by])];
  const names = { "": "Nothing", activity: "New or active before" };
  const options = known.map((value) => new Option(names[value] ?? value.replaceAll("_", " "), value, value === by, value === by));
  const select = h("select", { id: "by", onchange: () => (chosen.set(one.id, select.value), look()) }, options);
  offerAttributes(select, known);
  return h("div", { class: "field row" }, h("label", { for: "by" }, "Compare by"), select);
}

function renderResults(one, found, root) {
  for (const { id } of one.arms) {
    root.querySelector(`[data-arm="${CSS.escape(id)}"] .populace`)?.replaceChildren(...[populace(id, found)].flat());
  }
  if (!found.people) {
    const spots = one.arms.flatMap(({ placements = {} }) => Object.keys(placements));
    const where = spots.length ? ` (here ${[...new Set(spots)].join(", ")})` : "";
    return h("p", { class: "empty" }, "Nobody is part of it yet.",
      h("small", {}, `People are from the first answer on that one of the arms could change${where}.`));
  }
  const by = chosen.get(one.id);
  const label = by === "activity" ? "new or active before" : by?.replaceAll("_", " ");
  const whole = balance(found);
  return [...(found.sample_ratio.alarm ? [whole, conclusion(found)] : [conclusion(found), whole]), metrics(found),
    found.segments.length > 0 && [h("h4", {}, `${metricName(found.primary)} by ${label}`),
      h("p", { class: "note" }, "One of many segments differs by chance now and then."), segments(found)],
    one.guardrails?.length > 0 && [h("h4", {}, "Guardrails"), guardrails(one.guardrails, found)],
    h("small", {}, `${plural(found.people, "person", "people")}, until `, since(found.until))].flat();
}

function detail(one, tools) {
  const root = h("div", { class: "stack" });
  const arms = panel("Arms", "Who gets what", h("ol", { class: "arms" }, one.arms.map((arm, place) => armCard(one, arm, place, tools))));
  const place = h("div", { class: "found" });
  const read = () => api.results(one.id, chosen.get(one.id), tools.signal);
  const look = () => fill(place, read, (found) => renderResults(one, found, root), tools.signal);
  const note = h("div", { class: "acts" }, segmentPicker(one, look),
    button("quiet", { "data-act": "look", onclick: look }, "Look again"));
  const results = h("section", { class: "panel" }, h("header", {}, h("h3", {}, "What it has found"), one.state !== "draft" && note), place);
  if (one.state === "draft") place.append(h("p", { class: "empty" }, "Nothing yet: it is a draft.", h("small", {}, "Start it, and the first people are here within seconds.")));
  else look();
  root.append(headPanel(one, tools), arms, results, changes(one.id, { experiment: "" }, tools.signal));
  return [root];
}

export const experiments = board({
  kind: "experiments", title: "Experiments", needs: "the scope policy", row, detail, nothing, first,
});
