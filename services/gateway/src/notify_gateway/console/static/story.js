// One notification as a story: every step and every attempt of each delivery.

import { get, listen, post } from "./api.js";
import { badge, duration, h, show, time } from "./dom.js";
import { attempt, confirmed, every, refused } from "./pages.js";

const FINAL = new Set(["sent", "failed", "expired", "cancelled"]);
const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const REASONS = { opted_out: "the user does not want this channel", requested: "by a request" };

/** The page of one notification. */
export function notification({ main, signal, id, state }) {
  const missing = h("p", { className: "problem", role: "alert" });
  const place = h("div", {}, h("p", { className: "empty", "aria-busy": "true" }, "Loading …"));
  main.append(h("h1", {}, "Notification"), missing, place);
  const isMissing = () => {
    place.replaceChildren();
    missing.textContent = `There is no notification ${id}.`;
  };
  if (!ID.test(id)) isMissing();
  else follow(id, signal, (told) => tell(place, told, state, signal), isMissing);
}

/** Hand the notification to `told`, again and again as it changes; call `missing` where there is none. */
export function follow(id, shown, told, missing = () => {}) {
  const following = new AbortController();
  const { signal } = following;
  shown.addEventListener("abort", () => following.abort(), { signal });
  const known = (problem) => {
    if (problem.status !== 404) return false;
    following.abort();
    missing();
    return true;
  };
  let asking = false;
  let again = false;
  async function ask() {
    if (asking) { again = true; return; }
    asking = true;
    try {
      do {
        again = false;
        await attempt(async () => told(await get(`api/notifications/${id}`)), signal, known);
      } while (again && !signal.aborted);
    } finally {
      asking = false;
    }
  }
  // Events tell at once; a look now and then finds what no event has told.
  listen({ notification_id: id }, ask, signal);
  every(5000, signal, ask);
}

/** Show what is told of a notification in `place`. */
export function tell(place, told, state, signal) {
  const links = state.links();
  show(place, JSON.stringify([told, links]), [
    h("dl", { className: "facts" },
      fact("Id", h("code", {}, told.id)),
      fact("Status", badge(told.status)),
      fact("User", h("a", { href: `#/notifications?user_id=${told.user_id}` }, String(told.user_id))),
      fact("Accepted", time(told.created_at)),
      told.send_at && fact("Not before", time(told.send_at)),
      told.expires_at && fact("Expires", time(told.expires_at)),
      told.subject && fact("Subject", told.subject),
      fact("Message", h("span", { className: "message" }, told.message)),
      told.metadata && fact("Metadata", Object.entries(told.metadata).map(([name, value]) => `${name}: ${value}`).join(", ")),
      told.trace_id && fact("Trace", links.trace
        ? h("a", { href: links.trace.replace("{trace_id}", told.trace_id), rel: "noreferrer" }, h("code", {}, told.trace_id))
        : h("code", {}, told.trace_id))),
    told.deliveries.some((delivery) => delivery.status === "pending") && told.send_at && new Date(told.send_at) > new Date()
      && h("p", { className: "actions" }, h("button", { onclick: () => cancel(told, signal) }, "Cancel it …")),
    told.deliveries.map((delivery) => deliveryStory(told, delivery, signal)),
  ]);
}

function fact(name, ...value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, ...value));
}

function deliveryStory(told, delivery, signal) {
  return h("section", { className: "story", "aria-label": `Delivery over ${delivery.channel}` },
    h("h2", {}, `${delivery.channel} `, badge(delivery.status)),
    h("p", { className: "note" }, delivery.recipient ? `To ${delivery.recipient}. ` : "",
      "In the logs by its delivery_id: ", h("code", {}, delivery.id), " ",
      // Only a page that comes over HTTPS, or from this machine, may write to the clipboard.
      navigator.clipboard && h("button", { className: "plain", onclick: (event) => copy(event.target, delivery.id) }, "Copy id")),
    h("ol", { className: "steps" }, steps(told, delivery)),
    delivery.status === "failed"
      && h("p", { className: "actions" }, h("button", { className: "primary", onclick: () => retry(delivery, signal) }, "Retry …")));
}

function steps(told, delivery) {
  const accepted = step(told.created_at, "accepted", "Accepted: stored, with its place in the outbox");
  const attempts = delivery.attempts.map((each) => step(each.started_at, each.outcome, h("strong", {},
    `Attempt ${each.number}`), each.round > 1 ? ` (round ${each.round})` : "", " ", badge(each.outcome),
    ` after ${duration((new Date(each.finished_at) - new Date(each.started_at)) / 1000)}`,
    each.error_class ? h("span", { className: "error" }, ` ${each.error_class}: ${each.error_code ?? ""}`) : "",
    each.error_text ? h("q", {}, each.error_text) : "",
    each.provider_message_id ? h("span", { className: "note" }, ` as ${each.provider_message_id}`) : "",
    each.next_attempt_at ? h("span", { className: "note" }, " next not before ", time(each.next_attempt_at)) : ""));
  return [accepted, ...attempts, now(told, delivery)];
}

function now(told, delivery) {
  const reason = delivery.reason ? `: ${REASONS[delivery.reason] ?? delivery.reason}` : "";
  if (FINAL.has(delivery.status)) return step(delivery.updated_at, delivery.status, `Final: ${delivery.status}${reason}`);
  const scheduled = told.send_at && new Date(told.send_at) > new Date();
  const waits = scheduled ? "Waits for its time" : delivery.attempts.length ? "Waits for its next attempt" : "Waits for its turn";
  return step(scheduled ? told.send_at : delivery.updated_at, "pending", waits);
}

function step(at, kind, ...what) {
  return h("li", { className: kind }, time(at), h("span", {}, ...what));
}

async function retry(delivery, signal) {
  if (await confirmed("Retry this delivery?", `A new round over ${delivery.channel}, with a new budget of attempts. Its history stays.`, "Retry")) {
    await attempt(() => post(`api/deliveries/${delivery.id}/retry`), signal, refused);
  }
}

async function cancel(told, signal) {
  if (await confirmed("Cancel this notification?", "What no process has taken yet is not sent any more.", "Cancel it")) {
    await attempt(() => post(`api/notifications/${told.id}/cancel`), signal, refused);
  }
}

async function copy(button, text) {
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
}
