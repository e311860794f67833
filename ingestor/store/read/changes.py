"""What became known since a cursor: new values, restated and late ones, and what retention deleted."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from sqlalchemy import text

from ingestor.config.urls import normalize_database_url
from ingestor.store.open_database import open_database
from ingestor.store.read.status_queries import Record, fetch_records
from ingestor.store.views import typed_columns

COLUMNS = (
    "kind feed metric ticker user_id ts value revision published_at received_at source instance_id seq next_cursor"
)
POSTGRESQL = f"SELECT {COLUMNS.replace(' ', ', ')} FROM changes(:cursor)"  # noqa: S608 -- a constant of this module
# The function `changes` of PostgreSQL as a statement with a parameter, see migrations/versions/0006_changes.
SQLITE = """
WITH since (cursor) AS (
    SELECT CASE :cursor WHEN '' THEN '{}' ELSE :cursor END
), seen (spool_id, position) AS MATERIALIZED (
    SELECT p.key, p.value FROM since CROSS JOIN json_each(since.cursor, '$.positions') p
), behind AS MATERIALIZED (
    SELECT i.instance_id, COALESCE(s.position, 0) AS after, i.position
    FROM instances i LEFT JOIN seen s ON s.spool_id = i.spool_id
    WHERE i.position > COALESCE(s.position, 0)
), noted AS MATERIALIZED (
    SELECT s.*, b.from_ts, b.to_ts, b.series_ranges,
        CASE WHEN b.from_ts IS NOT NULL OR b.new_rows + b.revised_rows = 0
            THEN b.last_seq - MAX(b.first_seq, s.after + 1) + 1 ELSE 0 END AS known_entries
    FROM behind s CROSS JOIN batches b
        ON b.instance_id = s.instance_id AND b.first_seq <= s.position AND b.last_seq > s.after
        AND b.first_seq >= COALESCE((
            SELECT MAX(f.first_seq) FROM batches f
            WHERE f.instance_id = s.instance_id AND f.first_seq <= s.after + 1), 0)
), spans AS MATERIALIZED (
    SELECT s.*, s.position - s.after = COALESCE((
        SELECT SUM(n.known_entries) FROM noted n WHERE n.instance_id = s.instance_id), 0) AS is_known
    FROM behind s
), marked AS (
    SELECT n.instance_id, n.from_ts, n.to_ts,
        CASE WHEN n.from_ts <= MAX(datetime(substr(n.to_ts, 1, 19), '+1 hour')) OVER (
        PARTITION BY n.instance_id ORDER BY n.from_ts, n.to_ts ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        THEN 0 ELSE 1 END AS begins
    FROM noted n WHERE n.from_ts IS NOT NULL AND n.series_ranges IS NULL
), numbered AS (
    SELECT m.*, SUM(m.begins) OVER (PARTITION BY m.instance_id ORDER BY m.from_ts, m.to_ts) AS number FROM marked m
), ranges AS (
    SELECT n.instance_id, MIN(n.from_ts) AS from_ts, MAX(n.to_ts) AS to_ts FROM numbered n
    GROUP BY n.instance_id, n.number
), targets AS MATERIALIZED (
    SELECT r.instance_id, s.series_id, r.from_ts, r.to_ts FROM ranges r CROSS JOIN series s
    UNION
    SELECT n.instance_id, json_extract(w.value, '$[0]'), json_extract(w.value, '$[1]'), json_extract(w.value, '$[2]')
    FROM noted n CROSS JOIN json_each(n.series_ranges) w WHERE n.series_ranges IS NOT NULL
), found AS (
    SELECT 'current' AS kind, m.* FROM targets t CROSS JOIN spans s ON s.instance_id = t.instance_id AND s.is_known
    CROSS JOIN samples m ON m.series_id = t.series_id AND m.ts BETWEEN t.from_ts AND t.to_ts
        AND m.instance_id = s.instance_id AND m.seq > s.after AND m.seq <= s.position
    UNION
    SELECT 'revision', m.* FROM targets t CROSS JOIN spans s ON s.instance_id = t.instance_id AND s.is_known
    CROSS JOIN sample_revisions m ON m.series_id = t.series_id AND m.ts BETWEEN t.from_ts AND t.to_ts
        AND m.instance_id = s.instance_id AND m.seq > s.after AND m.seq <= s.position
), read_all AS (
    SELECT 'current' AS kind, m.* FROM spans s CROSS JOIN samples m ON m.instance_id = s.instance_id
    WHERE NOT s.is_known AND m.seq > s.after AND m.seq <= s.position
    UNION ALL
    SELECT 'revision', m.* FROM spans s CROSS JOIN sample_revisions m ON m.instance_id = s.instance_id
    WHERE NOT s.is_known AND m.seq > s.after AND m.seq <= s.position
), deleted AS MATERIALIZED (
    SELECT MAX(d.before) AS before FROM deletions d
), ahead AS MATERIALIZED (
    SELECT json_object(
        'positions', (SELECT json_group_object(p.spool_id, p.position) FROM (
            SELECT spool_id, MAX(position) AS position FROM (
                SELECT i.spool_id, i.position FROM instances i UNION ALL SELECT s.spool_id, s.position FROM seen s) a
            GROUP BY spool_id) p),
        'deleted', NULLIF(MAX(COALESCE(d.before, ''), COALESCE(json_extract(since.cursor, '$.deleted'), '')), '')
        ) AS next_cursor
    FROM deleted d CROSS JOIN since
)
SELECT m.kind, n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source, m.instance_id, m.seq,
    a.next_cursor
FROM (SELECT * FROM found UNION ALL SELECT * FROM read_all) m CROSS JOIN series n ON n.series_id = m.series_id
    CROSS JOIN ahead a
UNION ALL
SELECT 'deleted', '', '', '', '', d.before, NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.next_cursor
FROM deleted d CROSS JOIN since CROSS JOIN ahead a
WHERE d.before > COALESCE(json_extract(since.cursor, '$.deleted'), '')
"""


def changes(url: str, cursor: str = "") -> tuple[list[Record], str]:
    """Return what became known since ``cursor``, and the cursor to continue from; "" reads everything.

    The rows are those of the function ``changes`` in PostgreSQL, see docs/queries.md; times are aware, in UTC. Each
    value is returned once, whatever wrote it. ``url`` is that of the config; the schema must be current. Raises
    ValueError for what is not a cursor, DatabaseUnavailable.
    """
    _check(cursor)
    with open_database(normalize_database_url(url, Path.cwd())) as engine:
        query = text(POSTGRESQL if engine.dialect.name == "postgresql" else SQLITE)
        rows = fetch_records(engine, query.columns(*typed_columns(COLUMNS)), {"cursor": cursor})
    for row in rows:
        cursor = row.pop("next_cursor")
    return rows, cursor


def _check(cursor: str) -> None:
    """Raise ValueError unless this is a cursor: SQLite would find nothing new behind a text that it cannot compare."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(cursor or '{"positions": {}}')
        are_numbers = all(type(position) is int and position < 2**63 for position in found["positions"].values())
        if are_numbers and isinstance(found.get("deleted"), str | None):
            return
    raise ValueError(f"cursor={cursor!r}: pass the one that was returned before, or an empty text to read everything")
