/* The service: its public HTTP API as the pages use it, the key it may ask for, and its one error shape as errors with
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

export const useAnotherKey = () => (asking ??= askForKey().finally(() => (asking = null)));

/** Who the audit says we are: the id of the key, which stands in its text; where no keys are asked for everybody is local. */
export const caller = () => sessionStorage.getItem(KEY)?.split("_")[1] ?? "local";

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
    if (sessionStorage.getItem(KEY) === key) await useAnotherKey();
    return call(method, path, body, signal);
  }
  if (reply.status === 204) return null;
  const answer = await reply.json().catch(() => null);
  if (reply.ok && answer !== null) return answer;
  throw failure(answer?.error ?? { message: `The service answered ${reply.status} without a word.` }, reply.status);
}

/** What is known of a person nobody has heard of yet. */
export const STRANGER = { attributes: {}, history: [], events: 0 };

export const segment = encodeURIComponent;

/** Parameters of an address; those without a value are left out. */
const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

/** What a document says, without what the service says of it: what a change of it is written from. */
const written = ({ version, problem, warnings, updated_at, updated_by, ready_made, ...body }) => body;

export const api = {
  recommend: (body, signal) => call("POST", "v1/recommendations", body, signal),
  similar: (body) => call("POST", "v1/similar", body),
  send: (event) => call("POST", "v1/events", event),
  users: (limit = 100) => call("GET", `v1/users?limit=${limit}`),
  user: (id) => call("GET", `v1/users/${segment(id)}`),
  items: (text, limit = 12) => call("GET", `v1/items?limit=${limit}&q=${segment(text)}`),
  item: (id) => call("GET", `v1/items/${segment(id)}`),
  profile: (id, signal) => call("GET", `v1/users/${segment(id)}/profile`, undefined, signal).catch((error) => {
    if (error.status === 404) return STRANGER;
    throw error;
  }),

  documents: (kind, signal) => call("GET", `v1/${kind}`, undefined, signal).then((answer) => answer[kind]),
  document: (kind, id, signal) => call("GET", `v1/${kind}/${segment(id)}`, undefined, signal),
  /** Writes a document that was read before; refused if somebody else has changed it since. */
  write: (kind, one, reason) => {
    const address = `v1/${kind}/${segment(one.id)}${query({ expected_version: one.version, reason })}`;
    return call("PUT", address, written(one));
  },
  changes: (kind, id, signal) => call("GET", `v1/audit${query({ kind, id, limit: 20 })}`, undefined, signal),
  results: (id, by, signal) =>
    call("GET", `v1/experiments/${segment(id)}/results${query({ segment: by })}`, undefined, signal),
  simulate: (id, requests) => call("POST", `v1/drafts/${segment(id)}/simulate`, { requests, seconds: 8 }),
  approve: (id, reason) => call("POST", `v1/drafts/${segment(id)}/approve`, { reason }),
  release: (id, share, reason) => call("POST", `v1/drafts/${segment(id)}/release`, { share, reason }),
  drop: (id, reason) => call("DELETE", `v1/drafts/${segment(id)}${query({ reason })}`),
  rollBack: (id, reason) => call("POST", `v1/rules/${segment(id)}/rollback`, { reason }),
  members: (id, { limit, after }, signal) =>
    call("GET", `v1/segments/${segment(id)}/members${query({ limit, after })}`, undefined, signal),
  clusters: (count) => call("POST", "v1/segments/clusters", { count }),
};
