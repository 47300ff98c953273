"""A store whose files are moved, removed or replaced, or whose process forks: it refuses, and destroys nothing."""

import asyncio
import inspect
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from damage import run_sql
from patience import HANGING_S
from sampling import sampled

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.store.connection import connect

# Another process: it makes the database if there is none, and prints how many of 60 writes were acknowledged.
OTHER = """
import asyncio, sys, abathur_nb as nb
async def main(settings):
    done = 0
    try:
        if not settings.db_path.exists():
            (await nb.initialize_database(settings)).raise_for_failures()
        async with nb.Database.open(settings) as db:
            for n in range(60):
                await db.memory.add_memory('user:b', str(n), {'v': 'b' * 900}, 'semantic', None)
                done += 1
    except nb.AbathurError:
        pass
    print(done)
asyncio.run(main(nb.resolve('development', db_path=sys.argv[1])))
"""


def beside(settings: Settings) -> int:
    return int(in_a_process(OTHER, str(settings.db_path)))


def in_a_process(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGING_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def remove(*suffixes: str) -> Callable[[Path], None]:
    def at(db: Path) -> None:
        for suffix in suffixes:
            Path(f"{db}{suffix}").unlink()

    return at


def replace_by_copy(db: Path) -> None:
    shutil.copy(db, f"{db}.new")
    Path(f"{db}.new").replace(db)


def rename_directory(db: Path) -> None:
    db.parent.rename(f"{db.parent}-away")
    db.parent.mkdir(mode=0o700)


def replace_all(db: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        replace_by_copy(Path(f"{db}{suffix}"))


def replace_by_backup(db: Path) -> None:
    (backup,) = db.parent.glob("backups/*.db")
    backup.replace(db)


WAYS: dict[str, Callable[[Path], object]] = {
    "log removed": remove("-wal"),
    "both removed": remove("-wal", "-shm"),
    "all removed, made anew by init": remove("", "-wal", "-shm"),
    "a copy moved over it": replace_by_copy,
    "a backup moved over it": replace_by_backup,
    "all replaced by copies": replace_all,
    "renamed": lambda db: db.rename(f"{db}.away"),
    "directory renamed, another made": rename_directory,
}
# Nobody else can open these, or read them as whole.
SPOILT = ("log removed", "a backup moved over it", "renamed")


@pytest.fixture
async def filled(database: Settings) -> Settings:
    """Return the settings of a database that has a backup and rows."""
    (await nb.backup_database(database)).raise_for_failures()
    return database


@asynccontextmanager
async def busy(settings: Settings) -> AsyncIterator[nb.Database]:
    """Open a store with rows of its own in the log."""
    async with nb.Database.open(settings) as db:
        for n in range(40):
            await db.memory.add_memory("user:a", str(n), {"v": "a" * 900}, "semantic", None)
        yield db


def at_path(settings: Settings) -> bytes:
    """Return what lies at the path, but the log's index, which any reader writes to. In a process without locks."""
    command = ["sha256sum", str(settings.db_path), f"{settings.db_path}-wal"]
    return subprocess.run(command, capture_output=True, check=False).stdout


def rows(settings: Settings, namespace: str) -> int:
    with closing(sqlite3.connect(settings.db_path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        count = "SELECT count(*) FROM memory_entries WHERE namespace = ?"
        return int(conn.execute(count, (namespace,)).fetchone()[0])


async def put(db: nb.Database) -> None:
    await db.memory.add_memory("user:a", "later", {}, "semantic", None)


async def lend(db: nb.Database) -> None:
    async with db.read():
        pass


async def lend_writer(db: nb.Database) -> None:
    async with db.write():
        pass


USES: tuple[Callable[[nb.Database], Any], ...] = (
    lambda db: db.memory.list_namespaces(),
    *(put, lend, lend_writer),
    lambda db: db.get_index_usage(),
    lambda db: db.explain_query_plan("SELECT 1"),
)


@pytest.mark.parametrize("at", sampled(product(WAYS, (True, False)), *zip(WAYS, cycle((True, False)), strict=False)))
async def test_a_store_whose_files_are_others_refuses_and_changes_nothing(
    filled: Settings, at: tuple[str, bool]
) -> None:
    way, used = at
    async with busy(filled) as db:
        WAYS[way](filled.db_path)
        acknowledged = beside(filled)
        before = at_path(filled)
        for use in USES if used else ():
            for _ in range(2):
                with pytest.raises(RefusedError, match=f"PID {os.getpid()} has open .*troubleshoot"):
                    await use(db)
        assert at_path(filled) == before
    assert at_path(filled) == before, "closed, it has written its log over what others have made"
    if way not in SPOILT:
        assert acknowledged == 60
        assert rows(filled, "user:b") == 60


@pytest.mark.parametrize(
    "ending", sampled(("raise SystemExit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)", "return"), "os._exit(3)")
)
def test_a_process_that_ends_with_lost_files_writes_nothing(filled: Settings, ending: str) -> None:
    program = (
        "import asyncio, os, sys, abathur_nb as nb\n"
        "async def main():\n"
        "    async with nb.Database.open(nb.resolve('development', db_path=sys.argv[1])) as db:\n"
        "        for n in range(40): await db.memory.add_memory('user:a', str(n), {'v': 'a' * 900}, 'semantic', None)\n"
        "        print('written', flush=True)\n"
        "        sys.stdin.read()\n"
        f"        {ending}\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(filled.db_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "written\n"
        remove("-wal", "-shm")(filled.db_path)
        assert beside(filled) == 60
        before = at_path(filled)
        process.stdin.close()
        assert process.wait(60) in (0, 3, -signal.SIGKILL)
    assert at_path(filled) == before
    assert rows(filled, "user:b") == 60


@pytest.mark.parametrize("mode", sampled(("ro", "rw"), "rw"))
async def test_a_connection_of_the_verbs_writes_no_lost_log_either(filled: Settings, mode: Any) -> None:
    """And no second one is opened in its process, which would read the new log by the index of the old one."""
    async with (
        connect(filled.db_path, settings=filled, mode="rw") as conn,
        connect(filled.db_path, settings=filled, mode=mode) as other,
    ):
        await conn.execute_fetchall("INSERT INTO metrics (metric_name, metric_value) VALUES ('a', 1)")
        remove("-wal", "-shm")(filled.db_path)
        assert beside(filled) == 60
        before = at_path(filled)
        with pytest.raises(RefusedError):
            await other.execute_fetchall("SELECT 1 FROM metrics")
        with pytest.raises(RefusedError):
            async with connect(filled.db_path, settings=filled, mode=mode):
                pass
        for report in (await nb.validate_database(filled), await nb.troubleshoot(filled)):
            assert not report.ok
    assert at_path(filled) == before
    async with connect(filled.db_path, settings=filled, mode=mode) as conn:  # this process is free again
        assert [*await conn.execute_fetchall("SELECT * FROM metrics")] == []
    assert rows(filled, "user:b") == 60


async def test_a_commit_during_which_the_log_goes_is_not_acknowledged(database: Settings) -> None:
    async with busy(database) as db:

        def strike(statement: str) -> None:
            if statement == "COMMIT":
                remove("-wal", "-shm")(database.db_path)

        await db._writer.set_trace_callback(strike)
        with pytest.raises(RefusedError, match="not acknowledged and may exist"):
            await put(db)


async def test_what_a_block_wrote_is_not_committed_after_the_log_is_gone(database: Settings) -> None:
    tried: list[str] = []
    async with busy(database) as db:
        await db._writer.set_trace_callback(tried.append)
        with pytest.raises(RefusedError, match="nothing was done"):
            async with db.write():
                remove("-wal")(database.db_path)
        assert tried == ["BEGIN IMMEDIATE", "ROLLBACK"]


async def test_a_long_read_is_refused_from_the_next_statement_on(database: Settings) -> None:
    async with busy(database) as db:
        with pytest.raises(RefusedError, match=r"abathur\.db-shm is missing"):  # noqa: PT012
            async with db.read() as conn:
                await conn.execute_fetchall("BEGIN")
                await conn.execute_fetchall("SELECT * FROM sessions")
                remove("-shm")(database.db_path)
                await conn.execute_fetchall("SELECT * FROM sessions")
        with pytest.raises(RefusedError):
            async with db.read():
                pass


async def test_files_that_were_away_for_a_moment_are_not_trusted_again(database: Settings) -> None:
    away = Path(f"{database.db_path}.away")
    async with busy(database) as db:
        database.db_path.rename(away)
        with pytest.raises(RefusedError):
            await put(db)
        away.rename(database.db_path)
        for use in USES:
            with pytest.raises(RefusedError, match=r"abathur\.db is missing"):
                await use(db)


async def test_the_rows_of_a_closed_store_can_still_be_saved(database: Settings) -> None:
    async with busy(database):
        log = subprocess.run(["cat", f"{database.db_path}-wal"], capture_output=True, check=True).stdout  # noqa: ASYNC221
        remove("-wal", "-shm")(database.db_path)
    held = {str(fd.readlink()): fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    assert held[f"{database.db_path}-wal (deleted)"].read_bytes() == log


# --- no false alarm


SQL = (*(f"PRAGMA wal_checkpoint({mode})" for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE")), "VACUUM", "REINDEX")
BY_SQL = "import sqlite3, sys\nfor sql in sys.argv[2:]: sqlite3.connect(sys.argv[1]).execute(sql).fetchall()"
BY_VERBS = """
import asyncio, sys, abathur_nb as nb
s = nb.resolve("development", db_path=sys.argv[1])
for verb, given in (
    (nb.backup_database, {}), (nb.restore_database, {"apply": True}),
    (nb.troubleshoot, {"repair": True}), (nb.validate_database, {}),
):
    asyncio.run(verb(s, **given)).raise_for_failures()
"""


def change_modes(settings: Settings) -> None:
    for path in (settings.db_path, *settings.db_path.parent.glob("*-*")):
        path.chmod(0o640)
    settings.db_path.parent.chmod(0o500)


HARMLESS: dict[str, Callable[[Settings], object]] = {
    "SQL": lambda s: in_a_process(BY_SQL, str(s.db_path), *SQL),
    "verbs": lambda s: in_a_process(BY_VERBS, str(s.db_path)),
    "another store": beside,
    "modes": change_modes,
    "modes back": lambda s: s.db_path.parent.chmod(0o700),
    "a neighbour": lambda s: shutil.copy(s.db_path, f"{s.db_path}.copy"),
}


async def test_what_others_do_rightly_raises_no_alarm(filled: Settings) -> None:
    async with busy(filled) as db:
        for number, name in enumerate(HARMLESS):
            HARMLESS[name](filled)
            await db.memory.add_memory("user:c", str(number), {}, "semantic", None)
            for _ in range(filled.readers):
                assert await db.memory.get_memory("user:c", str(number)), name
            async with db.read() as conn:
                await conn.execute_fetchall("SELECT 1 FROM sessions")
    assert not Path(f"{filled.db_path}-wal").exists(), "the last one to close has emptied the log"
    run_sql(filled.db_path, "SELECT 1")


async def test_hundreds_of_operations_beside_others_raise_no_alarm(database: Settings) -> None:
    async with nb.Database.open(database) as db:
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OTHER, database.db_path, stdout=asyncio.subprocess.PIPE
        )
        for n in range(400):
            await db.sessions.create_session(f"s{n}", "a", "u")
            assert await db.sessions.get_session(f"s{n}")
        assert (await other.communicate())[0] == b"60\n"
    assert rows(database, "user:b") == 60


# --- fork

GIVEN: dict[str, Any] = {"namespace": "a:b", "value": {}, "memory_type": "semantic", "event": {}, "status": "active"}
GIVEN["keep_last"] = 1


def public_uses(db: nb.Database) -> dict[str, Callable[[], Any]]:
    """Return every public way to use a store, by name."""
    uses: dict[str, Callable[[], Any]] = {"lend": lambda: lend(db), "lend_writer": lambda: lend_writer(db)}
    for part in (db, db.sessions, db.memory):
        for name, method in inspect.getmembers(part, inspect.iscoroutinefunction):
            if not name.startswith("_") and name not in ("fetch", "change", "change_many"):
                needed = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
                arguments = [GIVEN.get(parameter.name, "text") for parameter in needed]
                uses[f"{type(part).__name__}.{name}"] = lambda method=method, arguments=arguments: method(*arguments)  # type: ignore[misc]
    return uses


def in_child(work: Callable[[], Any]) -> str:
    """Return what an awaitable's maker raises in a forked process, by name."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        try:
            asyncio.run(asyncio.wait_for(work(), HANGING_S))
            theirs.send("nothing")
        except BaseException as error:  # noqa: BLE001
            theirs.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=run)
    process.start()
    assert ours.poll(HANGING_S)
    process.join(HANGING_S)
    assert process.exitcode == 0
    return str(ours.recv())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_every_use_of_a_parents_store_is_a_misuse_at_once(database: Settings) -> None:
    async with nb.Database.open(database) as db, db.read() as lent:
        uses = public_uses(db) | {"its own connection": lambda: lent.execute_fetchall("SELECT 1")}
        assert len(uses) > 20
        for name, use in uses.items():
            assert in_child(use).startswith("MisuseError: the store was opened before"), name
        async with db.write() as writer:  # neither does a transaction that is open at that moment
            for work in (lambda: writer.execute_fetchall("SELECT 1"), lambda: put(db), writer.rollback):
                assert in_child(work).startswith("MisuseError: "), work
            await writer.execute_fetchall("INSERT INTO metrics (metric_name, metric_value) VALUES ('kept', 1)")
        await put(db)
    assert rows(database, "user:a") == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_child_opens_no_store_of_its_own_at_a_path_that_its_parent_has_open(database: Settings) -> None:
    """SQLite would take the parent's locks for its own: whoever closes then deletes the log of the other."""

    async def own() -> None:
        async with nb.Database.open(database):
            pass

    async with nb.Database.open(database):
        assert in_child(own).startswith("MisuseError: ")
    assert in_child(own) == "nothing"


# The child does not end the loop: that would take the parent's out of their common epoll, with or without a store.
PARENT = """
import asyncio, os, sys, abathur_nb as nb
from abathur_nb.files import posix_locks
def locks():
    return sorted(lock for lock in posix_locks() if lock.pid == os.getpid())
def goes_on(child, before):
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert before and locks() == before
    assert os.path.exists(sys.argv[1] + '-wal')
    return code
store = nb.Database.open(nb.resolve('development', db_path=sys.argv[1]))
async def main():
    child = None
    try:
        async with store as db:
            await db.memory.add_memory('user:a', 'before', {}, 'semantic', None)
            before = locks()
            async with BLOCK:
                child = os.fork()
                if child == 0:
                    LEAVING
            if child:
                print(goes_on(child, before))
                await db.memory.add_memory('user:a', 'after', {}, 'semantic', None)
    except BaseException as error:
        if child == 0:
            os._exit({nb.MisuseError: 7, SystemExit: 5, KeyError: 4}.get(type(error), 99))
        raise
asyncio.run(main())
"""
# The child leaves by the end of its program, with all that it has inherited.
EXITING = (
    PARENT.partition("async def main")[0]
    + """
loop = asyncio.new_event_loop()
db = loop.run_until_complete(store.__aenter__())
loop.run_until_complete(db.memory.add_memory('user:a', 'before', {}, 'semantic', None))
before, child = locks(), os.fork()
if child == 0:
    sys.exit(5)
print(goes_on(child, before))
loop.run_until_complete(db.memory.add_memory('user:a', 'after', {}, 'semantic', None))
loop.run_until_complete(store.__aexit__(None, None, None))
"""
)


LEAVING = {"pass": 7, "sys.exit()": 5, "raise KeyError": 4}


@pytest.mark.parametrize(
    "at",
    sampled(
        (*product(("asyncio.Lock()", "db.read()", "db.write()"), LEAVING), ("", "its end")),
        *(("asyncio.Lock()", "pass"), ("db.read()", "sys.exit()"), ("db.write()", "raise KeyError"), ("", "its end")),
    ),
)
def test_a_child_that_leaves_the_block_ends_and_the_parent_goes_on(at: tuple[str, str], database: Settings) -> None:
    block, leaving = at
    program = PARENT.replace("BLOCK", block).replace("LEAVING", leaving) if block else EXITING
    assert in_a_process(program, str(database.db_path)) == f"{LEAVING.get(leaving, 5)}\n"
    assert rows(database, "user:a") == 2


async def test_a_store_that_only_closes_warns_of_what_it_lost(database: Settings) -> None:
    async def only_close() -> None:
        async with nb.Database.open(database) as db:
            await db.memory.add_memory("user:a", "k", {}, "semantic", None)
            remove("-wal", "-shm")(database.db_path)

    with pytest.warns(RuntimeWarning, match="what was written since may be missing"):
        await only_close()
