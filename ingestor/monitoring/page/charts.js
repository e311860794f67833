// What is drawn: sparklines, the load over time, and the strips of the last day.

import { clock, drawn, element, lasting, mood, plain, whole, words } from "./text.js";

const DAY_SECONDS = 86_400;

// -- sparklines

/** Draw a trace into an svg of this size: `levels` has a digit of base 36 for each value. */
export function trace(svg, line, width, height) {
  const steps = [...(line?.levels ?? "")].map((level) => parseInt(level, 36) / 35);
  const flat = line && line.least === line.greatest;
  const at = (level) => (flat ? height / 2 : 2 + (height - 4) * (1 - level)).toFixed(1);
  const across = (index) => (2 + ((width - 5) * index) / Math.max(steps.length - 1, 1)).toFixed(1);
  const points = steps.map((level, index) => `${across(index)},${at(level)}`);
  const zero = line && line.least < 0 && line.greatest > 0 ? at(-line.least / (line.greatest - line.least)) : null;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    ...(zero === null ? [] : [drawn("path", { class: "zero", d: `M0 ${zero}H${width}` })]),
    drawn("polyline", { class: "trace", points: points.join(" ") }),
    ...points.slice(-1).map((end) => {
      const [cx, cy] = end.split(",");
      return drawn("circle", { class: "end", cx, cy, r: 2 });
    }),
  );
}

// -- load

const CHARTS = [
  { title: "Received", unit: "entries a second, at most", column: 1, tell: (number) => `${whole(number)}/s` },
  { title: "Spool", unit: "entries that wait", column: 2, tell: (number) => whole(number) },
  { title: "Commit lag", unit: "wait of the oldest entry", column: 3, tell: (number) => (number < 10 ? `${number.toFixed(1)} s` : lasting(number)) },
];
const HEIGHT = 96;

export class Charts {
  constructor(root) {
    this.panels = CHARTS.map((chart) => {
      const svg = drawn("svg", { role: "img", height: HEIGHT });
      const now = element("strong");
      const note = element("span", { class: "note" });
      const from = element("span");
      root.append(
        element(
          "figure",
          {},
          element("figcaption", {}, element("span", {}, chart.title), now, note),
          svg,
          element("p", { class: "axis" }, from, element("span", {}, "now")),
        ),
      );
      const panel = { chart, svg, now, note, from };
      svg.addEventListener("pointermove", (event) => this.point(panel, event.offsetX));
      svg.addEventListener("pointerleave", () => this.point(panel, null));
      return panel;
    });
    this.ring = { step_seconds: 10, points: [] };
    new ResizeObserver(() => this.draw()).observe(root);
  }

  /** The step that is not over yet says too little, unless it is the first. */
  show({ step_seconds, points }) {
    const whole = points.filter((point) => point[0] >= step_seconds);
    this.ring = { step_seconds, points: whole.length ? whole : points };
    this.draw();
  }

  draw() {
    for (const panel of this.panels) {
      const { points, step_seconds } = this.ring;
      const width = panel.svg.clientWidth;
      const span = Math.max(points[0]?.[0] ?? 0, 30 * step_seconds);
      const top = nice(Math.max(...points.map((point) => point[panel.chart.column]), 0));
      Object.assign(panel, { width, span, top });
      panel.from.textContent = `${lasting(span)} ago`;
      panel.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      panel.svg.replaceChildren(...this.picture(panel));
      this.point(panel, null);
    }
  }

  picture(panel) {
    const { width, top, chart } = panel;
    const half = this.down(panel, top / 2);
    return [
      drawn("path", { class: "grid", d: `M0 ${this.down(panel, top)}H${width}M0 ${half}H${width}M0 ${HEIGHT - 1}H${width}` }),
      ...this.pieces(panel).flatMap((piece) => {
        const line = piece.map((point) => `${this.across(panel, point[0])} ${this.down(panel, point[chart.column])}`);
        const ends = [piece[0], piece.at(-1)].map((point) => this.across(panel, point[0]));
        return [
          drawn("path", { class: "area", d: `M${ends[0]} ${HEIGHT - 1}L${line.join("L")}L${ends[1]} ${HEIGHT - 1}z` }),
          drawn("path", { class: "line", d: `M${line.join("L")}` }),
        ];
      }),
      drawn("text", { class: "scale", x: 0, y: this.down(panel, top) - 3 }, chart.tell(top)),
      drawn("path", { class: "pointer" }),
    ];
  }

  /** Points that follow on each other: where nobody looked, the line is broken. */
  pieces(panel) {
    const pieces = [];
    let before = Infinity;
    for (const point of this.ring.points) {
      if (before - point[0] > 1.5 * this.ring.step_seconds) pieces.push([]);
      pieces.at(-1).push(point);
      before = point[0];
    }
    return pieces;
  }

  across(panel, age) {
    return Math.round(10 * panel.width * (1 - age / panel.span)) / 10;
  }

  down(panel, number) {
    return Math.round(10 * (HEIGHT - 1 - (HEIGHT - 17) * (number / panel.top))) / 10;
  }

  /** Say what it is now, or what it was where somebody points. */
  point(panel, x) {
    const { chart } = panel;
    const points = this.ring.points;
    const age = x === null ? 0 : panel.span * (1 - x / panel.width);
    const nearest = points.reduce((best, one) => (Math.abs(one[0] - age) < Math.abs(best[0] - age) ? one : best), points.at(-1));
    const said = nearest ? chart.tell(nearest[chart.column]) : "–";
    panel.now.textContent = said;
    panel.note.textContent = x === null || !nearest ? chart.unit : `${lasting(nearest[0])} ago`;
    const most = chart.tell(Math.max(...points.map((point) => point[chart.column]), 0));
    panel.svg.setAttribute("aria-label", `${chart.title}: now ${said}, at most ${most} in ${lasting(panel.span)}`);
    panel.svg.querySelector(".pointer")?.setAttribute("d", x === null || !nearest ? "" : `M${this.across(panel, nearest[0])} 12V${HEIGHT}`);
  }
}

/** The least round number that is not below. */
function nice(most) {
  if (most <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((factor) => factor * power).find((round) => round >= most);
}

// -- strips

const STRIP_HEIGHT = 26;

/** The strips of coverage.json, and below each what was missed in words. */
export function strips(root, told) {
  const end = Date.parse(told.end_at);
  root.replaceChildren(...told.strips.map((strip) => stripOf(strip, end, told.cell_seconds)), axis(end));
}

function stripOf(strip, end, cellSeconds) {
  const share = strip.live_seconds / strip.wanted_seconds;
  const percent = share === 1 ? "100 %" : `${(Math.floor(share * 1000) / 10).toFixed(1)} %`;
  let cell = 0;
  const start = end - 1000 * DAY_SECONDS;
  const runs = strip.runs.map(([cells, state, live]) => {
    const run = { first: cell, cells, state, live, from: start + cell * cellSeconds * 1000 };
    cell += cells;
    run.to = start + cell * cellSeconds * 1000;
    return run;
  });
  const svg = drawn(
    "svg",
    { class: "strip", role: "img", "aria-label": `${plain(strip.feed)}: ${percent} listened`, preserveAspectRatio: "none" },
    ...runs.flatMap((run) => pictured(run, cell)),
  );
  return element(
    "div",
    { class: "day" },
    element("span", { class: "label" }, plain(strip.feed)),
    svg,
    element("span", { class: "percent" }, percent),
    element("p", { class: "note missed-words" }, missed(runs)),
  );
}

function pictured(run, cells) {
  const percent = (part) => `${(100 * part) / cells}%`;
  const place = { x: percent(run.first), width: percent(run.cells) };
  const title = drawn("title", {}, spoken(run));
  if (run.state === "") return [drawn("rect", { ...place, y: 0, height: STRIP_HEIGHT, class: "unknown" }, title)];
  if (run.state === "live") return [drawn("rect", { ...place, y: 0, height: STRIP_HEIGHT, class: "live" }, title)];
  // However short it was, it is to be seen.
  const live = Math.round((STRIP_HEIGHT * Math.min(run.live, 70)) / 100);
  return [
    drawn("rect", { ...place, y: 0, height: STRIP_HEIGHT - live, class: `missed ${mood(run.state)}` }, title),
    drawn("rect", { ...place, y: STRIP_HEIGHT - live, height: live, class: "live" }, title.cloneNode(true)),
  ];
}

function spoken(run) {
  const share = run.state === "" ? "not asked for" : run.state === "live" ? "live" : `${words(run.state)}, live ${run.live} %`;
  return `${between(run)}: ${share}`;
}

const between = (run) => `${clock(run.from).slice(0, 5)}–${clock(run.to).slice(0, 5)}`;

/** What was missed, the longest first; cells next to each other in one state are told as one. */
function missed(runs) {
  const holes = [];
  for (const run of runs) {
    if (run.state === "" || run.state === "live") continue;
    const last = holes.at(-1);
    if (last?.to === run.from && last.state === run.state) last.to = run.to;
    else holes.push({ ...run });
  }
  if (!holes.length) return "nothing missed";
  const longest = holes.toSorted((one, other) => other.to - other.from - (one.to - one.from)).slice(0, 3);
  const told = longest.toSorted((one, other) => one.from - other.from).map((hole) => `${between(hole)} ${words(hole.state)}`);
  return told.join(" · ") + (holes.length > 3 ? ` · and ${holes.length - 3} more` : "");
}

function axis(end) {
  const hours = element("p", { class: "axis hours", "aria-hidden": "true" });
  const first = Math.ceil((end - 1000 * DAY_SECONDS) / 10_800_000) * 10_800_000;
  for (let at = first; at <= end; at += 10_800_000) {
    const tick = element("span", {}, clock(at).slice(0, 5));
    tick.style.left = `${(100 * (at - end + 1000 * DAY_SECONDS)) / (1000 * DAY_SECONDS)}%`;
    hours.append(tick);
  }
  return hours;
}
