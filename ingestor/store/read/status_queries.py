"""Queries of ``status``, ``dead-letters``, the status page and the demo. Read-only, so a read-only engine suffices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Engine, Executable, Select, exists, func, select

from ingestor.store import schema, views
from ingestor.store.engine import fetch_all, translate_errors

Record: TypeAlias = dict[str, Any]  # a row: column → value; times are aware, UTC

PAGE_DEAD_LETTERS = 500
PAGE_BYTES = 8 << 20


def fetch_records(engine: Engine, query: Executable, parameters: Record | None = None) -> list[Record]:
    """Run a query and return its rows as records. Raises DatabaseUnavailable."""
    return [dict(row._mapping) for row in fetch_all(engine, query, parameters)]


def load_status(engine: Engine) -> dict[str, list[Record]]:
    """Load the status of all daemons that write to the database, as lists of records.

    ``instances`` with the sums of their ledgers, ``feeds`` with their newest sample, ``states``: subscriptions by
    instance and state, ``dead``: dead letters by stage that were not retried. Counts cover the ledger that is kept
    (``retention.journal``). Raises DatabaseUnavailable.
    """
    queries = {"instances": _instances(), "feeds": _feeds(), "states": _states(), "dead": _dead_letter_counts()}
    with translate_errors(), engine.connect() as connection:
        return {name: [dict(row) for row in connection.execute(query).mappings()] for name, query in queries.items()}


def list_dead_letters(
    engine: Engine, *, ids: Sequence[int] = (), limit: int = 500, include_retried: bool = False
) -> list[Record]:
    """List the dead letters in ``ids``; if that is empty, those not retried, or all with ``include_retried``.

    They are in the order of their ids. Raises DatabaseUnavailable.
    """
    return fetch_records(engine, _dead_letters(ids, include_retried=include_retried).limit(limit))


def next_dead_letters(
    engine: Engine, *, ids: Sequence[int] = (), after_id: int = 0, max_id: int, max_bytes: int = PAGE_BYTES
) -> list[Record]:
    """Return dead letters to retry, up to ``max_bytes`` of text but at least one: of ``ids``, or (empty) of all.

    Raises DatabaseUnavailable.
    """
    c = schema.dead_letters.c
    query = _dead_letters(ids).where(c.dead_letter_id > after_id, c.dead_letter_id <= max_id).limit(PAGE_DEAD_LETTERS)
    page: list[Record] = []
    # Fetch a few rows at a time: a whole page of frames could be gigabytes.
    with (
        translate_errors(),
        engine.connect() as connection,
        connection.execution_options(yield_per=10).execute(query) as rows,
    ):
        for letter in rows.mappings():
            max_bytes -= len(letter["body"])
            if page and max_bytes < 0:
                break
            page.append(dict(letter))
    return page


def newest_dead_letter_id(engine: Engine) -> int:
    """Return the id of the newest dead letter, 0 if there is none. Raises DatabaseUnavailable."""
    ((newest,),) = fetch_all(engine, select(func.max(schema.dead_letters.c.dead_letter_id)))
    return newest or 0


def load_state_spans(engine: Engine, spool_id: str, since: datetime, limit: int = 20_000) -> list[Record]:
    """Load the coverage intervals of an instance that end after ``since``, the newest ``limit`` of them.

    Subscriptions of one feed with the same state and times are counted in one record: feed, state, from_at, to_at,
    subscriptions. Reads all of the instance's coverage. Raises DatabaseUnavailable.
    """
    c, s, i = views.coverage_intervals.c, schema.subscriptions.c, schema.instances.c
    span = (s.feed, c.state, c.from_at, c.to_at)
    query = (
        select(*span, func.count().label("subscriptions"))
        .join(schema.subscriptions, s.subscription_id == c.subscription_id)
        .join(schema.instances, i.instance_id == c.instance_id)
        .where(i.spool_id == spool_id, c.to_at > since)
        .group_by(*span)
        .order_by(c.to_at.desc())
        .limit(limit)
    )
    return fetch_records(engine, query)


def count_unreceived(engine: Engine, alive: Sequence[int]) -> int:
    """Count the subscriptions that the instances of these ids want and none of them receives.

    Raises DatabaseUnavailable.
    """
    wanted, other = schema.coverage.alias().c, schema.coverage.alias().c
    is_received = exists().where(
        other.subscription_id == wanted.subscription_id,
        other.instance_id.in_(alive),
        other.ended_at.is_(None),
        other.state == "live",
    )
    query = select(func.count(wanted.subscription_id.distinct())).where(
        wanted.instance_id.in_(alive), wanted.ended_at.is_(None), wanted.state != "stopped", ~is_received
    )
    ((count,),) = fetch_all(engine, query)
    return int(count)


def count_samples_by_ticker(engine: Engine, feed: str) -> dict[str, int]:
    """Count the samples of each ticker of a feed. Reads all samples of the feed. Raises DatabaseUnavailable."""
    c = views.observations.c
    query = select(c.ticker, func.count().label("rows")).where(c.feed == feed).group_by(c.ticker)
    return {row.ticker: row.rows for row in fetch_all(engine, query)}


def _instances() -> Select[Any]:
    i, b = schema.instances.c, schema.batches.c
    sums = [func.coalesce(func.sum(b[name]), 0).label(name) for name in schema.LEDGER_COUNTS]
    columns = (i.instance_id, i.name, i.version, i.position, i.started_at, i.heartbeat_at)
    return (
        select(*columns, func.max(b.committed_at).label("committed_at"), *sums)
        .select_from(schema.instances.outerjoin(schema.batches, i.instance_id == b.instance_id))
        .group_by(*columns)
        .order_by(i.instance_id)
    )


def _feeds() -> Select[Any]:
    c = views.latest.c
    columns = (func.count().label("series"), func.max(c.ts).label("ts"), func.max(c.received_at).label("received_at"))
    return select(c.feed, *columns).group_by(c.feed).order_by(c.feed)


def _states() -> Select[Any]:
    c = schema.coverage.c
    columns = (c.instance_id, c.state)
    query = select(*columns, func.count().label("subscriptions")).where(c.ended_at.is_(None))
    return query.group_by(*columns).order_by(*columns)


def _dead_letters(ids: Sequence[int], *, include_retried: bool = False) -> Select[Any]:
    c = schema.dead_letters.c
    query = select(schema.dead_letters).order_by(c.dead_letter_id)
    if ids:
        return query.where(c.dead_letter_id.in_(ids))
    return query if include_retried else query.where(c.retried_at.is_(None))


def _dead_letter_counts() -> Select[Any]:
    c = schema.dead_letters.c
    return select(c.stage, func.count().label("letters")).where(c.retried_at.is_(None)).group_by(c.stage)
