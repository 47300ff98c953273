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

from faults.alarms import good_databases
from faults.backups import hot_backups
from faults.choices import choices_of_backups
from faults.drills import drills
from faults.initializers import INITIALIZERS, sound
from faults.judge import after_a_second_run, false_success, state
from faults.locks import looks_inside
from faults.logs import busy_logs, torn_logs
from faults.mutations import schema_mutations
from faults.operations import OPERATIONS
from faults.outcomes import Experiment, Outcome, Planner, Result
from faults.place import Place
from faults.refusals import refusals
from faults.restores import crowded_restores
from faults.runs import kills_of_runs
from faults.splits import splits
from faults.spoiling import damaged_backups
from faults.strikes import strikes
from faults.tracing import BrokenHarnessError, Call, mutating_calls, strike
from faults.victim import Ending, Gate, Victim

__all__ = ["SWEEPS", "Sweep"]

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
    asyncio.run(sound(place.db))
    if (found := state(place)) != "complete":
        raise BrokenHarnessError(f"undisturbed, initialize_database leaves a database that is {found}")


def _conduct(experiment: Experiment, folder: Path) -> Outcome:
    try:
        return experiment(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- a fault at each call


def _at_each_call(effect: str, name: str, every: int, seed: int, folder: Path) -> list[Experiment]:
    calls = mutating_calls(name, folder)
    if name == "sound":
        calls += mutating_calls(name, folder, again=True)
    return [partial(_fault_at, name, effect, call) for call in calls[seed % every :: every]]


def _fault_at(name: str, effect: str, call: Call, folder: Path) -> Outcome:
    place = Place(folder)
    ending, struck = strike(name, place, call, effect)
    harm = _harm(name, place, ending)
    return Outcome(1, int(struck), f"{effect} at {call}: {harm}" if harm else "")


def _harm(name: str, place: Place, ending: Ending) -> str:
    """Say what a fault did that it must not; empty if nothing. A second run is asked of initialize_database only."""
    if (found := state(place)) == "half-made":
        return f"the database is {found}"
    if not ending.killed and (fault := ending.fault or false_success(place, ending, durable=name == "sound")):
        return fault
    return after_a_second_run(place) if name == "sound" else ""


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
        harm = _harm(name, place, ending) if ending.killed else ending.fault
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
    "kill": Sweep("SIGKILL at each mutating call", partial(_at_each_call, _KILL)),
    "random": Sweep("SIGKILL at random moments", _random_kills),
    "race": Sweep(f"racing processes, {_RACERS} at once, half of them killed", _races, _RACERS),
    "enospc": Sweep("ENOSPC at each mutating call", partial(_at_each_call, "error=ENOSPC")),
    "eio": Sweep("EIO at each mutating call", partial(_at_each_call, "error=EIO")),
    **{
        f"{word}-{name}": Sweep(f"{what} at each mutating call, {operation.title}", strikes(name, effect))
        for word, what, effect in (("kill", "SIGKILL", _KILL), ("full", "ENOSPC", "error=ENOSPC"))
        for name, operation in OPERATIONS.items()
    },
    "hot": Sweep("backups beside a hot writer", hot_backups, blunt=0.3),
    "crowded": Sweep("restores beside a stale log and open readers", crowded_restores),
    "split": Sweep("files removed or replaced under an open store", splits),
    "spoilt": Sweep("a backup damaged in one place", damaged_backups),
    "locks": Sweep("looks from inside a transaction's process", looks_inside),
    "logs": Sweep("looks at the log beside a writer, in which nothing is damaged", busy_logs, blunt=0.3),
    "torn": Sweep("a log damaged in one place", torn_logs, blunt=0.3),
    "choice": Sweep("backups of which the newest is to be restored", choices_of_backups),
    "drills": Sweep("drills and restorations between page sizes", drills),
    "refused": Sweep("refusals, which change nothing", refusals),
    "mutated": Sweep("an object of the schema changed", schema_mutations),
    # The control must be alarmed each time.
    "good": Sweep("good databases, none of which may raise an alarm", good_databases, blunt=0.99),
    "runs": Sweep("runs killed at random moments", kills_of_runs),
}
