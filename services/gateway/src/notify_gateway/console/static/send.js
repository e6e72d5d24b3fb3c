// Send a test notification and show its deliveries until they are final.

import { post } from "./api.js";
import { h } from "./dom.js";
import { attempt } from "./pages.js";
import { follow, showDetails } from "./details.js";

const CHANNELS = ["telegram", "email", "webhook"];

// Browsers do not offer `crypto.randomUUID` on pages that are served over plain HTTP.
const unique = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function send({ main, signal, state }) {
  const user = h("input", { name: "user_id", maxLength: 200, required: true, value: "123" });
  const message = h("textarea", { name: "message", rows: 4, required: true, maxLength: 16384, value: "A test from the console." });
  const subject = h("input", { name: "subject", maxLength: 500 });
  const boxes = CHANNELS.map((channel) => h("input", { type: "checkbox", name: "channel", value: channel, checked: channel === "telegram" }));
  const recipients = CHANNELS.map((channel) => h("input", { name: `recipient-${channel}`, spellcheck: false, "aria-label": `${channel} recipient`, placeholder: "leave empty to use the stored recipient" }));
  const button = h("button", { className: "primary" }, "Send");
  const problem = h("p", { className: "problem", role: "alert" });
  const result = h("div", { className: "sent-notification", "aria-live": "polite" });
  let following = new AbortController();
  let idempotencyKey = null; // reused for a repeat of the same form, replaced after a change or a success
  signal.addEventListener("abort", () => following.abort());

  const form = h("form", { className: "send", onsubmit: submit, oninput: () => { idempotencyKey = null; } },
    h("label", {}, "User ID ", user),
    h("fieldset", {}, h("legend", {}, "Channels"), CHANNELS.map((channel, number) =>
      h("div", { className: "channel-choice" }, h("label", {}, boxes[number], ` ${channel}`), recipients[number]))),
    h("label", {}, "Subject ", subject),
    h("label", {}, "Message ", message),
    h("p", { className: "hint" }, "To simulate an error, enter the email recipient ", h("code", {}, "permanent@simulator.invalid"),
      " or the telegram recipient ", h("code", {}, "@simulator_temporary"), "."),
    h("p", { className: "actions" }, button), problem);
  main.append(h("h1", {}, "Send a test notification"), h("div", { className: "columns" }, form, result));

  async function submit(event) {
    event.preventDefault();
    problem.textContent = "";
    const channels = boxes.filter((box) => box.checked).map((box) => box.value);
    if (!channels.length) {
      problem.textContent = "Choose at least one channel.";
      boxes[0].focus();
      return;
    }
    const to = Object.fromEntries(CHANNELS.map((channel, number) => [channel, recipients[number].value.trim()])
      .filter(([channel, value]) => value && channels.includes(channel)));
    const request = { user_id: user.value.trim(), message: message.value, channels, subject: subject.value.trim() || null, to };
    button.disabled = true;
    idempotencyKey ??= unique();
    await attempt(async () => {
      const notification = await post("v1/notifications", request, { "Idempotency-Key": idempotencyKey });
      idempotencyKey = null;
      following.abort();
      following = new AbortController();
      const page = following.signal;
      const place = h("div", {});
      result.replaceChildren(
        h("h2", {}, h("a", { href: `#/notifications/${notification.id}` }, "Notification details")), place);
      follow(notification.id, page, (latest) => showDetails(place, latest, state, page));
    }, signal, (error) => {
      problem.textContent = error.message;
      return [403, 422, 429, 503].includes(error.status);
    });
    button.disabled = false;
  }
}
