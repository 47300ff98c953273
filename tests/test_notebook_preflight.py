"""preflight.ipynb: what this machine and this place can carry, and nothing left behind."""

from pathlib import Path

import pytest
from damage import untouched
from test_notebook_runs import NOTEBOOKS, in_kernel, papermill

from abathur_nb.settings import Settings

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
