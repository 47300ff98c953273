"""Rows of the tables beside sessions and memories, for plans that depend on how many there are."""

_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {rows} / {part})"
_STATEMENTS = """
20 INSERT INTO document_index
    (file_path, title, document_type, content_hash, embedding_model, last_synced_at, sync_status, created_at)
SELECT n || '.md', 'Document', iif(n % 3, 'markdown', 'code'), printf('%064x', n - n % 50 / 49),
    iif(n % 10 < 7, 'synthetic-model-' || (n % 3), NULL), MOMENT, iif(n % 10 < 7, 'synced', 'stale'), MOMENT
FROM numbers;
10 INSERT INTO tasks (id, prompt, priority, status, submitted_at, last_updated_at, parent_task_id, session_id)
SELECT 'task-' || n, 'p', n % 11, iif(n % 20 < 16, 'completed', 'failed'), MOMENT, MOMENT,
    iif(n % 4 = 1, 'task-' || (n / 2), NULL), (SELECT id FROM sessions WHERE rowid = n + 1)
FROM numbers;
10 INSERT INTO agents (id, name, specialization, task_id, state, model, spawned_at, session_id)
SELECT 'synthetic-agent-' || n, 'general', 'general', 'task-' || n, iif(n % 10 < 8, 'terminated', 'idle'), 'm', MOMENT,
    (SELECT id FROM sessions WHERE rowid = n + 1)
FROM numbers;
20 INSERT INTO state (task_id, key, value) SELECT 'task-' || (n / 2), 'key-' || (n % 2), '{}' FROM numbers;
5 INSERT INTO audit
    (timestamp, agent_id, task_id, action_type, memory_operation_type, memory_namespace, memory_entry_id)
SELECT MOMENT, 'synthetic-agent-' || (n / 2), 'task-' || (n / 2), iif(n % 4, 'memory_write', 'step'),
    CASE n % 4 WHEN 0 THEN NULL WHEN 3 THEN 'update' ELSE 'create' END,
    iif(n % 4, (SELECT namespace FROM memory_entries WHERE id = n + 4), NULL), iif(n % 4, n + 4, NULL)
FROM numbers;
5 INSERT INTO metrics (timestamp, metric_name, metric_value)
SELECT MOMENT, iif(n % 4, 'synthetic.latency', 'synthetic.errors'), n FROM numbers;
20 INSERT INTO checkpoints (task_id, iteration, state, session_id)
SELECT 'task-' || (n / 5), n % 5, '{}', (SELECT id FROM sessions WHERE rowid = n + 1) FROM numbers
"""
_MOMENT = "strftime('%Y-%m-%d %H:%M:%f', 1735689600 + (n + 1) * 3242174889 % 4294967296 / 136.2, 'unixepoch')"


def related_rows(sessions: int) -> list[str]:
    """Return the statements that fill the other tables of a database with so many synthetic sessions and memories."""
    parts = (statement.strip().split(" ", 1) for statement in _STATEMENTS.split(";\n"))
    return [f"{_NUMBERS.format(rows=sessions, part=part)} {sql.replace('MOMENT', _MOMENT)}" for part, sql in parts]
