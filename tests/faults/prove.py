"""Inject every fault, tamper in every way with an archive, print one table: ``python -m faults.prove [SWEEP …]``.

The control of each sweep is a naive way to do or to find the same, such as an initialization statement by statement at
the final path, ``cp`` in place of a backup, or a look at an archive's sizes: a harness that does no harm to enough of
those, as a rule to half, proves nothing, and is called broken.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from faults.alerting import ALERT_SWEEPS, AlertSweep
from faults.experiments import BrokenHarnessError, Result
from faults.sweeps import SWEEPS as INITIALIZATIONS
from faults.sweeps import Sweep
from faults.tampering import TAMPERING_SWEEPS, ArchiveSweep

_HEAD = ("sweep", "faults injected", "struck", "survived", "control (naive): damaged of injected", "verdict")
_SHOWN = 20
SWEEPS: Mapping[str, Sweep | ArchiveSweep | AlertSweep] = {**INITIALIZATIONS, **TAMPERING_SWEEPS, **ALERT_SWEEPS}


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
            results.append(SWEEPS[sweep].run(folder / sweep, every, seed))
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
