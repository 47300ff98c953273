"""A run that ended, archived once: its verdict says how it ended, its files are whole, private, and in the ledger."""

import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives
import nbformat
import papermill
import pytest
from main_helpers import called
from running import NOTEBOOKS, SOUND, artifact_of, assert_archived, only_run, record_of, write_notebook

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.canonical import sha256
from abathur_nb.evidence.ledger import LEDGER, read_ledger
from abathur_nb.evidence.record import NOTEBOOK, PAGE, RECORD, STARTED, STATEMENT, Verdict
from abathur_nb.evidence.run import MIME, write_record, write_started
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.runner.execution import Ending
from abathur_nb.runner.run import Job, Outcome, conclude

pytestmark = pytest.mark.usefixtures("folder")

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


def _keep(db_path: Path, folder: Path, text: str) -> str:
    try:
        keep(folder, resolve(db_path=db_path), archives.notebook(text))
    except RefusedError as error:
        return str(error)
    return "kept"


def test_of_processes_that_archive_one_run_at_once_one_wins_and_its_files_stay(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sealed_run(database)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        said = pool.starmap(_keep, [(database.db_path, folder, f"'{number}'") for number in range(8)])
    assert said.count("kept") == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    said.append(_keep(database.db_path, folder, "'planted-secret'"))
    assert all("is archived already" in words for words in said if words != "kept")
    assert verify_archive(folder.parent).ok


def test_a_run_whose_cells_are_another_templates_is_named_by_verify(database: Settings) -> None:
    folder = archives.run(database)
    (check,) = (check for check in verify_archive(folder.parent).checks if check.name == "other cells")
    assert check.status == "warn"
    assert check.observed == f"{folder.name} validate: its cells are not known to be the template's"
    other = sealed_run(database)
    keep(other, database, archives.notebook("1"), as_template=True)
    assert other.name not in str(verify_archive(folder.parent)), "a control"


def execute(settings: Settings, source: Path = NOTEBOOKS / "validate.ipynb") -> None:
    parameters = {"db_path": str(settings.db_path)}
    papermill.execute_notebook(source, "out.ipynb", parameters=parameters, progress_bar=False)


def records(notebook: Any) -> list[Any]:
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    return [output["data"] for output in outputs if MIME in output.get("data", {})]


def told(name: str, value: Any) -> Callable[[Any], object]:
    """Return what has the record that the notebook shows say something else."""
    return lambda notebook: records(notebook)[0][MIME].update({name: value})


CHANGES: dict[str, Callable[[Any], object]] = {
    "expected the record of one run in its outputs, found 0": lambda notebook: records(notebook)[0].pop(MIME),
    "differs from record.json of run": told("verdict", "fail"),
    "record.json of run 20200101T000000000Z-000000": told("run_id", "20200101T000000000Z-000000"),
    "run_id: expected run id, found '../../x'": told("run_id", "../../x"),
    "its record does not name its run and archive": lambda notebook: records(notebook)[0][MIME].pop("settings"),
}


def test_what_plain_papermill_executed_is_archived_once_and_nothing_else(database: Settings) -> None:
    execute(database)
    executed, record = Path("out.ipynb").read_text(), only_run(database).folder / RECORD
    content = record.read_bytes()

    def refused(words: str) -> None:
        before = {path: path.read_bytes() for path in database.archive_dir.rglob("*.*")}
        code, out, err = called("archive", "out.ipynb")
        (line,) = err.splitlines()
        assert (code, out, line.startswith("abathur_nb archive: ")) == (2, "", True)
        assert words in line, line
        assert {path: path.read_bytes() for path in database.archive_dir.rglob("*.*")} == before

    for words, change in CHANGES.items():
        notebook = json.loads(executed)
        change(notebook)
        Path("out.ipynb").write_text(json.dumps(notebook))
        refused(words)
    Path("out.ipynb").write_text(executed)
    record.write_bytes(content.replace(b'"pass"', b'"Pass"', 1))
    refused("record.json: its hash does not match its content")
    record.unlink()
    refused(f"in {database.archive_dir}: no record is sealed")
    record.write_bytes(content)
    entry = only_run(database)
    page = f"abathur_nb archive: {entry.folder}/page.html; the cells are those of the template\n"
    assert called("archive", "out.ipynb") == (0, page, "")
    line = only_run(database).line
    assert line is not None
    assert line.data["as_template"] is True
    artifact_of(entry)
    assert_archived(database)
    refused("is archived already: see ")


def test_what_is_no_executed_notebook_is_refused_in_a_line() -> None:
    Path("folder").mkdir()
    os.mkfifo("fifo")
    Path("text").write_text("plain")
    for path in ("missing", "folder", "fifo", "text", NOTEBOOKS / "validate.ipynb"):
        code, out, err = called("archive", str(path))
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"abathur_nb archive: notebook {path}: ")


def test_a_run_that_passed_before_a_cell_raised_is_not_archived_as_passed(database: Settings, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "mine.ipynb", *SOUND, "raise RuntimeError('behind the seal')")
    with pytest.raises(papermill.exceptions.PapermillExecutionError):
        execute(database, notebook)
    code, _, error = called("archive", "out.ipynb")
    assert code == 2
    assert "its record says pass, but one of its cells raised: run all its cells again" in error
    assert read_ledger(database.archive_dir).lines == ()


CHECKS_FAILED = Ending("raised", 0, "ChecksFailedError", "sky")
RAISED = Ending("raised", 0, "ValueError", "sky")
DIED, LATE = Ending("died", 0, "DeadKernelError", "sky"), Ending("timeout", 0, "TimeoutError", "sky")
STOPPED = Ending("interrupted", 0, "KeyboardInterrupt", "sky")
COMPLETED = Ending("completed")


def job_of(settings: Settings) -> Job:
    return Job("validate", ("mine.ipynb", "0" * 64), settings, {"env": "development"})


def executed() -> Any:
    cell = nbformat.v4.new_code_cell("1", execution_count=3)
    return nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("2")])


def sealed_as(job: Job, verdict: Verdict) -> None:
    folder = write_started(job.settings, job.name, job.parameters, run_id=job.run_id, template=job.template)
    write_record(folder, job.settings, verdict)


@pytest.mark.parametrize(
    ("own", "ending", "verdict"),
    [
        ("pass", COMPLETED, "pass"),
        ("fail", COMPLETED, "fail"),
        ("fail", CHECKS_FAILED, "fail"),
        ("refused", CHECKS_FAILED, "refused"),
        ("refused", Ending("raised", 0, "RefusedError"), "refused"),
        ("error", RAISED, "error"),
        ("interrupted", Ending("raised", 0, "KeyboardInterrupt"), "interrupted"),
        # What it sealed is not how it ended.
        ("pass", RAISED, "error"),
        ("pass", DIED, "error"),
        ("pass", LATE, "timeout"),
        ("pass", STOPPED, "interrupted"),
        # It did not seal.
        (None, COMPLETED, "error"),
        (None, DIED, "error"),
        (None, LATE, "timeout"),
        (None, STOPPED, "interrupted"),
    ],
)
def test_the_verdict_is_how_it_ended(own: Verdict | None, ending: Ending, verdict: Verdict, database: Settings) -> None:
    job = job_of(database)
    if own:
        sealed_as(job, own)
    else:
        write_started(database, job.name, job.parameters, run_id=job.run_id)
    before = (job.folder / RECORD).read_bytes() if own else b""
    outcome = conclude(job, ending, executed())
    assert outcome.verdict == verdict
    record = record_of(only_run(database))
    assert record["verdict"] == verdict
    agreed = own == verdict and not (own == "error" and ending.how == "died" and before == b"")
    assert ((job.folder / RECORD).read_bytes() == before) == agreed
    if not agreed:
        assert (record["sealed_by"], record["notebook_verdict"]) == ("runner", own)
    assert artifact_of(only_run(database)).cells[0].source.startswith("**") == (verdict != "pass")
    assert_archived(database)


@pytest.mark.parametrize("how", ["died", "timeout", "interrupted", "raised"])
def test_a_run_that_broke_before_it_started_is_started_and_sealed(how: Any, database: Settings) -> None:
    job = job_of(database)
    outcome = conclude(job, Ending(how, 0, "NameError", "sky"), executed())
    record = record_of(only_run(database))
    assert outcome.verdict == record["verdict"] == {"died": "error", "raised": "error"}.get(how, how)
    assert record["template"] == {"name": "mine.ipynb", "sha256": "0" * 64, "from": "the notebook that ran"}
    assert_archived(database)


def test_a_notebook_that_refused_before_it_started_its_run_leaves_no_record(database: Settings) -> None:
    ending = Ending("raised", 0, "ConfigurationError", "env: expected another")
    outcome = conclude(job_of(database), ending, executed())
    assert outcome == Outcome("refused", "env: expected another")
    assert not database.archive_dir.exists()


def test_what_the_path_forbids_leaves_no_record_however_it_ended(settings: Settings) -> None:
    for ending, verdict in ((DIED, "error"), (LATE, "timeout"), (COMPLETED, "pass")):
        outcome = conclude(job_of(settings), ending, executed())
        assert outcome.verdict == verdict
        assert "not recorded: database file: no database" in outcome.message
    assert not settings.db_path.parent.exists()


def test_a_run_that_can_not_be_archived_is_no_pass(database: Settings) -> None:
    job = job_of(database)
    sealed_as(job, "pass")
    database.archive_dir.joinpath("ledger.jsonl").mkdir()
    outcome = conclude(job, COMPLETED, executed())
    assert outcome.verdict == "error"
    assert outcome.message.startswith("no evidence: not archived: the ledger ")
    assert not (job.folder / "statement.json").exists()
    database.archive_dir.joinpath("ledger.jsonl").rmdir()
    (check,) = (one for one in verify_archive(database.archive_dir).checks if one.name == "no evidence")
    assert job.run_id in check.observed, "a record without a line in the ledger is not evidence"


def test_no_message_becomes_markdown_or_html_at_the_top(database: Settings) -> None:
    hostile = "</code></pre><script>alert(1)</script>\n# x\n[y](javascript:alert(2))\n\n![z](http://x.y/z.png)\x1b[31m"
    ending = Ending("raised", 0, "Err<b>or", hostile)
    notebook = executed()
    before = json.dumps(notebook)
    conclude(job_of(database), ending, notebook)
    assert json.dumps(notebook) == before, "what papermill will write is not touched"
    top = artifact_of(only_run(database)).cells[0].source.splitlines()
    told = [line for line in top if any(word in line for word in ("script", "# x", "[y]", "[z]", "Err"))]
    assert len(told) == 4
    assert all(line.startswith("    ") for line in told), "as code"
    assert all(line.isprintable() for line in top)
    page = (only_run(database).folder / "page.html").read_text()
    assert "<script" not in page
