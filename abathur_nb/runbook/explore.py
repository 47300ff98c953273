"""Explore: what is in a database, for a person who wants to look, as frames that one can go on with."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import aiosqlite

from abathur_nb.backups.change import check_arguments
from abathur_nb.config.parameters import check_ranges
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ConfigurationError, InvalidValueError
from abathur_nb.measure.snapshot import any_text, in_time
from abathur_nb.report import Check, Report, run_check
from abathur_nb.runbook.memories import Excerpt, as_json, memory_history, namespace_tree
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.schema import expected_columns, expected_tables, quoted, read_schema
from abathur_nb.store.sql import DATA, load_queries
from abathur_nb.store.target import refusal
from abathur_nb.store.values import MAX_BYTES, check_name, prefix_range, spellings
from abathur_nb.text import Table, counted, printable, shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Diagram:
    """Hold the columns of a live schema and, where they are those of ``sql/``, the shipped picture as SVG.

    ``alt`` says in words what the picture shows.
    """

    columns: Excerpt = Excerpt()
    svg: str = ""
    alt: str = "could not be read: the report says why"

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a column, in the order of the schema."""
        return self.columns.to_frame()

    def __str__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.alt} if self.svg else {"text/plain": self.alt}


async def read_diagram(conn: aiosqlite.Connection) -> Diagram:
    """Read the live schema. Read-only."""
    found = [dict(row) for row in await conn.execute_fetchall(load_queries("explore.sql")["columns"].sql)]
    tables = list(dict.fromkeys(row["table"] for row in found))
    links = [f"{row['table']}.{row['column']} refers to {row['refers_to']}" for row in found if row["refers_to"]]
    words = f"Diagram of {counted(len(tables), 'table')}: {', '.join(tables)}."
    alt = printable(f"{words} {'; '.join(links) or 'None refers to another'}.").replace("\n", "\\n")
    svg = (DATA / "sql" / "schema.svg").read_text(encoding="utf-8").rstrip()
    drawn = {(table, column.name) for table in expected_tables() for column in expected_columns(table)}
    is_drawn = drawn == {(row["table"], row["column"]) for row in found} and f">{alt}</title>" in svg
    return Diagram(_excerpt(found, "", "no table"), svg if is_drawn else "", alt)


_AT_ONCE = 50_000  # rows fetched


async def read_growth(conn: aiosqlite.Connection) -> tuple[Excerpt, int]:
    """Count the rows of each table by the day on which they came, and those with an invalid timestamp. Read-only.

    Counted are the rows that are there now, not those removed since.
    """
    counts: Counter[tuple[str, str]] = Counter()
    async with conn.execute(load_queries("explore.sql")["days"].sql) as cursor:
        while rows := await cursor.fetchmany(_AT_ONCE):
            counts.update((row[0], row[1]) for row in rows)
    days: dict[str, Counter[date]] = {}
    undated = 0
    for (table, text), count in counts.items():
        try:
            days.setdefault(table, Counter())[date.fromisoformat(text)] += count
        except (ValueError, TypeError):
            undated += count
    return growth_of({table: found for table, found in days.items() if found}, undated), undated


def growth_of(days: Mapping[str, Mapping[date, int]], undated: int = 0) -> Excerpt:
    """Return how many rows came on each day, by table, and how many there were by then; a summary is shown."""
    rows, shown_rows = [], []
    for table, found in days.items():
        came = [found[day] for day in sorted(found)]
        rows += [(table, *row) for row in zip(sorted(found), came, accumulate(came), strict=True)]
        busiest = max(sorted(found), key=lambda day: found[day])
        ends = map(str, (min(found), max(found), busiest))
        shown_rows.append((table, f"{sum(came):,}", *ends, f"{found[busiest]:,}"))
    caption = f"{counted(undated, 'row')} without a valid timestamp" if undated else ""
    heads = ("table", "rows", "first day", "last day", "busiest day", "rows that day")
    summary = Table(heads, tuple(shown_rows), "no row yet")
    return Excerpt(("table", "day", "rows", "total"), tuple(rows), caption, "no row yet", table=summary)


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
    namespaces: Excerpt = Excerpt()
    memories: Excerpt = Excerpt()
    memory: Excerpt = Excerpt()
    changes: Excerpt = Excerpt()
    audit: Excerpt = Excerpt()
    growth: Excerpt = Excerpt()
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


def _wanted(namespace: Any, key: Any, session: Any, limit: Any) -> _Wanted:
    faults: list[str] = []
    start = end = ""
    for name, value in (("namespace", namespace), ("key", key), ("session", session)):
        try:
            if name == "namespace":
                start, end = prefix_range("" if value is None else value)
            else:
                check_name(name, value, optional=True)
        except InvalidValueError as error:
            faults.append(f"{name}: {error.fault}")
    try:
        check_ranges(limit=limit)
    except ConfigurationError as error:
        faults += error.faults
    check_arguments(*faults)
    return _Wanted(start, end, key, session, limit)


async def _explored(settings: Settings, wanted: _Wanted) -> Exploration:
    subject = str(settings.db_path)
    if refused := await refusal(_TITLE, settings):
        return Exploration(refused)
    found = Exploration(Report(_TITLE, (), subject=subject))
    try:
        async with connect(settings.db_path, settings.busy_timeout_ms) as conn:
            conn.text_factory = any_text
            await conn.execute_fetchall("BEGIN")
            checks = [await _read_part(conn, name, wanted, found) for name in _PARTS]
            await conn.rollback()
    except (sqlite3.Error, OSError, AbathurError) as error:
        noted = explain_error(settings.db_path, error)
        checks = [Check("database_file", "error", "opens read-only", f"could not run: {noted.observed}", noted.remedy)]
    found.report = Report(_TITLE, tuple(checks), subject=subject)
    return found


async def _read_part(conn: aiosqlite.Connection, name: str, wanted: _Wanted, found: Exploration) -> Check:
    """Read one part into ``found``, and return its check: how much there is, or what was asked for and is missing."""

    async def read() -> Check:
        observed, missing = await in_time(conn, PART_S, _PARTS[name](conn, wanted, found))
        expected = "what was asked for is there" if missing else "can be read"
        remedy = "name another one, or none: -p NAME VALUE"
        return Check.that(name, not missing, expected, missing or observed, remedy, "warn")

    return await run_check(name, read, remedy="run validate.ipynb")


async def _fetch(conn: aiosqlite.Connection, name: str, wanted: _Wanted, **more: object) -> list[dict[str, Any]]:
    given = {**wanted._asdict(), "largest": _LARGEST, **more}
    return [dict(row) for row in await conn.execute_fetchall(load_queries("explore.sql")[name].sql, given)]


def _excerpt(rows: Sequence[Mapping[str, Any]], caption: str, nothing: str, *hidden: str) -> Excerpt:
    """Return these rows of a query as an excerpt."""
    columns = tuple(rows[0]) if rows else ()
    return Excerpt(columns, tuple(tuple(row.values()) for row in rows), caption if rows else "", nothing, {*hidden})


def _of(shown_rows: int, total: int, words: str) -> str:
    return words + (f", of which {shown_rows:,} are shown" if shown_rows < total else "")


# Each part fills its field, and returns how much there is, and what was asked for and is missing.
_Seen = tuple[str, str]


async def _schema(conn: aiosqlite.Connection, _: _Wanted, found: Exploration) -> _Seen:
    live = await read_schema(conn)
    for name in (item.name for item in live.values() if item.type == "table"):
        ((count,),) = await conn.execute_fetchall(f"SELECT count(*) FROM {quoted(name)}")
        found.rows[name] = int(count)
    found.diagram = await read_diagram(conn)
    tables, rows = counted(len(found.rows), "table"), counted(sum(found.rows.values()), "row")
    return f"{tables}, {rows}", ""


async def _sessions(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "sessions", wanted)
    total = found.rows.get("sessions", len(rows))
    noted = _of(len(rows), total, f"{counted(total, 'session')}, the last used first")
    hidden = ("checkpoints", "created_at", "terminated_at", "archived_at")
    found.sessions = _excerpt(rows, noted, "no session yet", *hidden)
    return noted, ""


async def _session(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    name = wanted.session or (found.sessions.rows[0][0] if found.sessions.rows else None)
    rows = await _fetch(conn, "session_content", wanted, session=name, largest=MAX_BYTES)
    if not rows:
        found.session = Excerpt(nothing="no such session" if wanted.session else "no session yet")
        return "none yet", f"no session {shown(wanted.session)}" if wanted.session else ""
    number, members = _members(rows[0]["state"], wanted.limit, iter)
    events, happened = _members(rows[0]["events"], wanted.limit, reversed)
    listed = _of(wanted.limit, events, counted(events, "event"))
    noted = f"session {name}: {counted(number, 'value')} of its state, {listed}"
    texts = (*(("state", *member) for member in members), *(("event", *member) for member in happened))
    found.session = Excerpt(("part", "name", "value"), texts, noted, "an empty session")
    return noted, ""


def _members(stored: object, limit: int, order: Callable[[Any], Iterator[Any]]) -> tuple[int, list[tuple[str, str]]]:
    """Return how many members a value has, and the first of them in this order: a session can hold millions."""
    value = as_json("none, or too large" if stored is None else stored)
    value = value if isinstance(value, dict | list) else [value]
    names, members = (value, value.values()) if isinstance(value, dict) else (range(1, len(value) + 1), value)
    pairs = islice(zip(order(names), order(members), strict=True), limit)
    return len(value), [(str(name), json.dumps(member, ensure_ascii=False)) for name, member in pairs]


async def _namespaces(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "namespaces", wanted)
    nothing = f"no namespace begins with {shown(wanted.prefix)}" if wanted.prefix else "no memory yet"
    found.namespaces = namespace_tree(rows, wanted.limit, nothing)
    return found.namespaces.caption or "none yet", nothing if wanted.prefix and not rows else ""


async def _memories(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "current_memories", wanted)
    # The first level of the tree holds all that is below it.
    total = max(len(rows), sum(memories for _, depth, _, memories, *_ in found.namespaces.rows if depth == 1))
    words = f"{total:,} current {'memory' if total == 1 else 'memories'}, the last updated first"
    noted = _of(len(rows), total, words)
    found.memories = _excerpt(rows, noted, "no current memory", "memory_type", "bytes", "created_by", "created_at")
    return noted, ""


async def _memory(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    named = await _fetch(conn, "most_versions", wanted)
    if not named:
        found.memory = found.changes = Excerpt(nothing="no version")
        return "none there", f"no memory has the key {shown(wanted.key)} there" if wanted.key else ""
    namespace, key, total = named[0].values()
    # One more than are shown: the oldest one shown is compared with it.
    rows = await _fetch(conn, "memory_versions", wanted, namespace=namespace, key=key, limit=wanted.limit + 1)
    found.memory, found.changes = memory_history(namespace, key, rows, total, wanted.limit)
    return f"{found.memory.caption}; {counted(len(found.changes.rows), 'change')}", ""


async def _audit(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    total, of = found.rows.get("audit", 0), ""
    if wanted.prefix:
        of = f" of namespaces that begin with {shown(wanted.prefix)}"
        ((total,),) = (row.values() for row in await _fetch(conn, "count_audit_of_namespaces", wanted))
    rows = await _fetch(conn, "audit_of_namespaces" if wanted.prefix else "audit", wanted)
    total = max(total, len(rows))
    noted = _of(len(rows), total, f"{counted(total, 'audit row')}{of}, the newest first")
    found.audit = _excerpt(rows, noted, "no audit row", "memory_operation_type", "memory_entry_id", "result", "id")
    return noted, ""


async def _growth(conn: aiosqlite.Connection, _: _Wanted, found: Exploration) -> _Seen:
    found.growth, undated = await read_growth(conn)
    days = sorted({day for _, day, *_ in found.growth.rows})
    noted = f"rows of {counted(len(days), 'day')}" + (f", {days[0]} to {days[-1]}" if days else "")
    return noted + (f"; {counted(undated, 'row')} without a valid timestamp: run validate.ipynb" if undated else ""), ""


_PARTS = {
    "schema": _schema,
    "sessions": _sessions,
    "session": _session,
    "namespaces": _namespaces,
    "memories": _memories,
    "memory": _memory,
    "audit_trail": _audit,
    "growth": _growth,
}
