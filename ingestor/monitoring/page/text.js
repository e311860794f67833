// From data to words. Whatever came from outside goes through `plain`, and reaches the page as text, never as markup.

const WHOLE = new Intl.NumberFormat("en-US");

/** What may turn a line round, begin another or not be seen at all becomes its escape. */
export const plain = (text) =>
  String(text ?? "").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);

export const whole = (number) => WHOLE.format(Math.round(number));

export const several = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

/** A provider's value: four decimals where it has any. */
export function value(number) {
  if (number === undefined) return "";
  if (Number.isInteger(number) && Math.abs(number) < 1e9) return WHOLE.format(number);
  return Math.abs(number) < 1e4 && Math.abs(number) >= 1e-4 ? number.toFixed(4) : number.toPrecision(4);
}

/** Seconds as people say them, in one or two units. */
export function lasting(seconds) {
  if (!(seconds >= 0)) return "0 s";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024;
  return `${unit && count < 10 ? count.toFixed(1) : whole(count)} ${units[unit]}`;
}

/** HH:MM:SS of a stamp in milliseconds, UTC. */
export const clock = (ms) => new Date(ms).toISOString().slice(11, 19);

/** YYYY-MM-DD HH:MM:SS, UTC. */
export const date = (ms) => new Date(ms).toISOString().slice(0, 19).replace("T", " ");

/** An element; children are elements or texts. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, text] of Object.entries(attributes)) made.setAttribute(name, text);
  made.append(...children);
  return made;
}

// -- states: a shape and a mood each

const SHAPES = {
  live: ["dot", "good"],
  pending: ["ring", "idle"],
  stopped: ["bars", "idle"],
  silent: ["half", "warn"],
  refused: ["cross", "bad"],
  disconnected: ["triangle", "bad"],
  token_failed: ["diamond", "bad"],
  spool_full: ["square", "bad"],
  crashed: ["cross", "bad"],
  lost: ["cross", "bad"],
};

/** In the order in which they ask for attention. */
export const STATES = [
  "lost", "crashed", "spool_full", "token_failed", "disconnected", "refused", "silent", "stopped", "pending", "live",
];

export const mood = (state) => (SHAPES[state] ?? ["ring", "idle"])[1];

export const words = (state) => plain(state).replaceAll("_", " ");

export function shape(name) {
  return drawn("svg", { class: "shape", "aria-hidden": "true" }, drawn("use", { href: `#shape-${name}` }));
}

export const shapeOf = (state) => (SHAPES[state] ?? ["ring", "idle"])[0];
