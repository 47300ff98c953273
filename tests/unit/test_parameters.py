"""What a notebook declares, and which values it takes."""

import math
from typing import Any

import pytest

from abathur_nb.config.parameters import check_parameters, check_ranges, declared_parameters
from abathur_nb.errors import ConfigurationError

CELL = """\
# What this run works with
env: "str" = "development"  # the environment
db_path: "Optional[str]" = None  # another database
dry_run = False
repetitions = 1000
ratio: float = 0.5
"""
DECLARED = declared_parameters(CELL)


def test_a_parameters_cell_declares_names_types_and_defaults() -> None:
    found = {p.name: (p.type, p.default) for p in DECLARED.values()}
    assert found == {
        "env": (str, "development"),
        "db_path": (str, None),
        "dry_run": (bool, False),
        "repetitions": (int, 1000),
        "ratio": (float, 0.5),
    }


@pytest.mark.parametrize(
    "source",
    ["import os", "x = print()", "x = y", "x: int", "a = b = 1", "x, y = 1, 2", "x.y = 1", "x += 1", "x = None", "f()"],
)
def test_a_parameters_cell_holds_nothing_but_literals(source: str) -> None:
    with pytest.raises(ConfigurationError):
        declared_parameters(source)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("env", "production", ""),
        ("db_path", None, ""),
        ("dry_run", True, ""),
        ("ratio", 1, ""),
        ("repetitions", 100_000, ""),
        ("PAPERMILL_INPUT_PATH", "/x", ""),
        ("PAPERMILL_OUTPUT_PATH", "/x", ""),
        ("env", None, "env: expected str, found None (NoneType)"),
        ("env", ["production"], "env: expected str, found ['production'] (list)"),
        ("env", math.nan, "env: expected str"),
        ("env", 10**400, "env: expected str"),
        ("db_path", 7, "db_path: expected str"),
        ("dry_run", "false", "dry_run: expected True or False, found 'false' (str)"),
        ("dry_run", 0, "dry_run: expected True or False"),
        ("dry_run", None, "dry_run: expected True or False"),
        ("repetitions", True, "repetitions: expected int, found True (bool)"),
        ("repetitions", 7.0, "repetitions: expected int"),
        ("repetitions", "007", "repetitions: expected int"),
        ("repetitions", math.inf, "repetitions: expected int"),
        ("repetitions", 0, "repetitions: expected a whole number in 1..100000, found 0"),
        ("repetitions", -1, "in 1..100000"),
        ("repetitions", 10**9, "in 1..100000"),
        ("repetitions", 2**63, "in 1..100000"),
        ("ratio", math.nan, "ratio: expected a finite number, found nan"),
        ("ratio", math.inf, "ratio: expected a finite number, found inf"),
        ("ratio", True, "ratio: expected float"),
        ("env", "\ud800", "env: expected text that can be written down, found '\\ud800'"),
        ("enviroment", "x", "'enviroment' is not declared"),
        ("envv", "x", "did you mean env?"),
        ("PAPERMILL_OUTPUT_PATHS", "/x", "is not declared"),
        ("PAPERMILL_INPUT_PATH", 7, "is not declared"),
        ("__name__", "x", "is not declared"),
    ],
)
def test_a_given_value_is_of_its_type_and_in_its_range(name: str, value: Any, told: str) -> None:
    found = check_parameters(DECLARED, {name: value})
    assert len(found) == bool(told)
    assert not told or told in found[0]


def test_every_fault_of_the_given_values_is_named() -> None:
    assert len(check_parameters(DECLARED, {"env": 1, "dry_run": "no", "repetitions": 0, "x": 1, "ratio": 0.1})) == 4


@pytest.mark.parametrize("value", [0, -1, 2**63, 1.0, "7", None, True])
def test_a_verb_holds_its_numbers_to_the_same_ranges(value: Any) -> None:
    check_ranges(repetitions=1, rows=10_000_000)
    with pytest.raises(ConfigurationError, match=r"^repetitions: .*; rows: "):
        check_ranges(repetitions=value, rows=value)
