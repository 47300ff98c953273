-- The six core tables: tasks, agents, state, audit, metrics, checkpoints. Run after ddl-memory-tables.sql.
-- To existing data: no change. If a table with one of these names exists, its CREATE TABLE fails.
--
-- Timestamps and JSON as in ddl-memory-tables.sql. Deleting a session keeps its tasks, agents and checkpoints and only
-- clears their session_id; deleting a task that has children, agents, state or checkpoints is refused.

CREATE TABLE tasks (
    -- The queue of tasks, with their results.
    id TEXT NOT NULL PRIMARY KEY,
    prompt TEXT NOT NULL,
    agent_type TEXT NOT NULL DEFAULT 'general',
    priority INTEGER NOT NULL DEFAULT 5        -- 0 to 10, larger first
        CHECK (typeof(priority) = 'integer' AND priority BETWEEN 0 AND 10),
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    input_data TEXT NOT NULL DEFAULT '{}'      -- JSON object or array
        CHECK (typeof(input_data) = 'text' AND json_valid(input_data) AND json_type(input_data) IN ('object', 'array')),
    result_data TEXT                           -- JSON object or array; NULL: no result yet
        CHECK (
            result_data IS NULL
            OR (
                typeof(result_data) = 'text' AND json_valid(result_data)
                AND json_type(result_data) IN ('object', 'array')
            )
        ),
    error_message TEXT,                        -- NULL: no error
    retry_count INTEGER NOT NULL DEFAULT 0     -- retries so far
        CHECK (typeof(retry_count) = 'integer' AND retry_count >= 0),
    max_retries INTEGER NOT NULL DEFAULT 3     -- retries allowed
        CHECK (typeof(max_retries) = 'integer' AND max_retries >= 0),
    max_execution_timeout_seconds INTEGER NOT NULL DEFAULT 3600  -- seconds
        CHECK (typeof(max_execution_timeout_seconds) = 'integer' AND max_execution_timeout_seconds > 0),
    submitted_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),      -- UTC
    started_at TEXT,                           -- UTC; NULL: not started
    completed_at TEXT,                         -- UTC; NULL: not ended
    last_updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),   -- UTC, the last update
    created_by TEXT,                           -- NULL: unknown
    parent_task_id TEXT REFERENCES tasks (id), -- NULL: not a subtask
    dependencies TEXT                          -- JSON array of task ids; NULL: none
        CHECK (
            dependencies IS NULL
            OR (typeof(dependencies) = 'text' AND json_valid(dependencies) AND json_type(dependencies) = 'array')
        ),
    session_id TEXT REFERENCES sessions (id) ON DELETE SET NULL  -- NULL: no session, or it is deleted
);

CREATE TABLE agents (
    -- The agents that work, or have worked, on a task.
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    specialization TEXT NOT NULL,
    task_id TEXT NOT NULL REFERENCES tasks (id),
    state TEXT NOT NULL DEFAULT 'idle'
        CHECK (state IN ('idle', 'working', 'waiting', 'terminated')),
    model TEXT NOT NULL,
    spawned_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    terminated_at TEXT,                        -- UTC; NULL: not terminated
    resource_usage TEXT                        -- JSON object or array; NULL: not measured
        CHECK (
            resource_usage IS NULL
            OR (
                typeof(resource_usage) = 'text' AND json_valid(resource_usage)
                AND json_type(resource_usage) IN ('object', 'array')
            )
        ),
    session_id TEXT REFERENCES sessions (id) ON DELETE SET NULL  -- NULL: no session, or it is deleted
);

CREATE TABLE state (
    -- The keys and values of a task. Legacy: new code stores state in sessions.state.
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL REFERENCES tasks (id),
    key TEXT NOT NULL,
    value TEXT NOT NULL                        -- JSON object or array
        CHECK (typeof(value) = 'text' AND json_valid(value) AND json_type(value) IN ('object', 'array')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    UNIQUE (task_id, key)
);

CREATE TABLE audit (
    -- The log of actions. A row stays after its task or memory entry is deleted.
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),         -- UTC
    agent_id TEXT REFERENCES agents (id),      -- NULL: not done by an agent
    task_id TEXT,                              -- NULL: no task; no foreign key, so the row stays without its task
    action_type TEXT NOT NULL,
    action_data TEXT                           -- JSON object or array; NULL: no details
        CHECK (
            action_data IS NULL
            OR (
                typeof(action_data) = 'text' AND json_valid(action_data)
                AND json_type(action_data) IN ('object', 'array')
            )
        ),
    result TEXT,                               -- NULL: not stated
    memory_operation_type TEXT                 -- NULL: the action concerned no memory
        CHECK (
            memory_operation_type IS NULL
            OR memory_operation_type IN ('create', 'update', 'delete', 'consolidate', 'publish')
        ),
    memory_namespace TEXT,                     -- NULL: the action concerned no memory
    memory_entry_id INTEGER REFERENCES memory_entries (id) ON DELETE SET NULL  -- NULL: no memory entry, or deleted
);

CREATE TABLE metrics (
    -- Measurements over time.
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),         -- UTC
    metric_name TEXT NOT NULL,
    metric_value REAL NOT NULL                 -- in the metric's own unit, finite (9e999 is infinity)
        CHECK (typeof(metric_value) IN ('real', 'integer') AND metric_value >= 0 AND metric_value < 9e999),
    labels TEXT                                -- JSON object; NULL: none
        CHECK (
            labels IS NULL
            OR (typeof(labels) = 'text' AND json_valid(labels) AND json_type(labels) = 'object')
        )
);

CREATE TABLE checkpoints (
    -- The state of an iterative task after each iteration, from which the task can resume.
    task_id TEXT NOT NULL REFERENCES tasks (id),
    iteration INTEGER NOT NULL                 -- counts from 0
        CHECK (typeof(iteration) = 'integer' AND iteration >= 0),
    state TEXT NOT NULL                        -- JSON object or array
        CHECK (typeof(state) = 'text' AND json_valid(state) AND json_type(state) IN ('object', 'array')),
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),        -- UTC
    session_id TEXT REFERENCES sessions (id) ON DELETE SET NULL,  -- NULL: no session, or it is deleted
    PRIMARY KEY (task_id, iteration)
);
