"""How old something is, or that it lies in the future: judged in one way wherever an age is shown."""

from datetime import UTC, datetime, timedelta

import pytest

from abathur_nb.text import age, is_ahead, moment_of

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "told", "ahead"),
    [
        (-366 * 86_400, "366.0 days old", False),
        (-3 * 3600, "3.0 hours old", False),
        (-90, "90 s old", False),
        (0, "0 s old", False),
        (299, "0 s old", False),
        (300, "0 s old", False),
        (301, "5.0 minutes in the future", True),
        (366 * 86_400, "366.0 days in the future", True),
    ],
)
def test_a_moment_more_than_five_minutes_ahead_is_in_the_future(seconds: int, told: str, ahead: bool) -> None:
    moment = NOW + timedelta(seconds=seconds)
    assert (age(moment, NOW), is_ahead(moment, NOW)) == (told, ahead)


@pytest.mark.parametrize(
    ("text", "moment"),
    [("2026-11-30 12:00:00.000", NOW), ("2026-11-30T17:30:00+05:30", NOW), ("2026-11-30T04:00:00-08:00", NOW)],
)
def test_a_moment_with_an_offset_is_converted_and_one_without_is_utc(text: str, moment: datetime) -> None:
    assert moment_of(text) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_what_has_no_utc_time_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|UTC"):
        moment_of(text)
