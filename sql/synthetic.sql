-- One statement for each table, to fill the benchmark's copy of a database. Run by name.
-- To existing data: nothing. Each adds rows; for an existing key it fails (UNIQUE).

-- name: sessions
-- Add a session.
INSERT INTO sessions
    (id, app_name, user_id, project_id, status, events, state, created_at, last_update_time, terminated_at, archived_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: memory_entries
-- Add one version of a memory.
INSERT INTO memory_entries
    (namespace, key, value, memory_type, version, is_deleted, created_by, updated_by, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: document_index
-- Add a document.
INSERT INTO document_index
    (file_path, title, document_type, content_hash, chunk_count, embedding_model, last_synced_at, sync_status, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: tasks
-- Add a task.
INSERT INTO tasks
    (id, prompt, agent_type, priority, status, submitted_at, last_updated_at, parent_task_id, session_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: agents
-- Add an agent.
INSERT INTO agents (id, name, specialization, task_id, state, model, spawned_at, session_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: state
-- Add a value of a task's state.
INSERT INTO state (task_id, key, value) VALUES (?, ?, ?);

-- name: audit
-- Add an audit row, and look up the memory entry that it refers to.
INSERT INTO audit
    (timestamp, agent_id, task_id, action_type, memory_operation_type, memory_namespace, memory_entry_id)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT id FROM memory_entries WHERE namespace = ?6 AND key = ?7 AND version = 1));

-- name: metrics
-- Add a measurement.
INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES (?, ?, ?);

-- name: checkpoints
-- Add a checkpoint.
INSERT INTO checkpoints (task_id, iteration, state, session_id) VALUES (?, ?, ?, ?);
