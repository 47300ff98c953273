-- The statements that an application runs on the store, by name: the methods of db.sessions and db.memory, and db.run,
-- run them; explain.ipynb reads their plans, benchmark.ipynb times them. Never run this as a script.
-- To existing data: each statement changes what its sentence says, all of it or nothing.
--
-- Above each query stand its unique name, one sentence, the index that its plan must use (no such line: a rowid lookup
-- or a plain INSERT), and an example of its parameters as JSON; `scan:` or `sort:` says why its plan may scan or sort.
-- `SELECT *` is safe here: the schema of an opened database is that of the DDL files, column by column.

-- sessions

-- name: get_session
-- The session of this id.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1"}
SELECT * FROM sessions WHERE id = :session_id;

-- name: insert_session
-- Create a session; returns no row if the id is taken.
-- parameters: {"session_id": "sess_1", "app_name": "app", "user_id": "alice", "project_id": null, "state": "{}"}
INSERT INTO sessions (id, app_name, user_id, project_id, state)
VALUES (:session_id, :app_name, :user_id, :project_id, :state)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: append_event
-- Append an event; returns no row if the session does not exist, or its events would exceed max_bytes.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1", "event": "{\"type\":\"message\"}", "max_bytes": 16777216}
UPDATE sessions
SET events = json_insert(events, '$[#]', json(:event)),
    last_update_time = strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE id = :session_id
    AND length(CAST(events AS BLOB)) + length(CAST(:event AS BLOB)) < :max_bytes
RETURNING id;

-- name: append_event_with_delta
-- Append an event and replace the delta's keys in the state; returns no row if append_event or set_state returns none.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1", "event": "{\"type\":\"message\"}", "delta": "{\"step\":2}", "cleared": "{\"step\":null}", "max_bytes": 16777216}
UPDATE sessions
SET events = json_insert(events, '$[#]', json(:event)),
    -- json_patch would merge objects and drop nulls, so it only removes the delta's keys: cleared sets each to null, in
    -- both spellings, é and \u00e9, because SQLite 3.40 compares keys as they are written. The delta is never empty;
    -- it is then appended as text, so that no digit of a number changes.
    state = coalesce(
        substr(nullif(json_patch(state, :cleared), '{}'), 1, length(json_patch(state, :cleared)) - 1)
            || ',' || substr(:delta, 2),
        :delta
    ),
    last_update_time = strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE id = :session_id
    AND length(CAST(events AS BLOB)) + length(CAST(:event AS BLOB)) < :max_bytes
    AND length(CAST(json_patch(state, :cleared) AS BLOB)) + length(CAST(:delta AS BLOB)) - 1 <= :max_bytes
RETURNING id;

-- name: set_state
-- Replace the delta's keys in the state; returns no row if the session does not exist or its state would exceed max_bytes.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1", "delta": "{\"step\":2}", "cleared": "{\"step\":null}", "max_bytes": 16777216}
UPDATE sessions
SET state = coalesce(  -- as in append_event_with_delta
        substr(nullif(json_patch(state, :cleared), '{}'), 1, length(json_patch(state, :cleared)) - 1)
            || ',' || substr(:delta, 2),
        :delta
    ),
    last_update_time = strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE id = :session_id
    AND length(CAST(json_patch(state, :cleared) AS BLOB)) + length(CAST(:delta AS BLOB)) - 1 <= :max_bytes
RETURNING id;

-- name: session_sizes
-- The number of events of a session, and the bytes of its events and of its state.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1"}
SELECT
    json_array_length(events) AS count,
    length(CAST(events AS BLOB)) AS events,
    length(CAST(state AS BLOB)) AS state
FROM sessions
WHERE id = :session_id;

-- name: trim_events
-- Delete a number of a session's oldest events; the text of the others does not change.
-- index: sqlite_autoindex_sessions_1
-- scan: json_each over the events of one row
-- parameters: {"session_id": "sess_1", "removed": 100}
UPDATE sessions
SET events = (
        -- json_group_array would write an object as a string, and true as 1.
        SELECT '[' || ifnull(group_concat(
            CASE
                WHEN type IN ('object', 'array') THEN value
                WHEN type IN ('true', 'false', 'null') THEN type
                ELSE json_quote(value)
            END,
            ','
        ), '') || ']'
        FROM json_each(sessions.events)
        WHERE key >= :removed
    ),
    last_update_time = strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE id = :session_id
RETURNING id;

-- name: update_session_status
-- Set the status; the first termination and the first archiving also set their time.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1", "status": "terminated"}
UPDATE sessions
SET status = :status,
    last_update_time = strftime('%Y-%m-%d %H:%M:%f', 'now'),
    terminated_at = CASE
        WHEN :status = 'terminated' THEN coalesce(terminated_at, strftime('%Y-%m-%d %H:%M:%f', 'now'))
        ELSE terminated_at
    END,
    archived_at = CASE
        WHEN :status = 'archived' THEN coalesce(archived_at, strftime('%Y-%m-%d %H:%M:%f', 'now'))
        ELSE archived_at
    END
WHERE id = :session_id
RETURNING id;

-- name: delete_session
-- Delete a session; its tasks, agents and checkpoints stay, without their session_id.
-- index: sqlite_autoindex_sessions_1
-- parameters: {"session_id": "sess_1"}
DELETE FROM sessions WHERE id = :session_id;

-- name: list_sessions
-- The sessions created last.
-- scan: a listing without a filter, in rowid order from the newest, ended by LIMIT
-- parameters: {"limit": 50}
SELECT * FROM sessions ORDER BY rowid DESC LIMIT :limit;

-- name: list_sessions_by_status
-- The sessions of a status, last used first.
-- index: idx_sessions_status_updated
-- parameters: {"status": "active", "limit": 50}
SELECT * FROM sessions WHERE status = :status ORDER BY last_update_time DESC LIMIT :limit;

-- name: list_sessions_of_project
-- A project's sessions, newest first.
-- index: idx_sessions_project
-- parameters: {"project_id": "project_1", "limit": 50}
SELECT * FROM sessions WHERE project_id = :project_id ORDER BY created_at DESC LIMIT :limit;

-- name: list_sessions_of_project_with_status
-- A project's sessions of one status, newest first.
-- index: idx_sessions_project
-- parameters: {"project_id": "project_1", "status": "active", "limit": 50}
SELECT * FROM sessions
WHERE project_id = :project_id
    AND +status = :status  -- the + keeps the planner from the status index, where it would have to sort
ORDER BY created_at DESC
LIMIT :limit;

-- name: sessions_of_user
-- A user's sessions, newest first.
-- index: idx_sessions_user_created
-- parameters: {"user_id": "alice", "limit": 50}
SELECT * FROM sessions
WHERE user_id = :user_id || ''  -- hides the value: with STAT4, SQLite would use another index for some users and sort
ORDER BY created_at DESC
LIMIT :limit;

-- name: last_session_of_user_in_app
-- The session that a user last used in an app.
-- index: idx_sessions_app_user
-- parameters: {"app_name": "app", "user_id": "alice"}
SELECT * FROM sessions
WHERE app_name = :app_name AND user_id = :user_id
ORDER BY last_update_time DESC
LIMIT 1;

-- name: sessions_to_archive
-- The sessions terminated before a moment and not yet archived, oldest first.
-- index: idx_sessions_unarchived
-- parameters: {"before": "2026-01-01 00:00:00.000"}
SELECT * FROM sessions
WHERE status = 'terminated' AND archived_at IS NULL AND terminated_at < :before
ORDER BY terminated_at;

-- memory_entries

-- name: get_memory
-- The current version of a memory.
-- index: idx_memory_namespace_key_version
-- parameters: {"namespace": "user:alice:pref", "key": "theme"}
SELECT * FROM memory_entries
WHERE namespace = :namespace AND key = :key AND is_deleted = 0
ORDER BY version DESC
LIMIT 1;

-- name: get_memory_version
-- One version of a memory, even a superseded or deleted one.
-- index: sqlite_autoindex_memory_entries_1
-- parameters: {"namespace": "user:alice:pref", "key": "theme", "version": 1}
SELECT * FROM memory_entries WHERE namespace = :namespace AND key = :key AND version = :version;

-- name: memory_history
-- All versions of a memory, newest first, deleted ones too.
-- index: sqlite_autoindex_memory_entries_1
-- parameters: {"namespace": "user:alice:pref", "key": "theme"}
SELECT * FROM memory_entries WHERE namespace = :namespace AND key = :key ORDER BY version DESC;

-- name: memory_entry_by_id
-- The entry of this id.
-- parameters: {"id": 1}
SELECT * FROM memory_entries WHERE id = :id;

-- name: insert_memory
-- Create a memory, numbered after its deleted versions; returns no row if a live version exists.
-- index: idx_memory_namespace_key_version
-- parameters: {"namespace": "user:alice:pref", "key": "theme", "value": "{}", "memory_type": "semantic", "created_by": "session:abc", "metadata": "{}"}
INSERT INTO memory_entries (namespace, key, value, memory_type, version, metadata, created_by, updated_by)
SELECT
    :namespace, :key, :value, :memory_type,
    1 + coalesce((SELECT max(version) FROM memory_entries WHERE namespace = :namespace AND key = :key), 0),
    :metadata, :created_by, :created_by
WHERE NOT EXISTS (SELECT 1 FROM memory_entries WHERE namespace = :namespace AND key = :key AND is_deleted = 0)
RETURNING id, version;

-- name: insert_memory_version
-- Add the next version of a live memory, with its type, metadata and origin; returns no row if none is live.
-- index: idx_memory_namespace_key_version
-- parameters: {"namespace": "user:alice:pref", "key": "theme", "value": "{}", "updated_by": "session:abc"}
INSERT INTO memory_entries
    (namespace, key, value, memory_type, version, metadata, created_by, updated_by, created_at)
SELECT
    namespace, key, :value, memory_type,
    1 + (SELECT max(version) FROM memory_entries WHERE namespace = :namespace AND key = :key),
    metadata, created_by, :updated_by, created_at
FROM memory_entries
WHERE namespace = :namespace AND key = :key AND is_deleted = 0
ORDER BY version DESC
LIMIT 1
RETURNING id, version;

-- name: soft_delete_memory
-- Mark every live version of a memory as deleted.
-- index: idx_memory_namespace_key_version
-- parameters: {"namespace": "user:alice:pref", "key": "theme"}
UPDATE memory_entries
SET is_deleted = 1, updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE namespace = :namespace AND key = :key AND is_deleted = 0
RETURNING id, version;

-- name: delete_memory_entry
-- Delete one version for good; audit rows that refer to it stay, without its id.
-- parameters: {"id": 1}
DELETE FROM memory_entries WHERE id = :id;

-- name: search_memories
-- The current memories of the namespaces under a prefix, which are all before prefix_end.
-- index: idx_memory_namespace_prefix
-- parameters: {"prefix": "user:alice:", "prefix_end": "user:alice;", "limit": 50}
SELECT * FROM memory_entries AS m
WHERE m.namespace >= :prefix AND m.namespace < :prefix_end AND m.is_deleted = 0
    AND NOT EXISTS (
        SELECT 1 FROM memory_entries AS newer
        WHERE newer.namespace = m.namespace AND newer.key = m.key
            AND newer.is_deleted = 0 AND newer.version > m.version
    )
ORDER BY m.namespace, m.updated_at DESC  -- ordering by updated_at alone would sort all rows
LIMIT :limit;

-- name: search_memories_of_type
-- The current memories of one type under a prefix.
-- index: idx_memory_namespace_prefix
-- parameters: {"prefix": "user:alice:", "prefix_end": "user:alice;", "memory_type": "semantic", "limit": 50}
SELECT * FROM memory_entries AS m
WHERE m.namespace >= :prefix AND m.namespace < :prefix_end AND m.is_deleted = 0
    AND +m.memory_type = :memory_type  -- the + keeps the planner in the range, away from idx_memory_type_updated
    AND NOT EXISTS (
        SELECT 1 FROM memory_entries AS newer
        WHERE newer.namespace = m.namespace AND newer.key = m.key
            AND newer.is_deleted = 0 AND newer.version > m.version
    )
ORDER BY m.namespace, m.updated_at DESC
LIMIT :limit;

-- name: list_namespaces
-- The namespaces with a live memory: one search for each, however many memories it has.
-- index: idx_memory_namespace_prefix
-- parameters: {}
WITH RECURSIVE names (namespace) AS (
    -- Ordered by updated_at too, an order that only the index of live memories has: for min(namespace), SQLite 3.40
    -- would use another index and read deleted rows.
    SELECT (
        SELECT m.namespace FROM memory_entries AS m
        WHERE m.is_deleted = 0 AND m.namespace > ''
        ORDER BY m.namespace, m.updated_at DESC
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT m.namespace FROM memory_entries AS m
        WHERE m.is_deleted = 0 AND m.namespace > names.namespace
        ORDER BY m.namespace, m.updated_at DESC
        LIMIT 1
    )
    FROM names
    WHERE names.namespace IS NOT NULL
)
SELECT namespace FROM names WHERE namespace IS NOT NULL;

-- name: newest_memories_of_namespace
-- A namespace's current memories, last updated first.
-- index: idx_memory_namespace_prefix
-- parameters: {"namespace": "user:alice:pref", "limit": 50}
SELECT * FROM memory_entries AS m
WHERE m.namespace = :namespace AND m.is_deleted = 0
    AND NOT EXISTS (
        SELECT 1 FROM memory_entries AS newer
        WHERE newer.namespace = m.namespace AND newer.key = m.key
            AND newer.is_deleted = 0 AND newer.version > m.version
    )
ORDER BY m.updated_at DESC
LIMIT :limit;

-- name: newest_memories_of_type
-- The current memories of a type, last updated first.
-- index: idx_memory_type_updated
-- parameters: {"memory_type": "semantic", "limit": 50}
SELECT * FROM memory_entries AS m
WHERE m.memory_type = :memory_type AND m.is_deleted = 0
    AND NOT EXISTS (
        SELECT 1 FROM memory_entries AS newer
        WHERE newer.namespace = m.namespace AND newer.key = m.key
            AND newer.is_deleted = 0 AND newer.version > m.version
    )
ORDER BY m.updated_at DESC
LIMIT :limit;

-- name: expired_memories
-- The live episodic memories created before a moment, oldest first: those that expire_memories would mark.
-- index: idx_memory_episodic_ttl
-- parameters: {"before": "2026-01-01 00:00:00.000"}
SELECT * FROM memory_entries
WHERE memory_type = 'episodic' AND is_deleted = 0 AND created_at < :before
ORDER BY created_at;

-- name: expire_memories
-- Mark the live episodic memories created before a moment as deleted.
-- index: idx_memory_episodic_ttl
-- parameters: {"before": "2026-01-01 00:00:00.000"}
UPDATE memory_entries
SET is_deleted = 1, updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
WHERE memory_type = 'episodic' AND is_deleted = 0 AND created_at < :before
RETURNING id, namespace, key, version;

-- name: audit_expired_memories
-- Add an audit row for each memory that `expire_memories` will mark as deleted.
-- index: idx_memory_episodic_ttl
-- parameters: {"before": "2026-01-01 00:00:00.000"}
INSERT INTO audit (action_type, action_data, result, memory_operation_type, memory_namespace, memory_entry_id)
SELECT 'memory_delete', json_object('key', key, 'versions', json_array(version)), 'success', 'delete', namespace, id
FROM memory_entries
WHERE memory_type = 'episodic' AND is_deleted = 0 AND created_at < :before;

-- name: memories_created_by
-- The memory versions that a session or agent created, newest first.
-- index: idx_memory_created_by
-- parameters: {"created_by": "session:abc", "limit": 50}
SELECT * FROM memory_entries WHERE created_by = :created_by ORDER BY created_at DESC LIMIT :limit;

-- name: memories_updated_by
-- The versions that a session or agent wrote, newest first.
-- index: idx_memory_updated_by
-- parameters: {"updated_by": "session:abc", "limit": 50}
SELECT * FROM memory_entries WHERE updated_by = :updated_by ORDER BY updated_at DESC LIMIT :limit;

-- name: deleted_memories
-- The versions deleted before a moment, due for purging, oldest first.
-- index: idx_memory_deleted
-- parameters: {"before": "2026-01-01 00:00:00.000"}
SELECT * FROM memory_entries WHERE is_deleted = 1 AND updated_at < :before ORDER BY updated_at;

-- document_index

-- name: document_by_path
-- The document of this path.
-- index: sqlite_autoindex_document_index_1
-- parameters: {"file_path": "/docs/readme.md"}
SELECT * FROM document_index WHERE file_path = :file_path;

-- name: documents_of_type
-- The newest documents of a type.
-- index: idx_document_type_created
-- parameters: {"document_type": "markdown", "limit": 50}
SELECT * FROM document_index WHERE document_type = :document_type ORDER BY created_at DESC LIMIT :limit;

-- name: documents_to_sync
-- The documents of a sync status in order of arrival: the next to embed.
-- index: idx_document_sync_status
-- parameters: {"sync_status": "pending", "limit": 50}
SELECT * FROM document_index WHERE sync_status = :sync_status ORDER BY created_at LIMIT :limit;

-- name: documents_with_content
-- The documents with the same content.
-- index: idx_document_content_hash
-- parameters: {"content_hash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
SELECT * FROM document_index WHERE content_hash = :content_hash;

-- name: documents_embedded_by
-- The documents that a model embedded, oldest first.
-- index: idx_document_embedding_model
-- parameters: {"embedding_model": "model-1", "limit": 50}
SELECT * FROM document_index WHERE embedding_model = :embedding_model ORDER BY last_synced_at LIMIT :limit;

-- tasks

-- name: task_by_id
-- The task of this id.
-- index: sqlite_autoindex_tasks_1
-- parameters: {"task_id": "task_1"}
SELECT * FROM tasks WHERE id = :task_id;

-- name: next_tasks
-- The tasks of a status, the most urgent first, then the longest waiting.
-- index: idx_tasks_status_priority
-- parameters: {"status": "pending", "limit": 1}
SELECT * FROM tasks WHERE status = :status ORDER BY priority DESC, submitted_at LIMIT :limit;

-- name: next_tasks_of_agent_type
-- The tasks of an agent type and status, most urgent first, then longest waiting.
-- index: idx_tasks_agent_type
-- parameters: {"agent_type": "general", "status": "pending", "limit": 1}
SELECT * FROM tasks
WHERE agent_type = :agent_type AND status = :status
ORDER BY priority DESC, submitted_at
LIMIT :limit;

-- name: tasks_submitted_since
-- The tasks submitted since a moment, oldest first.
-- index: idx_tasks_submitted_at
-- parameters: {"since": "2026-01-01 00:00:00.000", "limit": 50}
SELECT * FROM tasks WHERE submitted_at >= :since ORDER BY submitted_at LIMIT :limit;

-- name: child_tasks
-- A task's children.
-- index: idx_tasks_parent
-- parameters: {"task_id": "task_1"}
SELECT * FROM tasks WHERE parent_task_id = :task_id;

-- name: silent_tasks
-- The running tasks without an update since a moment, the longest silent first.
-- index: idx_tasks_running_timeout
-- parameters: {"before": "2026-01-01 00:00:00.000", "limit": 50}
SELECT * FROM tasks
WHERE status = 'running' AND last_updated_at < :before
ORDER BY last_updated_at
LIMIT :limit;

-- name: tasks_of_session
-- A session's tasks, newest first.
-- index: idx_tasks_session
-- parameters: {"session_id": "sess_1", "limit": 50}
SELECT * FROM tasks WHERE session_id = :session_id ORDER BY submitted_at DESC LIMIT :limit;

-- name: delete_task
-- Delete a task; refused while it has children, agents, state or checkpoints.
-- index: sqlite_autoindex_tasks_1
-- parameters: {"task_id": "task_1"}
DELETE FROM tasks WHERE id = :task_id;

-- agents

-- name: agent_by_id
-- The agent of this id.
-- index: sqlite_autoindex_agents_1
-- parameters: {"agent_id": "agent_1"}
SELECT * FROM agents WHERE id = :agent_id;

-- name: agents_of_task
-- A task's agents, newest first.
-- index: idx_agents_task
-- parameters: {"task_id": "task_1", "limit": 50}
SELECT * FROM agents WHERE task_id = :task_id ORDER BY spawned_at DESC LIMIT :limit;

-- name: agents_in_state
-- The agents in a state, newest first.
-- index: idx_agents_state
-- parameters: {"state": "working", "limit": 50}
SELECT * FROM agents WHERE state = :state ORDER BY spawned_at DESC LIMIT :limit;

-- name: agents_of_session
-- A session's agents, newest first.
-- index: idx_agents_session
-- parameters: {"session_id": "sess_1", "limit": 50}
SELECT * FROM agents WHERE session_id = :session_id ORDER BY spawned_at DESC LIMIT :limit;

-- name: delete_agent
-- Delete an agent; refused while the audit trail refers to it.
-- index: sqlite_autoindex_agents_1
-- parameters: {"agent_id": "agent_1"}
DELETE FROM agents WHERE id = :agent_id;

-- state, checkpoints

-- name: state_of_task
-- One value of a task's state.
-- index: sqlite_autoindex_state_1
-- parameters: {"task_id": "task_1", "key": "progress"}
SELECT * FROM state WHERE task_id = :task_id AND key = :key;

-- name: checkpoints_of_task
-- A task's checkpoints, the last first.
-- index: sqlite_autoindex_checkpoints_1
-- parameters: {"task_id": "task_1", "limit": 50}
SELECT * FROM checkpoints WHERE task_id = :task_id ORDER BY iteration DESC LIMIT :limit;

-- name: checkpoints_of_session
-- A session's checkpoints.
-- index: idx_checkpoints_session
-- parameters: {"session_id": "sess_1", "limit": 50}
SELECT * FROM checkpoints WHERE session_id = :session_id LIMIT :limit;

-- audit

-- name: insert_audit
-- Add an audit row.
-- parameters: {"agent_id": null, "task_id": "task_1", "action_type": "memory_create", "action_data": null, "result": null, "memory_operation_type": "create", "memory_namespace": "user:alice:pref", "memory_entry_id": 1}
INSERT INTO audit
    (agent_id, task_id, action_type, action_data, result, memory_operation_type, memory_namespace, memory_entry_id)
VALUES (
    :agent_id, :task_id, :action_type, :action_data, :result,
    :memory_operation_type, :memory_namespace, :memory_entry_id
);

-- name: audit_timeline
-- The trail before a moment, newest first: the next page continues from the last row's timestamp.
-- index: idx_audit_timestamp
-- parameters: {"before": "2026-01-01 00:00:00.000", "limit": 50}
SELECT * FROM audit WHERE timestamp < :before ORDER BY timestamp DESC LIMIT :limit;

-- name: audit_of_task
-- A task's trail, newest first.
-- index: idx_audit_task
-- parameters: {"task_id": "task_1", "limit": 50}
SELECT * FROM audit WHERE task_id = :task_id ORDER BY timestamp DESC LIMIT :limit;

-- name: audit_of_agent
-- An agent's trail, newest first.
-- index: idx_audit_agent
-- parameters: {"agent_id": "agent_1", "limit": 50}
SELECT * FROM audit WHERE agent_id = :agent_id ORDER BY timestamp DESC LIMIT :limit;

-- name: audit_of_memory_operation
-- The memory operations of a kind, newest first.
-- index: idx_audit_memory_operations
-- parameters: {"memory_operation_type": "delete", "limit": 50}
SELECT * FROM audit WHERE memory_operation_type = :memory_operation_type ORDER BY timestamp DESC LIMIT :limit;

-- name: audit_of_namespace
-- What happened in a namespace, newest first.
-- index: idx_audit_memory_namespace
-- parameters: {"memory_namespace": "user:alice:pref", "limit": 50}
SELECT * FROM audit WHERE memory_namespace = :memory_namespace ORDER BY timestamp DESC LIMIT :limit;

-- name: audit_of_memory_entry
-- What happened to a memory entry, newest first.
-- index: idx_audit_memory_entry
-- parameters: {"memory_entry_id": 1, "limit": 50}
SELECT * FROM audit WHERE memory_entry_id = :memory_entry_id ORDER BY timestamp DESC LIMIT :limit;

-- metrics

-- name: metric_history
-- A metric's values since a moment, newest first.
-- index: idx_metrics_name_timestamp
-- parameters: {"metric_name": "tokens", "since": "2026-01-01 00:00:00.000", "limit": 50}
SELECT * FROM metrics
WHERE metric_name = :metric_name AND timestamp >= :since
ORDER BY timestamp DESC
LIMIT :limit;
