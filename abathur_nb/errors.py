"""The errors of abathur_nb: one class for each thing that an operator can do about it."""

import sqlite3
from collections.abc import Sequence

from abathur_nb.wording import without_url_secrets

__all__ = [
    "BOUND_S",
    "AbathurError",
    "BusyError",
    "ChecksFailedError",
    "ConfigurationError",
    "InvalidValueError",
    "MisuseError",
    "RefusedError",
    "bound_reached",
]

BOUND_S = 30  # what a verb reads for at most, and one second more for each MB: an idle machine reads 10 MB in that time


def bound_reached(error: Exception) -> str:
    """Say that an error of SQLite is the end of the time that a verb may read for; nothing for any other error."""
    if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
        return ""
    return f"the bound of {BOUND_S} s, and 1 s for each MB, was reached: some expression or index costs more"


class AbathurError(Exception):
    """Serve as the base of all errors of this package; never raised itself.

    ``observed`` says what was found, ``remedy`` what to do about it. A notebook shows it as one line: the report
    above it says the rest.
    """

    def __init__(self, observed: str, remedy: str = "") -> None:
        self.observed = observed
        self.remedy = remedy
        super().__init__(f"{observed}: {remedy}" if remedy else observed)

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for this method and shows what it returns in place of the traceback.
        return [f"{type(self).__name__}: {self}"]


class ConfigurationError(AbathurError, ValueError):
    """Name every faulty setting or parameter: correct them and run again.

    ``faults`` holds one sentence each, without what of a URL may be a secret. Nothing was touched.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = tuple(map(without_url_secrets, (faults,) if isinstance(faults, str) else faults))
        super().__init__("; ".join(self.faults))


class InvalidValueError(AbathurError, ValueError):
    """Refuse a value that the database must not hold: pass another. Nothing was written."""


class RefusedError(AbathurError):
    """Refuse what is at the database path: follow the remedy in the message. Nothing was changed, unless it says so."""


class BusyError(AbathurError):
    """Report a lock that outlasted the wait: end its holder or try again. Nothing was written."""


class MisuseError(AbathurError):
    """Report a fault of the calling program: the store was used in a way that cannot work. Mend the program."""


class ChecksFailedError(AbathurError):
    """Name the checks of a report that failed or could not run: each one's remedy is in the report, ``report``."""

    def __init__(self, observed: str, remedy: str = "", *, report: object = None) -> None:
        self.report = report
        super().__init__(observed, remedy)
