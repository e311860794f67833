CREATE VIEW change_cursor AS /* One row, or none while nothing was written: the cursor of now, from which the function changes continues. */
SELECT json_build_object(
    'positions', (SELECT json_object_agg(spool_id, position) FROM instances),
    'deleted', (SELECT to_char(MAX(before) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM deletions))::text AS cursor
WHERE EXISTS (SELECT 1 FROM instances);

-- Each change here belongs into `SQLITE` of ingestor/store/read/changes.py too.
--
-- Each row of samples and sample_revisions carries the entry (instance_id, seq) that it came from, and the position of
-- an instance moves in the transaction that writes its rows. So the rows behind a position are those that became known
-- since, whatever wrote them and wherever their ts is.
-- `noted` has the batches behind the cursor with the ts that they wrote: a range for all series, or if that is longer
-- than a day, `series_ranges` has one for each series. Ranges that are an hour or less apart are read as one.
-- `spans` knows whether these notes are complete. They are not for batches of an older program, those that retention
-- compacted, and rows that came without a ledger (`replay --into`); then all samples of the instance are read.
-- UNION, because a value may be in the ranges of several batches. OFFSET 0 keeps PostgreSQL from turning the look-ups
-- by primary key into a join that reads everything.
-- A database that went back in time has positions before those of the cursor: the greater one counts.
CREATE FUNCTION changes(cursor text) RETURNS TABLE (
    kind text, feed text, metric text, ticker text, user_id text, ts timestamptz, value double precision,
    revision integer, published_at timestamptz, received_at timestamptz, source text, instance_id integer, seq bigint,
    next_cursor text)
LANGUAGE sql STABLE SET search_path = $schema, pg_temp SET timezone = 'UTC' SET jit = off
AS $$ /* What became known since a cursor (empty: everything), each value once: kind is current, or revision for a value that another one has replaced or that came late, or deleted: retention deleted, or is about to delete, what has a ts before this one. Continue from next_cursor; without rows, from the same cursor. */
WITH since AS MATERIALIZED (
    SELECT COALESCE(NULLIF($1, ''), '{}')::json AS cursor
), seen AS MATERIALIZED (
    SELECT p.key AS spool_id, p.value::bigint AS position
    FROM since CROSS JOIN LATERAL json_each_text(COALESCE(since.cursor -> 'positions', '{}')) p
), behind AS MATERIALIZED (
    SELECT i.instance_id, COALESCE(s.position, 0) AS after, i.position
    FROM instances i LEFT JOIN seen s ON s.spool_id = i.spool_id
    WHERE i.position > COALESCE(s.position, 0)
), noted AS MATERIALIZED (
    SELECT s.*, b.from_ts, b.to_ts, b.series_ranges,
        CASE WHEN b.from_ts IS NOT NULL OR b.new_rows + b.revised_rows = 0
            THEN b.last_seq - GREATEST(b.first_seq, s.after + 1) + 1 ELSE 0 END AS known_entries
    FROM behind s CROSS JOIN LATERAL (
        SELECT * FROM batches b
        WHERE b.instance_id = s.instance_id AND b.first_seq <= s.position AND b.last_seq > s.after
            AND b.first_seq >= COALESCE((
                SELECT MAX(f.first_seq) FROM batches f
                WHERE f.instance_id = s.instance_id AND f.first_seq <= s.after + 1), 0)) b
), spans AS MATERIALIZED (
    SELECT s.*, s.position - s.after = COALESCE((
        SELECT SUM(n.known_entries) FROM noted n WHERE n.instance_id = s.instance_id), 0) AS is_known
    FROM behind s
), marked AS (
    SELECT n.instance_id, n.from_ts, n.to_ts, CASE WHEN n.from_ts <= interval '1 hour' + MAX(n.to_ts) OVER (
        PARTITION BY n.instance_id ORDER BY n.from_ts, n.to_ts ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        THEN 0 ELSE 1 END AS begins
    FROM noted n WHERE n.from_ts IS NOT NULL AND n.series_ranges IS NULL
), numbered AS (
    SELECT m.*, SUM(m.begins) OVER (PARTITION BY m.instance_id ORDER BY m.from_ts, m.to_ts) AS number FROM marked m
), ranges AS (
    SELECT n.instance_id, MIN(n.from_ts) AS from_ts, MAX(n.to_ts) AS to_ts FROM numbered n
    GROUP BY n.instance_id, n.number
), targets AS MATERIALIZED (
    SELECT r.instance_id, s.series_id, r.from_ts, r.to_ts FROM ranges r CROSS JOIN series s
    UNION
    SELECT n.instance_id, (w.value ->> 0)::integer, (w.value ->> 1)::timestamptz, (w.value ->> 2)::timestamptz
    FROM noted n CROSS JOIN LATERAL json_array_elements(n.series_ranges::json) w WHERE n.series_ranges IS NOT NULL
), found AS (
    SELECT 'current' AS kind, m.* FROM targets t JOIN spans s ON s.instance_id = t.instance_id AND s.is_known
    CROSS JOIN LATERAL (
        SELECT * FROM samples m
        WHERE m.series_id = t.series_id AND m.ts BETWEEN t.from_ts AND t.to_ts
            AND m.instance_id = s.instance_id AND m.seq > s.after AND m.seq <= s.position OFFSET 0) m
    UNION
    SELECT 'revision', m.* FROM targets t JOIN spans s ON s.instance_id = t.instance_id AND s.is_known
    CROSS JOIN LATERAL (
        SELECT * FROM sample_revisions m
        WHERE m.series_id = t.series_id AND m.ts BETWEEN t.from_ts AND t.to_ts
            AND m.instance_id = s.instance_id AND m.seq > s.after AND m.seq <= s.position OFFSET 0) m
), read_all AS (
    SELECT 'current' AS kind, m.* FROM samples m JOIN spans s ON s.instance_id = m.instance_id
    WHERE NOT s.is_known AND m.seq > s.after AND m.seq <= s.position AND EXISTS (SELECT 1 FROM spans WHERE NOT is_known)
    UNION ALL
    SELECT 'revision', m.* FROM sample_revisions m JOIN spans s ON s.instance_id = m.instance_id
    WHERE NOT s.is_known AND m.seq > s.after AND m.seq <= s.position AND EXISTS (SELECT 1 FROM spans WHERE NOT is_known)
), deleted AS MATERIALIZED (
    SELECT MAX(d.before) AS before FROM deletions d
), ahead AS MATERIALIZED (
    SELECT json_build_object(
        'positions', (SELECT json_object_agg(p.spool_id, p.position) FROM (
            SELECT spool_id, MAX(position) AS position FROM (
                SELECT i.spool_id, i.position FROM instances i UNION ALL SELECT s.spool_id, s.position FROM seen s) a
            GROUP BY spool_id) p),
        'deleted', GREATEST(to_char(d.before, 'YYYY-MM-DD HH24:MI:SS'), since.cursor ->> 'deleted'))::text AS next_cursor
    FROM deleted d CROSS JOIN since
)
SELECT m.kind, n.feed, n.metric, n.ticker, n.user_id, m.ts, m.value, m.revision, m.published_at, m.received_at,
    CASE m.source WHEN 1 THEN 'stream' WHEN 2 THEN 'snapshot' ELSE 'backfill' END, m.instance_id, m.seq, a.next_cursor
FROM (SELECT * FROM found UNION ALL SELECT * FROM read_all) m JOIN series n ON n.series_id = m.series_id CROSS JOIN ahead a
UNION ALL
SELECT 'deleted', '', '', '', '', d.before, NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.next_cursor
FROM deleted d CROSS JOIN since CROSS JOIN ahead a
WHERE d.before IS NOT NULL AND to_char(d.before, 'YYYY-MM-DD HH24:MI:SS') > COALESCE(since.cursor ->> 'deleted', '') $$;
