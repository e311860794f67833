-- The views that PostgreSQL and SQLite spell differently. Each change here belongs into 0002_views.sqlite.sql too.
--
-- A day is interval '24 hours': '1 day' may have 23 hours in the time zone of a session.

CREATE VIEW latest AS /* The newest value of each series, by one index probe per series. */
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
    m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source,
    m.instance_id, m.seq
FROM series n CROSS JOIN LATERAL (
    SELECT * FROM samples p WHERE p.series_id = n.series_id ORDER BY p.ts DESC LIMIT 1) m;

CREATE VIEW ingest_lag AS /* Seconds from the time that a value is for until we received it. */
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source,
    EXTRACT(EPOCH FROM m.received_at - m.ts)::double precision AS lag_seconds
FROM series n JOIN samples m ON m.series_id = n.series_id;

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

CREATE VIEW wanted AS /* The time between the first and the last known coverage of each subscription. */
SELECT subscription_id, MIN(from_at) AS from_at, MAX(to_at) AS to_at
FROM coverage_intervals
GROUP BY subscription_id;

-- Merges overlapping intervals: `begins` marks those that overlap none before them, and their running count numbers
-- the islands. A subscription to one user's rows says nothing about the others, hence the conditions on params.
CREATE VIEW covered AS /* The time that each subscription was covered: the union of the live intervals and finished repairs of all instances, including other paths to the same feed and ticker, and subscriptions without ticker. */
WITH covers AS (
    SELECT s.subscription_id, c.subscription_id AS by_id
    FROM subscriptions s JOIN subscriptions c ON c.feed = s.feed AND c.ticker = s.ticker
    WHERE c.subscription_id = s.subscription_id OR c.params NOT LIKE '%"user_id"%'
    UNION
    SELECT s.subscription_id, c.subscription_id
    FROM subscriptions s JOIN subscriptions c ON c.feed = s.feed AND c.ticker = ''
    WHERE c.params NOT LIKE '%"user_id"%'
), spans AS (
    SELECT subscription_id, from_at, to_at FROM coverage_intervals WHERE state = 'live'
    UNION ALL
    SELECT subscription_id, from_ts, to_ts FROM repairs WHERE state = 'done'
), pieces AS (
    SELECT k.subscription_id, p.from_at, p.to_at
    FROM covers k JOIN spans p ON p.subscription_id = k.by_id
    WHERE p.from_at < p.to_at
), marked AS (
    SELECT subscription_id, from_at, to_at, CASE WHEN from_at <= MAX(to_at) OVER (
        PARTITION BY subscription_id ORDER BY from_at, to_at
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) THEN 0 ELSE 1 END AS begins
    FROM pieces
), numbered AS (
    SELECT subscription_id, from_at, to_at,
        SUM(begins) OVER (PARTITION BY subscription_id ORDER BY from_at, to_at) AS island
    FROM marked
)
SELECT subscription_id, MIN(from_at) AS from_at, MAX(to_at) AS to_at
FROM numbered
GROUP BY subscription_id, island;

-- The states and reasons of a gap are joined in the order of their first start; an interval that is still open
-- explains whatever follows it.
CREATE VIEW gaps AS /* Wanted time that is not covered, with the states of the subscription meanwhile. */
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
    EXTRACT(EPOCH FROM h.to_at - h.from_at)::double precision AS seconds,
    COALESCE((
        SELECT string_agg(word, ', ' ORDER BY place, word) FROM (
            SELECT c.state AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = h.subscription_id AND c.state <> 'live' AND c.state <> ''
                AND c.started_at < h.to_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
            GROUP BY c.state ORDER BY place, word
        ) texts), 'unknown') AS states,
    COALESCE((
        SELECT string_agg(word, ', ' ORDER BY place, word) FROM (
            SELECT c.reason AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = h.subscription_id AND c.state <> 'live' AND c.reason <> ''
                AND c.started_at < h.to_at AND (c.ended_at IS NULL OR c.ended_at > h.from_at)
            GROUP BY c.reason ORDER BY place, word
        ) texts), '') AS reason
FROM holes h JOIN subscriptions s ON s.subscription_id = h.subscription_id
WHERE h.from_at < h.to_at;

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
        EXTRACT(EPOCH FROM h.to_at - h.from_at)::double precision AS seconds,
        -- Without a row to join, LEAST would ignore the NULL and count all of the gap.
        COALESCE(SUM(CASE WHEN c.subscription_id IS NOT NULL THEN
            EXTRACT(EPOCH FROM LEAST(c.to_at, h.to_at) - GREATEST(c.from_at, h.from_at))::double precision
        END), 0.0) AS covered_seconds
    FROM holes h LEFT JOIN covered c ON c.subscription_id = h.subscription_id
        AND c.from_at < h.to_at AND c.to_at > h.from_at
    WHERE h.from_at < h.to_at
    GROUP BY h.subscription_id, h.instance_id, h.from_at, h.to_at
)
SELECT g.instance_id, COALESCE(i.name, '') AS instance_name,
    s.subscription_id, s.feed, s.path, s.params, s.ticker, g.from_at, g.to_at, g.seconds, g.covered_seconds,
    COALESCE((
        SELECT string_agg(word, ', ' ORDER BY place, word) FROM (
            SELECT c.state AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = g.subscription_id AND c.instance_id = g.instance_id
                AND c.state <> 'live' AND c.state <> ''
                AND c.started_at < g.to_at AND (c.ended_at IS NULL OR c.ended_at > g.from_at)
            GROUP BY c.state ORDER BY place, word
        ) texts), 'unknown') AS states,
    COALESCE((
        SELECT string_agg(word, ', ' ORDER BY place, word) FROM (
            SELECT c.reason AS word, MIN(c.started_at) AS place
            FROM coverage c
            WHERE c.subscription_id = g.subscription_id AND c.instance_id = g.instance_id
                AND c.state <> 'live' AND c.reason <> ''
                AND c.started_at < g.to_at AND (c.ended_at IS NULL OR c.ended_at > g.from_at)
            GROUP BY c.reason ORDER BY place, word
        ) texts), '') AS reason
FROM measured g JOIN subscriptions s ON s.subscription_id = g.subscription_id
    LEFT JOIN instances i ON i.instance_id = g.instance_id;

CREATE VIEW coverage_daily AS /* Seconds wanted and seconds covered (live or repaired), per subscription and UTC day. */
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
            EXTRACT(EPOCH FROM LEAST(c.to_at, d.to_at) - GREATEST(c.from_at, d.from_at))::double precision
        END), 0.0) AS covered_seconds
    FROM clipped d LEFT JOIN covered c ON c.subscription_id = d.subscription_id
        AND c.from_at < d.to_at AND c.to_at > d.from_at
    GROUP BY d.subscription_id, d.day_at, d.from_at, d.to_at
)
SELECT s.subscription_id, s.feed, s.path, s.params, s.ticker, (t.day_at AT TIME ZONE 'UTC')::date AS day,
    t.wanted_seconds, t.covered_seconds, 100.0 * t.covered_seconds / t.wanted_seconds AS percent
FROM counted t JOIN subscriptions s ON s.subscription_id = t.subscription_id;
