"""Compare the ledger (table `batches`) with the tables it describes. Read-only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select, text

from ingestor.store.engine import translate_errors
from ingestor.store.schema import coverage, instances


@dataclass(frozen=True, slots=True)
class AuditIssue:
    """A discrepancy: the check that found it, and a message that says where and what is wrong."""

    check: str
    message: str


@dataclass(frozen=True, slots=True)
class _Check:
    """A query that returns no rows for a sound database, and the message for a row that it does return."""

    name: str
    message: str
    query: str
    all_samples: bool = False  # valid only if retention does not delete samples


_MAX_ISSUES = 100  # per check; the first ones are enough for a diagnosis

_CHECKS: Sequence[_Check] = (
    _Check(
        "ledger",
        "instance {instance_id}: the ledger continues with entry {first_seq} after entry {before}",
        """
        SELECT instance_id, before, first_seq FROM (
            SELECT instance_id, first_seq,
                LAG(last_seq) OVER (PARTITION BY instance_id ORDER BY first_seq) AS before
            FROM batches) pairs
        WHERE first_seq <> before + 1 ORDER BY instance_id, first_seq
        """,
    ),
    _Check(
        "ledger",
        "instance {instance_id}: the position is {position}, but the ledger ends at entry {last_seq}",
        """
        SELECT i.instance_id, i.position, MAX(b.last_seq) AS last_seq
        FROM instances i JOIN batches b ON b.instance_id = i.instance_id
        GROUP BY i.instance_id, i.position HAVING i.position <> MAX(b.last_seq) ORDER BY i.instance_id
        """,
    ),
    _Check(
        "ledger",
        "instance {instance_id}: there are entries up to {seq}, but the ledger ends at entry {last_seq}",
        """
        SELECT instance_id, MAX(seq) AS seq, last_seq FROM (
            SELECT i.instance_id, n.seq, COALESCE(
                (SELECT MAX(b.last_seq) FROM batches b WHERE b.instance_id = i.instance_id), 0) AS last_seq
            FROM instances i JOIN (
                SELECT instance_id, MAX(seq) AS seq FROM events GROUP BY instance_id
                UNION ALL
                SELECT instance_id, MAX(last_seq) FROM payload_blocks GROUP BY instance_id
            ) n ON n.instance_id = i.instance_id) newest
        WHERE seq > last_seq GROUP BY instance_id, last_seq ORDER BY instance_id
        """,
    ),
    _Check(
        "entries",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {frames} frames and {facts} facts do not add up",
        """
        SELECT instance_id, first_seq, last_seq, frames, facts FROM batches
        WHERE last_seq - first_seq + 1 <> frames + facts ORDER BY instance_id, first_seq
        """,
    ),
    # Retention deletes events and compacts their ledger rows together: rows that end before the oldest event have none.
    _Check(
        "facts",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {found} events for {expected} facts",
        """
        SELECT * FROM (
            SELECT b.instance_id, b.first_seq, b.last_seq, b.facts AS expected,
                (SELECT COUNT(*) FROM events e
                 WHERE e.instance_id = b.instance_id AND e.seq BETWEEN b.first_seq AND b.last_seq) AS found
            FROM batches b
            WHERE b.last_seq >= (SELECT MIN(e.seq) FROM events e WHERE e.instance_id = b.instance_id)) counted
        WHERE found <> expected ORDER BY instance_id, first_seq
        """,
    ),
    # Payloads that retention deleted lie before the oldest one, payloads that are no longer kept after the newest one.
    _Check(
        "frames",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {found} payloads for {expected} good frames",
        """
        SELECT * FROM (
            SELECT b.instance_id, b.first_seq, b.last_seq, b.frames - b.dead_frames AS expected,
                (SELECT COALESCE(SUM(p.frame_count), 0) FROM payload_blocks p
                 WHERE p.instance_id = b.instance_id AND p.first_seq BETWEEN b.first_seq AND b.last_seq) AS found
            FROM batches b JOIN (
                SELECT instance_id, MIN(first_seq) AS oldest, MAX(last_seq) AS newest
                FROM payload_blocks GROUP BY instance_id) p ON p.instance_id = b.instance_id
            WHERE b.first_seq >= p.oldest AND b.last_seq <= p.newest) counted
        WHERE found <> expected ORDER BY instance_id, first_seq
        """,
    ),
    _Check(
        "frames",
        "instance {instance_id}, block of payloads from {first_seq} to {last_seq}: it has {found} up to {newest},"
        " expected {frame_count}",
        """
        SELECT * FROM (
            SELECT b.instance_id, b.first_seq, b.last_seq, b.frame_count, COALESCE(p.found, 0) AS found, p.newest
            FROM payload_blocks b LEFT JOIN (
                SELECT instance_id, first_seq, COUNT(*) AS found, MAX(seq) AS newest
                FROM payloads GROUP BY instance_id, first_seq) p
            ON p.instance_id = b.instance_id AND p.first_seq = b.first_seq
            WHERE b.frames IS NOT NULL) counted
        WHERE found <> frame_count OR newest <> last_seq ORDER BY instance_id, first_seq
        """,
    ),
    _Check(
        "dead letters",
        "instance {instance_id}, entries {first_seq} to {last_seq}: dead letters for {frames} frames and {found} rows,"
        " expected {dead_frames} and {dead_rows}",
        """
        SELECT * FROM (
            SELECT b.instance_id, b.first_seq, b.last_seq, b.dead_frames, b.dead_rows,
                (SELECT COUNT(*) FROM dead_letters d WHERE d.instance_id = b.instance_id
                 AND d.seq BETWEEN b.first_seq AND b.last_seq AND d.row_index IS NULL) AS frames,
                (SELECT COUNT(*) FROM dead_letters d WHERE d.instance_id = b.instance_id
                 AND d.seq BETWEEN b.first_seq AND b.last_seq AND d.row_index IS NOT NULL) AS found
            FROM batches b) counted
        WHERE frames <> dead_frames OR found <> dead_rows ORDER BY instance_id, first_seq
        """,
    ),
    _Check(
        "rows",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {row_count} rows, but {new_rows} new +"
        " {revised_rows} revised + {duplicate_rows} duplicate + {dead_rows} dead + {expired_rows} expired",
        """
        SELECT * FROM batches
        WHERE row_count <> new_rows + revised_rows + duplicate_rows + dead_rows + expired_rows
        ORDER BY instance_id, first_seq
        """,
    ),
    # Only while retention took none of them, and every ledger starts at entry 1: a missing part may have counted
    # samples that still exist.
    _Check(
        "rows",
        "there are {found} {what}, but the ledger counts {expected}",
        """
        SELECT * FROM (
            SELECT 'samples' AS what, (SELECT COUNT(*) FROM samples) AS found,
                (SELECT COALESCE(SUM(new_rows), 0) FROM batches) AS expected
            UNION ALL
            SELECT 'revisions', (SELECT COUNT(*) FROM sample_revisions),
                (SELECT COALESCE(SUM(revised_rows), 0) FROM batches)) counted
        WHERE found <> expected AND NOT EXISTS (SELECT 1 FROM deletions) AND NOT EXISTS (
            SELECT 1 FROM instances i LEFT JOIN batches b ON b.instance_id = i.instance_id
            WHERE i.position > 0 GROUP BY i.instance_id HAVING COUNT(b.first_seq) = 0 OR MIN(b.first_seq) > 1)
        """,
        all_samples=True,
    ),
    _Check(
        "names",
        "{what} of series {series_id}, which is not in table series",
        """
        SELECT 'samples' AS what, series_id FROM (
            SELECT series_id FROM samples EXCEPT SELECT series_id FROM series) orphans
        UNION ALL
        SELECT 'revisions', series_id FROM (
            SELECT series_id FROM sample_revisions EXCEPT SELECT series_id FROM series) orphans
        ORDER BY 1, 2
        """,
    ),
    _Check(
        "names",
        "coverage of subscription {subscription_id}, which is not in table subscriptions",
        "SELECT subscription_id FROM coverage EXCEPT SELECT subscription_id FROM subscriptions ORDER BY 1",
    ),
    # After its clock was set back, an instance's intervals overlap, and the view `uncontradicted` allows for it.
    _Check(
        "coverage",
        "subscription {subscription_id}, instance {instance_id}: the interval that starts with entry {start_seq}"
        " overlaps the previous one",
        """
        SELECT subscription_id, p.instance_id, start_seq FROM (
            SELECT subscription_id, instance_id, start_seq, started_at,
                LAG(ended_at) OVER before AS previous_end, LAG(start_seq) OVER before AS previous_seq
            FROM coverage
            WINDOW before AS (PARTITION BY subscription_id, instance_id ORDER BY start_seq)) p
            LEFT JOIN instances i ON i.instance_id = p.instance_id AND i.stepped_back
        WHERE previous_seq IS NOT NULL
            AND (previous_end IS NULL OR (previous_end > p.started_at AND i.instance_id IS NULL))
        ORDER BY subscription_id, p.instance_id, start_seq
        """,
    ),
)


_LATE_LEDGER = _Check(
    "elsewhere",
    "instance {instance_id} ({name}): the ledger starts at entry {first_seq};"
    " earlier entries were written to another database or by another instance",
    """
    SELECT i.instance_id, i.name, MIN(b.first_seq) AS first_seq
    FROM instances i JOIN batches b ON b.instance_id = i.instance_id
    GROUP BY i.instance_id, i.name HAVING MIN(b.first_seq) > 1 ORDER BY i.instance_id DESC
    """,
)


def audit(engine: Engine, *, samples_pruned: bool = False) -> list[AuditIssue]:
    """Return all discrepancies, at most 100 per check; an empty list for a sound database.

    Every seq up to an instance's position must be exactly one of payload, fact and dead frame, and rows decoded = new +
    revised + duplicate + dead + expired. Payloads, events and ledger rows that retention deleted are no discrepancy.
    Set ``samples_pruned`` if retention deletes samples too: they are not compared with the ledger then. Reads every
    sample once. Raises DatabaseUnavailable.
    """
    checks = [check for check in _CHECKS if not (check.all_samples and samples_pruned)]
    with translate_errors(), engine.connect() as connection:
        return [issue for check in checks for issue in _issues(connection, check)]


def _issues(connection: Connection, check: _Check) -> list[AuditIssue]:
    rows = connection.execute(text(check.query)).mappings().fetchmany(_MAX_ISSUES)
    return [AuditIssue(check.name, check.message.format(**row)) for row in rows]


def find_losses(engine: Engine) -> list[AuditIssue]:
    """Return known losses: received entries that are not in this database, with the reason.

    Causes are an unreadable spool and a database restored from an older backup. The ledger accounts for them, so
    ``audit`` does not report them. Returns the newest 100 of each kind. Raises DatabaseUnavailable.
    """
    with translate_errors(), engine.connect() as connection:
        lost = [AuditIssue("lost", _loss_message(row)) for row in connection.execute(_lost_coverage())]
        return lost + _issues(connection, _LATE_LEDGER)


def _lost_coverage() -> Select[Any]:
    c, i, previous = coverage.c, instances.c, instances.alias("previous")
    end = func.max(func.coalesce(c.ended_at, i.heartbeat_at, c.started_at)).label("ended_at")
    # An instance whose first entry is `lost` replaces one whose spool was lost: everything since the last heartbeat of
    # its predecessor of the same name may be missing.
    predecessor = (previous.c.name == i.name, previous.c.instance_id < c.instance_id, c.start_seq == 1)
    heartbeat = select(func.max(previous.c.heartbeat_at)).where(*predecessor).scalar_subquery().label("heartbeat_at")
    columns = (c.instance_id, i.name, c.start_seq, c.started_at, c.reason)
    return (
        select(*columns, heartbeat, end, func.count().label("subscriptions"))
        .select_from(coverage.outerjoin(instances, c.instance_id == i.instance_id))
        .where(c.state == "lost")
        .group_by(*columns)
        .order_by(c.started_at.desc(), c.instance_id)
        .limit(_MAX_ISSUES)
    )


def _loss_message(row: Any) -> str:
    start = min(row.started_at, row.heartbeat_at or row.started_at)
    span = f"from {start:%Y-%m-%d %H:%M:%S} to {row.ended_at:%Y-%m-%d %H:%M:%S} UTC"
    instance = f"instance {row.instance_id} ({row.name})"
    return f"{instance}: data of {row.subscriptions} subscriptions received {span} may be lost: {row.reason}"
