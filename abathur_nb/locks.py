"""The POSIX locks that this machine's processes hold, as the kernel lists them (proc_locks(5))."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Lock", "posix_locks"]


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
    """Return every POSIX lock that is held, none where there is no list. Read-only; Linux only."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    # "1: POSIX  ADVISORY  READ 1234 fd:00:2531 123 123"; one that is waited for has "->" in the second place.
    fields = (line.split() for line in lines)
    return [Lock(int(f[4]), f[3] == "WRITE", f[5], int(f[6])) for f in fields if f[1] == "POSIX"]
