"""Compare the events that a numbered feed knows to be durable with spool, tables and dead letters."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import expected_rows
from .db_reader import DbReader
from .fork_server import ForkedCommand, ForkedDaemon, ForkServer
from .numbered_feed import PATH, TICKERS, number_of


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The figures of a run. ``lost`` and ``duplicated`` contain event numbers; both must be empty."""

    sent: int
    acknowledged: int
    stored: int  # payloads, of all instances
    lost: frozenset[int]
    duplicated: frozenset[int]

    def __str__(self) -> str:
        return (
            f"{self.sent} events sent, {self.acknowledged} acknowledged, {self.stored} stored,"
            f" {len(self.lost)} lost, {len(self.duplicated)} duplicated"
        )


@dataclass(frozen=True, slots=True)
class _Event:
    """A payload in the database."""

    instance_id: int
    number: int
    rows: list[dict[str, Any]]
    path: str = PATH


def reconcile(db: DbReader, sent: int, acknowledged: Set[int]) -> Reconciliation:
    """Compare events and payloads, and assert that the samples match the payloads. Call it while no daemon writes."""
    events = _events(db)
    assert db.column("SELECT body FROM dead_letters") == []
    assert max((event.number for event in events), default=-1) < sent
    _compare(events, db)
    times = Counter((event.instance_id, event.number) for event in events)
    return Reconciliation(
        sent=sent,
        acknowledged=len(acknowledged),
        stored=len(events),
        lost=frozenset(acknowledged - {event.number for event in events}),
        duplicated=frozenset(number for (_, number), count in times.items() if count > 1),
    )


async def assert_recovers(daemon: ForkedDaemon, fork_server: ForkServer) -> None:
    """Assert that the daemon starts, becomes live and stops in order, and that the audit finds nothing."""
    daemon.start()
    await daemon.wait_until_live()
    assert await daemon.terminate(timeout_seconds=20) == 0
    await assert_balances(daemon, fork_server)


async def assert_balances(daemon: ForkedDaemon, fork_server: ForkServer) -> None:
    """Assert that ``ingestor audit`` finds nothing."""
    async with ForkedCommand(fork_server, "audit", "--config", daemon.config_file, folder=daemon.folder) as audit:
        assert await audit.wait_for_exit() == 0, audit.stdout + audit.stderr


def assert_complete(
    db: DbReader, spool: Path, sent: int, acknowledged: Set[int], *, whole: bool = True
) -> Reconciliation:
    """Assert that no acknowledged event is missing, none is stored twice, and the spool is empty.

    With ``whole`` False the entries need not start at 1, because the test deleted some of them.
    """
    head = spool_head(spool)
    position = db.scalar(f"SELECT position FROM instances WHERE spool_id = '{head['spool_id']}'")
    assert position == head["next_seq"] - 1
    if whole:
        db.assert_consistent()
    found = reconcile(db, sent, acknowledged)
    assert found.acknowledged, "nothing was acknowledged, so nothing was tested"
    assert (sorted(found.lost), sorted(found.duplicated)) == ([], []), (found, sorted(found.lost))
    return found


def spool_head(folder: Path) -> dict[str, Any]:
    """Return the counters of a spool, read from its file. No daemon may use the spool."""
    with closing(sqlite3.connect(f"file:{folder / 'spool.db'}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return dict(database.execute("SELECT * FROM head").fetchone())


def assert_not_live_when_killed(db: DbReader, killed: Sequence[datetime]) -> None:
    """Assert that coverage is seamless and not live at the moment of each kill. For one instance only."""
    for ticker in TICKERS:
        intervals = db.coverage(ticker)
        for interval, next_interval in pairwise(intervals):
            assert interval["ended_at"] == next_interval["started_at"], intervals
            assert interval["state"] != next_interval["state"], intervals
        for moment in killed:
            at_kill = [span for span in intervals[:-1] if span["started_at"] <= moment < span["ended_at"]]
            assert {span["state"] for span in at_kill} <= {"crashed"}, (moment, intervals)


def _events(db: DbReader) -> list[_Event]:
    """Return the stored events of all instances in the order of receipt."""
    query = "SELECT instance_id, body FROM payloads ORDER BY received_at, instance_id, seq"
    bodies = [(row["instance_id"], json.loads(row["body"])) for row in db.rows(query)]
    return [_Event(instance_id, number_of(rows), rows) for instance_id, rows in bodies]


def _compare(events: Sequence[_Event], db: DbReader) -> None:
    """Assert that the samples follow from the payloads. With two instances, both may record the same value."""
    expected, current, revisions = expected_rows.values(events), db.current(), db.revisions()
    assert current == {key: values[-1] for key, values in expected.items()}
    single_instance = len({event.instance_id for event in events}) == 1
    for key, values in expected.items():
        recorded = [*revisions.get(key, ()), current[key]]
        assert set(recorded) == set(values), key
        assert not single_instance or len(recorded) == len(values), key
