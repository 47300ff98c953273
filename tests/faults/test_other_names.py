"""Names in other capitals are the same to SQLite; indexes of others do no harm: a repair keeps them."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from damage import ROWS, drop_check, drop_index, run_sql
from sampling import sampled

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.store.schema import expected_tables

# The name of a table alone, those of its columns alone, and both.
CAPITALS = {
    "tables": (r"CREATE TABLE (\w+)", lambda m: f"CREATE TABLE {m[1].title()}"),
    "columns": (r"(?m)^ +([a-z_]+) [A-Z]", lambda m: m[0].replace(m[1], m[1].upper())),
    "indexes": (r"CREATE INDEX (\w+)", lambda m: f"CREATE INDEX {m[1].upper()}"),
    "indexed tables": (r"\bON (\w+) ?\(", lambda m: f"ON {m[1].title()}("),
}


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as conn:
        tables = (*expected_tables(), "sqlite_sequence")
        return {name: conn.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in tables}


def indexes_of(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as conn:
        return dict(conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"))


def write_in_capitals(path: Path, *which: str) -> None:
    """Make the database again, as a migration by hand would that writes names in other capitals."""
    with closing(sqlite3.connect(path)) as conn:
        script = [line for line in conn.iterdump() if "sqlite_sequence" not in line]
        sequence = conn.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
    for name in which:
        pattern, change = CAPITALS[name]
        script = [re.sub(pattern, change, line) if line.startswith("CREATE") else line for line in script]
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript("".join(script))
        for name, seq in sequence:
            conn.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ? COLLATE NOCASE", (seq, name))
        conn.commit()
        conn.executescript("PRAGMA application_id = 0x41424154; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;")
    path.chmod(0o600)


@pytest.mark.parametrize("which", sampled([*((name,) for name in CAPITALS), tuple(CAPITALS)], tuple(CAPITALS)), ids=str)
async def test_a_repair_gives_a_name_in_other_capitals_its_own_again(
    which: tuple[str, ...], database: Settings
) -> None:
    run_sql(database.db_path, *ROWS, "INSERT INTO audit (action_type) VALUES ('y')", "DELETE FROM audit WHERE id = 2")
    before = rows_of(database.db_path)
    write_in_capitals(database.db_path, *which)
    failed = {check.name: check.observed for check in (await nb.validate_database(database)).checks if check.failed}
    assert failed
    assert failed.keys() <= {"tables", "indexes"}
    assert all("altered: " in told and "missing" not in told for told in failed.values())
    (await nb.troubleshoot(database, repair=True)).raise_for_failures()
    (await nb.validate_database(database)).raise_for_failures()
    after = rows_of(database.db_path)
    assert {name: sorted(rows) for name, rows in after.items()} == {n: sorted(rows) for n, rows in before.items()}


THEIRS = {
    "o": "CREATE INDEX o ON tasks (prompt)",
    "partial": "CREATE INDEX partial ON tasks (status) WHERE status = 'x'",
    "by expression": 'CREATE UNIQUE INDEX "by expression" ON tasks (id || prompt)',
    "of another": 'CREATE INDEX "of another" ON audit (action_type)',
}


def add_column(path: Path) -> None:
    run_sql(path, "ALTER TABLE tasks ADD COLUMN gone", "CREATE INDEX lost ON tasks (gone)")


@pytest.mark.parametrize("spoil", [drop_check, add_column, drop_index])
async def test_a_repair_keeps_and_names_the_indexes_of_others(
    spoil: Callable[[Path], None], database: Settings
) -> None:
    run_sql(database.db_path, *ROWS, *THEIRS.values())
    before = indexes_of(database.db_path)
    spoil(database.db_path)
    plan = next(check for check in (await nb.troubleshoot(database)).checks if check.name == "plan")
    (await nb.troubleshoot(database, repair=True)).raise_for_failures()
    assert ('DROP INDEX "lost"' in plan.observed) == (spoil is add_column), "its column is dropped, and was empty"
    assert plan.observed.count("DROP INDEX") == (spoil is add_column)
    assert indexes_of(database.db_path) == before
    told = next(c for c in (await nb.validate_database(database)).checks if c.name == "other objects")
    assert all(f"index {name}" in told.observed for name in THEIRS)
