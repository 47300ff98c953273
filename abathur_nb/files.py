"""Private, durable and scratch files and directories, their locks, and the causes of system errors."""

import errno
import fcntl
import os
import re
import resource
import secrets
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from shlex import quote
from time import monotonic, sleep
from typing import NamedTuple

from abathur_nb.errors import BusyError, RefusedError
from abathur_nb.text import printable, user_name

# The kernel prints its list of locks page by page. While other processes lock and unlock, 1 of 25 readings of several
# pages missed a held lock; readings of one page missed none, nor did 1,000 unions of three readings.
_ONE_PIECE, _READINGS = 4000, 5


class Lock(NamedTuple):
    """Hold one lock of proc_locks(5): its process (0 or less: in another PID namespace), its file, its first byte."""

    pid: int
    exclusive: bool
    file: str  # major:minor:inode; the device may differ from that of stat, as on btrfs
    start: int

    @property
    def inode(self) -> int:
        """Return the inode number of the file."""
        return int(self.file.rpartition(":")[2])


def posix_locks() -> list[Lock]:
    """Return every POSIX lock that a process holds; an empty list if the kernel shows none. Read-only; Linux only."""
    found = dict[Lock, None]()
    for _ in range(_READINGS):
        try:
            text = Path("/proc/locks").read_text()
        except OSError:
            break
        # "1: POSIX  ADVISORY  READ 1234 fd:00:2531 123 123"; a waiting lock has "->" as its second field.
        fields = (line.split() for line in text.splitlines())
        found |= {Lock(int(f[4]), f[3] == "WRITE", f[5], int(f[6])): None for f in fields if f[1] == "POSIX"}
        if len(text) < _ONE_PIECE:
            break
    return list(found)


UNFINISHED = ".unfinished-"  # prefix of a file that is still being written
_PREFIX = ".abathur-"
_MOST = 256 * 2**20  # bytes: the largest file that is read whole; a record has about 100,000
_PATIENCE_S, _RETRY_S = 10, 0.01
# Only these names are swept: a user's own folder may begin with the same prefix.
_SWEPT = re.compile(rf"{re.escape(_PREFIX)}(init|probe|benchmark|kernel|backup|restore)-[0-9a-f]{{12}}")


def is_scratch_name(name: str) -> bool:
    """Return whether a name is that of a scratch directory, which `sweep` removes with its content."""
    return _SWEPT.fullmatch(name) is not None


def nearest_existing(path: Path) -> Path:
    """Return ``path`` or its nearest ancestor that exists. Read-only."""
    # os.path.exists is False for a dangling link; Path.exists raises in a directory that may not be entered.
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110


@contextmanager
def at(path: Path) -> Iterator[None]:
    """Add ``path`` to an OSError that names no file, such as that of a write by descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def private_directory(path: Path, *, owned_as: Path | None = None) -> Iterator[None]:
    """Make ``path`` and its missing parents, each 0700 under any umask, and force their names to the disk.

    If root makes them, they get the owner of ``owned_as``. If the block raises, new empty ones are removed.
    """
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        # A killed process may have made the last existing directory without forcing its name to the disk.
        with suppress(PermissionError):  # an unreadable parent: not made by this user
            fsync(nearest_existing(path).parent)
        for folder in reversed(missing):
            with suppress(FileExistsError):  # a racing process made it, and its name may not be durable yet
                folder.mkdir(mode=0o700)
                # By descriptor: if a link has replaced the folder, root must not change the owner of the link's target.
                with _opened(folder, os.O_DIRECTORY | os.O_NOFOLLOW) as descriptor, at(folder):
                    _make_private(descriptor, 0o700, owned_as)
            fsync(folder.parent)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_private(descriptor: int, mode: int, owned_as: Path | None) -> None:
    os.fchmod(descriptor, mode)
    if owned_as is not None and os.geteuid() == 0:
        owner = os.stat(owned_as)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_private_file(path: Path, *, owned_as: Path | None = None) -> None:
    """Make an empty file, 0600 under any umask, with the owner of ``owned_as``. Raises OSError if it exists."""
    with _opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as descriptor, at(path):
        _make_private(descriptor, 0o600, owned_as)


def fsync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    with _opened(path) as descriptor, at(path):
        os.fsync(descriptor)


def open_regular(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a regular file for reading; raise OSError for a link, a FIFO or a device without waiting.

    With ``follow`` the path may be a link. Raises OSError too if this process holds a POSIX lock on the file: SQLite
    has it open, and closing another descriptor would drop that lock.
    """
    found = os.stat(path, follow_symlinks=follow)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # SQLite's files have sizes that are multiples of 8. For others, reading the locks (100 times slower) is skipped.
    here = (os.getpid(), found.st_ino)
    if found.st_size % 8 == 0 and any(here == (lock.pid, lock.inode) for lock in posix_locks()):
        raise OSError(errno.EBUSY, "this process has it open, as a database or a side file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)), "rb")


def read_regular(path: Path, *, most: float = _MOST, follow: bool = False) -> bytes:
    """Return the bytes of a regular file; raise OSError as ``open_regular`` does, or if it is too large. Read-only."""
    with open_regular(path, follow=follow) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
        return file.read()


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file under a temporary name, force it to the disk and rename it to ``path``.

    If interrupted, ``path`` keeps its old content. The file gets its directory's owner, and ``mode`` once complete.
    """
    draft = path.with_name(f"{UNFINISHED}{secrets.token_hex(6)}")
    try:
        make_private_file(draft, owned_as=path.parent)
        with os.fdopen(os.open(draft, os.O_WRONLY), "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
        with suppress(OSError):  # the error to report is that of the write
            draft.unlink(missing_ok=True)
        raise
    fsync(path.parent)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a directory during the block.

    A process that adds to a ledger or publishes a backup holds it for milliseconds; readers take it ``shared``. Raises
    BusyError after 10 s.
    """
    deadline, kind = monotonic() + _PATIENCE_S, fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with _opened(folder, os.O_DIRECTORY) as descriptor:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > deadline:
                    remedy = f"see which: fuser -v {quote(str(folder))}; end that process, then try again"
                    raise BusyError(f"{folder} is locked by another process", remedy) from None
                sleep(_RETRY_S)
        yield


@contextmanager
def scratch_directory(parent: Path, purpose: str) -> Iterator[Path]:
    """Make an empty 0700 directory inside ``parent``, and remove it with its content at the end.

    It is locked while its process lives, so that ``sweep`` removes only those of killed processes. ``purpose`` is
    ``init``, ``probe``, ``benchmark``, ``kernel``, ``backup`` or ``restore``.
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
                # What cannot be removed now is swept later.
                shutil.rmtree(path, ignore_errors=True)
            return
        finally:
            os.close(descriptor)


def sweep(parent: Path, *, remove: bool = True) -> list[str]:
    """Remove the scratch directories in ``parent`` whose process is dead, and return their names.

    Root removes those of every user, other users their own. Without ``remove`` it only names them.
    """
    try:
        found = sorted(path for path in parent.iterdir() if is_scratch_name(path.name))
    except OSError:  # what cannot be listed now is swept later
        return []
    return [path.name for path in found if _is_orphan(path, remove)]


def _is_orphan(path: Path, remove: bool) -> bool:
    """Return whether the process of a scratch directory is dead; with ``remove``, whether its directory is removed."""
    try:
        with _opened(path, os.O_DIRECTORY | os.O_NOFOLLOW) as descriptor:
            if os.geteuid() not in (0, os.fstat(descriptor).st_uid):
                return False
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not remove or not _is_same(path, descriptor):
                return _is_same(path, descriptor)
            shutil.rmtree(path, ignore_errors=True)
            return not os.path.lexists(path)
    except OSError:  # not a directory, closed to this user, gone already, or its process lives
        return False


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


_DENIED = ("{path} may not be {used} by {user}", "see who owns it: namei -l {quoted}")
_MEANINGS = {
    errno.ENOSPC: ("the disk of {folder} is full", "make room, in bytes or inodes: df -h {quoted}; df -i {quoted}"),
    errno.EDQUOT: ("the disk quota of {user} in {folder} is used up", "make room there, or ask for more: quota -s"),
    errno.EFBIG: ("{folder} rejects a file of that size: {limit}", "raise the limit of the shell: ulimit -f unlimited"),
    errno.EROFS: ("{folder} is mounted read-only", "see why, and mount it for writing: findmnt -T {quoted}"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOENT: ("{path} is missing", "see what is there: namei -l {quoted}"),
    errno.ENOTDIR: ("{path} is not a directory", "see what is there: namei -l {quoted}"),
    errno.EMFILE: ("this process has reached its limit of open files", "raise the limit of the shell: ulimit -n"),
    errno.EIO: ("the disk of {folder} fails: {error}", "check the disk: dmesg | tail"),
}
OTHER_CAUSE = (
    "{path} could not be used ({error})",
    "see who owns it and who uses it: namei -l {quoted}; fuser -v {quoted}",
)
# SQLite does not report errno. These codes hide the errno of a file that could not be made or written.
_HIDING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_OF_READING = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_READONLY_ROLLBACK)
_WRITTEN = 256 * 1024  # bytes: a full disk may have room for a few


def os_cause(error: OSError, path: Path) -> RefusedError:
    """Return an error that names cause, place and remedy; ``path`` is the place if ``error`` names no file."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    outwards = (*reversed(place.parents), place)
    place = next((one.parent for one in outwards if is_scratch_name(one.name)), place)  # the scratch directory is gone
    if error.errno != errno.ENOENT and not os.path.lexists(place):
        place = nearest_existing(place)  # the directory in which it was to be made
    folder = nearest_existing(place)
    folder = folder if os.path.isdir(folder) else folder.parent
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    # An OSError that this package raises has a message of its own.
    known = _MEANINGS if error.strerror == os.strerror(error.errno or 0) else {}
    observed, remedy = known.get(error.errno or 0, OTHER_CAUSE)
    values = {
        "path": place,
        "folder": folder,
        "user": user_name(os.geteuid()),
        "used": "written to" if os.access(place, os.R_OK) else "read",
        "limit": "its file system" if largest < 0 else f"this process may write {largest:,} bytes",
        "error": printable(error.strerror or str(error)),
        "quoted": quote(str(folder if "{folder}" in observed else place)),
    }
    return RefusedError(observed.format(**values), remedy.format(**values))


def unwritable(folder: Path) -> RefusedError | None:
    """Return why no file can be made in ``folder``, or None. Makes a temporary file without a name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return os_cause(error, folder)


def in_words(error: Exception, path: Path) -> str:
    """Return the text of an error for a message; a system error names its cause and place."""
    return str(os_cause(error, path) if isinstance(error, OSError) else error)


def ask_system(path: Path, error: sqlite3.Error) -> OSError | None:
    """Return the system error behind an error of SQLite about the database at ``path``, or None.

    It writes to a temporary file beside the database, at the end of the largest file: closing a descriptor of the
    database itself would drop the locks of this process.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF not in _HIDING or code in _OF_READING:
        return None
    try:
        os.stat(path)
    except OSError as found:
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
            return found
    names = [name for name in (str(path), f"{path}-wal", f"{path}-shm") if os.path.lexists(name)]
    if denied := _denied(names, os.R_OK):
        return denied
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.seek(max((os.lstat(name).st_size for name in names), default=0))
            file.write(bytes(_WRITTEN))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        found.filename = str(path.parent)
        return found
    return _denied(names, os.W_OK)


def _denied(names: list[str], access: int) -> OSError | None:
    refused = (name for name in names if not os.access(name, access))
    return next((PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) for name in refused), None)
