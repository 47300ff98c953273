"""Notebooks run cell by cell in a shell of this process: this project's, as papermill makes them, and one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import nbformat
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.utils.capture import capture_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@dataclass(frozen=True)
class Outcome:
    """Say where a notebook stopped, and what it had shown: the error, whether it came before the cell ran, the cell."""

    error: BaseException | None
    before: bool
    cell: str
    shown: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The one line that a notebook would show."""
        assert isinstance(self.error, AbathurError), self.error
        (line,) = self.error._render_traceback_()
        assert len(line.splitlines()) == 1, line
        assert line.isprintable()
        return line

    @property
    def report(self) -> str:
        """The last report that was shown, as text."""
        reports = [data for data in self.shown if "class='abathur-report'" in data.get("text/html", "")]
        return str(reports[-1]["text/plain"])

    def of(self, kind: str) -> list[str]:
        """Return what was shown of a kind, in order."""
        return [data[kind] for data in self.shown if kind in data]

    def passed(self) -> "Outcome":
        """Assert that each cell ran."""
        assert self.error is None, self.error
        return self

    def failed(self, *words: str) -> "Outcome":
        """Assert that it stopped with an error of the package, in one line with these words."""
        for word in words:
            assert word in self.line
        return self

    def showed_its_report(self) -> "Outcome":
        """Assert that the failed cell is the verdict, and that its report stands above it."""
        assert ".raise_for_failures()" in self.cell
        assert self.report
        return self


def cells_of(source: Path, parameters: Mapping[str, Any]) -> list[str]:
    """Return the code cells that papermill would run, the injected one in its place."""
    notebook = load_notebook_node(str(source))
    made = parameterize_notebook(notebook, parameters) if parameters else notebook
    return [cell.source for cell in made.cells if cell.cell_type == "code"]


def run_sources(shell: InteractiveShell, sources: Sequence[str]) -> tuple[Any, ExecutionResult]:
    """Run cells up to the first error; return them with their outputs, and how the last one that ran ended."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    for cell in notebook.cells:
        with capture_output() as captured:
            done = shell.run_cell(cell.source, store_history=True)
        cell.execution_count = done.execution_count
        for name, text in (("stdout", captured.stdout), ("stderr", captured.stderr)):
            if text:
                cell.outputs.append(nbformat.v4.new_output("stream", name=name, text=text))
        shown: list[Any] = [output.data for output in captured.outputs]
        if done.result is not None:
            shown.append(cast("Any", shell.display_formatter).format(done.result)[0])
        displayed = ({"output_type": "display_data", "data": data, "metadata": {}} for data in shown)
        cell.outputs += map(nbformat.from_dict, displayed)  # a picture's bytes are not in base64 yet
        if error := done.error_before_exec or done.error_in_exec:
            lines = getattr(error, "_render_traceback_", lambda error=error: [repr(error)])()
            told = {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}
            cell.outputs.append(nbformat.v4.new_output("error", **told))
            break
    return notebook, done


def run_cells(shell: InteractiveShell, name: str, **parameters: Any) -> Outcome:
    notebook, done = run_sources(shell, cells_of(NOTEBOOKS / f"{name}.ipynb", parameters))
    shown = [output.data for cell in notebook.cells for output in cell.outputs if "data" in output]
    error = done.error_before_exec or done.error_in_exec
    return Outcome(error, done.error_before_exec is not None, cast("Any", done.info).raw_cell, shown)


TOP = (
    "import abathur_nb as nb\n\nnb.guard()",
    '# The defaults\nenv: str = "development"\ndb_path: str = "{path}"\nrows: int = 7',
    'settings = nb.resolve(env, db_path=db_path)\nrun = nb.start_run(settings, "validate")\nrun',
)
SOUND = ("report = await nb.validate_database(settings)\nreport", "run.seal(report)\nreport.raise_for_failures()")


def execute(shell: InteractiveShell, settings: Settings, *cells: str, top: str = TOP[2]) -> Any:
    """Run the cells, below those that begin a notebook, up to the first error; return them with their outputs."""
    return run_sources(fresh(shell), [TOP[0], TOP[1].replace("{path}", str(settings.db_path)), top, *cells])[0]


def fresh(shell: InteractiveShell) -> InteractiveShell:
    """Return the shell as one that has run nothing yet, without the guard and the run that were left waiting.

    ``shell.reset`` collects garbage, which takes a third of a second.
    """
    for transformer in list(shell.ast_transformers):
        cast("Any", transformer).remove()
    shell.events.callbacks["post_run_cell"].clear()
    shell.user_ns.clear()
    shell.init_user_ns()
    shell.execution_count = 1
    return shell
