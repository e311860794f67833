-- Each change here belongs into `history` of 0005_history.postgresql.sql too.
--
-- A value is known from its receipt on. The `received_at` of a fetched one (source 2, 3) is when it was requested: the
-- daemon drops a response that takes more than 3 minutes, so by then it was there.
-- Of the values for one ts, the current one ranks last, and the others as the writer orders them. A value is replaced as
-- soon as one that ranks later is known. One that was not current at any time is left out.
-- The correlated subquery reads by primary key, so that conditions on series and ts come first; a window function would
-- be computed over all rows before them. SQLite flattens this form, and reads both parts backwards for ORDER BY ts DESC.
CREATE VIEW history AS /* Each value of each series and ts with the time in which it was the one that was known: from known_from to before known_until, NULL if it is current. A value is known from its receipt on, a fetched one from 3 minutes after its request, when the response had arrived. */
SELECT * FROM (
    SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
        CASE m.source WHEN 1 THEN m.received_at
            ELSE datetime(substr(m.received_at, 1, 19), '+3 minutes') || substr(m.received_at, 20) END AS known_from,
        NULL AS known_until,
        CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END AS source,
        m.instance_id, m.seq, m.series_id
    FROM series n CROSS JOIN samples m
    WHERE m.series_id = n.series_id
    UNION ALL
    SELECT n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value,
        CASE m.source WHEN 1 THEN m.received_at
            ELSE datetime(substr(m.received_at, 1, 19), '+3 minutes') || substr(m.received_at, 20) END,
        (SELECT MIN(CASE k.source WHEN 1 THEN k.received_at
                ELSE datetime(substr(k.received_at, 1, 19), '+3 minutes') || substr(k.received_at, 20) END)
        FROM (
            SELECT c.received_at, c.source FROM samples c WHERE c.series_id = m.series_id AND c.ts = m.ts
            UNION ALL
            SELECT l.received_at, l.source FROM sample_revisions l
            WHERE l.series_id = m.series_id AND l.ts = m.ts AND (l.received_at, l.instance_id, l.seq, l.revision)
                > (m.received_at, m.instance_id, m.seq, m.revision)) k),
        CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END, m.instance_id, m.seq, m.series_id
    FROM series n CROSS JOIN sample_revisions m
    WHERE m.series_id = n.series_id)
WHERE known_until > known_from OR known_until IS NULL;
