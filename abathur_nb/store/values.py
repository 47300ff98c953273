"""Rules for values that SQL alone cannot enforce, checked before a write and in stored rows."""

import json
import sqlite3
from codecs import iterdecode
from collections.abc import Collection, Iterable
from itertools import product
from sqlite3 import Row
from typing import Any
from unicodedata import normalize

from abathur_nb.errors import InvalidValueError, RefusedError
from abathur_nb.text import did_you_mean, is_printable, shown

MAX_BYTES = 16 * 1024 * 1024  # of one JSON value, and of the column that holds it
MAX_DEPTH = 100
MAX_NAME = 512  # characters
_HIGHEST = "\U0010ffff"


def check_name(what: str, value: Any, *, optional: bool = False, holds: str = "") -> Any:
    """Return a name in NFC, or None if it is ``optional`` and missing.

    Raises InvalidValueError for anything but text of 1 to 512 printable characters that contain ``holds``.
    """
    if value is None and optional:
        return None
    name = _written(value)
    if not 1 <= len(name) <= MAX_NAME or not is_printable(name) or holds not in name:
        wanted = f"{MAX_NAME} printable characters" + (f" with a `{holds}`, such as user:alice:pref" if holds else "")
        raise InvalidValueError(f"expected 1 to {wanted}, found {shown(value)}", what=what)
    return name


def check_namespace(value: Any) -> Any:
    """Return a namespace in NFC; raise InvalidValueError unless it is a name with a ``:``."""
    return check_name("namespace format", value, holds=":")


def _written(value: object) -> str:
    """Return text in NFC, the form in which names are written; an empty text for any other value."""
    return normalize("NFC", value) if isinstance(value, str) else ""


def spellings(*names: Any) -> Iterable[tuple[Any, ...]]:
    """Yield the spellings under which names are searched: as given, then in NFC where that differs."""
    return product(*((n,) if (written := _written(n)) in ("", n) else (n, written) for n in names))


def check_whole(what: str, value: object, low: int, high: int) -> None:
    """Raise InvalidValueError unless ``value`` is a whole number in ``low..high``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidValueError(f"expected a whole number in {low}..{high}, found {shown(value)}", what=what)


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
    """Raise InvalidValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        meant = did_you_mean(value[:MAX_NAME], choices) if isinstance(value, str) else ""
        raise InvalidValueError(f"expected one of {', '.join(choices)}, found {shown(value)}{meant}", what=what)


def json_text(what: str, value: object, kinds: tuple[type, ...] = (dict, list), *, within: int = 0) -> str:
    """Return a value of one of the types ``kinds`` as compact JSON text; ``within`` levels will enclose it.

    Decoding the text gives an equal value, a tuple as a list. Raises InvalidValueError.
    """
    if not isinstance(value, kinds):
        wanted = " or ".join("a JSON object (dict)" if kind is dict else f"a JSON {kind.__name__}" for kind in kinds)
        raise InvalidValueError(f"expected {wanted}, found {shown(value)} ({type(value).__name__})", what=what)
    check_depth(what, value, MAX_DEPTH - within)
    try:
        text = compact_json(value)
        size = len(text.encode())
    except (ValueError, TypeError) as error:  # NaN, Infinity, a lone surrogate, a type without JSON
        raise InvalidValueError(f"not JSON: {error}", what=what) from None
    _check_size(what, size)
    return text


compact_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def json_fault(text: str) -> str:
    """Return why the store refuses to write or read a JSON text, or an empty text."""
    try:
        _check_size("JSON", len(text.encode()))
        json_text("JSON", json.loads(text), (object,))
    except RecursionError:
        return f"expected at most {MAX_DEPTH} levels of JSON"
    except InvalidValueError as error:
        return error.fault
    except ValueError as error:  # after a semicolon Python adds advice
        return f"not JSON: {str(error).partition(';')[0]}"
    return ""


def _check_size(what: str, size: int) -> None:
    if size > MAX_BYTES:
        raise InvalidValueError(f"expected at most {MAX_BYTES:,} bytes of JSON, found {size:,}", what=what)


def check_depth(what: str, value: object, allowed: int = MAX_DEPTH) -> None:
    """Raise InvalidValueError if JSON has more levels than ``allowed``, or a key that is not text."""
    # Level by level: recursion would end in RecursionError. A value that contains itself is too deep, too.
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list | tuple)]:
        depth += 1
        if depth > allowed:
            raise InvalidValueError(f"expected at most {allowed} levels of JSON", what=what)
        for key in (key for item in level if isinstance(item, dict) for key in item if not isinstance(key, str)):
            raise InvalidValueError(f"expected text as keys of an object, found {shown(key)}", what=what)
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]


def decoded(row: Row, columns: Iterable[str]) -> dict[str, Any]:
    """Return ``row`` as a dict with the named JSON columns decoded; raise RefusedError if one is not JSON."""
    values = dict(row)
    for column in columns:
        try:
            values[column] = json.loads(values[column])
        except (ValueError, TypeError, RecursionError):
            observed = f"{column} of row {shown(row[0])} is not valid JSON"
            raise RefusedError(observed, "run validate.ipynb to see the fault; write the value again") from None
    return values


def prefix_range(prefix: str) -> tuple[str, str]:
    """Return the first text with this prefix, and the first after all such texts, in SQLite's order."""
    if not isinstance(prefix, str) or not is_printable(prefix) or len(_written(prefix)) > MAX_NAME:
        expected = f"expected up to {MAX_NAME} printable characters, found {shown(prefix)}"
        raise InvalidValueError(expected, what="namespace_prefix")
    stem = prefix.rstrip(_HIGHEST)
    if not stem:
        return prefix, _HIGHEST * (MAX_NAME + 1)
    following = ord(stem[-1]) + 1
    # Surrogates are not characters: U+E000 follows U+D7FF.
    return prefix, stem[:-1] + chr(0xE000 if following == 0xD800 else following)


# SQL about a column. The casts to BLOB pass to Python even text that it cannot decode.
IS_UTF8 = "typeof({0}) <> 'text' OR abathur_is_utf8(CAST({0} AS BLOB))"
TOO_LONG = f"length(CAST({{0}} AS BLOB)) > {MAX_BYTES}"  # in bytes, as the limit is
FAULT = "CASE WHEN abathur_is_utf8(CAST({0} AS BLOB)) THEN abathur_json_fault({0}) ELSE '' END"  # empty if valid

# Digits and signs become 0, { becomes [, E and D lower case: plain searches are faster than regular expressions.
_ALIKE = bytes.maketrans(b"123456789+-ED{", b"00000000000ed[")
_EXPONENT = "0e00"  # 1e999 is infinite; with a shorter exponent, only a number of 300 digits is
_DIGITS = "0" * 300
_BACKSLASH = ord("\\")
_NUL = 0  # where SQLite stops reading
_PIECE = 2**20  # bytes
_ROOM = 2 * MAX_DEPTH  # bytes that open and close MAX_DEPTH levels


def add_functions(conn: sqlite3.Connection) -> None:
    """Give a connection the functions that FAULT, IS_UTF8 and ``suspicious`` call, and let it read any text.

    Bytes that are not UTF-8 become lone surrogates, as in Python's file names.
    """
    conn.text_factory = lambda text: text.decode(errors="surrogateescape")
    conn.create_function("abathur_suspicious", -1, _suspicious, deterministic=True)
    conn.create_function("abathur_is_utf8", 1, _is_utf8, deterministic=True)
    conn.create_function("abathur_json_fault", 1, _json_fault, deterministic=True)


def stored(value: object) -> object:
    """Return a value that was read after `add_functions`, as bytes if it is text that is not UTF-8."""
    content = value.encode(errors="surrogateescape") if isinstance(value, str) else b""
    return value if _is_utf8(content) else content


def suspicious(json: Iterable[str], others: Iterable[str]) -> str:
    """Return SQL that is true for a row that may have invalid JSON, and that fails for text that is not UTF-8.

    It takes a microsecond per row: one call, and no JSON is parsed.
    """
    joined = " || ".join(f"ifnull({column}, '')" for column in json)
    return f"abathur_suspicious({', '.join([f'CAST({joined} AS BLOB)' if joined else 'NULL', *others])})"


def _suspicious(json: bytes | None, *_: object) -> bool:
    # sqlite3 has decoded the other columns, because they are arguments.
    json = json or b""
    alike = json.translate(_ALIKE).decode()
    return (
        _EXPONENT in alike
        or (_BACKSLASH in json and "\\ud" in alike)
        or _NUL in json
        or (len(json) > _ROOM and (alike.count("[") > MAX_DEPTH or _DIGITS in alike or len(json) > MAX_BYTES))
    )


def _is_utf8(text: bytes | None) -> bool:
    whole = text or b""
    pieces = (whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE))
    try:
        for _ in iterdecode(pieces, "utf-8"):  # so that no large text is copied whole
            pass
    except UnicodeDecodeError:
        return False
    return True


def _json_fault(json: str | None) -> str:
    return json_fault(json) if json and _suspicious(json.encode()) else ""
