/* Segments: groups of people by name: who is meant, how many they are, who is one of them, and groups that nobody has named
   yet. */

import { button, count, facts, h, percent, plural, since, tile } from "./elements.js";
import { begin, board, chip, fill, panel } from "./board.js";
import { changes } from "./changes.js";
import { outline, say } from "./conditions.js";
import { api, segment } from "./service.js";
import { catalogue, learn, title } from "./state.js";
import { ask, textField } from "./step.js";

const FIRST = `{
    "when": {"did": "purchase", "days": 90, "at_least": 2}}`;
const LOOK = 200; // people who are looked at for the size of a segment
const SHOWN = 12;
const PAGE = 1000;
const sizes = new Map(); // what was found of each segment: { of, at, looked, members, whole }
const groups = { count: 8, found: null };

// ------------------------------------------------------------------------------------------------------------- the list

const now = () => new Date().toISOString();
const on = ({ enabled = true }) => enabled; // a document from before a field was has it not
const meant = ({ description, when, prototypes }) => description || (when ? say(when) : `Likes what ${plural(prototypes.length, "item")} stand for`);
const known = (one) => (sizes.get(one.id)?.of === one.version ? sizes.get(one.id) : null);

function sizeText(size) {
  const share = size.looked ? percent(size.members.length / size.looked) : "0%";
  return size.whole ? `${plural(size.members.length, "person", "people")}, ${share}` : `about ${share} of people`;
}

function row(one) {
  const size = known(one);
  return [h("span", { class: "name" }, one.id), one.problem ? chip("does not fit", "worse") : !on(one) && chip("off"),
    h("small", {}, meant(one)), h("small", { class: "size", "data-size": one.id }, size ? sizeText(size) : on(one) ? "…" : "")];
}

const nothing = () => begin("Say who is meant, or let groups be found", "v1/segments/loyal", FIRST);

/** Looks at some people of each segment in turn, so that the list can say how large they are. */
async function measure(all, signal) {
  for (const one of all.filter((each) => on(each) && !each.problem)) {
    const place = document.querySelector(`[data-size="${CSS.escape(one.id)}"]`);
    if (signal.aborted || !place) return;
    const size = known(one) ?? (await look(one, signal).catch(() => null));
    place.textContent = size ? sizeText(size) : "size not known";
  }
}

async function look(one, signal) {
  const answer = await api.members(one.id, { limit: LOOK }, signal);
  const size = { of: one.version, at: now(), looked: answer.looked_at, members: answer.user_ids, whole: answer.next === null };
  sizes.set(one.id, size);
  return size;
}

// -------------------------------------------------------------------------------------------------------------- members

function member(id) {
  const about = h("small", {});
  api.user(id).then(({ attributes, events }) => {
    const said = Object.entries(attributes).slice(0, 4).map(([name, value]) => `${name.replaceAll("_", " ")} ${[value].flat().join(", ")}`);
    about.textContent = [...said, plural(events, "event")].join(" · ");
  }, () => null);
  return h("li", { "data-member": id }, h("a", { href: `?user=${segment(id)}` }, id), about);
}

/** Everybody in a segment, page by page; `progress(looked, found)` hears how far it is. */
async function everybody(one, progress, signal) {
  const size = { of: one.version, at: now(), looked: 0, members: [], whole: true };
  let after;
  do {
    const page = await api.members(one.id, { limit: PAGE, after }, signal);
    size.looked += page.looked_at;
    size.members.push(...page.user_ids);
    progress(size.looked, size.members.length);
    after = page.next;
  } while (after);
  sizes.set(one.id, size);
  return size;
}

function save(one, members) {
  const address = URL.createObjectURL(new Blob([JSON.stringify({ segment: one.id, user_ids: members })], { type: "application/json" }));
  h("a", { href: address, download: `${one.id.replace(/[^\w.-]+/g, "_")}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function summary(size) {
  const { at, looked, members, whole } = size;
  const share = looked ? percent(members.length / looked) : "0%";
  return h("div", { class: "figures" },
    h("div", { class: "figure" }, h("b", {}, whole ? count.format(members.length) : share),
      whole ? ` ${members.length === 1 ? "person" : "people"}, ${share} of everybody` : " of people are in it"),
    h("p", { class: "note" }, whole ? [`All ${plural(looked, "person", "people")} were looked at `, since(at), "."]
      : `${count.format(members.length)} of the first ${count.format(looked)} by id. Save all ids, and everybody is counted.`));
}

function membersPanel(one, tools) {
  const place = h("div", { class: "found" });
  const progress = h("span", { class: "note", "aria-live": "polite" });
  const leave = new AbortController();
  const stop = button("quiet", { hidden: "", onclick: () => leave.abort() }, "Stop");
  const render = (size) => {
    const shown = size.members.slice(0, SHOWN);
    return [summary(size), shown.length ? h("ul", { class: "members" }, shown.map(member))
      : h("p", { class: "empty" }, "Nobody of those is in it.", h("small", {}, "Who refuses personalization is in no segment."))];
  };
  const whole = async () => {
    const both = AbortSignal.any([tools.signal, leave.signal]);
    const tell = (looked, found) => (progress.textContent = `${count.format(looked)} looked at, ${count.format(found)} in it`);
    const size = await everybody(one, tell, both);
    save(one, size.members);
    return size;
  };
  const all = async () => {
    [go.disabled, stop.hidden] = [true, false];
    await fill(place, whole, render, AbortSignal.any([tools.signal, leave.signal]));
    [go.disabled, stop.hidden] = [false, true];
    place.removeAttribute("aria-busy");
  };
  const go = button("quiet", { "data-act": "save", onclick: all }, "Save all ids");
  fill(place, async () => (known(one)?.whole && known(one)) || look(one, tools.signal), render, tools.signal);
  return h("section", { class: "panel" },
    h("header", {}, h("h3", {}, "Who is in it"), h("div", { class: "acts" }, progress, stop, go)), place,
    h("small", { class: "foot" }, "For very many people: ", h("code", {}, `bespoke members ${one.id} --to FILE.parquet`)));
}

// ----------------------------------------------------------------------------------------------------------- one of them

/** Items as pictures with their names, which are asked for as far as this key may read them. */
function goods(ids) {
  for (const id of ids) if (!catalogue.has(id)) api.item(id).then(learn, () => null);
  return h("ul", { class: "goods" }, ids.map((id) => h("li", {}, tile(catalogue.get(id) ?? { item_id: id }), title(id))));
}

function detail(one, tools) {
  const likes = one.prototypes?.length > 0 && [h("h4", {}, "Likes what these items stand for"), goods(one.prototypes),
    h("dl", {}, facts({ Likeness_at_least: one.min_cosine.toFixed(3), ...(one.partition && { Nearest_of: one.partition }) }))];
  const head = h("section", { class: "panel lead" },
    h("header", {}, h("h2", { tabindex: -1 }, one.id), !on(one) && chip("off")), one.description && h("p", {}, one.description),
    one.problem && h("div", { class: "alarm" }, h("strong", {}, "It does not fit what is in service"), h("p", {}, one.problem)),
    one.when && [h("h4", {}, likes ? "Who" : "Everybody of whom this holds"), outline(one.when)], likes,
    h("small", {}, `Version ${one.version}, changed by ${one.updated_by} `, since(one.updated_at)));
  const use = panel("Use it", "In the condition of a rule, content, experiment or another segment",
    h("pre", { tabindex: 0 }, JSON.stringify({ attribute: "user.segment", op: "in", value: [one.id] })));
  return [h("div", { class: "stack" }, head, on(one) && !one.problem && membersPanel(one, tools), use,
    changes(one.id, { segment: "" }, tools.signal))];
}

// --------------------------------------------------------------------------------------------------- groups without name

function keep(group, tools) {
  const suggested = group.name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || group.segment.id;
  return ask({
    title: "Keep this group as a segment?", label: "Keep it",
    text: [`${plural(group.people, "person", "people")} of those who were active last: ${group.name}. It holds people by the items they like, so it outlives the release.`],
    fields: [textField("id", "Name of the segment", { required: "", maxlength: 128, value: suggested })],
    act: ({ id, reason }) => api.write("segments", { ...group.segment, id, version: 0 }, reason).then((answer) => {
      location.hash = `#segments/${segment(id)}`;
      return answer;
    }),
  }, tools);
}

function groupRow(group, tools) {
  const bar = h("i", { class: "bar" });
  bar.style.setProperty("--share", group.share);
  return h("li", { "data-group": group.segment.id },
    h("b", {}, group.name), button("quiet", { onclick: () => keep(group, tools), "aria-label": `Keep as a segment: ${group.name}` }, "Keep"), bar,
    h("small", {}, `${plural(group.people, "person", "people")}, ${percent(group.share)}. A segment would match it to ${percent(group.agreement)}.`));
}

/** Proposes groups of the people who were active last, by what they do. */
function more(tools) {
  const place = h("div", { class: "found" });
  const render = ({ people, clusters }) => [h("small", {}, `Of ${plural(people, "person", "people")} who were active last`),
    h("ul", { class: "groups" }, clusters.map((group) => groupRow(group, tools)))];
  const select = h("select", { id: "clusters", onchange: () => (groups.count = Number(select.value)) },
    [4, 8, 12, 20].map((many) => new Option(`${many} groups`, many, many === groups.count, many === groups.count)));
  const read = async () => (groups.found = await api.clusters(groups.count));
  const go = button("quiet", { "data-act": "find", onclick: () => fill(place, read, render, tools.signal) }, "Find");
  if (groups.found) place.append(...render(groups.found));
  return [h("section", { class: "proposals" }, h("h3", {}, "Groups nobody has named"), h("p", { class: "note" }, "By where the model sees people, named by what they do more than others."),
    h("div", { class: "acts" }, h("label", { for: "clusters", class: "sr" }, "How many groups"), select, go), place)];
}

export const segments = board({
  kind: "segments", title: "Segments", needs: "the scopes policy and read", row, detail, nothing, more, listed: measure,
});
