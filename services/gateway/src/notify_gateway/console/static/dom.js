// Create elements from text, never from markup, so that a message cannot inject HTML.

/** Return an element with properties, attributes (`data-*`, `aria-*`, …), listeners (`onclick`) and children. */
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

/** Return an SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Replace the content of `place`, unless `key` is unchanged: an unchanged page keeps its focus and selection. */
export function show(place, key, ...children) {
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** Return a time in the reader's time zone, with the date unless it is today. */
export function time(text) {
  const moment = new Date(text);
  const today = moment.toDateString() === new Date().toDateString();
  const shown = `${today ? "" : `${DAY.format(moment)}, `}${TIME.format(moment)}`;
  return h("time", { dateTime: text, title: moment.toISOString() }, shown);
}

/** Return a number of seconds as text: 0.21 s, 12 s, 3 min or 2 h. */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

const SYMBOLS = {
  sent: "✓", failed: "✕", retrying: "↻", throttled: "↻", pending: "…", expired: "⌛", cancelled: "–", partially_sent: "◐",
};

/** Return a status as a coloured label with a symbol, so that colour is not the only cue. */
export function badge(status) {
  const symbol = h("span", { "aria-hidden": "true" }, SYMBOLS[status] ?? "");
  return h("span", { className: `badge ${status}` }, symbol, ` ${status.replace("_", " ")}`);
}
