"use strict";
// socket.io-client and pg: one INSERT … SELECT unnest for the rows received since the last one, up to 5,000.
//
//   node pg_unnest.js URL DATABASE EVENTS ROWS      (NODE_FOLDER: the folder with both packages)

const path = require("path");
const { createRequire } = require("module");

const load = createRequire(path.join(process.env.NODE_FOLDER, "package.json"));
const [url, database, events, rows] = process.argv.slice(2);
const wanted = Number(events) * Number(rows);
const ROWS = 5_000;
const INSERT =
  "INSERT INTO samples SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::float8[]) ON CONFLICT DO NOTHING";
let waiting = [];
let wake = () => {};

async function write(pool) {
  let written = 0;
  while (written < wanted) {
    if (!waiting.length) await new Promise((resolve) => (wake = resolve));
    const batch = waiting.slice(0, ROWS);
    waiting = waiting.slice(ROWS);
    const columns = ["ticker", "ts", "average_sentiment"].map((name) => batch.map((row) => row[name]));
    await pool.query({ name: "insert", text: INSERT, values: columns });
    written += batch.length;
  }
}

async function main() {
  const pool = new (load("pg").Client)({ connectionString: database });
  await pool.connect();
  await pool.query(
    "CREATE TABLE samples (ticker varchar(64), ts timestamptz, value double precision, PRIMARY KEY (ticker, ts))",
  );
  const socket = load("socket.io-client").io(url, { transports: ["websocket"], query: { token: "t" } });
  socket.on("res", (received) => {
    for (const row of received) waiting.push(row);
    wake();
  });
  socket.on("connect", () => {
    const request = { path: "/real-time/crowd-sentiment", method: "get", params: { ticker: "A" } };
    socket.emit("subscribe", request, () => console.log("ready"));
  });
  await write(pool);
  console.log("done");
  process.exit(0);
}

main();
