"""What retention takes and what it leaves, in tables filled by hand; the books balance at every step of it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine, select, text

from ingestor.config.model import RetentionConfig as Horizons
from ingestor.store import schema
from ingestor.store.maintenance import retention
from ingestor.store.maintenance.retention import Retention, RetentionResult
from ingestor.store.read.audit import audit
from ingestor.store.write.batch import Batch, SampleRow
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo

NOW = datetime.now(UTC)
NOW_US = int(NOW.timestamp() * 1_000_000)
DAY = timedelta(days=1)


def keep(**horizons: str) -> Horizons:
    return Horizons.model_validate({"payloads": "forever", "samples": "forever", "journal": "forever"} | horizons)


def add(engine: Engine, table: str, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(schema.metadata.tables[table].insert(), rows)


def column(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())


def instance(engine: Engine, instance_id: int, ages_days: list[float], *, first_seq: int = 1) -> None:
    """An instance with a batch of three entries for each age: a fact, a frame of a new and a dead row, a dead frame."""
    each = list(enumerate(ages_days))
    seqs = [(first_seq + 3 * number, NOW - DAY * age) for number, age in each]
    last_seq = first_seq + 3 * len(each) - 1
    me: dict[str, Any] = {"instance_id": instance_id}
    add(engine, "instances", [me | {"spool_id": f"spool {instance_id}", "position": last_seq, "started_at": NOW}])
    counts = {"facts": 1, "frames": 2, "row_count": 2, "new_rows": 1, "dead_rows": 1, "dead_frames": 1}
    add(
        engine,
        "batches",
        [me | counts | {"first_seq": seq, "last_seq": seq + 2, "committed_at": at} for seq, at in seqs],
    )
    add(engine, "events", [me | {"seq": seq, "at": at, "kind": "connected"} for seq, at in seqs])
    add(engine, "payloads", [me | {"seq": seq + 1, "source": "stream", "received_at": at} for seq, at in seqs])
    letter = {"stage": "decode", "source": "stream"}
    dead = [(seq + 1, 0, at) for seq, at in seqs] + [(seq + 2, None, at) for seq, at in seqs]
    add(
        engine,
        "dead_letters",
        [me | letter | {"seq": seq, "row_index": index, "received_at": at} for seq, index, at in dead],
    )
    sample = me | {"series_id": instance_id, "value": 1.0, "source": "stream"}
    stamped = [(seq, at + timedelta(microseconds=seq)) for seq, at in seqs]
    add(engine, "series", [{"series_id": instance_id, "ticker": f"T{instance_id}", "first_seen_at": NOW}])
    add(engine, "samples", [sample | {"seq": seq + 1, "ts": at, "received_at": at} for seq, at in stamped])


def sweep(engine: Engine, horizons: Horizons, *, instance_id: int = 1) -> list[RetentionResult]:
    """Step by step to the end; after each of them the books balance."""
    made = Retention(engine, horizons)
    steps = [made.step(instance_id, NOW_US)]
    while steps[-1].has_more:
        assert audit(engine, samples_pruned=horizons.samples is not None) == []
        steps.append(made.step(instance_id, NOW_US))
    assert audit(engine, samples_pruned=horizons.samples is not None) == []
    return steps


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_ROWS", 4)
    monkeypatch.setattr(retention, "STEP_ROWS", 4)


def test_where_everything_is_kept_for_ever_nothing_is_taken(engine: Engine) -> None:
    instance(engine, 1, [4000, 1])
    assert sweep(engine, keep()) == [RetentionResult()]
    assert column(engine, "SELECT seq FROM payloads UNION ALL SELECT seq FROM events ORDER BY 1") == [1, 2, 4, 5]


@pytest.mark.usefixtures("small_steps")
def test_payloads_of_every_instance_go_once_they_are_too_old_a_few_at_a_time(engine: Engine) -> None:
    instance(engine, 1, [3] * 9 + [0.5])
    instance(engine, 2, [3, 0.5, 0.5])
    assert len(sweep(engine, keep(payloads="24h"))) > 2
    assert column(engine, "SELECT seq FROM payloads WHERE instance_id = 1") == [29]
    assert column(engine, "SELECT seq FROM payloads WHERE instance_id = 2 ORDER BY seq") == [5, 8]
    assert len(column(engine, "SELECT seq FROM dead_letters")) == 26


def test_where_no_payloads_are_kept_all_go(engine: Engine) -> None:
    instance(engine, 1, [3, 0.001])
    sweep(engine, keep(payloads="none"))
    assert column(engine, "SELECT seq FROM payloads") == []


def test_a_payload_with_the_stamp_of_an_older_receipt_goes_only_in_its_turn(engine: Engine) -> None:
    instance(engine, 1, [3, 0.5, 3])  # the last is of a dead letter that was tried again
    sweep(engine, keep(payloads="24h"))
    assert column(engine, "SELECT seq FROM payloads ORDER BY seq") == [5, 8]


@pytest.mark.usefixtures("small_steps")
def test_the_old_ledger_is_folded_to_a_row_for_each_day_and_its_events_go(engine: Engine) -> None:
    noon = (NOW - NOW.replace(hour=12, minute=0, second=0, microsecond=0)) / DAY
    hour = 1 / 24
    instance(engine, 1, [noon + 100 + hour, noon + 100, *(noon + 99 - i * hour / 10 for i in range(9)), 0.1])
    instance(engine, 2, [noon + 100, noon + 100 - hour])
    assert len(sweep(engine, keep(journal="90d"))) > 2
    query = "SELECT first_seq || '-' || last_seq FROM batches WHERE instance_id = {} ORDER BY first_seq"
    assert column(engine, query.format(1)) == ["1-6", "7-33", "34-36"]
    assert column(engine, query.format(2)) == ["1-6"]
    assert column(engine, "SELECT seq FROM events ORDER BY seq") == [34]
    assert len(column(engine, "SELECT seq FROM payloads")) == 14
    for name, expected in {"facts": 9, "frames": 18, "row_count": 18, "new_rows": 9, "dead_rows": 9}.items():
        assert column(engine, f"SELECT {name} FROM batches WHERE first_seq = 7") == [expected]


def test_a_day_that_was_folded_takes_in_what_has_become_old_since(engine: Engine) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - DAY
    ages = [(NOW - midnight - timedelta(hours=hours)) / DAY + 5 for hours in (1, 2, 3, 4)]
    instance(engine, 1, ages)
    made = Retention(engine, keep(journal="5d"))
    for hours in (2.5, 3.5, 4.5):
        at = midnight + timedelta(hours=hours)
        made.step(1, int(at.timestamp() * 1_000_000))
        assert audit(engine) == []
    assert column(engine, "SELECT last_seq FROM batches") == [12]
    assert column(engine, "SELECT new_rows FROM batches") == [4]


def test_what_the_folded_ledger_says_is_still_counted_against_the_tables(engine: Engine) -> None:
    instance(engine, 1, [100, 100, 0.1])
    sweep(engine, keep(journal="90d"))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM samples WHERE seq = 2"))
        connection.execute(text("DELETE FROM dead_letters WHERE seq = 6"))
    assert sorted(finding.check for finding in audit(engine)) == ["dead letters", "rows"]


def test_a_gap_in_the_ledger_is_not_folded_away(engine: Engine) -> None:
    instance(engine, 1, [100, 100, 100, 0.1])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM batches WHERE first_seq = 4"))
    Retention(engine, keep(journal="90d")).step(1, NOW_US)
    assert column(engine, "SELECT first_seq FROM batches ORDER BY 1") == [1, 7, 10]
    assert "the ledger continues with entry 7 after entry 3" in str(audit(engine))


def test_sums_too_great_for_their_column_are_not_made(engine: Engine) -> None:
    instance(engine, 1, [100, 100, 100])
    with engine.begin() as connection:
        connection.execute(text("UPDATE batches SET row_count = 1500000000, duplicate_rows = 1499999998"))
    sweep(engine, keep(journal="90d"))
    assert len(column(engine, "SELECT first_seq FROM batches")) == 3


@pytest.mark.usefixtures("small_steps")
def test_samples_go_by_their_ts_with_their_revisions(engine: Engine) -> None:
    instance(engine, 1, [406, 405, 404, 403, 402, 401, 400, 1])
    instance(engine, 2, [401, 1, 0.5])
    other = {"series_id": 1, "value": 2.0, "source": "stream", "instance_id": 1, "seq": 2, "received_at": NOW}
    stamps = [NOW - DAY * age + timedelta(microseconds=seq) for age, seq in ((406, 1), (400, 19), (1, 22))]
    add(engine, "sample_revisions", [other | {"ts": ts, "revision": n} for ts in stamps for n in (0, 1)])
    with engine.begin() as connection:
        connection.execute(text("UPDATE batches SET revised_rows = 6, row_count = 8 WHERE last_seq = 3"))
        connection.execute(text("UPDATE samples SET revision = 2 WHERE instance_id = 1"))
    steps = sweep(engine, keep(samples="365d"))
    assert sum(step.deleted_samples for step in steps) == 8
    assert len(steps) > 2
    assert len(column(engine, "SELECT ts FROM samples WHERE series_id = 1")) == 1
    assert len(column(engine, "SELECT ts FROM samples WHERE series_id = 2")) == 2
    assert column(engine, "SELECT revision FROM sample_revisions ORDER BY 1") == [0, 1]
    assert len(column(engine, "SELECT series_id FROM series")) == 2


def test_samples_go_by_whole_days_so_that_no_candle_is_of_half_of_them(engine: Engine) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - 365 * DAY
    instance(engine, 1, [(NOW - midnight) / DAY])
    kept = {"series_id": 1, "value": 1.0, "source": "stream", "instance_id": 1, "seq": 2, "received_at": NOW}
    stamps = (midnight - timedelta(microseconds=1), midnight)
    with engine.begin() as connection:
        connection.execute(schema.samples.delete())
    add(engine, "samples", [kept | {"ts": ts} for ts in stamps])
    Retention(engine, keep(samples="365d")).step(1, NOW_US)
    with engine.connect() as connection:
        assert connection.execute(select(schema.samples.c.ts)).scalars().all() == [midnight]
    # What comes again is treated likewise.
    batch = Batch(first_seq=4, last_seq=4, frames=1, row_count=2)
    stamps_us = (int(midnight.timestamp()) * 1_000_000 + late for late in (-1, 1))
    batch.rows = [SampleRow(("", "", "T1", ""), ts_us, 0.5, None, NOW_US, "stream", 4, 0) for ts_us in stamps_us]
    database = BatchWriter(engine, 365 * 86_400.0)
    database.register(InstanceInfo(spool_id="spool 1", name="", version="", config_sha256="", started_us=NOW_US), 1)
    with time_machine.travel(NOW, tick=False):
        written = database.write(batch)
    assert (written.new, written.expired) == (1, 1)


def test_more_series_than_are_looked_at_together_are_all_looked_at(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SERIES_PER_QUERY", 2)
    for number in range(1, 6):
        instance(engine, number, [400, 1])
    sweep(engine, keep(samples="365d"))
    assert len(column(engine, "SELECT ts FROM samples")) == 5


def test_one_instance_at_a_time_takes_what_is_old(engine: Engine) -> None:
    instance(engine, 1, [3, 3])
    instance(engine, 2, [3, 3])
    with engine.begin() as connection:
        lease = {"name": retention.LEASE, "instance_id": 2, "until": datetime.now(UTC) + timedelta(minutes=1)}
        connection.execute(schema.leases.insert(), lease)
    assert sweep(engine, keep(payloads="24h"), instance_id=1) == [RetentionResult()]
    assert len(column(engine, "SELECT seq FROM payloads")) == 4
    with engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=NOW - timedelta(minutes=1)))
    sweep(engine, keep(payloads="24h"), instance_id=1)
    assert column(engine, "SELECT seq FROM payloads") == []
    assert column(engine, "SELECT instance_id FROM leases") == [1]


def test_whoever_has_the_lease_keeps_it_while_at_work(engine: Engine) -> None:
    instance(engine, 1, [3])
    sweep(engine, keep(payloads="24h"), instance_id=1)
    sweep(engine, keep(payloads="24h"), instance_id=2)
    assert column(engine, "SELECT instance_id FROM leases") == [1]


def test_two_that_begin_at_once_do_the_work_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_ROWS", 2)
    monkeypatch.setattr(retention, "STEP_ROWS", 2)
    instance(engine, 1, [100] * 20 + [0.5])
    instance(engine, 2, [100] * 20 + [0.5])
    begin = threading.Barrier(2)

    def take(instance_id: int) -> int:
        begin.wait()
        return len(sweep(engine, keep(payloads="24h", journal="90d"), instance_id=instance_id))

    with ThreadPoolExecutor() as threads:
        steps = list(threads.map(take, (1, 2)))
    assert min(steps) == 1
    assert max(steps) > 20
    assert column(engine, "SELECT seq FROM payloads ORDER BY seq") == [62, 62]
    assert column(engine, "SELECT last_seq - first_seq + 1 FROM batches ORDER BY 1") == [3, 3, 60, 60]


@pytest.mark.postgres
@pytest.mark.parametrize("migrated_url", ["postgres"], indirect=True)  # a SQLite file has one daemon
def test_a_step_of_another_that_hangs_keeps_nobody_waiting(engine: Engine) -> None:
    instance(engine, 1, [3])
    instance(engine, 2, [3])
    Retention(engine, keep(payloads="24h")).step(2, NOW_US)
    with engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=datetime.now(UTC) + timedelta(minutes=1)))
        began = time.monotonic()
        assert Retention(engine, keep(payloads="24h")).step(1, NOW_US) == RetentionResult()
    assert time.monotonic() - began < 5


def test_a_clock_of_ours_that_runs_ahead_takes_nothing_too_early(engine: Engine) -> None:
    instance(engine, 1, [0.5])
    Retention(engine, keep(payloads="24h")).step(1, NOW_US + 400 * 86_400_000_000)
    assert column(engine, "SELECT seq FROM payloads") == [2]


@pytest.mark.parametrize(
    ("rows", "seconds", "expected"),
    [
        pytest.param(100, 0.01, 200, id="quick: twice as many"),
        pytest.param(100, 0.06, 50, id="slow: half"),
        pytest.param(800, 0.01, 1000, id="never more than a thousand"),
        pytest.param(1, 9.0, 1, id="never fewer than one"),
    ],
)
def test_steps_grow_and_shrink_with_the_time_they_take(rows: int, seconds: float, expected: int) -> None:
    assert retention.next_step_rows(rows, seconds) == expected


def test_days_are_in_order_and_gapless_however_the_pages_fall(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    instance(engine, 1, [200 - number / 5 for number in range(40)])
    for rows in (1, 2, 3):
        monkeypatch.setattr(retention, "FIRST_ROWS", rows)
        monkeypatch.setattr(retention, "STEP_ROWS", rows)
        sweep(engine, keep(journal="90d"))
    with engine.connect() as connection:
        rows_left = connection.execute(text("SELECT first_seq, last_seq FROM batches ORDER BY 1")).all()
    assert 8 <= len(rows_left) <= 9
    assert all(before.last_seq + 1 == after.first_seq for before, after in pairwise(rows_left))
