"""What test_notebook_runs and other tests share."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError
from patience import HANGING_S
from running import execute_live

from abathur_nb.evidence.run import MIME

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@dataclass(frozen=True)
class Run:
    """Hold what a run left: exit code, messages, and the executed notebook (None where papermill saved none)."""

    code: int
    messages: str
    notebook: Any

    @property
    def cells(self) -> list[Any]:
        """The code cells; papermill's own additions are markdown."""
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    def shown(self, kind: str = "text/html") -> list[str]:
        """Return what the cells showed, in order."""
        outputs = (output for cell in self.cells for output in cell.outputs if "data" in output)
        return [output.data[kind] for output in outputs if kind in output.data]

    @property
    def report(self) -> str:
        """The last report that was shown, as text."""
        return [text for cell in self.cells for text in report_of(cell)][-1]

    @property
    def error(self) -> str:
        """What the one failed cell says: a single line, with no traceback around it."""
        (cell,) = (cell for cell in self.cells if any(output.output_type == "error" for output in cell.outputs))
        (output,) = (output for output in cell.outputs if output.output_type == "error")
        beside = [set(shown.data) for shown in cell.outputs if shown is not output]
        assert beside in ([], [{MIME, "text/html", "text/plain"}]), "the record of the run, and no traceback"
        line = "\n".join(output.traceback)
        assert len(line.splitlines()) == 1, line
        assert line == f"{output.ename}: {output.evalue}"
        assert not cells_behind(self.cells, cell), "a cell ran behind the one that failed"
        return line

    def succeeded(self) -> "Run":
        """Assert that it did, whole."""
        assert self.code == 0, self.messages
        assert all(cell.execution_count for cell in self.cells)
        assert not [output for cell in self.cells for output in cell.outputs if output.output_type == "error"]
        return self

    def failed(self, *words: str) -> "Run":
        """Assert that it failed as it should: exit code 1, one line that names what failed, nothing run behind it."""
        assert self.code == 1, self.messages
        for word in words:
            assert word in self.error
        # papermill wraps the line in its own traceback; none of ours is in it.
        assert self.error in self.messages
        assert f"{os.sep}abathur_nb{os.sep}" not in self.messages.replace(self.error, "")
        return self

    def showed_its_report(self) -> "Run":
        """Assert that the failed cell is the verdict, and that the report it is about stands above it."""
        stopped = [cell.source for cell in self.cells if cell.outputs][-1]
        assert stopped.endswith(".raise_for_failures()") or stopped.startswith("preflight.raise_for_failures()\n")
        assert "<div class='abathur-report'>" in "".join(self.shown())
        return self


def report_of(cell: Any) -> list[str]:
    return [
        output.data["text/plain"]
        for output in cell.outputs
        if "class='abathur-report'" in output.get("data", {}).get("text/html", "")
    ]


def cells_behind(cells: list[Any], cell: Any) -> list[Any]:
    return [later for later in cells[cells.index(cell) + 1 :] if later.execution_count or later.outputs]


def papermill(
    source: Path, output: Path, *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Run:
    """Run a notebook as the command line does, in another process, and read what it left.

    Once more where papermill's own kernel has lost the race for a TCP port, and so has run nothing.
    """
    command = [Path(sys.executable).with_name("papermill"), source, output, *arguments, "--no-progress-bar"]
    for _ in range(3):
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=HANGING_S,
            check=False,
        )
        if done.returncode == 0 or "Address already in use (addr='tcp://127.0.0.1:" not in done.stderr:
            break
    left = nbformat.read(output, as_version=4) if output.is_file() and output.stat().st_size else None
    return Run(done.returncode, done.stderr, left)


async def in_kernel(source: Path, folder: Path, *, allow_errors: bool = False, **parameters: object) -> Run:
    """Run a notebook as JupyterLab does, after someone wrote other values into its parameters cell by hand."""
    notebook = nbformat.read(source, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    lines = [line for line in cell.source.splitlines() if line.partition(":")[0] not in parameters]
    cell.source = "\n".join([*lines, *(f"{name} = {value!r}" for name, value in parameters.items())])
    resources = {"metadata": {"path": str(folder)}}
    try:
        await execute_live(notebook, resources=resources, timeout=HANGING_S, allow_errors=allow_errors)
    except CellExecutionError as error:
        return Run(1, str(error), notebook)
    return Run(0, "", notebook)
