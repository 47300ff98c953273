"""What a database holds: a digest over every row that two databases share only if they hold the same."""

import hashlib
import marshal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from sqlite3 import SQLITE_ERROR, OperationalError
from typing import Any

import aiosqlite

from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.expected import expected_tables
from abathur_nb.schema import quoted
from abathur_nb.sql import load_queries, normalized

__all__ = ["Content", "difference", "read_content"]

_STEP = 1000  # rows from one report of progress to the next
_COLUMNS = 100  # that one call of a function takes: SQLite allows 127 arguments


@dataclass(frozen=True, slots=True)
class Content:
    """Hold what a snapshot contains: the SHA-256 of all rows, that of the schema, the rows of each table."""

    digest: str
    schema: str
    rows: Mapping[str, int]

    @property
    def total(self) -> int:
        """The rows of all tables."""
        return sum(self.rows.values())


async def read_content(conn: aiosqlite.Connection, *, progress: Callable[[int], object] | None = None) -> Content:
    """Read every row of every table, SQLite's own sequences too, in the transaction that ``conn`` is in. Read-only.

    Statistics (``sqlite_stat…``), virtual tables and the columns that SQLite computes are left out. Rows are taken in
    the order of the table, each as its values in the second format of ``marshal``, which all versions of Python share;
    a text counts as its bytes, whether they are UTF-8 or not. ``progress`` gets the rows that are done, from the
    connection's thread. Raises sqlite3.Error.
    """
    digest = hashlib.sha256()
    done = 0

    def feed(*values: Any) -> int:
        nonlocal done
        digest.update(marshal.dumps(values, 2))
        done += 1
        if progress and done % _STEP == 0:
            progress(_STEP)
        return 1

    # A function that SQLite calls holds one row at a time, where a cursor would hold a batch of rows of any size.
    await conn.create_function("abathur_digest", -1, feed)
    rows: dict[str, int] = {}
    for (name,) in await conn.execute_fetchall(load_queries("inspect.sql")["tables"].sql):
        found = await conn.execute_fetchall(
            "SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", (name,)
        )
        columns = [quoted(column) for (column,) in found]
        calls = [_call(columns[start : start + _COLUMNS]) for start in range(0, len(columns), _COLUMNS)]
        # NOT INDEXED: in the order of the table, which a copy shares.
        select = f"SELECT {', '.join(calls)} FROM {quoted(name)} NOT INDEXED"
        try:
            await conn.execute_fetchall(f"EXPLAIN {select}")
        except OperationalError as error:
            if name in expected_tables() or error.sqlite_errorcode & 0xFF != SQLITE_ERROR:
                raise
            continue  # a table of others whose order this process does not know, such as by a collation of theirs
        digest.update(canonical({"table": name, "columns": [column for (column,) in found]}))
        ((rows[name], *_),) = await conn.execute_fetchall(select)
    found = await conn.execute_fetchall(load_queries("inspect.sql")["schema"].sql)
    schema = {name: normalized(sql or "") for _, name, _, sql in found}
    if progress:
        progress(done % _STEP)
    return Content(digest.hexdigest(), sha256(canonical(schema)), rows)


def _call(columns: Sequence[str]) -> str:
    texts = " || ".join(f"(typeof({column}) = 'text')" for column in columns)
    values = ", ".join(f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns)
    return f"count(abathur_digest({texts}, {values}))"


def difference(wanted: Content, found: Content) -> str:
    """Say in what two contents differ, the second one being what was found."""
    tables = [name for name in wanted.rows.keys() | found.rows.keys() if wanted.rows.get(name) != found.rows.get(name)]
    if tables:
        return ", ".join(f"{name}: {found.rows.get(name)} rows of {wanted.rows.get(name)}" for name in sorted(tables))
    return "another schema" if wanted.schema != found.schema else "as many rows, but other ones"
