// The console's frame: the router, the API key dialog and the service status.

import { get, key, Problem } from "./api.js";
import { details } from "./details.js";
import { h, show } from "./dom.js";
import { notifications } from "./notifications.js";
import { overview } from "./overview.js";
import { attempt, every, onProblem } from "./pages.js";
import { retry } from "./retry.js";
import { send } from "./send.js";

const PAGES = [
  [/^\/?$/, overview], [/^\/notifications$/, notifications], [/^\/notifications\/([\w-]+)$/, details],
  [/^\/retry$/, retry], [/^\/send$/, send],
];
const main = document.getElementById("main");
const stateText = document.getElementById("state");
const banner = document.getElementById("banner");
const keyDialog = document.getElementById("key-dialog");
let links = {};
const NOT_READY = ""; // the message of the `Problem` that represents a 503 from /readyz
// The gateway's text for a 503 when PostgreSQL is unavailable; it uses other texts for other causes of a 503.
const DATABASE_UNAVAILABLE = "The database is not available.";
let problem = null;
let rabbitmq = null; // the state of the relay's connection, as reported by /readyz

const state = {
  links: () => links,
  report: (overview) => {
    rabbitmq = overview.rabbitmq_connected ? "ready" : "unavailable";
    waiting = overview.outbox_rows;
    showState();
  },
};
let waiting = null; // the number of deliveries in the outbox

function showState() {
  const postgresUnavailable = problem?.status === 503 && [NOT_READY, DATABASE_UNAVAILABLE].includes(problem.message);
  const [kind, text] = problem?.status === 0 ? ["down", "Gateway unavailable"]
    : postgresUnavailable ? ["down", "PostgreSQL unavailable"]
      : rabbitmq && rabbitmq !== "ready" ? ["degraded", "RabbitMQ unavailable"] : rabbitmq ? ["up", "Live"] : ["", ""];
  stateText.className = `state ${kind}`;
  if (stateText.textContent !== text) stateText.textContent = text;
  const lines = [];
  if (problem?.status === 0) lines.push("The gateway does not respond. This page shows the last data it received and keeps retrying.");
  else if (postgresUnavailable) lines.push("PostgreSQL is unavailable. Until it is back, new notifications are rejected and this page cannot update. Accepted notifications are safe.");
  else if (problem) lines.push(problem.message);
  else if (kind === "degraded") {
    const count = waiting ? ` Deliveries waiting: ${waiting.toLocaleString()}.` : "";
    lines.push(`RabbitMQ is unavailable. New notifications are still accepted and wait in the outbox, so nothing is lost.${count}`);
  }
  show(banner, lines.join(), lines.map((line) => h("p", { className: `banner ${kind === "down" ? "down" : "degraded"}` }, line)));
}

onProblem((reported) => {
  if (reported?.status === 401) askForKey(key.get() ? reported.message : "");
  else { problem = reported; showState(); }
});

function askForKey(message) {
  if (keyDialog.open) return;
  document.getElementById("key-problem").textContent = message;
  document.getElementById("key-input").value = "";
  keyDialog.showModal();
}

keyDialog.addEventListener("cancel", (event) => event.preventDefault());
keyDialog.addEventListener("close", () => {
  key.set(document.getElementById("key-input").value.trim());
  document.getElementById("key-input").value = "";
  begin();
});
document.getElementById("key-button").addEventListener("click", () => { key.forget(); askForKey(""); });

let currentPage = new AbortController(); // aborted when another page opens

function showPage() {
  const [path, search] = location.hash.slice(1).split("?", 2);
  const [pattern, page] = PAGES.find(([each]) => each.test(path)) ?? PAGES[0];
  currentPage.abort();
  currentPage = new AbortController();
  main.replaceChildren();
  delete main.dataset.key;
  page({ main, state, signal: currentPage.signal, query: new URLSearchParams(search), id: path.match(pattern)?.[1] });
  for (const link of document.querySelectorAll("nav[aria-label=Main] a")) {
    const isCurrent = link.hash === `#${path || "/"}` || (link.hash === "#/notifications" && path.startsWith("/notifications"));
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${main.querySelector("h1").textContent} · Notifications`;
}

async function begin() {
  document.getElementById("key-button").hidden = !key.get();
  const succeeded = await attempt(async () => {
    links = await get("v1/links");
    const link = document.getElementById("rabbitmq-link");
    link.hidden = !links.rabbitmq;
    if (links.rabbitmq) link.href = links.rabbitmq;
  }, undefined, (error) => error.status === 403);
  if (succeeded || !keyDialog.open) showPage();
}

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", () => { showPage(); main.focus(); scrollTo(0, 0); });
// /readyz needs no key, so the status is shown even before one is entered.
every(5000, new AbortController().signal, async () => {
  const response = await fetch("readyz", { signal: AbortSignal.timeout(5000) }).catch(() => null);
  if (![200, 503].includes(response?.status)) throw new Problem(0, "");
  rabbitmq = (await response.json().catch(() => ({}))).rabbitmq;
  if (response.status === 503) throw new Problem(503, NOT_READY);
  showState();
});
begin();
