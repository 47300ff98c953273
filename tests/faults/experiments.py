"""What an experiment is, its place, what it finds there, and the count of what became of many."""

import asyncio
import mmap
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import aiosqlite

from abathur_nb.backups.manifest import Backup, Content, list_backups
from abathur_nb.backups.taking import open_copy, read_content
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.runbook.init import initialize_database
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.store.sql import DDL_FILES, SEED_FILE, statements


class BrokenHarnessError(Exception):
    """Report that the experiment itself did not work, so that it proves nothing."""


class Outcome(NamedTuple):
    """Hold what became of one experiment: faults injected, faults that struck, and the harm done, if any."""

    injected: int
    struck: int
    harm: str = ""


Experiment = Callable[[Path], Outcome]
# Returns the experiments on one way to do it, thinned to every n-th, in a folder that they may use to calibrate.
Planner = Callable[[str, int, int, Path], list[Experiment]]
# Does something to the database at a path, and returns its report.
Deed = Callable[[Path], Coroutine[Any, Any, dict[str, Any]]]


@dataclass(slots=True)
class Result:
    """Count the outcomes of one sweep and of its control, and judge them.

    ``blunt`` is the share of the control that may be damaged at most where the harness proves nothing.
    """

    title: str
    injected: int = 0
    struck: int = 0
    survived: int = 0
    experiments: int = 0
    harms: list[str] = field(default_factory=list)
    control: int = 0
    control_damaged: int = 0
    blunt: float = 0.5
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Say ``ok``, ``FAILED``, or that the harness proves nothing."""
        if self.harms:
            return "FAILED"
        sharp = self.control_damaged > self.control * self.blunt
        return "ok" if sharp and self.struck == self.injected > 0 else "BROKEN HARNESS"


class Place:
    """Name the paths of one experiment: ``top`` is there beforehand, the directory of the database is not.

    ``events`` is the log of what was made and forced to the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.top, self.events = root, root / "top", root / "events"
        self.db = self.top / "data" / "abathur.db"
        self.top.mkdir(parents=True)

    def make_leftover(self) -> None:
        """Leave what a predecessor leaves that was killed right after it linked the finished database."""
        scratch = self.db.parent / ".abathur-init-000000000000"
        scratch.mkdir(mode=0o700)
        os.link(self.db, scratch / self.db.name)
        events = self.events.read_text().splitlines(keepends=True)
        self.events.write_text("".join(events[: events.index(f"link {self.db}\n") + 1]))


async def initialize(db: Path) -> dict[str, Any]:
    return (await initialize_database(resolve("development", db_path=db))).to_dict()


async def initialize_naively(db: Path) -> dict[str, Any]:
    """Initialize at the final path, statement by statement, as the seed document does."""
    db.parent.mkdir(mode=0o700, exist_ok=True)
    async with aiosqlite.connect(db, isolation_level=None) as conn:
        for pragma in ("journal_mode = WAL", f"application_id = {APPLICATION_ID}", f"user_version = {SCHEMA_VERSION}"):
            await conn.execute_fetchall(f"PRAGMA {pragma}")
        for filename in (*DDL_FILES, SEED_FILE):
            for statement in statements(filename):
                await conn.execute_fetchall(statement)
    return {"ok": True, "checks": []}


INITIALIZERS: dict[str, Deed] = {"sound": initialize, "naive": initialize_naively}


def settings_of(db: Path) -> Settings:
    return resolve("development", db_path=db)


def copied(path: Path) -> Path:
    """Copy a database with its log or journal, so that a look recovers the copy and not the database."""
    copy = path.parents[1] / "copy" / path.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir(mode=0o700)
    for suffix in ("", "-wal", "-journal"):
        if (side := Path(f"{path}{suffix}")).exists():
            shutil.copy(side, f"{copy}{suffix}")
    return copy


def content_of(path: Path) -> Content | None:
    """Return what is at a path after the recovery that a next opener would do, None if it can't be read."""
    try:
        copy = copied(path)
        with closing(sqlite3.connect(f"{copy.as_uri()}?mode=rw", uri=True)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return asyncio.run(_read(copy))
    except (sqlite3.Error, OSError):
        return None
    finally:
        shutil.rmtree(path.parents[1] / "copy", ignore_errors=True)


async def _read(path: Path) -> Content:
    async with open_copy(path) as conn:
        await conn.execute_fetchall("BEGIN")
        return await read_content(conn)


def first_backup(settings: Settings) -> Backup:
    """Return the backup that was taken before anything was done to the database."""
    return list_backups(settings.backup_dir)[0][0]


def newest_backup(settings: Settings) -> Path:
    """Return what a naive look takes for the newest backup."""
    return max(settings.backup_dir.glob("abathur_*.db"))


def make_database(db: Path) -> Settings:
    settings = settings_of(db)
    asyncio.run(initialize_database(settings)).raise_for_failures()
    return settings


@contextmanager
def forked() -> Iterator[int]:
    """Yield 0 in a new process, which ends with the block, and its number in this one, which kills it then."""
    pid = os.fork()
    try:
        yield pid
    finally:
        if pid == 0:
            os._exit(70)  # the rest of the parent's stack is not this process's to run
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def counting(work: Callable[[mmap.mmap], None]) -> Iterator[Callable[[], int]]:
    """Let a process work during the block; yield what returns the number that it has written last."""
    with mmap.mmap(-1, 8) as shared, forked() as pid:
        if pid == 0:
            work(shared)
        while not any(shared[:8]):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                raise BrokenHarnessError("the worker died")
        yield lambda: int.from_bytes(shared[:8], "little")


def fault_in(path: Path, *more: str) -> str:
    """Say what integrity_check finds, or a query that counts faults, as a careful shell would ask; empty if nothing."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as conn:
            ((found,),) = conn.execute("PRAGMA integrity_check(1)").fetchall()
            faults = [found] if found != "ok" else [query for query in more if conn.execute(query).fetchone()[0]]
            return "; ".join(faults)
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a message that holds what was damaged
        return str(error)


# Does what is drawn to a database, or to its naive counterpart; returns whether a fault struck, and the harm done.
Draw = Callable[[str, Settings, Random], tuple[bool, str]]


def drawn(draw: Draw, count: int, make: Callable[[Path], object] | None = make_database) -> Planner:
    """Return what plans so many experiments, each drawn anew, on a copy of what ``make`` has made."""

    def plan(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
        template = folder / f"template-{name}"
        if make:
            make(template / "abathur.db")
        return [partial(_draw, draw, name, template, f"{seed}-{n}") for n in range(seed % every, count, every)]

    return plan


def _draw(draw: Draw, name: str, template: Path, seed: str, folder: Path) -> Outcome:
    settings = settings_of(folder / "data" / "abathur.db")
    if template.exists():
        shutil.copytree(template, settings.db_path.parent)
    else:
        settings.db_path.parent.mkdir(parents=True, mode=0o700)
    struck, harm = draw(name, settings, Random(seed))  # noqa: S311 - to be repeatable
    return Outcome(1, int(struck), f"{seed}: {harm}" if harm else "")
