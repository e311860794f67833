-- Each change here belongs into 0003_payloads.postgresql.sql too.

-- An element of `frames`: [text, µs after received_at, seqs left out before it, row_count, published: µs after
-- received_at], with those at the end left out that are 0, 0, 1 and null. If there is a `body`, each text is a part of it:
-- [what stands before it, from which character on, how many characters, what stands after it]. As bytes, because for text
-- SQLite would count characters from the start; this `body` is ASCII.
-- `pieces` is a list of texts that are often in it. There the control characters 1 to 6, which JSON never has as they are,
-- stand for them.
DROP VIEW IF EXISTS payloads;
CREATE VIEW payloads AS /* Each frame as the provider sent it, for as long as retention.payloads says. The texts of one origin and batch are stored together: a condition on first_seq and last_seq, the ends of such a block, spares opening all others. */
SELECT instance_id, first_seq AS seq, connection_id, source, event, path, params, received_at, published_at, row_count,
    body, first_seq, last_seq
FROM payload_blocks WHERE frames IS NULL
UNION ALL
SELECT instance_id, seq, connection_id, source, event, path, params,
    datetime((received_us - (received_us % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
        || rtrim(printf('.%06d', (received_us % 1000000 + 1000000) % 1000000), '.0'),
    datetime((published_us - (published_us % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
        || rtrim(printf('.%06d', (published_us % 1000000 + 1000000) % 1000000), '.0'),
    row_count, body, first_seq, last_seq
FROM (
    SELECT instance_id, first_seq + n + COALESCE(json_extract(frame, '$[2]'), 0) AS seq, connection_id, source, event,
        path, params, base_us + COALESCE(json_extract(frame, '$[1]'), 0) AS received_us,
        base_us + json_extract(frame, '$[4]') AS published_us, COALESCE(json_extract(frame, '$[3]'), 1) AS row_count,
        CASE WHEN block_body = '' THEN json_extract(frame, '$[0]') ELSE json_extract(frame, '$[0][0]')
            || CAST(substr(CAST(block_body AS BLOB), json_extract(frame, '$[0][1]') + 1, json_extract(frame, '$[0][2]')) AS TEXT)
            || json_extract(frame, '$[0][3]') END AS body, first_seq, last_seq
    FROM (
        SELECT b.instance_id, b.first_seq, b.last_seq, b.connection_id, b.source, b.event, b.path, b.params,
            strftime('%s', substr(b.received_at, 1, 19)) * 1000000
                + CAST(substr(substr(b.received_at, 21) || '000000', 1, 6) AS INTEGER) AS base_us,
            b.body AS block_body, f.key AS n, f.value AS frame
        FROM payload_blocks b CROSS JOIN json_each(CASE WHEN b.pieces IS NULL THEN b.frames ELSE
            replace(replace(replace(replace(replace(replace(b.frames
            , char(1), COALESCE(json_extract(b.pieces, '$[0]'), '')), char(2), COALESCE(json_extract(b.pieces, '$[1]'), ''))
            , char(3), COALESCE(json_extract(b.pieces, '$[2]'), '')), char(4), COALESCE(json_extract(b.pieces, '$[3]'), ''))
            , char(5), COALESCE(json_extract(b.pieces, '$[4]'), '')), char(6), COALESCE(json_extract(b.pieces, '$[5]'), '')) END) f
        WHERE b.frames IS NOT NULL
    )
);
