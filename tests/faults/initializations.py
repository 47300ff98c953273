"""Initializations killed at random moments, and racing ones; what an initialization left behind, and whether it may."""

import asyncio
import os
import re
import shutil
import sqlite3
import statistics
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from select import select
from typing import Literal

from damage import query

from abathur_nb.config.settings import resolve
from abathur_nb.runbook.validate import validate_database
from faults.experiments import INITIALIZERS, BrokenHarnessError, Experiment, Outcome, Place, copied, initialize
from faults.victim import Ending, Gate, Victim, run_undisturbed

_RANDOM_KILLS = 1000
RACERS, _ROUNDS = 16, 125  # 2000 processes
_ATTEMPTS = 50


def state(place: Place) -> Literal["absent", "complete", "half-made"]:
    """Return what is at the final path, after the recovery that a next opener would do. Works on a copy."""
    if not os.path.lexists(place.db):
        return "absent"
    copy = copied(place.db)
    try:
        # Rolls back a hot journal and takes what a log holds into account.
        query(copy, "SELECT count(*) FROM sqlite_master")
        report = asyncio.run(validate_database(resolve("development", db_path=copy)))
    except sqlite3.Error:
        return "half-made"
    finally:
        shutil.rmtree(copy.parent)
    return "complete" if report.ok else "half-made"


def after_a_second_run(place: Place) -> str:
    """Initialize once more, undisturbed; say what is wrong with what came of it, empty if nothing is."""
    before = state(place)
    if fault := _left(place, {name for name in _names(place.db.parent) if name.startswith(".abathur-init-")}):
        return fault
    second = run_undisturbed(initialize, place, "second")
    if second.fault or not second.ok:
        return f"the second run failed: {second.fault or second.report['summary']}"
    if second.created != (before == "absent"):
        return f"the second run {'made' if second.created else 'found'} a database where it was {before}"
    if (found := state(place)) != "complete":
        return f"after the second run the database is {found}"
    if fault := _left(place):
        return f"after the second run {fault}"
    if _names(place.top) != {place.db.parent.name} or place.db.stat().st_nlink > 1:
        return f"after the second run it has {place.db.stat().st_nlink} names, among {_names(place.top)}"
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


def _left(place: Place, allowed: Iterable[str] = ()) -> str:
    """Say what lies beside a database but what a reader leaves, an empty log and its index; empty if nothing does."""
    log = Path(f"{place.db}-wal")
    sides = {log.name, f"{place.db.name}-shm"} if place.db.exists() else set()
    strange = _names(place.db.parent) - {place.db.name, *sides, *allowed}
    size = log.stat().st_size if log.exists() else 0
    return f"left behind: {', '.join(sorted(strange))}, a log of {size} bytes" if strange or size else ""


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


# --- SIGKILL at random moments


def random_kills(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    lifetimes = []
    for n in range(20 if every == 1 else 5):
        victim = Victim(INITIALIZERS[name], Place(folder / f"calibrate-{name}-{n}"), "first")
        victim.at_gate()
        opened = victim.gate.open()
        victim.reap()
        lifetimes.append(time.monotonic() - opened)
    lifetime = statistics.median(lifetimes)
    return [partial(_kill_at_random, name, lifetime, f"{seed}-{n}") for n in range(0, _RANDOM_KILLS, every)]


def _kill_at_random(name: str, lifetime: float, seed: str, folder: Path) -> Outcome:
    """Kill one at a moment drawn from its usual lifetime; who ends before its moment is replaced by another."""
    random = Random(seed)  # noqa: S311 - to be repeatable
    for attempt in range(_ATTEMPTS):
        place, moment = Place(folder / str(attempt)), random.uniform(0, lifetime)
        victim = Victim(INITIALIZERS[name], place, "first")
        victim.at_gate()
        victim.gate.open()
        if not victim.ended_within(moment):
            victim.kill()
        ending = victim.reap()
        harm = harm_of(place, ending, sound=name == "sound") if ending.killed else ending.fault
        if harm or ending.killed:
            return Outcome(1, 1, f"SIGKILL after {moment * 1000:.1f} ms: {harm}" if harm else "")
    raise BrokenHarnessError(f"{_ATTEMPTS} of {_ATTEMPTS} ended before they could be killed")


# --- a race


def races(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    spans = []
    for n in range(3 if every == 1 else 1):
        racers, gate = _line_up(name, Place(folder / f"calibrate-{name}-{n}"))
        opened = gate.open()
        select(racers, [], [])
        spans.append(time.monotonic() - opened)
        for racer in racers:
            racer.reap()
    return [partial(_race, name, statistics.median(spans), f"{seed}-{n}") for n in range(0, _ROUNDS, every)]


def _line_up(name: str, place: Place) -> tuple[list[Victim], Gate]:
    gate = Gate()
    # Nice, so that the killer comes in time.
    racers = [Victim(INITIALIZERS[name], place, f"racer-{n}", gate=gate, nice=5) for n in range(RACERS)]
    for racer in racers:
        racer.at_gate()
    return racers, gate


def _race(name: str, span: float, seed: str, folder: Path) -> Outcome:
    """Release all at once, kill half of them at random moments; one may win, and none may see an error.

    ``span`` is how long it takes until the first is done when none is killed. With so many killed the others are
    quicker: a round that is over before its last kill is judged, and repeated in a shorter span.
    """
    random = Random(seed)  # noqa: S311 - to be repeatable
    for attempt in range(_ATTEMPTS):
        place = Place(folder / str(attempt))
        racers, gate = _line_up(name, place)
        moments = sorted(random.uniform(0, span * 0.9**attempt) for _ in range(RACERS // 2))
        alive, opened = set(racers), gate.open()
        for moment in moments:
            _await(opened + moment, alive)
            if alive:
                victim = random.choice(sorted(alive, key=racers.index))
                victim.kill()
                alive.remove(victim)
        endings = [racer.reap() for racer in racers]
        killed = sum(ending.killed for ending in endings)
        harm = _race_harm(name, place, [ending for ending in endings if not ending.killed])
        if harm or killed == len(moments):
            return Outcome(len(moments), killed, f"race {seed}: {harm}" if harm else "")
    raise BrokenHarnessError(f"{_ATTEMPTS} races were over before half of the processes could be killed")


def _await(moment: float, alive: set[Victim]) -> None:
    """Wait for a moment; take those that end before out of ``alive``."""
    while alive and (rest := moment - time.monotonic()) > 0:
        alive.difference_update(select(alive, [], [], rest)[0])


def _race_harm(name: str, place: Place, alive: Sequence[Ending]) -> str:
    if (found := state(place)) != "complete":
        return f"the database is {found}, though {len(alive)} were not killed"
    for ending in alive:
        if fault := ending.fault or false_success(place, ending, durable=name == "sound"):
            return fault
        if not ending.ok:
            return f"one was refused: {ending.report['summary']}"
    if name != "sound":
        return ""
    links = place.events.read_text().count("link ")
    creators = sum(ending.created for ending in alive)
    # One that was killed may have made it, and not lived to note it.
    if creators > 1 or links > 1:
        return f"{creators} say that they made it, {links} linked it"
    return after_a_second_run(place)
