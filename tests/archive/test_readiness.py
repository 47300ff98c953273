"""Each line of the checklists is answered by a run that is archived, fresh and green, or by a named person."""

import ast
import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import archives
import pytest

import abathur_nb as nb
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.record import Verdict
from abathur_nb.evidence.run import write_started
from abathur_nb.files import read_regular
from abathur_nb.measure.alerts import alerts_of
from abathur_nb.measure.snapshot import take_snapshot
from abathur_nb.report import Check, Report, Status, id_of
from abathur_nb.runbook.readiness import CHECKLIST, Line

SAID = dict.fromkeys((line.id for line in CHECKLIST if not line.notebook), "Ada Lovelace, 2026-01-31")
LINES = tuple(line for line in CHECKLIST if not line.env)  # of an environment that is not production


@pytest.fixture
def settings(database: Settings) -> Settings:
    return database


def run(
    settings: Settings,
    notebook: str,
    *,
    days: float = 0.5,
    parameters: Mapping[str, object] | None = None,
    status: Status = "pass",
    verdict: Verdict = "pass",
) -> Path:
    """Make an archived run that began so many days ago, in which every check that a line asks for has one status."""
    moment = datetime.now(UTC) - timedelta(days=days)
    run_id = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03}Z-{abs(hash((notebook, days))) % 2**24:06x}"
    folder = write_started(settings, notebook, {"env": settings.env, **(parameters or {})}, run_id=run_id)
    names = sorted({name for line in CHECKLIST if line.notebook == notebook for name in line.checks}) or ["all"]
    report = Report(notebook, tuple(Check(name, status) for name in names))
    archives.seal(folder, settings, verdict, reports=(report,), facts={})
    keep(folder, settings, archives.notebook(notebook), html=False)
    return folder


def wanted(settings: Settings, *, but: str = "") -> None:
    """Make every run that the checklists ask for, oldest first, but those of one notebook."""
    kinds = {(line.notebook, tuple(line.parameters.items())) for line in LINES if line.notebook not in ("", but)}
    for age, (notebook, parameters) in enumerate(sorted(kinds, key=str)):
        run(settings, notebook, days=1.5 - age / 100, parameters=dict(parameters))


def asked(settings: Settings, **said: Any) -> nb.Readiness:
    return asyncio.run(nb.readiness(settings, **{**SAID, **said}))


def answers(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in asked(settings).report.checks}


def test_the_checklists_have_every_line_of_the_runbook_once() -> None:
    sections = [line.section for line in CHECKLIST]
    assert {name: sections.count(name) for name in dict.fromkeys(sections)} == {
        "Pre-Migration": 5,
        "Initialization": 5,
        "Validation": 6,
        "Performance": 4,
        "Production Readiness": 5,
        "Pre-Production (3.3)": 5,
    }
    told = {(line.section, line.text) for line in CHECKLIST}
    assert len(told) == len(CHECKLIST)


def test_what_a_line_asks_for_is_a_check_that_its_notebook_makes() -> None:
    """An id that no verb gives a check would make the line fail for ever, or pass for nothing."""
    root = Path(nb.__file__).parent
    code = "".join(path.read_text() for path in root.rglob("*.py") if path.name != "readiness.py")
    nodes = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant))
    known = {id_of(node.value) for node in nodes if isinstance(node.value, str)}
    for line in (line for line in CHECKLIST if line.notebook):
        assert {*line.checks} <= known, line
        assert (root.parent / "notebooks" / f"{line.notebook}.ipynb").exists()


def test_with_all_evidence_and_all_statements_it_is_a_go(settings: Settings) -> None:
    wanted(settings)
    found = asked(settings)
    assert found.report.ok, str(found)
    assert found.verdict == "GO"
    trained = archives.check(found.report, "Team trained on procedures")
    assert trained.status == "skip"  # said, and not passed by itself
    assert "said by Ada Lovelace on 2026-01-31" in trained.observed


def test_with_no_archive_it_is_a_no_go_and_nothing_is_made(settings: Settings) -> None:
    found = asyncio.run(nb.readiness(settings))
    assert found.verdict == f"NO-GO: {len(LINES) + 1} of {len(LINES) + 1} lines lack their evidence"
    assert not settings.archive_dir.exists()


def test_what_nobody_has_said_or_says_in_another_form_is_a_no_go(settings: Settings) -> None:
    wanted(settings)
    for name in SAID:
        found = asked(settings, **{name: None})
        failed = [check for check in found.report.checks if check.failed]
        assert {check.name for check in failed} == {line.text for line in LINES if line.id == name}
        assert all(f"-p {name}" in check.remedy for check in failed)
        with pytest.raises(nb.ConfigurationError, match="expected a person's name and a date"):
            asked(settings, **{name: "yes"})


@pytest.mark.parametrize("notebook", sorted({line.notebook for line in LINES if line.notebook}))
def test_each_kind_of_evidence_that_lacks_is_named_with_its_run(notebook: str, settings: Settings) -> None:
    wanted(settings, but=notebook)
    failed = [check for check in asked(settings).report.checks if check.failed]
    assert {check.name for check in failed} == {line.text for line in LINES if line.notebook == notebook}
    assert all(f"run {notebook} --env development" in check.remedy for check in failed)


def test_a_check_that_did_not_pass_is_no_evidence(settings: Settings) -> None:
    wanted(settings)
    statuses: tuple[Status, ...] = ("warn", "skip")
    for number, status in enumerate(statuses):
        run(settings, "preflight", days=0.4 - number / 10, status=status)
        observed = answers(settings)["Disk space available (10GB+)"].observed
        assert "not passed: free disk" in observed


def test_the_newest_run_counts_though_an_older_one_was_green(settings: Settings) -> None:
    wanted(settings)
    run(settings, "explain", days=0.1, verdict="fail")
    check = answers(settings)["No full table scans in critical queries"]
    assert check.failed
    assert "fail; it did not pass" in check.observed


def test_a_drill_proves_the_procedures_for_a_quarter(settings: Settings) -> None:
    wanted(settings, but="restore")
    for days, failed in ((91, True), (89, False)):
        run(settings, "restore", days=days, parameters={"drill": True})
        assert answers(settings)["Rollback procedures tested"].failed is failed


def test_the_last_validation_is_the_last_of_the_ledger_whatever_its_clock_said(settings: Settings) -> None:
    for days in (1, -300, 0.1):
        run(settings, "validate", days=days)
        found = asyncio.run(take_snapshot(settings))[0]
        (alert,) = (c for c in alerts_of(found, settings) if c.name == "age of the last passed validation")
        assert alert.status == ("warn" if days < 0 else "pass"), days


@pytest.mark.parametrize("line", [line for line in LINES if line.parameters], ids=lambda line: line.text[:20])
def test_a_run_with_other_parameters_is_no_evidence(line: Line, settings: Settings) -> None:
    wanted(settings, but=line.notebook)
    run(settings, line.notebook, parameters={"reason": "manual"})
    words = " ".join(f"{name} {value}" for name, value in line.parameters.items())
    check = answers(settings)[line.text]
    assert check.observed == f"no archived run of {line.notebook} with {words}"
    assert check.remedy.endswith(f"-p {words}")


@pytest.mark.parametrize(
    ("notebook", "parameters", "verdict", "void"),
    [
        ("restore", {"apply": True}, "pass", True),
        ("rollback", {"apply": True}, "error", True),
        ("troubleshoot", {"repair": True}, "fail", True),
        ("rollback", {"apply": True}, "refused", False),
        ("rollback", {"apply": False}, "pass", False),
    ],
)
def test_what_was_found_before_the_database_was_changed_is_void(
    notebook: str, parameters: dict[str, Any], verdict: Verdict, void: bool, settings: Settings
) -> None:
    wanted(settings)
    run(settings, notebook, days=0.1, parameters=parameters, verdict=verdict)
    found = answers(settings)
    assert found["All 33 indexes created"].failed is void
    assert ("the database was changed later" in found["All 33 indexes created"].observed) is void
    assert not found["Session retrieval <10ms (p99)"].failed


def test_an_altered_run_is_no_evidence_and_costs_no_other_line(settings: Settings) -> None:
    wanted(settings)
    record = min(settings.archive_dir.glob("*/record.json"))
    record.write_bytes(record.read_bytes().replace(b'"pass"', b'"fail"', 1))
    found = asked(settings)
    assert found.verdict.startswith("NO-GO: ")
    failed = [check for check in found.report.checks if check.failed]
    assert record.parent.name in failed[0].observed
    assert "verify" in failed[0].remedy
    name = json.loads(record.read_bytes())["notebook"]
    assert {check.name for check in failed[1:]} == {line.text for line in LINES if line.notebook == name}


def test_production_wants_a_green_staging(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "abathur.toml"
    config.write_text(
        f'[environments.staging]\ndb_path = "{tmp_path}/staging/abathur.db"\n'
        f'[environments.production]\ndb_path = "{settings.db_path}"\nbackup_dir = "{tmp_path}/backups"\n'
    )
    monkeypatch.setenv("ABATHUR_CONFIG", str(config))
    production, staging = resolve("production"), resolve("staging")
    wanted(production)
    name = "Staging environment validated"
    assert answers(production)[name].failed
    run(staging, "validate", verdict="fail")
    assert answers(production)[name].failed
    run(staging, "validate", days=0.1)
    found = asked(production)
    assert found.report.ok, str(found)
    assert "staging: the archive is as it was written" in answers(production)


def test_a_run_of_the_future_is_no_evidence_until_the_ledger_has_one_after_it(settings: Settings) -> None:
    wanted(settings, but="explain")
    run(settings, "explain", days=-300)
    name = "No full table scans in critical queries"
    check = answers(settings)[name]
    assert check.failed
    assert "300.0 days in the future" in check.observed
    run(settings, "explain", days=0.01)
    found = asked(settings)
    assert found.report.ok, str(found)


def test_the_run_of_another_database_is_no_evidence(settings: Settings) -> None:
    wanted(replace(settings, db_path=settings.db_path.with_name("other.db")))
    check = answers(settings)["Backup directory created"]
    assert "no archived run of preflight" in check.observed


def test_readiness_and_history_read_each_file_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(settings, "validate")
    read: list[Path] = []

    def counting(path: Path) -> bytes:
        read.append(path)
        return read_regular(path)

    monkeypatch.setattr("abathur_nb.evidence.record.read_regular", counting)
    for ask in (lambda: asyncio.run(nb.readiness(settings)), lambda: nb.read_history(settings)):
        read.clear()
        ask()
        assert [path.name for path in read if path.parent == folder] == ["started.json", "record.json"]
