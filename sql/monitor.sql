-- What monitor reads from a database, and what it writes into the table metrics if `record` is set.
-- To existing data: each SELECT only reads; the INSERT adds a row, the DELETE removes old rows of one metric.

-- name: last_ids
-- The highest rowid of each table.
SELECT 'sessions' AS "table", max(rowid) AS last_id FROM sessions
UNION ALL SELECT 'memory_entries', max(rowid) FROM memory_entries
UNION ALL SELECT 'document_index', max(rowid) FROM document_index
UNION ALL SELECT 'tasks', max(rowid) FROM tasks
UNION ALL SELECT 'agents', max(rowid) FROM agents
UNION ALL SELECT 'state', max(rowid) FROM state
UNION ALL SELECT 'audit', max(rowid) FROM audit
UNION ALL SELECT 'metrics', max(rowid) FROM metrics
UNION ALL SELECT 'checkpoints', max(rowid) FROM checkpoints;

-- name: growth
-- The number of rows of one table, and of those added since a moment: from an index, except for state and checkpoints.
SELECT count(*) AS rows, count(CASE WHEN created_at >= :since THEN 1 END) AS recent FROM sessions
    WHERE :table = 'sessions'
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM memory_entries
    WHERE :table = 'memory_entries'
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM document_index
    WHERE :table = 'document_index'
UNION ALL SELECT count(*), count(CASE WHEN submitted_at >= :since THEN 1 END) FROM tasks
    WHERE :table = 'tasks'
UNION ALL SELECT count(*), count(CASE WHEN spawned_at >= :since THEN 1 END) FROM agents
    WHERE :table = 'agents'
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM state
    WHERE :table = 'state'
UNION ALL SELECT count(*), count(CASE WHEN timestamp >= :since THEN 1 END) FROM audit
    WHERE :table = 'audit'
UNION ALL SELECT count(*), count(CASE WHEN timestamp >= :since THEN 1 END) FROM metrics
    WHERE :table = 'metrics'
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM checkpoints
    WHERE :table = 'checkpoints';

-- name: growth_of_some
-- The same for the rows whose rowids are in a JSON array.
SELECT count(*) AS rows, count(CASE WHEN created_at >= :since THEN 1 END) AS recent FROM sessions
    WHERE :table = 'sessions' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM memory_entries
    WHERE :table = 'memory_entries' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM document_index
    WHERE :table = 'document_index' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN submitted_at >= :since THEN 1 END) FROM tasks
    WHERE :table = 'tasks' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN spawned_at >= :since THEN 1 END) FROM agents
    WHERE :table = 'agents' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM state
    WHERE :table = 'state' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN timestamp >= :since THEN 1 END) FROM audit
    WHERE :table = 'audit' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN timestamp >= :since THEN 1 END) FROM metrics
    WHERE :table = 'metrics' AND rowid IN (SELECT value FROM json_each(:ids))
UNION ALL SELECT count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM checkpoints
    WHERE :table = 'checkpoints' AND rowid IN (SELECT value FROM json_each(:ids));

-- name: some_versions
-- The memory versions whose ids are in a JSON array, by namespace: all, deleted, superseded.
SELECT
    namespace, count(*) AS rows, sum(is_deleted) AS deleted,
    sum(is_deleted = 0 AND EXISTS (
        SELECT 1 FROM memory_entries AS newer
        WHERE newer.namespace = m.namespace AND newer.key = m.key
            AND newer.is_deleted = 0 AND newer.version > m.version
    )) AS superseded
FROM memory_entries AS m
WHERE id IN (SELECT value FROM json_each(:ids))
GROUP BY +namespace;  -- the + prevents the scan of a whole index

-- name: last_used_sessions
-- The most recently used sessions of a status.
SELECT rowid, id AS session_id FROM sessions WHERE status = :status ORDER BY last_update_time DESC LIMIT :limit;

-- name: last_begun_sessions
-- The sessions created last.
SELECT rowid, id AS session_id FROM sessions ORDER BY rowid DESC LIMIT :limit;

-- name: some_sessions
-- The sessions whose rowids are in a JSON array.
SELECT rowid, id AS session_id FROM sessions WHERE rowid IN (SELECT value FROM json_each(:ids));

-- name: some_memories
-- The live memories whose ids are in a JSON array.
SELECT id AS rowid, namespace, key FROM memory_entries
WHERE id IN (SELECT value FROM json_each(:ids)) AND is_deleted = 0;

-- name: insert_metric
-- Write one measurement.
INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (?, ?, ?, ?);

-- name: delete_metrics
-- Remove the measurements of one metric made before a moment.
DELETE FROM metrics WHERE metric_name = :name AND timestamp < :before;

-- name: recorded_moments
-- The times since a moment at which one metric was measured, newest first.
SELECT DISTINCT timestamp FROM metrics
WHERE metric_name = :name AND timestamp >= :since
ORDER BY timestamp DESC
LIMIT 100000;

-- name: metrics_at
-- The measurements of one metric at these moments, oldest first.
SELECT timestamp, metric_value, labels FROM metrics
WHERE metric_name = :name AND timestamp IN (SELECT value FROM json_each(:moments))
ORDER BY timestamp
LIMIT 100000;
