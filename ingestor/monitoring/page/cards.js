// The figures at the top.

import { bytes, drawn, element, lasting, mood, several, shape, shapeOf, STATES, whole, words } from "./text.js";

/** `now`: the daemon's clock, in milliseconds. */
export function cards(root, status, now) {
  root.replaceChildren(connections(status), subscriptions(status), rows(status), spool(status), database(status, now), token(status, now));
}

function card(name, mood, figure, notes, share) {
  const made = element("article", { "data-mood": mood }, element("h2", {}, name), figure);
  if (share !== undefined) made.append(meter(name, share));
  made.append(...notes.filter(Boolean).map((note) => (typeof note === "string" ? element("p", {}, note) : note)));
  return made;
}

const figure = (text, unit = "") => element("p", { class: "figure" }, text, element("small", {}, unit && ` ${unit}`));

function meter(name, share) {
  const percent = Math.max(0, Math.min(100, 100 * share));
  const bar = drawn("rect", { class: "bar", height: 6, rx: 3, width: `${percent ? Math.max(percent, 1) : 0}%` });
  return drawn("svg", { class: "meter", role: "img", "aria-label": `${name}: ${Math.round(percent)} %`, height: 6 }, drawn("rect", { class: "track", height: 6, rx: 3, width: "100%" }), bar);
}

function connections({ connections: all }) {
  const up = all.filter((one) => one.connected).length;
  return card("Connections", up === all.length && up ? "good" : "bad", figure(`${up}`, `of ${all.length} up`), [several(all.reduce((sum, one) => sum + one.frames, 0), "frame")]);
}

function subscriptions({ subscriptions: all }) {
  const counts = new Map();
  for (const { state } of all) counts.set(state, (counts.get(state) ?? 0) + 1);
  const live = counts.get("live") ?? 0;
  const others = STATES.filter((state) => state !== "live" && counts.has(state));
  const notes = others.map((state) => element("p", { "data-mood": mood(state) }, shape(shapeOf(state)), `${whole(counts.get(state))} ${words(state)}`));
  return card("Subscriptions", others.length ? mood(others[0]) : "good", figure(whole(live), `of ${whole(all.length)} live`), notes.length ? notes.slice(0, 3) : ["all of them"]);
}

function rows({ rows: { new: fresh, revised, duplicate, dead } }) {
  const worse = dead && element("p", { "data-mood": "warn" }, shape("triangle"), `${whole(dead)} dead letters`);
  return card("Rows written", dead ? "warn" : "good", figure(whole(fresh), "new"), [`${whole(revised)} restated`, `${whole(duplicate)} repeats`, worse]);
}

function spool({ spool: { entries, bytes: used, limit_bytes: limit, oldest_age_seconds: age } }) {
  const share = limit ? used / limit : 0;
  const waits = entries ? `oldest waits ${lasting(age)}` : "nothing waits";
  return card("Spool", share >= 1 ? "bad" : share > 0.5 ? "warn" : "good", figure(whole(entries), entries === 1 ? "entry" : "entries"), [`${bytes(used)} of ${bytes(limit)}`, waits], share);
}

function database({ database: { up, kind, lag_seconds: lag, last_commit_at: commit, last_error: error } }, now) {
  const ago = commit && `last commit ${lasting((now - Date.parse(commit)) / 1000)} ago`;
  const name = { sqlite: "SQLite", postgresql: "PostgreSQL" }[kind] ?? kind;
  return card("Database", up ? "good" : "bad", figure(up ? "up" : "away", name), [`lag ${lag < 10 ? `${lag.toFixed(1)} s` : lasting(lag)}`, up ? ago : error && element("p", { class: "error" }, error)]);
}

function token({ token: { expires_at: end, life_seconds: life, logins } }, now) {
  if (!end) return card("Token", "bad", figure("none"), [outcomes(logins)]);
  const left = (Date.parse(end) - now) / 1000;
  return card("Token", left > 0 ? "good" : "bad", figure(lasting(left), "left"), [outcomes(logins)], life ? left / life : undefined);
}

const outcomes = (logins) => Object.entries(logins).filter(([, count]) => count).map(([outcome, count]) => `${whole(count)} ${outcome}`).join(", ").replace(/^(.+)$/, "logins: $1");
