"""Operate an Abathur database by notebook: initialize, validate, explain, benchmark."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from abathur_nb.attestation import said
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
from abathur_nb.guard import guard
from abathur_nb.initialize import initialize_database
from abathur_nb.preflight import preflight
from abathur_nb.report import Check, Report
from abathur_nb.schema import Schema, show_schema
from abathur_nb.settings import ENVIRONMENTS, Settings, resolve
from abathur_nb.sql import Query, load_queries
from abathur_nb.validate import validate_database

if TYPE_CHECKING:
    from abathur_nb import charts
    from abathur_nb.benchmark import run_benchmark
    from abathur_nb.database import Database
    from abathur_nb.evidence.history import History, read_history
    from abathur_nb.evidence.index import Overview, show_environments
    from abathur_nb.explain import explain_queries
    from abathur_nb.explanation import Plans
    from abathur_nb.measurements import BenchmarkResult
    from abathur_nb.operate.backup import backup_database
    from abathur_nb.operate.catalogue import show_backups
    from abathur_nb.operate.explore import Exploration, explore
    from abathur_nb.operate.monitor import Monitoring, monitor
    from abathur_nb.operate.readiness import Readiness, readiness
    from abathur_nb.operate.restore import restore_database
    from abathur_nb.operate.retention import Retention
    from abathur_nb.operate.rollback import roll_back
    from abathur_nb.operate.schedule import schedule
    from abathur_nb.operate.troubleshoot import troubleshoot

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


# What init and validate do without is imported when it is first asked for: they shall start at once.
_LATER = {
    "BenchmarkResult": "measurements",
    "Database": "database",
    "Exploration": "operate.explore",
    "History": "evidence.history",
    "Monitoring": "operate.monitor",
    "Overview": "evidence.index",
    "Plans": "explanation",
    "Readiness": "operate.readiness",
    "Retention": "operate.retention",
    "backup_database": "operate.backup",
    "explain_queries": "explain",
    "monitor": "operate.monitor",
    "explore": "operate.explore",
    "read_history": "evidence.history",
    "readiness": "operate.readiness",
    "restore_database": "operate.restore",
    "roll_back": "operate.rollback",
    "run_benchmark": "benchmark",
    "schedule": "operate.schedule",
    "show_backups": "operate.catalogue",
    "show_environments": "evidence.index",
    "troubleshoot": "operate.troubleshoot",
}


def __getattr__(name: str) -> Any:
    if name == "charts":
        return import_module("abathur_nb.charts")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"abathur_nb.{_LATER[name]}"), name)
