"""The difference of two runs: what they found out counts, what merely varies does not."""

from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from archives import FACTS, GREEN, IDENTITY, RED, run, start
from archives import record_with as record
from damage import ROWS, run_sql

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.evidence.record import RECORD, Record
from abathur_nb.report import Check, Report, Status
from abathur_nb.runbook.explain import explain_queries
from abathur_nb.runbook.history import circumstances, differences
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.preflight import preflight
from abathur_nb.runbook.validate import validate_database


def facts(**more: Any) -> Record:
    return record(facts={**deepcopy(dict(FACTS)), **more})


def told(earlier: Record, later: Record) -> list[str]:
    return [str(change) for change in differences(earlier, later)]


def test_a_record_does_not_differ_from_itself() -> None:
    assert differences(record(), record()) == ()
    assert circumstances(record(), record()) == ()


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
    (facts(schema={**FACTS["schema"], "tasks": TABLE}), f"schema tasks: CREATE TABLE tasks (id TEXT) → {TABLE}"),
    (facts(schema={"tasks": FACTS["schema"]["tasks"]}), "schema idx_a: CREATE INDEX idx_a ON tasks (id) → nothing"),
    (facts(plans=SCAN), "plan get_session: SEARCH sessions USING INDEX a (id=?) → SCAN sessions; USE TEMP B-TREE"),
    (facts(rows={"tasks": 4}), "rows of tasks: 3 → 4"),
    (facts(sizes={"tasks": 8192}), "bytes of tasks: 4096 → 8192"),
    (record(database={"before": IDENTITY, "after": {**IDENTITY, "user_version": 2}}), "database user_version: 1 → 2"),
    (facts(percentiles_ms=SLOWER), "percentile session retrieval, p50: 0.2 ms (0.1–0.3) → 0.4 ms (0.36–0.5)"),
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
def test_a_percentile_has_changed_where_one_interval_lies_clearly_above_the_other(
    one: Any, other: Any, changed: bool
) -> None:
    earlier, later = (facts(percentiles_ms={"read": {"p50": bounds}}) for bounds in (one, other))
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


def test_wrong_arguments_exit_with_2_and_name_every_fault(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, altered = run(settings), run(settings)
    data = unsealed((altered / RECORD).read_bytes())
    (altered / RECORD).write_bytes(sealed({**data, "facts": {}}))
    died = start(settings)
    for name, words in (
        (died.name, f"run {died.name}: expected a sealed, unaltered one, found an unsealed one, which is not evidence"),
        (altered.name, "is not the file that the ledger names"),
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
