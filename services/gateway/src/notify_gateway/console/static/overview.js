// The state of the whole service, refreshed once a second.

import { get } from "./api.js";
import { chart, recent } from "./charts.js";
import { duration, h, show, time } from "./dom.js";
import { every } from "./pages.js";

const CHANNEL_FIGURES = [
  ["waiting", "waiting", "Messages in the channel's queue"],
  ["in_flight", "in flight", "Messages that senders have received and not yet acknowledged"],
  ["retrying", "retrying", "Messages in the channel's retry queues"],
  ["failed", "failed", "Failed deliveries among the newest 10,000"],
  ["consumers", "senders", "Senders that consume from the queue"],
];

export function overview({ main, signal, state }) {
  const tiles = h("dl", { className: "tiles" });
  const channels = h("div", { className: "channels" });
  const failures = h("div", {});
  const loading = h("p", { className: "empty", "aria-busy": "true" }, "Loading…");
  main.append(
    h("h1", { className: "visually-hidden" }, "Overview"), loading, tiles, channels,
    h("section", { "aria-labelledby": "failures" },
      h("h2", { id: "failures" }, "Failures among the newest 10,000 deliveries"), failures),
  );
  const cards = new Map();
  every(1000, signal, async () => {
    const current = await get("v1/overview");
    loading.remove();
    state.report(current);
    for (const channel of current.channels) channel.seconds = padded(channel.seconds);
    showTiles(tiles, current);
    for (const channel of current.channels) {
      if (!cards.has(channel.channel)) {
        cards.set(channel.channel, card(channel.channel));
        channels.append(cards.get(channel.channel).element);
      }
      const failed = current.failures.filter((each) => each.channel === channel.channel);
      cards.get(channel.channel).update({ ...channel, failed: failed.reduce((sum, each) => sum + each.count, 0) });
    }
    showFailures(failures, current.failures);
  }, (problem) => {
    if (problem.status !== 403) return false;
    loading.textContent = "";
    loading.removeAttribute("aria-busy");
    loading.append("The overview covers all tenants and needs a key with the scope operator. To see your own tenant, go to ",
      h("a", { href: "#/notifications" }, "Notifications"), ".");
    return true;
  });
}

/** Return lists of the same length, with null for each second in which nothing was counted yet. */
function padded(seconds) {
  const { length } = seconds.accepted;
  const pad = (values) => [...Array(length - values.length).fill(null), ...values];
  return Object.fromEntries(Object.entries(seconds).map(([name, values]) => [name, pad(values)]));
}

function total(channels, name) {
  return channels[0].seconds[name].map((_, second) => {
    const values = channels.map((channel) => channel.seconds[name][second]);
    return values.includes(null) ? null : values.reduce((sum, value) => sum + value, 0);
  });
}

function showTiles(tiles, current) {
  const latencies = current.channels.filter((channel) => channel.latency_p50 !== undefined);
  const slowest = (name) => Math.max(...latencies.map((channel) => channel[name]));
  const figures = [
    ["Accepted", `${recent(total(current.channels, "accepted"))}/s`, "deliveries, average over 10 s"],
    ["Sent", `${recent(total(current.channels, "sent"))}/s`, "deliveries, average over 10 s"],
    ["Latency", latencies.length ? duration(slowest("latency_p50")) : "–",
      latencies.length ? `p95 ${duration(slowest("latency_p95"))}, slowest channel` : "from acceptance to sent"],
    ["Outbox", current.outbox_rows.toLocaleString(),
      current.outbox_rows ? `oldest due for ${duration(current.outbox_oldest_seconds)}` : "nothing is waiting for RabbitMQ"],
    ["Results", current.results_waiting?.toLocaleString() ?? "–", "waiting for the status writer"],
    ["Dead letters", current.dead_letters?.toLocaleString() ?? "–",
      current.dead_letters ? "to see them, run notify-gateway dead list" : "messages that no service could process"],
  ];
  show(tiles, JSON.stringify(figures), figures.map(([name, value, note]) =>
    h("div", { className: "tile" }, h("dt", {}, name), h("dd", { className: "value" }, value), h("dd", { className: "note" }, note))));
}

function card(name) {
  const values = Object.fromEntries(CHANNEL_FIGURES.map(([figure]) => [figure, h("dd", {})]));
  const rates = chart(name);
  const latency = h("p", { className: "note" });
  const element = h("section", { className: "channel", "aria-label": name },
    h("h2", {}, name),
    h("dl", { className: "figures" }, CHANNEL_FIGURES.map(([figure, label, title]) =>
      h("div", { title, "data-figure": figure }, h("dt", {}, label), values[figure]))),
    rates.element, latency);

  function update(channel) {
    for (const [figure] of CHANNEL_FIGURES) values[figure].textContent = channel[figure]?.toLocaleString() ?? "–";
    element.classList.toggle("without-senders", channel.consumers === 0);
    rates.update(channel.seconds);
    latency.textContent = channel.latency_p50 === undefined ? "Nothing sent since you opened this page."
      : `Acceptance to sent: median ${duration(channel.latency_p50)}, 95th percentile ${duration(channel.latency_p95)}`;
  }
  return { element, update };
}

function showFailures(place, failures) {
  if (!failures.length) {
    show(place, "none", h("p", { className: "empty" }, "No failed deliveries. To see what a failure looks like, ",
      h("a", { href: "#/send" }, "send a test notification"), " that fails."));
    return;
  }
  const head = ["Channel", "Error class", "Error code", "Count", "Latest", ""];
  show(place, JSON.stringify(failures), h("div", { className: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name || h("span", { className: "visually-hidden" }, "Actions"))))),
    h("tbody", {}, failures.map((each) => h("tr", {},
      h("td", {}, each.channel), h("td", {}, each.error_class ?? "–"), h("td", {}, each.error_code ?? "–"),
      h("td", { className: "number" }, each.count.toLocaleString()),
      h("td", {}, h("a", { href: `#/notifications/${each.last_notification_id}` }, time(each.last_at))),
      h("td", {}, h("a", { href: `#/retry?${new URLSearchParams({ channel: each.channel, error_class: each.error_class ?? "" })}` },
        "Retry these…"))))))));
}
