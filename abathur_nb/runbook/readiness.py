"""Readiness: every line of the runbook's checklists (sections 7 and 3.3), answered by a run or a named person."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from html import escape
from shlex import quote

from abathur_nb.config.notebooks import notebook_named
from abathur_nb.config.parameters import FORM, said, said_fault
from abathur_nb.config.settings import Settings, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.past import PastRun, past_runs
from abathur_nb.evidence.reading import read_archive
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.health.objects import OTHERS
from abathur_nb.report import Check, Report
from abathur_nb.store.target import examine, wanted
from abathur_nb.text import SEE_CLOCK, Table, age, counted, is_ahead, shown


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


_TITLE = "readiness"
_ARCHIVE = "the archive is as it was written"
_MARKS = {"pass": "✓", "skip": "✓ said", "warn": "!", "fail": "✗", "error": "✗"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Hold the answer to each line of the checklists, in their order; a notebook shows go or no-go above them."""

    report: Report
    sections: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Say ``GO``, or ``NO-GO`` and how many lines lack their evidence."""
        failed = sum(check.failed for check in self.report.checks)
        return f"NO-GO: {failed} of {len(self.report.checks)} lines lack their evidence" if failed else "GO"

    def __str__(self) -> str:
        return f"{self.verdict}\n{self._table()}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        mark, colour = ("✓", "") if self.report.ok else ("✗", " style='color:#c4420f'")
        head = f"<p><b{colour}>{mark} {escape(self.verdict)}</b><br><small>{escape(self.report.subject)}</small></p>"
        return {"text/html": head + self._table().to_html(), "text/plain": str(self)}

    def _table(self) -> Table:
        rows = (
            (_MARKS[check.status], section, check.name, check.observed, check.remedy)
            for section, check in zip(self.sections, self.report.checks, strict=True)
        )
        return Table(("", "list", "line", "evidence", "what to do"), tuple(rows), "no line")


def readiness(
    settings: Settings,
    *,
    team_trained: str | None = None,
    tests_passing: str | None = None,
    alerts_configured: str | None = None,
    runbooks_accessible: str | None = None,
) -> Readiness:
    """Answer every line of the checklists from the archives of ``settings`` and, for production, of staging. Read-only.

    Evidence is a run that is in the ledger of an archive that verifies; of the newest one of its kind, whatever its
    verdict. The statements name the person and the day, as ``said`` takes them: recorded as said by them. Raises
    ConfigurationError for another form.
    """
    statements = {
        "team_trained": team_trained,
        "tests_passing": tests_passing,
        "alerts_configured": alerts_configured,
        "runbooks_accessible": runbooks_accessible,
    }
    given = {name: answer for name, answer in statements.items() if answer is not None}
    if faults := [fault for name, answer in given.items() if (fault := said_fault(name, answer))]:
        raise ConfigurationError(faults)
    archives = {"": _Archive.of(settings)}
    lines = [line for line in CHECKLIST if not line.env or settings.env == "production"]
    for env in {line.env for line in lines if line.env}:
        archives[env] = _Archive.of(resolve(env))
    checks = [("Evidence", archive.check) for archive in archives.values()]
    if (target := examine(settings)).state != "present":  # what was found out about it is void
        checks.append(("Evidence", wanted(target, settings)))
    for line in lines:
        answer = _stated(line, statements[line.said_by]) if line.said_by else archives[line.env].answer(line)
        checks.append((line.section, answer))
    report = Report(_TITLE, tuple(check for _, check in checks), subject=str(settings.db_path))
    return Readiness(report, tuple(section for section, _ in checks))


def _stated(line: Line, answer: str | None) -> Check:
    if answer is not None:
        return said(line.text, answer, check_id=line.id)
    expected = "a person who answers for it, and the day"
    remedy = f"name them: -p {line.said_by} {FORM}"
    return Check(line.id, "fail", expected, "nobody has said so", remedy, name=line.text)


@dataclass(frozen=True, slots=True)
class _Archive:
    """The runs of one environment's database that can serve as evidence, oldest first."""

    settings: Settings
    check: Check
    runs: Sequence[PastRun]
    changes: Sequence[PastRun]

    @classmethod
    def of(cls, settings: Settings) -> "_Archive":
        folder = settings.archive_dir
        try:
            runs = past_runs(read_archive(folder))
            verified = verify_archive(folder)
        except RefusedError as error:
            return cls(settings, _archive_check(settings, False, error.observed), (), ())
        ours = [run for run in runs if run.sealed and run.is_of(settings)]
        failed = [check.observed for check in verified.checks if check.failed]
        # The order of the ledger, which no clock turns.
        archived = sorted((run for run in ours if run.entry.line), key=_number)
        observed = failed[0] if failed else f"{folder}, {counted(len(archived), 'archived run')} of {settings.db_path}"
        check = _archive_check(settings, not failed, observed)
        return cls(settings, check, archived, [run for run in ours if _changed(run)])

    def answer(self, line: Line) -> Check:
        """Return what the newest run that ``line`` asks for says."""
        run_it = _command(line, self.settings)
        expected = f"{line.notebook} passed within {line.days} days"
        of_notebook = [run for run in self.runs if run.notebook == line.notebook]
        found = [run for run in of_notebook if _has(run, line.parameters)]
        if not found:
            return Check(line.id, "fail", expected, _lacking(line, of_notebook), run_it, name=line.text)
        run = found[-1]
        observed = f"run {run.run_id}, {age(run.started_at)}: {run.verdict}"
        fault = ""
        if missing := _unproven(run, line.checks):
            fault = f"; not passed: {', '.join(missing).replace('_', ' ')}"
        elif not line.checks and run.verdict != "pass":
            fault = "; it did not pass"
        elif datetime.now(UTC) - run.started_at > timedelta(days=line.days):
            fault = "; it is too old"
        elif is_ahead(run.started_at):
            fault = f"; {SEE_CLOCK}"
        elif line.state and (since := [change for change in self.changes if _is_after(change, run)]):
            fault = f"; the database was changed since, at {since[-1].when} UTC"
        if not fault and {"tables", "indexes"} & {*line.checks} and (extra := _extra(run)):
            remedy = "find out who made them: another table or index changes nothing of ours"
            return Check(line.id, "warn", expected, f"{observed}; {extra}", remedy, name=line.text)
        observed += fault
        return Check.that(line.id, not fault, expected=expected, observed=observed, remedy=run_it, name=line.text)


def _archive_check(settings: Settings, holds: bool, observed: str) -> Check:
    remedy, name = f"python -m abathur_nb verify {quote(str(settings.archive_dir))}", f"{settings.env}: {_ARCHIVE}"
    return Check.that("archive", holds, expected="verify passes", observed=observed, remedy=remedy, name=name)


def _changed(run: PastRun) -> bool:
    """Return whether after this run another state may stand at the database's path."""
    return run.verdict != "refused" and notebook_named(run.notebook).changes(_parameters(run))


def _number(run: PastRun) -> int:
    return run.entry.line.number if run.entry.line else 0


def _is_after(change: PastRun, run: PastRun) -> bool:
    """Return whether a change began after a run; by the ledger where the clock was ahead then."""
    if is_ahead(change.started_at) and change.entry.line:
        return _number(change) > _number(run)
    return change.started_at > run.started_at


def _has(run: PastRun, parameters: Mapping[str, object]) -> bool:
    given = _parameters(run)
    return all(given.get(name) == value for name, value in parameters.items())


def _lacking(line: Line, runs: Sequence[PastRun]) -> str:
    """Say which run a line lacks, and with what other parameters the newest run of its notebook was made."""
    wanted = "".join(f" with {name} {value}" for name, value in line.parameters.items())
    if not runs or not line.parameters:
        return f"no archived run of {line.notebook}{wanted}"
    given = _parameters(runs[-1])
    has = ", ".join(f"{name} {shown(given.get(name))}" for name in line.parameters)
    return f"no archived run of {line.notebook}{wanted}; the newest, {runs[-1].run_id}, has {has}"


def _parameters(run: PastRun) -> Mapping[str, object]:
    return run.entry.record.parameters if run.entry.record else {}


def _checks(run: PastRun) -> tuple[Check, ...]:
    return run.entry.record.checks if run.entry.record else ()


def _unproven(run: PastRun, names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that are not the id of a check that passed."""
    passed = {check.id for check in _checks(run) if check.status == "pass"}
    return [name for name in names if name not in passed]


def _extra(run: PastRun) -> str:
    """Return what a run of validate named that is not of ``sql/``; an empty text for nothing."""
    named = [check.observed for check in _checks(run) if check.id == OTHERS and check.status != "pass"]
    return named[0] if named else ""


def _command(line: Line, settings: Settings) -> str:
    words = ["python -m abathur_nb run", line.notebook, "--env", settings.env]
    words += [] if settings.is_own_path else ["-p db_path", quote(str(settings.db_path))]
    words += [f"-p {name} {value}" for name, value in line.parameters.items()]
    return " ".join(words)
