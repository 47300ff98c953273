"""What a database holds: a digest over every row that two databases share only if they hold the same."""

import hashlib
import marshal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiosqlite

from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.schema import quoted, read_schema
from abathur_nb.sql import load_queries, normalized

__all__ = ["Content", "difference", "read_content"]

_STEP = 1000  # rows from one report of progress to the next


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

    Statistics (``sqlite_stat…``) are no content. Rows are taken in the order of the table, each as its values in the
    second format of ``marshal``, which all versions of Python share; a text counts as its bytes, whether they are
    UTF-8 or not. ``progress`` is told of rows that are done, from the connection's thread. Raises sqlite3.Error.
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
        found = await conn.execute_fetchall("SELECT name FROM pragma_table_xinfo(?) ORDER BY cid", (name,))
        columns = [quoted(column) for (column,) in found]
        digest.update(canonical({"table": name, "columns": [column for (column,) in found]}))
        texts = " || ".join(f"(typeof({column}) = 'text')" for column in columns)
        values = ", ".join(f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns)
        # NOT INDEXED: in the order of the table, which a copy shares.
        ((count,),) = await conn.execute_fetchall(
            f"SELECT count(abathur_digest({texts}, {values})) FROM {quoted(name)} NOT INDEXED"
        )
        rows[name] = count
    schema = {name: normalized(found.sql) for name, found in (await read_schema(conn)).items()}
    if progress:
        progress(done % _STEP)
    return Content(digest.hexdigest(), sha256(canonical(schema)), rows)


def difference(wanted: Content, found: Content) -> str:
    """Say in what two contents differ, the second one being what was found."""
    tables = [name for name in wanted.rows.keys() | found.rows.keys() if wanted.rows.get(name) != found.rows.get(name)]
    if tables:
        return ", ".join(f"{name}: {found.rows.get(name)} rows of {wanted.rows.get(name)}" for name in sorted(tables))
    return "another schema" if wanted.schema != found.schema else "as many rows, but other ones"
