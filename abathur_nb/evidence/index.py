"""Index: the state of each environment at a glance, of each notebook the newest run in its archive."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.past import PastRun, past_runs
from abathur_nb.evidence.reading import first_run, read_archive
from abathur_nb.evidence.run import Run
from abathur_nb.notebooks import NOTEBOOKS
from abathur_nb.report import Check, Report
from abathur_nb.settings import Settings, environment_names, resolve
from abathur_nb.table import Table

__all__ = ["Overview", "show_environments"]

_TITLE = "index"
_SHOWN = tuple(name for name in NOTEBOOKS if name != _TITLE)
_NEVER = "–"


@dataclass(frozen=True, slots=True)
class Overview:
    """Hold the newest runs of each environment, by environment and notebook; shown with a row for each notebook.

    ``databases`` says of each environment where its database is. ``report`` has a check for each environment, and
    fails where its settings are wrong, or a record or the ledger was altered; of a run, its own verdict has told.
    """

    report: Report
    databases: Mapping[str, str]
    newest: Mapping[str, Mapping[str, PastRun]]

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: of each environment which runs were its newest."""
        runs = {env: {name: run.run_id for name, run in newest.items()} for env, newest in self.newest.items()}
        return {"newest_runs": runs}

    def table(self) -> Table:
        """Return the table that a notebook shows: the databases, then each notebook; a column for each environment."""
        others = {name: "" for newest in self.newest.values() for name in sorted(newest) if name not in _SHOWN}
        rows = [("database", *self.databases.values())]
        for name in (*_SHOWN, *others):
            found = (newest.get(name) for newest in self.newest.values())
            rows.append((name, *(f"{run.mark}\n{run.when}" if run else _NEVER for run in found)))
        return Table(("newest run of", *self.newest), tuple(rows), "no environment")

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def show_environments(settings: Settings, *, run: Run | None = None) -> Overview:
    """Read which runs are the newest of each environment, of the database that it has now. Read-only.

    The environment of ``settings`` is read as they say, each other one as its own settings do. ``run`` is the run that
    asks, and is left out.
    """
    own = run.folder.name if run and run.folder else None
    checks: list[Check] = []
    databases: dict[str, str] = {}
    newest: dict[str, Mapping[str, PastRun]] = {}
    for env in environment_names():
        databases[env], newest[env] = "?", {}
        try:
            theirs = settings if env == settings.env else resolve(env)
        except ConfigurationError as error:
            observed, remedy = "; ".join(error.faults), "mend the settings file, or the variable that is named"
            checks.append(Check(env, "fail", "its settings can be resolved", observed, remedy, name=env))
            continue
        databases[env] = _database(theirs.db_path)
        try:
            newest[env], found = _newest(theirs, own)
        except (AbathurError, OSError) as error:
            found = _unread(theirs, error, mine=env == settings.env)
        checks.append(found)
    report = Report(_TITLE, tuple(checks), subject=str(settings.db_path))
    return Overview(report, databases, newest)


def _database(path: Path) -> str:
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"{path}\nnot there"
    except OSError as error:
        return f"{path}\ncannot be looked at: {error.strerror}"
    return str(path)


def _newest(settings: Settings, own: str | None) -> tuple[Mapping[str, PastRun], Check]:
    archive = settings.archive_dir
    os.stat(archive)
    ledger = read_ledger(archive)
    entries = [entry for entry in read_archive(archive, ledger) if entry.run_id != own]
    runs = past_runs(entries)
    newest = {run.notebook: run for run in runs if run.is_of(settings)}
    faults = [*ledger.faults, *(fault for entry in entries for fault in entry.faults)]
    # Its hash may be right, and yet no run have written it.
    faults += [
        f"{run.run_id}: no run can have found that" for run in runs if run.verdict == "altered" and not run.entry.faults
    ]
    return newest, _check(settings, newest, faults)


def _check(settings: Settings, newest: Mapping[str, PastRun], faults: list[str]) -> Check:
    expected = "the newest run of each notebook passed"
    if faults:
        remedy = f"python -m abathur_nb verify {quote(str(settings.archive_dir))}"
        observed = f"its archive is not as it was written: {faults[0]}"
        return Check(
            settings.env, "fail", "an archive as it was written", observed, remedy, tuple(faults), name=settings.env
        )
    if not newest:
        return Check(
            settings.env, "skip", expected, "no run of its database yet", first_run(settings), name=settings.env
        )
    last = max(newest.values(), key=lambda run: run.run_id)
    bad = [run for run in newest.values() if run.verdict != "pass"]
    passed = f"{len(newest)} notebook{'s' * (len(newest) > 1)}; the last was {last.notebook}, {last.when} UTC"
    return Check.that(
        settings.env,
        not bad,
        expected=expected,
        observed=", ".join(f"{run.notebook} {run.verdict}" for run in bad) if bad else passed,
        remedy=f"open history.ipynb with env {settings.env}: it says what failed, and what changed since it passed",
        otherwise="warn",
        evidence=_named(bad, settings),
        name=settings.env,
    )


def _named(runs: list[PastRun], settings: Settings) -> Iterator[str]:
    for run in runs:
        failed = f": {', '.join(run.facts.failed)}" if run.facts.failed else ""
        yield f"{settings.archive_dir}/{run.run_id} {run.notebook} {run.verdict}{failed}"


def _unread(settings: Settings, error: Exception, *, mine: bool) -> Check:
    """Say why an archive can't be read; a person need not be allowed to read that of another environment."""
    if isinstance(error, FileNotFoundError):
        observed = f"no archive at {settings.archive_dir}"
        return Check(settings.env, "skip", "an archive", observed, first_run(settings), name=settings.env)
    account = settings.service_account
    remedy = f"run this notebook as {account}, who owns it" if account else "see who may read it"
    reason = getattr(error, "strerror", None) or str(error)
    observed = f"could not run: {settings.archive_dir} cannot be read: {reason}"
    look = f"{remedy}: ls -la {quote(str(settings.archive_dir.parent))}"
    return Check(
        settings.env, "error" if mine else "skip", "an archive that can be read", observed, look, name=settings.env
    )
