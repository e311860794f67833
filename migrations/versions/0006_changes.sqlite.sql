CREATE VIEW change_cursor AS /* One row, or none while nothing was written: the cursor of now, from which ingestor.changes continues. */
SELECT json_object(
    'positions', (SELECT json_group_object(spool_id, position) FROM instances),
    'deleted', (SELECT MAX(before) FROM deletions)) AS cursor
WHERE EXISTS (SELECT 1 FROM instances);
