-- The views that 0003 adds or replaces. Each change here belongs into 0003_views.postgresql.sql too.

-- `seen` finds the intervals that are not live but overlap one that is, which only a clock that was set back can cause.
-- What lies before, between and after them is not contradicted: `cuts` ends with a mark behind everything.
-- An open `stopped` interval contradicts what came before by a clock that ran ahead, up to the heartbeat.
CREATE VIEW uncontradicted AS /* For instances whose clock was set back, so that their intervals overlap: the time in which no interval of a subscription says that it was not live. */
WITH spans AS (
    SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.started_at AS from_at,
        COALESCE(c.ended_at, CASE WHEN c.state = 'stopped' THEN i.heartbeat_at ELSE '9999-12-31 23:59:59.999999' END) AS to_at
    FROM instances i JOIN coverage c ON c.instance_id = i.instance_id
    WHERE i.stepped_back AND COALESCE(c.ended_at > c.started_at, c.state <> 'stopped' OR i.heartbeat_at > c.started_at)
), seen AS (
    SELECT subscription_id, instance_id, state, from_at, to_at,
        MAX(CASE WHEN state = 'live' THEN to_at END) OVER (
            PARTITION BY subscription_id, instance_id ORDER BY from_at, to_at, start_seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS live_before,
        MIN(CASE WHEN state = 'live' THEN from_at END) OVER (
            PARTITION BY subscription_id, instance_id ORDER BY from_at DESC, to_at DESC, start_seq DESC
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS live_after
    FROM spans
), cuts AS (
    SELECT subscription_id, instance_id, from_at, to_at
    FROM seen
    WHERE state <> 'live' AND (live_before > from_at OR live_after < to_at)
    UNION ALL
    SELECT DISTINCT subscription_id, instance_id, '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999'
    FROM spans
), holes AS (
    SELECT subscription_id, instance_id, COALESCE(MAX(to_at) OVER (
        PARTITION BY subscription_id, instance_id ORDER BY from_at, to_at
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), '0001-01-01 00:00:00.000000') AS from_at, from_at AS to_at
    FROM cuts
)
SELECT subscription_id, instance_id, from_at, to_at FROM holes WHERE from_at < to_at;

-- Times are text. MIN and MAX of several arguments are NULL if one is.
-- Nothing counts beyond the heartbeat of its instance, and an open live interval not beyond what its connection heard.
CREATE VIEW coverage_intervals AS /* Coverage with an end for each interval. An open interval counts up to the heartbeat of its instance, a live one up to the last byte from its connection; an open `stopped` interval has no length, because the subscription is no longer wanted. A live interval that others of its instance contradict (its clock was set back) is cut: each piece of it is a row. What begins after the heartbeat is left out, except for `lost`, which a later run records. */
SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.reason,
    MIN(COALESCE(CASE WHEN c.state <> 'lost' THEN i.heartbeat_at END, '9999-12-31 23:59:59.999999'),
        MAX(c.started_at, COALESCE(k.from_at, ''))) AS from_at,
    MIN(COALESCE(CASE WHEN c.state <> 'lost' THEN i.heartbeat_at END, '9999-12-31 23:59:59.999999'),
        MAX(c.started_at, COALESCE(k.from_at, ''), MIN(
        COALESCE(k.to_at, CASE WHEN i.stepped_back AND c.state = 'live' THEN '' ELSE '9999-12-31 23:59:59.999999' END),
        CASE
            WHEN c.ended_at IS NOT NULL THEN c.ended_at
            WHEN c.state = 'stopped' OR i.heartbeat_at IS NULL THEN c.started_at
            WHEN c.state <> 'live' THEN i.heartbeat_at
            ELSE MIN(i.heartbeat_at, COALESCE((
                SELECT h.heard_at FROM subscriptions s JOIN connections h
                    ON h.instance_id = c.instance_id AND h.path = s.path AND h.params = s.connection_params
                WHERE s.subscription_id = c.subscription_id), i.heartbeat_at))
        END))) AS to_at
FROM coverage c
    LEFT JOIN instances i ON i.instance_id = c.instance_id
    LEFT JOIN uncontradicted k ON i.stepped_back AND c.state = 'live'
        AND k.subscription_id = c.subscription_id AND k.instance_id = c.instance_id
        AND k.from_at < COALESCE(c.ended_at, '9999-12-31 23:59:59.999999') AND k.to_at > c.started_at
        AND k.from_at < COALESCE(i.heartbeat_at, '9999-12-31 23:59:59.999999')
WHERE i.heartbeat_at IS NULL OR c.started_at <= i.heartbeat_at OR c.state = 'lost';
