// The table of subscriptions: search, sort, details. Only visible rows are in the document, so that thousands scroll smoothly.

import { drawSparkline } from "./charts.js";
import {
  element, formatDateTime, formatDuration, formatInteger, formatName, formatValue, levelOf, printable, shapeIcon, shapeOf, STATES, svgElement,
} from "./text.js";

const OVERSCAN = 6; // rows rendered beyond each edge
const TREND_SIZE = [120, 24];

const COMPARATORS = {
  problem: (a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state),
  ticker: (a, b) => compare(a.ticker, b.ticker) || compare(a.feed, b.feed),
  feed: (a, b) => compare(a.feed, b.feed) || compare(a.ticker, b.ticker),
  value: descending((row) => row.line?.value),
  age: descending((row) => row.line && -row.line.received),
  rows: descending((row) => row.line?.rows),
  restated: descending((row) => row.line?.restated),
};

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** Compare by a number, the greatest first. Rows without it come last. */
function descending(numberOf) {
  return (a, b) => (numberOf(b) ?? -Infinity) - (numberOf(a) ?? -Infinity) || 0;
}

export class Table {
  /** `now()`: the daemon's clock, in milliseconds. */
  constructor(now) {
    this.now = now;
    for (const id of ["rows", "space", "search", "sort", "states", "count", "detail"]) this[id] = document.getElementById(id);
    this.all = []; // every row, in the order of the config
    this.shown = []; // those that match, sorted
    this.state = ""; // the only one shown; "" for all
    this.active = 0; // index of the row that the arrow keys move
    this.slots = []; // elements of visible rows, reused
    this.params = new Map(); // JSON text → parsed
    this.lines = new Map(); // feed and ticker → line of values.json
    this.subscriptions = [];
    this.addListeners();
  }

  addListeners() {
    this.search.addEventListener("input", () => this.applyFilter());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.rows.focus();
      else if (event.key === "Escape" && this.search.value === "") this.search.blur();
    });
    this.sort.addEventListener("change", () => this.applyFilter());
    this.rows.addEventListener("scroll", () => this.scheduleRender(), { passive: true });
    this.rows.addEventListener("keydown", (event) => this.onKey(event));
    this.space.addEventListener("click", (event) => {
      const row = event.target.closest("[data-index]");
      if (row) this.openDetail(Number(row.dataset.index));
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
      event.preventDefault();
      this.search.focus();
    });
    new ResizeObserver(() => this.scheduleRender()).observe(this.rows);
  }

  // -- data

  setSubscriptions(subscriptions) {
    this.subscriptions = subscriptions;
    this.buildRows();
  }

  setLines(lines) {
    for (const [feed, ticker, metric, ts, received, rows, restated, value, least, greatest, levels] of lines) {
      this.lines.set(`${feed}\n${ticker}`, { feed, ticker, metric, ts, received, rows, restated, value, least, greatest, levels });
    }
    this.buildRows();
  }

  clearLines() {
    this.lines.clear();
  }

  /** One row per subscription. A subscription without ticker also has a row for each ticker with values. */
  buildRows() {
    const rows = this.subscriptions.map((subscription) => this.buildRow(subscription));
    const allTickers = new Map(rows.filter((row) => row.allTickers).map((row) => [row.feed, row]));
    const keys = new Set(rows.map((row) => `${row.feed}\n${row.ticker}`));
    for (const [key, line] of allTickers.size ? this.lines : []) {
      const parent = allTickers.get(line.feed);
      if (parent && !keys.has(key)) rows.push({ ...parent, ticker: line.ticker, allTickers: false, line });
    }
    for (const row of rows) row.text = `${row.ticker || "all tickers"} ${row.feed} ${formatName(row.state)}`.toLowerCase();
    this.all = rows;
    this.applyFilter();
  }

  buildRow({ path, params, feed, state, since, reason }) {
    if (!this.params.has(params)) this.params.set(params, JSON.parse(params));
    const { ticker = "", user_id: user } = this.params.get(params);
    const line = this.lines.get(`${feed}\n${ticker}`);
    return { path, params, feed, state, since, reason, ticker, user, allTickers: ticker === "", line };
  }

  /** Select the rows that match search and state, and sort them. */
  applyFilter() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.all.filter((row) => words.every((word) => row.text.includes(word)));
    this.renderStates(found);
    this.shown = found.filter((row) => !this.state || row.state === this.state).sort(COMPARATORS[this.sort.value]);
    this.active = Math.max(0, Math.min(this.active, this.shown.length - 1));
    const total = formatInteger(this.all.length);
    this.count.textContent = this.shown.length === this.all.length ? total : `${formatInteger(this.shown.length)} of ${total}`;
    this.render();
  }

  renderStates(found) {
    const counts = new Map(STATES.toReversed().map((state) => [state, 0]));
    for (const row of found) counts.set(row.state, (counts.get(row.state) ?? 0) + 1);
    const buttons = [["", found.length], ...[...counts].filter(([state, count]) => count || state === this.state)];
    const content = JSON.stringify([buttons, this.state]);
    if (content === this.statesContent) return; // unchanged: a button that has the focus keeps it
    this.statesContent = content;
    const focused = document.activeElement?.dataset?.state;
    this.states.replaceChildren(...buttons.map(([state, count]) => this.stateButton(state, count)));
    if (focused !== undefined) this.states.querySelector(`[data-state="${focused}"]`)?.focus();
  }

  stateButton(state, count) {
    const button = element("button", { type: "button", "data-state": state, "aria-pressed": String(state === this.state) });
    if (state) button.append(shapeIcon(shapeOf(state)));
    button.append(`${state ? formatName(state) : "all"} ${formatInteger(count)}`);
    button.dataset.level = state ? levelOf(state) : "";
    button.addEventListener("click", () => {
      this.state = state;
      this.applyFilter();
    });
    return button;
  }

  // -- visible rows

  scheduleRender() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.render();
    });
  }

  render() {
    const height = (this.height = parseFloat(getComputedStyle(this.rows).getPropertyValue("--row")));
    this.space.style.height = `${this.shown.length * height}px`;
    this.rows.setAttribute("aria-rowcount", this.shown.length + 1);
    const first = Math.max(0, Math.floor(this.rows.scrollTop / height) - OVERSCAN);
    const last = Math.min(this.shown.length, Math.ceil((this.rows.scrollTop + this.rows.clientHeight) / height) + OVERSCAN);
    while (this.slots.length < last - first) this.slots.push(this.addSlot());
    this.slots.forEach((slot, index) => {
      slot.root.hidden = index >= last - first;
      if (!slot.root.hidden) this.fillSlot(slot, first + index);
    });
    if (this.shown.length) this.rows.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.rows.removeAttribute("aria-activedescendant");
    if (this.detail.open) this.renderDetail();
  }

  addSlot() {
    const cell = (name, ...children) => element("span", { role: "gridcell", class: name }, ...children);
    const use = svgElement("use");
    const label = element("span");
    const trend = svgElement("svg", { class: "trend", "aria-hidden": "true" });
    const state = cell("state", svgElement("svg", { class: "shape", "aria-hidden": "true" }, use), label);
    const [ticker, feed, value, age, rows, restated] = ["ticker", "feed", "value", "age", "rows", "restated"].map((name) => cell(name));
    const root = element("div", { role: "row", class: "row" }, state, ticker, feed, value, cell("trend-cell", trend), age, rows, restated);
    this.space.append(root);
    return { root, use, label, state, ticker, feed, value, trend, age, rows, restated };
  }

  fillSlot(slot, index) {
    const row = this.shown[index];
    const { line } = row;
    slot.root.id = `row-${index}`;
    slot.root.dataset.index = index;
    slot.root.setAttribute("aria-rowindex", index + 2);
    slot.root.style.transform = `translateY(${index * this.height}px)`;
    slot.root.classList.toggle("active", index === this.active);
    slot.state.dataset.level = levelOf(row.state);
    slot.use.setAttribute("href", `#shape-${shapeOf(row.state)}`);
    slot.label.textContent = formatName(row.state);
    slot.ticker.textContent = formatTicker(row);
    slot.ticker.classList.toggle("all", row.allTickers);
    slot.feed.textContent = printable(row.feed);
    slot.value.textContent = formatValue(line?.value);
    slot.age.textContent = line ? formatDuration((this.now() - line.received) / 1000) : "–";
    slot.rows.textContent = line ? formatInteger(line.rows) : "–";
    slot.restated.textContent = line?.restated ? formatInteger(line.restated) : "";
    if (slot.line !== line) drawSparkline(slot.trend, line, ...TREND_SIZE); // costs more than everything else here
    slot.line = line;
  }

  // -- the active row and its details

  onKey(event) {
    const page = Math.max(1, Math.floor(this.rows.clientHeight / this.height) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") this.openDetail(this.active);
    else if (event.key in steps) this.moveTo(this.active + steps[event.key]);
    else return;
    event.preventDefault();
  }

  moveTo(index) {
    this.active = Math.max(0, Math.min(index, this.shown.length - 1));
    const top = this.active * this.height;
    const visible = this.rows.clientHeight - this.space.offsetTop;
    if (top < this.rows.scrollTop) this.rows.scrollTop = top;
    else if (top + this.height > this.rows.scrollTop + visible) this.rows.scrollTop = top + this.height - visible;
    this.render();
  }

  openDetail(index) {
    if (!this.shown[index]) return;
    this.active = index;
    this.selected = this.shown[index];
    this.render();
    this.renderDetail();
    this.detail.showModal();
  }

  renderDetail() {
    const { path, params, ticker } = this.selected;
    const row = this.all.find((row) => row.path === path && row.params === params && row.ticker === ticker) ?? this.selected;
    const { line } = row;
    document.getElementById("detail-title").textContent = formatTicker(row);
    drawSparkline(document.getElementById("detail-trend"), line, 480, 90);
    const entries = [
      ["state", formatName(row.state) + (row.since ? ` since ${formatDateTime(Date.parse(row.since))}` : "")],
      ["reason", row.reason],
      ["path", row.path],
      ["params", row.params],
      ["feed", row.feed],
      ...(line ? lineEntries(line) : [["values", "none since the daemon started"]]),
    ];
    const items = entries.filter(([, text]) => text).flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, printable(text))]);
    document.getElementById("detail-list").replaceChildren(...items);
  }
}

function lineEntries(line) {
  return [
    [printable(line.metric), `${line.value} at ${formatDateTime(line.ts)} UTC`],
    ["received", `${formatDateTime(line.received)} UTC`],
    ["range", `${formatValue(line.least)} to ${formatValue(line.greatest)} in the last ${line.levels.length} values`],
    ["rows", `${formatInteger(line.rows)}, of which ${formatInteger(line.restated)} restated a value`],
  ];
}

const formatTicker = (row) => (row.allTickers ? "all tickers" : printable(row.ticker)) + (row.user ? ` · user ${printable(row.user)}` : "");
