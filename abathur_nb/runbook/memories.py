"""The memories for explore: the tree of their namespaces, and the history of one, version by version."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from abathur_nb.evidence.difference import clipped
from abathur_nb.measure.growth import Excerpt, captioned, shortened
from abathur_nb.store.values import MAX_DEPTH
from abathur_nb.text import Table, printable

if TYPE_CHECKING:
    import pandas as pd


_DEEPEST = 8  # levels; what is below them is counted in the last
_MOST_BRANCHES = 10_000  # branches, the largest ones
_OPEN, _OPEN_DEPTH, _OPEN_ROWS = 40, 2, 25  # of more rows in all, deep branches are folded, and those of many
_NAME = 36  # characters of the column of names
_MOMENT = 16  # characters of a time: to the minute
_HEADS = ("memories", "versions", "superseded", "deleted", "bytes")


@dataclass(slots=True)
class Branch:
    """Count what the namespaces that begin with ``path`` hold; ``namespaces`` says how many they are."""

    path: tuple[str, ...]
    namespaces: int = 0
    memories: int = 0
    versions: int = 0
    superseded: int = 0
    deleted: int = 0
    bytes: int = 0
    newest: str = ""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one namespace."""
        self.namespaces += 1
        for name in _HEADS:
            setattr(self, name, getattr(self, name) + row[name])
        self.newest = max(self.newest, str(row["newest"]))


def branches(rows: Iterable[Mapping[str, Any]]) -> tuple[Branch, ...]:
    """Return the branches of the tree that these namespaces make, the largest first and each behind its parent."""
    found: dict[tuple[str, ...], Branch] = {}
    for row in rows:
        path: tuple[str, ...] = ()
        for segment in row["namespace"].split(":", _DEEPEST - 1):
            path = (*path, segment)
            found.setdefault(path, Branch(path)).add(row)
    # A branch is never larger than its parent: the first so many are a tree, however many they are.
    return tuple(sorted(found.values(), key=lambda branch: (-branch.versions, len(branch.path), branch.path)))


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Hold the largest branches of the tree; a notebook shows the first ``limit`` of them, indented and folded.

    ``total`` says how many namespaces there are, ``left_out`` how many branches are not held.
    """

    found: tuple[Branch, ...] = ()
    limit: int = 0
    total: int = 0
    left_out: int = 0
    caption: str = ""
    nothing: str = "could not be read: the report says why"
    children: Mapping[tuple[str, ...], Sequence[Branch]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], limit: int, nothing: str) -> "Namespaces":
        """Return the tree of these rows of the query ``namespaces``."""
        rows = list(rows)
        every = branches(rows)
        children: dict[tuple[str, ...], list[Branch]] = {}
        for branch in sorted(every[:limit], key=lambda branch: branch.path):
            children.setdefault(branch.path[:-1], []).append(branch)
        caption = f"{len(rows):,} namespaces"
        if len(every) > limit:
            caption += f"; shown are the {limit:,} largest of {len(every):,} branches"
        return cls(
            every[:_MOST_BRANCHES], limit, len(rows), max(0, len(every) - _MOST_BRANCHES), caption, nothing, children
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a branch, the largest first; ``depth`` is the number of its segments."""
        import pandas as pd

        names = ("namespaces", *_HEADS, "newest")
        rows = [(":".join(b.path), len(b.path), *(getattr(b, name) for name in names)) for b in self.found]
        return pd.DataFrame(rows, columns=["branch", "depth", *names])

    def __str__(self) -> str:
        return "\n".join([self.caption, *self._lines(())]) if self.found else self.nothing

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.to_html(), "text/plain": str(self)}

    def to_html(self) -> str:
        """Return the tree as an HTML fragment: no script, no link; deep and large branches are folded."""
        if not self.found:
            return f"<p>{escape(self.nothing)}</p>"
        head = _monospaced(_row("branch: namespaces in it", 0, _HEADS, "updated (UTC)"))
        return captioned(self.caption, f"<div style='padding-left:1em'><b>{head}</b></div>{self._html(())}")

    def _html(self, path: tuple[str, ...]) -> str:
        parts = []
        for branch in self.children.get(path, ()):
            line = _monospaced(_told(branch))
            below = self.children.get(branch.path, ())
            if not below:
                parts.append(f"<div style='padding-left:1em'>{line}</div>")
                continue
            few = len(branch.path) < _OPEN_DEPTH and len(below) <= _OPEN_ROWS
            opened = " open" if few or min(self.limit, len(self.found)) <= _OPEN else ""
            parts.append(f"<details{opened}><summary>{line}</summary>{self._html(branch.path)}</details>")
        return "".join(parts)

    def _lines(self, path: tuple[str, ...]) -> Iterator[str]:
        for branch in self.children.get(path, ()):
            yield _told(branch)
            yield from self._lines(branch.path)


def _told(branch: Branch) -> str:
    name = printable(branch.path[-1]).replace("\n", "\\n") or "(empty)"
    if branch.namespaces > 1:
        name += f": {branch.namespaces:,}"
    return _row(name, len(branch.path) - 1, [f"{getattr(branch, head):,}" for head in _HEADS], branch.newest[:_MOMENT])


def _row(name: str, depth: int, numbers: Iterable[str], newest: str) -> str:
    room = _NAME - 2 * depth
    name = name if len(name) <= room else f"{name[: room - 1]}…"
    columns = "".join(f"{number:>{12 if n > 3 else 11}}" for n, number in enumerate(numbers))
    return f"{'  ' * depth}{name:<{room}}{columns}  {printable(newest)}".replace("\n", " ")


def _monospaced(text: str) -> str:
    return f"<code style='white-space:pre;background:none'>{escape(text)}</code>"


if TYPE_CHECKING:
    import pandas as pd


_MOST_DIFFERENCES = 200  # differences from one version to the next
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
    for first in islice(found, _MOST_DIFFERENCES):
        yield first
    if left := sum(1 for _ in found):
        yield Difference("…", f"and {left:,} more", "", "")
    if first is None:
        # Text is not JSON, and perhaps only its beginning was read.
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
