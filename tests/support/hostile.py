"""Files of another shape than they were written in: what whoever reads JSON back from a disk must stand."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

_DEEP: list[Any] = []
for _ in range(60):
    _DEEP = [_DEEP]
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1.5, 2**63, 10**400, 1e300, "", "x", "\ud800", "a\0b", "2026-11-30"),
    *([], [1], [None], {}, {"a": 1}, {"a": {"b": []}}, _DEEP),
)

BYTES = {
    "empty": b"",
    "not UTF-8": b'{"a":"\xff"}\n',
    "NaN": b'{"a":NaN}\n',
    "Infinity": b'{"a":1e999}\n',
    "duplicate keys": b'{"a":1,"a":2}\n',
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "many digits": b'{"a":' + b"9" * 5000 + b"}\n",
    "another type": b"[]\n",
    "a number": b"7\n",
    "a NUL": b"\0" * 4096,
    "a byte order mark": b"\xef\xbb\xbf{}\n",
}
PLACES: dict[str, Callable[[Path], object]] = {
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def reshaped(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what was changed and the data with each field missing, then with one of every JSON type in its place."""
    for path in _paths(data):
        for value in (..., *_VALUES):
            changed = deepcopy(data)
            inner: Any = changed
            for key in path[:-1]:
                inner = inner[key]
            if value is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            if json.dumps(changed) != json.dumps(data):
                yield f"{'.'.join(map(str, path))} = {'missing' if value is ... else str(value)[:20]!a}", changed


def _paths(data: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, inner in pairs:
        yield (*above, key)
        yield from _paths(inner, *above, key)
