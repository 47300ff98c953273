"""backup, restore, rollback and readiness as an operator runs them, one after the other, by papermill."""

import sqlite3
from pathlib import Path

import pytest
from damage import AGENT, TASK, untouched
from damage import run_sql as spoil
from notebook_operate_helpers import execute
from notebook_runs_helpers import Run
from running import only_run, record_of

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import read_archive


def roll_back(settings: Settings, tmp_path: Path, *arguments: str) -> Run:
    return execute("rollback", settings, tmp_path, "-r", "to", "fresh", *arguments)


def namespaces(settings: Settings) -> set[str]:
    conn = sqlite3.connect(settings.db_path)
    found = {name for (name,) in conn.execute("SELECT namespace FROM memory_entries")}
    conn.close()
    return found


def remember(settings: Settings, namespace: str) -> None:
    conn = sqlite3.connect(settings.db_path)
    values = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES (?, 'k', '{}', 'semantic')"
    with conn:
        conn.execute(values, (namespace,))
    conn.close()


def test_what_was_lost_comes_back_and_what_stood_there_is_kept(database: Settings, tmp_path: Path) -> None:
    remember(database, "user:alice")
    execute("backup", database, tmp_path, "-r", "reason", "before").succeeded()
    conn = sqlite3.connect(database.db_path)
    with conn:
        conn.execute("DELETE FROM memory_entries WHERE namespace = 'user:alice'")
    conn.close()
    remember(database, "user:bob")
    with untouched(database.db_path):
        plan = execute("restore", database, tmp_path).succeeded()
    assert "restore (plan) passed" in plan.report
    done = execute("restore", database, tmp_path, "-p", "apply", "True").succeeded()
    assert {"user:alice", "app:abathur:config"} <= namespaces(database)
    assert "user:bob" not in namespaces(database)
    assert "abathur_pre_restore_" in done.report
    kept = next(name for name in nb.show_backups(database).index if "pre_restore" in name)
    execute("restore", database, tmp_path, "-p", "apply", "True", "-r", "backup", kept).succeeded()
    assert "user:bob" in namespaces(database), "undone"


def test_a_drill_tells_what_a_restoration_takes_and_changes_nothing(database: Settings, tmp_path: Path) -> None:
    execute("backup", database, tmp_path).succeeded()
    with untouched(database.db_path):
        run = execute("restore", database, tmp_path, "-p", "drill", "True").succeeded()
    assert "RTO: " in run.report
    assert "RPO: " in run.report


def test_a_rollback_is_shown_first_and_then_starts_afresh(database: Settings, tmp_path: Path) -> None:
    remember(database, "user:alice")
    with untouched(database.db_path):
        execute("rollback", database, tmp_path, "-p", "apply", "True").failed("to: expected 'fresh' or a backup")
        roll_back(database, tmp_path).succeeded()
    roll_back(database, tmp_path, "-p", "apply", "True").succeeded()
    assert "user:alice" not in namespaces(database)
    assert len(namespaces(database)) == 3


def test_where_a_plan_wants_to_be_confirmed_nothing_is_done_without_its_hash(
    database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABATHUR_CONFIRM_CHANGES", "true")
    remember(database, "user:alice")
    with untouched(database.db_path):
        refused = roll_back(database, tmp_path, "-p", "apply", "True")
        refused.failed("rollback of", "refused").showed_its_report()
        execute(
            "rollback",
            database,
            tmp_path,
            "-r",
            "to",
            "fresh",
            "-p",
            "apply",
            "True",
            "-r",
            "confirm",
            "0123456789abcdef",
        ).failed("plan")
    confirm = refused.report.rpartition("-p confirm ")[2].split()[0]
    execute(
        "rollback", database, tmp_path, "-r", "to", "fresh", "-p", "apply", "True", "-r", "confirm", confirm
    ).succeeded()
    assert "user:alice" not in namespaces(database)


def test_a_spoiled_database_is_diagnosed_then_repaired_and_its_rows_are_put_back(
    database: Settings, tmp_path: Path
) -> None:
    spoil(database.db_path, TASK, AGENT, "DELETE FROM tasks", "DROP INDEX idx_audit_task")
    with untouched(database.db_path):
        found = execute("troubleshoot", database, tmp_path).failed("troubleshoot (plan) of")
    assert "DELETE FROM agents WHERE" in found.showed_its_report().report
    repaired = execute("troubleshoot", database, tmp_path, "-p", "repair", "True").succeeded()
    execute("validate", database, tmp_path).succeeded()
    name = repaired.report.rpartition("-p put_back ")[2].split()[0]
    spoil(database.db_path, TASK)
    execute("troubleshoot", database, tmp_path, "-p", "repair", "True", "-r", "put_back", name).succeeded()
    conn = sqlite3.connect(database.db_path)
    assert conn.execute("SELECT id FROM agents").fetchall() == [("a1",)]
    conn.close()


def test_each_of_them_leaves_its_record(database: Settings, tmp_path: Path) -> None:
    execute("backup", database, tmp_path).succeeded()
    record = record_of(only_run(database))
    assert (record["notebook"], record["verdict"], record["parameters"]["reason"]) == ("backup", "pass", "manual")
    assert [report["title"] for report in record["reports"]] == ["backup"]


def test_readiness_is_a_no_go_that_names_each_run_it_lacks(database: Settings, tmp_path: Path) -> None:
    run = execute("readiness", database, tmp_path).failed("readiness of").showed_its_report()
    assert "NO-GO: " in "".join(run.shown())
    assert "python -m abathur_nb run explain --env development" in "".join(run.shown())
    assert [record_of(entry)["verdict"] for entry in read_archive(database.archive_dir)] == ["fail"]
