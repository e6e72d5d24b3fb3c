// Helpers for all pages: repeated requests, error handling and confirmation dialogs.

import { Problem } from "./api.js";
import { h } from "./dom.js";

let reportProblem = () => {};

/** Call `report` with each problem that a page does not handle, and with null after each success. */
export function onProblem(report) {
  reportProblem = report;
}

/** Do `work` now and then repeatedly while the page is open and visible. `handle` returns true for problems it handled. */
export function every(milliseconds, signal, work, handle = () => false) {
  let timer = null;
  async function run() {
    clearTimeout(timer);
    if (signal.aborted) return;
    try {
      if (!document.hidden) await attempt(work, signal, handle);
    } finally {
      if (!signal.aborted) timer = setTimeout(run, milliseconds);
    }
  }
  document.addEventListener("visibilitychange", () => document.hidden || run(), { signal });
  run();
}

/** Do `work` once and return whether it succeeded. Problems that `handle` does not handle are reported. */
export async function attempt(work, signal, handle = () => false) {
  try {
    await work();
    if (!signal?.aborted) reportProblem(null);
    return true;
  } catch (problem) {
    if (problem.name === "AbortError" || signal?.aborted) return false;
    if (!(problem instanceof Problem)) throw problem;
    if (!handle(problem)) reportProblem(problem);
    return false;
  }
}

/** Ask for confirmation and return whether it was given. */
export function confirmed(title, text, yes) {
  return openDialog(title, text, h("button", { className: "plain", value: "no" }, "Go back"), h("button", { className: "primary", value: "yes" }, yes));
}

/** Show why a request was rejected. Outages and missing keys are left to the banner and the key dialog. */
export function showRejection(problem) {
  if ([0, 401, 503].includes(problem.status)) return false;
  openDialog("Request rejected", problem.message, h("button", { className: "primary" }, "Close"));
  return true;
}

/** Open a new dialog element each time, so that a late `close` event cannot be mistaken for the next dialog's. */
function openDialog(title, text, ...buttons) {
  const dialog = h("dialog", { "aria-labelledby": "confirm-title" },
    h("form", { method: "dialog" }, h("h2", { id: "confirm-title" }, title), h("p", {}, text), h("p", { className: "actions" }, buttons)));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}
