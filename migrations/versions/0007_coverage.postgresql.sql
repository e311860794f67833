-- Replaces views of 0002_views.postgresql.sql. Each change here belongs into 0007_coverage.sqlite.sql too.
--
-- `coverage_intervals` gets the columns with which it can be read by time, before it computes anything.

-- Nothing counts beyond the heartbeat of its instance, and an open live interval not beyond what its connection heard.
CREATE OR REPLACE VIEW coverage_intervals AS /* Coverage with an end for each interval. An open interval counts up to the heartbeat of its instance, a live one up to the last byte from its connection; an open `stopped` interval has no length, because the subscription is no longer wanted. A live interval that others of its instance contradict (its clock was set back) is cut: each piece of it is a row. What begins after the heartbeat is left out, except for `lost`, which a later run records. started_at, ended_at: as recorded; from_at and to_at lie between them. */
SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.reason,
    LEAST(CASE WHEN c.state <> 'lost' THEN i.heartbeat_at END, GREATEST(c.started_at, k.from_at)) AS from_at,
    LEAST(CASE WHEN c.state <> 'lost' THEN i.heartbeat_at END, GREATEST(c.started_at, k.from_at, LEAST(
        CASE WHEN k.to_at IS NULL AND i.stepped_back AND c.state = 'live' THEN c.started_at ELSE k.to_at END,
        CASE
            WHEN c.ended_at IS NOT NULL THEN c.ended_at
            WHEN c.state = 'stopped' OR i.heartbeat_at IS NULL THEN c.started_at
            ELSE LEAST(i.heartbeat_at, h.heard_at)
        END))) AS to_at,
    c.started_at, c.ended_at
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

CREATE OR REPLACE VIEW coverage_daily AS /* Per subscription and UTC day of wanted time: seconds wanted, seconds of them covered (live or repaired), and percent, their ratio. coverage_percent is that of candles: covered time, wanted or not, of the length of the day. samples_deleted: retention has deleted samples of that day. */
WITH RECURSIVE days AS (
    SELECT subscription_id, from_at, to_at, date_trunc('day', from_at, 'UTC') AS day_at
    FROM wanted WHERE from_at < to_at
    UNION ALL
    SELECT subscription_id, from_at, to_at, day_at + interval '24 hours'
    FROM days WHERE day_at + interval '24 hours' < to_at
), clipped AS (
    SELECT subscription_id, day_at, GREATEST(from_at, day_at) AS from_at,
        LEAST(to_at, day_at + interval '24 hours') AS to_at
    FROM days
), counted AS (
    SELECT d.subscription_id, d.day_at,
        EXTRACT(EPOCH FROM d.to_at - d.from_at)::double precision AS wanted_seconds,
        -- Without a row to join, LEAST would ignore the NULL and count all of the day.
        COALESCE(SUM(CASE WHEN c.subscription_id IS NOT NULL THEN
            EXTRACT(EPOCH FROM GREATEST(LEAST(c.to_at, d.to_at) - GREATEST(c.from_at, d.from_at), interval '0'))
                ::double precision
        END), 0.0) AS covered_seconds,
        COALESCE(SUM(CASE WHEN c.subscription_id IS NOT NULL THEN
            EXTRACT(EPOCH FROM LEAST(c.to_at, d.day_at + interval '24 hours') - GREATEST(c.from_at, d.day_at))
                ::double precision
        END), 0.0) AS day_seconds
    FROM clipped d LEFT JOIN covered c ON c.subscription_id = d.subscription_id
        AND c.from_at < d.day_at + interval '24 hours' AND c.to_at > d.day_at
    GROUP BY d.subscription_id, d.day_at, d.from_at, d.to_at
)
SELECT s.subscription_id, s.feed, s.path, s.params, s.ticker, (t.day_at AT TIME ZONE 'UTC')::date AS day,
    t.wanted_seconds, t.covered_seconds, 100.0 * t.covered_seconds / t.wanted_seconds AS percent,
    t.day_seconds / 864 AS coverage_percent,
    COALESCE((SELECT MAX(e.before) FROM deletions e) > t.day_at, FALSE) AS samples_deleted
FROM counted t JOIN subscriptions s ON s.subscription_id = t.subscription_id;
