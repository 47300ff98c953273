"""Set up, check, back up and repair an Abathur database, by notebook or from Python; each run leaves a record."""

# ruff: noqa: I001 - a line for each module: `X as X` makes a name public for type checkers

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abathur_nb import charts as charts
    from abathur_nb.backups.manifest import Retention as Retention, show_backups as show_backups
    from abathur_nb.config.notebooks import schedule as schedule, show_workers as show_workers
    from abathur_nb.config.parameters import guard as guard, said as said
    from abathur_nb.config.settings import ENVIRONMENTS as ENVIRONMENTS, Settings as Settings, resolve as resolve
    from abathur_nb.errors import (
        AbathurError as AbathurError,
        BusyError as BusyError,
        ChecksFailedError as ChecksFailedError,
        ConfigurationError as ConfigurationError,
        InvalidValueError as InvalidValueError,
        MisuseError as MisuseError,
        RefusedError as RefusedError,
    )
    from abathur_nb.evidence.run import Run as Run, start_run as start_run
    from abathur_nb.measure.hosts import Fleet as Fleet
    from abathur_nb.report import Check as Check, Report as Report
    from abathur_nb.runbook.backup import backup_database as backup_database
    from abathur_nb.runbook.benchmark import BenchmarkResult as BenchmarkResult, run_benchmark as run_benchmark
    from abathur_nb.runbook.explain import Plans as Plans, explain_queries as explain_queries
    from abathur_nb.runbook.explore import Exploration as Exploration, explore as explore
    from abathur_nb.runbook.fleet import run_fleet as run_fleet
    from abathur_nb.runbook.history import History as History, read_history as read_history
    from abathur_nb.runbook.index import Overview as Overview, show_environments as show_environments
    from abathur_nb.runbook.init import initialize_database as initialize_database
    from abathur_nb.runbook.monitor import Monitoring as Monitoring, monitor as monitor
    from abathur_nb.runbook.preflight import preflight as preflight
    from abathur_nb.runbook.readiness import Readiness as Readiness, readiness as readiness
    from abathur_nb.runbook.restore import restore_database as restore_database
    from abathur_nb.runbook.rollback import roll_back as roll_back
    from abathur_nb.runbook.troubleshoot import troubleshoot as troubleshoot
    from abathur_nb.runbook.validate import Schema as Schema, show_schema as show_schema
    from abathur_nb.runbook.validate import validate_database as validate_database
    from abathur_nb.store.database import Database as Database
    from abathur_nb.store.sql import Query as Query, load_queries as load_queries

# Names are imported on first use, so that `import abathur_nb` is fast.
_NAMES = {
    "backups.manifest": "Retention show_backups",
    "config.notebooks": "schedule show_workers",
    "config.parameters": "guard said",
    "config.settings": "ENVIRONMENTS Settings resolve",
    "errors": "AbathurError BusyError ChecksFailedError ConfigurationError InvalidValueError MisuseError RefusedError",
    "evidence.run": "Run start_run",
    "report": "Check Report",
    "runbook.backup": "backup_database",
    "runbook.benchmark": "BenchmarkResult run_benchmark",
    "runbook.explain": "Plans explain_queries",
    "runbook.explore": "Exploration explore",
    "runbook.fleet": "run_fleet",
    "measure.hosts": "Fleet",
    "runbook.history": "History read_history",
    "runbook.index": "Overview show_environments",
    "runbook.init": "initialize_database",
    "runbook.monitor": "Monitoring monitor",
    "runbook.preflight": "preflight",
    "runbook.readiness": "Readiness readiness",
    "runbook.restore": "restore_database",
    "runbook.rollback": "roll_back",
    "runbook.troubleshoot": "troubleshoot",
    "runbook.validate": "Schema show_schema validate_database",
    "store.database": "Database",
    "store.sql": "Query load_queries",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(["charts", *_HOMES])  # noqa: PLE0605 - it is a list
__version__: str

if not TYPE_CHECKING:  # else a type checker would accept any name of this package

    def __dir__() -> list[str]:
        return __all__

    def __getattr__(name: str) -> Any:
        if name == "charts":
            return import_module("abathur_nb.charts")
        if name == "__version__":
            return import_module("importlib.metadata").version("abathur_nb")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"abathur_nb.{_HOMES[name]}"), name)
