"""The errors of abathur_nb: one class for each reaction that an operator may need."""

import re
import sqlite3
from collections.abc import Sequence

from abathur_nb.text import shown, without_url_secrets

BOUND_S = 30  # a verb reads for at most 30 s plus 1 s for each MB; an idle machine reads 10 MB/s
BOUND_BYTES = 2**20  # a value may exceed the file's size by this; only a computed value does
# Most bytes in the SQL of one object, and of the whole schema. Parsing `a IN (1, 1, …)` takes 20 times as much
# memory for each connection; the SQL of sql/ has 10,000 bytes.
BOUND_SQL, BOUND_SCHEMA = 2**20, 2**21
_LONG_SQL = re.compile(r"malformed database schema \((.*)\) - string or blob too big", re.DOTALL)


def bound_reached(error: Exception, longest: str = f"{BOUND_BYTES:,} bytes beyond the size of the file") -> str:
    """Return the bound on reading that an error of SQLite reports, or an empty text."""
    if long := _LONG_SQL.fullmatch(str(error)):  # SQLite calls it malformed, though it is sound
        return f"the SQL of {shown(long[1])} is longer than the bound of {BOUND_SQL:,} bytes"
    bound = {
        sqlite3.SQLITE_INTERRUPT: f"{BOUND_S} s, and 1 s for each MB,",
        sqlite3.SQLITE_TOOBIG: f"{longest}, for one value,",
    }.get(getattr(error, "sqlite_errorcode", 0))
    return f"the bound of {bound} was reached: an expression or index needs more" if bound else ""


class AbathurError(Exception):
    """Base class of all errors of this package; never raised itself.

    ``observed`` says what was found, ``remedy`` what to do. A notebook shows the error as one line, below its report.
    """

    def __init__(self, observed: str, remedy: str = "") -> None:
        self.observed = observed
        self.remedy = remedy
        super().__init__(f"{observed}: {remedy}" if remedy else observed)

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for this method and shows what it returns in place of the traceback.
        return [f"{type(self).__name__}: {self}"]


class ConfigurationError(AbathurError, ValueError):
    """Raised for invalid settings or parameters. Nothing was changed.

    ``faults`` holds a sentence for each fault; parts of a URL that may be secret are left out.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = tuple(map(without_url_secrets, (faults,) if isinstance(faults, str) else faults))
        super().__init__("; ".join(self.faults))


class InvalidValueError(AbathurError, ValueError):
    """Raised for a value that the store does not accept. Nothing was written.

    ``what`` names the value, ``fault`` says what is wrong with it.
    """

    def __init__(self, fault: str, remedy: str = "", *, what: str = "") -> None:
        self.what, self.fault = what, fault
        super().__init__(f"Invalid {what}: {fault}" if what else fault, remedy)


class RefusedError(AbathurError):
    """Raised when something at a path prevents the operation. Nothing was changed unless the message says so."""


class BusyError(AbathurError):
    """Raised when another process holds a lock longer than ``busy_timeout_ms``. Nothing was written."""


class MisuseError(AbathurError):
    """Raised when a program uses the store wrongly, for example after closing it."""


class ChecksFailedError(AbathurError):
    """Raised when a check failed or could not run; ``report`` holds every check with its remedy."""

    def __init__(self, observed: str, remedy: str = "", *, report: object = None) -> None:
        self.report = report
        super().__init__(observed, remedy)
