"""What is around a database: who uses it, what its log does, what a killed process left; found without opening it."""

import asyncio
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import NamedTuple

from abathur_nb.backups.aside import new_folder, require_movable, users_of
from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.files import fsync, posix_locks, sweep
from abathur_nb.health.path_on_disk import ELSEWHERE, free_mb
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import SIDE_FILES, connect, kept_open, lock_owners
from abathur_nb.store.target import file_system, kind_of
from abathur_nb.text import MB, process_name

_WRITE_LOCK = 120  # the byte of the -shm that a writer of the log locks
_READ_MARKS = range(123, 128)  # bytes of the -shm that a reader of the log locks (walformat.html, section 2.3)


class Look(NamedTuple):
    """Hold what a glance at a database's files found: when, its log's bytes, frames and commits, who writes, who reads.

    A reader is a process, the read mark that it has locked, and the frame that this mark names.
    """

    at: float
    wal: int
    frames: int
    commits: int
    writers: str
    readers: frozenset[tuple[int, int, int]]

    @classmethod
    def at_files(cls, path: Path) -> "Look":
        """Look now. Read-only."""
        wal = 0
        with suppress(FileNotFoundError):
            wal = os.lstat(f"{path}-wal").st_size
        locks, index = ask("look", path)
        marks = dict(zip(_READ_MARKS, index["marks"], strict=True)) if index else {}
        held = {(pid, byte) for _, byte, exclusive, pid in locks if not pid and not exclusive} | _read_locks(path)
        readers = frozenset((pid, byte, marks[byte]) for pid, byte in held if byte in marks)
        frames, commits = (index["frames"], index["commits"]) if index else (0, 0)
        # The other exclusive locks on the index of the log are those of a checkpoint.
        writing = [lock for lock in locks if lock[0] == "" or lock[1] == _WRITE_LOCK]
        return cls(monotonic(), wal, frames, commits, ", ".join(lock_owners(writing, exclusive=True)), readers)

    def behind_since(self, first: "Look") -> str:
        """Name who has read since ``first`` what was the newest then and is not now: no checkpoint gets past them.

        A writer is not among them: what it began to read is the newest until it commits.
        """
        kept = (pid for pid, _, frame in self.readers & first.readers if frame < self.frames)
        return ", ".join(map(process_name, sorted({*kept})))


def _read_locks(path: Path) -> set[tuple[int, int]]:
    """Return each other process that shares a byte of the log's index, and the byte. Read-only; Linux only."""
    try:
        found = os.stat(f"{path}-shm")
    except OSError:
        return set()
    # Where stat reports another device than the kernel does, as on btrfs, no process is named.
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    shared = {(lock.pid, lock.start) for lock in posix_locks() if lock.file == file and not lock.exclusive}
    return shared - {(os.getpid(), byte) for byte in _READ_MARKS}


def locks_check(path: Path, first: Look, then: Look) -> Check:
    """Say who holds the lock that writes at both looks: nobody else can write meanwhile."""
    # One that commits in between has another transaction open by then.
    held = first.writers if (first.writers, first.commits) == (then.writers, then.commits) else ""
    apart = f"at two looks {(then.at - first.at) * 1000:,.0f} ms apart"
    return Check.that(
        "locks",
        not held,
        expected=f"nobody holds the lock for long, {apart}",
        observed=f"held by {held}\ncause: a transaction that writes is open there" if held else "not held",
        remedy="let it finish or end it; until then every writer waits and then fails",
        otherwise="warn",
        evidence=[f"has it open: {user}" for user in users_of(path)],
    )


def wal_check(settings: Settings, check: Check, first: Look, then: Look, unpinned: Look | None = None) -> Check:
    """Add to the check of the log's size who pins it, how fast it grows, and when the disk would be full.

    It grows since ``unpinned``, before which this process itself read the database.
    """
    words, pinned = [check.observed], then.behind_since(first)
    if pinned:
        words.append(f"read by {pinned} at both looks: SQLite cannot reset the WAL until that read transaction ends")
    since = unpinned or first
    grown, seconds = then.wal - since.wal, then.at - since.at
    if grown > 0 and seconds > 0:
        rate = grown / MB / seconds
        hours = free_mb(settings.db_path.parent) / rate / 3600
        words.append(
            f"grew by {grown / MB:.1f} MB in {seconds:.2f} s; at that rate the disk is full in {hours:,.1f} hours"
            " (two looks only: an estimate)"
        )
    elif check.status != "pass":
        words.append(f"it did not grow in {seconds:.2f} s")
    if check.status == "pass":
        return replace(check, observed="; ".join(words))
    cause = "a reader that pins it" if pinned else "a large transaction, a writer that was killed, or readers in turn"
    remedy = f"end {pinned}; the next writer resets the log" if pinned else check.remedy
    observed = "\n".join((*words, f"cause: {cause}"))
    return replace(check, observed=observed, remedy=remedy)


def why_no_wal(settings: Settings) -> tuple[str, str]:
    """Say why a database may not be in write-ahead mode, and what forbids to switch it, if anything does. Read-only."""
    path = settings.db_path
    kind = file_system(path.parent)
    if kind_of(kind) in ("shared", "host share"):
        return f"its file system is {kind}, which can't carry write-ahead mode", ELSEWHERE
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return "the file or its directory may not be written to", f"see who owns it: namei -l {quote(str(path))}"
    cause = f"somebody set another mode, or copied it with VACUUM INTO; its file system, {kind}, would carry it"
    if users := users_of(path):
        return f"{cause}; it can be switched only while nobody reads or writes, and {', '.join(users)} has it open", ""
    return cause, ""


def leftovers(settings: Settings) -> list[str]:
    """Return the scratch directories that killed processes left beside the database and its backups. Read-only."""
    folders = dict.fromkeys((settings.db_path.parent, settings.backup_dir))
    return [str(folder / name) for folder in folders for name in sweep(folder, remove=False)]


def leftovers_check(found: list[str]) -> Check:
    """Say what killed processes left."""
    return Check.that(
        "leftovers",
        not found,
        expected="no scratch directory of a process that is dead",
        observed=f"{', '.join(found)}\ncause: a run that was killed" if found else "none",
        remedy="rm -r them: their process is dead, and nothing refers to them",
        otherwise="warn",
    )


def make_private(path: Path) -> None:
    """Make the database and its side files 0600, without an access list. Raises OSError."""
    for name in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)):
        with suppress(FileNotFoundError):
            # By a descriptor that opens nothing: closing any other would drop the locks of this process's connections.
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW)
            try:
                own = f"/proc/self/fd/{descriptor}"
                with suppress(OSError):  # it has no list, or its file system knows none
                    os.removexattr(own, "system.posix_acl_access")
                os.chmod(own, 0o600)  # noqa: PTH101
            finally:
                os.close(descriptor)


def move_stale(path: Path, folder: Path | None = None) -> Path:
    """Move side files into a directory beside them, a new one by default, and return it.

    Raises as `require_movable` does: BusyError where the database was moved away, or deleted, under a process.
    """
    require_movable(path)
    folder = folder or new_folder(path)
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(folder / f"{path.name}{suffix}")
    fsync(folder)
    fsync(path.parent)
    return folder


async def set_log_aside(settings: Settings, *, write: bool) -> Check:
    """Copy a database and its damaged log into a new directory beside it, then move the log there.

    With ``write``, what SQLite reads of the log is written into the database in between. Raises RefusedError without
    room, OSError, and as `require_movable`: who has it open may know more of the log than who reads it anew.
    """
    path = settings.db_path
    require_movable(path)
    folder = await asyncio.to_thread(_copy_beside, path)
    if write:
        # The checkpoint leaves the log as it is, and so does the last connection that closes.
        async with kept_open(settings), connect(path, settings=settings, mode="rw") as conn:
            await conn.execute_fetchall("PRAGMA wal_checkpoint(FULL)")
    move_stale(path, folder)
    expected, observed = "a log that is read to its end", f"{folder} has the database and its log as they were"
    remedy = f"they may hold transactions that {path} lacks now: keep {folder} until you know that nobody misses one"
    return Check("log_aside", "warn", expected, observed, remedy)


def _copy_beside(path: Path) -> Path:
    """Copy a database and its log, byte for byte, into a new directory beside it, and return that."""
    sizes = [os.stat(name).st_size for name in (path, f"{path}-wal")]
    needed = (sum(sizes) + sizes[1]) / MB  # the database may grow by what is written into it
    if (free := free_mb(path.parent)) < needed:
        lacking = (
            f"{free:,.1f} MB free on the disk of {path.parent}, {needed:,.1f} MB needed to copy {path} and its log"
        )
        raise RefusedError(lacking, f"make room: df -h {quote(str(path.parent))}; then run this again")
    folder = new_folder(path)
    try:
        ask("copy", path, f"{path}-wal", "", folder / path.name)
        for suffix in ("", "-wal"):
            copy = folder / f"{path.name}{suffix}"
            fsync(copy)
            if ask("digest", copy) != ask("digest", f"{path}{suffix}"):
                raise RefusedError(f"{copy} is not the same as {path}{suffix}", "see to the disk: dmesg")
            if os.geteuid() == 0:
                owner = os.stat(path)
                os.chown(copy, owner.st_uid, owner.st_gid)
    except BaseException:
        shutil.rmtree(folder)
        raise
    fsync(folder)
    fsync(path.parent)
    return folder
