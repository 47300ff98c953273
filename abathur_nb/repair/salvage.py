"""Salvage: back up the rows of a damaged database, or of lost files: deleted, renamed or replaced while in use."""

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

_EXPECTED = "a backup of all readable rows; *intact* means that no row is missing, but a row may be altered"
_REASON, _RESCUED = "salvaged", "rescued"
_IDENTITY = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
_NOT_PLAIN = {"AS", "SELECT", "VIRTUAL", "WITHOUT"}
_KINDS: dict[str, Any] = {"INTEGER": int, "REAL": int | float, "TEXT": str}
_STATES = ("lost", "partly", "intact")  # of tables, in the order of the report
# Rows of a damaged file may violate constraints; SQLite would refuse such rows.
_RULES = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF;"
_UNFORCED = "PRAGMA synchronous = OFF"  # the file is thrown away, or forced to the disk when it is complete
_KILL = "end it by kill -9: ended in any other way, it may write its log over the database"
_KEEP = "leave it running; copy all of its open files from /proc/PID/fd before it ends"


def once_salvaged(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return the checks of a salvaged database; the remedy of each failed check is to restore a backup."""
    remedy = "restore the salvaged backup or another one, as the check *salvaged* says"
    return tuple(replace(check, remedy=remedy) if check.failed else check for check in checks)


def salvaged_before(settings: Settings) -> Check | None:
    """Return a check that names the backup into which this file was salvaged before, if any. Read-only."""
    changed = max(moment for moment, _ in _state(settings.db_path).values()) / 1e9
    for backup in reversed(of_database(list_backups(settings.backup_dir)[0], settings.env, settings.db_path)):
        if backup.facts["reason"] == _REASON and backup.taken_at.timestamp() > changed:
            observed = f"{backup.path} was salvaged from this same file before; that report lists each table"
            data = {"path": str(backup.path)}
            return Check("salvaged", "warn", _EXPECTED, observed, _remedy(settings, backup), data=data)
    return None


async def salvage(settings: Settings, rescued: Path | None = None) -> Check:
    """Back up the readable rows of a damaged database, count them by table, and validate the backup.

    ``rescued`` is a copy of lost files; it is read in place of the database. Only reads the database and its
    log. Raises RefusedError if no row can be read, BusyError if a process writes meanwhile, OSError, sqlite3.Error.
    """
    with scratch_directory(nearest_existing(settings.backup_dir), "backup") as scratch:
        path, reason = (rescued, _RESCUED) if rescued else (settings.db_path, _REASON)
        copy, log = await asyncio.to_thread(_copy, path, scratch)
        found = replace(settings, db_path=scratch / "salvaged.db")
        make_private_file(found.db_path, owned_as=settings.db_path.parent)
        tables, notes = await asyncio.to_thread(_fill, copy, found.db_path)
        rows = sum(len(table.rows) for table in tables)
        if not rows:
            raise RefusedError(f"no row of {path} can be read", "restore a backup")
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
    either = f"either restore a backup: {restore}; then copy newer rows from this one\nor {this}"
    return f"{this}; without a name, restore refuses: {why}" if why else either


def _state(path: Path) -> dict[str, tuple[int, int]]:
    """Return the time of change and the size of a database and of its log; an empty file is left out."""
    found = {}
    for name in (f"{path}", f"{path}-wal"):
        with suppress(FileNotFoundError):
            if (noted := os.stat(name)).st_size:
                found[name] = (noted.st_mtime_ns, noted.st_size)
    return found


def _copy(path: Path, folder: Path) -> tuple[Path, str]:
    """Copy a database, write its log and a new header into the copy; return the copy and a note on the log."""
    before, copy = _state(path), folder / path.name
    log, new = f"{path}-wal", Path(f"{copy}-wal")
    with at(copy):
        ask("copy", path, log if log in before else "", "", copy)
    if _state(path) != before:
        users = ", ".join(users_of(path)) or "a process that cannot be named"
        raise BusyError(f"{users} wrote to {path} meanwhile", "stop it, then run this again")
    _settle(copy)
    os.truncate(copy, max(copy.stat().st_size, 512))  # a file may be empty while all rows are in its log
    with copy.open("r+b") as file, mmap(file.fileno(), 0) as data:
        data[:100] = read_pages(data).header(APPLICATION_ID, SCHEMA_VERSION)  # any byte of the header may be damaged
    _settle(copy)
    how = "not included: SQLite can't read it" if new.exists() else "included as far as SQLite reads it"
    return copy, f"; its log of {before[log][1]:,} bytes is {how}" if log in before else ""


def _settle(copy: Path) -> None:
    """Checkpoint the log of a copy as far as SQLite can read it."""
    with suppress(DatabaseError), closing(plain_connect(copy, isolation_level=None)) as conn:
        # A truncated file opens only with writable_schema; user_version is read without the schema.
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(_UNFORCED)
        conn.execute("PRAGMA user_version").fetchone()


@dataclass(slots=True)
class _Table:
    """Hold the findings about a table: the saved rowids, those that its indexes name, the unreadable entries."""

    name: str
    root: int
    columns: Sequence[tuple[str, str, bool]]  # name, type, NOT NULL
    least: int  # fewest values in a record: older rows lack the columns of ADD COLUMN
    alias: int | None  # number of the INTEGER PRIMARY KEY column, NULL in a record
    rows: set[int] = field(default_factory=set)
    indexed: set[int] = field(default_factory=set)
    counts: list[set[int]] = field(default_factory=list)  # the rowids in each undamaged index that covers all rows
    faults: list[str] = field(default_factory=list)
    strays: int = 0  # rows from pages outside of any tree

    def verdict(self, breaks_rules: bool) -> tuple[str, str]:
        """Return whether the table is intact, partly saved, or lost, and the number of its saved rows."""
        missing, rows = self.indexed - self.rows, counted(len(self.rows), "row")
        if self.strays:
            deleted = "" if self.counts else ", deleted ones may be among them"
            rows += f" ({self.strays:,} from pages outside of its tree{deleted})"
        if self.rows and breaks_rules:
            rows += ", some of which violate constraints,"
        elif self.rows in self.counts or not (missing or self.faults):
            return "intact", rows
        known = f"{len(self.indexed | self.rows):,}" if self.counts else "an unknown number"
        if not self.rows:
            return "lost", f"0 rows of {known}"
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
        """Insert a row, or add to ``faults`` why the table refuses it."""
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
    """Save the rows in the pages of ``copy`` to the empty database ``draft``; return the tables and notes."""
    with (
        copy.open("rb") as file,
        mmap(file.fileno(), 0, access=ACCESS_READ) as data,
        closing(plain_connect(draft, isolation_level=None)) as conn,
    ):
        # Twice: a text of UTF-16 may grow in UTF-8. More: a DEFAULT is added.
        conn.setlimit(SQLITE_LIMIT_LENGTH, 2 * len(data) + BOUND_BYTES)
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
                with suppress(DatabaseError):  # an altered table may lack the index's columns
                    conn.execute(found.sql)
        conn.execute("COMMIT")
        conn.executescript(f"{_IDENTITY} PRAGMA journal_mode = WAL; PRAGMA wal_checkpoint(TRUNCATE);")
    return list(tables.values()), notes


def _make_tables(conn: Connection, schema: Iterable[tuple[Any, ...]], notes: list[str]) -> dict[str, _Table]:
    """Create the tables of ``schema`` and those of ``sql/`` that it lacks; return them by name."""
    tables: dict[str, _Table] = {}
    known = expected_objects()
    ours = [(found.type, found.name, None, 0, found.sql) for found in known.values()]
    for kind, name, _, root, sql in (*schema, *ours):
        if kind != "table" or name.startswith("sqlite_") or name in tables:
            continue
        try:
            words = _words(str(sql))
            # Run nothing else of a damaged or hostile schema.
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
    """Save the last AUTOINCREMENT id of each table, so that no id is used twice."""
    for _, values in found:
        if [*map(type, values)] == [str, int] and values[0] in tables:
            with suppress(DatabaseError):  # no table has AUTOINCREMENT
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
    noted = f"{counted(unknown, 'row')} of pages outside of any tree, perhaps deleted, belong to no certain table"
    return [noted] if unknown else []


def _words(sql: str) -> list[str]:
    return [token.upper() for token in tokens(sql[:BOUND_SQL])]


def stray_rows(settings: Settings, found: Iterable[Stray]) -> tuple[Check, bool]:
    """Count the rows that exist only in lost files; return a check, and whether there are any rows."""
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
                ours, theirs = f"rows that cannot be compared ({error})", "unknown rows"
            newer |= bool(ours) or "" in stray.lost
            noted.append(f"PID {stray.pid} alone holds {ours or 'no row'}; it lacks {theirs or 'no row'} of {path}")
    observed = "\n".join((check.observed, *noted, "cause: a file was deleted or moved while a process had it open"))
    remedy = f"the plan below saves these rows; then {_KILL}" if newer else _KILL
    return replace(check, observed=observed, remedy=remedy), newer


async def rescue(settings: Settings) -> list[Check]:
    """Back up and prove the lost files of each process; the last check fails while such a process runs."""
    done = list[Check]()
    for stray in strays(settings.db_path):
        name, expected, data = f"rescued from PID {stray.pid}", "its rows in a backup", {"pid": stray.pid}
        with scratch_directory(settings.db_path.parent, "restore") as scratch:
            try:
                copy = replace(settings, db_path=await asyncio.to_thread(_copied, stray, scratch))
                try:
                    kept, _ = await back_up(copy, reason=_RESCUED, database=settings.db_path)
                except (sqlite3.Error, RefusedError):  # other processes have written to the database since
                    saved = await salvage(settings, copy.db_path)
                    remedy = f"then {_KILL}; {saved.remedy}"
                    done.append(replace(saved, id="rescued", name=name, data=data, remedy=remedy))
                    continue
            except (sqlite3.Error, OSError, AbathurError) as error:  # go on, to save the rows of the other processes
                done.append(Check("rescued", "fail", expected, f"{error}", _KEEP, name=name, data=data))
                continue
        observed = f"{kept.path}: {counted(kept.content.total, 'row')}, as PID {stray.pid} sees them, proven"
        remedy = f"then {_KILL}; to restore these rows: {restore_command(settings)} -p backup {kept.path.name}"
        done.append(Check("rescued", "warn", expected, observed, remedy, name=name, data=data))
    return [*done, replace(strays_check(settings.db_path), remedy=_KILL)]


def _copied(stray: Stray, scratch: Path) -> Path:
    if "" not in stray.files:  # without its database, SQLite reads a log as empty
        raise FileNotFoundError(2, f"PID {stray.pid} has the log open, but not its database", stray.lost.get("-wal"))
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
