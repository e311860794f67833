"""From a real server to a real database: what was emitted, compared with what is stored afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.daemon import InProcessDaemon, until, write_config
from ..support.entries import frame
from ..support.node_server import NodeServer

CROWD = "/real-time/crowd-sentiment"
VOLUME = "/real-time/tweet-volume"
CHART = "crowd-sentiment-chart-data"
PING_WINDOW_SECONDS = 2.5  # after which a server drops a silent client
QUICK: dict[str, Any] = {"interval_seconds": None, "ping_interval_seconds": 0.5, "ping_timeout_seconds": 2}
INTERRUPTED = ["pending", "live", "disconnected", "pending", "live", "stopped"]
RECONNECTS = re.compile(r"^ingestor_reconnects_total\{.*\} [1-9].*$", re.MULTILINE)


@pytest.fixture(autouse=True)
def nothing_went_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if an exception was logged, whatever a server sent."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For tests that do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


def now() -> datetime:
    return datetime.now(UTC)


# Real servers of each protocol version


@pytest.mark.node
@pytest.mark.parametrize("generation", ["0.9", "2", "4"])
async def test_every_row_is_stored_once_over_two_ping_windows(
    generation: str, make_node_server: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    await listen_over_two_ping_windows(await make_node_server(generation, **QUICK), database_url, tmp_path)


@pytest.mark.node
async def test_every_row_is_stored_once_with_socket_io_2_server(
    make_node_server: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    await listen_over_two_ping_windows(await make_node_server("1", **QUICK), sqlite_url, tmp_path)


async def listen_over_two_ping_windows(server: NodeServer, database_url: str, folder: Path) -> None:
    subscriptions = {CROWD: ["AAPL", "ON"], VOLUME: ["6E_F"], CHART: ["AAPL"]}
    config = write_config(folder, url=server.url, database_url=database_url, subscriptions=subscriptions)
    async with InProcessDaemon(config, server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        began = time.monotonic()
        while time.monotonic() - began < 2.2 * PING_WINDOW_SECONDS:
            await server.emit()
            await asyncio.sleep(0.05)
        await server.burst(frames=200)
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))

        assert len(set(at_first)) == 3
        assert daemon.connection_ids == at_first
        assert RECONNECTS.findall(await daemon.metrics()) == []
        assert sids(server, "subscribed") & sids(server, "disconnected") == set()
        assert daemon.status.rows.revised == daemon.status.rows.dead == 0
        assert received(daemon) == sent(server)


def sids(server: NodeServer, event: str) -> set[str]:
    """Return the server's ids of the connections with such an event."""
    return {reported["sid"] for reported in server.events if reported["event"] == event}


def sent(server: NodeServer) -> dict[str, list[Any]]:
    """Return path → the rows of every emitted event, in order."""
    paths = {emission.path for emission in server.emitted}
    return {path: [emission.rows for emission in server.emitted if emission.path == path] for path in paths}


def received(daemon: InProcessDaemon) -> dict[str, list[Any]]:
    """Return the same from the payloads. Each path has one connection, so its order is the server's."""
    found: dict[str, list[Any]] = {}
    for row in daemon.db.rows("SELECT path, body FROM payloads ORDER BY seq"):
        body = json.loads(row["body"])
        found.setdefault(row["path"], []).append(body if isinstance(body, list) else body["results"])
    return found


@pytest.mark.node
@pytest.mark.parametrize("generation", ["0.9", "1", "2", "4"])
async def test_event_with_ack_request_is_acknowledged_and_stored(
    generation: str, make_node_server: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    server: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=server.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, server.api_key) as daemon:
        await daemon.wait_until_live()
        for _ in range(3):
            await server.run_command("ask")
        await server.until(lambda: server.count("acknowledged") == 3)
        await until(lambda: received(daemon) == sent(server))


# Unreadable frames and rows


def sample(ticker: str, value: str, minute: int = 0) -> str:
    stamp = f"2026-02-01T00:{minute:02}:00.000Z"
    return f'{{"ts":"{stamp}","ticker":{json.dumps(ticker)},"average_sentiment":{value}}}'


DEEP = "[" * 50_000 + "]" * 50_000
LONG_PATH = json.dumps({"path": "p" * 300, "results": []})
# Socket.IO packet → its text in dead_letters
DEAD_FRAMES = {
    '2["res",{bad]': "{bad",
    '2["res",[': '42["res",[',
    "2[]": "42[]",
    '2["res"]': '42["res"]',
    '2["res",[],[]]': "[],[]",
    '2["res",null]': "null",
    '2["res",7]': "7",
    '2["res","rows"]': '"rows"',
    '2["res","\0"]': '"\\u0000"',  # because no database can store it
    '2["other",1]': "1",
    '2["connect",1]': "1",
    '2["disconnect",1]': "1",
    "9[]": "49[]",
    "rows": "4rows",
    f'2["res",{DEEP}]': DEEP,
    f'2["data",{LONG_PATH}]': LONG_PATH,
}
# Unreadable rows between readable ones
DEAD_ROWS = [
    '{"ticker":"AAPL","average_sentiment":1}',
    '{"ts":"2026-02-01T00:00:00.000Z","average_sentiment":1}',
    '{"ts":"yesterday","ticker":"AAPL","average_sentiment":1}',
    '{"ts":"2026-02-01T00:00:00.000Z","ticker":"AAPL"}',
    sample("AAPL", "9" * 400),
    sample("AAPL", "9" * 5000),
    sample("AAPL", "1e400"),
    sample("AAPL", '"NaN"'),
    sample("AAPL", "NaN"),
    sample("AAPL", "-Infinity"),
    sample("AAPL", "true"),
    sample("AAPL", "[]"),
    sample("A" * 10_000, "1"),
    sample("A\0", "1"),
    sample("A\ud800", "1"),
    "7",
    "null",
    "[]",
]
# All of these are valid names, and none may be interpreted.
TICKERS = ["'; DROP TABLE samples; --", '"', "%s", ":x", "?", "{0}", "a\nb", "\x1b[31mred", "\u202edrow", "😀", "\\"]


@pytest.mark.node
@pytest.mark.parametrize("generation", ["2", "4"])
async def test_unreadable_rows_become_dead_letters(
    generation: str, make_node_server: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    server: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=server.url, database_url=database_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        for packet in DEAD_FRAMES:
            await server.run_command("raw", text=packet)
            await server.emit()
        neighbours = {}
        for number, row in enumerate(DEAD_ROWS):
            good = [(sample("AAPL", "0.25", 2 * number), 0.25), (sample("AAPL", '"0.5"', 2 * number + 1), 0.5)]
            await server.run_command("raw", text=f'2["res",[{good[0][0]},{row},{good[1][0]}]]')
            neighbours |= {crowd(text): value for text, value in good}
        await server.run_command("raw", text=f'2["res",[{",".join(sample(ticker, "1") for ticker in TICKERS)}]]')
        neighbours |= {crowd(sample(ticker, "1")): 1.0 for ticker in TICKERS}

        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted) | neighbours)
        assert daemon.connection_ids == at_first
    frames = daemon.db.column("SELECT body FROM dead_letters WHERE row_index IS NULL ORDER BY seq")
    assert frames == list(DEAD_FRAMES.values())
    rows = daemon.db.column("SELECT body FROM dead_letters WHERE row_index = 1 ORDER BY seq")
    assert [blankless(row) for row in rows] == DEAD_ROWS  # rewritten if they are not strict JSON
    assert daemon.db.column("SELECT DISTINCT stage FROM dead_letters") == ["decode"]


def crowd(row: str) -> expected_rows.Key:
    """Return the key of this row's sample."""
    read = json.loads(row)
    return expected_rows.Key("crowd-sentiment", "crowd_sentiment", read["ticker"], "", read["ts"])


def blankless(text: str) -> str:
    return text.replace(" ", "")


# Connections that end


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "end"),
    [("4", NodeServer.stop), ("2", NodeServer.kill), ("0.9", NodeServer.stop), ("0.9", NodeServer.kill)],
    ids=["4 in order", "2 by SIGKILL", "0.9 in order", "0.9 by SIGKILL"],
)
async def test_restarted_server_is_found_and_gap_is_recorded(
    generation: str,
    end: Callable[[NodeServer], Any],
    make_node_server: Callable[..., Any],
    database_url: str,
    tmp_path: Path,
) -> None:
    server: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=server.url, database_url=database_url, subscriptions={CROWD: ["AAPL", "ON"]})
    async with InProcessDaemon(config, server.api_key) as daemon:
        await daemon.wait_until_live()
        await server.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        heard_at = now()
        await asyncio.sleep(0.3)
        await end(server)
        ended_at = now()
        await until(lambda: daemon.states == ["disconnected"] * 2)
        restarted_at = now()
        await server.start()
        await daemon.wait_until_live()
        await server.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))

    assert daemon.db.states("ON") == INTERRUPTED
    _, before, away, _, after, _ = daemon.db.coverage("ON")
    # Up to the last byte received, which is the close packet if the server ends in order.
    assert before["ended_at"] == away["started_at"] <= (heard_at if end is NodeServer.kill else ended_at)
    assert after["started_at"] >= restarted_at
    (gap,) = daemon.db.gaps("ON")[1:]  # the first is before the first acknowledgement
    assert (gap["from_at"], gap["to_at"]) == (before["ended_at"], after["started_at"])
    assert gap["states"].startswith("disconnected")
    assert gap["reason"].startswith(away["reason"])


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "how", "cause"),
    [
        ("0.8", "kick", "kicked"),
        ("0.9", "reset", "lost"),
        ("1", "kick", "kicked"),
        ("2", "kick", "kicked"),
        ("4", "kick", "kicked"),
        ("4", "close", "closed"),
        ("4", "reset", "lost"),
    ],
)
async def test_connection_ended_by_server_is_replaced(
    generation: str, how: str, cause: str, make_node_server: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    server: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=server.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, server.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        await server.run_command(how)
        await server.until(lambda: server.count("subscribed") == 2)
        await until(lambda: daemon.states == ["live"] and daemon.connection_ids != at_first)
        await server.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(server.emitted))
        assert RECONNECTS.findall(await daemon.metrics()) == [f'ingestor_reconnects_total{{reason="{cause}"}} 1.0']
    assert daemon.db.states("AAPL") == INTERRUPTED
    _, before, _, _, after, _ = daemon.db.coverage("AAPL")
    (gap,) = daemon.db.gaps("AAPL")[1:]  # the first is before the first acknowledgement
    assert (gap["from_at"], gap["to_at"]) == (before["ended_at"], after["started_at"])


async def test_token_renewal_loses_no_row_and_leaves_no_gap(
    make_simulator: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    # Logins are at least 5 s apart, so this is about the shortest lifetime that can be renewed in time.
    simulator: FaultySimulator = await make_simulator(token_lifetime_seconds=6.5, kick_expired=True)
    subscriptions = {CROWD: ["AAPL"], VOLUME: ["TSLA"]}
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions=subscriptions)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        at_first = await daemon.wait_until_live()
        await until(lambda: simulator.logins == 2)
        await asyncio.sleep(2)  # until the first token has expired
        simulator.kick_expired = False  # the others may expire while a busy machine compares
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
        assert set(await daemon.wait_until_live()).isdisjoint(at_first)
        await until(lambda: len(simulator.connections) == 2)
        assert RECONNECTS.findall(await daemon.metrics()) == []
    for ticker in ("AAPL", "TSLA"):
        assert daemon.db.states(ticker) == ["pending", "live", "stopped"]
        assert [gap["states"] for gap in daemon.db.gaps(ticker)] == ["pending"]
    assert daemon.db.column("SELECT kind FROM events WHERE kind = 'disconnected'") == []


# Restated, refused, missing and unusual data


async def test_restated_value_is_current_and_earlier_one_a_revision(
    make_simulator: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(restate_every=2)
    subscriptions = {CROWD: ["AAPL", "ON"], "user-sentiment": ["AAPL"], CHART: ["TSLA"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=subscriptions)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: simulator.ticks > 60)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    given = expected_rows.values(simulator.emitted)
    replaced = {key: values[:-1] for key, values in given.items() if len(values) > 1}
    assert len(replaced) > 20
    assert daemon.db.revisions() == replaced
    assert daemon.db.scalar("SELECT sum(revision) FROM observations") == sum(map(len, replaced.values()))


async def test_paths_with_similar_rows_are_told_apart_by_connection(
    make_simulator: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator()
    subscriptions = {f"{CROWD}-moving-average": ["AAPL"], f"{CROWD}-z-score-moving-average": ["AAPL"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=subscriptions)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        ids = await daemon.wait_until_live()
        await until(lambda: simulator.ticks > 20)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    carried = daemon.db.rows("SELECT DISTINCT path, connection_id FROM payloads")
    assert {(row["path"], row["connection_id"]) for row in carried} == set(zip(subscriptions, ids, strict=True))


async def test_refused_ticker_is_recorded_and_others_are_stored(
    simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    simulator.refuse("TSLA", "Restricted ticker")
    subscriptions = {CROWD: ["AAPL", "TSLA", "ON"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=subscriptions)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await until(lambda: daemon.states == ["live", "refused", "live"])
        await until(lambda: simulator.ticks > 20)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    assert daemon.db.states("TSLA") == ["pending", "refused", "stopped"]
    assert "Restricted ticker" in daemon.db.coverage("TSLA")[1]["reason"]
    assert daemon.db.states("ON") == ["pending", "live", "stopped"]
    assert {key.ticker for key in daemon.db.current()} == {"AAPL", "ON"}


async def test_silent_ticker_is_a_gap_but_database_outage_is_not(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    subscriptions = {CROWD: ["AAPL", "TSLA"]}
    provider = {"silence": "3s"}  # longer than a busy machine stands still
    config = write_config(
        tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions=subscriptions, provider=provider
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        ids = await daemon.wait_until_live()
        with daemon.db.write_locked():
            await asyncio.sleep(4)
            assert daemon.states == ["live", "live"]
        simulator.mute("TSLA")
        await until(lambda: daemon.states == ["live", "silent"])
        assert daemon.status.subscriptions[1].reason == "no data for 3 s"
        assert 'ingestor_subscriptions{state="silent"} 1.0' in await daemon.metrics()
        simulator.unmute("TSLA")
        await daemon.wait_until_live()
        assert daemon.connection_ids == ids
    assert daemon.db.states("AAPL") == ["pending", "live", "stopped"]
    assert daemon.db.states("TSLA") == ["pending", "live", "silent", "live", "stopped"]
    gap = daemon.db.gaps("TSLA")[1]
    assert gap["states"] == "silent"
    received = sorted(set(daemon.db.column("SELECT received_at FROM observations WHERE ticker = 'TSLA'")))
    resumed_at = received[received.index(gap["from_at"]) + 1]
    assert resumed_at - gap["from_at"] > timedelta(seconds=3)
    assert gap["to_at"] in received, "of the batch that begins with the first data again"
    assert gap["to_at"] - resumed_at < timedelta(seconds=3)


@pytest.mark.parametrize("path", [CROWD, "crowd-sentiment"], ids=["bare list", "envelope"])
async def test_empty_list_counts_as_activity_without_rows(
    path: str, simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    simulator.quiet.add("AAPL")
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions={path: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: len(simulator.emitted) > 5)
        simulator.interval_seconds = None
        await until(lambda: daemon.db.scalar("SELECT count(*) FROM payloads") == len(simulator.emitted))
    assert daemon.db.column("SELECT DISTINCT row_count FROM payloads") == [0]
    assert daemon.db.current() == {}
    assert daemon.db.rows("SELECT * FROM dead_letters") == []


@pytest.mark.parametrize("size", [239, 9311])
async def test_tokens_of_all_documented_sizes_are_accepted(
    size: int, make_simulator: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(token_bytes=size)
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        await until(lambda: daemon.status.rows.new > 0)


async def test_rows_older_than_retention_are_counted_as_expired(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        url=simulator.url,
        database_url=sqlite_url,
        subscriptions={CROWD: ["AAPL"]},
        database={"retention": {"samples": "1d"}},
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await until(lambda: daemon.status.rows.new > 2)  # these rows may be live, and our clock months ahead
        live = {"ts": now().isoformat(), "ticker": "TSLA", "average_sentiment": 0.5}
        daemon._service._spool.append(frame([live]))
        await until(lambda: daemon.status.rows.expired)
        assert re.search(r'^ingestor_rows_total\{outcome="expired"\} [1-9]', await daemon.metrics(), re.MULTILINE)
        stored = daemon.status.rows.new
        await until(lambda: daemon.status.rows.expired > 3)
        assert daemon.status.rows.new == stored


async def test_publish_clock_skew_is_reported_once_and_shown(
    make_simulator: Callable[..., Any], sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulator: FaultySimulator = await make_simulator(
        started_at=now().timestamp(), step_seconds=0.02, cadence_seconds=1
    )
    subscriptions = {"crowd-sentiment": ["AAPL"], CROWD: ["ON"]}
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions=subscriptions)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await until(lambda: daemon.status.batches > 20, 60)
        assert daemon.status.publish_skew_seconds == {"crowd-sentiment": pytest.approx(-4 * 3600, abs=30)}
        assert 'ingestor_publish_skew_seconds{feed="crowd-sentiment"} -14' in await daemon.metrics()
    warnings = [record.getMessage() for record in caplog.records if "publish clock" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("crowd-sentiment: the provider's publish clock is ")
