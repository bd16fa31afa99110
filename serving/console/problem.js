/* Problem: an error as the service words it, and what can be done about it. */

import { button, h, words } from "./elements.js";
import { useAnotherKey } from "./service.js";

/** Says what went wrong; `again()` tries once more, and where a scope is missing another key can be given first. */
export function problem(tag, error, again) {
  const { code, message, field, status } = error;
  const another = () => useAnotherKey().then(again, () => null);
  return h(tag, { class: "problem", role: "alert" },
    h("strong", {}, words(code ?? "unexpected")), h("p", {}, message), field && h("small", {}, `Field: ${field}`),
    h("div", { class: "acts" },
      status === 403 && button("quiet", { onclick: another }, "Use another key"),
      again && button("quiet", { onclick: again }, "Try again")));
}
