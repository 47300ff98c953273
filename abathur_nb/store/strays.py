"""Processes that have a deleted or moved file of a database open: what they write is lost once they end."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import NamedTuple

from abathur_nb.files import Lock, posix_locks
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.expected import APPLICATION_ID
from abathur_nb.store.guarded import open_files
from abathur_nb.text import process_name

_DELETED = " (deleted)"
_ASIDE = re.compile(r"/abathur_aside_[^/]+(?=/[^/]+$)")
_SUFFIXES = ("", "-wal", "-shm")
_LOOKS, _PAUSE_S = 6, 0.03  # who closes a database last deletes its log, and has it open for a moment more
_INDEX = (0, 128)  # the byte that a closed store locks, and the one that each connection to an index locks
_MAIN = (0, 1073741826)  # the byte that a closed store locks, and the first that each reader locks


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
    inodes, names = dict[str, int](), set[str]()
    name, device = str(path), os.stat(path.parent).st_dev
    # Where the directory was moved away, this process alone knows by which path it has the files open.
    ours = open_files(given) if pid == os.getpid() else {}
    for descriptor in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        where = f"/proc/{pid}/fd/{descriptor}"
        with suppress(OSError):  # closed meanwhile
            link = os.readlink(where)  # noqa: PTH115 - as text
            plain = _ASIDE.sub("", link.removesuffix(_DELETED))
            names.add(plain)
            found = _identity(os.stat(where))
            if not link.startswith("/") or (found[0] != device and found not in ours):
                continue
            inodes[where], suffix = found[1], plain.removeprefix(name)
            if found in ours and found != current.get(ours[found]):
                files[ours[found]], lost[ours[found]] = where, link
            elif plain != f"{name}{suffix}" or suffix not in _SUFFIXES:
                others[where] = link
            elif found == current.get(suffix):
                files.setdefault(suffix, where)
            elif link != plain or suffix not in current:  # else it is of another mount namespace
                files[suffix], lost[suffix] = where, link
    locks = [lock for lock in posix_locks() if lock.pid == pid] if files else []
    if files and len(files) < len(_SUFFIXES):
        alone = [where for where, link in others.items() if not _has_companion(link.removesuffix(_DELETED), names)]
        used, indexed = (_locked(inodes, locks, starts) for starts in (_MAIN, _INDEX))
        for suffix, where in _moved(files, alone, used, indexed).items():
            files[suffix], lost[suffix] = where, others[where]
    return Stray(pid, lost, files) if lost and _locked(inodes, locks) & {*files.values()} else None


def _has_companion(link: str, names: set[str]) -> bool:
    """Return whether a process also has the log of this database open, or the database of this log or index."""
    return f"{link}-wal" in names or (link.endswith(_SUFFIXES[1:]) and link[:-4] in names)


def _moved(files: dict[str, str], others: Iterable[str], used: set[str], indexed: set[str]) -> dict[str, str]:
    """Return which of the other files that a process has open are what it lacks of the database that it uses.

    Of a database that nobody reads, or reads in another mode than WAL, nothing is missing.
    """
    if "" in files and files[""] not in used:
        return {}
    marks = ask("marks", *others, *files.values())
    ways = {s: [files[s]] if s in files else [o for o in others if marks.get(o, "?")[0] == s] for s in _SUFFIXES}
    mains = [main for main in ways[""] if main in used and ("" in files or marks[main][1] == APPLICATION_ID)]
    pairs = [
        (index, log)
        for index in ways["-shm"]
        if index in indexed
        for log in (*ways["-wal"], "")
        if not log or marks.get(index, ("", b""))[1] in (b"", marks.get(log, ("", b""))[1])
    ]
    if not mains or not pairs:  # it is about to open or close them
        return {}
    index, log = max(pairs, key=lambda pair: bool(pair[1]))
    return {s: where for s, where in zip(_SUFFIXES, (mains[0], log, index), strict=True) if where and s not in files}


def _locked(files: dict[str, int], locks: Iterable[Lock], starts: tuple[int, ...] = ()) -> set[str]:
    """Return which of the files, by their inodes, bear a lock, which begins at one of ``starts`` if they are given."""
    inodes = {lock.inode for lock in locks if not starts or lock.start in starts}
    return {where for where, inode in files.items() if inode in inodes}


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
