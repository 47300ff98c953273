"""Inspect a database's files, or make a query plan, in a separate process that imports nothing of the package.

When a process closes any descriptor of a file, it loses every POSIX lock on that file, SQLite's too. Another process
can then write during an open transaction.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # importing typing, json and the like takes longer than an inspection
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# https://sqlite.org/fileformat2.html#walformat and https://sqlite.org/walformat.html, section 2
_MAGICS = {b"\x37\x7f\x06\x82": "<", b"\x37\x7f\x06\x83": ">"}  # the byte order of the words in the checksum
_HEADER, _FRAME_HEADER = 32, 24  # bytes: the header of the log, and of each frame
_LOCKS = {"": ((2**30, 1), (2**30 + 1, 1), (2**30 + 2, 510)), "-shm": tuple((byte, 1) for byte in range(120, 129))}
WRITE_LOCK, _CHECKPOINT_LOCK = 120, 121
_WHOLE = {"frames": 0, "read": 0, "torn": -1}
_DATABASE = b"SQLite format 3\0"
_SCHEMA = 2**24  # bytes at the beginning of a file in which to look for its schema
_SECTOR = 512  # bytes: the least that a disk loses
_COPY_S = 5  # seconds to wait for a checkpoint
_PAUSE_S = 0.005
PLAN_S, PLAN_MB = 5, 512  # to plan a statement of this package takes a millisecond and 15 MB

# An import uses the compiled file. -I and -S skip site-packages, which take longer to set up than the inspection.
_START = ("-I", "-S", "-B", "-c", "import sys; sys.path.append(sys.argv[1]); sys.exit(__import__(sys.argv[2]).main())")


def command(*arguments: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the command that runs ``main()`` of this module, which imports only the standard library."""
    folder, name = os.path.split(__file__)
    return (sys.executable, *_START, folder, name.removesuffix(".py"), *(os.fspath(one) for one in arguments))


def ask(*look: str | os.PathLike[str]) -> Any:
    """Run a function of ``_LOOKS`` in another process and return its result. Read-only, except ``copy``.

    Raises OSError, and SubprocessError if the process fails.
    """
    from ast import literal_eval
    from subprocess import run

    done = run(command(*look), capture_output=True, check=True)  # noqa: S603 - no shell
    answer, error = literal_eval(done.stdout.decode())
    if error:
        raise OSError(*error)
    return answer


def _open(path: str) -> int:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileNotFoundError(2, "not a regular file", path)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _digest(path: str) -> str:
    import hashlib  # 5 ms

    with os.fdopen(_open(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ours(path: str, application_id: str, *known: str) -> bool:
    """Return whether a file has Abathur's header or, if its header is destroyed, one of the SQL texts ``known``."""
    try:
        with os.fdopen(_open(path), "rb") as file:
            data = file.read(_SCHEMA)
    except OSError:
        return False
    if _is_whole(data):
        return data[68:72] == int(application_id).to_bytes(4, "big")
    is_table = data[100:101] in (b"\5", b"\r") and data[103:104] == b"\0"  # header of page 1; a text file has no NUL
    return is_table and any(sql.encode() in data for sql in known)


def _is_whole(header: bytes) -> bool:
    return header[:16] == _DATABASE and header[21:24] == b"@  "  # three constants of the format


def _header(path: str, least_format: str = "1") -> str:
    """Return the first damage that a database's header shows, such as a truncated file, or an empty text.

    A schema format below ``least_format`` is damage: below 4, SQLite ignores DESC in indexes.
    """
    try:
        before = _settled(path)
        with os.fdopen(_open(path), "rb", 0) as file:
            header, size = file.read(100), os.fstat(file.fileno()).st_size
            is_still = before is not None and _settled(path) == before and os.pread(file.fileno(), 100, 0) == header
    except OSError:
        return ""
    if not _is_whole(header):
        return ""
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    page = 65_536 if page == 1 else page
    needed = pages * page if header[24:28] == header[92:96] else 0  # only then is the number of pages valid
    encoding = int.from_bytes(header[56:60], "big")  # SQLite reads only its last two bits
    faults = {
        f"its header has the write version {header[18]}": header[18] > 2,
        f"its header has the text encoding {encoding}": encoding > 3,
        f"its header has the schema format {header[47]}, not 4": not int(least_format) <= header[47] <= 4,
        f"the file has {size:,} bytes of {needed:,}": is_still and size < needed,
    }
    return next((fault for fault, holds in faults.items() if holds), "")


def _settled(path: str) -> tuple[int, dict[str, Any] | None] | None:
    """Return the log's size and its index; None if the log or a journal may hold pages that the file lacks."""
    log, index = _size(f"{path}-wal"), _index(path)
    is_copied = not log or (index is not None and index["marks"][0] >= index["frames"])
    return (log, index) if is_copied and not _size(f"{path}-journal") else None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _locks(path: str) -> list[tuple[str, int, bool, int]]:
    """Return each lock on SQLite's lock bytes: file suffix, byte, whether exclusive, PID (0: of another namespace)."""
    found = []
    for suffix, ranges in _LOCKS.items() if sys.platform == "linux" else ():
        try:
            file = _open(f"{path}{suffix}")
        except OSError:
            continue
        for start, length in ranges:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
            if kind != fcntl.F_UNLCK:
                found.append((suffix, start, kind == fcntl.F_WRLCK, max(pid, 0)))
        os.close(file)
    return found


def _index(path: str) -> dict[str, Any] | None:
    """Return the header of the log's index (the -shm file); None if it is missing or being written."""
    try:
        file = _open(f"{path}-shm")
    except OSError:
        return None
    head = os.pread(file, 120, 0)
    os.close(file)
    # SQLite stores it twice and writes the second copy first: if both are equal, they are complete.
    if len(head) < 120 or head[:48] != head[48:96] or not head[12] or _sums("=", head[:40]) != head[40:48]:
        return None
    commits, frames = struct.unpack_from("=I4xI", head, 8)
    # Read mark 0 is always 0: its readers read only the database file.
    backfilled, _, *marks = struct.unpack_from("=6I", head, 96)
    return {
        "commits": commits,  # since the index was last rebuilt from the log
        "frames": frames,
        "salts": head[32:40],
        "marks": (backfilled, *marks),
    }


def _sums(order: str, data: bytes, start: bytes = bytes(8), form: str = "=") -> bytes:
    """Return SQLite's checksum of ``data``, continued from ``start``; ``order`` and ``form`` are byte orders."""
    first, second = struct.unpack(f"{form}2I", start)
    odd = len(data) % 32
    for one, two in struct.iter_unpack(f"{order}2I", data[:odd]):
        first = first + one + second & 0xFFFFFFFF
        second = second + two + first & 0xFFFFFFFF
    # Eight words per loop take a third of the time.
    for a, b, c, d, e, f, g, h in struct.iter_unpack(f"{order}8I", data[odd:]):
        first += a + second
        second += b + first
        first += c + second
        second += d + first
        first += e + second
        second += f + first
        first = first + g + second & 0xFFFFFFFF
        second = second + h + first & 0xFFFFFFFF
    return struct.pack(f"{form}2I", first, second)


def _log(path: str, seconds: str) -> dict[str, int] | None:
    """Check the write-ahead log of a database; return None if it changed during every attempt.

    ``torn`` is the number of the first damaged frame that commits follow; 0: the log's header, -1: none, -2: time ran
    out. With ``doubt``, that frame may belong to an unfinished transaction.
    """
    until = time.monotonic() + float(seconds)
    while True:
        try:
            with os.fdopen(_open(f"{path}-wal"), "rb", 0) as log:
                found = _judge(path, log.fileno(), until)
        except FileNotFoundError:
            return _WHOLE
        if found or time.monotonic() > until:
            return found
        time.sleep(_PAUSE_S)


def _judge(path: str, log: int, until: float) -> dict[str, int] | None:
    index, header = _index(path), os.pread(log, _HEADER, 0)
    if not header:
        return _WHOLE
    found = _frames(log, header, index, _page_size(path), until) if index else None
    if index is None or found is None or found["torn"] == -1:
        return found
    # Committed frames stay as they are until the log is reset. A writer may be changing the frames after them.
    settled = 0 <= found["torn"] < index["frames"] or (
        _index(path) == index and (found["torn"] < 0 or ("-shm", WRITE_LOCK) not in [k[:2] for k in _locks(path)])
    )
    if found.get("doubt") and _newer(path, str(found["torn"])):  # a checkpoint writes only committed frames
        del found["doubt"]
    return found if settled and os.pread(log, _HEADER, 0) == header else None


def _page_size(path: str) -> int:
    """Return the page size in the header of a database; 0 if it is missing, as when every page is in the log."""
    with os.fdopen(_open(path), "rb") as file:
        size = int.from_bytes(file.read(18)[16:], "big")
    return 65_536 if size == 1 else size if size >= 512 else 0


def _places(log: int, page: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of each frame of a log, the offset of its page, and its header."""
    size = page + _FRAME_HEADER
    for number in range(1, (os.fstat(log).st_size - _HEADER) // size + 1):
        place = _HEADER + number * size - page
        yield number, place, os.pread(log, _FRAME_HEADER, place - _FRAME_HEADER)


def _frames(log: int, header: bytes, index: dict[str, Any], stated: int, until: float) -> dict[str, int] | None:
    """Check the frames of a log; return None for the index of another log. ``stated`` is the database's page size."""
    order, page = _MAGICS.get(header[:4]), int.from_bytes(header[8:12], "big")
    last = read = index["frames"]
    frames = (os.fstat(log).st_size - _HEADER) // ((stated or page) + _FRAME_HEADER)
    if order is None or (stated or page) != page or _sums(order, header[:24], form=">") != header[24:]:
        return {"frames": frames, "read": read, "torn": 0 if frames > 0 else -1}
    if header[16:24] != index["salts"]:  # the log is being reset: all of its frames are in the database
        return None if read else _WHOLE
    sums, broken, row = header[24:], 0, 0
    for number, place, head in _places(log, page):
        if time.monotonic() > until:
            return {"frames": frames, "read": read, "torn": -2}
        sound = head[8:16] == index["salts"]
        if sound:
            content = os.pread(log, page, place)
            sound = len(content) == page and _sums(order, head[:8] + content, sums, ">") == head[16:]
        sums = head[16:]
        if not broken and sound:
            continue
        broken = broken or number
        # After overwritten frames, a killed writer may leave one valid commit that was never acknowledged. Two in a row
        # prove that the log is damaged before them. One is in doubt if none was written since the index was rebuilt.
        row = row if sound else 0
        if number > broken and head[8:16] == index["salts"] and head[4:8] != bytes(4):
            last, row = number, row + 1
        if broken <= read or row > 1:
            return {"frames": max(last, broken), "read": read, "torn": broken}
    if last > read and not index["commits"]:
        return {"frames": last, "read": read, "torn": broken, "doubt": 1}
    return {"frames": last, "read": read, "torn": -1}


def _newer(path: str, torn: str) -> bool:
    """Return whether a checkpoint wrote pages to the file that are newer than those in its log before frame ``torn``.

    It did if most of the file's pages that differ from what SQLite reads equal a frame after ``torn``.
    """
    log, file = _open(f"{path}-wal"), _open(path)
    index, salts, page = _index(path), os.pread(log, _HEADER, 0)[16:24], _page_size(path)
    if index is None or not page or index["salts"] != salts:
        return False
    pages = os.fstat(file).st_size // page
    read, behind = dict[int, int](), dict[int, list[tuple[int, int]]]()
    for number, place, head in _places(log, page):
        of, after = struct.unpack_from(">2I", head)
        if head[8:16] != salts or not of:
            continue
        if number <= index["frames"]:
            read[of], pages = place, after or pages
        else:
            behind.setdefault(of, []).append((place, _SECTOR if number == int(torn) else 0))
    newer = older = 0
    for of in {*read, *behind}:
        now = os.pread(file, page, (of - 1) * page)
        if now == os.pread(log, page, read[of]) if of in read else of <= pages:
            continue
        found = [most for place, most in behind.get(of, ()) if _same(now, os.pread(log, page, place), most)]
        newer += 0 in found
        older += of in read and not found  # a page that equals the damaged frame proves neither
    return newer > older


def _same(one: bytes, two: bytes, most: int) -> bool:
    """Return whether two pages differ only in the ``most`` bytes from their first difference."""
    place = len(os.path.commonprefix((one, two))) + most  # noqa: RUF071 - of bytes
    return one[place:] == two[place:]


def _copy(database: str, log: str, index: str, target: str) -> None:
    """Copy a database and its log, given by their paths in /proc, while a lock prevents checkpoints."""
    from shutil import copyfile

    lock = os.open(index, os.O_RDWR) if index else -1
    until = time.monotonic() + _COPY_S
    while index:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _CHECKPOINT_LOCK)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_S)
    os.umask(0o077)
    for source, name in ((database, target), (log, f"{target}-wal")):
        if source:
            copyfile(source, name)


def _plan() -> None:
    """Read a pickled statement from stdin; write a pickle of its EXPLAIN QUERY PLAN rows, or the error, to stdout."""
    # Before SQLite 3.41 only these limits stop a compilation, which may take minutes and gigabytes.
    import pickle
    import resource
    import sqlite3

    uri, timeout, statement, parameters = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent alone
    limits = {resource.RLIMIT_CPU: PLAN_S, resource.RLIMIT_AS: PLAN_MB * 1_000_000, resource.RLIMIT_CORE: 0}
    for what, limit in limits.items():
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    answer: object
    try:
        conn = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
        answer = conn.execute(statement, parameters).fetchall()
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        answer = error
    pickle.dump(answer, sys.stdout.buffer)


_LOOKS: dict[str, Callable[..., Any]] = {
    "copy": _copy,
    "digest": _digest,
    "log": _log,
    "ours": _ours,
    "look": lambda path: (_locks(path), _index(path)),
    "newer": _newer,
    "header": _header,
}


def main() -> None:
    """Run the function that the arguments name; write its result and its error as one Python literal."""
    if sys.argv[3] == "plan":
        _plan()
        return
    answer, fault = None, None
    try:
        answer = _LOOKS[sys.argv[3]](*sys.argv[4:])
    except OSError as error:
        fault = (error.errno, error.strerror, error.filename)
    sys.stdout.write(ascii((answer, fault)))
