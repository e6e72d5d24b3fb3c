// Retry many failed deliveries: count them, ask for confirmation, then show the progress.

import { get, post } from "./api.js";
import { h } from "./dom.js";
import { attempt, confirmed } from "./pages.js";

const CHANNELS = ["telegram", "email", "webhook"];
const CLASSES = ["temporary", "permanent", "throttled", "timeout", "unreachable", "unknown", "poison"];
const HOURS = { "the last hour": 1, "the last 24 hours": 24, "the last week": 168 };
const POLL_INTERVAL = 500; // milliseconds

export function retry({ main, signal, query }) {
  const channel = choice("channel", CHANNELS, query.get("channel"));
  const errorClass = choice("error_class", CLASSES, query.get("error_class"));
  const since = h("select", { name: "since" }, Object.entries(HOURS).map(([label, hours]) =>
    h("option", { value: hours, selected: hours === 24 }, label)));
  const button = h("button", { className: "primary" }, "Count…");
  const result = h("p", { className: "result", role: "status" });
  const progress = h("progress", { hidden: true, "aria-label": "Deliveries queued for retry" });
  main.append(h("h1", {}, "Retry failed deliveries"),
    h("p", { className: "note" }, "Each matching delivery starts a new round with a full set of attempts and keeps its history. ",
      "To retry a single delivery, open its notification."),
    h("form", { className: "filters", onsubmit: submit },
      h("label", {}, "Channel ", channel), h("label", {}, "Error class ", errorClass),
      h("label", {}, "Accepted within ", since), button), result, progress);

  async function submit(event) {
    event.preventDefault();
    result.textContent = "";
    const now = new Date();
    const filters = {
      channel: channel.value || null,
      error_class: errorClass.value || null,
      created_after: new Date(now - since.value * 3_600_000).toISOString(),
      created_before: now.toISOString(),
    };
    button.disabled = true;
    await attempt(async () => {
      const { count } = await post("v1/retries/preview", filters);
      if (!count) result.textContent = "No failed deliveries match. Try a longer period, another channel or another error class.";
      else if (await confirmed(`Retry ${count.toLocaleString()} ${count === 1 ? "delivery" : "deliveries"}?`,
        "They are queued again in the background, in batches.", `Retry ${count.toLocaleString()}`)) await retryAll(filters, count);
    }, signal, (error) => {
      result.textContent = error.message;
      return [403, 422].includes(error.status);
    });
    button.disabled = false;
  }

  async function retryAll(filters, count) {
    let job = await post("v1/retries", filters);
    progress.hidden = false;
    progress.max = count;
    while (!signal.aborted) {
      progress.value = job.retried;
      result.textContent = `${job.retried.toLocaleString()} of ${count.toLocaleString()} queued for retry`;
      if (job.finished_at) break;
      await new Promise((resolve) => { setTimeout(resolve, POLL_INTERVAL); });
      job = await get(`v1/retries/${job.id}`);
    }
    progress.hidden = true;
  }
}

function choice(name, values, chosen) {
  return h("select", { name }, h("option", { value: "" }, "any"),
    values.map((value) => h("option", { value, selected: value === chosen }, value)));
}
