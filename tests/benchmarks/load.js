"use strict";
// The load: a socket.io server that pushes data events as quickly as they are taken.
//
//   node load.js FOLDER      (the folder that socket.io is installed in)
//
// A line on stdin {"events": n, "rows": m} pushes n events of m new rows each to every subscription; stdout tells when
// it has, and how long it took. tests/benchmarks/load.py is the other end.

const { once } = require("events");
const http = require("http");
const path = require("path");
const readline = require("readline");
const { createRequire } = require("module");

const load = createRequire(path.join(process.argv[2], "package.json"));
const tell = (happening) => process.stdout.write(JSON.stringify(happening) + "\n");
const START_MS = Date.UTC(2000, 0, 1);
const QUEUED = 500; // events that may wait in a socket's buffer

const server = http.createServer((request, response) => {
  response.writeHead(200, { "Content-Type": "application/json" });
  response.end(JSON.stringify({ token: "e30.e30.e30" })); // three parts, no claims
});
const io = load("socket.io")(server, { serveClient: false });
const asked = [];
let minute = 0; // of the next row: each is new

io.on("connection", (socket) => {
  socket.on("subscribe", ({ params }, callback) => {
    asked.push({ socket, ticker: params.ticker });
    callback(null);
    tell({ event: "subscribed" });
  });
});

function row(ticker) {
  minute += 1;
  return {
    ts: new Date(START_MS + minute * 60_000).toISOString(),
    ticker,
    average_sentiment: ((minute % 2000) / 1000 - 1).toFixed(16),
  };
}

async function push({ events, rows }) {
  const started = process.hrtime.bigint();
  for (let event = 0; event < events; event += 1) {
    for (const { socket, ticker } of asked) {
      socket.emit("res", Array.from({ length: rows }, () => row(ticker)));
      if (socket.conn.writeBuffer.length > QUEUED) await once(socket.conn, "drain");
    }
  }
  tell({ event: "pushed", seconds: Number(process.hrtime.bigint() - started) / 1e9 });
}

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => push(JSON.parse(line)))
  .on("close", () => process.exit(0)); // whoever started us has gone
server.listen(0, "127.0.0.1", () => tell({ event: "listening", port: server.address().port }));
