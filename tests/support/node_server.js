"use strict";
// A provider in Node, for tests: one small server that runs on socket.io 1.x to 4.x. On 0.9 it only listens.
//
//   node --max-http-header-size=65536 node_server.js FOLDER      (the folder that socket.io is installed in)
//
// The first line on stdin holds the settings, each further line a command; what happens is told on stdout. All of them
// are JSON objects, one a line. node_server.py is the other end.

const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const path = require("path");
const readline = require("readline");
const { createRequire } = require("module");

const load = createRequire(path.join(process.argv[2], "package.json"));
const MINUTE_MS = 60_000;

const tell = (event, more) => process.stdout.write(JSON.stringify({ event, ...more }) + "\n");
const refusal = (message) => ({ type: "invalid_request_error", message });

// Tokens: signed with a secret that outlives a restart, as a real server's does.

const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const sign = (body, secret) => crypto.createHmac("sha256", secret).update(body).digest("base64url");

function issue(settings) {
  const issued = Math.floor(Date.now() / 1000);
  const claims = { api: settings.apiKey, iat: issued, exp: issued + settings.lifetimeSeconds, jti: crypto.randomUUID() };
  const pad = "AAPL,".repeat(settings.tokenBytes).slice(0, Math.max(0, Math.floor((settings.tokenBytes - 330) * 0.75)));
  const body = `${part({ typ: "JWT", alg: "HS256" })}.${part({ ...claims, tickers: pad })}`;
  return `${body}.${sign(body, settings.secret)}`;
}

const remainingMs = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url")).exp * 1000 - Date.now();

function complaint(token, settings) {
  if (!token) return "no token given";
  const [head, claims, signature] = token.split(".");
  if (signature !== sign(`${head}.${claims}`, settings.secret)) return "invalid signature";
  return remainingMs(token) <= 0 ? "jwt expired" : null;
}

function answerLogin(request, response, settings) {
  const reply = (status, body) => {
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(JSON.stringify(body));
  };
  const wanted = "Basic " + Buffer.from(`${settings.apiKey}:`).toString("base64");
  if (request.method !== "POST" || request.url !== "/jwt") return reply(404, refusal("No such endpoint"));
  if (request.headers.authorization !== wanted) return reply(401, refusal("Invalid API Key provided"));
  tell("login", { at: Date.now() / 1000 });
  return reply(200, { token: issue(settings) });
}

// Rows: a function of seed, path, field, ticker and bucket, so that a test can recompute them.

function value(settings, name, field, ticker, bucket) {
  const key = `${settings.seed}/${name}/${field}/${ticker}/${bucket}`;
  return crypto.createHash("sha256").update(key).digest().readUIntBE(0, 6) / 2 ** 47 - 1;
}

function rowOf(settings, name, ticker, bucket) {
  const row = { ts: new Date(settings.startMs + bucket * MINUTE_MS).toISOString(), ticker };
  for (const field of settings.fields[name]) {
    const number = value(settings, name, field, ticker, bucket);
    row[field] = settings.text ? number.toFixed(16) : number;
  }
  return row;
}

const range = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

class Provider {
  constructor(io, settings) {
    this.io = io;
    this.settings = settings;
    this.bucket = settings.bucket; // the newest
    this.burstBucket = -1; // bursts go back in time, so that each has new rows
    this.asked = new Map(); // socket → key → {path, params}
    this.refused = new Map();
    this.muted = new Set();
  }

  check(token) {
    return complaint(token, this.settings);
  }

  connected(socket) {
    this.asked.set(socket, new Map());
    tell("connected", { sid: socket.id });
    if (this.settings.kickExpired) setTimeout(() => socket.disconnect(), remainingMs(socket.handshake.query.token));
    socket.on("subscribe", (wanted, callback) => this.subscribe(socket, wanted, callback));
    socket.on("unsubscribe", (wanted, callback) => this.unsubscribe(socket, wanted, callback));
    socket.on("disconnect", (reason) => {
      this.asked.delete(socket);
      tell("disconnected", { sid: socket.id, reason });
    });
  }

  subscribe(socket, { path: name, params }, callback) {
    const error = this.refused.get(name) || this.refused.get(params.ticker);
    if (error) return callback(refusal(error));
    if (!this.settings.fields[name]) return callback(refusal(`No such endpoint: ${name}`));
    const one = { path: name, params };
    this.asked.get(socket).set(JSON.stringify(one), one);
    tell("subscribed", { sid: socket.id, ...one });
    callback(null);
    return this.send(socket, one);
  }

  unsubscribe(socket, { path: name, params }, callback) {
    const known = this.asked.get(socket).delete(JSON.stringify({ path: name, params }));
    tell("unsubscribed", { sid: socket.id, path: name, params });
    callback(known ? null : refusal("Not subscribed"));
  }

  send(socket, one, buckets = range(this.bucket - this.settings.windowRows + 1, this.bucket), ...more) {
    if (this.muted.has(one.params.ticker)) return;
    const rows = buckets.map((bucket) => rowOf(this.settings, one.path, one.params.ticker, bucket));
    const envelope = { path: one.path, params: one.params, timestamp: new Date().toISOString(), results: rows };
    const [event, payload] = one.path.startsWith("/") ? ["res", rows] : ["data", envelope];
    socket.emit(event, payload, ...more);
    tell("emitted", { sid: socket.id, name: event, path: one.path, params: one.params, rows, bucket: this.bucket });
  }

  sendAll(...arguments_) {
    for (const [socket, asked] of this.asked) for (const one of asked.values()) this.send(socket, one, ...arguments_);
  }

  sockets() {
    return [...this.asked.keys()];
  }
}

// Commands, by the name that stands in `do`.

const commands = {
  emit(provider) {
    provider.bucket += 1;
    provider.sendAll();
  },
  burst(provider, { frames, rows }) {
    for (let frame = 0; frame < frames; frame += 1) {
      const first = provider.burstBucket - rows + 1;
      provider.sendAll(range(first, provider.burstBucket));
      provider.burstBucket -= rows;
    }
  },
  ask: (provider) => provider.sendAll(undefined, () => tell("acknowledged")),
  raw: (provider, { text }) => provider.sockets().forEach((socket) => socket.conn.write(text)),
  error: (provider, { name, error }) => provider.sockets().forEach((socket) => socket.emit(name, error)),
  kick: (provider) => provider.sockets().forEach((socket) => socket.disconnect()),
  close: (provider) => provider.sockets().forEach((socket) => socket.conn.close()),
  reset: (provider) => provider.sockets().forEach((socket) => socket.request.socket.destroy()),
  refuse: (provider, { name, message }) => provider.refused.set(name, message),
  allow: (provider, { name }) => provider.refused.delete(name),
  mute: (provider, { ticker }) => provider.muted.add(ticker),
  unmute: (provider, { ticker }) => provider.muted.delete(ticker),
  revoke(provider) {
    provider.settings.secret = crypto.randomBytes(32).toString("hex");
  },
  stop(provider) {
    if (provider.io.close) provider.io.close();
    else commands.close(provider); // 1.0 cannot be closed as a whole
    setImmediate(() => process.exit(0));
  },
};

// Read, not required: 4.x exports no package.json.
function installedVersion() {
  const file = path.join(process.argv[2], "node_modules", "socket.io", "package.json");
  return JSON.parse(fs.readFileSync(file, "utf8")).version;
}

function attach(server, settings) {
  const io = load("socket.io")(server, {
    pingInterval: settings.pingIntervalMs,
    pingTimeout: settings.pingTimeoutMs,
    maxHttpBufferSize: 1e8,
    serveClient: false,
  });
  const provider = new Provider(io, settings);
  io.use((socket, next) => {
    const why = provider.check(socket.handshake.query.token);
    if (why) tell("refused", { why });
    next(why ? new Error(why) : undefined);
  });
  io.on("connection", (socket) => provider.connected(socket));
  if (settings.intervalMs) emitEvery(settings.intervalMs, provider);
  return provider;
}

// Timers come late, and what is late is made up for: the rate is the one that was asked for.
function emitEvery(intervalMs, provider) {
  const begun = Date.now();
  let times = 0;
  setInterval(() => {
    for (; times + 1 <= (Date.now() - begun) / intervalMs; times += 1) commands.emit(provider);
  }, intervalMs);
}

function serve(settings) {
  const version = installedVersion();
  const server = http.createServer((request, response) => answerLogin(request, response, settings));
  const provider = version.startsWith("0.") ? load("socket.io").listen(server, { log: false }) : attach(server, settings);
  server.listen(settings.port, "127.0.0.1", () => tell("listening", { port: server.address().port, version }));
  return provider;
}

let provider = null;
readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const said = JSON.parse(line);
    if (provider === null) {
      provider = serve(said);
    } else {
      commands[said.do](provider, said);
      tell("did", { id: said.id });
    }
  })
  .on("close", () => process.exit(0)); // whoever started us has gone
