"""Restores beside the log that a killed writer left, with readers that have the database open: each is exact.

The control copies the backup over the live path, as the runbook's section 7 would have it.
"""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random

from damage import MEMORY, held

import abathur_nb as nb
from abathur_nb.backups.copying import Content
from abathur_nb.config.settings import Settings
from faults.contents import content_of, first_backup, newest_backup, settings_of
from faults.operations import prepare
from faults.outcomes import Experiment, Outcome

__all__ = ["crowded_restores"]

_RESTORES = 200
_READERS = (("SELECT count(*) FROM memory_entries",), ("BEGIN", "SELECT count(*) FROM memory_entries"))


def crowded_restores(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    """Return the experiments: each restores a backup where a log is left and up to three readers look on."""
    template = prepare(folder / f"template-{name}" / "abathur.db").db_path
    return [partial(_restore_at, name, template, f"{seed}-{n}") for n in range(seed % every, _RESTORES, every)]


def _restore_at(name: str, template: Path, seed: str, folder: Path) -> Outcome:
    random = Random(seed)  # noqa: S311 - to be repeatable
    settings = settings_of(folder / "data" / "abathur.db")
    shutil.copytree(template.parent, settings.db_path.parent)
    wanted = first_backup(settings).content
    _leave_log(settings.db_path, random.randrange(1, 400))
    stale = Path(f"{settings.db_path}-wal").stat().st_size > 0 and content_of(settings.db_path) != wanted
    with ExitStack() as readers:
        for _ in range(random.randrange(1, 4)):
            readers.enter_context(held(settings.db_path, *random.choice(_READERS)))
        fault = _RESTORES_BY[name](settings)
        during = content_of(settings.db_path)
    harm = fault or _other(wanted, during) or _other(wanted, content_of(settings.db_path))
    return Outcome(1, int(stale), f"restore {seed}: {harm}" if harm else "")


def _leave_log(db: Path, rows: int) -> None:
    """Write rows in a process that is killed before it puts them into the main file."""
    pid = os.fork()
    if pid == 0:
        try:
            conn = sqlite3.connect(db, isolation_level=None)
            conn.execute("PRAGMA wal_autocheckpoint = 0")
            for number in range(rows):
                conn.execute(MEMORY.replace("'k'", f"'left-{number}'"))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(70)
    os.waitpid(pid, 0)


def _restore(settings: Settings) -> str:
    report = asyncio.run(nb.restore_database(settings, apply=True))
    return "" if report.ok else f"refused: {report.summary}"


def _cp(settings: Settings) -> str:
    subprocess.run(["cp", newest_backup(settings), settings.db_path], check=True)
    return ""


def _other(wanted: Content, found: Content | None) -> str:
    return "" if found == wanted else "what is there is not what was backed up"


_RESTORES_BY = {"sound": _restore, "naive": _cp}
