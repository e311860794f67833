"""The views that analysts read.

What both databases say alike is written once; ``Sql`` holds what they spell differently. The views of feeds show
the plain feed only: what came with further params (``crowd-sentiment?period=30``) is in ``observations``.
"""

# ruff: noqa: S608 -- every text that is pasted into a statement stands in this file

from __future__ import annotations

from typing import NamedTuple

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


class Sql(NamedTuple):
    """Expressions of one database; {0} and {1} are instants."""

    seconds: str  # from {0} to {1}, a double
    least: str
    greatest: str
    hour: str  # the start of its hour, UTC
    day: str
    date: str
    later: str  # {1} hours after {0}, a whole second; never "1 day", which may have 23
    joined: str  # the texts of column `word` in the order of column `place`
    join: str  # of names to their samples
    newest: str  # sample m, the newest of series n


SQLITE = Sql(
    # Only whole seconds go through strftime: it rounds to milliseconds, and 59.9996 up to the next minute.
    seconds="ROUND(strftime('%s', substr({1}, 1, 19)) - strftime('%s', substr({0}, 1, 19))"
    " + CAST(substr({1}, 20) AS REAL) - CAST(substr({0}, 20) AS REAL), 6)",
    least="MIN",
    greatest="MAX",
    hour="(substr({0}, 1, 13) || ':00:00.000000')",
    day="(substr({0}, 1, 10) || ' 00:00:00.000000')",
    date="substr({0}, 1, 10)",
    later="strftime('%Y-%m-%d %H:%M:%S.000000', {0}, '+{1} hours')",
    joined="group_concat(word, ', ')",
    # To SQLite CROSS says which side comes first. Without statistics it may read every sample to find one ticker's.
    join="CROSS JOIN",
    newest="CROSS JOIN samples m ON m.series_id = n.series_id"
    " AND m.ts = (SELECT MAX(p.ts) FROM samples p WHERE p.series_id = n.series_id)",
)

POSTGRESQL = Sql(
    seconds="EXTRACT(EPOCH FROM ({1}) - ({0}))::double precision",
    least="LEAST",
    greatest="GREATEST",
    hour="date_trunc('hour', {0}, 'UTC')",
    day="date_trunc('day', {0}, 'UTC')",
    date="({0} AT TIME ZONE 'UTC')::date",
    later="({0} + interval '{1} hours')",
    joined="string_agg(word, ', ' ORDER BY place, word)",
    join="JOIN",
    newest="CROSS JOIN LATERAL (SELECT * FROM samples p WHERE p.series_id = n.series_id ORDER BY p.ts DESC LIMIT 1) m",
)

# A subscription to one user's rows says nothing about the others.
EVERY_USER = "params NOT LIKE '%\"user_id\"%'"

ORIGIN = "m.revision, m.published_at, m.received_at, m.source"

# view → feed, metric, column
SINGLE = {
    "crowd_sentiment": ("crowd-sentiment", "crowd_sentiment", "sentiment"),
    "crowd_sentiment_moving_average": ("crowd-sentiment-moving-average", "moving_average", "moving_average"),
    "crowd_sentiment_z_score": ("crowd-sentiment-z-score", "z_score", "z_score"),
    "crowd_sentiment_z_score_moving_average": (
        "crowd-sentiment-z-score-moving-average",
        "moving_average",
        "moving_average",
    ),
    "market_prophit_sentiment": ("market-prophit-sentiment", "mp_sentiment", "sentiment"),
    "market_prophit_sentiment_moving_average": (
        "market-prophit-sentiment-moving-average",
        "moving_average",
        "moving_average",
    ),
    "market_prophit_sentiment_z_score": ("market-prophit-sentiment-z-score", "z_score", "z_score"),
    "market_prophit_sentiment_z_score_moving_average": (
        "market-prophit-sentiment-z-score-moving-average",
        "moving_average",
        "moving_average",
    ),
    "tweet_volume": ("tweet-volume", "volume", "volume"),
    "tweet_buzz": ("tweet-buzz", "buzz", "buzz"),
}

# view → feed, key besides ts, metrics
PIVOTED = {
    "user_sentiment": ("user-sentiment", ("ticker", "user_id"), ("sentiment", "user_score")),
    "user_sentiment_last_minute": (
        "user-sentiment-last-minute",
        ("ticker", "user_id"),
        ("sentiment", "user_score"),
    ),
    **{
        f"{name}_chart_data": (
            f"{name.replace('_', '-')}-chart-data",
            ("ticker",),
            (
                metric,
                f"{metric}_moving_average",
                f"{metric}_z_score",
                f"{metric}_z_score_moving_average",
                "volume",
                "buzz",
            ),
        )
        for name, metric in (
            ("crowd_sentiment", "crowd_sentiment"),
            ("market_prophit_sentiment", "mp_sentiment"),
        )
    },
}


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    sql = POSTGRESQL if postgresql else SQLITE
    values(sql)
    feeds(sql)
    latest(sql)
    intervals(sql)
    covered()
    gaps(sql)
    coverage_daily(sql)
    candles("crowd_sentiment_hourly", sql, sql.hour, hours=1)
    candles("crowd_sentiment_daily", sql, sql.day, hours=24)
    ingest_lag(sql)


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def view(name: str, comment: str, query: str) -> None:
    """Create it, with its comment where people look for it: SQLite keeps the statement, PostgreSQL a comment."""
    bind = op.get_bind()
    statements = [f"CREATE VIEW {name} AS /* {comment} */\n{query.strip()}"]
    if bind.dialect.name == "postgresql":
        statements.append(f"COMMENT ON VIEW {name} IS '{comment}'")
    for statement in statements:
        # As it stands: here neither a colon nor a percent sign is a parameter.
        bind.exec_driver_sql(statement, execution_options={"no_parameters": True})


def values(sql: Sql) -> None:
    for name, table, comment in (
        ("observations", "samples", "Current values with their names."),
        ("revisions", "sample_revisions", "Values that are not current: replaced since, or late."),
    ):
        columns = "n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value"
        source = f"series n {sql.join} {table} m ON m.series_id = n.series_id"
        view(name, comment, f"SELECT {columns}, {ORIGIN}, m.instance_id, m.seq FROM {source}")


def feeds(sql: Sql) -> None:
    for name, (feed, metric, column) in SINGLE.items():
        view(
            name,
            f"Feed {feed} without further params.",
            f"""
            SELECT m.ts, n.ticker, m.value AS {column}, {ORIGIN}
            FROM series n {sql.join} samples m ON m.series_id = n.series_id
            WHERE n.feed = '{feed}' AND n.metric = '{metric}'
            """,
        )
    for name, (feed, key, metrics) in PIVOTED.items():
        pivot(name, feed, key, metrics, sql)


def pivot(name: str, feed: str, key: tuple[str, ...], metrics: tuple[str, ...], sql: Sql) -> None:
    keys = ", ".join(f"n.{column}" for column in key)
    columns = ",\n".join(f"MAX(CASE WHEN n.metric = '{metric}' THEN m.value END) AS {metric}" for metric in metrics)
    view(
        name,
        f"Feed {feed} without further params; revision: of all columns together, source: mixed if they differ.",
        f"""
        SELECT m.ts, {keys},
            {columns},
            SUM(m.revision) AS revision,
            MAX(m.published_at) AS published_at,
            MAX(m.received_at) AS received_at,
            CASE WHEN MIN(m.source) = MAX(m.source) THEN MAX(m.source) ELSE 'mixed' END AS source
        FROM series n {sql.join} samples m ON m.series_id = n.series_id
        WHERE n.feed = '{feed}'
        GROUP BY m.ts, {keys}
        """,
    )


def latest(sql: Sql) -> None:
    view(
        "latest",
        "The newest value of each series, by one index probe each.",
        f"""
        SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value, {ORIGIN}, m.instance_id, m.seq
        FROM series n {sql.newest}
        """,
    )


def intervals(sql: Sql) -> None:
    view(
        "coverage_intervals",
        "Coverage with an end to each interval: what is open counts up to the heartbeat of its instance,"
        " and open stopped not at all, since nobody asks for it any more.",
        f"""
        SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.reason, c.started_at AS from_at,
            {sql.greatest}(c.started_at, COALESCE(
                c.ended_at, CASE WHEN c.state <> 'stopped' THEN i.heartbeat_at END, c.started_at)) AS to_at
        FROM coverage c LEFT JOIN instances i ON i.instance_id = c.instance_id
        """,
    )
    view(
        "wanted",
        "Since when and until when each subscription was asked for, as far as is known.",
        """
        SELECT subscription_id, MIN(from_at) AS from_at, MAX(to_at) AS to_at
        FROM coverage_intervals GROUP BY subscription_id
        """,
    )


def covered() -> None:
    view(
        "covered",
        "What each subscription has, whoever listened: the union of live intervals and finished repairs of all"
        " instances, also of other paths to the same feed and ticker and of subscriptions without ticker.",
        f"""
        WITH covers AS (
            SELECT s.subscription_id, c.subscription_id AS by_id
            FROM subscriptions s JOIN subscriptions c ON c.feed = s.feed AND c.ticker = s.ticker
            WHERE c.subscription_id = s.subscription_id OR c.{EVERY_USER}
            UNION
            SELECT s.subscription_id, c.subscription_id
            FROM subscriptions s JOIN subscriptions c ON c.feed = s.feed AND c.ticker = ''
            WHERE c.{EVERY_USER}
        ), spans AS (
            SELECT subscription_id, from_at, to_at FROM coverage_intervals WHERE state = 'live'
            UNION ALL
            SELECT subscription_id, from_ts, to_ts FROM repairs WHERE state = 'done'
        ), pieces AS (
            SELECT k.subscription_id, p.from_at, p.to_at
            FROM covers k JOIN spans p ON p.subscription_id = k.by_id WHERE p.from_at < p.to_at
        ), marked AS (
            SELECT subscription_id, from_at, to_at, CASE WHEN from_at <= MAX(to_at) OVER (
                PARTITION BY subscription_id ORDER BY from_at, to_at
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) THEN 0 ELSE 1 END AS begins
            FROM pieces
        ), numbered AS (
            SELECT subscription_id, from_at, to_at, SUM(begins) OVER (
                PARTITION BY subscription_id ORDER BY from_at, to_at) AS island
            FROM marked
        )
        SELECT subscription_id, MIN(from_at) AS from_at, MAX(to_at) AS to_at
        FROM numbered GROUP BY subscription_id, island
        """,
    )


def gaps(sql: Sql) -> None:
    view(
        "gaps",
        "Wanted time that is not covered, and the states that the subscription was in meanwhile.",
        f"""
        WITH edges AS (
            SELECT c.subscription_id, c.from_at, c.to_at
            FROM covered c JOIN wanted w ON w.subscription_id = c.subscription_id
            WHERE c.from_at < w.to_at AND c.to_at > w.from_at
            UNION ALL SELECT subscription_id, from_at, from_at FROM wanted
            UNION ALL SELECT subscription_id, to_at, to_at FROM wanted
        ), holes AS (
            SELECT subscription_id, MAX(to_at) OVER (
                PARTITION BY subscription_id ORDER BY from_at, to_at
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS from_at, from_at AS to_at
            FROM edges
        )
        SELECT h.subscription_id, s.feed, s.path, s.params, s.ticker, h.from_at, h.to_at,
            {sql.seconds.format("h.from_at", "h.to_at")} AS seconds,
            COALESCE({meanwhile(sql, "state")}, 'unknown') AS states,
            COALESCE({meanwhile(sql, "reason")}, '') AS reason
        FROM holes h JOIN subscriptions s ON s.subscription_id = h.subscription_id
        WHERE h.from_at < h.to_at
        """,
    )


def meanwhile(sql: Sql, column: str) -> str:
    """The different texts of `column` during hole h, in order; an open state explains whatever follows it."""
    return f"""(
        SELECT {sql.joined} FROM (
            SELECT c.{column} AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = h.subscription_id AND c.state <> 'live' AND c.{column} <> ''
                AND c.started_at < h.to_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
            GROUP BY c.{column} ORDER BY place, word
        ) texts)"""


def coverage_daily(sql: Sql) -> None:
    tomorrow = sql.later.format("day_at", 24)
    view(
        "coverage_daily",
        "For each subscription and UTC day: the seconds wanted, and those covered (listened or repaired).",
        f"""
        WITH RECURSIVE days AS (
            SELECT subscription_id, from_at, to_at, {sql.day.format("from_at")} AS day_at
            FROM wanted WHERE from_at < to_at
            UNION ALL
            SELECT subscription_id, from_at, to_at, {tomorrow} FROM days WHERE {tomorrow} < to_at
        ), clipped AS (
            SELECT subscription_id, day_at, {sql.greatest}(from_at, day_at) AS from_at,
                {sql.least}(to_at, {tomorrow}) AS to_at
            FROM days
        ), counted AS (
            SELECT d.subscription_id, d.day_at, {sql.seconds.format("d.from_at", "d.to_at")} AS wanted_seconds,
                {covered_seconds(sql, "d.from_at", "d.to_at")} AS covered_seconds
            FROM clipped d LEFT JOIN covered c ON c.subscription_id = d.subscription_id
                AND c.from_at < d.to_at AND c.to_at > d.from_at
            GROUP BY d.subscription_id, d.day_at, d.from_at, d.to_at
        )
        SELECT s.subscription_id, s.feed, s.path, s.params, s.ticker, {sql.date.format("t.day_at")} AS day,
            t.wanted_seconds, t.covered_seconds, 100.0 * t.covered_seconds / t.wanted_seconds AS percent
        FROM counted t JOIN subscriptions s ON s.subscription_id = t.subscription_id
        """,
    )


def covered_seconds(sql: Sql, start: str, end: str) -> str:
    """How much of start..end the rows of the outer-joined `covered c` fill, a sum over the group."""
    first, last = f"{sql.greatest}(c.from_at, {start})", f"{sql.least}(c.to_at, {end})"
    # Where nothing was joined, PostgreSQL's LEAST passes over the NULL and would count all of it.
    filled = f"CASE WHEN c.subscription_id IS NOT NULL THEN {sql.seconds.format(first, last)} END"
    return f"COALESCE(SUM({filled}), 0.0)"


def candles(name: str, sql: Sql, bucket: str, hours: int) -> None:
    # Each step is read once and groups by the ticker, so that a question about one ticker reads only its rows.
    columns = (
        "b.series_id, b.ticker, b.from_at, b.to_at, b.settled_at,"
        " b.first_ts, b.last_ts, b.high, b.low, b.mean, b.samples"
    )
    view(
        name,
        "Crowd sentiment by UTC bucket. Covered: listened or repaired, also where the feed was quiet."
        " Final: over for an hour, the window in which the provider restates, and no repair is under way.",
        f"""
        WITH buckets AS (
            SELECT n.series_id, n.ticker, {bucket.format("m.ts")} AS from_at, MIN(m.ts) AS first_ts,
                MAX(m.ts) AS last_ts, MAX(m.value) AS high, MIN(m.value) AS low, AVG(m.value) AS mean,
                COUNT(*) AS samples
            FROM series n {sql.join} samples m ON m.series_id = n.series_id
            WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
            GROUP BY n.series_id, n.ticker, {bucket.format("m.ts")}
        ), listeners AS (
            SELECT ticker, MIN(subscription_id) AS subscription_id
            FROM subscriptions WHERE feed = 'crowd-sentiment' AND {EVERY_USER} GROUP BY ticker
        ), ended AS (
            SELECT b.*, COALESCE(own.subscription_id, every.subscription_id) AS subscription_id,
                {sql.later.format("b.from_at", hours)} AS to_at,
                {sql.later.format("b.from_at", hours + 1)} AS settled_at
            FROM buckets b
                LEFT JOIN listeners own ON own.ticker = b.ticker
                LEFT JOIN listeners every ON every.ticker = ''
        ), filled AS (
            SELECT {columns}, {covered_seconds(sql, "b.from_at", "b.to_at")} AS covered_seconds
            FROM ended b LEFT JOIN covered c ON c.subscription_id = b.subscription_id
                AND c.from_at < b.to_at AND c.to_at > b.from_at
            GROUP BY {columns}
        )
        SELECT b.ticker, b.from_at AS bucket_at, {value_at("b.first_ts")} AS open, b.high, b.low,
            {value_at("b.last_ts")} AS close, b.mean, b.samples, b.covered_seconds / 60 AS covered_minutes,
            b.covered_seconds / {36 * hours} AS coverage_percent,
            COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i) >= b.settled_at, FALSE) AND NOT EXISTS (
                SELECT 1 FROM repairs r JOIN subscriptions s ON s.subscription_id = r.subscription_id
                WHERE r.state = 'open' AND r.from_ts < b.to_at AND r.to_ts > b.from_at
                    AND s.feed = 'crowd-sentiment' AND s.ticker IN ('', b.ticker)) AS is_final
        FROM filled b
        """,
    )


def value_at(ts: str) -> str:
    """Of bucket b's series; a probe of the index, where a join might be made by reading everything."""
    return f"(SELECT p.value FROM samples p WHERE p.series_id = b.series_id AND p.ts = {ts})"


def ingest_lag(sql: Sql) -> None:
    view(
        "ingest_lag",
        "Seconds from the moment that a value is about to its arrival here.",
        f"""
        SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.received_at, m.source,
            {sql.seconds.format("m.ts", "m.received_at")} AS lag_seconds
        FROM series n {sql.join} samples m ON m.series_id = n.series_id
        """,
    )
