"""Outages of minutes, hours and days as the clocks have it: afterwards the tables hold what they would hold without."""

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

from ingestor.config import load
from ingestor.core.backoff import Backoff
from ingestor.daemon import control, watchers
from ingestor.provider import rest_api
from ingestor.repair import backfill_requests, plan, worker
from ingestor.simulator import Simulator
from ingestor.simulator.rest_api import Fault

from ..support import expected_rows
from ..support.daemon import Resident, until, write_config
from ..support.db_reader import Books

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
class World:
    """A provider whose time is ours, and our time can be moved."""

    simulator: Simulator
    traveller: time_machine.Coordinates
    folder: Path

    def move_to(self, at: datetime) -> None:
        """While nobody listens: what goes by is missed."""
        self.traveller.move_to(at)
        self.simulator.now = time.time()

    def daemon(self, database_url: str, wanted: dict[str, list[str]], name: str = "", **sections: Any) -> Resident:
        """``wanted``: path → tickers, or none for all. ``name``: of one of several daemons."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        config = write_config(
            folder, url=self.simulator.url, database_url=database_url, subscriptions=wanted, **sections
        )
        document = json.loads(config.read_text())
        document["subscriptions"] = [
            {name: value for name, value in one.items() if value} for one in document["subscriptions"]
        ]
        config.write_text(json.dumps(document))
        return Resident(config, self.simulator.api_key)

    def rows(
        self, path: str, ticker: str, since: datetime, until: datetime | None = None
    ) -> dict[expected_rows.Key, float]:
        """What there was to be received."""
        market = self.simulator.market
        last_at = until.timestamp() - 0.001 if until else self.simulator.now
        first, last = market.bucket(path, since.timestamp()), market.bucket(path, last_at)
        return expected_rows.current([Emitted(path, market.rows(path, {"ticker": ticker}, first, last, "numbers"))])

    async def until(self, true: Callable[[], object]) -> None:
        """Wait, while the provider goes on saying what is new: a minute in every fraction of a second."""
        while True:
            try:
                await until(true, 0.3)
            except TimeoutError:
                await self.simulator.tick()
            else:
                return


@pytest.fixture
async def world(make_simulator: Callable[..., Any], tmp_path: Path) -> AsyncIterator[World]:
    with time_machine.travel(NOON, tick=True) as traveller:
        started_at = NOON.timestamp()
        made = await make_simulator(
            interval_seconds=None, window_seconds=3600, started_at=started_at, style="text", tickers=("AAPL", "ON")
        )
        yield World(made, traveller, tmp_path)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For what databases have no say in."""
    return f"sqlite:///{tmp_path / 'ingestor.db'}"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "FIRST_REPAIR_SECONDS", 0.2)
    monkeypatch.setattr(watchers, "REPAIR_SECONDS", 0.2)
    monkeypatch.setattr(watchers, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(worker, "GAP_SEARCH_RATIO", 0)
    monkeypatch.setattr(rest_api, "SPACING_SECONDS", 0.0)


def repairs(books: Books, state: str = "") -> list[dict[str, Any]]:
    where = f"WHERE r.state = '{state}'" if state else ""
    return books.rows(
        "SELECT s.path, s.ticker, r.kind, r.state, r.error, r.new_rows, r.from_ts AS from_at, r.to_ts AS to_at"
        f" FROM repairs r JOIN subscriptions s ON s.subscription_id = r.subscription_id {where}"
        " ORDER BY r.from_ts, s.path, s.ticker"
    )


def states(books: Books) -> list[str]:
    return [one["state"] for one in repairs(books)]


def unheard(books: Books, ticker: str) -> set[tuple[datetime, datetime]]:
    """The times between those in which its only subscription was live: its gaps, before anything was repaired."""
    intervals = books.coverage(ticker)
    live = [(one["started_at"], one["ended_at"]) for one in intervals if one["state"] == "live"]
    ends = [intervals[0]["started_at"], *(end for _, end in live)]
    return {(end, start) for end, (start, _) in zip(ends, live, strict=False) if end < start}


def gaps(books: Books, ticker: str) -> set[tuple[datetime, datetime]]:
    return {(one["from_at"], one["to_at"]) for one in books.gaps(ticker)}


async def test_after_outages_of_minutes_and_hours_everything_is_there(world: World, database_url: str) -> None:
    wanted = {CROWD: ["AAPL", "ON"]}
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"] * 2)  # of the time until the first answers
    # A response holds all of this one.
    world.move_to(NOON + 40 * MINUTE)
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"] * 4)
        assert {one["kind"] for one in repairs(daemon.books)} == {"window"}
        assert all(one["new_rows"] > 20 for one in repairs(daemon.books)[2:])
    # None reaches back over this one, and its day is not over; nor is anything asked in vain.
    ((restated, before),) = world.rows(CROWD, "AAPL", NOON, NOON + timedelta(seconds=1)).items()
    world.simulator.market.restate(CROWD, "AAPL", world.simulator.market.bucket(CROWD, NOON.timestamp()))
    world.move_to(NOON + 6 * HOUR)
    world.simulator.rest_requests.clear()
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"] * 4 + ["open"] * 2)
    missed = {(one["from_at"], one["to_at"]) for one in repairs(daemon.books, "open")}
    # Tomorrow it can be asked for; today's last gap is over tomorrow as well.
    world.move_to(NOON + DAY)
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"] * 6 + ["open"] * 2)
        for ticker in ("AAPL", "ON"):
            done = {(one["from_at"], one["to_at"]) for one in repairs(daemon.books, "done") if one["ticker"] == ticker}
            assert gaps(daemon.books, ticker) == unheard(daemon.books, ticker) - done
            assert not gaps(daemon.books, ticker) & missed
    assert [one.split("?")[0] for one in world.simulator.rest_requests] == ["/historical/crowd-sentiment"] * 2
    world.move_to(NOON + 2 * DAY)
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"] * 8 + ["open"] * 2)
        everything = {
            **world.rows(CROWD, "AAPL", NOON - 59 * MINUTE, NOON + DAY),
            **world.rows(CROWD, "ON", NOON - 59 * MINUTE, NOON + DAY),
        }
        held = daemon.books.current()
        assert {key: held.get(key) for key in everything} == everything
        assert daemon.books.revisions() == {restated: [before]}


async def test_a_real_time_answer_heals_and_what_came_newer_meanwhile_stays_current(
    world: World, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "RESPONSE_TIMEOUT", timedelta(0))
    wanted = {CROWD: ["AAPL"]}
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"])
    world.move_to(NOON + 30 * MINUTE)
    simulator = world.simulator
    simulator.mute("AAPL")  # so that no response proves it
    simulator.rest_fault = Fault(delay_seconds=1.0)  # after the answer was made
    simulator.restate(CROWD, "AAPL", buckets_ago=10)
    at = simulator.market.bucket(CROWD, simulator.now) - 10
    key = next(
        iter(world.rows(CROWD, "AAPL", *(datetime.fromtimestamp(60 * n + s, UTC) for n, s in ((at, 0), (at, 1)))))
    )
    older = simulator.market.value(CROWD, "crowd_sentiment", "AAPL", at)
    simulator.rest_requests.clear()
    async with world.daemon(database_url, wanted) as daemon:
        await daemon.live()
        await until(lambda: simulator.rest_requests)
        simulator.market.restate(CROWD, "AAPL", at)
        newer = simulator.market.value(CROWD, "crowd_sentiment", "AAPL", at)
        simulator.unmute("AAPL")
        await simulator.tick()
        await until(lambda: daemon.books.current().get(key) == newer)
        assert states(daemon.books) == ["done", "open"]
        await until(lambda: states(daemon.books) == ["done"] * 2)
        assert daemon.books.current() == world.rows(CROWD, "AAPL", NOON - 59 * MINUTE)
        assert daemon.books.revisions() == {key: [older]}
    assert list(simulator.rest_requests) == [f"{CROWD}?ticker=AAPL"]
    assert repairs(daemon.books)[1]["kind"] == "snapshot"
    assert daemon.books.column("SELECT DISTINCT source FROM payloads ORDER BY 1") == ["snapshot", "stream"]


async def test_streams_of_all_tickers_are_healed_ticker_by_ticker(world: World, sqlite_url: str) -> None:
    wanted: dict[str, list[str]] = {"crowd-sentiment": [], CHART: []}
    async with world.daemon(sqlite_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: len(repairs(daemon.books, "open")) == 2)
        await world.simulator.tick()  # a new row of each, so that it is known what there is
    world.move_to(NOON + 3 * HOUR)
    async with world.daemon(sqlite_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: len(repairs(daemon.books, "open")) == 4)
    world.simulator.rest_requests.clear()
    world.move_to(NOON + DAY)
    async with world.daemon(sqlite_url, wanted) as daemon:
        await daemon.live()
        await until(lambda: states(daemon.books).count("done") == 4)
        everything = {
            **world.rows("crowd-sentiment", "AAPL", NOON, NOON + 3 * HOUR),
            **world.rows("crowd-sentiment", "ON", NOON, NOON + 3 * HOUR),
            **world.rows(CHART, "AAPL", NOON, NOON + 3 * HOUR),
            **world.rows(CHART, "ON", NOON, NOON + 3 * HOUR),
        }
        held = daemon.books.current()
        assert {key: held.get(key) for key in everything} == everything
    # A day's gaps are healed together.
    assert sorted(one.partition("&")[0] for one in world.simulator.rest_requests) == [
        "/historical/crowd-sentiment-chart-data?ticker=AAPL",
        "/historical/crowd-sentiment-chart-data?ticker=ON",
        "/historical/crowd-sentiment?ticker=AAPL",
        "/historical/crowd-sentiment?ticker=ON",
    ]


async def test_what_has_no_history_says_so(world: World, sqlite_url: str) -> None:
    wanted = {LAST_MINUTE: ["AAPL"]}
    async with world.daemon(sqlite_url, wanted) as daemon:
        await daemon.live()
        await world.until(lambda: states(daemon.books) == ["done"])
    world.move_to(NOON + 3 * HOUR)
    world.simulator.mute("AAPL")
    world.simulator.rest_requests.clear()
    async with world.daemon(sqlite_url, wanted) as daemon:
        await daemon.live()
        await until(lambda: states(daemon.books) == ["done", "open"])
        world.traveller.shift(2 * plan.RESPONSE_TIMEOUT)
        await until(lambda: states(daemon.books) == ["done", "failed"])
    assert repairs(daemon.books)[1]["error"] == (
        "no answer reached back to the gap's start, and the provider documents no history of user-sentiment-last-minute"
    )
    assert not world.simulator.rest_requests
    assert len(gaps(daemon.books, "AAPL")) > 0
    assert daemon.books.column("SELECT kind FROM events WHERE kind LIKE 'repair%' ORDER BY kind")[:2] == [
        "repair_failed",
        "repaired",
    ]


HISTORY = "/historical/crowd-sentiment: "
ROW = '{"ts": "2026-01-01T00:00:00.000Z", "ticker": "AAPL", "average_sentiment": 0.5}'  # of the first day
FAULTS = {
    "other rows": (
        Fault(body=f"[{ROW.replace('-01T', '-02T')}]"),
        "given up after 2 tries: none of the 1 rows of the answer is of what was asked for",
    ),
    "a bad row": (Fault(body=f'[{ROW}, {{"ts": "2026"}}]'), "1 rows of the answer cannot be read: see dead letters"),
    "refused": (Fault(status=403, body='{"message": "Not yours"}'), f"{HISTORY}HTTP 403: Not yours"),
    "unavailable": (Fault(status=500, body="sorry"), f"given up after 2 tries: {HISTORY}HTTP 500"),
    "an error object": (
        Fault(body='{"message": "Try again"}'),
        f'given up after 2 tries: {HISTORY}no row of the answer can be read: no ts, {{"message": "Try again"}}',
    ),
    "another page": (
        Fault(body="<html>"),
        f"given up after 2 tries: {HISTORY}the answer is no list of rows: not JSON",
    ),
}


async def test_what_cannot_be_healed_says_why_and_is_done_when_it_is_asked_for_again(
    world: World, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(worker, "RETRY_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.1))
    monkeypatch.setattr(rest_api, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.1, cap_seconds=0.1))
    first_day = datetime(2026, 1, 1, tzinfo=UTC)
    async with world.daemon(sqlite_url, {CROWD: ["AAPL"]}) as daemon:
        await daemon.live()
        wanted = load(world.folder / "config.yaml", env={}).subscriptions

        async def ask(hour: int) -> dict[str, Any]:
            span = first_day + hour * HOUR, first_day + (hour + 1) * HOUR
            wishes = backfill_requests.to_json(backfill_requests.build_requests(wanted, "AAPL", None, *span, NOON))
            await asyncio.to_thread(control.send_request, world.folder / "spool", "backfill", requests=wishes)
            ended = "SELECT * FROM repairs WHERE kind = 'manual' AND state <> 'open' ORDER BY from_ts"
            return (await until(lambda: daemon.books.rows(ended)[hour:]))[0]

        for hour, (name, (fault, error)) in enumerate(FAULTS.items()):
            world.simulator.rest_fault = fault
            found = await ask(hour)
            assert (name, found["state"], found["error"]) == (name, "failed", error)
        world.simulator.rest_fault = None
        for hour in range(len(FAULTS)):
            await ask(hour)
        await until(lambda: {one["state"] for one in repairs(daemon.books) if one["kind"] == "manual"} == {"done"})
        everything = world.rows(CROWD, "AAPL", first_day, first_day + len(FAULTS) * HOUR)
        held = daemon.books.current()
        assert {key: held.get(key) for key in everything} == everything
        done = [one for one in repairs(daemon.books) if one["kind"] == "manual"]
        assert [(one["error"], one["new_rows"]) for one in done] == [("", 60)] * len(FAULTS)


async def test_an_answer_that_was_cut_off_proves_nothing(
    world: World, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MAX_ATTEMPTS", 1)
    midnight = datetime(2026, 1, 1, tzinfo=UTC)
    async with world.daemon(sqlite_url, {CROWD: ["AAPL"]}) as daemon:
        await daemon.live()
        wanted = load(world.folder / "config.yaml", env={}).subscriptions
        for hours in (1, 2):
            wishes = backfill_requests.build_requests(
                wanted, "AAPL", None, midnight - hours * HOUR, midnight + hours * HOUR, NOON
            )
            await asyncio.to_thread(
                control.send_request, world.folder / "spool", "backfill", requests=backfill_requests.to_json(wishes)
            )
            ended = "SELECT state, error FROM repairs WHERE kind = 'manual' AND state <> 'open' ORDER BY from_ts DESC"
            found = await until(lambda: daemon.books.rows(ended)[hours - 1 :])  # noqa: B023
            world.simulator.rest_fault = Fault(body=f"[{ROW}]")
    assert found[0]["error"] == (
        "given up after 1 tries: the answer is cut off, its rows are from 2026-01-01 00:00:00 to 2026-01-01 00:00:00,"
        " though samples from 2025-12-31 23:00:00 to 2026-01-01 00:59:00 are known"
    )


async def test_an_answer_that_is_too_long_is_asked_for_in_smaller_pieces_down_to_a_day(
    world: World, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC)
    row = len(json.dumps(world.simulator.market.rows(CROWD, {"ticker": "AAPL"}, 0, 0, "text")))
    for name in ("MAX_SPLITTABLE_BYTES", "MAX_RESPONSE_BYTES"):
        monkeypatch.setattr(rest_api, name, 26 * 60 * row)  # of the chart a day has more
    async with world.daemon(sqlite_url, {CROWD: ["AAPL"], CHART: ["AAPL"]}) as daemon:
        await daemon.live()
        wanted = load(world.folder / "config.yaml", env={}).subscriptions
        wishes = backfill_requests.to_json(backfill_requests.build_requests(wanted, "AAPL", None, start, end, NOON))
        world.simulator.rest_requests.clear()
        await asyncio.to_thread(control.send_request, world.folder / "spool", "backfill", requests=wishes)
        ended = "SELECT state, error, cursor FROM repairs WHERE kind = 'manual' AND state <> 'open' ORDER BY state"
        done, failed = await until(lambda: (found := daemon.books.rows(ended))[1:] and found)
        assert (done["state"], failed["state"]) == ("done", "failed")
        assert failed["error"].endswith(" bytes, and less than that cannot be asked for")
        asked = [one.partition("?")[0].removeprefix("/historical/") for one in world.simulator.rest_requests]
        assert asked.count("crowd-sentiment") == len(["4 days", "2 days"]) + 4
        assert asked.count(CHART) == len(["4 days", "2 days", "1 day"])
        monkeypatch.setattr(rest_api, "MAX_RESPONSE_BYTES", 1 << 20)  # of what cannot be had in pieces
        await asyncio.to_thread(control.send_request, world.folder / "spool", "backfill", requests=wishes)
        await until(lambda: [one["state"] for one in daemon.books.rows(ended)] == ["done"] * 2)
        everything = {**world.rows(CROWD, "AAPL", start, end), **world.rows(CHART, "AAPL", start, end)}
        held = daemon.books.current()
        assert {key: held.get(key) for key in everything} == everything


@pytest.mark.postgres
async def test_of_two_daemons_one_heals(world: World, postgres_url: str) -> None:
    wanted = {CROWD: ["AAPL"]}
    async with world.daemon(postgres_url, wanted, "one") as daemon:
        await daemon.live()
    world.move_to(NOON + 3 * HOUR)
    async with world.daemon(postgres_url, wanted, "one") as daemon:
        await daemon.live()
        await world.until(lambda: repairs(daemon.books, "open"))
    world.move_to(NOON + DAY)
    world.simulator.rest_requests.clear()
    world.simulator.rest_fault = Fault(delay_seconds=0.5)
    one, two = (world.daemon(postgres_url, wanted, name) for name in ("one", "two"))
    async with one, two:
        await one.live()
        await two.live()
        await world.until(lambda: len(repairs(one.books, "done")) == 2)
        await one.stop()
        await two.stop()  # before either looks whether the books balance
    assert len(world.simulator.rest_requests) == 1
    assert len(one.books.rows("SELECT * FROM events WHERE kind = 'repaired'")) == 2
