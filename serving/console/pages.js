/* Pages: which part of the console is shown, by what stands behind the hash of the address: a page, and one thing on it. */

import { $ } from "./elements.js";

/** Where the address leads: `#experiments/margin` is the page "experiments" and there the one called "margin". */
function place(pages) {
  const [name, ...rest] = location.hash.slice(1).split("/");
  try {
    return [pages[name] ? name : "lists", decodeURIComponent(rest.join("/"))];
  } catch {
    return [pages[name] ? name : "lists", ""];
  }
}

/** Follows the address. A page has a `title`, says which key it `needs`, and `show(id, signal)` is called when it is
    opened; the signal tells when it is left for another thing or page. */
export function follow(pages) {
  let leaving = new AbortController();
  const open = () => {
    leaving.abort();
    leaving = new AbortController();
    const [name, id] = place(pages);
    document.body.dataset.page = name;
    document.title = [pages[name].title, "Bespoke console"].filter(Boolean).join(" · ");
    $("key-needs").textContent = pages[name].needs;
    $("lists").hidden = name !== "lists";
    $("board").hidden = name === "lists";
    document.querySelectorAll(".pages a").forEach((link) => {
      if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    pages[name].show(id, leaving.signal);
  };
  addEventListener("hashchange", open);
  open();
}
