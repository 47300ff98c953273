"""What an archive tells of its runs together: sound or not, what is not evidence, what changed and when."""

import shlex
from collections.abc import Mapping
from typing import Any

import archives
from archives import check, run_at
from damage import fingerprint

import abathur_nb as nb
from abathur_nb.config.settings import Settings
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
