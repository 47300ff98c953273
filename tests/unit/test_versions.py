"""What changed from one version of a memory to the next is told path by path, and nothing else is."""

import json
from typing import Any

import pytest

from abathur_nb.runbook.explore import Excerpt, memory_history


def row(version: int, value: object, **more: Any) -> dict[str, Any]:
    text = value if isinstance(value, str) else json.dumps(value)
    about = {"version": version, "is_deleted": 0, "memory_type": "semantic", "value": text, "metadata": "{}"}
    return {**about, "updated_at": "2026-11-01 00:00:00.000", "updated_by": "alice", **more}


def history(*rows: dict[str, Any], limit: int = 50) -> Excerpt:
    return memory_history(rows, "user:a k", limit)


def changes(found: Excerpt) -> list[list[str]]:
    """Return what each version changed, line by line, the newest version first."""
    return [cells[2].splitlines() for cells in found.table.rows]


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
    assert changes(history(row(2, after), row(1, before)))[0] == found
    assert changes(history(row(2, after), row(1, after)))[0] == SAME


def test_more_differences_than_a_person_reads_are_counted() -> None:
    told = changes(history(row(2, {}), row(1, dict.fromkeys(map(str, range(1000)), 0))))[0]
    assert len(told) == 200 + 1
    assert told[-1] == "and 800 more"


def test_the_first_version_is_shown_whole_and_a_change_of_type_or_metadata_is_one() -> None:
    told = changes(history(row(2, {}, memory_type="episodic", metadata='{"by": 1}'), row(1, {})))
    assert told == [['memory_type: "semantic" → "episodic"', 'metadata["by"]: nothing → 1'], ["first: {}"]]


@pytest.mark.parametrize("text", ["{broken", "", "\\xff", "[" * 5000, "None"])
def test_what_is_no_json_is_text(text: str) -> None:
    told = changes(history(row(2, text), row(1, {"a": 1})))[0]
    assert told[1].startswith(f"value: nothing → {json.dumps(text)[:100]}")


def test_of_two_long_texts_what_begins_before_they_differ_is_shown() -> None:
    long = "x" * 5000
    html = history(row(2, {"a": f"{long}new"}), row(1, {"a": f"{long}old"}))._repr_mimebundle_()["text/html"]
    assert "new" in html
    assert "old" in html
    assert "x" * 1000 not in html
