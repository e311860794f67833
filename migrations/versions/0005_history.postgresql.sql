-- Each change of the view `history` here belongs into 0005_history.sqlite.sql too.
--
-- A value is known from its receipt on. The `received_at` of a fetched one (source 2, 3) is when it was requested: the
-- daemon drops a response that takes more than 3 minutes, so by then it was there.
-- Of the values for one ts, the current one ranks last, and the others as the writer orders them. A value is replaced as
-- soon as one that ranks later is known. One that was not current at any time is left out.
-- The correlated subquery reads by primary key, so that conditions on series and ts come first; a window function would
-- be computed over all rows before them.
CREATE VIEW history AS /* Each value of each series and ts with the time in which it was the one that was known: from known_from to before known_until, NULL if it is current. A value is known from its receipt on, a fetched one from 3 minutes after its request, when the response had arrived. */
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
    m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END AS known_from,
    NULL::timestamptz AS known_until,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source,
    m.instance_id, m.seq, m.series_id
FROM series n CROSS JOIN samples m
WHERE m.series_id = n.series_id
UNION ALL
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
    m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END, u.known_until,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END, m.instance_id, m.seq, m.series_id
FROM series n CROSS JOIN sample_revisions m CROSS JOIN LATERAL (
    SELECT MIN(k.received_at + CASE k.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END) AS known_until
    FROM (
        SELECT c.received_at, c.source FROM $schema.samples c WHERE c.series_id = m.series_id AND c.ts = m.ts
        UNION ALL
        SELECT l.received_at, l.source FROM $schema.sample_revisions l
        WHERE l.series_id = m.series_id AND l.ts = m.ts AND (l.received_at, l.instance_id, l.seq, l.revision)
            > (m.received_at, m.instance_id, m.seq, m.revision)) k) u
WHERE m.series_id = n.series_id
    AND (u.known_until > m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END OR u.known_until IS NULL);

-- SQL, STABLE and without SET: PostgreSQL puts the query in the place of the call, and conditions reach the indexes.
CREATE FUNCTION as_of(moment timestamptz) RETURNS SETOF history LANGUAGE sql STABLE PARALLEL SAFE
AS $$ /* The values that were known at a moment: the rows of history that say so, one for each series and ts. */
SELECT * FROM $schema.history h WHERE h.known_from <= moment AND (h.known_until > moment OR h.known_until IS NULL) $$;

-- PostgreSQL does not know that a ticker has one series, and would sort all rows of the ticker.
CREATE FUNCTION newest(feed text, metric text, ticker text, count bigint)
RETURNS SETOF observations LANGUAGE sql STABLE PARALLEL SAFE
AS $$ /* The newest values of a ticker, of a feed without users, read backwards by index. */
SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END, m.instance_id, m.seq
FROM $schema.series n CROSS JOIN LATERAL (
    SELECT * FROM $schema.samples p WHERE p.series_id = n.series_id ORDER BY p.ts DESC LIMIT $4) m
WHERE n.feed = $1 AND n.metric = $2 AND n.ticker = $3 AND n.user_id = '' $$;

-- The current value that was known is found first: a revision counts only if its ts is later. Two index descents.
CREATE FUNCTION known_at(feed text, metric text, ticker text, moment timestamptz, tolerance interval)
RETURNS SETOF history LANGUAGE sql STABLE PARALLEL SAFE ROWS 1
AS $$ /* The newest value of a ticker that was known at a moment, with a ts up to then, at most tolerance before: one row, or none. For a join of many tickers and moments. */
SELECT n.feed, n.metric, n.ticker, n.user_id, v.ts, v.value, v.known_from, v.known_until,
    CASE v.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END, v.instance_id, v.seq, n.series_id
FROM $schema.series n CROSS JOIN LATERAL (
    WITH c AS MATERIALIZED (
        SELECT m.ts, m.value, m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END AS known_from,
            NULL::timestamptz AS known_until, m.source, m.instance_id, m.seq
        FROM $schema.samples m
        WHERE m.series_id = n.series_id AND m.ts <= $4 AND m.ts >= $4 - $5
            AND m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END <= $4
        ORDER BY m.ts DESC LIMIT 1)
    SELECT * FROM c
    UNION ALL
    (SELECT m.ts, m.value, m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END, u.known_until,
        m.source, m.instance_id, m.seq
    FROM $schema.sample_revisions m CROSS JOIN LATERAL (
        SELECT MIN(k.received_at + CASE k.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END) AS known_until
        FROM (
            SELECT c.received_at, c.source FROM $schema.samples c WHERE c.series_id = m.series_id AND c.ts = m.ts
            UNION ALL
            SELECT l.received_at, l.source FROM $schema.sample_revisions l
            WHERE l.series_id = m.series_id AND l.ts = m.ts AND (l.received_at, l.instance_id, l.seq, l.revision)
                > (m.received_at, m.instance_id, m.seq, m.revision)) k) u
    WHERE m.series_id = n.series_id AND m.ts <= $4 AND m.ts >= $4 - $5
        AND m.ts > COALESCE((SELECT c.ts FROM c), '-infinity')
        AND m.received_at + CASE m.source WHEN 1 THEN interval '0' ELSE interval '3 minutes' END <= $4
        AND (u.known_until > $4 OR u.known_until IS NULL)
    ORDER BY m.ts DESC LIMIT 1)
    ORDER BY ts DESC LIMIT 1) v
WHERE n.feed = $1 AND n.metric = $2 AND n.ticker = $3 AND n.user_id = '' $$;
