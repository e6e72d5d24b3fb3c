// What every page needs: work that repeats while it is shown, and questions before what can not be undone.

import { Problem } from "./api.js";
import { h } from "./dom.js";

let reportProblem = () => {};

/** Have problems that a page does not know about told to `report`; null: all is well again. */
export function reportTo(report) {
  reportProblem = report;
}

/** Do `work` now and every so many milliseconds while the page is shown and looked at. `known` may handle its problems. */
export function every(milliseconds, signal, work, known = () => false) {
  let timer = null;
  async function run() {
    clearTimeout(timer);
    if (signal.aborted) return;
    try {
      if (!document.hidden) await attempt(work, signal, known);
    } finally {
      if (!signal.aborted) timer = setTimeout(run, milliseconds);
    }
  }
  document.addEventListener("visibilitychange", () => document.hidden || run(), { signal });
  run();
}

/** Do `work` once; its problems are shown. Whether it worked. */
export async function attempt(work, signal, known = () => false) {
  try {
    await work();
    if (!signal?.aborted) reportProblem(null);
    return true;
  } catch (problem) {
    if (problem.name === "AbortError" || signal?.aborted) return false;
    if (!(problem instanceof Problem)) throw problem;
    if (!known(problem)) reportProblem(problem);
    return false;
  }
}

/** Ask before doing it. */
export function confirmed(title, text, yes) {
  return asked(title, text, h("button", { className: "plain", value: "no" }, "Back"), h("button", { className: "primary", value: "yes" }, yes));
}

/** Of something that was asked for once: say why it was not done. A server that is away is everybody's problem, and not told here. */
export function refused(problem) {
  if ([0, 401, 503].includes(problem.status)) return false;
  asked("It was not done", problem.message, h("button", { className: "primary" }, "Back"));
  return true;
}

/** A dialog of its own each time: the end of one must not be taken for that of the next. */
function asked(title, text, ...buttons) {
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
