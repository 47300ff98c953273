"""Salvage saves each row whose pages can be read, never claims more than that, and says what became of each table."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from damage import ROWS, held, query, run_sql, untouched
from sampling import sampled
from situations import VERBS
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.repair.salvage import _copy, _fill, salvage
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION, expected_tables
from abathur_nb.store.sql import DDL_FILES, SEED_FILE, statements

NOISE = random.Random(7).randbytes  # noqa: S311 - the same noise each time
HEADERS = {
    "zeros": bytes(100),
    "noise": NOISE(100),
    "no magic": bytes(16),
    "no page size": b"SQLite format 3\0" + bytes(84),
}


def fill(path: Path, size: int, count: int = 60) -> None:
    """Make a database of pages of ``size`` bytes, with values of several pages and, of what was deleted, free pages."""
    long = json.dumps({"long": "y" * (size * 2)})
    rows = (
        "INSERT INTO tasks (id, prompt) VALUES ('t' || :n, 'p')",
        "INSERT INTO sessions (id, app_name, user_id, metadata) VALUES ('s' || :n, 'app', 'alice', :json)",
        "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('a:b', :n, :json, 'semantic')",
        "INSERT INTO document_index (file_path, title, content_hash, embedding_blob) VALUES (:n, '', '', :blob)",
        "INSERT INTO agents (id, name, specialization, task_id, model) VALUES (:n, '', '', 't' || :n, '')",
        "INSERT INTO state (task_id, key, value) VALUES ('t' || :n, 'k', '{}')",
        "INSERT INTO audit (action_type) VALUES (:n)",
        "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', :n / 2.0)",
        "INSERT INTO checkpoints (task_id, iteration, state) VALUES ('t' || :n, :n, '{}')",
    )
    ids = {"application_id": APPLICATION_ID, "user_version": SCHEMA_VERSION}
    pragmas = {"page_size": size, "journal_mode": "WAL", **ids}
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.executescript("".join(f"PRAGMA {name} = {value};" for name, value in pragmas.items()) + "BEGIN;")
        for statement in (one for filename in (*DDL_FILES, SEED_FILE) for one in statements(filename)):
            conn.execute(statement)
        for n in range(count):
            values = {"n": n, "json": long if n % 20 == 7 else "{}", "blob": bytes(size) if n % 30 == 3 else None}
            for row in rows:
                conn.execute(row, values)
        conn.execute("COMMIT")
        for table, number in (("audit", "id"), ("metrics", "id"), ("checkpoints", "iteration")):
            conn.execute(f"DELETE FROM {table} WHERE {number} BETWEEN {count // 4} AND {count // 2}")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def rows_of(path: Path) -> dict[str, dict[object, tuple[object, ...]]]:
    """Return the rows of each table by their rowid."""
    with closing(sqlite3.connect(path)) as conn:
        conn.text_factory = bytes
        tables = expected_tables()
        return {table: {row[0]: row[1:] for row in conn.execute(f"SELECT rowid, * FROM {table}")} for table in tables}


def judged(data: bytes, wanted: dict[str, dict[object, tuple[object, ...]]], folder: Path) -> Iterator[str]:
    """Salvage a file, and yield what its report says that is not so."""
    damaged, draft, scratch = folder / "damaged.db", folder / "salvaged.db", folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    draft.unlink(missing_ok=True)
    damaged.write_bytes(data)
    tables, _ = _fill(_copy(damaged, scratch)[0], draft)
    found = rows_of(draft)
    for table in tables:
        rows, saved, (state, verdict) = wanted[table.name], found[table.name], table.verdict(False)
        if wrong := [rowid for rowid, row in saved.items() if rows.get(rowid) != row]:
            yield f"{table.name}: {wrong} were never there"
        if state == "intact" and saved != rows:
            yield f"{table.name}: {state}, {verdict}, where {len(rows)} were"
        if state == "lost" and saved:
            yield f"{table.name}: {state}, {verdict}, where {len(saved)} are saved"
        if saved == rows and state != "intact" and "unknown number" not in verdict:
            yield f"{table.name}: {state}, {verdict}, where all are saved"
        if table.counts and saved.keys() != rows.keys() and f" of {len(rows)}" not in verdict:
            yield f"{table.name}: {state}, {verdict}, where {len(rows)} were"


def damages(data: bytes, size: int) -> Iterator[tuple[str, bytes]]:
    """Yield a file with each page zeroed in turn, with or without its header, and cut behind it; of many, a sample."""
    for name, spoilt in HEADERS.items():
        yield name, spoilt + data[len(spoilt) :]
    count = len(data) // size
    for number in range(1, count + 1, max(1, count // 25)):
        start = (number - 1) * size or 100  # of the first page, what is behind the header
        without = data[:start] + bytes(number * size - start) + data[number * size :]
        yield f"page {number} zeroed", without
        if number > 1:
            yield f"page {number} and the header zeroed", bytes(100) + without[100:]
            yield f"cut behind page {number}", data[: number * size]
            empty = b"\x0d\0\0\0\0" + (size % 65536).to_bytes(2, "big") + b"\0"
            after = data[number * size :][:size] or data[size : 2 * size]
            yield f"page {number} a copy of another", data[:start] + after + data[number * size :]
            yield f"page {number} a leaf without rows", without[:start] + empty + without[start + 8 :]


@pytest.mark.parametrize("at", sampled(((512, 1), (4096, 1), (65536, 1), (512, 4)), (512, 4)), ids=str)
def test_of_a_page_that_is_lost_the_rows_are_named_and_all_others_saved(at: tuple[int, int], tmp_path: Path) -> None:
    (size, every), path = at, tmp_path / "abathur.db"
    fill(path, size)
    data, wanted = path.read_bytes(), rows_of(path)
    chosen = islice(damages(data, size), 0, None, every)
    told = {name: [*judged(spoilt, wanted, tmp_path)] for name, spoilt in chosen}
    assert not {name: faults for name, faults in told.items() if faults}


def test_rows_are_saved_of_pages_whose_last_bytes_are_reserved(tmp_path: Path) -> None:
    path = tmp_path / "abathur.db"
    run_sql(path, "PRAGMA user_version = 1")
    data = bytearray(path.read_bytes())
    data[20], data[105:107] = 12, (4096 - 12).to_bytes(2, "big")  # as SQLite of macOS makes them
    path.write_bytes(data)
    fill(path, 4096)
    assert [*judged(path.read_bytes(), rows_of(path), tmp_path)] == []
    assert rows_of(tmp_path / "salvaged.db") == rows_of(path)


# What is written where, and the check that fails for it.
DAMAGES = {name: (0, spoilt, "database file") for name, spoilt in HEADERS.items()} | {
    "page size": (16, b"\x20", "database file"),
    "write version": (18, b"\3", "header"),
    "read version": (19, b"\3", "database file"),
    "reserved bytes": (20, b"\1", "integrity"),
    "number of pages": (31, b"\1", "database file"),
    "first free page": (35, b"\x09", "integrity"),
    "schema format": (47, b"\5", "database file"),
    "encoding": (59, b"\2", "database file"),
    "encoding that SQLite reads past": (59, b"\5", "header"),
    "user_version": (61, b"\1", "database file"),
    "application_id": (70, b"\x40", "database file"),
}


@pytest.mark.parametrize("name", sampled(DAMAGES, "noise", "page size", "write version", "schema format"))
async def test_a_database_with_a_damaged_header_is_salvaged_and_replaced(name: str, database: Settings) -> None:
    path, last = database.db_path, "SELECT name, seq FROM sqlite_sequence ORDER BY name"
    place, spoilt, failing = DAMAGES[name]
    other_comments = "UPDATE sqlite_schema SET sql = replace(sql, '--', '-- once:') WHERE type = 'table'"
    deleted = ("DELETE FROM audit", "DELETE FROM memory_entries WHERE namespace = 'user:a'")
    run_sql(path, *ROWS, ROWS[3].replace("'k'", "'l'"), *deleted, "PRAGMA writable_schema = ON", other_comments)
    wanted, given_out = rows_of(path), query(path, last)
    (await nb.backup_database(database)).raise_for_failures()
    data = path.read_bytes()
    path.write_bytes(data[:place] + spoilt + data[place + len(spoilt) :])
    with untouched(path):
        for report in (await nb.validate_database(database), await nb.troubleshoot(database)):
            assert check_of(report, failing).failed
            assert not report.refused
            told = check_of(report, failing).observed
            assert name not in HEADERS or "its header (the first 100 bytes) is destroyed" in told
        if name in HEADERS:
            assert (await nb.initialize_database(database)).refused
            with pytest.raises(nb.RefusedError, match="its header"):
                async with nb.Database.open(database):
                    pass
        report = await nb.troubleshoot(database, repair=True)
    assert "of 9 tables 9 intact; it is valid" in check_of(report, "salvaged").observed
    assert not report.ok
    (salvaged,) = database.backup_dir.glob("abathur_salvaged_*.db")
    assert (rows_of(salvaged), query(salvaged, last)) == (wanted, given_out), "no id of a row that was deleted is free"
    if name in HEADERS:
        (await nb.roll_back(database, to="fresh", apply=True)).raise_for_failures()
        assert [*path.parent.glob(f"abathur_aside_*/{path.name}")]
    assert f"-p backup {salvaged.name}" in check_of(report, "salvaged").remedy
    for backup in (salvaged.name, None) if name in HEADERS else (None,):
        (await nb.restore_database(database, backup=backup, apply=True)).raise_for_failures()
        assert rows_of(path) == wanted
    (await nb.validate_database(database)).raise_for_failures()
    assert "header" not in {check.name for check in (await nb.troubleshoot(database)).checks}


async def test_a_file_that_is_too_short_for_its_header_is_salvaged_and_no_index_made_anew(database: Settings) -> None:
    path = database.db_path
    run_sql(path, *ROWS, *(ROWS[0].replace("'t1'", f"'x{n}'") for n in range(99)))
    data = path.read_bytes()
    for cut, failing in ((4096, "database file"), (1, "header")):
        path.write_bytes(data[:-cut])
        report = await nb.troubleshoot(database)
        assert "CORRUPT" in check_of(report, failing).observed
        assert "REINDEX" not in (plan := check_of(report, "plan").observed)
        assert "abathur_salvaged_" in plan
    path.write_bytes(data + b"x")  # SQLite writes over it
    (await nb.troubleshoot(database)).raise_for_failures()


async def test_wrong_bytes_that_harm_nothing_raise_no_alarm(database: Settings) -> None:
    path = database.db_path
    run_sql(path, *ROWS)
    wanted, data = rows_of(path), bytearray(path.read_bytes())
    for place in (18, *range(24, 28), *range(40, 44), *range(48, 52), *range(56, 60), *range(72, 100)):
        data[place] = 0 if data[place] else 1 if place not in range(56, 60) else 0
    path.write_bytes(data)
    assert [check.name for check in (await nb.troubleshoot(database)).checks if check.status != "pass"] == []
    (await nb.backup_database(database)).raise_for_failures()
    async with nb.Database.open(database) as db:
        await db.sessions.create_session("another", "app", "alice")
    assert rows_of(path)["tasks"] == wanted["tasks"]


async def test_rows_that_only_the_log_holds_are_salvaged_too(database: Settings) -> None:
    path = database.db_path
    with held(path, "PRAGMA wal_autocheckpoint = 0", "PRAGMA foreign_keys = OFF", *ROWS) as writer:
        writer.kill()
        writer.wait()
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    log = Path(f"{path}-wal").read_bytes()
    report = await nb.troubleshoot(database, repair=True)
    assert Path(f"{path}-wal").read_bytes() == log
    told = check_of(report, "salvaged")
    assert f"its log of {len(log):,} bytes is included" in told.observed
    assert "tasks: intact, 1 row" in told.evidence


def another_application(path: Path) -> None:
    run_sql(path, "CREATE TABLE tasks (id TEXT PRIMARY KEY, prompt TEXT)", "INSERT INTO tasks VALUES (1, 2)")
    path.write_bytes(bytes(100) + path.read_bytes()[100:])


STRANGERS: dict[str, Callable[[Path], object]] = {
    "noise": lambda path: path.write_bytes(NOISE(65536)),
    "zeros and an empty leaf": lambda path: path.write_bytes(bytes(100) + b"\x0d" + bytes(8091)),
    "another application's": another_application,
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_any_other_file_that_sqlite_cannot_open_is_refused_and_stays(name: str, database: Settings) -> None:
    (await nb.backup_database(database)).raise_for_failures()
    database.db_path.unlink()
    STRANGERS[name](database.db_path)
    with untouched(database.db_path):
        for verb in ("repair", "restore", "fresh start"):
            assert (await VERBS[verb](database)).refused


async def test_of_an_empty_file_nothing_is_salvaged(database: Settings) -> None:
    database.db_path.write_bytes(b"")
    with pytest.raises(nb.RefusedError, match="no row of"):
        await salvage(database)
    assert not database.backup_dir.exists()
