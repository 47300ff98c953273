"""The ledger of an archive: a line for each run, with its own hash and the hash of the line before."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.errors import RefusedError
from abathur_nb.evidence.canonical import misfits, moment, sealed, sha256, unsealed
from abathur_nb.files import at, fsync, locked, make_private_file, open_regular
from abathur_nb.text import moment_of, utc_now

LEDGER = "ledger.jsonl"
FIRST = "0" * 64  # the first line's ``previous`` hash
# The run's start, only in 2000–2099 to keep time axes readable, and six random hexadecimal digits.
RUN_ID = re.compile(
    r"20\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3])(?:[0-5]\d){2}\d{3}Z-[0-9a-f]{6}", re.ASCII
)
# A repair follows the bytes of a torn line, which has no newline, on the same line. It is found by its first bytes,
# which no other line holds: JSON escapes quotation marks within text.
_REPAIR = b'{"kind":"repair",'
_BLOCK = 2**16  # bytes that are read first from the end of a ledger: about 80 lines
# A clock may be set back during a run, and hosts that share an archive may disagree, by a wrong time zone at most.
_MARGIN = timedelta(days=1)
_FILE = re.compile(r"[a-z]+\.[a-z]+", re.ASCII)


def run_id(data: object) -> bool:
    """Return whether JSON is the id of a run."""
    return isinstance(data, str) and RUN_ID.fullmatch(data) is not None


def files_of_a_run(data: object) -> bool:
    """Return whether JSON maps valid names of a run's files to texts."""
    return isinstance(data, dict) and all(_FILE.fullmatch(name) and isinstance(data[name], str) for name in data)


_RUN_LINE = {
    "kind": frozenset({"run"}),
    "run_id": run_id,
    **dict.fromkeys(("notebook", "env", "verdict", "previous"), str),
    **dict.fromkeys(("started_at", "ended_at", "written_at"), moment),
    "as_template": bool,
    "files": files_of_a_run,
}
_REPAIR_LINE = {"torn_sha256": str, "written_at": moment, "previous": str}


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one whole line: its number in the file, its data, the SHA-256 of its bytes."""

    number: int
    data: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """Hold the content of a ledger: ``runs`` has the lines by run id, ``torn`` describes an unfinished last line."""

    lines: tuple[Line, ...] = ()
    runs: Mapping[str, Line] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    torn: str = ""


def read_ledger(archive: Path) -> Ledger:
    """Read the ledger of an archive and check each hash and link. Read-only.

    A missing file gives an empty ledger; an unreadable file gives a ledger with one fault.
    """
    try:
        ledger = parse(content_of(archive))
        if ledger.torn:
            with locked(archive, shared=True):  # another process may have been writing it
                ledger = parse(content_of(archive))
    except RefusedError as error:
        return Ledger(faults=(str(error),))
    except OSError:  # a file system without locks
        pass
    return ledger


def content_of(archive: Path) -> bytes:
    """Return the bytes of a ledger, empty if it is missing; raise RefusedError if it can't be read. Read-only."""
    return b"\n".join([*_backwards(archive)][::-1])


def parse(content: bytes) -> Ledger:
    """Check the bytes of a ledger line by line. Read-only."""
    lines: list[Line] = []
    runs: dict[str, Line] = {}
    faults: list[str] = []
    notes: list[str] = []
    *pieces, torn = content.split(b"\n")
    before = FIRST
    for number, piece in enumerate(pieces, 1):
        where = f"{LEDGER} line {number}"
        previous, before = before, sha256(piece + b"\n")
        try:
            data = _read_line(piece)
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        if data["previous"] != previous:
            faults.append(f"{where}: it does not follow the previous line: a line was altered or removed")
        line = Line(number, data, before)
        lines.append(line)
        if data["kind"] == "repair":
            notes.append(f"{where} was torn by a crash, and repaired at {data['written_at']} UTC")
        elif runs.setdefault(data["run_id"], line) is not line:
            faults.append(f"{where}: run {data['run_id']} already has an earlier line")
    unfinished = f"{LEDGER} line {len(pieces) + 1} is torn: a run died while writing it" if torn else ""
    return Ledger(tuple(lines), runs, tuple(faults), tuple(notes), unfinished)


def _read_line(piece: bytes) -> dict[str, Any]:
    """Return the data of a line, without its hash; raise ValueError, with the reason, if it was altered."""
    torn, repair, rest = piece.rpartition(_REPAIR)
    data = unsealed(repair + rest + b"\n")
    if faults := misfits(data, _REPAIR_LINE if repair else _RUN_LINE):
        raise ValueError(f"neither the line of a run nor a repair: {'; '.join(faults)}")
    if repair and (not torn or data["torn_sha256"] != sha256(torn)):
        raise ValueError("its repair belongs to a different torn line")
    return data


def _backwards(archive: Path) -> Iterator[bytes]:
    """Yield the torn bytes at a ledger's end, which may be none, then its lines, newest first; read no more than asked.

    Lines come without their newlines. Raises RefusedError if the ledger can't be read; a missing one is empty.
    """
    size, begun = _BLOCK, b""  # the end of a line that begins before the block
    try:
        with suppress(FileNotFoundError), open_regular(archive / LEDGER) as file:
            place = file.seek(0, os.SEEK_END)
            while place:
                # Larger and larger blocks: otherwise a long line would be copied once for each block.
                end, place, size = place, max(0, place - size), 2 * size
                file.seek(place)
                begun, *pieces = (file.read(end - place) + begun).split(b"\n")
                yield from reversed(pieces)
    except OSError as error:
        raise RefusedError(f"the ledger {archive / LEDGER} cannot be read: {error.strerror}") from None
    yield begun


def newest_lines(archive: Path) -> Iterator[Line]:
    """Yield the whole lines of a ledger, newest first, with numbers -1, -2, …; read no more than asked. Read-only.

    Raises RefusedError at a line that was altered or is not the one before the last, or if the ledger can't be read.
    """
    pieces = _backwards(archive)
    next(pieces)
    yield from checked(pieces, str(archive / LEDGER), f"python -m abathur_nb verify {quote(str(archive))}")


def checked(pieces: Iterator[bytes], where: str, remedy: str) -> Iterator[Line]:
    """Yield lines, whose bytes come newest first, as `newest_lines` does."""
    link, number = "", 0
    try:
        for piece in pieces:
            if (digest := sha256(piece + b"\n")) != (link or digest):
                raise ValueError("the next line does not follow it: a line was altered or removed")
            data, number = _read_line(piece), number - 1
            yield Line(number, data, digest)
            link = data["previous"]
        if link not in ("", FIRST):
            raise ValueError("it was removed")
    except ValueError as error:
        raise RefusedError(f"{where}, line {1 - number} from the end: {error}", remedy) from None


def require_no_line(archive: Path, run_id: str) -> tuple[str, bytes]:
    """Raise RefusedError if the ledger has a line for this run; return its last line's hash and torn end. Read-only.

    Reads back to the first line that was clearly written before the run began, as its id tells; checks no other line.
    """
    pieces, head = _backwards(archive), FIRST
    torn, named = next(pieces), f'"run_id":"{run_id}"'.encode()  # searching bytes is faster than parsing
    for number, piece in enumerate(pieces):
        head = head if number else sha256(piece + b"\n")
        if named in piece and _REPAIR not in piece:
            raise RefusedError(f"run {run_id} is archived already", f"see {archive / run_id}")
        with suppress(ValueError, OverflowError):  # an altered line does not end the search
            written = moment_of(piece.rpartition(b'"written_at":"')[2].partition(b'"')[0].decode())
            if f"{written + _MARGIN:%Y%m%dT%H%M%S}" < run_id and _read_line(piece):
                break
    return head, torn


def append(archive: Path, data: Mapping[str, Any], head: str, torn: bytes) -> str:
    """Append a durable line to the ledger and return its hash; repair a torn last line first. Needs the lock.

    ``head`` and ``torn`` are of `require_no_line` under that lock. After a crash the line is whole, missing or torn.
    """
    path = archive / LEDGER
    if not os.path.lexists(path):
        make_private_file(path, owned_as=archive)
        fsync(archive)
    added = b""
    if torn:
        added = sealed({"kind": "repair", "torn_sha256": sha256(torn), "written_at": utc_now(), "previous": head})
        head = sha256(torn + added)
    line = sealed({**data, "previous": head})
    added += line
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    size = os.fstat(descriptor).st_size
    try:
        with at(path):
            while added:
                added = added[os.write(descriptor, added) :]
            os.fsync(descriptor)
    except BaseException:  # a full disk may store only a part
        os.ftruncate(descriptor, size)
        raise
    finally:
        os.close(descriptor)
    return sha256(line)
