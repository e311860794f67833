"""The audit of a database that the daemon's own writer filled, sound at first and then harmed in one place."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.store.read.audit import audit, find_losses
from ingestor.store.write.batch import Batch
from ingestor.store.write.batch_writer import BatchWriter, InstanceInfo

from ...support.entries import T0, decoder, fact, frame, row


def batch(first_seq: int, value: float) -> Batch:
    """Four entries: a fact, a frame of two rows, a frame with a dead row, a dead frame.

    One of the rows is new; the other, with the value given, is of the same moment in every batch.
    """
    state = "live" if first_seq % 8 == 1 else "disconnected"
    entries = [
        fact(state, at_us=T0 + first_seq, state=state, tickers=["AAPL"]),
        frame([row(value=value), row(minute=first_seq)]),
        frame([{"ticker": "AAPL", "average_sentiment": 0.5}]),
        frame("{nonsense"),
    ]
    assembly = BatchBuilder(first_seq, decoder())
    for entry in enumerate(entries, first_seq):
        assembly.add(entry)
    return assembly.batch


@pytest.fixture
def sound(engine: Engine) -> Engine:
    """Two instances, three batches each: new, revised, duplicate and dead rows, two states of coverage."""
    for name in ("one", "two"):
        database = BatchWriter(engine)
        database.register(InstanceInfo(spool_id=name, name=name, version="1", config_sha256="", started_us=T0), 1)
        for first_seq, value in ((1, 0.1), (5, 0.2), (9, 0.2)):
            database.write(batch(first_seq, value))
    return engine


def harm(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            assert connection.execute(text(statement)).rowcount > 0


def test_an_empty_database_balances(engine: Engine) -> None:
    assert audit(engine) == []


def test_what_the_writer_wrote_balances(sound: Engine) -> None:
    assert audit(sound) == []


@pytest.mark.parametrize(
    ("statement", "check", "message"),
    [
        pytest.param(
            "DELETE FROM batches WHERE instance_id = 1 AND first_seq = 5",
            "ledger",
            "instance 1: after entry 4 the ledger goes on with 9",
            id="a batch is missing",
        ),
        pytest.param(
            "UPDATE instances SET position = 13 WHERE instance_id = 2",
            "ledger",
            "instance 2: its position is 13, but its ledger ends at 12",
            id="the position ran ahead",
        ),
        pytest.param(
            "DELETE FROM batches",
            "ledger",
            "instance 1: it has entries up to 11, but its ledger ends at 0",
            id="no ledger",
        ),
        pytest.param(
            "UPDATE events SET seq = 13 WHERE instance_id = 1 AND seq = 9",
            "ledger",
            "instance 1: it has entries up to 13, but its ledger ends at 12",
            id="an entry that no batch wrote",
        ),
        pytest.param(
            "UPDATE batches SET frames = 4, dead_frames = 2 WHERE instance_id = 1 AND first_seq = 5",
            "entries",
            "instance 1, entries 5 to 8: 4 frames and 1 facts are not as many",
            id="an entry is neither frame nor fact",
        ),
        pytest.param(
            "DELETE FROM events WHERE instance_id = 1 AND seq = 5",
            "facts",
            "instance 1, entries 5 to 8: 0 events for 1 facts",
            id="a fact is missing",
        ),
        pytest.param(
            "DELETE FROM payloads WHERE instance_id = 1 AND seq = 7",
            "frames",
            "instance 1, entries 5 to 8: 1 payloads for 2 good frames",
            id="a payload in the midst is missing",
        ),
        pytest.param(
            "DELETE FROM dead_letters WHERE instance_id = 1 AND seq = 8",
            "dead letters",
            "instance 1, entries 5 to 8: 0 dead frames and 1 dead rows are kept of 1 and 1",
            id="a dead frame is missing",
        ),
        pytest.param(
            "DELETE FROM dead_letters WHERE instance_id = 1 AND seq = 7",
            "dead letters",
            "instance 1, entries 5 to 8: 1 dead frames and 0 dead rows are kept of 1 and 1",
            id="a dead row is missing",
        ),
        pytest.param(
            "UPDATE batches SET duplicate_rows = 7 WHERE instance_id = 1 AND first_seq = 1",
            "rows",
            "instance 1, entries 1 to 4: 3 rows, but 2 new + 0 revised + 7 duplicate + 1 dead",
            id="rows do not add up",
        ),
        pytest.param(
            "DELETE FROM samples WHERE revision = 0 AND seq = 2",
            "rows",
            "3 samples are in the tables, and the ledger knows of 4",
            id="a sample is missing",
        ),
        pytest.param(
            "DELETE FROM sample_revisions WHERE revision = 0",
            "rows",
            "revisions are in the tables, and the ledger knows of",
            id="a revision is missing",
        ),
        pytest.param(
            "DELETE FROM series", "names", "samples of series 1, which has no name", id="a series without a name"
        ),
        pytest.param(
            "DELETE FROM subscriptions",
            "names",
            "coverage of subscription 1, which has no name",
            id="a subscription without a name",
        ),
        pytest.param(
            "UPDATE coverage SET ended_at = NULL WHERE instance_id = 2 AND start_seq = 1",
            "coverage",
            "subscription 1, instance 2: the interval that begins with entry 5 begins before the one before it ends",
            id="two states at once",
        ),
    ],
)
def test_the_audit_finds(sound: Engine, statement: str, check: str, message: str) -> None:
    harm(sound, statement)
    found = [finding for finding in audit(sound) if finding.check == check]
    assert any(message in finding.message for finding in found), audit(sound)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM payloads", id="all payloads"),
        pytest.param("DELETE FROM payloads WHERE seq < 7", id="the older payloads"),
        pytest.param("DELETE FROM payloads WHERE seq > 7", id="the newer payloads: they are no longer kept"),
        pytest.param("DELETE FROM batches WHERE first_seq = 1", id="the older ledger"),
    ],
)
def test_what_retention_takes_is_no_finding(sound: Engine, statement: str) -> None:
    harm(sound, statement)
    assert audit(sound) == []


def test_an_instance_whose_journal_is_all_gone_is_no_finding(sound: Engine) -> None:
    for table in ("batches", "events", "payloads", "dead_letters"):
        harm(sound, f"DELETE FROM {table} WHERE instance_id = 1")
    assert audit(sound) == []


def test_a_spool_older_than_its_database_is_no_finding(engine: Engine) -> None:
    database = BatchWriter(engine)
    database.register(InstanceInfo(spool_id="one", name="one", version="1", config_sha256="", started_us=T0), 5)
    assert audit(engine) == []
    database.write(batch(5, 0.1))
    assert audit(engine) == []


def test_samples_that_retention_takes_are_not_counted(sound: Engine) -> None:
    harm(sound, "DELETE FROM samples WHERE seq = 2")
    assert audit(sound, samples_pruned=True) == []
    assert audit(sound) != []


def test_one_kind_of_harm_fills_no_more_than_a_hundred_lines(engine: Engine) -> None:
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    columns = "(subscription_id, instance_id, start_seq, started_at, state)"
    harm(engine, f"INSERT INTO coverage {columns} {count} SELECT i, 1, i, CURRENT_TIMESTAMP, 'live' FROM n")
    assert len(audit(engine)) == 100


def test_a_loss_that_the_books_know_of_is_told_and_is_no_finding(sound: Engine) -> None:
    assert find_losses(sound) == []
    harm(sound, "UPDATE coverage SET state = 'lost', reason = 'a bad disk' WHERE instance_id = 2 AND start_seq = 1")
    assert audit(sound) == []
    (loss,) = find_losses(sound)
    assert loss.check == "lost"
    span = "from 2026-01-01 00:00:00 to 2026-01-01 00:00:00 UTC"
    assert loss.message == f"instance 2 (two): 1 subscriptions may lack what was received {span}: a bad disk"


def test_what_a_lost_spool_held_was_received_since_the_heartbeat_of_the_one_before_it(sound: Engine) -> None:
    harm(
        sound,
        "UPDATE coverage SET state = 'lost' WHERE instance_id = 2 AND start_seq = 1",
        "UPDATE instances SET name = 'one', heartbeat_at = '2025-12-31 22:00:00.000000' WHERE instance_id = 1",
        "UPDATE instances SET name = 'one' WHERE instance_id = 2",
    )
    (loss,) = find_losses(sound)
    assert "received from 2025-12-31 22:00:00 to 2026-01-01 00:00:00 UTC" in loss.message
    harm(sound, "UPDATE instances SET heartbeat_at = '2026-01-02 00:00:00.000000' WHERE instance_id = 1")  # it lives
    (loss,) = find_losses(sound)
    assert "received from 2026-01-01 00:00:00" in loss.message
