"""The two SQLite libraries of the tests behind one function, and rows for every table: good ones, and bad values."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from abathur_nb.store.sql import DDL_FILES, SEED_FILE, Fetch, Parameters, statements

LIBRARIES = ("sqlite3", "apsw")
REFUSALS = (sqlite3.IntegrityError, apsw.ConstraintError)

Run = Callable[..., list[tuple[Any, ...]]]


@contextmanager
def opened(library: str, path: Path | str = ":memory:") -> Iterator[Run]:
    """Open a database with one of LIBRARIES, in autocommit mode, foreign keys on, and yield what runs a statement."""
    conn: Any
    if library == "sqlite3":
        conn = sqlite3.connect(path, isolation_level=None, cached_statements=0)
    else:
        conn = apsw.Connection(str(path), statementcachesize=0)

    def run(sql: str, params: Parameters = ()) -> list[tuple[Any, ...]]:
        bound = dict(params) if isinstance(params, Mapping) else tuple(params)
        return [tuple(row) for row in conn.execute(sql, bound)]

    try:
        run("PRAGMA foreign_keys = ON")
        yield run
    finally:
        conn.close()


def build(run: Run, files: Iterable[str] = (*DDL_FILES, SEED_FILE)) -> None:
    for filename in files:
        for statement in statements(filename):
            run(statement)


def as_fetch(run: Run) -> Fetch:
    """Return the same as an async function, as plans are read over."""

    async def fetch(sql: str, params: Parameters) -> Sequence[Sequence[Any]]:
        return run(sql, params)

    return fetch


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
_REFUSED: dict[str, tuple[Any, ...]] = {  # by the columns that refuse them
    (
        "sessions.id sessions.app_name sessions.user_id sessions.created_at sessions.last_update_time "
        "document_index.file_path tasks.id tasks.prompt agents.id state.key audit.action_type metrics.metric_name"
    ): (None,),
    "sessions.status": ("WHATEVER", "Active", "", None, 1, b"active"),
    "sessions.events": _NO_ARRAY,
    "sessions.state sessions.metadata memory_entries.metadata document_index.metadata": _NO_OBJECT,
    "memory_entries.namespace": (None, "", "nocolon", ":" * 513, b"a:b"),
    "memory_entries.key": (None, "", "k" * 513, b"k"),
    "memory_entries.value tasks.input_data state.value checkpoints.state": (*_NO_JSON, None),
    "memory_entries.memory_type": ("factual", "", None, 1),
    "memory_entries.version document_index.chunk_count tasks.max_execution_timeout_seconds": (*_NO_COUNT, 0),
    "memory_entries.is_deleted": (*_NO_COUNT, 2, "true"),
    "document_index.sync_status": ("done", None),
    "tasks.priority": (*_NO_COUNT, 11, 999),
    "tasks.status": ("WHATEVER", None),
    "tasks.result_data agents.resource_usage audit.action_data": _NO_JSON,
    "tasks.retry_count tasks.max_retries checkpoints.iteration": _NO_COUNT,
    "tasks.dependencies": (*_NO_JSON, "{}"),
    "tasks.parent_task_id": ("no such task",),
    "tasks.session_id agents.session_id checkpoints.session_id": ("no such session",),
    "agents.task_id state.task_id checkpoints.task_id": (None, "no such task"),
    "agents.state": ("busy", None),
    "audit.agent_id": ("no such agent",),
    "audit.memory_operation_type": ("read", ""),
    "audit.memory_entry_id": (999,),
    "metrics.metric_value": (-1, "abc", float("inf"), float("nan"), b"1", None),
    "metrics.labels": (*_NO_JSON, "[]"),
}
BAD = {
    (table, column): values
    for columns, values in _REFUSED.items()
    for table, column in (name.split(".") for name in columns.split())
}


def insert(run: Run, table: str, row: dict[str, Any]) -> None:
    run(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
