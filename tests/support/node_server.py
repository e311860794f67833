"""Real Node servers of socket.io, as a provider of each generation: installed once, run as a process."""

from __future__ import annotations

import asyncio
import hashlib
import json
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

# The first and the last release of each generation that the provider may run; 1.x and 2.x speak Engine.IO 3. And of the
# one that we do not speak, the last.
VERSIONS: Mapping[str, str] = {
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
# What 1.0.6 depends on by addresses that are dead. The same code, more or less, was released under these names; the
# server itself uses the first only.
_OVERRIDES: Mapping[str, Mapping[str, str]] = {
    "1.0.6": {
        "emitter": "npm:component-emitter@1.1.2",
        "xmlhttprequest": "npm:xmlhttprequest-ssl@1.5.5",
        "global": "2.0.1",
    }
}
START = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)  # of bucket 0; a bucket is a minute
TIMEOUT_SECONDS = 20
_SERVER = Path(__file__).with_name("node_server.js")
_RENAMED = {"crowd_sentiment": "average_sentiment", "mp_sentiment": "signal_value"}


@dataclass(frozen=True, slots=True)
class Emission:
    """One data event that the server put on the wire. Whether it arrived is the client's to say."""

    sid: str
    event: str
    path: str
    params: Mapping[str, str]
    rows: list[dict[str, Any]]


def value(seed: int, path: str, field: str, ticker: str, bucket: int) -> float:
    """What a peer's row says; the same reckoning as in node_server.js."""
    digest = hashlib.sha256(f"{seed}/{path}/{field}/{ticker}/{bucket}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**47 - 1


def install(generation: str) -> Path:
    """The folder that holds this generation's socket.io; installed at the first call of a machine.

    Skips, or fails, without node, npm or a registry.
    """
    return _begin(VERSIONS[generation]).result()


def begin_installing() -> None:
    """All of them, side by side: npm mostly waits. Whoever needs one waits for that one, and learns if it failed."""
    for version in VERSIONS.values():
        _begin(version)


_pool = ThreadPoolExecutor(len(VERSIONS))
_installs: dict[str, Future[Path]] = {}  # by version; each is tried once in a run, whether it succeeds or not


def _begin(version: str) -> Future[Path]:
    if version not in _installs:
        _installs[version] = _pool.submit(_install, version)
    return _installs[version]


def _install(version: str) -> Path:
    if not shutil.which("node") or not shutil.which("npm"):
        skip_missing("socket.io servers: install node (18 or newer) and npm")
    return build_once(f"socket.io-{version}", lambda folder: _npm_install(folder, version))


def _npm_install(folder: Path, version: str) -> None:
    wanted = {"private": True, "dependencies": {"socket.io": version}, "overrides": _OVERRIDES.get(version, {})}
    (folder / "package.json").write_text(json.dumps(wanted))
    quietly = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
    try:
        subprocess.run(
            ["npm", "install", *quietly], cwd=folder, capture_output=True, text=True, timeout=100, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failure:
        skip_missing(f"socket.io {version}: npm install failed: {failure}: {str(failure.stderr).strip()[-300:]}")


def _fields() -> dict[str, list[str]]:
    """Path → fields of its rows besides ts and ticker, for the paths whose rows name no user."""
    return {
        path: [_RENAMED.get(metric, metric) if path.startswith("/") else metric for metric in _metrics(path)]
        for path in PATHS
        if not FEEDS[base_name(path)].by_user
    }


def _metrics(path: str) -> list[str]:
    return list(dict.fromkeys(FEEDS[base_name(path)].metrics.values()))


class NodeServer:
    """One Node server: ``async with NodeServer("2") as server``. It can be stopped, killed and restarted on its port.

    Every subscription is answered at once, and then every ``interval_seconds`` (None: when ``emit`` is called) with the
    newest ``window_rows`` buckets, of which one is new each time. ``kick_expired``: a socket is disconnected when its
    token ends.
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
        ping_interval_seconds: float = 25,
        ping_timeout_seconds: float = 20,
        kick_expired: bool = False,
    ) -> None:
        self.version = VERSIONS[generation]
        self.api_key = secrets.token_hex(12)
        self.emitted: list[Emission] = []
        self.events: list[dict[str, Any]] = []  # all else that the server told, as it told it
        self._folder = install(generation)
        self._news = asyncio.Event()
        self._commands = 0
        self._settings: dict[str, Any] = {
            "seed": seed,
            "intervalMs": interval_seconds and interval_seconds * 1000,
            "windowRows": window_rows,
            "text": text,
            "tokenBytes": token_bytes,
            "lifetimeSeconds": lifetime_seconds,
            "pingIntervalMs": ping_interval_seconds * 1000,
            "pingTimeoutMs": ping_timeout_seconds * 1000,
            "kickExpired": kick_expired,
            "apiKey": self.api_key,
            "secret": secrets.token_hex(32),
            "startMs": START.timestamp() * 1000,
            "bucket": 1_000,
            "fields": _fields(),
            "port": 0,
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
        """Start and wait until it listens; after the first time on the same port, going on in its time."""
        self._process = await asyncio.create_subprocess_exec(
            "node",
            "--max-http-header-size=65536",
            _SERVER,
            self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=2**26,
        )
        self._reading = asyncio.create_task(self._read())
        already = self.count("listening")
        await self._write(self._settings)
        await self.until(lambda: self.count("listening") > already)

    async def stop(self) -> None:
        """Have it close its sockets in order and end."""
        await self._write({"do": "stop", "id": 0})
        await self._ended()

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process.returncode is None:
            self._process.kill()
        await self._ended()

    async def emit(self) -> None:
        """One new bucket, to all that is subscribed."""
        await self.run_command("emit")

    async def burst(self, frames: int, rows: int = 1) -> None:
        """As many data events to each subscription, as quickly as they go, all rows new (before bucket 0)."""
        await self.run_command("burst", frames=frames, rows=rows)

    async def run_command(self, command: str, **more: Any) -> None:
        """Carry out a command of node_server.js, and wait until it has.

        ``ask`` (a data event that wants an acknowledgement), ``raw`` (text), ``error`` (name, error), ``kick``,
        ``close``, ``reset``, ``refuse`` (name, message), ``allow`` (name), ``mute``, ``unmute`` (ticker), ``revoke``.
        """
        self._commands += 1
        done = {"event": "did", "id": self._commands}
        await self._write({"do": command, "id": self._commands, **more})
        await self.until(lambda: done in self.events)

    @property
    def login_times(self) -> list[float]:
        """Epoch seconds of every token given."""
        return [one["at"] for one in self.events if one["event"] == "login"]

    def count(self, event: str) -> int:
        """How often this happened: login, connected, refused, subscribed, unsubscribed, disconnected, acknowledged."""
        return sum(one["event"] == event for one in self.events)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until it holds of what the server told. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not condition():
                if self._reading.done():
                    raise RuntimeError(f"socket.io {self.version} has ended")
                self._news.clear()
                await self._news.wait()

    async def _write(self, said: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(said).encode() + b"\n")
        await self._process.stdin.drain()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                self._told(json.loads(line))
        finally:
            self._news.set()

    def _told(self, happening: dict[str, Any]) -> None:
        if happening["event"] == "emitted":
            self.emitted.append(Emission(*(happening[name] for name in ("sid", "name", "path", "params", "rows"))))
            self._settings["bucket"] = happening["bucket"]
        else:
            self.events.append(happening)
        if happening["event"] == "listening":
            self._settings["port"] = happening["port"]
        self._news.set()

    async def _ended(self) -> None:
        await self._process.wait()
        await self._reading
        assert self._process.stdin is not None
        self._process.stdin.close()
