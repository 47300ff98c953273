"""Salvage: back up what can still be read of a damaged database, or of files that only a process has open."""

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from sqlite3 import SQLITE_LIMIT_LENGTH, SQLITE_LIMIT_SQL_LENGTH, Connection, DatabaseError
from sqlite3 import connect as plain_connect
from typing import Any

from abathur_nb.backups.aside import users_of
from abathur_nb.backups.manifest import Backup, list_backups, of_database, why_unnamed
from abathur_nb.backups.taking import back_up
from abathur_nb.config.settings import Settings
from abathur_nb.errors import BOUND_BYTES, BOUND_SQL, AbathurError, BusyError, RefusedError
from abathur_nb.files import at, make_private_file, nearest_existing, scratch_directory
from abathur_nb.health.checks import file_checks
from abathur_nb.repair.pages import INDEX, TABLE, Entry, Pages, read_pages
from abathur_nb.repair.quarantine import insertion, plain
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.guarded import Stray, strays, strays_check
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION, expected_objects, expected_tables, quoted
from abathur_nb.store.sql import tokens
from abathur_nb.store.target import restore_command
from abathur_nb.text import counted, some

_EXPECTED = "what can still be read, in a backup; intact says that no row is missing, not that none was altered"
_REASON, _RESCUED = "salvaged", "rescued"
_IDENTITY = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
_NOT_PLAIN = {"AS", "SELECT", "VIRTUAL", "WITHOUT"}
_KINDS: dict[str, Any] = {"INTEGER": int, "REAL": int | float, "TEXT": str}
_STATES = ("lost", "partly", "intact")  # of tables, what was lost first
# Rows of a damaged file may break rules; with the rules on, SQLite would leave such rows out.
_RULES = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF;"
_UNFORCED = "PRAGMA synchronous = OFF"  # the file is thrown away, or forced to the disk when it is complete
_KILL = "end it by kill -9: ended in any other way, it may write its log over the database"
_KEEP = "leave it running; copy all of its open files from /proc/PID/fd before it ends"


def once_salvaged(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return the checks of a damaged database with the remedy that remains: it must not be salvaged again."""
    remedy = "restore what was salvaged or another backup, as the check *salvaged* says"
    return tuple(replace(check, remedy=remedy) if check.failed else check for check in checks)


def salvaged_before(settings: Settings) -> Check | None:
    """Return a check that names the backup into which this file was salvaged before, if any. Read-only."""
    changed = max(moment for moment, _ in _state(settings.db_path).values()) / 1e9
    for backup in reversed(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path)):
        if backup.facts["reason"] == _REASON and backup.taken_at.timestamp() > changed:
            observed = f"{backup.path} was salvaged from this same file before: that run reports each table"
            data = {"path": str(backup.path)}
            return Check("salvaged", "warn", _EXPECTED, observed, _remedy(settings, backup), data=data)
    return None


async def salvage(settings: Settings, rescued: Path | None = None) -> Check:
    """Back up the readable rows of a damaged database, count them by table, and validate the backup.

    With ``rescued``, it is a copy of files that only a process has open. Only reads it, its log too. Raises
    RefusedError if nothing at all can be read, BusyError if it is written meanwhile, OSError, sqlite3.Error.
    """
    with scratch_directory(nearest_existing(settings.backup_dir), "backup") as scratch:
        path, reason = (rescued, _RESCUED) if rescued else (settings.db_path, _REASON)
        copy, log = await asyncio.to_thread(_copy, path, scratch)
        found = replace(settings, db_path=scratch / "salvaged.db")
        make_private_file(found.db_path, owned_as=settings.db_path.parent)
        tables, notes = await asyncio.to_thread(_fill, copy, found.db_path)
        rows = sum(len(table.rows) for table in tables)
        if not rows:
            raise RefusedError(f"nothing of {path} can be read any more", "restore a backup")
        failed = [check for check in await file_checks(found) if check.failed]
        broken = {rule["table"] for check in failed for rule in check.data.get("broken", ())}
        backup, _ = await back_up(found, reason=reason, database=settings.db_path)
    judged = {table.name: table.verdict(table.name in broken) for table in tables}
    verdicts = dict(sorted(judged.items(), key=lambda one: _STATES.index(one[1][0])))
    states = Counter(state for state, _ in verdicts.values())
    noted = ", ".join(f"{states[state]} {state}" for state in _STATES if states[state])
    valid = f"it fails {', '.join(check.name for check in failed)}" if failed else "it is valid"
    observed = f"{backup.path}: {counted(rows, 'row')}; of {counted(len(tables), 'table')} {noted}; {valid}{log}"
    told = (*notes, *(f"{name}: {state}, {saved}" for name, (state, saved) in verdicts.items()))
    data = {"path": str(backup.path), "tables": {name: state for name, (state, _) in verdicts.items()}}
    return Check("salvaged", "warn", _EXPECTED, observed, _remedy(settings, backup), told, data=data)


def _remedy(settings: Settings, backup: Backup) -> str:
    restore, why = restore_command(settings), why_unnamed(settings)
    this = f"restore this one: {restore} -p backup {backup.path.name}"
    either = f"either restore a backup: {restore}; then copy from this one what is newer\nor {this}"
    return f"{this}; without a name it is refused: {why}" if why else either


def _state(path: Path) -> dict[str, tuple[int, int]]:
    """Return the time of change and the size of a database and of its log, unless the log is empty."""
    found = {}
    for name in (f"{path}", f"{path}-wal"):
        with suppress(FileNotFoundError):
            if (noted := os.stat(name)).st_size:
                found[name] = (noted.st_mtime_ns, noted.st_size)
    return found


def _copy(path: Path, folder: Path) -> tuple[Path, str]:
    """Copy a database, write a header and the rows of its log into the copy; return what became of the log."""
    before, copy = _state(path), folder / path.name
    log, new = f"{path}-wal", Path(f"{copy}-wal")
    with at(copy):
        ask("copy", path, log if log in before else "", "", copy)
    if _state(path) != before:
        users = ", ".join(users_of(path)) or "a process that cannot be named"
        raise BusyError(f"{path} is written meanwhile by {users}", "stop it, then run this again")
    _settle(copy)
    os.truncate(copy, max(copy.stat().st_size, 512))  # a file may be empty while all rows are in its log
    with copy.open("r+b") as file, mmap(file.fileno(), 0) as data:
        data[:100] = read_pages(data).header(APPLICATION_ID, SCHEMA_VERSION)  # any byte of it may be damaged
    _settle(copy)
    how = "not counted: SQLite can't read it" if new.exists() else "counted as far as SQLite reads it"
    return copy, f"; its log of {before[log][1]:,} bytes is {how}" if log in before else ""


def _settle(copy: Path) -> None:
    """Let SQLite write the log of a file into it, as far as it can."""
    with suppress(DatabaseError), closing(plain_connect(copy, isolation_level=None)) as conn:
        # Only this mode opens a file that was cut off, and this PRAGMA reads no schema.
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(_UNFORCED)
        conn.execute("PRAGMA user_version").fetchone()


@dataclass(slots=True)
class _Table:
    """Hold the findings about a table: the saved rowids, those that its indexes name, the unreadable entries."""

    name: str
    root: int
    columns: Sequence[tuple[str, str, bool]]  # name, type, NOT NULL
    least: int  # number of values in a record: fewer than columns after ADD COLUMN
    alias: int | None  # the INTEGER PRIMARY KEY, which is empty in a record
    rows: set[int] = field(default_factory=set)
    indexed: set[int] = field(default_factory=set)
    counts: list[set[int]] = field(default_factory=list)  # the rowids of each undamaged index over all rows
    faults: list[str] = field(default_factory=list)
    strays: int = 0  # rows of pages that no tree leads to

    def verdict(self, breaks_rules: bool) -> tuple[str, str]:
        """Return whether the table is intact, partly saved, or lost, and the number of its saved rows."""
        missing, rows = self.indexed - self.rows, counted(len(self.rows), "row")
        if self.strays:
            deleted = "" if self.counts else ", deleted ones perhaps among them"
            rows += f" ({self.strays:,} from pages outside of its tree{deleted})"
        if self.rows and breaks_rules:
            rows += ", some of which break the rules,"
        elif self.rows in self.counts or not (missing or self.faults):
            return "intact", rows
        known = f"{len(self.indexed | self.rows):,}" if self.counts else "an unknown number"
        if not self.rows:
            return "lost", f"all rows of {known}"
        lost = f"; lost: rowid {some([*map(str, sorted(missing))])}" if missing else ""
        return "partly", f"{rows} of {known}{lost}"

    def fits(self, values: tuple[Any, ...]) -> bool:
        """Return whether a record of an unknown table may belong to this one."""
        return len(values) == len(self.columns) and all(
            value is None
            if number == self.alias
            else isinstance(value, _KINDS.get(kind, object)) or (value is None and not required)
            for number, (value, (_, kind, required)) in enumerate(zip(values, self.columns, strict=True))
        )

    def save(self, conn: Connection, rowid: int, values: tuple[Any, ...]) -> None:
        """Insert a row; if the table refuses it, that is a fault."""
        number, alias = len(values), self.alias
        if not self.least <= number <= len(self.columns) or (alias is not None and values[alias] is not None):
            self.faults.append(f"rowid {rowid} is not a row of this table")
            return
        given = {"rowid": rowid} | {name: value for (name, _, _), value in zip(self.columns, values, strict=False)}
        if alias is not None:
            given[self.columns[alias][0]] = rowid
        try:
            conn.execute(*insertion(self.name, {name: plain(value) for name, value in given.items()}))
            self.rows.add(rowid)
        except DatabaseError as error:
            self.faults.append(f"rowid {rowid}: {error}")


def _fill(copy: Path, draft: Path) -> tuple[list[_Table], list[str]]:
    """Fill an empty database with the rows in the pages of another; return the findings by table."""
    with (
        copy.open("rb") as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as data,
        closing(plain_connect(draft, isolation_level=None)) as conn,
    ):
        conn.setlimit(SQLITE_LIMIT_LENGTH, 2 * len(data) + BOUND_BYTES)  # for a DEFAULT; in UTF-8 a text may be longer
        conn.setlimit(SQLITE_LIMIT_SQL_LENGTH, BOUND_SQL)
        conn.executescript(f"{_RULES} {_UNFORCED}; BEGIN;")
        pages, notes = read_pages(data), list[str]()
        schema = pages.schema([])
        tables = _make_tables(conn, schema, notes)
        for table in tables.values():
            for rowid, values in pages.walk(table.root, TABLE, table.faults):
                table.save(conn, rowid, values)
        for kind, _, name, root, sql in schema:
            if kind == "index" and name in tables:
                faults, table = list[str](), tables[name]
                rowids = {values[-1] for _, values in pages.walk(root, INDEX, faults) if values}
                table.indexed |= rowids
                if not faults and (sql is None or "WHERE" not in _words(sql)):
                    table.counts.append(rowids)
            if name == "sqlite_sequence":
                _save_sequences(conn, tables, pages.walk(root, TABLE, []))
        notes += _save_strays(conn, pages, [t for t in tables.values() if t.faults or t.indexed - t.rows])
        for found in expected_objects().values():
            if found.type == "index":
                with suppress(DatabaseError):  # an altered table may lack its columns
                    conn.execute(found.sql)
        conn.execute("COMMIT")
        conn.executescript(f"{_IDENTITY} PRAGMA journal_mode = WAL; PRAGMA wal_checkpoint(TRUNCATE);")
    return list(tables.values()), notes


def _make_tables(conn: Connection, schema: Iterable[tuple[Any, ...]], notes: list[str]) -> dict[str, _Table]:
    """Create the tables of a schema and those of ours that it lacks; return them by name."""
    tables: dict[str, _Table] = {}
    known = expected_objects()
    ours = [(found.type, found.name, None, 0, found.sql) for found in known.values()]
    for kind, name, _, root, sql in (*schema, *ours):
        if kind != "table" or name.startswith("sqlite_") or name in tables:
            continue
        try:
            words = _words(str(sql))
            # A damaged or hostile schema must not run or compute anything else.
            if words[:2] != ["CREATE", "TABLE"] or _NOT_PLAIN & {*words}:
                raise DatabaseError("not an ordinary table")
            conn.execute(str(sql))
            columns = conn.execute(f"PRAGMA table_info({quoted(name)})").fetchall()
            keys = [number for number, _, kind, *_, key in columns if key and kind.upper() == "INTEGER"]
            alias = keys[0] if len(keys) == sum(bool(column[5]) for column in columns) == 1 else None
            least = len(columns) if name in known and tokens(known[name].sql) == tokens(str(sql)) else 1
            tables[name] = _Table(name, root, [(c[1], c[2].upper(), bool(c[3])) for c in columns], least, alias)
        except (DatabaseError, UnicodeError, Warning) as error:
            notes.append(f"{name}: left out ({error})")
    return tables


def _save_sequences(conn: Connection, tables: Collection[str], found: Iterable[Entry]) -> None:
    """Note the last id that each table gave out, so that none is used twice."""
    for _, values in found:
        if [*map(type, values)] == [str, int] and values[0] in tables:
            with suppress(DatabaseError):  # no table gives out ids
                changed = conn.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", values[::-1])
                if not changed.rowcount:
                    conn.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", values)


def _save_strays(conn: Connection, pages: Pages, damaged: Iterable[_Table]) -> list[str]:
    """Save the rows of pages that no tree reaches, if a page fits exactly one damaged table."""
    unknown = 0
    for number in pages.orphans():
        rows = [*pages.entries(number, TABLE, [], [])]
        fitting = {table.name: sum(table.fits(values) for _, values in rows) for table in damaged}
        owners = [table for table in damaged if fitting[table.name] == max(fitting.values()) > 0]
        if len(owners) != 1:
            unknown += len(rows)
            continue
        (table,) = owners
        for rowid, values in rows:
            if rowid not in table.rows and (not table.counts or rowid in table.indexed):
                table.save(conn, rowid, values)
                table.strays += 1
    noted = f"{counted(unknown, 'row')} of pages outside of any tree fit no damaged table, deleted rows among them"
    return [noted] if unknown else []


def _words(sql: str) -> list[str]:
    return [token.upper() for token in tokens(sql[:BOUND_SQL])]


def stray_rows(settings: Settings, found: Iterable[Stray]) -> tuple[Check, bool]:
    """Return a check of the rows that only a process with lost files still holds, by copies of them. Read-only."""
    path, check, noted, newer = settings.db_path, strays_check(settings.db_path), list[str](), False
    with scratch_directory(path.parent, "restore") as scratch:
        live = scratch / "live.db"
        if path.is_file() and not path.is_symlink():
            ask("copy", path, *(name if Path(name).exists() else "" for name in (f"{path}-wal", f"{path}-shm")), live)
        for stray in found:
            try:
                copy = _copied(stray, scratch)
                with closing(plain_connect(copy, isolation_level=None)) as conn:
                    conn.execute("ATTACH ? AS live", (str(live) if live.exists() else ":memory:",))
                    ours, theirs = _only_in(conn, "main", "live"), _only_in(conn, "live", "main")
            except (sqlite3.Error, OSError) as error:
                ours, theirs = f"what cannot be compared ({error})", "rows"
            newer |= bool(ours) or "" in stray.lost
            noted.append(f"PID {stray.pid} alone holds {ours or 'no row'}; it lacks {theirs or 'no row'} of {path}")
    observed = "\n".join((check.observed, *noted, "cause: somebody deleted or moved the file under it"))
    remedy = f"the plan below saves it; then {_KILL}" if newer else _KILL
    return replace(check, observed=observed, remedy=remedy), newer


async def rescue(settings: Settings) -> list[Check]:
    """Back up and prove the database of each process with lost files; the last check fails while one has them open."""
    done = list[Check]()
    for stray in strays(settings.db_path):
        name, expected, data = f"rescued from PID {stray.pid}", "its rows in a file", {"pid": stray.pid}
        with scratch_directory(settings.db_path.parent, "restore") as scratch:
            try:
                copy = replace(settings, db_path=await asyncio.to_thread(_copied, stray, scratch))
                try:
                    kept, _ = await back_up(copy, reason=_RESCUED, database=settings.db_path)
                except (sqlite3.Error, RefusedError):  # other processes have written to its database since
                    saved = await salvage(settings, copy.db_path)
                    remedy = f"then {_KILL}; {saved.remedy}"
                    done.append(replace(saved, id="rescued", name=name, data=data, remedy=remedy))
                    continue
            except (sqlite3.Error, OSError, AbathurError) as error:  # the rows of the other processes are saved
                done.append(Check("rescued", "fail", expected, f"{error}", _KEEP, name=name, data=data))
                continue
        observed = f"{kept.path}: {counted(kept.content.total, 'row')}, as PID {stray.pid} sees them, proven"
        remedy = f"then {_KILL}; to put them in place of it: {restore_command(settings)} -p backup {kept.path.name}"
        done.append(Check("rescued", "warn", expected, observed, remedy, name=name, data=data))
    return [*done, replace(strays_check(settings.db_path), remedy=_KILL)]


def _copied(stray: Stray, scratch: Path) -> Path:
    if "" not in stray.files:  # SQLite takes a log alone for an empty database
        raise FileNotFoundError(2, f"PID {stray.pid} has no database open with the log", stray.lost.get("-wal"))
    target = scratch / f"of-{stray.pid}.db"
    ask("copy", *(stray.files.get(suffix, "") for suffix in ("", "-wal", "-shm")), target)
    return target


def _only_in(conn: Connection, one: str, other: str) -> str:
    """Return the rows that one of two attached databases has and the other lacks, counted by table."""
    found = []
    tables, others = ({row[0] for row in conn.execute(f"SELECT name FROM {at}.sqlite_master")} for at in (one, other))
    for table in expected_tables():
        if table in tables:
            rest = f"EXCEPT SELECT * FROM {other}.{table}" if table in others else ""
            ((rows,),) = conn.execute(f"SELECT count(*) FROM (SELECT * FROM {one}.{table} {rest})").fetchall()
            found += [f"{counted(rows, 'row')} of {table}"] if rows else []
    return ", ".join(found)
