"""Validate: whether a database is sound, has this schema and holds valid data (the runbook's sections 2.7 and 4)."""

import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from typing import Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError
from abathur_nb.health.checks import OTHERS, file_checks
from abathur_nb.report import Report
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.schema import SchemaObject, expected_objects, quoted, read_schema
from abathur_nb.store.sql import load_queries, normalized
from abathur_nb.store.target import identify, refusal, to_be_repaired
from abathur_nb.text import Shown, Table, counted, printable

# Troubleshoot does not repair objects that are not in sql/, or values that only a person can correct.
_BY_HAND = (OTHERS, "open_files", "values", "required_values", "timestamps", "moments")
_MOST = 200  # tables that are shown
_BAR = 24  # characters of the longest bar


async def validate_database(settings: Settings) -> Report:
    """Report whether the database is sound and complete, has this schema, and holds valid values. Read-only.

    All checks see one snapshot; each reports what it expected and observed. SQLite may leave an empty ``-wal`` and a
    ``-shm`` beside the file.
    """
    report = await refusal("validate", settings)
    if report:
        return report
    words = tuple(
        c if c.id in _BY_HAND else to_be_repaired(c, settings) for c in await file_checks(settings, unrepaired="")
    )
    return Report("validate", words, subject=str(settings.db_path))


@dataclass(frozen=True, slots=True)
class Schema(Shown):
    """Hold a live schema; a notebook shows each table's SQL with its comments, and its indexes, folded.

    ``rows`` counts each table's rows. ``sizes`` are bytes by table or index, empty if SQLite has no dbstat.
    ``note`` says what is missing.
    """

    objects: Mapping[str, SchemaObject]
    rows: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return ";\n\n".join(found.sql for found in self.objects.values()) + ";"

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: each object's SQL without layout and comments, rows and sizes.

        Empty for a schema that was planned or could not be read.
        """
        if not self.rows:
            return {}
        sql = {name: normalized(found.sql) for name, found in self.objects.items()}
        return {"schema": sql, "rows": dict(self.rows), "sizes": dict(self.sizes)}

    def by_size(self) -> Table:
        """Return the tables, largest first: their rows, the kB of rows and of indexes, and a bar of both.

        If this SQLite has no dbstat, the bar shows the number of rows.
        """
        of_indexes = dict.fromkeys(self.rows, 0)
        for name, size in self.sizes.items():
            index = self.objects.get(name)
            table = index.table if index else name.removeprefix("sqlite_autoindex_").rpartition("_")[0]
            if table != name and table in of_indexes:
                of_indexes[table] += size
        own = {table: self.sizes.get(table, 0) if self.sizes else rows for table, rows in self.rows.items()}
        both = {table: own[table] + of_indexes[table] for table in own}
        step = max(both.values(), default=0) / _BAR or 1
        rows = []
        for table in sorted(own, key=lambda table: (-both[table], -self.rows[table])):
            solid, whole = round(own[table] / step), round(both[table] / step)
            kb = (round(own[table] / 1000), round(of_indexes[table] / 1000)) if self.sizes else ()
            rows.append((table, self.rows[table], *kb, "█" * solid + "░" * (whole - solid) or "▏"))
        heads = ("kB of rows", "kB of indexes", "█ rows ░ indexes") if self.sizes else ("█ rows",)
        return Table(("table", "rows", *heads), tuple(rows), "no table could be read: the report says why")

    def to_html(self) -> str:
        """Return the schema as an HTML fragment, one folded part for each table."""
        parts = [f"<p>{escape(printable(self.note))}</p>"] if self.note else []
        tables = [found for found in self.objects.values() if found.type == "table"]
        for table in tables[:_MOST]:
            indexes = [found for found in self.objects.values() if found.type == "index" and found.table == table.name]
            counts = f"{counted(self.rows[table.name], 'row')}, " if table.name in self.rows else ""
            counts += f"{self.sizes[table.name] / 1000:,.0f} kB, " if table.name in self.sizes else ""
            counts += f"{len(indexes)} indexes"
            sql = ";\n\n".join([table.sql, *(index.sql for index in indexes)])
            parts.append(
                f"<details><summary><b>{escape(printable(table.name))}</b> — {counts}</summary>"
                f"<pre style='font-family:monospace;text-align:left'>{escape(printable(sql))};</pre></details>"
            )
        if len(tables) > _MOST:
            parts.append(f"<p>and {len(tables) - _MOST:,} more tables</p>")
        return "".join(parts)


async def show_schema(settings: Settings, *, planned: bool = False) -> Schema:
    """Read the live schema, with the rows and the size of each table; or, if ``planned``, the schema of ``sql/``.

    Read-only. Where there is no database, or not all of it can be read, ``note`` says why.
    """
    if planned:
        return Schema(expected_objects(), note="not made yet: this is the schema of sql/")
    target = await identify(settings, refuses=())
    if target.state != "present":
        return Schema({}, note=target.check.observed)
    objects: dict[str, SchemaObject] = {}
    rows, sizes = {}, {}
    try:
        async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
            objects = await read_schema(conn)
            for name in (found.name for found in objects.values() if found.type == "table"):
                (count,) = await conn.execute_fetchall(f"SELECT count(*) FROM {quoted(name)}")
                rows[name] = int(count[0])
            with suppress(sqlite3.OperationalError):  # this SQLite has no dbstat
                found = await conn.execute_fetchall(load_queries("inspect.sql")["sizes"].sql)
                sizes = {row["name"]: row["bytes"] for row in found}
    except (sqlite3.Error, OSError, AbathurError) as error:
        return Schema(objects, rows, note=f"not all could be read: {explain_error(settings.db_path, error)}")
    return Schema(objects, rows, sizes)
