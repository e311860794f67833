-- Replaces views of 0002_views.sqlite.sql. Each change here belongs into 0007_coverage.postgresql.sql too.
--
-- `coverage_intervals` gets the columns with which it can be read by time, before it computes anything.
-- `uncontradicted` reads no coverage unless the clock of an instance was set back: CROSS JOIN fixes the order.

-- `seen` finds the intervals that are not live but overlap one that is, which only a clock that was set back can cause.
-- What lies before, between and after them is not contradicted: `cuts` ends with a mark behind everything.
-- An open `stopped` interval contradicts what came before by a clock that ran ahead, up to the heartbeat.
DROP VIEW uncontradicted;
CREATE VIEW uncontradicted AS /* For instances whose clock was set back, so that their intervals overlap: the time in which no interval of a subscription says that it was not live. */
WITH spans AS (
    SELECT c.subscription_id, c.instance_id, c.start_seq, c.state, c.started_at AS from_at,
        COALESCE(c.ended_at, CASE WHEN c.state = 'stopped' THEN i.heartbeat_at ELSE '9999-12-31 23:59:59.999999' END) AS to_at
    FROM instances i CROSS JOIN coverage c ON c.instance_id = i.instance_id
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
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), '0001-01-01 00:00:00') AS from_at, from_at AS to_at
    FROM cuts
)
SELECT subscription_id, instance_id, from_at, to_at FROM holes WHERE from_at < to_at;

-- Times are text. MIN and MAX of several arguments are NULL if one is.
-- Nothing counts beyond the heartbeat of its instance, and an open live interval not beyond what its connection heard.
DROP VIEW coverage_intervals;
CREATE VIEW coverage_intervals AS /* Coverage with an end for each interval. An open interval counts up to the heartbeat of its instance, a live one up to the last byte from its connection; an open `stopped` interval has no length, because the subscription is no longer wanted. A live interval that others of its instance contradict (its clock was set back) is cut: each piece of it is a row. What begins after the heartbeat is left out, except for `lost`, which a later run records. started_at, ended_at: as recorded; from_at and to_at lie between them. */
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
        END))) AS to_at,
    c.started_at, c.ended_at
FROM coverage c
    LEFT JOIN instances i ON i.instance_id = c.instance_id
    LEFT JOIN uncontradicted k ON i.stepped_back AND c.state = 'live'
        AND k.subscription_id = c.subscription_id AND k.instance_id = c.instance_id
        AND k.from_at < COALESCE(c.ended_at, '9999-12-31 23:59:59.999999') AND k.to_at > c.started_at
        AND k.from_at < COALESCE(i.heartbeat_at, '9999-12-31 23:59:59.999999')
WHERE i.heartbeat_at IS NULL OR c.started_at <= i.heartbeat_at OR c.state = 'lost';

DROP VIEW coverage_daily;
CREATE VIEW coverage_daily AS /* Per subscription and UTC day of wanted time: seconds wanted, seconds of them covered (live or repaired), and percent, their ratio. coverage_percent is that of candles: covered time, wanted or not, of the length of the day. samples_deleted: retention has deleted samples of that day. */
WITH RECURSIVE days AS (
    SELECT subscription_id, from_at, to_at, (substr(from_at, 1, 10) || ' 00:00:00') AS day_at
    FROM wanted WHERE from_at < to_at
    UNION ALL
    SELECT subscription_id, from_at, to_at, datetime(day_at, '+24 hours')
    FROM days WHERE datetime(day_at, '+24 hours') < to_at
), clipped AS (
    SELECT subscription_id, day_at, MAX(from_at, day_at) AS from_at,
        MIN(to_at, datetime(day_at, '+24 hours')) AS to_at
    FROM days
), counted AS (
    SELECT d.subscription_id, d.day_at,
        ROUND(strftime('%s', substr(d.to_at, 1, 19)) - strftime('%s', substr(d.from_at, 1, 19))
            + CAST(substr(d.to_at, 20) AS REAL) - CAST(substr(d.from_at, 20) AS REAL), 6) AS wanted_seconds,
        COALESCE(SUM(CASE WHEN MIN(c.to_at, d.to_at) > MAX(c.from_at, d.from_at) THEN
            ROUND(strftime('%s', substr(MIN(c.to_at, d.to_at), 1, 19))
                - strftime('%s', substr(MAX(c.from_at, d.from_at), 1, 19))
                + CAST(substr(MIN(c.to_at, d.to_at), 20) AS REAL)
                - CAST(substr(MAX(c.from_at, d.from_at), 20) AS REAL), 6)
        END), 0.0) AS covered_seconds,
        COALESCE(SUM(CASE WHEN c.subscription_id IS NOT NULL THEN
            ROUND(strftime('%s', substr(MIN(c.to_at, datetime(d.day_at, '+24 hours')), 1, 19))
                - strftime('%s', substr(MAX(c.from_at, d.day_at), 1, 19))
                + CAST(substr(MIN(c.to_at, datetime(d.day_at, '+24 hours')), 20) AS REAL)
                - CAST(substr(MAX(c.from_at, d.day_at), 20) AS REAL), 6)
        END), 0.0) AS day_seconds
    FROM clipped d LEFT JOIN covered c ON c.subscription_id = d.subscription_id
        AND c.from_at < datetime(d.day_at, '+24 hours') AND c.to_at > d.day_at
    GROUP BY d.subscription_id, d.day_at, d.from_at, d.to_at
)
SELECT s.subscription_id, s.feed, s.path, s.params, s.ticker, substr(t.day_at, 1, 10) AS day,
    t.wanted_seconds, t.covered_seconds, 100.0 * t.covered_seconds / t.wanted_seconds AS percent,
    t.day_seconds / 864 AS coverage_percent,
    COALESCE((SELECT MAX(e.before) FROM deletions e) > t.day_at, FALSE) AS samples_deleted
FROM counted t JOIN subscriptions s ON s.subscription_id = t.subscription_id;
