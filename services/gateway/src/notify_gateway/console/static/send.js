// A form that sends a notification and follows it to its end.

import { post } from "./api.js";
import { h } from "./dom.js";
import { attempt } from "./pages.js";
import { follow, tell } from "./story.js";

const CHANNELS = ["telegram", "email", "webhook"];

// `crypto.randomUUID` is not there on a page that comes over plain HTTP.
const unique = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function send({ main, signal, state }) {
  const user = h("input", { name: "user_id", inputMode: "numeric", pattern: "[1-9][0-9]{0,18}", required: true, value: "123" });
  const message = h("textarea", { name: "message", rows: 4, required: true, maxLength: 16384, value: "A test from the console." });
  const subject = h("input", { name: "subject", maxLength: 500 });
  const boxes = CHANNELS.map((channel) => h("input", { type: "checkbox", name: "channel", value: channel, checked: channel === "telegram" }));
  const recipients = CHANNELS.map((channel) => h("input", { name: `recipient-${channel}`, spellcheck: false, "aria-label": `Recipient of ${channel}`, placeholder: "as stored for the user" }));
  const button = h("button", { className: "primary" }, "Send");
  const problem = h("p", { className: "problem", role: "alert" });
  const story = h("div", { className: "followed", "aria-live": "polite" });
  let following = new AbortController();
  let idempotencyKey = null; // of what the form says now, until it is accepted
  signal.addEventListener("abort", () => following.abort());

  const form = h("form", { className: "send", onsubmit: submit, oninput: () => { idempotencyKey = null; } },
    h("label", {}, "User ", user),
    h("fieldset", {}, h("legend", {}, "Channels"), CHANNELS.map((channel, number) =>
      h("div", { className: "channel-choice" }, h("label", {}, boxes[number], ` ${channel}`), recipients[number]))),
    h("label", {}, "Subject ", subject),
    h("label", {}, "Message ", message),
    h("p", { className: "hint" }, "To try an error: ", h("code", {}, "permanent@simulator.invalid"), " by email, ",
      h("code", {}, "@simulator_temporary"), " by telegram."),
    h("p", { className: "actions" }, button), problem);
  main.append(h("h1", {}, "Send a test notification"), h("div", { className: "columns" }, form, story));

  async function submit(event) {
    event.preventDefault();
    problem.textContent = "";
    const channels = boxes.filter((box) => box.checked).map((box) => box.value);
    if (!channels.length) {
      problem.textContent = "Choose a channel.";
      boxes[0].focus();
      return;
    }
    const recipient = Object.fromEntries(CHANNELS.map((channel, number) => [channel, recipients[number].value.trim()])
      .filter(([channel, value]) => value && channels.includes(channel)));
    const request = { message: message.value, channels, subject: subject.value.trim() || null, recipient };
    // The id as it was typed: past 2^53 a number would not be the same.
    const body = `{"user_id": ${user.value.trim()}, ${JSON.stringify(request).slice(1)}`;
    button.disabled = true;
    idempotencyKey ??= unique();
    await attempt(async () => {
      const told = await post("api/notifications", body, { "Idempotency-Key": idempotencyKey });
      idempotencyKey = null;
      following.abort();
      following = new AbortController();
      story.dataset.shows = "";
      const page = following.signal;
      const place = h("div", {});
      story.replaceChildren(
        h("h2", {}, h("a", { href: `#/notifications/${told.id}` }, "What became of it")), place);
      tell(place, told, state, page);
      follow(told.id, page, (later) => tell(place, later, state, page));
    }, signal, (error) => {
      problem.textContent = error.message;
      return [403, 422, 429, 503].includes(error.status);
    });
    button.disabled = false;
  }
}
