"""The engine for papermill: ``papermill --engine abathur IN OUT`` executes a notebook as the runner does.

papermill imports this module at every start, so functions import what only an execution needs.
"""

import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from papermill.engines import Engine

if TYPE_CHECKING:
    from abathur_nb.runner.run import Job


class AbathurEngine(Engine):  # type: ignore[misc] # papermill has no types
    """Execute a notebook in a kernel of this Python, over local sockets; then kill the kernel and archive the run.

    papermill reads the parameters, guesses their types, and sets the exit code. A notebook that starts no run is
    executed and not archived.
    """

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        execution_timeout: float | None = None,
        start_timeout: float | None = None,
        input_path: Any = None,
        **_: Any,
    ) -> None:
        """Execute the notebook of papermill's manager, archive it, and raise what papermill's engine would raise."""
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.log import logger

        from abathur_nb.errors import ConfigurationError, RefusedError
        from abathur_nb.runner.execution import execute, signals_noted
        from abathur_nb.runner.run import conclude

        if kernel_name not in (None, "python3"):
            raise ConfigurationError(f"--engine abathur: expected the kernel python3, found {kernel_name!r}")
        job = _job(nb_man.nb, input_path)

        class Client(PapermillNotebookClient):  # type: ignore[misc]
            async def async_execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
                nb_man.cell_start(cell, cell_index)
                try:
                    return await super().async_execute_cell(cell, cell_index, **options)
                finally:
                    nb_man.cell_complete(cell, cell_index=cell_index)

        shown = {"log_output": log_output, "stdout_file": stdout_file, "stderr_file": stderr_file}
        # In a new thread, because an event loop may be running in this one.
        with signals_noted() as stop, ThreadPoolExecutor(1) as pool:
            limits: Any = {"cell_timeout": execution_timeout, "start_timeout": start_timeout}
            run = partial(execute, partial(Client, nb_man, log=logger, **shown), **limits)
            ending = pool.submit(run, environment=job.environment if job else {}, stop=stop).result()
        if job:
            outcome = conclude(job, ending, nb_man.nb)
            logger.info(f"Run {job.run_id}: {outcome.verdict}: {outcome.archived or outcome.message}")
            # papermill would call these a success: a run that was never sealed, was not archived, or ended by exit().
            if outcome.verdict != "pass" and (ending.how == "completed" or ending.name == "SystemExit"):
                raise RefusedError(f"{outcome.verdict}: {outcome.message}")
        else:
            logger.warning("Not archived: the notebook starts no run, or its parameters are invalid")
        if ending.how == "died":
            raise DeadKernelError(ending.message)
        if ending.how == "timeout":
            raise CellTimeoutError(ending.message)
        if ending.how == "interrupted":
            signal.raise_signal(stop.signals[0])
        if ending.how == "raised" and ending.cell is not None:  # exit() in a cell raises nothing that papermill sees
            nb_man.cell_exception(nb_man.nb.cells[ending.cell], cell_index=ending.cell)


def _job(notebook: Any, path: Any) -> "Job | None":
    """Return the run to archive; None if the notebook starts no run, or its guard will refuse the parameters."""
    from papermill.iorw import papermill_io

    from abathur_nb.config.parameters import check_parameters
    from abathur_nb.errors import ConfigurationError
    from abathur_nb.evidence.archive import declared_in, recorded_as, same_cells
    from abathur_nb.evidence.canonical import sha256
    from abathur_nb.runner.run import Job, settings_for

    name = recorded_as(notebook)
    try:
        declared = declared_in(notebook)
        given = dict(notebook.metadata.papermill.get("parameters", {}))
        if not name or check_parameters(declared, given):
            return None
        values: dict[str, Any] = {name: parameter.default for name, parameter in declared.items()} | given
        settings = settings_for(values, "development")
    except ConfigurationError:
        return None
    try:  # through papermill, whose working directory may differ
        template: bytes = papermill_io.get_handler("local").read(path).encode()
    except (OSError, TypeError, ValueError):  # the notebook is not a local file
        return Job(name, None, settings, values, as_template=False)
    file = PurePath(path).name, sha256(template)
    return Job(name, file, settings, values, same_cells(notebook, template))
