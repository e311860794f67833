"""Read the stored records of values that a batch may restate, with row locks, and write them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from ingestor.core.times import to_datetime, to_optional_datetime, to_us
from ingestor.store import schema
from ingestor.store.key_lookup import select_by_keys
from ingestor.store.write.revisions import SampleKey, SampleRecord, SampleValue


def load(connection: Connection, keys: Sequence[SampleKey]) -> dict[SampleKey, SampleRecord]:
    """Return the stored record of each key that has one, and lock its row until the transaction ends."""
    records: dict[SampleKey, SampleRecord] = {}
    current, others = schema.samples, schema.sample_revisions
    sample_keys = [(series_id, to_datetime(ts_us)) for series_id, ts_us in keys]
    query = select(current).order_by(current.c.series_id, current.c.ts).with_for_update()
    for row in select_by_keys(connection, query, (current.c.series_id, current.c.ts), sample_keys):
        records[row.series_id, to_us(row.ts)] = SampleRecord(_value(row), row.revision)
    query = select(others.c.series_id, others.c.ts, others.c.value)
    for row in select_by_keys(connection, query, (others.c.series_id, others.c.ts), sample_keys):
        records[row.series_id, to_us(row.ts)].other_values.add(row.value)
    return records


def _value(row: Any) -> SampleValue:
    published_us = None if row.published_at is None else to_us(row.published_at)
    return SampleValue(row.value, published_us, to_us(row.received_at), row.source, row.instance_id, row.seq)


def save(connection: Connection, records: dict[SampleKey, SampleRecord]) -> None:
    """Update the current value of each changed record, and insert its new revisions."""
    changed = {key: record for key, record in records.items() if record.changed}
    if not changed:
        return
    table = schema.samples
    key = (table.c.series_id == bindparam("id_"), table.c.ts == bindparam("ts_"))
    connection.execute(
        update(table).where(*key),
        [
            {"id_": id_, "ts_": to_datetime(ts_us), **_columns(record.current, record.revision)}
            for (id_, ts_us), record in changed.items()
        ],
    )
    connection.execute(
        insert(schema.sample_revisions),
        [
            {"series_id": id_, "ts": to_datetime(ts_us), **_columns(value, revision)}
            for (id_, ts_us), record in changed.items()
            for revision, value in record.new_revisions
        ],
    )


def _columns(value: SampleValue, revision: int) -> dict[str, Any]:
    return {
        "value": value.value,
        "revision": revision,
        "published_at": to_optional_datetime(value.published_us),
        "received_at": to_datetime(value.received_us),
        "source": value.source,
        "instance_id": value.instance_id,
        "seq": value.seq,
    }
