"""The namespaces of the memories as a tree, with what each branch holds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from abathur_nb.operate.excerpt import captioned
from abathur_nb.wording import printable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Branch", "Namespaces", "branches"]

_DEEPEST = 8  # levels; what is below them is counted in the last
_MOST = 10_000  # branches, the largest ones
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
        return cls(every[:_MOST], limit, len(rows), max(0, len(every) - _MOST), caption, nothing, children)

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
