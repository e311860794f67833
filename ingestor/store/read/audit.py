"""Prove that the books balance: what the ledger says was written against what is in the tables. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select, text

from ingestor.store.engine import translate_errors
from ingestor.store.schema import batches, coverage, instances


@dataclass(frozen=True, slots=True)
class AuditIssue:
    """Something that does not balance: which check found it, where, and what is wrong."""

    check: str
    message: str


@dataclass(frozen=True, slots=True)
class _Check:
    """A query that finds nothing in a sound database, and what a row that it does find says."""

    name: str
    message: str
    query: str
    all_samples: bool = False  # holds only where retention never took a sample


_AT_MOST = 100  # findings of one check: the first ones tell the story

_CHECKS: Sequence[_Check] = (
    _Check(
        "ledger",
        "instance {instance_id}: after entry {before} the ledger goes on with {first_seq}",
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
        "instance {instance_id}: its position is {position}, but its ledger ends at {last_seq}",
        """
        SELECT i.instance_id, i.position, MAX(b.last_seq) AS last_seq
        FROM instances i JOIN batches b ON b.instance_id = i.instance_id
        GROUP BY i.instance_id, i.position HAVING i.position <> MAX(b.last_seq) ORDER BY i.instance_id
        """,
    ),
    _Check(
        "ledger",
        "instance {instance_id}: it has entries up to {seq}, but its ledger ends at {last_seq}",
        """
        SELECT instance_id, MAX(seq) AS seq, last_seq FROM (
            SELECT i.instance_id, n.seq, COALESCE(
                (SELECT MAX(b.last_seq) FROM batches b WHERE b.instance_id = i.instance_id), 0) AS last_seq
            FROM instances i JOIN (
                SELECT instance_id, MAX(seq) AS seq FROM events GROUP BY instance_id
                UNION ALL SELECT instance_id, MAX(seq) FROM payloads GROUP BY instance_id
            ) n ON n.instance_id = i.instance_id) newest
        WHERE seq > last_seq GROUP BY instance_id, last_seq ORDER BY instance_id
        """,
    ),
    _Check(
        "entries",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {frames} frames and {facts} facts are not as many",
        """
        SELECT instance_id, first_seq, last_seq, frames, facts FROM batches
        WHERE last_seq - first_seq + 1 <> frames + facts ORDER BY instance_id, first_seq
        """,
    ),
    # Retention takes the events of a batch with its row of the ledger: all that end before the oldest event are folded.
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
    # Payloads that retention took, or that are no longer kept, lie before the oldest or after the newest that is there.
    _Check(
        "frames",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {found} payloads for {expected} good frames",
        """
        SELECT * FROM (
            SELECT b.instance_id, b.first_seq, b.last_seq, b.frames - b.dead_frames AS expected,
                (SELECT COUNT(*) FROM payloads p
                 WHERE p.instance_id = b.instance_id AND p.seq BETWEEN b.first_seq AND b.last_seq) AS found
            FROM batches b
            WHERE b.first_seq >= (SELECT MIN(p.seq) FROM payloads p WHERE p.instance_id = b.instance_id)
                AND b.last_seq <= (SELECT MAX(p.seq) FROM payloads p WHERE p.instance_id = b.instance_id)) counted
        WHERE found <> expected ORDER BY instance_id, first_seq
        """,
    ),
    _Check(
        "dead letters",
        "instance {instance_id}, entries {first_seq} to {last_seq}: {frames} dead frames and {found} dead rows are kept"
        " of {dead_frames} and {dead_rows}",
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
    # Only while every ledger is whole: a part that retention took knew of samples that are still there.
    _Check(
        "rows",
        "{found} {what} are in the tables, and the ledger knows of {expected}",
        """
        SELECT * FROM (
            SELECT 'samples' AS what, (SELECT COUNT(*) FROM samples) AS found,
                (SELECT COALESCE(SUM(new_rows), 0) FROM batches) AS expected
            UNION ALL
            SELECT 'revisions', (SELECT COUNT(*) FROM sample_revisions),
                (SELECT COALESCE(SUM(revised_rows), 0) FROM batches)) counted
        WHERE found <> expected AND NOT EXISTS (
            SELECT 1 FROM instances i LEFT JOIN batches b ON b.instance_id = i.instance_id
            WHERE i.position > 0 GROUP BY i.instance_id HAVING COUNT(b.first_seq) = 0 OR MIN(b.first_seq) > 1)
        """,
        all_samples=True,
    ),
    _Check(
        "names",
        "{what} of series {series_id}, which has no name",
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
        "coverage of subscription {subscription_id}, which has no name",
        "SELECT subscription_id FROM coverage EXCEPT SELECT subscription_id FROM subscriptions ORDER BY 1",
    ),
    _Check(
        "coverage",
        "subscription {subscription_id}, instance {instance_id}: the interval that begins with entry {start_seq}"
        " begins before the one before it ends",
        """
        SELECT subscription_id, instance_id, start_seq FROM (
            SELECT subscription_id, instance_id, start_seq, started_at,
                LAG(ended_at) OVER before AS previous_end, LAG(start_seq) OVER before AS previous_seq
            FROM coverage
            WINDOW before AS (PARTITION BY subscription_id, instance_id ORDER BY start_seq)) pairs
        WHERE previous_seq IS NOT NULL AND (previous_end IS NULL OR previous_end > started_at)
        ORDER BY subscription_id, instance_id, start_seq
        """,
    ),
)


def audit(engine: Engine, *, samples_pruned: bool = False) -> list[AuditIssue]:
    """Whatever does not balance, at most a hundred findings of each check; empty for a sound database.

    Every seq up to an instance's position is exactly one of payload, fact and dead frame, and rows decoded = new +
    revised + duplicate + dead + expired. What retention took from the old end of payloads, events and ledger is none;
    ``samples_pruned`` says that it takes samples too, so that they cannot be counted against the ledger. Reads every
    sample once. Raises DatabaseUnavailable.
    """
    checks = [check for check in _CHECKS if not (check.all_samples and samples_pruned)]
    with translate_errors(), engine.connect() as connection:
        return [finding for check in checks for finding in _findings(connection, check)]


def _findings(connection: Connection, check: _Check) -> list[AuditIssue]:
    rows = connection.execute(text(check.query)).mappings().fetchmany(_AT_MOST)
    return [AuditIssue(check.name, check.message.format(**row)) for row in rows]


def find_losses(engine: Engine) -> list[AuditIssue]:
    """What was received and is not to be had any more: an unreadable spool, a database restored from an older copy.

    The books balance all the same, since they know of it. The newest hundred of each. Raises DatabaseUnavailable.
    """
    with translate_errors(), engine.connect() as connection:
        lost = [AuditIssue("lost", _loss(row)) for row in connection.execute(_lost())]
        return lost + [AuditIssue("elsewhere", _ELSEWHERE.format(**row)) for row in _begun_late(connection)]


def _lost() -> Select[Any]:
    c, i, before = coverage.c, instances.c, instances.alias("before")
    end = func.max(func.coalesce(c.ended_at, i.heartbeat_at, c.started_at)).label("ended_at")
    # What begins with it replaces an instance whose spool was lost, with all that came since the heartbeat of that one.
    namesake = (before.c.name == i.name, before.c.instance_id < c.instance_id, c.start_seq == 1)
    heard = select(func.max(before.c.heartbeat_at)).where(*namesake).scalar_subquery().label("heard_at")
    names = (c.instance_id, i.name, c.start_seq, c.started_at, c.reason)
    return (
        select(*names, heard, end, func.count().label("subscriptions"))
        .select_from(coverage.outerjoin(instances, c.instance_id == i.instance_id))
        .where(c.state == "lost")
        .group_by(*names)
        .order_by(c.started_at.desc(), c.instance_id)
        .limit(_AT_MOST)
    )


def _loss(row: Any) -> str:
    began = min(row.started_at, row.heard_at or row.started_at)
    span = f"from {began:%Y-%m-%d %H:%M:%S} to {row.ended_at:%Y-%m-%d %H:%M:%S} UTC"
    where = f"instance {row.instance_id} ({row.name}): {row.subscriptions} subscriptions"
    return f"{where} may lack what was received {span}: {row.reason}"


_ELSEWHERE = (
    "instance {instance_id} ({name}): its first entry here is {first_seq};"
    " those before were written to another database, or under another instance's number"
)


def _begun_late(connection: Connection) -> Sequence[Any]:
    c, i = batches.c, instances.c
    first = func.min(c.first_seq).label("first_seq")
    query = select(i.instance_id, i.name, first).join_from(instances, batches, c.instance_id == i.instance_id)
    query = query.group_by(i.instance_id, i.name).having(first > 1).order_by(i.instance_id.desc()).limit(_AT_MOST)
    return connection.execute(query).mappings().all()
