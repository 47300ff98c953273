"""What test_run and other tests share."""

import contextlib
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError
from patience import HANGING_S
from running import execute_live

from abathur_nb.config.settings import Settings

TOP = (
    "import abathur_nb as nb\n\nnb.guard()",
    '# The defaults\nenv: str = "development"\ndb_path: str = "{path}"\nrows: int = 7',
    'settings = nb.resolve(env, db_path=db_path)\nrun = nb.start_run(settings, "validate")\nrun',
)
SOUND = ("report = await nb.validate_database(settings)\nreport", "run.seal(report)\nreport.raise_for_failures()")


async def execute(settings: Settings, *cells: str) -> Any:
    """Run the cells, below those that begin a notebook, in a real kernel that stops at the first error."""
    sources = [TOP[0], TOP[1].replace("{path}", str(settings.db_path)), *TOP[2:], *cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    with contextlib.suppress(CellExecutionError):
        await execute_live(notebook, timeout=HANGING_S)
    return notebook
