// The cards at the top: one figure each for connections, subscriptions, rows, spool, database and token.

import {
  element, formatBytes, formatCount, formatDuration, formatInteger, formatName, levelOf, printable, shapeIcon, shapeOf, STATES, svgElement,
} from "./text.js";

/** `now`: the daemon's clock, in milliseconds. */
export function renderCards(root, status, now) {
  root.replaceChildren(
    connectionsCard(status), subscriptionsCard(status), rowsCard(status), spoolCard(status), databaseCard(status, now), tokenCard(status, now),
    ...instancesCards(status),
  );
}

/** `share`: draws a bar that is full at 1. */
function card(name, level, figure, notes, share) {
  const article = element("article", { "data-level": level }, element("h2", {}, name), figure);
  if (share !== undefined) article.append(meter(name, share));
  article.append(...notes.filter(Boolean).map((note) => (typeof note === "string" ? element("p", {}, note) : note)));
  return article;
}

const figure = (text, unit = "") => element("p", { class: "figure" }, text, element("small", {}, unit && ` ${unit}`));

function meter(name, share) {
  const percent = Math.max(0, Math.min(100, 100 * share));
  const bar = svgElement("rect", { class: "bar", height: 6, rx: 3, width: `${percent ? Math.max(percent, 1) : 0}%` });
  const track = svgElement("rect", { class: "track", height: 6, rx: 3, width: "100%" });
  return svgElement("svg", { class: "meter", role: "img", "aria-label": `${name}: ${Math.round(percent)} %`, height: 6 }, track, bar);
}

const standsBy = ({ standby }) => standby?.role === "standby";

function connectionsCard(status) {
  const { connections } = status;
  const up = connections.filter((connection) => connection.connected).length;
  const frames = connections.reduce((sum, connection) => sum + connection.frames, 0);
  const level = standsBy(status) || !connections.some(({ connected, last_error: error }) => connected || error) ? "idle" : up === connections.length ? "good" : "bad";
  return card("Connections", level, figure(`${up}`, `of ${connections.length} up`), [formatCount(frames, "frame")]);
}

function subscriptionsCard({ subscriptions }) {
  const counts = new Map();
  for (const { state } of subscriptions) counts.set(state, (counts.get(state) ?? 0) + 1);
  const others = STATES.filter((state) => state !== "live" && counts.has(state));
  const notes = others.map((state) =>
    element("p", { "data-level": levelOf(state) }, shapeIcon(shapeOf(state)), `${formatInteger(counts.get(state))} ${formatName(state)}`),
  );
  const live = figure(formatInteger(counts.get("live") ?? 0), `of ${formatInteger(subscriptions.length)} live`);
  return card("Subscriptions", others.length ? levelOf(others[0]) : "good", live, notes.length ? notes.slice(0, 3) : ["all are live"]);
}

function rowsCard({ rows: { new: added, revised, duplicate, dead } }) {
  const deadNote = dead && element("p", { "data-level": "warn" }, shapeIcon("triangle"), formatCount(dead, "dead letter"));
  const notes = [`${formatInteger(revised)} restated`, formatCount(duplicate, "duplicate"), deadNote];
  return card("Rows written", dead ? "warn" : "good", figure(formatInteger(added), "new"), notes);
}

function spoolCard({ spool: { entries, bytes, limit_bytes: limit, oldest_age_seconds: age } }) {
  const share = limit ? bytes / limit : 0;
  const oldest = entries ? `oldest has waited ${formatDuration(age)}` : "nothing is waiting";
  const notes = [`${formatBytes(bytes)} of ${formatBytes(limit)}`, oldest];
  return card("Spool", share >= 1 ? "bad" : share > 0.5 ? "warn" : "good", figure(formatInteger(entries), entries === 1 ? "entry" : "entries"), notes, share);
}

function databaseCard({ database: { up, kind, lag_seconds: lag, last_commit_at: committed, last_error: error } }, now) {
  const lastCommit = committed && `last commit ${formatDuration((now - Date.parse(committed)) / 1000)} ago`;
  const product = { sqlite: "SQLite", postgresql: "PostgreSQL" }[kind] ?? kind;
  const lagNote = `commit lag ${lag < 10 ? `${lag.toFixed(1)} s` : formatDuration(lag)}`;
  if (!up && !error) return card("Database", "idle", figure("opening", product), []);
  return card("Database", up ? "good" : "bad", figure(up ? "up" : "down", product), [lagNote, lastCommit]);
}

/** A card only where several daemons share the database. */
function instancesCards({ instances }) {
  if (instances.length < 2) return [];
  const running = instances.filter(({ state }) => state !== "stopped");
  const alive = running.filter(({ state }) => state === "alive").length;
  const notes = running.slice(-4).map(({ instance_id: id, name, own, state, behind_seconds: behind, leases }) => {
    const about = [state === "alive" ? `${formatDuration(behind)} behind` : `${state} for ${formatDuration(behind)}`, ...leases];
    return element("p", { "data-level": state === "alive" ? "good" : "warn" }, `${printable(name)} (${id}${own ? ", this daemon" : ""}): ${about.join(", ")}`);
  });
  return [card("Instances", alive === running.length ? "good" : "warn", figure(`${alive}`, `of ${running.length} alive`), notes)];
}

function tokenCard(status, now) {
  const { expires_at: end, life_seconds: life, logins } = status.token;
  if (!end) return card("Token", standsBy(status) || !formatLogins(logins) ? "idle" : "bad", figure("none"), [formatLogins(logins)]);
  const left = (Date.parse(end) - now) / 1000;
  return card("Token", left > 0 ? "good" : "bad", figure(formatDuration(left), "left"), [formatLogins(logins)], life ? left / life : undefined);
}

function formatLogins(logins) {
  const counts = Object.entries(logins).filter(([, count]) => count).map(([outcome, count]) => `${formatInteger(count)} ${outcome}`);
  return counts.length ? `logins: ${counts.join(", ")}` : "";
}
