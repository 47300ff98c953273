"""An archived run: its files beside its record, its line in the ledger; whole, private, and made once."""

import json
import multiprocessing
import stat
from pathlib import Path

import archives
import nbformat
import pytest
from damage import fingerprint

from abathur_nb.errors import RefusedError
from abathur_nb.evidence.archive import NOTEBOOK, PAGE, STATEMENT, keep
from abathur_nb.evidence.canonical import sha256
from abathur_nb.evidence.ledger import LEDGER, read_ledger
from abathur_nb.evidence.record import RECORD, STARTED
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.settings import Settings, resolve

FILES = {STARTED, RECORD, NOTEBOOK, PAGE, STATEMENT}


def sealed_run(settings: Settings) -> Path:
    folder = archives.start(settings)
    archives.seal(folder, settings)
    return folder


def test_an_archived_run_has_its_files_and_a_line_with_their_hashes(database: Settings) -> None:
    folder = archives.run(database)
    (line,) = read_ledger(folder.parent).lines
    assert {path.name for path in folder.iterdir()} == FILES
    assert line.data["files"] == {path.name: sha256(path.read_bytes()) for path in folder.iterdir()}
    assert (line.data["run_id"], line.data["verdict"]) == (folder.name, "pass")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (*folder.iterdir(), folder.parent / LEDGER)}
    assert modes == {0o600}


def test_without_a_page_the_run_is_whole_all_the_same(database: Settings) -> None:
    folder = sealed_run(database)
    keep(folder, database, archives.notebook("1"), html=False)
    assert {path.name for path in folder.iterdir()} == FILES - {PAGE}
    assert verify_archive(folder.parent).ok


def test_an_archived_run_is_not_archived_again(database: Settings) -> None:
    folder = archives.run(database)
    before = fingerprint(folder.parent)
    with pytest.raises(RefusedError, match="is archived already"):
        keep(folder, database, archives.notebook("another"))
    assert fingerprint(folder.parent) == before


def _keep(db_path: Path, folder: Path, text: str) -> str:
    try:
        keep(folder, resolve(db_path=db_path), archives.notebook(text))
    except RefusedError as error:
        return str(error)
    return "kept"


def test_of_processes_that_archive_one_run_at_once_one_wins_and_its_files_stay(database: Settings) -> None:
    folder = sealed_run(database)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        said = pool.starmap(_keep, [(database.db_path, folder, f"'{number}'") for number in range(8)])
    assert said.count("kept") == 1
    assert all("is archived already" in words for words in said if words != "kept")
    assert verify_archive(folder.parent).ok


def test_what_has_no_utf8_is_archived_as_json_writes_it(database: Settings) -> None:
    folder = sealed_run(database)
    keep(folder, database, archives.notebook("'half \ud83d of a pair'"))
    written = (folder / NOTEBOOK).read_bytes().decode()
    assert "half \\ud83d of a pair" in written
    nbformat.validate(json.loads(written))
    assert verify_archive(folder.parent).ok


def test_what_is_not_sealed_is_not_archived(database: Settings) -> None:
    folder = archives.start(database)
    with pytest.raises(FileNotFoundError):
        keep(folder, database, archives.notebook("1"))
    assert {path.name for path in folder.iterdir()} == {STARTED}
    assert not (folder.parent / LEDGER).exists()


def test_what_is_split_over_two_pieces_of_a_stream_is_found_all_the_same(database: Settings, home: Path) -> None:
    folder = sealed_run(database)
    notebook = archives.notebook("1")
    text = f"{home}/x\n"
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=part) for part in (text[:4], text[4:])]
    keep(folder, database, notebook)
    for name in (NOTEBOOK, PAGE):
        content = (folder / name).read_text()
        assert "~/x" in content
        assert home.name not in content


def test_a_run_whose_cells_are_another_templates_is_named_by_verify(database: Settings) -> None:
    folder = archives.run(database)
    (check,) = (check for check in verify_archive(folder.parent).checks if check.name == "other cells")
    assert check.status == "warn"
    assert check.observed == f"{folder.name} validate: its cells are not known to be the template's"
    other = sealed_run(database)
    keep(other, database, archives.notebook("1"), as_template=True)
    assert other.name not in str(verify_archive(folder.parent)), "a control"
