"""What operates an existing database, and beside each the recipe that a shell history would hold: its control."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A victim is forked with everything imported.
import tqdm  # noqa: F401
from damage import MEMORY, ROWS, run_sql

from abathur_nb.config.settings import Settings
from abathur_nb.report import Report
from abathur_nb.runbook.backup import backup_database
from abathur_nb.runbook.restore import restore_database
from abathur_nb.runbook.rollback import roll_back
from abathur_nb.runbook.troubleshoot import troubleshoot
from abathur_nb.runbook.validate import validate_database
from faults.experiments import (
    Deed,
    content_of,
    first_backup,
    initialize,
    initialize_naively,
    make_database,
    newest_backup,
    settings_of,
)

_ROWS = tuple(MEMORY.replace("'k'", f"'k{n}'") for n in range(40))
_CHUNK = 8192  # bytes that a naive copy writes at a time


@dataclass(frozen=True, slots=True)
class Operation:
    """Name what is done to a database, the naive way to do it, when it is done, and what has spoiled it before."""

    title: str
    sound: Deed
    naive: Deed
    is_done: Callable[[Settings], bool]
    spoil: Callable[[Settings], None] | None = None


def prepare(db: Path) -> Settings:
    """Make a database with a backup of it, and rows that were written since."""
    settings = make_database(db)
    run_sql(db, *ROWS)
    asyncio.run(backup_database(settings)).raise_for_failures()
    run_sql(db, *_ROWS)
    return settings


def _deed(verb: Callable[..., Coroutine[Any, Any, Report]], **given: Any) -> Deed:
    async def run(db: Path) -> dict[str, Any]:
        return (await verb(settings_of(db), **given)).to_dict()

    return run


def _copy_naively(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb", buffering=0) as write:
        while chunk := read.read(_CHUNK):
            write.write(chunk)


async def _back_up_naively(db: Path) -> dict[str, Any]:
    _copy_naively(db, settings_of(db).backup_dir / "abathur_swept_20990101_000000_000.db")
    return {"ok": True, "checks": []}


def _is_backed_up(settings: Settings) -> bool:
    return any("_swept_" in path.name for path in settings.backup_dir.glob("abathur_*.db"))


async def _restore_naively(db: Path) -> dict[str, Any]:
    _copy_naively(newest_backup(settings_of(db)), db)
    for suffix in ("-wal", "-shm"):
        Path(f"{db}{suffix}").unlink(missing_ok=True)
    return {"ok": True, "checks": []}


def _is_restored(settings: Settings) -> bool:
    return content_of(settings.db_path) == first_backup(settings).content


async def _start_afresh_naively(db: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(db, isolation_level=None)) as conn:
        for table in ("audit", "checkpoints", "state", "agents", "tasks", "sessions", "document_index", "metrics"):
            conn.execute(f"DELETE FROM {table}")
        conn.execute("DELETE FROM memory_entries WHERE namespace NOT LIKE 'app:abathur:%'")
    return {"ok": True, "checks": []}


def _is_fresh(settings: Settings) -> bool:
    content = content_of(settings.db_path)
    held = {name: rows for name, rows in content.rows.items() if rows} if content else {}
    return held in ({"memory_entries": 3, "sqlite_sequence": 1}, {"memory_entries": 3})


async def _repair_naively(db: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(db, isolation_level=None)) as conn:
        for statement in (
            "UPDATE tasks SET input_data = '{}' WHERE NOT json_valid(input_data)",
            "DELETE FROM agents WHERE task_id NOT IN (SELECT id FROM tasks)",
            "UPDATE tasks SET session_id = NULL WHERE session_id NOT IN (SELECT id FROM sessions)",
            "CREATE INDEX idx_audit_task ON audit (task_id, timestamp DESC)",
        ):
            conn.execute(statement)
    return {"ok": True, "checks": []}


def _is_repaired(settings: Settings) -> bool:
    return asyncio.run(troubleshoot(settings)).ok


def _spoil_rows(settings: Settings) -> None:
    run_sql(
        settings.db_path,
        "UPDATE tasks SET input_data = 'broken', session_id = 'lost'",
        "INSERT INTO agents (id, name, specialization, task_id, model) VALUES ('lost', 'n', 's', 'no', 'm')",
        "DROP INDEX idx_audit_task",
    )


def _spoil_pages(settings: Settings) -> None:
    with settings.db_path.open("r+b") as file:
        file.seek(5000)
        file.write(b"x" * 100_000)


def _is_valid(settings: Settings) -> bool:
    return asyncio.run(validate_database(settings)).ok


_RESTORE = _deed(restore_database, apply=True)
OPERATIONS = {
    "init": Operation("initialization", initialize, initialize_naively, _is_valid),
    # Of which one has made the database, and was killed before it removed its scratch directory.
    "init again": Operation("a second initialization", initialize, initialize_naively, _is_valid),
    "backup": Operation("backup", _deed(backup_database, reason="swept"), _back_up_naively, _is_backed_up),
    "restore": Operation("restore", _RESTORE, _restore_naively, _is_restored),
    "rollback": Operation(
        "rollback to a fresh start", _deed(roll_back, to="fresh", apply=True), _start_afresh_naively, _is_fresh
    ),
    "replace": Operation("restore of a damaged file", _RESTORE, _restore_naively, _is_restored, _spoil_pages),
    "repair": Operation("repair", _deed(troubleshoot, repair=True), _repair_naively, _is_repaired, _spoil_rows),
}
