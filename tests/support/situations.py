"""Verbs, and situations in which one may refuse: for the test of refusals, and the sweep over them."""

import asyncio
import hashlib
import os
import resource
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from damage import ROWS, TASK, held, leave_log, run_sql

import abathur_nb as nb
from abathur_nb.backups.aside import new_folder
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.canonical import sealed
from abathur_nb.repair.quarantine import quarantine_dir
from abathur_nb.store.target import journal_of

VERBS: dict[str, Callable[..., Any]] = {
    "preflight": lambda s, **_: nb.preflight(s),
    "init": lambda s, **_: nb.initialize_database(s),
    "validate": lambda s, **_: nb.validate_database(s),
    "explain": lambda s, **_: nb.explain_queries(s),
    "benchmark": lambda s, **_: nb.run_benchmark(s, rows=10, repetitions=2),
    "backup": lambda s, **_: nb.backup_database(s),
    "compressed backup": lambda s, **_: nb.backup_database(s, compress=True),
    "restore": lambda s, **given: nb.restore_database(s, apply=True, **given),
    "plan of a restoration": lambda s, **_: nb.restore_database(s),
    "drill": lambda s, **_: nb.restore_database(s, drill=True),
    "plan of a fresh start": lambda s, **_: nb.roll_back(s, to="fresh"),
    "fresh start": lambda s, **given: nb.roll_back(s, to="fresh", apply=True, **given),
    "rollback": lambda s, **given: nb.roll_back(s, to=backup_of(s), apply=True, **given),
    "troubleshoot": lambda s, **_: nb.troubleshoot(s),
    "repair": lambda s, **given: nb.troubleshoot(s, repair=True, **given),
    "put back": lambda s, **given: nb.troubleshoot(s, repair=True, put_back=quarantine_of(s), **given),
    "monitor": lambda s, **_: nb.monitor(s),
    "explore": lambda s, **_: nb.explore(s),
    "readiness": lambda s, **_: nb.readiness(s),
    "history": lambda s, **_: nb.read_history(s),
    "environments": lambda s, **_: nb.show_environments(s),
    "schema": lambda s, **_: nb.show_schema(s),
    "backups": lambda s, **_: nb.show_backups(s),
    "schedule": lambda s, **_: nb.schedule(s, "backup"),
}
READING = ("history", "environments", "schema", "backups", "schedule", "readiness")
CHANGING = ("restore", "fresh start", "rollback", "repair", "put back")


def backup_of(settings: Settings) -> str:
    return max((path.name for path in settings.backup_dir.glob("abathur_manual_*.db")), default="none.db")


def quarantine_of(settings: Settings) -> str:
    return min((path.name for path in quarantine_dir(settings).glob("*")), default="none")


def tree(root: Path) -> dict[str, object]:
    """Return what a refusal must leave: kind, mode, owner, and content of all below ``root``."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        info = os.lstat(path)
        content = ""
        if stat.S_ISREG(info.st_mode):
            if path.name.endswith("-shm") or (path.name.endswith("-wal") and not info.st_size):
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = str(path.readlink())
        found[str(path.relative_to(root))] = (oct(info.st_mode), info.st_uid, info.st_gid, content)
    return found


def prepared(folder: Path) -> Path:
    """Return a directory with a database in need of repair, its backup, a quarantine file, and what was killed."""
    settings = resolve("development", db_path=folder / "data" / "abathur.db")
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    run_sql(settings.db_path, *ROWS, "UPDATE audit SET agent_id = 'none'", "DELETE FROM tasks")
    asyncio.run(nb.troubleshoot(settings, repair=True)).raise_for_failures()
    run_sql(settings.db_path, TASK)
    asyncio.run(nb.backup_database(settings)).raise_for_failures()
    run_sql(settings.db_path, "UPDATE tasks SET input_data = 'x'", "DROP INDEX idx_tasks_parent")
    for place in (settings.db_path.parent, settings.backup_dir):
        for purpose in ("init", "restore", "backup", "benchmark"):
            dead = place / f".abathur-{purpose}-0123456789ab"
            dead.mkdir(mode=0o700)
            (dead / "left.db").write_bytes(b"left by a killed process")
    return folder


def without_side_files(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def gone(settings: Settings) -> None:
    settings.db_path.unlink()
    without_side_files(settings.db_path)


def instead(make: Callable[[Path], object]) -> Callable[[Settings], None]:
    """Return what puts something else in the place of the database."""

    def change(settings: Settings) -> None:
        gone(settings)
        make(settings.db_path)

    return change


def edited(*statements: str) -> Callable[[Settings], None]:
    return lambda settings: run_sql(settings.db_path, *statements)


def linked(settings: Settings) -> None:
    settings.db_path.rename(settings.db_path.with_name("real.db"))
    settings.db_path.symlink_to("real.db")


stale = instead(lambda path: Path(f"{path}-wal").write_bytes(b"rows"))


def begun(settings: Settings) -> None:
    folder = new_folder(settings.db_path)
    shutil.copy(settings.backup_dir / backup_of(settings), folder / f"new.{settings.db_path.name}")
    journal_of(settings.db_path).write_bytes(sealed({"folder": folder.name}))


def taken(settings: Settings) -> None:
    begun(settings)
    (folder,) = settings.db_path.parent.glob("abathur_aside_*")
    shutil.copy(settings.db_path, folder / settings.db_path.name)


def without_folder(settings: Settings) -> None:
    begun(settings)
    (folder,) = settings.db_path.parent.glob("abathur_aside_*")
    shutil.rmtree(folder)


def in_the_log(settings: Settings) -> None:
    """Leave committed rows in the log, which a connection that closes last would write into the database."""
    leave_log(settings.db_path, "DELETE FROM metrics")


def in_backups(pattern: str) -> Callable[[Settings], Iterable[Path]]:
    return lambda settings: settings.backup_dir.glob(pattern)


def spoiled(
    change: Callable[[bytes], bytes], files: Callable[[Settings], Iterable[Path]]
) -> Callable[[Settings], None]:
    def spoil(settings: Settings) -> None:
        for path in files(settings):
            path.write_bytes(change(path.read_bytes()))

    return spoil


def other_form(settings: Settings) -> None:
    run = "PRAGMA journal_mode = DELETE; PRAGMA page_size = 8192; VACUUM; PRAGMA journal_mode = WAL"
    with sqlite3.connect(settings.db_path, isolation_level=None) as conn:
        for statement in run.split(";"):
            conn.execute(statement)
    conn.close()


def no_backups(settings: Settings) -> None:
    shutil.rmtree(settings.backup_dir)


def a_file(settings: Settings) -> None:
    no_backups(settings)
    settings.backup_dir.write_bytes(b"")


def both(*ways: Callable[[Settings], object]) -> Callable[[Settings], None]:
    def change(settings: Settings) -> None:
        for way in ways:
            way(settings)

    return change


def leave(_: Settings) -> None:
    """Leave it as it is."""


@contextmanager
def no_file_beyond(size: int, _: Settings) -> Iterator[None]:
    """Let this process write no file beyond a size: a disk that is full as soon as something is written to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sys.dont_write_bytecode = True  # of which Python would leave the first part, and fail at it from then on
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        sys.dont_write_bytecode = False
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Place = Callable[[Settings], AbstractContextManager[Any]]


def free(_: Settings) -> AbstractContextManager[Any]:
    return nullcontext()


def user(*statements: str) -> Place:
    return lambda settings: held(settings.db_path, *statements)


WRITER, READER = user("BEGIN IMMEDIATE"), user("BEGIN", "SELECT count(*) FROM tasks")
UNCONFIRMED = {"confirm_changes": True}
# How it is made, settings, arguments, and who uses it meanwhile.
SITUATIONS: dict[str, tuple[Callable[[Settings], object], Mapping[str, Any], Mapping[str, Any], Place]] = {
    "absent": (gone, {}, {}, free),
    "absent, unapproved": (gone, UNCONFIRMED, {}, free),
    "a shell": (instead(Path.touch), UNCONFIRMED, {}, free),
    "text": (instead(lambda path: path.write_bytes(b"some text")), UNCONFIRMED, {}, free),
    "random bytes": (instead(lambda path: path.write_bytes(bytes(range(256)) * 40)), UNCONFIRMED, {}, free),
    "another application's": (edited("PRAGMA application_id = 7"), {}, {}, free),
    "newer": (edited("PRAGMA user_version = 7"), {}, {}, free),
    "a trigger": (edited("CREATE TRIGGER t DELETE ON audit BEGIN SELECT 1; END"), UNCONFIRMED, {}, free),
    "a link": (linked, {}, {}, free),
    "a dangling link": (instead(lambda path: path.symlink_to("nowhere.db")), {}, {}, free),
    "a FIFO": (instead(os.mkfifo), {}, {}, free),
    "a directory": (instead(Path.mkdir), {}, {}, free),
    "side files alone": (stale, UNCONFIRMED, {}, free),
    "locked": (leave, {"busy_timeout_ms": 50}, {}, WRITER),
    "locked, another form": (other_form, {"busy_timeout_ms": 50}, {}, WRITER),
    "in use, another form": (other_form, {}, {}, READER),
    "begun, unapproved": (begun, UNCONFIRMED, {}, free),
    "begun, wrong confirm": (begun, UNCONFIRMED, {"confirm": "0" * 16}, free),
    "begun, in use": (begun, {}, {}, READER),
    "begun, its name taken": (taken, {}, {}, free),
    "begun, its folder missing": (without_folder, {}, {}, free),
    "begun, its journal damaged": (both(begun, lambda s: journal_of(s.db_path).write_bytes(b"{}")), {}, {}, free),
    "unapproved": (leave, UNCONFIRMED, {}, free),
    "wrong confirm": (leave, UNCONFIRMED, {"confirm": "0" * 16}, free),
    "unapproved, rows in the log": (in_the_log, UNCONFIRMED, {}, free),
    "a damaged manifest": (
        spoiled(lambda old: old.replace(b"development", b"development!"), in_backups("*.manifest.json")),
        {},
        {},
        free,
    ),
    "a damaged backup": (spoiled(lambda old: old[:-1], in_backups("abathur_*.db")), {}, {}, free),
    "a damaged quarantine file": (spoiled(lambda old: old[:-1], lambda s: quarantine_dir(s).iterdir()), {}, {}, free),
    "no backups": (no_backups, UNCONFIRMED, {}, free),
    "no room": (leave, {"min_free_mb": 10**9}, {}, free),
    "no room, no backups": (both(no_backups, gone), {"min_free_mb": 10**9}, {}, free),
    "a file for the backups": (a_file, {}, {}, free),
    **{
        f"no file beyond {size} bytes{words}": (way, {}, {}, partial(no_file_beyond, size))
        for size in (2_000, 30_000, 150_000, 250_000, 300_000)
        for words, way in {"": leave, ", no backups": no_backups, ", rows in the log": in_the_log}.items()
    },
}
