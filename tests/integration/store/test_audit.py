"""Audit of a database that the daemon's writer filled, before and after a test damages it in one place."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store.read.audit import audit, find_losses
from ingestor.store.write.batch import Batch
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, SpoolExtent

from ...support.entries import T0, decoder, fact, frame, row


def batch(first_seq: int, value: float) -> Batch:
    """Make a batch of four entries: a fact, a frame of two rows, a frame with a dead row, a dead frame.

    One of the two rows is new; the other has the same ts in every batch, and the given ``value``.
    """
    state = "live" if first_seq % 8 == 1 else "disconnected"
    entries = [
        fact(state, at_us=T0 + first_seq, state=state, tickers=["AAPL"]),
        frame([row(value=value), row(minute=first_seq)]),
        frame([{"ticker": "AAPL", "average_sentiment": 0.5}]),
        frame("{nonsense"),
    ]
    builder = BatchBuilder(first_seq, decoder())
    for entry in enumerate(entries, first_seq):
        builder.add(entry)
    return builder.batch


@pytest.fixture
def sound(engine: Engine) -> Engine:
    """Two instances, three batches each: new, revised, duplicate and dead rows, two states of coverage."""
    for name in ("one", "two"):
        writer = BatchWriter(engine)
        writer.register(InstanceInfo(spool_id=name, name=name, version="1", config_sha256="", started_us=T0))
        for first_seq, value in ((1, 0.1), (5, 0.2), (9, 0.2)):
            writer.write(batch(first_seq, value))
    return engine


def damage(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            assert connection.execute(text(statement)).rowcount > 0


def test_audit_of_empty_database_finds_nothing(engine: Engine) -> None:
    assert audit(engine) == []


def test_audit_of_written_batches_finds_nothing(sound: Engine) -> None:
    assert audit(sound) == []


@pytest.mark.parametrize(
    ("statement", "check", "message"),
    [
        pytest.param(
            "DELETE FROM batches WHERE instance_id = 1 AND first_seq = 5",
            "ledger",
            "instance 1: the ledger continues with entry 9 after entry 4",
            id="missing batch",
        ),
        pytest.param(
            "UPDATE instances SET position = 13 WHERE instance_id = 2",
            "ledger",
            "instance 2: the position is 13, but the ledger ends at entry 12",
            id="position ahead of ledger",
        ),
        pytest.param(
            "DELETE FROM batches",
            "ledger",
            "instance 1: there are entries up to 11, but the ledger ends at entry 0",
            id="empty ledger",
        ),
        pytest.param(
            "UPDATE events SET seq = 13 WHERE instance_id = 1 AND seq = 9",
            "ledger",
            "instance 1: there are entries up to 13, but the ledger ends at entry 12",
            id="entry after the last batch",
        ),
        pytest.param(
            "UPDATE batches SET frames = 4, dead_frames = 2 WHERE instance_id = 1 AND first_seq = 5",
            "entries",
            "instance 1, entries 5 to 8: 4 frames and 1 facts do not add up",
            id="entry neither frame nor fact",
        ),
        pytest.param(
            "DELETE FROM events WHERE instance_id = 1 AND seq = 5",
            "facts",
            "instance 1, entries 5 to 8: 0 events for 1 facts",
            id="missing fact",
        ),
        pytest.param(
            "DELETE FROM payload_blocks WHERE instance_id = 1 AND first_seq = 6",
            "frames",
            "instance 1, entries 5 to 8: 0 payloads for 2 good frames",
            id="missing block of payloads in the middle",
        ),
        pytest.param(
            "UPDATE payload_blocks SET frame_count = 1 WHERE instance_id = 1 AND first_seq = 6",
            "frames",
            "instance 1, entries 5 to 8: 1 payloads for 2 good frames",
            id="missing payload in the middle",
        ),
        pytest.param(
            """UPDATE payload_blocks SET frames = '[["{}"]]' WHERE instance_id = 2 AND first_seq = 10""",
            "frames",
            "instance 2, block of payloads from 10 to 11: it has 1 up to 10, expected 2",
            id="missing payload in a block",
        ),
        pytest.param(
            """UPDATE payload_blocks SET frames = '[["{}"],["{}",0,5]]' WHERE instance_id = 1 AND first_seq = 6""",
            "frames",
            "instance 1, block of payloads from 6 to 7: it has 2 up to 12, expected 2",
            id="payload of another seq in a block",
        ),
        pytest.param(
            "DELETE FROM dead_letters WHERE instance_id = 1 AND seq = 8",
            "dead letters",
            "instance 1, entries 5 to 8: dead letters for 0 frames and 1 rows, expected 1 and 1",
            id="missing dead frame",
        ),
        pytest.param(
            "DELETE FROM dead_letters WHERE instance_id = 1 AND seq = 7",
            "dead letters",
            "instance 1, entries 5 to 8: dead letters for 1 frames and 0 rows, expected 1 and 1",
            id="missing dead row",
        ),
        pytest.param(
            "UPDATE batches SET duplicate_rows = 7 WHERE instance_id = 1 AND first_seq = 1",
            "rows",
            "instance 1, entries 1 to 4: 3 rows, but 2 new + 0 revised + 7 duplicate + 1 dead",
            id="row counts do not add up",
        ),
        pytest.param(
            "DELETE FROM samples WHERE revision = 0 AND seq = 2",
            "rows",
            "there are 3 samples, but the ledger counts 4",
            id="missing sample",
        ),
        pytest.param(
            "DELETE FROM sample_revisions WHERE revision = 0",
            "rows",
            "revisions, but the ledger counts",
            id="missing revision",
        ),
        pytest.param(
            "DELETE FROM series",
            "names",
            "samples of series 1, which is not in table series",
            id="series without a row",
        ),
        pytest.param(
            "DELETE FROM subscriptions",
            "names",
            "coverage of subscription 1, which is not in table subscriptions",
            id="subscription without a row",
        ),
        pytest.param(
            "UPDATE coverage SET ended_at = NULL WHERE instance_id = 2 AND start_seq = 1",
            "coverage",
            "subscription 1, instance 2: the interval that starts with entry 5 overlaps the previous one",
            id="overlapping intervals",
        ),
    ],
)
def test_audit_reports_damage(sound: Engine, statement: str, check: str, message: str) -> None:
    damage(sound, statement)
    issues = [issue for issue in audit(sound) if issue.check == check]
    assert any(message in issue.message for issue in issues), audit(sound)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM payload_blocks", id="all payloads"),
        pytest.param("DELETE FROM payload_blocks WHERE first_seq < 7", id="older payloads"),
        pytest.param("DELETE FROM payload_blocks WHERE first_seq > 7", id="newer payloads, no longer kept"),
        pytest.param("DELETE FROM batches WHERE first_seq = 1", id="older ledger rows"),
    ],
)
def test_audit_accepts_rows_deleted_by_retention(sound: Engine, statement: str) -> None:
    damage(sound, statement)
    assert audit(sound) == []


def test_audit_accepts_instance_without_journal(sound: Engine) -> None:
    for table in ("batches", "events", "payload_blocks", "dead_letters"):
        damage(sound, f"DELETE FROM {table} WHERE instance_id = 1")
    assert audit(sound) == []


def test_audit_accepts_ledger_that_starts_late(engine: Engine) -> None:
    writer = BatchWriter(engine)
    writer.register(
        InstanceInfo(spool_id="one", name="one", version="1", config_sha256="", started_us=T0), SpoolExtent(5)
    )
    assert audit(engine) == []
    writer.write(batch(5, 0.1))
    assert audit(engine) == []


def test_audit_does_not_count_samples_if_pruned(sound: Engine) -> None:
    damage(sound, "DELETE FROM samples WHERE seq = 2")
    assert audit(sound, samples_pruned=True) == []
    assert audit(sound) != []


def test_audit_limits_issues_per_check(engine: Engine) -> None:
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    columns = "(subscription_id, instance_id, start_seq, started_at, state)"
    damage(engine, f"INSERT INTO coverage {columns} {count} SELECT i, 1, i, CURRENT_TIMESTAMP, 'live' FROM n")
    assert len(audit(engine)) == 100


def test_loss_is_reported_apart_from_audit_issues(sound: Engine) -> None:
    assert find_losses(sound) == []
    damage(
        sound,
        "UPDATE coverage SET state = 'lost', reason = 'a bad disk' WHERE instance_id = 2 AND start_seq = 1",
    )
    assert audit(sound) == []
    (loss,) = find_losses(sound)
    assert loss.check == "lost"
    span = "from 2026-01-01 00:00:00 to 2026-01-01 00:00:00 UTC"
    assert loss.message == f"instance 2 (two): data of 1 subscriptions received {span} may be lost: a bad disk"


def test_loss_starts_at_heartbeat_of_previous_instance(sound: Engine) -> None:
    damage(
        sound,
        "UPDATE coverage SET state = 'lost' WHERE instance_id = 2 AND start_seq = 1",
        "UPDATE instances SET name = 'one', heartbeat_at = '2025-12-31 22:00:00' WHERE instance_id = 1",
        "UPDATE instances SET name = 'one' WHERE instance_id = 2",
    )
    (loss,) = find_losses(sound)
    assert "received from 2025-12-31 22:00:00 to 2026-01-01 00:00:00 UTC" in loss.message
    damage(sound, "UPDATE instances SET heartbeat_at = '2026-01-02 00:00:00' WHERE instance_id = 1")  # still running
    (loss,) = find_losses(sound)
    assert "received from 2026-01-01 00:00:00" in loss.message
