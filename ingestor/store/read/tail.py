"""Observations in the order in which they came: what ``tail`` reads. Changes nothing, and never scans the samples.

A value is found again by its key, and known by the entry that it came in: (instance_id, seq). It keeps that for as
long as it is stored, whether it is current or has become a revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, Result, Table, column, select, text
from sqlalchemy.sql.expression import TextualSelect

from ingestor.core.entries import SeriesKey
from ingestor.core.times import to_datetime
from ingestor.store import schema, views
from ingestor.store.engine import translate_errors
from ingestor.store.key_lookup import KEYS_PER_QUERY, keys_in
from ingestor.store.read.status import Record

ObservationKey: TypeAlias = tuple[SeriesKey, int]  # (series, ts in µs since the epoch)

# The newest of each series by its key, so that the work is bounded by the number of series, not by that of samples.
# CROSS tells SQLite which side comes first.
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
    """One batch of the ledger."""

    instance_id: int
    first_seq: int
    last_seq: int
    value_count: int  # values it recorded: new ones and revisions
    payload_count: int  # payloads it wrote, unless payloads are not kept


def latest_observations(engine: Engine, *, limit: int, ticker: str = "") -> list[Record]:
    """The last ``limit`` observations in the order of their arrival, of one ticker or all.

    Chosen among the newest ``limit`` of each series: what was healed long after its time is not news. Raises
    DatabaseUnavailable.
    """
    where = "WHERE n.ticker = :ticker" if ticker else ""
    query = _newest(engine, f"{where} ORDER BY m.received_at DESC, m.seq DESC LIMIT :per_series")
    with translate_errors(), engine.connect() as connection:
        found = _records(connection.execute(query, {"per_series": limit} | ({"ticker": ticker} if ticker else {})))
    return sorted(found, key=lambda one: (one["received_at"], *sort_key(one)))


def newest_of_batch(engine: Engine, batch: CommittedBatch, *, per_series: int) -> list[Record]:
    """What a batch made current, as far as it is among the newest ``each`` of its series."""
    query = _newest(engine, "WHERE m.instance_id = :instance_id AND m.seq BETWEEN :first_seq AND :last_seq")
    parameters = {"per_series": per_series, **batch._asdict()}
    with translate_errors(), engine.connect() as connection:
        return sorted(_records(connection.execute(query, parameters)), key=sort_key)


def load_positions(engine: Engine) -> dict[int, int]:
    """Of every instance: the last seq that is committed. Raises DatabaseUnavailable."""
    c = schema.instances.c
    with translate_errors(), engine.connect() as connection:
        return {row.instance_id: row.position for row in connection.execute(select(c.instance_id, c.position))}


def next_batch(engine: Engine, instance_id: int, after: int) -> CommittedBatch | None:
    """The first batch of an instance past the seq ``after``; None if there is none. Raises DatabaseUnavailable."""
    c = schema.batches.c
    query = (
        select(
            c.instance_id,
            c.first_seq,
            c.last_seq,
            (c.new_rows + c.revised_rows).label("value_count"),
            (c.frames - c.dead_frames).label("payload_count"),
        )
        .where(c.instance_id == instance_id, c.first_seq > after)
        .order_by(c.first_seq)
        .limit(1)
    )
    with translate_errors(), engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else CommittedBatch(*row)


def batch_payloads(engine: Engine, batch: CommittedBatch) -> list[Record]:
    """The texts that a batch was decoded from, as rows of ``payloads``. Raises DatabaseUnavailable."""
    c = schema.payloads.c
    query = (
        select(schema.payloads)
        .where(c.instance_id == batch.instance_id, c.seq.between(batch.first_seq, batch.last_seq))
        .order_by(c.seq)
    )
    with translate_errors(), engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def recorded_values(engine: Engine, batch: CommittedBatch, keys: Iterable[ObservationKey]) -> list[Record]:
    """The values that a batch recorded under these keys, in the order of their entries: also those replaced since.

    Raises DatabaseUnavailable.
    """
    wanted = set(keys)
    found: list[Record] = []
    with translate_errors(), engine.connect() as connection:
        series = _series(connection, {name for name, _ in wanted})
        places = sorted((series[name], to_datetime(ts_us)) for name, ts_us in wanted if name in series)
        names = {id_: name for name, id_ in series.items()}
        for start in range(0, len(places), KEYS_PER_QUERY):
            some = places[start : start + KEYS_PER_QUERY]
            for table in (schema.samples, schema.sample_revisions):
                found += _values(connection, table, batch, some, names)
    return sorted(found, key=sort_key)


def sort_key(record: Record) -> tuple[Any, ...]:
    """By entry, and within one by time and name."""
    return tuple(record[name] for name in ("seq", "ts", "feed", "metric", "ticker", "user_id", "revision"))


def _series(connection: Connection, names: set[SeriesKey]) -> dict[SeriesKey, int]:
    c = schema.series.c
    key = (c.feed, c.metric, c.ticker, c.user_id)
    found: dict[SeriesKey, int] = {}
    wanted = sorted(names)
    for start in range(0, len(wanted), KEYS_PER_QUERY):
        some = wanted[start : start + KEYS_PER_QUERY]
        for id_, *name in connection.execute(select(c.series_id, *key).where(keys_in(connection, key, some))):
            found[tuple(name)] = id_
    return found


def _values(
    connection: Connection,
    table: Table,
    batch: CommittedBatch,
    places: Sequence[tuple[int, datetime]],
    names: dict[int, SeriesKey],
) -> list[Record]:
    c = table.c
    query = select(table).where(
        keys_in(connection, (c.series_id, c.ts), places),
        c.instance_id == batch.instance_id,
        c.seq.between(batch.first_seq, batch.last_seq),
    )
    return [_named(dict(row), names) for row in connection.execute(query).mappings()]


def _named(row: Record, names: dict[int, SeriesKey]) -> Record:
    row |= dict(zip(("feed", "metric", "ticker", "user_id"), names[row["series_id"]], strict=True))
    return {column.name: row[column.name] for column in views.observations.columns}


def _newest(engine: Engine, more: str) -> TextualSelect:
    source = _NEWEST_POSTGRESQL if engine.dialect.name == "postgresql" else _NEWEST_SQLITE
    columns = [column(each.name, each.type) for each in views.observations.columns]
    listed = ", ".join(f"{'n' if each.name in schema.series.c else 'm'}.{each.name}" for each in columns)
    return text(f"SELECT {listed} FROM {source} {more}").columns(*columns)  # noqa: S608 -- all of it is written here


def _records(result: Result[Any]) -> list[Record]:
    return [dict(row) for row in result.mappings()]
