"""What the database may hold and SQL alone cannot refuse."""

import math
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from values_helpers import BEYOND, nested, within

from abathur_nb.errors import InvalidValueError, RefusedError
from abathur_nb.store.values import MAX_BYTES, decoded, json_fault, json_text


def holds_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BAD_JSON = [
    (math.nan, "expected a JSON object"),
    ({"a": math.nan}, "not JSON"),
    ({"a": [math.inf]}, "not JSON"),
    ({"a": "\ud800"}, "not JSON"),
    ({"a": {1}}, "not JSON"),
    ({"a": b"x"}, "not JSON"),
    ({"a": 10**5000}, "not JSON"),
    ({1: "a"}, "expected text as keys"),
    ({False: "a"}, "expected text as keys"),
    ([{"a": {"b": {0: 1}}}], "expected text as keys"),
    (nested(101), "at most 100 levels"),
    (nested(100_000), "at most 100 levels"),
    (holds_itself(), "at most 100 levels"),
    ({"a": "x" * MAX_BYTES}, "at most 16,777,216 bytes"),
    ("text", "expected a JSON object (dict) or a JSON list, found 'text' (str)"),
    (7, "found 7 (int)"),
    ((1, 2), "(tuple)"),
]


@pytest.mark.parametrize(("value", "told"), BAD_JSON, ids=range(len(BAD_JSON)))
def test_values_that_are_not_json_are_refused(value: Any, told: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        json_text("value", value)
    assert str(caught.value).startswith("Invalid value: ")
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400


def test_json_beyond_the_limits_is_told_in_one_line_and_within_them_there_is_no_fault() -> None:
    for text, told in BEYOND:
        assert told in json_fault(text)
        assert len(json_fault(text)) < 200
        assert "\n" not in json_fault(text)
    assert [json_fault(text) for text in within()] == [""] * len(within())


@pytest.mark.parametrize("spoiled", ["{broken", "", None, 7.5, b"\xff"])
def test_a_spoiled_column_is_refused_by_the_rows_key(spoiled: Any) -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.row_factory = sqlite3.Row
        good = conn.execute("SELECT 's1' AS id, '[1]' AS events").fetchone()
        assert decoded(good, ("events",)) == {"id": "s1", "events": [1]}
        bad = conn.execute("SELECT 's1' AS id, ? AS events", (spoiled,)).fetchone()
        with pytest.raises(RefusedError, match=r"^events of row 's1' is not valid JSON: run validate"):
            decoded(bad, ("events",))
