"use strict";
// The load: a socket.io server that pushes data events as quickly as they are taken, or at a given rate.
//
//   node load.js FOLDER      (the folder that socket.io is installed in)
//
// Each line on stdin is a command, {"do": …}; stdout tells what happened. tests/tools/benchmarks/load.py is the other end.
// What is pushed as quickly as possible is framed beforehand and written to the socket in large blocks: a server that
// encoded while it is measured would be the limit itself, and take the processor from whom it measures.

const { once } = require("events");
const http = require("http");
const path = require("path");
const { performance } = require("perf_hooks");
const readline = require("readline");
const { createRequire } = require("module");

const load = createRequire(path.join(process.argv[2], "package.json"));
const tell = (happening) => process.stdout.write(JSON.stringify(happening) + "\n");
const START_MS = Date.UTC(2000, 0, 1);
const BLOCK_BYTES = 1 << 16;

const server = http.createServer((request, response) => {
  response.writeHead(200, { "Content-Type": "application/json" });
  response.end(JSON.stringify({ token: "e30.e30.e30" })); // three parts, no claims
});
const io = load("socket.io")(server, { serveClient: false });
let asked = [];
let blocks = [];
let minute = 0; // of the newest row; no two events have the same one, but for a window's

io.on("connection", (socket) => {
  socket.on("subscribe", ({ params }, callback) => {
    asked.push({ socket, ticker: params.ticker });
    callback(null);
    tell({ event: "subscribed" });
  });
  socket.on("disconnect", () => (asked = asked.filter((one) => one.socket !== socket)));
});

// One row as its text. A window repeats rows, so a value is a function of its minute; never 0, which cryptofeed writes
// as NULL.
function row(ticker, at) {
  const ts = new Date(START_MS + at * 60_000).toISOString();
  return `{"ts":"${ts}","ticker":"${ticker}","average_sentiment":"${((at % 2000) / 1000 - 0.9995).toFixed(16)}"}`;
}

// A WebSocket frame of a server: final, text, not masked.
function framed(text) {
  const body = Buffer.from(text);
  if (body.length < 126) return Buffer.concat([Buffer.from([0x81, body.length]), body]);
  if (body.length > 0xffff) throw new Error("larger events need another length");
  return Buffer.concat([Buffer.from([0x81, 126, body.length >> 8, body.length & 255]), body]);
}

// Make events of `rows` rows each: all new, or the last `rows` of a window that moves on by one.
function prepare({ events, rows, rolling }) {
  blocks = [];
  let block = [];
  let size = 0;
  const windows = new Map();
  for (let event = 0; event < events; event += 1) {
    const { ticker } = asked[event % asked.length];
    const frame = framed(`42["res",[${(rolling ? roll(windows, ticker, rows) : fresh(ticker, rows)).join(",")}]]`);
    block.push(frame);
    size += frame.length;
    if (size >= BLOCK_BYTES || event === events - 1) {
      blocks.push(Buffer.concat(block));
      block = [];
      size = 0;
    }
  }
  tell({ event: "prepared" });
}

const fresh = (ticker, rows) => Array.from({ length: rows }, () => row(ticker, (minute += 1)));

function roll(windows, ticker, rows) {
  if (!windows.has(ticker)) windows.set(ticker, { next: 0, rows: [] });
  const window = windows.get(ticker);
  while (window.rows.length <= rows) window.rows.push(row(ticker, (window.next += 1)));
  window.rows.shift();
  return window.rows;
}

async function push() {
  const line = asked[0].socket.conn.transport.socket._socket;
  const started = performance.now();
  for (const block of blocks) {
    if (!line.write(block)) await once(line, "drain");
  }
  tell({ event: "pushed", seconds: (performance.now() - started) / 1000 });
}

// One-row events at a rate, as socket.io emits them; the value is when it was emitted, in ms since the epoch. Timers
// come late, and what is late is made up for.
function pace({ rate, seconds }) {
  const began = performance.now();
  const total = rate * seconds;
  let sent = 0;
  const timer = setInterval(() => {
    if (!asked.length) return clearInterval(timer); // whoever was measured has what it wanted
    const due = Math.min(total, ((performance.now() - began) / 1000) * rate);
    for (; sent < due; sent += 1) {
      const { socket, ticker } = asked[sent % asked.length];
      const ts = new Date(START_MS + (minute += 1) * 60_000).toISOString();
      const emitted = performance.timeOrigin + performance.now();
      socket.emit("res", [{ ts, ticker, average_sentiment: emitted.toFixed(3) }]);
    }
    if (sent < total) return undefined;
    clearInterval(timer);
    return tell({ event: "pushed", seconds: (performance.now() - began) / 1000 });
  }, 1);
}

const commands = { prepare, push, pace };

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const said = JSON.parse(line);
    commands[said.do](said);
  })
  .on("close", () => process.exit(0)); // whoever started us has gone
server.listen(0, "127.0.0.1", () => tell({ event: "listening", port: server.address().port }));
