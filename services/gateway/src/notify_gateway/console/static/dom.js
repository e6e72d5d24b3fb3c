// Elements, made of text and never of markup: whatever a message says stays text.

/** An element with properties, attributes (`data-*`, `aria-*`, …), listeners (`onclick`) and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Put `children` in the place of what is there, unless it shows the same already: focus and selection stay. */
export function show(place, key, ...children) {
  if (place.dataset.shows === key) return;
  place.dataset.shows = key;
  place.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** A moment as the reader's clock shows it; the day where it is not today. */
export function time(text) {
  const moment = new Date(text);
  const today = moment.toDateString() === new Date().toDateString();
  const shown = `${today ? "" : `${DAY.format(moment)}, `}${TIME.format(moment)}`;
  return h("time", { dateTime: text, title: moment.toISOString() }, shown);
}

/** Seconds for a reader: 0.21 s, 12 s, 3 min, 2 h. */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

const SIGNS = {
  sent: "✓", failed: "✕", retrying: "↻", throttled: "↻", pending: "…", expired: "⌛", cancelled: "–", partially_sent: "◐",
};

/** A status: its word, with a sign and a colour beside it. */
export function badge(status) {
  const sign = h("span", { "aria-hidden": "true" }, SIGNS[status] ?? "");
  return h("span", { className: `badge ${status}` }, sign, ` ${status.replace("_", " ")}`);
}
