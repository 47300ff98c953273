"""The notebook and Prometheus judge by the same rules: what fires in the one fires in the other."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from alerts_helpers import promtool
from main_helpers import command

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.measure.alerts import (
    RULES,
    SESSION_BYTES,
    Rule,
    Sample,
    Snapshot,
    alerts_of,
    place_of,
    prometheus_rules,
)
from abathur_nb.text import AHEAD_S

# promtool's clock begins at 0; each rule has waited for its time by then.
MINUTES = 60
NOW = datetime.fromtimestamp(MINUTES * 60, UTC)
JUDGED = [rule for rule in RULES if rule.fires != "absent"]
SEVERITIES = {"critical": "fail", "warning": "warn"}


def sample(rule: Rule, value: float, given: dict[tuple[str, str], Sample]) -> Sample:
    """Return what makes the value of a rule, in its setting's unit, such as it is wanted."""
    value *= rule.unit
    if rule.per:
        return Sample(rule.per, given[key_of(rule)].value / value)
    return Sample(rule.gauge, NOW.timestamp() - value if rule.age else value, rule.labels)


def key_of(found: Rule | Sample) -> tuple[str, str]:
    return found.gauge if isinstance(found, Rule) else found.name, json.dumps(dict(found.labels))


def snapshot(settings: Settings, *others: Rule, share: float = 0.5) -> Snapshot:
    """Return a snapshot in which no rule fires, but for ``others``: their values are that share over their limits."""
    given: dict[tuple[str, str], Sample] = {}
    for rule in sorted(JUDGED, key=lambda rule: (bool(rule.per), rule not in others, -rule.limit_of(settings))):
        over = 1 + share if rule in others else 0.5
        factor = over if rule.fires == "above" else 1 / over
        if rule.gauge == "abathur_disk_free_bytes" and not rule.per and rule not in others:
            factor = 1000
        found = sample(rule, rule.limit_of(settings) * factor, given)
        given.setdefault(key_of(found), found)  # of two rules of one gauge, the one that is to fire first
    return Snapshot(NOW, place_of(settings), tuple(given.values()))


def series(found: Snapshot) -> Iterator[dict[str, str]]:
    for one in found.samples:
        labels = ",".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in {**found.place, **one.labels}.items())
        yield {"series": f"{one.name}{{{labels}}}", "values": f"{one.value:.12f}+0x{MINUTES + 1}"}


def fired_in_prometheus(
    rules: dict[str, Any], cases: dict[str, tuple[list[dict[str, str]], set[str]]], folder: Path
) -> None:
    """Have promtool evaluate the rules on each case's series; fail unless exactly the expected alerts fire."""
    (folder / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    tests = [
        {
            "interval": "1m",
            "input_series": given,
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{MINUTES}m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)],
                }
            ],
        }
        for given, expected in cases.values()
    ]
    told = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(told), encoding="utf-8")
    promtool("test", "rules", folder / "test.yml")


def firing(found: Snapshot, settings: Settings) -> set[str]:
    """Return the names of the rules that the notebook shows as firing."""
    return {check.evidence[0].partition(",")[0] for check in alerts_of(found, settings) if check.status != "pass"}


def test_on_each_side_of_each_limit_both_judge_alike(database: Settings, tmp_path: Path) -> None:
    cases = {}
    for rule in JUDGED:
        for share in (-0.01, 0, 0.01):
            found = snapshot(database, rule, share=share)
            sizes = [r for r in JUDGED if r.gauge == rule.gauge == SESSION_BYTES]
            lower = {r.name for r in sizes if r.limit_of(database) < rule.limit_of(database)}
            expected = lower | ({rule.name} if share > 0 else set())
            assert firing(found, database) == expected, (rule.name, share)
            cases[f"{rule.name} {share}"] = ([*series(found)], expected)
    every = snapshot(database, *JUDGED)
    cases["all"] = ([*series(every)], firing(every, database))
    assert len(cases["all"][1]) == len(JUDGED)
    fired_in_prometheus(prometheus_rules(database), cases, tmp_path)


def test_a_moment_more_than_five_minutes_ahead_fires_in_both(database: Settings, tmp_path: Path) -> None:
    cases = {}
    for rule in (rule for rule in JUDGED if rule.age):
        for seconds in (-1, 0, 299, 300, 301, 3600, 366 * 86_400):
            moment = Sample(rule.gauge, NOW.timestamp() + seconds)
            samples = (moment, *(one for one in snapshot(database).samples if one.name != rule.gauge))
            found = Snapshot(NOW, place_of(database), samples)
            expected = {rule.name} if seconds > AHEAD_S else set()
            assert firing(found, database) == expected, seconds
            cases[f"{rule.name} {seconds}"] = ([*series(found)], expected)
        told = next(check for check in alerts_of(found, database) if check.status != "pass")
        assert told.observed.endswith(" in the future")
        assert "timedatectl" in told.remedy
    fired_in_prometheus(prometheus_rules(database), cases, tmp_path)


def test_a_rule_that_does_not_fire_where_it_must_is_found_out(database: Settings, tmp_path: Path) -> None:
    """The control of the test above: the limit of one rule is another in what Prometheus is given."""
    rule = next(r for r in JUDGED if r.name == "AbathurBackupOld")
    found = snapshot(database, rule)
    assert firing(found, database) == {rule.name}
    with pytest.raises(AssertionError, match="FAILED"):
        fired_in_prometheus(
            prometheus_rules(replace(database, backup_max_age_hours=1e9)),
            {"one": ([*series(found)], {rule.name})},
            tmp_path,
        )


def test_a_rule_waits_before_it_fires_and_one_fires_where_nobody_measures(database: Settings, tmp_path: Path) -> None:
    found = snapshot(database, *JUDGED)
    lately = [{**one, "values": f"_x{MINUTES - 1} {one['values'].partition('+')[0]}+0x1"} for one in series(found)]
    at_once = {rule.name for rule in JUDGED if rule.wait == "0m"}
    assert 0 < len(at_once) < len(JUDGED)
    cases = {"lately": (lately, at_once), "none": (list[dict[str, str]](), {"AbathurMetricsAbsent"})}
    fired_in_prometheus(prometheus_rules(database), cases, tmp_path)


def test_promtool_takes_the_rules_whatever_the_path_is(tmp_path: Path) -> None:
    settings = resolve("development", db_path=tmp_path / 'a b"quo\\te{{brace}}ünï' / "x.db")
    found = snapshot(settings, JUDGED[0])
    fired_in_prometheus(prometheus_rules(settings), {"one": ([*series(found)], {JUDGED[0].name})}, tmp_path)


def test_a_critical_alert_fails_where_the_settings_say_so_and_warns_elsewhere(database: Settings) -> None:
    assert (resolve("development").alerts_fail, resolve("production").alerts_fail) == (False, True)
    for rule in JUDGED:
        found = snapshot(database, rule)
        for strict in (True, False):
            checks = alerts_of(found, replace(database, alerts_fail=strict))
            (check,) = (check for check in checks if check.name == rule.title)
            assert check.status == (SEVERITIES[rule.severity] if strict else "warn")
            assert check.remedy
            assert rule.expression(database) in check.evidence[0]


def test_the_command_prints_what_prometheus_loads_with_the_limits_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABATHUR_BACKUP_MAX_AGE_HOURS", "50")
    done = command("alerts", "--env", "production")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "rules.yml").write_text(done.stdout)
    promtool("check", "rules", tmp_path / "rules.yml")
    rules = {rule["alert"]: rule for rule in yaml.safe_load(done.stdout)["groups"][0]["rules"]}
    assert list(rules) == [rule.name for rule in RULES]
    assert rules["AbathurBackupOld"]["expr"].endswith(" < -300")
    assert " > 180000.0 or " in rules["AbathurBackupOld"]["expr"]
    assert 'env="production"' in rules["AbathurBackupOld"]["expr"]
    assert re.search(r"over 50\.0 hours", rules["AbathurBackupOld"]["annotations"]["summary"])
