"""The one form in which evidence is written: canonical JSON that holds its own hash, put down durably."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from abathur_nb.scratch import fsync, make_private_file

__all__ = [
    "UNFINISHED",
    "canonical",
    "fits",
    "open_regular",
    "read_regular",
    "sealed",
    "sha256",
    "unsealed",
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
    # A lone surrogate has no UTF-8; backslashreplace writes it as JSON does, \udc80.
    return f"{text}\n".encode(errors="backslashreplace")


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` in canonical form with its own hash, which is over that form without it, as ``sha256``."""
    # What JSON makes of it is sealed: the keys 2 and 10 are sorted otherwise as text.
    plain = json.loads(json.dumps(data, allow_nan=False))
    return canonical({**plain, "sha256": sha256(canonical(plain))})


def unsealed(content: bytes) -> dict[str, Any]:
    """Return what ``sealed`` wrote, without the hash; raise ValueError, saying why, if a single byte is another."""
    try:
        data = json.loads(content.decode())
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - every fault of the content is one kind
        written = canonical(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no canonical JSON ({error})") from None
    if written != content:
        raise ValueError("it is not in canonical form")
    claimed = data.pop("sha256", None)
    if claimed != sha256(canonical(data)):
        raise ValueError("its hash is not the one that it names")
    return data


def fits(data: Any, shape: Any) -> bool:
    """Tell whether JSON has a shape: a type, a list of one shape, or a mapping with at least these keys and shapes."""
    if isinstance(shape, Mapping):
        return isinstance(data, dict) and all(key in data and fits(data[key], shape[key]) for key in shape)
    if isinstance(shape, list):
        return isinstance(data, list) and all(fits(item, shape[0]) for item in data)
    return isinstance(data, shape)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes; raise OSError for a link, a FIFO, a device, which nothing waits for."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file; raise OSError as ``open_regular``, and for an enormous one. Read-only."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST:
            raise OSError(errno.EFBIG, f"it is larger than {_MOST:,} bytes", str(path))
        return file.read()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file 0600 under a temporary name, force it to the disk, and give it its name, replacing an older one.

    Whatever interrupts it, ``path`` is whole or as it was. Owned by whom its directory belongs to.
    """
    draft = path.with_name(f"{UNFINISHED}{secrets.token_hex(6)}")
    make_private_file(draft, owned_as=path.parent)
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync(path.parent)
