/* The board: everything of one kind on the left, one of them on the right. What was shown stays when an answer does not
   come; the error then stands above it. */

import { $, empty, h, toast } from "./elements.js";
import { problem } from "./problem.js";
import { api, caller, segment } from "./service.js";

const narrow = matchMedia("(max-width: 900px)");
const waiting = (tag) => h(tag, { class: "empty", "aria-busy": "true" }, "Asking the service …");

export const panel = (title, note, ...content) =>
  h("section", { class: "panel" }, h("header", {}, h("h3", {}, title), note && h("p", {}, note)), content);
export const chip = (text, tone = "") => h("span", { class: `chip ${tone}`, "data-chip": tone || "plain" }, text);

/** Fills a place when an answer comes, and says what went wrong where none does, without losing what was there. */
export async function fill(root, ask, render, signal) {
  const tag = root.tagName === "UL" ? "li" : "div";
  root.querySelector(":scope > .problem")?.remove();
  if (!root.children.length) root.replaceChildren(waiting(tag));
  root.setAttribute("aria-busy", "true");
  try {
    const answer = await ask();
    if (!signal.aborted) root.replaceChildren(...[await render(answer)].flat(Infinity).filter(Boolean));
  } catch (error) {
    if (signal.aborted) return;
    root.querySelector(":scope > .empty[aria-busy]")?.remove();
    root.prepend(problem(tag, error, () => fill(root, ask, render, signal)));
  } finally {
    if (!signal.aborted) root.removeAttribute("aria-busy");
  }
}

/** A page of the console over one kind of things.

    `kind` is their noun in the API; `title`, `needs` as in pages.js; `row(one)` draws one of the list, `detail(one, tools)`
    the whole of it, `nothing()` what to do where there is none yet, `first(all)` which one is opened by itself, `more(tools)` what
    stands below the list; `listed(all, signal)` is called when the list stands. `tools.again()` reads everything anew,
    `tools.signal` tells when the page is left, `tools.did(sentence)` says what was done and reads anew. */
export function board({ kind, title, needs, row, detail, nothing, first = (all) => all[0], more = () => [], listed = () => null }) {
  const select = (all, id) => all.find((one) => one.id === id) ?? (id || narrow.matches ? undefined : first(all));

  const renderRow = (one, chosen) => {
    const current = one.id === chosen?.id && { "aria-current": "true" };
    return h("li", {}, h("a", { href: `#${kind}/${segment(one.id)}`, "data-id": one.id, ...current }, row(one)));
  };

  async function show(id, signal) {
    const fresh = $("all").dataset.kind !== kind;
    if (fresh) for (const name of ["all", "all-note", "all-more", "one"]) $(name).replaceChildren();
    $("all").dataset.kind = kind;
    $("all-title").textContent = title;
    document.body.dataset.chosen = id ? "one" : "none";
    const again = () => (signal.aborted ? null : show(id, signal));
    const tools = { again, signal, did: (sentence) => (toast(sentence), again()) };
    if (!$("all").children.length) $("all").replaceChildren(waiting("li"));
    try {
      const all = await api.documents(kind, signal);
      if (signal.aborted) return null;
      const chosen = select(all, id);
      renderAll(all, chosen, id);
      if (!$("all-more").children.length) $("all-more").replaceChildren(...more(tools));
      listed(all, signal);
      return await renderOne(all, chosen, id, tools);
    } catch (error) {
      if (signal.aborted) return null;
      return refused(error, tools);
    }
  }

  function renderAll(all, chosen, id) {
    const held = $("all").contains(document.activeElement) && document.activeElement.dataset.id;
    $("all-note").textContent = all.length ? String(all.length) : "";
    $("all").replaceChildren(...(all.length ? all.map((one) => renderRow(one, chosen)) : [empty("li", "None yet.")]));
    if (!all.length && !id) document.body.dataset.chosen = "both";
    if (held) $("all").querySelector(`[data-id="${CSS.escape(held)}"]`)?.focus();
  }

  /** The list did not come: what is shown of an earlier one stays below what went wrong. */
  function refused(error, { again }) {
    $("all").querySelector(":scope > .empty")?.remove();
    $("one").querySelector(":scope > .problem")?.remove();
    $("one").prepend(problem("div", error, again));
    if (!$("one").children[1]) document.body.dataset.chosen = "both";
  }

  async function renderOne(all, chosen, id, tools) {
    const root = $("one");
    const held = root.contains(document.activeElement) && document.activeElement.dataset.act;
    const name = `${kind}/${chosen?.id ?? id}`;
    const fresh = root.dataset.id !== name;
    if (fresh) root.replaceChildren();
    root.dataset.id = name;
    if (!chosen && !id) return root.replaceChildren(...(all.length ? [] : [nothing()]));
    const back = h("a", { class: "back", href: `#${kind}` }, title);
    const body = (one) => [back, ...detail(one, tools)];
    await fill(root, async () => chosen ?? (await api.document(kind, id, tools.signal)), body, tools.signal);
    if (fresh && narrow.matches && !tools.signal.aborted) {
      scrollTo(0, 0); // the list that led here is gone
      root.querySelector("h2")?.focus({ preventScroll: true });
    }
    if (held) (root.querySelector(`[data-act="${CSS.escape(held)}"]`) ?? root.querySelector("h2"))?.focus();
    return root;
  }

  return { title, needs, show };
}

/** How to begin where there is nothing yet: a sentence, and the call that makes the first one. */
export function begin(text, path, body) {
  const key = caller() === "local" ? [] : ["-H 'authorization: Bearer bk_…'"];
  const command = [`curl -X PUT ${new URL(path, document.baseURI)}`, ...key, "-H 'content-type: application/json'", `-d '${body}'`];
  return h("section", { class: "panel begin" }, h("h2", {}, text), h("pre", { tabindex: 0 }, command.join(" \\\n  ")),
    h("p", {}, h("a", { href: "docs" }, "The API with all its fields")));
}
