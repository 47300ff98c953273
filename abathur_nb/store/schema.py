"""The schema of a live database: read, compared with the one in ``sql/``, and shown as SQL."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from sqlite3 import Error as SQLiteError
from sqlite3 import OperationalError
from typing import Any

import aiosqlite

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.expected import SchemaObject, expected_columns, expected_objects, expected_tables
from abathur_nb.store.sql import load_queries, normalized, tokens
from abathur_nb.store.target import identify
from abathur_nb.text import counted, printable, some

_MOST = 200  # tables that are shown


@dataclass(frozen=True, slots=True)
class Differences:
    """Hold how a live schema differs from the one in ``sql/``, by the names of its objects."""

    missing: tuple[str, ...]
    altered: tuple[str, ...]
    extra: tuple[str, ...]

    def __str__(self) -> str:
        named = {"missing": self.missing, "altered": self.altered, "extra": self.extra}
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in named.items() if names)

    @classmethod
    def between(cls, live: Mapping[str, SchemaObject], kinds: tuple[str, ...] = ("table", "index")) -> "Differences":
        """Compare the objects of these kinds with ``sql/``, ignoring only layout, comments and quotes around names."""
        expected = {name: found for name, found in expected_objects().items() if found.type in kinds}
        live = {name: found for name, found in live.items() if found.type in kinds}
        altered = (
            name
            for name in expected.keys() & live.keys()
            if (live[name].type, live[name].table) != (expected[name].type, expected[name].table)
            # Texts that are the same need no tokenizing, and as a rule they are.
            or (live[name].sql != expected[name].sql and _plain(live[name].sql) != _plain(expected[name].sql))
        )
        return cls(
            tuple(sorted(expected.keys() - live.keys())),
            tuple(sorted(altered)),
            tuple(sorted(live.keys() - expected.keys())),
        )


async def read_schema(conn: aiosqlite.Connection) -> dict[str, SchemaObject]:
    """Return the named objects of a live schema, ours by their names in ``sql/``. Read-only.

    SQLite's own (``sqlite_…``) are left out.
    """
    found = {}
    for kind, name, table, sql in await conn.execute_fetchall(load_queries("inspect.sql")["schema"].sql):
        one = SchemaObject(kind, _known_as(name), _known_as(table), sql or "")
        found[f"trigger {name}" if kind == "trigger" else one.name] = one  # one may have the name of a table
    return found


def _plain(sql: str) -> list[str]:
    """Return the tokens of SQL, names of ``sql/`` without quotes: ALTER TABLE adds them, to a name given back too."""
    names = {*expected_tables(), *(column.name for table in expected_tables() for column in expected_columns(table))}
    return [token.strip('"') if token[:1] == '"' and token[1:-1] in names else token for token in tokens(sql)]


def _known_as(name: Any) -> Any:
    # To SQLite a name in other capitals is the same, as far as it is ASCII. Written by hand, it may not be a text.
    plain = name.lower() if isinstance(name, str) and name.isascii() else name
    return plain if plain in expected_objects() else name


def not_ours(live: Mapping[str, SchemaObject]) -> str:
    """Name the triggers, views and virtual tables of a schema, of which ``sql/`` has none."""
    return some([f"{found.type} {found.name}" for found in live.values() if found.type not in ("table", "index")])


def quoted(name: str) -> str:
    """Return a name as SQL takes it whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Schema:
    """Hold a live schema; a notebook shows each table's SQL with its comments, and its indexes, folded.

    ``rows`` counts each table's rows. ``sizes`` are bytes by table or index, empty where this SQLite can't tell.
    ``note`` says what is missing.
    """

    objects: Mapping[str, SchemaObject]
    rows: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return ";\n\n".join(found.sql for found in self.objects.values()) + ";"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.to_html(), "text/plain": str(self)}

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: each object's SQL without layout and comments, rows and sizes.

        Nothing of a schema that was only planned or could not be read.
        """
        if not self.rows:
            return {}
        sql = {name: normalized(found.sql) for name, found in self.objects.items()}
        return {"schema": sql, "rows": dict(self.rows), "sizes": dict(self.sizes)}

    def to_html(self) -> str:
        """Return the schema as an HTML fragment, one folded part for each table."""
        parts = [f"<p>{escape(printable(self.note))}</p>"] if self.note else []
        tables = [found for found in self.objects.values() if found.type == "table"]
        for table in tables[:_MOST]:
            indexes = [found for found in self.objects.values() if found.type == "index" and found.table == table.name]
            counts = f"{counted(self.rows[table.name], 'row')}, " if table.name in self.rows else ""
            counts += f"{self.sizes[table.name] / 1024:,.0f} KiB, " if table.name in self.sizes else ""
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
    """Read the live schema, with the rows and the size of each table; or, ``planned``, what ``sql/`` would make.

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
        async with connect(settings.db_path, settings=settings) as conn:
            objects = await read_schema(conn)
            for name in (found.name for found in objects.values() if found.type == "table"):
                (count,) = await conn.execute_fetchall(f"SELECT count(*) FROM {quoted(name)}")
                rows[name] = int(count[0])
            with suppress(OperationalError):  # a SQLite without dbstat
                found = await conn.execute_fetchall(load_queries("inspect.sql")["sizes"].sql)
                sizes = {row["name"]: row["bytes"] for row in found}
    except (SQLiteError, OSError, AbathurError) as error:
        return Schema(objects, rows, note=f"not all could be read: {explain_error(settings.db_path, error)}")
    return Schema(objects, rows, sizes)
