"""Where the boxes of a diagram stand: in columns, each behind those that it refers to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from abathur_nb.figure import one_line

__all__ = ["HEAD", "LINE", "LONGEST", "MARKS", "PAD", "SIZE", "Box", "Link", "Place", "arrange", "levels", "width_of"]

# All in the picture's units, of which a notebook shows one as a pixel.
SIZE, _CHARACTER = 10.5, 0.602  # of the font; the width of a monospaced character, in sizes
LINE, HEAD, PAD = 15, 21, 6
_BELOW = 22  # between two boxes
MARKS = 3  # characters
LONGEST = 32  # characters of a name
_LONGEST_TYPE, _MOST_LINES = 12, 40


class Box(NamedTuple):
    """Hold a table: its name, a note beside it, and its lines of marks, name, type, and whether it is required."""

    name: str
    note: str
    lines: tuple[tuple[str, str, str, bool], ...]


class Link(NamedTuple):
    """Hold a reference from a column to that of a parent."""

    table: str
    column: str
    parent: str
    parent_column: str


@dataclass(slots=True)
class Place:
    """Hold where a box stands, or, without one, where the line of ``passing`` goes between the boxes of a column.

    ``written`` says by column what it refers to where no line can.
    """

    box: Box | None
    passing: str
    written: Mapping[str, str] = field(default_factory=dict)
    y: float = 1

    @property
    def name(self) -> str:
        """The table whose line begins or goes on here."""
        return self.box.name if self.box else self.passing

    @property
    def lines(self) -> list[tuple[str, str, str, bool]]:
        """The lines that are shown, shortened."""
        lines = [
            (marks, one_line(name + self.written.get(name, ""), LONGEST), one_line(kind, _LONGEST_TYPE), required)
            for marks, name, kind, required in (self.box.lines if self.box else ())
        ]
        left = len(lines) - _MOST_LINES
        return [*lines[:_MOST_LINES], ("", f"and {left} more", "", False)] if left > 0 else lines

    @property
    def height(self) -> float:
        """How high it is."""
        return HEAD + LINE * len(self.lines) + PAD if self.box else LINE

    @property
    def width(self) -> float:
        """How wide it is at least."""
        if self.box is None:
            return 0
        longest = max((len(name) + len(kind) for _, name, kind, _ in self.lines), default=0) + MARKS + 1
        return width_of(max(longest, len(one_line(self.box.name, LONGEST)) + len(self.box.note) + 1)) + 2 * PAD

    def y_of(self, column: str) -> float:
        """Return the height of the middle of a column's line, or of the line that passes through."""
        if self.box is None:
            return self.y + self.height / 2
        names = [name for _, name, _, _ in self.box.lines]
        return self.y + HEAD + LINE * ((min(names.index(column), _MOST_LINES) if column in names else -1) + 0.5)


def width_of(characters: int) -> float:
    """Return how wide so many characters are."""
    return characters * SIZE * _CHARACTER


def levels(names: Sequence[str], links: Iterable[Link]) -> dict[str, int]:
    """Return how far each table stands behind those that refer to none; a ring is opened where it is met."""
    parents: dict[str, list[str]] = {name: [] for name in names}
    for link in links:
        if link.table in parents and link.parent in parents and link.table != link.parent:
            parents[link.table].append(link.parent)
    found: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...]) -> int:
        if name not in found:
            further = [level(parent, (*above, name)) for parent in parents[name] if parent not in (*above, name)]
            found[name] = 1 + max(further, default=-1)
        return found[name]

    for name in names:
        level(name, ())
    return found


def arrange(boxes: Sequence[Box], links: Sequence[Link], drawn: Sequence[Link]) -> list[list[Place]]:
    """Return the places of each column from the top, in the order of their parents; what has none fills the gaps.

    A line is drawn for each of ``drawn``; of the other links it is written what they refer to.
    """
    level = levels([box.name for box in boxes], links)
    linked = {name for link in drawn for name in (link.table, link.parent)}
    columns: list[list[Place]] = [[] for _ in range(1 + max(level.values(), default=0))]
    spare: list[Place] = []
    for box in boxes:
        written = {i.column: f" → {i.parent}" for i in links if i.table == box.name and i not in drawn}
        (columns[level[box.name]] if box.name in linked else spare).append(Place(box, "", written))
    for parent in dict.fromkeys(link.parent for link in drawn):
        last = max(level[link.table] for link in drawn if link.parent == parent)
        for column in columns[level[parent] + 1 : last]:
            column.append(Place(None, parent))
    before: dict[str, int] = {}
    for column in columns:
        ranks = {place.name: _rank(place, drawn, before) for place in column}
        column.sort(key=lambda place: (ranks[place.name], place.box is not None))
        before = {place.name: n for n, place in enumerate(column)}
        _stack(column)
    for place in sorted(spare, key=lambda place: -place.height):
        shortest = min(columns, key=lambda column: column[-1].y + column[-1].height if column else 0)
        shortest.append(place)
        _stack(shortest)
    return columns


def _rank(place: Place, links: Sequence[Link], before: Mapping[str, int]) -> float:
    parents = {link.parent for link in links if link.table == place.name} if place.box else {place.passing}
    ranks = [before[name] for name in parents if name in before]
    return sum(ranks) / len(ranks) if ranks else 0


def _stack(column: Sequence[Place]) -> None:
    y = 1.0
    for place in column:
        place.y = y
        y += place.height + (_BELOW if place.box else 0)
