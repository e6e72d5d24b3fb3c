// The details of a notification: every step and attempt of each delivery, updated live.

import { get, post, subscribe } from "./api.js";
import { badge, duration, h, show, time } from "./dom.js";
import { attempt, confirmed, every, showRejection } from "./pages.js";

const FINAL = new Set(["sent", "failed", "expired", "cancelled"]);
const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const REASONS = { opted_out: "the user has opted out of this channel", requested: "requested by a client" };

/** Show the details page. */
export function details({ main, signal, id, state }) {
  const problem = h("p", { className: "problem", role: "alert" });
  const place = h("div", {}, h("p", { className: "empty", "aria-busy": "true" }, "Loading…"));
  main.append(h("h1", {}, "Notification"), problem, place);
  const showMissing = () => {
    place.replaceChildren();
    problem.replaceChildren(`No notification has the ID ${id}. `, h("a", { href: "#/notifications" }, "Search all notifications"));
  };
  if (!ID.test(id)) showMissing();
  else follow(id, signal, (notification) => showDetails(place, notification, state, signal), showMissing);
}

/** Call `update` with the notification now and after each change, or `onMissing` if it does not exist. */
export function follow(id, pageSignal, update, onMissing = () => {}) {
  const following = new AbortController();
  const { signal } = following;
  pageSignal.addEventListener("abort", () => following.abort(), { signal });
  const handle = (problem) => {
    if (problem.status !== 404) return false;
    following.abort();
    onMissing();
    return true;
  };
  let loading = false;
  let outdated = false;
  async function load() {
    if (loading) { outdated = true; return; }
    loading = true;
    try {
      do {
        outdated = false;
        await attempt(async () => update(await get(`v1/notifications/${id}`)), signal, handle);
      } while (outdated && !signal.aborted);
    } finally {
      loading = false;
    }
  }
  // Events report changes at once; the timer finds changes whose events were lost.
  subscribe({ notification_id: id }, load, signal);
  every(5000, signal, load);
}

/** Show a notification and its deliveries in `place`. */
export function showDetails(place, notification, state, signal) {
  const links = state.links();
  show(place, JSON.stringify([notification, links]), [
    h("dl", { className: "facts" },
      fact("ID", h("code", {}, notification.id)),
      fact("Status", badge(notification.status)),
      fact("User", h("a", { href: `#/notifications?${new URLSearchParams({ user_id: notification.user_id })}` }, notification.user_id)),
      fact("Accepted", time(notification.created_at)),
      notification.reference && fact("Reference", notification.reference),
      notification.send_at && fact("Scheduled for", time(notification.send_at)),
      notification.expires_at && fact("Expires", time(notification.expires_at)),
      notification.test && fact("Test", "It was posted with a test key, so it is only simulated."),
      notification.subject && fact("Subject", notification.subject),
      fact("Message", h("span", { className: "message" }, notification.message)),
      notification.metadata && fact("Metadata", Object.entries(notification.metadata).map(([name, value]) => `${name}: ${value}`).join(", ")),
      notification.trace_id && fact("Trace", links.trace
        ? h("a", { href: links.trace.replace("{trace_id}", notification.trace_id), rel: "noreferrer" }, h("code", {}, notification.trace_id))
        : h("code", {}, notification.trace_id))),
    notification.deliveries.some((delivery) => delivery.status === "pending") && notification.send_at && new Date(notification.send_at) > new Date()
      && h("p", { className: "actions" }, h("button", { onclick: () => cancel(notification, signal) }, "Cancel…")),
    notification.deliveries.map((delivery) => deliveryHistory(notification, delivery, signal)),
  ]);
}

function fact(name, ...value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, ...value));
}

function deliveryHistory(notification, delivery, signal) {
  return h("section", { className: "history", "aria-label": `${delivery.channel} delivery` },
    h("h2", {}, `${delivery.channel} `, badge(delivery.status)),
    h("p", { className: "note" }, delivery.recipient ? `To ${delivery.recipient}. ` : "",
      "To find it in the logs, search for delivery_id: ", h("code", {}, delivery.id), " ",
      // Browsers offer the clipboard only to pages served over HTTPS or from localhost.
      navigator.clipboard && h("button", { className: "plain", onclick: (event) => copy(event.target, delivery.id) }, "Copy ID")),
    h("ol", { className: "steps" }, steps(notification, delivery)),
    delivery.status === "failed"
      && h("p", { className: "actions" }, h("button", { className: "primary", onclick: () => retry(delivery, signal) }, "Retry…")));
}

function steps(notification, delivery) {
  const accepted = step(notification.created_at, "accepted", "Accepted and stored in the outbox");
  const earlier = delivery.earlier_attempts > 0
    && h("li", {}, h("span"), h("span", { className: "note" }, `${delivery.earlier_attempts.toLocaleString()} earlier attempts are not shown`));
  const attempts = delivery.attempts.map((each) => step(each.started_at, each.outcome, h("strong", {},
    `Attempt ${each.number}`), each.round > 1 ? ` (round ${each.round})` : "", " ", badge(each.outcome),
    ` in ${duration((new Date(each.finished_at) - new Date(each.started_at)) / 1000)}`,
    each.error_class ? h("span", { className: "error" }, ` ${each.error_class}: ${each.error_code ?? ""}`) : "",
    each.error_text ? h("q", {}, each.error_text) : "",
    each.provider_message_id ? h("span", { className: "note" }, ` · provider message ID ${each.provider_message_id}`) : "",
    each.next_attempt_at ? h("span", { className: "note" }, " · next attempt after ", time(each.next_attempt_at)) : ""));
  return [accepted, earlier, ...attempts, currentStep(notification, delivery)];
}

function currentStep(notification, delivery) {
  const reason = delivery.reason ? ` (${REASONS[delivery.reason] ?? delivery.reason})` : "";
  if (FINAL.has(delivery.status)) return step(delivery.updated_at, delivery.status, `Final status: ${delivery.status}${reason}`);
  const scheduled = notification.send_at && new Date(notification.send_at) > new Date();
  const next = scheduled ? "Waiting for its scheduled time" : `Waiting for the ${delivery.attempts.length ? "next" : "first"} attempt`;
  return step(scheduled ? notification.send_at : delivery.updated_at, "pending", next);
}

function step(at, kind, ...what) {
  return h("li", { className: kind }, time(at), h("span", {}, ...what));
}

async function retry(delivery, signal) {
  if (await confirmed("Retry this delivery?", `This starts a new round over ${delivery.channel} with a full set of attempts. The history is kept.`, "Retry")) {
    await attempt(() => post(`v1/deliveries/${delivery.id}/retry`), signal, showRejection);
  }
}

async function cancel(notification, signal) {
  if (await confirmed("Cancel this notification?", "Deliveries that are still in the outbox will not be sent. Deliveries that are already on their way cannot be stopped.", "Cancel notification")) {
    await attempt(() => post(`v1/notifications/${notification.id}/cancel`), signal, showRejection);
  }
}

async function copy(button, text) {
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
}
