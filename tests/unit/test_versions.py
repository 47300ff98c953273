"""What changed from one version of a memory to the next is told path by path, and nothing else is."""

import json
from typing import Any

import pytest

from abathur_nb.runbook.memories import Excerpt, memory_history


def row(version: int, value: object, **more: Any) -> dict[str, Any]:
    """Return a row of the query ``memory_versions``."""
    text = value if isinstance(value, str) else json.dumps(value)
    about = {"version": version, "is_deleted": 0, "memory_type": "semantic", "value": text, "metadata": "{}"}
    return {**about, "updated_at": "2026-11-01 00:00:00.000", "updated_by": "alice", **more}


def history(*rows: dict[str, Any], limit: int = 50) -> tuple[Excerpt, Excerpt]:
    """Return the history of these versions, the newest first."""
    return memory_history("user:a", "k", rows, len(rows), limit)


def changes(before: Any, after: Any) -> list[tuple[str, ...]]:
    told = history(row(2, after), row(1, before))[1].rows
    found = [tuple(difference) for version, _, _, _, *difference in told if version == 2]
    return [] if found == [("value", "the same", "", "")] else found


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({}, {"a": 1}, [("value.a", "added", "", "1")]),
        ({"a": 1}, {}, [("value.a", "removed", "1", "")]),
        ({"a": 1}, {"a": 2}, [("value.a", "changed", "1", "2")]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, [("value.a.b.c", "changed", "1", "2")]),
        ({"a b": 1}, {"a b": 2}, [('value["a b"]', "changed", "1", "2")]),
        ({"": 1}, {}, [('value[""]', "removed", "1", "")]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": 1}, [1], [("value.a", "removed", "1", ""), ("value[0]", "added", "", "1")]),
        ([1, 2, 3], [1, 2], [("value[2]", "removed", "3", "")]),
        ([1, 2, 3], [1, 9, 3], [("value[1]", "changed", "2", "9")]),
        ([{"n": 1}, 2], [{"n": 3}, 2], [("value[0].n", "changed", "1", "3")]),
        ({"a": 1}, {"a": True}, [("value.a", "changed", "1", "true")]),
        ({"a": 1}, {"a": 1.0}, [("value.a", "changed", "1", "1.0")]),
        ({"a": None}, {}, [("value.a", "removed", "null", "")]),
        ({"a": "é"}, {"a": "\u202e"}, [("value.a", "changed", '"é"', '"\\u202e"')]),
        ({"\u202ea": 1}, {}, [('value["\\u202ea"]', "removed", "1", "")]),
    ],
)
def test_each_difference_is_named_with_its_path(before: Any, after: Any, found: list[tuple[str, ...]]) -> None:
    assert changes(before, after) == found
    assert changes(before, before) == changes(after, after) == []


def test_each_version_says_whether_it_holds() -> None:
    rows = (row(4, {}, is_deleted=1), row(3, {}), row(2, {}), row(1, {}, is_deleted=1))
    frame = history(*rows)[0].to_frame()
    assert frame[["version", "state"]].to_numpy().tolist() == [
        [4, "deleted"],
        [3, "current"],
        [2, "superseded"],
        [1, "deleted"],
    ]


def test_a_change_of_type_or_metadata_is_one() -> None:
    told = history(row(2, {}, memory_type="episodic", metadata='{"by": 1}'), row(1, {}))[1].rows
    assert [difference[:2] for _, _, _, _, *difference in told][:2] == [
        ["memory_type", "changed"],
        ["metadata.by", "added"],
    ]


def test_the_oldest_version_that_is_shown_is_held_against_the_one_before() -> None:
    found = history(row(3, {"a": 3}), row(2, {"a": 2}), row(1, {"a": 1}), limit=2)
    assert [(r[0], r[5], r[6]) for r in found[1].rows] == [(3, "changed", "2"), (2, "changed", "1")]
    assert len(found[0].rows) == 2


@pytest.mark.parametrize("text", ["{broken", "", "\\xff", "[" * 5000, "None"])
def test_what_is_no_json_is_text(text: str) -> None:
    told = history(row(2, text), row(1, {"a": 1}))[1].rows
    assert told[1][4:6] == ("value", "added")
    assert told[1][7] == json.dumps(text)
