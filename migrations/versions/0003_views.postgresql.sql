-- The views that 0003 adds or replaces. Each change here belongs into 0003_views.sqlite.sql too.

-- `seen` finds the intervals that are not live but overlap one that is, which only a clock that was set back can cause.
-- What lies before, between and after them is not contradicted: `cuts` ends with a mark behind everything.
-- An open `stopped` interval contradicts what came before by a clock that ran ahead, up to the heartbeat.
-- `subscription_id BETWEEN ...` is true for every integer, as in 0002_candles.postgresql.sql: nearly always no clock was
-- set back, and PostgreSQL would compile a query (JIT) for what it expects to read here.
CREATE VIEW uncontradicted AS /* For instances whose clock was set back, so that their intervals overlap: the time in which no interval of a subscription says that it was not live. */
WITH spans AS (
    SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.started_at AS from_at,
        COALESCE(c.ended_at, CASE WHEN c.state = 'stopped' THEN i.heartbeat_at ELSE timestamptz '9999-12-31 23:59:59.999999Z' END) AS to_at
    FROM instances i JOIN coverage c ON c.instance_id = i.instance_id
    WHERE i.stepped_back AND COALESCE(c.ended_at > c.started_at, c.state <> 'stopped' OR i.heartbeat_at > c.started_at)
        AND c.subscription_id BETWEEN (SELECT -2147483648) AND (SELECT 2147483647)
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
    SELECT DISTINCT subscription_id, instance_id,
        timestamptz '9999-12-31 23:59:59.999999Z', timestamptz '9999-12-31 23:59:59.999999Z'
    FROM spans
), holes AS (
    SELECT subscription_id, instance_id, COALESCE(MAX(to_at) OVER (
        PARTITION BY subscription_id, instance_id ORDER BY from_at, to_at
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), timestamptz '0001-01-01Z') AS from_at, from_at AS to_at
    FROM cuts
)
SELECT subscription_id, instance_id, from_at, to_at FROM holes WHERE from_at < to_at;

-- Nothing counts beyond the heartbeat of its instance, and an open live interval not beyond what its connection heard.
CREATE VIEW coverage_intervals AS /* Coverage with an end for each interval. An open interval counts up to the heartbeat of its instance, a live one up to the last byte from its connection; an open `stopped` interval has no length, because the subscription is no longer wanted. A live interval that others of its instance contradict (its clock was set back) is cut: each piece of it is a row. What begins after the heartbeat is left out, except for `lost`, which a later run records. */
SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.reason,
    LEAST(CASE WHEN c.state <> 'lost' THEN i.heartbeat_at END, GREATEST(c.started_at, k.from_at)) AS from_at,
    LEAST(CASE WHEN c.state <> 'lost' THEN i.heartbeat_at END, GREATEST(c.started_at, k.from_at, LEAST(
        CASE WHEN k.to_at IS NULL AND i.stepped_back AND c.state = 'live' THEN c.started_at ELSE k.to_at END,
        CASE
            WHEN c.ended_at IS NOT NULL THEN c.ended_at
            WHEN c.state = 'stopped' OR i.heartbeat_at IS NULL THEN c.started_at
            ELSE LEAST(i.heartbeat_at, h.heard_at)
        END))) AS to_at
FROM coverage c
    LEFT JOIN instances i ON i.instance_id = c.instance_id
    LEFT JOIN subscriptions s ON s.subscription_id = c.subscription_id AND c.ended_at IS NULL AND c.state = 'live'
    LEFT JOIN connections h
        ON h.instance_id = c.instance_id AND h.path = s.path AND h.params = s.connection_params
    LEFT JOIN uncontradicted k ON i.stepped_back AND c.state = 'live'
        AND k.subscription_id = c.subscription_id AND k.instance_id = c.instance_id
        AND k.from_at < COALESCE(c.ended_at, timestamptz '9999-12-31 23:59:59.999999Z') AND k.to_at > c.started_at
        AND k.from_at < COALESCE(i.heartbeat_at, timestamptz '9999-12-31 23:59:59.999999Z')
WHERE i.heartbeat_at IS NULL OR c.started_at <= i.heartbeat_at OR c.state = 'lost';
