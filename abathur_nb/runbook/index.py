"""Index: the newest run of each notebook and environment at a glance, and the table of an archive's runs."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any

from abathur_nb.config.notebooks import NOTEBOOKS
from abathur_nb.config.settings import Settings, environment_names, resolve
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.record import Entry, read_with_ledger
from abathur_nb.evidence.run import Run
from abathur_nb.evidence.stores import chosen_archive, first_run, local
from abathur_nb.report import Check, Report, Status
from abathur_nb.runbook.history import runs_table
from abathur_nb.text import Shown, Table, counted, printable


def listed(entry: Entry) -> dict[str, Any]:
    """Return the data of one run for ``runs --json``; unknown values are None."""
    line: Mapping[str, Any] = entry.line.data if entry.line else {}
    names = ("started_at", "ended_at", "notebook", "env", "user", "host")
    said = {name: getattr(entry.known, name, None) if entry.known else line.get(name) for name in names}
    return {
        "run_id": entry.run_id,
        **said,
        "verdict": entry.verdict,
        "error": entry.sealed and entry.sealed.error,
        "seconds": entry.seconds,
        "archived": entry.line is not None,
        "as_template": line.get("as_template"),
        "faults": list(entry.faults),
    }


def aligned(table: Table) -> str:
    """Return a table as aligned plain text, a line for each row."""
    rows = [[cell.replace("\n", "\\n") for cell in row] for row in (table.heads, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def command(arguments: argparse.Namespace) -> int:
    """Print the runs of an archive, and return 0. Read-only."""
    archive = chosen_archive(arguments)
    with local(archive) as folder:
        ledger, entries = read_with_ledger(folder)
    sys.stderr.writelines(f"abathur_nb runs: {printable(fault)}\n" for fault in ledger.faults)
    if arguments.json:
        sys.stdout.write("".join(f"{json.dumps(listed(entry))}\n" for entry in entries))
    else:
        sys.stdout.write(f"{aligned(runs_table(entries))}\n" if entries else f"no runs in {printable(str(archive))}\n")
    return 0


_TITLE = "index"


@dataclass(frozen=True, slots=True)
class Overview(Shown):
    """Hold the newest run of each notebook in each environment; shown with a row for each notebook.

    ``databases`` names the database of each environment. ``report`` has a check for each environment, and fails where
    its settings are wrong, or a record or the ledger was altered. A failed run only warns: it has its own verdict.
    """

    report: Report
    databases: Mapping[str, str]
    newest: Mapping[str, Mapping[str, Entry]]

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: the ids of the newest runs of each environment."""
        runs = {env: {name: run.run_id for name, run in newest.items()} for env, newest in self.newest.items()}
        return {"newest_runs": runs}

    def _table(self) -> Table:
        """Return a table with a column for each environment: the verdict and the time of each newest run."""
        rows: list[tuple[str, ...]] = [("database", *self.databases.values())]
        found = (name for newest in self.newest.values() for name in newest)
        for name in dict.fromkeys((*(one for one in NOTEBOOKS if one != _TITLE), *found)):
            runs = (newest.get(name) for newest in self.newest.values())
            rows.append((name, *(f"{run.mark}\n{run.when}" if run else "–" for run in runs)))
        return Table(("newest run of", *self.newest), tuple(rows), "no environment")


def show_environments(settings: Settings, *, run: Run | None = None) -> Overview:
    """Find the newest run of each notebook on the current database of each environment. Read-only.

    The other environments are resolved with their own settings. ``run`` is the current run, which is left out.
    """
    own = run.folder.name if run and run.folder else None
    checks: list[Check] = []
    databases: dict[str, str] = {}
    newest: dict[str, Mapping[str, Entry]] = {}
    for env in environment_names():
        databases[env], newest[env] = "?", {}
        try:
            theirs = settings if env == settings.env else resolve(env)
            databases[env] = str(theirs.db_path)
            if not os.path.exists(theirs.db_path):  # noqa: PTH110 - Path raises in a closed directory
                databases[env] += "\nmissing, or hidden from this account"
            newest[env], found = _newest(theirs, own)
        except ConfigurationError as error:
            remedy = "correct the settings file or environment variable named here"
            found = Check(env, "fail", "its settings can be resolved", "; ".join(error.faults), remedy)
        except FileNotFoundError:
            observed = f"no archive at {theirs.archive_dir}"
            found = Check(env, "skip", "an archive that can be read", observed, first_run(theirs))
        except (RefusedError, OSError) as error:  # a person may lack the right to read another environment's archive
            owner = f"run this notebook as {theirs.service_account}, who owns it: " if theirs.service_account else ""
            remedy = f"{owner}ls -la {quote(str(theirs.archive_dir.parent))}"
            status: Status = "error" if env == settings.env else "skip"
            observed = f"could not run: {theirs.archive_dir} cannot be read: {getattr(error, 'strerror', error)}"
            found = Check(env, status, "an archive that can be read", observed, remedy)
        checks.append(found)
    return Overview(Report(_TITLE, tuple(checks), subject=str(settings.db_path)), databases, newest)


def _newest(settings: Settings, own: str | None) -> tuple[Mapping[str, Entry], Check]:
    """Return the newest run of each notebook of an environment, and the check of its archive and runs."""
    archive, env = settings.archive_dir, settings.env
    os.stat(archive)
    ledger, runs = read_with_ledger(archive)
    entries = [entry for entry in runs if entry.run_id != own]
    newest = {run.notebook: run for run in entries if run.is_of(settings)}
    if faults := [*ledger.faults, *(fault for entry in entries for fault in entry.faults)]:
        observed, remedy = f"altered or damaged: {faults[0]}", f"python -m abathur_nb verify {quote(str(archive))}"
        return newest, Check(env, "fail", "its archive is as it was written", observed, remedy, tuple(faults))
    expected = "the newest run of each notebook passed"
    if not newest:
        return newest, Check(env, "skip", expected, "no run of its database yet", first_run(settings))
    last = max(newest.values(), key=lambda run: run.run_id)
    passed = f"{counted(len(newest), 'notebook')}; the last was {last.notebook}, {last.when} UTC"
    bad = [run for run in newest.values() if run.verdict != "pass"]
    observed = ", ".join(f"{run.notebook} {run.verdict}" for run in bad) or passed
    remedy = f"open history.ipynb with env {env}: it says what failed, and what changed since it passed"
    evidence = (f"{archive}/{run.run_id} {run.notebook} {run.ending}" for run in bad)
    return newest, Check.that(env, not bad, expected, observed, remedy, "warn", evidence)
