"""Index: the newest run of each notebook and environment at a glance, and the table of an archive's runs."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.config.settings import Settings, environment_names, resolve
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.record import Entry, PastRun, past_runs, read_archive
from abathur_nb.evidence.run import Run
from abathur_nb.evidence.stores import chosen_archive, first_run, local
from abathur_nb.report import Check, Report
from abathur_nb.text import Table, moment_of, printable

_HEAD = ("when (UTC)", "what", "env", "verdict", "duration", "who", "run", "archived")
_SHORTEST = 15  # characters of a run id: its second
_NO_EVIDENCE = {
    "unsealed": "was never sealed: it died, or still runs. It is not evidence.",
    "altered": "is not as it was written: verify says what is wrong.",
}


def listed(entry: Entry) -> dict[str, Any]:
    """Return what a list says of one run: plain data, None for what is not known."""
    line: Mapping[str, Any] = entry.line.data if entry.line else {}
    names = ("started_at", "ended_at", "notebook", "env", "user", "host")
    said = {name: getattr(entry.known, name, None) if entry.known else line.get(name) for name in names}
    return {
        "run_id": entry.run_id,
        **said,
        "verdict": entry.verdict,
        "seconds": _seconds(said["started_at"], said["ended_at"]),
        "archived": entry.line is not None,
        "as_template": entry.line.data["as_template"] if entry.line else None,
        "faults": list(entry.faults),
    }


def _seconds(started: str | None, ended: str | None) -> float | None:
    try:
        return (moment_of(ended or "") - moment_of(started or "")).total_seconds()
    except ValueError:  # of a line of the ledger, or not ended
        return None


def table(entries: Sequence[Entry]) -> str:
    """Return the runs as aligned plain text that a terminal takes for nothing else, the newest last."""
    length = _unique([entry.run_id for entry in entries])
    rows = [_HEAD, *(_row(listed(entry), length) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for entry in entries:
        if words := _NO_EVIDENCE.get(entry.verdict):
            lines += [f"{entry.run_id[:length]} {words}", *(f"  {_line(fault)}" for fault in entry.faults)]
    if loose := sum(entry.verdict not in _NO_EVIDENCE and entry.line is None for entry in entries):
        lines.append(
            f"sealed, but not archived: {loose}. Nothing vouches for these: python -m abathur_nb archive OUT.ipynb"
        )
    return "\n".join(lines)


def _row(run: Mapping[str, Any], length: int) -> tuple[str, ...]:
    who = f"{run['user']} on {run['host']}" if run["user"] else "?"
    verdict = run["verdict"].upper() if run["verdict"] in _NO_EVIDENCE else run["verdict"]
    when = str(run["started_at"] or "?").partition(".")[0]
    texts = (when, run["notebook"] or "?", run["env"] or "?", verdict, _duration(run["seconds"]), who)
    return (*map(_line, texts), run["run_id"][:length], _archived(run))


def _archived(run: Mapping[str, Any]) -> str:
    if not run["archived"]:
        return "NO"
    return "yes" if run["as_template"] else "yes, with other cells than the template's"


def _line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if abs(seconds) < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def _unique(run_ids: Sequence[str]) -> int:
    """Return how many characters tell all these ids apart."""
    return next(n for n in count(_SHORTEST) if len({run_id[:n] for run_id in run_ids}) == len(run_ids))


def command(arguments: argparse.Namespace) -> int:
    """Print the runs of an archive, and return 0. Read-only."""
    archive = chosen_archive(arguments)
    with local(archive) as folder:
        ledger = read_ledger(folder)
        entries = read_archive(folder, ledger)
    sys.stderr.writelines(f"abathur_nb runs: {printable(fault)}\n" for fault in ledger.faults)
    if arguments.json:
        sys.stdout.write("".join(f"{json.dumps(listed(entry))}\n" for entry in entries))
    else:
        sys.stdout.write(f"{table(entries)}\n" if entries else f"no runs in {printable(str(archive))}\n")
    return 0


_TITLE = "index"
_SHOWN = tuple(name for name in NOTEBOOKS if name != _TITLE)
_NEVER = "–"


@dataclass(frozen=True, slots=True)
class Overview:
    """Hold the newest runs of each environment, by environment and notebook; shown with a row for each notebook.

    ``databases`` says of each environment where its database is. ``report`` has a check for each environment, and
    fails where its settings are wrong, or a record or the ledger was altered; of a run, its own verdict has noted.
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
            observed, remedy = "; ".join(error.faults), "repair the settings file, or the variable that is named"
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
