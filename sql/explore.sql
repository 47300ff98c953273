-- What explore shows of a database. Run by name, all in one snapshot.
-- To existing data: nothing; each statement only reads.
--
-- `:limit` bounds every listing. A text longer than `:largest` bytes is cut to 1,000 characters, or omitted.

-- name: sessions
-- The sessions last used, with their sizes and the number of tasks, agents and checkpoints that refer to each.
SELECT
    s.id, s.app_name, s.user_id, s.project_id, s.status,
    CASE WHEN json_valid(s.events) THEN json_array_length(s.events) END AS events,
    length(CAST(s.events AS BLOB)) + length(CAST(s.state AS BLOB)) + length(CAST(s.metadata AS BLOB)) AS bytes,
    (SELECT count(*) FROM tasks WHERE session_id = s.id) AS tasks,
    (SELECT count(*) FROM agents WHERE session_id = s.id) AS agents,
    (SELECT count(*) FROM checkpoints WHERE session_id = s.id) AS checkpoints,
    s.created_at, s.last_update_time, s.terminated_at, s.archived_at
FROM sessions AS s
-- Reading sizes is slow, so only those of the sessions shown are read.
WHERE s.rowid IN (SELECT rowid FROM sessions ORDER BY last_update_time DESC LIMIT :limit)
ORDER BY s.last_update_time DESC;

-- name: session_content
-- The state and the events of one session, unless they are larger than the store would write.
SELECT
    CASE WHEN length(CAST(state AS BLOB)) <= :largest THEN state END AS state,
    CASE WHEN length(CAST(events AS BLOB)) <= :largest THEN events END AS events
FROM sessions
WHERE id = :session;

-- name: namespaces
-- Each namespace under a prefix, most versions first: the numbers of its current memories and of all, superseded and
-- deleted versions, the bytes of all values, and the last update.
SELECT
    namespace, sum(live > 0) AS memories, sum(versions) AS versions, sum(live - (live > 0)) AS superseded,
    sum(versions - live) AS deleted, sum(bytes) AS bytes, max(newest) AS newest
FROM (
    SELECT
        namespace, count(*) AS versions, sum(is_deleted = 0) AS live, sum(length(CAST(value AS BLOB))) AS bytes,
        max(updated_at) AS newest
    FROM memory_entries
    WHERE namespace >= :prefix AND namespace < :prefix_end
    GROUP BY namespace, key
)
GROUP BY namespace
ORDER BY sum(versions) DESC, namespace;

-- name: current_memories
-- The most recently updated current memories under a prefix.
SELECT
    m.namespace, m.key, m.version, m.memory_type,
    CASE WHEN length(CAST(m.value AS BLOB)) <= :largest THEN m.value ELSE substr(m.value, 1, 1000) END AS value,
    length(CAST(m.value AS BLOB)) AS bytes, m.created_by, m.updated_by, m.created_at, m.updated_at
FROM memory_entries AS m
WHERE m.id IN (
    SELECT live.id
    -- LIMIT -1 makes SQLite sort first, then look for newer versions only until :limit memories are found.
    FROM (
        SELECT id FROM memory_entries
        WHERE namespace >= :prefix AND namespace < :prefix_end AND is_deleted = 0
        ORDER BY updated_at DESC
        LIMIT -1
    ) AS newest
    CROSS JOIN memory_entries AS live ON live.id = newest.id
    WHERE NOT EXISTS (
        SELECT 1 FROM memory_entries AS newer
        WHERE newer.namespace = live.namespace AND newer.key = live.key
            AND newer.is_deleted = 0 AND newer.version > live.version
    )
    LIMIT :limit
)
ORDER BY m.updated_at DESC, m.id DESC;

-- name: most_versions
-- The memory with the most versions under a prefix (and with a key, if one is given); the first by name among equals.
SELECT namespace, key, count(*) AS versions
FROM memory_entries
WHERE namespace >= :prefix AND namespace < :prefix_end AND (:key IS NULL OR key = :key)
GROUP BY namespace, key
ORDER BY versions DESC, namespace, key
LIMIT 1;

-- name: memory_versions
-- The versions of one memory, the newest first.
SELECT
    version, is_deleted, memory_type,
    CASE WHEN length(CAST(value AS BLOB)) <= :largest THEN value ELSE substr(value, 1, 1000) END AS value,
    length(CAST(value AS BLOB)) AS bytes,
    CASE WHEN length(CAST(metadata AS BLOB)) <= :largest THEN metadata ELSE substr(metadata, 1, 1000) END AS metadata,
    created_by, updated_by, created_at, updated_at, id
FROM memory_entries
WHERE namespace = :namespace AND key = :key
ORDER BY version DESC
LIMIT :limit;

-- name: audit
-- The audit trail, newest first; with a prefix, only that of the namespaces under it.
SELECT
    timestamp, action_type, memory_operation_type, memory_namespace, memory_entry_id, agent_id, task_id, result,
    CASE WHEN length(CAST(action_data AS BLOB)) <= :largest THEN action_data ELSE substr(action_data, 1, 1000) END
        AS action_data,
    id
FROM audit
WHERE :prefix = '' OR (memory_namespace >= :prefix AND memory_namespace < :prefix_end)
ORDER BY timestamp DESC
LIMIT :limit;

-- name: count_audit
-- The number of rows that `audit` would return without a limit.
SELECT count(*) FROM audit WHERE :prefix = '' OR (memory_namespace >= :prefix AND memory_namespace < :prefix_end);

-- name: days
-- The table and the day of creation of each row; counting rows here would make SQLite sort. A later version of a memory
-- has the day of its update or, once deleted, of its deletion, because no other time is stored.
SELECT 'sessions' AS "table", substr(created_at, 1, 10) AS day FROM sessions
UNION ALL
SELECT 'memory_entries', substr(CASE WHEN version = 1 THEN created_at ELSE updated_at END, 1, 10) FROM memory_entries
UNION ALL SELECT 'document_index', substr(created_at, 1, 10) FROM document_index
UNION ALL SELECT 'tasks', substr(submitted_at, 1, 10) FROM tasks
UNION ALL SELECT 'agents', substr(spawned_at, 1, 10) FROM agents
UNION ALL SELECT 'state', substr(created_at, 1, 10) FROM state
UNION ALL SELECT 'audit', substr(timestamp, 1, 10) FROM audit
UNION ALL SELECT 'metrics', substr(timestamp, 1, 10) FROM metrics
UNION ALL SELECT 'checkpoints', substr(created_at, 1, 10) FROM checkpoints;
