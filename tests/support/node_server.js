"use strict";
// A stand-in for the provider on Node: a small server for socket.io 1.x to 4.x. With 0.9 it only listens.
//
//   node --max-http-header-size=65536 node_server.js FOLDER      (the folder that socket.io is installed in)
//
// The first line on stdin contains the settings, each further line a command. Each line on stdout reports an event. All
// lines are JSON objects. node_server.py is the client.

const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const path = require("path");
const readline = require("readline");
const { createRequire } = require("module");

const load = createRequire(path.join(process.argv[2], "package.json"));
const MINUTE_MS = 60_000;

const report = (event, details) => process.stdout.write(JSON.stringify({ event, ...details }) + "\n");
const refusal = (message) => ({ type: "invalid_request_error", message });

// Tokens are signed with a secret that survives a restart, as on a real server.

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

function tokenError(token, settings) {
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
  const credentials = "Basic " + Buffer.from(`${settings.apiKey}:`).toString("base64");
  if (request.method !== "POST" || request.url !== "/jwt") return reply(404, refusal("No such endpoint"));
  if (request.headers.authorization !== credentials) return reply(401, refusal("Invalid API Key provided"));
  report("login", { at: Date.now() / 1000 });
  return reply(200, { token: issue(settings) });
}

// Values depend only on seed, path, field, ticker and bucket, so that a test can recompute them.

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
    this.burstBucket = -1; // bursts go back in time, so that their rows are always new
    this.requests = new Map(); // socket → key → {path, params}
    this.refused = new Map();
    this.muted = new Set();
  }

  check(token) {
    return tokenError(token, this.settings);
  }

  connected(socket) {
    this.requests.set(socket, new Map());
    report("connected", { sid: socket.id });
    if (this.settings.kickExpired) setTimeout(() => socket.disconnect(), remainingMs(socket.handshake.query.token));
    socket.on("subscribe", (request, callback) => this.subscribe(socket, request, callback));
    socket.on("unsubscribe", (request, callback) => this.unsubscribe(socket, request, callback));
    socket.on("disconnect", (reason) => {
      this.requests.delete(socket);
      report("disconnected", { sid: socket.id, reason });
    });
  }

  subscribe(socket, { path: name, params }, callback) {
    const error = this.refused.get(name) || this.refused.get(params.ticker);
    if (error) return callback(refusal(error));
    if (!this.settings.fields[name]) return callback(refusal(`No such endpoint: ${name}`));
    const request = { path: name, params };
    this.requests.get(socket).set(JSON.stringify(request), request);
    report("subscribed", { sid: socket.id, ...request });
    callback(null);
    return this.send(socket, request);
  }

  unsubscribe(socket, { path: name, params }, callback) {
    const known = this.requests.get(socket).delete(JSON.stringify({ path: name, params }));
    report("unsubscribed", { sid: socket.id, path: name, params });
    callback(known ? null : refusal("Not subscribed"));
  }

  send(socket, { path, params }, buckets = range(this.bucket - this.settings.windowRows + 1, this.bucket), ...callback) {
    if (this.muted.has(params.ticker)) return;
    const rows = buckets.map((bucket) => rowOf(this.settings, path, params.ticker, bucket));
    const envelope = { path, params, timestamp: new Date().toISOString(), results: rows };
    const [event, payload] = path.startsWith("/") ? ["res", rows] : ["data", envelope];
    socket.emit(event, payload, ...callback);
    report("emitted", { sid: socket.id, name: event, path, params, rows, bucket: this.bucket });
  }

  sendAll(...arguments_) {
    for (const [socket, requests] of this.requests)
      for (const request of requests.values()) this.send(socket, request, ...arguments_);
  }

  sockets() {
    return [...this.requests.keys()];
  }
}

// Commands, by the name in `do`.

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
  ask: (provider) => provider.sendAll(undefined, () => report("acknowledged")),
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

// Read instead of required, because 4.x does not export package.json.
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
    const error = provider.check(socket.handshake.query.token);
    if (error) report("refused", { error });
    next(error ? new Error(error) : undefined);
  });
  io.on("connection", (socket) => provider.connected(socket));
  if (settings.intervalMs) emitEvery(settings.intervalMs, provider);
  return provider;
}

// Timers fire late, so each tick sends everything that is due, to keep the rate.
function emitEvery(intervalMs, provider) {
  const startedAt = Date.now();
  let times = 0;
  setInterval(() => {
    for (; times + 1 <= (Date.now() - startedAt) / intervalMs; times += 1) commands.emit(provider);
  }, intervalMs);
}

function serve(settings) {
  const version = installedVersion();
  const server = http.createServer((request, response) => answerLogin(request, response, settings));
  const provider = version.startsWith("0.") ? load("socket.io").listen(server, { log: false }) : attach(server, settings);
  server.listen(settings.port, "127.0.0.1", () => report("listening", { port: server.address().port, version }));
  return provider;
}

let provider = null;
readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const message = JSON.parse(line);
    if (provider === null) {
      provider = serve(message);
    } else {
      commands[message.do](provider, message);
      report("did", { id: message.id });
    }
  })
  .on("close", () => process.exit(0)); // the parent process has ended
