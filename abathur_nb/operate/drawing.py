"""Draw boxes of lines, and the links between them, as SVG."""

from collections.abc import Iterator, Sequence
from html import escape

from abathur_nb.figure import BLUE, GREEN, ORANGE, PURPLE, RED, one_line
from abathur_nb.operate.arrangement import (
    HEAD,
    LINE,
    LONGEST,
    MARKS,
    PAD,
    SIZE,
    Box,
    Link,
    Place,
    arrange,
    levels,
    width_of,
)

__all__ = ["draw"]

_LANE, _BESIDE = 9, 13  # between two lines up and down, and beside them
_FORK = 6
_SMALL = 9  # the size of marks, types and notes
_MOST = 40  # boxes
_FONT = "DejaVu Sans Mono, Menlo, Consolas, monospace"
_TEXT, _DIM, _RULE, _GROUND, _PAPER = "#1c2126", "#5c6670", "#aab3bb", "#eef1f4", "#ffffff"
_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE)
_LEGEND = "P primary key, F foreign key, U unique; italic: may be NULL. A line forks at the rows that refer to one."


def draw(boxes: Sequence[Box], links: Sequence[Link], title: str) -> str:
    """Return the boxes and their links as SVG, with ``title`` in words. No script, no style sheet, no address.

    Each box stands behind its parents; a line that goes further passes between the boxes. What refers to one that
    stands behind it, in a ring, is written. Of more than 40 boxes the first are drawn.
    """
    left = len(boxes) - _MOST
    boxes = boxes[:_MOST]
    level = levels([box.name for box in boxes], links)
    known = [link for link in links if link.table in level and link.parent in level]
    drawn = [link for link in known if link.table == link.parent or level[link.table] > level[link.parent]]
    columns = arrange(boxes, links, drawn)
    channels = [_Channel(*pair, drawn) for pair in zip(columns, [*columns[1:], []], strict=True)]
    x, begins = 1.0, []
    for channel in channels:
        begins.append(x)
        x += channel.column_width + channel.width
    legend = _LEGEND + (f" {left} more tables are not drawn." if left > 0 else "")
    width = round(max(x, width_of(len(legend)) * _SMALL / SIZE) + 1)
    height = round(max((p.y + p.height for column in columns for p in column), default=0) + 2 * LINE)
    colour = {name: _COLOURS[n % len(_COLOURS)] for n, name in enumerate(dict.fromkeys(i.parent for i in drawn))}
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{_FONT}">',
        f"<title>{escape(title, quote=False)}</title>",
        f'<rect x="0" y="0" width="{width}" height="{height}" fill="{_PAPER}"/>',
    ]
    for n, channel in enumerate(channels):
        following = begins[n + 1] if n + 1 < len(begins) else x
        for name in channel.lanes:
            path = "".join(channel.path(name, begins[n], following))
            parts.append(f'<path d="{path}" fill="none" stroke="{colour[name]}" stroke-width="1.3"/>')
        for place in columns[n]:
            parts += _box(place, begins[n], channel.column_width)
    parts.append(_words(1, height - PAD, legend, fill=_DIM, size=_SMALL))
    return "".join([*parts, "</svg>"])


class _Channel:
    """The room behind a column of boxes, in which the lines of parents go up and down."""

    def __init__(self, column: Sequence[Place], following: Sequence[Place], links: Sequence[Link]) -> None:
        self._places = {place.name: place for place in column}
        self._following = following
        self._links = links
        self.column_width = max((place.width for place in column), default=0)
        self._following_width = max((place.width for place in following), default=0)
        # What comes from below turns up first, so that it does not cross what comes from above and turns down.
        self.lanes = [name for name in reversed(self._places) if list(self._ends(name))]
        self.width = 2 * _BESIDE + _LANE * (len(self.lanes) - 1) if self.lanes else 0

    def _ends(self, name: str) -> Iterator[tuple[float, int]]:
        """Yield where the line of a parent ends: the height, and -1 for back, 1 for a box, 0 for further on."""
        for link in (link for link in self._links if link.parent == name):
            if link.table == name and self._places[name].box:
                yield self._places[name].y_of(link.column), -1
            for place in self._following:
                if place.box and place.name == link.table != name:
                    yield place.y_of(link.column), 1
        for place in self._following:
            if not place.box and place.name == name:
                yield place.y_of(""), 0

    def path(self, name: str, begin: float, following: float) -> Iterator[str]:
        """Yield the pieces of the line of a parent, from its column at ``begin`` to the one at ``following``."""
        place = self._places[name]
        right = begin + self.column_width
        x = right + _BESIDE + _LANE * self.lanes.index(name)
        y = place.y_of(next(link.parent_column for link in self._links if link.parent == name))
        ends = list(self._ends(name))
        heights = [y, *(end for end, _ in ends)]
        yield f"M{right:.1f} {y:.1f}H{x:.1f}M{x:.1f} {min(heights):.1f}V{max(heights):.1f}"
        if place.box:
            yield f"M{right + 4:.1f} {y - 4:.1f}V{y + 4:.1f}"
        for end, way in ends:
            stop = right if way < 0 else following if way else following + self._following_width
            yield f"M{x:.1f} {end:.1f}H{stop:.1f}"
            for aside in (-4, 4) if way else ():
                yield f"M{stop - way * _FORK:.1f} {end:.1f}L{stop:.1f} {end + aside:.1f}"


def _box(place: Place, x: float, width: float) -> Iterator[str]:
    if place.box is None:
        return
    y = place.y
    outline = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" rx="3" stroke="{_RULE}"'
    yield f'<rect {outline} height="{place.height:.1f}" fill="{_PAPER}"/>'
    yield f'<rect {outline} height="{HEAD}" fill="{_GROUND}"/>'
    yield _words(x + PAD, y + 14, one_line(place.name, LONGEST), weight="bold")
    yield _words(x + width - PAD, y + 14, place.box.note, fill=_DIM, size=_SMALL, anchor="end")
    for n, (marks, name, kind, required) in enumerate(place.lines):
        base = y + HEAD + LINE * (n + 0.5) + 4
        weight = "bold" if "P" in marks else "normal"
        yield _words(x + PAD, base, marks, fill=_DIM, size=_SMALL)
        yield _words(x + PAD + width_of(MARKS), base, name, weight=weight, style="normal" if required else "italic")
        yield _words(x + width - PAD, base, kind, fill=_DIM, size=_SMALL, anchor="end")


def _words(
    x: float,
    y: float,
    text: str,
    *,
    fill: str = _TEXT,
    size: float = SIZE,
    weight: str = "normal",
    style: str = "normal",
    anchor: str = "start",
) -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" text-anchor="{anchor}"'
    shape = f'font-weight="{weight}" font-style="{style}"'
    return f"<text {attributes} {shape}>{escape(text, quote=False)}</text>" if text else ""
