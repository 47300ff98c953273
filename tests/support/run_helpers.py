"""A run as its notebook's cells make it, in a shell of this process; and the notebook that they leave."""

from typing import Any

import nbformat
from cells import fresh
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from abathur_nb.config.settings import Settings

TOP = (
    "import abathur_nb as nb\n\nnb.guard()",
    '# The defaults\nenv: str = "development"\ndb_path: str = "{path}"\nrows: int = 7',
    'settings = nb.resolve(env, db_path=db_path)\nrun = nb.start_run(settings, "validate")\nrun',
)
SOUND = ("report = await nb.validate_database(settings)\nreport", "run.seal(report)\nreport.raise_for_failures()")


def execute(shell: InteractiveShell, settings: Settings, *cells: str, top: str = TOP[2]) -> Any:
    """Run the cells, below those that begin a notebook, up to the first error; return them with their outputs."""
    sources = [TOP[0], TOP[1].replace("{path}", str(settings.db_path)), top, *cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    fresh(shell)
    for cell in notebook.cells:
        with capture_output() as captured:
            done = shell.run_cell(cell.source, store_history=True)
        cell.execution_count = done.execution_count
        for name, text in (("stdout", captured.stdout), ("stderr", captured.stderr)):
            if text:
                cell.outputs.append(nbformat.v4.new_output("stream", name=name, text=text))
        shown: list[Any] = [output.data for output in captured.outputs]
        if done.result is not None and shell.display_formatter is not None:
            shown.append(shell.display_formatter.format(done.result)[0])
        cell.outputs += [nbformat.v4.new_output("display_data", data) for data in shown]
        if error := done.error_before_exec or done.error_in_exec:
            lines = getattr(error, "_render_traceback_", lambda error=error: [repr(error)])()
            told = {"ename": type(error).__name__, "evalue": str(error), "traceback": lines}
            cell.outputs.append(nbformat.v4.new_output("error", **told))
            break
    return notebook
