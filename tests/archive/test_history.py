"""What history, the index and a comparison tell of runs: verdicts, faults, and what changed in meaning."""

import json
import os
import shlex
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from archives import FACTS, GREEN, IDENTITY, RED, check, run, run_at, start
from archives import record_with as record
from damage import ROWS, fingerprint, run_sql

import abathur_nb as nb
from abathur_nb.cli import main
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.evidence.record import RECORD, Record
from abathur_nb.report import Check, Report, Status
from abathur_nb.runbook.explain import explain_queries
from abathur_nb.runbook.history import circumstances, differences
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.preflight import preflight
from abathur_nb.runbook.validate import validate_database

CHANGED = "what changed since the last that passed"
MORNING, NOON, EVENING = "20261001T080000", "20261001T120000", "20261001T180000"


def facts(**changed: Any) -> dict[str, Any]:
    return {**deepcopy(dict(FACTS)), **changed}


def cells(table: Any, row: int = 0) -> dict[str, str]:
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


def test_a_newest_run_that_failed_or_is_unsealed_warns_by_name_and_never_fails_the_history(settings: Settings) -> None:
    run_at(settings, MORNING)
    failed = run_at(settings, NOON, verdict="fail", reports=(RED,))
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
    newest = run_at(settings, EVENING, verdict="fail", reports=(RED,), facts=facts(rows={"tasks": 5}))
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
    for moment, found in ((MORNING, FACTS), (NOON, scan), (EVENING, FACTS)):
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
    return str(row[table.heads.index(env)])


def test_of_each_notebook_the_newest_run_is_told_whatever_its_verdict(settings: Settings) -> None:
    run_at(settings, MORNING, "validate", "fail", reports=(RED,))
    run_at(settings, NOON, "validate")
    run_at(settings, MORNING, "backup")
    failed = run_at(settings, EVENING, "backup", "fail", reports=(RED,))
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
    run_at(staging, NOON, "validate", "fail", reports=(RED,))
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
def test_an_archive_that_was_altered_fails_and_names_the_first_fault(file: str, settings: Settings) -> None:
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


def test_wrong_settings_fail_their_environment_and_the_others_are_told(settings: Settings, elsewhere: Path) -> None:
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


def with_facts(**more: Any) -> Record:
    return record(facts=facts(**more))


def told(earlier: Record, later: Record) -> list[str]:
    return [str(change) for change in differences(earlier, later)]


NINE, TABLE = "9 tables, each as in sql/", "CREATE TABLE tasks (id TEXT, more TEXT)"
SCAN = {"get_session": ["SCAN sessions", "USE TEMP B-TREE"]}
SLOWER = {"session retrieval": {"p50": [0.36, 0.4, 0.5], "p99": [0.6, 0.9, None]}}
NO_SKY = Report("more", (Check("sky", "pass"),)).to_dict()
COUNTS: list[tuple[Record, str]] = [  # what was found out, and how it is told
    (record(verdict="error"), "verdict of the run: pass → error"),
    (record(reports=[RED.to_dict()]), f"check validate: tables: pass: {NINE} → fail: 8 tables; missing: audit"),
    (record(reports=[GREEN.to_dict(), NO_SKY]), "check more: sky: nothing → pass"),
    (record(reports=[]), f"check validate: tables: pass: {NINE} → nothing"),
    (record(error={"cell": 3, "id": "x", "name": "Oops", "message": "no"}), "error of a cell: nothing → Oops: no"),
    (with_facts(schema={**FACTS["schema"], "tasks": TABLE}), f"schema tasks: CREATE TABLE tasks (id TEXT) → {TABLE}"),
    (
        with_facts(schema={"tasks": FACTS["schema"]["tasks"]}),
        "schema idx_a: CREATE INDEX idx_a ON tasks (id) → nothing",
    ),
    (with_facts(plans=SCAN), "plan get_session: SEARCH sessions USING INDEX a (id=?) → SCAN sessions; USE TEMP B-TREE"),
    (with_facts(rows={"tasks": 4}), "rows of tasks: 3 → 4"),
    (with_facts(sizes={"tasks": 8192}), "bytes of tasks: 4096 → 8192"),
    (record(database={"before": IDENTITY, "after": {**IDENTITY, "user_version": 2}}), "database user_version: 1 → 2"),
    (with_facts(percentiles_ms=SLOWER), "percentile session retrieval, p50: 0.2 ms (0.1–0.3) → 0.4 ms (0.36–0.5)"),
]


@pytest.mark.parametrize(("later", "words"), COUNTS)
def test_what_was_found_out_counts(later: Record, words: str) -> None:
    assert told(record(), later) == [words]
    assert len(differences(later, record())) == 1


@pytest.mark.parametrize(
    ("one", "other", "changed"),
    [
        ([1, 2, 3], [3, 4, 5], False),
        ([1, 2, 3], [3.29, 4, 5], False),
        ([1, 2, 3], [3.31, 4, 5], True),
        ([3.31, 4, 5], [1, 2, 3], True),
        ([1, 2, None], [9, 10, 11], False),
        ([None, 2, 3], [9, 10, None], True),
        ([None, 2, None], [9, 10, 11], False),
    ],
)
def test_a_percentile_has_changed_where_an_interval_lies_clearly_above(one: Any, other: Any, changed: bool) -> None:
    earlier, later = (with_facts(percentiles_ms={"read": {"p50": bounds}}) for bounds in (one, other))
    assert bool(told(earlier, later)) is changed


def test_a_check_of_an_old_record_which_has_no_id_is_compared_by_its_title() -> None:
    def of(number: int = 2, **more: Any) -> Record:
        check = asdict(Check("disk_low", "pass", name="free disk")) | more
        lacking = {name: value for name, value in check.items() if number == 2 or name != "id"}
        return record(format=number, reports=[{**GREEN.to_dict(), "title": "monitor", "checks": [lacking]}])

    old = of(1)
    assert told(old, of()) == told(of(), old) == []
    assert told(of(), of(name="room on the disk")) == []
    assert told(old, of(name="room on the disk")) == [
        "check monitor: free disk: pass → nothing",
        "check monitor: room on the disk: nothing → pass",
    ]


@pytest.mark.parametrize("status", ["pass", "warn", "fail"])
def test_the_words_of_a_check_do_not_count(status: Status) -> None:
    """They name times, paths and amounts; what matters of them is in the status and the data."""
    one, other = (
        record(reports=[Report("trial", (Check("disk", status, "room", text),)).to_dict()])
        for text in ("75,866 MB at /var/lib/abathur", "75,858 MB at /srv/data, seen at 2026-11-23 10:15:00")
    )
    assert told(one, other) == []


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (record(started_at="2027-01-01 00:00:00", ended_at="2028-01-01 00:00:00", run_id="x"), []),
        (record(user="bob", host="den"), ["run user: ada → bob", "run host: lab → den"]),
        (record(env="production"), ["run env: development → production"]),
        (record(versions={"SQLite": "3.51.3"}), ["versions SQLite: 3.40.1 → 3.51.3"]),
        (record(settings={"readers": "4"}), ["settings readers: 2 → 4"]),
        (record(parameters={"env": "development", "rows": 7}), ["parameters rows: nothing → 7"]),
        (record(template={"name": "x", "sha256": "0" * 64}), ["template name: validate.ipynb → x"]),
    ],
)
def test_circumstances_are_told_and_do_not_count(later: Record, words: list[str]) -> None:
    assert differences(record(), later) == ()
    assert [str(change) for change in circumstances(record(), later)] == words


async def reports_of(settings: Settings) -> list[Any]:
    made = [await preflight(settings), await initialize_database(settings)]
    return [*made, await validate_database(settings), (await explain_queries(settings)).report]


async def test_the_same_database_made_twice_elsewhere_has_reports_that_do_not_differ(tmp_path: Path) -> None:
    """Real reports, two paths, other rows."""
    folders = [tmp_path / "one", tmp_path / "two" / "deeper"]
    found = []
    for number, folder in enumerate(folders):
        settings = resolve("development", db_path=folder / "abathur.db")
        reports = await reports_of(settings)
        if number:
            run_sql(settings.db_path, *ROWS)
            reports[2] = await validate_database(settings)
        found.append(record(reports=[report.to_dict() for report in reports]))
    assert told(*found) == []
    run_sql(settings.db_path, "DROP INDEX idx_audit_task")
    reports[2] = await validate_database(settings)
    found[1] = replace(found[1], reports=tuple(reports))
    assert told(*found)[0].startswith("check validate: indexes: pass: ")


def diff(settings: Settings, *runs: str) -> int:
    return main(["diff", *runs, "--archive", str(settings.archive_dir)])


def test_two_runs_that_found_the_same_exit_with_0(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = run(settings), run(settings)
    assert diff(settings, one.name, other.name) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["nothing changed in meaning"]
    assert diff(settings, one.name, one.name) == 0


def test_two_that_differ_exit_with_1_and_say_how(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = run(settings), run(settings, "fail", reports=(RED,))
    assert diff(settings, one.name, other.name) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"earlier: {one.name} validate of development: pass, ")
    assert out[1].startswith(f"later:   {other.name} validate of development: fail, ")
    assert out[2] == "2 changed in meaning:"
    assert out[3] == "  verdict of the run: pass → fail"


def test_wrong_arguments_exit_with_2_and_all_are_named(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    sound, altered = run(settings), run(settings)
    data = unsealed((altered / RECORD).read_bytes())
    (altered / RECORD).write_bytes(sealed({**data, "facts": {}}))
    died = start(settings)
    for name, words in (
        (died.name, f"run {died.name}: expected a sealed, unaltered run, found an unsealed run, which is not evidence"),
        (altered.name, "its hash is not the one in the ledger"),
        ("x", "expected the beginning of one run id, found none"),
        ("2", "expected the beginning of one run id, found 2"),
    ):
        assert diff(settings, sound.name, name) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert diff(settings, "x", died.name) == 2
    assert capsys.readouterr().err.count("\n") == 2
    for arguments in (["diff", sound.name], ["diff", *[sound.name] * 3]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
