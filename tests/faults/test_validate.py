"""Every check of validate, each in a database in which it fails: and in none is a byte of the main file changed."""

from pathlib import Path

from damage import edit_schema, flip_bits, held, run_as_other, run_sql, untouched
from validate_helpers import failing, validated

from abathur_nb.config.settings import Settings
from abathur_nb.runbook.validate import validate_database


async def test_a_reference_without_its_row_is_named_by_key_column_and_value(database: Settings) -> None:
    agent = "INSERT INTO agents (id, name, specialization, task_id, model) VALUES"
    run_sql(
        database.db_path,
        f"{agent} ('a', 'n', 's', 'none', 'm')",
        f"{agent} (CAST(x'61ff' AS TEXT), 'n', 's', CAST(x'ff' AS TEXT), 'm')",
        "INSERT INTO audit (action_type, memory_entry_id) VALUES ('x', 99)",
        "INSERT INTO audit (action_type, task_id) VALUES ('x', 'none')",  # no reference: it outlives its task
        "INSERT INTO checkpoints (task_id, iteration, state, session_id) VALUES ('t', 7, '{}', NULL)",
        "CREATE TABLE other (x REFERENCES tasks)",  # whose rows are not ours to judge
        "INSERT INTO other VALUES ('none')",
    )
    checks = await validated(database)
    assert failing(checks) == {"foreign keys", "readable text"}
    assert checks["foreign keys"].observed == "4 references to a missing row"
    assert set(checks["foreign keys"].evidence) == {
        "agents.task_id: 'none' is not in tasks.id, by key: 'a'",
        r"agents.task_id: b'\xff' is not in tasks.id, by key: b'a\xff' (rowid 2)",
        "audit.memory_entry_id: 99 is not in memory_entries.id, by key: 1",
        "checkpoints.task_id: 't' is not in tasks.id, by key: 't', 7",
    }


async def test_many_broken_rows_of_another_table_hide_no_damage_of_ours(database: Settings) -> None:
    path, many = database.db_path, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150)"
    run_sql(path, "CREATE TABLE other (x)", f"{many} INSERT INTO other SELECT NULL FROM n")
    edit_schema(path, "other", "(x)", "(x NOT NULL)")
    edit_schema(path, "idx_sessions_app_user", "DESC)", "DESC) WHERE 0")
    run_sql(path, "INSERT INTO sessions (id, app_name, user_id) VALUES ('s', 'a', 'b')")
    edit_schema(path, "idx_sessions_app_user", "DESC) WHERE 0", "DESC)")
    integrity = (await validated(database))["integrity"]
    assert (integrity.status, integrity.data["indexes"]) == ("fail", ["idx_sessions_app_user"])
    assert integrity.evidence.count("NULL value in other.x") == 1


async def test_damage_of_the_schema_or_of_any_page_is_found_and_the_file_left(database: Settings) -> None:
    original = database.db_path.read_bytes()
    for old, new in ((b"indexidx_tasks", b"index\xbe\xbe\xbe_tasks"), (b"INDEX idx_tasks_parent", b"X" * 22)):
        assert old in original
        database.db_path.write_bytes(original.replace(old, new))  # into what is no text, and what is no SQL
        assert await corrupt(database), new
    for page in range(1, len(original) // 4096, 5):
        database.db_path.write_bytes(original)
        flip_bits(database.db_path, 4096 * page, 16)
        assert await corrupt(database), page
    for kept in (100, 512, 4096, 5000, 100_000):
        database.db_path.write_bytes(original[:kept])
        assert await corrupt(database), kept


async def corrupt(settings: Settings) -> bool:
    with untouched(settings.db_path):
        report = await validate_database(settings)
    failed = [check for check in report.checks if check.failed]
    assert not [check for check in failed if not check.remedy]
    return any("CORRUPT" in check.observed or "not SQLite" in check.observed for check in failed)


async def test_beside_a_busy_writer_it_sees_one_snapshot_and_passes(database: Settings) -> None:
    with held(database.db_path, "BEGIN IMMEDIATE", "DELETE FROM memory_entries"):
        assert failing(await validated(database)) == set()


def test_without_write_access_to_the_directory_it_says_so_and_does_not_raise(public: Path, pristine: bytes) -> None:
    """SQLite then cannot make the -shm that it needs to read."""
    program = (
        "report = asyncio.run(nb.validate_database(nb.resolve('development', db_path=sys.argv[1])))\n"
        "print(report.ok, report.refused, report.checks[0].observed, report.checks[0].remedy)\n"
    )
    path = public / "x.db"
    path.write_bytes(pristine)
    with untouched(path):
        told = run_as_other(program, path)
    assert told.startswith("False True ")
    assert "may not be written to" in told
