// Formatting and DOM helpers. Text from outside goes through `printable`, and is always inserted as text, never as markup.

const INTEGER = new Intl.NumberFormat("en-US");

/** Escape control characters, bidirectional overrides and invisible characters. */
export const printable = (text) =>
  String(text ?? "").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);

export const formatInteger = (number) => INTEGER.format(Math.round(number));

export const formatCount = (count, noun, plural = `${noun}s`) => `${formatInteger(count)} ${count === 1 ? noun : plural}`;

/** Say of how many of all something is true: "1 of 309 subscriptions is", "2 of 309 subscriptions are". */
export const formatShare = (count, total, noun) => `${formatInteger(count)} of ${formatCount(total, noun)} ${count === 1 ? "is" : "are"}`;

/** Format a provider's value, with four decimals unless it is an integer. */
export function formatValue(number) {
  if (number === undefined) return "";
  if (Number.isInteger(number) && Math.abs(number) < 1e9) return INTEGER.format(number);
  return Math.abs(number) < 1e4 && Math.abs(number) >= 1e-4 ? number.toFixed(4) : number.toPrecision(4);
}

/** Format a number of seconds in one or two units. */
export function formatDuration(seconds) {
  if (!(seconds >= 0)) return "0 s";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function formatBytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024;
  return `${unit && count < 10 ? count.toFixed(1) : formatInteger(count)} ${units[unit]}`;
}

/** Format milliseconds since the epoch as HH:MM:SS, UTC. */
export const formatTime = (ms) => new Date(ms).toISOString().slice(11, 19);

/** Format milliseconds since the epoch as YYYY-MM-DD HH:MM:SS, UTC. */
export const formatDateTime = (ms) => new Date(ms).toISOString().slice(0, 19).replace("T", " ");

/** Create an HTML element. Children are elements or texts. */
export function element(name, attributes = {}, ...children) {
  return populate(document.createElement(name), attributes, children);
}

/** Create an SVG element. */
export function svgElement(name, attributes = {}, ...children) {
  return populate(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function populate(node, attributes, children) {
  for (const [name, text] of Object.entries(attributes)) node.setAttribute(name, text);
  node.append(...children);
  return node;
}

// -- states: each has a shape and a level, which is a color

const STYLES = {
  live: ["dot", "good"],
  pending: ["ring", "idle"],
  standby: ["ring", "idle"],
  stopped: ["bars", "idle"],
  silent: ["half", "warn"],
  refused: ["cross", "bad"],
  disconnected: ["triangle", "bad"],
  token_failed: ["diamond", "bad"],
  spool_full: ["square", "bad"],
  crashed: ["cross", "bad"],
  lost: ["cross", "bad"],
};
const UNKNOWN_STYLE = ["ring", "idle"];

/** All states, the one that needs attention most comes first. */
export const STATES = [
  "lost", "crashed", "spool_full", "token_failed", "disconnected", "refused", "silent", "stopped", "pending",
  "standby", "live",
];

export const shapeOf = (state) => (STYLES[state] ?? UNKNOWN_STYLE)[0];

export const levelOf = (state) => (STYLES[state] ?? UNKNOWN_STYLE)[1];

/** Format the name of a state or of a kind of fact. */
export const formatName = (name) => printable(name).replaceAll("_", " ");

export function shapeIcon(shape) {
  return svgElement("svg", { class: "shape", "aria-hidden": "true" }, svgElement("use", { href: `#shape-${shape}` }));
}
