-- What monitor asks of a database, and what it writes of it into the table metrics when it is asked to.
-- To existing data: each SELECT only reads; the INSERT adds a row, the DELETE removes old rows of one metric.

-- name: growth
-- How many rows each table has, and how many of them came since a moment.
SELECT 'sessions' AS "table", count(*) AS rows, count(CASE WHEN created_at >= :since THEN 1 END) AS recent FROM sessions
UNION ALL SELECT 'memory_entries', count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM memory_entries
UNION ALL SELECT 'document_index', count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM document_index
UNION ALL SELECT 'tasks', count(*), count(CASE WHEN submitted_at >= :since THEN 1 END) FROM tasks
UNION ALL SELECT 'agents', count(*), count(CASE WHEN spawned_at >= :since THEN 1 END) FROM agents
UNION ALL SELECT 'state', count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM state
UNION ALL SELECT 'audit', count(*), count(CASE WHEN timestamp >= :since THEN 1 END) FROM audit
UNION ALL SELECT 'metrics', count(*), count(CASE WHEN timestamp >= :since THEN 1 END) FROM metrics
UNION ALL SELECT 'checkpoints', count(*), count(CASE WHEN created_at >= :since THEN 1 END) FROM checkpoints;

-- name: namespaces
-- The largest namespaces with their rows; all others together under a name that no namespace can have.
WITH counted AS (
    SELECT namespace, count(*) AS rows FROM memory_entries GROUP BY namespace
),
largest AS (
    SELECT namespace, rows FROM counted ORDER BY rows DESC, namespace LIMIT :limit
)
SELECT namespace, rows FROM largest
UNION ALL
SELECT 'others', sum(rows) FROM counted
WHERE namespace NOT IN (SELECT namespace FROM largest) HAVING sum(rows) > 0;

-- name: recent_namespaces
-- How many rows each namespace has got since a moment.
SELECT namespace, count(*) AS recent FROM memory_entries WHERE created_at >= :since GROUP BY namespace;

-- name: memory_versions
-- How many versions of memories there are, how many are deleted, and how many memories are live.
SELECT
    (SELECT count(*) FROM memory_entries) AS versions,
    (SELECT count(*) FROM memory_entries WHERE is_deleted = 1) AS deleted,
    (
        SELECT count(*)
        FROM (SELECT 1 FROM memory_entries WHERE is_deleted = 0 GROUP BY namespace, key)
    ) AS current;

-- name: some_sessions
-- The ids of sessions drawn at random, at most as many as were drawn.
WITH RECURSIVE drawn (n, id) AS (
    SELECT 1, abs(random() % (SELECT max(rowid) FROM sessions)) + 1
    UNION ALL
    SELECT n + 1, abs(random() % (SELECT max(rowid) FROM sessions)) + 1 FROM drawn WHERE n < :draws
)
SELECT sessions.id AS session_id FROM (SELECT DISTINCT id FROM drawn) AS drawn CROSS JOIN sessions
WHERE sessions.rowid = drawn.id;

-- name: some_memories
-- The names of live memories drawn at random, at most as many as were drawn.
WITH RECURSIVE drawn (n, id) AS (
    SELECT 1, abs(random() % (SELECT max(id) FROM memory_entries)) + 1
    UNION ALL
    SELECT n + 1, abs(random() % (SELECT max(id) FROM memory_entries)) + 1 FROM drawn WHERE n < :draws
)
SELECT DISTINCT namespace, key FROM (SELECT DISTINCT id FROM drawn) AS drawn CROSS JOIN memory_entries
WHERE memory_entries.id = drawn.id AND is_deleted = 0;

-- name: insert_metric
-- Write one measurement.
INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (:timestamp, :name, :value, :labels);

-- name: delete_metrics
-- Remove the measurements of one metric from before a moment.
DELETE FROM metrics WHERE metric_name = :name AND timestamp < :before;

-- name: metrics_since
-- The measurements of one metric since a moment, oldest first.
SELECT timestamp, metric_value, labels FROM metrics WHERE metric_name = :name AND timestamp >= :since ORDER BY timestamp;
