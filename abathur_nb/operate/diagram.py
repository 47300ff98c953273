"""The live schema as a diagram of entities and relations: its tables, their columns, keys and references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import aiosqlite

from abathur_nb.operate.arrangement import Box, Link
from abathur_nb.operate.drawing import draw
from abathur_nb.sql import load_queries
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
    """Hold the columns of a live schema and the diagram of it; a notebook shows it as SVG.

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


async def read_diagram(conn: aiosqlite.Connection, rows: dict[str, int]) -> Diagram:
    """Read the live schema and draw it; ``rows`` are those of each table. Read-only."""
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
    links = [Link(table, name, *target[:2]) for (table, name), target in refers.items()]
    alt = _in_words(every, links)
    return Diagram(every, draw(_boxes(every, rows), links, alt), alt)


def _boxes(columns: Sequence[TableColumn], rows: dict[str, int]) -> list[Box]:
    lines: dict[str, list[tuple[str, str, str, bool]]] = {}
    for column in columns:
        marks = "P" * column.primary_key + "F" * bool(column.refers_to) + "U" * column.unique
        lines.setdefault(column.table, []).append((marks, column.column, column.type, column.required))
    return [Box(table, counted(rows[table], "row") if table in rows else "", tuple(of)) for table, of in lines.items()]


def _in_words(columns: Sequence[TableColumn], links: Sequence[Link]) -> str:
    tables = list(dict.fromkeys(column.table for column in columns))
    refers = "; ".join(f"{link.table}.{link.column} refers to {link.parent}.{link.parent_column}" for link in links)
    words = f"Diagram of {counted(len(tables), 'table')}: {', '.join(tables)}. {refers or 'None refers to another'}."
    return printable(words).replace("\n", "\\n")
