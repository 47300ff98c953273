-- The three memory tables: sessions, memory_entries, document_index.
-- To existing data: no change. If a table with one of these names exists, its CREATE TABLE fails.
--
-- Timestamps are UTC text `YYYY-MM-DD HH:MM:SS.mmm`: they sort as text and compare with datetime('now', …).
-- JSON is checked as text first, then by json_valid, then by json_type: a BLOB passes both functions, json_valid(NULL)
-- differs between versions of SQLite, and json_type raises an error for invalid JSON.

CREATE TABLE sessions (
    -- The conversations: for each, its events in order and its current state.
    id TEXT NOT NULL PRIMARY KEY,
    app_name TEXT NOT NULL,
    user_id TEXT NOT NULL,
    project_id TEXT,                           -- NULL: belongs to no project
    status TEXT NOT NULL DEFAULT 'created'
        CHECK (status IN ('created', 'active', 'paused', 'terminated', 'archived')),
    events TEXT NOT NULL DEFAULT '[]'          -- JSON array, oldest first
        CHECK (typeof(events) = 'text' AND json_valid(events) AND json_type(events) = 'array'),
    state TEXT NOT NULL DEFAULT '{}'           -- JSON object, the current values
        CHECK (typeof(state) = 'text' AND json_valid(state) AND json_type(state) = 'object'),
    metadata TEXT NOT NULL DEFAULT '{}'        -- JSON object
        CHECK (typeof(metadata) = 'text' AND json_valid(metadata) AND json_type(metadata) = 'object'),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    last_update_time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),  -- UTC
    terminated_at TEXT,                        -- UTC; NULL: never terminated
    archived_at TEXT                           -- UTC; NULL: not archived
);

CREATE TABLE memory_entries (
    -- The long-term memories. An update adds a row with the next version; a deletion sets is_deleted on all versions.
    -- The current version of a namespace and key is the highest one that is not deleted. No version number is reused.
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL                    -- a path such as user:alice:preferences, 1 to 512 characters
        CHECK (typeof(namespace) = 'text' AND length(namespace) BETWEEN 1 AND 512 AND instr(namespace, ':') > 0),
    key TEXT NOT NULL                          -- 1 to 512 characters
        CHECK (typeof(key) = 'text' AND length(key) BETWEEN 1 AND 512),
    value TEXT NOT NULL                        -- JSON object or array
        CHECK (typeof(value) = 'text' AND json_valid(value) AND json_type(value) IN ('object', 'array')),
    memory_type TEXT NOT NULL                  -- facts, events (which expire), instructions
        CHECK (memory_type IN ('semantic', 'episodic', 'procedural')),
    version INTEGER NOT NULL DEFAULT 1         -- counts from 1 within namespace and key
        CHECK (typeof(version) = 'integer' AND version >= 1),
    is_deleted INTEGER NOT NULL DEFAULT 0      -- 0 live, 1 deleted
        CHECK (typeof(is_deleted) = 'integer' AND is_deleted BETWEEN 0 AND 1),
    metadata TEXT NOT NULL DEFAULT '{}'        -- JSON object
        CHECK (typeof(metadata) = 'text' AND json_valid(metadata) AND json_type(metadata) = 'object'),
    created_by TEXT,                           -- a session or agent; NULL: unknown
    updated_by TEXT,                           -- the writer of this version; NULL: unknown
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    UNIQUE (namespace, key, version)
);

CREATE TABLE document_index (
    -- The known documents, and whether each is embedded. Their text stays in their files.
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    file_path TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    document_type TEXT,                        -- NULL: not classified
    content_hash TEXT NOT NULL,                -- sha256 of the content, hex
    chunk_count INTEGER NOT NULL DEFAULT 1     -- pieces that were embedded
        CHECK (typeof(chunk_count) = 'integer' AND chunk_count >= 1),
    embedding_model TEXT,                      -- NULL: not embedded
    embedding_blob BLOB,                       -- the vector in the model's format; NULL: not embedded
    metadata TEXT NOT NULL DEFAULT '{}'        -- JSON object
        CHECK (typeof(metadata) = 'text' AND json_valid(metadata) AND json_type(metadata) = 'object'),
    last_synced_at TEXT,                       -- UTC; NULL: never
    sync_status TEXT NOT NULL DEFAULT 'pending'
        CHECK (sync_status IN ('pending', 'synced', 'failed', 'stale')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))         -- UTC
);
