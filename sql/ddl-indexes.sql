-- The 33 indexes. The comment above each says what it is for; queries.sql has the query. Run after the two table files.
-- To existing data: no change. If an index with one of these names exists, its CREATE INDEX fails.
--
-- A primary key or UNIQUE constraint creates an index: a second index on the same columns would only slow writes.
-- A partial index (WHERE …) serves only queries whose WHERE repeats or implies its own: `x = ?` implies x IS NOT NULL.
-- Each foreign key's column leads an index, so that deleting a parent never scans the children.

-- sessions

-- The sessions of a status, last used first.
CREATE INDEX idx_sessions_status_updated ON sessions (status, last_update_time DESC);

-- A user's recent sessions.
CREATE INDEX idx_sessions_user_created ON sessions (user_id, created_at DESC);

-- A project's recent sessions; most sessions have no project.
CREATE INDEX idx_sessions_project ON sessions (project_id, created_at DESC) WHERE project_id IS NOT NULL;

-- The session that a user last used in an app.
CREATE INDEX idx_sessions_app_user ON sessions (app_name, user_id, last_update_time DESC);

-- Sessions terminated before a date and not yet archived; most sessions are archived.
CREATE INDEX idx_sessions_unarchived ON sessions (status, terminated_at) WHERE archived_at IS NULL;

-- memory_entries

-- The current version of a namespace and key, found in one step for any number of versions.
CREATE INDEX idx_memory_namespace_key_version ON memory_entries (namespace, key, is_deleted, version DESC);

-- The newest live memories of a type.
CREATE INDEX idx_memory_type_updated ON memory_entries (memory_type, updated_at DESC) WHERE is_deleted = 0;

-- The newest memories of a namespace, or of all namespaces in the range [prefix, prefix_end).
CREATE INDEX idx_memory_namespace_prefix ON memory_entries (namespace, updated_at DESC) WHERE is_deleted = 0;

-- Live episodic memories older than their time to live.
CREATE INDEX idx_memory_episodic_ttl ON memory_entries (memory_type, created_at)
WHERE memory_type = 'episodic' AND is_deleted = 0;

-- The memories that a session or agent created.
CREATE INDEX idx_memory_created_by ON memory_entries (created_by, created_at DESC);

-- The memories that a session or agent updated.
CREATE INDEX idx_memory_updated_by ON memory_entries (updated_by, updated_at DESC);

-- The deleted memories by the time of their deletion.
CREATE INDEX idx_memory_deleted ON memory_entries (updated_at) WHERE is_deleted = 1;

-- document_index

-- The newest documents of a type.
CREATE INDEX idx_document_type_created ON document_index (document_type, created_at DESC)
WHERE document_type IS NOT NULL;

-- The next documents to embed, in order of arrival.
CREATE INDEX idx_document_sync_status ON document_index (sync_status, created_at);

-- Other documents with the same content.
CREATE INDEX idx_document_content_hash ON document_index (content_hash);

-- The documents that a model embedded, oldest first: the next to embed again.
CREATE INDEX idx_document_embedding_model ON document_index (embedding_model, last_synced_at)
WHERE embedding_model IS NOT NULL;

-- tasks

-- The next task of a status: the most urgent, then the longest waiting.
CREATE INDEX idx_tasks_status_priority ON tasks (status, priority DESC, submitted_at);

-- The tasks submitted since a moment.
CREATE INDEX idx_tasks_submitted_at ON tasks (submitted_at);

-- A task's children. Also serves the foreign key.
CREATE INDEX idx_tasks_parent ON tasks (parent_task_id) WHERE parent_task_id IS NOT NULL;

-- Running tasks without an update for too long; few tasks are running.
CREATE INDEX idx_tasks_running_timeout ON tasks (status, last_updated_at) WHERE status = 'running';

-- A session's tasks. Also serves the foreign key.
CREATE INDEX idx_tasks_session ON tasks (session_id, submitted_at DESC) WHERE session_id IS NOT NULL;

-- The next task that an agent of a type may take.
CREATE INDEX idx_tasks_agent_type ON tasks (agent_type, status, priority DESC, submitted_at);

-- agents

-- A task's agents. Also serves the foreign key.
CREATE INDEX idx_agents_task ON agents (task_id, spawned_at DESC);

-- The agents in a state.
CREATE INDEX idx_agents_state ON agents (state, spawned_at DESC);

-- A session's agents. Also serves the foreign key.
CREATE INDEX idx_agents_session ON agents (session_id, spawned_at DESC) WHERE session_id IS NOT NULL;

-- audit

-- The actions of a task, newest first.
CREATE INDEX idx_audit_task ON audit (task_id, timestamp DESC);

-- The actions of an agent. Also serves the foreign key.
CREATE INDEX idx_audit_agent ON audit (agent_id, timestamp DESC);

-- The actions before a moment, newest first.
CREATE INDEX idx_audit_timestamp ON audit (timestamp DESC);

-- The memory operations of a kind.
CREATE INDEX idx_audit_memory_operations ON audit (memory_operation_type, timestamp DESC)
WHERE memory_operation_type IS NOT NULL;

-- What happened in a namespace.
CREATE INDEX idx_audit_memory_namespace ON audit (memory_namespace, timestamp DESC)
WHERE memory_namespace IS NOT NULL;

-- What happened to a memory entry. Also serves the foreign key.
CREATE INDEX idx_audit_memory_entry ON audit (memory_entry_id, timestamp DESC) WHERE memory_entry_id IS NOT NULL;

-- metrics

-- The values of a metric, newest first.
CREATE INDEX idx_metrics_name_timestamp ON metrics (metric_name, timestamp DESC);

-- checkpoints

-- A session's checkpoints: without this index, deleting a session scans them all.
CREATE INDEX idx_checkpoints_session ON checkpoints (session_id) WHERE session_id IS NOT NULL;
