/* The service: its public HTTP API as the page uses it, the key it may ask for, and its one error shape as errors with
   `code`, `field`, `status`. */

import { $ } from "./elements.js";

const failure = ({ message, code = "unknown", field }, status = 0) => Object.assign(new Error(message), { code, field, status });

const KEY = "bespoke-api-key"; // in sessionStorage: gone with the tab
let asking = null;

/** Asks the person for an API key; rejects if they close the question. */
function askForKey() {
  const dialog = $("key");
  $("key-form").reset();
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      const text = $("key-text").value.trim();
      if (dialog.returnValue !== "use" || !text) return reject(failure({ code: "unauthorized", message: "An API key is needed." }, 401));
      sessionStorage.setItem(KEY, text);
      return resolve();
    }, { once: true });
  });
}

/** One call, by an address relative to the page: the console also works below a route prefix. */
async function call(method, path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const reply = await fetch(path, { method, headers, body: JSON.stringify(body), signal }).catch((cause) => {
    if (cause.name === "AbortError") throw cause;
    throw failure({ code: "unreachable", message: "The service cannot be reached. Is it running?" });
  });
  if (reply.status === 401) {
    // Several calls may wait for the one answer; and another call may have asked while this one was on its way.
    if (sessionStorage.getItem(KEY) === key) await (asking ??= askForKey().finally(() => (asking = null)));
    return call(method, path, body, signal);
  }
  const answer = await reply.json().catch(() => null);
  if (reply.ok && answer !== null) return answer;
  throw failure(answer?.error ?? { message: `The service answered ${reply.status} without a word.` }, reply.status);
}

/** What is known of a person nobody has heard of yet. */
export const STRANGER = { attributes: {}, history: [], events: 0 };

export const segment = encodeURIComponent;
export const api = {
  recommend: (body, signal) => call("POST", "v1/recommendations", body, signal),
  similar: (body) => call("POST", "v1/similar", body),
  send: (event) => call("POST", "v1/events", event),
  users: () => call("GET", "v1/users?limit=100"),
  items: (query, limit = 12) => call("GET", `v1/items?limit=${limit}&q=${segment(query)}`),
  item: (id) => call("GET", `v1/items/${segment(id)}`),
  profile: (id, signal) => call("GET", `v1/users/${segment(id)}/profile`, undefined, signal).catch((error) => {
    if (error.status === 404) return STRANGER;
    throw error;
  }),
};
