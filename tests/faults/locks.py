"""Looks at a database from the process of a transaction: no other process may get in, and no page come to harm.

The control looks by opening the files itself, as whoever reads, hashes or forces them to the disk does.
"""

import asyncio
import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from faults.contents import settings_of
from faults.outcomes import Experiment, Outcome

__all__ = ["looks_inside"]

_TRANSACTIONS = 60
_INSERT = (
    "INSERT INTO metrics (metric_name, metric_value, labels) VALUES (?, ?, json_object('x', printf('%.*c', ?, 'x')))"
)
_OTHER = f"""
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
conn.execute("BEGIN IMMEDIATE")
for number in range(300):
    conn.execute({_INSERT!r}, ("other", number, 500))
conn.execute("COMMIT")
"""


def looks_inside(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each looks while this process writes, and lets another process try to write."""
    del folder
    return [partial(_look_inside, name, f"{seed}-{n}") for n in range(seed % every, _TRANSACTIONS, every)]


def _look_inside(name: str, seed: str, folder: Path) -> Outcome:
    settings = settings_of(folder / "data" / "abathur.db")
    try:
        harm = asyncio.run(_write(settings, _LOOKS[name], Random(seed)))  # noqa: S311 - to be repeatable
    except nb.AbathurError as error:  # the other one, alone by all that it sees, has deleted the log
        harm = str(error)
    with closing(sqlite3.connect(settings.db_path)) as conn:
        try:
            ((found,),) = conn.execute("PRAGMA integrity_check(1)").fetchall()
            harm = harm or ("" if found == "ok" else found)
        except sqlite3.Error as error:
            harm = str(error)
    return Outcome(1, 1, f"{seed}: {harm}" if harm else "")


async def _write(settings: Settings, look: Callable[[Settings], Awaitable[object]], random: Random) -> str:
    (await nb.initialize_database(settings)).raise_for_failures()
    async with nb.Database.open(settings) as db, db.write() as conn:
        for number in range(random.randrange(1, 300)):
            await conn.execute(_INSERT, ("own", number, random.randrange(1000)))
        await look(settings)
        command = [sys.executable, "-I", "-S", "-c", _OTHER, str(settings.db_path)]
        other = await asyncio.to_thread(subprocess.run, command, stderr=subprocess.DEVNULL, check=False)
    return "" if other.returncode else "another process wrote inside the transaction"


async def _open_files(settings: Settings) -> None:
    for suffix in ("", "-wal", "-shm"):
        hashlib.sha256(Path(f"{settings.db_path}{suffix}").read_bytes())


_LOOKS: dict[str, Callable[[Settings], Awaitable[object]]] = {"sound": nb.troubleshoot, "naive": _open_files}
