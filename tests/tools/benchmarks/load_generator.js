"use strict";
// The load generator: a socket.io server that pushes data events as fast as the client reads, or at a given rate.
//
//   node load_generator.js FOLDER      (the folder that socket.io is installed in)
//
// Each line on stdin is a command, {"do": …}; each line on stdout reports an event. load_generator.py is the client.
// Events to push as fast as possible are encoded in advance and written to the socket in large blocks, because
// encoding during the measurement would limit the rate and take processor time from the measured program.

const { once } = require("events");
const http = require("http");
const path = require("path");
const { performance } = require("perf_hooks");
const readline = require("readline");
const { createRequire } = require("module");

const load = createRequire(path.join(process.argv[2], "package.json"));
const report = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const START_MS = Date.UTC(2000, 0, 1);
const BLOCK_BYTES = 1 << 16;
const BAD_VALUE = 7;

const server = http.createServer((request, response) => {
  response.writeHead(200, { "Content-Type": "application/json" });
  response.end(JSON.stringify({ token: "e30.e30.e30" })); // three parts, no claims
});
const io = load("socket.io")(server, { serveClient: false });
let subscriptions = [];
let blocks = [];
let minute = 0; // of the newest row; only rolling windows repeat a minute

io.on("connection", (socket) => {
  socket.on("subscribe", ({ params }, callback) => {
    subscriptions.push({ socket, ticker: params.ticker });
    callback(null);
    report({ event: "subscribed" });
  });
  socket.on("disconnect", () => (subscriptions = subscriptions.filter((subscription) => subscription.socket !== socket)));
});

// Return a value that depends only on the minute, because windows repeat rows. It has sixteen digits, as the provider's
// have: texts of fewer compress too well. It is never 0, which cryptofeed writes as NULL.
const valueAt = (at) => ((at * 0.6180339887498949) % 1) * 2 - 1;

// Return a row as JSON text.
function row(ticker, at, value = valueAt(at)) {
  const ts = new Date(START_MS + at * 60_000).toISOString();
  return `{"ts":"${ts}","ticker":"${ticker}","average_sentiment":"${value.toFixed(16)}"}`;
}

// Return a server's WebSocket frame: final, text, not masked.
function framed(text) {
  const body = Buffer.from(text);
  if (body.length < 126) return Buffer.concat([Buffer.from([0x81, body.length]), body]);
  if (body.length > 0xffff) throw new Error("larger events need another length");
  return Buffer.concat([Buffer.from([0x81, 126, body.length >> 8, body.length & 255]), body]);
}

// Encode events of `rows` rows each: all new, or as load_generator.py describes.
function prepare({ events, ...kind }) {
  blocks = [];
  let block = [];
  let size = 0;
  const windows = new Map();
  for (let event = 0; event < events; event += 1) {
    const { ticker } = subscriptions[event % subscriptions.length];
    const frame = framed(`42["res",[${rowsOf(event, ticker, windows, kind).join(",")}]]`);
    block.push(frame);
    size += frame.length;
    if (size >= BLOCK_BYTES || event === events - 1) {
      blocks.push(Buffer.concat(block));
      block = [];
      size = 0;
    }
  }
  report({ event: "prepared" });
}

function rowsOf(event, ticker, windows, { rows, rolling, restated, badEvery }) {
  if (rolling) return roll(windows, ticker, rows);
  if (restated && event % 2) return [row(ticker, (event + 1) / 2, -valueAt((event + 1) / 2))];
  if (badEvery && event % badEvery === 0) return [row(ticker, (minute += 1), BAD_VALUE)];
  return Array.from({ length: rows }, () => row(ticker, (minute += 1)));
}

function roll(windows, ticker, rows) {
  if (!windows.has(ticker)) windows.set(ticker, { next: 0, rows: [] });
  const window = windows.get(ticker);
  while (window.rows.length <= rows) window.rows.push(row(ticker, (window.next += 1)));
  window.rows.shift();
  return window.rows;
}

async function push() {
  const started = performance.now();
  await Promise.all([...new Set(subscriptions.map(({ socket }) => socket))].map(pushTo));
  report({ event: "pushed", seconds: (performance.now() - started) / 1000 });
}

async function pushTo(client) {
  const socket = client.conn.transport.socket._socket;
  for (const block of blocks) {
    if (!socket.write(block)) await once(socket, "drain");
  }
}

// Emit one-row events through socket.io at a rate. A value is its emission time, in ms since the epoch. Timers fire
// late, so each tick sends everything that is due.
function pace({ rate, seconds }) {
  const began = performance.now();
  const total = rate * seconds;
  let sent = 0;
  const timer = setInterval(() => {
    if (!subscriptions.length) return clearInterval(timer); // the measured program has disconnected
    const due = Math.min(total, ((performance.now() - began) / 1000) * rate);
    for (; sent < due; sent += 1) {
      const { socket, ticker } = subscriptions[sent % subscriptions.length];
      const ts = new Date(START_MS + (minute += 1) * 60_000).toISOString();
      const emitted = performance.timeOrigin + performance.now();
      socket.emit("res", [{ ts, ticker, average_sentiment: emitted.toFixed(3) }]);
    }
    if (sent < total) return undefined;
    clearInterval(timer);
    return report({ event: "pushed", seconds: (performance.now() - began) / 1000 });
  }, 1);
}

const commands = { prepare, push, pace };

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    commands[command.do](command);
  })
  .on("close", () => process.exit(0)); // the parent process has ended
server.listen(0, "127.0.0.1", () => report({ event: "listening", port: server.address().port }));
