"""What SQL lets pass and the store cannot read: text that is no UTF-8, JSON beyond the store's limits."""

import sqlite3
from codecs import getincrementaldecoder
from collections.abc import Iterable

from abathur_nb.guarded import Connection
from abathur_nb.values import MAX_BYTES, MAX_DEPTH, json_fault

__all__ = ["FAULT", "IS_UTF8", "TOO_LONG", "add_functions", "stored", "suspicious"]

# SQL that holds a column against a limit. Python is given text only if it can be decoded: hence the BLOBs.
IS_UTF8 = "typeof({0}) <> 'text' OR abathur_is_utf8(CAST({0} AS BLOB))"
TOO_LONG = f"length(CAST({{0}} AS BLOB)) > {MAX_BYTES}"  # the bytes, as a limit counts them
FAULT = "CASE WHEN abathur_is_utf8(CAST({0} AS BLOB)) THEN abathur_json_fault({0}) ELSE '' END"  # empty for none

# So that a few plain searches find what a regular expression takes several times as long for: digits and signs are
# all 0, braces are brackets, letters small.
_ALIKE = bytes.maketrans(b"123456789+-ED{", b"00000000000ed[")
_EXPONENT = "0e00"  # of 1e999; with an exponent of one digit, an infinite number has 300 others
_DIGITS = "0" * 300
_BACKSLASH = ord("\\")
_NUL = 0  # where SQLite stops to read
_PIECE = 2**20  # bytes
_ROOM = 2 * MAX_DEPTH  # bytes that it takes to open and close so many levels


async def add_functions(conn: Connection) -> None:
    """Give a connection the functions that FAULT, IS_UTF8 and ``suspicious`` call, and let it read any text.

    What is no UTF-8 it then reads as Python reads the names of files: with lone surrogates for the bytes.
    """
    await conn.apply(_add_functions)


def _add_functions(conn: sqlite3.Connection) -> None:
    conn.text_factory = _read
    conn.create_function("abathur_suspicious", -1, _suspicious, deterministic=True)
    conn.create_function("abathur_is_utf8", 1, _is_utf8, deterministic=True)
    conn.create_function("abathur_json_fault", 1, _json_fault, deterministic=True)


def _read(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def stored(value: object) -> object:
    """Return a value that such a connection read: the bytes in place of text that is no UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(errors="surrogateescape")
    return value


def suspicious(json: Iterable[str], others: Iterable[str]) -> str:
    """Return SQL that is true for a row worth a closer look, and cannot be evaluated for text that is no UTF-8.

    One call a row, and no JSON parsed: a microsecond.
    """
    joined = " || ".join(f"ifnull({column}, '')" for column in json)
    return f"abathur_suspicious({', '.join([f'CAST({joined} AS BLOB)' if joined else 'NULL', *others])})"


def _suspicious(json: bytes | None, *_: object) -> bool:
    # The other columns are arguments so that sqlite3 decodes them.
    if not json:
        return False
    alike = json.translate(_ALIKE).decode()
    return (
        _EXPONENT in alike
        or (_BACKSLASH in json and "\\ud" in alike)
        or _NUL in json
        or (len(json) > _ROOM and (alike.count("[") > MAX_DEPTH or _DIGITS in alike or len(json) > MAX_BYTES))
    )


def _is_utf8(text: bytes | None) -> bool:
    decoder, whole = getincrementaldecoder("utf-8")(), memoryview(text or b"")
    try:
        for start in range(0, len(whole), _PIECE):  # a copy of a piece, and not of a whole text of any size
            decoder.decode(whole[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _json_fault(json: str | None) -> str:
    return json_fault(json) if json and _suspicious(json.encode()) else ""
