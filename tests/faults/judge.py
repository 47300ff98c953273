"""What an initialization left behind, and whether it may."""

import asyncio
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

from abathur_nb.config.settings import resolve
from abathur_nb.runbook.validate import validate_database
from faults.experiments import Place, initialize
from faults.victim import Ending, run_undisturbed


def state(place: Place) -> Literal["absent", "complete", "half-made"]:
    """Tell what stands at the final path, after the recovery that a next opener would do. Works on a copy."""
    if not os.path.lexists(place.db):
        return "absent"
    copy = place.root / "copy" / place.db.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir(mode=0o700)
    for suffix in ("", "-wal", "-journal"):
        if (side := Path(f"{place.db}{suffix}")).exists():
            shutil.copy(side, f"{copy}{suffix}")
    try:
        # Rolls back a hot journal and takes what a log holds into account.
        with closing(sqlite3.connect(copy)) as conn:
            conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        return "half-made"
    report = asyncio.run(validate_database(resolve("development", db_path=copy)))
    return "complete" if report.ok else "half-made"


def after_a_second_run(place: Place) -> str:
    """Initialize once more, undisturbed; say what is wrong with what came of it, empty if nothing is."""
    before = state(place)
    # Before a reader came, a finished database has no side files, and an unfinished one has them in its own directory.
    sides = set() if before == "absent" else _sides(place)
    files = {name for name in _names(place.db.parent) if not name.startswith(".abathur-init-")}
    if strange := files - {place.db.name, *sides}:
        return f"left behind: {', '.join(sorted(strange))}"
    if fault := _log(place):
        return f"left behind: {fault}"
    second = run_undisturbed(initialize, place, "second")
    if second.fault or not second.ok:
        return f"the second run failed: {second.fault or second.report['summary']}"
    if second.created != (before == "absent"):
        return f"the second run {'made' if second.created else 'found'} a database where it was {before}"
    if fault := _not_whole(place):
        return f"after the second run {fault}"
    return "" if _durable(place) else f"the second run's success is not durable: {_told(place)}"


def harm_of(place: Place, ending: Ending, *, sound: bool) -> str:
    """Say what a fault did that it must not; empty if nothing. A second run is asked of initialize_database only."""
    if (found := state(place)) == "half-made":
        return f"the database is {found}"
    if not ending.killed and (fault := ending.fault or false_success(place, ending, durable=sound)):
        return fault
    return after_a_second_run(place) if sound else ""


def false_success(place: Place, ending: Ending, *, durable: bool) -> str:
    """Say why a success is none; empty if there was no success, or a true one. Only on demand must it be durable."""
    if not ending.ok:
        return ""
    if (found := state(place)) != "complete":
        return f"a false success: the database is {found}"
    return "" if not durable or _durable(place) else f"a success that is not durable: {_told(place)}"


def _not_whole(place: Place) -> str:
    if (found := state(place)) != "complete":
        return f"the database is {found}"
    if strange := _names(place.db.parent) - {place.db.name, *_sides(place)}:
        return f"these are left: {', '.join(sorted(strange))}"
    if fault := _log(place):
        return fault
    if _names(place.top) != {place.db.parent.name}:
        return f"strangers beside the directory: {_names(place.top)}"
    links = place.db.stat().st_nlink
    return "" if links == 1 else f"the file has {links} names"


def _sides(place: Place) -> set[str]:
    """Return what a reader leaves beside a database."""
    return {f"{place.db.name}-wal", f"{place.db.name}-shm"}


def _log(place: Place) -> str:
    log = Path(f"{place.db}-wal")
    return f"a log of {log.stat().st_size} bytes" if log.exists() and log.stat().st_size else ""


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _told(place: Place) -> str:
    return place.events.read_text().replace(str(place.root), "").replace("\n", "; ")


def _durable(place: Place) -> bool:
    """Return whether file, name and directory were forced to the disk, each after it was made, by any of the runs."""
    text = place.events.read_text()
    draft = rf"{re.escape(str(place.db.parent))}/\.abathur-init-\w+/{re.escape(place.db.name)}"
    # A victim may have been killed before it noted a link or a directory that it had made: then all notes count.
    before_link, _, after_link = text.rpartition(f"link {place.db}\n")
    after_mkdir = text.rpartition(f"mkdir {place.db.parent}\n")[2]
    return (
        re.search(rf"^fsync {draft}$", before_link or text, re.MULTILINE) is not None
        and f"fsync {place.db.parent}\n" in after_link
        and f"fsync {place.top}\n" in after_mkdir
    )
