"""What only a person can answer is recorded as said by them, and never as passed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import abathur_nb as nb
from abathur_nb.config.parameters import FORM, check_parameters, declared_parameters, said, said_fault
from abathur_nb.errors import ConfigurationError
from abathur_nb.report import Report

QUESTION = "team trained on procedures"
TODAY = f"{datetime.now(UTC):%Y-%m-%d}"


@pytest.mark.parametrize(
    ("answer", "observed"),
    [
        ("Ada Lovelace, 2026-11-20", "said by Ada Lovelace on 2026-11-20"),
        ("  Ada Lovelace ,2026-11-20 ", "said by Ada Lovelace on 2026-11-20"),
        ("Lovelace, Ada, 2026-11-20", "said by Lovelace, Ada on 2026-11-20"),
        ("Łucja Żółć-O'Neill 3rd, 2024-02-29", "said by Łucja Żółć-O'Neill 3rd on 2024-02-29"),
        ("李, 1999-12-31", "said by 李 on 1999-12-31"),
        (f"A, {TODAY}", f"said by A on {TODAY}"),
    ],
)
def test_who_said_it_and_when_is_recorded_and_nothing_is_passed_by_it(answer: str, observed: str) -> None:
    check = nb.said(QUESTION, answer)
    assert (check.name, check.status, check.observed, check.remedy) == (QUESTION, "skip", observed, "")
    assert Report("trial", (check,)).ok
    assert "1 skip" in Report("trial", (check,)).summary
    assert said_fault("x", answer) == ""


def test_where_nobody_says_so_that_is_recorded_with_the_form() -> None:
    check = said(QUESTION, None)
    assert (check.status, check.observed) == ("skip", "nobody has said so")
    assert check.remedy == 'name them: "Ada Lovelace, 2026-11-20"'


MALFORMED: list[Any] = [
    *("", " ", ",", "yes", "true", "Ada Lovelace", "2026-11-20", ", 2026-11-20", " , 2026-11-20", ",,2026-11-20"),
    *("Ada Lovelace 2026-11-20", "Ada Lovelace, 20.11.2026", "Ada Lovelace, 2026-11-20 12:00", "Ada, 2026-11-2"),
    *(
        "Ada, 2026-02-30",
        "Ada, 2026-13-01",
        "Ada, 0000-01-01",
        "Ada, 2026-W47-5",
        "Ada, 20261120",
        "Ada, ２０２６-11-20",
    ),
    *("Ada\nLovelace, 2026-11-20", "Ada\0, 2026-11-20", "\u202eAda, 2026-11-20", "Ada \ud800, 2026-11-20"),
    *("x" * 200 + ", 2026-11-20", "007, 2026-11-20", "--, 2026-11-20", "2026-11-19, 2026-11-20"),
    *(True, 7, 1.5, ["Ada, 2026-11-20"], b"Ada, 2026-11-20", {"Ada": "2026-11-20"}),
]


@pytest.mark.parametrize("answer", MALFORMED, ids=range(len(MALFORMED)))
def test_anything_else_is_told_the_form(answer: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        said(QUESTION, answer)
    (fault,) = caught.value.faults
    assert fault.startswith(f"{QUESTION}: expected a person's name and a date, as in {FORM}, found ")
    assert fault.isprintable()
    assert len(fault) < 300


def test_nobody_can_have_said_so_tomorrow() -> None:
    later = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    for day in (later, "9999-12-31"):
        with pytest.raises(ConfigurationError, match=f"expected a date of today or before, as in .*, found {day}"):
            said(QUESTION, f"Ada Lovelace, {day}")


def test_as_a_parameter_it_is_vetted_with_all_others_before_anything_runs() -> None:
    declared = declared_parameters('team_trained: "Optional[str]" = None\nrows: int = 1')
    assert check_parameters(declared, {"team_trained": "Ada Lovelace, 2026-11-20"}) == []
    found = check_parameters(declared, {"team_trained": "yes", "rows": 0})
    assert [fault.partition(":")[0] for fault in found] == ["team_trained", "rows"]
    assert FORM in found[0]
