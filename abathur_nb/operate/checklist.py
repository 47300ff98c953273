"""The checklists of the prose runbook (its sections 7 and 3.3), and what answers each of their lines."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    section: str
    text: str
    notebook: str = ""
    checks: tuple[str, ...] = ()
    days: int = 7
    parameters: Mapping[str, object] = field(default_factory=dict)
    env: str = ""
    state: bool = False
    said_by: str = ""


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

CHECKLIST = (
    Line(
        "system_requirements",
        "Pre-Migration",
        "System requirements verified (Python 3.11+, SQLite 3.35+)",
        "preflight",
        ("python", "sqlite", "sqlite_json_functions", "sqlite_thread_safety", "aiosqlite"),
    ),
    Line("disk_space", "Pre-Migration", "Disk space available (10GB+)", "preflight", ("free_disk",)),
    Line(
        "file_system",
        "Pre-Migration",
        "File system compatible with WAL mode",
        "preflight",
        ("file_system", "file_system_behaviour"),
    ),
    Line("backup_directory", "Pre-Migration", "Backup directory created", "preflight", ("backup_directory",)),
    Line(
        "database_directory",
        "Pre-Migration",
        "Database directory created with correct permissions",
        "preflight",
        ("directory",),
    ),
    Line(
        "pragma_settings",
        "Initialization",
        "PRAGMA settings configured (WAL mode, foreign keys, etc.)",
        "validate",
        ("journal_mode",),
        state=True,
    ),
    Line(
        "memory_tables",
        "Initialization",
        "Memory tables created (sessions, memory_entries, document_index)",
        "validate",
        ("tables",),
        state=True,
    ),
    Line(
        "core_tables",
        "Initialization",
        "Core tables created (tasks, agents, audit, checkpoints, state, metrics)",
        "validate",
        ("tables",),
        state=True,
    ),
    Line("indexes_created", "Initialization", "All 33 indexes created", "validate", ("indexes",), state=True),
    Line(
        "seed_memories",
        "Initialization",
        "Initial data seeded (3 application memories)",
        "validate",
        ("seed_memories",),
        state=True,
    ),
    Line("integrity", "Validation", 'PRAGMA integrity_check returns "ok"', "validate", ("integrity",), state=True),
    Line(
        "foreign_keys",
        "Validation",
        "PRAGMA foreign_key_check returns no violations",
        "validate",
        ("foreign_keys",),
        state=True,
    ),
    Line("tables_exist", "Validation", "All expected tables exist (9 tables)", "validate", ("tables",), state=True),
    Line("indexes_exist", "Validation", "All indexes created (33 indexes)", "validate", ("indexes",), state=True),
    Line("seeds_verified", "Validation", "Seed data verified (3 memories)", "validate", ("seed_memories",), state=True),
    Line(
        "index_usage",
        "Validation",
        "Index usage verified (EXPLAIN QUERY PLAN)",
        "explain",
        ("coverage",),
        30,
        state=True,
    ),
    Line("session_retrieval", "Performance", "Session retrieval <10ms (p99)", "benchmark", ("session_retrieval",), 30),
    Line("memory_retrieval", "Performance", "Memory retrieval <20ms (p99)", "benchmark", ("memory_retrieval",), 30),
    Line(
        "concurrent_sessions",
        "Performance",
        "50+ concurrent sessions supported",
        "benchmark",
        ("50_concurrent_reads",),
        30,
    ),
    Line("full_scans", "Performance", "No full table scans in critical queries", "explain", (), 30, state=True),
    Line(
        "backup_automation",
        "Production Readiness",
        "Backup automation configured",
        "backup",
        ("copy", "proof"),
        2,
        parameters={"reason": "nightly"},
    ),
    Line(
        "dashboards",
        "Production Readiness",
        "Monitoring dashboards deployed",
        "monitor",
        _MEASURED,
        2,
        parameters=_RECORDED,
    ),
    Line("alerts_configured", "Production Readiness", STATEMENTS["alerts_configured"], said_by="alerts_configured"),
    Line(
        "runbooks_accessible", "Production Readiness", STATEMENTS["runbooks_accessible"], said_by="runbooks_accessible"
    ),
    Line("team_trained", "Production Readiness", STATEMENTS["team_trained"], said_by="team_trained"),
    Line("staging_validated", "Pre-Production (3.3)", "Staging environment validated", "validate", (), env="staging"),
    Line("tests_passing", "Pre-Production (3.3)", STATEMENTS["tests_passing"], said_by="tests_passing"),
    Line(
        "backup_automation",
        "Pre-Production (3.3)",
        "Backup automation configured",
        "backup",
        ("copy", "proof"),
        2,
        parameters={"reason": "nightly"},
    ),
    Line(
        "dashboards",
        "Pre-Production (3.3)",
        "Monitoring dashboards ready",
        "monitor",
        _MEASURED,
        2,
        parameters=_RECORDED,
    ),
    Line(
        "rollback_tested",
        "Pre-Production (3.3)",
        "Rollback procedures tested",
        "restore",
        ("drill",),
        _QUARTER,
        parameters={"drill": True},
    ),
)
