"""What a database holds: a digest over every row that two databases share only if they hold the same."""

import hashlib
import marshal
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.expected import expected_tables
from abathur_nb.guarded import Connection
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


async def read_content(conn: Connection, *, progress: Callable[[int], object] | None = None) -> Content:
    """Read every row of every table, SQLite's own sequences too, in the transaction that ``conn`` is in. Read-only.

    Statistics (``sqlite_stat…``), virtual tables and the columns that SQLite computes are left out. Rows are taken in
    the order of the table, each as its values in the second format of ``marshal``, which all versions of Python share;
    a text counts as its bytes, whether they are UTF-8 or not. ``progress`` gets the rows that are done, from the
    connection's thread. Raises sqlite3.Error.
    """
    # In one hop to that thread: with several for each table, 20,000 tables took as long as their rows take once.
    return await conn.apply(partial(_read, progress))


def _read(progress: Callable[[int], object] | None, conn: sqlite3.Connection) -> Content:
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
    conn.create_function("abathur_digest", -1, feed)
    rows: dict[str, int] = {}
    for (name,) in conn.execute(load_queries("inspect.sql")["tables"].sql).fetchall():
        found = conn.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", (name,)).fetchall()
        columns = [quoted(column) for (column,) in found]
        calls = [_call(columns[start : start + _COLUMNS]) for start in range(0, len(columns), _COLUMNS)]
        # NOT INDEXED: in the order of the table, which a copy shares.
        select = f"SELECT {', '.join(calls)} FROM {quoted(name)} NOT INDEXED"
        try:
            conn.execute(f"EXPLAIN {select}").close()
        except sqlite3.OperationalError as error:
            if name in expected_tables() or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
                raise
            continue  # a table of others whose order this process does not know, such as by a collation of theirs
        digest.update(canonical({"table": name, "columns": [column for (column,) in found]}))
        ((rows[name], *_),) = conn.execute(select).fetchall()
    found = conn.execute(load_queries("inspect.sql")["schema"].sql).fetchall()
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
