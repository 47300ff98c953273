"""The history of one memory: its versions, and what changed from each to the next, path by path."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from abathur_nb.evidence.difference import clipped
from abathur_nb.operate.excerpt import Excerpt, captioned, shortened
from abathur_nb.table import Table
from abathur_nb.values import MAX_DEPTH
from abathur_nb.wording import printable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Difference", "MemoryHistory", "as_json", "compare"]

_MOST = 200  # differences from one version to the next
_ALIGNED = 200  # members of an array; in a longer one each is held against the one at its place
_COMPARED = ("value", "metadata")


class Difference(NamedTuple):
    """Hold one change from a version to the next: where, and the JSON before and after; empty where there was none."""

    path: str
    change: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class MemoryHistory:
    """Hold the versions of one memory, newest first, and the ``changes`` that each brought; a notebook shows these."""

    namespace: str = ""
    key: str = ""
    versions: Excerpt = Excerpt()
    changes: Excerpt = Excerpt()

    @classmethod
    def of(cls, namespace: str, key: str, rows: Sequence[Mapping[str, Any]], total: int, limit: int) -> "MemoryHistory":
        """Return the history that these rows of the query ``memory_versions`` tell, of which the last may be too many.

        With it the oldest version that is shown is held against the one before.
        """
        shown = rows[:limit]
        states = _states(shown)
        columns = ("version", "state", *(name for name in (rows[0] if rows else ()) if name != "version"))
        versions = tuple(
            (row["version"], state, *(row[name] for name in columns[2:]))
            for row, state in zip(shown, states, strict=True)
        )
        changes = []
        for place, row in enumerate(shown):
            earlier = rows[place + 1] if place + 1 < len(rows) else None
            about = (row["version"], states[place], row["updated_at"], row["updated_by"])
            changes += [(*about, *difference) for difference in _changes(earlier, row)]
        caption = f"{namespace} {key}: {total:,} versions" + (f", the last {limit:,}" if total > limit else "")
        heads = ("version", "state", "updated_at", "updated_by", *Difference._fields)
        return cls(
            namespace,
            key,
            Excerpt(columns, versions, caption, "no version"),
            Excerpt(heads, tuple(changes), printable(caption), "no version"),
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return the versions as a pandas frame, values whole, newest first; ``changes.to_frame()`` has the changes."""
        return self.versions.to_frame()

    def __str__(self) -> str:
        return f"{self.changes.caption}\n{self._table()}".strip()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": captioned(self.changes.caption, self._table().to_html()), "text/plain": str(self)}

    def _table(self) -> Table:
        rows = []
        last = None
        for version, state, moment, who, path, change, *texts in self.changes.rows:
            # What the line above says of the version is not said again.
            about = ("", "") if version == last else (f"{version} {state}", f"{moment}\n{who or ''}".strip())
            # Of two long texts what begins a little before they differ.
            before, after = clipped(*texts) if all(texts) else map(shortened, texts)
            rows.append((*about, path, change, before, after))
            last = version
        heads = ("version", "updated (UTC), by", "path", "change", "before", "after")
        return Table(heads, tuple(rows), self.changes.nothing)


def _states(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return whether each of these versions, the newest first, is deleted, current or superseded."""
    live = [row["version"] for row in rows if not row["is_deleted"]][:1]
    return ["deleted" if row["is_deleted"] else "current" if row["version"] in live else "superseded" for row in rows]


def _changes(earlier: Mapping[str, Any] | None, later: Mapping[str, Any]) -> Iterator[Difference]:
    if earlier is None:
        yield Difference("value", "first", "", printable(str(later["value"])))
        return
    if earlier["memory_type"] != later["memory_type"]:
        yield Difference("memory_type", "changed", *(printable(str(row["memory_type"])) for row in (earlier, later)))
    before, after = ([as_json(row[name]) for name in _COMPARED] for row in (earlier, later))
    found = (
        difference for place, name in enumerate(_COMPARED) for difference in compare(before[place], after[place], name)
    )
    first = None
    for first in islice(found, _MOST):
        yield first
    if left := sum(1 for _ in found):
        yield Difference("…", f"and {left:,} more", "", "")
    if first is None:
        # Text is no JSON, and perhaps only its beginning was read.
        part = " as far as it was read" if any(isinstance(value, str) for value in after) else ""
        yield Difference("value", f"the same{part}", "", "")


def as_json(stored: object) -> Any:
    """Return JSON decoded; as text what can't be, or what is deeper than the store would write."""
    text = str(stored)
    try:
        value = json.loads(text)
        level = [value]
        for _ in range(MAX_DEPTH):
            level = [inner for item in level if isinstance(item, dict | list) for inner in _members(item)]
        return value if not level else text
    except (ValueError, TypeError, RecursionError):
        return text


def _members(item: dict[str, Any] | list[Any]) -> list[Any]:
    return [*item.values()] if isinstance(item, dict) else item


def compare(before: Any, after: Any, path: str) -> Iterator[Difference]:
    """Yield what differs between two JSON values, path by path: the members of objects and arrays each by itself."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            place = f"{path}.{name}" if name.isidentifier() else f"{path}[{_text(name)}]"
            if name not in after:
                yield Difference(printable(place), "removed", _text(before[name]), "")
            elif name not in before:
                yield Difference(printable(place), "added", "", _text(after[name]))
            else:
                yield from compare(before[name], after[name], place)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _compare_arrays(before, after, path)
    elif type(before) is not type(after) or before != after:  # in Python 1 == True == 1.0
        yield Difference(printable(path), "changed", _text(before), _text(after))


def _compare_arrays(before: list[Any], after: list[Any], path: str) -> Iterator[Difference]:
    """Yield the difference of two arrays; one member put in before others does not change these."""
    whole: list[tuple[str, int, int, int, int]] = [("replace", 0, len(before), 0, len(after))]
    if max(len(before), len(after)) <= _ALIGNED:
        one, other = ([_text(item) for item in items] for items in (before, after))
        whole = [*SequenceMatcher(None, one, other, autojunk=False).get_opcodes()]
    for kind, start, end, start_after, end_after in whole:
        if kind == "equal":
            continue
        both = min(end - start, end_after - start_after)
        for n in range(both):
            yield from compare(before[start + n], after[start_after + n], f"{path}[{start_after + n}]")
        for n in range(start + both, end):
            yield Difference(printable(f"{path}[{n}]"), "removed", _text(before[n]), "")
        for n in range(start_after + both, end_after):
            yield Difference(printable(f"{path}[{n}]"), "added", "", _text(after[n]))


def _text(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))
