-- Each change here belongs into 0003_payloads.sqlite.sql too.

-- An element of `frames`: [text, µs after received_at, seqs left out before it, row_count, published: µs after
-- received_at], with those at the end left out that are 0, 0, 1 and null. If there is a `body`, each text is a part of it:
-- [what stands before it, from which character on, how many characters, what stands after it].
-- OFFSET 0 opens a block once, and not for each of its texts. As bytes, because for text PostgreSQL would count
-- characters from the start; this `body` is ASCII.
-- `pieces` is a list of texts that are often in it. There the control characters 1 to 6, which JSON never has as they are,
-- stand for them.
CREATE OR REPLACE VIEW payloads AS /* Each frame as the provider sent it, for as long as retention.payloads says. The texts of one origin and batch are stored together: a condition on first_seq and last_seq, the ends of such a block, spares opening all others. */
SELECT instance_id, first_seq AS seq, connection_id, source, event, path, params, received_at, published_at, row_count,
    body, first_seq, last_seq
FROM payload_blocks WHERE frames IS NULL
UNION ALL
SELECT b.instance_id, b.first_seq + f.n - 1 + COALESCE((f.frame ->> 2)::bigint, 0), b.connection_id, b.source, b.event,
    b.path, b.params, b.received_at + COALESCE((f.frame ->> 1)::bigint, 0) * interval '1 microsecond',
    b.received_at + (f.frame ->> 4)::bigint * interval '1 microsecond', COALESCE((f.frame ->> 3)::integer, 1),
    CASE WHEN b.body = '' THEN f.frame ->> 0 ELSE (f.frame #>> '{0,0}')
        || convert_from(substr(o.body, (f.frame #>> '{0,1}')::integer + 1, (f.frame #>> '{0,2}')::integer), 'UTF8')
        || (f.frame #>> '{0,3}') END, b.first_seq, b.last_seq
FROM payload_blocks b CROSS JOIN LATERAL (
        SELECT convert_to(b.body, 'UTF8') AS body, CASE WHEN b.pieces IS NULL THEN b.frames ELSE
            replace(replace(replace(replace(replace(replace(b.frames
            , chr(1), COALESCE(b.pieces::json ->> 0, '')), chr(2), COALESCE(b.pieces::json ->> 1, ''))
            , chr(3), COALESCE(b.pieces::json ->> 2, '')), chr(4), COALESCE(b.pieces::json ->> 3, ''))
            , chr(5), COALESCE(b.pieces::json ->> 4, '')), chr(6), COALESCE(b.pieces::json ->> 5, '')) END AS frames
        OFFSET 0) o CROSS JOIN LATERAL json_array_elements(o.frames::json) WITH ORDINALITY AS f (frame, n)
WHERE b.frames IS NOT NULL;
