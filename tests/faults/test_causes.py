"""What the system refuses is told by its true cause and its true place, whichever verb meets it."""

import asyncio
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import situations
from damage import fingerprint, run_sql
from mounting import remount, tmpfs
from sampling import sampled
from situations import no_file_beyond

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve

Verb = Callable[[Settings], Coroutine[Any, Any, Any]]
Mount = Callable[[Path, str], None]
ROOM = "free on the disk of {}"
FULL, READ_ONLY = "the disk of {} is full", "{} is mounted read-only"


@pytest.fixture
def mounted() -> Iterator[Mount]:
    """Return a function that mounts a tmpfs with these options over a directory, with what the directory holds."""
    with ExitStack() as stack:

        def mount(folder: Path, options: str) -> None:
            kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
            stack.enter_context(tmpfs(folder, "size=64m"))
            for name, content in kept.items():
                (folder / name).write_bytes(content)
                (folder / name).chmod(0o600)
            remount(folder, options)

        yield mount


@pytest.fixture
async def three(database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a database with a backup, whose three directories lie apart."""
    monkeypatch.setenv("ABATHUR_MIN_FREE_MB", "0")
    for name in ("backups", "runs"):
        (tmp_path / name).mkdir(mode=0o700)
    settings = resolve(db_path=database.db_path, backup_dir=tmp_path / "backups", archive_dir=tmp_path / "runs")
    await store(settings, "k", 40, 3000)
    (await nb.backup_database(settings)).raise_for_failures()
    return settings


async def store(settings: Settings, name: str = "new", count: int = 200, size: int = 9000) -> None:
    async with nb.Database.open(settings) as db:
        for number in range(count):
            await db.memory.add_memory("user:a", f"{name}{number}", {"v": "x" * size}, "semantic", "me")


async def repair(settings: Settings) -> Any:
    run_sql(settings.db_path, "DROP INDEX idx_audit_task")
    return await nb.troubleshoot(settings, repair=True)


async def begin(settings: Settings) -> None:
    nb.start_run(settings, "validate")


def anew(settings: Settings) -> Settings:
    return replace(settings, db_path=settings.db_path.with_name("new.db"))


USUAL = ("preflight", "validate", "backup", "restore", "drill", "fresh start", "troubleshoot", "explain", "explore")
VERBS: dict[str, Verb] = {
    "init": lambda three: nb.initialize_database(anew(three)),
    "init where there is one": nb.initialize_database,
    "restore anew": lambda three: nb.restore_database(anew(three), apply=True),
    "repair": repair,
    "benchmark": lambda three: nb.run_benchmark(three, rows=2000, repetitions=1),
    "store": store,
    "record": begin,
    **{name: situations.VERBS[name] for name in (*USUAL, "monitor")},
}


def left_in(folder: Path) -> dict[Path, object]:
    """Return what is in a folder, less what SQLite may leave beside a database."""
    return {path: fingerprint(path) for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm"))}


async def answer(verb: str, three: Settings) -> str:
    try:
        result = await VERBS[verb](three)
    except nb.AbathurError as error:
        return str(error)
    report: Any = getattr(result, "report", result)
    return "\n".join(f"{check.observed}: {check.remedy}" for check in report.checks if check.failed)


@pytest.mark.parametrize(
    ("verb", "where", "options", "words"),
    [
        ("init", "data", "size=700k", FULL),
        ("init", "data", "nr_inodes=5", FULL),
        ("store", "data", "size=1m", FULL),
        ("restore anew", "data", "size=700k", ROOM),
        ("backup", "backups", "size=700k", "make room: du -xh --max-depth=2 {}"),
        ("restore", "backups", "size=700k", ROOM),
        ("fresh start", "backups", "size=700k", ROOM),
        ("repair", "backups", "size=700k", FULL),
        ("record", "runs", "nr_inodes=2", FULL),
        ("backup", "backups", "ro", READ_ONLY),
        ("fresh start", "backups", "ro", READ_ONLY),
        ("record", "runs", "ro", READ_ONLY),
        ("init", "data", "ro", "mounted read-only at {}"),
        ("store", "data", "ro", READ_ONLY),
        ("benchmark", "data", "ro", READ_ONLY),
        ("restore", "data", "ro", READ_ONLY),
        ("drill", "data", "ro", READ_ONLY),
    ],
)
async def test_a_full_or_read_only_directory_is_named(
    verb: str, where: str, options: str, words: str, three: Settings, tmp_path: Path, mounted: Mount
) -> None:
    mounted(tmp_path / where, options)
    before = left_in(tmp_path)
    found = await answer(verb, three)
    assert words.format(tmp_path / where) in found, found
    after = left_in(tmp_path)
    if verb in ("repair", "store"):  # which has changed it before, and kept what was acknowledged
        before.pop(three.db_path), after.pop(three.db_path)
    assert after == before


LIMITS = {  # where it strikes, and the size beyond which no file may grow
    "init": ("data", 200_000),
    "store": ("data", 1_000_000),
    "benchmark": ("data", 1_000_000),
    "fresh start": ("data", 200_000),
    "backup": ("backups", 200_000),
    "restore": ("backups", 200_000),
    "record": ("runs", 100),
}


@pytest.mark.parametrize("verb", sampled(LIMITS, "init", "backup", "record"))
async def test_a_limit_of_file_size_is_no_full_disk(verb: str, three: Settings, tmp_path: Path) -> None:
    where, limit = LIMITS[verb]
    before = left_in(tmp_path)
    with no_file_beyond(limit, three):
        found = await answer(verb, three)
    assert f"{tmp_path / where} rejects a file of that size: this process may write {limit:,} bytes" in found
    assert left_in(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("verb", sampled([verb for verb in LIMITS if verb != "record"], "restore"))
async def test_a_limit_of_open_files_is_named(verb: str, three: Settings) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]), hard))
    try:
        found = await answer(verb, three)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "its limit of open files" in found


async def test_what_reads_works_on_a_read_only_mount(three: Settings, mounted: Mount) -> None:
    mounted(three.db_path.parent, "ro")
    before = left_in(three.backup_dir)
    found = {check.name: check.status for check in (await VERBS["drill"](three)).checks}
    # The drill uses the directory of the backups; a restoration would be refused.
    assert (found["drill"], found["RTO"], found["directory"]) == ("pass", "pass", "fail")
    assert left_in(three.backup_dir) == before
    for verb in ("validate", "backup"):
        (await VERBS[verb](three)).raise_for_failures()


# Each of the first calls of these; of others, and of the thousands that look at open files, fewer and fewer.
EACH = {"init": 5, "init where there is one": 3, "record": 5}


@pytest.mark.parametrize(
    "verb", sampled((verb for verb in VERBS if verb not in ("restore anew", "repair")), "init", "backup", "record")
)
def test_a_directory_that_vanishes_at_any_call_is_answered(verb: str, three: Settings, tmp_path: Path) -> None:
    """It is renamed away before the nth call of the system, or of SQLite, in whichever thread, for each n."""
    shutil.copytree(tmp_path, tmp_path.with_suffix(".kept"))
    data, n, struck = three.db_path.parent, 1, True
    while struck:
        struck = False
        with vanishing(data, n) as hit, suppress(nb.AbathurError):
            asyncio.run(VERBS[verb](three))
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
