"""The rules that each row must keep: read from the DDL, and held against every row of a live database."""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

import aiosqlite

from abathur_nb.errors import bound_reached
from abathur_nb.expected import column_checks, expected_columns, expected_tables
from abathur_nb.limits import FAULT, IS_UTF8, TOO_LONG, stored, suspicious
from abathur_nb.report import Check
from abathur_nb.values import MAX_BYTES, MAX_DEPTH
from abathur_nb.wording import AHEAD_S, SEE_CLOCK, counted, shown, timestamp

__all__ = ["NAMED", "named_row", "row_checks"]

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

    ``conn`` must have the functions of `limits`.
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
    except sqlite3.Error:  # a table that can't be read, or text that is no UTF-8: one must not hide the others
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
    # The type of a value is told without reading the value.
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
    told = ", ".join(map(shown, values))
    return told if key and not any(isinstance(value, bytes) for value in values) else f"{told} (rowid {rowid})".strip()


def _rows_check(kind: str, rows: _Rows) -> Check:
    """Return the check of one kind of rule over all tables."""
    rules = [rule for table in expected_tables() for rule in _rules(table) if rule.kind == kind]
    broken = [told for rule, (_, told) in rows.broken.items() if rule.kind == kind]
    unread = [told for table, told in rows.unread.items() if any(rule.table == table for rule in rules)]
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
