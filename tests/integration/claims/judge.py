"""Compare what the tables claim with what the provider said."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Engine, text

from ingestor.core.times import to_us
from ingestor.store.read.audit import audit
from ingestor.store.schema import UtcDateTime

from .provider import Said

Spans = list[tuple[int, int]]  # µs
Key = tuple[str, str]  # path, ticker


CLOCK_TOLERANCE_US = 1_000_000  # by which a daemon's clock may differ from the provider's, and still be right


class Tables(NamedTuple):
    """What the database holds."""

    stored: set[tuple[str, int]]  # (ticker, ts)
    covered: dict[Key, Spans]
    gaps: dict[Key, Spans]
    wanted: dict[Key, tuple[int, int]]
    repaired: dict[Key, Spans]


class Claim(NamedTuple):
    """An interval in which an instance says that it was live."""

    spool_id: str
    key: Key
    from_us: int
    to_us: int


@dataclass(slots=True)
class Memory:
    """Since when there is an instance, and which settings of the clock it has seen."""

    since_us: int
    clock_eras: dict[int, int] = field(default_factory=dict)  # with the seq of the entry that tells it

    def known_at(self, position: int) -> Memory:
        """Return what a database knows of it that has the entries up to there."""
        return Memory(self.since_us, {era: seq for era, seq in self.clock_eras.items() if seq <= position})

    def has_seen_after(self, row: Said) -> bool:
        return max(self.clock_eras, default=0) > row.clock_era


@dataclass(slots=True)
class Figures:
    """How much was said, stored and claimed."""

    scenarios: int = 0
    said: int = 0
    stored: int = 0
    stored_and_covered: int = 0


def read_tables(engine: Engine, views: Sequence[str] = ("covered", "gaps", "wanted")) -> Tables:
    """Read what is stored and what these views say of it."""
    at = {"from_at": UtcDateTime(), "to_at": UtcDateTime()}
    spans = "SELECT s.path, s.ticker, v.from_at, v.to_at FROM {} v JOIN subscriptions s USING (subscription_id)"
    with engine.connect() as connection:
        stored = connection.execute(
            text(
                "SELECT ticker, ts FROM samples JOIN series USING (series_id)"
                " UNION SELECT ticker, ts FROM sample_revisions JOIN series USING (series_id)"
            ).columns(ts=UtcDateTime())
        )
        stored_rows = {(ticker, to_us(ts)) for ticker, ts in stored}
        found: dict[str, dict[Key, Spans]] = {"covered": {}, "gaps": {}, "wanted": {}}
        repaired: dict[Key, Spans] = {}
        query = spans.format("(SELECT subscription_id, from_ts AS from_at, to_ts AS to_at, state FROM repairs)")
        for path, ticker, from_at, to_at in connection.execute(text(f"{query} WHERE v.state = 'done'").columns(**at)):
            repaired.setdefault((path, ticker), []).append((to_us(from_at), to_us(to_at)))
        for view in views:
            for path, ticker, from_at, to_at in connection.execute(text(spans.format(view)).columns(**at)):
                found[view].setdefault((path, ticker), []).append((to_us(from_at), to_us(to_at)))
    return Tables(
        stored_rows,
        {key: sorted(spans) for key, spans in found["covered"].items()},
        {key: sorted(spans) for key, spans in found["gaps"].items()},
        {key: spans[0] for key, spans in found["wanted"].items()},
        repaired,
    )


def read_claims(engine: Engine) -> list[Claim]:
    query = (
        "SELECT i.spool_id, s.path, s.ticker, v.from_at, v.to_at FROM coverage_intervals v"
        " JOIN instances i USING (instance_id) JOIN subscriptions s USING (subscription_id) WHERE v.state = 'live'"
    )
    at = {"from_at": UtcDateTime(), "to_at": UtcDateTime()}
    with engine.connect() as connection:
        rows = connection.execute(text(query).columns(**at))
        return [Claim(spool, (path, ticker), to_us(start), to_us(end)) for spool, path, ticker, start, end in rows]


def read_positions(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {row.spool_id: row.position for row in connection.execute(text("SELECT * FROM instances"))}


def inside(spans: Sequence[tuple[int, int]], at_us: int) -> bool:
    """Whether a moment lies within one of the spans, not at its edge. They are sorted and do not overlap."""
    index = bisect_left(spans, (at_us, at_us)) - 1
    return index >= 0 and spans[index][0] < at_us < spans[index][1]


def false_claims(engine: Engine, tables: Tables, said: Iterable[Said], memories: Mapping[str, Memory]) -> list[str]:
    """Rows that are claimed, since their moment is covered, and are not stored."""
    suspects = [
        row
        for row in said
        if (row.ticker, row.ts_us) not in tables.stored
        and inside(tables.covered.get((row.path, row.ticker), ()), row.wall_us)
        and not _is_repaired_for_others(tables, row)
    ]
    claims = read_claims(engine) if suspects else []
    return [f"{row}: covered, and not stored" for row in suspects if not _is_claimed_by_later(row, claims, memories)]


def _is_claimed_by_later(row: Said, claims: Iterable[Claim], memories: Mapping[str, Memory]) -> bool:
    """Return whether only instances were live at this moment that cannot know that it came before.

    The clock was set back since, and they began later, or were down as long as it was set so.
    """
    claiming = [
        memories.get(claim.spool_id)
        for claim in claims
        if claim.key == (row.path, row.ticker) and claim.from_us <= row.wall_us <= claim.to_us
    ]
    return bool(claiming) and all(
        memory is not None
        and (row.clock_era not in memory.clock_eras or (memory.since_us > row.ts_us and memory.has_seen_after(row)))
        for memory in claiming
    )


def missing_gaps(
    engine: Engine, tables: Tables, said: Sequence[Said], memories: Mapping[str, Memory], complete_until_us: int | None
) -> list[str]:
    """Rows that are not stored, though wanted, and lie in no gap.

    Unless history was lost (None), rows are wanted from the first to the last that is stored, by each setting of the
    clock that a daemon has seen. What lies in the future of its present clock is not shown yet.
    """
    suspects = []
    seen_eras = {era for memory in memories.values() for era in memory.clock_eras}
    stored_us = [row.ts_us for row in said if (row.ticker, row.ts_us) in tables.stored]
    for row in said:
        key = row.path, row.ticker
        if (row.ticker, row.ts_us) in tables.stored or key not in tables.wanted:
            continue
        at_edge = any(row.wall_us in span for span in tables.covered.get(key, ()))
        is_wanted = inside([tables.wanted[key]], row.wall_us)
        is_shown = complete_until_us is not None and row.wall_us < complete_until_us and row.clock_era in seen_eras
        if is_shown and stored_us and not row.is_unnoticed:
            is_wanted |= min(stored_us) < row.ts_us < max(stored_us)
        if is_wanted and not (at_edge or inside(tables.gaps.get(key, ()), row.wall_us)):
            suspects += [] if _is_repaired_for_others(tables, row) else [row]
    claims = read_claims(engine) if suspects else []
    return [
        f"{row}: wanted, not stored, and in no gap"
        for row in suspects
        if not _is_claimed_by_later(row, claims, memories)
    ]


def _is_repaired_for_others(tables: Tables, row: Said) -> bool:
    """A repair asks for what the provider said at a time by its own clock. It claims nothing of other rows."""
    spans = tables.repaired.get((row.path, row.ticker), ())
    is_other = abs(row.wall_us - row.ts_us) > CLOCK_TOLERANCE_US
    return is_other and any(start <= row.wall_us <= end for start, end in spans)


def future_claims(engine: Engine, spool_ids: Collection[str], now_us: int) -> list[str]:
    """What instances that are running claim of the future."""
    return [
        f"{claim.key} live until {claim.to_us}, and it is {now_us}"
        for claim in read_claims(engine)
        if claim.spool_id in spool_ids and claim.to_us > max(now_us, claim.from_us)
    ]


def audit_issues(engine: Engine) -> list[str]:
    return [f"audit: {issue.check}: {issue.message}" for issue in audit(engine)]


def count(figures: Figures, tables: Tables, said: Sequence[Said]) -> None:
    stored = [row for row in said if (row.ticker, row.ts_us) in tables.stored]
    figures.scenarios += 1
    figures.said += len(said)
    figures.stored += len(stored)
    figures.stored_and_covered += sum(
        inside(tables.covered.get((row.path, row.ticker), ()), row.wall_us) for row in stored
    )
