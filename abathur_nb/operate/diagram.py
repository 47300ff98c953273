"""The live schema as a table of its columns, keys and references, and the shipped diagram of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import aiosqlite

from abathur_nb.expected import expected_columns, expected_tables
from abathur_nb.sql import DATA, load_queries
from abathur_nb.wording import counted, printable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagram", "TableColumn", "read_diagram"]


class TableColumn(NamedTuple):
    """Hold a column of a live table; ``refers_to`` is empty or ``table.column``, ``on_delete`` what a deletion does."""

    table: str
    column: str
    type: str
    required: bool
    primary_key: bool
    unique: bool
    refers_to: str = ""
    on_delete: str = ""


@dataclass(frozen=True, slots=True)
class Diagram:
    """Hold the columns of a live schema and, where they are those of ``sql/``, the shipped picture as SVG.

    ``alt`` says in words what the picture shows.
    """

    columns: tuple[TableColumn, ...] = ()
    svg: str = ""
    alt: str = "could not be read: the report says why"

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a column, in the order of the schema."""
        import pandas as pd

        return pd.DataFrame(self.columns, columns=list(TableColumn._fields))

    def __str__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.alt} if self.svg else {"text/plain": self.alt}


async def read_diagram(conn: aiosqlite.Connection) -> Diagram:
    """Read the live schema. Read-only."""
    queries = load_queries("explore.sql")
    found = [await conn.execute_fetchall(queries[name].sql) for name in ("columns", "references", "unique_columns")]
    columns, references, uniques = ([tuple(row) for row in part] for part in found)
    keys: dict[str, str] = {}  # SQLite tells names of tables apart only by more than their case
    for table, name, _, _, in_key in columns:
        if in_key:
            keys.setdefault(table.casefold(), name)
    names = {table.casefold(): table for table, *_ in columns}
    refers = {}
    for table, name, parent, parent_column, on_delete in references:
        # Without a column of its own a reference is to the primary key.
        column = parent_column or keys.get(parent.casefold(), "rowid")
        refers[table, name] = (names.get(parent.casefold(), parent), column, on_delete)
    every = tuple(
        TableColumn(
            *(table, name, kind, bool(required), bool(in_key), (table, name) in uniques),
            *(".".join(refers[table, name][:2]), refers[table, name][2]) if (table, name) in refers else (),
        )
        for table, name, kind, required, in_key in columns
    )
    tables = list(dict.fromkeys(names.values()))
    links = [f"{column.table}.{column.column} refers to {column.refers_to}" for column in every if column.refers_to]
    words = f"Diagram of {counted(len(tables), 'table')}: {', '.join(tables)}."
    alt = printable(f"{words} {'; '.join(links) or 'None refers to another'}.").replace("\n", "\\n")
    svg = (DATA / "sql" / "schema.svg").read_text(encoding="utf-8").rstrip()
    shown = {(table, column.name) for table in expected_tables() for column in expected_columns(table)}
    is_shown = shown == {column[:2] for column in every} and f">{alt}</title>" in svg
    return Diagram(every, svg if is_shown else "", alt)
