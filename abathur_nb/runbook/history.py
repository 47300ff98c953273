"""History: which runs of an archive passed, which are no evidence, and how two runs differ."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.ledger import FIRST
from abathur_nb.evidence.record import Entry, Record, find_run, read_with_ledger
from abathur_nb.evidence.run import Run
from abathur_nb.evidence.stores import archive_at, chosen_archive, first_run, local
from abathur_nb.evidence.verify import verify_archive
from abathur_nb.percentiles import above
from abathur_nb.report import Check, Report, id_of
from abathur_nb.text import Shown, Table, clipped, counted, duration, printable, some

if TYPE_CHECKING:
    import pandas as pd

_TITLE = "history"
_NO_RUN = "no run yet"
_NAMED = 3  # the most checks named in a row of the table of runs; the page of the run names all
_MOST_NAMED = 12  # changes between two runs; `diff` names all


@dataclass(frozen=True, slots=True)
class History(Shown):
    """Hold the runs of an archive, oldest first, and their changes; a notebook shows a table, newest first.

    ``since_green`` lists for each notebook what changed between its newest sealed run and the last earlier one that
    passed; ``changes`` lists the changes of the schema and the plans. ``report`` fails only for faults of the archive:
    a failed run only warns.
    """

    report: Report
    archive: Path | str
    runs: tuple[Entry, ...] = ()
    ledger_head: str = FIRST
    since_green: Table = Table((), (), _NO_RUN)
    changes: Table = Table((), (), _NO_RUN)

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame with a row for each run, oldest first."""
        import pandas as pd

        columns = ["started_at", "notebook", "database", "verdict", "seconds", "failed", "who", "size", "run_id"]
        return pd.DataFrame([[getattr(run, name) for name in columns] for run in self.runs], columns=columns)

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: the archive that was read, its number of runs, its ledger's head."""
        return {"history": {"archive": str(self.archive), "runs": len(self.runs), "ledger_head": self.ledger_head}}

    def _table(self) -> Table:
        return runs_table(reversed(self.runs))


def runs_table(runs: Iterable[Entry]) -> Table:
    """Return a table with a row for each run, in the given order."""
    rows = []
    for run in runs:
        took = "" if run.seconds is None else f"{run.seconds:.1f} s" if run.seconds < 100 else duration(run.seconds)
        archived = (
            "no" if not run.line else "yes" if run.line.data["as_template"] else "yes, cells differ from the template"
        )
        env = run.known.env if run.known else "?"
        about = (run.mark, run.when, run.label, env, took, run.who, run.run_id, archived)
        rows.append((*about, some(run.failed, _NAMED)))
    heads = ("", "start (UTC)", "notebook", "env", "took", "who", "run", "archived", "what failed")
    return Table(heads, tuple(rows), _NO_RUN)


def read_history(
    settings: Settings, archive: str | os.PathLike[str] | None = None, *, run: Run | None = None
) -> History:
    """Read and compare the runs of an archive. Read-only.

    ``archive`` is a directory or the URL of a copy; the default is the archive of the environment. ``run`` is the
    current run, which is left out. Raises ConfigurationError if ``archive`` names no
    archive.
    """
    where = settings.archive_dir if archive is None else archive_at("archive", archive)
    if isinstance(where, Path) and not os.path.isdir(where):
        remedy = f"{first_run(settings)}; or name another one: -p archive DIR"
        check = Check("archive", "fail", "the directory of an archive", f"no archive at {where}", remedy)
        return History(Report(_TITLE, (check,), subject=str(where), refused=True), where)
    own = run.folder.name if run and run.folder else None
    try:
        with local(where) as folder:
            ledger, found = read = read_with_ledger(folder)
            # `_checks` reports unsealed runs, except the current one.
            checks = [check for check in verify_archive(folder, read=read).checks if check.id != "no_evidence"]
            runs = tuple(run for run in found if run.run_id != own)
    except (RefusedError, OSError) as error:
        remedy = f"check who may read it: ls -la {quote(str(where))}" if isinstance(where, Path) else ""
        check = Check("archive", "error", "can be read", f"could not run: {error}", remedy)
        return History(Report(_TITLE, (check,), subject=str(where)), where)
    report = Report(_TITLE, (*checks, *_checks(runs, where)), subject=str(where))
    head = ledger.lines[-1].sha256 if ledger.lines else FIRST
    return History(report, where, runs, head, _since_green(runs), _changes(runs))


def _checks(runs: Sequence[Entry], where: Path | str) -> Iterator[Check]:
    """Yield checks of the runs of an archive. They only warn, because each run has its own verdict."""
    span = f", {runs[0].when} to {runs[-1].when}" if runs else ""
    observed = f"{counted(len(runs), 'run')} of {counted(len({run.label for run in runs}), 'notebook')}{span}"
    remedy = "run validate.ipynb or another notebook: each run is recorded"
    yield Check.that("runs_over_time", bool(runs), "runs to compare", observed, remedy, "warn")
    unsealed = [run for run in runs if run.verdict == "unsealed"]
    loose = [run for run in runs if run.sealed and not run.line]
    killed = "they were killed, or are still running: run their notebooks again"
    for check_id, expected, without, remedy in (
        ("sealed", "a verdict of each run that was started", unsealed, killed),
        ("archived", "the executed notebook of each sealed run", loose, "python -m abathur_nb archive OUT.ipynb"),
    ):
        observed = f"missing for {counted(len(without), 'run')}" if without else "none is missing"
        evidence = (f"{run.run_id} {run.label}, started by {run.who}" for run in without)
        yield Check.that(check_id, not without, expected, observed, remedy, "warn", evidence)
    for run in {run.label: run for run in runs}.values():
        check_id, name, passed = f"newest_{id_of(run.label)}", f"newest {run.label}", run.verdict == "pass"
        observed = f"{run.ending}, {run.when}, run {run.run_id}"
        remedy = f"see what changed since it passed (below), and its findings: {where}/{run.run_id}"
        data = {"notebook": run.notebook, "run_id": run.run_id}
        yield Check.that(check_id, passed, "it passed", observed, remedy, "warn", name=name, data=data)


def _since_green(runs: Sequence[Entry]) -> Table:
    """Return how the newest sealed run of each notebook differs from the last earlier one that passed."""
    rows = []
    # Skip runs of history: they only check the other runs.
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
    changed += [f"different circumstances: {change}" for change in circumstances(one, other)]
    if len(changed) > _MOST_NAMED:
        rest = f"and {len(changed) - _MOST_NAMED} more: python -m abathur_nb diff {earlier.run_id} {later.run_id}"
        changed = [*changed[:_MOST_NAMED], rest]
    return "\n".join(changed)


def _changes(runs: Sequence[Entry]) -> Table:
    """List schema and plan changes, newest first, with the first run that saw each."""
    known: dict[tuple[str, str], Found] = {}
    rows = []
    for run in runs:
        # A dry run of init records a planned schema and no row counts: skip its schema.
        for kind, facts in (("schema", run.found("schema") if run.found("rows") else {}), ("plan", run.found("plans"))):
            if found := {(kind, name): value for name, value in sorted(facts.items())}:
                changes = _compared(known.get((run.database, kind), found), found)
                known[run.database, kind] = found
                rows += [(run.when, run.label, run.run_id, kind, one.name, one.words) for one in changes]
    heads = ("first seen (UTC)", "notebook", "run", "of", "name", "change")
    rows.sort(key=lambda row: row[0], reverse=True)
    return Table(heads, tuple(rows), "neither the schema nor a plan has changed" if known else _NO_RUN)


Found = dict[tuple[str, str], Any]  # each fact by its kind and its name


@dataclass(frozen=True, slots=True)
class Change:
    """Hold one fact that differs between two runs; the value of a run that lacks it is empty."""

    kind: str
    name: str
    before: str
    after: str

    @property
    def words(self) -> str:
        """Return the values before and after, as text; of long texts only the part that differs."""
        return " → ".join(clipped(self.before or "nothing", self.after or "nothing"))

    def __str__(self) -> str:
        return printable(f"{self.kind} {self.name}: {self.words}").replace("\n", "\\n")


def differences(earlier: Record, later: Record) -> tuple[Change, ...]:
    """Return what changed in meaning from one sealed record to another. Read-only.

    It compares the verdict, the error that ended the run, each check by its report and id, the database's ids and
    schema, plans, rows, sizes and percentiles; a percentile has changed if the two intervals do not overlap. Times
    and words vary from run to run and are not compared.
    """
    records = (earlier, later)
    both_name_objects = all("schema" in record.facts for record in records)
    key = "name" if any(record.format == 1 for record in records) else "id"  # checks of format 1 have no id
    return tuple(_compared(*(_meaning(record, both_name_objects, key) for record in records)))


def circumstances(earlier: Record, later: Record) -> tuple[Change, ...]:
    """Return how the conditions of the two runs differ, such as parameters and versions. Read-only."""
    return tuple(_compared(_conditions(earlier), _conditions(later)))


def _meaning(record: Record, both_name_objects: bool, key: str) -> Found:
    facts, after = record.facts, record.database.get("after") or {}
    found: Found = {("verdict", "of the run"): record.verdict}
    if record.error:
        found["error", "of a cell"] = f"{record.error['name']}: {record.error['message']}"
    seen: Counter[str] = Counter()
    for report in record.reports:
        for check in report.checks:
            name = f"{report.title}: {getattr(check, key).replace('_', ' ')}"
            seen[name] += 1
            found["check", name if seen[name] == 1 else f"{name} ({seen[name]})"] = check
    ids = ["application_id", "user_version"] + ([] if both_name_objects else ["schema_sha256"])
    found |= {("database", name): after[name] for name in ids if name in after}
    for kind, fact in (("schema", "schema"), ("plan", "plans"), ("rows of", "rows"), ("bytes of", "sizes")):
        found |= {(kind, name): value for name, value in facts.get(fact, {}).items()}
    if "sizes" not in facts and "size" in after:
        found["bytes of", "the database"] = after["size"]
    for name, levels in facts.get("percentiles_ms", {}).items():
        found |= {("percentile", f"{name}, {level}"): tuple(bounds) for level, bounds in levels.items()}
    return found


def _conditions(record: Record) -> Found:
    found: Found = {("run", name): getattr(record, name) for name in ("notebook", "env", "user", "host")}
    found["run", "database"] = (record.database.get("after") or {}).get("path", "")
    for kind in ("template", "parameters", "settings", "versions"):
        found |= {(kind, name): value for name, value in getattr(record, kind).items()}
    return found | {("machine", name): value for name, value in record.facts.get("machine", {}).items()}


def _compared(earlier: Found, later: Found) -> Iterator[Change]:
    """Yield each difference; if only one run has facts of a kind, yield one difference for all of them."""
    names = dict.fromkeys((*earlier, *later))
    for kind in dict.fromkeys(kind for kind, _ in names):
        counts = [sum(other == kind for other, _ in found) for found in (earlier, later)]
        if min(counts) == 0 and max(counts) > 1:
            before, after = (f"{count:,} recorded" if count else "" for count in counts)
            yield Change(kind, "(all)", before, after)
            continue
        for name in (name for other, name in names if other == kind):
            one, other = earlier.get((kind, name)), later.get((kind, name))
            if not _same(kind, one, other):
                yield Change(kind, name, _text(one), _text(other))


def _same(kind: str, one: Any, other: Any) -> bool:
    """Return whether two facts have the same meaning; percentiles do if their intervals overlap."""
    if isinstance(one, Check) and isinstance(other, Check):
        unlike = one.failed and one.data and other.data and one.data != other.data  # an old record has no data
        return one.status == other.status and not unlike
    if kind == "percentile" and one and other:
        return not above(one[0], other[2]) and not above(other[0], one[2])
    if kind == "error" and one and other:
        return bool(one.partition(":")[0] == other.partition(":")[0])
    return bool(one == other)


def _text(value: Any) -> str:
    if isinstance(value, Check):
        return ": ".join(filter(None, (value.status, value.observed)))
    if isinstance(value, tuple):  # a percentile between its bounds
        low, middle, high = ("?" if bound is None else f"{bound:.3g}" for bound in value)
        return f"{middle} ms ({low}–{high})"
    return "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def command(arguments: argparse.Namespace) -> int:
    """Print what changed between two runs; return 1 if anything changed in meaning, else 0. Read-only.

    Changed circumstances, such as versions, are printed but do not change the exit code.
    """
    records: list[Record] = []
    faults: list[str] = []
    with local(chosen_archive(arguments)) as archive:
        for name in arguments.runs:
            try:
                entry = find_run(archive, name)
            except ConfigurationError as error:
                faults += error.faults
                continue
            if entry.sealed:
                records.append(entry.sealed)
            else:
                found = f"{entry.faults[0]}" if entry.faults else "an unsealed run, which is not evidence"
                faults.append(f"run {entry.run_id}: expected a sealed, unaltered run, found {found}")
    if faults:
        raise ConfigurationError(faults)
    changed, other = differences(*records), circumstances(*records)
    lines = [
        f"{f'{word}:':<9}{one.run_id} {one.notebook} of {one.env}: {one.verdict}, {one.who}"
        for word, one in zip(("earlier", "later"), records, strict=True)
    ]
    lines += [f"{len(changed)} changed in meaning:" if changed else "nothing changed in meaning"]
    lines += [f"  {change}" for change in changed]
    lines += ["different circumstances, which do not count:", *(f"  {change}" for change in other)] if other else []
    sys.stdout.write("".join(printable(line).replace("\n", "\\n") + "\n" for line in lines))
    return 1 if changed else 0
