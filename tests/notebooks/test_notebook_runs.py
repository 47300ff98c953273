"""Every notebook run as an operator runs it, by papermill and in a live kernel; and the two runners themselves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import fingerprint, untouched
from notebook_runs_helpers import NOTEBOOKS, in_kernel, papermill
from patience import GENEROUS

from abathur_nb.config.settings import Settings
from abathur_nb.runbook.backup import backup_database

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
WITHOUT_A_DATABASE = {"history", "index", "init", "preflight", "readiness", "restore"}
PASSING = sorted({*NAMES} - {"readiness"})  # on a fresh database; nothing is ready before it was proven

# Enough of everything for the benchmark to claim a p99, and no more.
QUICK = {"benchmark": ("-y", "{rows: 500, repetitions: 299}"), "rollback": ("-r", "to", "fresh")}


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """Return a working directory that has nothing to do with the notebook, the checkout or the database."""
    folder = tmp_path / "away"
    folder.mkdir()
    return folder


async def prepare(name: str, database: Settings) -> None:
    """Make what a notebook needs beside a fresh database."""
    if name == "restore":
        (await backup_database(database)).raise_for_failures()


@pytest.mark.parametrize("name", PASSING)
async def test_a_copy_of_it_passes_under_papermill_from_any_working_directory(
    name: str, database: Settings, tmp_path: Path, away: Path
) -> None:
    await prepare(name, database)
    copy = Path(shutil.copy(NOTEBOOKS / f"{name}.ipynb", tmp_path))
    before = copy.read_bytes()
    arguments = (*QUICK.get(name, ()), "-r", "db_path", str(database.db_path))
    with untouched(database.db_path):
        run = papermill(copy, tmp_path / "out.ipynb", *arguments, cwd=away, env=GENEROUS).succeeded()
    title = "initialize" if name == "init" else name
    assert run.report.startswith((f"{title} passed: ", f"{title} (plan) passed: "))
    subject = database.archive_dir if name == "history" else database.db_path
    assert run.report.splitlines()[1].strip().startswith(f"{subject} · ")
    assert "<p>abathur_nb " in run.shown()[0]  # the settings of this run, versions and time
    assert list(away.iterdir()) == []
    assert copy.read_bytes() == before
    beside = {path.name for path in database.db_path.parent.iterdir()}
    assert beside <= {"abathur.db", "abathur.db-wal", "abathur.db-shm", "backups", "runs"}


@pytest.mark.parametrize("name", PASSING)
async def test_it_passes_in_a_live_kernel_with_values_written_by_hand(
    name: str, database: Settings, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare(name, database)
    for variable, value in GENEROUS.items():
        monkeypatch.setenv(variable, value)
    quick: dict[str, Any] = {"rows": 500, "repetitions": 299} if name == "benchmark" else {}
    quick |= {"to": "fresh"} if name == "rollback" else {}
    with untouched(database.db_path):
        run = await in_kernel(NOTEBOOKS / f"{name}.ipynb", away, db_path=str(database.db_path), **quick)
    run.succeeded()
    assert " passed: " in run.report
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("name", sorted({*NAMES} - WITHOUT_A_DATABASE))
def test_it_makes_no_database_where_there_is_none(name: str, settings: Settings, tmp_path: Path) -> None:
    arguments = (*QUICK.get(name, ()), "-r", "db_path", str(settings.db_path))
    run = papermill(NOTEBOOKS / f"{name}.ipynb", tmp_path / "out.ipynb", *arguments)
    run.failed(f"{name} of {settings.db_path}: refused: database file: no database").showed_its_report()
    assert "papermill init.ipynb out.ipynb -p env development -p db_path" in run.report
    assert fingerprint(settings.db_path.parent) is None
