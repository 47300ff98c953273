"""The sweeps: each does the same to what must survive it and, as its control, to what will not.

Some strike initialize_database and the naive initialization, some what operates a database; some try that on spoilt,
busy and sound ones, or look at them beside writers; one strikes the runner and plain papermill.
"""

import asyncio
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from select import select

from tqdm import tqdm

from faults.beside import copy_beside, look_inside, restore_beside, split
from faults.choices import choose, drills, refusals
from faults.experiments import (
    INITIALIZERS,
    BrokenHarnessError,
    Experiment,
    Outcome,
    Place,
    Planner,
    Result,
    drawn,
    initialize,
)
from faults.judge import after_a_second_run, false_success, harm_of, state
from faults.logs import look_at_damage, look_beside
from faults.operations import OPERATIONS, prepare
from faults.runs import kills_of_runs
from faults.spoiling import damage_one, two_backups
from faults.strikes import strikes
from faults.verdicts import look_at, schema_mutations
from faults.victim import Ending, Gate, Victim

_KILL = "signal=KILL"
_RANDOM_KILLS = 1000
_ROUNDS, _RACERS = 125, 16  # 2000 processes
_WORKERS = 2
_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Sweep:
    """Name a sweep and make its experiments; ``racers`` processes take part in each, where that is to be told.

    Over the share ``blunt`` of the control must come to harm.
    """

    title: str
    plan: Planner
    racers: int = 0
    blunt: float = 0.5

    def run(self, folder: Path, every: int, seed: int) -> Result:
        """Run every n-th experiment, first on what must survive it, then on the control."""
        result, started = Result(self.title, blunt=self.blunt), time.monotonic()
        _warm_up(Place(folder / "warm-up"))
        for outcome in self._outcomes("sound", folder, every, seed):
            result.experiments += 1
            result.injected += outcome.injected
            result.struck += outcome.struck
            result.survived += 0 if outcome.harm else outcome.struck
            result.harms += [outcome.harm] if outcome.harm else []
        for outcome in self._outcomes("naive", folder, every, seed):
            result.control += 1
            result.control_damaged += bool(outcome.harm)
        if self.racers:
            result.title = f"{result.experiments * self.racers:,} {self.title}"
        result.seconds = time.monotonic() - started
        return result

    def _outcomes(self, name: str, folder: Path, every: int, seed: int) -> Iterable[Outcome]:
        experiments = self.plan(name, every, seed, folder)
        # Forked, so that each victim starts with everything imported; no thread is alive at that time.
        with ProcessPoolExecutor(_WORKERS, mp_context=get_context("fork")) as pool:
            places = (folder / f"{name}-{n}" for n in range(len(experiments)))
            done = pool.map(_conduct, experiments, places)
            yield from tqdm(done, f"{self.title}, {name}", len(experiments), file=sys.stderr, leave=False)


def _warm_up(place: Place) -> None:
    """Fill the caches of this process, which every victim inherits: what it does once takes longer than the rest."""
    asyncio.run(initialize(place.db))
    if (found := state(place)) != "complete":
        raise BrokenHarnessError(f"undisturbed, initialize_database leaves a database that is {found}")


def _conduct(experiment: Experiment, folder: Path) -> Outcome:
    try:
        return experiment(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- SIGKILL at random moments


def _random_kills(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    lifetimes = []
    for n in range(20):
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


def _races(name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    spans = []
    for n in range(3):
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
    racers = [Victim(INITIALIZERS[name], place, f"racer-{n}", gate=gate, nice=5) for n in range(_RACERS)]
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
        moments = sorted(random.uniform(0, span * 0.9**attempt) for _ in range(_RACERS // 2))
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


SWEEPS = {
    "kill": Sweep("SIGKILL at each mutating call", strikes(_KILL, "init", "init again")),
    "random": Sweep("SIGKILL at random moments", _random_kills),
    "race": Sweep(f"racing processes, {_RACERS} at once, half of them killed", _races, _RACERS),
    "enospc": Sweep("ENOSPC at each mutating call", strikes("error=ENOSPC", "init", "init again")),
    "eio": Sweep("EIO at each mutating call", strikes("error=EIO", "init", "init again")),
    **{
        f"{word}-{name}": Sweep(f"{what} at each mutating call, {operation.title}", strikes(effect, name))
        for word, what, effect in (("kill", "SIGKILL", _KILL), ("full", "ENOSPC", "error=ENOSPC"))
        for name, operation in OPERATIONS.items()
        if not name.startswith("init")
    },
    "hot": Sweep("backups beside a hot writer", drawn(copy_beside, 500), blunt=0.3),
    "crowded": Sweep("restores beside a stale log and open readers", drawn(restore_beside, 200, prepare)),
    "split": Sweep("files removed or replaced under an open store", drawn(split, 100)),
    "spoilt": Sweep("a backup damaged in one place", drawn(damage_one, 1000, two_backups)),
    "locks": Sweep("looks from inside a transaction's process", drawn(look_inside, 60)),
    "logs": Sweep("ten looks each at a sound log beside a writer", drawn(look_beside, 50, None), blunt=0.3),
    "torn": Sweep("a log damaged in one place", drawn(look_at_damage, 100, None), blunt=0.3),
    "choice": Sweep("backups of which the newest is to be restored", drawn(choose, 200)),
    "drills": Sweep("drills and restorations between page sizes", drills),
    "refused": Sweep("refusals, which change nothing", refusals),
    "mutated": Sweep("an object of the schema changed", schema_mutations),
    # The control must be alarmed each time.
    "good": Sweep("good databases, none of which may raise an alarm", drawn(look_at, 100), blunt=0.99),
    "runs": Sweep("runs killed at random moments", kills_of_runs),
}
