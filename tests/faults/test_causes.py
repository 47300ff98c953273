"""What the system refuses is told by its true cause and its true place, whichever verb meets it."""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from damage import fingerprint, run_sql

import abathur_nb as nb
from abathur_nb.backups.copying import copy_out
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import AbathurError

Verb = Callable[[Settings], Coroutine[Any, Any, Any]]
ROOM = "free on the disk of {}"
FULL, READ_ONLY = "the disk of {} is full", "{} is mounted read-only"


@pytest.fixture
def mounted() -> Iterator[Callable[[Path, str], None]]:
    """Return a function that mounts a tmpfs with these options over a directory, with what the directory holds."""
    done: list[Path] = []

    def mount(folder: Path, options: str) -> None:
        kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", folder], check=True)
        done.append(folder)
        for name, content in kept.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield mount
    for folder in done:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
async def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a database with a backup, whose three directories lie apart."""
    monkeypatch.setenv("ABATHUR_MIN_FREE_MB", "0")
    for name in ("data", "backups", "runs"):
        (tmp_path / name).mkdir(mode=0o700)
    settings = resolve(
        db_path=tmp_path / "data/abathur.db", backup_dir=tmp_path / "backups", archive_dir=tmp_path / "runs"
    )
    (await nb.initialize_database(settings)).raise_for_failures()
    async with nb.Database.open(settings) as db:
        for number in range(40):
            await db.memory.add_memory("user:a", f"k{number}", {"v": "x" * 3000}, "semantic", "me")
    (await nb.backup_database(settings)).raise_for_failures()
    return settings


async def store(settings: Settings) -> None:
    async with nb.Database.open(settings) as db:
        for number in range(200):
            await db.memory.add_memory("user:a", f"new{number}", {"v": "x" * 9000}, "semantic", "me")


async def init_anew(settings: Settings) -> Any:
    return await nb.initialize_database(replace(settings, db_path=settings.db_path.with_name("new.db")))


async def restore(settings: Settings) -> Any:
    return await nb.restore_database(settings, apply=True)


async def restore_anew(settings: Settings) -> Any:
    return await nb.restore_database(replace(settings, db_path=settings.db_path.with_name("new.db")), apply=True)


async def drill(settings: Settings) -> Any:
    return await nb.restore_database(settings, drill=True)


async def roll_back(settings: Settings) -> Any:
    return await nb.roll_back(settings, to="fresh", apply=True)


async def repair(settings: Settings) -> Any:
    run_sql(settings.db_path, "DROP INDEX idx_audit_task")
    return await nb.troubleshoot(settings, repair=True)


async def benchmark(settings: Settings) -> Any:
    return await nb.run_benchmark(settings, rows=400, repetitions=1)


async def begin(settings: Settings) -> None:
    nb.start_run(settings, "validate")


def left_in(folder: Path) -> dict[Path, object]:
    """Return what is in a folder, less what SQLite may leave beside a database."""
    return {path: fingerprint(path) for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))}


def told(result: Any) -> str:
    report = getattr(result, "report", result)
    return "\n".join(f"{check.observed}: {check.remedy}" for check in report.checks if check.failed)


@pytest.mark.parametrize(
    ("verb", "where", "options", "words"),
    [
        (init_anew, "data", "size=700k", FULL),
        (init_anew, "data", "nr_inodes=5", FULL),
        (store, "data", "size=1m", FULL),
        (restore_anew, "data", "size=700k", ROOM),
        (nb.backup_database, "backups", "size=700k", "make room: du -xh --max-depth=2 {}"),
        (restore, "backups", "size=700k", ROOM),
        (roll_back, "backups", "size=700k", ROOM),
        (repair, "backups", "size=700k", FULL),
        (begin, "runs", "nr_inodes=2", FULL),
        (nb.backup_database, "backups", "ro", READ_ONLY),
        (restore, "backups", "ro", READ_ONLY),
        (roll_back, "backups", "ro", READ_ONLY),
        (repair, "backups", "ro", READ_ONLY),
        (begin, "runs", "ro", READ_ONLY),
        (init_anew, "data", "ro", "mounted read-only at {}"),
        (store, "data", "ro", READ_ONLY),
        (benchmark, "data", "ro", READ_ONLY),
        (restore, "data", "ro", READ_ONLY),
    ],
)
async def test_the_directory_that_is_full_or_read_only_is_named_and_nothing_is_half_done(
    verb: Verb,
    where: str,
    options: str,
    words: str,
    three: Settings,
    tmp_path: Path,
    mounted: Callable[[Path, str], None],
) -> None:
    mounted(tmp_path / where, options)
    before = left_in(tmp_path)
    try:
        found = told(await verb(three))
    except AbathurError as error:
        found = str(error)
    assert words.format(tmp_path / where) in found, found
    after = left_in(tmp_path)
    if verb is repair or verb is store:  # which has changed it before, and kept what was acknowledged
        before.pop(three.db_path), after.pop(three.db_path)
    assert after == before


async def test_a_disk_that_fills_up_under_a_backup_is_that_of_the_backups(
    three: Settings, mounted: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill_and_copy(*arguments: Any, **options: Any) -> None:
        with suppress(OSError):
            (three.backup_dir / "filler").write_bytes(bytes(64 * 1024**2))
        await copy_out(*arguments, **options)

    mounted(three.backup_dir, "size=8m")
    monkeypatch.setattr("abathur_nb.backups.taking.copy_out", fill_and_copy)
    report = await nb.backup_database(three)
    (failed,) = (check for check in report.checks if check.failed)
    assert failed.observed == f"no backup was made: {FULL.format(three.backup_dir)}"
    assert {path.suffix for path in three.backup_dir.iterdir()} == {".db", ".json", ""}


# Each verb in a process of its own, which has set itself a limit.
LIMITED = """
import json, resource
three = nb.resolve(db_path=sys.argv[1], backup_dir=sys.argv[2], archive_dir=sys.argv[3])
new = nb.resolve(db_path=sys.argv[1].replace("abathur.db", "new.db"), backup_dir=sys.argv[2])
async def store(settings):
    async with nb.Database.open(settings) as db:
        for number in range(200):
            await db.memory.add_memory("user:a", f"new{number}", {"v": "x" * 9000}, "semantic", "me")
async def begin(settings):
    nb.start_run(settings, "validate")
work = {
    "init": lambda: nb.initialize_database(new),
    "backup": lambda: nb.backup_database(three),
    "restore": lambda: nb.restore_database(three, apply=True),
    "rollback": lambda: nb.roll_back(three, to="fresh", apply=True),
    "benchmark": lambda: nb.run_benchmark(three, rows=2000, repetitions=1),
    "store": lambda: store(three),
    "begin": lambda: begin(three),
}[sys.argv[4]]
"""
AND_RUN = """
try:
    async def main():
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + int(sys.argv[5]), 4096))
        return await work()
    result = asyncio.run(main())
    report = getattr(result, "report", result)
    print("; ".join(f"{check.observed}: {check.remedy}" for check in report.checks if check.failed) if report else "")
except nb.AbathurError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("verb", "where"),
    [
        *(("init", "data"), ("store", "data"), ("benchmark", "data"), ("begin", "runs")),
        *(("rollback", "data"), ("backup", "backups"), ("restore", "backups")),
    ],
)
def test_a_limit_of_file_size_is_no_full_disk(verb: str, where: str, three: Settings, tmp_path: Path) -> None:
    limit = {"store": 1_000_000, "benchmark": 1_000_000, "begin": 100}.get(verb, 200_000)
    program = f"{LIMITED}resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{AND_RUN}"
    before = left_in(tmp_path)
    found = in_a_process(program, three, verb)
    assert f"{tmp_path / where} takes no file of that size: this process may write {limit:,} bytes" in found
    assert left_in(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("verb", ["init", "backup", "restore", "rollback", "benchmark", "store"])
def test_a_limit_of_open_files_is_named(verb: str, three: Settings, tmp_path: Path) -> None:
    found = [in_a_process(LIMITED + AND_RUN, three, verb, left) for left in range(0, 12, 3)]
    struck = ["as many files open as it may" in text for text in found]
    assert struck == sorted(struck, reverse=True), found  # until there are enough
    assert struck[0], found
    assert left_in(tmp_path)


def in_a_process(program: str, three: Settings, verb: str, files: int = 1000) -> str:
    prelude = "import asyncio, os, sys\nimport abathur_nb as nb\n"
    places = map(str, (three.db_path, three.backup_dir, three.archive_dir))
    command = [sys.executable, "-c", prelude + program, *places, verb, str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("verb", [nb.validate_database, nb.backup_database])
async def test_what_only_reads_works_beside_a_read_only_database(
    verb: Verb, three: Settings, mounted: Callable[[Path, str], None]
) -> None:
    mounted(three.db_path.parent, "ro")
    (await verb(three)).raise_for_failures()


async def test_a_drill_beside_a_read_only_database_uses_the_backup_directory(
    three: Settings, mounted: Callable[[Path, str], None]
) -> None:
    """And does not pass: a restoration there would be refused."""
    mounted(three.db_path.parent, "ro")
    before = left_in(three.backup_dir)
    report = await drill(three)
    found = {check.name: check.status for check in report.checks}
    assert (found["drill"], found["RTO"], found["directory"]) == ("pass", "pass", "fail")
    assert READ_ONLY.format(three.db_path.parent) in told(report)
    assert left_in(three.backup_dir) == before


# --- a directory that vanishes

VANISHING: dict[str, Verb] = {
    "init": init_anew,
    "init where there is one": nb.initialize_database,
    "preflight": nb.preflight,
    "validate": nb.validate_database,
    "backup": nb.backup_database,
    "restore": restore,
    "drill": drill,
    "rollback": roll_back,
    "troubleshoot": nb.troubleshoot,
    "explain": nb.explain_queries,
    "explore": nb.explore,
    "monitor": nb.monitor,
    "benchmark": benchmark,
    "store": store,
    "record": begin,
}
# Each of the first calls of these; of others, and of the thousands that look at open files, fewer and fewer.
EACH = {"init": 1, "init where there is one": 3, "record": 5}


@pytest.mark.parametrize("verb", VANISHING)
def test_a_directory_that_vanishes_at_any_call_is_an_answer_and_no_traceback(
    verb: str, three: Settings, tmp_path: Path
) -> None:
    """It is renamed away before the nth call of the system, or of SQLite, in whichever thread, for each n."""
    shutil.copytree(tmp_path, tmp_path.with_suffix(".kept"))
    data, n, struck = three.db_path.parent, 1, True
    while struck:
        struck = False
        with vanishing(data, n) as hit, suppress(AbathurError):
            asyncio.run(VANISHING[verb](three))
        struck = bool(hit)
        shutil.rmtree(tmp_path)
        shutil.copytree(tmp_path.with_suffix(".kept"), tmp_path)
        n += EACH.get(verb, max(7, n // 2)) if n < 200 else n // 2
    assert n > 40


@contextmanager
def vanishing(folder: Path, n: int) -> Iterator[list[int]]:
    """Rename a folder away before the nth call during the block; what is yielded holds something once it was."""
    calls, hit = count(1), list[int]()

    def note(_frame: Any, event: str, called: Any) -> None:
        of = getattr(called, "__module__", None), type(getattr(called, "__self__", None)).__module__
        if event == "c_call" and ("posix" in of or "sqlite3" in of) and not hit and next(calls) == n:
            hit.append(n)
            folder.rename(folder.with_name("gone"))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield hit
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
