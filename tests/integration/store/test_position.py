"""The position of an instance, which each batch moves: no entry is committed twice, and none is left out."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ingestor.errors import PositionConflict
from ingestor.store.write.batch import Batch
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.support.entries import T0

INFO = InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0, run_id="run")


def make_writer(engine: Engine) -> BatchWriter:
    """Return a writer of one and the same run, as a process and the copy of its memory have."""
    writer = BatchWriter(engine)
    writer.register(INFO)
    return writer


def batch(first_seq: int, last_seq: int) -> Batch:
    return Batch(first_seq=first_seq, last_seq=last_seq, frames=last_seq - first_seq + 1)


def positions(engine: Engine) -> list[tuple[int, ...]]:
    """Return the position of the instance, and what each batch of the ledger contains."""
    query = "SELECT i.position, b.first_seq, b.last_seq FROM instances i LEFT JOIN batches b USING (instance_id)"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(f"{query} ORDER BY b.first_seq"))]


@pytest.mark.parametrize(
    ("first_seq", "last_seq"),
    [
        pytest.param(1, 2, id="the same one"),
        pytest.param(1, 3, id="begins with the same entries"),
        pytest.param(2, 3, id="contains one of its entries"),
        pytest.param(4, 5, id="leaves one out"),
    ],
)
def test_batch_that_does_not_follow_the_position_changes_nothing(engine: Engine, first_seq: int, last_seq: int) -> None:
    writer, other = make_writer(engine), make_writer(engine)
    other.write(batch(1, 2))
    with pytest.raises(PositionConflict, match=f"entries {first_seq} to {last_seq} do not follow the position"):
        writer.write(batch(first_seq, last_seq))
    assert positions(engine) == [(2, 1, 2)]
    writer.register(INFO)
    writer.write(batch(3, 3))
    assert positions(engine) == [(3, 1, 2), (3, 3, 3)]


@pytest.mark.parametrize("first_seq", [1, 4])
def test_samples_of_entries_that_were_written_before_change_nothing(engine: Engine, first_seq: int) -> None:
    writer, other = make_writer(engine), make_writer(engine)
    other.write_samples(batch(3, 4))  # entries may be left out
    with pytest.raises(PositionConflict):
        writer.write_samples(batch(first_seq, 5))
    assert positions(engine) == [(4, None, None)]
