"""Rules that have a domain, tried on values drawn from it; and what changed from a version of a memory to the next."""

import json
import sqlite3
from contextlib import closing
from typing import Any
from unicodedata import normalize

import pytest
from archives import ledger_line
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from abathur_nb.errors import InvalidValueError
from abathur_nb.evidence.canonical import sealed, sha256
from abathur_nb.evidence.ledger import FIRST, parse
from abathur_nb.runbook.explore import Excerpt, memory_history
from abathur_nb.store.values import check_name, json_fault, json_text, prefix_range
from abathur_nb.text import is_printable

# The same examples each time: a run in CI must not fail for a value that the last one did not draw.
settings.register_profile(
    "abathur", derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("abathur")

TEXT = st.text(max_size=20)
ANY_TEXT = st.text(st.characters(codec=None), max_size=20)  # lone surrogates too
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=4)


@given(ANY_TEXT)
def test_a_name_that_is_taken_is_stored_in_nfc_and_taken_again(text: str) -> None:
    try:
        name = check_name("key", text)
    except InvalidValueError:
        assert not is_printable(text) or not text.strip() or not any(c.isalnum() for c in text)
        return
    assert name == normalize("NFC", text)
    assert check_name("key", name or "") == name


@given(st.text(max_size=4), st.text(max_size=3), st.text(max_size=6))
@example("user_", "", "userX")
@example("%", "", "a")
@example("\ud7fb", "", "\ue000")
@example("\U0010ffff", "z", "\U0010ffff")
def test_the_range_of_a_prefix_holds_what_starts_with_it_and_nothing_else(prefix: str, rest: str, other: str) -> None:
    """SQLite compares UTF-8 by its bytes."""
    try:
        begin, end = prefix_range(prefix)
    except InvalidValueError:
        return
    with closing(sqlite3.connect(":memory:")) as conn:
        for text in (prefix + rest, other):
            (inside,) = conn.execute("SELECT ? >= ? AND ? < ?", (text, begin, text, end)).fetchone()
            assert inside == text.startswith(prefix), text


@given(OBJECT | st.lists(JSON, max_size=4))
def test_json_text_reads_back_equal_in_python_and_is_json_to_sqlite(value: Any) -> None:
    text = json_text("value", value)
    assert json.loads(text) == value
    assert json_fault(text) == ""
    with closing(sqlite3.connect(":memory:")) as conn:
        assert conn.execute("SELECT json_valid(?)", (text,)).fetchone() == (1,)


def _ledger(count: int) -> bytes:
    previous, lines = FIRST, []
    for number in range(count):
        lines.append(sealed({**ledger_line(number), "previous": previous}))
        previous = sha256(lines[-1])
    return b"".join(lines)


LEDGER = _ledger(3)


@given(st.integers(0, len(LEDGER) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_no_byte_of_a_ledger_is_changed_added_or_taken_away_unnoticed(place: int, put: bytes, taken: int) -> None:
    changed = LEDGER[:place] + put + LEDGER[place + taken :]
    read = parse(changed)
    whole_lines_cut = LEDGER.startswith(changed) and changed.endswith(b"\n")  # which what began later shows
    assert bool(read.faults or read.torn) is not (changed == LEDGER or whole_lines_cut or not changed)


MEMBERS = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=9)
VALUE = st.dictionaries(TEXT, MEMBERS, max_size=4)


def row(version: int, value: object, **more: Any) -> dict[str, Any]:
    text = value if isinstance(value, str) else json.dumps(value)
    about = {"version": version, "is_deleted": 0, "memory_type": "semantic", "value": text, "metadata": "{}"}
    return {**about, "updated_at": "2026-11-01 00:00:00.000", "updated_by": "alice", **more}


def history(*rows: dict[str, Any]) -> Excerpt:
    return memory_history(rows, "user:a k", 50)


def changes(found: Excerpt) -> list[list[str]]:
    """Return what each version changed, line by line, the newest version first."""
    return [cells[2].split("\n") for cells in found.table.rows]


def differences(before: Any, after: Any) -> list[str]:
    return changes(history(row(2, after), row(1, before)))[0]


SAME = ["nothing, as far as it was read"]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({}, {"a": 1}, ['value["a"]: nothing → 1']),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ['value["a"]["b"]["c"]: 1 → 2']),
        ({"a": {"b": 1}}, {'a"]["b': 1}, ['value["a"]["b"]: 1 → nothing', 'value["a\\"][\\"b"]: nothing → 1']),
        ({"": 1}, {}, ['value[""]: 1 → nothing']),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, SAME),
        ({"a": 1}, [1], ['value["a"]: 1 → nothing', "value[0]: nothing → 1"]),
        ([{"n": 1}, 2, 3], [{"n": 3}, 2], ['value[0]["n"]: 1 → 3', "value[2]: 3 → nothing"]),
        ({"a": 1, "b": 1}, {"a": True, "b": 1.0}, ['value["a"]: 1 → true', 'value["b"]: 1 → 1.0']),
        ({"a": None}, {"a": "nothing"}, ['value["a"]: null → "nothing"']),
        ({"a": "é\n"}, {"a": "\u202e"}, ['value["a"]: "é\\n" → "\\u202e"']),
        ({"\u202ea": 1}, {}, ['value["\\u202ea"]: 1 → nothing']),
    ],
)
def test_each_difference_is_named_with_its_path(before: Any, after: Any, found: list[str]) -> None:
    assert differences(before, after) == found
    assert differences(after, after) == SAME


def test_more_differences_than_a_person_reads_are_counted() -> None:
    told = differences(dict.fromkeys(map(str, range(1000)), 0), {})
    assert len(told) == 200 + 1
    assert told[-1] == "and 800 more"


def test_the_first_version_is_shown_whole_and_a_change_of_type_or_metadata_is_one() -> None:
    told = changes(history(row(2, {}, memory_type="episodic", metadata='{"by": 1}'), row(1, {})))
    assert told == [['memory_type: "semantic" → "episodic"', 'metadata["by"]: nothing → 1'], ["first: {}"]]


@pytest.mark.parametrize("text", ["{broken", "", "\\xff", "[" * 5000, "None"])
def test_what_is_no_json_is_text(text: str) -> None:
    told = differences({"a": 1}, text)
    assert told[1].startswith(f"value: nothing → {json.dumps(text)[:100]}")


def test_of_two_long_texts_what_begins_before_they_differ_is_shown() -> None:
    long = "x" * 5000
    html = history(row(2, {"a": f"{long}new"}), row(1, {"a": f"{long}old"}))._repr_mimebundle_()["text/html"]
    assert "new" in html
    assert "old" in html
    assert "x" * 1000 not in html


@given(VALUE, VALUE)
def test_differences_of_two_values_are_none_for_equal_ones_and_mirror_each_other(one: Any, other: Any) -> None:
    assert differences(one, one) == SAME
    there, back = differences(one, other), differences(other, one)
    assert (there == SAME) is (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
    assert len(there) == len(back)
    assert there == SAME or all(line.startswith("value") for line in there)
