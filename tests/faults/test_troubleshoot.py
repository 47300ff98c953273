"""The diagnosis only reads; the repair is the plan that was shown, whole or not at all, and accounts for each row."""

import asyncio
import errno
import itertools
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import (
    AGENT,
    MEMORY,
    ROWS,
    SESSION,
    TASK,
    drop_check,
    drop_index,
    edit_schema,
    empty_index,
    held,
    query,
    run_sql,
    running,
    spoil_json,
    spoil_table,
    untouched,
)
from sampling import sampled
from troubleshoot_helpers import check_of, failed, rows_of

import abathur_nb as nb
from abathur_nb.backups.manifest import list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.errors import BusyError
from abathur_nb.health.checks import file_checks
from abathur_nb.health.path_on_disk import wal_size
from abathur_nb.repair.diagnosis import REPAIR, Look, diagnose, wal_check
from abathur_nb.repair.quarantine import quarantine_dir, read_quarantine
from abathur_nb.report import Check, Report
from abathur_nb.runbook.troubleshoot import _empty_the_log, _run
from abathur_nb.store.schema import expected_objects, expected_tables
from abathur_nb.store.sql import DATA

# The four faults of the runbook's section 6, each as a careless writer leaves it.
FAULTS = {
    "journal mode": ("PRAGMA journal_mode = DELETE",),
    "foreign keys": (
        "INSERT INTO tasks (id, prompt, session_id, parent_task_id) VALUES ('lost', 'p', 'no', 'no')",
        "INSERT INTO agents (id, name, specialization, task_id, model) VALUES ('lost', 'n', 's', 'no', 'm')",
        "INSERT INTO audit (action_type, agent_id) VALUES ('by one that is deleted', 'lost')",
        "INSERT INTO checkpoints (task_id, iteration, state) VALUES ('no', 1, '{}')",
        "INSERT INTO state (task_id, key, value) VALUES ('no', 'k', 'broken as well')",
    ),
    "JSON columns": (
        "UPDATE sessions SET events = 'no json', metadata = '[]', state = '{\"a\": 1e999}'",
        "UPDATE memory_entries SET value = CAST(x'7b22ff227d' AS TEXT) WHERE namespace = 'user:a'",
        "UPDATE tasks SET result_data = x'00', input_data = 7 WHERE id = 't1'",
    ),
    "indexes": (
        "DROP INDEX idx_sessions_status_updated",
        "DROP INDEX idx_audit_task",
        "CREATE INDEX idx_audit_task ON audit (task_id)",
        'CREATE INDEX "somebody""s own" ON tasks (prompt)',
    ),
}
COMBINATIONS = sampled(
    (names for count in range(5) for names in itertools.combinations(FAULTS, count)),
    *((), *((name,) for name in FAULTS), tuple(FAULTS)),
)


def aside_of(path: Path, *suffixes: str) -> list[bytes]:
    """Return what was moved aside of the files of a database."""
    (folder,) = path.parent.glob("abathur_aside_*")
    return [(folder / f"{path.name}{suffix}").read_bytes() for suffix in suffixes]


async def repaired(settings: Settings) -> Report:
    report = await nb.troubleshoot(settings, repair=True)
    report.raise_for_failures()
    return report


METRIC = "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)"


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
async def test_the_four_faults_are_repaired_and_rows_accounted_for(names: tuple[str, ...], database: Settings) -> None:
    path = database.db_path
    run_sql(path, *ROWS, *(statement for name in names for statement in FAULTS[name]))
    before = rows_of(path)
    with untouched(path):
        report = await nb.troubleshoot(database)
        assert not database.backup_dir.exists()
    assert report.ok == (not names)
    assert set(names) <= failed(report)
    assert all("cause: " in check.observed and check.remedy for check in report.checks if check.failed)

    await repaired(database)
    (await nb.validate_database(database)).raise_for_failures()
    after = rows_of(path)
    changed = Counter({table: len(set(before[table]) - set(after[table])) for table in before})
    assert not any(set(after[table]) - set(before[table]) for table in ("agents", "checkpoints", "metrics"))
    files = [*quarantine_dir(database).glob("*")]
    assert len(files) == bool({"foreign keys", "JSON columns"} & set(names))
    kept = {(entry["table"], entry["rowid"]) for file in files for entry in read_quarantine(file)[1]}
    assert Counter(table for table, _ in kept) == +changed, "each changed row, and no other"
    backups, _ = list_backups(database.backup_dir)
    assert [backup.facts["reason"] for backup in backups] == ["pre_repair"] * bool(names)

    with untouched(path):
        assert (await nb.troubleshoot(database, repair=True)).ok
    assert len(list_backups(database.backup_dir)[0]) == len(backups), "nothing to repair, nothing to back up"


async def test_every_table_that_is_altered_is_named_and_made_anew_with_all_its_rows(database: Settings) -> None:
    path, ids = database.db_path, "SELECT * FROM sqlite_sequence ORDER BY name"
    run_sql(path, *ROWS, "DELETE FROM memory_entries WHERE namespace = 'user:a'")
    before, given_out = rows_of(path), query(path, ids)
    for table in expected_tables():
        edit_schema(path, table, "TEXT NOT NULL", "VARCHAR NOT NULL")
        run_sql(path, f"ALTER TABLE {table} ADD COLUMN empty", f"CREATE INDEX on_{table} ON {table} (empty)")
    told = check_of(await nb.troubleshoot(database), "tables").observed
    assert all(table in told for table in expected_tables())
    await repaired(database)
    assert rows_of(path) == before
    assert query(path, ids) == given_out, "the id of a row that was deleted would be given out again"
    assert not query(path, "SELECT 1 FROM sqlite_master WHERE sql LIKE '%before_repair%'")


async def test_rows_or_columns_in_the_way_of_a_table_are_named_and_the_table_is_left(database: Settings) -> None:
    path = database.db_path
    drop_check(path)
    run_sql(path, TASK, "UPDATE tasks SET status = 'WHATEVER'", "ALTER TABLE metrics ADD COLUMN filled DEFAULT 1")
    run_sql(path, METRIC)
    before = rows_of(path)
    told = check_of(await nb.troubleshoot(database, repair=True), "tables")
    assert "rows of tasks that *values* or" in told.observed
    assert "1 row with a value in metrics.filled, which sql/ lacks" in told.observed
    assert """'ALTER TABLE metrics DROP COLUMN "filled";'""" in told.remedy
    assert rows_of(path) == before
    run_sql(path, "UPDATE tasks SET status = 'failed'", "UPDATE metrics SET filled = NULL")
    await repaired(database)


async def test_a_column_or_a_table_that_is_gone_is_named_and_nothing_is_made_up(database: Settings) -> None:
    path = database.db_path
    for change, words in (
        ("ALTER TABLE tasks DROP COLUMN error_message", "lacks error_message, whose values no other column holds"),
        ("ALTER TABLE tasks ADD COLUMN error TEXT", "lacks error_message, whose values may be in error"),
        ("DROP TABLE tasks", "missing: tasks"),
    ):
        run_sql(path, change)
        with untouched(path):
            told = check_of(await nb.troubleshoot(database, repair=True), "tables")
        assert words in told.observed
        assert "restore a backup" in told.remedy
    assert told.remedy.endswith(f"create an empty table, as in {DATA / 'sql'}")
    run_sql(path, expected_objects()["tasks"].sql)
    (await nb.troubleshoot(database, repair=True)).raise_for_failures()


@pytest.mark.needs("sqlite3")
async def test_a_value_that_a_repair_would_empty_is_shown_from_the_newest_backup_of_it(database: Settings) -> None:
    run_sql(database.db_path, TASK, "UPDATE tasks SET input_data = '{\"true\": 1}'")
    for _ in range(2):  # the second one has the broken value
        await nb.backup_database(database)
        run_sql(database.db_path, "UPDATE tasks SET input_data = '{broken'")
    remedy = check_of(await nb.troubleshoot(database), "JSON columns").remedy
    shown = await asyncio.to_thread(subprocess.check_output, ["sh", "-c", f"sqlite3{remedy.partition('sqlite3')[2]}"])
    assert shown == b't1|{"true": 1}\n'
    assert {path.name.partition(".db")[2] for path in database.backup_dir.iterdir()} == {"", ".manifest.json"}


@pytest.mark.parametrize(("kind", "rest"), [("TABLE", "(a)"), ("VIEW", "AS SELECT 1")])
async def test_what_has_the_name_of_an_index_prevents_no_other_repair(kind: str, rest: str, database: Settings) -> None:
    spoil_json(database.db_path)
    made = f"CREATE {kind} idx_tasks_parent {rest}"
    run_sql(database.db_path, "DROP INDEX idx_tasks_parent", "ALTER TABLE tasks ADD COLUMN x", made)
    report = await nb.troubleshoot(database, repair=True)
    assert "idx_tasks_parent" in check_of(report, "indexes").observed
    assert check_of(report, "JSON columns").status == check_of(report, "tables").status == "pass"
    run_sql(database.db_path, f"DROP {kind} idx_tasks_parent")
    (await nb.troubleshoot(database, repair=True)).raise_for_failures()


@pytest.mark.parametrize("also", [(), ("CREATE VIEW tasks AS SELECT * FROM jobs",)], ids=["alone", "behind a view"])
async def test_a_renamed_table_is_left_and_its_command_named(also: tuple[str, ...], database: Settings) -> None:
    path = database.db_path
    run_sql(path, *ROWS)
    before = rows_of(path)
    run_sql(path, "ALTER TABLE tasks RENAME TO jobs", *also)
    for report in (await nb.validate_database(database), await nb.troubleshoot(database, repair=True)):
        assert "plan" not in {check.name for check in report.checks}
        others = check_of(report, "other objects")
        assert "do not drop a table: jobs may be tasks under another name" in others.remedy
        assert not re.search("DROP TABLE", "\n".join((others.remedy, *others.evidence)))
    (rename,) = re.findall(r"""'(ALTER TABLE "jobs" RENAME TO "tasks";)'""", check_of(report, "tables").remedy)
    run_sql(path, *re.findall("'(DROP .*?);'", others.remedy), rename)
    await repaired(database)
    assert rows_of(path) == before


async def test_the_command_that_renames_a_table_back_also_changes_capitals_alone(database: Settings) -> None:
    run_sql(database.db_path, "ALTER TABLE tasks RENAME TO t", "ALTER TABLE t RENAME TO TASKS")
    remedy = check_of(await nb.troubleshoot(database), "tables").remedy
    run_sql(database.db_path, *re.findall("ALTER TABLE [^;]*", remedy))
    await repaired(database)


async def test_an_index_is_not_made_anew_where_its_table_holds_a_key_twice(database: Settings) -> None:
    path = database.db_path
    run_sql(path, SESSION)
    empty_index(path, "sqlite_autoindex_sessions_1")
    run_sql(path, "PRAGMA foreign_keys = OFF", SESSION)
    with untouched(path):
        report = await nb.troubleshoot(database, repair=True)
    told = check_of(report, "integrity")
    assert "plan" not in {check.name for check in report.checks}
    assert "sessions, rowid 1 and 2: 's1'" in told.observed
    assert "restore a backup from before these rows" in told.remedy


async def test_a_database_that_was_made_from_a_dump_is_marked_as_ours_with_all_its_rows(database: Settings) -> None:
    path = database.db_path
    run_sql(path, *ROWS)
    before = rows_of(path)
    with closing(sqlite3.connect(path)) as conn:
        dump = "\n".join(conn.iterdump())
    path.unlink()
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(dump)
    for verb in (nb.validate_database, nb.initialize_database):
        (told,) = [check for check in (await verb(database)).checks if "as after a dump" in check.observed]
        assert "abathur_nb run troubleshoot" in told.remedy
    with pytest.raises(nb.RefusedError, match="as after a dump"):
        async with nb.Database.open(database):
            pass
    await repaired(database)
    (await nb.validate_database(database)).raise_for_failures()
    async with nb.Database.open(database):
        assert rows_of(path) == before


async def test_indexes_that_do_not_agree_with_their_tables_are_rebuilt_at_once(database: Settings) -> None:
    path, rows = database.db_path, 110  # integrity_check names 100 at most
    run_sql(path, *(TASK.replace("'t1'", f"'{n}'") for n in range(rows)), *[METRIC] * rows)
    empty_index(path, "idx_tasks_submitted_at", "idx_metrics_name_timestamp")
    assert "REINDEX" in check_of(await repaired(database), "plan").observed


async def test_damaged_pages_are_salvaged_once_into_a_new_file_and_never_repaired_in_place(database: Settings) -> None:
    path = database.db_path
    run_sql(path, *ROWS, *(MEMORY.replace("'k'", f"'k{n}'") for n in range(50)))
    spoil_table(path, "tasks")
    assert "holds no backup of development" in check_of(await nb.troubleshoot(database), "integrity").remedy
    first = await nb.troubleshoot(database, repair=True)
    with untouched(path):
        report = await nb.troubleshoot(database, repair=True)
    assert "integrity" in failed(report)
    assert "plan" not in {check.name for check in report.checks}
    assert check_of(report, "salvaged").remedy == check_of(first, "salvaged").remedy
    assert check_of(report, "salvaged").remedy.startswith("restore this one: "), "what would be refused is not offered"
    lost, *_, intact = check_of(first, "salvaged").evidence
    assert lost.startswith("tasks: lost"), "what is lost comes first"
    assert "intact" in intact
    assert "memory_entries: intact, 54 rows" in check_of(first, "salvaged").evidence
    (salvaged,) = list_backups(database.backup_dir)[0]
    assert salvaged.before_a_change == "salvaged", "never restored unasked"


async def test_side_files_of_a_lost_database_are_moved_aside_and_it_can_be_made_anew(database: Settings) -> None:
    path = database.db_path
    path.unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").write_bytes(b"what may hold rows")
    report = await nb.troubleshoot(database)
    assert "the database alone was moved or deleted" in check_of(report, "database file").observed
    assert Path(f"{path}-wal").exists()
    await repaired(database)
    assert aside_of(path, "-wal") == [b"what may hold rows"]
    (await nb.initialize_database(database)).raise_for_failures()


async def test_wrong_modes_are_put_right_and_what_a_killed_run_left_is_removed(database: Settings) -> None:
    path = database.db_path
    left = path.with_name(".abathur-init-0123456789ab")
    left.mkdir()
    (left / "draft").write_text("half")
    assert str(left) in check_of(await nb.troubleshoot(database), "leftovers").observed
    assert left.exists()
    with held(path, "BEGIN", "SELECT count(*) FROM tasks"):
        for file in path.parent.glob(f"{path.name}*"):
            file.chmod(0o664)
        await repaired(database)
        assert {file.stat().st_mode & 0o777 for file in path.parent.glob(f"{path.name}*")} == {0o600}
    assert not left.exists()


async def look_twice(settings: Settings) -> Check:
    first = Look.at_files(settings.db_path)
    then, size = Look.at_files(settings.db_path), await wal_size(settings.db_path, settings.max_wal_mb)
    return wal_check(size, then.behind_since(first), first, then, 1)


async def test_a_reader_that_pins_the_log_is_named_with_its_process_and_no_other(database: Settings) -> None:
    path, small = database.db_path, replace(database, max_wal_mb=0)
    with held(path, "BEGIN", "SELECT count(*) FROM tasks") as reader, held(path, "SELECT 1") as other:
        run_sql(path, TASK)
        with held(path, METRIC, SESSION), untouched(path):
            report = await nb.troubleshoot(small)
        check = await look_twice(small)
    told = check_of(report, "WAL size")
    assert (told.status, report.ok) == ("warn", True)
    assert f"read by PID {reader.pid} (" in told.observed
    assert "cause: a reader prevents its reset" in told.observed
    for remedy in (told.remedy, check.remedy):
        assert f"end PID {reader.pid} (" in remedy
    assert str(other.pid) not in check.observed + check.remedy


def run_and_die(path: Path, script: str) -> None:
    """Run SQL in a process that ends without closing the database, and so leaves its log."""
    program = f"import os, sqlite3; sqlite3.connect({str(path)!r}).executescript({script!r}); os._exit(0)"
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_large_log_is_emptied_with_no_row_lost_and_left_with_its_user_named(database: Settings) -> None:
    path, small = database.db_path, replace(database, max_wal_mb=0, busy_timeout_ms=200)
    log = Path(f"{path}-wal")
    run_and_die(path, f"{TASK};")
    assert log.stat().st_size > 0
    with untouched(path):
        told = check_of(await nb.troubleshoot(small), "WAL size")
    assert (told.status, told.remedy) == ("warn", REPAIR)
    assert check_of(await repaired(small), "WAL size").status == "pass"
    assert log.stat().st_size == 0
    assert len(rows_of(path)["tasks"]) == 1
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(f"{METRIC};")
        with held(path, "BEGIN IMMEDIATE") as writer:
            (told,) = await _empty_the_log(small)
    assert told.status == "warn"
    assert f"PID {writer.pid} (" in told.observed


@pytest.mark.parametrize("damage", ["header", "a frame"])
async def test_a_damaged_log_is_kept_and_the_database_usable(damage: str, database: Settings) -> None:
    path = database.db_path
    log, small = Path(f"{path}-wal"), replace(database, max_wal_mb=0)
    run_and_die(path, f"{TASK}; {SESSION}; {MEMORY};")
    content = bytearray(log.read_bytes())
    behind = next(at for at in range(32, len(content), 4096 + 24) if any(content[at + 4 : at + 8])) + 4096 + 24
    content[24 if damage == "header" else behind + 100] ^= 1
    Path(f"{path}-shm").unlink()
    log.write_bytes(content)
    file = path.read_bytes()
    with untouched(path):
        plan = await nb.troubleshoot(small)
    assert failed(plan) == {"log"}
    assert re.match(r"SQLite reads \d+ of \d+ frames\n", check_of(plan, "log").observed)
    assert f"{path}-wal DIR/; stop its processes; then {REPAIR}" in check_of(plan, "log").remedy
    with held(path, "SELECT 1 FROM sessions"):
        report = await nb.troubleshoot(small, repair=True)
        assert (report.refused, failed(report)) == (True, {"log", "repair"})
    assert log.read_bytes() == content
    await repaired(small)
    assert aside_of(path, "", "-wal") == [file, content]
    (await nb.validate_database(small)).raise_for_failures()
    assert len(rows_of(path)["tasks"]) == (damage == "a frame")


def leave_written_log(path: Path, damaged: int) -> list[bytes]:
    """Leave a database into which its log was written, as a power cut does, and damage a frame of that log."""
    log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    inserts = ";".join(f"INSERT INTO sessions (id, app_name, user_id) VALUES ('s{n}', 'a', 'u')" for n in range(150))
    deletes = "DELETE FROM sessions WHERE id > 's5'; PRAGMA wal_checkpoint(PASSIVE)"
    run_and_die(path, f"PRAGMA wal_autocheckpoint = 0; {inserts}; {deletes};")
    index.unlink()
    content = bytearray(log.read_bytes())
    content[32 + (damaged % (len(content) // 4120)) * 4120 + 2000] ^= 1
    log.write_bytes(content)
    return [path.read_bytes(), bytes(content)]


@pytest.mark.parametrize(("damaged", "found"), [(40, {"database file", "log"}), (-60, {"log"})])
async def test_a_database_newer_than_its_log_keeps_each_row(damaged: int, found: set[str], database: Settings) -> None:
    path = database.db_path
    before = leave_written_log(path, damaged)
    owner = os.geteuid() or 65534  # root repairs for another user
    for file in (path.parent, *path.parent.iterdir()):
        os.chown(file, owner, -1)
    plan = await nb.troubleshoot(database)
    assert failed(plan) == found
    assert "it is newer" in check_of(plan, "log").observed
    assert not any("restore" in check.remedy for check in plan.checks)
    assert "byte for byte" in check_of(plan, "plan").observed
    await repaired(database)
    assert aside_of(path, "", "-wal") == before
    assert {file.stat().st_uid for file in path.parent.glob("abathur_aside_*/*")} == {owner}
    assert path.read_bytes() == before[0]
    (await nb.validate_database(database)).raise_for_failures()
    assert query(path, "SELECT count(*), max(id) FROM sessions") == [(96, "s5")]


async def test_a_damaged_database_with_a_damaged_log_is_salvaged(database: Settings) -> None:
    file = bytearray(leave_written_log(database.db_path, 40)[0])
    file[-3 * 4096 :: 7] = b"?" * len(file[-3 * 4096 :: 7])
    database.db_path.write_bytes(file)
    assert "salvaged" in check_of(await nb.troubleshoot(database), "plan").observed


async def test_what_was_committed_before_a_failure_is_told(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sql(database.db_path, *FAULTS["indexes"], *FAULTS["journal mode"])

    async def locked(_: Settings) -> list[Check]:
        raise BusyError("somebody has it")

    monkeypatch.setattr("abathur_nb.runbook.troubleshoot._switch_to_wal", locked)
    report = await nb.troubleshoot(database, repair=True)
    assert not report.ok
    assert not report.refused
    assert check_of(report, "transaction").status == check_of(report, "backup before").status == "pass"
    assert check_of(report, "repair").observed == "the steps above were done; then: somebody has it"


@pytest.mark.parametrize("done", ["switch_to_wal", "empty_log"])
async def test_a_step_that_is_done_is_reported_when_a_later_one_fails(
    done: str, database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("abathur_nb.runbook.troubleshoot._make_private", closed)
    path, small = database.db_path, replace(database, max_wal_mb=0)
    run_sql(path, *(FAULTS["journal mode"] if done == "switch_to_wal" else ()))
    with nullcontext() if done == "switch_to_wal" else held(path, "PRAGMA wal_autocheckpoint = 0", TASK):
        path.chmod(0o644)
        report = await nb.troubleshoot(small, repair=True)
    assert check_of(report, done.replace("_", " ").replace("wal", "WAL")).status == "pass"
    assert not report.refused
    assert list(database.backup_dir.glob("abathur_pre_repair_*.db"))


async def test_who_holds_the_lock_is_named_and_a_repair_refused_after_a_bounded_wait(database: Settings) -> None:
    path = database.db_path
    run_sql(path, *FAULTS["indexes"], AGENT)
    impatient = replace(database, busy_timeout_ms=200)
    with held(path, "BEGIN IMMEDIATE") as writer, untouched(path):
        report = await nb.troubleshoot(impatient)
        assert f"held by PID {writer.pid} (" in check_of(report, "locks").observed
        report = await nb.troubleshoot(impatient, repair=True)
    assert report.refused
    assert f"locked by PID {writer.pid} (" in check_of(report, "repair").observed
    assert not list(quarantine_dir(database).glob("*"))


async def test_statistics_of_long_ago_are_renewed(database: Settings) -> None:
    many = (MEMORY.replace("'k'", f"'k{n}'") for n in range(1500))
    run_sql(database.db_path, *ROWS, "ANALYZE", "BEGIN", *many, "COMMIT")
    assert check_of(await nb.troubleshoot(database), "statistics").status == "warn"
    await repaired(database)
    assert check_of(await nb.troubleshoot(database), "statistics").status == "pass"


SINCE = (
    "UPDATE audit SET action_data = 'broken otherwise'",
    "DROP INDEX idx_audit_task",
    "INSERT INTO audit (action_type, action_data) VALUES ('new', 'broken')",
)


@pytest.mark.parametrize("since", SINCE)
async def test_what_changed_since_it_was_shown_is_not_repaired_unseen(since: str, database: Settings) -> None:
    path, strict = database.db_path, replace(database, confirm_changes=True)
    run_sql(path, *ROWS, *FAULTS["JSON columns"][:2], "UPDATE audit SET action_data = 'broken'")
    found = await diagnose(database)
    digits = check_of(await nb.troubleshoot(strict), "plan").observed.split()[1]
    wrong = replace(found, statements=[*found.statements, found.steps[0]._replace(rows=99)])
    before = rows_of(path)
    with pytest.raises(nb.RefusedError, match="not 99"):
        await _run(wrong, database)
    assert rows_of(path) == before, "a repair that fails half way"
    run_sql(path, since)
    with untouched(path):
        with pytest.raises(nb.RefusedError, match="changed since"):
            await _run(found, database)
        report = await nb.troubleshoot(strict, repair=True, confirm=digits)
    assert report.refused, "a row that would be changed is another"
    assert not list(quarantine_dir(database).glob("*")), "nothing was changed, so that nothing was taken out"
    digits = check_of(report, "plan").observed.split()[1]
    (await nb.troubleshoot(strict, repair=True, confirm=digits)).raise_for_failures()


async def test_what_could_not_be_checked_is_not_repaired(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sql(database.db_path, *ROWS, *FAULTS["indexes"], *FAULTS["JSON columns"])
    elsewhere = replace(database, db_path=database.db_path.with_name("gone.db"))  # as where the disk fails them
    monkeypatch.setattr("abathur_nb.repair.diagnosis.file_checks", lambda _, **more: file_checks(elsewhere, **more))
    with untouched(database.db_path):
        report = await nb.troubleshoot(database, repair=True)
    assert report.refused
    assert "could not run" in check_of(report, "database file").observed
    assert not database.backup_dir.exists()


@pytest.mark.parametrize(("name", "value"), [("repair", "yes"), ("confirm", 7), ("put_back", ""), ("put_back", 7)])
async def test_wrong_arguments_are_named(name: str, value: Any, database: Settings) -> None:
    with pytest.raises(nb.ConfigurationError, match=name):
        await nb.troubleshoot(database, **{name: value})


# What a process does again and again that holds nothing back, though it may have a lock at both looks.
BUSY = {
    "a writer": ("BEGIN IMMEDIATE", METRIC, "COMMIT"),
    "a long writer": ("BEGIN IMMEDIATE", *[METRIC] * 1000, "COMMIT"),
    "a reader of what is newest": ("BEGIN", "SELECT count(*) FROM metrics", "SELECT count(*) FROM tasks", "COMMIT"),
}


@pytest.mark.parametrize("name", sampled(BUSY, "a long writer", "a reader of what is newest"))
async def test_who_does_no_harm_to_the_log_is_not_to_be_ended(name: str, database: Settings) -> None:
    path, small = database.db_path, replace(database, max_wal_mb=0)
    program = (
        "import sqlite3, sys\nconn = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "print(flush=True)\nwhile True:\n    for statement in sys.argv[2:]: conn.execute(statement).fetchall()\n"
    )
    run_and_die(path, f"{TASK};")  # leaves a log
    with running(program, path, *BUSY[name]) as process:
        for _ in range(3):
            check = await look_twice(small)
            assert str(process.pid) not in f"{check.observed} {check.remedy}"
        report = await nb.troubleshoot(small)
    assert f"end PID {process.pid}" not in check_of(report, "WAL size").remedy
    assert check_of(report, "locks").status == "pass" or name == "a long writer"


THEIRS = {
    "partial": "CREATE INDEX partial ON tasks (status) WHERE status = 'x'",
    "by expression": 'CREATE UNIQUE INDEX "by expression" ON tasks (id || prompt)',
}


def add_column(path: Path) -> None:
    run_sql(path, "ALTER TABLE tasks ADD COLUMN gone", "CREATE INDEX lost ON tasks (gone)")


@pytest.mark.parametrize("spoil", [drop_check, add_column, drop_index])
async def test_a_repair_keeps_the_indexes_of_others(spoil: Callable[[Path], None], database: Settings) -> None:
    indexes = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    run_sql(database.db_path, *ROWS, *THEIRS.values())
    before = query(database.db_path, indexes)
    spoil(database.db_path)
    plan = check_of(await nb.troubleshoot(database), "plan").observed
    await repaired(database)
    assert ('DROP INDEX "lost"' in plan) == (spoil is add_column), "its column is dropped, and was empty"
    assert plan.count("DROP INDEX") == (spoil is add_column)
    assert query(database.db_path, indexes) == before
    told = check_of(await nb.validate_database(database), "other objects")
    assert all(f"index {name}" in told.observed for name in THEIRS)
