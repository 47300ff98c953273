"""A quiet table: rows of plain text under their heads, as a notebook shows them and pandas takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from abathur_nb.wording import printable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Table"]

_OPEN = 20  # rows; those behind them are folded away
_MOST = 200  # rows of HTML, lest it grow to megabytes
_SHORT = 36  # characters that stand on one line
_LONG = 120  # characters that would be a tower of words in a column left narrow
_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere"
# What begins a cell that is to be seen first: the marks of report.py.
_LOUD = ("✗", "?", "!")


@dataclass(frozen=True, slots=True)
class Table:
    """Hold rows of text under ``heads``, the first ones open and the rest folded; ``nothing`` stands for no rows.

    All texts are made printable. A first cell that begins with a report's mark of failure is bold.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    nothing: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(tuple(printable(cell) for cell in row) for row in self.rows))

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, under the same heads."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.heads))

    def __str__(self) -> str:
        return (
            "\n".join(" · ".join(cell.replace("\n", "; ") for cell in row if cell) for row in self.rows) or self.nothing
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.to_html(), "text/plain": str(self)}

    def to_html(self) -> str:
        """Return the table as an HTML fragment: no script, no link, readable in a light and a dark theme."""
        if not self.rows:
            return f"<p>{escape(self.nothing)}</p>"
        first, rest = self.rows[:_OPEN], self.rows[_OPEN:_MOST]
        folded = f"<details><summary>{len(rest):,} more</summary>{self._html(rest)}</details>" if rest else ""
        left = len(self.rows) - _MOST
        return self._html(first) + folded + (f"<p>and {left:,} more: to_frame() has them all</p>" if left > 0 else "")

    def _html(self, rows: Sequence[tuple[str, ...]]) -> str:
        head = "".join(f"<th style='text-align:left'>{escape(head)}</th>" for head in self.heads)
        body = "".join(f"<tr>{''.join(_cell(text) for text in row)}</tr>" for row in rows)
        return f"<table style='table-layout:auto'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    # Short ones, such as times and run ids, must not be broken; long ones must.
    wide = f"min-width:{18 if len(text) > _LONG else 9}em;max-width:48em"
    width = wide if any(len(line) > _SHORT for line in text.split("\n")) else "white-space:pre"
    colour = ";color:#c4420f;font-weight:bold" if text.startswith(_LOUD) else ""
    return f"<td style='{_CELL};{width}{colour}'>{escape(text)}</td>"
