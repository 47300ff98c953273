"""What a repair does to rows: the smallest change by which each of them keeps the rules of the schema again."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import cache
from typing import NamedTuple

import aiosqlite

from abathur_nb.expected import column_checks, expected_columns, expected_objects, expected_tables
from abathur_nb.limits import FAULT, IS_UTF8, TOO_LONG
from abathur_nb.sql import load_queries

__all__ = ["Change", "Reference", "broken_json", "broken_references", "doomed", "model"]


class Change(NamedTuple):
    """Hold what becomes of the rows of ``table`` for which ``where`` is true.

    With a ``column`` that gets the SQL value ``empty``, without one the row is deleted. ``where`` tells the same rows
    before any change of a repair and at its own turn.
    """

    table: str
    where: str
    column: str | None = None
    empty: str = "NULL"

    @property
    def sql(self) -> str:
        """The statement that does it."""
        if self.column is None:
            return f"DELETE FROM {self.table} WHERE {self.where}"
        return f"UPDATE {self.table} SET {self.column} = {self.empty} WHERE {self.where}"

    @property
    def counting(self) -> str:
        """The statement that counts the rows."""
        return f"SELECT count(*) FROM {self.table} WHERE {self.where}"

    @property
    def rows(self) -> str:
        """The statement that reads the rows, each behind its number."""
        return f"SELECT rowid, * FROM {self.table} WHERE {self.where} ORDER BY rowid"


class Reference(NamedTuple):
    """Hold one foreign key of the DDL."""

    column: str
    parent: str
    parent_column: str


def model() -> sqlite3.Connection:
    """Return an empty database in memory with the schema of ``sql/``."""
    conn = sqlite3.connect(":memory:")
    for found in expected_objects().values():
        conn.execute(found.sql)
    return conn


@cache
def _references(table: str) -> tuple[Reference, ...]:
    with closing(model()) as conn:
        return tuple(
            Reference(*row) for row in conn.execute(load_queries("troubleshoot.sql")["references"].sql, (table,))
        )


@cache
def _required(table: str) -> frozenset[str]:
    return frozenset(column.name for column in expected_columns(table) if column.required)


def doomed(table: str, name: str = "") -> str:
    """Return SQL that is true for a row that can't stay, as a reference that it must have leads nowhere, or nothing."""
    lost = [_lost(ref, name or table) for ref in _references(table) if ref.column in _required(table)]
    return " OR ".join(lost)


def _lost(reference: Reference, name: str) -> str:
    """Return SQL that is true where a reference leads to no row, or to one that can't stay either."""
    column, parent, parent_column = reference
    other = f"{parent}_of_{name}"
    stays = f" AND NOT ({condition})" if (condition := doomed(parent, other)) else ""
    return (
        f"{name}.{column} IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM {parent} AS {other} WHERE {other}.{parent_column} = {name}.{column}{stays})"
    )


def _staying(table: str) -> str:
    return f" AND NOT ({condition})" if (condition := doomed(table)) else ""


async def broken_references(conn: aiosqlite.Connection) -> list[tuple[Change, int]]:
    """Return what mends references without a row, with the number of rows: cleared if they may be, else deleted.

    The children of what is deleted are among them. Children come first. Read-only.
    """
    changes = []
    for table in reversed(expected_tables()):
        required = _required(table)
        changes += [
            Change(table, _lost(ref, table) + _staying(table), ref.column)
            for ref in _references(table)
            if ref.column not in required
        ]
    changes += [Change(table, condition) for table in reversed(expected_tables()) if (condition := doomed(table))]
    return await _counted(conn, changes)


async def broken_json(conn: aiosqlite.Connection, besides: Iterable[Change]) -> list[tuple[Change, int]]:
    """Return what mends JSON columns that hold no JSON, or JSON that the store can't read. Read-only.

    What one of the changes ``besides`` gives another value to is left to it. ``conn`` must have the functions of
    `limits`.
    """
    changes = []
    for table in expected_tables():
        for column, kind, rule in column_checks(table):
            if kind != "json":
                continue
            empty = "NULL" if column not in _required(table) else "'{}'" if "'object'" in rule else "'[]'"
            long = TOO_LONG.format(column)  # to parse it may take twenty times its size
            unreadable = f"CASE WHEN {IS_UTF8.format(column)} THEN {FAULT.format(column)} <> '' ELSE 1 END"
            # A comparison within a CASE is evaluated in order: only JSON is held against the limits.
            within = f"WHEN {rule} THEN {column} IS NOT NULL AND {unreadable} ELSE 0 END"
            beyond = f"CASE WHEN {long} THEN 1 {within}"
            others = [f" AND NOT ({c.where})" for c in besides if (c.table, c.column) == (table, column)]
            rest = "".join((_staying(table), *others))
            changes += [Change(table, where + rest, column, empty) for where in (f"NOT ({long} OR ({rule}))", beyond)]
    return await _counted(conn, changes)


async def _counted(conn: aiosqlite.Connection, changes: Iterable[Change]) -> list[tuple[Change, int]]:
    counted = []
    for change in changes:
        ((number,),) = await conn.execute_fetchall(change.counting)
        if number:
            counted.append((change, int(number)))
    return counted
