"""How a database has grown: the rows of each table by the day on which they came."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import aiosqlite

from abathur_nb.operate.excerpt import Excerpt
from abathur_nb.sql import load_queries
from abathur_nb.wording import counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Growth", "read_growth"]

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
