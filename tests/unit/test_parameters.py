"""What a notebook declares, which values it takes, and what only a person can answer."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import abathur_nb as nb
from abathur_nb.config.parameters import FORM, check_parameters, check_ranges, declared_parameters, said, said_fault
from abathur_nb.errors import ConfigurationError
from abathur_nb.report import Report

CELL = """\
# What this run works with
env: "str" = "development"  # the environment
db_path: "Optional[str]" = None  # another database
dry_run = False
repetitions = 1000
ratio: float = 0.5
team_trained: "Optional[str]" = None
"""
DECLARED = declared_parameters(CELL)


def test_a_parameters_cell_declares_names_types_and_defaults_and_nothing_but_literals() -> None:
    assert {p.name: (p.type, p.default) for p in DECLARED.values()} == {
        "env": (str, "development"),
        "db_path": (str, None),
        "dry_run": (bool, False),
        "repetitions": (int, 1000),
        "ratio": (float, 0.5),
        "team_trained": (str, None),
    }
    for source in ("import os", "x = print()", "x = y", "x: int", "a = b = 1", "x, y = 1, 2", "x += 1", "x = None"):
        with pytest.raises(ConfigurationError):
            declared_parameters(source)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("env", "production", ""),
        ("dry_run", True, ""),
        ("ratio", 1, ""),
        ("repetitions", 100_000, ""),
        ("PAPERMILL_INPUT_PATH", "/x", ""),
        ("team_trained", "Ada Lovelace, 2026-11-20", ""),
        ("env", None, "env: expected str, found None (NoneType)"),
        ("env", ["production"], "env: expected str, found ['production'] (list)"),
        ("db_path", 7, "db_path: expected str"),
        ("dry_run", "false", "dry_run: expected True or False, found 'false' (str)"),
        ("repetitions", True, "repetitions: expected int, found True (bool)"),
        ("repetitions", "007", "repetitions: expected int"),
        ("repetitions", 0, "repetitions: expected a whole number in 1..100000, found 0"),
        ("ratio", math.nan, "ratio: expected a finite number, found nan"),
        ("env", "\ud800", "env: expected text without lone surrogates, found '\\ud800'"),
        ("envv", "x", "'envv' is not declared"),
        ("envv", "x", "did you mean env?"),
        ("PAPERMILL_INPUT_PATH", 7, "is not declared"),
        ("team_trained", "yes", FORM),
    ],
)
def test_a_given_value_is_of_its_type_and_in_its_range(name: str, value: Any, told: str) -> None:
    found = check_parameters(DECLARED, {name: value})
    assert len(found) == bool(told)
    assert not told or told in found[0]


def test_every_fault_of_the_given_values_is_named() -> None:
    assert len(check_parameters(DECLARED, {"env": 1, "dry_run": "no", "repetitions": 0, "x": 1, "ratio": 0.1})) == 4


def test_a_verb_holds_its_numbers_to_the_same_ranges() -> None:
    check_ranges(repetitions=1, rows=10_000_000)
    wrong: list[Any] = [0, -1, 2**63, 1.0, "7", None, True]
    for value in wrong:
        with pytest.raises(ConfigurationError, match=r"^repetitions: .*; rows: "):
            check_ranges(repetitions=value, rows=value)


QUESTION = "team trained on procedures"
TODAY = datetime.now(UTC)
SAID = {
    "  Ada Lovelace ,2026-11-20 ": "said by Ada Lovelace on 2026-11-20",
    "Lovelace, Ada, 2026-11-20": "said by Lovelace, Ada on 2026-11-20",
    "Łucja Żółć-O'Neill 3rd, 2024-02-29": "said by Łucja Żółć-O'Neill 3rd on 2024-02-29",
    "李, 1999-12-31": "said by 李 on 1999-12-31",
    f"A, {TODAY:%Y-%m-%d}": f"said by A on {TODAY:%Y-%m-%d}",
}
MALFORMED: list[Any] = [
    *("", " ", ",", "yes", "Ada Lovelace", "2026-11-20", ", 2026-11-20", " , 2026-11-20", ",,2026-11-20"),
    *("Ada Lovelace 2026-11-20", "Ada Lovelace, 20.11.2026", "Ada Lovelace, 2026-11-20 12:00", "Ada, 2026-11-2"),
    *("Ada, 2026-02-30", "Ada, 0000-01-01", "Ada, 2026-W47-5", "Ada, 20261120", "Ada, ２０２６-11-20"),
    *("Ada\nLovelace, 2026-11-20", "Ada\0, 2026-11-20", "\u202eAda, 2026-11-20", "Ada \ud800, 2026-11-20"),
    *("x" * 200 + ", 2026-11-20", "007, 2026-11-20", "--, 2026-11-20", "2026-11-19, 2026-11-20"),
    *(True, 7, 1.5, ["Ada, 2026-11-20"], b"Ada, 2026-11-20", {"Ada": "2026-11-20"}),
]


def test_who_said_it_and_when_is_recorded_and_nothing_is_passed_by_it() -> None:
    for answer, observed in SAID.items():
        check = nb.said(QUESTION, answer)
        assert (check.name, check.status, check.observed, check.remedy) == (QUESTION, "skip", observed, "")
        assert "1 skip" in Report("trial", (check,)).summary
        assert said_fault("x", answer) == ""
    nobody = said(QUESTION, None)
    assert (nobody.status, nobody.observed) == ("skip", "nobody has said so")
    assert nobody.remedy == 'name a person and day: "Ada Lovelace, 2026-11-20"'


def test_anything_else_is_told_the_form_and_nobody_can_have_said_so_tomorrow() -> None:
    for answer in MALFORMED:
        with pytest.raises(ConfigurationError) as caught:
            said(QUESTION, answer)
        (fault,) = caught.value.faults
        assert fault.startswith(f"{QUESTION}: expected a person's name and a date, as in {FORM}, found ")
        assert fault.isprintable()
        assert len(fault) < 300
    for day in (f"{TODAY + timedelta(days=2):%Y-%m-%d}", "9999-12-31"):
        with pytest.raises(ConfigurationError, match=f"expected a date of today or before, as in .*, found {day}"):
            said(QUESTION, f"Ada Lovelace, {day}")
