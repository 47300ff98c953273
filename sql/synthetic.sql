-- One statement for each table, to fill the benchmark's copy of a database. Run by name.
-- To existing data: nothing. Each statement adds a row, or fails (UNIQUE) if its key exists.

-- name: sessions
-- Add a session.
INSERT INTO sessions
    (id, app_name, user_id, project_id, status, events, state, created_at, last_update_time, terminated_at, archived_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: memory_entries
-- Add one version of a memory.
INSERT INTO memory_entries
    (namespace, key, memory_type, is_deleted, version, value, created_by, updated_by, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
