"""preflight.ipynb: what this machine and this place can carry, and nothing left behind."""

from pathlib import Path

import pytest
from damage import untouched
from notebook_runs_helpers import NOTEBOOKS, in_kernel, papermill

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import read_archive

SOURCE = NOTEBOOKS / "preflight.ipynb"


def test_before_anything_is_made_it_passes_and_makes_nothing(settings: Settings, home: Path, tmp_path: Path) -> None:
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(settings.db_path)).succeeded()
    assert f"directory: {settings.db_path.parent} will be made 0700" in run.report
    assert "file system behaviour: journal mode wal" in run.report
    assert {path.name for path in tmp_path.iterdir()} == {"out.ipynb"}
    assert not (home / "abathur_data").exists()


def test_a_directory_in_place_of_the_database_fails_it_and_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with untouched(folder):
        run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(folder))
    run.failed("ChecksFailedError: preflight of ", f"database file: {folder} is a directory").showed_its_report()
    assert "db_path: name a regular file" in run.report
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out.ipynb"}


async def test_every_fault_of_the_place_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABATHUR_MIN_FREE_MB", str(10**9))
    monkeypatch.setenv("ABATHUR_REQUIRE_SAFE_WAL", "true")
    (tmp_path / "x.db").write_text("no database")
    with untouched(tmp_path / "x.db"):
        run = await in_kernel(SOURCE, tmp_path, db_path=str(tmp_path / "x.db"))
    assert run.code == 1
    assert "free disk: " in run.error
    assert "database file: " in run.error
    assert "from</th>" in run.shown()[0]
    assert "ABATHUR_MIN_FREE_MB" in run.shown()[0]
    run.showed_its_report()


def test_who_says_that_the_team_is_trained_stands_in_the_report_and_in_the_record(
    settings: Settings, tmp_path: Path
) -> None:
    settings.db_path.parent.mkdir(mode=0o700)  # else there is no place for a record
    said = ("-r", "team_trained", "Ada Lovelace, 2026-11-20")
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(settings.db_path), *said).succeeded()
    assert "– skip           team trained on procedures: said by Ada Lovelace on 2026-11-20" in run.report
    (record,) = (entry.record for entry in read_archive(settings.archive_dir))
    assert record is not None
    (check,) = (check for check in record.checks if check.id == "team_trained")
    assert (check.status, check.observed) == ("skip", "said by Ada Lovelace on 2026-11-20")
    assert record.parameters["team_trained"] == "Ada Lovelace, 2026-11-20"


@pytest.mark.parametrize("answer", ["yes", "Ada Lovelace, 20 November", "Ada Lovelace, 9999-12-31"])
def test_an_answer_of_another_form_runs_nothing_and_tells_the_form(
    answer: str, settings: Settings, tmp_path: Path
) -> None:
    given = ("-r", "db_path", str(settings.db_path), "-r", "team_trained", answer)
    run = papermill(SOURCE, tmp_path / "out.ipynb", *given)
    run.failed("team_trained: expected a ", 'as in "Ada Lovelace, 2026-11-20", found', "nothing of this cell was run")
    assert {path.name for path in tmp_path.iterdir()} == {"out.ipynb"}
