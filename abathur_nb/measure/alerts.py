"""The gauges, and the alert rules that ``monitor`` applies and the command ``alerts`` prints for Prometheus."""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.health.rows import LEVELS, OF_LIMIT, TRIM
from abathur_nb.report import Check, Status
from abathur_nb.store.values import MAX_BYTES
from abathur_nb.text import AHEAD_S, MB, SEE_CLOCK, Shown, Table, timestamp

UP = "abathur_up"
TAKEN = "abathur_snapshot_timestamp_seconds"
RETRIEVAL = "abathur_retrieval_seconds"
READ = "abathur_read_ratio"
SESSION_BYTES = "abathur_session_bytes"
WAL_BYTES = "abathur_wal_bytes"
DISK_FREE = "abathur_disk_free_bytes"
GROWTH = "abathur_database_growth_bytes_per_day"
LAST_BACKUP = "abathur_last_backup_timestamp_seconds"
LAST_VALIDATION = "abathur_last_validation_timestamp_seconds"

# Gauges hold times, not ages: a stored age would not grow while nothing is measured. The table metrics uses the same
# names (https://prometheus.io/docs/practices/naming/).
GAUGES: Mapping[str, str] = {
    UP: "1 if the database could be read, else 0",
    TAKEN: "time of the measurement",
    "abathur_database_bytes": "the database file",
    "abathur_database_free_bytes": "free pages of the database file",
    WAL_BYTES: "the write-ahead log",
    DISK_FREE: "free space on the disk of the database",
    GROWTH: "estimated size of the rows of the last 24 hours",
    READ: "share of the rows that were read; below 1, the figures are estimates",
    SESSION_BYTES: "largest events, state and metadata among the newest sessions and a random sample",
    "abathur_rows": "rows of a table",
    "abathur_rows_of_last_day": "rows added to a table in the last 24 hours",
    "abathur_namespace_rows": "versions of memories in each of the largest namespaces, and in all others together",
    "abathur_memory_versions": "versions of memories: current, superseded by a newer one, or deleted",
    RETRIEVAL: "a percentile of the time to retrieve a session or a memory",
    LAST_BACKUP: "time of the newest proven backup of a sound database; 0 for never",
    LAST_VALIDATION: "start of the newest validation that passed; 0 for never",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold one value of a gauge and its labels; the name of the gauge ends with the unit."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot(Shown):
    """Hold the samples taken at one time (UTC); the labels of ``place`` name the database."""

    taken_at: datetime
    place: Mapping[str, str]
    samples: tuple[Sample, ...] = ()

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """Return the value of a gauge; None if it was not measured."""
        found = (sample.value for sample in self.samples if sample.name == name and sample.labels == (labels or {}))
        return next(found, None)

    def to_record(self) -> dict[str, object]:
        """Return the samples as the record of a run stores them."""
        rows = [[sample.name, dict(sample.labels), sample.value] for sample in self.samples]
        return {"metrics": {"taken_at": timestamp(self.taken_at), "samples": rows}}

    def _table(self) -> Table:
        rows, name = list[tuple[str, ...]](), ""
        for sample in self.samples:
            # Only the first value of a gauge shows its description.
            words = ("", "") if sample.name == name else (GAUGES[sample.name], sample.name)
            rows.append((words[0], ", ".join(sample.labels.values()), _shown(sample), words[1]))
            name = sample.name
        return Table(("what", "of", "value", "name"), tuple(rows), "nothing could be measured: the report says why")


def place_of(settings: Settings) -> dict[str, str]:
    """Return the labels that name the database of a sample in Prometheus."""
    return {"env": settings.env, "database": str(settings.db_path)}


# How to format a gauge's value, and the unit, by the end of its name; the first match applies.
_SHOWN = (
    ("_seconds", "{:.3g} ms", 1e-3),
    ("_bytes_per_day", "{:,.1f} MB a day", MB),
    ("_bytes", "{:,.1f} MB", MB),
    ("_ratio", "{:.2%}", 1),
    ("", "{:,.0f}", 1),
)


def _shown(sample: Sample) -> str:
    if sample.name.endswith("_timestamp_seconds"):
        return f"{timestamp(datetime.fromtimestamp(sample.value, UTC))} UTC" if sample.value else "never"
    form, unit = next((form, unit) for end, form, unit in _SHOWN if sample.name.endswith(end))
    return form.format(sample.value / unit)


class Unit(NamedTuple):
    """Hold the format of a limit, and the size of its unit in the gauge's unit."""

    form: str
    size: float


_MINUTES, _HOURS = Unit("{:,.0f} minutes", 60), Unit("{:,.1f} hours", 3600)
_DAYS, _LEFT = Unit("{:,.1f} days", 86_400), Unit("{:,.1f} days", 1)
_MB, _MS, _NUMBER = Unit("{:,.0f} MB", MB), Unit("{:.3g} ms", 1e-3), Unit("{:.0f}", 1)
_PERCENT = Unit(OF_LIMIT, MAX_BYTES / 100)
# Words for a limit that is kept, words for a limit that is broken, and the PromQL operator.
_WORDS = {"above": ("at most", "over", ">"), "below": ("at least", "under", "<")}


@dataclass(frozen=True, slots=True)
class Rule:
    """Hold one alert: it fires while a gauge is above or below a limit, or is absent.

    ``limit`` names a setting, or is a number. If the gauge holds a time, the rule compares its age, and also fires if
    the time is in the future. ``per`` names a gauge to divide by; ``of`` selects the p99 of one retrieval.
    ``wait`` is how long the rule must hold before Prometheus reports it.
    """

    id: str
    title: str
    gauge: str
    limit: str | float
    unit: Unit
    wait: str = "0m"
    severity: Literal["critical", "warning"] = "warning"
    fires: Literal["above", "below", "absent"] = "above"
    per: str = ""
    of: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """The labels that select the gauge's samples."""
        return {"retrieval": self.of, "percentile": "p99"} if self.of else {}

    @property
    def name(self) -> str:
        """The name of the alert in Prometheus, such as ``AbathurBackupOld``."""
        return "Abathur" + "".join(word.capitalize() for word in self.id.split("_"))

    @property
    def age(self) -> bool:
        """Whether the gauge holds a time, so that the rule compares its age."""
        return self.gauge.endswith("_timestamp_seconds")

    def shown(self, value: float) -> str:
        """Format a value that is in the limit's unit."""
        return self.unit.form.format(value)

    def limit_of(self, settings: Settings) -> float:
        """Return the limit, in its own unit."""
        return float(getattr(settings, self.limit) if isinstance(self.limit, str) else self.limit)

    def expression(self, settings: Settings) -> str:
        """Return the rule in PromQL, for the database of ``settings``."""
        labels = {**place_of(settings), **self.labels}
        selector = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
        value = f"{self.gauge}{{{selector}}}"
        if self.fires == "absent":
            return f"absent({value})"
        value = f"time() - {value}" if self.age else value
        value = f"{value} / {self.per}{{{selector}}}" if self.per else value
        ahead = f" or {value} < {-AHEAD_S}" if self.age else ""
        return f"{value} {_WORDS[self.fires][2]} {self.limit_of(settings) * self.unit.size!r}{ahead}"


RULES = (
    Rule("database_unreadable", "database can be read", UP, 1, _NUMBER, "5m", "critical", "below"),
    Rule("metrics_absent", "metrics", TAKEN, 0, _NUMBER, "15m", "critical", "absent"),
    Rule("metrics_stale", "age of the metrics", TAKEN, "metrics_max_age_minutes", _MINUTES, "0m", "critical"),
    Rule("backup_old", "age of the last proven backup", LAST_BACKUP, "backup_max_age_hours", _HOURS, "0m", "critical"),
    Rule("validation_old", "age of the last passed validation", LAST_VALIDATION, "validation_max_age_days", _DAYS),
    Rule("disk_low", "free disk", DISK_FREE, "min_free_mb", _MB, "5m", "critical", "below"),
    Rule("disk_full_soon", "disk until full", DISK_FREE, "disk_full_days", _LEFT, "30m", fires="below", per=GROWTH),
    Rule("wal_large", "write-ahead log", WAL_BYTES, "max_wal_mb", _MB, "15m"),
    Rule("session_retrieval_slow", "session retrieval, p99", RETRIEVAL, "session_p99_ms", _MS, "15m", of="session"),
    Rule("memory_retrieval_slow", "memory retrieval, p99", RETRIEVAL, "memory_p99_ms", _MS, "15m", of="memory"),
    Rule("session_large", f"largest session, {LEVELS[0]} %", SESSION_BYTES, LEVELS[0], _PERCENT),
    Rule("session_nearly_full", f"largest session, {LEVELS[1]} %", SESSION_BYTES, LEVELS[1], _PERCENT),
)
_REMEDIES = {
    UP: "run troubleshoot.ipynb",
    TAKEN: "find out why `python -m abathur_nb metrics` no longer runs, or why its file is not collected",
    LAST_BACKUP: "run backup.ipynb, and find out why its timer did not run it",
    LAST_VALIDATION: "run validate.ipynb",
    DISK_FREE: "make room: explore.ipynb shows what grows in the database",
    WAL_BYTES: "run troubleshoot.ipynb: it names the process that keeps SQLite from resetting the WAL",
    RETRIEVAL: "run benchmark.ipynb and explain.ipynb",
    SESSION_BYTES: TRIM,
}


def alerts_of(snapshot: Snapshot, settings: Settings) -> list[Check]:
    """Return a check for each rule except *absent*; a firing critical rule fails if ``alerts_fail``, others warn."""
    return [_judged(rule, snapshot, settings) for rule in RULES if rule.fires != "absent"]


def _judged(rule: Rule, snapshot: Snapshot, settings: Settings) -> Check:
    """Judge the worst sample of a rule's gauge."""
    limit = rule.limit_of(settings)
    expected = f"{_WORDS[rule.fires][0]} {rule.shown(limit)}"
    evidence = (f"{rule.name}, {rule.severity}: {rule.expression(settings)}",)
    found = [s for s in snapshot.samples if s.name == rule.gauge and rule.labels.items() <= s.labels.items()]
    divisor = snapshot.value(rule.per) if rule.per else 1
    if not found or divisor is None:
        return Check(rule.id, "skip", expected, "not measured", evidence=evidence, name=rule.title)
    worst = (max if rule.fires == "above" else min)(found, key=lambda sample: sample.value)
    value = snapshot.taken_at.timestamp() - worst.value if rule.age else worst.value
    value = value / divisor / rule.unit.size if divisor else math.inf
    observed, remedy = "no growth" if math.isinf(value) else rule.shown(value), _REMEDIES[rule.gauge]
    if rule.age and not worst.value:
        observed = "never"
    if ahead := rule.age and value * rule.unit.size < -AHEAD_S:
        observed, remedy = f"{rule.shown(-value)} in the future", SEE_CLOCK
    if more := [f"{name} {of}" for name, of in worst.labels.items() if name not in rule.labels]:
        observed += f" ({', '.join(more)})"
    holds = not ahead and (value <= limit if rule.fires == "above" else value >= limit)
    otherwise: Status = "fail" if rule.severity == "critical" and settings.alerts_fail else "warn"
    return Check.that(rule.id, holds, expected, observed, remedy, otherwise, evidence, name=rule.title)


def prometheus_rules(settings: Settings) -> dict[str, Any]:
    """Return the content of a Prometheus rule file for the database of ``settings``."""
    rules = [
        {
            "alert": rule.name,
            "expr": rule.expression(settings),
            "for": rule.wait,
            "labels": {"severity": rule.severity},
            "annotations": {
                "summary": f"Abathur of {settings.env}: {_fired(rule, settings)}",
                "description": f"{{{{ $labels.database }}}} on {{{{ $labels.instance }}}}: {_REMEDIES[rule.gauge]}",
            },
        }
        for rule in RULES
    ]
    return {"groups": [{"name": f"abathur-{settings.env}", "rules": rules}]}


def _fired(rule: Rule, settings: Settings) -> str:
    if rule.gauge == UP:
        return "the database cannot be read"
    if rule.fires == "absent":
        return "metrics are missing"
    words = f"{rule.title} is {_WORDS[rule.fires][1]} {rule.shown(rule.limit_of(settings))}"
    return f"{words}, or is in the future: check the clock" if rule.age else words


def command(arguments: argparse.Namespace) -> int:
    """Print the rules as a Prometheus rule file, and return 0. Read-only."""
    import yaml

    settings = resolve(arguments.env, db_path=arguments.db_path)
    sys.stdout.write(yaml.safe_dump(prometheus_rules(settings), sort_keys=False, allow_unicode=True, width=120))
    return 0
