"""The statements of a repair: the smallest change of rows, and the tables and indexes of ``sql/``."""

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite

from abathur_nb.health.rows import NAMED
from abathur_nb.report import Check
from abathur_nb.store import schema
from abathur_nb.store.schema import SchemaObject, expected_columns, expected_objects, expected_tables, quoted
from abathur_nb.store.sql import load_queries, normalized
from abathur_nb.store.target import shell_command
from abathur_nb.store.values import FAULT, IS_UTF8, TOO_LONG, stored
from abathur_nb.text import counted, shown

_STALE, _FEW = 10, 1000  # statistics are stale if 10 times too large or small, in a table of 1,000 rows
_ASIDE = "abathur_before_repair"  # an altered table's name while its rows are copied
_RENAME = "if a column was renamed, let the application that did it rename it back"
_SAVE = "save the values of this column, then drop it "
_WRITE = "write valid values into these rows"


class RowChange(NamedTuple):
    """Hold a change of the rows of ``table`` for which ``where`` is true.

    ``column`` gets the SQL value ``empty``; without a column the row is deleted, or changed by the statement
    ``instead``. ``where`` must select the same rows after the earlier changes of a repair as before them.
    """

    table: str
    where: str
    column: str | None = None
    empty: str = "NULL"
    instead: str = ""

    @property
    def sql(self) -> str:
        """Return the statement of the change."""
        if self.instead:
            return self.instead
        act = f"UPDATE {self.table} SET {self.column} = {self.empty}" if self.column else f"DELETE FROM {self.table}"
        return f"{act} WHERE {self.where}"

    def selecting(self, what: str) -> str:
        """Return the query that selects ``what`` from these rows."""
        return f"SELECT {what} FROM {self.table} WHERE {self.where}"


class Step(NamedTuple):
    """Hold one statement of a repair, and how many rows it must change; None for a change of the schema."""

    sql: str
    rows: int | None = None

    def __str__(self) -> str:
        text = " ".join(self.sql.split()) if "--" not in self.sql else normalized(self.sql)
        return f"{text};" if self.rows is None else f"{text}; -- {counted(self.rows, 'row')}"


# They mark a database as ours.
MARKS = (
    Step(f"PRAGMA application_id = {schema.APPLICATION_ID}"),
    Step(f"PRAGMA user_version = {schema.SCHEMA_VERSION}"),
)


@cache
def _references(table: str) -> tuple[tuple[str, str, str], ...]:
    """Return each column of a table that refers to another one, with the other table and its column."""
    with closing(schema.build_schema()) as conn:
        return tuple(conn.execute(load_queries("troubleshoot.sql")["references"].sql, {"table": table}))


@cache
def _required(table: str) -> frozenset[str]:
    return frozenset(column.name for column in expected_columns(table) if column.required)


def _doomed(table: str, name: str = "") -> str:
    """Return SQL that is true for a row whose required reference leads to no row; empty without such references."""
    return " OR ".join(_lost(ref, name or table) for ref in _references(table) if ref[0] in _required(table))


def _lost(reference: tuple[str, str, str], name: str) -> str:
    """Return SQL that is true if a reference leads to no row, or to a row that will be deleted."""
    column, parent, parent_column = reference
    other = f"{parent}_of_{name}"
    found = f"{other}.{parent_column} = {name}.{column}{_staying(parent, other)}"
    return f"{name}.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {parent} AS {other} WHERE {found})"


def _staying(table: str, name: str = "") -> str:
    return f" AND NOT ({condition})" if (condition := _doomed(table, name)) else ""


async def broken_references(conn: aiosqlite.Connection) -> list[tuple[RowChange, int]]:
    """Return the changes that clear broken references, or delete the row if one is required; with counts. Read-only."""
    tables = [*reversed(expected_tables())]
    changes = [
        RowChange(table, _lost(ref, table) + _staying(table), ref[0])
        for table in tables
        for ref in _references(table)
        if ref[0] not in _required(table)
    ]
    return await _counted(conn, [*changes, *(RowChange(table, _doomed(table)) for table in tables if _doomed(table))])


async def broken_json(conn: aiosqlite.Connection, besides: Iterable[RowChange]) -> list[tuple[RowChange, int]]:
    """Return the changes that repair invalid JSON, except in rows of ``besides``. Needs `add_functions`."""
    changes = []
    for table in expected_tables():
        others = "".join(f" AND NOT ({change.where})" for change in besides if change.table == table)
        for column, kind, rule in schema.column_checks(table):
            if kind != "json":
                continue
            empty = "NULL" if column not in _required(table) else "'{}'" if "'object'" in rule else "'[]'"
            unreadable = f"CASE WHEN {IS_UTF8.format(column)} THEN {FAULT.format(column)} <> '' ELSE 1 END"
            # CASE stops at the first match: too long values are not parsed, and only valid JSON is measured.
            within = f"WHEN {rule} THEN {column} IS NOT NULL AND {unreadable} ELSE 1"
            where = f"CASE WHEN {TOO_LONG.format(column)} THEN 1 {within} END{_staying(table)}{others}"
            changes.append(RowChange(table, where, column, empty))
    return await _counted(conn, changes)


async def _counted(conn: aiosqlite.Connection, changes: Iterable[RowChange]) -> list[tuple[RowChange, int]]:
    found = [(change, await count_rows(conn, change.selecting("count(*)"))) for change in changes]
    return [(change, number) for change, number in found if number]


async def count_rows(conn: aiosqlite.Connection, query: str) -> int:
    """Return the count that a query selects. Read-only."""
    ((number,),) = await conn.execute_fetchall(query)
    return int(number)


async def restore_seeds(
    conn: aiosqlite.Connection, restored: Iterable[Mapping[str, Any]]
) -> tuple[list[tuple[RowChange, int]], list[Step]]:
    """Return the changes that restore the seeds in ``restored``, and the statements that insert missing ones."""
    changes, steps = list[tuple[RowChange, int]](), list[Step]()
    for seed in restored:
        same = f"namespace = '{seed['namespace']}' AND key = '{seed['key']}' AND version = {seed['version']}"
        change = RowChange("memory_entries", same, instead=seed["sql"])
        if await count_rows(conn, change.selecting("count(*)")):
            changes.append((change, 1))
        else:
            steps.append(Step(seed["sql"], 1))
    return changes, steps


async def statistics_check(conn: aiosqlite.Connection, remedy: str) -> Check:
    """Check that the statistics of ANALYZE, if any, are close to the present numbers of rows. Read-only."""
    queries, noted = load_queries("troubleshoot.sql"), dict[str, int]()
    if await count_rows(conn, queries["has_statistics"].sql):
        rows = await conn.execute_fetchall(queries["statistics"].sql)
        noted = {row["table"]: row["rows"] for row in rows if row["table"] in expected_tables()}
    stale = []
    for table, then in noted.items():
        now = await count_rows(conn, f"SELECT count(*) FROM {table} NOT INDEXED")
        if max(now, then) >= _FEW and max(now, then) > _STALE * min(now, then):
            stale.append(f"{table}: {counted(then, 'row')} when analysed, {now:,} now")
    expected = f"none, or wrong by a factor of at most {_STALE}"
    observed = "; ".join(stale) or (f"statistics of {counted(len(noted), 'table')}" if noted else "none")
    return Check.that("statistics", not stale, expected, observed, remedy, "warn")


def repair_indexes(live: Mapping[str, SchemaObject], rebuilt: Collection[str]) -> list[Step]:
    """Return the statements that rebuild wrong indexes as in ``sql/``, except for ``rebuilt`` or missing tables."""
    found, known = schema.Differences.between(live, ("index",)), expected_objects()
    tables = {name for name, one in known.items() if one.type == "table" and name in live} - {*rebuilt}
    dropped = [name for name in found.altered if live[name].table in tables]
    made = [known[name] for name in (*found.missing, *found.altered) if known[name].table in tables]
    drops = (Step(f"DROP INDEX {quoted(name)}") for name in dropped)
    return [*drops, *(Step(index.sql) for index in made if _is_free(index, live))]


def _is_free(index: SchemaObject, live: Mapping[str, SchemaObject]) -> bool:
    """Return whether no table or view has the name of an index: then SQLite would refuse the index and the repair."""
    return live.get(index.name, index).type == "index"


async def duplicates(conn: aiosqlite.Connection, names: Collection[str]) -> list[str]:
    """Return the rows with the same key in a unique index; ``names`` are those of indexes or tables. Read-only."""
    unique, found = load_queries("troubleshoot.sql")["unique"].sql, list[str]()
    with closing(schema.build_schema()) as ours:
        keys = {*ours.execute(unique), *map(tuple, await conn.execute_fetchall(unique))}
    for table, columns, given in sorted({key[1:] for key in keys if {*key[:2]} & {*names}}):
        rows = await conn.execute_fetchall(
            f"SELECT group_concat(rowid, ' and '), {columns} FROM {quoted(table)} NOT INDEXED WHERE {given}"
            f" GROUP BY {columns} HAVING count(*) > 1 LIMIT {NAMED}"
        )
        found += [f"{table}, rowid {row[0]}: {', '.join(shown(stored(v)) for v in row[1:])}" for row in rows]
    return found


class Rebuild(NamedTuple):
    """Hold the ``steps`` that rebuild an altered table as in ``sql/``, or the obstacles to it.

    ``obstacles`` maps each to its remedy, empty if only a backup helps. ``lacks`` is true if a column is missing.
    """

    steps: list[Step]
    obstacles: dict[str, str]
    lacks: bool = False


async def rebuild_table(
    conn: aiosqlite.Connection, path: Path, table: str, live: Mapping[str, SchemaObject], broken: Collection[str]
) -> Rebuild:
    """Return the steps that rebuild an altered table as in ``sql/`` with all its rows. Read-only.

    ``broken`` names the tables with invalid rows. Extra indexes are created again, except those of dropped columns.
    """
    wanted = [column.name for column in expected_columns(table)]
    rows = await conn.execute_fetchall(load_queries("troubleshoot.sql")["columns"].sql, {"table": table})
    found = [name.lower() if name.isascii() else name for (name,) in rows]
    extra = [name for name in found if name not in wanted]
    if missing := [name for name in wanted if name not in found]:
        where = f"whose values may be in {', '.join(extra)}" if extra else "whose values no other column holds"
        return Rebuild([], {f"{table} lacks {', '.join(missing)}, {where}": _RENAME if extra else ""}, lacks=True)
    obstacles = {f"rows of {table} that *values* or *required values* reports": _WRITE} if table in broken else {}
    for name in extra:
        if count := await count_rows(conn, f"SELECT count({quoted(name)}) FROM {table}"):
            drop = shell_command(path, [f"ALTER TABLE {table} DROP COLUMN {quoted(name)};"])
            obstacles[f"{counted(count, 'row')} with a value in {table}.{name}, which sql/ lacks"] = _SAVE + drop
    for keys in await duplicates(conn, {table}):
        obstacles[f"the same key more than once: {keys}"] = _WRITE
    if obstacles:
        return Rebuild([], obstacles)
    count = await count_rows(conn, f"SELECT count(*) FROM {table} WHERE 1{_staying(table)}")
    sql = expected_objects()[table].sql
    own_id = "AUTOINCREMENT" in sql
    columns = ", ".join(wanted if own_id else ["rowid", *wanted])
    steps = [Step(f"ALTER TABLE {table} RENAME TO {_ASIDE}"), Step(sql)]
    steps.append(Step(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {_ASIDE}", count))
    if own_id:  # an id is never used twice
        steps.append(Step(f"DELETE FROM sqlite_sequence WHERE name = '{table}'"))
        steps.append(Step(f"UPDATE sqlite_sequence SET name = '{table}' WHERE name = '{_ASIDE}'"))
    steps.append(Step(f"DROP TABLE {_ASIDE}"))
    others = [live[name] for name in schema.Differences.between(live, ("index",)).extra if live[name].table == table]
    lost = [other for other in others if not _fits(other)]
    ours = [one for one in expected_objects().values() if one.type == "index" and one.table == table]
    indexes = [Step(index.sql) for index in (*ours, *others) if index not in lost and _is_free(index, live)]
    return Rebuild([*(Step(f"DROP INDEX {quoted(other.name)}") for other in lost), *steps, *indexes], {})


def _fits(index: SchemaObject) -> bool:
    """Return whether an index can be created on the tables of ``sql/``."""
    with closing(schema.build_schema()) as conn, suppress(sqlite3.Error):
        conn.execute(index.sql)
        return True
    return False
