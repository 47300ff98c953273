"""Readiness: every line of the runbook's checklists (sections 7 and 3.3), answered by a run or a named person."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from shlex import join, quote

from abathur_nb.backups.change import check_arguments
from abathur_nb.config.notebooks import notebook_named
from abathur_nb.config.parameters import FORM, Parameter, said
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.record import Entry, read_with_ledger
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.report import Check, Report
from abathur_nb.store.target import examine, wanted
from abathur_nb.text import SEE_CLOCK, Shown, Table, age, counted, is_ahead


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one line of a checklist, its text, and the evidence that it needs.

    The evidence is the newest run of ``notebook`` with these ``parameters``. It must be at most ``days`` old, and each
    of ``checks`` (ids), or the whole run if none is named, must have passed. ``env`` names another archive to search.
    With ``state``, a later change of the database invalidates it. Without a notebook, a person answers the line, in the
    parameter of readiness named ``id``.
    """

    id: str
    text: str
    notebook: str = ""
    checks: tuple[str, ...] = ()
    days: int = 7
    parameters: Mapping[str, object] = field(default_factory=dict)
    env: str = ""
    state: bool = False
    section: str = ""


_QUARTER = 90  # days
# A dashboard needs snapshots that a timer records; whether an alert fires does not count.
_MEASURED, _RECORDED = ("snapshot", "record"), {"record": True}
_SOFTWARE = ("python", "sqlite", "sqlite_json_functions", "sqlite_thread_safety", "aiosqlite")
_FILE_SYSTEM = ("file_system", "file_system_behaviour")
_NIGHTLY = Line(
    "backup_automation", "Backup automation configured", "backup", ("copy", "proof"), 2, {"reason": "nightly"}
)


def _state(line_id: str, text: str, check: str) -> Line:
    return Line(line_id, text, "validate", (check,), state=True)


_LISTS: Mapping[str, tuple[Line, ...]] = {
    "Pre-Migration": (
        Line(
            "system_requirements", "System requirements verified (Python 3.11+, SQLite 3.35+)", "preflight", _SOFTWARE
        ),
        Line("disk_space", "Disk space available (10GB+)", "preflight", ("free_disk",)),
        Line("file_system", "File system compatible with WAL mode", "preflight", _FILE_SYSTEM),
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
        Line("dashboards", "Monitoring dashboards deployed", "monitor", _MEASURED, 2, _RECORDED),
        Line("alerts_configured", "Alerting rules configured"),
        Line("runbooks_accessible", "Operational runbooks accessible"),
        Line("team_trained", "Team trained on procedures"),
    ),
    "Pre-Production (3.3)": (
        Line("staging_validated", "Staging environment validated", "validate", (), env="staging"),
        Line("tests_passing", "All tests passing (unit, integration, performance)"),
        _NIGHTLY,
        Line("dashboards", "Monitoring dashboards ready", "monitor", _MEASURED, 2, _RECORDED),
        Line("rollback_tested", "Rollback procedures tested", "restore", ("drill",), _QUARTER, {"drill": True}),
    ),
}
CHECKLIST = tuple(replace(line, section=section) for section, lines in _LISTS.items() for line in lines)

_TITLE = "readiness"
_MARKS = {"pass": "✓", "skip": "✓ said", "warn": "!", "fail": "✗", "error": "✗"}


@dataclass(frozen=True, slots=True)
class Readiness(Shown):
    """Hold the answer to each line of the checklists, in their order; a notebook shows go or no-go above them."""

    report: Report

    @property
    def verdict(self) -> str:
        """Return ``GO``, or ``NO-GO`` and how many lines lack their evidence."""
        failed = sum(check.failed for check in self.report.checks)
        return f"NO-GO: {failed} of {len(self.report.checks)} lines lack their evidence" if failed else "GO"

    def _table(self) -> Table:
        rows = tuple(
            (_MARKS[check.status], check.data["list"], check.name, check.observed, check.remedy)
            for check in self.report.checks
        )
        caption = f"{'✓' if self.report.ok else '✗'} {self.verdict}, {self.report.subject}"
        return Table(("", "list", "line", "evidence", "what to do"), rows, "no line", caption=caption)


async def readiness(
    settings: Settings,
    *,
    team_trained: str | None = None,
    tests_passing: str | None = None,
    alerts_configured: str | None = None,
    runbooks_accessible: str | None = None,
) -> Readiness:
    """Answer every line of the checklists from the archives of ``settings`` and, for production, of staging. Read-only.

    Evidence is the newest archived run of its kind, whatever its verdict; the archive must pass verify. Each statement
    names a person and a date: ``"Ada Lovelace, 2026-11-20"``. Raises ConfigurationError otherwise.
    """
    statements = {
        "team_trained": team_trained,
        "tests_passing": tests_passing,
        "alerts_configured": alerts_configured,
        "runbooks_accessible": runbooks_accessible,
    }
    check_arguments(*(Parameter(name, str, None).fault(answer) for name, answer in statements.items()))
    return await asyncio.to_thread(_answers, settings, statements)


def _answers(settings: Settings, statements: Mapping[str, str | None]) -> Readiness:
    lines = [line for line in CHECKLIST if not line.env or settings.env == "production"]
    archives = {env: _read(resolve(env) if env else settings) for env in dict.fromkeys(line.env for line in lines)}
    evidence = [archive.check for archive in archives.values()]
    if (target := examine(settings)).state != "present":  # without this database, the evidence is void
        evidence.append(wanted(target, settings))
    checks = [replace(check, data={"list": "Evidence"}) for check in evidence]
    for line in lines:
        if line.notebook:
            check = archives[line.env].answer(line)
        else:
            check = said(line.text, statements[line.id], check_id=line.id)
        if line.id in statements and statements[line.id] is None:
            check = replace(check, status="fail", remedy=f"name a person and date: -p {line.id} {FORM}")
        checks.append(replace(check, data={"list": line.section}))
    return Readiness(Report(_TITLE, tuple(checks), subject=str(settings.db_path)))


@dataclass(frozen=True, slots=True)
class _Archive:
    """Hold the runs of one environment's database: ``runs`` may be evidence, oldest first; ``changes`` changed it."""

    settings: Settings
    check: Check
    runs: Sequence[Entry]
    changes: Sequence[Entry]

    def answer(self, line: Line) -> Check:
        """Return the check of ``line``, from the newest run that it accepts."""
        runs = (run for run in reversed(self.runs) if run.notebook == line.notebook)
        run = next((run for run in runs if line.parameters.items() <= _parameters(run).items()), None)
        asked = "".join(f" with {name} {value}" for name, value in line.parameters.items())
        fault = observed = f"no archived run of {line.notebook}{asked}"
        if run:
            fault = self._fault(line, run)
            observed = f"run {run.run_id}, {age(run.started_at)}: {run.verdict}{'; ' if fault else ''}{fault}"
        expected = f"{line.notebook} passed within {line.days} days"
        given = [word for name, value in line.parameters.items() for word in ("-p", name, str(value))]
        remedy = join([*self.settings.command(line.notebook), *given])
        return Check.that(line.id, not fault, expected, observed, remedy, name=line.text)

    def _fault(self, line: Line, run: Entry) -> str:
        """Return why a run does not count as evidence for a line, or an empty text."""
        passed = {check.id for check in run.record.checks if check.status == "pass"} if run.record else set()
        if missing := [name.replace("_", " ") for name in line.checks if name not in passed]:
            return f"not passed: {', '.join(missing)}"
        if not line.checks and run.verdict != "pass":
            return "it did not pass"
        if datetime.now(UTC) - run.started_at > timedelta(days=line.days):
            return "it is too old"
        if is_ahead(run.started_at):
            return SEE_CLOCK
        since = [change for change in self.changes if _is_after(change, run)] if line.state else []
        return f"the database was changed later, at {since[-1].when} UTC" if since else ""


def _read(settings: Settings) -> _Archive:
    folder = settings.archive_dir
    try:
        read = read_with_ledger(folder)
        runs = [run for run in read[1] if run.sealed and run.is_of(settings)]
        failed = [check.observed for check in verify_archive(folder, read=read).checks if check.failed]
    except RefusedError as error:
        runs, failed = [], [error.observed]
    # The order of the ledger does not depend on a clock.
    archived = sorted((run for run in runs if run.line), key=_number)
    observed = failed[0] if failed else f"{folder}, {counted(len(archived), 'archived run')} of {settings.db_path}"
    name = f"{settings.env}: the archive is as it was written"
    remedy = f"python -m abathur_nb verify {quote(str(folder))}"
    check = Check.that("archive", not failed, "verify passes", observed, remedy, name=name)
    changes = [r for r in runs if r.verdict != "refused" and notebook_named(r.notebook).changes(_parameters(r))]
    return _Archive(settings, check, archived, changes)


def _number(run: Entry) -> int:
    return run.line.number if run.line else 0


def _is_after(change: Entry, run: Entry) -> bool:
    """Return whether a change began after a run; if its time is in the future, by the order of the ledger."""
    if is_ahead(change.started_at) and change.line:
        return _number(change) > _number(run)
    return change.started_at > run.started_at


def _parameters(run: Entry) -> Mapping[str, object]:
    return run.record.parameters if run.record else {}
