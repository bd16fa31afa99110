/* A step: something that a person decides, asked once more before it is done, with who does it and why. What was typed
   stays when the service refuses it. */

import { $, button, h, percent } from "./elements.js";
import { problem } from "./problem.js";
import { caller } from "./service.js";

const STEPS = [0.01, 0.05, 0.1, 0.25, 0.5, 1];

/** A share of the people, in percent, with the usual ones at hand; `say(share)` comments on what is chosen. */
export function shareField(label, share, say = () => "") {
  const input = h("input", {
    id: "step-share", name: "share", type: "number", min: "0.01", max: "100", step: "any", required: "", inputmode: "decimal",
    value: String(Number((share * 100).toPrecision(6))),
  });
  const note = h("p", { class: "note", "aria-live": "polite" }, say(share));
  const follow = () => {
    note.textContent = say(Number(input.value) / 100);
    for (const node of presets) node.setAttribute("aria-pressed", Number(node.dataset.share) * 100 === Number(input.value));
  };
  const presets = STEPS.map((one) => button("quiet", {
    "data-share": one, "aria-pressed": one === share, onclick: () => ((input.value = one * 100), follow()),
  }, percent(one)));
  input.addEventListener("input", follow);
  return h("div", { class: "field share" }, h("label", { for: "step-share" }, label),
    h("div", { class: "of" }, input, h("span", {}, "%")), h("div", { class: "presets" }, presets), note);
}

export const textField = (name, label, attributes = {}) =>
  h("div", { class: "field" }, h("label", { for: `step-${name}` }, label),
    h("input", { id: `step-${name}`, name, type: "text", autocomplete: "off", ...attributes }));

let kept = { title: "", reason: "" }; // what was said to a question that was refused

/** Asks whether to do it. `act(values)` gets what the fields say, and the reason if one was given; when it fails the question
    stays open. Resolves to what `act` resolved to, or to null if the person lets it be. Where somebody else was faster, all is
    read anew, and the same question finds the reason again. */
export function ask({ title, text = [], fields = [], label, tone = "", why = { maxlength: 500 }, act }, { again }) {
  const dialog = $("step");
  const trouble = h("div", { class: "trouble" });
  const go = h("button", { class: `primary ${tone}`, "data-act": "confirm" }, label);
  const leave = button("quiet", { onclick: () => dialog.close() }, "Not now");
  const form = h("form", { method: "dialog" },
    h("h2", { id: "step-title" }, title), [text].flat().map((one) => h("p", {}, one)), fields,
    textField("reason", why.required === undefined ? "Why, for the audit (optional)" : "Why, for the audit",
      { ...why, value: kept.title === title ? kept.reason : "" }),
    h("p", { class: "note" }, "The audit will name ", h("b", {}, caller() === "local" ? "local" : `key ${caller()}`),
      caller() === "local" ? ", as everybody where no keys are asked for." : "."),
    trouble, h("div", { class: "acts" }, go, leave));
  dialog.replaceChildren(form);
  dialog.showModal();
  let [done, doing, late] = [null, null, false];
  const attempt = async ({ share, reason, ...values }) => {
    go.disabled = true;
    try {
      done = await act({ ...values, reason: reason.trim() || undefined, share: share && Number(share) / 100 });
      kept = { title: "", reason: "" };
      dialog.close();
    } catch (error) {
      kept = { title, reason };
      late = error.status === 409;
      trouble.replaceChildren(problem("div", error));
    } finally {
      go.disabled = false;
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!go.disabled) doing = attempt(Object.fromEntries(new FormData(form)));
  });
  // Whoever closes the question while the service is at work still learns what came of it.
  return new Promise((resolve) => dialog.addEventListener("close", async () => {
    await doing;
    if (late && done === null) again();
    resolve(done);
  }, { once: true }));
}
