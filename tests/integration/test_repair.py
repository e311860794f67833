"""Repairs after outages of minutes, hours and days: afterwards, the tables hold what they would without the outage."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from pydantic import SecretStr

from ingestor.config import load
from ingestor.core.backoff import Backoff
from ingestor.daemon import control_socket, heartbeat, scheduler
from ingestor.provider import rest_api
from ingestor.repair import backfill_requests, plan, worker
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from tests.support.entries import decoder
from tests.support.faulty_simulator import Fault, FaultySimulator
from tests.support.writers import make_writer, raise_failure

from ..support import expected_rows
from ..support.daemon import InProcessDaemon, until, write_config
from ..support.db_reader import DbReader

CROWD = "/real-time/crowd-sentiment"
CHART = "crowd-sentiment-chart-data"
LAST_MINUTE = "/real-time/user-sentiment-last-minute"
NOON = datetime(2026, 1, 5, 12, 0, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Emitted:
    path: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RepairScenario:
    """A simulator that shares its clock with the daemon, and a clock that the test moves."""

    simulator: FaultySimulator
    traveller: time_machine.Coordinates
    folder: Path

    def move_to(self, at: datetime) -> None:
        """Move the clock while no daemon runs, which misses what is sent meanwhile."""
        self.traveller.move_to(at)
        self.simulator.now = time.time()

    def daemon(
        self, database_url: str, wanted: dict[str, list[str]], name: str = "", **sections: Any
    ) -> InProcessDaemon:
        """Return a daemon. ``wanted``: path → tickers, or none for all. ``name``: tells several daemons apart."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        config = write_config(
            folder, url=self.simulator.url, database_url=database_url, subscriptions=wanted, **sections
        )
        document = json.loads(config.read_text())
        document["subscriptions"] = [
            {name: value for name, value in entry.items() if value} for entry in document["subscriptions"]
        ]
        config.write_text(json.dumps(document))
        return InProcessDaemon(config, self.simulator.api_key)

    def rows(
        self, path: str, ticker: str, since: datetime, until: datetime | None = None
    ) -> dict[expected_rows.Key, float]:
        """Return what the provider sent."""
        market = self.simulator.market
        last_at = until.timestamp() - 0.001 if until else self.simulator.now
        first, last = market.bucket(path, since.timestamp()), market.bucket(path, last_at)
        return expected_rows.current([Emitted(path, market.rows(path, {"ticker": ticker}, first, last, "numbers"))])

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until true, while the provider keeps sending: a minute of data in every fraction of a second."""
        while True:
            try:
                await until(true, 0.3)
            except TimeoutError:
                await self.simulator.tick()
            else:
                return


@pytest.fixture
async def scenario(make_simulator: Callable[..., Any], tmp_path: Path) -> AsyncIterator[RepairScenario]:
    with time_machine.travel(NOON, tick=True) as traveller:
        started_at = NOON.timestamp()
        made = await make_simulator(
            interval_seconds=None, window_seconds=3600, started_at=started_at, style="text", tickers=("AAPL", "ON")
        )
        yield RepairScenario(made, traveller, tmp_path)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For tests that do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "FIRST_REPAIR_SECONDS", 0.2)
    monkeypatch.setattr(scheduler, "REPAIR_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(worker, "GAP_SEARCH_RATIO", 0)
    monkeypatch.setattr(rest_api, "SPACING_SECONDS", 0.0)


def repairs(db: DbReader, state: str = "") -> list[dict[str, Any]]:
    where = f"WHERE r.state = '{state}'" if state else ""
    return db.rows(
        "SELECT s.path, s.ticker, r.kind, r.state, r.error, r.new_rows, r.from_ts AS from_at, r.to_ts AS to_at"
        f" FROM repairs r JOIN subscriptions s ON s.subscription_id = r.subscription_id {where}"
        " ORDER BY r.from_ts, s.path, s.ticker"
    )


def states(db: DbReader) -> list[str]:
    return [repair["state"] for repair in repairs(db)]


def expected_gaps(db: DbReader, ticker: str) -> set[tuple[datetime, datetime]]:
    """Return the times between the live intervals of its only subscription: its gaps before any repair."""
    intervals = db.coverage(ticker)
    live = [(interval["started_at"], interval["ended_at"]) for interval in intervals if interval["state"] == "live"]
    ends = [intervals[0]["started_at"], *(end for _, end in live)]
    return {(end, start) for end, (start, _) in zip(ends, live, strict=False) if end < start}


def gaps(db: DbReader, ticker: str) -> set[tuple[datetime, datetime]]:
    return {(gap["from_at"], gap["to_at"]) for gap in db.gaps(ticker)}


async def test_outages_of_minutes_and_hours_are_repaired(scenario: RepairScenario, database_url: str) -> None:
    wanted = {CROWD: ["AAPL", "ON"]}
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"] * 2)  # the time until the first responses
    # A response covers all of this outage.
    scenario.move_to(NOON + 40 * MINUTE)
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"] * 4)
        assert {repair["kind"] for repair in repairs(daemon.db)} == {"window"}
        assert all(repair["new_rows"] > 20 for repair in repairs(daemon.db)[2:])
    # No response covers this outage, and its day is not over; no request is sent in vain.
    ((restated, before),) = scenario.rows(CROWD, "AAPL", NOON, NOON + timedelta(seconds=1)).items()
    scenario.simulator.market.restate(CROWD, "AAPL", scenario.simulator.market.bucket(CROWD, NOON.timestamp()))
    scenario.move_to(NOON + 6 * HOUR)
    scenario.simulator.rest_requests.clear()
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"] * 4 + ["open"] * 2)
    missed = {(repair["from_at"], repair["to_at"]) for repair in repairs(daemon.db, "open")}
    # Its history is available the next day.
    scenario.move_to(NOON + DAY)
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"] * 6 + ["open"] * 2)
        for ticker in ("AAPL", "ON"):
            done = {
                (repair["from_at"], repair["to_at"])
                for repair in repairs(daemon.db, "done")
                if repair["ticker"] == ticker
            }
            assert gaps(daemon.db, ticker) == expected_gaps(daemon.db, ticker) - done
            assert not gaps(daemon.db, ticker) & missed
    assert [request.split("?")[0] for request in scenario.simulator.rest_requests] == [
        "/historical/crowd-sentiment"
    ] * 2
    scenario.move_to(NOON + 2 * DAY)
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"] * 8 + ["open"] * 2)
        everything = {
            **scenario.rows(CROWD, "AAPL", NOON - 59 * MINUTE, NOON + DAY),
            **scenario.rows(CROWD, "ON", NOON - 59 * MINUTE, NOON + DAY),
        }
        held = daemon.db.current()
        assert {key: held.get(key) for key in everything} == everything
        assert daemon.db.revisions() == {restated: [before]}


async def test_snapshot_repairs_gap_and_newer_values_stay_current(
    scenario: RepairScenario, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "RESPONSE_TIMEOUT", timedelta(0))
    monkeypatch.setattr(worker, "RETRY_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.1))
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 1_000)
    wanted = {CROWD: ["AAPL"]}
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"])
    scenario.move_to(NOON + 30 * MINUTE)
    simulator = scenario.simulator
    simulator.mute("AAPL")  # so that no response covers the gap
    simulator.rest_fault = Fault(delay_seconds=1.0)  # after the response was built
    simulator.restate(CROWD, "AAPL", buckets_ago=10)
    at = simulator.market.bucket(CROWD, simulator.now) - 10
    key = next(
        iter(scenario.rows(CROWD, "AAPL", *(datetime.fromtimestamp(60 * n + s, UTC) for n, s in ((at, 0), (at, 1)))))
    )
    older = simulator.market.value(CROWD, "crowd_sentiment", "AAPL", at)
    simulator.rest_requests.clear()
    async with scenario.daemon(database_url, wanted) as daemon:
        await daemon.wait_until_live()
        await until(lambda: simulator.rest_requests)
        simulator.market.restate(CROWD, "AAPL", at)
        newer = simulator.market.value(CROWD, "crowd_sentiment", "AAPL", at)
        simulator.unmute("AAPL")
        await simulator.tick()
        await until(lambda: daemon.db.current().get(key) == newer)
        assert states(daemon.db) == ["done", "open"]
        # The newest row of the snapshot is older than the gap's end. Another is requested after a later row arrived.
        await until(lambda: states(daemon.db) == ["done"] * 2)
        assert daemon.db.current() == scenario.rows(CROWD, "AAPL", NOON - 59 * MINUTE)
        assert daemon.db.revisions() == {key: [older]}
    assert list(simulator.rest_requests) == [f"{CROWD}?ticker=AAPL"] * 2
    assert repairs(daemon.db)[1]["kind"] == "snapshot"
    assert daemon.db.column("SELECT DISTINCT source FROM payloads ORDER BY 1") == ["snapshot", "stream"]


async def test_gap_stays_open_until_history_has_a_later_row(
    scenario: RepairScenario, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETRY_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.1))
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 1_000)
    wanted = {CROWD: ["AAPL"]}
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"])
    scenario.simulator.mute("AAPL")
    scenario.move_to(NOON + 3 * HOUR)
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await until(lambda: states(daemon.db) == ["done", "open"])
    (gap,) = repairs(daemon.db, "open")
    one_o_clock = "2026-01-05T13"  # which is in the gap; the feed is quiet from then on
    scenario.simulator.unmute("AAPL")
    scenario.simulator.rest_without = one_o_clock, "2026-01-06T11"

    def is_gap() -> bool:
        return any(start <= gap["from_at"] and gap["to_at"] <= end for start, end in gaps(daemon.db, "AAPL"))

    def error() -> str:
        return next(repair["error"] for repair in repairs(daemon.db) if repair["from_at"] == gap["from_at"])

    scenario.move_to(NOON + DAY)
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(error)
        assert error() == worker.NO_LATER_ROW
        assert is_gap()
    scenario.simulator.rest_without = one_o_clock, "9999"
    scenario.move_to(NOON + 2 * DAY)
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await until(lambda: error() == f"{plan.UNPROVEN}the provider's history does not reach 2026-01-06 11:01:00")
        assert is_gap()
        scenario.simulator.rest_without = one_o_clock, "2026-01-06T11"
        await until(lambda: not error())
        assert not is_gap()


async def test_stream_of_all_tickers_is_repaired_by_ticker(scenario: RepairScenario, sqlite_url: str) -> None:
    wanted: dict[str, list[str]] = {"crowd-sentiment": [], CHART: []}
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: len(repairs(daemon.db, "open")) == 2)
        await scenario.simulator.tick()  # a row of each ticker, so that the tickers are known
    scenario.move_to(NOON + 3 * HOUR)
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: len(repairs(daemon.db, "open")) == 4)
    scenario.simulator.rest_requests.clear()
    scenario.move_to(NOON + DAY)
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await until(lambda: states(daemon.db).count("done") == 4)
        everything = {
            **scenario.rows("crowd-sentiment", "AAPL", NOON, NOON + 3 * HOUR),
            **scenario.rows("crowd-sentiment", "ON", NOON, NOON + 3 * HOUR),
            **scenario.rows(CHART, "AAPL", NOON, NOON + 3 * HOUR),
            **scenario.rows(CHART, "ON", NOON, NOON + 3 * HOUR),
        }
        held = daemon.db.current()
        assert {key: held.get(key) for key in everything} == everything
    # The gaps of one day are repaired together.
    assert sorted(request.partition("&")[0] for request in scenario.simulator.rest_requests) == [
        "/historical/crowd-sentiment-chart-data?ticker=AAPL",
        "/historical/crowd-sentiment-chart-data?ticker=ON",
        "/historical/crowd-sentiment?ticker=AAPL",
        "/historical/crowd-sentiment?ticker=ON",
    ]


async def test_repair_without_history_fails_with_reason(scenario: RepairScenario, sqlite_url: str) -> None:
    wanted = {LAST_MINUTE: ["AAPL"]}
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: states(daemon.db) == ["done"])
    scenario.move_to(NOON + 3 * HOUR)
    scenario.simulator.mute("AAPL")
    scenario.simulator.rest_requests.clear()
    async with scenario.daemon(sqlite_url, wanted) as daemon:
        await daemon.wait_until_live()
        await until(lambda: states(daemon.db) == ["done", "open"])
        scenario.traveller.shift(2 * plan.RESPONSE_TIMEOUT)
        await until(lambda: states(daemon.db) == ["done", "failed"])
    assert repairs(daemon.db)[1]["error"] == (
        "no response contained all of the gap, and the provider documents no history for user-sentiment-last-minute"
    )
    assert not scenario.simulator.rest_requests
    assert len(gaps(daemon.db, "AAPL")) > 0
    assert daemon.db.column("SELECT kind FROM events WHERE kind LIKE 'repair%' ORDER BY kind")[:2] == [
        "repair_failed",
        "repaired",
    ]


HISTORY = "/historical/crowd-sentiment: "
ROW = '{"ts": "2026-01-01T00:00:00.000Z", "ticker": "AAPL", "average_sentiment": 0.5}'  # of the first day
FAULTS = {
    "other rows": (
        Fault(body=f"[{ROW.replace('-01T', '-02T')}]"),
        "gave up after 2 attempts: none of the 1 rows of the response matches the request",
    ),
    "a bad row": (
        Fault(body=f'[{ROW}, {{"ts": "2026"}}]'),
        "1 rows of the response are unreadable, see the dead letters",
    ),
    "refused": (Fault(status=403, body='{"message": "Not yours"}'), f"{HISTORY}HTTP 403: Not yours"),
    "unavailable": (Fault(status=500, body="sorry"), f"gave up after 2 attempts: {HISTORY}HTTP 500"),
    "an error object": (
        Fault(body='{"message": "Try again"}'),
        f'gave up after 2 attempts: {HISTORY}no row of the response is readable: no ts, {{"message": "Try again"}}',
    ),
    "another page": (
        Fault(body="<html>"),
        f"gave up after 2 attempts: {HISTORY}the response is not a list of rows: not JSON",
    ),
}


async def test_failed_repair_has_reason_and_succeeds_when_repeated(
    scenario: RepairScenario, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(worker, "RETRY_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.1))
    monkeypatch.setattr(rest_api, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.1))
    first_day = datetime(2026, 1, 1, tzinfo=UTC)
    async with scenario.daemon(sqlite_url, {CROWD: ["AAPL"]}) as daemon:
        await daemon.wait_until_live()
        wanted = load(scenario.folder / "config.yaml", env={}).subscriptions

        async def backfill(hour: int) -> dict[str, Any]:
            span = first_day + hour * HOUR, first_day + (hour + 1) * HOUR
            requests = backfill_requests.to_json(backfill_requests.build_requests(wanted, "AAPL", None, *span, NOON))
            await asyncio.to_thread(
                control_socket.send_request, scenario.folder / "spool", "backfill", requests=requests
            )
            finished = "SELECT * FROM repairs WHERE kind = 'manual' AND state <> 'open' ORDER BY from_ts"
            return (await until(lambda: daemon.db.rows(finished)[hour:]))[0]

        for hour, (name, (fault, error)) in enumerate(FAULTS.items()):
            scenario.simulator.rest_fault = fault
            repair = await backfill(hour)
            assert (name, repair["state"], repair["error"]) == (name, "failed", error)
        scenario.simulator.rest_fault = None
        for hour in range(len(FAULTS)):
            await backfill(hour)
        await until(
            lambda: {repair["state"] for repair in repairs(daemon.db) if repair["kind"] == "manual"} == {"done"}
        )
        everything = scenario.rows(CROWD, "AAPL", first_day, first_day + len(FAULTS) * HOUR)
        held = daemon.db.current()
        assert {key: held.get(key) for key in everything} == everything
        done = [repair for repair in repairs(daemon.db) if repair["kind"] == "manual"]
        assert [(repair["error"], repair["new_rows"]) for repair in done] == [("", 60)] * len(FAULTS)


async def test_truncated_response_is_inconclusive(
    scenario: RepairScenario, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 1)
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    async with scenario.daemon(sqlite_url, {CROWD: ["AAPL"]}) as daemon:
        await daemon.wait_until_live()
        wanted = load(scenario.folder / "config.yaml", env={}).subscriptions
        for hours in (1, 2):
            requests = backfill_requests.build_requests(
                wanted, "AAPL", None, midnight - hours * HOUR, midnight + hours * HOUR, NOON
            )
            await asyncio.to_thread(
                control_socket.send_request,
                scenario.folder / "spool",
                "backfill",
                requests=backfill_requests.to_json(requests),
            )
            finished = (
                "SELECT state, error FROM repairs WHERE kind = 'manual' AND state <> 'open' ORDER BY from_ts DESC"
            )
            failed = await until(lambda: daemon.db.rows(finished)[hours - 1 :])  # noqa: B023
            scenario.simulator.rest_fault = Fault(body=f"[{ROW}]")
    assert failed[0]["error"] == (
        "gave up after 1 attempts: the response is truncated:"
        " its rows are from 2026-01-01 00:00:00 to 2026-01-01 00:00:00,"
        " but the database has samples from 2025-12-31 23:00:00 to 2026-01-01 00:59:00"
    )


async def test_too_large_response_is_requested_in_smaller_ranges(
    scenario: RepairScenario, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC)
    row = len(json.dumps(scenario.simulator.market.rows(CROWD, {"ticker": "AAPL"}, 0, 0, "text")))
    for name in ("MAX_SPLITTABLE_BYTES", "MAX_RESPONSE_BYTES"):
        monkeypatch.setattr(rest_api, name, 26 * 60 * row)  # a day of chart data is larger
    async with scenario.daemon(sqlite_url, {CROWD: ["AAPL"], CHART: ["AAPL"]}) as daemon:
        await daemon.wait_until_live()
        wanted = load(scenario.folder / "config.yaml", env={}).subscriptions
        requests = backfill_requests.to_json(backfill_requests.build_requests(wanted, "AAPL", None, start, end, NOON))
        scenario.simulator.rest_requests.clear()
        await asyncio.to_thread(control_socket.send_request, scenario.folder / "spool", "backfill", requests=requests)
        finished = "SELECT state, error, cursor FROM repairs WHERE kind = 'manual' AND state <> 'open' ORDER BY state"
        done, failed = await until(lambda: (rows := daemon.db.rows(finished))[1:] and rows, 60)
        assert (done["state"], failed["state"]) == ("done", "failed")
        assert failed["error"].endswith(" bytes, and a smaller range cannot be requested")
        paths = [request.partition("?")[0].removeprefix("/historical/") for request in scenario.simulator.rest_requests]
        assert paths.count("crowd-sentiment") == len(["4 days", "2 days"]) + 4
        assert paths.count(CHART) == len(["4 days", "2 days", "1 day"])
        monkeypatch.setattr(rest_api, "MAX_RESPONSE_BYTES", 1 << 20)  # for ranges that cannot be split
        await asyncio.to_thread(control_socket.send_request, scenario.folder / "spool", "backfill", requests=requests)
        await until(lambda: [repair["state"] for repair in daemon.db.rows(finished)] == ["done"] * 2, 60)
        everything = {**scenario.rows(CROWD, "AAPL", start, end), **scenario.rows(CHART, "AAPL", start, end)}
        held = daemon.db.current()
        assert {key: held.get(key) for key in everything} == everything


@pytest.mark.postgres
async def test_one_of_two_daemons_repairs(scenario: RepairScenario, postgres_url: str) -> None:
    wanted = {CROWD: ["AAPL"]}
    async with scenario.daemon(postgres_url, wanted, "one") as daemon:
        await daemon.wait_until_live()
    scenario.move_to(NOON + 3 * HOUR)
    async with scenario.daemon(postgres_url, wanted, "one") as daemon:
        await daemon.wait_until_live()
        await scenario.until(lambda: repairs(daemon.db, "open"))
    scenario.move_to(NOON + DAY)
    scenario.simulator.rest_requests.clear()
    scenario.simulator.rest_fault = Fault(delay_seconds=0.5)
    first, second = (scenario.daemon(postgres_url, wanted, name) for name in ("one", "two"))
    async with first, second:
        await first.wait_until_live()
        await second.wait_until_live()
        await scenario.until(lambda: len(repairs(first.db, "done")) == 2)
        await first.stop()
        await second.stop()  # before either checks that the ledger balances
    assert len(scenario.simulator.rest_requests) == 1
    assert len(first.db.rows("SELECT * FROM events WHERE kind = 'repaired'")) == 2


async def test_daemon_without_permission_to_request_leaves_repairs_to_others(tmp_path: Path, migrated_url: str) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001)
    spool.start(raise_failure)
    writer = make_writer(spool, engine, drain=False)
    rest = rest_api.RestClient("http://127.0.0.1:9", lambda: SecretStr(""))
    permitted: list[bool] = []
    engines: dict[str, Any] = {"write_to": engine, "read_from": engine}
    repair = worker.RepairWorker(
        rest, spool, writer, decoder(), spool.append, **engines, may_request=lambda: bool(permitted)
    )
    writing = asyncio.create_task(asyncio.to_thread(writer.run))
    db = DbReader(migrated_url)

    try:
        repair._search_requested.set()
        await asyncio.to_thread(repair._try_round)
        assert db.rows("SELECT * FROM leases WHERE name = 'repair'") == []
        permitted.append(True)
        await asyncio.to_thread(repair._try_round)
        assert len(db.rows("SELECT * FROM leases WHERE name = 'repair'")) == 1
    finally:
        writer.stop()
    await writing
    await spool.close()
    engine.dispose()


async def test_ids_that_were_read_before_the_writer_registered_again_are_not_used(
    tmp_path: Path, migrated_url: str
) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001)
    spool.start(raise_failure)
    writer = make_writer(spool, engine, drain=False)
    rest = rest_api.RestClient("http://127.0.0.1:9", lambda: SecretStr(""))
    repair = worker.RepairWorker(rest, spool, writer, decoder(), spool.append, write_to=engine, read_from=engine)
    writing = asyncio.create_task(asyncio.to_thread(writer.run))

    await asyncio.to_thread(repair._begin_round)
    repair._retry_at[1] = 0.0
    assert await asyncio.to_thread(repair._in_writer, lambda instance_id: instance_id) == 1
    await asyncio.wrap_future(writer.run_in_writer(lambda _: writer.register()))
    with pytest.raises(worker.DatabaseReplaced):
        await asyncio.to_thread(repair._in_writer, lambda instance_id: instance_id)
    await asyncio.to_thread(repair._begin_round)
    assert repair._retry_at == {}

    writer.stop()
    await writing
    await spool.close()
    engine.dispose()


async def test_repairs_wait_while_entries_are_written_again(tmp_path: Path, migrated_url: str) -> None:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001)
    spool.start(raise_failure)
    writer = make_writer(spool, engine, drain=False)
    rest = rest_api.RestClient("http://127.0.0.1:9", lambda: SecretStr(""))
    repair = worker.RepairWorker(rest, spool, writer, decoder(), spool.append, write_to=engine, read_from=engine)
    writing = asyncio.create_task(asyncio.to_thread(writer.run))

    try:
        await asyncio.to_thread(repair._begin_round)  # the writer has registered
        repair._search_requested.set()
        writer.status.rewound_to = 5
        assert await asyncio.to_thread(repair._try_round) == worker.SHORT_PAUSE_SECONDS
        assert repair._search_requested.is_set()
        writer.status.rewound_to = 0
        assert await asyncio.to_thread(repair._try_round) is None
        assert not repair._search_requested.is_set()
    finally:
        writer.stop()
    await writing
    await spool.close()
    engine.dispose()
