"""What a database of this schema version must be, read from the DDL: its identity, objects, rules and seeds."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from types import MappingProxyType
from typing import Literal, NamedTuple

from abathur_nb.store.sql import DDL_FILES, SEED_FILE, SqlFileError, load_queries, statements, tokens

APPLICATION_ID = 0x41424154  # "ABAT": PRAGMA application_id of a database of ours
SCHEMA_VERSION = 1  # PRAGMA user_version


class ColumnCheck(NamedTuple):
    """Hold one CHECK of the DDL: SQL that is true (or NULL) for a good row of its table."""

    column: str
    kind: Literal["json", "value"]
    expression: str


class Column(NamedTuple):
    """Hold a column of the DDL: its type, whether it must not be NULL, whether it is part of the primary key."""

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
    """Hold a row of ``sqlite_master``: ``type`` is table or index, ``table`` the one that an index belongs to."""

    type: str
    name: str
    table: str
    sql: str


@cache
def expected_objects() -> Mapping[str, SchemaObject]:
    """Return the tables and indexes that the DDL builds, by name, as SQLite itself records them.

    Built in memory. SQLite's own objects (named ``sqlite_…``) are left out.
    """
    with closing(_build()) as conn:
        rows = conn.execute(load_queries("inspect.sql")["schema"].sql)
        return MappingProxyType({row[1]: SchemaObject(*row) for row in rows})


@cache
def expected_tables() -> tuple[str, ...]:
    """Return the names of the tables that the DDL builds, in its order: parents first."""
    return tuple(found.name for found in expected_objects().values() if found.type == "table")


@cache
def expected_seeds() -> tuple[SeedRow, ...]:
    """Return what the seed file writes, read back from a database in memory."""
    with closing(_build()) as conn:
        for statement in statements(SEED_FILE):
            conn.execute(statement)
        rows = conn.execute(f"SELECT {', '.join(SeedRow._fields)} FROM memory_entries ORDER BY id")
        return tuple(SeedRow(*row) for row in rows)


def expected_columns(table: str) -> tuple[Column, ...]:
    """Return the columns that the DDL gives a table, in its order."""
    return _columns().get(table, ())


@cache
def _columns() -> dict[str, tuple[Column, ...]]:
    # All tables of one build: each takes milliseconds, which every run of init would wait for.
    found: dict[str, tuple[Column, ...]] = {}
    with closing(_build()) as conn:
        for table in expected_tables():
            rows = conn.execute('SELECT name, type, "notnull", pk FROM pragma_table_info(?) ORDER BY cid', (table,))
            found[table] = tuple(Column(name, kind, bool(required), bool(key)) for name, kind, required, key in rows)
    return found


@cache
def column_checks(table: str) -> tuple[ColumnCheck, ...]:
    """Return the CHECK conditions of a table, read from its DDL so that there is no second copy of them."""
    found = tokens(expected_objects()[table].sql)
    checks: list[ColumnCheck] = []
    column = ""
    depth = 0
    for i, token in enumerate(found):
        if depth == 1 and found[i - 1] in ("(", ","):
            column = token
        if depth == 1 and token == "CHECK":
            condition = found[i + 2 : _closing(found, i + 1)]
            checks.append(ColumnCheck(column, "json" if "json_valid" in condition else "value", " ".join(condition)))
        depth += (token == "(") - (token == ")")
    return tuple(checks)


def _closing(found: list[str], opening: int) -> int:
    depth = 0
    for i in range(opening, len(found)):
        depth += (found[i] == "(") - (found[i] == ")")
        if depth == 0:
            return i
    raise SqlFileError(f"unbalanced parentheses after {' '.join(found[: opening + 1])[-60:]!r}")


def _build() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:")
    for filename in DDL_FILES:
        for statement in statements(filename):
            conn.execute(statement)
    return conn
