"""Files moved, removed or replaced under those who have them open: nothing is destroyed, who holds what is named."""

import asyncio
import inspect
import multiprocessing
import multiprocessing.pool
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from damage import MEMORY, held, query, run_as_other, run_sql, running, untouched
from patience import HANGING_S
from sampling import sampled
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.backups.manifest import find_backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.store.connection import connect
from abathur_nb.store.guarded import strays

# A store that lost its files warns of it when it is closed.
pytestmark = pytest.mark.filterwarnings("ignore:.* is no longer the database:RuntimeWarning")
# Another process: it makes the database if there is none, and prints a line for each of 60 writes that is acknowledged.
OTHER = """
import asyncio, sys, abathur_nb as nb
async def main(settings):
    if not settings.db_path.exists():
        (await nb.initialize_database(settings)).raise_for_failures()
    async with nb.Database.open(settings) as db:
        for n in range(60):
            await db.memory.add_memory('user:b', str(n), {'v': 'b' * 900}, 'semantic', None)
            print(n)
try: asyncio.run(main(nb.resolve('development', db_path=sys.argv[1])))
except nb.AbathurError: pass
"""


def beside(settings: Settings) -> int:
    return len(in_a_process(OTHER, settings.db_path).splitlines())


def in_a_process(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGING_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def take(way: str, path: Path) -> None:
    """Do to the files of a database what somebody types: in a process of its own, so that no lock is dropped."""
    subprocess.run(["sh", "-ec", way], env={**os.environ, "db": str(path), "dir": str(path.parent)}, check=True)


SIDE_FILES_REMOVED = "rm $db-wal $db-shm"
WAYS = {
    "log removed": "rm $db-wal",
    "both removed": SIDE_FILES_REMOVED,
    "all removed, made anew by init": "rm $db $db-wal $db-shm",
    "a copy moved over it": "cp $db $db.new; mv $db.new $db",
    "a backup moved over it": "mv $dir/backups/*.db $db",
    "all replaced by copies": "for x in '' -wal -shm; do cp -p $db$x $db.new; mv $db.new $db$x; done",
    "renamed": "mv $db $db.away",
    "directory renamed, another made": "mv $dir $dir-away; mkdir -m 700 $dir",
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
    program = 'for file in "$0" "$0-wal"; do [ ! -s "$file" ] || sha256sum "$file"; done'
    return subprocess.run(["sh", "-c", program, settings.db_path], capture_output=True, check=True).stdout


async def assert_named(settings: Settings, pid: int, *verbs: Callable[[Settings], Any], check: str = "") -> None:
    """Assert that each verb fails and names who holds lost files, in whatever check or this one, and not the disk."""
    for verb in verbs:
        result = await verb(settings)
        report = getattr(result, "report", result)
        assert not report.ok
        assert f"PID {pid} " in (check_of(report, check).observed if check else str(report))
        assert "dmesg" not in str(report)


def rows(settings: Settings, namespace: str) -> int:
    assert query(settings.db_path, "PRAGMA integrity_check") == [("ok",)]
    ((count,),) = query(settings.db_path, f"SELECT count(*) FROM memory_entries WHERE namespace = '{namespace}'")
    return int(count)


async def put(db: nb.Database) -> None:
    await db.memory.add_memory("user:a", "later", {}, "semantic", None)


async def lend(db: nb.Database) -> None:
    async with db.read():
        pass


async def lend_writer(db: nb.Database) -> None:
    async with db.write():
        pass


GIVEN: dict[str, Any] = {"namespace": "a:b", "value": {}, "memory_type": "semantic", "event": {}, "status": "active"}
GIVEN |= {"keep_last": 1, "sql": "SELECT 1"}


def public_uses(db: nb.Database) -> dict[str, Callable[[], Any]]:
    """Return every public way to use a store, by name."""
    uses: dict[str, Callable[[], Any]] = {"lend": partial(lend, db), "lend_writer": partial(lend_writer, db)}
    for part in (db, db.sessions, db.memory):
        for name, method in inspect.getmembers(part, inspect.iscoroutinefunction):
            if not name.startswith("_") and name != "run":
                needed = [p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty]
                uses[f"{type(part).__name__}.{name}"] = partial(method, *(GIVEN.get(name, "text") for name in needed))
    assert len(uses) > 20
    return uses


@pytest.mark.parametrize("at", sampled(product(WAYS, (True, False)), *zip(WAYS, cycle((True, False)), strict=False)))
async def test_a_store_that_lost_its_files_refuses(filled: Settings, at: tuple[str, bool]) -> None:
    way, used = at
    async with busy(filled) as db:
        take(WAYS[way], filled.db_path)
        acknowledged = beside(filled)
        before = at_path(filled)
        for use in [*public_uses(db).values()] * 2 if used else ():
            with pytest.raises(nb.RefusedError, match=f"PID {os.getpid()} has open .*troubleshoot"):
                await use()
        assert at_path(filled) == before
    assert at_path(filled) == before, "closed, it has written its log over what others have made"
    if way not in SPOILT:
        assert acknowledged == 60
        assert rows(filled, "user:b") == 60


@pytest.mark.parametrize("ending", sampled(("sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)"), "os._exit(3)"))
def test_a_process_that_ends_with_lost_files_writes_nothing(filled: Settings, ending: str) -> None:
    with storing(filled.db_path) as (process, tell):
        take(SIDE_FILES_REMOVED, filled.db_path)
        assert beside(filled) == 60
        before = at_path(filled)
        tell(ending)
        assert process.wait(HANGING_S) in (3, -signal.SIGKILL)
    assert at_path(filled) == before
    assert rows(filled, "user:b") == 60


@pytest.mark.parametrize("mode", sampled(("ro", "rw"), "rw"))
async def test_a_connection_of_the_verbs_writes_no_lost_log_either(filled: Settings, mode: Any) -> None:
    """And no second one is opened in its process, which would read the new log by the index of the old one."""
    async with (
        connect(filled.db_path, filled.busy_timeout_ms, mode="rw") as conn,
        connect(filled.db_path, filled.busy_timeout_ms, mode=mode) as other,
    ):
        await conn.execute_fetchall("INSERT INTO metrics (metric_name, metric_value) VALUES ('a', 1)")
        take(SIDE_FILES_REMOVED, filled.db_path)
        assert beside(filled) == 60
        before = at_path(filled)
        with pytest.raises(nb.RefusedError):
            await other.execute_fetchall("SELECT 1 FROM metrics")
        with pytest.raises(nb.RefusedError):
            async with connect(filled.db_path, filled.busy_timeout_ms, mode=mode):
                pass
        for report in (await nb.validate_database(filled), await nb.troubleshoot(filled)):
            assert not report.ok
    assert at_path(filled) == before
    async with connect(filled.db_path, filled.busy_timeout_ms, mode=mode) as conn:  # this process is free again
        assert [*await conn.execute_fetchall("SELECT * FROM metrics")] == []
    assert rows(filled, "user:b") == 60


async def test_a_commit_during_which_the_log_goes_is_not_acknowledged(database: Settings) -> None:
    async with busy(database) as db:

        def strike(statement: str) -> None:
            if statement == "COMMIT":
                take(SIDE_FILES_REMOVED, database.db_path)

        await db._writer.set_trace_callback(strike)
        with pytest.raises(nb.RefusedError, match="not acknowledged but may be stored"):
            await put(db)


async def test_what_a_block_wrote_is_not_committed_after_the_log_is_gone(database: Settings) -> None:
    tried: list[str] = []
    async with busy(database) as db:
        await db._writer.set_trace_callback(tried.append)
        with pytest.raises(nb.RefusedError, match="nothing was done"):
            async with db.write():
                take("rm $db-wal", database.db_path)
        assert tried == ["BEGIN IMMEDIATE", "ROLLBACK"]


async def test_a_long_read_is_refused_from_the_next_statement_on(database: Settings) -> None:
    async with busy(database) as db:
        with pytest.raises(nb.RefusedError, match=r"abathur\.db-shm is missing"):  # noqa: PT012
            async with db.read() as conn:
                await conn.execute_fetchall("BEGIN")
                await conn.execute_fetchall("SELECT * FROM sessions")
                take("rm $db-shm", database.db_path)
                await conn.execute_fetchall("SELECT * FROM sessions")
        with pytest.raises(nb.RefusedError):
            async with db.read():
                pass


async def test_files_that_were_away_for_a_moment_are_not_trusted_again(database: Settings) -> None:
    away = Path(f"{database.db_path}.away")
    async with busy(database) as db:
        database.db_path.rename(away)
        with pytest.raises(nb.RefusedError):
            await put(db)
        away.rename(database.db_path)
        for use in public_uses(db).values():
            with pytest.raises(nb.RefusedError, match=r"abathur\.db is missing"):
                await use()


SQL = (*(f"PRAGMA wal_checkpoint({mode})" for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE")), "VACUUM", "REINDEX")

# Statements, then verbs, of another process.
OTHERS = """
import asyncio, sqlite3, sys, abathur_nb as nb
s = nb.resolve("development", db_path=sys.argv[1])
for sql in sys.argv[2:]: sqlite3.connect(s.db_path).execute(sql).fetchall()
for verb, given in (
    (nb.backup_database, {}), (nb.restore_database, {"apply": True}),
    (nb.troubleshoot, {"repair": True}), (nb.validate_database, {}),
):
    asyncio.run(verb(s, **given)).raise_for_failures()
"""


async def test_what_others_do_rightly_raises_no_alarm(filled: Settings) -> None:
    async with busy(filled) as db:
        for number in range(2):
            beside(filled) if number else in_a_process(OTHERS, str(filled.db_path), *SQL)
            await db.memory.add_memory("user:c", str(number), {}, "semantic", None)
            for _ in range(filled.readers):
                assert await db.memory.get_memory("user:c", str(number))
            async with db.read() as conn:
                await conn.execute_fetchall("SELECT 1 FROM sessions")
    assert not Path(f"{filled.db_path}-wal").exists(), "the last one to close has emptied the log"


CLOSED = """
async def main(settings):
    (await nb.initialize_database(settings)).raise_for_failures()
    async with nb.Database.open(settings) as db:
        os.chmod(settings.db_path.parent, 0)
        await db.memory.add_memory("user:a", "k", {}, "semantic", None)
        print(await db.memory.get_memory("user:a", "k") is not None)
        os.chmod(settings.db_path.parent, 0o700)
asyncio.run(main(nb.resolve("development", db_path=tempfile.mkdtemp() + "/data/abathur.db")))
"""


def test_a_directory_that_is_closed_for_a_moment_raises_no_alarm() -> None:
    assert run_as_other(CLOSED) == "True\n"


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
        for name, use in (public_uses(db) | {"its own connection": partial(lent.execute_fetchall, "SELECT 1")}).items():
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
async def main():
    child = None
    try:
        async with nb.Database.open(nb.resolve('development', db_path=sys.argv[1])) as db:
            await db.memory.add_memory('user:a', 'before', {}, 'semantic', None)
            before = locks()
            async with BLOCK:
                child = os.fork()
                if child == 0:
                    LEAVING
            if child:
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                assert before and locks() == before and os.path.exists(sys.argv[1] + '-wal')
                await db.memory.add_memory('user:a', 'after', {}, 'semantic', None)
    except BaseException as error:
        if child == 0:
            os._exit({nb.MisuseError: 7, SystemExit: 5, KeyError: 4}.get(type(error), 99))
        raise
asyncio.run(main())
"""
LEAVING = {"pass": 7, "sys.exit()": 5, "raise KeyError": 4}


@pytest.mark.parametrize(
    "at",
    sampled(
        product(("asyncio.Lock()", "db.read()", "db.write()"), LEAVING),
        *(("asyncio.Lock()", "pass"), ("db.read()", "sys.exit()"), ("db.write()", "raise KeyError")),
    ),
)
def test_a_child_that_leaves_the_block_ends_and_the_parent_goes_on(at: tuple[str, str], database: Settings) -> None:
    block, leaving = at
    program = PARENT.replace("BLOCK", block).replace("LEAVING", leaving)
    assert in_a_process(program, str(database.db_path)) == f"{LEAVING[leaving]}\n"
    assert rows(database, "user:a") == 2


async def test_a_store_that_only_closes_warns_of_what_it_lost(database: Settings) -> None:
    with pytest.warns(RuntimeWarning, match="later writes may be missing"):
        async with busy(database):
            take(SIDE_FILES_REMOVED, database.db_path)


_ROWS = [MEMORY.replace("'k'", f"'alone-{number}'") for number in range(7)]


# What it then holds that nobody else finds: with the three seed memories, where no database is left at the path.
SPLITS = {
    "its log deleted": (SIDE_FILES_REMOVED, "7 rows of memory_entries"),
    "all deleted": ("rm $db $db-wal $db-shm", "10 rows of memory_entries"),
    "the database deleted": ("rm $db", "10 rows of memory_entries"),
    "another moved over it": ("mv $dir/fresh.db $db", "no row"),  # which is read with its log
    "its side files renamed": ("for x in -wal -shm; do mv $db$x $db$x.old; done", "7 rows of memory_entries"),
    "the database renamed": ("mv $db $dir/old.db", "10 rows of memory_entries"),
    "all renamed, another made": (
        "for x in '' -wal -shm; do mv $db$x $db$x.old; done; mv $dir/fresh.db $db",
        "7 rows of memory_entries",
    ),
    "the database renamed, another made": ("mv $db $db.old; mv $dir/fresh.db $db", "no row"),
    "a copy in its place": ("cp -p $db $db.new; rm $db-wal $db-shm; mv $db.new $db", "7 rows of memory_entries"),
}
LEAVES = {name: split for name, (split, _) in SPLITS.items()}
LEAVES |= {"the log alone deleted": "rm $db-wal", "the index alone deleted": "rm $db-shm"}
# What it reads ends it, or lets it stay.
_STORE = """
import asyncio, os, sys, abathur_nb as nb
async def main():
    async with nb.Database.open(nb.resolve('development', db_path=sys.argv[1])) as db:
        for n in range(7): await db.memory.add_memory('user:a', str(n), {}, 'semantic', None)
        print('acknowledged', flush=True)
        exec(sys.stdin.readline())
asyncio.run(main())
print('closed', flush=True)
sys.stdin.read()
"""


@contextmanager
def storing(path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[str], object]]]:
    """Let another process open a store with acknowledged rows; yield it, and what tells it how to go on."""
    command = [sys.executable, "-W", "ignore", "-c", _STORE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        stdin: Any = process.stdin
        assert process.stdout
        assert process.stdout.readline() == "acknowledged\n"
        try:
            yield process, lambda line: stdin.write(f"{line}\n")
        finally:
            process.kill()


@pytest.mark.parametrize(
    "name",
    sampled(LEAVES, "its log deleted", "the database renamed, another made", "the index alone deleted"),
)
async def test_the_rows_of_a_closed_store_are_saved(name: str, database: Settings, pristine: bytes) -> None:
    database.db_path.with_name("fresh.db").write_bytes(pristine)
    with storing(database.db_path) as (process, tell):
        assert process.stdout
        take(LEAVES[name], database.db_path)
        tell("pass")
        assert process.stdout.readline() == "closed\n"
        assert f"PID {process.pid} alone holds" in check_of(await nb.troubleshoot(database), "open files").observed
        report = await nb.troubleshoot(database, repair=True)
    if "rescued" in {check.id for check in report.checks}:
        (backup,) = list_backups(database.backup_dir)[0]
        assert backup.content.rows["memory_entries"] == 3 + 7
    else:  # all of it is at the path
        assert query(database.db_path, "SELECT count(*) FROM memory_entries") == [(3 + 7,)]


@pytest.mark.parametrize(
    "name",
    sampled(SPLITS, "all deleted", "its side files renamed", "the database renamed", "all renamed, another made"),
)
async def test_who_holds_lost_files_is_named_and_its_rows_saved(name: str, database: Settings, pristine: bytes) -> None:
    path = database.db_path
    split, rows = SPLITS[name]
    path.with_name("fresh.db").write_bytes(pristine)
    with held(path, *_ROWS) as process:
        take(split, path)
        before = at_path(database)
        await assert_named(database, process.pid, nb.validate_database, nb.monitor, check="open files")
        report = await nb.troubleshoot(database)
        assert f"PID {process.pid} alone holds {rows}" in check_of(report, "open files").observed
        assert f"abathur_rescued_… in {database.backup_dir}" in check_of(report, "plan").observed
        assert not database.backup_dir.exists()
        report = await nb.troubleshoot(database, repair=True)
        assert "kill -9" in check_of(report, f"rescued from PID {process.pid}").remedy
        assert at_path(database) == before
    (backup,), faults = list_backups(database.backup_dir)
    assert not faults
    assert backup.content.rows["memory_entries"] == 3 + len(_ROWS)
    with pytest.raises(nb.RefusedError):  # by name only
        find_backup(database.backup_dir, None, database.env, path)


async def test_what_is_salvaged_of_a_process_is_rescued_for_the_database_at_the_path(filled: Settings) -> None:
    path = filled.db_path
    with held(path, *_ROWS) as process:
        take(SIDE_FILES_REMOVED, path)
        rows = (f"INSERT INTO sessions (id, app_name, user_id) VALUES ('{n:0900}', '', '')" for n in range(200))
        run_sql(path, "BEGIN", *rows, "COMMIT", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)")
        check = check_of(await nb.troubleshoot(filled, repair=True), f"rescued from PID {process.pid}")
    backup = list_backups(filled.backup_dir)[0][-1]
    assert "tables" in check.observed  # it was salvaged table by table
    assert (backup.facts["reason"], backup.facts["database"]) == ("rescued", str(path))
    assert f"-p db_path {path} -p backup {backup.path.name}" in check.remedy
    assert "kill -9" in check.remedy


async def test_of_a_link_beside_a_log_the_database_is_moved_back_to_the_log(database: Settings) -> None:
    path = database.db_path
    with held(path, *_ROWS):
        take("mv $db $dir/real.db; ln -s real.db $db", path)  # SQLite follows the link to a place without the log
    (check,) = (check for check in (await nb.validate_database(database)).checks if check.failed)
    assert f"{path}-wal may hold committed rows of {path.with_name('real.db')}" in check.remedy
    path.with_name("real.db").replace(path)
    assert query(path, "SELECT count(*) FROM memory_entries") == [(3 + len(_ROWS),)]


async def test_who_lacks_the_newer_rows_is_named_with_them_and_a_restoration_waits(filled: Settings) -> None:
    path = filled.db_path
    with held(path, _ROWS[0]) as process:
        take(SIDE_FILES_REMOVED, path)
        run_sql(path, *_ROWS[1:4])
        told = check_of(await nb.troubleshoot(filled), "open files").observed
        assert f"PID {process.pid} alone holds 1 row of memory_entries" in told
        assert f"it lacks 3 rows of memory_entries of {path}" in told
        assert check_of(await nb.backup_database(filled), "open files").status == "warn"
        with untouched(path):
            report = await nb.restore_database(filled, apply=True)
        assert report.refused
        assert f"PID {process.pid} " in check_of(report, "open files").observed


async def test_a_store_of_this_very_process_is_not_mixed_with_what_came_after_it(database: Settings) -> None:
    async with busy(database):
        take(SIDE_FILES_REMOVED, database.db_path)
        verbs = (nb.validate_database, nb.backup_database, nb.explain_queries, nb.monitor)
        await assert_named(database, os.getpid(), *verbs)
        with pytest.raises(nb.RefusedError, match=f"PID {os.getpid()} has open"):
            async with nb.Database.open(database):
                pass
        report = await nb.troubleshoot(database, repair=True)
    assert f"rescued from PID {os.getpid()}" in {check.name for check in report.checks}


def test_opening_and_closing_beside_a_look_is_no_alarm(database: Settings) -> None:
    program = (
        "import sqlite3, sys\nprint(flush=True)\nwhile True:\n    conn = sqlite3.connect(sys.argv[1])\n"
        "    conn.execute(sys.argv[2])\n    conn.commit()\n    conn.close()\n"
    )
    with running(program, database.db_path, "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)"):
        assert not [found for found in (strays(database.db_path) for _ in range(50)) if found]


def test_what_a_fork_has_merely_inherited_is_no_alarm(database: Settings) -> None:
    async def forked_meanwhile() -> multiprocessing.pool.Pool:
        async with busy(database):
            return multiprocessing.get_context("fork").Pool(1)

    with asyncio.run(forked_meanwhile()):  # its child lives on with the files of the closed store
        asyncio.run(nb.validate_database(database)).raise_for_failures()


async def test_without_the_log_alone_each_verb_names_the_process_and_not_the_disk(database: Settings) -> None:
    with held(database.db_path, _ROWS[0]) as process:
        Path(f"{database.db_path}-wal").unlink()
        verbs = (nb.validate_database, nb.initialize_database, nb.backup_database, nb.monitor)
        await assert_named(database, process.pid, *verbs)


async def test_init_names_who_has_the_deleted_database_open_that_it_makes_anew(database: Settings) -> None:
    with held(database.db_path, _ROWS[0]) as process:
        take("rm $db $db-wal $db-shm", database.db_path)
        report = await nb.initialize_database(database)
    check = check_of(report, "open files")
    assert (report.ok, check.status) == (True, "warn")
    assert f"PID {process.pid} " in check.observed
