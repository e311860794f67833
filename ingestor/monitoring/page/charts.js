// Sparklines, the charts of the load over time, and the coverage strips of the last day.

import { element, formatDuration, formatInteger, formatName, formatTime, levelOf, printable, svgElement } from "./text.js";

const DAY_SECONDS = 86_400;

// -- sparklines

/** Draw a line of values.json into an svg of this size. Its `levels` has one base-36 digit per value. */
export function drawSparkline(svg, line, width, height) {
  const levels = [...(line?.levels ?? "")].map((digit) => parseInt(digit, 36) / 35);
  const flat = line && line.least === line.greatest;
  const yOf = (level) => (flat ? height / 2 : 2 + (height - 4) * (1 - level)).toFixed(1);
  const xOf = (index) => (2 + ((width - 5) * index) / Math.max(levels.length - 1, 1)).toFixed(1);
  const points = levels.map((level, index) => `${xOf(index)},${yOf(level)}`);
  const zero = line && line.least < 0 && line.greatest > 0 ? yOf(-line.least / (line.greatest - line.least)) : null;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    ...(zero === null ? [] : [svgElement("path", { class: "zero", d: `M0 ${zero}H${width}` })]),
    svgElement("polyline", { class: "trace", points: points.join(" ") }),
    ...points.slice(-1).map((end) => {
      const [cx, cy] = end.split(",");
      return svgElement("circle", { class: "end", cx, cy, r: 2 });
    }),
  );
}

// -- load

const CHARTS = [
  { title: "Received", unit: "entries per second", column: 1, format: (number) => `${formatInteger(number)}/s` },
  { title: "Spool", unit: "entries waiting", column: 2, format: (number) => formatInteger(number) },
  { title: "Commit lag", unit: "oldest entry", column: 3, format: (number) => (number < 10 ? `${number.toFixed(1)} s` : formatDuration(number)) },
];
const HEIGHT = 96;

export class LoadCharts {
  constructor(root) {
    this.panels = CHARTS.map((chart) => {
      const svg = svgElement("svg", { role: "img", height: HEIGHT });
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
      svg.addEventListener("pointermove", (event) => this.showPoint(panel, event.offsetX));
      svg.addEventListener("pointerleave", () => this.showPoint(panel, null));
      return panel;
    });
    this.ring = { step_seconds: 10, points: [] };
    this.current = []; // the numbers at this moment, by column; a ring has the maximum of each step
    new ResizeObserver(() => this.render()).observe(root);
  }

  /** Take the numbers that the cards show, so that chart and card agree. */
  setCurrent({ spool, database }) {
    this.current = [, , spool.entries, database.lag_seconds];
    for (const panel of this.panels) if (!panel.pointed) this.showPoint(panel, null);
  }

  /** Show a ring of history.json, without the current step: its maxima are still too low. */
  setRing({ step_seconds, points }) {
    const finished = points.filter((point) => point[0] >= step_seconds);
    this.ring = { step_seconds, points: finished.length ? finished : points };
    this.render();
  }

  render() {
    for (const panel of this.panels) {
      const { points, step_seconds } = this.ring;
      const width = panel.svg.clientWidth;
      const span = Math.max(points[0]?.[0] ?? 0, 30 * step_seconds);
      const top = roundUp(Math.max(...points.map((point) => point[panel.chart.column]), 0));
      Object.assign(panel, { width, span, top });
      panel.from.textContent = `${formatDuration(span)} ago`;
      panel.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      panel.svg.replaceChildren(...this.chartElements(panel));
      this.showPoint(panel, null);
    }
  }

  chartElements(panel) {
    const { width, top, chart } = panel;
    const middle = this.yOf(panel, top / 2);
    return [
      svgElement("path", { class: "grid", d: `M0 ${this.yOf(panel, top)}H${width}M0 ${middle}H${width}M0 ${HEIGHT - 1}H${width}` }),
      ...this.segments().flatMap((segment) => {
        const line = segment.map((point) => `${this.xOf(panel, point[0])} ${this.yOf(panel, point[chart.column])}`);
        const ends = [segment[0], segment.at(-1)].map((point) => this.xOf(panel, point[0]));
        return [
          svgElement("path", { class: "area", d: `M${ends[0]} ${HEIGHT - 1}L${line.join("L")}L${ends[1]} ${HEIGHT - 1}z` }),
          svgElement("path", { class: "line", d: `M${line.join("L")}` }),
        ];
      }),
      svgElement("text", { class: "scale", x: 0, y: this.yOf(panel, top) - 3 }, chart.format(top)),
      svgElement("path", { class: "pointer" }),
    ];
  }

  /** Split the points where steps are missing: the line is interrupted there. */
  segments() {
    const segments = [];
    let previousAge = Infinity;
    for (const point of this.ring.points) {
      if (previousAge - point[0] > 1.5 * this.ring.step_seconds) segments.push([]);
      segments.at(-1).push(point);
      previousAge = point[0];
    }
    return segments;
  }

  xOf(panel, age) {
    return Math.round(10 * panel.width * (1 - age / panel.span)) / 10;
  }

  yOf(panel, number) {
    return Math.round(10 * (HEIGHT - 1 - (HEIGHT - 17) * (number / panel.top))) / 10;
  }

  /** Show the number at the pointer's `x`, or the current one if `x` is null. */
  showPoint(panel, x) {
    const { chart } = panel;
    const points = this.ring.points;
    const age = x === null ? 0 : panel.span * (1 - x / panel.width);
    const nearest = points.reduce((best, point) => (Math.abs(point[0] - age) < Math.abs(best[0] - age) ? point : best), points.at(-1));
    const current = x === null ? this.current[chart.column] : undefined;
    const shown = current ?? nearest?.[chart.column];
    const number = shown === undefined ? "–" : chart.format(shown);
    const maximum = chart.format(Math.max(...points.map((point) => point[chart.column]), current ?? 0));
    panel.pointed = x !== null;
    panel.now.textContent = number;
    panel.note.textContent = x === null || !nearest ? `${chart.unit} · at most ${maximum}` : `at most, ${formatDuration(nearest[0])} ago`;
    panel.svg.setAttribute("aria-label", `${chart.title}: now ${number}, maximum ${maximum} in ${formatDuration(panel.span)}`);
    panel.svg.querySelector(".pointer")?.setAttribute("d", x === null || !nearest ? "" : `M${this.xOf(panel, nearest[0])} 12V${HEIGHT}`);
  }
}

/** Round up to 1, 2 or 5 times a power of ten. */
function roundUp(number) {
  if (number <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].map((factor) => factor * power).find((round) => round >= number);
}

// -- strips

const STRIP_HEIGHT = 26;

/** Draw the strips of coverage.json, each with its longest gaps in words. */
export function renderStrips(root, coverage) {
  const end = Date.parse(coverage.end_at);
  root.replaceChildren(...coverage.strips.map((strip) => stripElement(strip, end, coverage.cell_seconds)), hourAxis(end));
}

function stripElement(strip, end, cellSeconds) {
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
  const svg = svgElement(
    "svg",
    { class: "strip", role: "img", "aria-label": `${printable(strip.feed)}: ${percent} live`, preserveAspectRatio: "none" },
    ...runs.flatMap((run) => runElements(run, cell)),
  );
  return element(
    "div",
    { class: "day" },
    element("span", { class: "label", title: printable(strip.feed) }, printable(strip.feed)),
    svg,
    element("span", { class: "percent" }, percent),
    element("p", { class: "note gaps" }, describeGaps(runs)),
  );
}

function runElements(run, cells) {
  const percent = (part) => `${(100 * part) / cells}%`;
  const place = { x: percent(run.first), width: percent(run.cells) };
  const title = svgElement("title", {}, runTitle(run));
  if (run.state === "") return [svgElement("rect", { ...place, y: 0, height: STRIP_HEIGHT, class: "unknown" }, title)];
  if (run.state === "live") return [svgElement("rect", { ...place, y: 0, height: STRIP_HEIGHT, class: "live" }, title)];
  // At most 70 % of the height, so that the shortest gap can be seen.
  const live = Math.round((STRIP_HEIGHT * Math.min(run.live, 70)) / 100);
  return [
    svgElement("rect", { ...place, y: 0, height: STRIP_HEIGHT - live, class: `missed ${levelOf(run.state)}` }, title),
    svgElement("rect", { ...place, y: STRIP_HEIGHT - live, height: live, class: "live" }, title.cloneNode(true)),
  ];
}

function runTitle(run) {
  const state = run.state === "" ? "not subscribed" : run.state === "live" ? "live" : `${formatName(run.state)}, live ${run.live} %`;
  return `${timeRange(run)}: ${state}`;
}

const timeRange = (run) => `${formatTime(run.from).slice(0, 5)}–${formatTime(run.to).slice(0, 5)}`;

/** Name the three longest gaps. Adjacent runs of one state are one gap. */
function describeGaps(runs) {
  const gaps = [];
  for (const run of runs) {
    if (run.state === "" || run.state === "live") continue;
    const last = gaps.at(-1);
    if (last?.to === run.from && last.state === run.state) last.to = run.to;
    else gaps.push({ ...run });
  }
  if (!gaps.length) return "no gaps";
  const longest = gaps.toSorted((a, b) => b.to - b.from - (a.to - a.from)).slice(0, 3);
  const descriptions = longest.toSorted((a, b) => a.from - b.from).map((gap) => `${timeRange(gap)} ${formatName(gap.state)}`);
  return descriptions.join(" · ") + (gaps.length > 3 ? ` · and ${gaps.length - 3} more` : "");
}

function hourAxis(end) {
  const hours = element("p", { class: "axis hours", "aria-hidden": "true" });
  const first = Math.ceil((end - 1000 * DAY_SECONDS) / 10_800_000) * 10_800_000;
  for (let at = first; at <= end; at += 10_800_000) {
    const tick = element("span", {}, formatTime(at).slice(0, 5));
    tick.style.left = `${(100 * (at - end + 1000 * DAY_SECONDS)) / (1000 * DAY_SECONDS)}%`;
    hours.append(tick);
  }
  return hours;
}
