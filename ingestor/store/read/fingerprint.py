"""Hash all values of a time range, to compare the contents of two databases."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Table, select

from ingestor.core.times import to_us
from ingestor.store import schema

FETCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Counts and hash of the values with ``since <= ts < until``. Equal contents have equal fingerprints."""

    values: int  # current values
    others: int  # revisions
    sha256: str  # covers feed, metric, ticker, user_id, ts and value, and which values are current


def compute_fingerprint(connection: Connection, since: datetime, until: datetime) -> Fingerprint:
    """Compute the fingerprint. Reads every sample of the time range."""
    values = others = 0
    digests = []
    n = schema.series.c
    # The digests are sorted below, and not by the database: collations differ.
    for series_id, *names in connection.execute(select(n.series_id, n.feed, n.metric, n.ticker, n.user_id)).all():
        digest = hashlib.sha256("\0".join(names).encode())
        current = _update(connection, digest, schema.samples, series_id, since, until)
        digest.update(b"revisions")
        revisions = _update(connection, digest, schema.sample_revisions, series_id, since, until)
        if current or revisions:
            digests.append(digest.digest())
        values, others = values + current, others + revisions
    return Fingerprint(values, others, hashlib.sha256(b"".join(sorted(digests))).hexdigest())


def _update(
    connection: Connection, digest: hashlib._Hash, table: Table, series_id: int, since: datetime, until: datetime
) -> int:
    c = table.c
    query = select(c.ts, c.value).where(c.series_id == series_id, c.ts >= since, c.ts < until).order_by(c.ts, c.value)
    count = 0
    for ts, value in connection.execute(query, execution_options={"yield_per": FETCH_ROWS}):
        digest.update(f"{to_us(ts)} {value!r}\n".encode())
        count += 1
    return count
