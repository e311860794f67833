"""What retention deletes and what it keeps, in tables filled by hand. The audit finds nothing after any step."""

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

from ingestor.config.model import RetentionConfig
from ingestor.store import schema
from ingestor.store.maintenance import retention
from ingestor.store.maintenance.retention import Retention, RetentionResult
from ingestor.store.read.audit import audit
from ingestor.store.write.batch import Batch, SampleRow
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo

from .row_factory import single_payload

NOW = datetime.now(UTC)
NOW_US = int(NOW.timestamp() * 1_000_000)
DAY = timedelta(days=1)


def keep(**durations: str) -> RetentionConfig:
    forever = {"payloads": "forever", "samples": "forever", "journal": "forever"}
    return RetentionConfig.model_validate(forever | durations)


def add(engine: Engine, table: str, rows: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(schema.metadata.tables[table].insert(), rows)


def column(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())


def instance(
    engine: Engine, instance_id: int, ages_days: list[float], *, first_seq: int = 1, started_at: datetime = NOW
) -> None:
    """Add an instance with a batch per age: a fact, a frame with a new and a dead row, and a dead frame."""
    seqs = [(first_seq + 3 * number, NOW - DAY * age) for number, age in enumerate(ages_days)]
    last_seq = first_seq + 3 * len(ages_days) - 1
    key: dict[str, Any] = {"instance_id": instance_id}
    add(
        engine,
        "instances",
        [key | {"spool_id": f"spool {instance_id}", "position": last_seq, "started_at": started_at}],
    )
    counts = {"facts": 1, "frames": 2, "row_count": 2, "new_rows": 1, "dead_rows": 1, "dead_frames": 1}
    add(
        engine,
        "batches",
        [key | counts | {"first_seq": seq, "last_seq": seq + 2, "committed_at": at} for seq, at in seqs],
    )
    add(engine, "events", [key | {"seq": seq, "at": at, "kind": "connected"} for seq, at in seqs])
    add(engine, "payload_blocks", [single_payload(instance_id, seq + 1, at) for seq, at in seqs])
    letter = {"stage": "decode", "source": "stream"}
    dead = [(seq + 1, 0, at) for seq, at in seqs] + [(seq + 2, None, at) for seq, at in seqs]
    add(
        engine,
        "dead_letters",
        [key | letter | {"seq": seq, "row_index": index, "received_at": at} for seq, index, at in dead],
    )
    sample = key | {"series_id": instance_id, "value": 1.0, "source": "stream"}
    stamped = [(seq, at + timedelta(microseconds=seq)) for seq, at in seqs]
    add(engine, "series", [{"series_id": instance_id, "ticker": f"T{instance_id}", "first_seen_at": NOW}])
    add(engine, "samples", [sample | {"seq": seq + 1, "ts": at, "received_at": at} for seq, at in stamped])


def sweep(engine: Engine, config: RetentionConfig, *, instance_id: int = 1) -> list[RetentionResult]:
    """Run all steps of a sweep, and the audit after each of them."""
    retention_ = Retention(engine, config)
    steps = [retention_.step(instance_id, NOW_US)]
    while steps[-1].has_more:
        assert audit(engine, samples_pruned=config.samples is not None) == []
        steps.append(retention_.step(instance_id, NOW_US))
    assert audit(engine, samples_pruned=config.samples is not None) == []
    return steps


def run_all_steps(retention_: Retention, now_us: int = NOW_US) -> None:
    while retention_.step(1, now_us).has_more:  # one step may not suffice on a slow machine
        pass


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_ROWS", 4)
    monkeypatch.setattr(retention, "STEP_ROWS", 4)


def test_retention_forever_deletes_nothing(engine: Engine) -> None:
    instance(engine, 1, [4000, 1])
    assert sweep(engine, keep()) == [RetentionResult()]
    assert column(engine, "SELECT seq FROM payloads UNION ALL SELECT seq FROM events ORDER BY 1") == [1, 2, 4, 5]


@pytest.mark.usefixtures("small_steps")
def test_retention_deletes_old_payloads(engine: Engine) -> None:
    instance(engine, 1, [3] * 9 + [0.5])
    assert len(sweep(engine, keep(payloads="24h"))) > 2
    assert column(engine, "SELECT seq FROM payloads") == [29]
    assert len(column(engine, "SELECT seq FROM dead_letters")) == 20


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_each_of_two_instances_keeps_payloads_by_its_own_config(engine: Engine, order: tuple[int, int]) -> None:
    """Whichever of them has the lease, and sweeps first."""
    for instance_id in (1, 2):
        instance(engine, instance_id, [30, 3, 0.5])
    configs = {1: keep(payloads="7d", journal="90d"), 2: keep(payloads="none", journal="90d")}
    for _ in range(2):
        for instance_id in order:
            sweep(engine, configs[instance_id], instance_id=instance_id)
    assert column(engine, "SELECT seq FROM payloads WHERE instance_id = 1 ORDER BY seq") == [5, 8]
    assert column(engine, "SELECT seq FROM payloads WHERE instance_id = 2") == []
    assert column(engine, "SELECT instance_id FROM leases") == [order[0]]


@pytest.mark.parametrize(
    ("silent_days", "kept"),
    [pytest.param(6, 3, id="may come back"), pytest.param(8, 0, id="gone for good")],
)
def test_payloads_of_another_instance_are_deleted_a_week_after_its_last_sign(
    engine: Engine, silent_days: float, kept: int
) -> None:
    instance(engine, 1, [0.5])
    instance(engine, 2, [40, 30, silent_days], started_at=NOW - 40 * DAY)
    sweep(engine, keep(payloads="24h"))
    assert len(column(engine, "SELECT seq FROM payloads WHERE instance_id = 2")) == kept


def test_instance_without_the_lease_deletes_no_payloads_of_one_that_is_gone(engine: Engine) -> None:
    instance(engine, 1, [3])
    instance(engine, 2, [30], started_at=NOW - 40 * DAY)
    instance(engine, 3, [0.5])
    sweep(engine, keep(), instance_id=3)  # takes the lease
    sweep(engine, keep(payloads="none"), instance_id=1)
    assert column(engine, "SELECT instance_id FROM payloads ORDER BY 1") == [2, 3]


def test_retention_deletes_a_block_once_all_of_it_is_old(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestor.store.maintenance.retention.STEP_SECONDS", 60.0)  # the machine may be busy
    block = {"instance_id": 1, "source": "stream", "frame_count": 60, "frames": "[]"}
    ages = {1: (9, 3), 61: (9, 0.5), 121: (9, 3), 181: (9, 3)}  # days, of its oldest and of its newest frame
    add(
        engine,
        "payload_blocks",
        [
            block | {"first_seq": seq, "last_seq": seq + 59, "received_at": NOW - first * DAY, "last_received_at": at}
            for seq, first, at in [(seq, first, NOW - last * DAY) for seq, (first, last) in ages.items()]
        ],
    )
    remaining = "SELECT first_seq FROM payload_blocks ORDER BY 1"
    retention_ = Retention(engine, keep(payloads="24h"))
    while retention_.step(1, NOW_US).has_more:
        pass
    assert column(engine, remaining) == [61, 121, 181]
    with engine.begin() as connection:
        connection.execute(text("UPDATE payload_blocks SET last_received_at = received_at WHERE first_seq = 61"))
    Retention(engine, keep(payloads="24h")).step(1, NOW_US)  # the first step: until 100 frames are deleted
    assert column(engine, remaining) == [181]


def test_retention_none_deletes_all_payloads(engine: Engine) -> None:
    instance(engine, 1, [3, 0.001])
    sweep(engine, keep(payloads="none"))
    assert column(engine, "SELECT seq FROM payloads") == []


def test_retention_keeps_retried_payload_behind_newer_one(engine: Engine) -> None:
    instance(engine, 1, [3, 0.5, 3])  # the last one is a retried dead letter
    sweep(engine, keep(payloads="24h"))
    assert column(engine, "SELECT seq FROM payloads ORDER BY seq") == [5, 8]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("ahead", [1, 4, 9])
def test_rows_stamped_by_a_clock_that_ran_ahead_do_not_hold_up_retention(engine: Engine, ahead: int) -> None:
    instance(engine, 1, [200, *[-300] * ahead, 200, 190, 0.5])
    sweep(engine, keep(payloads="24h", journal="90d"))
    last = 3 * (ahead + 3)
    assert column(engine, "SELECT seq FROM payloads ORDER BY seq") == [last + 2]
    assert column(engine, "SELECT seq FROM events ORDER BY seq") == [last + 1]


def test_payloads_are_kept_while_the_clock_runs_ahead(engine: Engine) -> None:
    instance(engine, 1, [3, -300, -300, -300])
    with engine.begin() as connection:  # a retried dead letter, and a live row after the clock was set back
        connection.execute(
            text("UPDATE payload_blocks SET received_at = :at, last_received_at = :at WHERE first_seq = 8"),
            {"at": str(NOW - 3 * DAY)},
        )
    sweep(engine, keep(payloads="24h", journal="90d"))
    assert column(engine, "SELECT seq FROM payloads ORDER BY seq") == [5, 8, 11]
    assert column(engine, "SELECT seq FROM events ORDER BY seq") == [1, 4, 7, 10]


@pytest.mark.usefixtures("small_steps")
def test_retention_compacts_ledger_by_day_and_deletes_events(engine: Engine) -> None:
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


def test_retention_extends_compacted_day_of_ledger(engine: Engine) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - DAY
    ages = [(NOW - midnight - timedelta(hours=hours)) / DAY + 5 for hours in (1, 2, 3, 4)]
    instance(engine, 1, ages)
    retention_ = Retention(engine, keep(journal="5d"))
    for hours in (2.5, 3.5, 4.5):
        at = midnight + timedelta(hours=hours)
        run_all_steps(retention_, int(at.timestamp() * 1_000_000))
        assert audit(engine) == []
    assert column(engine, "SELECT last_seq FROM batches") == [12]
    assert column(engine, "SELECT new_rows FROM batches") == [4]


def test_audit_compares_tables_with_compacted_ledger(engine: Engine) -> None:
    instance(engine, 1, [100, 100, 0.1])
    sweep(engine, keep(journal="90d"))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM samples WHERE seq = 2"))
        connection.execute(text("DELETE FROM dead_letters WHERE seq = 6"))
    assert sorted(issue.check for issue in audit(engine)) == ["dead letters", "rows"]


def test_retention_keeps_gap_in_ledger(engine: Engine) -> None:
    instance(engine, 1, [100, 100, 100, 0.1])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM batches WHERE first_seq = 4"))
    run_all_steps(Retention(engine, keep(journal="90d")))
    assert column(engine, "SELECT first_seq FROM batches ORDER BY 1") == [1, 7, 10]
    assert "the ledger continues with entry 7 after entry 3" in str(audit(engine))


def test_retention_keeps_rows_whose_sum_would_overflow(engine: Engine) -> None:
    instance(engine, 1, [100, 100, 100])
    with engine.begin() as connection:
        connection.execute(text("UPDATE batches SET row_count = 1500000000, duplicate_rows = 1499999998"))
    sweep(engine, keep(journal="90d"))
    assert len(column(engine, "SELECT first_seq FROM batches")) == 3


@pytest.mark.usefixtures("small_steps")
def test_retention_deletes_samples_by_ts_with_revisions(engine: Engine) -> None:
    instance(engine, 1, [406, 405, 404, 403, 402, 401, 400, 1])
    instance(engine, 2, [401, 1, 0.5])
    revision = {"series_id": 1, "value": 2.0, "source": "stream", "instance_id": 1, "seq": 2, "received_at": NOW}
    stamps = [NOW - DAY * age + timedelta(microseconds=seq) for age, seq in ((406, 1), (400, 19), (1, 22))]
    add(engine, "sample_revisions", [revision | {"ts": ts, "revision": n} for ts in stamps for n in (0, 1)])
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


def test_retention_deletes_samples_by_whole_days(engine: Engine) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - 365 * DAY
    instance(engine, 1, [(NOW - midnight) / DAY])
    kept = {"series_id": 1, "value": 1.0, "source": "stream", "instance_id": 1, "seq": 2, "received_at": NOW}
    stamps = (midnight - timedelta(microseconds=1), midnight)
    with engine.begin() as connection:
        connection.execute(schema.samples.delete())
    add(engine, "samples", [kept | {"ts": ts} for ts in stamps])
    run_all_steps(Retention(engine, keep(samples="365d")))
    with engine.connect() as connection:
        assert connection.execute(select(schema.samples.c.ts)).scalars().all() == [midnight]
    # The writer applies the same limit.
    batch = Batch(first_seq=4, last_seq=4, frames=1, row_count=2)
    stamps_us = (int(midnight.timestamp()) * 1_000_000 + late for late in (-1, 1))
    batch.rows = [SampleRow(("", "", "T1", ""), ts_us, 0.5, None, NOW_US, "stream", 4, 0) for ts_us in stamps_us]
    writer = BatchWriter(engine, 365 * 86_400.0)
    writer.register(InstanceInfo(spool_id="spool 1", name="", version="", config_sha256="", started_us=NOW_US))
    writer.proven_time.note(NOW_US)
    with time_machine.travel(NOW, tick=False):
        result = writer.write(batch)
    assert (result.new, result.expired) == (1, 1)


def test_retention_reads_all_pages_of_series(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SERIES_PER_QUERY", 2)
    for number in range(1, 6):
        instance(engine, number, [400, 1])
    sweep(engine, keep(samples="365d"))
    assert len(column(engine, "SELECT ts FROM samples")) == 5


@pytest.mark.usefixtures("small_steps")
def test_first_step_that_deletes_samples_says_so(engine: Engine) -> None:
    instance(engine, 1, [*range(380, 400), 1])
    instance(engine, 2, [390, 1])
    retention_ = Retention(engine, keep(samples="365d"))
    while not retention_.step(1, NOW_US).deleted_samples:
        assert column(engine, "SELECT before FROM deletions") == []
    assert len(column(engine, "SELECT ts FROM samples")) > 3  # there is more to delete
    before = retention.samples_cutoff(NOW, 365 * 86_400)
    with engine.connect() as connection:
        first = connection.execute(select(schema.deletions)).one()
    assert (first.before, first.instance_id) == (before, 1)
    assert abs(datetime.now(UTC) - first.deleted_at) < timedelta(minutes=5)
    run_all_steps(retention_)
    Retention(engine, keep(samples="300d")).step(1, NOW_US)  # finds nothing to delete
    with engine.connect() as connection:
        assert connection.execute(select(schema.deletions)).all() == [first]
    assert audit(engine, samples_pruned=False) == []  # samples are kept forever from now on, but some are missing


def test_step_that_fails_leaves_no_deletion(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise RuntimeError("cut off")

    instance(engine, 1, [400, 1])
    monkeypatch.setattr(retention._Samples, "_delete", fail)
    with pytest.raises(RuntimeError, match="cut off"):
        run_all_steps(Retention(engine, keep(samples="365d")))
    assert column(engine, "SELECT before FROM deletions") == []


def test_retention_deletes_nothing_shared_without_the_lease(engine: Engine) -> None:
    instance(engine, 1, [103, 103])
    instance(engine, 2, [103, 103])
    with engine.begin() as connection:
        lease = {"name": retention.LEASE, "instance_id": 2, "until": datetime.now(UTC) + timedelta(minutes=1)}
        connection.execute(schema.leases.insert(), lease)
    assert sweep(engine, keep(journal="90d", samples="90d"), instance_id=1) == [RetentionResult()]
    assert len(column(engine, "SELECT seq FROM events")) == 4
    with engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=NOW - timedelta(minutes=1)))
    sweep(engine, keep(journal="90d", samples="90d"), instance_id=1)
    assert column(engine, "SELECT seq FROM events") == []
    assert column(engine, "SELECT instance_id FROM leases") == [1]


@pytest.mark.usefixtures("small_steps")
def test_sweep_that_got_the_lease_late_leaves_coverage_to_the_next_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compacted: list[None] = []
    monkeypatch.setattr(retention.coverage_compaction, "compact", lambda *_: compacted.append(None) or (0, None))
    instance(engine, 1, [103] * 6)
    instance(engine, 2, [103])
    with engine.begin() as connection:
        lease = {"name": retention.LEASE, "instance_id": 2, "until": datetime.now(UTC) + timedelta(minutes=1)}
        connection.execute(schema.leases.insert(), lease)
    retention_ = Retention(engine, keep(payloads="24h", journal="90d"))
    assert retention_.step(1, NOW_US).has_more
    with engine.begin() as connection:
        connection.execute(schema.leases.delete())
    run_all_steps(retention_)  # the rest of this sweep
    assert compacted == []
    run_all_steps(retention_)
    assert compacted == [None]
    run_all_steps(retention_)  # once a day
    assert compacted == [None]


def test_lease_from_before_the_clock_was_set_back_does_not_count(engine: Engine) -> None:
    instance(engine, 1, [103])
    instance(engine, 2, [103])
    with engine.begin() as connection:
        lease = {"name": retention.LEASE, "instance_id": 2, "until": datetime.now(UTC) + 365 * DAY}
        connection.execute(schema.leases.insert(), lease)
    sweep(engine, keep(journal="90d"), instance_id=1)
    assert column(engine, "SELECT seq FROM events") == []


def test_retention_renews_the_lease(engine: Engine) -> None:
    instance(engine, 1, [3])
    sweep(engine, keep(payloads="24h"), instance_id=1)
    sweep(engine, keep(payloads="24h"), instance_id=2)
    assert column(engine, "SELECT instance_id FROM leases") == [1]


def test_concurrent_sweeps_do_the_work_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_ROWS", 2)
    monkeypatch.setattr(retention, "STEP_ROWS", 2)
    instance(engine, 1, [100] * 20 + [0.5])
    instance(engine, 2, [100] * 20 + [0.5])
    begin = threading.Barrier(2)

    def run(instance_id: int) -> int:
        begin.wait()
        return len(sweep(engine, keep(journal="90d"), instance_id=instance_id))

    with ThreadPoolExecutor() as threads:
        steps = list(threads.map(run, (1, 2)))
    assert min(steps) == 1
    assert max(steps) > 20
    assert column(engine, "SELECT seq FROM events ORDER BY seq") == [61, 61]
    assert column(engine, "SELECT last_seq - first_seq + 1 FROM batches ORDER BY 1") == [3, 3, 60, 60]


@pytest.mark.postgres
@pytest.mark.parametrize("migrated_url", ["postgres"], indirect=True)  # a SQLite file has one daemon
def test_retention_does_not_wait_for_a_hanging_step(engine: Engine) -> None:
    instance(engine, 1, [103])
    instance(engine, 2, [103])
    Retention(engine, keep(journal="90d")).step(2, NOW_US)
    with engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=datetime.now(UTC) + timedelta(minutes=1)))
        began = time.monotonic()
        assert Retention(engine, keep(journal="90d")).step(1, NOW_US) == RetentionResult()
    assert time.monotonic() - began < 5


def test_retention_ignores_local_clock_that_is_ahead(engine: Engine) -> None:
    instance(engine, 1, [0.5])
    Retention(engine, keep(payloads="24h")).step(1, NOW_US + 400 * 86_400_000_000)
    assert column(engine, "SELECT seq FROM payloads") == [2]


@pytest.mark.parametrize(
    ("rows", "seconds", "expected"),
    [
        pytest.param(100, 0.01, 200, id="fast: twice as many"),
        pytest.param(100, 0.06, 50, id="slow: half"),
        pytest.param(800, 0.01, 1000, id="at most 1000"),
        pytest.param(1, 9.0, 1, id="at least one"),
    ],
)
def test_step_size_follows_the_time_of_a_step(rows: int, seconds: float, expected: int) -> None:
    assert retention.next_step_rows(rows, seconds) == expected


def test_compacted_ledger_is_gapless_for_any_page_size(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    instance(engine, 1, [200 - number / 5 for number in range(40)])
    for rows in (1, 2, 3):
        monkeypatch.setattr(retention, "FIRST_ROWS", rows)
        monkeypatch.setattr(retention, "STEP_ROWS", rows)
        sweep(engine, keep(journal="90d"))
    with engine.connect() as connection:
        remaining = connection.execute(text("SELECT first_seq, last_seq FROM batches ORDER BY 1")).all()
    assert 8 <= len(remaining) <= 9
    assert all(before.last_seq + 1 == after.first_seq for before, after in pairwise(remaining))
