"""The gauges that are watched, and the alert rules: data that monitor judges by, printed for Prometheus too."""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.health.rows import LEVELS, TOLD_SIZE, TRIM
from abathur_nb.report import Check
from abathur_nb.store.values import MAX_BYTES
from abathur_nb.text import AHEAD_S, MB, SEE_CLOCK, Table, timestamp

if TYPE_CHECKING:
    import pandas as pd


UP = "abathur_up"
TAKEN = "abathur_snapshot_timestamp_seconds"
RETRIEVAL = "abathur_retrieval_seconds"
READ = "abathur_read_ratio"
SESSION_BYTES = "abathur_session_bytes"
LAST_BACKUP = "abathur_last_backup_timestamp_seconds"
LAST_VALIDATION = "abathur_last_validation_timestamp_seconds"

# Moments and not ages, as Prometheus' own advice is: an age stands still when nobody measures any more. The names are
# those of the table metrics too (https://prometheus.io/docs/practices/naming/).
GAUGES: Mapping[str, str] = {
    UP: "1 if the database could be read, else 0",
    TAKEN: "when this was measured",
    "abathur_database_bytes": "the database's file",
    "abathur_database_free_bytes": "pages of the file that hold nothing",
    "abathur_wal_bytes": "the write-ahead log",
    "abathur_disk_free_bytes": "free room on the disk of the database",
    "abathur_database_growth_bytes_per_day": "the share of the file that the rows of the last 24 hours take, estimated",
    READ: "the share of the rows that these figures come from; they are estimates where it is under 1",
    SESSION_BYTES: "the largest events, state and metadata of a session, of the newest sessions and of some at random",
    "abathur_rows": "rows of a table",
    "abathur_rows_of_last_day": "rows of a table that came in the last 24 hours",
    "abathur_namespace_rows": "versions of memories in one of the largest namespaces, and in all others together",
    "abathur_namespace_rows_of_last_day": "those of them that came in the last 24 hours",
    "abathur_memory_versions": "versions of memories: current, superseded by a newer one, or deleted",
    RETRIEVAL: "a percentile of the time that a session's or a memory's retrieval takes",
    LAST_BACKUP: "when the newest backup was taken that is proven and whose database was sound; 0 for never",
    LAST_VALIDATION: "when the newest validation began that passed; 0 for never",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold one value of a gauge, in the unit that its name ends with, and what it is of."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hold what was measured at one moment, UTC, of the database that ``place`` names by its labels."""

    taken_at: datetime
    place: Mapping[str, str]
    samples: tuple[Sample, ...] = ()

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """Return the value of one gauge; None where it was not measured."""
        found = (sample.value for sample in self.samples if sample.name == name and sample.labels == (labels or {}))
        return next(found, None)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a sample: ``time`` (UTC), ``gauge``, ``of`` (its labels), ``value``."""
        return samples_frame((self.taken_at, sample) for sample in self.samples)

    def to_record(self) -> dict[str, object]:
        """Return what the record of a run keeps."""
        rows = [[sample.name, dict(sample.labels), sample.value] for sample in self.samples]
        return {"metrics": {"taken_at": timestamp(self.taken_at), "samples": rows}}

    def _table(self) -> Table:
        rows, name = list[tuple[str, ...]](), ""
        for sample in self.samples:
            # What a gauge is, only above its first value.
            words = ("", "") if sample.name == name else (GAUGES[sample.name], sample.name)
            rows.append((words[0], ", ".join(sample.labels.values()), _told(sample), words[1]))
            name = sample.name
        return Table(("what", "of", "value", "name"), tuple(rows), "nothing could be measured: the report says why")

    def __str__(self) -> str:
        return str(self._table())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self._table().to_html(), "text/plain": str(self)}


def place_of(settings: Settings) -> dict[str, str]:
    """Return the labels that say in Prometheus of which database a sample is."""
    return {"env": settings.env, "database": str(settings.db_path)}


def samples_frame(samples: Iterable[tuple[datetime, Sample]]) -> "pd.DataFrame":
    """Return one row for each sample at its moment: ``time`` (UTC), ``gauge``, ``of`` (its labels), ``value``."""
    import pandas as pd

    rows = [(moment, s.name, ", ".join(s.labels.values()), s.value) for moment, s in samples]
    return pd.DataFrame(rows, columns=["time", "gauge", "of", "value"])


# By the end of a gauge's name, the first that fits: how its value is noted, and in which unit.
_UNITS = (
    ("_seconds", "{:.3g} ms", 1e-3),
    ("_bytes_per_day", "{:,.1f} MB a day", MB),
    ("_bytes", "{:,.1f} MB", MB),
    ("_ratio", "{:.2%}", 1),
    ("", "{:,.0f}", 1),
)


def _told(sample: Sample) -> str:
    if sample.name.endswith("_timestamp_seconds"):
        return f"{timestamp(datetime.fromtimestamp(sample.value, UTC))} UTC" if sample.value else "never"
    form, unit = next((form, unit) for end, form, unit in _UNITS if sample.name.endswith(end))
    return form.format(sample.value / unit)


_HOUR, _DAY = 3600, 86_400  # seconds
_SIGNS = {"above": ">", "below": "<"}
# What stands before a limit: where it must lie, and where it lies when the rule fires.
_EXPECTED = {"above": "at most ", "below": "at least ", "absent": ""}
_FOUND = {"above": "is over ", "below": "is under ", "absent": "are missing where "}


@dataclass(frozen=True, slots=True)
class Rule:
    """Hold one alert: which gauge must not lie above or below which setting, or not be missing at all.

    The setting is in its own unit, ``unit`` of which are one of the gauge's; a number stands for itself. With ``age``
    it is about the time since the moment that the gauge holds, and fires too where that lies in the future; with
    ``per`` it is about the gauge divided by another one.
    ``wait`` is how long Prometheus sees it so before it reports; ``noted`` the form of a value in the setting's unit.
    """

    name: str
    title: str
    gauge: str
    fires: Literal["above", "below", "absent"]
    limit: str | float
    noted: str
    severity: Literal["critical", "warning"]
    remedy: str
    unit: float = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    age: bool = False
    per: str = ""
    wait: str = "0m"

    @property
    def id(self) -> str:
        """The id of the check that this rule makes, such as ``backup_old``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name.removeprefix("Abathur")).lower()

    def limit_of(self, settings: Settings) -> float:
        """Return the limit that holds, in the setting's own unit."""
        return float(getattr(settings, self.limit) if isinstance(self.limit, str) else self.limit)

    def sample_of(self, snapshot: Snapshot) -> Sample | None:
        """Return the sample that lies farthest on the side on which the rule fires; None where none was measured."""
        found = [s for s in snapshot.samples if s.name == self.gauge and self.labels.items() <= s.labels.items()]
        farthest = max if self.fires == "above" else min
        return farthest(found, key=lambda sample: sample.value, default=None)

    def value_of(self, snapshot: Snapshot) -> float | None:
        """Return what the limit is about, in the setting's own unit; None where it was not measured."""
        sample = self.sample_of(snapshot)
        value = None if sample is None else sample.value
        if value is not None and self.age:
            value = snapshot.taken_at.timestamp() - value
        if value is not None and self.per:
            divisor = snapshot.value(self.per, self.labels)
            value = value / divisor if divisor else None if divisor is None else math.inf
        return None if value is None else value / self.unit

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
        return f"{value} {_SIGNS[self.fires]} {self.limit_of(settings) * self.unit!r}{ahead}"


RULES = (
    Rule(
        "AbathurDatabaseUnreadable",
        "readable databases",
        UP,
        "below",
        1,
        "{:.0f}",
        "critical",
        "run troubleshoot.ipynb",
        wait="5m",
    ),
    Rule(
        "AbathurMetricsAbsent",
        "metrics",
        UP,
        "absent",
        0,
        "there are some",
        "critical",
        "see why `python -m abathur_nb metrics` no longer runs, or nobody collects what it writes",
        wait="15m",
    ),
    Rule(
        "AbathurMetricsStale",
        "age of the metrics",
        TAKEN,
        "above",
        "metrics_max_age_minutes",
        "{:,.0f} minutes",
        "critical",
        "see why `python -m abathur_nb metrics` no longer runs",
        unit=60,
        age=True,
    ),
    Rule(
        "AbathurBackupOld",
        "age of the last proven backup",
        LAST_BACKUP,
        "above",
        "backup_max_age_hours",
        "{:,.1f} hours",
        "critical",
        "run backup.ipynb, and see why its timer did not",
        unit=_HOUR,
        age=True,
    ),
    Rule(
        "AbathurValidationOld",
        "age of the last green validation",
        LAST_VALIDATION,
        "above",
        "validation_max_age_days",
        "{:,.1f} days",
        "warning",
        "run validate.ipynb",
        unit=_DAY,
        age=True,
    ),
    Rule(
        "AbathurDiskLow",
        "free disk",
        "abathur_disk_free_bytes",
        "below",
        "min_free_mb",
        "{:,.0f} MB",
        "critical",
        "make room, or move what else lies on that disk",
        unit=MB,
        wait="5m",
    ),
    Rule(
        "AbathurDiskFullSoon",
        "disk until full at today's growth",
        "abathur_disk_free_bytes",
        "below",
        "disk_full_days",
        "{:,.0f} days",
        "warning",
        "see what grows (explore.ipynb), and make room",
        per="abathur_database_growth_bytes_per_day",
        wait="30m",
    ),
    Rule(
        "AbathurWalLarge",
        "write-ahead log",
        "abathur_wal_bytes",
        "above",
        "max_wal_mb",
        "{:,.1f} MB",
        "warning",
        "run troubleshoot.ipynb, which names who pins it",
        unit=MB,
        wait="15m",
    ),
    *(
        Rule(
            f"Abathur{what.capitalize()}RetrievalSlow",
            f"{what} retrieval, p99",
            RETRIEVAL,
            "above",
            f"{what}_p99_ms",
            "{:.3g} ms",
            "warning",
            "run benchmark.ipynb and explain.ipynb",
            unit=1e-3,
            labels={"retrieval": what, "percentile": "p99"},
            wait="15m",
        )
        for what in ("session", "memory")
    ),
    *(
        Rule(
            f"AbathurSession{name}",
            f"largest session, {percent} %",
            SESSION_BYTES,
            "above",
            percent,
            TOLD_SIZE,
            "warning",
            TRIM,
            unit=MAX_BYTES / 100,
        )
        for name, percent in zip(("Large", "NearlyFull"), LEVELS, strict=True)
    ),
)


def alerts_of(snapshot: Snapshot, settings: Settings) -> list[Check]:
    """Return a check of each rule on what was measured; one that fires fails if it is critical, else it warns."""
    return [_judged(rule, snapshot, settings) for rule in RULES]


def _judged(rule: Rule, snapshot: Snapshot, settings: Settings) -> Check:
    limit, value = rule.limit_of(settings), rule.value_of(snapshot)
    expected = f"{_EXPECTED[rule.fires]}{rule.noted.format(limit)}"
    evidence = (f"{rule.name}, {rule.severity}: {rule.expression(settings)}",)
    if value is None:
        return Check(rule.id, "skip", expected, "nothing to measure it by", evidence=evidence, name=rule.title)
    never = rule.age and not snapshot.value(rule.gauge, rule.labels)
    ahead = rule.age and value * rule.unit < -AHEAD_S
    observed = "there is none" if never else "no growth" if math.isinf(value) else rule.noted.format(value)
    sample = rule.sample_of(snapshot)
    if sample and sample.labels != rule.labels:
        observed += f" ({', '.join(f'{k} {v}' for k, v in sample.labels.items() if k not in rule.labels)})"
    return Check.that(
        rule.id,
        not (ahead or (value > limit if rule.fires == "above" else value < limit)),
        expected=expected,
        observed=f"{rule.noted.format(-value)} in the future" if ahead else observed,
        remedy=SEE_CLOCK if ahead else rule.remedy,
        otherwise="fail" if rule.severity == "critical" and settings.alerts_fail else "warn",
        evidence=evidence,
        name=rule.title,
    )


def prometheus_rules(settings: Settings) -> dict[str, Any]:
    """Return the rules for the database of ``settings`` as a rule file of Prometheus holds them."""
    return {"groups": [{"name": f"abathur-{settings.env}", "rules": [*_prometheus(RULES, settings)]}]}


def _prometheus(rules: Iterable[Rule], settings: Settings) -> Iterable[dict[str, Any]]:
    for rule in rules:
        found = f"{_FOUND[rule.fires]}{rule.noted.format(rule.limit_of(settings))}"
        found += ", or lies in the future: see the clock" if rule.age else ""
        yield {
            "alert": rule.name,
            "expr": rule.expression(settings),
            "for": rule.wait,
            "labels": {"severity": rule.severity},
            "annotations": {
                "summary": f"Abathur of {settings.env}: {rule.title} {found}",
                "description": f"{{{{ $labels.database }}}} on {{{{ $labels.instance }}}}: {rule.remedy}",
            },
        }


def command(arguments: argparse.Namespace) -> int:
    """Print the rules as a rule file of Prometheus, and return 0. Read-only."""
    import yaml

    settings = resolve(arguments.env, db_path=arguments.db_path)
    sys.stdout.write(yaml.safe_dump(prometheus_rules(settings), sort_keys=False, allow_unicode=True, width=120))
    return 0
