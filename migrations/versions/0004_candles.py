"""Candles by bucket: a question about one hour reads the samples of that hour, and not those of every hour.

The views find their buckets first, and of each bucket and series the samples by the index. Nothing is kept besides the
samples, so that late, healed and restated values count at once.
"""

# ruff: noqa: S608 -- every text that is pasted into a statement stands in this file

from __future__ import annotations

from typing import NamedTuple

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


class Sql(NamedTuple):
    """Expressions of one database; {0}, {1} and further are what they are made of."""

    seconds: str  # from {0} to {1}, a double
    least: str
    greatest: str
    hour: str  # the start of its hour, UTC
    day: str
    later: str  # {1} hours after {0}, a whole second; never "1 day", which may have 23
    count: str  # from 0 to {0}, as the body of `numbers (number)`
    hours: str  # `from_at` of each {0} hours of every stretch
    summed: str  # {0} over the samples of each hour and series of {1}; none where there are no samples
    filled: str  # bucket b with what {0} makes of it, as covered_seconds
    any_series: str  # true


SQLITE = Sql(
    # Only whole seconds go through strftime: it rounds to milliseconds, and 59.9996 up to the next minute.
    seconds="ROUND(strftime('%s', substr({1}, 1, 19)) - strftime('%s', substr({0}, 1, 19))"
    " + CAST(substr({1}, 20) AS REAL) - CAST(substr({0}, 20) AS REAL), 6)",
    least="MIN",
    greatest="MAX",
    hour="(substr({0}, 1, 13) || ':00:00.000000')",
    day="(substr({0}, 1, 10) || ' 00:00:00.000000')",
    later="strftime('%Y-%m-%d %H:%M:%S.000000', {0}, ({1}) || ' hours')",
    count="SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < {0}",
    hours="SELECT strftime('%Y-%m-%d %H:%M:%S.000000', s.from_at, (n.number * {0}) || ' hours') AS from_at"
    " FROM stretches s CROSS JOIN numbers n WHERE s.from_at IS NOT NULL",
    # CROSS says which side comes first. What a question says of the names of a group goes into the group.
    summed="SELECT h.from_at, h.to_at, n.series_id, n.ticker, {0}"
    " FROM hours h CROSS JOIN series n CROSS JOIN samples m"
    " ON m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at"
    " WHERE {1} GROUP BY h.from_at, h.to_at, n.series_id, n.ticker",
    filled="SELECT b.*, {0} AS covered_seconds FROM buckets b",
    any_series="TRUE",
)

POSTGRESQL = Sql(
    seconds="EXTRACT(EPOCH FROM ({1}) - ({0}))::double precision",
    least="LEAST",
    greatest="GREATEST",
    hour="date_trunc('hour', {0}, 'UTC')",
    day="date_trunc('day', {0}, 'UTC')",
    later="({0} + interval '{1} hours')",
    count="SELECT number FROM generate_series(0, {0}) number",
    # An array, since of a list as long as this PostgreSQL thinks that much of it is asked for: see any_series.
    hours="SELECT from_at FROM unnest(ARRAY(SELECT s.from_at + n.number * interval '{0} hours'"
    " FROM stretches s CROSS JOIN numbers n WHERE s.from_at IS NOT NULL)) from_at",
    summed="SELECT h.from_at, h.to_at, n.series_id, n.ticker, a.* FROM hours h CROSS JOIN series n CROSS JOIN LATERAL"
    " (SELECT {0} FROM samples m WHERE m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at"
    " HAVING COUNT(*) > 0) a WHERE {1}",
    filled="SELECT b.*, f.covered_seconds FROM buckets b CROSS JOIN LATERAL {0} f (covered_seconds)",
    # Any integer is. PostgreSQL takes that for true of few, and so the question for a small one, which it is: else it
    # would compile it first (JIT), for longer than the answer takes.
    any_series="n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)",
)

CROWD = "n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'"
# A subscription to one user's rows says nothing about the others.
LISTENER = "l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker) AND l.params NOT LIKE '%\"user_id\"%'"
STRETCH_HOURS = 366 * 24


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    sql = POSTGRESQL if postgresql else SQLITE
    op.create_index("ix_subscriptions_feed_ticker", "subscriptions", ["feed", "ticker"])
    comment = (
        "Crowd sentiment by UTC bucket. Covered: listened or repaired, also where the feed was quiet."
        " Final: over for an hour, the window in which the provider restates, and no repair is under way."
    )
    candles("crowd_sentiment_hourly", sql, sql.hour, 1, is_final(sql), comment)
    candles("crowd_sentiment_daily", sql, sql.day, 24, is_final(sql), comment)


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def view(name: str, comment: str, query: str) -> None:
    """Put it in the place of the view of this name. In PostgreSQL who may read that one may read this."""
    bind = op.get_bind()
    body = f"{name} AS /* {comment} */\n{query.strip()}"
    if bind.dialect.name == "postgresql":
        statements = [f"CREATE OR REPLACE VIEW {body}", f"COMMENT ON VIEW {name} IS '{comment}'"]
    else:
        statements = [f"DROP VIEW {name}", f"CREATE VIEW {body}"]
    for statement in statements:
        # As it stands: here neither a colon nor a percent sign is a parameter.
        bind.exec_driver_sql(statement, execution_options={"no_parameters": True})


def candles(name: str, sql: Sql, bucket: str, hours: int, final: str, comment: str) -> None:
    later = sql.later.format
    next_stretch = first_sample(sql, f" AND m.ts >= {later('s.from_at', STRETCH_HOURS)}")
    sums = (
        "MIN(m.ts) AS first_ts, MAX(m.ts) AS last_ts, MAX(m.value) AS high, MIN(m.value) AS low,"
        " AVG(m.value) AS mean, COUNT(*) AS samples"
    )
    view(
        name,
        comment,
        # A stretch begins with the first sample after the one before: one that is centuries off costs no more.
        f"""
        WITH RECURSIVE stretches (from_at) AS (
            SELECT {bucket.format(first_sample(sql))}
            UNION ALL
            SELECT {bucket.format(next_stretch)} FROM stretches s WHERE s.from_at IS NOT NULL
        ), numbers (number) AS (
            {sql.count.format(STRETCH_HOURS // hours - 1)}
        ), starts AS (
            {sql.hours.format(hours)}
        ), hours AS (
            SELECT from_at, {later("from_at", hours)} AS to_at FROM starts
        ), buckets AS (
            {sql.summed.format(sums, f"{CROWD} AND {sql.any_series}")}
        ), filled AS (
            {sql.filled.format(covered_seconds(sql))}
        )
        SELECT b.ticker, b.from_at AS bucket_at, {value_at("b.first_ts")} AS open, b.high, b.low,
            {value_at("b.last_ts")} AS close, b.mean, b.samples, b.covered_seconds / 60 AS covered_minutes,
            b.covered_seconds / {36 * hours} AS coverage_percent,
            {final} AS is_final
        FROM filled b
        """,
    )


def is_final(sql: Sql) -> str:
    """Of bucket b."""
    settled = sql.later.format("b.to_at", 1)
    return f"""COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i) >= {settled}, FALSE) AND NOT EXISTS (
                SELECT 1 FROM repairs r JOIN subscriptions s ON s.subscription_id = r.subscription_id
                WHERE r.state = 'open' AND r.from_ts < b.to_at AND r.to_ts > b.from_at
                    AND s.feed = 'crowd-sentiment' AND s.ticker IN ('', b.ticker))"""


def first_sample(sql: Sql, after: str = "") -> str:
    """The ts of the first of all, by one probe of the index for each series."""
    of_series = f"(SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id{after})"
    return f"(SELECT MIN({of_series}) FROM series n WHERE {CROWD} AND {sql.any_series})"


def covered_seconds(sql: Sql) -> str:
    """How much of bucket b somebody listened to or repaired: of each piece what lies beyond those before it."""
    piece = "{greatest}({0}, b.from_at) AS from_at, {least}({1}, b.to_at) AS to_at"
    names = {"least": sql.least, "greatest": sql.greatest}
    news = sql.seconds.format(f"COALESCE({sql.greatest}(from_at, before), from_at)", "to_at")
    return f"""(
        SELECT COALESCE(SUM({news}), 0.0) FROM (
            SELECT from_at, to_at, MAX(to_at) OVER (
                ORDER BY from_at, to_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (
                SELECT {piece.format("c.from_at", "c.to_at", **names)}
                FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
                WHERE {LISTENER} AND c.state = 'live' AND c.from_at < b.to_at AND c.to_at > b.from_at
                UNION ALL
                SELECT {piece.format("r.from_ts", "r.to_ts", **names)}
                FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
                WHERE {LISTENER} AND r.state = 'done' AND r.from_ts < b.to_at AND r.to_ts > b.from_at
            ) pieces
        ) marked WHERE before IS NULL OR to_at > before)"""


def value_at(ts: str) -> str:
    """Of bucket b's series; a probe of the index, where a join might be made by reading everything."""
    return f"(SELECT p.value FROM samples p WHERE p.series_id = b.series_id AND p.ts = {ts})"
