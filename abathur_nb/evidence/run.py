"""A run as its notebook keeps it: what the cells show enters the record, and what they raise seals it."""

import asyncio
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abathur_nb.config.notebooks import notebook_named
from abathur_nb.config.parameters import effective_parameters
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, BusyError, ChecksFailedError, ConfigurationError, MisuseError, RefusedError
from abathur_nb.evidence.record import (
    Record,
    Verdict,
    database_identity,
    refused_before,
    summary,
    write_record,
    write_started,
)
from abathur_nb.report import Report
from abathur_nb.text import printable, utc_now

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

MIME = "application/vnd.abathur.run+json"
_LONGEST_MESSAGE = 2000  # characters
# What the runner tells the kernel: the id of its run, and the name and hash of the notebook that it executes.
RUN_ID, TEMPLATE = "ABATHUR_RUN_ID", "ABATHUR_RUN_TEMPLATE"


def start_run(settings: Settings, notebook: str) -> "Run":
    """Write down that a run of ``notebook`` has started, before it touches the database, and return it.

    Creates the archive's directory, 0700, if it is missing. Where the path or the file system forbids the run, nothing
    is made and nothing recorded; so too for a run that only looks, while the database's directory is missing. In a
    notebook, what the cells show enters the record, and a cell that raises seals it. Raises RefusedError where it
    can't be written: what leaves no evidence does not begin.
    """
    run = Run(settings, notebook)
    run._start()  # noqa: SLF001
    return run


class Run:
    """Hold a run that has started; made by ``start_run``, ended by ``seal``.

    ``folder`` is where its record is, None for a run that is not recorded: ``reason`` says why.
    """

    def __init__(self, settings: Settings, notebook: str) -> None:
        self.settings = settings
        self.notebook = notebook
        self.folder: Path | None = None
        self.record: Record | None = None
        self.reason = ""
        self._results: list[Any] = []
        self._since = utc_now()
        self._before: dict[str, Any] | None = None
        self._shell = _shell()

    def _start(self) -> None:
        parameters = effective_parameters()
        self.reason = unrecorded(self.settings, self.notebook, parameters)
        if self.reason:
            return
        name, _, digest = os.environ.pop(TEMPLATE, "").rpartition(":")
        self.folder = write_started(
            self.settings,
            self.notebook,
            parameters,
            run_id=os.environ.pop(RUN_ID, ""),
            template=(name, digest) if digest else None,
        )
        self._before = database_identity(self.settings)
        if self._shell:
            for watch in [f for f in self._shell.events.callbacks["post_run_cell"] if _is_watch(f)]:
                self._shell.events.unregister("post_run_cell", watch)  # of a run that was begun before, and left
            self._shell.events.register("post_run_cell", self._watch)

    def seal(self, *results: Any) -> None:
        """Write the record of this run with its verdict, show it, and end the run. Without effect if not recorded.

        ``results`` are Reports, or what holds one as ``report``. What the cells have shown is recorded as well.
        """
        if self.record:
            raise MisuseError(f"this run is sealed already, as {self.record.verdict}: run the notebook from its top")
        for result in results:
            self._keep(result)
        reports = self._reports()
        if not any(report.checks for report in reports):
            raise MisuseError("a run without a single check proves nothing", "seal it with the report that it is about")
        if stale := [report.title for report in reports if report.finished_at < self._since]:
            remedy = "run the notebook from its top"
            raise MisuseError(f"what {', '.join(stale)} reports was found before this run began", remedy)
        verdict: Verdict = "pass"
        if any(not report.ok for report in reports):
            verdict = "refused" if any(report.refused for report in reports) else "fail"
        self._seal(verdict, None)

    def _reports(self) -> list[Report]:
        found = [result if isinstance(result, Report) else getattr(result, "report", None) for result in self._results]
        reports: list[Report] = []
        for report in found:
            if isinstance(report, Report) and not any(report is other for other in reports):
                reports.append(report)
        return reports

    def _keep(self, result: Any) -> None:
        if (isinstance(result, Report) or hasattr(result, "to_record")) and not any(
            result is other for other in self._results
        ):
            self._results.append(result)

    def _watch(self, result: "ExecutionResult") -> None:
        """Keep what a cell has shown, and seal the run if it raised: called by IPython after each cell."""
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            self._keep(result.result)
            return
        try:
            if isinstance(error, ChecksFailedError) and error.report is not None:
                self.seal(error.report)
            else:
                self._seal(_verdict_of(error), _told(result, error))
        except AbathurError as failure:  # raised in here, it would end as a traceback, and the cell has its own error
            _show({"text/plain": str(failure)})

    def _seal(self, verdict: Verdict, error: dict[str, Any] | None) -> None:
        if self.folder is None:
            return
        facts: dict[str, Any] = {}
        for result in self._results:
            facts |= result.to_record() if hasattr(result, "to_record") else {}
        try:
            self.record = write_record(
                self.folder,
                self.settings,
                verdict,
                reports=tuple(self._reports()),
                facts=facts,
                database={"before": self._before, "after": database_identity(self.settings)},
                error=error,
            )
        finally:
            if self._shell:
                self._shell.events.unregister("post_run_cell", self._watch)
        text = summary(self.record)
        _show({MIME: self.record.to_dict(), "text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"})

    def __str__(self) -> str:
        if self.folder is None:
            return f"not recorded: {self.reason}"
        return f"run {self.folder.name}, recorded in {self.folder.parent}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        html = f"<p><b>{escape(printable(str(self)))}</b></p>{self.settings._repr_html_()}"
        return {"text/html": html, "text/plain": f"{self}\n{self.settings}"}


def unrecorded(settings: Settings, notebook: str, parameters: Mapping[str, object]) -> str:
    """Say why a run of ``notebook`` is not recorded, or return an empty text. Read-only."""
    if forbidden := refused_before(settings, notebook):
        return "; ".join(f"{check.name}: {check.observed}" for check in forbidden)
    if notebook_named(notebook).only_looks(parameters) and not _has_a_place(settings):
        return f"there is no {settings.db_path.parent} yet, and this run makes nothing"
    return ""


def _has_a_place(settings: Settings) -> bool:
    """Return whether a record can be kept without making the database's own directory, which preflight only probes."""
    data = settings.db_path.parent
    return data.is_dir() or not settings.archive_dir.is_relative_to(data)


def _verdict_of(error: BaseException) -> Verdict:
    if isinstance(error, RefusedError | BusyError | ConfigurationError):
        return "refused"
    return "interrupted" if isinstance(error, KeyboardInterrupt | asyncio.CancelledError) else "error"


def _told(result: "ExecutionResult", error: BaseException) -> dict[str, Any]:
    """Return what a record says of the cell that broke its run."""
    message = printable(str(error))
    return {
        "cell": result.execution_count,
        "id": getattr(result.info, "cell_id", None),
        "name": type(error).__name__,
        "message": message[:_LONGEST_MESSAGE],
    }


def _is_watch(callback: Any) -> bool:
    return isinstance(getattr(callback, "__self__", None), Run)


def _shell() -> "InteractiveShell | None":
    """Return the shell of the notebook that this runs in, if it is one."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    return get_ipython()  # type: ignore[no-untyped-call,unused-ignore]


def _show(bundle: dict[str, Any]) -> None:
    if _shell() is None:
        return
    from IPython.display import publish_display_data

    publish_display_data(bundle)
