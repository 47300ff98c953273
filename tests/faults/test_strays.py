"""A process whose file was deleted or moved under it is named, and what it alone holds is saved before it is lost."""

import asyncio
import multiprocessing.pool
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from damage import MEMORY, held, run_sql
from sampling import sampled

import abathur_nb as nb
from abathur_nb.backups.manifest import find_backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.report import Check, Report
from abathur_nb.store.guarded import strays

_ROWS = [MEMORY.replace("'k'", f"'alone-{number}'") for number in range(7)]


def files(path: Path) -> list[Path]:
    return [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm") if Path(f"{path}{suffix}").exists()]


def delete_log(path: Path) -> None:
    for file in files(path)[1:]:
        file.unlink()


def delete_all(path: Path) -> None:
    for file in files(path):
        file.unlink()


def move_another_over(path: Path) -> None:
    other = nb.resolve("development", db_path=path.with_name("other.db"))
    asyncio.run(nb.initialize_database(other)).raise_for_failures()
    other.db_path.replace(path)
    for file in files(other.db_path):
        file.unlink()


def move_aside(path: Path) -> None:
    folder = path.with_name("abathur_aside_20261130_000000_000")
    folder.mkdir()
    for file in files(path):
        file.rename(folder / file.name)


def move_log(path: Path) -> None:
    """Move it where nothing names the database; another database of that process is no concern."""
    folder = path.with_name("elsewhere")
    folder.mkdir()
    Path(f"{path}-wal").rename(folder / "log")


def rename_side_files(path: Path) -> None:
    for file in files(path)[1:]:
        file.rename(f"{file}.old")


def copy_over(path: Path) -> None:
    """Put a copy in its place, as a restore by hand does."""
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    delete_log(path)
    copy.replace(path)


# What it then holds that nobody else finds: with the three seed memories, where no database is left at the path.
SPLITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "its log deleted": (delete_log, "7 rows of memory_entries"),
    "all deleted": (delete_all, "10 rows of memory_entries"),
    "the database deleted": (Path.unlink, "10 rows of memory_entries"),
    "another moved over it": (move_another_over, "no row"),  # which is read with its log
    "moved aside": (move_aside, "10 rows of memory_entries"),
    "its log moved": (move_log, "7 rows of memory_entries"),
    "its side files renamed": (rename_side_files, "7 rows of memory_entries"),
    "a copy in its place": (copy_over, "7 rows of memory_entries"),
}


def link_to_it(path: Path) -> None:
    """Move it elsewhere and leave a link, which SQLite follows to a place without the log."""
    path.rename(path.with_name("real.db"))
    path.symlink_to("real.db")


LEAVES: dict[str, tuple[Callable[[Path], None], bool]] = {
    **{f"{name}, then closed": (split, True) for name, (split, _) in SPLITS.items()},
    "the log alone deleted, then closed": (lambda path: Path(f"{path}-wal").unlink(), True),
    "the index alone deleted, then closed": (lambda path: Path(f"{path}-shm").unlink(), True),
    "a link in its place, then closed": (link_to_it, True),
    "a link in its place": (link_to_it, False),
}
_STORE = """
import asyncio, sys, abathur_nb as nb
async def main():
    async with nb.Database.open(nb.resolve('development', db_path=sys.argv[1])) as db:
        for n in range(7): await db.memory.add_memory('user:a', str(n), {}, 'semantic', None)
        print('acknowledged', flush=True)
        if sys.stdin.readline() == 'stay\\n':
            try:
                await db.memory.add_memory('user:a', 'later', {}, 'semantic', None)
                print('not refused', flush=True)
            except nb.RefusedError:
                print('refused', flush=True)
            sys.stdin.read()
asyncio.run(main())
print('closed', flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "name",
    sampled(
        LEAVES,
        *("its log deleted, then closed", "another moved over it, then closed", "a link in its place"),
        *("moved aside, then closed", "the index alone deleted, then closed"),
    ),
)
def test_every_acknowledged_row_of_a_store_is_saved_before_its_process_is_killed(name: str, database: Settings) -> None:
    split, closes = LEAVES[name]
    command = [sys.executable, "-W", "ignore", "-c", _STORE, str(database.db_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "acknowledged\n"
        split(database.db_path)
        process.stdin.write("close\n" if closes else "stay\n")
        process.stdin.flush()
        assert process.stdout.readline() == ("closed\n" if closes else "refused\n")
        told = check_of(asyncio.run(nb.troubleshoot(database)), "open files").observed
        assert f"PID {process.pid} alone holds" in told
        report = asyncio.run(nb.troubleshoot(database, repair=True))
        process.kill()
    saved = [backup.content.rows["memory_entries"] for backup in list_backups(database.backup_dir)[0]]
    if "rescued" not in {check.id for check in report.checks}:  # all of it is at the path
        with closing(sqlite3.connect(database.db_path)) as conn:
            saved = [row for (row,) in conn.execute("SELECT count(*) FROM memory_entries")]
    assert saved == [3 + 7]


def check_of(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name.startswith(name))


@pytest.mark.parametrize(
    "name", sampled(SPLITS, *("all deleted", "its log moved", "another moved over it", "a copy in its place"))
)
def test_who_holds_lost_files_is_named_and_what_it_alone_holds_is_saved(name: str, database: Settings) -> None:
    path = database.db_path
    split, rows = SPLITS[name]
    with held(path, *_ROWS) as process:
        split(path)
        before = {file: file.read_bytes() for file in files(path)}
        for report in (asyncio.run(nb.validate_database(database)), asyncio.run(nb.monitor(database)).report):
            assert f"PID {process.pid} (" in check_of(report, "open files").observed
            assert not report.ok
        report = asyncio.run(nb.troubleshoot(database))
        assert f"PID {process.pid} alone holds {rows}" in check_of(report, "open files").observed
        assert f"abathur_rescued_… in {database.backup_dir}" in check_of(report, "plan").observed
        assert not database.backup_dir.exists()
        report = asyncio.run(nb.troubleshoot(database, repair=True))
        assert "kill -9" in check_of(report, f"rescued from PID {process.pid}").remedy
        assert [
            file for file in files(path) if file.read_bytes() != before.get(file, b"") and file.suffix != ".db-shm"
        ] == []
    (backup,), faults = list_backups(database.backup_dir)
    assert not faults
    assert backup.content.rows["memory_entries"] == 3 + len(_ROWS)
    with pytest.raises(nb.RefusedError):  # by name only
        find_backup(database.backup_dir, None, database.env, path)


def test_of_a_link_beside_a_log_the_database_is_moved_back_to_the_log(database: Settings) -> None:
    path = database.db_path
    with held(path, *_ROWS):
        link_to_it(path)
    (check,) = (check for check in asyncio.run(nb.validate_database(database)).checks if check.failed)
    assert f"{path}-wal may hold committed rows of {path.with_name('real.db')}" in check.remedy
    path.with_name("real.db").replace(path)
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM memory_entries").fetchall() == [(3 + len(_ROWS),)]


def test_who_lacks_the_newer_rows_is_named_with_them_and_a_restoration_waits(database: Settings) -> None:
    path = database.db_path
    asyncio.run(nb.backup_database(database)).raise_for_failures()
    with held(path, _ROWS[0]) as process:
        delete_log(path)
        run_sql(path, *_ROWS[1:4])
        told = check_of(asyncio.run(nb.troubleshoot(database)), "open files").observed
        assert f"PID {process.pid} alone holds 1 row of memory_entries" in told
        assert f"it lacks 3 rows of memory_entries of {path}" in told
        assert check_of(asyncio.run(nb.backup_database(database)), "open files").status == "warn"
        before = path.read_bytes()
        report = asyncio.run(nb.restore_database(database, apply=True))
        assert report.refused
        assert f"PID {process.pid} " in check_of(report, "open files").observed
        assert path.read_bytes() == before


async def test_a_store_of_this_very_process_is_not_mixed_with_what_came_after_it(database: Settings) -> None:
    async with nb.Database.open(database) as db:
        await db.memory.add_memory("user:a", "k", {}, "semantic", None)
        delete_log(database.db_path)
        for work in (nb.validate_database, nb.backup_database, nb.explain_queries, nb.monitor):
            result: object = await work(database)
            report = getattr(result, "report", result)
            assert isinstance(report, Report)
            assert f"PID {os.getpid()} " in check_of(report, "").observed
            assert not report.ok
        with pytest.raises(nb.RefusedError, match="this process, PID"):
            async with nb.Database.open(database):
                pass
        report = await nb.troubleshoot(database, repair=True)
    assert f"rescued from PID {os.getpid()}" in {check.name for check in report.checks}


def test_opening_and_closing_beside_a_look_is_no_alarm(database: Settings) -> None:
    program = (
        "import sqlite3, sys\n"
        "print(flush=True)\n"
        "while True:\n"
        "    conn = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "    conn.execute(\"INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)\")\n"
        "    conn.close()\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(database.db_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = [strays(database.db_path) for _ in range(50)]
        process.kill()
    assert not any(found)


def test_what_a_fork_has_merely_inherited_is_no_alarm(database: Settings) -> None:
    async def forked_meanwhile() -> multiprocessing.pool.Pool:
        async with nb.Database.open(database) as db:
            await db.memory.add_memory("user:a", "k", {}, "semantic", None)
            return multiprocessing.get_context("fork").Pool(1)

    with asyncio.run(forked_meanwhile()):  # its child lives on with the files of the closed store
        asyncio.run(nb.validate_database(database)).raise_for_failures()


async def test_without_the_log_alone_each_verb_names_the_process_and_not_the_disk(database: Settings) -> None:
    with held(database.db_path, _ROWS[0]) as process:
        Path(f"{database.db_path}-wal").unlink()
        for verb in (nb.validate_database, nb.initialize_database, nb.backup_database, nb.monitor):
            result: object = await verb(database)
            report = getattr(result, "report", result)
            assert isinstance(report, Report)
            assert not report.ok
            assert f"PID {process.pid} " in str(report)
            assert "dmesg" not in str(report)


def test_init_names_who_has_the_deleted_database_open_that_it_makes_anew(database: Settings) -> None:
    with held(database.db_path, _ROWS[0]) as process:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{database.db_path}{suffix}").unlink()
        report = asyncio.run(nb.initialize_database(database))
    check = check_of(report, "open files")
    assert (report.ok, check.status) == (True, "warn")
    assert f"PID {process.pid} " in check.observed


@pytest.mark.filterwarnings("ignore:.*no longer the database:RuntimeWarning")
async def test_a_store_whose_directory_was_moved_is_named_by_its_own_process(database: Settings) -> None:
    folder = database.db_path.parent
    async with nb.Database.open(database) as db:
        await db.memory.add_memory("user:a", "k", {}, "semantic", None)
        folder.rename(folder.with_name("away"))
        folder.mkdir(mode=0o700)
        for look in (nb.validate_database, nb.initialize_database, nb.validate_database, nb.troubleshoot):
            told = " ".join(check.observed for check in (await look(database)).checks)
            assert f"PID {os.getpid()} (" in told
            assert str(folder.with_name("away") / "abathur.db-wal") in told
        await nb.troubleshoot(database, repair=True)
    saved = [backup.content.rows["memory_entries"] for backup in list_backups(database.backup_dir)[0]]
    assert saved == [3 + 1]


_OTHER = """
import os, sqlite3, sys
path, mode = sys.argv[1:]
folder = os.path.join(os.path.dirname(path), 'files')
os.mkdir(folder)
other = sqlite3.connect(folder + '/other.db', isolation_level=None)
other.execute(f'PRAGMA journal_mode = {mode}')
other.execute('PRAGMA application_id = 0x41424154')
other.execute('CREATE TABLE t (x)')
other.execute('INSERT INTO t VALUES (1)')
other.execute('BEGIN')
other.execute('SELECT * FROM t').fetchall()
"""
_IDLE = "keep = sqlite3.connect(path)\n"
_LOOSE = "for s in ('wal', 'shm'): os.rename(f'{folder}/other.db-{s}', f'{folder}/loose-{s}')\n"
HEALTHY = {
    "an idle connection beside another database": ("wal", _IDLE),
    "an open file beside another database": ("wal", "keep = open(path, 'rb')\n"),
    "an open log beside another database": ("wal", "keep = open(path + '-wal', 'rb')\n"),
    "an open log beside a database without one": ("delete", "keep = open(path + '-wal', 'rb')\n"),
    "an open log and index beside a database without them": (
        "delete",
        "keep = [open(path + suffix, 'rb') for suffix in ('-wal', '-shm')]\n",
    ),
    "an idle connection beside another database whose log was moved": ("wal", _LOOSE + _IDLE),
    "a connection in use beside another database whose log was moved": (
        "wal",
        _LOOSE + _IDLE + "keep.execute('SELECT * FROM tasks').fetchall()\n",
    ),
}


@contextmanager
def running(program: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process run a program, and stay until the block ends."""
    command = [sys.executable, "-I", "-S", "-c", f"{program}print(flush=True)\nsys.stdin.read()\n", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", sampled(HEALTHY, *list(HEALTHY)[::2]))
def test_another_database_of_a_process_is_never_taken_for_a_lost_file(name: str, database: Settings) -> None:
    mode, program = HEALTHY[name]
    with held(database.db_path, _ROWS[0]), running(_OTHER + program, database.db_path, mode):
        assert strays(database.db_path) == []


async def test_nor_is_one_of_this_very_process(database: Settings, tmp_path: Path) -> None:
    other = nb.resolve("development", db_path=tmp_path / "other" / "abathur.db")
    (await nb.initialize_database(other)).raise_for_failures()
    async with nb.Database.open(other):
        with closing(sqlite3.connect(database.db_path)):  # idle
            (await nb.validate_database(database)).raise_for_failures()
            async with nb.Database.open(database):
                pass


_BUSY = """
import os, resource, sqlite3, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute(sys.argv[2])
folder = os.path.join(os.path.dirname(sys.argv[1]), 'files')
os.mkdir(folder)
keep = []
for number in range(1000):
    keep.append(open(f'{folder}/{number}', 'w+b'))
    keep[-1].write(bytes(4096))
def churn():
    while True:
        for file in [open(f'{folder}/new{number}', 'wb') for number in range(40)]: file.close()
threading.Thread(target=churn, daemon=True).start()
"""


def test_a_thousand_open_files_and_others_that_come_and_go_hide_nothing(database: Settings) -> None:
    started = list[object]()
    with running(_BUSY, database.db_path, _ROWS[0]) as process:
        rename_side_files(database.db_path)
        sys.addaudithook(lambda event, _: started.append(event) if event == "subprocess.Popen" else None)
        assert [stray.pid for stray in strays(database.db_path)] == [process.pid]
        looks = len(started)
    assert looks == 7  # one process for each look, however many files there are
