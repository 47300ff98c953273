"""An excerpt: some rows of many, whole as a pandas frame, shortened as a table that a notebook shows."""

from collections.abc import Collection
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from abathur_nb.table import Table
from abathur_nb.wording import printable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Excerpt", "captioned", "shortened"]

_SHOWN = 160  # characters of a value in a table
_TIMES = {"archived_at", "created_at", "last_update_time", "terminated_at", "timestamp", "updated_at"}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Hold rows as they were read, under ``columns``; ``caption`` says of how many, and ``nothing`` why there are none.

    ``hidden`` names columns that only the frame has.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    caption: str = ""
    nothing: str = "could not be read: the report says why"
    hidden: Collection[str] = ()

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, values whole, times as UTC timestamps where all of them are times."""
        import pandas as pd

        # As they were read: one NULL among large numbers would have made all of them inexact.
        frame = pd.DataFrame(list(self.rows), columns=list(self.columns), dtype=object)
        whole = [
            name for name in frame if frame[name].notna().any() and all(isinstance(i, int | None) for i in frame[name])
        ]
        frame = frame.astype(dict.fromkeys(whole, "Int64")).infer_objects()
        for name in _TIMES & {*self.columns}:
            try:
                frame[name] = pd.to_datetime(frame[name], format="%Y-%m-%d %H:%M:%S.%f", utc=True)
            except (ValueError, TypeError):  # somebody wrote another thing there: it stays to be seen
                continue
        return frame

    def __str__(self) -> str:
        return f"{printable(self.caption)}\n{self._table()}".strip()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": captioned(self.caption, self._table().to_html()), "text/plain": str(self)}

    def _table(self) -> Table:
        shown = [(place, name) for place, name in enumerate(self.columns) if name not in self.hidden]
        rows = tuple(tuple(shortened(row[place]) for place, _ in shown) for row in self.rows)
        return Table(tuple(name for _, name in shown), rows, self.nothing)


def shortened(value: object) -> str:
    """Return what a table shows of a value: nothing for NULL, of a long text the beginning and its length."""
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}… ({len(text):,} characters)"


def captioned(caption: str, html: str) -> str:
    """Return HTML with a caption above it, if there is one."""
    return f"<p><b>{escape(printable(caption))}</b></p>{html}" if caption else html
