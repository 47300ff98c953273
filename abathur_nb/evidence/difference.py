"""The difference of two runs in meaning: what they found out, not when, how fast to the microsecond, or where."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.record import Record, find_run
from abathur_nb.evidence.stores import chosen_archive, local
from abathur_nb.percentiles import above
from abathur_nb.report import Check
from abathur_nb.text import printable

_CONTEXT = 30  # characters shown before and behind what differs in a long text
_LONG = 200

Found = dict[tuple[str, str], Any]  # each fact by its kind and its name


@dataclass(frozen=True, slots=True)
class Change:
    """Hold one fact that differs between two runs; ``before`` or ``after`` is empty where only the other has it."""

    kind: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        before, after = clipped(self.before or "nothing", self.after or "nothing")
        return printable(f"{self.kind} {self.name}: {before} → {after}").replace("\n", "\\n")


def differences(earlier: Record, later: Record) -> tuple[Change, ...]:
    """Return what changed in meaning from one sealed record to another. Read-only.

    Compared are the verdict, the error that broke the run, each check by its report and id, the database's ids and
    schema, plans, rows, sizes, and each percentile, which has changed where the two intervals do not overlap. Times
    and words vary from run to run and are not compared.
    """
    records = (earlier, later)
    both_name_objects = all("schema" in record.facts for record in records)
    key = "name" if any(record.format == 1 for record in records) else "id"  # older ones may have titles alone
    return tuple(_changes(*(_meaning(record, both_name_objects, key) for record in records)))


def circumstances(earlier: Record, later: Record) -> tuple[Change, ...]:
    """Return the differences in what the two runs were made with, such as parameters and versions. Read-only."""
    return tuple(_changes(_conditions(earlier), _conditions(later)))


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


def _changes(earlier: Found, later: Found) -> Iterator[Change]:
    """Yield what differs; of a kind that only one of the two knows a single change."""
    names = dict.fromkeys((*earlier, *later))
    for kind in dict.fromkeys(kind for kind, _ in names):
        counts = [sum(other == kind for other, _ in found) for found in (earlier, later)]
        if min(counts) == 0 and max(counts) > 1:
            before, after = (f"{count} of them" if count else "" for count in counts)
            yield Change(kind, "altogether", before, after)
            continue
        for name in (name for other, name in names if other == kind):
            one, other = earlier.get((kind, name)), later.get((kind, name))
            if isinstance(one, Check) and isinstance(other, Check):
                yield from _of_check(name, one, other)
            elif isinstance(one or other, Check):
                yield Change(kind, f"{name}, status", one.status if one else "", other.status if other else "")
            elif not _same(kind, one, other):
                yield Change(kind, name, _text(one), _text(other))


def _of_check(name: str, one: Check, other: Check) -> Iterator[Change]:
    both_failed = one.failed and other.failed and one.data and other.data  # a check of an old record has no data
    if one.status != other.status or (both_failed and one.data != other.data):
        changed = [field for field in ("status", "observed") if getattr(one, field) != getattr(other, field)]
        for field in changed or ["data"]:
            yield Change("check", f"{name}, {field}", str(getattr(one, field)), str(getattr(other, field)))


def _same(kind: str, one: Any, other: Any) -> bool:
    """Return whether two facts have the same meaning: percentiles, as far as their samples tell."""
    if kind == "percentile" and one and other:
        return not above(one[0], other[2]) and not above(other[0], one[2])
    if kind == "error" and one and other:
        return bool(one.partition(":")[0] == other.partition(":")[0])
    return bool(one == other)


def _text(value: Any) -> str:
    if isinstance(value, tuple):  # a percentile between its bounds
        low, middle, high = ("?" if bound is None else f"{bound:.3g}" for bound in value)
        return f"{middle} ms ({low}–{high})"
    return "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def clipped(before: str, after: str) -> list[str]:
    """Return two texts; of long ones what begins a little before they differ."""
    if max(len(before), len(after)) <= _LONG:
        return [before, after]
    pairs = enumerate(zip(before, after, strict=False))
    same = next((n for n, (one, other) in pairs if one != other), min(len(before), len(after)))
    cut = max(0, same - _CONTEXT)
    return [
        f"{'…' if cut else ''}{text[cut : cut + _LONG]}{'…' if text[cut + _LONG :] else ''}" for text in (before, after)
    ]


def command(arguments: argparse.Namespace) -> int:
    """Print what changed between two runs; return 0 if nothing did in meaning, else 1. Read-only.

    Circumstances are printed, and do not count: the same answer under other ones is the same answer.
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
                found = f"{entry.faults[0]}" if entry.faults else "it unsealed: it is not evidence"
                faults.append(f"run {entry.run_id}: expected a sealed one, as it was written, found {found}")
    if faults:
        raise ConfigurationError(faults)
    changed, other = differences(*records), circumstances(*records)
    lines = [
        f"{f'{word}:':<9}{one.run_id} {one.notebook} of {one.env}: {one.verdict}, {one.who}"
        for word, one in zip(("earlier", "later"), records, strict=True)
    ]
    lines += [f"{len(changed)} changed in meaning:" if changed else "nothing changed in meaning"]
    lines += [f"  {change}" for change in changed]
    lines += ["made with another, which does not count:", *(f"  {change}" for change in other)] if other else []
    sys.stdout.write("".join(printable(line).replace("\n", "\\n") + "\n" for line in lines))
    return 1 if changed else 0
