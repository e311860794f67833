"""The whole way of the data: what real servers emitted, compared with what real databases hold afterwards."""

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
from ..support.node_server import NodeServer

CROWD = "/real-time/crowd-sentiment"
VOLUME = "/real-time/tweet-volume"
CHART = "crowd-sentiment-chart-data"
PING_WINDOW_SECONDS = 2.5  # after which a server gives up a client that says nothing
QUICK: dict[str, Any] = {"interval_seconds": None, "ping_interval_seconds": 0.5, "ping_timeout_seconds": 2}
INTERRUPTED = ["pending", "live", "disconnected", "pending", "live", "stopped"]
RECONNECTS = re.compile(r"^ingestor_reconnects_total\{.*\} [1-9].*$", re.MULTILINE)


@pytest.fixture(autouse=True)
def nothing_went_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a server sends, no exception ends in the log."""
    yield
    assert [one.getMessage() for one in caplog.get_records("call") if one.levelno >= logging.ERROR] == []


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For what databases have no say in."""
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


def now() -> datetime:
    return datetime.now(UTC)


# Real servers of each generation.


@pytest.mark.node
@pytest.mark.parametrize("generation", ["2", "4"])
async def test_over_two_ping_windows_every_row_is_stored_once_and_the_connections_stay(
    generation: str, make_node_server: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    await listen_over_two_ping_windows(await make_node_server(generation, **QUICK), database_url, tmp_path)


@pytest.mark.node
async def test_the_same_before_a_server_of_the_first_generation(
    make_node_server: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    await listen_over_two_ping_windows(await make_node_server("1", **QUICK), sqlite_url, tmp_path)


async def listen_over_two_ping_windows(peer: NodeServer, database_url: str, folder: Path) -> None:
    wanted = {CROWD: ["AAPL", "ON"], VOLUME: ["6E_F"], CHART: ["AAPL"]}
    config = write_config(folder, url=peer.url, database_url=database_url, subscriptions=wanted)
    async with InProcessDaemon(config, peer.api_key) as daemon:
        at_first = await daemon.live()
        began = time.monotonic()
        while time.monotonic() - began < 2.2 * PING_WINDOW_SECONDS:
            await peer.emit()
            await asyncio.sleep(0.05)
        await peer.burst(frames=200)
        await daemon.wait_for_samples(lambda: expected_rows.current(peer.emitted))

        assert len(set(at_first)) == 3
        assert daemon.connection_ids == at_first
        assert RECONNECTS.findall(await daemon.metrics()) == []
        assert sids(peer, "subscribed") & sids(peer, "disconnected") == set()
        assert daemon.status.rows.revised == daemon.status.rows.dead == 0
        assert received(daemon) == sent(peer)


def sids(peer: NodeServer, event: str) -> set[str]:
    """The server's names of the connections that this happened to."""
    return {one["sid"] for one in peer.events if one["event"] == event}


def sent(peer: NodeServer) -> dict[str, list[Any]]:
    """Path → the rows of every event that was emitted, in order."""
    paths = {one.path for one in peer.emitted}
    return {path: [one.rows for one in peer.emitted if one.path == path] for path in paths}


def received(daemon: InProcessDaemon) -> dict[str, list[Any]]:
    """The same from the payloads; each path has one connection, so its order is the server's."""
    found: dict[str, list[Any]] = {}
    for row in daemon.db.rows("SELECT path, body FROM payloads ORDER BY seq"):
        body = json.loads(row["body"])
        found.setdefault(row["path"], []).append(body if isinstance(body, list) else body["results"])
    return found


@pytest.mark.node
@pytest.mark.parametrize("generation", ["1", "2", "4"])
async def test_an_event_that_wants_an_acknowledgement_gets_it_and_is_stored(
    generation: str, make_node_server: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    peer: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=peer.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, peer.api_key) as daemon:
        await daemon.live()
        for _ in range(3):
            await peer.do("ask")
        await peer.until(lambda: peer.count("acknowledged") == 3)
        await until(lambda: received(daemon) == sent(peer))


# What cannot be read.


def sample(ticker: str, value: str, minute: int = 0) -> str:
    stamp = f"2026-02-01T00:{minute:02}:00.000Z"
    return f'{{"ts":"{stamp}","ticker":{json.dumps(ticker)},"average_sentiment":{value}}}'


DEEP = "[" * 50_000 + "]" * 50_000
LONG_PATH = json.dumps({"path": "p" * 300, "results": []})
# Socket.IO packet → the text that must stand in dead_letters.
DEAD_FRAMES = {
    '2["res",{bad]': "{bad",
    '2["res",[': '42["res",[',
    "2[]": "42[]",
    '2["res"]': '42["res"]',
    '2["res",[],[]]': "[],[]",
    '2["res",null]': "null",
    '2["res",7]': "7",
    '2["res","rows"]': '"rows"',
    '2["res","\0"]': '"\\u0000"',  # as no database takes it
    '2["other",1]': "1",
    '2["connect",1]': "1",
    '2["disconnect",1]': "1",
    "9[]": "49[]",
    "rows": "4rows",
    f'2["res",{DEEP}]': DEEP,
    f'2["data",{LONG_PATH}]': LONG_PATH,
}
# Rows that others stand beside.
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
# All of them may be names, and none may do anything.
TICKERS = ["'; DROP TABLE samples; --", '"', "%s", ":x", "?", "{0}", "a\nb", "\x1b[31mred", "\u202edrow", "😀", "\\"]


@pytest.mark.node
@pytest.mark.parametrize("generation", ["2", "4"])
async def test_what_cannot_be_read_is_set_aside_with_its_text_and_its_neighbours_are_stored(
    generation: str, make_node_server: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    peer: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=peer.url, database_url=database_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, peer.api_key) as daemon:
        at_first = await daemon.live()
        for packet in DEAD_FRAMES:
            await peer.do("raw", text=packet)
            await peer.emit()
        neighbours = {}
        for number, row in enumerate(DEAD_ROWS):
            good = [(sample("AAPL", "0.25", 2 * number), 0.25), (sample("AAPL", '"0.5"', 2 * number + 1), 0.5)]
            await peer.do("raw", text=f'2["res",[{good[0][0]},{row},{good[1][0]}]]')
            neighbours |= {crowd(text): value for text, value in good}
        await peer.do("raw", text=f'2["res",[{",".join(sample(ticker, "1") for ticker in TICKERS)}]]')
        neighbours |= {crowd(sample(ticker, "1")): 1.0 for ticker in TICKERS}

        await daemon.wait_for_samples(lambda: expected_rows.current(peer.emitted) | neighbours)
        assert daemon.connection_ids == at_first
    frames = daemon.db.column("SELECT body FROM dead_letters WHERE row_index IS NULL ORDER BY seq")
    assert frames == list(DEAD_FRAMES.values())
    rows = daemon.db.column("SELECT body FROM dead_letters WHERE row_index = 1 ORDER BY seq")
    assert [blankless(row) for row in rows] == DEAD_ROWS  # rewritten where they are no strict JSON
    assert daemon.db.column("SELECT DISTINCT stage FROM dead_letters") == ["decode"]


def crowd(row: str) -> expected_rows.Key:
    """What the sample of this row is called."""
    read = json.loads(row)
    return expected_rows.Key("crowd-sentiment", "crowd_sentiment", read["ticker"], "", read["ts"])


def blankless(text: str) -> str:
    return text.replace(" ", "")


# Connections that end.


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "end"), [("4", NodeServer.stop), ("2", NodeServer.kill)], ids=["4 in order", "2 by SIGKILL"]
)
async def test_a_restarted_server_is_found_again_and_the_gap_is_on_record(
    generation: str,
    end: Callable[[NodeServer], Any],
    make_node_server: Callable[..., Any],
    database_url: str,
    tmp_path: Path,
) -> None:
    peer: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=peer.url, database_url=database_url, subscriptions={CROWD: ["AAPL", "ON"]})
    async with InProcessDaemon(config, peer.api_key) as daemon:
        await daemon.live()
        await peer.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(peer.emitted))
        heard_at = now()
        await asyncio.sleep(0.3)
        await end(peer)
        ended_at = now()
        await until(lambda: daemon.states == ["disconnected"] * 2)
        restarted_at = now()
        await peer.start()
        await daemon.live()
        await peer.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(peer.emitted))

    assert daemon.db.states("ON") == INTERRUPTED
    _, before, away, _, after, _ = daemon.db.coverage("ON")
    # Up to the last byte heard, which in order is a goodbye.
    assert before["ended_at"] == away["started_at"] <= (heard_at if end is NodeServer.kill else ended_at)
    assert after["started_at"] >= restarted_at
    (gap,) = daemon.db.gaps("ON")[1:]  # the first lies before the first acknowledgement
    assert (gap["from_at"], gap["to_at"]) == (before["ended_at"], after["started_at"])
    assert gap["states"].startswith("disconnected")
    assert gap["reason"].startswith(away["reason"])


@pytest.mark.node
@pytest.mark.parametrize(
    ("generation", "how", "cause"),
    [
        ("1", "kick", "kicked"),
        ("2", "kick", "kicked"),
        ("4", "kick", "kicked"),
        ("4", "close", "closed"),
        ("4", "reset", "lost"),
    ],
)
async def test_a_connection_that_the_server_ends_is_followed_by_another(
    generation: str, how: str, cause: str, make_node_server: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    peer: NodeServer = await make_node_server(generation, interval_seconds=None)
    config = write_config(tmp_path, url=peer.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, peer.api_key) as daemon:
        at_first = await daemon.live()
        await peer.do(how)
        await peer.until(lambda: peer.count("subscribed") == 2)
        await until(lambda: daemon.states == ["live"] and daemon.connection_ids != at_first)
        await peer.emit()
        await daemon.wait_for_samples(lambda: expected_rows.current(peer.emitted))
        assert RECONNECTS.findall(await daemon.metrics()) == [f'ingestor_reconnects_total{{reason="{cause}"}} 1.0']
    assert daemon.db.states("AAPL") == INTERRUPTED


async def test_a_renewed_token_costs_neither_a_gap_nor_a_row(
    make_simulator: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    # Logins are five seconds apart at least, so this is about the shortest life that can be renewed in time.
    simulator: FaultySimulator = await make_simulator(token_lifetime_seconds=6.5, kick_expired=True)
    wanted = {CROWD: ["AAPL"], VOLUME: ["TSLA"]}
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions=wanted)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        at_first = await daemon.live()
        await until(lambda: simulator.logins == 2)
        await asyncio.sleep(2)  # until the first token has ended
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
        assert set(await daemon.live()).isdisjoint(at_first)
        assert len(simulator.connections) == 2
        assert RECONNECTS.findall(await daemon.metrics()) == []
    for ticker in ("AAPL", "TSLA"):
        assert daemon.db.states(ticker) == ["pending", "live", "stopped"]
        assert [gap["states"] for gap in daemon.db.gaps(ticker)] == ["pending"]
    assert daemon.db.column("SELECT kind FROM events WHERE kind = 'disconnected'") == []


# What the provider may say of its data.


async def test_restated_values_are_current_and_those_before_them_are_revisions(
    make_simulator: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(restate_every=2)
    wanted = {CROWD: ["AAPL", "ON"], "user-sentiment": ["AAPL"], CHART: ["TSLA"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=wanted)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.live()
        await until(lambda: simulator.ticks > 60)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    given = expected_rows.values(simulator.emitted)
    replaced = {key: values[:-1] for key, values in given.items() if len(values) > 1}
    assert len(replaced) > 20
    assert daemon.db.revisions() == replaced
    assert daemon.db.one("SELECT sum(revision) FROM observations") == sum(map(len, replaced.values()))


async def test_two_paths_whose_rows_look_alike_are_told_apart_by_their_connections(
    make_simulator: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator()
    wanted = {f"{CROWD}-moving-average": ["AAPL"], f"{CROWD}-z-score-moving-average": ["AAPL"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=wanted)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        ids = await daemon.live()
        await until(lambda: simulator.ticks > 20)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    carried = daemon.db.rows("SELECT DISTINCT path, connection_id FROM payloads")
    assert {(row["path"], row["connection_id"]) for row in carried} == set(zip(wanted, ids, strict=True))


async def test_a_refused_ticker_is_on_record_with_the_reason_and_the_others_flow(
    simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    simulator.refuse("TSLA", "Restricted ticker")
    wanted = {CROWD: ["AAPL", "TSLA", "ON"]}
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions=wanted)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await until(lambda: daemon.states == ["live", "refused", "live"])
        await until(lambda: simulator.ticks > 20)
        simulator.interval_seconds = None
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    assert daemon.db.states("TSLA") == ["pending", "refused", "stopped"]
    assert "Restricted ticker" in daemon.db.coverage("TSLA")[1]["reason"]
    assert daemon.db.states("ON") == ["pending", "live", "stopped"]
    assert {key.ticker for key in daemon.db.current()} == {"AAPL", "ON"}


async def test_a_mute_ticker_is_a_gap_of_its_own_and_a_database_that_is_away_makes_nobody_silent(
    simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    wanted = {CROWD: ["AAPL", "TSLA"]}
    provider = {"silence": "1s"}
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions=wanted, provider=provider)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        ids = await daemon.live()
        with daemon.db.held():
            await asyncio.sleep(2)
            assert daemon.states == ["live", "live"]
        simulator.mute("TSLA")
        muted_at = now()
        await until(lambda: daemon.states == ["live", "silent"])
        assert daemon.status.subscriptions[1].reason == "no data for 1 s"
        assert 'ingestor_subscriptions{state="silent"} 1.0' in await daemon.metrics()
        simulator.unmute("TSLA")
        unmuted_at = now()
        await daemon.live()
        assert daemon.connection_ids == ids
    assert daemon.db.states("AAPL") == ["pending", "live", "stopped"]
    assert daemon.db.states("TSLA") == ["pending", "live", "silent", "live", "stopped"]
    gap = daemon.db.gaps("TSLA")[1]
    assert gap["states"] == "silent"
    assert abs(gap["from_at"] - muted_at) < timedelta(seconds=0.2)
    assert abs(gap["to_at"] - unmuted_at) < timedelta(seconds=0.2)


@pytest.mark.parametrize("path", [CROWD, "crowd-sentiment"], ids=["bare list", "envelope"])
async def test_empty_lists_are_heard_and_kept_and_are_no_rows(
    path: str, simulator: FaultySimulator, sqlite_url: str, tmp_path: Path
) -> None:
    simulator.quiet.add("AAPL")
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions={path: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.live()
        await until(lambda: len(simulator.emitted) > 5)
        simulator.interval_seconds = None
        await until(lambda: daemon.db.one("SELECT count(*) FROM payloads") == len(simulator.emitted))
    assert daemon.db.column("SELECT DISTINCT row_count FROM payloads") == [0]
    assert daemon.db.current() == {}
    assert daemon.db.rows("SELECT * FROM dead_letters") == []


@pytest.mark.parametrize("size", [239, 9311])
async def test_tokens_of_any_printed_size_open_the_socket(
    size: int, make_simulator: Callable[..., Any], sqlite_url: str, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(token_bytes=size)
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.live()
        await until(lambda: daemon.status.rows.new > 0)


async def test_rows_older_than_samples_are_kept_are_told_of_as_expired(
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
        await until(lambda: daemon.status.rows.expired)
        assert re.search(r'^ingestor_rows_total\{outcome="expired"\} [1-9]', await daemon.metrics(), re.MULTILINE)
        assert daemon.status.rows.new == 0
    assert daemon.db.current() == {}


async def test_a_publish_clock_that_is_hours_off_is_told_of_once_and_shown(
    make_simulator: Callable[..., Any], sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulator: FaultySimulator = await make_simulator(
        started_at=now().timestamp(), step_seconds=0.02, cadence_seconds=1
    )
    wanted = {"crowd-sentiment": ["AAPL"], CROWD: ["ON"]}
    config = write_config(tmp_path, url=simulator.url, database_url=sqlite_url, subscriptions=wanted)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await until(lambda: daemon.status.batches > 20)
        assert daemon.status.publish_skew_seconds == {"crowd-sentiment": pytest.approx(-4 * 3600, abs=30)}
        assert 'ingestor_publish_skew_seconds{feed="crowd-sentiment"} -14' in await daemon.metrics()
    told = [one.getMessage() for one in caplog.records if "publish clock" in one.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("crowd-sentiment: the provider's publish clock is ")
