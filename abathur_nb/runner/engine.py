"""The engine of papermill: ``papermill --engine abathur IN OUT`` executes as the runner does, and archives.

papermill imports this module whenever it starts, whichever engine is asked for: what an execution needs is imported
when there is one.
"""

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from papermill.engines import Engine

if TYPE_CHECKING:
    from abathur_nb.runner.execution import Ending
    from abathur_nb.runner.run import Job

_OUTPUT_S = 60  # for the outputs of a cell that is done to come in


class AbathurEngine(Engine):  # type: ignore[misc] # papermill has no types
    """Execute with the kernel of this Python over local sockets, ended at once, and archive the run.

    Parameters come through papermill, which guesses their types; its exit codes stay. What is archived is what the
    notebook records: one that starts no run is only executed.
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
        input_path: Any = None,
        **_: Any,
    ) -> None:
        """Execute the notebook of papermill's manager, archive it, and end as papermill's own engine would."""
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.log import logger

        from abathur_nb.errors import ConfigurationError, RefusedError
        from abathur_nb.evidence.archive import same_cells
        from abathur_nb.runner.execution import execute
        from abathur_nb.runner.run import conclude

        if kernel_name not in (None, "python3"):
            raise ConfigurationError(f"--engine abathur: expected the kernel python3, its own, found {kernel_name!r}")
        template = _read(input_path)
        job = _job(nb_man.nb, input_path, template)

        @contextmanager
        def around(cell: Any, index: int) -> Iterator[None]:
            try:
                nb_man.cell_start(cell, index)
                yield
            except CellExecutionError as error:
                nb_man.cell_exception(cell, cell_index=index, exception=error)
                raise
            finally:
                nb_man.cell_complete(cell, cell_index=index)

        def make_client() -> Any:
            shown = {"log_output": log_output, "stdout_file": stdout_file, "stderr_file": stderr_file}
            return PapermillNotebookClient(nb_man, log=logger, iopub_timeout=_OUTPUT_S, **shown)

        def run(stop: Any = None) -> "Ending":
            environment = job.environment if job else {}
            limit = execution_timeout
            return execute(make_client, environment=environment, cell_timeout=limit, stop=stop, around=around)

        ending, signals = _with_signals(run)
        if job:
            as_template = template is not None and same_cells(nb_man.nb, template)
            outcome = conclude(job, ending, nb_man.nb, as_template=as_template)
            logger.info(f"Run {job.run_id}: {outcome.verdict}: {outcome.archived or outcome.message}")
            # What papermill would call a success: a run that was never sealed, or not archived, or left by an exit.
            if outcome.code and (ending.how == "completed" or ending.name == "SystemExit"):
                raise RefusedError(
                    f"{outcome.verdict}: {outcome.message}", f"see {outcome.archived or outcome.verdict}"
                )
        else:
            logger.warning("Not archived: the notebook starts no run, or its parameters are faulty")
        if ending.how == "died":
            raise DeadKernelError(ending.message)
        if ending.how == "timeout":
            raise CellTimeoutError(ending.message)
        if ending.how == "interrupted":
            signal.raise_signal(signals[0])
        if ending.how == "raised" and ending.cell is not None:  # exit() in a cell raises nothing that papermill sees
            nb_man.cell_exception(nb_man.nb.cells[ending.cell], cell_index=ending.cell)


def _with_signals(run: Any) -> "tuple[Ending, list[int]]":
    """Run with signals noted where this is the main thread; in a thread of its own where an event loop is running."""
    from abathur_nb.runner.execution import signals_noted

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if threading.current_thread() is not threading.main_thread():
            return run(), []
        with signals_noted() as stop:
            return run(stop), stop.signals
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(), []


def _read(path: Any) -> bytes | None:
    """Return the file that papermill has read, None where it was no local one. It has its own working directory."""
    from papermill.iorw import papermill_io

    try:
        content: str = papermill_io.get_handler("local").read(path)
    except (OSError, TypeError, ValueError):
        return None
    return content.encode()


def _job(notebook: Any, path: Any, template: bytes | None) -> "Job | None":
    """Return what is to be archived, or None: for a notebook that starts no run, or whose parameters it will refuse."""
    from abathur_nb.config.parameters import check_parameters
    from abathur_nb.errors import ConfigurationError
    from abathur_nb.evidence.archive import declared_in, recorded_as
    from abathur_nb.evidence.canonical import sha256
    from abathur_nb.evidence.run import new_run_id
    from abathur_nb.runner.run import Job, settings_for

    name = recorded_as(notebook)
    try:
        declared = declared_in(notebook)
        given = dict(notebook.metadata.papermill.get("parameters", {}))
        if not name or check_parameters(declared, given):
            return None
        values: dict[str, Any] = {parameter.name: parameter.default for parameter in declared.values()} | given
        settings = settings_for(values, "development")
    except ConfigurationError:
        return None
    file = (PurePath(path).name, sha256(template)) if template else None
    return Job(name, file, settings, values, new_run_id(), records=True)
