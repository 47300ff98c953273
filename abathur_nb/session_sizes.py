"""How near the sessions are to the size at which the store refuses an append: warned of before it does."""

import aiosqlite

from abathur_nb.report import Check
from abathur_nb.rules import NAMED, named_row
from abathur_nb.sql import load_queries
from abathur_nb.values import MAX_BYTES

__all__ = ["LEVELS", "TOLD_SIZE", "TRIM", "sizes_check"]

LEVELS = (50, 80)  # percent at which to warn
TOLD_SIZE = f"{{:.1f}} % of {MAX_BYTES:,} bytes"
TRIM = (
    "see it in explore.ipynb; await db.sessions.trim_events(session_id, keep_last) removes its oldest events; of a"
    " state or metadata, keep the large values as memories (db.memory.add_memory)"
)


async def sizes_check(conn: aiosqlite.Connection) -> Check:
    """Return a check of the events, state and metadata of every session. Read-only."""
    low, high = (MAX_BYTES * level // 100 for level in LEVELS)
    rows = list(await conn.execute_fetchall(load_queries("inspect.sql")["large_sessions"].sql, {"bytes": low}))
    told = [f"{named_row(row[0], row[1])}: {row[2]}, {TOLD_SIZE.format(row[3] * 100 / MAX_BYTES)}" for row in rows]
    counts = f"{len(rows):,} over {LEVELS[0]} %, {sum(row[3] > high for row in rows):,} over {LEVELS[1]} %"
    return Check.that(
        "session_sizes",
        not rows,
        expected=f"events, state and metadata of at most {TOLD_SIZE.format(LEVELS[0])}, where an append is refused",
        observed=f"{counts}; the largest is {told[0]}" if rows else f"none is over {LEVELS[0]} %",
        remedy=TRIM,
        otherwise="warn",
        evidence=told[:NAMED],
    )
