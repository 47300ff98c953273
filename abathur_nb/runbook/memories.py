"""What explore shows of memories: an excerpt of rows, the tree of namespaces, and the history of one memory."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from abathur_nb.evidence.difference import clipped
from abathur_nb.store.values import check_depth
from abathur_nb.text import Table, counted, printable

if TYPE_CHECKING:
    import pandas as pd


_SHOWN = 160  # characters of a value in a table
_TIMES = {"archived_at", "created_at", "last_update_time", "terminated_at", "timestamp", "updated_at"}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Hold rows as they were read, under ``columns``; ``caption`` says of how many, and ``nothing`` why there are none.

    A notebook shows ``table``, or else the rows without the columns that ``hidden`` names.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    caption: str = ""
    nothing: str = "could not be read: the report says why"
    hidden: Collection[str] = ()
    table: Table | None = None

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, values whole, times as UTC timestamps where all of them are times."""
        import pandas as pd

        # Integers stay exact: beside a NULL pandas would make floats of them.
        frame = pd.DataFrame(list(self.rows), columns=list(self.columns), dtype=object)
        whole = [
            name for name in frame if frame[name].notna().any() and all(isinstance(i, int | None) for i in frame[name])
        ]
        frame = frame.astype(dict.fromkeys(whole, "Int64")).infer_objects()
        for name in _TIMES & {*self.columns}:
            try:
                frame[name] = pd.to_datetime(frame[name], format="%Y-%m-%d %H:%M:%S.%f", utc=True)
            except (ValueError, TypeError):  # a value that is not a time stays as it is
                continue
        return frame

    def __str__(self) -> str:
        return f"{printable(self.caption)}\n{self._table()}".strip()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        caption = f"<p><b>{escape(printable(self.caption))}</b></p>" if self.caption else ""
        return {"text/html": caption + self._table().to_html(), "text/plain": str(self)}

    def _table(self) -> Table:
        places = [place for place, name in enumerate(self.columns) if name not in self.hidden]
        rows = tuple(tuple(shortened(row[place]) for place in places) for row in self.rows)
        return self.table or Table(tuple(self.columns[place] for place in places), rows, self.nothing)


def shortened(value: object) -> str:
    """Return what a table shows of a value: nothing for NULL, of a long text the beginning and its length."""
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}… ({len(text):,} characters)"


_DEEPEST = 8  # levels; what is below them is counted in the last
_SEGMENT = 36  # characters of a branch's name in the table
_COUNTS = ("memories", "versions", "superseded", "deleted", "bytes")


def namespace_tree(rows: Sequence[Mapping[str, Any]], limit: int, nothing: str) -> Excerpt:
    """Return the branches of the tree that these rows of the query ``namespaces`` make, the largest first.

    A notebook shows the first ``limit`` of them as a tree.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        segments = tuple(row["namespace"].split(":", _DEEPEST - 1))
        for path in (segments[: depth + 1] for depth in range(len(segments))):
            branch = found.setdefault(path, {**dict.fromkeys(("namespaces", *_COUNTS), 0), "newest": ""})
            branch["namespaces"] += 1
            for name in _COUNTS:
                branch[name] += row[name]
            branch["newest"] = max(branch["newest"], str(row["newest"]))
    # A branch is never larger than its parent, so that the first of this order are a tree, however many they are.
    paths = sorted(found, key=lambda path: (-found[path]["versions"], len(path), path))
    caption = counted(len(rows), "namespace")
    if len(paths) > limit:
        caption += f"; shown are the {limit:,} largest of {len(paths):,} branches"
    return Excerpt(
        ("branch", "depth", "namespaces", *_COUNTS, "newest"),
        tuple((":".join(path), len(path), *found[path].values()) for path in paths),
        caption if rows else "",
        nothing,
        table=Table(
            ("branch", "namespaces", *_COUNTS, "updated (UTC)"),
            tuple(_branch(path, found[path]) for path in sorted(paths[:limit])),
            nothing,
        ),
    )


def _branch(path: tuple[str, ...], branch: Mapping[str, Any]) -> tuple[str, ...]:
    name = printable(path[-1]).replace("\n", "\\n") or "(empty)"
    name = name if len(name) <= _SEGMENT else f"{name[: _SEGMENT - 1]}…"
    *numbers, newest = branch.values()
    return ("  " * (len(path) - 1) + name, *(f"{number:,}" for number in numbers), newest[:16])


_MOST_DIFFERENCES = 200  # from one version to the next
_COMPARED = ("value", "metadata")


def memory_history(
    namespace: str, key: str, rows: Sequence[Mapping[str, Any]], total: int, limit: int
) -> tuple[Excerpt, Excerpt]:
    """Return the versions in these rows of the query ``memory_versions``, newest first, and what each changed.

    A notebook shows the changes. With one row more than ``limit``, the oldest version that is shown is compared with
    the one before it.
    """
    shown = rows[:limit]
    live = next((row["version"] for row in shown if not row["is_deleted"]), None)
    states = ["deleted" if r["is_deleted"] else "current" if r["version"] == live else "superseded" for r in shown]
    columns = [name for name in (rows[0] if rows else ()) if name != "version"]
    versions, changes = [], []
    for row, earlier, state in zip_longest(shown, rows[1 : limit + 1], states):
        versions.append((row["version"], state, *(row[name] for name in columns)))
        about = (row["version"], state, row["updated_at"], row["updated_by"])
        changes += [(*about, *change) for change in _changes(earlier, row)]
    caption = f"{namespace} {key}: {counted(total, 'version')}" + (f", the last {limit:,}" if total > limit else "")
    caption, table = caption if rows else "", _changes_table(changes)
    heads = ("version", "state", "updated_at", "updated_by", "path", "change", "before", "after")
    return (
        Excerpt(("version", "state", *columns), tuple(versions), caption, "no version", table=table),
        Excerpt(heads, tuple(changes), caption, "no version", table=table),
    )


def _changes_table(changes: Iterable[tuple[Any, ...]]) -> Table:
    rows, last = [], None
    for version, state, moment, who, path, change, *texts in changes:
        # A version is described in its first line only.
        about = ("", "") if version == last else (f"{version} {state}", f"{moment}\n{who or ''}".strip())
        before, after = clipped(*texts) if all(texts) else map(shortened, texts)
        rows.append((*about, path, change, before, after))
        last = version
    return Table(("version", "updated (UTC), by", "path", "change", "before", "after"), tuple(rows), "no version")


def _changes(earlier: Mapping[str, Any] | None, later: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield each change from a version to the next: its path, its kind, and the JSON before and after."""
    if earlier is None:
        yield "value", "first", "", printable(str(later["value"]))
        return
    before, after = (dict(_members_of(row)) for row in (earlier, later))
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    for path in changed[:_MOST_DIFFERENCES]:
        change = "added" if path not in before else "removed" if path not in after else "changed"
        yield path, change, before.get(path, ""), after.get(path, "")
    if left := changed[_MOST_DIFFERENCES:]:
        yield "…", f"and {len(left):,} more", "", ""
    if not changed:
        # Text is not JSON, and perhaps only its beginning was read.
        is_text = any(isinstance(as_json(later[name]), str) for name in _COMPARED)
        yield "value", f"the same{' as far as it was read' if is_text else ''}", "", ""


def _members_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "memory_type", printable(str(row["memory_type"]))
    for name in _COMPARED:
        yield from (member for member in _members(as_json(row[name]), name) if member != (name, "{}"))


def _members(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the innermost members of a JSON value, each with its path, as JSON text."""
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from _members(member, f"{path}.{name}" if name.isidentifier() else f"{path}[{_text(name)}]")
    elif isinstance(value, list) and value:
        for place, member in enumerate(value):
            yield from _members(member, f"{path}[{place}]")
    else:
        yield printable(path), _text(value)


def as_json(stored: object) -> Any:
    """Return JSON decoded; as text what is not JSON, or deeper than the store would write."""
    text = str(stored)
    try:
        value = json.loads(text)
        check_depth("JSON", value)
    except (ValueError, RecursionError):
        return text
    return value


def _text(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))
