"""The place of one experiment."""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TOKEN", "Place"]

TOKEN = "0" * 12  # of the first run's scratch directory
_SUFFIXES = ("", "-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Place:
    """Name the paths of one experiment: ``top`` is there beforehand, the directory of the database is not."""

    root: Path

    def __post_init__(self) -> None:
        self.top.mkdir(parents=True)

    @property
    def top(self) -> Path:
        """Return the directory that is there beforehand."""
        return self.root / "top"

    @property
    def db(self) -> Path:
        """Return the final path."""
        return self.top / "data" / "abathur.db"

    @property
    def scratch(self) -> Path:
        """Return the directory in which the first run builds the database."""
        return self.db.parent / f".abathur-init-{TOKEN}"

    @property
    def events(self) -> Path:
        """Return the log of what was made and forced to the disk."""
        return self.root / "events"

    def make_leftover(self) -> None:
        """Leave what a predecessor leaves that was killed right after it linked the finished database."""
        self.scratch.mkdir(mode=0o700)
        os.link(self.db, self.scratch / self.db.name)
        events = self.events.read_text().splitlines(keepends=True)
        self.events.write_text("".join(events[: events.index(f"link {self.db}\n") + 1]))

    @property
    def paths(self) -> list[Path]:
        """Return every path that an initialization may change."""
        files = [folder / f"{self.db.name}{s}" for folder in (self.db.parent, self.scratch) for s in _SUFFIXES]
        return [self.top, self.db.parent, self.scratch, *files]
