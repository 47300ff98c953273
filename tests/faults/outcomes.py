"""What an experiment is, and the count of what became of many."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

__all__ = ["Experiment", "Outcome", "Planner", "Result"]


class Outcome(NamedTuple):
    """Hold what became of one experiment: faults injected, faults that struck, and the harm done, if any."""

    injected: int
    struck: int
    harm: str = ""


Experiment = Callable[[Path], Outcome]
# Returns the experiments on one initializer, thinned to every n-th, in a folder that they may use to calibrate.
Planner = Callable[[str, int, int, Path], list[Experiment]]


@dataclass(slots=True)
class Result:
    """Count the outcomes of one sweep and of its control, and judge them.

    ``blunt`` is the share of the control that may be damaged at most where the harness proves nothing.
    """

    title: str
    injected: int = 0
    struck: int = 0
    survived: int = 0
    experiments: int = 0
    harms: list[str] = field(default_factory=list)
    control: int = 0
    control_damaged: int = 0
    blunt: float = 0.5
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Say ``ok``, ``FAILED``, or that the harness proves nothing."""
        if self.harms:
            return "FAILED"
        sharp = self.control_damaged > self.control * self.blunt
        return "ok" if sharp and self.struck == self.injected > 0 else "BROKEN HARNESS"
