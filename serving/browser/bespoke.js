/* Bespoke in the browser: sends what people do, fills placements and contents, shows alerts; docs/browser.md tells how.
   Nothing is kept, sent or personalized before there is consent. */
(() => {
"use strict";
if (window.bespoke) return;
const own = document.currentScript, set = own.dataset, base = new URL(".", own.src), channel = set.channel || "web";
const random = () => crypto.getRandomValues(new Uint32Array(4)).join("-");
const quiet = () => {};

/* What is kept between pages; in memory alone where the browser refuses. */
let memory = {};
const read = (name) => {
  try { return JSON.parse(localStorage.getItem("bespoke." + name)) ?? memory[name]; } catch { return memory[name]; }
};
const write = (name, value) => {
  memory[name] = value;
  try { localStorage.setItem("bespoke." + name, JSON.stringify(value)); } catch { /* full, or forbidden */ }
};
const queue = () => read("queue") ?? [];
const forget = () => {
  memory = {};
  try { for (const name of ["queue", "user", "consent"]) localStorage.removeItem("bespoke." + name); } catch { /* forbidden */ }
};

let allowed = {}, user = set.user, failures = 0, timer, sending;
const passing = "anon-" + random(); // of this page alone, where nothing may be kept
const known = () => allowed.personalization || allowed.analytics;
const who = () => {
  if (user || !known()) return user || passing;
  if (!read("user")) write("user", "anon-" + random());
  return read("user");
};
const call = async (path, body, options) => {
  const headers = { ...(body && { "content-type": "application/json" }), ...(set.key && { "x-api-key": set.key }) };
  const reply = await fetch(new URL(path, base), { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), credentials: "omit", ...options });
  if (!reply.ok) throw Object.assign(new Error(path), { status: reply.status });
  return reply.json();
};

/* Events wait until the service has acknowledged them; by their ids it tells repeats. */
const later = (ms) => { timer ??= setTimeout(() => { timer = undefined; flush(); }, ms); };
const track = (event_type, item_id, more) => {
  if (!known() || !item_id) return;
  write("queue", [...queue(), { event_id: random(), user_id: who(), item_id, event_type, timestamp: new Date().toISOString(), channel, ...more }].slice(-500));
  later(1500);
};
const drop = (events) => known() && write("queue", queue().filter((one) => !events.some((gone) => gone.event_id === one.event_id)));
const flush = async () => {
  const events = queue().slice(0, 100);
  if (sending || !events.length || !known()) return;
  sending = true;
  try {
    await call("v1/events", { events });
    drop(events);
    failures = 0;
  } catch ({ status }) {
    failures += 1;
    // If one of them is wrong, none was taken: each by itself, and the wrong one goes.
    if (status === 422) for (const one of events) await call("v1/events", one).then(() => drop([one]), (error) => error.status === 422 && drop([one]));
  }
  sending = false;
  if (queue().length) later(failures && Math.min(300000, 1000 * 2 ** failures));
};
/* On leave: a beacon, or a request that outlives the page where a key or another origin needs one. A beacon is not
   acknowledged: the next page sends the same again. */
const leave = () => {
  const events = queue().slice(-50);
  if (!events.length || !known()) return;
  if (set.key || base.origin !== location.origin) call("v1/events", { events }, { keepalive: true }).then(() => drop(events), quiet);
  else navigator.sendBeacon(new URL("v1/events", base), new Blob([JSON.stringify({ events })], { type: "application/json" }));
};

/* Text stays text, and addresses are those of the web; no text is no address, not this page's own. */
const address = (text) => {
  try { const url = new URL(text, location.href); return text && /^https?:$/.test(url.protocol) ? url.href : ""; } catch { return ""; }
};
const point = (node, name, text) => {
  node[name] = address(text);
  if (!node.getAttribute(name)) node.removeAttribute(name);
};
const fill = (root, data) => {
  const value = (name) => data[name] ?? data.attributes?.[name] ?? "";
  for (const node of [root, ...root.querySelectorAll("*")]) {
    const { bespokeText, bespokeHref, bespokeSrc } = node.dataset;
    if (bespokeText) node.textContent = value(bespokeText);
    if (bespokeHref) point(node, "href", value(bespokeHref));
    if (bespokeSrc) { point(node, "src", value(bespokeSrc)); node.hidden = !node.src; }
  }
};
const make = (name, text, more) => Object.assign(document.createElement(name), { textContent: text }, more);
const tell = (target, name, detail) => target.dispatchEvent(new CustomEvent("bespoke:" + name, { bubbles: true, cancelable: true, detail }));
const asking = () => ({ user_id: who(), context: { channel }, personalized: !!allowed.personalization });
const placement = async (element) => {
  const { bespokePlacement, k, anchor } = element.dataset;
  const answer = await call("v1/recommendations", { ...asking(), placement: bespokePlacement, fields: true, k: +k || undefined, anchor: anchor || undefined });
  if (!tell(element, "list", answer)) return;
  element.hidden = !answer.items.length;
  const template = element.querySelector("template");
  for (const old of element.querySelectorAll("[data-bespoke-item]")) old.remove();
  for (const { item, item_id, position } of answer.items) {
    const href = address(item?.attributes.link ?? item?.attributes.url);
    const node = template ? document.importNode(template.content, true).firstElementChild : make("a", item?.title || item_id, href && { href });
    fill(node, { item_id, ...item });
    Object.assign(node.dataset, { bespokeItem: item_id, position, recommendation: answer.recommendation_id });
    element.append(node);
    seen.observe(node);
  }
  tell(element, "filled", answer);
};
const contents = async (elements) => {
  if (!elements.length) return;
  const { decisions } = await call("v1/decisions", { ...asking(), contents: [...new Set(elements.map((one) => one.dataset.bespokeContent))] });
  for (const element of elements) {
    const found = decisions.find((one) => one.content === element.dataset.bespokeContent);
    element.hidden = !found?.payload;
    if (element.hidden || !tell(element, "content", found)) continue;
    fill(element, found.payload);
    element.dataset.recommendation = found.recommendation_id;
  }
};
const all = (name) => [...document.querySelectorAll(`[data-bespoke-${name}]`)];
const refresh = () => Promise.allSettled([...all("placement").map(placement), contents(all("content"))]);

/* Alerts; a page that shows them itself prevents the event. */
const alerts = async (trigger) => {
  if (!allowed.marketing || set.alerts === "off") return;
  const query = new URLSearchParams({ user_id: who(), channel, ...(trigger && { trigger }) });
  for (const alert of (await call("v1/alerts?" + query)).alerts) if (tell(document, "alert", alert)) show(alert);
};
const show = ({ payload, items, content, recommendation_id }) => {
  const box = make("div", "", { className: "bespoke-alert", role: "dialog", ariaLabel: payload.title ?? "Message" });
  box.style = "position: fixed; right: 1rem; bottom: 1rem; max-width: 22rem; padding: 1rem; background: #fff; color: #111; z-index: 9999";
  const text = [payload.title, payload.text, ...items.map((item) => item.title)].filter(Boolean).join(" · ");
  box.append(make("p", text), make("button", "×", { ariaLabel: "Close", onclick: () => box.remove() }));
  const href = address(payload.link);
  if (href) box.append(make("a", payload.button ?? "Show", { href, onclick: () => track("click", "content:" + content, { recommendation_id }) }));
  document.body.append(box);
};

/* What people do. */
const about = ({ dataset: { recommendation, position } }) => ({ recommendation_id: recommendation, position: position && +position });
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    track("impression", target.dataset.bespokeItem, about(target));
  }
}, { threshold: 0.5 });
addEventListener("click", ({ target }) => {
  const node = target.closest?.("[data-bespoke-item], [data-bespoke-content]");
  if (node) track("click", node.dataset.bespokeItem ?? "content:" + node.dataset.bespokeContent, about(node));
}, true);
let viewed, since, left, resting;
const dwell = () => {
  const spent = since ? performance.now() - since : 0;
  if (spent > 1000) track("dwell", viewed, { value: Math.round(spent / 100) / 10 });
  since = undefined;
};
const view = (item, more) => { dwell(); viewed = item; since = performance.now(); track("view", item, more); };
addEventListener("visibilitychange", () => {
  if (document.hidden) { dwell(); leave(); } else if (viewed) since = performance.now();
});
addEventListener("pagehide", () => { dwell(); leave(); });
addEventListener("online", () => { failures = 0; flush(); });
addEventListener("mouseout", ({ relatedTarget, clientY }) => {
  if (left || relatedTarget || clientY > 0) return;
  left = true;
  alerts("exit_intent").catch(quiet);
});
const wake = () => { clearTimeout(resting); resting = setTimeout(() => alerts("idle").catch(quiet), 1000 * (set.idle || 60)); };
for (const name of ["pointerdown", "keydown", "scroll"]) addEventListener(name, wake, { passive: true });

const consent = async (given) => {
  allowed = given;
  if (known()) write("consent", given); else forget();
  await refresh();
  flush();
  wake();
  await alerts().catch(quiet);
};
const begin = () => {
  const said = set.consent?.split(" ").map((name) => [name, true]);
  consent(said ? Object.fromEntries(said) : read("consent") ?? {});
  const [page] = all("view");
  if (page) view(page.dataset.bespokeView);
};
window.bespoke = { consent, identify: (id) => { user = id; return refresh(); }, track, view, refresh, flush, alerts };
document.readyState === "loading" ? addEventListener("DOMContentLoaded", begin) : begin();
})();
