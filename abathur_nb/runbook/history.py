"""History: what the runs of an archive show together: which passed, what changed, what is not evidence."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import RefusedError
from abathur_nb.evidence.difference import circumstances, clipped, differences
from abathur_nb.evidence.ledger import FIRST, read_ledger
from abathur_nb.evidence.record import Entry, read_archive
from abathur_nb.evidence.run import Run
from abathur_nb.evidence.stores import archive_at, first_run, local
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.report import Check, Report, id_of
from abathur_nb.text import Table, counted, some

if TYPE_CHECKING:
    import pandas as pd

_TITLE = "history"
_NO_RUN = "no run yet"
_NAMED = 3  # checks that the table of runs names; the run's own page names all
_MOST_NAMED = 12  # changes between two runs; `diff` names all


@dataclass(frozen=True, slots=True)
class History:
    """Hold what the runs of an archive show, oldest first; a notebook shows them as a table, newest first.

    ``since_green`` says for each notebook what changed between its newest sealed run and the last that passed before
    it, ``changes`` when the schema and the plans changed. ``report`` fails only for what is wrong with the archive: a
    failed run has a verdict of its own.
    """

    report: Report
    archive: Path | str
    runs: tuple[Entry, ...] = ()
    ledger_head: str = FIRST
    since_green: Table = Table((), (), _NO_RUN)
    changes: Table = Table((), (), _NO_RUN)

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a run, oldest first."""
        import pandas as pd

        columns = ["started_at", "notebook", "database", "verdict", "seconds", "failed", "who", "size", "run_id"]
        rows = [
            (r.started_at, r.notebook, r.database, r.verdict, r.seconds, r.failed, r.who, r.size, r.run_id)
            for r in self.runs
        ]
        return pd.DataFrame(rows, columns=columns)

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: which archive was read, and how far it went."""
        return {"history": {"archive": str(self.archive), "runs": len(self.runs), "ledger_head": self.ledger_head}}

    def __str__(self) -> str:
        return str(self._table())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()

    def _table(self) -> Table:
        rows = []
        for run in reversed(self.runs):
            notebook = run.label + (", other cells" if run.line and not run.line.data["as_template"] else "")
            seconds = "" if run.seconds is None else f"{run.seconds:.1f}"
            failed = some(run.failed, _NAMED)
            rows.append((run.mark, run.when, notebook, run.run_id, seconds, run.who, failed))
        return Table(("", "start (UTC)", "notebook", "run", "seconds", "who", "what failed"), tuple(rows), _NO_RUN)


def read_history(
    settings: Settings, archive: str | os.PathLike[str] | None = None, *, run: Run | None = None
) -> History:
    """Read what the runs of an archive show: that of the environment, or another one, such as a copy. Read-only.

    ``archive`` is a directory, or the URL of a copy. ``run`` is the run that asks, and is left out. Raises
    ConfigurationError where ``archive`` names neither.
    """
    where = settings.archive_dir if archive is None else archive_at("archive", archive)
    if isinstance(where, Path) and not os.path.isdir(where):  # noqa: PTH112 - False, where Path raises for one in a closed directory
        remedy = f"{first_run(settings)}; or name another one: -p archive DIR"
        check = Check("archive", "fail", "the directory of an archive", f"no archive at {where}", remedy)
        return History(Report(_TITLE, (check,), subject=str(where), refused=True), where)
    own = run.folder.name if run and run.folder else None
    try:
        with local(where) as folder:
            # `_checks` reports unsealed runs, without the current one.
            checks = [check for check in verify_archive(folder).checks if check.id != "no_evidence"]
            ledger = read_ledger(folder)
            runs = tuple(run for run in read_archive(folder, ledger) if run.run_id != own)
    except (RefusedError, OSError) as error:
        remedy = f"see who may read it: ls -la {quote(str(where))}" if isinstance(where, Path) else ""
        check = Check("archive", "error", "can be read", f"could not run: {error}", remedy)
        return History(Report(_TITLE, (check,), subject=str(where)), where)
    report = Report(_TITLE, (*checks, *_checks(runs, where)), subject=str(where))
    head = ledger.lines[-1].sha256 if ledger.lines else FIRST
    return History(report, where, runs, head, _since_green(runs), _changes(runs))


def _checks(runs: Sequence[Entry], where: Path | str) -> Iterator[Check]:
    """Ask what a sound archive leaves open. None of it fails the report: each run has a verdict of its own."""
    span = f", {runs[0].when} to {runs[-1].when}" if runs else ""
    observed = f"{counted(len(runs), 'run')} of {counted(len({run.label for run in runs}), 'notebook')}{span}"
    remedy = "run validate.ipynb, or another one: each run is recorded"
    yield Check.that("runs_over_time", bool(runs), "runs to compare", observed, remedy, "warn")
    unsealed = [run for run in runs if run.verdict == "unsealed"]
    loose = [run for run in runs if run.sealed and not run.line]
    killed = "they were killed, or are not over yet: run their notebooks again"
    for check_id, expected, without, remedy in (
        ("sealed", "a verdict of each run that was started", unsealed, killed),
        ("archived", "the executed notebook of each sealed run", loose, "python -m abathur_nb archive OUT.ipynb"),
    ):
        observed = f"missing for {counted(len(without), 'run')}" if without else "each is there"
        evidence = (f"{run.run_id} {run.label}, started by {run.who}" for run in without)
        yield Check.that(check_id, not without, expected, observed, remedy, "warn", evidence)
    for run in {run.label: run for run in runs}.values():
        check_id, name, passed = f"newest_{id_of(run.label)}", f"newest {run.label}", run.verdict == "pass"
        observed = f"{run.ending}, {run.when}, run {run.run_id}"
        remedy = f"see below what changed since it passed, and what it found: {where}/{run.run_id}"
        data = {"notebook": run.notebook, "run_id": run.run_id}
        yield Check.that(check_id, passed, "it passed", observed, remedy, "warn", name=name, data=data)


def _since_green(runs: Sequence[Entry]) -> Table:
    """Say, for each notebook, what its newest sealed run found otherwise than the last one before it that passed."""
    rows = []
    # history is skipped: it recomputes everything.
    for label, newest in {run.label: run for run in runs if run.sealed and run.notebook != _TITLE}.items():
        before = [run for run in runs if run.label == label and run.run_id < newest.run_id]
        against, changed = "no earlier run is known to have passed", ""
        if green := [run for run in before if run.verdict == "pass"]:
            against, changed = f"against {green[-1].run_id}", _difference(green[-1], newest)
        rows.append((newest.mark, label, f"{newest.run_id}\n{against}", changed))
    return Table(("", "notebook", "newest run", "what changed since the last that passed"), tuple(rows), _NO_RUN)


def _difference(earlier: Entry, later: Entry) -> str:
    one, other = earlier.record, later.record
    if one is None or other is None:
        return ""
    changed = [str(change) for change in differences(one, other)] or ["nothing"]
    changed += [f"made with another {change}" for change in circumstances(one, other)]
    if len(changed) > _MOST_NAMED:
        rest = f"and {len(changed) - _MOST_NAMED} more: python -m abathur_nb diff {earlier.run_id} {later.run_id}"
        changed = [*changed[:_MOST_NAMED], rest]
    return "\n".join(changed)


def _changes(runs: Sequence[Entry]) -> Table:
    """List schema and plan changes, newest first, with the first run that saw each."""
    known: dict[tuple[str, str], Mapping[str, str]] = {}
    rows = []
    for run in runs:
        for kind, found in {
            # What a dry run of init shows is only planned, and of that no rows are counted.
            "schema": run.found("schema") if run.found("rows") else {},
            "plan": {name: "\n".join(lines) for name, lines in run.found("plans").items()},
        }.items():
            if not found:
                continue
            before = known.setdefault((run.database, kind), found)
            known[run.database, kind] = found
            changed = [name for name in before.keys() | found.keys() if before.get(name) != found.get(name)]
            rows += [
                (run.when, run.label, run.run_id, kind, name, _change(before.get(name), found.get(name)))
                for name in sorted(changed, reverse=True)  # all rows are reversed below
            ]
    heads = ("first seen (UTC)", "notebook", "run", "of", "name", "change")
    return Table(heads, tuple(reversed(rows)), "neither the schema nor a plan has changed" if known else _NO_RUN)


def _change(old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return "it is gone" if new is None else "it is new"
    before, after = clipped(" ".join(old.split()), " ".join(new.split()))
    return f"{before or 'nothing'}\n→ {after or 'nothing'}"
