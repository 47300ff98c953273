"""How a database has grown, day by day; and an excerpt: some rows of many, as a frame and as a table."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from html import escape
from typing import TYPE_CHECKING, Any

import aiosqlite

from abathur_nb.store.sql import load_queries
from abathur_nb.text import Table, counted, printable

if TYPE_CHECKING:
    import pandas as pd


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


if TYPE_CHECKING:
    import pandas as pd


_AT_ONCE = 50_000  # rows fetched


@dataclass(frozen=True, slots=True)
class Growth:
    """Hold how many rows came on each day, by table; ``charts.rows_over_time`` draws it.

    Counted are the rows that are there now: what was removed since is not in it. ``undated`` are those whose time is
    none.
    """

    days: Mapping[str, Mapping[date, int]]
    undated: int = 0

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a table and day on which rows came, and the ``total`` at its end."""
        import numpy as np
        import pandas as pd

        rows = []
        for table, found in self.days.items():
            total = 0
            for day in sorted(found):
                total += found[day]
                rows.append((table, day, found[day], total))
        frame = pd.DataFrame(rows, columns=["table", "day", "rows", "total"])
        # In seconds, so that a wrong clock's year 9999 is one of them.
        frame["day"] = np.array(list(frame["day"]), dtype="datetime64[s]")
        return frame

    def __str__(self) -> str:
        return str(self._excerpt())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return self._excerpt()._repr_mimebundle_()

    def _excerpt(self) -> Excerpt:
        rows = []
        for table, found in self.days.items():
            busiest = max(sorted(found), key=lambda day: found[day])
            rows.append((table, sum(found.values()), *map(str, (min(found), max(found), busiest)), found[busiest]))
        heads = ("table", "rows", "first day", "last day", "busiest day", "rows that day")
        caption = f"{counted(self.undated, 'row')} without a valid timestamp" if self.undated else ""
        return Excerpt(heads, tuple(rows), caption, "no row yet")


async def read_growth(conn: aiosqlite.Connection) -> Growth:
    """Count the rows of each table by their days. Read-only."""
    counts: Counter[tuple[str, str]] = Counter()
    async with conn.execute(load_queries("explore.sql")["days"].sql) as cursor:
        while rows := await cursor.fetchmany(_AT_ONCE):
            counts.update((row[0], row[1]) for row in rows)
    days: dict[str, dict[date, int]] = {}
    undated = 0
    for (table, text), count in counts.items():
        try:
            day = date.fromisoformat(text)
        except (ValueError, TypeError):
            undated += count
            continue
        found = days.setdefault(table, {})
        found[day] = found.get(day, 0) + count
    return Growth(days, undated)
