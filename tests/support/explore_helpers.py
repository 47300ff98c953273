"""What test_explore and other tests share."""

import sqlite3
from contextlib import closing

import abathur_nb as nb
from abathur_nb.config.settings import Settings

# A tag, a direction that is turned round, a terminal's escape, an end of line.
HOSTILE = "<script>x</script>'\"&\u202ecod\x1b[2J\nnext"


async def fill(settings: Settings) -> None:
    """Make a session with a state and events, a memory of four versions, a deleted one, and one beside them."""
    async with nb.Database.open(settings) as db:
        await db.sessions.create_session("s1", "app", "alice")
        await db.sessions.append_event("s1", {"type": "message", "n": 1}, {"app:mode": "dark"})
        await db.sessions.append_event("s1", {"type": "message", "n": 2})
        await db.memory.add_memory("user:alice:likes", "tea", {"cups": 1, "kinds": ["green"]}, "semantic", "s1")
        await db.memory.update_memory("user:alice:likes", "tea", {"cups": 2, "kinds": ["green", "mint"]}, "s1")
        await db.memory.update_memory("user:alice:likes", "tea", {"kinds": ["mint"], "hot": True}, "s1")
        await db.memory.add_memory("user:bob", "b", {}, "semantic", "s1")
        await db.memory.delete_memory("user:bob", "b")
        await db.memory.add_memory("user:100%_x", "c", {}, "episodic", "s1")


def insert(settings: Settings, sql: str, *given: object) -> None:
    """Write what the store would not."""
    with closing(sqlite3.connect(settings.db_path, isolation_level=None)) as conn:
        conn.execute("PRAGMA ignore_check_constraints = ON")
        conn.execute(sql, given)
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
