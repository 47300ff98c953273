"""Processes that have a deleted or moved file of a database open: what they write is lost once they end."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import NamedTuple

from abathur_nb.files import posix_locks
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.guarded import open_files
from abathur_nb.text import process_name

__all__ = ["Stray", "strays", "strays_check"]

_DELETED = " (deleted)"
_ASIDE = re.compile(r"/abathur_aside_[^/]+(?=/[^/]+$)")
_SUFFIXES = ("", "-wal", "-shm")
_LOOKS, _PAUSE_S = 6, 0.03  # who closes a database last deletes its log, and has it open for a moment more
_INDEX_LOCKS = (0, 128)  # the byte that a closed store locks, and the one that each connection to an index locks
_MAIN_LOCKS = (0, 1073741826)  # the byte that a closed store locks, and the first that each reader locks


class Stray(NamedTuple):
    """Name a process, the files of its database that others do not find, and where in /proc it has which file open."""

    pid: int
    lost: dict[str, str]
    files: dict[str, str]

    def __str__(self) -> str:
        return f"{process_name(self.pid)} has open: {', '.join(self.lost[suffix] for suffix in sorted(self.lost))}"


def strays(path: Path, *, own: bool = False) -> list[Stray]:
    """Return the processes that have a file of the database open that was deleted or moved. Read-only; Linux only.

    Of all processes, or with ``own`` of this one. What another user has open, root alone sees.
    """
    locking = {lock.pid for lock in posix_locks()}  # a fork inherits the files and not the locks, and writes nothing
    found = _strays(path, locking & {os.getpid()} if own else locking)
    for _ in range(_LOOKS if found else 0):
        sleep(_PAUSE_S)
        found = _strays(path, [stray.pid for stray in found])
    return found


def _strays(path: Path, pids: Iterable[int]) -> list[Stray]:
    found, current = [], {}
    for suffix in _SUFFIXES:
        with suppress(OSError):
            current[suffix] = _identity(os.lstat(f"{path}{suffix}"))
    for pid in pids:
        with suppress(OSError):  # gone meanwhile, another user's, or no directory of the database
            if stray := _stray(pid, path, current):
                found.append(stray)
    return found


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _stray(pid: int, given: Path, current: dict[str, tuple[int, int]]) -> Stray | None:
    path = Path(os.path.realpath(given.parent), given.name)
    files, lost, others = dict[str, str](), dict[str, str](), dict[str, str]()
    name, device = str(path), os.stat(path.parent).st_dev
    # Where the directory was moved away, this process alone knows by which path it has the files open.
    ours = open_files(given) if pid == os.getpid() else {}
    for descriptor in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        where = f"/proc/{pid}/fd/{descriptor}"
        with suppress(OSError):  # closed meanwhile
            link = os.readlink(where)  # noqa: PTH115 - as text
            plain = _ASIDE.sub("", link.removesuffix(_DELETED))
            found = _identity(os.stat(where))
            if not link.startswith("/") or (found[0] != device and found not in ours):
                continue
            suffix = plain.removeprefix(name)
            if found in ours and found != current.get(ours[found]):
                files[ours[found]], lost[ours[found]] = where, link
            elif plain != f"{name}{suffix}" or suffix not in _SUFFIXES:
                others[link] = where
            elif found == current.get(suffix):
                files.setdefault(suffix, where)
            elif link != plain or suffix not in current:  # else it is of another mount namespace
                files[suffix], lost[suffix] = where, link
    if files and "" not in files and (main := _main(pid, others)):  # the database alone was moved
        files[""], lost[""] = others[main], main
    for suffix, moved in _moved_alone(pid, files, others):
        files[suffix], lost[suffix] = others[moved], moved
    if not lost or not _locked(pid) & {os.stat(where).st_ino for where in files.values()}:
        return None
    return Stray(pid, lost, files)


def _main(pid: int, others: dict[str, str]) -> str:
    """Return which of the other files that a process has open is a database with a log elsewhere."""
    inodes, own = _locked(pid, *_MAIN_LOCKS), (link for link in others if f"{link}-wal" not in others)
    return next((link for link in own if os.stat(others[link]).st_ino in inodes), "")


def _moved_alone(pid: int, files: dict[str, str], others: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the index and the log that SQLite has open with a database, if they have another name than it by now."""
    if "" not in files or {"-wal", "-shm"} <= files.keys():
        return
    inodes, databases = _locked(pid, *_INDEX_LOCKS), {link.removesuffix(_DELETED) for link in others}
    alone = [link for link in others if link.removesuffix(_DELETED).removesuffix("-wal") not in databases - {link}]
    indexes = [link for link in alone if os.stat(others[link]).st_ino in inodes]
    if "-shm" not in files and not indexes:  # it is about to open or close them
        return
    logs = [link for link in alone if others[link] in ask("logs", *others.values())]
    if "-shm" not in files:
        yield from (("-shm", link) for link in indexes if link not in logs)
    if "-wal" not in files:
        yield from (("-wal", link) for link in logs)


def _locked(pid: int, *starts: int) -> set[int]:
    """Return the inodes on which a process has a POSIX lock, that begins at one of ``starts`` if they are given."""
    return {lock.inode for lock in posix_locks() if lock.pid == pid and (not starts or lock.start in starts)}


def strays_check(path: Path) -> Check:
    """Check that no process has a deleted or moved file of the database open. Read-only."""
    found = strays(path)
    return Check.that(
        "open_files",
        not found,
        expected="no process has a file of it open that was deleted or moved",
        observed="; ".join(map(str, found)) or "none",
        remedy="before you end any of them, save what it alone holds: run troubleshoot.ipynb, which shows a plan and "
        "names the parameters that carry it out",
    )
