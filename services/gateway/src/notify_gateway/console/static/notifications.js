// The list of notifications, with filters, search by id and pagination.

import { get } from "./api.js";
import { badge, h, show, time } from "./dom.js";
import { attempt, every } from "./pages.js";

const STATUSES = ["pending", "sent", "partially_sent", "failed", "cancelled"];
const CHANNELS = ["telegram", "email", "webhook"];
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const ROWS = 50;
const EXCERPT = 90; // characters

export function notifications({ main, signal, query }) {
  const search = h("input", { type: "search", name: "search", value: query.get("user_id") ?? "", spellcheck: false,
    placeholder: "Notification, delivery or user ID", size: 38 });
  const status = choice("status", STATUSES, query.get("status"));
  const channel = choice("channel", CHANNELS, query.get("channel"));
  const problem = h("p", { className: "problem", role: "alert" });
  const list = h("div", { "aria-live": "off" }, h("p", { className: "empty", "aria-busy": "true" }, "Loading…"));
  const pages = h("nav", { className: "actions", "aria-label": "Pagination" });
  const form = h("form", { className: "filters", role: "search", onsubmit: submit },
    h("label", {}, "ID ", search), h("label", {}, "Status ", status), h("label", {}, "Channel ", channel),
    h("button", { className: "primary" }, "Search"));
  for (const select of [status, channel]) select.addEventListener("change", () => form.requestSubmit());
  main.append(h("h1", {}, "Notifications"), form, problem, list, pages);

  async function submit(event) {
    event.preventDefault();
    problem.textContent = "";
    const id = search.value.trim();
    if (UUID.test(id)) {
      if (await find(id.toLowerCase())) return;
      // It may also be the ID of a user.
      const page = await get("v1/notifications", { user_id: id, limit: 1 });
      if (!page.items.length) {
        problem.textContent = `No notification, delivery or user has the ID ${id}.`;
        return;
      }
    }
    go({ user_id: id, status: status.value, channel: channel.value });
  }

  /** Open the notification or delivery with this ID; return whether there is one. */
  async function find(id) {
    const isMissing = (error) => error.status === 404;
    return await attempt(async () => {
      await get(`v1/notifications/${id}`);
      location.hash = `#/notifications/${id}`;
    }, signal, isMissing) || await attempt(async () => {
      const delivery = await get(`v1/deliveries/${id}`);
      location.hash = `#/notifications/${delivery.notification_id}`;
    }, signal, isMissing);
  }

  const filters = Object.fromEntries(["user_id", "status", "channel", "cursor"].map((name) => [name, query.get(name) ?? ""]));
  every(2000, signal, async () => {
    const page = await get("v1/notifications", { ...filters, limit: ROWS, expand: "content" });
    showRows(list, page.items, filters);
    const older = page.next_cursor && { ...filters, cursor: page.next_cursor };
    show(pages, JSON.stringify([filters, older?.cursor]),
      filters.cursor && h("a", { href: hash({ ...filters, cursor: "" }) }, "← Newest"),
      older && h("a", { href: hash(older) }, "Older →"));
  }, (error) => {
    if (error.status !== 422) return false;
    problem.textContent = error.message;
    return true;
  });
}

const hash = (query) =>
  `#/notifications?${new URLSearchParams(Object.entries(query).filter(([, value]) => value))}`;

function go(query) {
  location.hash = hash(query);
}

function choice(name, values, chosen) {
  return h("select", { name }, h("option", { value: "" }, "any"),
    values.map((value) => h("option", { value, selected: value === chosen }, value.replace("_", " "))));
}

function showRows(place, items, filters) {
  if (!items.length) {
    const filtered = Object.values(filters).some(Boolean);
    show(place, `none ${filtered}`, h("p", { className: "empty" }, filtered ? [
      "No notifications match. Without a user ID, only the last 24 hours are searched. ",
      h("a", { href: "#/notifications" }, "Clear the filters"), "."] : [
      "No notifications in the last 24 hours. ", h("a", { href: "#/send" }, "Send a test notification"), " or run ",
      h("code", {}, "make demo"), "."]));
    return;
  }
  const head = ["Accepted", "User", "Message", "Deliveries", "Status"];
  show(place, JSON.stringify(items), h("div", { className: "scroll" }, h("table", { className: "list" },
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, items.map((item) => h("tr", {},
      h("td", {}, h("a", { href: `#/notifications/${item.id}` }, time(item.created_at))),
      h("td", {}, h("a", { href: hash({ user_id: item.user_id }) }, item.user_id)),
      h("td", { className: "excerpt" }, item.message.length > EXCERPT ? `${item.message.slice(0, EXCERPT)}…` : item.message),
      h("td", {}, item.deliveries.map((delivery) =>
        h("span", { className: "delivery" }, `${delivery.channel} `, badge(delivery.status)))),
      h("td", {}, badge(item.status), item.test && [" ", badge("test")])))))));
}
