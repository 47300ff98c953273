"""The difference of two runs in meaning: what they found out, not when, how fast to the microsecond, or where."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any

from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.reading import Entry, chosen_archive, find_run
from abathur_nb.evidence.record import Record
from abathur_nb.evidence.stores import local
from abathur_nb.percentiles import above
from abathur_nb.text import printable

# What merely varies in the words of a check: times, paths, amounts with a unit, the interval of a percentile. What they
# stand for is compared where it is a number: rows, sizes, percentiles.
_VARYING = re.compile(
    r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?"
    r"|(?<![\w.~])~?/[^\s,;:'\"()]*"
    r"|\d[\d,.]*(?:e[+-]?\d+)?\s?(?:%|(?:ns|µs|ms|s|min|h|B|KB|KiB|MB|MiB|GB|bytes|rows?|samples?)\b)"
    r"|\([\d.e+-]+–[\d.e+?-]+\)|\(\?–[\d.e+?-]+\)"
)
_CONTEXT = 30  # characters shown before and behind what differs in a long text
_LONG = 200
_LARGEST = 1e300  # milliseconds; what is larger is not a number of a benchmark

Found = dict[tuple[str, str], dict[str, Any]]  # by kind and name, each fact


@dataclass(frozen=True, slots=True)
class Change:
    """Hold one fact that differs between two runs: of what, which, and what it was before and after.

    ``before`` or ``after`` is empty where only the other run has it.
    """

    kind: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        before, after = clipped(self.before or "nothing", self.after or "nothing")
        return printable(f"{self.kind} {self.name}: {before} → {after}").replace("\n", "\\n")


def differences(earlier: Record, later: Record) -> tuple[Change, ...]:
    """Return what changed in meaning from one sealed record to another. Read-only.

    Compared are the verdict; the error of the cell that broke the run; each check, by its report and its id: status,
    expected, observed; the database's application_id and user_version; each object's SQL (or the hash of all, where a
    notebook shows none); each plan; rows and sizes; each percentile, which has changed where one interval lies above
    the other. Not compared are times, evidence and remedies, and in the words of a check and an error whatever merely
    varies: times, paths, and amounts with a unit.
    """
    records = (earlier, later)
    both_name_objects = all("schema" in record.facts for record in records)
    key = "name" if any(record.format == 1 for record in records) else "id"  # older ones may have titles alone
    return tuple(_changes(*(_meaning(record, both_name_objects, key) for record in records)))


def circumstances(earlier: Record, later: Record) -> tuple[Change, ...]:
    """Return what the two runs were made with that differs: it explains a difference, and is none. Read-only.

    The notebook, its template, the environment, who and where, the database's name, parameters, settings, versions, the
    machine of a benchmark.
    """
    return tuple(_changes(_conditions(earlier), _conditions(later)))


def _meaning(record: Record, both_name_objects: bool, key: str) -> Found:
    facts, after = record.facts, _mapping(record.database.get("after"))
    found: Found = {("verdict", "of the run"): {"": record.verdict}}
    if error := record.error:
        found["error", "of a cell"] = {"": f"{error.get('name')}: {error.get('message')}"}
    seen: Counter[str] = Counter()
    for report in record.reports:
        for check in report.checks:
            name = f"{report.title}: {getattr(check, key).replace('_', ' ')}"
            seen[name] += 1
            numbered = name if seen[name] == 1 else f"{name} ({seen[name]})"
            found["check", numbered] = {field: getattr(check, field) for field in ("status", "expected", "observed")}
    ids = (
        ("application_id", "user_version") if both_name_objects else ("application_id", "user_version", "schema_sha256")
    )
    for name in ids:
        if name in after:
            found["database", name] = {"": after[name]}
    for kind, fact in (("schema", "schema"), ("plan", "plans"), ("rows of", "rows"), ("bytes of", "sizes")):
        found |= {(kind, name): {"": value} for name, value in _mapping(facts.get(fact)).items()}
    if "sizes" not in facts and "size" in after:
        found["bytes of", "the database"] = {"": after["size"]}
    for name, levels in _mapping(facts.get("percentiles_ms")).items():
        by_level = levels if isinstance(levels, Mapping) else {"": levels}
        found |= {("percentile", _named(name, level)): {"": bounds} for level, bounds in by_level.items()}
    return found


def _conditions(record: Record) -> Found:
    found: Found = {("run", name): {"": getattr(record, name)} for name in ("notebook", "env", "user", "host")}
    found["run", "database"] = {"": _mapping(record.database.get("after")).get("path", "")}
    for kind in ("template", "parameters", "settings", "versions"):
        found |= {(kind, name): {"": value} for name, value in getattr(record, kind).items()}
    found |= {("machine", name): {"": value} for name, value in _mapping(record.facts.get("machine")).items()}
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _changes(earlier: Found, later: Found) -> Iterator[Change]:
    """Yield what differs; of a kind that only one of the two knows a single change."""
    counts = [Counter(kind for kind, _ in found) for found in (earlier, later)]
    for kind in dict.fromkeys(kind for kind, _ in (*earlier, *later)):
        if min(count[kind] for count in counts) == 0 and max(count[kind] for count in counts) > 1:
            before, after = (f"{count[kind]} of them" if count[kind] else "" for count in counts)
            yield Change(kind, "altogether", before, after)
            continue
        for name in dict.fromkeys(name for other, name in (*earlier, *later) if other == kind):
            yield from _of_one(kind, name, earlier.get((kind, name), {}), later.get((kind, name), {}))


def _of_one(kind: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    if not before or not after:  # one of its facts is enough to name it
        field, value = next(iter((before or after).items()))
        yield Change(kind, _named(name, field), *(_text(value) if found else "" for found in (before, after)))
        return
    same: Callable[[Any, Any], bool] = _SAME.get(kind, eq)
    for field in dict.fromkeys((*before, *after)):
        one, other = before.get(field), after.get(field)
        if not same(one, other):
            yield Change(kind, _named(name, field), _text(one), _text(other))


def _named(name: str, field: str) -> str:
    return f"{name}, {field}" if field else name


def _text(value: Any) -> str:
    if _is_interval(value):
        low, middle, high = ("?" if bound is None else f"{bound:.3g}" for bound in value)
        return f"{middle} ms ({low}–{high})"
    return "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(bound is None or (type(bound) in (int, float) and abs(bound) < _LARGEST) for bound in value)
        and value[1] is not None
    )


def _says_the_same(one: Any, other: Any) -> bool:
    return _VARYING.sub("…", str(one)) == _VARYING.sub("…", str(other))


def _meet(one: Any, other: Any) -> bool:
    """Return whether two percentiles are the same, as far as their samples tell."""
    if not (_is_interval(one) and _is_interval(other)):
        return bool(one == other)
    return not above(one[0], other[2]) and not above(other[0], one[2])


_SAME: Mapping[str, Callable[[Any, Any], bool]] = {
    "check": _says_the_same,
    "error": _says_the_same,
    "percentile": _meet,
}


def clipped(before: str, after: str) -> list[str]:
    """Return two texts; of long ones what begins a little before they differ."""
    if max(len(before), len(after)) <= _LONG:
        return [before, after]
    same = next((n for n, pair in enumerate(zip(before, after, strict=False)) if len({*pair}) > 1), 0)
    cut = max(0, same - _CONTEXT)
    return [
        f"{'…' if cut else ''}{text[cut : cut + _LONG]}{'…' if text[cut + _LONG :] else ''}" for text in (before, after)
    ]


def command(arguments: argparse.Namespace) -> int:
    """Print what changed between two runs; return 0 if nothing did in meaning, else 1. Read-only.

    Circumstances are printed, and do not count: the same answer under other ones is the same answer.
    """
    with local(chosen_archive(arguments)) as archive:
        earlier, later = _sealed(archive, arguments.runs)
    changed, other = differences(earlier, later), circumstances(earlier, later)
    lines = [_told("earlier", earlier), _told("later", later)]
    lines.append(f"{len(changed)} changed in meaning:" if changed else "nothing changed in meaning")
    lines += [f"  {change}" for change in changed]
    lines += ["made with another, which does not count:"] if other else []
    lines += [f"  {change}" for change in other]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if changed else 0


def _sealed(archive: Path, names: Sequence[str]) -> list[Record]:
    """Return the records of these runs; raise ConfigurationError naming each that can't be compared."""
    records = list[Record]()
    faults: list[str] = []
    for name in names:
        try:
            records.append(_record(find_run(archive, name)))
        except ConfigurationError as error:
            faults += error.faults
    if faults:
        raise ConfigurationError(faults)
    return records


def _record(entry: Entry) -> Record:
    if entry.faults:
        raise ConfigurationError(f"run {entry.run_id}: expected one that is as it was written, found {entry.faults[0]}")
    if entry.record is None:
        raise ConfigurationError(f"run {entry.run_id}: expected a sealed one, found it unsealed: it is not evidence")
    return entry.record


def _told(word: str, record: Record) -> str:
    text = f"{word + ':':<9}{record.run_id} {record.notebook} of {record.env}: {record.verdict}, {record.who}"
    return printable(text).replace("\n", "\\n")
