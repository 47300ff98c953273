"""A run's record is started before the database is touched and sealed with the verdict; what identifies a database."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import SOUND, TOP, execute
from damage import drop_index, edit_schema, fingerprint, flip_bits, held, run_sql, untouched
from IPython.core.interactiveshell import InteractiveShell
from running import only_run, record_of

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import MisuseError, RefusedError
from abathur_nb.evidence.canonical import canonical
from abathur_nb.evidence.record import STARTED, read_archive
from abathur_nb.evidence.run import LAUNCH, MIME, database_identity, start_run
from abathur_nb.report import Check, Report
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION

LATER = "2999-12-31 23:59:59.999"  # than any run of these tests begins
GREEN = Report("trial", (Check("sky", "pass", "blue", "blue"),), finished_at=LATER)
RED = Report("trial", (Check("sky", "fail", "blue", "green", "wait"),), finished_at=LATER)
REFUSED = Report("trial", (Check("sky", "fail", "blue", "none", "wait"),), refused=True, finished_at=LATER)


def shown_in(notebook: Any) -> list[dict[str, Any]]:
    outputs = (output for cell in notebook.cells for output in cell.outputs if "data" in output)
    return [output.data[MIME] for output in outputs if MIME in output.data]


def test_the_record_says_what_ran_on_what_with_which_result(shell: InteractiveShell, database: Settings) -> None:
    notebook = execute(shell, database, *SOUND)
    record = record_of(only_run(database))
    assert (record["verdict"], record["notebook"], record["env"]) == ("pass", "validate", "development")
    assert record["parameters"] == {"env": "development", "db_path": str(database.db_path), "rows": 7}
    assert record["template"]["name"] == "validate.ipynb"
    assert record["versions"].keys() >= {"Python", "SQLite", "SQLite source", "abathur_nb", "papermill"}
    assert record["user"]
    assert record["host"] == os.uname().nodename
    before, after = record["database"]["before"], record["database"]["after"]
    assert before == after
    assert (before["path"], before["application_id"]) == ("abathur.db", 0x41424154)
    (report,) = record["reports"]
    expected = json.loads(asyncio.run(validate_database(database)).to_json())["checks"]
    assert [(check["name"], check["expected"]) for check in report["checks"]] == [
        (check["name"], check["expected"]) for check in expected
    ]
    assert all(check["observed"] for check in report["checks"])
    assert record["started_at"] <= report["finished_at"] <= record["ended_at"]
    assert shown_in(notebook) == [record], "notebook and record can be matched"


def test_started_is_on_the_disk_before_the_database_is_touched(shell: InteractiveShell, settings: Settings) -> None:
    look = "found = [path.name for path in settings.archive_dir.glob('*/*')], settings.db_path.exists()"
    top = 'settings = nb.resolve(env, db_path=db_path)\nrun = nb.start_run(settings, "init")\nrun'
    execute(shell, settings, look, top=top)
    assert shell.user_ns["found"] == ([STARTED], False)
    assert only_run(settings).verdict == "unsealed", "started and never sealed means: no evidence"


def test_a_failed_check_is_sealed_as_fail_with_all_checks(shell: InteractiveShell, database: Settings) -> None:
    drop_index(database.db_path)
    notebook = execute(shell, database, *SOUND)
    record = record_of(only_run(database))
    assert record["verdict"] == "fail"
    statuses = {check["name"]: check["status"] for check in record["reports"][0]["checks"]}
    assert statuses["indexes"] == "fail"
    assert statuses["integrity"] == "pass"
    assert record["error"] is None
    assert notebook.cells[-1].outputs[-1].ename == "ChecksFailedError"


@pytest.mark.parametrize(
    ("cell", "verdict", "name"),
    [
        ("1 / 0", "error", "ZeroDivisionError"),
        ("raise SystemExit(0)", "error", "SystemExit"),
        ("raise KeyboardInterrupt", "interrupted", "KeyboardInterrupt"),
        ("nope)", "error", "SyntaxError"),
        ('raise nb.BusyError("locked by PID 7")', "refused", "BusyError"),
        ('nb.resolve("nowhere")', "refused", "ConfigurationError"),
    ],
)
def test_a_cell_that_raises_seals_the_run_and_is_named(
    shell: InteractiveShell, database: Settings, cell: str, verdict: str, name: str
) -> None:
    notebook = execute(shell, database, "report = await nb.validate_database(settings)\nreport", cell)
    record = record_of(only_run(database))
    assert (record["verdict"], record["error"]["name"], record["error"]["cell"]) == (verdict, name, 5)
    assert [report["title"] for report in record["reports"]] == ["validate"], "what was shown before is kept"
    assert shown_in(notebook) == [record]


def test_a_run_is_sealed_once_and_with_at_least_one_check(database: Settings) -> None:
    run = start_run(database, "validate")
    run.seal(GREEN)
    before = fingerprint(database.archive_dir)
    with pytest.raises(MisuseError, match="sealed already, as pass: run the notebook from its top"):
        run.seal(RED)
    assert fingerprint(database.archive_dir) == before
    run = start_run(database, "validate")
    with pytest.raises(MisuseError, match="without a check"):
        run.seal()
    assert run.record is None


def test_a_report_made_before_the_run_began_is_no_evidence_of_it(shell: InteractiveShell, database: Settings) -> None:
    """Who runs the first cells again, and then only the last, would seal what was found of another database."""
    drop = f'import sqlite3\nsqlite3.connect("{database.db_path}").execute("DROP INDEX idx_audit_task")'
    notebook = execute(shell, database, SOUND[0], drop, TOP[2], SOUND[1])
    first, second = read_archive(database.archive_dir)
    assert (first.verdict, second.verdict) == ("unsealed", "error")
    assert "reports from before this run began: validate" in notebook.cells[-1].outputs[-1].evalue


def test_no_run_id_and_that_of_a_sealed_run_make_nothing(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for run_id in ("../../evil", "x", "20261123T000000000Z-abcdeg"):
        monkeypatch.setenv(LAUNCH, run_id)
        with pytest.raises(RefusedError, match="is not a run id: only the runner sets it: unset ABATHUR_RUN"):
            start_run(database, "validate")
        assert not database.archive_dir.exists()
    monkeypatch.delenv(LAUNCH, raising=False)
    start_run(database, "validate").seal(GREEN)
    before = fingerprint(database.archive_dir)
    monkeypatch.setenv(LAUNCH, only_run(database).run_id)
    with pytest.raises(RefusedError, match="is sealed already"):
        start_run(database, "validate")
    assert fingerprint(database.archive_dir) == before


@pytest.mark.parametrize(("reports", "verdict"), [((GREEN,), "pass"), ((GREEN, RED), "fail"), ((REFUSED,), "refused")])
def test_the_worst_report_makes_the_verdict(database: Settings, reports: tuple[Report, ...], verdict: str) -> None:
    start_run(database, "validate").seal(*reports)
    assert record_of(only_run(database))["verdict"] == verdict


def test_what_the_path_refuses_or_only_looks_leaves_no_record_and_makes_no_directory(settings: Settings) -> None:
    for notebook in ("validate", "explain", "benchmark"):
        run = start_run(settings, notebook)
        assert (run.folder, "no database" in str(run)) == (None, True)
        run.seal(REFUSED)
    run = start_run(settings, "preflight")
    assert str(run) == f"not recorded: {settings.db_path.parent} is missing, and this run creates nothing"
    elsewhere = resolve("development", db_path=settings.db_path, archive_dir=settings.db_path.parents[1] / "archive")
    assert start_run(elsewhere, "preflight").folder is not None, "a control: this archive makes no such directory"
    assert not settings.db_path.parent.exists()


def test_an_archive_that_others_may_write_to_or_no_directory_is_refused(database: Settings, tmp_path: Path) -> None:
    place, elsewhere = database.archive_dir, tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.mkdir(mode=0o700)
    place.chmod(0o777)
    with pytest.raises(RefusedError, match=r"others may write to the archive .*chmod 700 "):
        start_run(database, "validate")
    place.rmdir()
    for make in (Path.touch, lambda path: path.symlink_to(elsewhere)):
        make(place)
        with pytest.raises(RefusedError, match=r"the record of this run cannot be written to|is not a directory"):
            start_run(database, "validate")
        place.unlink()
    assert list(elsewhere.iterdir()) == []


def identity(settings: Settings) -> dict[str, Any]:
    """Return the identity, after seeing that it can stand in a record and that the main file is as it was."""
    with untouched(settings.db_path):
        found = database_identity(settings)
    assert found is not None
    assert canonical(found)
    assert found["path"] == settings.db_path.name
    return found


async def test_a_database_is_known_by_its_ids_its_size_and_the_meaning_of_its_schema(database: Settings) -> None:
    found = identity(database)
    assert found.keys() == {"path", "size", "application_id", "user_version", "schema_sha256"}
    assert (found["application_id"], found["user_version"]) == (APPLICATION_ID, SCHEMA_VERSION)
    assert found["size"] == database.db_path.stat().st_size
    assert identity(database) == found
    # Rows do not change who it is, nor does layout; what an object says does.
    run_sql(database.db_path, "INSERT INTO audit (action_type) VALUES ('x')")
    edit_schema(database.db_path, "tasks", "\n", "\n\n  ")
    assert identity(database)["schema_sha256"] == found["schema_sha256"]
    drop_index(database.db_path)
    assert identity(database)["schema_sha256"] != found["schema_sha256"]


def test_where_there_is_no_database_there_is_no_identity(settings: Settings, tmp_path: Path) -> None:
    assert database_identity(settings) is None
    (tmp_path / "file").write_text("")
    assert database_identity(replace(settings, db_path=tmp_path / "file" / "x.db")) is None
    assert not settings.db_path.parent.exists()


def renamed(changes: str) -> Callable[[Path], object]:
    """Return what gives an index a name and SQL that no CREATE could."""
    return lambda path: run_sql(
        path, "PRAGMA writable_schema = ON", f"UPDATE sqlite_master SET {changes} WHERE name = 'idx_audit_task'"
    )


DAMAGED: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("no database, but long enough to be taken for one" * 20),
    "cut off": lambda path: os.truncate(path, 5000),
    "a spoilt schema": lambda path: flip_bits(path, 100, 300),
    "names that are no text": renamed("name = x'ff00', sql = x'fe'"),
    "names that are none": renamed("name = NULL, sql = 7"),
    "broken SQL": lambda path: edit_schema(path, "idx_audit_task", "CREATE", "'"),
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_what_cannot_be_read_is_told_and_raises_nothing(kind: str, database: Settings) -> None:
    DAMAGED[kind](database.db_path)
    found = identity(database)
    assert found["size"] == database.db_path.stat().st_size
    assert str(database.db_path) in found["unread"]
    assert "schema_sha256" not in found


async def test_a_locked_database_is_said_to_be_so(database: Settings) -> None:
    with held(database.db_path, "PRAGMA journal_mode = DELETE", "BEGIN EXCLUSIVE") as holder:
        found = identity(replace(database, busy_timeout_ms=600_000))
        assert f"is locked by PID {holder.pid} " in found["unread"]
    assert "unread" not in identity(database)


async def test_a_hot_journal_is_left_to_a_writer(database: Settings) -> None:
    journal = Path(f"{database.db_path}-journal")
    run_sql(database.db_path, "PRAGMA journal_mode = DELETE")
    statements = ("PRAGMA cache_spill = 1", "PRAGMA cache_size = 1", "BEGIN", "DELETE FROM sqlite_sequence")
    grow = (
        "INSERT INTO audit (action_type) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9999) "
        "SELECT 'x' || i FROM n"
    )
    with held(database.db_path, *statements, grow):
        assert journal.stat().st_size > 0  # its owner is killed here, and nobody rolls back
    before = fingerprint(journal)
    found = identity(database)
    assert "has a hot journal" in found["unread"]
    assert fingerprint(journal) == before
