"""The table of repairs on both databases: what is to be repaired, by whom, and what is noted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from ingestor.repair import window_scan
from ingestor.store import schema
from ingestor.store.maintenance import repairs
from ingestor.store.maintenance.repairs import BackfillRequest, Gap, LeaseHeldElsewhere, RepairTable
from tests.support.entries import decoder

from .row_factory import Database, at

MINUTE = timedelta(minutes=1)


@pytest.fixture
def db(engine: Engine) -> Database:
    """Two gaps of AAPL on record, and a third that is not over."""
    db = Database(engine)
    db.instance(1, "18:00")
    db.subscription(101, "AAPL")
    db.subscription(102, "ON")
    db.state(101, 1, "live", "08:00", "09:00")
    db.state(101, 1, "disconnected", "09:00", "09:30")
    db.state(101, 1, "live", "09:30", "12:00")
    db.state(101, 1, "crashed", "12:00", "12:59:30")
    db.state(101, 1, "pending", "12:59:30", "13:00")
    db.state(101, 1, "live", "13:00", "17:00")
    db.state(101, 1, "disconnected", "17:00", None)
    return db


FIRST, SECOND = Gap(101, at("09:00"), at("09:30")), Gap(101, at("12:00"), at("13:00"))


def column(engine: Engine, query: str) -> list[object]:
    with engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())


def test_gaps_that_are_over_and_not_named_are_to_be_repaired(db: Database) -> None:
    assert repairs.find_gaps(db.engine, 10) == [FIRST, SECOND]
    assert repairs.find_gaps(db.engine, 1) == [FIRST]


def test_a_gap_in_which_it_was_taken_out_of_the_config_is_over(db: Database) -> None:
    db.state(102, 1, "live", "08:00", "09:00")
    db.state(102, 1, "disconnected", "09:00", "09:30")
    db.state(102, 1, "stopped", "09:30", None)
    assert repairs.find_gaps(db.engine, 10) == [FIRST, Gap(102, at("09:00"), at("09:30")), SECOND]
    db.instance(2, "09:30")
    db.state(102, 2, "disconnected", "09:10", None)  # another daemon still wants it
    assert repairs.find_gaps(db.engine, 10) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("kind", "state", "start", "end", "named"),
    [
        ("historical", "open", "12:00", "13:00", True),
        ("historical", "open", "11:00", "14:00", True),
        ("historical", "failed", "12:00", "13:00", True),
        ("historical", "open", "12:00", "12:59", False),
        ("manual", "open", "10:00", "15:00", True),
        ("manual", "failed", "10:00", "15:00", False),
    ],
)
def test_a_gap_inside_a_repair_is_named_by_it(
    db: Database, kind: str, state: str, start: str, end: str, named: bool
) -> None:
    times = {"from_ts": at(start), "to_ts": at(end), "created_at": at("18:00")}
    db.add("repairs", subscription_id=101, kind=kind, state=state, **times)
    assert repairs.find_gaps(db.engine, 10) == ([FIRST] if named else [FIRST, SECOND])


def test_answers_are_looked_for_from_when_it_was_asked_again(db: Database) -> None:
    RepairTable(db.engine).open(1, [FIRST, SECOND, Gap(101, at("05:00"), at("06:00"))], at("18:00"))
    resumed, unheard = repairs.resumed_repairs(db.engine, 10)
    # Of the second gap from `pending` on: what came before that was acknowledged is for others to judge.
    assert [(one.repair.from_ts, one.instance_id, one.seq) for one in resumed] == [
        (at("09:00"), 1, 2),
        (at("12:00"), 1, 5),
    ]
    assert [one.from_ts for one in unheard] == [at("05:00")]


def test_the_most_urgent_is_due_first_and_days_once_they_are_over(db: Database) -> None:
    made = [("historical", "-1 12:00", "-1 13:00"), ("manual", "-1 00:00", "00:00"), ("snapshot", "09:00", "09:30")]
    made += [("historical", "12:00", "13:00"), ("window", "10:00", "11:00")]
    for kind, start, end in made:
        times = {"from_ts": at(start), "to_ts": at(end), "created_at": at("18:00")}
        db.add("repairs", subscription_id=101, kind=kind, state="open", **times)
    due = list(repairs.due_repairs(db.engine, at("00:00")))
    assert [(one.kind, one.ticker, one.parsed_params) for one in due] == [
        ("snapshot", "AAPL", {"ticker": "AAPL"}),
        ("manual", "AAPL", {"ticker": "AAPL"}),
        ("historical", "AAPL", {"ticker": "AAPL"}),
    ]


def test_whoever_has_the_lease_writes_and_it_passes_on_when_it_has_run_out(db: Database) -> None:
    table = RepairTable(db.engine)
    table.acquire_lease(1)
    table.open(1, [FIRST], at("18:00"))
    (one,) = repairs.load_repairs(db.engine, [1])
    for write in (
        lambda: table.acquire_lease(2),
        lambda: table.open(2, [SECOND], at("18:00")),
        lambda: table.postpone(2, one.repair_id, "x"),
        lambda: table.finish(2, {one.repair_id: 1}, at("18:00")),
        lambda: table.fail(2, [one.repair_id], "x", at("18:00")),
    ):
        with pytest.raises(LeaseHeldElsewhere):
            write()
    assert repairs.load_repairs(db.engine, [1, 2]) == [one]
    with db.engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=datetime.now(UTC) - MINUTE))
    table.finish(2, {one.repair_id: 7}, at("18:00"))
    assert column(db.engine, "SELECT state FROM repairs") == ["done"]
    with pytest.raises(LeaseHeldElsewhere):
        table.acquire_lease(1)


def test_gaps_shrink_by_what_is_done_and_by_nothing_else(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST, SECOND], at("18:00"))
    table.open(1, [FIRST, SECOND], at("18:00"))  # as another daemon may
    table.postpone(1, 1, "later")
    table.change_kind(1, [1], "historical")
    table.advance(1, 1, "some of it")
    table.fail(1, [2], "why not", at("18:00"))
    holes = "SELECT from_at FROM gaps ORDER BY from_at"
    assert len(column(db.engine, holes)) == 3
    table.finish(1, {1: 30, 2: 30}, at("18:00"))  # of what has failed nothing is done
    assert len(column(db.engine, holes)) == 2
    assert [(one.state, one.new_rows, one.error) for one in repairs.load_repairs(db.engine, [1, 2])] == [
        ("done", 30, ""),
        ("failed", 0, "why not"),
    ]


def test_what_has_failed_is_told_until_it_was_repaired_otherwise(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST, SECOND], at("18:00"))
    table.fail(1, [1, 2], "why not", at("18:00"))
    assert [one.repair_id for one in repairs.unfinished_repairs(db.engine, "AAPL")] == [2, 1]
    by_hand = Gap(101, at("08:30"), at("12:30"))
    table.open(1, [by_hand], at("19:00"))
    table.finish(1, {3: 1}, at("19:00"))
    assert [one.repair_id for one in repairs.unfinished_repairs(db.engine)] == [2]  # half of it is still missing
    assert repairs.unfinished_repairs(db.engine, "ON") == []


def test_rows_are_counted_that_came_since_and_are_about_the_gaps_time(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST], at("18:00"))
    (one,) = repairs.load_repairs(db.engine, [1])
    names = ("crowd-sentiment", "crowd_sentiment")
    for clock, came, source in (
        ("08:58", "09:31", "stream"),  # not of its time
        ("08:59:30", "09:31", "stream"),  # of the bucket that it begins in
        ("09:10", "09:31", "stream"),
        ("09:11", "18:30", "backfill"),
        ("09:12", "17:30", "backfill"),  # before it was begun
        ("09:30", "09:31", "stream"),  # the end is not in it
    ):
        db.sample(*names, "AAPL", clock, 1.0, received_at=at(came), source=source)
    db.sample(*names, "ON", "09:10", 1.0, received_at=at("09:31"))
    assert repairs.count_new_rows(db.engine, one, MINUTE) == 2
    table.change_kind(1, [1], "historical")
    assert repairs.count_new_rows(db.engine, repairs.load_repairs(db.engine, [1])[0], MINUTE) == 1
    assert repairs.sample_range(db.engine, names[0], "AAPL", "", at("09:00"), at("09:30")) == (at("09:10"), at("09:12"))
    assert repairs.sample_range(db.engine, names[0], "AAPL", "", at("09:40"), at("09:50")) is None
    db.sample(*names, "TSLA", "09:10", 1.0)
    db.subscription(103, path="crowd-sentiment")  # all of them
    db.subscription(104, "6E")  # asked for, and nothing has come
    db.subscription(105, "ES", feed="tweet-volume", path="/real-time/tweet-volume")
    assert repairs.known_tickers(db.engine, names[0], 10) == ["6E", "AAPL", "ON", "TSLA"]


def wish(ticker: str, params: str, end: str = "13:00") -> BackfillRequest:
    path = "/real-time/crowd-sentiment"
    names = {"path": path, "method": "get", "params": params, "feed": "crowd-sentiment", "ticker": ticker}
    return BackfillRequest(**names, from_ts=at("12:00"), to_ts=at(end))


def test_what_is_asked_for_by_hand_goes_on_or_begins_anew_but_what_is_done_stays_so(db: Database) -> None:
    table, ours = RepairTable(db.engine), wish("AAPL", '{"ticker":"AAPL"}')
    other = wish("TSLA", '{"ticker":"TSLA"}')
    assert table.request([ours, other], at("18:00")) == [1, 2]
    assert [one.ticker for one in repairs.load_repairs(db.engine, [1, 2])] == ["AAPL", "TSLA"]
    table.advance(1, 1, "half of it")
    table.fail(1, [2], "no", at("18:00"))
    assert table.request([ours, other], at("19:00")) == [1, 2]
    assert [(one.state, one.cursor, one.error) for one in repairs.load_repairs(db.engine, [1, 2])] == [
        ("open", "half of it", ""),
        ("open", "", ""),
    ]
    table.finish(1, {1: 5}, at("19:00"))
    assert table.request([ours], at("20:00")) == [1]
    assert repairs.load_repairs(db.engine, [1])[0].state == "done"
    assert column(db.engine, "SELECT ticker FROM subscriptions ORDER BY ticker") == ["AAPL", "ON", "TSLA"]


def test_a_gap_that_is_asked_for_by_hand_waits_for_nothing_else(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [SECOND], at("18:00"))
    assert table.request([wish("AAPL", '{"ticker":"AAPL"}')], at("19:00")) == [1]
    assert [(one.kind, one.created_at) for one in repairs.due_repairs(db.engine, at("00:00"))] == [
        ("manual", at("19:00"))
    ]


def test_what_was_asked_for_repairs_the_gaps_inside_it_as_well(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST, SECOND, Gap(102, at("09:00"), at("09:30"))], at("18:00"))
    first = repairs.load_repairs(db.engine, [1])[0]
    assert [one.repair_id for one in repairs.repairs_inside(db.engine, first, at("13:00"))] == [2]
    assert repairs.repairs_inside(db.engine, first, at("12:59")) == []


def test_only_an_answer_that_came_after_the_gap_and_reaches_back_to_its_start_proves_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_scan, "PAGE_ROWS", 2)
    RepairTable(db.engine).open(1, [FIRST, SECOND], at("18:00"))
    resumed, _ = repairs.resumed_repairs(db.engine, 10)
    looked: dict[tuple[int, int], int] = {}

    def proven() -> list[datetime]:
        return [
            one.from_ts for one in window_scan.find_repaired(db.engine, decoder(), 1, resumed, looked, lambda: False)
        ]

    def came(seq: int, received: str, ticker: str, *rows: str, path: str = "/real-time/crowd-sentiment") -> None:
        body = json.dumps([{"ts": at(row).isoformat(), "ticker": ticker, "average_sentiment": 1} for row in rows])
        names = {"connection_id": "c", "source": "stream", "event": "res", "path": path, "params": "{}", "body": body}
        db.add("payloads", instance_id=1, seq=seq, received_at=at(received), **names)

    came(20, "09:29:59", "AAPL", "09:00")  # still in the gap, which goes on to its end
    came(21, "09:30:01", "AAPL", "09:01")  # sparse
    came(22, "09:30:02", "ON", "09:00")
    came(23, "09:30:03", "AAPL", "09:00", path="crowd-sentiment")  # says what is new, and restates what is old
    came(24, "09:30:04", "AAPL")
    came(25, "09:30:05", "AAPL", "02:00", "09:29")  # restated, from before any window
    assert proven() == []
    assert looked == {(1, 1): 25, (2, 1): 25}
    came(26, "09:31", "AAPL", "09:25", "09:00")
    assert proven() == [at("09:00")]
    came(27, "13:01", "AAPL", "11:59", "13:00")
    assert proven() == [at("09:00"), at("12:00")]  # the first is still among those asked about: looked at from 25 on
    resumed = [one for one in resumed if one.repair.from_ts == at("12:00")]
    proven()
    assert looked.keys() == {(2, 1)}
