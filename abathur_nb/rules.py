"""The rules that each row must keep: read from the DDL, and held against every row of a live database."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import aiosqlite

from abathur_nb.expected import column_checks, expected_columns, expected_tables
from abathur_nb.report import Check
from abathur_nb.wording import shown

__all__ = ["NAMED", "row_checks"]

NAMED = 20  # offending keys that a check names; it counts them all
_JSON, _VALUES, _REQUIRED, _TIMESTAMPS = "JSON columns", "values", "required values", "timestamps"
_KINDS = {
    _JSON: "text that holds the kind of JSON that its column wants",
    _VALUES: "within the enumerations and ranges of the schema",
    _REQUIRED: "no NULL where the schema wants a value",
    _TIMESTAMPS: "UTC as YYYY-MM-DD HH:MM:SS, with or without .mmm",
}
# datetime() gives NULL for what it can't read and, made to calculate, another day for one that no calendar has.
_IS_TIMESTAMP = (
    "{0} IS NULL OR typeof({0}) = 'text' AND length({0}) IN (19, 23) AND datetime({0}, '+0 days') IS substr({0}, 1, 19)"
)


async def row_checks(conn: aiosqlite.Connection) -> tuple[Check, ...]:
    """Return a check of each kind of rule over all tables: JSON, values, required values, timestamps. Read-only."""
    rows = await _read_rows(conn)
    return tuple(_rows_check(kind, rows) for kind in _KINDS)


class _Rule(NamedTuple):
    kind: str
    table: str
    column: str
    condition: str  # SQL that is false for a row that breaks the rule

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"

    @property
    def faults(self) -> str:
        """Return SQL that counts the rows that break the rule."""
        if self.kind == _REQUIRED:
            return f"count(*) - count({self.column})"
        # CASE evaluates from left to right and stops, as a CHECK does; a bare AND would call json_type on bad text.
        return f"sum(CASE WHEN NOT ({self.condition}) THEN 1 ELSE 0 END)"


@cache
def _rules() -> tuple[_Rule, ...]:
    """Return the rules that each row must keep, read from the DDL so that there is no second copy of them."""
    rules = []
    for table in expected_tables():
        kinds = {"json": _JSON, "value": _VALUES}
        rules += [_Rule(kinds[check.kind], table, check.column, check.expression) for check in column_checks(table)]
        for column in expected_columns(table):
            if column.required:
                # SQLite takes `x IS NOT NULL` for true where the schema says NOT NULL, and does not look.
                rules.append(_Rule(_REQUIRED, table, column.name, f"typeof({column.name}) <> 'null'"))
            if column.name.endswith(("_at", "_time")) or column.name == "timestamp":
                rules.append(_Rule(_TIMESTAMPS, table, column.name, _IS_TIMESTAMP.format(column.name)))
    return tuple(rules)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Hold what one pass over all tables found: how many rows, which rules are broken where, what was unreadable."""

    count: int
    broken: dict[_Rule, str]
    unread: dict[str, str]


async def _read_rows(conn: aiosqlite.Connection) -> _Rows:
    counted, unread = await _count(conn, expected_tables())
    if unread:  # one table that can't be read must not hide the others
        counted, unread = {}, {}
        for table in expected_tables():
            found, failed = await _count(conn, (table,))
            counted |= found
            unread |= failed
    broken = {}
    for rule in (rule for rule in _rules() if counted.get(rule.table, {}).get(rule)):
        faults = counted[rule.table][rule]
        broken[rule] = f"{rule}: {faults:,} rows, by key: {await _keys_of(conn, rule)}"
    return _Rows(sum(found[None] for found in counted.values()), broken, unread)


async def _count(
    conn: aiosqlite.Connection, tables: Sequence[str]
) -> tuple[dict[str, dict[_Rule | None, int]], dict[str, str]]:
    """Return how many rows of each table break each rule, and how many there are (None); or why it can't be read.

    One statement, one pass over each table, and so one hop to the connection's thread.
    """
    asked: list[tuple[str, _Rule | None]] = []
    parts = []
    for table in tables:
        rules = [rule for rule in _rules() if rule.table == table]
        asked += [(table, None), *((table, rule) for rule in rules)]
        # A NULL condition is not false.
        parts.append(f"(SELECT count(*), {', '.join(rule.faults for rule in rules)} FROM {table})")
    try:
        (row,) = await conn.execute_fetchall(f"SELECT * FROM {', '.join(parts)}")
    except sqlite3.Error as error:
        return {}, {table: f"{table}: {error}" for table in tables}
    counted: dict[str, dict[_Rule | None, int]] = {table: {} for table in tables}
    for (table, rule), value in zip(asked, row, strict=True):
        counted[table][rule] = value or 0
    return counted, {}


async def _keys_of(conn: aiosqlite.Connection, rule: _Rule) -> str:
    key = ", ".join(column.name for column in expected_columns(rule.table) if column.in_key)
    sql = f"SELECT {key} FROM {rule.table} WHERE NOT ({rule.condition}) ORDER BY {key} LIMIT {NAMED + 1}"
    rows = [", ".join(shown(value) for value in row) for row in await conn.execute_fetchall(sql)]
    return "; ".join(rows[:NAMED]) + ("; …" if len(rows) > NAMED else "")


def _rows_check(kind: str, rows: _Rows) -> Check:
    """Return the check of one kind of rule over all tables."""
    rules = [rule for rule in _rules() if rule.kind == kind]
    broken = [told for rule, told in rows.broken.items() if rule.kind == kind]
    unread = [told for table, told in rows.unread.items() if any(rule.table == table for rule in rules)]
    if unread and not broken:
        observed = f"could not run: {'; '.join(unread)}"
        return Check(
            kind, "error", expected=_KINDS[kind], observed=observed, remedy="first mend the tables named above"
        )
    columns = ", ".join(str(rule) for rule in rows.broken if rule.kind == kind)
    return Check.that(
        kind,
        not broken,
        expected=_KINDS[kind],
        observed=f"broken: {columns}" if broken else f"{len(rules)} rules hold for {rows.count:,} rows",
        remedy="keep a copy of these rows, then write what belongs there, or restore a backup",
        evidence=broken + unread,
    )
