"""What an error of the operating system means: its true cause, its true place, and what to do about it."""

import errno
import os
import resource
import sqlite3
import tempfile
from contextlib import ExitStack
from pathlib import Path
from shlex import quote

from abathur_nb.errors import RefusedError
from abathur_nb.files import is_scratch_name, nearest_existing
from abathur_nb.text import printable, user_name

_DENIED = ("{path} may not be {used} by {user}", "see who owns it: namei -l {quoted}")
_MEANINGS = {
    errno.ENOSPC: (
        "the disk of {folder} is full",
        "make room, or remove files where no inode is left: df -h {quoted}; df -i {quoted}",
    ),
    errno.EDQUOT: ("the disk quota of {user} in {folder} is used up", "make room there, or ask for more: quota -s"),
    errno.EFBIG: ("{folder} takes no file of that size: {limit}", "raise the limit of the shell: ulimit -f unlimited"),
    errno.EROFS: ("{folder} is mounted read-only", "see why, and mount it for writing: findmnt -T {quoted}"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOENT: ("{path} is missing{above}", "see what is there: namei -l {quoted}"),
    errno.ENOTDIR: ("{path} is not a directory", "see what is there: namei -l {quoted}"),
    errno.ELOOP: ("the symbolic links of {path} lead in a circle", "see where they lead: namei -l {quoted}"),
    errno.ENAMETOOLONG: ("{path} is a longer name than its file system takes", "name a shorter one"),
    errno.EMFILE: ("this process has as many files open as it may, {files}", "raise the limit of the shell: ulimit -n"),
    errno.ENFILE: (
        "this machine has as many files open as it may",
        "see who has them: lsof | awk '{{print $1}}' | sort | uniq -c",
    ),
    errno.EIO: ("the disk of {folder} fails: {error}", "see to the disk: dmesg | tail"),
}
_OTHER = ("{path} could not be used ({error})", "see who owns it and who uses it: namei -l {quoted}; fuser -v {quoted}")
# SQLite keeps the system's number to itself. Under these it hides that of a file that could not be made or written.
_HIDING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_OF_READING = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_READONLY_ROLLBACK)
_DESCRIPTORS = 4  # a connection's: database, log, index, directory
_WRITTEN = 256 * 1024  # bytes: what is left on a disk that was too full for a page


def os_cause(error: OSError, path: Path) -> RefusedError:
    """Return the error that names what the system refused, where, and the remedy. ``path`` is what was being used."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    for inside in (place, *place.parents):
        if is_scratch_name(inside.name):  # it is gone by now
            place = inside.parent
    above = next((part for part in reversed(place.parents) if not os.path.lexists(part)), None)
    if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP) and not os.path.lexists(place):
        place = nearest_existing(place)  # what was to be made in it
    folder = nearest_existing(place)
    folder = folder if os.path.isdir(folder) else folder.parent  # noqa: PTH112 - where Path raises
    noted = _MEANINGS.get(error.errno or 0, _OTHER)
    if error.strerror != os.strerror(error.errno or 0):  # this package's own words, which say more
        noted = _OTHER
    observed, remedy = noted
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    values = {
        "path": place,
        "above": f": no directory {above}" if above else "",
        "folder": folder,
        "user": user_name(os.geteuid()),
        "used": "written to" if os.access(place, os.R_OK) else "read",
        "limit": "its file system"
        if largest == resource.RLIM_INFINITY
        else f"this process may write {largest:,} bytes",
        "files": f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}",
        "error": printable(error.strerror or str(error)),
        "quoted": quote(str(folder if "{folder}" in observed else place)),
    }
    return RefusedError(observed.format(**values), remedy.format(**values))


def unwritable(folder: Path) -> RefusedError | None:
    """Return why no file can be made in ``folder``, None if one can: tried with one that has no name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return os_cause(error, folder)


def in_words(error: Exception, path: Path) -> str:
    """Return the text of any error, for a message; one of the system says its cause and place."""
    return str(os_cause(error, path) if isinstance(error, OSError) else error)


def ask_system(path: Path, error: sqlite3.Error | None = None) -> OSError | None:
    """Return the system's error behind one of SQLite's about the database at ``path``, or None if it gives none now.

    It is asked by a file without a name, beside the database and beyond its size: a descriptor of the database itself
    would drop the locks of this process when it is closed.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    if error and (code & 0xFF not in _HIDING or code in _OF_READING):
        return None
    try:
        os.stat(path)
    except OSError as found:
        if code & 0xFF in (0, sqlite3.SQLITE_CANTOPEN):
            return found
    names = [name for name in (str(path), f"{path}-wal", f"{path}-shm") if os.path.lexists(name)]
    if denied := _denied(names, os.R_OK):
        return denied
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=path.parent, buffering=0))
            for _ in range(_DESCRIPTORS - 1):
                stack.enter_context(Path(os.devnull).open("rb"))
            file.seek(max((os.lstat(name).st_size for name in names), default=0))
            left = memoryview(bytes(_WRITTEN))
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    except OSError as found:
        found.filename = str(path.parent)
        return found
    return _denied(names, os.W_OK)


def _denied(names: list[str], access: int) -> OSError | None:
    refused = (name for name in names if not os.access(name, access))
    return next((PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) for name in refused), None)
