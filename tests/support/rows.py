"""Rows for every table: the least that each takes, and values that each column refuses."""

from typing import Any

from engines import Run

# The least that each table takes, parents first.
GOOD: dict[str, dict[str, Any]] = {
    "sessions": {"id": "s", "app_name": "app", "user_id": "alice"},
    "memory_entries": {"namespace": "a:b", "key": "k", "value": "{}", "memory_type": "semantic"},
    "document_index": {"file_path": "/a", "title": "a", "content_hash": "00"},
    "tasks": {"id": "t", "prompt": "do", "session_id": "s"},
    "agents": {"id": "a", "name": "a", "specialization": "b", "task_id": "t", "model": "m", "session_id": "s"},
    "state": {"task_id": "t", "key": "k", "value": "[]"},
    "audit": {"action_type": "x", "agent_id": "a", "task_id": "no such task", "memory_entry_id": 1},
    "metrics": {"metric_name": "m", "metric_value": 1.5},
    "checkpoints": {"task_id": "t", "iteration": 0, "state": "{}", "session_id": "s"},
}
_NO_JSON = ("", "{", "null", "1", '"x"', "{'a': 1}", b"{}", b"[]", 1, 1.5)
_NO_OBJECT, _NO_ARRAY = (*_NO_JSON, None, "[]"), (*_NO_JSON, None, "{}")
_NO_COUNT = (1.5, "x", "", b"1", None, -1)
BAD: dict[tuple[str, str], tuple[Any, ...]] = {
    ("sessions", "id"): (None,),
    ("sessions", "app_name"): (None,),
    ("sessions", "user_id"): (None,),
    ("sessions", "status"): ("WHATEVER", "Active", "", None, 1, b"active"),
    ("sessions", "events"): _NO_ARRAY,
    ("sessions", "state"): _NO_OBJECT,
    ("sessions", "metadata"): _NO_OBJECT,
    ("sessions", "created_at"): (None,),
    ("sessions", "last_update_time"): (None,),
    ("memory_entries", "namespace"): (None, "", "nocolon", ":" * 513, b"a:b"),
    ("memory_entries", "key"): (None, "", "k" * 513, b"k"),
    ("memory_entries", "value"): (*_NO_JSON, None),
    ("memory_entries", "memory_type"): ("factual", "", None, 1),
    ("memory_entries", "version"): (*_NO_COUNT, 0),
    ("memory_entries", "is_deleted"): (*_NO_COUNT, 2, "true"),
    ("memory_entries", "metadata"): _NO_OBJECT,
    ("document_index", "file_path"): (None,),
    ("document_index", "chunk_count"): (*_NO_COUNT, 0),
    ("document_index", "metadata"): _NO_OBJECT,
    ("document_index", "sync_status"): ("done", None),
    ("tasks", "id"): (None,),
    ("tasks", "prompt"): (None,),
    ("tasks", "priority"): (*_NO_COUNT, 11, 999),
    ("tasks", "status"): ("WHATEVER", None),
    ("tasks", "input_data"): (*_NO_JSON, None),
    ("tasks", "result_data"): _NO_JSON,
    ("tasks", "retry_count"): _NO_COUNT,
    ("tasks", "max_retries"): _NO_COUNT,
    ("tasks", "max_execution_timeout_seconds"): (*_NO_COUNT, 0),
    ("tasks", "dependencies"): (*_NO_JSON, "{}"),
    ("tasks", "parent_task_id"): ("no such task",),
    ("tasks", "session_id"): ("no such session",),
    ("agents", "id"): (None,),
    ("agents", "task_id"): (None, "no such task"),
    ("agents", "state"): ("busy", None),
    ("agents", "resource_usage"): _NO_JSON,
    ("agents", "session_id"): ("no such session",),
    ("state", "task_id"): (None, "no such task"),
    ("state", "key"): (None,),
    ("state", "value"): (*_NO_JSON, None),
    ("audit", "agent_id"): ("no such agent",),
    ("audit", "action_type"): (None,),
    ("audit", "action_data"): _NO_JSON,
    ("audit", "memory_operation_type"): ("read", ""),
    ("audit", "memory_entry_id"): (999,),
    ("metrics", "metric_name"): (None,),
    ("metrics", "metric_value"): (-1, "abc", float("inf"), float("nan"), b"1", None),
    ("metrics", "labels"): (*_NO_JSON, "[]"),
    ("checkpoints", "task_id"): (None, "no such task"),
    ("checkpoints", "iteration"): _NO_COUNT,
    ("checkpoints", "state"): (*_NO_JSON, None),
    ("checkpoints", "session_id"): ("no such session",),
}


def insert(run: Run, table: str, row: dict[str, Any]) -> None:
    run(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
