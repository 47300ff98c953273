"""What the sweeps try: initialize_database, and beside it a naive initialization that must not survive them."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiosqlite

from abathur_nb.config.settings import resolve
from abathur_nb.runbook.init import initialize_database
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.store.sql import DDL_FILES, SEED_FILE, statements

__all__ = ["INITIALIZERS", "Initializer"]

Initializer = Callable[[Path], Coroutine[Any, Any, dict[str, Any]]]

_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "foreign_keys = ON",
    "busy_timeout = 5000",
    "wal_autocheckpoint = 1000",
    "cache_size = -64000",
    "temp_store = MEMORY",
    "mmap_size = 268435456",
    f"application_id = {APPLICATION_ID}",
    f"user_version = {SCHEMA_VERSION}",
)


async def sound(db: Path) -> dict[str, Any]:
    """Initialize through the public function."""
    return (await initialize_database(resolve("development", db_path=db))).to_dict()


async def naive(db: Path) -> dict[str, Any]:
    """Initialize at the final path, statement by statement, as the seed document does: the control of every sweep."""
    db.parent.mkdir(mode=0o700, exist_ok=True)
    async with aiosqlite.connect(db, isolation_level=None) as conn:
        for pragma in _PRAGMAS:
            await conn.execute_fetchall(f"PRAGMA {pragma}")
        for filename in (*DDL_FILES, SEED_FILE):
            for statement in statements(filename):
                await conn.execute_fetchall(statement)
    return {"ok": True, "checks": []}


INITIALIZERS: dict[str, Initializer] = {"sound": sound, "naive": naive}
