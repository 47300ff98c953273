"""Checks of the rows: the rules of the DDL, names in NFC, the sizes of sessions."""

import re
import sqlite3
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple
from unicodedata import is_normalized, normalize

import aiosqlite

from abathur_nb.errors import bound_reached
from abathur_nb.report import Check
from abathur_nb.store.schema import column_checks, expected_columns, expected_tables
from abathur_nb.store.sql import load_queries
from abathur_nb.store.values import FAULT, IS_UTF8, MAX_BYTES, MAX_DEPTH, TOO_LONG, stored, suspicious
from abathur_nb.text import AHEAD_S, IGNORABLE, SEE_CLOCK, counted, shown

NAMED = 20  # keys of faulty rows that a check names; it counts all
_JSON, _VALUES, _REQUIRED, _TIMESTAMPS = "json_columns", "values", "required_values", "timestamps"
_CLOCK, _ENCODING, _LIMITS = "moments", "readable_text", "json_limits"
_TITLES = {_JSON: "JSON columns", _LIMITS: "JSON limits"}  # titles that differ from the id in words
_KINDS = {
    _JSON: "JSON text of the kind that the column expects",
    _VALUES: "within the enumerations and ranges of the schema",
    _REQUIRED: "no NULL where the schema requires a value",
    _TIMESTAMPS: "UTC as YYYY-MM-DD HH:MM:SS, with or without .mmm",
    _CLOCK: f"none more than {AHEAD_S // 60} minutes in the future; such a row would expire too late",
    _ENCODING: "text in UTF-8; other text makes a listing fail",
    _LIMITS: "JSON as the store writes it: finite numbers, no lone surrogates, "
    f"at most {MAX_DEPTH} levels and {MAX_BYTES:,} bytes",
}
# datetime() returns NULL for invalid text. With a modifier, it changes a day that does not exist to another day. It
# accepts blanks and time zones after the seconds, but not before a digit.
_IS_TIMESTAMP = (
    "({0} IS NULL OR datetime(CASE length({0}) WHEN 19 THEN {0} WHEN 23 THEN {0} || '0' END, '+0 days')"
    " IS substr({0}, 1, 19))"
)
# This compares text: some values that are not times match, too.
_MAY_BE_LATE = f"{{0}} > (SELECT strftime('%Y-%m-%d %H:%M:%f', 'now', '+{AHEAD_S} seconds'))"


class _Rule(NamedTuple):
    kind: str
    table: str
    column: str
    broken: str  # SQL, true for a row that breaks the rule
    reason: str = "''"  # SQL that returns the reason of a row, in parentheses

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


_Broken = dict[_Rule, tuple[int, str]]  # rule: number of rows that break it, and their keys


@cache
def _rules(table: str) -> tuple[_Rule, ...]:
    """Return the rules for the rows of a table, from the DDL."""
    rules, json = [], set()
    for column, kind, holds in column_checks(table):
        if kind == "value":
            rules.append(_Rule(_VALUES, table, column, f"NOT ({holds})"))
            continue
        json.add(column)
        # Parsing a text may take twenty times its size in memory.
        long, fault = TOO_LONG.format(column), FAULT.format(column)
        # One expression, because SQLite copies the value for each expression.
        size = f"nullif(printf('%,d', max(length(CAST({column} AS BLOB)), {MAX_BYTES})), '{MAX_BYTES:,}')"
        reason = f"' (' || ifnull('expected at most {MAX_BYTES:,} bytes of JSON, found ' || {size}, {fault}) || ')'"
        rules.append(_Rule(_JSON, table, column, f"NOT ({long} OR ({holds}))"))
        rules.append(_Rule(_LIMITS, table, column, f"{long} OR (({holds}) AND {fault} <> '')", reason))
    for name, _, required, _ in expected_columns(table):
        is_utf8 = IS_UTF8.format(name)
        is_utf8 = f"{TOO_LONG.format(name)} OR {is_utf8}" if name in json else is_utf8
        rules.append(_Rule(_ENCODING, table, name, f"NOT ({is_utf8})"))
        if required:  # in a NOT NULL column SQLite does not evaluate `x IS NOT NULL`
            rules.append(_Rule(_REQUIRED, table, name, f"typeof({name}) = 'null'"))
        if name.endswith(("_at", "_time")) or name == "timestamp":
            is_time = _IS_TIMESTAMP.format(name)
            rules.append(_Rule(_TIMESTAMPS, table, name, f"NOT {is_time}"))
            rules.append(_Rule(_CLOCK, table, name, f"{_MAY_BE_LATE.format(name)} AND {is_time}"))
    return tuple(rules)


async def row_checks(conn: aiosqlite.Connection) -> tuple[Check, ...]:
    """Return a check for each kind of rule over all tables. Read-only.

    One statement reads each table once; only tables with faults are read again in detail. ``conn`` must have the
    functions of `add_functions`.
    """
    tables = expected_tables()
    looks = ", ".join(f"(SELECT count(*), {_look(table)} FROM {table})" for table in tables)
    try:
        (row,) = await conn.execute_fetchall(f"SELECT * FROM {looks}")
        counts, wrong = dict(zip(tables, row[::2], strict=True)), row[1::2]
    except sqlite3.Error:  # an unreadable table, or text that is not UTF-8, must not hide other faults
        counts, wrong = {}, (True,) * len(tables)
    broken, unread = _Broken(), dict[str, str]()
    for table in (table for table, faults in zip(tables, wrong, strict=True) if faults):
        try:
            counts[table] = await _look_closer(conn, table, broken)
        except sqlite3.Error as error:
            unread[table] = f"{table}: {bound_reached(error) or error}"
    return tuple(_rows_check(kind, sum(counts.values()), broken, unread) for kind in _KINDS)


@cache
def _look(table: str) -> str:
    """Return SQL that is 0 only if all rows of a table keep all rules; it may also count valid rows."""
    rules = _rules(table)
    of = {kind: [rule.column for rule in rules if rule.kind == kind] for kind in _KINDS}
    others = [column for column in of[_ENCODING] if column not in (*of[_JSON], *of[_TIMESTAMPS])]
    broken = [rule.broken for rule in rules if rule.kind in (_VALUES, _TIMESTAMPS)]
    broken += [f"NOT ({check.expression})" for check in column_checks(table) if check.kind == "json"]
    broken += [_MAY_BE_LATE.format(column) for column in of[_CLOCK]]
    # typeof() does not read the value.
    nulls = "".join(f" + count(CASE typeof({column}) WHEN 'null' THEN 1 END)" for column in of[_REQUIRED])
    broken.append(suspicious(of[_JSON], others))
    long = " OR ".join(map(TOO_LONG.format, of[_JSON])) or "0"
    return f"count(CASE WHEN {long} THEN 1 WHEN {' OR '.join(broken)} THEN 1 END){nulls}"


async def _look_closer(conn: aiosqlite.Connection, table: str, broken: _Broken) -> int:
    """Add the broken rules of a table to ``broken``, with the keys of the rows; return the table's number of rows."""
    # CASE stops at the first match, as a CHECK does; a bare AND would call json_type on invalid text.
    count = 0
    for kind in _KINDS:  # one statement for each, because SQLite copies a value for each rule
        rules = [rule for rule in _rules(table) if rule.kind == kind]
        counts = "".join(f", count(CASE WHEN {rule.broken} THEN 1 END)" for rule in rules)
        ((count, *faults),) = await conn.execute_fetchall(f"SELECT count(*){counts} FROM {table}")
        for rule, number in zip(rules, faults, strict=True):
            if number:
                broken[rule] = number, f"{rule}: {counted(number, 'row')}, by key: {await _keys_of(conn, rule)}"
    return count


async def _keys_of(conn: aiosqlite.Connection, rule: _Rule) -> str:
    key = ", ".join(column.name for column in expected_columns(rule.table) if column.in_key)
    first = f"SELECT rowid FROM {rule.table} WHERE {rule.broken} ORDER BY {key} LIMIT {NAMED + 1}"
    # Of a large value, one statement would hold the text and the reason's copy of it at once.
    numbers = ", ".join(str(rowid) for (rowid,) in await conn.execute_fetchall(first))
    sql = f"SELECT {rule.reason}, rowid, {key} FROM {rule.table} WHERE rowid IN ({numbers}) ORDER BY {key}"
    rows = [named_row(*row) + reason for reason, *row in await conn.execute_fetchall(sql)]
    return "; ".join(rows[:NAMED]) + ("; …" if len(rows) > NAMED else "")


def named_row(rowid: int, *key: object) -> str:
    """Return a row's key for a message, with its rowid if the key is missing or not valid text."""
    values = [stored(value) for value in key]
    words = ", ".join(map(shown, values))
    typed = key and not any(isinstance(value, bytes) for value in values)
    return words if typed else f"{words} (rowid {rowid})".strip()


def _rows_check(kind: str, count: int, broken: _Broken, unread: Mapping[str, str]) -> Check:
    """Return the check of one kind of rule over all tables."""
    rules = [rule for table in expected_tables() for rule in _rules(table) if rule.kind == kind]
    found = {rule: broken[rule] for rule in broken if rule.kind == kind}
    tables, name, expected = {rule.table for rule in rules}, _TITLES.get(kind, ""), _KINDS[kind]
    missed = [words for table, words in unread.items() if table in tables]
    if missed and not found:
        observed = f"could not run: {'; '.join(missed)}"
        return Check(kind, "error", expected, observed, "first repair the faults that other checks name", name=name)
    columns = ", ".join(f"{rule} × {number:,}" for rule, (number, _) in found.items())
    observed = f"broken: {columns}" if found else f"{len(rules)} rules hold for {count:,} rows"
    remedy = "then write valid values"
    remedy = f"{SEE_CLOCK}; {remedy}" if kind == _CLOCK else f"keep a copy of these rows, {remedy}, or restore a backup"
    evidence = [*(words for _, words in found.values()), *missed]
    data = {"broken": [{"table": rule.table, "column": rule.column, "rows": found[rule][0]} for rule in found]}
    return Check.that(kind, not found, expected, observed, remedy, evidence=evidence, name=name, data=data)


_LOOKED_AT = 10_000  # most non-ASCII names read from a column
_IGNORABLE = re.compile(f"[{IGNORABLE}]")
# Cyrillic and Greek letters that look like Latin ones.
_SHAPES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408"
    "\u0405\u03bf\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxijsABEKMHOPCTXIJSoABEZHIKMNOPTYX",
)


def look_of(name: str) -> str:
    """Return the appearance of a name: NFKC, no invisible characters, Latin letters for Greek or Cyrillic twins."""
    return _IGNORABLE.sub("", normalize("NFKC", name)).translate(_SHAPES)


async def names_check(conn: aiosqlite.Connection) -> Check:
    """Check that names are in NFC and that no two in a column (keys: in a namespace) look alike. Read-only.

    Reads up to 10,000 non-ASCII names of each column, and the ASCII names that they look like.
    """
    queries = load_queries("inspect.sql")
    looks: dict[tuple[str, str, str], set[str]] = {}
    names = [tuple(row) for row in await conn.execute_fetchall(queries["unusual_names"].sql, {"limit": _LOOKED_AT})]
    for kind, scope, name in names:
        looks.setdefault((kind, scope, look_of(name)), set()).add(name)
    faults = [f"{kind} {name!a} is not in NFC" for kind, _, name in names if not is_normalized("NFC", name)]
    for (kind, scope, look), found in looks.items():
        if look.isascii():
            given = {"kind": kind, "scope": scope, "name": look}
            ((is_stored,),) = await conn.execute_fetchall(queries["name_is_stored"].sql, given)
            found.update({look} if is_stored else ())
        if len(found) > 1:
            faults.append(f"{kind} {' and '.join(map(ascii, sorted(found)[:NAMED]))} look alike")
    expected = "names in NFC, and no two that look alike"
    observed = f"{counted(len(names), 'name')} not in ASCII; none looks like another"
    if faults:
        observed = f"{counted(len(faults), 'fault')}, the first: {faults[0]}"
    remedy = "keep one spelling of each: add the memory under its name in NFC, and delete the other"
    return Check.that("names", not faults, expected, observed, remedy, "warn", faults[:NAMED])


LEVELS = (50, 80)  # percent at which to warn
OF_LIMIT = f"{{:.1f}} % of {MAX_BYTES:,} bytes"
TRIM = (
    "see the session in explore.ipynb; await db.sessions.trim_events(session_id, keep_last) removes its oldest events;"
    " store large values of its state or metadata as memories (db.memory.add_memory)"
)


async def sizes_check(conn: aiosqlite.Connection) -> Check:
    """Check the size of the events, state and metadata of every session. Read-only."""
    low, high = (MAX_BYTES * level // 100 for level in LEVELS)
    rows = list(await conn.execute_fetchall(load_queries("inspect.sql")["large_sessions"].sql, {"bytes": low}))
    noted = [f"{named_row(row[0], row[1])}: {row[2]}, {OF_LIMIT.format(row[3] * 100 / MAX_BYTES)}" for row in rows]
    counts = f"{len(rows):,} over {LEVELS[0]} %, {sum(row[3] > high for row in rows):,} over {LEVELS[1]} %"
    expected = f"events, state and metadata of at most {OF_LIMIT.format(LEVELS[0])}, the limit of a write"
    observed = f"{counts}; the largest is {noted[0]}" if rows else f"none is over {LEVELS[0]} %"
    return Check.that("session_sizes", not rows, expected, observed, TRIM, "warn", noted[:NAMED])
