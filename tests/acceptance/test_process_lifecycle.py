"""Start, kill and query the installed command as an operator does."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from ingestor.simulator import Market
from ingestor.spool.chunk_store import ChunkWriter
from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.daemon import CommandProcess, DaemonProcess, until, write_config
from ..support.postgres_server import Postgres, free_port
from ..support.reference_clients import SocketIo09Client, login

CROWD = "/real-time/crowd-sentiment"
KEY = "the-key-of-this-test"
SECOND = timedelta(seconds=1)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


def now() -> datetime:
    return datetime.now(UTC)


# Kills of simulator or daemon.


async def test_killed_simulator_or_daemon_loses_and_duplicates_nothing(sqlite_url: str, tmp_path: Path) -> None:
    port = free_port()
    subscriptions = {CROWD: ["AAPL", "ON"]}
    config = write_config(
        tmp_path, url=f"http://127.0.0.1:{port}", database_url=sqlite_url, subscriptions=subscriptions
    )
    options = ("--port", str(port), "--api-key", KEY, "--seed", "7", "--cadence", "1")
    async with CommandProcess("simulate", *options, folder=tmp_path) as provider, DaemonProcess(config, KEY) as daemon:
        await until(lambda: KEY in provider.stdout)
        await daemon.wait_until_live()
        await newer_rows(daemon)

        durable = daemon.status["spool"]["durable_seq"]
        daemon.kill()
        killed_at = now()
        daemon.start()
        await newer_rows(daemon)
        assert daemon.db.scalar("SELECT position FROM instances") >= durable

        provider.kill()
        provider.start()
        await newer_rows(daemon)
        assert await daemon.terminate() == 0

    daemon.db.assert_consistent()
    assert_complete(daemon, seed=7)
    states = ["pending", "live", "crashed", "pending", "live", "disconnected", "pending", "live", "stopped"]
    assert daemon.db.states("ON") == states
    live, crashed = daemon.db.coverage("ON")[1:3]
    assert live["ended_at"] == crashed["started_at"] <= killed_at


async def test_simulator_serves_socket_io_0_9_on_request(tmp_path: Path) -> None:
    port = free_port()
    options = ("--port", str(port), "--api-key", KEY, "--protocol", "0.9")
    async with CommandProcess("simulate", *options, folder=tmp_path) as provider:
        await until(lambda: KEY in provider.stdout)
        url = f"http://127.0.0.1:{port}"
        async with SocketIo09Client(url, await login(url, KEY)) as client:
            assert await client.request("subscribe", CROWD, ticker="AAPL") is None


async def newer_rows(daemon: DaemonProcess) -> None:
    """Wait until a current value is stored."""
    began = now()
    query = "SELECT max(ts) AS ts FROM observations"
    await until(lambda: daemon.status and (daemon.db.scalar(query) or EVER) > began)


EVER = datetime.min.replace(tzinfo=UTC)


def assert_complete(daemon: DaemonProcess, seed: int) -> None:
    """Assert that every second from the first to the last is stored with the simulator's value."""
    market = Market(seed, (), 1)
    for ticker in ("AAPL", "ON"):
        rows = daemon.db.rows(f"SELECT ts, value, revision FROM observations WHERE ticker = '{ticker}' ORDER BY ts")
        assert all(later["ts"] - earlier["ts"] == SECOND for earlier, later in pairwise(rows))
        for row in rows:
            bucket = round(row["ts"].timestamp())
            assert row["value"] == market.value(CROWD, "crowd_sentiment", ticker, bucket)
            assert row["revision"] == 0


async def test_killed_daemon_writes_its_spool_after_restart(
    simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    # A batch waits longer than the daemon lives, so that all received events are only in the spool.
    config = write_config(
        tmp_path,
        url=simulator.url,
        database_url=database_url,
        database={"batch": {"max_rows": 1_000_000, "max_wait": "60s"}},
        subscriptions={CROWD: ["AAPL"]},
    )
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await until(lambda: len(simulator.emitted) > 20)
        simulator.interval_seconds = None
        await everything_durable(daemon, simulator)
        assert daemon.db.current() == {}
        daemon.kill()
        sent = expected_rows.current(simulator.emitted)
        simulator.refusal = "closed for today"
        daemon.start()
        await until(lambda: daemon.status)
        assert await daemon.terminate() == 0
    assert daemon.db.current() == sent
    daemon.db.assert_consistent()


async def everything_durable(daemon: DaemonProcess, simulator: FaultySimulator) -> None:
    def received() -> bool:
        status = daemon.status
        frames = sum(connection["frames"] for connection in status["connections"])
        return frames == len(simulator.emitted) and status["spool"]["durable_seq"] == status["spool"]["head_seq"]

    await until(received)


async def test_sigterm_commits_everything_received(
    simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        url=simulator.url,
        database_url=database_url,
        database={"batch": {"max_rows": 50}},
        subscriptions={CROWD: ["AAPL", "ON"]},
    )
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        with daemon.db.write_locked():  # so that many batches wait
            already = len(simulator.emitted)
            await until(lambda: len(simulator.emitted) > already + 40)
            simulator.interval_seconds = None
            await everything_durable(daemon, simulator)
            daemon.send_sigterm()
            await until(lambda: "daemon stopped" in daemon.stderr)
        assert await daemon.wait_for_exit(timeout_seconds=10) == 0
    assert daemon.db.current() == expected_rows.current(simulator.emitted)
    daemon.db.assert_consistent()
    assert daemon.db.states("ON") == ["pending", "live", "stopped"]


# Failed starts.


async def test_second_daemon_on_same_spool_or_file_is_rejected(
    tmp_path: Path,
) -> None:
    own_folder, other_folder = tmp_path / "mine", tmp_path / "other"
    first = idle_config(tmp_path / "first", spool=own_folder, database=own_folder)
    same_spool = idle_config(tmp_path / "second", spool=own_folder, database=other_folder)
    same_database = idle_config(tmp_path / "third", spool=other_folder, database=own_folder)
    async with DaemonProcess(first, KEY) as daemon:
        await until(lambda: daemon.status)
        async with DaemonProcess(same_spool, KEY) as second, DaemonProcess(same_database, KEY) as third:
            assert (await second.wait_for_exit(), await third.wait_for_exit()) == (75, 75)
        assert f"{own_folder}/lock: held by process {daemon.pid};" in second.stderr
        assert f"{own_folder}/ingestor.db.lock: held by process {daemon.pid};" in third.stderr
        assert "spool.path" in second.stderr
        assert daemon.status
        assert await daemon.terminate() == 0


def idle_config(folder: Path, *, spool: Path, database: Path) -> Path:
    """Write the config of a daemon whose provider is unreachable."""
    folder.mkdir()
    return write_config(
        folder,
        url=f"http://127.0.0.1:{free_port()}",
        database_url=f"sqlite:///{database / 'ingestor.db'}",
        spool={"path": str(spool)},
        subscriptions={CROWD: ["AAPL"]},
    )


FIVE_MISTAKES = """\
provider:
  urll: https://127.0.0.1
  silence: 10
database: {migrate: sometimes}
subscriptions:
  - {path: /real-time/crowd-sentiment, ticker: A B}
  - {path: /real-time/tweet-volume}
  - {path: /real-time/tweet-volume}
"""


async def test_five_config_errors_are_reported_and_nothing_created(
    tmp_path: Path,
) -> None:
    file = tmp_path / "etc" / "config.yaml"
    file.parent.mkdir()
    file.write_text(FIVE_MISTAKES)
    async with CommandProcess("run", "--config", file, folder=tmp_path, INGESTOR_PROVIDER__API_KEY=KEY) as program:
        assert await program.wait_for_exit() == 78
    places = [line.removeprefix(str(file)).split(": ")[0] for line in program.stderr.splitlines()]
    assert places == [":2:3", ":3:12", ":4:21", ":6:48", ":8:5"]
    assert program.stdout == ""
    assert list(file.parent.iterdir()) == [file]


async def test_spool_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder, spool = tmp_path / "daemon", tmp_path / "spool"
    config = idle_config(folder, spool=spool, database=tmp_path)
    spool.mkdir()
    ChunkWriter(spool / "spool.db").close()
    with closing(sqlite3.connect(spool / "spool.db")) as db, db:
        db.execute("UPDATE head SET format = 6")
    before = (spool / "spool.db").read_bytes()
    async with CommandProcess("run", "--config", config, folder=folder, INGESTOR_PROVIDER__API_KEY=KEY) as program:
        assert await program.wait_for_exit() == 78
        assert "spool.db: a newer version wrote format 6, this one reads formats 2 to 5" in program.stderr
    assert (spool / "spool.db").read_bytes() == before
    assert list(spool.glob("unreadable-*")) == []


async def test_missing_api_key_is_reported_and_nothing_created(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    url = f"sqlite:///{folder / 'ingestor.db'}"
    file = write_config(folder, url="http://127.0.0.1:9", database_url=url, subscriptions={CROWD: ["AAPL"]})
    async with CommandProcess("run", "--config", file, folder=tmp_path) as program:
        assert await program.wait_for_exit() == 78
    assert "provider.api_key_file" in program.stderr
    assert "INGESTOR_PROVIDER__API_KEY" in program.stderr
    assert list(folder.iterdir()) == [file]


# Status and notifications.


async def test_http_port_reports_health_readiness_and_metrics(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with DaemonProcess(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: daemon.status["rows"]["new"] > 20)
        assert daemon.get("/healthz") == (200, '{"ok":true,"reasons":[]}')
        assert daemon.get("/readyz") == (200, '{"ok":true,"reasons":[]}')
        status, metrics = daemon.get("/metrics")
        assert status == 200
        assert 'ingestor_connected{path="/real-time/crowd-sentiment"} 1.0' in metrics
        assert "ingestor_database_up 1.0" in metrics
        await simulator.stop()
        await until(lambda: daemon.get("/readyz")[0] == 503)
        assert daemon.get("/healthz")[0] == 200
        assert json.loads(daemon.get("/readyz")[1])["reasons"] == ["/real-time/crowd-sentiment: not connected"]
        await simulator.start()


@pytest.mark.postgres
async def test_daemon_without_database_receives_and_writes_later(
    simulator: FaultySimulator, postgres: Postgres, notifications: socket.socket, tmp_path: Path
) -> None:
    postgres.stop()
    config = write_config(tmp_path, url=simulator.url, database_url=postgres.url(), subscriptions={CROWD: ["AAPL"]})
    async with DaemonProcess(config, simulator.api_key, NOTIFY_SOCKET=notifications.getsockname()) as daemon:
        notification = await until(lambda: received(notifications))
        assert b"READY=1" in notification
        await until(lambda: daemon.status and UNREACHABLE in daemon.get("/readyz")[1])
        assert daemon.get("/readyz")[0] == 503
        assert daemon.get("/healthz")[0] == 200
        earlier = daemon.status["spool"]["entries"]
        await until(lambda: daemon.status["spool"]["entries"] > earlier + 20)
        simulator.interval_seconds = None
        postgres.start()
        await until(lambda: daemon.status["spool"]["entries"] == 0 and daemon.get("/readyz")[0] == 200, 60)
        assert await daemon.terminate() == 0
    assert daemon.db.current() == expected_rows.current(simulator.emitted)
    daemon.db.assert_consistent()


UNREACHABLE = '"reasons":["the database is unavailable: the database server cannot be reached: 127.0.0.1:'


@pytest.fixture
def notifications() -> Iterator[socket.socket]:
    """A notify socket in place of systemd's. Its path must be short."""
    folder = tempfile.mkdtemp()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
        heard.bind(f"{folder}/notify")
        yield heard
    shutil.rmtree(folder)


def received(notifications: socket.socket) -> bytes | None:
    try:
        return notifications.recv(4096)
    except BlockingIOError:
        return None
