-- The candles, once per bucket length: 0002_views.py fills in $view, $hours, $prefix and $suffix.
-- Each change here belongs into 0002_candles.postgresql.sql too.
--
-- Nothing is stored besides the samples: late, repaired and restated values count at once. Only the samples of the
-- requested buckets are read, by index.
-- `stretches` are up to 8784 hours (366 days) long. Each begins at the first sample after the one before, so that a
-- sample with a ts that is centuries off costs no more.
-- `covered_seconds` adds up what each interval covers beyond those before it. A subscription to one user's rows says
-- nothing about the others, hence the conditions on params.
-- `is_final` looks 1.1 hours past the bucket: gaps are searched once a minute, so that a gap in that hour has its
-- repair by then. A repair is created once its gap has ended, and requests values from one hour before the gap on.
-- Live and repaired time are read at the same instant, because compaction merges them.

CREATE VIEW $view AS /* Crowd sentiment by UTC bucket. Covered: live or repaired, even if the feed was quiet. Final: the bucket ended more than an hour ago (the provider restates values for one hour), no repair that may still restate it is open, and the time just after that hour was live, or is in a gap whose repair has ended, or no subscription was wanted then. */
WITH RECURSIVE stretches (from_at) AS (
    SELECT substr((
        SELECT MIN((SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id))
        FROM series n
        WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
    ), 1, $prefix) || '$suffix'
    UNION ALL
    SELECT substr((
        SELECT MIN((SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id
            AND m.ts >= datetime(s.from_at, '+8784 hours')))
        FROM series n
        WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
    ), 1, $prefix) || '$suffix'
    FROM stretches s WHERE s.from_at IS NOT NULL
), numbers (number) AS (
    SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < 8784 / $hours - 1
), starts AS (
    SELECT datetime(s.from_at, (n.number * $hours) || ' hours') AS from_at
    FROM stretches s CROSS JOIN numbers n WHERE s.from_at IS NOT NULL
), hours AS (
    SELECT from_at, datetime(from_at, '+$hours hours') AS to_at FROM starts
), buckets AS (
    -- CROSS JOIN fixes the join order. A condition on a column of the GROUP BY is pushed down into the group.
    SELECT h.from_at, h.to_at, n.series_id, n.ticker,
        MIN(m.ts) AS first_ts, MAX(m.ts) AS last_ts, MAX(m.value) AS high, MIN(m.value) AS low,
        AVG(m.value) AS mean, COUNT(*) AS samples
    FROM hours h CROSS JOIN series n CROSS JOIN samples m
        ON m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at
    WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
    GROUP BY h.from_at, h.to_at, n.series_id, n.ticker
), filled AS (
    SELECT b.*, (
        SELECT COALESCE(SUM(ROUND(
            strftime('%s', substr(to_at, 1, 19))
            - strftime('%s', substr(COALESCE(MAX(from_at, before), from_at), 1, 19))
            + CAST(substr(to_at, 20) AS REAL)
            - CAST(substr(COALESCE(MAX(from_at, before), from_at), 20) AS REAL), 6)), 0.0)
        FROM (
            SELECT from_at, to_at, MAX(to_at) OVER (
                ORDER BY from_at, to_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (
                SELECT MAX(c.from_at, b.from_at) AS from_at, MIN(c.to_at, b.to_at) AS to_at
                FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
                WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                    AND l.params NOT LIKE '%"user_id"%'
                    AND c.state = 'live' AND c.from_at < b.to_at AND c.to_at > b.from_at
                UNION ALL
                SELECT MAX(r.from_ts, b.from_at) AS from_at, MIN(r.to_ts, b.to_at) AS to_at
                FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
                WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                    AND l.params NOT LIKE '%"user_id"%'
                    AND r.state = 'done' AND r.from_ts < b.to_at AND r.to_ts > b.from_at
            ) pieces
        ) marked
        WHERE before IS NULL OR to_at > before
    ) AS covered_seconds
    FROM buckets b
)
SELECT b.ticker, b.from_at AS bucket_at,
    (SELECT p.value FROM samples p WHERE p.series_id = b.series_id AND p.ts = b.first_ts) AS open, b.high, b.low,
    (SELECT p.value FROM samples p WHERE p.series_id = b.series_id AND p.ts = b.last_ts) AS close, b.mean, b.samples,
    b.covered_seconds / 60 AS covered_minutes, b.covered_seconds / (36 * $hours) AS coverage_percent,
    COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i)
            >= datetime(b.to_at, '+1 hours'), FALSE)
        AND NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.state = 'open' AND c.from_ts < datetime(b.to_at, '+1 hours')
                AND c.to_ts > b.from_at)
        AND (EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.state = 'live' AND c.from_at <= datetime(b.to_at, '+1.1 hours')
                AND c.to_at >= datetime(b.to_at, '+1.1 hours'))
        OR EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.state <> 'open' AND c.from_ts <= datetime(b.to_at, '+1.1 hours')
                AND c.to_ts >= datetime(b.to_at, '+1.1 hours'))
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.ended_at IS NULL AND c.state <> 'stopped')
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.started_at <= datetime(b.to_at, '+1.1 hours'))) AS is_final
FROM filled b;
