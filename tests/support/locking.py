"""Call all that is public while this process has a store open and a read begun: ``python locking.py DB``.

Prints as JSON, for each call, the locks of this process that were other ones afterwards.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from situations import VERBS

import abathur_nb as nb
from abathur_nb.backups.manifest import list_backups
from abathur_nb.config.settings import read_file
from abathur_nb.evidence.statement import public_keys
from abathur_nb.files import Lock, posix_locks
from abathur_nb.store.memory import Memory
from abathur_nb.store.sessions import Sessions

Call = Callable[[nb.Settings, nb.Database], object]


def public() -> Iterator[str]:
    """Yield the name of each public function, and of each method of a store; whatever is added must have a case."""
    yield from (name for name in nb.__all__ if inspect.isfunction(getattr(nb, name)))
    for kind in (nb.Database, Sessions, Memory):
        yield from (
            f"{kind.__name__}.{name}" for name in vars(kind) if name[0] != "_" and callable(getattr(kind, name))
        )


async def _entered(context: AbstractAsyncContextManager[object]) -> None:
    async with context:
        pass


def _sessions(name: str, *arguments: object) -> Call:
    return lambda _, db: getattr(db.sessions, name)(*arguments)


def _memory(name: str, *arguments: object) -> Call:
    return lambda _, db: getattr(db.memory, name)(*arguments)


def _verb(run: Callable[..., object], settings: nb.Settings, _: object) -> object:
    return run(settings)


def _fleet(settings: nb.Settings) -> object:
    inventory = settings.db_path.with_name("fleet.toml")
    inventory.write_text(f'[hosts.here]\nenv = "development"\ndatabases = ["{settings.db_path}"]')
    return nb.run_fleet(settings, inventory, notebook="troubleshoot")


CASES: dict[str, Call] = {
    "guard": lambda *_: nb.guard(),
    "load_queries": lambda *_: nb.load_queries(),
    "said": lambda *_: nb.said("who", None),
    "show_workers": lambda s, _: nb.show_workers(s),
    "run_fleet": lambda s, _: _fleet(s),
    "resolve": lambda *_: nb.resolve("development"),
    # The name of the public function that a verb calls, and the verb.
    **{f"{run.__code__.co_names[1]} {verb}": partial(_verb, run) for verb, run in VERBS.items()},
    "monitor that records": lambda s, _: nb.monitor(s, record=True),
    "start_run": lambda s, _: nb.start_run(s, "validate"),
    "restore_database of an open backup": lambda s, _: _restore_open(s),
    "troubleshoot repair of a mode": lambda s, _: _repair(s),
    "Database.open": lambda s, _: _entered(nb.Database.open(s)),
    "Database.read": lambda _, db: _entered(db.read()),
    "Database.write": lambda _, db: _entered(db.write()),
    "Database.run": lambda _, db: db.run("list_namespaces", {}),
    "Database.explain_query_plan": lambda _, db: db.explain_query_plan("SELECT * FROM tasks"),
    "Database.validate_foreign_keys": lambda _, db: db.validate_foreign_keys(),
    "Database.get_index_usage": lambda _, db: db.get_index_usage(),
    "Sessions.create_session": _sessions("create_session", "s", "app", "alice"),
    "Sessions.get_session": _sessions("get_session", "s"),
    "Sessions.list_sessions": _sessions("list_sessions"),
    "Sessions.append_event": _sessions("append_event", "s", {}),
    "Sessions.trim_events": _sessions("trim_events", "s", 1),
    "Sessions.update_status": _sessions("update_status", "s", "paused"),
    "Sessions.get_state": _sessions("get_state", "s", "k"),
    "Sessions.set_state": _sessions("set_state", "s", "k", 1),
    "Sessions.terminate_session": _sessions("terminate_session", "s"),
    "Memory.add_memory": _memory("add_memory", "user:a", "k", {}, "episodic", None),
    "Memory.get_memory": _memory("get_memory", "user:a", "k"),
    "Memory.update_memory": _memory("update_memory", "user:a", "k", {}, None),
    "Memory.search_memories": _memory("search_memories", "user:"),
    "Memory.list_namespaces": _memory("list_namespaces"),
    "Memory.get_memory_history": _memory("get_memory_history", "user:a", "k"),
    "Memory.delete_memory": _memory("delete_memory", "user:a", "k"),
    "Memory.cleanup_expired_memories": _memory("cleanup_expired_memories"),
}
# A path that a person gives may be a file that SQLite has open here.
PATHS: dict[str, Callable[[nb.Settings, Path], object]] = {
    "put_back": lambda s, path: nb.troubleshoot(s, put_back=path),
    "backup": lambda s, path: nb.restore_database(s, backup=path),
    "to": lambda s, path: nb.roll_back(s, to=path),
    "ABATHUR_CONFIG": lambda _, path: _configured(path),
    "a file of the command line": lambda _, path: read_file("-f", path, 10**6),
    "inventory": nb.run_fleet,
    "a key": lambda _, path: public_keys([str(path)]),
}


def _given(
    call: Callable[[nb.Settings, Path], object], suffix: str, link: str, settings: nb.Settings, _: object
) -> object:
    path = Path(f"{settings.db_path}{suffix}")
    if link:
        path = settings.db_path.with_name(f"{link}{suffix}")
        path.unlink(missing_ok=True)
        os.link(f"{settings.db_path}{suffix}", path)
    return call(settings, path)


async def _restore_open(settings: nb.Settings) -> None:
    """Restore from a backup that a store of this process has open too, for reading."""
    newest = [b for b in list_backups(settings.backup_dir)[0] if b.path.suffix != ".zst"][-1]
    async with nb.Database.open(nb.resolve("development", db_path=newest.path)) as db, db.read() as conn:
        await _begin(conn)
        before = locks()
        await nb.restore_database(settings, backup=newest.path, drill=True)
        assert locks() == before, "those of the backup are other ones"


async def _repair(settings: nb.Settings) -> None:
    settings.db_path.chmod(0o644)
    (await nb.troubleshoot(settings, repair=True)).raise_for_failures()


def _configured(path: Path) -> None:
    os.environ["ABATHUR_CONFIG"] = str(path)
    try:
        nb.resolve("development")
    finally:
        del os.environ["ABATHUR_CONFIG"]


def locks() -> list[Lock]:
    return sorted(lock for lock in posix_locks() if lock.pid == os.getpid())


async def _begin(conn: Any) -> None:
    await conn.execute_fetchall("BEGIN")
    await conn.execute_fetchall("SELECT count(*) FROM tasks")


async def main(path: Path) -> dict[str, list[list[Lock]]]:
    """Make every call, each beside a read of its own, and return which locks each has changed."""
    settings, changed = nb.resolve("development", db_path=path), dict[str, list[list[Lock]]]()
    (await nb.initialize_database(settings)).raise_for_failures()
    (await nb.backup_database(settings)).raise_for_failures()
    calls = {**CASES}
    for name, given in PATHS.items():
        for suffix in ("", "-wal", "-shm"):
            calls[f"{name}: {path.name}{suffix}"] = partial(_given, given, suffix, "")
            calls[f"{name}: a link to {path.name}{suffix}"] = partial(_given, given, suffix, "link")
    for name, call in calls.items():
        # Opened anew for each: what one call drops, the next would not find.
        async with nb.Database.open(settings) as db, db.read() as conn:
            await _begin(conn)
            before = locks()
            assert len(before) > 2, "of the file, of its log's index, and of the read mark"
            with suppress(nb.AbathurError):
                result = call(settings, db)
                if inspect.isawaitable(result):
                    await result
            if (after := locks()) != before:
                changed[name] = [before, after]
    return changed


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
