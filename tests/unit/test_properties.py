"""Rules that have a domain, tried on values drawn from it: names, prefixes, JSON, ledger lines, differences."""

import json
import sqlite3
from contextlib import closing
from typing import Any
from unicodedata import normalize

from archives import ledger_line
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from abathur_nb.errors import InvalidValueError
from abathur_nb.evidence.canonical import sealed, sha256
from abathur_nb.evidence.ledger import FIRST, parse
from abathur_nb.runbook.explore import memory_history
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
def test_no_byte_of_a_ledger_can_be_another_be_added_or_taken_away_unnoticed(
    place: int, put: bytes, taken: int
) -> None:
    changed = LEDGER[:place] + put + LEDGER[place + taken :]
    read = parse(changed)
    whole_lines_cut = LEDGER.startswith(changed) and changed.endswith(b"\n")  # which what began later shows
    assert bool(read.faults or read.torn) is not (changed == LEDGER or whole_lines_cut or not changed)


MEMBERS = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=9)
VALUE = st.dictionaries(TEXT, MEMBERS, max_size=4)


def _differences(before: Any, after: Any) -> list[str]:
    """Return what explore says that the second of two versions of a memory changed."""
    about = {"is_deleted": 0, "memory_type": "semantic", "metadata": "{}", "updated_at": "x", "updated_by": "alice"}
    rows = [{**about, "version": version, "value": json.dumps(value)} for version, value in ((2, after), (1, before))]
    return memory_history(rows, "user:a k", 50).table.rows[0][2].split("\n")


@given(VALUE, VALUE)
def test_differences_of_two_values_are_none_for_equal_ones_and_mirror_each_other(one: Any, other: Any) -> None:
    nothing = ["nothing, as far as it was read"]
    assert _differences(one, one) == nothing
    there, back = _differences(one, other), _differences(other, one)
    assert (there == nothing) is (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
    assert len(there) == len(back)
    assert there == nothing or all(line.startswith("value") for line in there)
