-- The view that 0004 adds. Each change here belongs into 0004_views.postgresql.sql too.

-- As `gaps`, with each instance apart: between its own live intervals, within the time that it knew the subscription.
CREATE VIEW instance_gaps AS /* The time in which an instance by itself did not receive a subscription that it knew, with its states meanwhile. covered_seconds: how much of it is covered all the same, by another instance, another path or a repair; the rest is in gaps. Coverage that was compacted (retention.journal) no longer has what was covered. */
WITH intervals AS (
    SELECT subscription_id, instance_id, state, from_at, to_at FROM coverage_intervals
), edges AS (
    SELECT subscription_id, instance_id, from_at, to_at FROM intervals WHERE state = 'live'
    UNION ALL
    SELECT subscription_id, instance_id, MIN(from_at), MIN(from_at) FROM intervals
    GROUP BY subscription_id, instance_id
    UNION ALL
    SELECT subscription_id, instance_id, MAX(to_at), MAX(to_at) FROM intervals
    GROUP BY subscription_id, instance_id
), holes AS (
    SELECT subscription_id, instance_id, MAX(to_at) OVER (
        PARTITION BY subscription_id, instance_id ORDER BY from_at, to_at
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS from_at, from_at AS to_at
    FROM edges
), measured AS (
    SELECT h.subscription_id, h.instance_id, h.from_at, h.to_at,
        ROUND(strftime('%s', substr(h.to_at, 1, 19)) - strftime('%s', substr(h.from_at, 1, 19))
            + CAST(substr(h.to_at, 20) AS REAL) - CAST(substr(h.from_at, 20) AS REAL), 6) AS seconds,
        COALESCE(SUM(CASE WHEN c.subscription_id IS NOT NULL THEN
            ROUND(strftime('%s', substr(MIN(c.to_at, h.to_at), 1, 19))
                - strftime('%s', substr(MAX(c.from_at, h.from_at), 1, 19))
                + CAST(substr(MIN(c.to_at, h.to_at), 20) AS REAL)
                - CAST(substr(MAX(c.from_at, h.from_at), 20) AS REAL), 6)
        END), 0.0) AS covered_seconds
    FROM holes h LEFT JOIN covered c ON c.subscription_id = h.subscription_id
        AND c.from_at < h.to_at AND c.to_at > h.from_at
    WHERE h.from_at < h.to_at
    GROUP BY h.subscription_id, h.instance_id, h.from_at, h.to_at
)
SELECT g.instance_id, COALESCE(i.name, '') AS instance_name,
    s.subscription_id, s.feed, s.path, s.params, s.ticker, g.from_at, g.to_at, g.seconds, g.covered_seconds,
    COALESCE((
        SELECT group_concat(word, ', ') FROM (
            SELECT c.state AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = g.subscription_id AND c.instance_id = g.instance_id
                AND c.state <> 'live' AND c.state <> ''
                AND c.started_at < g.to_at AND (c.ended_at IS NULL OR c.ended_at > g.from_at)
            GROUP BY c.state ORDER BY place, word
        ) texts), 'unknown') AS states,
    COALESCE((
        SELECT group_concat(word, ', ') FROM (
            SELECT c.reason AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = g.subscription_id AND c.instance_id = g.instance_id
                AND c.state <> 'live' AND c.reason <> ''
                AND c.started_at < g.to_at AND (c.ended_at IS NULL OR c.ended_at > g.from_at)
            GROUP BY c.reason ORDER BY place, word
        ) texts), '') AS reason
FROM measured g JOIN subscriptions s ON s.subscription_id = g.subscription_id
    LEFT JOIN instances i ON i.instance_id = g.instance_id;
