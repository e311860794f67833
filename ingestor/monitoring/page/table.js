// The subscriptions: searched, sorted, and only those in sight are in the document, so that thousands scroll smoothly.

import { trace } from "./charts.js";
import { date, element, drawn, lasting, mood, plain, shape, shapeOf, STATES, value, whole, words } from "./text.js";

const SPARE = 6; // rows beyond each edge
const TREND = [120, 24];

const by = {
  trouble: (one, other) => STATES.indexOf(one.state) - STATES.indexOf(other.state),
  ticker: (one, other) => compare(one.ticker, other.ticker) || compare(one.feed, other.feed),
  feed: (one, other) => compare(one.feed, other.feed) || compare(one.ticker, other.ticker),
  value: descending((row) => row.line?.value),
  age: descending((row) => row.line && -row.line.received),
  rows: descending((row) => row.line?.rows),
  restated: descending((row) => row.line?.restated),
};

const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);

/** What has no such number comes last. */
function descending(of) {
  return (one, other) => (of(other) ?? -Infinity) - (of(one) ?? -Infinity) || 0;
}

export class Table {
  /** `now()`: the daemon's clock, in milliseconds. */
  constructor(now) {
    this.now = now;
    for (const id of ["rows", "space", "search", "sort", "chips", "count", "detail"]) this[id] = document.getElementById(id);
    this.all = []; // every row, in the order of the config
    this.shown = [];
    this.state = ""; // the one shown, or every
    this.active = 0;
    this.pool = [];
    this.params = new Map();
    this.lines = new Map(); // feed and ticker → what is known of its values
    this.subscriptions = [];
    this.listen();
  }

  listen() {
    this.search.addEventListener("input", () => this.narrow());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.rows.focus();
      else if (event.key === "Escape" && this.search.value === "") this.search.blur();
    });
    this.sort.addEventListener("change", () => this.narrow());
    this.rows.addEventListener("scroll", () => this.soon(), { passive: true });
    this.rows.addEventListener("keydown", (event) => this.key(event));
    this.space.addEventListener("click", (event) => {
      const row = event.target.closest("[data-index]");
      if (row) this.open(Number(row.dataset.index));
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
      event.preventDefault();
      this.search.focus();
    });
    new ResizeObserver(() => this.soon()).observe(this.rows);
  }

  // -- what it is told

  setSubscriptions(subscriptions) {
    this.subscriptions = subscriptions;
    this.join();
  }

  setLines(lines) {
    for (const [feed, ticker, metric, ts, received, rows, restated, value, least, greatest, levels] of lines) {
      this.lines.set(`${feed}\n${ticker}`, { feed, ticker, metric, ts, received, rows, restated, value, least, greatest, levels });
    }
    this.join();
  }

  forget() {
    this.lines.clear();
  }

  /** One row for each subscription; where that is to every ticker, also one for each that spoke. */
  join() {
    const rows = this.subscriptions.map((one) => this.row(one));
    const every = new Map(rows.filter((row) => row.ticker === "").map((row) => [row.feed, row]));
    const own = new Set(rows.map((row) => `${row.feed}\n${row.ticker}`));
    for (const [key, line] of every.size ? this.lines : []) {
      const parent = every.get(line.feed);
      if (parent && !own.has(key)) rows.push({ ...parent, ticker: line.ticker, every: false, line });
    }
    for (const row of rows) row.text = `${row.ticker || "every ticker"} ${row.feed} ${words(row.state)}`.toLowerCase();
    this.all = rows;
    this.narrow();
  }

  row({ path, params, feed, state, since, reason }) {
    if (!this.params.has(params)) this.params.set(params, JSON.parse(params));
    const { ticker = "", user_id: user } = this.params.get(params);
    const line = this.lines.get(`${feed}\n${ticker}`);
    return { path, params, feed, state, since, reason, ticker, user, every: ticker === "", line };
  }

  /** Find what is asked for, in the order asked for. */
  narrow() {
    const wanted = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.all.filter((row) => wanted.every((word) => row.text.includes(word)));
    this.tally(found);
    this.shown = found.filter((row) => !this.state || row.state === this.state).sort(by[this.sort.value]);
    this.active = Math.max(0, Math.min(this.active, this.shown.length - 1));
    const all = this.all.length;
    this.count.textContent = this.shown.length === all ? whole(all) : `${whole(this.shown.length)} of ${whole(all)}`;
    this.render();
  }

  tally(found) {
    const counts = new Map(STATES.toReversed().map((state) => [state, 0]));
    for (const row of found) counts.set(row.state, (counts.get(row.state) ?? 0) + 1);
    const states = [...counts].filter(([state, count]) => count || state === this.state);
    const chips = [["", found.length], ...states];
    const told = JSON.stringify([chips, this.state]);
    if (told === this.told) return; // a button that has the focus keeps it
    this.told = told;
    const focused = document.activeElement?.dataset?.state;
    this.chips.replaceChildren(...chips.map(([state, count]) => this.chip(state, count)));
    if (focused !== undefined) this.chips.querySelector(`[data-state="${focused}"]`)?.focus();
  }

  chip(state, count) {
    const button = element("button", { type: "button", "data-state": state, "aria-pressed": String(state === this.state) });
    if (state) button.append(shape(shapeOf(state)));
    button.append(`${state ? words(state) : "all"} ${whole(count)}`);
    button.dataset.mood = state ? mood(state) : "";
    button.addEventListener("click", () => {
      this.state = state;
      this.narrow();
    });
    return button;
  }

  // -- what is in sight

  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.render();
    });
  }

  render() {
    const height = (this.height = parseFloat(getComputedStyle(this.rows).getPropertyValue("--row")));
    this.space.style.height = `${this.shown.length * height}px`;
    this.rows.setAttribute("aria-rowcount", this.shown.length + 1);
    const first = Math.max(0, Math.floor(this.rows.scrollTop / height) - SPARE);
    const last = Math.min(this.shown.length, Math.ceil((this.rows.scrollTop + this.rows.clientHeight) / height) + SPARE);
    while (this.pool.length < last - first) this.pool.push(this.grow());
    this.pool.forEach((slot, index) => {
      slot.root.hidden = index >= last - first;
      if (!slot.root.hidden) this.put(slot, first + index);
    });
    if (this.shown.length) this.rows.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.rows.removeAttribute("aria-activedescendant");
    if (this.detail.open) this.tell();
  }

  grow() {
    const cell = (name, ...children) => element("span", { role: "gridcell", class: name }, ...children);
    const use = drawn("use");
    const word = element("span");
    const trend = drawn("svg", { class: "trend", "aria-hidden": "true" });
    const state = cell("state", drawn("svg", { class: "shape", "aria-hidden": "true" }, use), word);
    const [ticker, feed, number, age, rows, restated] = ["ticker", "feed", "value", "age", "rows", "restated"].map((name) => cell(name));
    const root = element("div", { role: "row", class: "row" }, state, ticker, feed, number, cell("trend-cell", trend), age, rows, restated);
    this.space.append(root);
    return { root, use, word, state, ticker, feed, number, trend, age, rows, restated };
  }

  put(slot, index) {
    const row = this.shown[index];
    const { line } = row;
    slot.root.id = `row-${index}`;
    slot.root.dataset.index = index;
    slot.root.setAttribute("aria-rowindex", index + 2);
    slot.root.style.transform = `translateY(${index * this.height}px)`;
    slot.root.classList.toggle("active", index === this.active);
    slot.state.dataset.mood = mood(row.state);
    slot.use.setAttribute("href", `#shape-${shapeOf(row.state)}`);
    slot.word.textContent = words(row.state);
    slot.ticker.textContent = named(row);
    slot.ticker.classList.toggle("every", row.every);
    slot.feed.textContent = plain(row.feed);
    slot.number.textContent = value(line?.value);
    slot.age.textContent = line ? lasting((this.now() - line.received) / 1000) : "–";
    slot.rows.textContent = line ? whole(line.rows) : "–";
    slot.restated.textContent = line?.restated ? whole(line.restated) : "";
    if (slot.line !== line) trace(slot.trend, line, ...TREND); // drawing costs more than all the rest
    slot.line = line;
  }

  // -- one of them

  key(event) {
    const page = Math.max(1, Math.floor(this.rows.clientHeight / this.height) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") this.open(this.active);
    else if (event.key in steps) this.go(this.active + steps[event.key]);
    else return;
    event.preventDefault();
  }

  go(index) {
    this.active = Math.max(0, Math.min(index, this.shown.length - 1));
    const top = this.active * this.height;
    const visible = this.rows.clientHeight - this.space.offsetTop;
    if (top < this.rows.scrollTop) this.rows.scrollTop = top;
    else if (top + this.height > this.rows.scrollTop + visible) this.rows.scrollTop = top + this.height - visible;
    this.render();
  }

  open(index) {
    if (!this.shown[index]) return;
    this.active = index;
    this.chosen = this.shown[index];
    this.render();
    this.tell();
    this.detail.showModal();
  }

  /** All that is known of the chosen one, as of now. */
  tell() {
    const same = (row) => row.path === this.chosen.path && row.params === this.chosen.params && row.ticker === this.chosen.ticker;
    const row = this.all.find(same) ?? this.chosen;
    const { line } = row;
    document.getElementById("detail-title").textContent = named(row);
    trace(document.getElementById("detail-trend"), line, 480, 90);
    const facts = [
      ["state", words(row.state) + (row.since ? ` since ${date(Date.parse(row.since))}` : "")],
      ["reason", row.reason],
      ["path", row.path],
      ["params", row.params],
      ["feed", row.feed],
      ...(line ? known(line) : [["values", "none since the daemon started"]]),
    ];
    const terms = facts.filter(([, text]) => text).flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, plain(text))]);
    document.getElementById("detail-list").replaceChildren(...terms);
  }
}

function known(line) {
  return [
    [plain(line.metric), `${line.value}, of ${date(line.ts)} UTC`],
    ["received", `${date(line.received)} UTC`],
    ["between", `${value(line.least)} and ${value(line.greatest)}, last ${line.levels.length} values`],
    ["rows", `${whole(line.rows)}, ${whole(line.restated)} of them restated`],
  ];
}

const named = (row) => (row.every ? "every ticker" : plain(row.ticker)) + (row.user ? ` · user ${plain(row.user)}` : "");
