"""The schema that the DDL in ``sql/`` builds, and how the schema of a live database differs from it."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, NamedTuple

import aiosqlite

from abathur_nb.store.sql import DDL_FILES, SEED_FILE, load_queries, statements, tokens
from abathur_nb.text import some

APPLICATION_ID = 0x41424154  # "ABAT": PRAGMA application_id of an Abathur database
SCHEMA_VERSION = 1  # PRAGMA user_version


class ColumnCheck(NamedTuple):
    """Hold one CHECK of the DDL: SQL that is true (or NULL) for a valid row of its table."""

    column: str
    kind: Literal["json", "value"]
    expression: str


class Column(NamedTuple):
    """Hold a column of the DDL: its type, whether it is NOT NULL, whether it is part of the primary key."""

    name: str
    type: str
    required: bool
    in_key: bool


class SeedRow(NamedTuple):
    """Hold what version 1 of a seed memory must contain; ``value`` and ``metadata`` are JSON text."""

    namespace: str
    key: str
    value: str
    memory_type: str
    metadata: str
    created_by: str
    updated_by: str
    version: int


class SchemaObject(NamedTuple):
    """Hold an object of ``sqlite_master``; ``table`` is the table of an index or trigger, else its own name."""

    type: str
    name: str
    table: str
    sql: str


@cache
def _expected() -> tuple[Mapping[str, SchemaObject], dict[str, tuple[Column, ...]]]:
    query = 'SELECT name, type, "notnull", pk FROM pragma_table_info(?) ORDER BY cid'
    with closing(build_schema()) as conn:  # cached: each build takes milliseconds
        objects = {row[1]: SchemaObject(*row) for row in conn.execute(load_queries("inspect.sql")["schema"].sql)}
        columns = {
            name: tuple(Column(of, kind, bool(must), bool(key)) for of, kind, must, key in conn.execute(query, (name,)))
            for name, found in objects.items()
            if found.type == "table"
        }
    return MappingProxyType(objects), columns


def expected_objects() -> Mapping[str, SchemaObject]:
    """Return the tables and indexes that the DDL builds, by name, without SQLite's own (``sqlite_…``)."""
    return _expected()[0]


def expected_columns(table: str) -> tuple[Column, ...]:
    """Return the columns that the DDL gives a table, in its order."""
    return _expected()[1].get(table, ())


def expected_tables() -> tuple[str, ...]:
    """Return the names of the tables that the DDL builds, in its order: parents first."""
    return tuple(_expected()[1])


@cache
def expected_seeds() -> tuple[SeedRow, ...]:
    """Return what the seed file writes, read back from a database in memory."""
    with closing(build_schema()) as conn:
        for statement in statements(SEED_FILE):
            conn.execute(statement)
        rows = conn.execute(f"SELECT {', '.join(SeedRow._fields)} FROM memory_entries ORDER BY id")
        return tuple(SeedRow(*row) for row in rows)


@cache
def column_checks(table: str) -> tuple[ColumnCheck, ...]:
    """Return the CHECK conditions of a table, read from its DDL."""
    found = tokens(expected_objects()[table].sql)
    checks: list[ColumnCheck] = []
    column, depth, start = "", 0, 0
    for i, token in enumerate(found):
        if depth == 1 and found[i - 1] in ("(", ","):
            column = token
        if depth == 1 and token == "CHECK":
            start = i + 2
        depth += (token == "(") - (token == ")")
        if start and depth == 1 and token == ")":
            condition = found[start:i]
            checks.append(ColumnCheck(column, "json" if "json_valid" in condition else "value", " ".join(condition)))
            start = 0
    return tuple(checks)


def build_schema() -> sqlite3.Connection:
    """Return an empty database in memory with the schema of ``sql/``."""
    conn = sqlite3.connect(":memory:")
    for filename in DDL_FILES:
        for statement in statements(filename):
            conn.execute(statement)
    return conn


@dataclass(frozen=True, slots=True)
class Differences:
    """Hold the names of the objects in which a live schema differs from the one in ``sql/``."""

    missing: tuple[str, ...]
    altered: tuple[str, ...]
    extra: tuple[str, ...]

    def __str__(self) -> str:
        named = {"missing": self.missing, "altered": self.altered, "extra": self.extra}
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in named.items() if names)

    @classmethod
    def between(cls, live: Mapping[str, SchemaObject], kinds: tuple[str, ...] = ("table", "index")) -> "Differences":
        """Compare the objects of these kinds with ``sql/``, ignoring only layout, comments and quotes around names."""
        expected, live = (
            {name: found for name, found in objects.items() if found.type in kinds}
            for objects in (expected_objects(), live)
        )
        common = expected.keys() & live.keys()
        altered = (name for name in common if not _is_same(live[name], expected[name]))
        missing, extra = expected.keys() - live.keys(), live.keys() - expected.keys()
        return cls(tuple(sorted(missing)), tuple(sorted(altered)), tuple(sorted(extra)))


def _is_same(live: SchemaObject, expected: SchemaObject) -> bool:
    # Texts first: comparing tokens takes longer.
    return live == expected or (live[:3] == expected[:3] and _plain(live.sql) == _plain(expected.sql))


def _plain(sql: str) -> list[str]:
    """Return the tokens of SQL, without the quotes that ALTER TABLE adds to names of ``sql/``."""
    names = {*expected_tables(), *(column.name for table in expected_tables() for column in expected_columns(table))}
    return [token.strip('"') if token[:1] == '"' and token[1:-1] in names else token for token in tokens(sql)]


async def read_schema(conn: aiosqlite.Connection) -> dict[str, SchemaObject]:
    """Return the objects of a live schema by name, without SQLite's own (``sqlite_…``). Read-only."""
    rows = await conn.execute_fetchall(load_queries("inspect.sql")["schema"].sql)
    found = [SchemaObject(kind, name, table, sql or "") for kind, name, table, sql in rows]
    # A trigger may have the name of a table.
    return {f"trigger {one.name}" if one.type == "trigger" else one.name: one for one in found}


def not_ours(live: Mapping[str, SchemaObject]) -> str:
    """Return the names of the triggers, views and virtual tables in a schema: ``sql/`` makes none."""
    return some([f"{found.type} {found.name}" for found in live.values() if found.type not in ("table", "index")])


def quoted(name: str) -> str:
    """Return a name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'
