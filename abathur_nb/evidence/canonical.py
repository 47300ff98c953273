"""The one form in which evidence is written: canonical JSON that holds its own hash, put down durably."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from abathur_nb.locks import posix_locks
from abathur_nb.scratch import fsync, make_private_file
from abathur_nb.values import check_depth
from abathur_nb.wording import moment_of, shown

__all__ = [
    "UNFINISHED",
    "canonical",
    "misfits",
    "moment",
    "number",
    "open_regular",
    "read_regular",
    "sealed",
    "sha256",
    "uncanonical",
    "unsealed",
    "whole_number",
    "write_durably",
]

UNFINISHED = ".unfinished-"  # how the name of a file begins that is still being written
_MOST = 256 * 2**20  # bytes of a file that is read as a whole; a record has some 100,000


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def canonical(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` as one line of JSON: keys sorted, no blanks, UTF-8, a newline at the end.

    Two equal values have the same bytes, so that a hash of the bytes is a hash of the meaning. The keys are text.
    """
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text += "\n"  # which, unlike a format, copies no text of many MB
    # A lone surrogate has no UTF-8; backslashreplace writes it as JSON does, \udc80.
    return text.encode(errors="backslashreplace")


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` in canonical form with its own hash, which is over that form without it, as ``sha256``."""
    # What JSON makes of it is sealed: the keys 2 and 10 are sorted otherwise as text.
    plain = json.loads(json.dumps(data, allow_nan=False))
    return canonical({**plain, "sha256": sha256(canonical(plain))})


def uncanonical(content: bytes) -> dict[str, Any]:
    """Return what ``canonical`` wrote; raise ValueError, saying why, if a single byte is another."""
    try:
        data = json.loads(content.decode())
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - every fault of the content is one kind
        check_depth("content", data)  # deeper, and whoever reads it runs out of stack at another place
        written = canonical(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no canonical JSON ({error})") from None
    if written != content:
        raise ValueError("it is not in canonical form")
    return data


def unsealed(content: bytes) -> dict[str, Any]:
    """Return what ``sealed`` wrote, without the hash; raise ValueError, saying why, if a single byte is another."""
    data = uncanonical(content)
    claimed = data.pop("sha256", None)
    if claimed != sha256(canonical(data)):
        raise ValueError("its hash is not the one that it names")
    return data


def misfits(data: Any, shape: Any, where: str = "") -> list[str]:
    """Return what of JSON does not have a shape, each fault with the path to it; nothing if all has.

    A shape is a type or several, where a bool is not a number; a function that tells, whose name says what it wants;
    a list of one shape; a mapping with at least these keys, or ``{str: shape}`` with any keys.
    """
    if isinstance(shape, Mapping) and isinstance(data, dict):
        inner = dict.fromkeys(data, shape[str]) if str in shape else shape
        missing = [f"{where}{key}: missing" for key in inner if key not in data]
        return missing + [f for key in inner if key in data for f in misfits(data[key], inner[key], f"{where}{key}.")]
    if isinstance(shape, list) and isinstance(data, list):
        return [fault for at, item in enumerate(data) for fault in misfits(item, shape[0], f"{where}{at}.")]
    if isinstance(shape, type | tuple):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        holds, expected = isinstance(data, kinds), " or ".join(kind.__name__ for kind in kinds)
        holds &= bool in kinds or not isinstance(data, bool)
    elif isinstance(shape, Mapping | list):
        holds, expected = False, "object" if isinstance(shape, Mapping) else "list"
    else:
        holds, expected = shape(data), shape.__name__.replace("_", " ")
    return [] if holds else [f"{where.removesuffix('.')}: expected {expected}, found {shown(data)}"]


def whole_number(data: object) -> bool:
    """Return whether JSON is a whole number from 0 that SQLite can hold."""
    return isinstance(data, int) and not isinstance(data, bool) and 0 <= data < 2**63


def number(data: object) -> bool:
    """Return whether JSON is a number from 0, no larger than a measurement can be."""
    return isinstance(data, int | float) and not isinstance(data, bool) and 0 <= data < 1e15


def moment(data: object) -> bool:
    """Return whether JSON is a moment, with or without an offset."""
    try:
        return isinstance(data, str) and moment_of(data) is not None
    except ValueError:
        return False


def open_regular(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a regular file to read its bytes; raise OSError for a link, a FIFO, a device, which nothing waits for.

    With ``follow`` a link may lead to it. A file on which this process has a POSIX lock is refused: it is SQLite's, and
    to close another descriptor of it would drop that lock.
    """
    found = os.stat(path, follow_symlinks=follow)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # SQLite writes whole words: most other files are told apart by their size, a hundred times as fast.
    here = (os.getpid(), found.st_ino)
    if found.st_size % 8 == 0 and any(here == (lock.pid, lock.inode) for lock in posix_locks()):
        raise OSError(errno.EBUSY, "this process has it open, as a database or for one", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)), "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file; raise OSError as ``open_regular``, and for an enormous one. Read-only."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST:
            raise OSError(errno.EFBIG, f"it is larger than {_MOST:,} bytes", str(path))
        return file.read()


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file 0600 under a temporary name, force it to the disk, and give it its name, replacing an older one.

    Whatever interrupts it, ``path`` is whole or as it was. Owned by whom its directory belongs to. Whole, it gets
    ``mode``.
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
        with suppress(OSError):  # of a disk that fails: the error is that of the write
            draft.unlink(missing_ok=True)
        raise
    fsync(path.parent)
