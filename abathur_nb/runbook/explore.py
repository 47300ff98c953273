"""Explore: show what is in a database, as tables and as pandas frames."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import aiosqlite

from abathur_nb.backups.change import check_arguments
from abathur_nb.config.parameters import Parameter
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, InvalidValueError
from abathur_nb.measure.snapshot import any_text, in_time
from abathur_nb.report import Check, Report, run_check
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.schema import Differences, quoted, read_schema
from abathur_nb.store.sql import DATA, load_queries
from abathur_nb.store.target import refusal
from abathur_nb.store.values import MAX_BYTES, check_depth, check_name, prefix_range, spellings
from abathur_nb.text import Shown, Table, clipped, counted, printable, shown

if TYPE_CHECKING:
    import pandas as pd

_TITLE = "explore"
_LARGEST = 256 * 1024  # bytes of a value; of a longer one only the beginning is read
PART_S = 60.0  # seconds for reading one part: SQLite cannot reset the WAL until its transaction ends
_AT_ONCE = 50_000  # rows in one fetch
_SHOWN = 160  # characters of a value in a table
_MOST_CHANGES = 200  # shown from one version to the next
_TIMES = {"archived_at", "created_at", "last_update_time", "terminated_at", "timestamp", "updated_at"}


@dataclass(frozen=True, slots=True)
class Excerpt(Shown):
    """Hold the rows that were read, under ``columns``; a notebook shows ``table``, a short form of them."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    table: Table = Table((), (), "could not be read: the report says why")

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, values whole; a column of valid times as UTC timestamps."""
        import pandas as pd

        # Keep integers exact: pandas turns a column of integers with a NULL into floats.
        frame = pd.DataFrame(list(self.rows), columns=list(self.columns), dtype=object)
        whole = [name for name in frame if all(isinstance(value, int | None) for value in frame[name])]
        frame = frame.astype(dict.fromkeys(whole, "Int64")).infer_objects()
        for name in _TIMES & {*self.columns}:
            with suppress(ValueError, TypeError):  # a value that is not a time stays as it is
                frame[name] = pd.to_datetime(frame[name], format="%Y-%m-%d %H:%M:%S.%f", utc=True)
        return frame

    @property
    def caption(self) -> str:
        """Return how many rows there are, and of what; an empty text for none."""
        return self.table.caption

    def _table(self) -> Table:
        return self.table


def _excerpt(
    rows: Sequence[Mapping[str, Any]], caption: str, nothing: str, hidden: str = "", most: int | None = None
) -> Excerpt:
    """Return the rows of a query; the table shows at most ``most`` of them, without the ``hidden`` columns."""
    columns = tuple(rows[0]) if rows else ()
    heads = tuple(name for name in columns if name not in hidden.split())
    cells = tuple(tuple(_shortened(row[name]) for name in heads) for row in rows[:most])
    table = Table(heads, cells, nothing, caption=caption if rows else "")
    return Excerpt(columns, tuple(tuple(row.values()) for row in rows), table)


def _shortened(value: object) -> str:
    """Return a value as a table shows it: NULL as an empty text, a long text by its beginning and its length."""
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}… ({len(text):,} characters)"


@dataclass(frozen=True, slots=True)
class Diagram:
    """Hold a diagram of the schema as SVG, and its text; no SVG if the live tables differ from those of ``sql/``."""

    svg: str = ""
    alt: str = "could not be read: the report says why"

    def __str__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.alt} if self.svg else {"text/plain": self.alt}


@dataclass(slots=True)
class Exploration:
    """Hold what was read of one snapshot; a notebook shows each part as a table (with ``to_frame()``) or a picture.

    ``report`` says how much each part holds. It fails if a part could not be read; that part is then empty.
    """

    report: Report
    rows: dict[str, int] = field(default_factory=dict)
    sessions: Excerpt = Excerpt()
    session: Excerpt = Excerpt()
    namespaces: Excerpt = Excerpt()
    memories: Excerpt = Excerpt()
    memory: Excerpt = Excerpt()
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
    """Read the sessions, the memories, the audit trail, the schema and the growth of a database. Read-only.

    ``namespace`` selects memories and audit rows by a literal prefix. ``key`` names the memory whose history is shown,
    by default the one with the most versions; ``session`` the session that is shown, by default the last used.
    ``limit`` bounds every listing. Of a value of more than 256 KiB only the beginning is read. All parts show
    one snapshot. Raises ConfigurationError, naming every fault.
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
    check_arguments(*faults, Parameter("limit", int, 50).fault(limit))
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
    """Read one part into ``found``, and return its check: how much was found, or what was asked for and is missing."""

    async def read() -> Check:
        observed, missing = await in_time(conn, PART_S, _PARTS[name](conn, wanted, found))
        expected = "the named session or memory exists" if missing else "can be read"
        remedy = "name one that exists, or leave the parameter out: -p NAME VALUE"
        return Check.that(name, not missing, expected, missing or observed, remedy, "warn")

    return await run_check(name, read, remedy="run validate.ipynb")


async def _fetch(conn: aiosqlite.Connection, name: str, wanted: _Wanted, **more: object) -> list[dict[str, Any]]:
    given = {**wanted._asdict(), "largest": _LARGEST, **more}
    return [dict(row) for row in await conn.execute_fetchall(load_queries("explore.sql")[name].sql, given)]


def _of(shown_rows: int, total: int, words: str) -> str:
    return words + (f", of which {shown_rows:,} are shown" if shown_rows < total else "")


# Each part fills its field, and returns two texts: how much there is, and what was asked for but is missing.
_Seen = tuple[str, str]


async def _schema(conn: aiosqlite.Connection, _: _Wanted, found: Exploration) -> _Seen:
    live = await read_schema(conn)
    for name in (item.name for item in live.values() if item.type == "table"):
        ((count,),) = await conn.execute_fetchall(f"SELECT count(*) FROM {quoted(name)}")
        found.rows[name] = int(count)
    if other := str(Differences.between(live, ("table",))):
        found.diagram = Diagram("", f"no picture, because the tables differ from those of sql/: {_json(other)}")
    else:
        svg = (DATA / "sql" / "schema.svg").read_text(encoding="utf-8").rstrip()
        found.diagram = Diagram(svg, svg.partition("<title>")[2].partition("</title>")[0])
    tables, rows = counted(len(found.rows), "table"), counted(sum(found.rows.values()), "row")
    return f"{tables}, {rows}", ""


async def _sessions(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "sessions", wanted)
    total = found.rows.get("sessions", len(rows))
    noted = _of(len(rows), total, f"{counted(total, 'session')}, the last used first")
    found.sessions = _excerpt(rows, noted, "no session yet", "checkpoints created_at terminated_at archived_at")
    return noted, ""


async def _session(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    name = wanted.session or (found.sessions.rows[0][0] if found.sessions.rows else None)
    rows = await _fetch(conn, "session_content", wanted, session=name, largest=MAX_BYTES)
    if not rows:
        found.session = _excerpt((), "", "no such session" if wanted.session else "no session yet")
        return "none yet", f"no session {shown(wanted.session)}" if wanted.session else ""
    number, state = _members(rows[0]["state"], wanted.limit, iter)
    total, events = _members(rows[0]["events"], wanted.limit, reversed)
    values = _of(wanted.limit, number, f"{counted(number, 'value')} of its state")
    noted = f"session {name}: {values}, {_of(wanted.limit, total, counted(total, 'event'))}"
    members = [("state", *member) for member in state] + [("event", *member) for member in events]
    columns = ("part", "name", "value")
    found.session = _excerpt([dict(zip(columns, one, strict=True)) for one in members], noted, "an empty session")
    return noted, ""


def _members(stored: object, limit: int, order: Callable[[Any], Iterator[Any]]) -> tuple[int, list[tuple[str, str]]]:
    """Return how many members a value has, and the first ``limit`` in ``order``: a session can hold millions."""
    value = _as_json("none, or too large" if stored is None else stored)
    value = value if isinstance(value, dict | list) else [value]
    names, members = (value, value.values()) if isinstance(value, dict) else (range(1, len(value) + 1), value)
    pairs = islice(zip(order(names), order(members), strict=True), limit)
    return len(value), [(str(name), json.dumps(member, ensure_ascii=False)) for name, member in pairs]


async def _namespaces(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "namespaces", wanted)
    nothing = f"no namespace begins with {shown(wanted.prefix)}" if wanted.prefix else "no memory yet"
    noted = _of(wanted.limit, len(rows), f"{counted(len(rows), 'namespace')}, the largest first")
    found.namespaces = _excerpt(rows, noted, nothing, most=wanted.limit)
    return found.namespaces.caption or "none yet", nothing if wanted.prefix and not rows else ""


async def _memories(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "current_memories", wanted)
    total = max(len(rows), sum(memories for _, memories, *_ in found.namespaces.rows))
    words = f"{total:,} current {'memory' if total == 1 else 'memories'}, the last updated first"
    noted = _of(len(rows), total, words)
    found.memories = _excerpt(rows, noted, "no current memory", "memory_type bytes created_by created_at")
    return noted, ""


async def _memory(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    named = await _fetch(conn, "most_versions", wanted)
    if not named:
        found.memory = _excerpt((), "", "no version")
        return "none", f"no key {shown(wanted.key)} in these namespaces" if wanted.key else ""
    namespace, key, total = named[0].values()
    # One version more than is shown, to compare the oldest one shown with.
    rows = await _fetch(conn, "memory_versions", wanted, namespace=namespace, key=key, limit=wanted.limit + 1)
    last = f", the last {wanted.limit:,}" if total > wanted.limit else ""
    noted = f"{namespace} {key}: {counted(total, 'version')}{last}"
    found.memory = memory_history(rows, noted, wanted.limit)
    return noted, ""


def memory_history(rows: Sequence[Mapping[str, Any]], caption: str, limit: int) -> Excerpt:
    """Return the versions of a memory, newest first; the table says what each changed. Read-only."""
    live = next((row["version"] for row in rows if not row["is_deleted"]), None)
    versions, cells = [], []
    for row, earlier in zip_longest(rows[:limit], rows[1 : limit + 1]):
        version = row["version"]
        state = "deleted" if row["is_deleted"] else "current" if version == live else "superseded"
        versions.append({"version": version, "state": state, **row})
        about = (f"{version} {state}", f"{row['updated_at']}\n{row['updated_by'] or ''}".strip())
        cells.append((*about, "\n".join(_changes(earlier, row))))
    heads = ("version", "updated (UTC), by", "what it changed")
    return replace(_excerpt(versions, "", ""), table=Table(heads, tuple(cells), "no version", caption=caption))


def _changes(earlier: Mapping[str, Any] | None, later: Mapping[str, Any]) -> list[str]:
    """Return a line for each member of a memory that differs from the version before."""
    if earlier is None:
        return [f"first: {_shortened(later['value'])}"]
    before, after = (
        dict(_leaves({name: _as_json(row[name]) for name in ("memory_type", "value", "metadata")}))
        for row in (earlier, later)
    )
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    lines = [
        f"{path}: {' → '.join(clipped(before.get(path, 'nothing'), after.get(path, 'nothing')))}"
        for path in changed[:_MOST_CHANGES]
    ]
    if left := changed[_MOST_CHANGES:]:
        lines.append(f"and {len(left):,} more")
    return lines or ["nothing, as far as it was read"]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the innermost members of a JSON value, each with its path, as JSON text."""
    if isinstance(value, dict | list) and value:
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(member, f"{path}[{_json(name)}]" if path else str(name))
    elif value != {} or path.endswith("]"):  # an empty value has no members
        yield path, _json(value)


def _as_json(stored: object) -> Any:
    """Return JSON decoded, or the text itself if it is not JSON, or deeper than the store allows."""
    text = str(stored)
    try:
        value = json.loads(text)
        check_depth("JSON", value)
    except (ValueError, RecursionError):
        return text
    return value


def _json(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))


async def _audit(conn: aiosqlite.Connection, wanted: _Wanted, found: Exploration) -> _Seen:
    rows = await _fetch(conn, "audit", wanted)
    ((total,),) = (row.values() for row in await _fetch(conn, "count_audit", wanted))
    of = f" of namespaces that begin with {shown(wanted.prefix)}" if wanted.prefix else ""
    noted = _of(len(rows), total, f"{counted(total, 'audit row')}{of}, the newest first")
    found.audit = _excerpt(rows, noted, "no audit row", "memory_operation_type memory_entry_id result id")
    return noted, ""


async def _growth(conn: aiosqlite.Connection, _: _Wanted, found: Exploration) -> _Seen:
    found.growth = await read_growth(conn)
    return found.growth.caption or "none yet", ""


async def read_growth(conn: aiosqlite.Connection) -> Excerpt:
    """Count the existing rows of each table by the day on which they were added. Read-only."""
    counts: Counter[tuple[str, str]] = Counter()
    async with conn.execute(load_queries("explore.sql")["days"].sql) as cursor:
        while rows := await cursor.fetchmany(_AT_ONCE):
            counts.update((row[0], row[1]) for row in rows)
    days: dict[str, Counter[date]] = {}
    undated = 0
    for (table, text), count in counts.items():
        try:
            day = date.fromisoformat(text)
        except (ValueError, TypeError):
            undated += count
        else:
            days.setdefault(table, Counter())[day] += count
    return growth_of(days, undated)


def growth_of(days: Mapping[str, Mapping[date, int]], undated: int = 0) -> Excerpt:
    """Return the number of rows added on each day, by table; the shown table has their sums."""
    rows = [(table, day, found[day]) for table, found in days.items() for day in sorted(found)]
    every = sorted({day for _, day, _ in rows})
    notes = [f"rows of {counted(len(every), 'day')}, {every[0]} to {every[-1]}"] if every else []
    notes += [f"{counted(undated, 'row')} without a valid timestamp: run validate.ipynb"] if undated else []
    sums = [(table, f"{sum(found.values()):,}", f"{min(found)}", f"{max(found)}") for table, found in days.items()]
    heads = ("table", "rows", "first day", "last day")
    summary = Table(heads, tuple(sums), "no row yet", caption="; ".join(notes))
    return Excerpt(("table", "day", "rows"), tuple(rows), summary)


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
