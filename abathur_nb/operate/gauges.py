"""What is watched of a database: the gauges by name, one moment's samples of them, and the same for Prometheus."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from abathur_nb.settings import Settings
from abathur_nb.table import Table
from abathur_nb.wording import MB, timestamp

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GAUGES",
    "LAST_BACKUP",
    "LAST_VALIDATION",
    "READ",
    "RETRIEVAL",
    "SESSION_BYTES",
    "TAKEN",
    "UP",
    "Sample",
    "Snapshot",
    "place_of",
    "samples_frame",
]

UP = "abathur_up"
TAKEN = "abathur_snapshot_timestamp_seconds"
RETRIEVAL = "abathur_retrieval_seconds"
READ = "abathur_read_ratio"
SESSION_BYTES = "abathur_session_bytes"
LAST_BACKUP = "abathur_last_backup_timestamp_seconds"
LAST_VALIDATION = "abathur_last_validation_timestamp_seconds"

# Moments and not ages, as Prometheus' own advice is: an age stands still when nobody measures any more. The names are
# those of the table metrics too (https://prometheus.io/docs/practices/naming/).
GAUGES: Mapping[str, str] = {
    UP: "1 if the database could be read, else 0",
    TAKEN: "when this was measured",
    "abathur_database_bytes": "the database's file",
    "abathur_database_free_bytes": "pages of the file that hold nothing",
    "abathur_wal_bytes": "the write-ahead log",
    "abathur_disk_free_bytes": "free room on the disk of the database",
    "abathur_database_growth_bytes_per_day": "the share of the file that the rows of the last 24 hours take, estimated",
    READ: "the share of the rows that these figures come from; they are estimates where it is under 1",
    SESSION_BYTES: "the largest events, state and metadata of a session, of the newest sessions and of some at random",
    "abathur_rows": "rows of a table",
    "abathur_rows_of_last_day": "rows of a table that came in the last 24 hours",
    "abathur_namespace_rows": "versions of memories in one of the largest namespaces, and in all others together",
    "abathur_namespace_rows_of_last_day": "those of them that came in the last 24 hours",
    "abathur_memory_versions": "versions of memories: current, superseded by a newer one, or deleted",
    RETRIEVAL: "a percentile of the time that a session's or a memory's retrieval takes",
    LAST_BACKUP: "when the newest backup was taken that is proven and whose database was sound; 0 for never",
    LAST_VALIDATION: "when the newest validation began that passed; 0 for never",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold one value of a gauge, in the unit that its name ends with, and what it is of."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hold what was measured at one moment, UTC, of the database that ``place`` names by its labels."""

    taken_at: datetime
    place: Mapping[str, str]
    samples: tuple[Sample, ...] = ()

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """Return the value of one gauge; None where it was not measured."""
        found = (sample.value for sample in self.samples if sample.name == name and sample.labels == (labels or {}))
        return next(found, None)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a sample: ``time`` (UTC), ``gauge``, ``of`` (its labels), ``value``."""
        return samples_frame((self.taken_at, sample) for sample in self.samples)

    def to_record(self) -> dict[str, object]:
        """Return what the record of a run keeps."""
        rows = [[sample.name, dict(sample.labels), sample.value] for sample in self.samples]
        return {"metrics": {"taken_at": timestamp(self.taken_at), "samples": rows}}

    def _table(self) -> Table:
        rows, name = list[tuple[str, ...]](), ""
        for sample in self.samples:
            # What a gauge is, only above its first value.
            words = ("", "") if sample.name == name else (GAUGES[sample.name], sample.name)
            rows.append((words[0], ", ".join(sample.labels.values()), _told(sample), words[1]))
            name = sample.name
        return Table(("what", "of", "value", "name"), tuple(rows), "nothing could be measured: the report says why")

    def __str__(self) -> str:
        return str(self._table())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self._table().to_html(), "text/plain": str(self)}


def place_of(settings: Settings) -> dict[str, str]:
    """Return the labels that say in Prometheus of which database a sample is."""
    return {"env": settings.env, "database": str(settings.db_path)}


def samples_frame(samples: Iterable[tuple[datetime, Sample]]) -> "pd.DataFrame":
    """Return one row for each sample at its moment: ``time`` (UTC), ``gauge``, ``of`` (its labels), ``value``."""
    import pandas as pd

    rows = [(moment, s.name, ", ".join(s.labels.values()), s.value) for moment, s in samples]
    return pd.DataFrame(rows, columns=["time", "gauge", "of", "value"])


# By the end of a gauge's name, the first that fits: how its value is told, and in which unit.
_UNITS = (
    ("_seconds", "{:.3g} ms", 1e-3),
    ("_bytes_per_day", "{:,.1f} MB a day", MB),
    ("_bytes", "{:,.1f} MB", MB),
    ("_ratio", "{:.2%}", 1),
    ("", "{:,.0f}", 1),
)


def _told(sample: Sample) -> str:
    if sample.name.endswith("_timestamp_seconds"):
        return f"{timestamp(datetime.fromtimestamp(sample.value, UTC))} UTC" if sample.value else "never"
    form, unit = next((form, unit) for end, form, unit in _UNITS if sample.name.endswith(end))
    return form.format(sample.value / unit)
