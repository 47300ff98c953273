"""The errors of abathur_nb: one class for each thing that an operator can do about it."""

import re
import sqlite3
from collections.abc import Sequence

from abathur_nb.text import shown, without_url_secrets

BOUND_S = 30  # a verb reads for at most this long, and one second for each MB, in which an idle machine reads 10 MB
BOUND_BYTES = 2**20  # of one value, beyond the size of the file: only what the schema computes is longer
# Bytes of the SQL of one table or index, and of all. To parse `a IN (1, 1, …)` each connection takes 20 times as much
# memory; the SQL of sql/ has 10,000 bytes.
BOUND_SQL, BOUND_SCHEMA = 2**20, 2**21
_LONG_SQL = re.compile(r"malformed database schema \((.*)\) - string or blob too big", re.DOTALL)


def bound_reached(error: Exception, longest: str = f"{BOUND_BYTES:,} bytes beyond the size of the file") -> str:
    """Name the bound of a reading verb that an error of SQLite reports; empty for any other error."""
    if long := _LONG_SQL.fullmatch(str(error)):  # which SQLite calls malformed, though it is sound
        return f"the SQL of {shown(long[1])} is longer than the bound of {BOUND_SQL:,} bytes"
    bound = {
        sqlite3.SQLITE_INTERRUPT: f"{BOUND_S} s, and 1 s for each MB,",
        sqlite3.SQLITE_TOOBIG: f"{longest}, for one value,",
    }.get(getattr(error, "sqlite_errorcode", 0))
    return f"the bound of {bound} was reached: some expression or index costs more" if bound else ""


class AbathurError(Exception):
    """Base class of all errors of this package; never raised itself.

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
    """Raised for faulty settings or parameters. Nothing was touched.

    ``faults`` holds a sentence for each of them, without those parts of a URL that may be secret.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = tuple(map(without_url_secrets, (faults,) if isinstance(faults, str) else faults))
        super().__init__("; ".join(self.faults))


class InvalidValueError(AbathurError, ValueError):
    """Raised for a value that the database must not hold. Nothing was written.

    ``what`` names the value; ``fault`` says what is wrong with it, without that name.
    """

    def __init__(self, fault: str, remedy: str = "", *, what: str = "") -> None:
        self.fault = fault
        super().__init__(f"Invalid {what}: {fault}" if what else fault, remedy)


class RefusedError(AbathurError):
    """Raised when what is at a path forbids the work. Nothing was changed, unless the message says so."""


class BusyError(AbathurError):
    """Raised when another process holds a lock longer than ``busy_timeout_ms``. Nothing was written."""


class MisuseError(AbathurError):
    """Raised when the calling program uses the store in a way that cannot work, such as after it was closed."""


class ChecksFailedError(AbathurError):
    """Raised when a check failed or could not run; ``report`` holds every check with its remedy."""

    def __init__(self, observed: str, remedy: str = "", *, report: object = None) -> None:
        self.report = report
        super().__init__(observed, remedy)
