-- The candles, once per bucket length: 0007_completeness.py fills in $$view, $$hours and $$unit.
-- Each change here belongs into 0007_candles.sqlite.sql too.
--
-- Nothing is stored besides the samples: late, repaired and restated values count at once. Only the samples of the
-- requested buckets are read, by index.
-- `stretches` are up to 8784 hours (366 days) long. Each begins at the first sample or wanted time after the one before,
-- so that a sample with a ts that is centuries off costs no more.
-- `lived` reads the coverage of a bucket once. Nearly always one live interval covers all of it; only otherwise
-- `filled` adds up what each interval covers beyond those before it. Without a user, a subscription to one user's rows
-- says nothing about a series, hence the conditions on params.
-- `is_final` looks 1.1 hours past the bucket: gaps are searched once a minute, so that a gap in that hour has its
-- repair by then. A repair is created once its gap has ended, and requests values from one hour before the gap on.
-- Live and repaired time are read at the same instant, because compaction merges them.
-- `series_id BETWEEN ...` is true for every integer. PostgreSQL expects it to be true for few and takes the query for
-- a cheap one, which it is; otherwise it would compile the query (JIT) for longer than the answer takes.

CREATE VIEW $view AS /* $comment */
WITH RECURSIVE bounds (from_at, to_at) AS (
    SELECT LEAST(MIN((SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id)),
            (SELECT MIN(c.started_at) FROM coverage c)),
        GREATEST(MAX((SELECT MAX(m.ts) FROM samples m WHERE m.series_id = n.series_id)),
            (SELECT MAX(c.ended_at) FROM coverage c), (SELECT MAX(i.heartbeat_at) FROM instances i))
    FROM series n WHERE n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
), stretches (from_at) AS (
    SELECT date_trunc('$unit', b.from_at, 'UTC') FROM bounds b WHERE b.from_at IS NOT NULL
    UNION ALL
    SELECT date_trunc('$unit', LEAST((
        SELECT MIN((SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id
            AND m.ts >= s.from_at + interval '8784 hours'))
        FROM series n WHERE n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
    ), (
        SELECT MIN(GREATEST(c.started_at, s.from_at + interval '8784 hours'))
        FROM coverage c LEFT JOIN instances i ON i.instance_id = c.instance_id
        WHERE COALESCE(c.ended_at, i.heartbeat_at) > s.from_at + interval '8784 hours'
    )), 'UTC')
    FROM stretches s CROSS JOIN bounds b WHERE s.from_at + interval '8784 hours' <= b.to_at
), starts AS (
    -- An array, because the estimated length of a plain list makes PostgreSQL compile the query (see above).
    SELECT from_at FROM unnest(ARRAY(
        SELECT f.from_at FROM stretches s CROSS JOIN bounds b CROSS JOIN LATERAL generate_series(
            s.from_at, LEAST(s.from_at + interval '8783 hours', b.to_at), interval '$hours hours') f (from_at))) from_at
), hours AS (
    SELECT from_at, from_at + interval '$hours hours' AS to_at, from_at + interval '$after hours' AS after_at FROM starts
)
SELECT n.feed, n.metric, n.ticker, n.user_id, h.from_at AS bucket_at,
    (SELECT p.value FROM samples p WHERE p.series_id = n.series_id AND p.ts = a.first_ts) AS open, a.high, a.low,
    (SELECT p.value FROM samples p WHERE p.series_id = n.series_id AND p.ts = a.last_ts) AS close, a.mean, a.samples,
    f.covered_seconds / 60 AS covered_minutes, f.covered_seconds / (36 * $hours) AS coverage_percent,
    COALESCE((SELECT MAX(i.heartbeat_at) FROM instances i) >= h.to_at + interval '1 hours', FALSE)
        AND COALESCE((SELECT MAX(d.before) FROM deletions d) <= h.from_at, TRUE)
        AND NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
            WHERE $match
                AND r.state = 'open' AND r.from_ts < h.to_at + interval '1 hours' AND r.to_ts > h.from_at)
        AND (f.covered_seconds > 3600 * $hours - 0.0000005 OR EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.started_at <= h.from_at)
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match))
        AND (w.is_live_after OR EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
            WHERE $match
                AND r.state <> 'open' AND r.from_ts <= h.after_at AND r.to_ts >= h.after_at)
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.ended_at IS NULL AND c.state <> 'stopped')
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.started_at <= h.after_at)) AS is_final,
    COALESCE((SELECT MAX(d.before) FROM deletions d) > h.from_at, FALSE) AS samples_deleted
FROM hours h CROSS JOIN series n CROSS JOIN LATERAL (
    SELECT MIN(m.ts) AS first_ts, MAX(m.ts) AS last_ts, MAX(m.value) AS high, MIN(m.value) AS low,
        AVG(m.value) AS mean, COUNT(*) AS samples
    FROM samples m
    WHERE m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at
) a CROSS JOIN LATERAL (
    SELECT COALESCE(BOOL_OR(c.from_at <= h.from_at AND c.to_at >= h.to_at), FALSE) AS is_whole,
        COALESCE(BOOL_OR(c.from_at <= h.after_at AND c.to_at >= h.after_at), FALSE) AS is_live_after
    FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
    WHERE $match AND c.state = 'live'
        AND c.started_at <= h.after_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
) w CROSS JOIN LATERAL (
    SELECT CASE WHEN w.is_whole THEN 3600.0 * $hours ELSE (
        SELECT COALESCE(SUM(
            EXTRACT(EPOCH FROM to_at - COALESCE(GREATEST(from_at, before), from_at))::double precision), 0.0)
        FROM (
            SELECT from_at, to_at, MAX(to_at) OVER (
                ORDER BY from_at, to_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
            FROM (
                SELECT GREATEST(c.from_at, h.from_at) AS from_at, LEAST(c.to_at, h.to_at) AS to_at
                FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
                WHERE $match AND c.state = 'live'
                    AND c.started_at < h.to_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
                    AND c.from_at < h.to_at AND c.to_at > h.from_at
                UNION ALL
                SELECT GREATEST(r.from_ts, h.from_at) AS from_at, LEAST(r.to_ts, h.to_at) AS to_at
                FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
                WHERE $match AND r.state = 'done' AND r.from_ts < h.to_at AND r.to_ts > h.from_at
            ) pieces
        ) marked
        WHERE before IS NULL OR to_at > before
    ) END::double precision AS covered_seconds
) f
WHERE n.series_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
    AND (a.samples > 0 OR EXISTS (
        SELECT 1 FROM subscriptions l JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
        WHERE $match
        GROUP BY l.subscription_id
        HAVING MIN(c.from_at) < MAX(c.to_at) AND MIN(c.from_at) < h.to_at AND MAX(c.to_at) > h.from_at));
