// Polls the daemon every two seconds and shows its status. Says so when the daemon no longer responds.

import { renderCards } from "./cards.js";
import { LoadCharts, renderStrips } from "./charts.js";
import { Table } from "./table.js";
import { element, formatCount, formatDateTime, formatDuration, formatInteger, formatName, formatShare, formatTime, printable, shapeIcon } from "./text.js";

const POLL_MS = 2000;
const TIMEOUT_MS = 5000;

const byId = (id) => document.getElementById(id);
let status = null; // the last one received
let receivedAt = 0; // performance.now() when it was
let failingSince = null; // performance.now() of the first request that failed; null while the daemon responds
let version = 0; // of the values received so far
let rings = null;
let range = "hour";

/** The daemon's clock, in milliseconds: the browser's may be wrong. */
const now = () => (status ? Date.parse(status.at) + performance.now() - receivedAt : 0);
const table = new Table(now);
const charts = new LoadCharts(byId("charts"));

// -- requests

async function fetchJson(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  return response.json();
}

/** Fetch a document again and again while the page is visible. `pause(body)`: milliseconds to the next request. */
async function poll(path, show, pause = () => POLL_MS, onFailure = () => null) {
  for (;;) {
    const body = document.hidden ? null : await fetchJson(path()).catch(onFailure);
    try {
      if (body) show(body);
    } catch (error) {
      reportError(error); // a bug of this page must not stop the polling
    }
    await sleep(body ? pause(body) : POLL_MS);
  }
}

/** Wait, but not longer than until the page becomes visible again. */
function sleep(ms) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    document.addEventListener("visibilitychange", end);
  });
}

// -- content

function showStatus(body) {
  if (status && status.started_at !== body.started_at) {
    version = 0; // the daemon was restarted, and counts from 0
    table.clearLines();
  }
  status = body;
  receivedAt = performance.now();
  failingSince = null;
  byId("instance").textContent = printable(body.instance);
  renderCards(byId("cards"), body, now());
  charts.setCurrent(body);
  table.setSubscriptions(body.subscriptions);
  byId("connections").replaceChildren(...body.connections.map(connectionItem));
  const errors = [...currentTrouble(body), ...body.last_errors.toReversed().map(errorItem)];
  byId("errors").replaceChildren(...(errors.length ? errors : [element("li", { class: "none" }, "none since the daemon started")]));
  showVerdict();
}

function showValues({ version: newest, lines }) {
  version = newest;
  if (lines.length) table.setLines(lines);
}

function showRange() {
  for (const button of byId("range").children) button.setAttribute("aria-pressed", String(button.dataset.range === range));
  if (rings) charts.setRing(rings[range]);
}

function showCoverage(body) {
  if (body.as_of) renderStrips(byId("strips"), body);
  // The database's own words are in the verdict; here only their consequence is said.
  const stale = body.as_of && body.error ? `The database cannot be read: this is the state of ${formatTime(Date.parse(body.as_of))} UTC.` : "";
  const missing = body.error ? "Not known yet: the database cannot be read." : "Not read yet.";
  byId("coverage-stale").hidden = !body.error;
  byId("coverage-stale").textContent = body.error ? stale || missing : "";
  byId("coverage-note").textContent = [
    ...(body.as_of ? ["share of the subscribed time that was live; times are UTC"] : body.error ? [] : [missing]),
    ...(body.more ? [`and ${formatCount(body.more, "more feed")} with fewer gaps`] : []),
  ].join(" · ");
}

function connectionItem(connection) {
  const unconnected = status?.standby?.role === "standby" ? ["ring", "idle"] : ["triangle", "bad"];
  const [shape, level] = connection.connected ? ["dot", "good"] : unconnected;
  const ago = (at) => formatDuration((now() - Date.parse(at)) / 1000);
  const since = connection.since ? ` for ${ago(connection.since)}` : "";
  const frames = formatCount(connection.frames, "frame") + (connection.last_frame_at ? `, last ${ago(connection.last_frame_at)} ago` : "");
  const protocol = connection.connected && connection.dialect ? ` · Socket.IO protocol ${connection.dialect}` : "";
  return element(
    "li",
    { "data-level": level },
    shapeIcon(shape),
    element("div", {},
      element("strong", {}, printable(connection.path)),
      element("span", {}, `${connection.connected ? "connected" : "not connected"}${since}${protocol} · ${frames}`),
      ...(connection.last_error ? [element("span", { class: "error" }, printable(connection.last_error))] : []),
    ),
  );
}

/** What is wrong now and is no event of the past: the database, which events are written to. */
function currentTrouble({ database: { up, last_error: error } }) {
  if (up || !error) return [];
  return [element("li", { class: "now" }, element("time", {}, "now"), element("strong", {}, "database unavailable"), element("span", {}, printable(error)))];
}

function errorItem(error) {
  return element(
    "li",
    {},
    element("time", {}, formatTime(Date.parse(error.at))),
    element("strong", {}, formatName(error.kind)),
    element("span", {}, printable(error.text)),
  );
}

// -- the verdict, updated every second even if the daemon does not respond

function showVerdict() {
  if (!status && failingSince === null) return;
  document.body.classList.toggle("stale", failingSince !== null);
  const [level, shape, title, reasons] = verdict();
  byId("verdict").dataset.level = level;
  replaceIfChanged(
    byId("verdict"),
    title + reasons.join(),
    shapeIcon(shape),
    element("strong", {}, title),
    ...(reasons.length ? [element("ul", {}, ...reasons.map((reason) => element("li", {}, printable(reason))))] : []),
  );
  document.title = `${{ good: "●", warn: "▲", bad: "✕", idle: "○" }[level]} ${status ? printable(status.instance) : "ingestor"}: ${title.toLowerCase()}`;
  byId("outage").hidden = failingSince === null;
  if (failingSince !== null) {
    const age = status ? ` The data shown here is from ${formatDateTime(Date.parse(status.at))} UTC.` : "";
    replaceIfChanged(byId("outage"), age, `The daemon does not respond.${age} Trying again every ${POLL_MS / 1000} seconds.`);
  }
  if (!status) return;
  const uptime = formatDuration((now() - Date.parse(status.started_at)) / 1000);
  byId("about").textContent = `version ${status.version} · up ${uptime} · times are UTC`;
  byId("updated").textContent =
    failingSince === null ? `updated ${formatTime(now())} UTC` : `no response for ${formatDuration((performance.now() - failingSince) / 1000)}`;
  table.scheduleRender();
}

/** Leave the element alone unless `content` differs: screen readers read an alert aloud at every change. */
function replaceIfChanged(root, content, ...children) {
  if (root.dataset.content === content) return;
  root.dataset.content = content;
  root.replaceChildren(...children);
}

function verdict() {
  if (failingSince !== null) return ["bad", "cross", "No response", []];
  if (!status.healthy.ok) return ["bad", "cross", "Stuck", status.healthy.reasons];
  if (isStarting(status)) return ["idle", "ring", "Starting", shorten(status.ready.reasons)];
  if (!status.ready.ok) return ["bad", "triangle", "Not ready", shorten(withCauses(status))];
  if (status.standby?.role === "standby") return ["idle", "ring", "Standing by", [status.standby.reason]];
  const notLive = status.subscriptions.filter((subscription) => subscription.state !== "live").length;
  const warnings = [
    ...(notLive ? [`${formatShare(notLive, status.subscriptions.length, "subscription")} not live`] : []),
    ...status.instances.filter(({ state }) => state === "silent").map(({ name }) => `instance ${name} is silent`),
    ...(status.config_reload_successful ? [] : ["the changed config was rejected, the previous one is in use"]),
  ];
  const title = status.config_reload_successful ? "Receiving, instance silent" : "Receiving, config rejected";
  if (warnings.length) return ["warn", "half", notLive ? "Partly receiving" : title, warnings];
  return ["good", "dot", "Receiving", []];
}

/** Whether nothing has failed yet, and nothing has worked yet. */
function isStarting({ ready, connections, database }) {
  const tried = connections.some((connection) => connection.connected || connection.frames || connection.last_error);
  return !ready.ok && !tried && !database.last_error;
}

/** The reasons why the daemon is not ready. Connections that fail alike are one reason, with its cause. */
function withCauses({ ready, connections, standby }) {
  const causes = new Map();
  for (const { path, connected, last_error: error } of standby?.role === "standby" ? [] : connections) {
    if (connected || !error) continue;
    const cause = error.replace(/ \(\d+ failed attempts?, the next one in \d+ s\)$/, "");
    causes.set(cause, [...(causes.get(cause) ?? []), path]);
  }
  const explained = new Set([...causes.values()].flat().map((path) => `${path}: not connected`));
  const lines = [...causes].map(([cause, paths]) => `${paths.length > 1 ? `${paths.length} connections are` : `${paths[0]}:`} not connected: ${cause}`);
  return [...lines, ...ready.reasons.filter((reason) => !explained.has(reason))];
}

const shorten = (reasons) => (reasons.length > 4 ? [...reasons.slice(0, 3), `and ${reasons.length - 3} more`] : reasons);

function onStatusFailure() {
  failingSince ??= performance.now();
  showVerdict();
  return null;
}

byId("range").addEventListener("click", (event) => {
  range = event.target.dataset.range ?? range;
  showRange();
});
setInterval(showVerdict, 1000);
poll(() => "/status.json", showStatus, () => POLL_MS, onStatusFailure);
poll(() => `/values.json?after=${version}`, showValues);
poll(() => "/history.json", (body) => { rings = body; showRange(); }, () => 2 * POLL_MS);
poll(() => "/coverage.json", showCoverage, (body) => (body.strips.length ? 5 * POLL_MS : POLL_MS / 2));
