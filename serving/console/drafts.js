/* Rule drafts: the lab of rules: what a draft changes, what it would do, who agrees, and for how many people it holds. */

import { button, h, percent, plural, since, toast } from "./elements.js";
import { begin, board, chip, fill, panel } from "./board.js";
import { changes } from "./changes.js";
import { brief, spelled, value } from "./rule.js";
import { api, caller, useAnotherKey } from "./service.js";
import { renderSimulation } from "./simulation.js";
import { ask, shareField } from "./step.js";

const FIRST = `{"rule": {
    "items": {"attribute": "categories", "op": "contains", "value": "Garden"},
    "action": {"type": "boost", "factor": 1.5}}}`;
const REQUESTS = [50, 200, 1000];
const found = new Map(); // what was simulated of each draft, as it was then
let requests = 200;

const differs = ({ difference }) => Object.keys(difference).length > 0;
/** There is no rule of its name now; one that is there has the same id. */
const absent = ({ difference }) => difference.id?.current === null;
const removed = (one) => one.share !== null && absent(one);

/** Where a draft stands: a word or two, and their tone. */
function stateOf(draft) {
  const { share, needs_approval: waits } = draft;
  if (share !== null && !differs(draft)) return share >= 1 ? ["in force", "good"] : [`${percent(share)} of people`, "good"];
  if (waits) return ["waits for approval", "wait"];
  if (share === null) return ["ready", ""];
  return [removed(draft) ? "removed since" : "newer than in force", "wait"];
}

function row(one) {
  return [h("span", { class: "name" }, one.id), chip(...stateOf(one)), h("small", {}, brief(one.rule)),
    h("small", {}, `${one.author}, `, since(one.updated_at))];
}

const nothing = () => begin("Write a rule as a draft, and try it here before anybody sees it", "v1/drafts/summer", FIRST);

// ------------------------------------------------------------------------------------------------------------ the steps

function leave(sentence, tools) {
  toast(sentence);
  if (location.hash === "#drafts") tools.again();
  else location.hash = "#drafts";
}

const done = (call, sentence, tools) => call.then((answer) => (tools.did(sentence), answer ?? true));

const STEPS = {
  approve: (one, tools) => ask({
    title: `Agree to ${one.id}?`, label: "Approve",
    text: [`${one.author} wrote it. You agree to it as it is now; who changes it asks for agreement anew.`],
    act: ({ reason }) => done(api.approve(one.id, reason), `${one.id} is approved`, tools),
  }, tools),
  release: (one, tools) => ask({
    title: one.share === null ? `Release ${one.id}?` : `For how many does ${one.id} hold?`,
    label: one.rule ? "Release it" : "Remove the rule", tone: one.rule ? "" : "danger", fields: one.rule ? [ramp(one)] : [],
    text: one.rule ? [] : ["A removal holds for everybody, within a second. It can be rolled back."],
    act: ({ share = 1, reason }) => done(api.release(one.id, share, reason), `${one.id} holds for ${percent(share)} of the people`, tools),
  }, tools),
  rollBack: (one, tools) => ask({
    title: `Roll ${one.id} back?`, label: "Roll it back", tone: "danger",
    text: ["Within a second the rule is what it was before this draft was released, for everybody. The draft stays."],
    act: ({ reason }) => done(api.rollBack(one.id, reason), `${one.id} is rolled back`, tools),
  }, tools),
  drop: (one, tools) => ask({
    title: `Throw the draft ${one.id} away?`, label: "Throw it away", tone: "danger",
    text: [one.share === null || removed(one) ? "Nothing of it is in force." : "What was released stays in force."],
    act: ({ reason }) => api.drop(one.id, reason).then(() => (leave(`The draft ${one.id} is gone`, tools), true)),
  }, tools),
};

function ramp(one) {
  return shareField("Share of the people, always the same ones", one.share ?? 0.1, (share) => {
    if (!(share > 0 && share <= 1)) return "More than 0 % and at most 100 %.";
    if (share >= 1) return "Everybody gets it.";
    if (share === one.share) return "As it is now.";
    return one.share !== null && share < one.share ? "Less than now: some who have it get what the others get."
      : "More can be added later; nobody drops out by that.";
  });
}

function steps(one, tools) {
  const step = (name, text, look = "quiet") => button(look, { "data-act": name, onclick: () => STEPS[name](one, tools) }, text);
  const mine = one.author === caller();
  const open = !one.needs_approval;
  const go = one.share === null ? "Release" : differs(one) ? "Release this version" : "Change the share";
  return [
    !one.approved_by && !mine && step("approve", "Approve", open ? "quiet" : "primary"),
    open && step("release", go, one.share === null || differs(one) ? "primary" : "quiet"),
    one.share !== null && step("rollBack", "Roll back"), step("drop", "Throw away"),
  ];
}

// ----------------------------------------------------------------------------------------------------------- one of them

/** How far it is: each step with who took it. */
function way(one) {
  const { author, approved_by: by, needs_approval: waits } = one;
  const mark = (name, text, state) => h("li", { class: state, "data-step": name }, h("b", {}, name), h("small", {}, text));
  const tried = current(one);
  return h("ol", { class: "way" }, mark("Written", `by ${author}`, "done"),
    mark("Tried", tried ? `on ${plural(tried.replayed, "request")}` : "not in this tab", tried?.replayed ? "done" : ""),
    mark("Approved", by ? `by ${by}` : waits ? "waits for somebody else" : "not needed here", by ? "done" : waits ? "now" : ""),
    mark("Released", ...released(one)));
}

function released(one) {
  if (one.share === null) return ["not yet", ""];
  if (removed(one)) return ["removed since", ""];
  return [one.share >= 1 ? "to everybody" : `to ${percent(one.share)} of the people`, "done"];
}

/** Whoever wrote a draft cannot agree to it: what to do about that, where agreement is needed. */
function waiting(one, tools) {
  if (!one.needs_approval || one.author !== caller()) return null;
  const another = () => useAnotherKey().then(tools.again, () => null);
  return h("div", { class: "hint" }, h("p", {}, "You wrote it, so somebody else must agree to it, with a key of their own."),
    button("quiet", { "data-act": "key", onclick: another }, "Use another key"));
}

function differences(one) {
  const rows = Object.entries(one.difference);
  if (!rows.length) {
    const text = one.share === null ? "It changes nothing: the rule in force says the same." : "It is in force as it stands here.";
    return [h("p", { class: "note" }, text), one.rule && spelled(one.rule)];
  }
  if (absent(one)) {
    const text = removed(one) ? "The rule was removed since." : "There is no rule of this name yet.";
    return [h("p", { class: "note" }, text), spelled(one.rule)];
  }
  if (!one.rule) return h("p", { class: "alarm" }, "The rule is removed.");
  const lines = rows.map(([field, { current: now, draft }]) => h("tr", { "data-field": field },
    h("th", { scope: "row" }, field.replaceAll("_", " ")), h("td", { class: "gone" }, value(field, now)), h("td", { class: "come" }, value(field, draft))));
  return h("div", { class: "scroll" }, h("table", { class: "plain difference" },
    h("thead", {}, h("tr", {}, ["Field", "In force", "Draft"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, lines)));
}

const written = (one) => JSON.stringify(one.rule);
/** What was simulated of a draft, if it says the same since. */
const current = (one) => (found.get(one.id)?.of === written(one) ? found.get(one.id).answer : null);

function simulation(one, tools) {
  const place = h("div", { class: "found" });
  const select = h("select", { id: "requests", onchange: () => (requests = Number(select.value)) },
    REQUESTS.map((many) => new Option(`${many} requests`, many, many === requests, many === requests)));
  const read = async () => {
    const answer = await api.simulate(one.id, requests);
    found.set(one.id, { of: written(one), answer });
    return answer;
  };
  const run = async () => {
    go.disabled = true;
    await fill(place, read, renderSimulation, tools.signal);
    go.disabled = false;
    if (!current(one)) return;
    [go.textContent, go.className] = ["Try it again", "quiet"];
    document.querySelector(".way")?.replaceWith(way(one));
  };
  const go = button(current(one) ? "quiet" : "primary", { "data-act": "simulate", onclick: run }, current(one) ? "Try it again" : "Try it");
  if (current(one)) place.append(...renderSimulation(current(one)).filter(Boolean));
  else place.append(h("p", { class: "empty" }, "Not tried yet.", h("small", {}, "The latest requests are asked again with the draft; nobody sees anything of it.")));
  const controls = h("div", { class: "acts" }, h("label", { for: "requests", class: "sr" }, "Logged requests to ask again"), select, go);
  return h("section", { class: "panel" }, h("header", {}, h("h3", {}, "What it would do"), controls), place);
}

function detail(one, tools) {
  const head = h("section", { class: "panel lead" },
    h("header", {}, h("h2", { tabindex: -1 }, one.id), chip(...stateOf(one)), h("div", { class: "acts" }, steps(one, tools))),
    h("p", {}, brief(one.rule)), way(one), waiting(one, tools));
  return [h("div", { class: "stack" }, head, panel("What it changes", "Beside the rule in force", differences(one)),
    simulation(one, tools), changes(one.id, { draft: "draft", rule: "rule" }, tools.signal))];
}

export const drafts = board({ kind: "drafts", title: "Rule drafts", needs: "the scope policy", row, detail, nothing });
