"""history.ipynb: it tells what happened in an archive, and fails only where that is not as it was written."""

import json
import shutil
from pathlib import Path

import archives
import pytest
from damage import fingerprint, untouched
from notebook_runs_helpers import NOTEBOOKS, Run, in_kernel, papermill
from past_helpers import run_at

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import RECORD, Entry, read_archive

SOURCE = NOTEBOOKS / "history.ipynb"
LIMITED = {**archives.FACTS, "limits_ms": {"session retrieval": ["p99", 10.0]}, "machine": {"rows": 500}}


def eventful(settings: Settings) -> Path:
    """Make an archive in which much has happened, and return its directory."""
    run_at(settings, "20261001T080000", "init", facts=LIMITED)
    run_at(settings, "20261002T080000", "benchmark", facts=LIMITED)
    without = {**LIMITED, "schema": {"tasks": LIMITED["schema"]["tasks"]}}
    run_at(settings, "20261003T080000", "validate", facts=LIMITED)
    run_at(settings, "20261004T080000", "validate", "fail", reports=(archives.RED,), facts=without)
    run_at(settings, "20261005T080000", "explain", None)
    return settings.archive_dir


def own(archive: Path) -> Entry:
    return read_archive(archive)[-1]


def history(settings: Settings, output: Path, *arguments: str) -> Run:
    return papermill(SOURCE, output, "-r", "db_path", str(settings.db_path), *arguments)


def test_it_tells_what_happened_and_a_failed_run_does_not_fail_it(database: Settings, tmp_path: Path) -> None:
    archive = eventful(database)
    run = history(database, tmp_path / "out.ipynb").succeeded()
    assert "newest validate: fail, 2026-10-04 08:00:00, run " in run.report
    assert "sealed: 1 have none, and are no evidence" in run.report
    html = "".join(run.shown())
    assert "verdict of the run: pass → fail" in html  # since the last green run
    assert "idx_a</td>" in html  # the schema without it
    assert "it is gone" in html
    verdicts, percentiles, sizes = run.shown("image/png")
    assert min(map(len, (verdicts, percentiles, sizes))) > 10_000
    words = run.shown("text/plain")
    assert any(text.startswith("Verdicts of 5 runs, 2026-10-01 to 2026-10-05: ") for text in words)
    assert any("session retrieval p99 0.7 ms at first" in text for text in words)
    assert own(archive).verdict == "pass"


def test_its_own_record_says_what_it_read_and_is_read_by_the_next(database: Settings, tmp_path: Path) -> None:
    archive = eventful(database)
    history(database, tmp_path / "one.ipynb").succeeded()
    record = own(archive).record
    assert record is not None
    assert record.notebook == "history"
    assert record.facts == {"history": {"archive": str(archive), "runs": 5, "ledger_head": record.ledger_head}}
    run = history(database, tmp_path / "two.ipynb").succeeded()
    assert "newest history: pass" in run.report
    assert any(text.startswith("Verdicts of 6 runs, ") for text in run.shown("text/plain"))


async def test_the_run_itself_is_no_unsealed_one_in_a_live_kernel_either(database: Settings, tmp_path: Path) -> None:
    run_at(database, "20261001T080000")
    run = (await in_kernel(SOURCE, tmp_path, db_path=str(database.db_path))).succeeded()
    assert "✓ pass           sealed: each has" in run.report
    assert any(text.startswith("Verdicts of 1 run") for text in run.shown("text/plain"))


def test_a_number_changed_in_an_old_record_fails_it_by_name_and_so_it_is_recorded(
    database: Settings, tmp_path: Path
) -> None:
    archive = eventful(database)
    record = next(archive.glob("20261002*")) / RECORD
    record.write_bytes(record.read_bytes().replace(b'"p99":[0.5,0.7,null]', b'"p99":[0.5,0.6,null]'))
    run = history(database, tmp_path / "out.ipynb")
    run.failed(f"history of {archive}: 1 of ", f"{record.parent.name}/{RECORD}: it is not the file").showed_its_report()
    assert any("benchmark 1 altered" in text for text in run.shown("text/plain"))
    assert own(archive).verdict == "fail"


def test_a_copy_of_an_archive_is_read_and_not_that_of_the_environment(database: Settings, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(eventful(database), tmp_path / "copy"))
    shutil.rmtree(database.archive_dir)
    before = {path: fingerprint(path) for path in copy.rglob("*")}
    run = history(database, tmp_path / "out.ipynb", "-r", "archive", str(copy)).succeeded()
    assert run.report.splitlines()[1].strip().startswith(f"{copy} · ")
    assert any(text.startswith("Verdicts of 5 runs, ") for text in run.shown("text/plain"))
    assert {path: fingerprint(path) for path in copy.rglob("*")} == before
    assert len(read_archive(database.archive_dir)) == 1  # the record of this run


def test_the_archive_of_a_database_that_is_gone_is_read_and_that_is_recorded(
    database: Settings, tmp_path: Path
) -> None:
    archive = eventful(database)
    for path in database.db_path.parent.glob("abathur.db*"):
        path.unlink()
    run = history(database, tmp_path / "out.ipynb").succeeded()
    assert any(text.startswith("Verdicts of 5 runs, ") for text in run.shown("text/plain"))
    record = own(archive).record
    assert record
    assert (record.verdict, record.database) == ("pass", {"before": None, "after": None})
    assert len(read_archive(archive)) == 6


def test_where_there_is_neither_database_nor_archive_it_is_refused_and_nothing_is_made(
    settings: Settings, tmp_path: Path
) -> None:
    run = history(settings, tmp_path / "out.ipynb")
    run.failed(f"history of {settings.archive_dir}: refused: archive: no archive at ").showed_its_report()
    assert "papermill init.ipynb out.ipynb -p env development -p db_path" in run.report
    assert fingerprint(settings.db_path.parent) is None


def test_an_archive_that_is_none_stops_it_in_one_line_and_is_recorded_as_refused(
    database: Settings, tmp_path: Path
) -> None:
    with untouched(database.db_path):
        run = history(database, tmp_path / "out.ipynb", "-r", "archive", str(tmp_path / "absent"))
    run.failed(
        f"ConfigurationError: archive: expected the directory of an archive, found none at {tmp_path / 'absent'}"
    )
    assert own(database.archive_dir).verdict == "refused"


@pytest.mark.parametrize("value", ["7", "True", '["a"]', '{"a": 1}'])
def test_an_archive_that_is_no_text_is_refused_before_anything_runs(
    value: str, database: Settings, tmp_path: Path
) -> None:
    run = history(database, tmp_path / "out.ipynb", "-y", json.dumps({"archive": json.loads(value.lower())}))
    run.failed("archive: expected str, found ")
    assert fingerprint(database.archive_dir) is None
