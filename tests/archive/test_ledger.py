"""The ledger, an unbroken chain of canonical JSON: whoever writes at once or dies, whatever is altered is noticed."""

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from archives import chain, ledger_line, run, run_id_of
from hostile import BYTES

from abathur_nb import files
from abathur_nb.config.settings import Settings
from abathur_nb.errors import BusyError, RefusedError
from abathur_nb.evidence import ledger as module
from abathur_nb.evidence.canonical import misfits, moment, number, sealed, sha256, unsealed, whole_number
from abathur_nb.evidence.ledger import FIRST, LEDGER, append, newest_lines, parse, read_ledger, require_no_line
from abathur_nb.files import locked, open_regular, read_regular, write_durably

DATA = {"b": [1, 2.5, None, True], "a": {"ü": '\u202e\x00\n"\\'}, "n": -0.0, "big": 10**30, "small": 1e-300}


def test_every_byte_more_or_less_is_noticed() -> None:
    content = sealed(DATA)
    for place in range(len(content)):
        for instead in (b"", content[place + 1 :], b" " + content[place:]):
            with pytest.raises(ValueError, match=r"canonical|hash"):
                unsealed(content[:place] + instead)
    with pytest.raises(ValueError, match="canonical form"):
        unsealed(content + b"\n")


def test_what_was_never_sealed_is_a_value_error() -> None:
    for content in (*BYTES.values(), b'{"a":1}\n', b'{"a":NaN,"sha256":""}\n', b'{"a":1,"a":1,"sha256":""}\n'):
        with pytest.raises(ValueError, match=r"it is|its hash"):
            unsealed(content)


SHAPES: list[tuple[Any, Any, list[str]]] = [
    ({"a": "x", "more": 1}, {"a": str}, []),
    ({}, {"a": str, "b": str}, ["a: missing", "b: missing"]),
    ({"a": 1}, {"a": str}, ["a: expected str, found 1"]),
    ([], {}, [": expected object, found []"]),
    ({"a": [{"b": 1}, {}]}, {"a": [{"b": int}]}, ["a.1.b: missing"]),
    ({"a": {"b": 1}}, {"a": [{"b": int}]}, ["a: expected list, found {'b': 1}"]),
    ({"a": ["x", 1], "b": []}, {"a": [str, int], "b": [int]}, []),
    ({"a": [1, 1]}, {"a": [str, int]}, ["a.0: expected str, found 1"]),
    ({"a": [1]}, {"a": [int, int]}, ["a: expected list of 2, found [1]"]),
    ({"a": None, "b": True}, {"a": (dict, type(None)), "b": bool}, []),
    (
        {"a": True, "b": False},
        {"a": int, "b": (int, float)},
        ["a: expected int, found True", "b: expected int, found False"],
    ),
    ({"x": {"y": -1}, "z": {"y": 2}}, {str: {str: whole_number}}, ["x.y: expected whole number, found -1"]),
    ({"a": 2**63}, {"a": whole_number}, [f"a: expected whole number, found {2**63}"]),
    ({"a": 1e15}, {"a": number}, ["a: expected number, found 1000000000000000.0"]),
    ({"a": "2026-11-30 10:00:00.000", "b": "2026-11-30T10:00:00+05:30"}, {str: moment}, []),
    (
        {"a": "yesterday", "b": 7},
        {str: moment},
        ["a: expected moment, found 'yesterday'", "b: expected moment, found 7"],
    ),
]


@pytest.mark.parametrize(("data", "shape", "faults"), SHAPES)
def test_each_thing_without_the_shape_is_named_with_its_place(data: Any, shape: Any, faults: list[str]) -> None:
    assert misfits(data, shape) == faults


@pytest.mark.parametrize("call", ["fsync", "fdopen"])
def test_a_full_disk_leaves_the_older_file_alone(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_durably(path, b"older")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"newer")
    monkeypatch.undo()
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_regular_file_is_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    real, link, fifo, server = (tmp_path / name for name in ("real", "link", "fifo", "socket"))
    real.write_bytes(b"content")
    link.symlink_to(real)
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(server))
        for path in (link, fifo, server, tmp_path, Path("/dev/zero")):
            with pytest.raises(OSError, match="not a regular file"):
                read_regular(path)
            with pytest.raises(OSError, match="not a regular file"):
                open_regular(path)
    assert read_regular(real) == b"content"


FORK = get_context("fork")


def add(archive: Path, number: int) -> str:
    with locked(archive):
        return append(archive, ledger_line(number), *require_no_line(archive, run_id_of(number)))


def ledger_of(archive: Path, count: int) -> bytes:
    for n in range(count):
        add(archive, n)
    return (archive / LEDGER).read_bytes()


def forged(previous: str, **data: Any) -> bytes:
    """Return a line whose own hash is right."""
    return sealed({**ledger_line(77), "previous": previous, **data})


def test_each_line_names_the_hash_of_the_bytes_of_the_line_before(tmp_path: Path) -> None:
    content = ledger_of(tmp_path, 3)
    pieces = content.splitlines(keepends=True)
    read = read_ledger(tmp_path)
    assert read.faults == read.notes == ()
    assert read.torn == ""
    assert [found.data["previous"] for found in read.lines] == [FIRST, *map(sha256, pieces[:2])]
    assert [found.sha256 for found in read.lines] == [*map(sha256, pieces)]
    assert list(read.runs) == [run_id_of(n) for n in range(3)]
    assert (tmp_path / LEDGER).stat().st_mode & 0o777 == 0o600


LONG = 200_000  # bytes: several blocks


@pytest.mark.parametrize("block", [1, 700, module._BLOCK])
@pytest.mark.parametrize("torn", [b"", b"torn", b"torn" * LONG])
@pytest.mark.parametrize("lengths", [[], [1], [LONG], [1] * 300, [1, LONG], [LONG, 1, LONG, LONG, 1]], ids=len)
def test_read_from_its_end_a_ledger_has_the_same_lines(
    lengths: list[int], torn: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    content = chain(ledger_line(n, env="x" * length) for n, length in enumerate(lengths))
    (tmp_path / LEDGER).write_bytes(content + torn)
    lines = parse(content).lines
    assert [*newest_lines(tmp_path)] == [replace(line, number=line.number - len(lines) - 1) for line in lines[::-1]]
    assert require_no_line(tmp_path, run_id_of(999)) == (lines[-1].sha256 if lines else FIRST, torn)
    for line in lines[:1] + lines[-1:]:
        with pytest.raises(RefusedError, match="archived already"):
            require_no_line(tmp_path, line.data["run_id"])


def test_a_run_is_searched_for_back_to_a_sound_line_from_a_day_before_it_began(tmp_path: Path) -> None:
    for written, found in (("2026-11-22 10:14:59", False), ("2026-11-22 10:15:01", True), ("9999-12-31", True)):
        content = chain([ledger_line(1), ledger_line(2, written_at=written)])  # run 1 began at 2026-11-23 10:15:00
        (tmp_path / LEDGER).write_bytes(content)
        with pytest.raises(RefusedError, match="already") if found else nullcontext():
            require_no_line(tmp_path, run_id_of(1))
        (tmp_path / LEDGER).write_bytes(content[:-2] + b"|\n")  # altered
        with pytest.raises(RefusedError, match="already"):
            require_no_line(tmp_path, run_id_of(1))


def test_of_a_ledger_beyond_256_mib_a_run_reads_only_the_end(database: Settings) -> None:
    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    archive = database.archive_dir
    archive.mkdir(mode=0o700)
    with (archive / LEDGER).open("xb") as file:
        file.seek(257 * 2**20)  # a hole
        file.write(b"\n" + (last := forged(FIRST, written_at="2000-01-01")))

    before, folder, after = read(), run(database), read()
    assert after - before < 2**23
    newest, older = islice(newest_lines(archive), 2)
    assert (newest.data["run_id"], newest.data["previous"], older.sha256) == (folder.name, *[sha256(last)] * 2)
    assert "line 1: it is not canonical JSON" in read_ledger(archive).faults[0], "all of it is read"


def _append_many(archive: Path, first: int) -> None:
    for n in range(first, first + 25):
        add(archive, n)


def test_of_eight_writers_at_once_every_line_stands_in_one_chain(tmp_path: Path) -> None:
    writers = [FORK.Process(target=_append_many, args=(tmp_path, 25 * n)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    read = read_ledger(tmp_path)
    assert read.faults == read.notes == ()
    assert sorted(read.runs) == [run_id_of(n) for n in range(200)]


@pytest.mark.parametrize(
    "torn", [b"", b'{"ended_at":"20', sealed(ledger_line(2))[:-1]], ids=["line", "repair", "newline"]
)
def test_killed_at_any_byte_it_leaves_a_torn_line_that_the_next_one_closes(torn: bytes, tmp_path: Path) -> None:
    before = ledger_of(tmp_path, 2) + torn
    (tmp_path / LEDGER).write_bytes(before)
    add(tmp_path, 2)
    added = (tmp_path / LEDGER).read_bytes()[len(before) :]
    whole = added.index(b"\n") + 1 if torn else 0  # where the repair is over, and the line not begun
    for length in sorted({*range(0, len(added), 9), whole, whole + 1, len(added) - 1}):
        (tmp_path / LEDGER).write_bytes(before + added[:length])
        read = read_ledger(tmp_path)
        assert (read.faults, bool(read.torn), len(read.runs)) == ((), length != whole, 2)
        add(tmp_path, 2)  # the run whose line it was, archived once more
        read = read_ledger(tmp_path)
        assert (read.faults, read.torn, len(read.notes)) == ((), "", bool(torn) + (length > whole))
        assert list(read.runs) == [run_id_of(0), run_id_of(1), run_id_of(2)]
        assert (tmp_path / LEDGER).read_bytes().startswith(before + added[:length]), "append-only"


@pytest.mark.parametrize("torn", [b"", b'{"ended_at":"20'])
@pytest.mark.parametrize("room", [0, 200])
def test_a_full_disk_leaves_the_ledger_as_it_was(torn: bytes, room: int, tmp_path: Path) -> None:
    before = ledger_of(tmp_path, 1) + torn
    (tmp_path / LEDGER).write_bytes(before)
    if not (child := os.fork()):
        # Of a write beyond the limit the kernel takes what fits, as a full disk does, and refuses the rest.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, resource.RLIM_INFINITY))
        try:
            add(tmp_path, 1)
        except OSError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / LEDGER).read_bytes() == before
    add(tmp_path, 1)
    assert read_ledger(tmp_path).faults == ()


def test_a_line_that_is_only_being_written_is_not_called_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = ledger_of(tmp_path, 2)
    half = content.index(b"\n") + 100
    (tmp_path / LEDGER).write_bytes(content[:half])
    written, asked = os.pipe(), os.pipe()
    if not (child := os.fork()):
        with locked(tmp_path), (tmp_path / LEDGER).open("ab") as file:
            os.write(written[1], b".")  # half of a line is there, and the lock is held
            os.read(asked[0], 1)
            file.write(content[half:])
        os._exit(0)
    os.read(written[0], 1)
    original = locked

    @contextmanager
    def observed(archive: Path, *, shared: bool = False) -> Iterator[None]:
        Thread(target=os.write, args=(asked[1], b".")).start()
        with original(archive, shared=shared):
            yield

    monkeypatch.setattr(module, "locked", observed)
    read = read_ledger(tmp_path)
    os.write(asked[1], b".")  # who did not wait must not keep the writer waiting
    os.waitpid(child, 0)
    for end in (*written, *asked):
        os.close(end)
    assert (read.torn, len(read.runs)) == ("", 2)


Lines = list[bytes]


def altered(number: int) -> Callable[[Lines], Lines]:
    def alter(lines: Lines) -> Lines:
        changed = lines[number].replace(b'"verdict":"x"', b'"verdict":"y"')
        return [*lines[:number], changed, *lines[number + 1 :]]

    return alter


def repair(torn: bytes, previous: bytes, sha: str = "") -> bytes:
    """Return the repair of a torn line, right in itself."""
    data = {
        "kind": "repair",
        "torn_sha256": sha or sha256(torn),
        "written_at": "2026-11-23 10:15:00.123",
        "previous": sha256(previous),
    }
    return sealed(data)


def false_repair(lines: Lines) -> Lines:
    """Call a line torn that was whole."""
    whole = lines[1].rstrip(b"\n")
    return [lines[0], whole + repair(whole, lines[0]), *lines[2:]]


def repaired_beside(lines: Lines) -> Lines:
    """Alter the last line, and say behind it that it was torn."""
    changed = altered(3)(lines)
    return [*changed, repair(changed[3], changed[3])]


CASES: dict[str, Callable[[Lines], Lines]] = {
    "the first line altered": altered(0),
    "the last line altered": altered(3),
    "a line altered, its hash recomputed": lambda lines: [forged(FIRST, verdict="pass"), *lines[1:]],
    "the first line taken away": lambda lines: lines[1:],
    "a line in the middle taken away": lambda lines: [lines[0], *lines[2:]],
    "two lines swapped": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "a line twice": lambda lines: [*lines, lines[3]],
    "an empty line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "a forged repair": false_repair,
    "a forged repair of an altered line": repaired_beside,
    "a repair of nothing": lambda lines: [*lines, repair(b"", lines[3])],
    "a repair of something else": lambda lines: [*lines, b"torn" + repair(b"", lines[3], FIRST)],
    "a line that is a list": lambda lines: [*lines, b"[]\n"],
    "a line without a verdict": lambda lines: [*lines, sealed({"kind": "run", "run_id": run_id_of(9)})],
}
STRANGE: tuple[dict[str, Any], ...] = (
    {"kind": "walk"},
    {"kind": []},
    {"run_id": "../../etc"},
    {"files": {"../passwd": FIRST}},
    {"files": {"record.json": None}},
    {"written_at": "yesterday"},
    {"run_id": run_id_of(0)},  # which has a line
)


def test_whatever_is_altered_is_found_and_the_first_line_that_is_wrong_is_named_first(tmp_path: Path) -> None:
    lines = ledger_of(tmp_path, 4).splitlines(keepends=True)
    assert parse(b"".join(lines)).faults == ()
    spoiled = {name: case(lines) for name, case in CASES.items()}
    spoiled |= {str(data): [*lines, forged(sha256(lines[3]), **data)] for data in STRANGE}
    for name, content in spoiled.items():
        read = parse(b"".join(content))
        assert read.faults, name
        assert read.torn == ""
        assert all(fault.startswith(LEDGER) for fault in read.faults)
        (tmp_path / LEDGER).write_bytes(b"".join(content))
        if "already has an earlier line" not in read.faults[0]:  # from the end, runs are not compared
            with pytest.raises(RefusedError, match=rf"{LEDGER}, line \d from the end: .*abathur_nb verify"):
                list(newest_lines(tmp_path))
    assert parse(b"".join(altered(1)(lines))).faults == (
        f"{LEDGER} line 2: its hash does not match its content",
        f"{LEDGER} line 3: it does not follow the previous line: a line was altered or removed",
    )


def test_an_altered_last_line_is_not_called_torn_and_no_next_line_makes_it_right(tmp_path: Path) -> None:
    content = ledger_of(tmp_path, 2)
    for altered in (content[:-2] + b"|\n", content[:-2] + b"\n", content[:-40] + b"\n"):
        (tmp_path / LEDGER).write_bytes(altered)
        assert read_ledger(tmp_path).faults
        add(tmp_path, 2)
        read = read_ledger(tmp_path)
        assert len(read.faults) == 1
        assert read.faults[0].startswith(f"{LEDGER} line 2: it is no")
        assert read.notes == ()
        assert list(read.runs) == [run_id_of(0), run_id_of(2)]


def test_a_ledger_that_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    kinds: tuple[Callable[[Path], None], ...] = (os.mkfifo, Path.mkdir, lambda path: path.symlink_to(target))
    for n, make in enumerate(kinds):
        archive = tmp_path / str(n)
        archive.mkdir()
        make(archive / LEDGER)
        assert "cannot be read: not a regular file" in read_ledger(archive).faults[0]
        uses: tuple[Callable[[Path], object], ...] = (
            lambda archive: add(archive, 1),
            lambda archive: next(newest_lines(archive)),
        )
        for use in uses:
            with pytest.raises(RefusedError, match=r"cannot be read: not a regular file"):
                use(archive)
    assert target.read_bytes() == b""


def test_a_lock_that_is_not_given_up_ends_the_wait_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PATIENCE_S", 0)
    with (
        locked(tmp_path),
        pytest.raises(BusyError, match=r"is locked by another process: see which: fuser -v "),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        assert True, "a control: it is free again"
