"""What a measurement depends on is told by name, and each difference from an earlier run's."""

import os
import sqlite3

import pytest

from abathur_nb.config.settings import Settings
from abathur_nb.measure.measurements import compare_machines, describe_machine


def test_the_machine_is_told_by_name(settings: Settings) -> None:
    told = describe_machine(settings, 10, 20)
    assert (told["rows"], told["repetitions"], told["readers"]) == (10, 20, settings.readers)
    assert told["SQLite"] == sqlite3.sqlite_version
    assert told["processor"].endswith(f"of {os.cpu_count()} CPUs")
    assert told["file system"] != "unknown"


def test_the_same_machine_passes(settings: Settings) -> None:
    check = compare_machines(describe_machine(settings, 10, 20), describe_machine(settings, 10, 20))
    assert (check.status, check.observed, check.remedy) == ("pass", "the same", "")


@pytest.mark.parametrize(
    ("now", "then", "told"),
    [
        ({"SQLite": "3.51.3"}, {"SQLite": "3.40.1"}, "SQLite: was '3.40.1', is '3.51.3'"),
        ({"rows": 10, "x": 1}, {"rows": 20, "x": 2}, "rows: was 20, is 10; x: was 2, is 1"),
        ({"PRAGMAs": {"a": 1, "b": 2}}, {"PRAGMAs": {"a": 1, "b": 3}}, "PRAGMAs b: was 3, is 2"),
        ({"rows": 10}, {}, "rows: was None, is 10"),
        ({}, {"rows": 10}, "rows: was 10, is None"),
        ({"rows": 10}, {"rows": [{"\n": 1}]}, r"rows: was [{'\n': 1}], is 10"),
    ],
)
def test_each_difference_is_named_as_it_was_and_is(now: dict[str, object], then: dict[str, object], told: str) -> None:
    check = compare_machines(now, then)
    assert (check.status, check.observed) == ("warn", told)
    assert check.remedy
