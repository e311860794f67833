"""Queries of ``tail``: observations in the order of their arrival. Read-only; never scans ``samples``.

A value is looked up by its key and identified by its entry (instance_id, seq), which does not change when the value
becomes a revision.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Engine, Select, Table, column, select, text
from sqlalchemy.sql.expression import TextualSelect

from ingestor.core.entries import SeriesKey
from ingestor.core.times import to_datetime
from ingestor.store import schema, views
from ingestor.store.engine import fetch_all, translate_errors
from ingestor.store.key_lookup import select_by_keys
from ingestor.store.read.payloads import read_payloads
from ingestor.store.read.status_queries import Record, fetch_records

SERIES_COLUMNS = ("feed", "metric", "ticker", "user_id")
ObservationKey: TypeAlias = tuple[SeriesKey, int]  # (series, ts in µs since the epoch)

# Read the newest samples of each series through the primary key: the cost depends on the number of series, not of
# samples. In SQLite, CROSS JOIN fixes the join order.
_NEWEST_SQLITE = """
    series n CROSS JOIN samples m ON m.series_id = n.series_id AND m.ts >= coalesce((
        SELECT p.ts FROM samples p WHERE p.series_id = n.series_id ORDER BY p.ts DESC LIMIT 1 OFFSET :per_series - 1
    ), '')
"""
_NEWEST_POSTGRESQL = """
    series n CROSS JOIN LATERAL
        (SELECT * FROM samples p WHERE p.series_id = n.series_id ORDER BY p.ts DESC LIMIT :per_series) m
"""


class CommittedBatch(NamedTuple):
    """A row of the ledger."""

    instance_id: int
    first_seq: int
    last_seq: int
    value_count: int  # values it recorded: new ones and revisions
    payload_count: int  # payloads it wrote, unless payloads are not kept


def latest_observations(engine: Engine, *, limit: int, ticker: str = "") -> list[Record]:
    """Return the last ``limit`` observations in the order of their arrival, of one ticker or (empty) of all.

    They are selected among the ``limit`` newest ts of each series, so backfilled old values do not appear. Raises
    DatabaseUnavailable.
    """
    where = "WHERE n.ticker = :ticker" if ticker else ""
    query = _newest(engine, f"{where} ORDER BY m.received_at DESC, m.seq DESC LIMIT :per_series")
    records = fetch_records(engine, query, {"per_series": limit} | ({"ticker": ticker} if ticker else {}))
    return sorted(records, key=lambda record: (record["received_at"], *sort_key(record)))


def newest_of_batch(engine: Engine, batch: CommittedBatch, *, per_series: int) -> list[Record]:
    """Return current values that a batch wrote, if they are among the newest ``per_series`` of their series.

    Raises DatabaseUnavailable.
    """
    query = _newest(engine, "WHERE m.instance_id = :instance_id AND m.seq BETWEEN :first_seq AND :last_seq")
    parameters = {"per_series": per_series, **batch._asdict()}
    return sorted(fetch_records(engine, query, parameters), key=sort_key)


def load_positions(engine: Engine) -> dict[int, int]:
    """Return the position (last committed seq) of each instance. Raises DatabaseUnavailable."""
    c = schema.instances.c
    return {row.instance_id: row.position for row in fetch_all(engine, select(c.instance_id, c.position))}


def next_batch(engine: Engine, instance_id: int, after_seq: int) -> CommittedBatch | None:
    """Return an instance's first batch after ``after_seq``, or None. Raises DatabaseUnavailable."""
    c = schema.batches.c
    query = (
        select(c.instance_id, c.first_seq, c.last_seq, c.new_rows + c.revised_rows, c.frames - c.dead_frames)
        .where(c.instance_id == instance_id, c.first_seq > after_seq)
        .order_by(c.first_seq)
        .limit(1)
    )
    return next((CommittedBatch(*row) for row in fetch_all(engine, query)), None)


def batch_payloads(engine: Engine, batch: CommittedBatch) -> list[Record]:
    """Return the payloads of a batch, in the order of seq. Raises DatabaseUnavailable."""
    found = read_payloads(partial(fetch_all, engine), batch.instance_id, batch.first_seq, batch.last_seq)
    return [payload._asdict() for payload in found]


def recorded_values(engine: Engine, batch: CommittedBatch, keys: Iterable[ObservationKey]) -> list[Record]:
    """Return the values that a batch recorded for ``keys``, in the order of ``sort_key``, including revisions.

    Raises DatabaseUnavailable.
    """
    keys = set(keys)
    columns = tuple(schema.series.c[name] for name in SERIES_COLUMNS)
    records: list[Record] = []
    with translate_errors(), engine.connect() as connection:
        series_keys = sorted({series for series, _ in keys})
        rows = select_by_keys(connection, select(schema.series.c.series_id, *columns), columns, series_keys)
        names = {series_id: tuple(series) for series_id, *series in rows}
        ids = {series: series_id for series_id, series in names.items()}
        sample_keys = sorted((ids[series], to_datetime(ts_us)) for series, ts_us in keys if series in ids)
        for table in (schema.samples, schema.sample_revisions):
            c = table.c
            for row in select_by_keys(connection, _select_batch(table, batch), (c.series_id, c.ts), sample_keys):
                values = dict(row._mapping) | dict(zip(SERIES_COLUMNS, names[row.series_id], strict=True))
                records.append({column.name: values[column.name] for column in views.observations.columns})
    return sorted(records, key=sort_key)


def sort_key(record: Record) -> tuple[Any, ...]:
    """Sort by entry, then by time and series."""
    return tuple(record[name] for name in ("seq", "ts", *SERIES_COLUMNS, "revision"))


def _select_batch(table: Table, batch: CommittedBatch) -> Select[Any]:
    c = table.c
    return select(table).where(c.instance_id == batch.instance_id, c.seq.between(batch.first_seq, batch.last_seq))


def _newest(engine: Engine, clauses: str) -> TextualSelect:
    """Select the newest ``:per_series`` observations of each series, restricted by SQL ``clauses``."""
    source = _NEWEST_POSTGRESQL if engine.dialect.name == "postgresql" else _NEWEST_SQLITE
    types = {stored.name: stored.type for stored in (*schema.series.c, *schema.samples.c)}
    columns = [column(clause.name, types[clause.name]) for clause in views.observations.columns]
    names = ", ".join(f"{'n' if clause.name in schema.series.c else 'm'}.{clause.name}" for clause in columns)
    return text(f"SELECT {names} FROM {source} {clauses}").columns(*columns)  # noqa: S608 -- constants of this module
