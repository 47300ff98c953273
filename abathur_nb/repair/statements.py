"""The statements of a repair: the smallest change of rows, and tables and indexes as ``sql/`` has them."""

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from functools import cache
from sqlite3 import Error
from typing import NamedTuple

import aiosqlite

from abathur_nb.health.rows import NAMED
from abathur_nb.store.schema import (
    Differences,
    SchemaObject,
    column_checks,
    expected_columns,
    expected_objects,
    expected_tables,
    quoted,
)
from abathur_nb.store.sql import load_queries, normalized, tokens
from abathur_nb.store.values import FAULT, IS_UTF8, TOO_LONG, stored
from abathur_nb.text import counted, shown


class RowChange(NamedTuple):
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


def model() -> sqlite3.Connection:
    """Return an empty database in memory with the schema of ``sql/``."""
    conn = sqlite3.connect(":memory:")
    for found in expected_objects().values():
        conn.execute(found.sql)
    return conn


@cache
def _references(table: str) -> tuple[tuple[str, str, str], ...]:
    """Return each column of a table that refers to another table, with that and its column."""
    with closing(model()) as conn:
        return tuple(conn.execute(load_queries("troubleshoot.sql")["references"].sql, (table,)))


@cache
def _required(table: str) -> frozenset[str]:
    return frozenset(column.name for column in expected_columns(table) if column.required)


def doomed(table: str, name: str = "") -> str:
    """Return SQL that is true for a row that can't stay, as a reference that it must have leads nowhere, or nothing."""
    lost = [_lost(ref, name or table) for ref in _references(table) if ref[0] in _required(table)]
    return " OR ".join(lost)


def _lost(reference: tuple[str, str, str], name: str) -> str:
    """Return SQL that is true where a reference leads to no row, or to one that can't stay either."""
    column, parent, parent_column = reference
    other = f"{parent}_of_{name}"
    stays = _staying(parent, other)
    return (
        f"{name}.{column} IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM {parent} AS {other} WHERE {other}.{parent_column} = {name}.{column}{stays})"
    )


def _staying(table: str, name: str = "") -> str:
    return f" AND NOT ({condition})" if (condition := doomed(table, name)) else ""


async def broken_references(conn: aiosqlite.Connection) -> list[tuple[RowChange, int]]:
    """Return what repairs references without a row, with the number of rows: cleared if they may be, else deleted.

    The children of what is deleted are among them. Children come first. Read-only.
    """
    changes = []
    for table in reversed(expected_tables()):
        required = _required(table)
        changes += [
            RowChange(table, _lost(ref, table) + _staying(table), ref[0])
            for ref in _references(table)
            if ref[0] not in required
        ]
    changes += [RowChange(table, condition) for table in reversed(expected_tables()) if (condition := doomed(table))]
    return await _counted(conn, changes)


async def broken_json(conn: aiosqlite.Connection, besides: Iterable[RowChange]) -> list[tuple[RowChange, int]]:
    """Return what repairs JSON columns that hold no JSON, or JSON that the store can't read. Read-only.

    What one of the changes ``besides`` gives another value to is left to it. ``conn`` must have the functions of
    `add_functions`.
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
            changes += [
                RowChange(table, where + rest, column, empty) for where in (f"NOT ({long} OR ({rule}))", beyond)
            ]
    return await _counted(conn, changes)


async def _counted(conn: aiosqlite.Connection, changes: Iterable[RowChange]) -> list[tuple[RowChange, int]]:
    counted = []
    for change in changes:
        ((number,),) = await conn.execute_fetchall(change.counting)
        if number:
            counted.append((change, int(number)))
    return counted


_ASIDE = "abathur_before_repair"  # an altered table's name while its rows are copied
_RENAME = "if a column was renamed, let the application that did it rename it back"
_WRITE = "write into these rows what belongs there"


class Step(NamedTuple):
    """Hold one statement of a repair, and how many rows it must change; None for a change of the schema."""

    sql: str
    rows: int | None = None
    note: str = ""

    def __str__(self) -> str:
        text = " ".join(self.sql.split()) if "--" not in self.sql else normalized(self.sql)
        note = self.note if self.rows is None else counted(self.rows, "row")
        return f"{text};" + (f" -- {note}" if note else "")


def repair_indexes(live: Mapping[str, SchemaObject], rebuilt: Collection[str]) -> list[Step]:
    """Return what makes the indexes those of ``sql/``, but for those of tables that are ``rebuilt`` or missing."""
    found = Differences.between(live, ("index",))
    tables = {name for name, known in expected_objects().items() if known.type == "table" and name in live}
    dropped = [name for name in found.altered if live[name].table in tables - set(rebuilt)]
    made = [expected_objects()[name] for name in (*found.missing, *found.altered)]
    return [
        *(Step(f"DROP INDEX {quoted(name)}") for name in dropped),
        *(Step(index.sql) for index in made if index.table in tables - set(rebuilt) and _is_free(index.name, live)),
    ]


def _is_free(name: str, live: Mapping[str, SchemaObject]) -> bool:
    """Return whether nothing but an index has the name."""
    return name not in live or live[name].type == "index"


async def rename_back(conn: aiosqlite.Connection, live: Mapping[str, SchemaObject]) -> dict[str, list[Step]]:
    """Return, by its name in ``sql/``, what renames a table or its columns back: only the names differ. Read-only."""
    found, steps = Differences.between(live, ("table",)), dict[str, list[Step]]()
    for table in found.missing:
        alike = [name for name in found.extra if _renamed(table, live[name].sql) == {name: table}]
        if len(alike) == 1:  # with the references to it, which the setting of a repair would leave
            ((count,),) = await conn.execute_fetchall(f"SELECT count(*) FROM {quoted(*alike)} NOT INDEXED")
            rename = Step(f"ALTER TABLE {quoted(*alike)} RENAME TO {table}", note=counted(count, "row"))
            steps[table] = [Step("PRAGMA legacy_alter_table = OFF"), rename]
    for table in found.altered:
        names, columns = _renamed(table, live[table].sql), {column.name for column in expected_columns(table)}
        # Where the column is there, only a parent's was renamed, or two were swapped, or it is in other capitals.
        if columns.issuperset(names.values()) and not {*names.values()} & {*await _columns(conn, table)}:
            steps[table] = [Step(f"ALTER TABLE {table} RENAME COLUMN {quoted(old)} TO {names[old]}") for old in names]
    return {table: renames for table, renames in steps.items() if renames}


def _renamed(table: str, sql: str) -> dict[str, str]:
    """Return the names of ``sql/`` by those that stand for them in the SQL of a table, if nothing else differs."""
    here, wanted = (
        [token[1:-1].replace('""', '"') if token[:1] == '"' else token for token in tokens(text)]
        for text in (sql, expected_objects()[table].sql)
    )
    names = {old: new for old, new in zip(here, wanted, strict=False) if old != new}
    is_same = [names.get(token, token) for token in here] == wanted
    return names if is_same and len({*names.values()}) == len(names) else {}


async def duplicates(conn: aiosqlite.Connection, names: Collection[str]) -> list[str]:
    """Name the rows that a unique index among ``names``, or of a table, can't hold, by sql/ or as it is. Read-only."""
    unique, found = load_queries("troubleshoot.sql")["unique"].sql, list[str]()
    with closing(model()) as ours:
        keys = {*ours.execute(unique), *map(tuple, await conn.execute_fetchall(unique))}
    for table, columns, given in sorted({key[1:] for key in keys if {*key[:2]} & {*names}}):
        rows = await conn.execute_fetchall(
            f"SELECT group_concat(rowid, ' and '), {columns} FROM {quoted(table)} NOT INDEXED WHERE {given}"
            f" GROUP BY {columns} HAVING count(*) > 1 LIMIT {NAMED}"
        )
        found += [f"{table}, rowid {row[0]}: {', '.join(shown(stored(v)) for v in row[1:])}" for row in rows]
    return found


async def rebuild_table(
    conn: aiosqlite.Connection, table: str, live: Mapping[str, SchemaObject]
) -> tuple[list[Step], dict[str, str]]:
    """Return what makes an altered table as in ``sql/`` with all its rows, or no step and what is in the way.

    Beside each obstacle is what removes it, empty where only a backup does; a statement ends with ``;``.

    Rows that other steps delete, and JSON that others empty, are not in the way. An index of others is made again,
    unless the table of ``sql/`` can't have it. Read-only.
    """
    wanted = [column.name for column in expected_columns(table)]
    extra = [name for name in await _columns(conn, table) if name not in wanted]
    if missing := await lacking(conn, table):
        lacks = f"{table} lacks {', '.join(missing)}"
        if not extra:
            return [], {f"{lacks}, and no other column of it may hold their values": ""}
        return [], {f"{lacks}, whose values may be in {', '.join(extra)}": _RENAME}
    if obstacles := await _obstacles(conn, table, extra):
        return [], obstacles
    ((count,),) = await conn.execute_fetchall(_counting(table, "1"))
    own_id = "AUTOINCREMENT" in expected_objects()[table].sql
    columns = ", ".join(wanted if own_id else ["rowid", *wanted])
    indexes = [index for index in expected_objects().values() if index.type == "index" and index.table == table]
    steps = [
        Step(f"ALTER TABLE {table} RENAME TO {_ASIDE}"),
        Step(expected_objects()[table].sql),
        Step(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {_ASIDE}", count),
        Step(f"DROP TABLE {_ASIDE}"),
    ]
    if own_id:
        for (seq,) in await conn.execute_fetchall(load_queries("troubleshoot.sql")["last_id"].sql, {"table": table}):
            # An id that was given out once is not given out again.
            steps.append(Step(f"DELETE FROM sqlite_sequence WHERE name = '{table}'"))
            steps.append(Step(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('{table}', {seq})", 1))
    others = [live[name] for name in Differences.between(live, ("index",)).extra if live[name].table == table]
    lost = [index for index in others if not _fits(index)]
    made = [*(index for index in indexes if _is_free(index.name, live)), *(one for one in others if one not in lost)]
    return [*(Step(f"DROP INDEX {quoted(one.name)}") for one in lost), *steps, *(Step(one.sql) for one in made)], {}


def _fits(index: SchemaObject) -> bool:
    """Return whether an index can be made on the tables of ``sql/``."""
    with closing(model()) as conn, suppress(Error):
        conn.execute(index.sql)
        return True
    return False


async def lacking(conn: aiosqlite.Connection, table: str) -> list[str]:
    """Return the columns of ``sql/`` that a live table has not. Read-only."""
    found = await _columns(conn, table)
    return [column.name for column in expected_columns(table) if column.name not in found]


async def _columns(conn: aiosqlite.Connection, table: str) -> list[str]:
    rows = await conn.execute_fetchall(load_queries("troubleshoot.sql")["columns"].sql, {"table": table})
    return [name.lower() if name.isascii() else name for (name,) in rows]


async def _obstacles(conn: aiosqlite.Connection, table: str, extra: Collection[str]) -> dict[str, str]:
    """Say which rows the table of ``sql/`` would not take, and which columns it has no place for."""
    checks = column_checks(table)
    json = {check.column for check in checks if check.kind == "json"}
    drops = {f"a value in {table}.{name}, not a column of sql/": name for name in extra}
    asked = {what: f"{quoted(name)} IS NOT NULL" for what, name in drops.items()}
    asked |= {f"{table}.{c.column} outside its range": f"NOT ({c.expression})" for c in checks if c.kind == "value"}
    asked |= {
        f"{table}.{column.name} without a value": f"{column.name} IS NULL"
        for column in expected_columns(table)
        if column.required and column.name not in json
    }
    words = {}
    for what, condition in asked.items():
        ((count,),) = await conn.execute_fetchall(_counting(table, condition))
        if count:
            drop = f"ALTER TABLE {table} DROP COLUMN {quoted(drops[what])};" if what in drops else _WRITE
            words[f"{counted(count, 'row')} with {what}"] = drop
    for rows in await duplicates(conn, {table}):
        words[f"the same key more than once: {rows}"] = _WRITE
    return words


def _counting(table: str, condition: str) -> str:
    return f"SELECT count(*) FROM {table} WHERE ({condition}){_staying(table)}"
