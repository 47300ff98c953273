"""What test_notebook_runs and other tests share."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from patience import HANGING_S


@dataclass(frozen=True)
class Run:
    """Hold what papermill left: exit code, messages, and the executed notebook (None where it saved none)."""

    code: int
    messages: str
    notebook: Any

    @property
    def cells(self) -> list[Any]:
        """The code cells; papermill's own additions are markdown."""
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    def of(self, kind: str) -> list[Any]:
        """Return the outputs of a kind, in order."""
        return [output for cell in self.cells for output in cell.outputs if output.output_type == kind]

    @property
    def report(self) -> str:
        """The last report that was shown, as text."""
        shown = [output.data for output in self.of("execute_result")]
        return str([data["text/plain"] for data in shown if "class='abathur-report'" in data.get("text/html", "")][-1])

    def succeeded(self) -> "Run":
        """Assert that it did, whole."""
        assert self.code == 0, self.messages
        assert all(cell.execution_count for cell in self.cells)
        assert self.of("error") == []
        return self

    def failed(self, *words: str) -> "Run":
        """Assert that it failed as it should: exit code 1, one line that names what failed, nothing run behind it."""
        assert self.code == 1, self.messages
        (error,) = self.of("error")
        (line,) = error.traceback
        assert (line, len(line.splitlines())) == (f"{error.ename}: {error.evalue}", 1)
        assert [word for word in words if word not in line] == []
        (cell,) = (cell for cell in self.cells if error in cell.outputs)
        behind = self.cells[self.cells.index(cell) + 1 :]
        assert not [later for later in behind if later.execution_count or later.outputs], "a cell ran behind it"
        # papermill wraps the line in its own traceback; none of ours is in it.
        assert line in self.messages
        assert f"{os.sep}abathur_nb{os.sep}" not in self.messages.replace(line, "")
        return self


def papermill(source: Path, output: Path, *arguments: str | Path, **options: Any) -> Run:
    """Run a notebook as the command line does, in another process, and read what it left.

    Once more where papermill's own kernel has lost the race for a TCP port, and so has run nothing.
    """
    command = [Path(sys.executable).with_name("papermill"), source, output, *arguments, "--no-progress-bar"]
    options["env"] = {**os.environ, **options.get("env", {})}
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING_S, check=False, **options)
        if done.returncode == 0 or "Address already in use (addr='tcp://127.0.0.1:" not in done.stderr:
            break
    left = nbformat.read(output, as_version=4) if output.is_file() and output.stat().st_size else None
    return Run(done.returncode, done.stderr, left)
