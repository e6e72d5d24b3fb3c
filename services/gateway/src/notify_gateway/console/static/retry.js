// Many failed deliveries at once: counted first, then put back, followed to the end.

import { get, post } from "./api.js";
import { h } from "./dom.js";
import { attempt, confirmed } from "./pages.js";

const CHANNELS = ["telegram", "email", "webhook"];
const CLASSES = ["temporary", "permanent", "throttled", "timeout", "unreachable", "unknown", "poison"];
const HOURS = { "the last hour": 1, "the last 24 hours": 24, "the last week": 168 };
const LOOK_AGAIN = 500; // milliseconds

export function retry({ main, signal, query }) {
  const channel = choice("channel", CHANNELS, query.get("channel"));
  const errorClass = choice("error_class", CLASSES, query.get("error_class"));
  const since = h("select", { name: "since" }, Object.entries(HOURS).map(([label, hours]) =>
    h("option", { value: hours, selected: hours === 24 }, label)));
  const button = h("button", { className: "primary" }, "Count …");
  const told = h("p", { className: "result", role: "status" });
  const progress = h("progress", { hidden: true, "aria-label": "Deliveries put back" });
  main.append(h("h1", {}, "Retry failed deliveries"),
    h("p", { className: "note" }, "All that match get a new round with a new budget of attempts; their history stays. ",
      "A single one is retried on its own page."),
    h("form", { className: "filters", onsubmit: submit },
      h("label", {}, "Channel ", channel), h("label", {}, "Error class ", errorClass),
      h("label", {}, "Accepted in ", since), button), told, progress);

  async function submit(event) {
    event.preventDefault();
    told.textContent = "";
    const now = new Date();
    const wanted = {
      channel: channel.value || null,
      error_class: errorClass.value || null,
      created_after: new Date(now - since.value * 3_600_000).toISOString(),
      created_before: now.toISOString(),
    };
    button.disabled = true;
    await attempt(async () => {
      const { count } = await post("api/deliveries/retry", { ...wanted, dry_run: true });
      if (!count) told.textContent = "No failed delivery matches.";
      else if (await confirmed(`Retry ${count.toLocaleString()} deliveries?`, "They are put back in the background, one part after the other.",
        `Retry ${count.toLocaleString()}`)) await putBack(wanted, count);
    }, signal, (error) => {
      told.textContent = error.message;
      return [403, 422].includes(error.status);
    });
    button.disabled = false;
  }

  async function putBack(wanted, count) {
    let job = await post("api/deliveries/retry", wanted);
    progress.hidden = false;
    progress.max = count;
    while (!signal.aborted) {
      progress.value = job.retried;
      told.textContent = `${job.retried.toLocaleString()} of ${count.toLocaleString()} put back`;
      if (job.finished_at) break;
      await new Promise((resolve) => { setTimeout(resolve, LOOK_AGAIN); });
      job = await get(`api/deliveries/retry/${job.id}`);
    }
    progress.hidden = true;
  }
}

function choice(name, values, chosen) {
  return h("select", { name }, h("option", { value: "" }, "any"),
    values.map((value) => h("option", { value, selected: value === chosen }, value)));
}
