"""Queries and state changes of the table ``repairs``, on both databases."""

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

from .row_factory import Database, at, single_payload

MINUTE = timedelta(minutes=1)


@pytest.fixture
def db(engine: Engine) -> Database:
    """Two gaps of AAPL that have ended, and a third that has not."""
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


def test_find_gaps_returns_ended_gaps_without_repair(db: Database) -> None:
    assert repairs.find_gaps(db.engine, 10) == [FIRST, SECOND]
    assert repairs.find_gaps(db.engine, 1) == [FIRST]


def test_find_gaps_includes_gap_before_removal_from_config(db: Database) -> None:
    db.state(102, 1, "live", "08:00", "09:00")
    db.state(102, 1, "disconnected", "09:00", "09:30")
    db.state(102, 1, "stopped", "09:30", None)
    assert repairs.find_gaps(db.engine, 10) == [FIRST, Gap(102, at("09:00"), at("09:30")), SECOND]
    db.instance(2, "09:30")
    db.state(102, 2, "disconnected", "09:10", None)  # another daemon still wants it
    assert repairs.find_gaps(db.engine, 10) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("kind", "state", "start", "end", "has_repair"),
    [
        ("historical", "open", "12:00", "13:00", True),
        ("historical", "open", "11:00", "14:00", True),
        ("historical", "failed", "12:00", "13:00", True),
        ("historical", "open", "12:00", "12:59", False),
        ("manual", "open", "10:00", "15:00", True),
        ("manual", "failed", "10:00", "15:00", False),
    ],
)
def test_find_gaps_omits_gap_inside_a_repair(
    db: Database, kind: str, state: str, start: str, end: str, has_repair: bool
) -> None:
    times = {"from_ts": at(start), "to_ts": at(end), "created_at": at("18:00")}
    db.add("repairs", subscription_id=101, kind=kind, state=state, **times)
    assert repairs.find_gaps(db.engine, 10) == ([FIRST] if has_repair else [FIRST, SECOND])


def test_resumed_repairs_start_at_the_new_subscribe_request(db: Database) -> None:
    RepairTable(db.engine).open(1, [FIRST, SECOND, Gap(101, at("05:00"), at("06:00"))], at("18:00"))
    resumed, not_resumed = repairs.resumed_repairs(db.engine, 10)
    # In the second gap the request is the `pending` interval: responses may arrive before it is acknowledged.
    assert [(again.repair.from_ts, again.instance_id, again.seq) for again in resumed] == [
        (at("09:00"), 1, 2),
        (at("12:00"), 1, 5),
    ]
    assert [repair.from_ts for repair in not_resumed] == [at("05:00")]


def test_due_repairs_are_ordered_by_urgency(db: Database) -> None:
    rows = [("historical", "-1 12:00", "-1 13:00"), ("manual", "-1 00:00", "00:00"), ("snapshot", "09:00", "09:30")]
    rows += [("historical", "12:00", "13:00"), ("window", "10:00", "11:00")]
    for kind, start, end in rows:
        times = {"from_ts": at(start), "to_ts": at(end), "created_at": at("18:00")}
        db.add("repairs", subscription_id=101, kind=kind, state="open", **times)
    due = list(repairs.due_repairs(db.engine, at("00:00")))
    assert [(repair.kind, repair.ticker, repair.parsed_params) for repair in due] == [
        ("snapshot", "AAPL", {"ticker": "AAPL"}),
        ("manual", "AAPL", {"ticker": "AAPL"}),
        ("historical", "AAPL", {"ticker": "AAPL"}),
    ]


def test_only_holder_of_the_lease_writes_until_it_expires(db: Database) -> None:
    table = RepairTable(db.engine)
    table.acquire_lease(1)
    table.open(1, [FIRST], at("18:00"))
    (repair,) = repairs.load_repairs(db.engine, [1])
    for write in (
        lambda: table.acquire_lease(2),
        lambda: table.open(2, [SECOND], at("18:00")),
        lambda: table.postpone(2, repair.repair_id, "x"),
        lambda: table.finish(2, {repair.repair_id: 1}, at("18:00")),
        lambda: table.fail(2, [repair.repair_id], "x", at("18:00")),
    ):
        with pytest.raises(LeaseHeldElsewhere):
            write()
    assert repairs.load_repairs(db.engine, [1, 2]) == [repair]
    with db.engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=datetime.now(UTC) - MINUTE))
    table.finish(2, {repair.repair_id: 7}, at("18:00"))
    assert column(db.engine, "SELECT state FROM repairs") == ["done"]
    with pytest.raises(LeaseHeldElsewhere):
        table.acquire_lease(1)


def test_only_finished_repairs_close_gaps(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST, SECOND], at("18:00"))
    table.open(1, [FIRST, SECOND], at("18:00"))  # as another daemon might
    table.postpone(1, 1, "later")
    table.change_kind(1, [1], "historical")
    table.advance(1, 1, "half of it")
    table.fail(1, [2], "why not", at("18:00"))
    gaps = "SELECT from_at FROM gaps ORDER BY from_at"
    assert len(column(db.engine, gaps)) == 3
    table.finish(1, {1: 30, 2: 30}, at("18:00"))  # a failed repair does not become done
    assert len(column(db.engine, gaps)) == 2
    assert [(repair.state, repair.new_rows, repair.error) for repair in repairs.load_repairs(db.engine, [1, 2])] == [
        ("done", 30, ""),
        ("failed", 0, "why not"),
    ]


def test_unfinished_repairs_omit_failed_ones_covered_since(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST, SECOND], at("18:00"))
    table.fail(1, [1, 2], "why not", at("18:00"))
    assert [repair.repair_id for repair in repairs.unfinished_repairs(db.engine, "AAPL")] == [2, 1]
    manual = Gap(101, at("08:30"), at("12:30"))
    table.open(1, [manual], at("19:00"))
    table.finish(1, {3: 1}, at("19:00"))
    assert [repair.repair_id for repair in repairs.unfinished_repairs(db.engine)] == [2]  # half of it is still missing
    assert repairs.unfinished_repairs(db.engine, "ON") == []


def test_count_new_rows_counts_later_rows_of_the_gap(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST], at("18:00"))
    (repair,) = repairs.load_repairs(db.engine, [1])
    names = ("crowd-sentiment", "crowd_sentiment")
    for clock, received, source in (
        ("08:58", "09:31", "stream"),  # before the gap
        ("08:59:30", "09:31", "stream"),  # in the bucket that the gap starts in
        ("09:10", "09:31", "stream"),
        ("09:11", "18:30", "backfill"),
        ("09:12", "17:30", "backfill"),  # before the repair was created
        ("09:30", "09:31", "stream"),  # the end is exclusive
    ):
        db.sample(*names, "AAPL", clock, 1.0, received_at=at(received), source=source)
    db.sample(*names, "ON", "09:10", 1.0, received_at=at("09:31"))
    assert repairs.count_new_rows(db.engine, repair, MINUTE) == 2
    table.change_kind(1, [1], "historical")
    assert repairs.count_new_rows(db.engine, repairs.load_repairs(db.engine, [1])[0], MINUTE) == 1
    assert repairs.sample_range(db.engine, names[0], "AAPL", "", at("09:00"), at("09:30")) == (at("09:10"), at("09:12"))
    assert repairs.sample_range(db.engine, names[0], "AAPL", "", at("09:40"), at("09:50")) is None
    db.sample(*names, "TSLA", "09:10", 1.0)
    db.subscription(103, path="crowd-sentiment")  # all tickers
    db.subscription(104, "6E")  # subscribed, without data
    db.subscription(105, "ES", feed="tweet-volume", path="/real-time/tweet-volume")
    assert repairs.known_tickers(db.engine, names[0], 10) == ["6E", "AAPL", "ON", "TSLA"]


def test_window_of_one_ticker_does_not_prove_gap_of_all(db: Database) -> None:
    db.subscription(103, path="/real-time/crowd-sentiment", params="{}")
    gap = Gap(103, at("09:00"), at("09:30"))
    RepairTable(db.engine).open(1, [gap, FIRST], at("18:00"))
    assert [
        (repair.ticker, window_scan.has_rolling_window(repair)) for repair in repairs.load_repairs(db.engine, [1, 2])
    ] == [("", False), ("AAPL", True)]


def request(ticker: str, params: str, end: str = "13:00") -> BackfillRequest:
    path = "/real-time/crowd-sentiment"
    columns = {"path": path, "method": "get", "params": params, "feed": "crowd-sentiment", "ticker": ticker}
    return BackfillRequest(**columns, from_ts=at("12:00"), to_ts=at(end))


def test_request_reopens_failed_repair_and_keeps_finished_one(db: Database) -> None:
    table, aapl = RepairTable(db.engine), request("AAPL", '{"ticker":"AAPL"}')
    tsla = request("TSLA", '{"ticker":"TSLA"}')
    assert table.request([aapl, tsla], at("18:00")) == [1, 2]
    assert [repair.ticker for repair in repairs.load_repairs(db.engine, [1, 2])] == ["AAPL", "TSLA"]
    table.advance(1, 1, "half of it")
    table.fail(1, [2], "no", at("18:00"))
    assert table.request([aapl, tsla], at("19:00")) == [1, 2]
    assert [(repair.state, repair.cursor, repair.error) for repair in repairs.load_repairs(db.engine, [1, 2])] == [
        ("open", "half of it", ""),
        ("open", "", ""),
    ]
    table.finish(1, {1: 5}, at("19:00"))
    assert table.request([aapl], at("20:00")) == [1]
    assert repairs.load_repairs(db.engine, [1])[0].state == "done"
    assert column(db.engine, "SELECT ticker FROM subscriptions ORDER BY ticker") == ["AAPL", "ON", "TSLA"]


def test_request_makes_waiting_repair_manual(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [SECOND], at("18:00"))
    assert table.request([request("AAPL", '{"ticker":"AAPL"}')], at("19:00")) == [1]
    assert [(repair.kind, repair.created_at) for repair in repairs.due_repairs(db.engine, at("00:00"))] == [
        ("manual", at("19:00"))
    ]


def test_repairs_inside_returns_later_repairs_of_the_feed(db: Database) -> None:
    table = RepairTable(db.engine)
    table.open(1, [FIRST, SECOND, Gap(102, at("09:00"), at("09:30"))], at("18:00"))
    first = repairs.load_repairs(db.engine, [1])[0]
    assert [repair.repair_id for repair in repairs.repairs_inside(db.engine, first, at("13:00"))] == [2]
    assert repairs.repairs_inside(db.engine, first, at("12:59")) == []


def test_window_is_proven_by_later_response_that_contains_all_of_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_scan, "PAGE_ROWS", 2)
    RepairTable(db.engine).open(1, [FIRST, SECOND], at("18:00"))
    resumed, _ = repairs.resumed_repairs(db.engine, 10)
    scanned: dict[tuple[int, int], int] = {}

    def proven() -> list[datetime]:
        return [
            repair.from_ts
            for repair in window_scan.find_repaired(db.engine, decoder(), 1, resumed, scanned, lambda: False)
        ]

    def receive(seq: int, received: str, ticker: str, *rows: str, path: str = "/real-time/crowd-sentiment") -> None:
        body = json.dumps([{"ts": at(row).isoformat(), "ticker": ticker, "average_sentiment": 1} for row in rows])
        names = {"connection_id": "c", "event": "res", "path": path, "params": "{}", "body": body}
        db.add("payload_blocks", **single_payload(1, seq, at(received), **names))

    receive(20, "09:29:59", "AAPL", "09:00")  # before the end of the gap
    receive(21, "09:30:01", "AAPL", "09:01")  # does not reach the start of the gap
    receive(22, "09:30:02", "ON", "09:00")
    receive(23, "09:30:03", "AAPL", "09:00", path="crowd-sentiment")  # a bare stream: only new and restated rows
    receive(24, "09:30:04", "AAPL")
    receive(25, "09:30:05", "AAPL", "02:00", "09:29")  # a restated row, older than any window
    receive(26, "09:31", "AAPL", "09:00", "09:29")  # from before the end of the gap: the provider is behind
    receive(27, "09:31:01", "AAPL", "09:30")  # not all of the gap either
    assert proven() == []
    assert scanned == {(1, 1): 27, (2, 1): 27}
    receive(28, "09:31:02", "AAPL", "09:30", "09:00")
    assert proven() == [at("09:00")]
    receive(29, "12:59:59", "AAPL", "12:00", "13:00")  # from within the second gap: the provider's clock is ahead
    assert proven() == [at("09:00")]  # it is still among those passed in, and is scanned from 27 on
    receive(30, "13:01", "AAPL", "11:59", "13:00")
    assert proven() == [at("09:00"), at("12:00")]
    resumed = [again for again in resumed if again.repair.from_ts == at("12:00")]
    proven()
    assert scanned.keys() == {(2, 1)}
