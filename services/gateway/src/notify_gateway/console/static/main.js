// The console: which page is shown, the key, and how the service is.

import { get, key, Problem } from "./api.js";
import { h, show } from "./dom.js";
import { notifications } from "./notifications.js";
import { overview } from "./overview.js";
import { attempt, every, reportTo } from "./pages.js";
import { retry } from "./retry.js";
import { send } from "./send.js";
import { notification } from "./story.js";

const PAGES = [
  [/^\/?$/, overview], [/^\/notifications$/, notifications], [/^\/notifications\/([\w-]+)$/, notification],
  [/^\/retry$/, retry], [/^\/send$/, send],
];
const main = document.getElementById("main");
const stateText = document.getElementById("state");
const banner = document.getElementById("banner");
const keyDialog = document.getElementById("key-dialog");
let links = { rabbitmq: null, trace: null };
const UNREADY = "";
const DATABASE_AWAY = "The database is not available.";
let problem = null;
let rabbitmq = null; // what /readyz says of it

const state = {
  links: () => links,
  report: (look) => { rabbitmq = look.rabbitmq_connected ? "ready" : "away"; waiting = look.outbox_rows; showState(); },
};
let waiting = null;

function showState() {
  const postgresAway = problem?.status === 503 && [UNREADY, DATABASE_AWAY].includes(problem.message);
  const [kind, text] = problem?.status === 0 ? ["down", "Gateway away"] : postgresAway ? ["down", "PostgreSQL away"]
    : rabbitmq && rabbitmq !== "ready" ? ["held", "RabbitMQ away"] : rabbitmq ? ["up", "Live"] : ["", ""];
  stateText.className = `state ${kind}`;
  if (stateText.textContent !== text) stateText.textContent = text;
  const lines = [];
  if (problem?.status === 0) lines.push("The gateway does not answer. What is shown is as it was; this page tries again by itself.");
  else if (postgresAway) lines.push("PostgreSQL is away: nothing can be accepted or looked up until it is back. What was accepted is kept.");
  else if (problem) lines.push(problem.message);
  else if (kind === "held") {
    const count = waiting ? ` ${waiting.toLocaleString()} wait there now.` : "";
    lines.push(`RabbitMQ is away. Notifications are accepted all the same and wait in the outbox; nothing is lost.${count}`);
  }
  show(banner, lines.join(), lines.map((line) => h("p", { className: `banner ${kind === "down" ? "down" : "held"}` }, line)));
}

reportTo((met) => {
  if (met?.status === 401) askForKey(key.get() ? met.message : "");
  else { problem = met; showState(); }
});

function askForKey(why) {
  if (keyDialog.open) return;
  document.getElementById("key-problem").textContent = why;
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

let shown = new AbortController();

function showPage() {
  const [path, search] = location.hash.slice(1).split("?", 2);
  const [pattern, page] = PAGES.find(([each]) => each.test(path)) ?? PAGES[0];
  shown.abort();
  shown = new AbortController();
  main.replaceChildren();
  delete main.dataset.shows;
  page({ main, state, signal: shown.signal, query: new URLSearchParams(search), id: path.match(pattern)?.[1] });
  for (const link of document.querySelectorAll("nav[aria-label=Pages] a")) {
    const here = link.hash === `#${path || "/"}` || (link.hash === "#/notifications" && path.startsWith("/notifications"));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${main.querySelector("h1").textContent} · Notifications`;
}

async function begin() {
  document.getElementById("key-button").hidden = !key.get();
  const known = await attempt(async () => {
    links = await get("api/links");
    const link = document.getElementById("rabbitmq-link");
    link.hidden = !links.rabbitmq;
    if (links.rabbitmq) link.href = links.rabbitmq;
  }, undefined, (met) => met.status === 403);
  if (known || !keyDialog.open) showPage();
}

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", () => { showPage(); main.focus(); scrollTo(0, 0); });
// Open to everybody, and so told before there is a key: how the service is.
every(5000, new AbortController().signal, async () => {
  const answer = await fetch("readyz", { signal: AbortSignal.timeout(5000) }).catch(() => null);
  if (![200, 503].includes(answer?.status)) throw new Problem(0, "");
  rabbitmq = (await answer.json().catch(() => ({}))).rabbitmq;
  if (answer.status === 503) throw new Problem(503, UNREADY);
  showState();
});
begin();
