"""The alert rules: data, once, which the notebook judges by a snapshot and which are printed for Prometheus."""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from abathur_nb.operate.gauges import (
    LAST_BACKUP,
    LAST_VALIDATION,
    RETRIEVAL,
    SESSION_BYTES,
    TAKEN,
    UP,
    Sample,
    Snapshot,
    place_of,
)
from abathur_nb.report import Check
from abathur_nb.session_sizes import LEVELS, TOLD_SIZE, TRIM
from abathur_nb.settings import Settings, resolve
from abathur_nb.values import MAX_BYTES
from abathur_nb.wording import AHEAD_S, MB, SEE_CLOCK

__all__ = ["RULES", "Rule", "alerts_of", "command", "prometheus_rules"]

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
    ``wait`` is how long Prometheus sees it so before it tells; ``told`` the form of a value in the setting's unit.
    """

    name: str
    title: str
    gauge: str
    fires: Literal["above", "below", "absent"]
    limit: str | float
    told: str
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
    expected = f"{_EXPECTED[rule.fires]}{rule.told.format(limit)}"
    evidence = (f"{rule.name}, {rule.severity}: {rule.expression(settings)}",)
    if value is None:
        return Check(rule.id, "skip", expected, "nothing to measure it by", evidence=evidence, name=rule.title)
    never = rule.age and not snapshot.value(rule.gauge, rule.labels)
    ahead = rule.age and value * rule.unit < -AHEAD_S
    observed = "there is none" if never else "no growth" if math.isinf(value) else rule.told.format(value)
    sample = rule.sample_of(snapshot)
    if sample and sample.labels != rule.labels:
        observed += f" ({', '.join(f'{k} {v}' for k, v in sample.labels.items() if k not in rule.labels)})"
    return Check.that(
        rule.id,
        not (ahead or (value > limit if rule.fires == "above" else value < limit)),
        expected=expected,
        observed=f"{rule.told.format(-value)} in the future" if ahead else observed,
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
        found = f"{_FOUND[rule.fires]}{rule.told.format(rule.limit_of(settings))}"
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
