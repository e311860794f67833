"use strict";
// A stand-in for the provider on Node: a small server for socket.io 0.7 to 4.x.
//
//   node node_server.js FOLDER      (the folder that socket.io is installed in)
//
// The first line on stdin contains the settings, each further line a command. Each line on stdout reports an event. All
// lines are JSON objects. node_server.py is the client. Written in ES5: socket.io 0.8 and 0.9 run on node 0.10 as well.

var crypto = require("crypto");
var events = require("events");
var fs = require("fs");
var http = require("http");
var path = require("path");
var readline = require("readline");

var LIBRARY = path.join(path.resolve(process.argv[2]), "node_modules", "socket.io");
var MINUTE_MS = 60000;

// Read instead of required, because 4.x does not export package.json.
var version = JSON.parse(fs.readFileSync(path.join(LIBRARY, "package.json"), "utf8")).version;
var is09 = version.slice(0, 2) === "0.";

function report(event, details) {
  var line = { event: event };
  for (var name in details) line[name] = details[name];
  process.stdout.write(JSON.stringify(line) + "\n");
}

function refusal(message) {
  return { type: "invalid_request_error", message: message };
}

// Tokens are signed with a secret that survives a restart, as on a real server.

function bytes(text, encoding) {
  return Buffer.from && Buffer.from !== Uint8Array.from ? Buffer.from(text, encoding) : new Buffer(text, encoding);
}

function urlSafe(base64) {
  return base64.replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
}

function part(value) {
  return urlSafe(bytes(JSON.stringify(value)).toString("base64"));
}

function sign(body, secret) {
  return urlSafe(crypto.createHmac("sha256", secret).update(body).digest("base64"));
}

function issue(settings) {
  var issued = Math.floor(Date.now() / 1000);
  var characters = Math.max(0, Math.floor((settings.tokenBytes - 330) * 0.75));
  var claims = {
    api: settings.apiKey,
    iat: issued,
    exp: issued + settings.lifetimeSeconds,
    jti: crypto.randomBytes(18).toString("hex"),
    tickers: new Array(settings.tokenBytes + 1).join("AAPL,").slice(0, characters),
  };
  var body = part({ typ: "JWT", alg: "HS256" }) + "." + part(claims);
  return body + "." + sign(body, settings.secret);
}

function remainingMs(token) {
  return JSON.parse(bytes(token.split(".")[1], "base64").toString()).exp * 1000 - Date.now();
}

function tokenError(token, settings) {
  if (!token) return "no token given";
  var parts = token.split(".");
  if (parts[2] !== sign(parts[0] + "." + parts[1], settings.secret)) return "invalid signature";
  return remainingMs(token) <= 0 ? "jwt expired" : null;
}

function answerLogin(request, response, settings) {
  function reply(status, body) {
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(JSON.stringify(body));
  }
  var credentials = "Basic " + bytes(settings.apiKey + ":").toString("base64");
  if (request.method !== "POST" || request.url !== "/jwt") return reply(404, refusal("No such endpoint"));
  if (request.headers.authorization !== credentials) return reply(401, refusal("Invalid API Key provided"));
  report("login", { at: Date.now() / 1000 });
  return reply(200, { token: issue(settings) });
}

// Values depend only on seed, path, field, ticker and bucket, so that a test can recompute them.

function value(settings, name, field, ticker, bucket) {
  var key = [settings.seed, name, field, ticker, bucket].join("/");
  var digest = crypto.createHash("sha256").update(bytes(key)).digest();
  return (digest.readUInt32BE(0) * 65536 + digest.readUInt16BE(4)) / Math.pow(2, 47) - 1;
}

function rowOf(settings, name, ticker, bucket) {
  var row = { ts: new Date(settings.startMs + bucket * MINUTE_MS).toISOString(), ticker: ticker };
  settings.fields[name].forEach(function (field) {
    var number = value(settings, name, field, ticker, bucket);
    row[field] = settings.text ? number.toFixed(16) : number;
  });
  return row;
}

function range(first, last) {
  var numbers = [];
  for (var number = first; number <= last; number += 1) numbers.push(number);
  return numbers;
}

function Provider(io, settings) {
  this.io = io;
  this.settings = settings;
  this.bucket = settings.bucket; // the newest
  this.burstBucket = -1; // bursts go back in time, so that their rows are always new
  this.sockets = {}; // by id
  this.requests = {}; // socket id → key → {path, params}
  this.refused = {}; // path or ticker → message
  this.muted = {}; // tickers
  this.fault = null; // of authorization in 0.x: "error" or "never", instead of an answer
}

Provider.prototype.connected = function (socket) {
  var self = this;
  this.sockets[socket.id] = socket;
  this.requests[socket.id] = {};
  report("connected", { sid: socket.id });
  if (this.settings.kickExpired)
    setTimeout(function () {
      socket.disconnect();
    }, remainingMs(socket.handshake.query.token));
  socket.on("subscribe", function (request, callback) {
    self.subscribe(socket, request, callback);
  });
  socket.on("unsubscribe", function (request, callback) {
    self.unsubscribe(socket, request, callback);
  });
  socket.on("disconnect", function (reason) {
    delete self.sockets[socket.id];
    delete self.requests[socket.id];
    report("disconnected", { sid: socket.id, reason: reason });
  });
};

Provider.prototype.subscribe = function (socket, request, callback) {
  var name = request.path;
  var error = this.refused[name] || this.refused[request.params.ticker];
  if (error) return callback(refusal(error));
  if (!this.settings.fields[name]) return callback(refusal("No such endpoint: " + name));
  var known = { path: name, params: request.params };
  this.requests[socket.id][JSON.stringify(known)] = known;
  report("subscribed", { sid: socket.id, path: name, params: request.params });
  callback(null);
  return this.send(socket, known);
};

Provider.prototype.unsubscribe = function (socket, request, callback) {
  var key = JSON.stringify({ path: request.path, params: request.params });
  var known = delete_(this.requests[socket.id], key);
  report("unsubscribed", { sid: socket.id, path: request.path, params: request.params });
  callback(known ? null : refusal("Not subscribed"));
};

function delete_(map, key) {
  var known = key in map;
  delete map[key];
  return known;
}

Provider.prototype.send = function (socket, request, buckets, callback) {
  var settings = this.settings;
  if (this.muted[request.params.ticker]) return;
  var rows = (buckets || range(this.bucket - settings.windowRows + 1, this.bucket)).map(function (bucket) {
    return rowOf(settings, request.path, request.params.ticker, bucket);
  });
  var isStream = request.path.charAt(0) !== "/";
  var stamp = new Date().toISOString();
  var payload = isStream ? { path: request.path, params: request.params, timestamp: stamp, results: rows } : rows;
  var event = isStream ? "data" : "res";
  if (callback) socket.emit(event, payload, callback);
  else socket.emit(event, payload);
  report("emitted", {
    sid: socket.id,
    name: event,
    path: request.path,
    params: request.params,
    rows: rows,
    bucket: this.bucket,
  });
};

Provider.prototype.sendAll = function (buckets, callback) {
  for (var id in this.requests)
    for (var key in this.requests[id]) this.send(this.sockets[id], this.requests[id][key], buckets, callback);
};

Provider.prototype.each = function (action) {
  for (var id in this.sockets) action(this.sockets[id]);
};

// What one socket is made of in each generation.

function transportOf(provider, socket) {
  return is09 ? provider.io.transports[socket.id] : socket.conn;
}

function tcpSocketOf(provider, socket) {
  return is09 ? transportOf(provider, socket).socket : socket.request.socket;
}

// Commands, by the name in `do`.

var commands = {
  emit: function (provider) {
    provider.bucket += 1;
    provider.sendAll();
  },
  burst: function (provider, command) {
    for (var frame = 0; frame < command.frames; frame += 1) {
      provider.sendAll(range(provider.burstBucket - command.rows + 1, provider.burstBucket));
      provider.burstBucket -= command.rows;
    }
  },
  ask: function (provider) {
    provider.sendAll(undefined, function () {
      report("acknowledged");
    });
  },
  raw: function (provider, command) {
    provider.each(function (socket) {
      transportOf(provider, socket).write(command.text);
    });
  },
  error: function (provider, command) {
    provider.each(function (socket) {
      socket.emit(command.name, command.error);
    });
  },
  kick: function (provider) {
    provider.each(function (socket) {
      socket.disconnect();
    });
  },
  close: function (provider) {
    provider.each(function (socket) {
      var transport = transportOf(provider, socket);
      if (is09) transport.end();
      else transport.close();
    });
  },
  reset: function (provider) {
    provider.each(function (socket) {
      tcpSocketOf(provider, socket).destroy();
    });
  },
  refuse: function (provider, command) {
    provider.refused[command.name] = command.message;
  },
  allow: function (provider, command) {
    delete provider.refused[command.name];
  },
  mute: function (provider, command) {
    provider.muted[command.ticker] = true;
  },
  unmute: function (provider, command) {
    delete provider.muted[command.ticker];
  },
  revoke: function (provider) {
    provider.settings.secret = crypto.randomBytes(32).toString("hex");
  },
  fail: function (provider, command) {
    provider.fault = command.how;
  },
  stop: function (provider) {
    if (is09) commands.kick(provider);
    else if (provider.io.close) provider.io.close();
    else commands.close(provider); // 1.0 cannot be closed as a whole
    setImmediate(function () {
      process.exit(0);
    });
  },
};

function attach(server, settings) {
  var options = settings.options;
  options.pingInterval = settings.pingIntervalMs || 25000;
  options.pingTimeout = settings.pingTimeoutMs || 20000;
  options.maxHttpBufferSize = 1e8;
  options.serveClient = false;
  var io = require(LIBRARY)(server, options);
  var provider = new Provider(io, settings);
  io.use(function (socket, next) {
    var error = tokenError(socket.handshake.query.token, settings);
    if (error) report("refused", { error: error });
    next(error ? new Error(error) : undefined);
  });
  io.on("connection", function (socket) {
    provider.connected(socket);
  });
  return provider;
}

function attach09(server, settings) {
  process.EventEmitter = process.EventEmitter || events.EventEmitter; // gone since node 7; used before 0.9.17
  var options = settings.options;
  options["log level"] = 0;
  options["browser client"] = false;
  if (settings.pingIntervalMs) options["heartbeat interval"] = settings.pingIntervalMs / 1000;
  if (settings.pingTimeoutMs)
    options["heartbeat timeout"] = options["close timeout"] = settings.pingTimeoutMs / 1000;
  var io = require(LIBRARY).listen(server, options);
  var provider = new Provider(io, settings);
  io.set("authorization", function (handshake, accept) {
    if (provider.fault === "never") return undefined;
    if (provider.fault === "error") return accept("the store is away");
    var error = tokenError(handshake.query.token, settings);
    if (error) report("refused", { error: error });
    return accept(null, !error); // the reason cannot be sent
  });
  io.sockets.on("connection", function (socket) {
    provider.connected(socket);
  });
  return provider;
}

// Timers fire late, so each tick sends everything that is due, to keep the rate.
function emitEvery(intervalMs, provider) {
  var startedAt = Date.now();
  var times = 0;
  setInterval(function () {
    for (; times + 1 <= (Date.now() - startedAt) / intervalMs; times += 1) commands.emit(provider);
  }, intervalMs);
}

function serve(settings) {
  var server = http.createServer(function (request, response) {
    answerLogin(request, response, settings);
  });
  var provider = (is09 ? attach09 : attach)(server, settings);
  if (settings.intervalMs) emitEvery(settings.intervalMs, provider);
  server.listen(settings.port, "127.0.0.1", function () {
    report("listening", { port: server.address().port, version: version, node: process.version });
  });
  return provider;
}

var provider = null;
readline
  .createInterface({ input: process.stdin, output: process.stdout, terminal: false })
  .on("line", function (line) {
    var message = JSON.parse(line);
    if (provider === null) {
      provider = serve(message);
    } else {
      commands[message.do](provider, message);
      report("did", { id: message.id });
    }
  })
  .on("close", function () {
    process.exit(0); // the parent process has ended
  });
