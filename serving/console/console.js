/* The console over the public HTTP API: the page on which a person watches a list follow what they do, and pages where people
   oversee what the policy does. This module holds the first one's side panel, its open item, what a click sets off, and the
   wiring; the others hold one noun each. */

import { combobox, goods, people } from "./combobox.js";
import { drafts } from "./drafts.js";
import { $, button, count, empty, facts, h, meta, milliseconds, since, tile, toast, words } from "./elements.js";
import { experiments } from "./experiments.js";
import { ACTIONS, compare, renderList } from "./lists.js";
import { follow } from "./pages.js";
import { problem } from "./problem.js";
import { segments } from "./segments.js";
import { STRANGER, api, segment } from "./service.js";
import { applyLight, catalogue, context, draw, learn, light, offer, state, title, titleOf } from "./state.js";
import { renderTrace } from "./trace.js";

const LIST_LENGTH = 10;
const HISTORY_LENGTH = 60;
const VERBS = { view: "viewed", click: "clicked", cart: "put in the cart", purchase: "bought", rating: "rated" };
const lists = ["personalized", "baseline"].map((name) => ({ root: $(name), answer: null, scope: null }));

// --------------------------------------------------------------------------------------------------- person and status

function historyRow({ item_id, event_type, timestamp, value, title: name }) {
  if (name) learn({ item_id, title: name });
  const what = `${VERBS[event_type] ?? words(event_type).toLowerCase()}${event_type === "rating" ? ` ${value}` : ""}, `;
  return h("li", { "data-item-id": item_id, "data-event": event_type },
    button("link", { onclick: () => light(item_id), title: "Show what followed from this" }, title(item_id)),
    h("small", {}, what, since(timestamp)));
}

function renderProfile({ attributes, history, events }) {
  const rows = history.slice(0, HISTORY_LENGTH).map(historyRow);
  $("history-note").textContent = events ? `${count.format(events)} event${events === 1 ? "" : "s"}` : "";
  $("attributes").replaceChildren(...facts(attributes));
  const nothing = empty("li", "Nothing yet.", "Click an item, and the list will follow.");
  $("history").replaceChildren(...(rows.length ? rows : [nothing]));
  for (const name of ["channel", "device", "country"]) if (attributes[name]) offer($(name), String(attributes[name]));
}

const isKnown = ({ attributes, history }) => history.length > 0 || Object.keys(attributes).length > 0;

function renderStatus(answer, took) {
  $("status").replaceChildren(
    h("span", { title: "Model version" }, "Model ", h("b", {}, answer.model_version)),
    h("span", {}, "Policy ", h("b", {}, String(answer.policy_version))),
    h("span", { title: "Round trip of the last list, as the browser saw it" }, "Answer ", h("b", {}, milliseconds(took))),
    ...answer.degraded.map((flag) => h("span", { class: "flag" }, `degraded: ${words(flag).toLowerCase()}`)));
}

const renderProblem = (root, error) => root.replaceChildren(problem(root.tagName === "OL" ? "li" : "div", error, refresh));

// ---------------------------------------------------------------------------------------------------------------- item

function renderItem(item, near) {
  const alike = near.map(({ item_id: id }) =>
    h("li", {}, button("mini", { onclick: () => visit(id) }, tile(catalogue.get(id)), title(id))));
  const acts = ACTIONS.slice(1).map(([type, label]) =>
    button("quiet", { "data-action": type, onclick: () => send(type, item.item_id) }, label));
  const name = h("div", {}, h("h2", { id: "item-title" }, titleOf(item.item_id)), h("p", { class: "meta" }, meta(item)));
  return [h("header", {}, tile(item), name), item.description && h("p", {}, item.description),
    h("dl", {}, facts(item.attributes)), h("div", { class: "acts" }, acts),
    alike.length && h("h3", {}, "Similar items"), h("ul", { class: "near" }, alike)].filter(Boolean);
}

/** Opens one item; looking at it is an event like any other. */
async function visit(id) {
  const dialog = $("item");
  const close = button("close", { onclick: () => dialog.close(), "aria-label": "Close" }, "×");
  if (!dialog.open) dialog.showModal();
  try {
    const alike = api.similar({ item_id: id, k: 4, fields: true }).catch(() => ({ items: [] }));
    const [item, near] = await Promise.all([api.item(id), alike]);
    [item, ...near.items.map((entry) => ({ item_id: entry.item_id, ...entry.item }))].forEach(learn);
    dialog.replaceChildren(close, ...renderItem(item, near.items));
    close.focus();
    await send("view", id);
  } catch (error) {
    renderProblem(dialog, error);
    dialog.prepend(close);
  }
}

// ------------------------------------------------------------------------------------------------------------- actions

async function timed(promise) {
  const started = performance.now();
  return { answer: await promise, took: performance.now() - started };
}

/** Asks for both lists and the profile again; true if this was still the newest question when the answers came. */
async function refresh() {
  state.pending?.abort();
  const { signal } = (state.pending = new AbortController());
  const filter = state.category ? { attribute: "categories", op: "contains", value: state.category } : null;
  const ask = { user_id: state.person, k: LIST_LENGTH, context: context(), filter, fields: true };
  document.body.setAttribute("aria-busy", "true");
  const [personal, everyone, profile] = await Promise.allSettled([
    timed(api.recommend({ ...ask, explain: true }, signal)),
    api.recommend({ ...ask, personalized: false }, signal),
    api.profile(state.person, signal),
  ]);
  if (signal.aborted) return false;
  document.body.removeAttribute("aria-busy");
  settle(profile, renderProfile, $("history"), () => renderProfile(STRANGER));
  settle(personal, renderAnswer, lists[0].root, () => {
    lists[0].answer = null;
    renderTrace($("trace"), { items: [] });
    $("status").replaceChildren(h("span", { class: "flag" }, "no answer"));
  });
  settle(everyone, (answer) => renderList(lists[1], answer, send), lists[1].root, () => (lists[1].answer = null));
  compare(lists, profile.status === "rejected" || isKnown(profile.value));
  applyLight();
  return [personal, everyone, profile].every(({ status }) => status === "fulfilled");
}

function renderAnswer({ answer, took }) {
  renderList(lists[0], answer, send);
  renderTrace($("trace"), answer);
  renderStatus(answer, took);
}

function settle({ status, value, reason: error }, render, root, clear) {
  if (status === "fulfilled") return render(value);
  clear();
  return renderProblem(root, error);
}

async function send(event_type, item_id, origin = {}) {
  const started = performance.now();
  const { channel = null, ...rest } = context();
  try {
    const who = { user_id: state.person, session_id: state.session, channel, context: rest };
    await api.send({ ...who, item_id, event_type, ...origin });
    if (await refresh()) toast(`Event durable, list rebuilt in ${milliseconds(performance.now() - started)}`);
  } catch (error) {
    toast(error.message, "error");
  }
}

function become(person) {
  state.person = $("person").value = person;
  state.lit = null;
  $("personalized-title").textContent = `For ${person}`;
  history.replaceState(null, "", `?user=${segment(person)}${location.hash}`);
  return refresh();
}

// -------------------------------------------------------------------------------------------------------------- wiring

function show(view) {
  document.body.dataset.view = view;
  for (const node of document.querySelectorAll("[data-show]")) node.setAttribute("aria-pressed", node.dataset.show === view);
}

let started = false;

/** Lists are asked for when somebody first looks at them: a key for the policy alone opens the other pages without them. */
async function start() {
  if (started) return;
  started = true;
  combobox($("person"), { options: people, choose: become, rest: () => state.person });
  combobox($("search"), { options: goods, choose: visit, rest: () => "" });
  $("new-visitor").addEventListener("click", () => become(draw("visitor")));
  $("category").addEventListener("change", ({ target }) => ((state.category = target.value), refresh()));
  $("context").addEventListener("change", ({ target }) => target.id === "category" || refresh());
  $("item").addEventListener("click", ({ target }) => target === $("item") && target.close());
  document.querySelectorAll("[data-show]").forEach((node) => node.addEventListener("click", () => show(node.dataset.show)));
  // Their categories fill the filter; the lists add what else they show.
  api.items("", 100).then(({ items }) => items.forEach(learn), () => null);
  const asked = new URLSearchParams(location.search).get("user");
  const known = asked ? [] : await api.users().then(({ users }) => users, () => []);
  await become(asked || known[0]?.user_id || draw("visitor"));
}

const listsPage = { title: "", needs: "the scopes read and events", show: start };
follow({ lists: listsPage, experiments, drafts, segments });
