-- The candles, once per bucket length: 0007_completeness.py fills in $$view, $$hours, $$prefix and $$suffix.
-- Each change here belongs into 0007_candles.postgresql.sql too.
--
-- Nothing is stored besides the samples: late, repaired and restated values count at once. Only the samples of the
-- requested buckets are read, by index.
-- `stretches` are up to 8784 hours (366 days) long. Each begins at the first sample or wanted time after the one before,
-- so that a sample with a ts that is centuries off costs no more.
-- SQLite has no LATERAL, but the arguments of json_each may be subqueries of the tables before it. So the samples of a
-- bucket are read once, without the sorter that GROUP BY would need; quote() keeps every bit of a number.
-- `lived` reads the coverage of a bucket once, 1: a live interval covers all of it, 2: the time after it was live.
-- Nearly always one interval does; only otherwise `filled` adds up what each interval covers beyond those before it.
-- Without a user, a subscription to one user's rows says nothing about a series, hence the conditions on params.
-- `is_final` looks 1.1 hours past the bucket: gaps are searched once a minute, so that a gap in that hour has its
-- repair by then. A repair is created once its gap has ended, and requests values from one hour before the gap on.
-- Live and repaired time are read at the same instant, because compaction merges them.

CREATE VIEW $view AS /* $comment */
WITH RECURSIVE bounds (from_at, to_at) AS (
    SELECT MIN(from_at), MAX(to_at) FROM (
        SELECT (SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id) AS from_at,
            (SELECT MAX(m.ts) FROM samples m WHERE m.series_id = n.series_id) AS to_at
        FROM series n
        UNION ALL SELECT MIN(c.started_at), MAX(c.ended_at) FROM coverage c
        UNION ALL SELECT NULL, MAX(i.heartbeat_at) FROM instances i)
), stretches (from_at) AS (
    SELECT substr(b.from_at, 1, $prefix) || '$suffix' FROM bounds b WHERE b.from_at IS NOT NULL
    UNION ALL
    SELECT substr((
        SELECT MIN(from_at) FROM (
            SELECT (SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id
                AND m.ts >= datetime(s.from_at, '+8784 hours')) AS from_at
            FROM series n
            UNION ALL
            SELECT MIN(MAX(c.started_at, datetime(s.from_at, '+8784 hours')))
            FROM coverage c LEFT JOIN instances i ON i.instance_id = c.instance_id
            WHERE COALESCE(c.ended_at, i.heartbeat_at) > datetime(s.from_at, '+8784 hours'))
    ), 1, $prefix) || '$suffix'
    FROM stretches s CROSS JOIN bounds b
    WHERE s.from_at IS NOT NULL AND datetime(s.from_at, '+8784 hours') <= b.to_at
), hours (from_at, number) AS (
    SELECT s.from_at, 1 FROM stretches s WHERE s.from_at IS NOT NULL
    UNION ALL
    SELECT datetime(h.from_at, '+$hours hours'), h.number + 1 FROM hours h
    WHERE h.number < 8784 / $hours AND datetime(h.from_at, '+$hours hours') <= (SELECT b.to_at FROM bounds b)
), buckets AS (
    SELECT from_at, datetime(from_at, '+$hours hours') AS to_at, datetime(from_at, '+$after hours') AS after_at FROM hours
)
SELECT n.feed, n.metric, n.ticker, n.user_id, h.from_at AS bucket_at,
    (SELECT p.value FROM samples p WHERE p.series_id = n.series_id AND p.ts = (
        SELECT MIN(m.ts) FROM samples m WHERE m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at)) AS open,
    json_extract(a.value, '$$[1]') AS high, json_extract(a.value, '$$[2]') AS low,
    (SELECT p.value FROM samples p WHERE p.series_id = n.series_id AND p.ts = (
        SELECT MAX(m.ts) FROM samples m WHERE m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at)) AS close,
    json_extract(a.value, '$$[3]') AS mean, json_extract(a.value, '$$[0]') AS samples,
    f.value / 60.0 AS covered_minutes, f.value / (36.0 * $hours) AS coverage_percent,
    CASE WHEN (SELECT MAX(i.heartbeat_at) FROM instances i) >= datetime(h.to_at, '+1 hours')
        AND COALESCE((SELECT MAX(d.before) FROM deletions d) <= h.from_at, TRUE)
        AND (NOT EXISTS (SELECT 1 FROM repairs r WHERE r.state = 'open') OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
            WHERE $match
                AND r.state = 'open' AND r.from_ts < datetime(h.to_at, '+1 hours') AND r.to_ts > h.from_at))
        AND (f.value > 3600 * $hours - 0.0000005 OR EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.started_at <= h.from_at)
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match))
        AND (w.value >= 2 OR EXISTS (
            SELECT 1 FROM subscriptions l JOIN repairs r ON r.subscription_id = l.subscription_id
            WHERE $match
                AND r.state <> 'open' AND r.from_ts <= h.after_at AND r.to_ts >= h.after_at)
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.ended_at IS NULL AND c.state <> 'stopped')
        OR NOT EXISTS (
            SELECT 1 FROM subscriptions l JOIN coverage c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.started_at <= h.after_at))
        THEN TRUE ELSE FALSE END AS is_final,
    COALESCE((SELECT MAX(d.before) FROM deletions d) > h.from_at, FALSE) AS samples_deleted
FROM buckets h CROSS JOIN series n CROSS JOIN json_each((
    SELECT CASE COUNT(*) WHEN 0 THEN '[[0]]' ELSE '[[' || COUNT(*) || ',' || quote(MAX(m.value)) || ','
        || quote(MIN(m.value)) || ',' || quote(AVG(m.value)) || ']]' END
    FROM samples m
    WHERE m.series_id = n.series_id AND m.ts >= h.from_at AND m.ts < h.to_at
)) a CROSS JOIN json_each((
    SELECT '[' || (COALESCE(MAX(c.from_at <= h.from_at AND c.to_at >= h.to_at), 0)
        + 2 * COALESCE(MAX(c.from_at <= h.after_at AND c.to_at >= h.after_at), 0)) || ']'
    FROM subscriptions l CROSS JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
    WHERE $match AND c.state = 'live'
        AND c.started_at <= h.after_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
)) w CROSS JOIN json_each(CASE WHEN w.value & 1 THEN '[' || (3600 * $hours) || ']' ELSE (
    SELECT '[' || COALESCE(SUM(ROUND(
        strftime('%s', substr(to_at, 1, 19))
        - strftime('%s', substr(COALESCE(MAX(from_at, before), from_at), 1, 19))
        + CAST(substr(to_at, 20) AS REAL)
        - CAST(substr(COALESCE(MAX(from_at, before), from_at), 20) AS REAL), 6)), 0.0) || ']'
    FROM (
        SELECT from_at, to_at, MAX(to_at) OVER (
            ORDER BY from_at, to_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM (
            SELECT MAX(c.from_at, h.from_at) AS from_at, MIN(c.to_at, h.to_at) AS to_at
            FROM subscriptions l CROSS JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
            WHERE $match AND c.state = 'live'
                AND c.started_at < h.to_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
                AND c.from_at < h.to_at AND c.to_at > h.from_at
            UNION ALL
            SELECT MAX(r.from_ts, h.from_at) AS from_at, MIN(r.to_ts, h.to_at) AS to_at
            FROM subscriptions l CROSS JOIN repairs r ON r.subscription_id = l.subscription_id
            WHERE $match AND r.state = 'done' AND r.from_ts < h.to_at AND r.to_ts > h.from_at
        ) pieces
    ) marked
    WHERE before IS NULL OR to_at > before
) END) f
WHERE json_extract(a.value, '$$[0]') > 0 OR EXISTS (
    SELECT 1 FROM subscriptions l CROSS JOIN coverage_intervals c ON c.subscription_id = l.subscription_id
    WHERE $match
    GROUP BY l.subscription_id
    HAVING MIN(c.from_at) < MAX(c.to_at) AND MIN(c.from_at) < h.to_at AND MAX(c.to_at) > h.from_at);
