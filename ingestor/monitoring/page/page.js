// Asks the daemon every other second and shows what it says; says so when it says nothing any more.

import { cards } from "./cards.js";
import { Charts, strips } from "./charts.js";
import { Table } from "./table.js";
import { clock, date, element, lasting, plain, shape, whole, words } from "./text.js";

const ASK_MS = 2000;
const PATIENCE_MS = 5000; // for an answer

const at = (id) => document.getElementById(id);
let status = null; // the last that was told
let toldAt = 0; // performance.now() of it
let failingSince = null; // performance.now() of the first question that had no answer
let version = 0; // of the values that we have
let rings = null;
let range = "hour";

/** The daemon's clock, in milliseconds: ours may be wrong. */
const now = () => (status ? Date.parse(status.at) + performance.now() - toldAt : 0);
const table = new Table(now);
const charts = new Charts(at("charts"));

// -- asking

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  return answer.json();
}

/** Ask again and again while somebody looks. `pause(answer)`: milliseconds to the next time. */
async function keepAsking(path, use, pause = () => ASK_MS, fail = () => null) {
  for (;;) {
    const answer = document.hidden ? null : await ask(path()).catch(fail);
    try {
      if (answer) use(answer);
    } catch (error) {
      reportError(error); // a mistake of ours: to the console, and on with the next answer
    }
    await passed(answer ? pause(answer) : ASK_MS);
  }
}

/** Time passes, less for whoever comes back to the page. */
function passed(ms) {
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

// -- showing

function showStatus(told) {
  if (status && status.started_at !== told.started_at) {
    version = 0; // another run, which counts anew
    table.forget();
  }
  status = told;
  toldAt = performance.now();
  failingSince = null;
  at("instance").textContent = plain(told.instance);
  cards(at("cards"), told, now());
  table.setSubscriptions(told.subscriptions);
  at("connections").replaceChildren(...told.connections.map(connection));
  at("troubles").replaceChildren(...told.last_errors.toReversed().map(trouble));
  if (!told.last_errors.length) at("troubles").append(element("li", { class: "none" }, "nothing"));
  tick();
}

function showValues({ version: newest, lines }) {
  version = newest;
  if (lines.length) table.setLines(lines);
}

function showRange() {
  for (const button of at("range").children) button.setAttribute("aria-pressed", String(button.dataset.range === range));
  if (rings) charts.show(rings[range]);
}

function showCoverage(told) {
  if (told.as_of) strips(at("strips"), told);
  at("coverage-note").textContent = [
    told.as_of ? "share of the time that was asked for; hours are UTC" : "not read yet",
    ...(told.more ? [`and ${whole(told.more)} more feeds, of which less was missed`] : []),
    ...(told.error ? [told.as_of ? `as of ${clock(Date.parse(told.as_of))}: ${plain(told.error)}` : plain(told.error)] : []),
  ].join(" · ");
}

function connection(one) {
  const [name, mood] = one.connected ? ["dot", "good"] : ["triangle", "bad"];
  const since = one.since ? ` for ${lasting((now() - Date.parse(one.since)) / 1000)}` : "";
  const frames = `${whole(one.frames)} frames` + (one.last_frame_at ? `, the last ${lasting((now() - Date.parse(one.last_frame_at)) / 1000)} ago` : "");
  const protocol = one.connected && one.dialect ? ` · Socket.IO protocol ${one.dialect}` : "";
  return element(
    "li",
    { "data-mood": mood },
    shape(name),
    element("div", {},
      element("strong", {}, plain(one.path)),
      element("span", {}, `${one.connected ? "connected" : "not connected"}${since}${protocol} · ${frames}`),
      ...(one.last_error ? [element("span", { class: "error" }, plain(one.last_error))] : []),
    ),
  );
}

function trouble(one) {
  return element("li", {}, element("time", {}, clock(Date.parse(one.at))), element("strong", {}, words(one.kind)), element("span", {}, plain(one.text)));
}

// -- the verdict, every second, also when nothing is heard

function tick() {
  if (!status && failingSince === null) return;
  const silent = failingSince === null ? 0 : (performance.now() - failingSince) / 1000;
  document.body.classList.toggle("stale", failingSince !== null);
  const [mood, name, said, reasons] = verdict();
  at("verdict").dataset.mood = mood;
  tell(at("verdict"), said + reasons.join(), shape(name), element("strong", {}, said), ...reasons.map((reason) => element("span", {}, plain(reason))));
  document.title = `${{ good: "●", warn: "▲", bad: "✕" }[mood]} ${status ? plain(status.instance) : "ingestor"}: ${said.toLowerCase()}`;
  at("outage").hidden = failingSince === null;
  if (failingSince !== null) {
    const last = status ? ` What is shown here is of ${date(Date.parse(status.at))} UTC, and old.` : "";
    tell(at("outage"), last, `The daemon does not answer.${last} It is asked again every ${ASK_MS / 1000} seconds.`);
  }
  if (!status) return;
  at("about").textContent = `version ${status.version} · up ${lasting((now() - Date.parse(status.started_at)) / 1000)} · times are UTC`;
  at("updated").textContent = failingSince === null ? `updated ${clock(now())} UTC` : `no answer for ${lasting(silent)}`;
  table.soon();
}

/** Only if it is news: what has the role of an alert is read aloud at every change. */
function tell(root, news, ...children) {
  if (root.dataset.news === news) return;
  root.dataset.news = news;
  root.replaceChildren(...children);
}

function verdict() {
  if (failingSince !== null) return ["bad", "cross", "No answer", []];
  if (!status.healthy.ok) return ["bad", "cross", "Stuck", status.healthy.reasons];
  if (!status.ready.ok) return ["bad", "triangle", "Not ready", some(status.ready.reasons)];
  const idle = status.subscriptions.filter((one) => one.state !== "live").length;
  const cares = [
    ...(idle ? [`${whole(idle)} of ${whole(status.subscriptions.length)} subscriptions are not live`] : []),
    ...(status.config_reload_successful ? [] : ["the changed config was refused, and the one before is in use"]),
  ];
  if (cares.length) return ["warn", "half", idle ? "Receiving, not all" : "Receiving, with the old config", cares];
  return ["good", "dot", "Receiving", []];
}

const some = (reasons) => (reasons.length > 4 ? [...reasons.slice(0, 3), `and ${reasons.length - 3} more`] : reasons);

function noAnswer() {
  failingSince ??= performance.now();
  tick();
  return null;
}

at("range").addEventListener("click", (event) => {
  range = event.target.dataset.range ?? range;
  showRange();
});
setInterval(tick, 1000);
keepAsking(() => "/status.json", showStatus, () => ASK_MS, noAnswer);
keepAsking(() => `/values.json?after=${version}`, showValues);
keepAsking(() => "/history.json", (told) => { rings = told; showRange(); }, () => 2 * ASK_MS);
keepAsking(() => "/coverage.json", showCoverage, (told) => (told.strips.length ? 5 * ASK_MS : ASK_MS / 2));
