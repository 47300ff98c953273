"""The checklists of the prose runbook (its sections 7 and 3.3), and what answers each of their lines."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ["CHECKLIST", "STATEMENTS", "Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one line of a checklist, in its words, and the evidence that it wants.

    The newest run of ``notebook`` whose parameters are ``parameters``, not older than ``days``, in which each of
    ``checks``, which are ids, passed, or all of them where none is named; in the archive of ``env`` where it is another
    environment's. ``state`` says that it is about the database itself, and void once that was replaced or repaired.
    Without a notebook, a person answers for it, by the readiness parameter ``said_by``.
    """

    id: str
    text: str
    notebook: str = ""
    checks: tuple[str, ...] = ()
    days: int = 7
    parameters: Mapping[str, object] = field(default_factory=dict)
    env: str = ""
    state: bool = False
    said_by: str = ""
    section: str = ""


# Which statement of a person each of these parameters of the notebook is.
STATEMENTS = {
    "team_trained": "Team trained on procedures",
    "tests_passing": "All tests passing (unit, integration, performance)",
    "alerts_configured": "Alerting rules configured",
    "runbooks_accessible": "Operational runbooks accessible",
}
_QUARTER = 90  # days
# A dashboard is what its timer feeds; whether an alert fires then is another matter.
_MEASURED, _RECORDED = ("snapshot", "record"), {"record": True}


def _said(by: str) -> Line:
    return Line(by, STATEMENTS[by], said_by=by)


def _state(line_id: str, text: str, check: str) -> Line:
    return Line(line_id, text, "validate", (check,), state=True)


_NIGHTLY = Line(
    "backup_automation",
    "Backup automation configured",
    "backup",
    ("copy", "proof"),
    2,
    parameters={"reason": "nightly"},
)


_LISTS: Mapping[str, tuple[Line, ...]] = {
    "Pre-Migration": (
        Line(
            "system_requirements",
            "System requirements verified (Python 3.11+, SQLite 3.35+)",
            "preflight",
            ("python", "sqlite", "sqlite_json_functions", "sqlite_thread_safety", "aiosqlite"),
        ),
        Line("disk_space", "Disk space available (10GB+)", "preflight", ("free_disk",)),
        Line(
            "file_system", "File system compatible with WAL mode", "preflight", ("file_system", "file_system_behaviour")
        ),
        Line("backup_directory", "Backup directory created", "preflight", ("backup_directory",)),
        Line("database_directory", "Database directory created with correct permissions", "preflight", ("directory",)),
    ),
    "Initialization": (
        _state("pragma_settings", "PRAGMA settings configured (WAL mode, foreign keys, etc.)", "journal_mode"),
        _state("memory_tables", "Memory tables created (sessions, memory_entries, document_index)", "tables"),
        _state("core_tables", "Core tables created (tasks, agents, audit, checkpoints, state, metrics)", "tables"),
        _state("indexes_created", "All 33 indexes created", "indexes"),
        _state("seed_memories", "Initial data seeded (3 application memories)", "seed_memories"),
    ),
    "Validation": (
        _state("integrity", 'PRAGMA integrity_check returns "ok"', "integrity"),
        _state("foreign_keys", "PRAGMA foreign_key_check returns no violations", "foreign_keys"),
        _state("tables_exist", "All expected tables exist (9 tables)", "tables"),
        _state("indexes_exist", "All indexes created (33 indexes)", "indexes"),
        _state("seeds_verified", "Seed data verified (3 memories)", "seed_memories"),
        Line("index_usage", "Index usage verified (EXPLAIN QUERY PLAN)", "explain", ("coverage",), 30, state=True),
    ),
    "Performance": (
        Line("session_retrieval", "Session retrieval <10ms (p99)", "benchmark", ("session_retrieval",), 30),
        Line("memory_retrieval", "Memory retrieval <20ms (p99)", "benchmark", ("memory_retrieval",), 30),
        Line("concurrent_sessions", "50+ concurrent sessions supported", "benchmark", ("50_concurrent_reads",), 30),
        Line("full_scans", "No full table scans in critical queries", "explain", (), 30, state=True),
    ),
    "Production Readiness": (
        _NIGHTLY,
        Line("dashboards", "Monitoring dashboards deployed", "monitor", _MEASURED, 2, parameters=_RECORDED),
        _said("alerts_configured"),
        _said("runbooks_accessible"),
        _said("team_trained"),
    ),
    "Pre-Production (3.3)": (
        Line("staging_validated", "Staging environment validated", "validate", (), env="staging"),
        _said("tests_passing"),
        _NIGHTLY,
        Line("dashboards", "Monitoring dashboards ready", "monitor", _MEASURED, 2, parameters=_RECORDED),
        Line(
            "rollback_tested", "Rollback procedures tested", "restore", ("drill",), _QUARTER, parameters={"drill": True}
        ),
    ),
}
CHECKLIST = tuple(replace(line, section=section) for section, lines in _LISTS.items() for line in lines)
