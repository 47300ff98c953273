"""What history tells of the runs of an archive, and the index of each environment: verdicts, faults, what changed."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import archives
import pytest
from archives import check, run_at
from damage import fingerprint

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import RECORD

CHANGED = "what changed since the last that passed"
MORNING, NOON, EVENING = "20261001T080000", "20261001T120000", "20261001T180000"


def facts(**changed: Any) -> Mapping[str, Any]:
    return {**archives.FACTS, **changed}


def cells(table: Any, row: int = 0) -> dict[str, str]:
    """Return a row of a table by its heads."""
    return dict(zip(table.heads, table.rows[row], strict=True))


def test_an_archive_that_is_as_it_was_written_passes_and_one_that_was_altered_fails_by_name(settings: Settings) -> None:
    record = run_at(settings, MORNING) / RECORD
    run_at(settings, NOON)
    history = nb.read_history(settings)
    assert (history.report.ok, history.report.subject) == (True, str(settings.archive_dir))
    assert check(history.report, "ledger").status == "pass"
    told = check(history.report, "runs over time").observed
    assert told == "2 runs of 1 notebook, 2026-10-01 08:00:00 to 2026-10-01 12:00:00"
    assert [run.verdict for run in history.runs] == ["pass", "pass"]
    record.write_bytes(record.read_bytes().replace(b"45056", b"45057"))
    history = nb.read_history(settings)
    assert not history.report.ok
    assert f"{record.parent.name}/{RECORD}" in check(history.report, "runs").observed
    assert [run.verdict for run in history.runs] == ["altered", "pass"]
    assert "✗ altered" in str(history)


def test_a_newest_run_that_failed_and_one_that_is_unsealed_warn_by_name_and_never_fail_the_history(
    settings: Settings,
) -> None:
    run_at(settings, MORNING)
    failed = run_at(settings, NOON, verdict="fail", reports=(archives.RED,))
    dead = run_at(settings, NOON, "explain", verdict=None)
    history = nb.read_history(settings)
    assert history.report.ok
    newest, sealed = check(history.report, "newest validate"), check(history.report, "sealed")
    assert (newest.status, newest.observed) == ("warn", f"fail: tables, 2026-10-01 12:00:00, run {failed.name}")
    assert str(failed) in newest.remedy
    assert (sealed.status, sealed.observed) == ("warn", "missing for 1 run")
    assert f"{dead.name} explain, started by " in sealed.evidence[0]
    assert check(history.report, "archived").status == "pass"  # what it has no record of, it can't archive
    run_at(settings, EVENING)
    assert check(nb.read_history(settings).report, "newest validate").status == "pass"


def test_the_run_that_asks_is_left_out_and_another_that_is_not_over_is_not(database: Settings) -> None:
    other = run_at(database, MORNING, verdict=None)
    run = nb.start_run(database, "history")
    assert run.folder is not None
    history = nb.read_history(database, run=run)
    assert [past.run_id for past in history.runs] == [other.name]
    assert run.folder.name not in history.report.to_json()
    assert [past.run_id for past in nb.read_history(database).runs] == [other.name, run.folder.name]


def test_where_there_is_no_archive_it_is_refused_with_what_makes_one(settings: Settings) -> None:
    history = nb.read_history(settings)
    assert history.report.refused
    (only,) = history.report.checks
    assert only.observed == f"no archive at {settings.archive_dir}"
    assert shlex.join(settings.command("init")) in only.remedy
    assert fingerprint(settings.archive_dir) is None


def test_the_newest_run_is_held_against_the_last_before_it_that_passed(settings: Settings) -> None:
    run_at(settings, MORNING, facts=facts(rows={"tasks": 1}))
    green = run_at(settings, NOON)
    run_at(settings, "20261001T130000", verdict="timeout", facts={})
    newest = run_at(settings, EVENING, verdict="fail", reports=(archives.RED,), facts=facts(rows={"tasks": 5}))
    table = nb.read_history(settings).since_green
    told = cells(table)
    assert len(table.rows) == 1
    assert (told[""], told["notebook"]) == ("✗ fail", "validate")
    assert told["newest run"] == f"{newest.name}\nagainst {green.name}"
    changed = told[CHANGED]
    assert "verdict of the run: pass → fail" in changed
    assert "check validate: tables: pass: " in changed
    assert "rows of tasks: 3 → 5" in changed  # 1 before the green one


GROWN = {"tasks": "CREATE TABLE tasks (id TEXT, at TEXT)", "idx_b": "CREATE INDEX idx_b ON tasks (id)"}


def test_a_change_of_the_schema_is_told_once_with_the_first_run_that_found_it(settings: Settings) -> None:
    run_at(settings, MORNING)
    found = run_at(settings, NOON, facts=facts(schema=GROWN))
    run_at(settings, EVENING, facts=facts(schema=GROWN))
    changes = nb.read_history(settings).changes
    assert {row[2] for row in changes.rows} == {found.name}
    told = {row[4]: row[5] for row in changes.rows}
    assert told["idx_a"].endswith(" → nothing")
    assert told["idx_b"].startswith("nothing → ")
    assert told["tasks"] == "CREATE TABLE tasks (id TEXT) → CREATE TABLE tasks (id TEXT, at TEXT)"


def test_a_plan_that_changed_and_changed_back_is_told_twice_newest_first(settings: Settings) -> None:
    scan = facts(plans={"get_session": ["SCAN sessions"]})
    for moment, found in ((MORNING, archives.FACTS), (NOON, scan), (EVENING, archives.FACTS)):
        run_at(settings, moment, "explain", facts=found)
    changes = nb.read_history(settings).changes
    assert [(row[0], row[3], row[4]) for row in changes.rows] == [
        ("2026-10-01 18:00:00", "plan", "get_session"),
        ("2026-10-01 12:00:00", "plan", "get_session"),
    ]
    assert changes.rows[1][5] == "SEARCH sessions USING INDEX a (id=?) → SCAN sessions"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have every environment but development below a directory of the test, and return the settings file."""
    file = tmp_path / "abathur.toml"
    file.write_text(
        "".join(
            f'[environments.{env}]\ndb_path = "{tmp_path}/{env}/abathur.db"\narchive_dir = "{tmp_path}/{env}/runs"\n'
            for env in ("staging", "production", "qa")
        ),
        encoding="utf-8",
    )
    monkeypatch.setenv("ABATHUR_CONFIG", str(file))
    return file


def cell(overview: nb.Overview, notebook: str, env: str = "development") -> str:
    table = overview._table()
    (row,) = (row for row in table.rows if row[0] == notebook)
    return row[table.heads.index(env)]


def test_of_each_notebook_the_newest_run_is_told_whatever_its_verdict(settings: Settings) -> None:
    run_at(settings, MORNING, "validate", "fail", reports=(archives.RED,))
    run_at(settings, NOON, "validate")
    run_at(settings, MORNING, "backup")
    failed = run_at(settings, EVENING, "backup", "fail", reports=(archives.RED,))
    dead = run_at(settings, NOON, "explain", None)
    overview = nb.show_environments(settings)
    assert cell(overview, "validate") == "✓ pass\n2026-10-01 12:00:00"
    assert cell(overview, "backup") == "✗ fail\n2026-10-01 18:00:00"
    assert cell(overview, "explain") == "? unsealed\n2026-10-01 12:00:00"
    assert cell(overview, "init") == "–"
    found = check(overview.report, "development")
    assert (found.status, found.observed) == ("warn", "backup fail, explain unsealed")
    assert found.evidence == (f"{failed} backup fail: tables", f"{dead} explain unsealed")
    assert overview.report.ok, "of a run that failed, its own verdict has told"


def test_each_environment_is_read_from_its_own_archive(settings: Settings) -> None:
    staging = nb.resolve("staging")
    staging.archive_dir.parent.mkdir(mode=0o700)
    run_at(staging, NOON, "validate", "fail", reports=(archives.RED,))
    run_at(settings, NOON, "validate")
    overview = nb.show_environments(settings)
    assert (cell(overview, "validate"), cell(overview, "validate", "staging")) == (
        "✓ pass\n2026-10-01 12:00:00",
        "✗ fail\n2026-10-01 12:00:00",
    )
    assert (check(overview.report, "development").status, check(overview.report, "staging").status) == ("pass", "warn")
    assert check(overview.report, "production").status == "skip"


def test_runs_of_another_database_or_environment_are_not_its_own(settings: Settings, tmp_path: Path) -> None:
    other = nb.resolve("development", db_path=tmp_path / "other.db", archive_dir=settings.archive_dir)
    qa = nb.resolve("qa", db_path=settings.db_path, archive_dir=settings.archive_dir)
    run_at(other, NOON, "validate")
    run_at(other, NOON, "explain", None)
    run_at(qa, NOON, "init")
    overview = nb.show_environments(settings)
    assert overview.newest["development"] == {}
    assert check(overview.report, "development").observed == "no run of its database yet"


@pytest.mark.parametrize("file", [RECORD, LEDGER])
def test_an_archive_that_is_not_as_it_was_written_fails_and_names_the_first_fault(
    file: str, settings: Settings
) -> None:
    folder = run_at(settings, MORNING, "init")
    run_at(settings, NOON)
    path = settings.archive_dir / file if file == LEDGER else folder / file
    path.write_bytes(path.read_bytes().replace(b'"verdict":"pass"', b'"verdict":"fail"', 1))
    overview = nb.show_environments(settings)
    found = check(overview.report, "development")
    assert found.status == "fail"
    assert found.observed.startswith("altered or damaged: ")
    assert found.remedy == f"python -m abathur_nb verify {settings.archive_dir}"
    assert any(file in line for line in found.evidence)
    if file == RECORD:
        assert cell(overview, "init") == "✗ altered\n2026-10-01 08:00:00"


def test_an_archive_of_another_account_is_skipped_but_ones_own_must_be_read() -> None:
    staging = nb.resolve("staging")
    staging.archive_dir.parent.mkdir(mode=0o700)
    run_at(staging, NOON)
    told = {}
    staging.archive_dir.parent.chmod(0)
    try:
        for env in ("development", "staging"):
            program = f"import abathur_nb as nb; print(nb.show_environments(nb.resolve({env!r})).report.to_json())"
            # Not even root enters a closed directory without this.
            bounded = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
            done = subprocess.run([*bounded, sys.executable, "-c", program], capture_output=True, text=True, check=True)
            told[env] = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    finally:
        staging.archive_dir.parent.chmod(0o700)
    found = told["development"]["staging"]
    assert found["status"] == "skip"
    assert found["observed"] == f"could not run: {staging.archive_dir} cannot be read: Permission denied"
    assert "run this notebook as abathur, who owns it" in found["remedy"]
    assert told["staging"]["staging"]["status"] == "error"


def test_settings_that_are_wrong_fail_their_environment_and_the_others_are_told(
    settings: Settings, elsewhere: Path
) -> None:
    run_at(settings, NOON)
    with elsewhere.open("a", encoding="utf-8") as file:
        file.write('readers = "many"\nmemory_p99_ms = 0\n')
    overview = nb.show_environments(settings)
    found = check(overview.report, "qa")
    assert found.status == "fail"
    assert "readers (from settings file" in found.observed
    assert "memory_p99_ms (from settings file" in found.observed
    assert cell(overview, "database", "qa") == "?"
    assert check(overview.report, "development").status == "pass"
    assert not overview.report.ok
