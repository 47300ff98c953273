"""Limits on time in these tests, such that no machine that is merely busy reaches one."""

from collections.abc import Iterator

# Ten times what the slowest step, a sweep over all faults, takes on an idle machine. It ends what hangs, and nothing
# else: a test waits for what happens, not for a time.
HANGING_S = 600

# What a benchmark is held to where its figures are not the matter: the variables that a process is given.
GENEROUS = {"ABATHUR_SESSION_P99_MS": "60000", "ABATHUR_MEMORY_P99_MS": "60000", "ABATHUR_CONCURRENT_READS_S": "600"}


def ever_longer(seconds: float) -> Iterator[float]:
    """Yield a limit, then four times as much, and so on: where something must first come to a point and then wait."""
    while seconds < HANGING_S:
        yield seconds
        seconds *= 4
