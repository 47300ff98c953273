"""Files of a database that are removed or replaced while a store has it open, and another process then writes to it.

What either acknowledges from then on must be kept. The control is a plain connection, which notices nothing and writes
its lost log over the file when it closes.
"""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from faults.contents import settings_of
from faults.outcomes import Experiment, Outcome

__all__ = ["splits"]

_EXPERIMENTS, _ROWS = 100, 60
_INSERT = (
    "INSERT INTO memory_entries (namespace, key, value, memory_type) "
    "VALUES (?, ?, json_object('v', printf('%.900c', 'x')), 'semantic')"
)
_OTHER = (
    "import sqlite3, sys; conn = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    f"for n in range({_ROWS}): conn.execute(sys.argv[2], ('other:', str(n)))"
)


# As somebody types them: in a process of their own, so that no lock of the store's is dropped.
_WAYS = (
    "rm {db}-wal {db}-shm",
    "rm {db}-shm",
    "cp {db} {db}.new && mv {db}.new {db}",
    "for x in '' -wal -shm; do cp {db}$x {db}.new && mv {db}.new {db}$x; done",
)


def splits(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each way in turn, after and before a random number of writes."""
    settings = settings_of(folder / f"template-{name}" / "abathur.db")
    asyncio.run(nb.initialize_database(settings)).raise_for_failures()
    chosen = range(seed % every, _EXPERIMENTS, every)
    return [partial(_split, name, settings.db_path, _WAYS[n % len(_WAYS)], f"{seed}-{n}") for n in chosen]


def _split(name: str, template: Path, way: str, seed: str, folder: Path) -> Outcome:
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    random = Random(seed)  # noqa: S311 - to be repeatable
    others: list[bool] = []

    def strike() -> None:
        subprocess.run(["sh", "-c", way.format(db=settings.db_path)], check=True)
        command = [sys.executable, "-I", "-S", "-c", _OTHER, str(settings.db_path), _INSERT]
        others.append(subprocess.run(command, check=False, capture_output=True).returncode == 0)

    kept = _STORES[name](settings, random.randint(1, 40), strike, random.randint(0, 120))
    wanted = {("other:", str(n)) for n in range(_ROWS)} | {("own:", str(n)) for n in kept}
    harm = _harm(settings, wanted)
    return Outcome(1, int(others == [True]), f"{way}, seed {seed}: {harm}" if harm else "")


def _harm(settings: Settings, wanted: set[tuple[str, str]]) -> str:
    try:
        with closing(sqlite3.connect(settings.db_path)) as conn:
            found = {*conn.execute("SELECT namespace, key FROM memory_entries")}
            if (answer := conn.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                return f"integrity_check says {answer[0][0]}"
    except sqlite3.Error as error:
        return str(error)
    return f"{len(wanted - found)} of {len(wanted)} acknowledged rows are gone" if wanted - found else ""


def _store(settings: Settings, before: int, strike: Callable[[], None], after: int) -> list[int]:
    """Return which writes a store acknowledges after the strike."""

    async def use() -> list[int]:
        kept = []
        async with nb.Database.open(settings) as db:
            for n in range(before + after):
                if n == before:
                    strike()
                try:
                    await db.memory.add_memory("own:", str(n), {"v": "x" * 900}, "semantic", None)
                except nb.RefusedError:
                    continue
                kept += [n] if n >= before else []
            if not after:
                strike()
        return kept

    return asyncio.run(use())


def _plain(settings: Settings, before: int, strike: Callable[[], None], after: int) -> list[int]:
    kept = []
    with closing(sqlite3.connect(settings.db_path, isolation_level=None)) as conn:
        for n in range(before):
            conn.execute(_INSERT, ("own:", str(n)))
        strike()
        for n in range(before, before + after):
            try:
                conn.execute(_INSERT, ("own:", str(n)))
            except sqlite3.Error:
                continue
            kept.append(n)
    return kept


_STORES = {"sound": _store, "naive": _plain}
