"""Index: the newest run of each notebook and environment at a glance, and the table of an archive's runs."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.config.settings import Settings, environment_names, resolve
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.record import Entry, read_archive
from abathur_nb.evidence.run import Run
from abathur_nb.evidence.stores import chosen_archive, first_run, local
from abathur_nb.report import Check, Report
from abathur_nb.text import Table, duration, printable

_HEAD = ("when (UTC)", "what", "env", "verdict", "duration", "who", "run", "archived")
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
        "seconds": entry.seconds,
        "archived": entry.line is not None,
        "as_template": line.get("as_template"),
        "faults": list(entry.faults),
    }


def table(entries: Sequence[Entry]) -> str:
    """Return the runs as aligned plain text without control characters, the newest last."""
    rows = [_HEAD, *(_row(listed(entry)) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for entry in entries:
        if words := _NO_EVIDENCE.get(entry.verdict):
            lines += [f"{entry.run_id} {words}", *(f"  {_line(fault)}" for fault in entry.faults)]
    if loose := sum(entry.verdict not in _NO_EVIDENCE and entry.line is None for entry in entries):
        remedy = "python -m abathur_nb archive OUT.ipynb"
        lines.append(f"sealed, but not archived: {loose}. Nothing vouches for these: {remedy}")
    return "\n".join(lines)


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    seconds, verdict = run["seconds"], run["verdict"]
    texts = (
        str(run["started_at"] or "?").partition(".")[0],
        run["notebook"] or "?",
        run["env"] or "?",
        verdict.upper() if verdict in _NO_EVIDENCE else verdict,
        "-" if seconds is None else f"{seconds:.1f} s" if seconds < 100 else duration(seconds),
        f"{run['user']} on {run['host']}" if run["user"] else "?",
        run["run_id"],
        "NO" if not run["archived"] else "yes" if run["as_template"] else "yes, with other cells than the template's",
    )
    return tuple(map(_line, texts))


def _line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


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


@dataclass(frozen=True, slots=True)
class Overview:
    """Hold the newest runs of each environment, by environment and notebook; shown with a row for each notebook.

    ``databases`` says of each environment where its database is. ``report`` has a check for each environment, and
    fails where its settings are wrong, or a record or the ledger was altered. A failed run only warns: its own verdict
    failed.
    """

    report: Report
    databases: Mapping[str, str]
    newest: Mapping[str, Mapping[str, Entry]]

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: of each environment which runs were its newest."""
        runs = {env: {name: run.run_id for name, run in newest.items()} for env, newest in self.newest.items()}
        return {"newest_runs": runs}

    def table(self) -> Table:
        """Return a table with a column for each environment: the verdict and the time of each newest run."""
        rows: list[tuple[str, ...]] = [("database", *self.databases.values())]
        found = dict.fromkeys(name for newest in self.newest.values() for name in newest)
        for name in dict.fromkeys((*(one for one in NOTEBOOKS if one != _TITLE), *found)):
            runs = (newest.get(name) for newest in self.newest.values())
            rows.append((name, *(f"{run.mark}\n{run.when}" if run else "–" for run in runs)))
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
    newest: dict[str, Mapping[str, Entry]] = {}
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
    return Overview(Report(_TITLE, tuple(checks), subject=str(settings.db_path)), databases, newest)


def _database(path: Path) -> str:
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"{path}\nnot there"
    except OSError as error:
        return f"{path}\ncannot be looked at: {error.strerror}"
    return str(path)


def _newest(settings: Settings, own: str | None) -> tuple[Mapping[str, Entry], Check]:
    """Return the newest run of each notebook of an environment, and the check about them."""
    archive, env = settings.archive_dir, settings.env
    os.stat(archive)
    ledger = read_ledger(archive)
    entries = [entry for entry in read_archive(archive, ledger) if entry.run_id != own]
    newest = {run.notebook: run for run in entries if run.is_of(settings)}
    if faults := [*ledger.faults, *(fault for entry in entries for fault in entry.faults)]:
        observed = f"its archive is not as it was written: {faults[0]}"
        remedy = f"python -m abathur_nb verify {quote(str(archive))}"
        expected = "an archive as it was written"
        return newest, Check(env, "fail", expected, observed, remedy, tuple(faults), name=env)
    expected = "the newest run of each notebook passed"
    if not newest:
        return newest, Check(env, "skip", expected, "no run of its database yet", first_run(settings), name=env)
    last = max(newest.values(), key=lambda run: run.run_id)
    bad = [run for run in newest.values() if run.verdict != "pass"]
    passed = f"{len(newest)} notebook{'s' * (len(newest) > 1)}; the last was {last.notebook}, {last.when} UTC"
    return newest, Check.that(
        env,
        not bad,
        expected=expected,
        observed=", ".join(f"{run.notebook} {run.verdict}" for run in bad) or passed,
        remedy=f"open history.ipynb with env {env}: it says what failed, and what changed since it passed",
        otherwise="warn",
        evidence=(f"{archive}/{run.run_id} {run.notebook} {run.ending}" for run in bad),
        name=env,
    )


def _unread(settings: Settings, error: Exception, *, mine: bool) -> Check:
    """Say why an archive can't be read; a person need not be allowed to read that of another environment."""
    archive, env, account = settings.archive_dir, settings.env, settings.service_account
    if isinstance(error, FileNotFoundError):
        return Check(env, "skip", "an archive", f"no archive at {archive}", first_run(settings), name=env)
    remedy = f"run this notebook as {account}, who owns it" if account else "see who may read it"
    observed = f"could not run: {archive} cannot be read: {getattr(error, 'strerror', None) or error}"
    look = f"{remedy}: ls -la {quote(str(archive.parent))}"
    return Check(env, "error" if mine else "skip", "an archive that can be read", observed, look, name=env)
