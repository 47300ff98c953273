"""What is around a database: who uses it, what its log does, what a killed process left; told without opening it."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import NamedTuple

from abathur_nb.connection import SIDE_FILES, command_of, lock_holders
from abathur_nb.errors import BusyError
from abathur_nb.filesystems import file_system, kind_of
from abathur_nb.location import ELSEWHERE, free_mb
from abathur_nb.operate.aside import new_folder, users_of
from abathur_nb.report import Check
from abathur_nb.scratch import fsync, sweep
from abathur_nb.settings import Settings
from abathur_nb.wording import MB

__all__ = [
    "Look",
    "leftovers",
    "leftovers_check",
    "locks_check",
    "log_check",
    "make_private",
    "move_stale",
    "wal_check",
    "why_no_wal",
]

_WAL_MAGICS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_HEADER, _FRAME_HEADER = 32, 24  # bytes
_READ_MARKS = range(123, 128)  # bytes of the -shm that a reader of the log locks (walformat.html, section 2.3)


class Look(NamedTuple):
    """Hold what a glance at a database's files told: when, the bytes of its log, who writes, who reads it."""

    at: float
    wal: int
    writers: str
    readers: str

    @classmethod
    def at_files(cls, path: Path) -> "Look":
        """Look now. Read-only."""
        wal = 0
        with suppress(FileNotFoundError):
            wal = os.lstat(f"{path}-wal").st_size
        return cls(monotonic(), wal, lock_holders(path), ", ".join(_readers(path)))


def _readers(path: Path) -> list[str]:
    """Name the other processes inside a transaction that reads the log: no checkpoint gets past them. Linux only."""
    try:
        found = os.stat(f"{path}-shm")
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = {
        f[4]
        for f in map(str.split, lines)
        if f[1] != "->" and f[3] == "READ" and f[5] == file and f[6].isdecimal() and int(f[6]) in _READ_MARKS
    }
    return [f"PID {pid} ({command_of(pid)})" for pid in sorted(pids - {str(os.getpid())})]


def locks_check(path: Path, first: Look, then: Look) -> Check:
    """Say who holds the lock that writes at both looks: nobody else can write meanwhile."""
    held = first.writers if first.writers == then.writers else ""
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


def wal_check(settings: Settings, check: Check, first: Look, then: Look) -> Check:
    """Add to the check of the log's size who pins it, how fast it grows, and when the disk would be full."""
    told = [check.observed]
    if then.readers:
        told.append(f"read by {then.readers}: while its transaction lasts, the log can't begin anew")
    grown, seconds = then.wal - first.wal, then.at - first.at
    if grown > 0 and seconds > 0:
        rate = grown / MB / seconds
        hours = free_mb(settings.db_path.parent) / rate / 3600
        told.append(
            f"grew by {grown / MB:.1f} MB in {seconds:.2f} s; at that rate the disk is full in {hours:,.1f} hours"
            " (two looks only: an estimate)"
        )
    elif check.status != "pass":
        told.append(f"it did not grow in {seconds:.2f} s")
    if check.status == "pass":
        return Check(check.name, "pass", check.expected, "; ".join(told), "", check.evidence)
    cause = (
        "a reader that pins it" if then.readers else "a writer that was killed, or one that never lets it begin anew"
    )
    remedy = f"end {then.readers}; the next writer empties the log" if then.readers else check.remedy
    observed = "\n".join((*told, f"cause: {cause}"))
    return Check(check.name, check.status, check.expected, observed, remedy, check.evidence)


def _frames(path: Path) -> int:
    """Return how many frames a database's log has up to the last that ends a transaction, sound or not. Read-only.

    Those of an earlier round bear other salts (https://sqlite.org/fileformat2.html#the_write_ahead_log). Behind a
    header that is none, each frame counts.
    """
    try:
        with open(f"{path}-wal", "rb") as log:  # noqa: PTH123
            header = log.read(_HEADER)
            size = os.fstat(log.fileno()).st_size
            page = int.from_bytes(header[8:12], "big")
            is_header = header[:4] in _WAL_MAGICS and 512 <= page <= 65_536
            frame = (page if is_header else 4096) + _FRAME_HEADER
            places = range(_HEADER, size - frame + 1, frame)
            if not is_header:
                return len(places)
            for number in range(len(places), 0, -1):
                told = os.pread(log.fileno(), 16, places[number - 1])
                if told[8:] == header[16:24] and any(told[4:8]):  # which says how large the database is by then
                    return number
            return 0
    except FileNotFoundError:
        return 0


def log_check(path: Path) -> Check:
    """Judge whether SQLite reads the log to its last transaction; a connection must have read the database. Read-only.

    What it does not read, the next one that writes throws away: a frame that is damaged, and all behind it.
    """
    frames, read = _frames(path), 0
    with suppress(FileNotFoundError), open(f"{path}-shm", "rb") as index:  # noqa: PTH123
        read = int.from_bytes(index.read(20)[16:], sys.byteorder)  # mxFrame: walformat.html, section 2.1
    damaged = frames > read and frames == _frames(path)  # else a writer has begun the log anew meanwhile
    told = f"of {frames:,} frames SQLite reads {read:,}\ncause: the rest is damaged"
    keep = f"keep a copy of {quote(str(path))} and its -wal file"
    return Check.that(
        "log",
        not damaged,
        expected="SQLite reads the log to its last transaction",
        observed=told if damaged else f"{read:,} frames",
        remedy=f"stop its writers, the next one throws the rest away; {keep}, then restore a backup",
    )


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


def move_stale(path: Path) -> Path:
    """Move side files that have lost their database into a new directory beside them, and return it.

    Raises BusyError while a process has one open: its database was moved away, or deleted, under it.
    """
    if users := users_of(path):
        raise BusyError(f"the side files of {path} are open in {', '.join(users)}", "stop it, then try again")
    folder = new_folder(path)
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(folder / f"{path.name}{suffix}")
    fsync(folder)
    fsync(path.parent)
    return folder
