"""After whatever happened: what the feed knows to be received against what spool, tables and dead letters hold."""

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
    """The figures of a run. ``lost`` and ``duplicated`` name events; both must be empty."""

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
    """A payload that is in the database."""

    instance_id: int
    number: int
    rows: list[dict[str, Any]]
    path: str = PATH


def reconcile(db: DbReader, sent: int, acknowledged: Set[int]) -> Reconciliation:
    """Count, and assert that the tables say what the payloads say. No daemon may be writing."""
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
    """It starts, is live again, ends in order, and its audit balances."""
    daemon.start()
    await daemon.wait_until_live()
    assert await daemon.terminate(timeout_seconds=20) == 0
    await assert_balances(daemon, fork_server)


async def assert_balances(daemon: ForkedDaemon, fork_server: ForkServer) -> None:
    """``ingestor audit`` finds nothing."""
    async with ForkedCommand(fork_server, "audit", "--config", daemon.config_file, folder=daemon.folder) as audit:
        assert await audit.wait_for_exit() == 0, audit.stdout + audit.stderr


def assert_complete(
    db: DbReader, spool: Path, sent: int, acknowledged: Set[int], *, whole: bool = True
) -> Reconciliation:
    """Nothing that was acknowledged is missing, nothing is there twice, and nothing is left in the spool.

    Unless ``whole``, the books need not begin with entry 1: a part of them was taken away on purpose.
    """
    head = spool_head(spool)
    position = db.scalar(f"SELECT position FROM instances WHERE spool_id = '{head['spool_id']}'")
    assert position == head["next_seq"] - 1
    if whole:
        db.assert_consistent()
    found = reconcile(db, sent, acknowledged)
    assert found.acknowledged, "nothing was acknowledged: this has tested nothing"
    assert (sorted(found.lost), sorted(found.duplicated)) == ([], []), (found, sorted(found.lost))
    return found


def spool_head(folder: Path) -> dict[str, Any]:
    """The counters of a spool. Reads the file as it is; no daemon may have it."""
    with closing(sqlite3.connect(f"file:{folder / 'spool.db'}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return dict(database.execute("SELECT * FROM head").fetchone())


def assert_not_live_when_killed(db: DbReader, killed: Sequence[datetime]) -> None:
    """Coverage has neither holes nor overlaps, and at the moment of each kill it claims nothing. One instance only."""
    for ticker in TICKERS:
        intervals = db.coverage(ticker)
        assert [one["ended_at"] for one in intervals[:-1]] == [two["started_at"] for two in intervals[1:]]
        for one, two in pairwise(intervals):
            assert one["state"] != two["state"], intervals
        for moment in killed:
            states = {one["state"] for one in intervals[:-1] if one["started_at"] <= moment < one["ended_at"]}
            assert states <= {"crashed"}, (moment, intervals)


def _events(db: DbReader) -> list[_Event]:
    """In the order of their receipt, whoever received them."""
    query = "SELECT instance_id, body FROM payloads ORDER BY received_at, instance_id, seq"
    bodies = [(row["instance_id"], json.loads(row["body"])) for row in db.rows(query)]
    return [_Event(instance_id, number_of(rows), rows) for instance_id, rows in bodies]


def _compare(events: Sequence[_Event], db: DbReader) -> None:
    """The samples are what follows from the payloads. Of two instances either may say again what the other said."""
    given, current, revisions = expected_rows.values(events), db.current(), db.revisions()
    assert current == {key: values[-1] for key, values in given.items()}
    alone = len({event.instance_id for event in events}) == 1
    for key, values in given.items():
        recorded = [*revisions.get(key, ()), current[key]]
        assert set(recorded) == set(values), key
        assert not alone or len(recorded) == len(values), key
