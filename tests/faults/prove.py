"""Inject every fault, tamper in every way with an archive, print one table: ``python -m faults.prove [SWEEP …]``.

The control of each sweep is a naive way to do or to find the same, such as an initialization statement by statement at
the final path, ``cp`` in place of a backup, or a look at an archive's sizes: a harness that does no harm to enough of
those, as a rule to half, proves nothing, and is called broken.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from faults.alerting import alerts
from faults.batches import kill_a_worker, kill_in_batch
from faults.beside import copy_beside, look_at_damage, look_beside, look_inside, restore_beside, split
from faults.choices import choose, drills, refusals
from faults.experiments import BrokenHarnessError, Experiment, Outcome, Place, Planner, Result, drawn, initialize
from faults.initializations import RACERS, races, random_kills, state
from faults.runs import kills_of_runs
from faults.spoiling import damage_one, two_backups
from faults.strikes import OPERATIONS, prepare, strikes
from faults.tampering import flips, tamperings
from faults.verdicts import look_at, schema_mutations

_WORKERS = 2
_KILL = "signal=KILL"
_HEAD = ("sweep", "faults injected", "struck", "survived", "control (naive): damaged of injected", "verdict")
_SHOWN = 20


def _sweep(
    title: str, plan: Planner, folder: Path, every: int, seed: int, *, racers: int = 0, blunt: float = 0.5
) -> Result:
    """Run every n-th experiment, first on what must survive it, then on the control.

    ``racers`` processes take part in each, where that is to be counted; of the control over the share ``blunt`` must
    come to harm.
    """
    result, started = Result(title, blunt=blunt), time.monotonic()
    # Fill the caches of this process, which every victim inherits: what it does once takes longer than the rest.
    warm = Place(folder / "warm-up")
    asyncio.run(initialize(warm.db))
    if (found := state(warm)) != "complete":
        raise BrokenHarnessError(f"undisturbed, initialize_database leaves a database that is {found}")
    for outcome in _outcomes(title, plan("sound", every, seed, folder), folder / "sound"):
        result.experiments += 1
        result.injected += outcome.injected
        result.struck += outcome.struck
        result.survived += 0 if outcome.harm else outcome.struck
        result.harms += [outcome.harm] if outcome.harm else []
    for outcome in _outcomes(f"{title}, naive", plan("naive", every, seed, folder), folder / "naive"):
        result.control += 1
        result.control_damaged += bool(outcome.harm)
    if racers:
        result.title = f"{result.experiments * racers:,} {title}"
    result.seconds = time.monotonic() - started
    return result


def _outcomes(title: str, experiments: list[Experiment], folder: Path) -> Iterable[Outcome]:
    # Forked, so that each victim starts with everything imported; no thread is alive at that time.
    with ProcessPoolExecutor(_WORKERS, mp_context=get_context("fork")) as pool:
        done = pool.map(_conduct, experiments, (folder / f"{n}" for n in range(len(experiments))))
        yield from tqdm(done, title, len(experiments), file=sys.stderr, leave=False)


def _conduct(experiment: Experiment, folder: Path) -> Outcome:
    try:
        return experiment(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SWEEPS: dict[str, Callable[[Path, int, int], Result]] = {
    "kill": partial(_sweep, "SIGKILL at each mutating call", strikes(_KILL, "init", "init again")),
    "random": partial(_sweep, "SIGKILL at random moments", random_kills),
    "race": partial(_sweep, f"racing processes, {RACERS} at once, half of them killed", races, racers=RACERS),
    "enospc": partial(_sweep, "ENOSPC at each mutating call", strikes("error=ENOSPC", "init", "init again")),
    "eio": partial(_sweep, "EIO at each mutating call", strikes("error=EIO", "init", "init again")),
    **{
        f"{word}-{name}": partial(_sweep, f"{what} at each mutating call, {operation.title}", strikes(effect, name))
        for word, what, effect in (("kill", "SIGKILL", _KILL), ("full", "ENOSPC", "error=ENOSPC"))
        for name, operation in OPERATIONS.items()
        if not name.startswith("init")
    },
    "hot": partial(_sweep, "backups beside a hot writer", drawn(copy_beside, 500), blunt=0.3),
    "crowded": partial(_sweep, "restores beside a stale log and open readers", drawn(restore_beside, 200, prepare)),
    "split": partial(_sweep, "files removed or replaced under an open store", drawn(split, 100)),
    "spoilt": partial(_sweep, "a backup damaged in one place", drawn(damage_one, 1000, two_backups)),
    "locks": partial(_sweep, "looks from inside a transaction's process", drawn(look_inside, 60)),
    "logs": partial(_sweep, "ten looks each at a sound log beside a writer", drawn(look_beside, 50, None), blunt=0.3),
    "torn": partial(_sweep, "a log damaged in one place", drawn(look_at_damage, 100, None), blunt=0.3),
    "choice": partial(_sweep, "backups of which the newest is to be restored", drawn(choose, 200)),
    "drills": partial(_sweep, "drills and restorations between page sizes", drills),
    "refused": partial(_sweep, "refusals, which change nothing", refusals),
    "mutated": partial(_sweep, "an object of the schema changed", schema_mutations),
    # The control must be alarmed each time.
    "good": partial(_sweep, "good databases, none of which may raise an alarm", drawn(look_at, 100), blunt=0.99),
    "runs": partial(_sweep, "runs killed at random moments", kills_of_runs, blunt=0.3),
    "batches": partial(_sweep, "a part of a batch killed at random moments", drawn(kill_in_batch, 30)),
    "workers": partial(_sweep, "a worker of Dask killed at random moments", drawn(kill_a_worker, 30)),
    "flip": partial(_sweep, "a byte of an archive flipped", flips),
    "tamper": partial(_sweep, "an archive tampered with otherwise", tamperings),
    "alerts": alerts,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps; return 0 if all were survived and every control was damaged."""
    parser = argparse.ArgumentParser(description="Inject faults and tamper; exit 1 if one does harm unfound.")
    sweeps = f"of {', '.join(SWEEPS)}, with :N every N-th fault only; all by default"
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP[:N]", help=sweeps)
    parser.add_argument("--seed", type=int, default=2026, help="for the random moments, and where a sample begins")
    options = parser.parse_args(arguments)
    given = [name.partition(":") for name in options.sweeps or SWEEPS]
    chosen = {name: int(every) if every.isdecimal() else 1 for name, _, every in given}
    if unknown := set(chosen) - set(SWEEPS):
        parser.error(f"no such sweep: {', '.join(sorted(unknown))}")
    if shutil.which("strace") is None:
        print("strace is not installed, and no fault can be injected without it: apt-get install strace")
        return 1
    started = time.monotonic()
    try:
        results = _run(chosen, options.seed)
    except BrokenHarnessError as error:
        print(f"BROKEN HARNESS: {error}")
        return 1
    print(_table(results))
    print(f"\nseed {options.seed}, {time.monotonic() - started:.0f} s in all")
    for result in results:
        for harm in result.harms[:_SHOWN]:
            print(f"{result.title}: {harm}")
    return 0 if all(result.verdict == "ok" for result in results) else 1


def _run(sweeps: Mapping[str, int], seed: int) -> list[Result]:
    for name in [name for name in os.environ if name.startswith(("ABATHUR_", "XDG_"))]:
        del os.environ[name]
    results = []
    with tempfile.TemporaryDirectory(prefix="abathur-prove-") as name:
        # strace wants the real path.
        folder = Path(name).resolve()
        os.environ["HOME"] = str(folder)
        for sweep, every in sweeps.items():
            results.append(SWEEPS[sweep](folder / sweep, every, seed))
            print(f"{results[-1].title}: {results[-1].verdict}, {results[-1].seconds:.0f} s", file=sys.stderr)
    return results


def _table(results: Sequence[Result]) -> str:
    rows: list[tuple[str, ...]] = [_HEAD]
    for result in results:
        counts = (result.injected, result.struck, result.survived)
        control = f"{result.control_damaged:,} of {result.control:,}"
        rows.append((result.title, *(f"{count:,}" for count in counts), control, result.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join((lines[0], "-+-".join("-" * width for width in widths), *lines[1:]))


if __name__ == "__main__":
    sys.exit(main())
