"""papermill with this engine executes as the runner does and archives; parameters and exit codes stay papermill's."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from damage import drop_index, untouched
from nbclient.exceptions import CellTimeoutError
from patience import HANGING_S
from running import (
    KILLED,
    NOTEBOOKS,
    SEAL,
    SOUND,
    START,
    Fifo,
    artifact_of,
    assert_archived,
    only_run,
    record_of,
    write_notebook,
)

from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sha256

pytestmark = pytest.mark.usefixtures("folder")


def command(settings: Settings, source: str | Path, *arguments: str) -> list[str]:
    papermill = [str(Path(sys.executable).with_name("papermill")), "--engine", "abathur"]
    return [*papermill, str(source), "out.ipynb", "-p", "db_path", str(settings.db_path), *arguments]


def run(settings: Settings, source: str | Path, *arguments: str) -> tuple[int, str]:
    line = command(settings, source, *arguments)
    done = subprocess.run(line, capture_output=True, text=True, timeout=HANGING_S, check=False)
    return done.returncode, done.stderr


def output() -> Any:
    notebook = nbformat.read("out.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_a_run_that_passes_is_archived_and_papermills_output_is_its_own(database: Settings) -> None:
    with untouched(database.db_path):
        code, messages = run(database, NOTEBOOKS / "validate.ipynb")
    assert code == 0, messages
    entry = only_run(database)
    record = record_of(entry)
    assert record["verdict"] == "pass"
    template = (NOTEBOOKS / "validate.ipynb").read_bytes()
    assert record["template"] == {"name": "validate.ipynb", "sha256": sha256(template), "from": "the notebook that ran"}
    assert f"Run {entry.run_id}: pass: {entry.folder}/page.html" in messages
    assert "over TCP" not in messages
    artifact = artifact_of(entry)
    assert [cell.source for cell in artifact.cells] == [cell.source for cell in output().cells]
    assert output().metadata.papermill.parameters == {"db_path": str(database.db_path)}
    assert all(cell.metadata.papermill.status == "completed" for cell in output().cells)
    assert entry.line is not None
    assert entry.line.data["as_template"] is True
    assert_archived(database)


ENDINGS = {  # papermill's own engine takes SystemExit(0) for a success, and has the same codes otherwise
    "a check fails": (SOUND, 1, "fail"),
    "tags that skip a cell and hide an error": ((START, "1 / 0", *SOUND[1:]), 1, "error"),
    "SystemExit(0)": ((START, "raise SystemExit(0)", *SOUND[1:]), 1, "error"),
    "killed": ((START, KILLED, *SOUND[1:]), 138, "error"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_each_way_of_dying_has_papermills_exit_code_and_the_runners_record(name: str, database: Settings) -> None:
    cells, code, verdict = ENDINGS[name]
    drop_index(database.db_path)
    source = write_notebook(Path("mine.ipynb"), *cells)
    if "tags" in name:
        notebook = nbformat.read(source, as_version=4)
        notebook.cells[3].metadata.tags, notebook.cells[4].metadata.tags = ["skip-execution"], ["raises-exception"]
        nbformat.write(notebook, source)
    with untouched(database.db_path):
        found, messages = run(database, source)
    assert found == code, messages
    record = record_of(only_run(database))
    assert record["verdict"] == verdict
    assert "tags" not in name or record["error"]["name"] == "ZeroDivisionError"
    assert record["template"]["sha256"] == sha256(source.read_bytes())
    assert artifact_of(only_run(database)).cells[0].source.startswith(f"**{verdict.upper()}: ")


def test_a_signal_is_recorded_and_then_ends_papermill(database: Settings, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    source = write_notebook(Path("mine.ipynb"), START, f"{fifo.cell}\nimport time\ntime.sleep(600)", SEAL)
    with subprocess.Popen(command(database, source), stderr=subprocess.DEVNULL) as process:
        fifo.wait()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    assert record_of(only_run(database))["verdict"] == "interrupted"
    output()
    assert_archived(database)


def test_the_kernel_may_take_as_long_to_start_as_papermill_says(database: Settings) -> None:
    given: Any = {"parameters": {"db_path": str(database.db_path)}, "progress_bar": False, "start_timeout": 1e-9}
    with pytest.raises(CellTimeoutError, match="the kernel did not start within 1e-09 s"):
        papermill.execute_notebook(NOTEBOOKS / "validate.ipynb", "out.ipynb", engine_name="abathur", **given)
    assert record_of(only_run(database))["verdict"] == "timeout"


def test_a_faulty_parameter_or_another_kernel_leaves_no_record(database: Settings) -> None:
    for given, told in (
        (("-p", "x=1;open('canary','w').close();y", "1"), "Error: expected `name = value`, "),
        (("-k", "ir", "-l", "python"), "--engine abathur: expected the kernel python3, found 'ir'"),
    ):
        with untouched(database.db_path):
            code, messages = run(database, NOTEBOOKS / "validate.ipynb", *given)
        assert (code, told in messages) == (1, True), messages
    assert not database.archive_dir.exists()
    assert not Path("canary").exists()


def test_a_notebook_that_starts_no_run_is_only_executed(database: Settings) -> None:
    source = write_notebook(Path("mine.ipynb"), "print('done')")
    code, messages = run(database, source, "--log-output")
    assert code == 0
    assert "done" in messages
    assert "Not archived: the notebook starts no run" in messages
    assert output().cells[-1].outputs[0].text == "done\n"
    assert not database.archive_dir.exists()
