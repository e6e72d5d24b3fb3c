// Small time charts with one point for each of the last 120 seconds.

import { h, svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 56;
const LINES = ["accepted", "sent", "retrying", "failed"];

/** Return a chart and the function that redraws it. Its caption gives the rates as text. */
export function chart(title) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const paths = Object.fromEntries(LINES.map((name) => [name, svg("path", { class: `line ${name}` })]));
  picture.append(...Object.values(paths));
  const top = h("span", { className: "top-of-chart" });
  const rates = Object.fromEntries(LINES.map((name) => [name, h("span", {})]));
  const caption = h("figcaption", {}, h("span", { className: "visually-hidden" }, `${title}, average over the last 10 s: `),
    LINES.map((name) => h("span", { className: "legend" }, h("span", { className: `key ${name}`, "aria-hidden": "true" }),
      `${name} `, rates[name], " ")));
  const element = h("figure", { className: "chart" }, h("div", { className: "plot" }, picture, top), caption);

  function update(seconds) {
    const highest = Math.max(1, ...LINES.flatMap((name) => seconds[name] ?? []));
    for (const name of LINES) paths[name].setAttribute("d", line(seconds[name] ?? [], highest));
    top.textContent = `${highest}/s`;
    for (const name of LINES) rates[name].textContent = `${recent(seconds[name] ?? [])}/s`;
  }
  return { element, update };
}

/** Return the average of the last ten seconds as text, ignoring seconds that were not counted. */
export function recent(values) {
  const counted = values.slice(-10).filter((value) => value !== null);
  if (!counted.length) return "–";
  const mean = counted.reduce((sum, value) => sum + value, 0) / counted.length;
  return mean >= 10 || mean === 0 ? String(Math.round(mean)) : mean.toFixed(1);
}

function line(values, highest) {
  let path = "";
  let drawing = false;
  values.forEach((value, second) => {
    if (value === null) { drawing = false; return; }
    const x = (second / (values.length - 1)) * WIDTH;
    const y = HEIGHT - 2 - (value / highest) * (HEIGHT - 4);
    path += `${drawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    drawing = true;
  });
  return path;
}
