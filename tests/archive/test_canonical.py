"""Canonical JSON that holds its own hash: no other bytes pass for it, and a writer that dies leaves no half of one."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hostile import BYTES

from abathur_nb.evidence.canonical import misfits, moment, number, sealed, unsealed, whole_number
from abathur_nb.files import open_regular, read_regular, write_durably

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
def test_each_thing_that_does_not_have_the_shape_is_named_with_its_place(
    data: Any, shape: Any, faults: list[str]
) -> None:
    assert misfits(data, shape) == faults


@pytest.mark.parametrize("call", ["fsync", "fdopen"])
def test_a_full_disk_leaves_the_older_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
