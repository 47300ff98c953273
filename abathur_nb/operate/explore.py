"""Explore: what is in a database, for a person who wants to look, as frames that one can go on with."""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import aiosqlite

from abathur_nb.connection import connect, explain_error
from abathur_nb.errors import AbathurError, ConfigurationError, InvalidValueError
from abathur_nb.operate.diagram import Diagram, read_diagram
from abathur_nb.operate.excerpt import Excerpt
from abathur_nb.operate.growth import Growth, read_growth
from abathur_nb.operate.namespaces import Namespaces
from abathur_nb.operate.sampling import in_time
from abathur_nb.operate.versions import MemoryHistory, as_json
from abathur_nb.parameters import check_ranges
from abathur_nb.report import Check, Report, run_check
from abathur_nb.schema import quoted, read_schema
from abathur_nb.settings import Settings
from abathur_nb.sql import load_queries
from abathur_nb.target import refusal
from abathur_nb.values import MAX_BYTES, check_name, prefix_range, spellings
from abathur_nb.wording import counted, shown

__all__ = ["Exploration", "explore"]

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

    ``namespace`` is a literal prefix for the memories and the trail. ``key`` names the memory whose history is told,
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
        told = explain_error(settings.db_path, error)
        checks = [Check("database_file", "error", "opens read-only", f"could not run: {told.observed}", told.remedy)]
    found.report = Report(_TITLE, tuple(checks), subject=str(settings.db_path))
    return found


def _read(text: bytes) -> str:
    return text.decode(errors="backslashreplace")  # what is no UTF-8 is shown, and validate's finding


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
    told = _of(len(rows), found.rows.get("sessions", len(rows)), "sessions, the last used first")
    found.sessions = _excerpt(rows, told, "no session yet", "checkpoints", "created_at", "terminated_at", "archived_at")
    return _seen("sessions", told)


async def _session(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    name = wanted.session or (found.sessions.rows[0][0] if found.sessions.rows else None)
    rows = await _fetch(conn, "session_content", wanted, session=name, largest=MAX_BYTES)
    if not rows:
        found.session = Excerpt(nothing="no such session" if wanted.session else "no session yet")
        return _seen("session", "none yet", f"no session {shown(wanted.session)}" if wanted.session else "")
    number, members = _members(rows[0]["state"], wanted.limit, iter)
    events, happened = _members(rows[0]["events"], wanted.limit, reversed)
    told = f"session {name}: {counted(number, 'value')} of its state, {_of(wanted.limit, events, 'events')}"
    # Bounded as everything is, though the session was read whole.
    texts = (*(("state", *member) for member in members), *(("event", *member) for member in happened))
    found.session = Excerpt(("part", "name", "value"), texts, told, "an empty session")
    return _seen("session", told)


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
    told = _of(len(rows), max(total, len(rows)), "current memories, the last updated first")
    found.memories = _excerpt(rows, told, "no current memory", "memory_type", "bytes", "created_by", "created_at")
    return _seen("memories", told)


async def _memory(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> Check:
    named = await _fetch(conn, "most_versions", wanted)
    if not named:
        told = f"no memory has the key {shown(wanted.key)} there" if wanted.key else ""
        found.memory = MemoryHistory.of("", "", (), 0, wanted.limit)
        return _seen("memory", "none there", told)
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
    told = _of(len(rows), max(total, len(rows)), words)
    found.audit = _excerpt(rows, told, "no audit row", "memory_operation_type", "memory_entry_id", "result", "id")
    return _seen("audit_trail", told)


async def _growth(conn: aiosqlite.Connection, found: Exploration) -> Check:
    found.growth = await read_growth(conn)
    days = sorted({day for counts in found.growth.days.values() for day in counts})
    told = f"rows of {len(days):,} days" + (f", {days[0]} to {days[-1]}" if days else "")
    undated = found.growth.undated
    told += f"; {counted(undated, 'row')} without a valid timestamp: run validate.ipynb" if undated else ""
    return _seen("growth", told)
