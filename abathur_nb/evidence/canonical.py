"""The one form in which evidence is written: canonical JSON that holds its own hash."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from abathur_nb.store.values import check_depth
from abathur_nb.text import is_printable, moment_of, shown


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
            raise ValueError("it is not a JSON object")  # noqa: TRY004 - every fault of the content is one kind
        check_depth("content", data)  # deeper, and whoever reads it runs out of stack at another place
        written = canonical(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not canonical JSON ({error})") from None
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

    A shape is a type or several, where a bool is not a number; a set of texts; a function that tells, whose name says
    what it wants; a list of one shape; a mapping with at least these keys (``key?`` is optional), or ``{str: shape}``
    with any keys.
    """
    if isinstance(shape, Mapping) and isinstance(data, dict):
        inner = dict.fromkeys(data, shape[str]) if str in shape else shape
        named = {key: key if key in data else key.removesuffix("?") for key in inner}
        missing = [f"{where}{key}: missing" for key in inner if key not in data and not key.endswith("?")]
        return missing + [
            fault
            for key, name in named.items()
            if name in data
            for fault in misfits(data[name], inner[key], f"{where}{name}.")
        ]
    if isinstance(shape, list) and isinstance(data, list):
        return [fault for at, item in enumerate(data) for fault in misfits(item, shape[0], f"{where}{at}.")]
    if isinstance(shape, frozenset):
        holds, expected = isinstance(data, str) and data in shape, f"one of {', '.join(sorted(shape))}"
    elif isinstance(shape, type | tuple):
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


def printable_text(data: object) -> bool:
    """Return whether JSON is text that can be shown: without a NUL or a lone surrogate, which no path can hold."""
    return isinstance(data, str) and is_printable(data)


def moment(data: object) -> bool:
    """Return whether JSON is a moment, with or without an offset."""
    try:
        return isinstance(data, str) and moment_of(data) is not None
    except ValueError:
        return False
