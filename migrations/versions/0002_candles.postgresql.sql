-- The candles, once per bucket length: 0002_views.py fills in $view, $hours and $unit.
-- Each change here belongs into 0002_candles.sqlite.sql too.
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
-- `series_id BETWEEN ...` is true for every integer. PostgreSQL expects it to be true for few and takes the query for
-- a cheap one, which it is; otherwise it would compile the query (JIT) for longer than the answer takes.

CREATE VIEW $view AS /* Crowd sentiment by UTC bucket. Covered: live or repaired, even if the feed was quiet. Final: the bucket ended more than an hour ago (the provider restates values for one hour), no repair that may still restate it is open, and the time just after that hour was live, or is in a gap whose repair has ended, or no subscription was wanted then. */
WITH RECURSIVE stretches (from_at) AS (
    SELECT date_trunc('$unit', (
        SELECT MIN((SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id))
        FROM series n
        WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
            AND n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
    ), 'UTC')
    UNION ALL
    SELECT date_trunc('$unit', (
        SELECT MIN((SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id
            AND m.ts >= s.from_at + interval '8784 hours'))
        FROM series n
        WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
            AND n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
    ), 'UTC')
    FROM stretches s WHERE s.from_at IS NOT NULL
), numbers (number) AS (
    SELECT number FROM generate_series(0, 8784 / $hours - 1) number
), starts AS (
    -- An array, because the estimated length of a plain list makes PostgreSQL compile the query (see below).
    SELECT from_at FROM unnest(ARRAY(
        SELECT s.from_at + n.number * interval '$hours hours'
        FROM stretches s CROSS JOIN numbers n WHERE s.from_at IS NOT NULL)) from_at
), hours AS (
    SELECT from_at, from_at + interval '$hours hours' AS to_at FROM starts
), buckets AS (
    SELECT h.from_at, h.to_at, n.series_id, n.ticker, a.*
    FROM hours h CROSS JOIN series n CROSS JOIN LATERAL (
        SELECT MIN(m.ts) AS first_ts, MAX(m.ts) AS last_ts, MAX(m.value) AS high, MIN(m.value) AS low,
            AVG(m.value) AS mean, COUNT(*) AS samples
        FROM samples m
        WHERE m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at
        HAVING COUNT(*) > 0
    ) a
    WHERE n.feed = 'crowd-sentiment' AND n.metric = 'crowd_sentiment'
        AND n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
), filled AS (
    SELECT b.*, f.covered_seconds
    FROM buckets b CROSS JOIN LATERAL (
        SELECT COALESCE(SUM(
            EXTRACT(EPOCH FROM to_at - COALESCE(GREATEST(from_at, before), from_at))::double precision), 0.0)
        FROM (
            SELECT from_at, to_at, MAX(to_at) OVER (
                ORDER BY from_at, to_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (
                SELECT GREATEST(c.from_at, b.from_at) AS from_at, LEAST(c.to_at, b.to_at) AS to_at
                FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
                WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                    AND l.params NOT LIKE '%"user_id"%'
                    AND c.state = 'live' AND c.from_at < b.to_at AND c.to_at > b.from_at
                UNION ALL
                SELECT GREATEST(r.from_ts, b.from_at) AS from_at, LEAST(r.to_ts, b.to_at) AS to_at
                FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
                WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                    AND l.params NOT LIKE '%"user_id"%'
                    AND r.state = 'done' AND r.from_ts < b.to_at AND r.to_ts > b.from_at
            ) pieces
        ) marked
        WHERE before IS NULL OR to_at > before
    ) f (covered_seconds)
)
SELECT b.ticker, b.from_at AS bucket_at,
    (SELECT p.value FROM samples p WHERE p.series_id = b.series_id AND p.ts = b.first_ts) AS open, b.high, b.low,
    (SELECT p.value FROM samples p WHERE p.series_id = b.series_id AND p.ts = b.last_ts) AS close, b.mean, b.samples,
    b.covered_seconds / 60 AS covered_minutes, b.covered_seconds / (36 * $hours) AS coverage_percent,
    COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i) >= b.to_at + interval '1 hours', FALSE)
        AND NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.state = 'open' AND c.from_ts < b.to_at + interval '1 hours' AND c.to_ts > b.from_at)
        AND (EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.state = 'live' AND c.from_at <= b.to_at + interval '1.1 hours'
                AND c.to_at >= b.to_at + interval '1.1 hours')
        OR EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.state <> 'open' AND c.from_ts <= b.to_at + interval '1.1 hours'
                AND c.to_ts >= b.to_at + interval '1.1 hours')
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.ended_at IS NULL AND c.state <> 'stopped')
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE l.feed = 'crowd-sentiment' AND l.ticker IN ('', b.ticker)
                AND l.params NOT LIKE '%"user_id"%'
                AND c.started_at <= b.to_at + interval '1.1 hours')) AS is_final
FROM filled b;
