"""Directories: made private and durable, and scratch ones inside them that no killed process leaves for long."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["fsync", "make_private_directory", "nearest_existing", "scratch_directory", "sweep"]

_PREFIX = ".abathur-"


def nearest_existing(path: Path) -> Path:
    """Return ``path`` or its nearest ancestor that exists. Read-only."""
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


def make_private_directory(path: Path) -> None:
    """Make ``path`` and what is missing above it, each 0700 under any umask, and make their names durable."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    # A killed process may have made the last one that is there, and not have come to the fsync of its name.
    with suppress(PermissionError):  # a parent that may not be read was not made here
        fsync(nearest_existing(path).parent)
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:  # a racing process made it, and its name may not be durable yet
            pass
        else:
            folder.chmod(0o700)
        fsync(folder.parent)


def fsync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_directory(parent: Path, purpose: str) -> Iterator[Path]:
    """Make an empty 0700 directory inside ``parent`` and remove it, with all that is in it, at the end.

    It is locked while its process lives: what a killed one leaves behind is free for ``sweep``.
    """
    while True:
        path = parent / f"{_PREFIX}{purpose}-{secrets.token_hex(6)}"
        path.mkdir(mode=0o700)
        try:
            path.chmod(0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # swept before it could be opened
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_same(path, descriptor):  # swept before it was locked
                continue
            try:
                yield path
            finally:
                # What cannot be removed now is an orphan, and swept later.
                shutil.rmtree(path, ignore_errors=True)
            return
        finally:
            os.close(descriptor)


def sweep(parent: Path) -> list[str]:
    """Remove the scratch directories in ``parent`` whose process is dead; return their names."""
    swept = []
    try:
        found = sorted(parent.glob(f"{_PREFIX}*-*"))
    except OSError:  # what cannot be found now is swept later
        return []
    for path in found:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no directory, not ours, or gone already
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(path, descriptor):
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path.name)
        except BlockingIOError:  # its process lives
            continue
        finally:
            os.close(descriptor)
    return swept


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
