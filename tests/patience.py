"""The one limit on time in these tests, which no machine that is merely busy reaches."""

__all__ = ["HANGING_S"]

# Ten times what the slowest step, a sweep over all faults, takes on an idle machine. It ends what hangs, and nothing
# else: a test waits for what happens, not for a time.
HANGING_S = 600
