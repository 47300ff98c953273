"""Explore: what is in a database, for a person who wants to look, as frames that one can go on with."""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import aiosqlite

from abathur_nb.config.parameters import check_ranges
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ConfigurationError, InvalidValueError
from abathur_nb.measure.growth import Excerpt, Growth, read_growth
from abathur_nb.measure.sampling import in_time
from abathur_nb.report import Check, Report, run_check
from abathur_nb.runbook.memories import MemoryHistory, Namespaces, as_json
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.schema import expected_columns, expected_tables, quoted, read_schema
from abathur_nb.store.sql import DATA, load_queries
from abathur_nb.store.target import refusal
from abathur_nb.store.values import MAX_BYTES, check_name, prefix_range, spellings
from abathur_nb.text import counted, printable, shown

if TYPE_CHECKING:
    import pandas as pd


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


_TITLE = "explore"
_LARGEST = 256 * 1024  # bytes of a value that is read whole
PART_S = 60.0  # that the reading of one part may take: its transaction keeps SQLite from resetting the WAL


@dataclass(slots=True)
class Exploration:
    """Hold what was read of one snapshot: each part a table or a picture in a notebook, and a frame by ``to_frame()``.

    ``report`` says for each part how much there is, and fails where one could not be read; that part is empty then.
    """

    report: Report
    rows: dict[str, int] = field(default_factory=dict)
    sessions: Excerpt = Excerpt()
    session: Excerpt = Excerpt()
    namespaces: Namespaces = Namespaces()
    memories: Excerpt = Excerpt()
    memory: MemoryHistory = MemoryHistory()
    audit: Excerpt = Excerpt()
    growth: Growth = field(default_factory=lambda: Growth({}))
    diagram: Diagram = Diagram()

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: the rows of each table."""
        return {"rows": dict(self.rows)} if self.rows else {}


class _Wanted(NamedTuple):
    prefix: str
    prefix_end: str
    key: str | None
    session: str | None
    limit: int


async def explore(
    settings: Settings,
    *,
    namespace: str | None = None,
    key: str | None = None,
    session: str | None = None,
    limit: int = 50,
) -> Exploration:
    """Look at the sessions, the memories, the audit trail, the schema and the growth of a database. Read-only.

    ``namespace`` is a literal prefix for the memories and the trail. ``key`` names the memory whose history is shown,
    by default the one with the most versions; ``session`` the session that is shown, by default the last used.
    ``limit`` bounds every listing, and of a value of more than 256 KiB only the beginning is read. All is of one
    snapshot. Raises ConfigurationError, naming every fault.
    """
    wanted = [_wanted(n, k, s, limit) for n, k, s in spellings(namespace, key, session)]
    found = [await _explored(settings, given) for given in wanted]
    return min(found, key=lambda one: sum(check.status != "pass" for check in one.report.checks))


async def _explored(settings: Settings, wanted: _Wanted) -> Exploration:
    if refused := await refusal(_TITLE, settings):
        return Exploration(refused)
    found = Exploration(Report(_TITLE, (), subject=str(settings.db_path)))
    try:
        async with connect(settings.db_path, settings=settings) as conn:
            conn.text_factory = _read
            await conn.execute_fetchall("BEGIN")
            checks = [
                await run_check(name, lambda read=read: in_time(conn, PART_S, read()), remedy="run validate.ipynb")  # type: ignore[misc]
                for name, read in _parts(conn, wanted, found)
            ]
            await conn.rollback()
    except (sqlite3.Error, OSError, AbathurError) as error:
        noted = explain_error(settings.db_path, error)
        checks = [Check("database_file", "error", "opens read-only", f"could not run: {noted.observed}", noted.remedy)]
    found.report = Report(_TITLE, tuple(checks), subject=str(settings.db_path))
    return found


def _read(text: bytes) -> str:
    return text.decode(errors="backslashreplace")  # what is not UTF-8 is shown, and validate's finding


def _wanted(namespace: object, key: object, session: object, limit: object) -> _Wanted:
    faults: list[str] = []
    start, end = "", ""
    try:
        start, end = prefix_range("" if namespace is None else namespace)  # type: ignore[arg-type]
    except InvalidValueError:
        faults.append(f"namespace: expected up to 512 printable characters, found {shown(namespace)}")
    for name, value in (("key", key), ("session", session)):
        try:
            check_name(name, value, optional=True)
        except InvalidValueError as error:
            faults.append(f"{name}: {error.fault}")
    try:
        check_ranges(limit=limit)
    except ConfigurationError as error:
        faults += error.faults
    if faults:
        raise ConfigurationError(faults)
    return _Wanted(start, end, key, session, limit)  # type: ignore[arg-type]


def _parts(
    conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration
) -> Sequence[tuple[str, Callable[[], Awaitable[Check]]]]:
    return [
        ("schema", lambda: _schema(conn, found)),
        ("sessions", lambda: _sessions(conn, wanted, found)),
        ("session", lambda: _session(conn, wanted, found)),
        ("namespaces", lambda: _namespaces(conn, wanted, found)),
        ("memories", lambda: _memories(conn, wanted, found)),
        ("memory", lambda: _memory(conn, wanted, found)),
        ("audit_trail", lambda: _audit(conn, wanted, found)),
        ("growth", lambda: _growth(conn, found)),
    ]


async def _fetch(conn: aiosqlite.Connection, name: str, wanted: _Wanted, **more: object) -> list[dict[str, Any]]:
    given = {**wanted._asdict(), "largest": _LARGEST, **more}
    return [dict(row) for row in await conn.execute_fetchall(load_queries("explore.sql")[name].sql, given)]


def _excerpt(rows: Sequence[dict[str, Any]], caption: str, nothing: str, *hidden: str) -> Excerpt:
    columns = tuple(rows[0]) if rows else ()
    return Excerpt(columns, tuple(tuple(row.values()) for row in rows), caption if rows else "", nothing, {*hidden})


def _of(shown_rows: int, total: int, words: str) -> str:
    return f"{total:,} {words}" + (f", of which {shown_rows:,} are shown" if shown_rows < total else "")


def _seen(check_id: str, observed: str, missing: str = "") -> Check:
    """Return the check of a part that was read; ``missing`` names what was asked for and is not there."""
    return Check.that(
        check_id,
        not missing,
        expected="what was asked for is there" if missing else "can be read",
        observed=missing or observed,
        remedy="name another one, or none: -p NAME VALUE",
        otherwise="warn",
    )


async def _schema(conn: aiosqlite.Connection, found: Exploration) -> Check:
    live = await read_schema(conn)
    for name in (item.name for item in live.values() if item.type == "table"):
        ((count,),) = await conn.execute_fetchall(f"SELECT count(*) FROM {quoted(name)}")
        found.rows[name] = int(count)
    found.diagram = await read_diagram(conn)
    references = sum(bool(column.refers_to) for column in found.diagram.columns)
    tables, rows = counted(len(found.rows), "table"), counted(sum(found.rows.values()), "row")
    return _seen("schema", f"{tables}, {counted(references, 'reference')}, {rows}")


async def _sessions(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    rows = await _fetch(conn, "sessions", wanted)
    noted = _of(len(rows), found.rows.get("sessions", len(rows)), "sessions, the last used first")
    found.sessions = _excerpt(
        rows, noted, "no session yet", "checkpoints", "created_at", "terminated_at", "archived_at"
    )
    return _seen("sessions", noted)


async def _session(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    name = wanted.session or (found.sessions.rows[0][0] if found.sessions.rows else None)
    rows = await _fetch(conn, "session_content", wanted, session=name, largest=MAX_BYTES)
    if not rows:
        found.session = Excerpt(nothing="no such session" if wanted.session else "no session yet")
        return _seen("session", "none yet", f"no session {shown(wanted.session)}" if wanted.session else "")
    number, members = _members(rows[0]["state"], wanted.limit, iter)
    events, happened = _members(rows[0]["events"], wanted.limit, reversed)
    noted = f"session {name}: {counted(number, 'value')} of its state, {_of(wanted.limit, events, 'events')}"
    # Bounded as everything is, though the session was read whole.
    texts = (*(("state", *member) for member in members), *(("event", *member) for member in happened))
    found.session = Excerpt(("part", "name", "value"), texts, noted, "an empty session")
    return _seen("session", noted)


def _members(stored: object, limit: int, order: Callable[[Any], Iterator[Any]]) -> tuple[int, list[tuple[str, str]]]:
    """Return how many members a value has, and the first of them in this order: a session can hold millions."""
    value = as_json("none, or too large" if stored is None else stored)
    value = value if isinstance(value, dict | list) else [value]
    names, members = (value, value.values()) if isinstance(value, dict) else (range(1, len(value) + 1), value)
    pairs = islice(zip(order(names), order(members), strict=True), limit)
    return len(value), [(str(name), json.dumps(member, ensure_ascii=False)) for name, member in pairs]


async def _namespaces(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    rows = await _fetch(conn, "namespaces", wanted)
    nothing = f"no namespace begins with {shown(wanted.prefix)}" if wanted.prefix else "no memory yet"
    found.namespaces = Namespaces.of(rows, wanted.limit, nothing)
    return _seen("namespaces", found.namespaces.caption, nothing if wanted.prefix and not rows else "")


async def _memories(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    rows = await _fetch(conn, "current_memories", wanted)
    # A tree's first level holds all that is below it.
    total = sum(branch.memories for branch in found.namespaces.found if len(branch.path) == 1)
    noted = _of(len(rows), max(total, len(rows)), "current memories, the last updated first")
    found.memories = _excerpt(rows, noted, "no current memory", "memory_type", "bytes", "created_by", "created_at")
    return _seen("memories", noted)


async def _memory(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    named = await _fetch(conn, "most_versions", wanted)
    if not named:
        noted = f"no memory has the key {shown(wanted.key)} there" if wanted.key else ""
        found.memory = MemoryHistory.of("", "", (), 0, wanted.limit)
        return _seen("memory", "none there", noted)
    namespace, key, total = named[0].values()
    # One more than are shown: the oldest one shown is held against it.
    rows = await _fetch(conn, "memory_versions", wanted, namespace=namespace, key=key, limit=wanted.limit + 1)
    found.memory = MemoryHistory.of(namespace, key, rows, total, wanted.limit)
    return _seen("memory", f"{found.memory.versions.caption}; {len(found.memory.changes.rows):,} changes")


async def _audit(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    words, total = "audit rows, the newest first", found.rows.get("audit", 0)
    if wanted.prefix:
        words = f"audit rows of namespaces that begin with {shown(wanted.prefix)}, the newest first"
        ((total,),) = (row.values() for row in await _fetch(conn, "count_audit_of_namespaces", wanted))
    rows = await _fetch(conn, "audit_of_namespaces" if wanted.prefix else "audit", wanted)
    noted = _of(len(rows), max(total, len(rows)), words)
    found.audit = _excerpt(rows, noted, "no audit row", "memory_operation_type", "memory_entry_id", "result", "id")
    return _seen("audit_trail", noted)


async def _growth(conn: aiosqlite.Connection, found: Exploration) -> Check:
    found.growth = await read_growth(conn)
    days = sorted({day for counts in found.growth.days.values() for day in counts})
    noted = f"rows of {len(days):,} days" + (f", {days[0]} to {days[-1]}" if days else "")
    undated = found.growth.undated
    noted += f"; {counted(undated, 'row')} without a valid timestamp: run validate.ipynb" if undated else ""
    return _seen("growth", noted)
