"""Operate an Abathur database by notebook: initialize, validate, explain, benchmark."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from abathur_nb.config.parameters import guard, said
from abathur_nb.config.settings import ENVIRONMENTS, Settings, resolve
from abathur_nb.errors import (
    AbathurError,
    BusyError,
    ChecksFailedError,
    ConfigurationError,
    InvalidValueError,
    MisuseError,
    RefusedError,
)
from abathur_nb.evidence.run import Run, start_run
from abathur_nb.report import Check, Report
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.preflight import preflight
from abathur_nb.runbook.validate import Schema, show_schema, validate_database
from abathur_nb.store.sql import Query, load_queries

if TYPE_CHECKING:
    from abathur_nb import charts
    from abathur_nb.backups.manifest import Retention, show_backups
    from abathur_nb.config.notebooks import schedule
    from abathur_nb.runbook.backup import backup_database
    from abathur_nb.runbook.benchmark import BenchmarkResult, run_benchmark
    from abathur_nb.runbook.explain import Plans, explain_queries
    from abathur_nb.runbook.explore import Exploration, explore
    from abathur_nb.runbook.history import History, read_history
    from abathur_nb.runbook.index import Overview, show_environments
    from abathur_nb.runbook.monitor import Monitoring, monitor
    from abathur_nb.runbook.readiness import Readiness, readiness
    from abathur_nb.runbook.restore import restore_database
    from abathur_nb.runbook.rollback import roll_back
    from abathur_nb.runbook.troubleshoot import troubleshoot
    from abathur_nb.store.database import Database

__all__ = [
    "ENVIRONMENTS",
    "AbathurError",
    "BenchmarkResult",
    "BusyError",
    "Check",
    "ChecksFailedError",
    "ConfigurationError",
    "Database",
    "Exploration",
    "History",
    "InvalidValueError",
    "MisuseError",
    "Monitoring",
    "Overview",
    "Plans",
    "Query",
    "Readiness",
    "RefusedError",
    "Report",
    "Retention",
    "Run",
    "Schema",
    "Settings",
    "backup_database",
    "charts",
    "explain_queries",
    "explore",
    "guard",
    "initialize_database",
    "load_queries",
    "monitor",
    "preflight",
    "read_history",
    "readiness",
    "resolve",
    "restore_database",
    "roll_back",
    "run_benchmark",
    "said",
    "schedule",
    "show_backups",
    "show_environments",
    "show_schema",
    "start_run",
    "troubleshoot",
    "validate_database",
]

# What init and validate do without is imported when it is first asked for, so that both start at once.
_LATER = {
    "backups.manifest": ("Retention", "show_backups"),
    "config.notebooks": ("schedule",),
    "runbook.backup": ("backup_database",),
    "runbook.benchmark": ("BenchmarkResult", "run_benchmark"),
    "runbook.explain": ("Plans", "explain_queries"),
    "runbook.explore": ("Exploration", "explore"),
    "runbook.history": ("History", "read_history"),
    "runbook.index": ("Overview", "show_environments"),
    "runbook.monitor": ("Monitoring", "monitor"),
    "runbook.readiness": ("Readiness", "readiness"),
    "runbook.restore": ("restore_database",),
    "runbook.rollback": ("roll_back",),
    "runbook.troubleshoot": ("troubleshoot",),
    "store.database": ("Database",),
}
_HOMES = {name: module for module, names in _LATER.items() for name in names}


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
