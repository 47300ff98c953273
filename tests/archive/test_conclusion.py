"""A run's record says how its execution ended, whoever sealed it, and its notebook says so at the top."""

import json
from typing import Any

import nbformat
import pytest
from running import artifact_of, assert_archived, only_run, record_of

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import RECORD, Verdict
from abathur_nb.evidence.run import write_record, write_started
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.runner.execution import Ending
from abathur_nb.runner.run import Job, Outcome, conclude

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
