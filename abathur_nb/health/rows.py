"""The rules that each row must keep: read from the DDL; names that can be mistaken; the sizes of sessions."""

import re
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple
from unicodedata import is_normalized, normalize

import aiosqlite

from abathur_nb.errors import bound_reached
from abathur_nb.report import Check
from abathur_nb.store.schema import column_checks, expected_columns, expected_tables
from abathur_nb.store.sql import load_queries
from abathur_nb.store.values import FAULT, IS_UTF8, MAX_BYTES, MAX_DEPTH, TOO_LONG, stored, suspicious
from abathur_nb.text import AHEAD_S, IGNORABLE, SEE_CLOCK, counted, shown, timestamp

NAMED = 20  # offending keys that a check names; it counts them all
_JSON, _VALUES, _REQUIRED, _TIMESTAMPS = "json_columns", "values", "required_values", "timestamps"
_CLOCK = "moments"
_ENCODING, _LIMITS = "readable_text", "json_limits"
_TITLES = {_JSON: "JSON columns", _LIMITS: "JSON limits"}  # of those that are not the id in words
_KINDS = {
    _JSON: "text that holds the kind of JSON that its column wants",
    _VALUES: "within the enumerations and ranges of the schema",
    _REQUIRED: "no NULL where the schema wants a value",
    _TIMESTAMPS: "UTC as YYYY-MM-DD HH:MM:SS, with or without .mmm",
    _CLOCK: f"none more than {AHEAD_S // 60} minutes in the future: what is kept for some days from then never expires",
    _ENCODING: "text that is UTF-8; a listing that meets another fails",
    _LIMITS: "JSON that the store itself would write: finite numbers, whole characters, "
    f"at most {MAX_DEPTH} levels and {MAX_BYTES:,} bytes",
}
# datetime() gives NULL for what it can't read and, made to calculate, another day for one that no calendar has. Behind
# the seconds it takes blanks and time zones as well, but no digit after those.
_IS_TIMESTAMP = (
    "{0} IS NULL OR datetime(CASE length({0}) WHEN 19 THEN {0} WHEN 23 THEN {0} || '0' END, '+0 days')"
    " IS substr({0}, 1, 19)"
)
# What is not a time, the rule above finds. Text is compared as text: so a few that are no times look too late at first.
_IS_PAST = f"{{0}} IS NULL OR {{0}} <= :latest OR NOT ({_IS_TIMESTAMP})"
_MAY_BE_LATE = "{0} > :latest"


async def row_checks(conn: aiosqlite.Connection) -> tuple[Check, ...]:
    """Return a check of each kind of rule over all tables. Read-only.

    ``conn`` must have the functions of `add_functions`.
    """
    rows = await _read_rows(conn)
    return tuple(_rows_check(kind, rows) for kind in _KINDS)


class _Rule(NamedTuple):
    kind: str
    table: str
    column: str
    condition: str  # SQL that is false for a row that breaks the rule
    reason: str = "''"  # SQL that says why, where the rule alone does not

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"

    @property
    def broken(self) -> str:
        """Return SQL that is true for a row that breaks the rule: false or NULL otherwise."""
        return f"NOT ({self.condition})"


@cache
def _rules(table: str) -> tuple[_Rule, ...]:
    """Return the rules that each row must keep, read from the DDL so that there is no second copy of them."""
    rules = []
    for check in column_checks(table):
        if check.kind == "value":
            rules.append(_Rule(_VALUES, table, check.column, check.expression))
            continue
        # To parse it may take twenty times its size.
        long, reason = TOO_LONG.format(check.column), FAULT.format(check.column)
        rules.append(_Rule(_JSON, table, check.column, f"{long} OR ({check.expression})"))
        within = f"NOT ({long}) AND (NOT ({check.expression}) OR {reason} = '')"
        # The size of what is too long, of which the message is made: to ask twice would hold two copies.
        size = f"nullif(max(length(CAST({check.column} AS BLOB)), {MAX_BYTES}), {MAX_BYTES})"
        reason = f"ifnull({size}, {reason})"
        rules.append(_Rule(_LIMITS, table, check.column, within, reason))
    json = {check.column for check in column_checks(table) if check.kind == "json"}
    for column in expected_columns(table):
        is_utf8 = IS_UTF8.format(column.name)
        if column.name in json:
            is_utf8 = f"{TOO_LONG.format(column.name)} OR {is_utf8}"
        rules.append(_Rule(_ENCODING, table, column.name, is_utf8))
        if column.required:
            # SQLite takes `x IS NOT NULL` for true where the schema says NOT NULL, and does not look.
            rules.append(_Rule(_REQUIRED, table, column.name, f"typeof({column.name}) <> 'null'"))
        if column.name.endswith(("_at", "_time")) or column.name == "timestamp":
            rules.append(_Rule(_TIMESTAMPS, table, column.name, _IS_TIMESTAMP.format(column.name)))
            rules.append(_Rule(_CLOCK, table, column.name, _IS_PAST.format(column.name)))
    return tuple(rules)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Hold what was found in all tables: how many rows, which rules are broken where, what was unreadable."""

    count: int
    broken: dict[_Rule, tuple[int, str]]
    unread: dict[str, str]


async def _read_rows(conn: aiosqlite.Connection) -> _Rows:
    """Look over all rows in one statement, one pass over each table, and closely only where something is wrong."""
    tables = expected_tables()
    looks = ", ".join(f"(SELECT count(*), {_look(table)} FROM {table})" for table in tables)
    try:
        (row,) = await conn.execute_fetchall(f"SELECT * FROM {looks}", _moment())
        counts, wrong = dict(zip(tables, row[::2], strict=True)), row[1::2]
    except sqlite3.Error:  # a table that can't be read, or text that is not UTF-8: one must not hide the others
        counts, wrong = {}, (True,) * len(tables)
    broken: dict[_Rule, tuple[int, str]] = {}
    unread = {}
    for table in (table for table, faults in zip(tables, wrong, strict=True) if faults):
        try:
            counts[table] = await _look_closer(conn, table, broken)
        except sqlite3.Error as error:
            unread[table] = f"{table}: {bound_reached(error) or error}"
    return _Rows(sum(counts.values()), broken, unread)


def _moment() -> dict[str, str]:
    """Return what the SQL of the rules is given: the latest time that is not in the future."""
    return {"latest": timestamp(datetime.now(UTC) + timedelta(seconds=AHEAD_S))}


@cache
def _look(table: str) -> str:
    """Return SQL that is 0 where all rows of a table keep all rules; a few that do may count as well."""
    rules = _rules(table)
    of = {kind: [rule.column for rule in rules if rule.kind == kind] for kind in _KINDS}
    others = [column for column in of[_ENCODING] if column not in (*of[_JSON], *of[_TIMESTAMPS])]
    broken = [rule.broken for rule in rules if rule.kind in (_VALUES, _TIMESTAMPS)]
    broken += [f"NOT ({check.expression})" for check in column_checks(table) if check.kind == "json"]
    broken += [_MAY_BE_LATE.format(column) for column in of[_CLOCK]]
    # The type of a value is known without reading the value.
    nulls = "".join(f" + count(CASE typeof({column}) WHEN 'null' THEN 1 END)" for column in of[_REQUIRED])
    long = " OR ".join(map(TOO_LONG.format, of[_JSON])) or "0"
    return (
        f"count(CASE WHEN {long} THEN 1 WHEN {' OR '.join([*broken, suspicious(of[_JSON], others)])} THEN 1 END){nulls}"
    )


async def _look_closer(conn: aiosqlite.Connection, table: str, broken: dict[_Rule, tuple[int, str]]) -> int:
    """Add to ``broken`` the rules that rows of a table break, with the rows' keys; return how many rows it has."""
    # CASE evaluates from left to right and stops, as a CHECK does; a bare AND would call json_type on bad text.
    count = 0
    for kind in _KINDS:  # each by itself: for each rule that looks at a value a statement keeps a copy of it
        rules = [rule for rule in _rules(table) if rule.kind == kind]
        counts = "".join(f", count(CASE WHEN {rule.broken} THEN 1 END)" for rule in rules)
        ((count, *faults),) = await conn.execute_fetchall(f"SELECT count(*){counts} FROM {table}", _moment())
        for rule, number in zip(rules, faults, strict=True):
            if number:
                broken[rule] = number, f"{rule}: {counted(number, 'row')}, by key: {await _keys_of(conn, rule)}"
    return count


async def _keys_of(conn: aiosqlite.Connection, rule: _Rule) -> str:
    key = ", ".join(column.name for column in expected_columns(rule.table) if column.in_key)
    sql = f"SELECT rowid, {key} FROM {rule.table} WHERE {rule.broken} ORDER BY {key} LIMIT {NAMED + 1}"
    found = [tuple(row) for row in await conn.execute_fetchall(sql, _moment())]
    numbers = ", ".join(str(rowid) for rowid, *_ in found)
    why = f"SELECT rowid, {rule.reason} FROM {rule.table} WHERE rowid IN ({numbers})"
    reasons = {rowid: f" ({_told(reason)})" for rowid, reason in await conn.execute_fetchall(why) if reason}
    rows = [named_row(rowid, *key) + reasons.get(rowid, "") for rowid, *key in found]
    return "; ".join(rows[:NAMED]) + ("; …" if len(rows) > NAMED else "")


def _told(reason: str | int) -> str:
    too_long = f"expected at most {MAX_BYTES:,} bytes of JSON, found "
    return f"{too_long}{reason:,}" if isinstance(reason, int) else reason


def named_row(rowid: int, *key: object) -> str:
    """Return how a message names a row: by its key, and by its number where nobody can type the key."""
    values = [stored(value) for value in key]
    noted = ", ".join(map(shown, values))
    return (
        noted if key and not any(isinstance(value, bytes) for value in values) else f"{noted} (rowid {rowid})".strip()
    )


def _rows_check(kind: str, rows: _Rows) -> Check:
    """Return the check of one kind of rule over all tables."""
    rules = [rule for table in expected_tables() for rule in _rules(table) if rule.kind == kind]
    broken = [noted for rule, (_, noted) in rows.broken.items() if rule.kind == kind]
    unread = [noted for table, noted in rows.unread.items() if any(rule.table == table for rule in rules)]
    name = _TITLES.get(kind, "")
    if unread and not broken:
        observed = f"could not run: {'; '.join(unread)}"
        return Check(kind, "error", _KINDS[kind], observed, "first repair what the checks above name", name=name)
    # The number without a unit: how many rows are broken is what a comparison of two runs is about.
    found = [(rule, number) for rule, (number, _) in rows.broken.items() if rule.kind == kind]
    columns = ", ".join(f"{rule} × {number:,}" for rule, number in found)
    return Check.that(
        kind,
        not broken,
        expected=_KINDS[kind],
        observed=f"broken: {columns}" if broken else f"{len(rules)} rules hold for {rows.count:,} rows",
        remedy=f"{SEE_CLOCK}; then write what belongs there"
        if kind == _CLOCK
        else "keep a copy of these rows, then write what belongs there, or restore a backup",
        evidence=broken + unread,
        data={"broken": [{"table": rule.table, "column": rule.column, "rows": number} for rule, number in found]},
        name=name,
    )


_LOOKED_AT = 10_000  # names of each column, of those that are not ASCII
_NAMED = 20
_IGNORABLE = re.compile(f"[{IGNORABLE}]")
# Cyrillic and Greek letters that have the shape of a Latin one.
_SHAPES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408"
    "\u0405\u03bf\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxijsABEKMHOPCTXIJSoABEZHIKMNOPTYX",
)


def look_of(name: str) -> str:
    """Return what two names that look alike have in common.

    This is the name in NFKC, in which a wide letter or a ligature is an ordinary one, without joiners and other signs
    that show nothing, and with the Latin letter for each of its shape. Case counts.
    """
    return _IGNORABLE.sub("", normalize("NFKC", name)).translate(_SHAPES)


async def names_check(conn: aiosqlite.Connection) -> Check:
    """Warn of names that are not in NFC, and of those that look alike within one column, keys within one namespace.

    Read-only. Looks at up to 10,000 names of each column that are not ASCII, and at ASCII ones that look like them.
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
            ((stored,),) = await conn.execute_fetchall(queries["name_is_stored"].sql, given)
            found.update({look} if stored else ())
        if len(found) > 1:
            faults.append(f"{kind} {' and '.join(map(ascii, sorted(found)[:_NAMED]))} look alike")
    return Check.that(
        "names",
        not faults,
        expected="names in NFC, and no two that look alike",
        observed=f"{len(faults):,} to look at: {faults[0]}"
        if faults
        else f"{len(names):,} names are not ASCII, each is clear",
        remedy="keep one spelling of each: add the memory under its name in NFC, and delete the other",
        evidence=faults[:_NAMED],
        otherwise="warn",
    )


LEVELS = (50, 80)  # percent at which to warn
TOLD_SIZE = f"{{:.1f}} % of {MAX_BYTES:,} bytes"
TRIM = (
    "see it in explore.ipynb; await db.sessions.trim_events(session_id, keep_last) removes its oldest events; of a"
    " state or metadata, keep the large values as memories (db.memory.add_memory)"
)


async def sizes_check(conn: aiosqlite.Connection) -> Check:
    """Return a check of the events, state and metadata of every session. Read-only."""
    low, high = (MAX_BYTES * level // 100 for level in LEVELS)
    rows = list(await conn.execute_fetchall(load_queries("inspect.sql")["large_sessions"].sql, {"bytes": low}))
    noted = [f"{named_row(row[0], row[1])}: {row[2]}, {TOLD_SIZE.format(row[3] * 100 / MAX_BYTES)}" for row in rows]
    counts = f"{len(rows):,} over {LEVELS[0]} %, {sum(row[3] > high for row in rows):,} over {LEVELS[1]} %"
    return Check.that(
        "session_sizes",
        not rows,
        expected=f"events, state and metadata of at most {TOLD_SIZE.format(LEVELS[0])}, where an append is refused",
        observed=f"{counts}; the largest is {noted[0]}" if rows else f"none is over {LEVELS[0]} %",
        remedy=TRIM,
        otherwise="warn",
        evidence=noted[:NAMED],
    )
