"""index.ipynb: every notebook is in it once, and it tells how each environment stands."""

import re
from pathlib import Path

from notebook_runs_helpers import NOTEBOOKS, papermill
from notebooks_helpers import PATHS, README, read
from past_helpers import run_at

from abathur_nb.config.notebooks import NOTEBOOKS as KNOWN
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import RECORD, read_archive

SOURCE = NOTEBOOKS / "index.ipynb"


def test_it_links_to_every_other_notebook_once_in_the_order_of_its_table() -> None:
    first = read(SOURCE).cells[0].source
    assert tuple(re.findall(r"^\|.*?\| \[(\w+)\.ipynb\]\(\1\.ipynb\) \|", first, re.MULTILINE)) == (*KNOWN,)[:-1]
    assert {*KNOWN} == {path.stem for path in PATHS}


def test_the_readme_has_a_row_for_each_notebook() -> None:
    rows = re.findall(r"^\| `(\w+)\.ipynb` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*rows} == {path.stem for path in PATHS}
    assert len(rows) == len(PATHS)


def test_it_shows_the_newest_runs_and_is_recorded(database: Settings, tmp_path: Path) -> None:
    failed = run_at(database, "20261001T080000", "backup", "fail")
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path)).succeeded()
    assert "✗ fail\n2026-10-01 08:00:00" in "".join(run.shown())
    assert "! warn           development: backup fail" in run.report
    record = read_archive(database.archive_dir)[-1].record
    assert record is not None
    assert (record.notebook, record.verdict) == ("index", "pass")
    assert record.facts["newest_runs"]["development"] == {"backup": failed.name}


def test_on_a_machine_that_has_nothing_it_passes_and_makes_nothing(settings: Settings, tmp_path: Path) -> None:
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(settings.db_path)).succeeded()
    assert f"– skip           development: no archive at {settings.archive_dir}" in run.report
    assert not settings.db_path.parent.exists()


def test_an_altered_archive_fails_it_by_name(database: Settings, tmp_path: Path) -> None:
    record = run_at(database, "20261001T080000") / RECORD
    record.write_bytes(record.read_bytes().replace(b'"verdict":"pass"', b'"verdict":"fail"'))
    run = papermill(SOURCE, tmp_path / "out.ipynb", "-r", "db_path", str(database.db_path))
    run.failed(f"index of {database.db_path}: 1 of ", f"{record.parent.name}/{RECORD}: ").showed_its_report()
