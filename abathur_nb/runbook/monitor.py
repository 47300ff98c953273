"""Monitor: measure a database, judge it by the alert rules, and show how it has changed over time."""

import sqlite3
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from abathur_nb.backups.change import check_arguments
from abathur_nb.config.parameters import check_ranges
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError
from abathur_nb.measure.alerts import Snapshot, alerts_of
from abathur_nb.measure.snapshot import SNAPSHOTS, Moment, read_recorded, record_snapshot, take_snapshot
from abathur_nb.report import Check, Report
from abathur_nb.store.connection import explain_error
from abathur_nb.store.guarded import strays_check
from abathur_nb.text import SEE_CLOCK, age, counted, is_ahead

if TYPE_CHECKING:
    import pandas as pd

_TITLE = "monitor"


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Hold the ``report``, the ``snapshot`` that was measured, and ``moments``: its samples and the recorded ones.

    If more than 500 snapshots are recorded, ``moments`` has evenly spaced ones.
    """

    report: Report
    snapshot: Snapshot
    moments: tuple[Moment, ...]
    settings: Settings

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a sample, oldest first: ``time`` (UTC), ``gauge``, ``of`` (its labels), ``value``."""
        import pandas as pd

        rows = [(moment, s.name, ", ".join(s.labels.values()), s.value) for moment, s in self.moments]
        return pd.DataFrame(rows, columns=["time", "gauge", "of", "value"])

    def to_record(self) -> dict[str, object]:
        """Return what the record of a run keeps: the samples of the snapshot."""
        return self.snapshot.to_record()


async def monitor(settings: Settings, *, record: bool = False, keep_days: int = 90) -> Monitoring:
    """Measure the database, its disk, backups and validations, and apply the alert rules.

    Read-only without ``record``; with it, the samples are inserted into the table metrics, and samples older than
    ``keep_days`` are deleted. A critical alert fails the report if ``alerts_fail`` is set, and warns otherwise.
    Raises ConfigurationError for a wrong argument.
    """
    check_ranges(keep_days=keep_days)
    check_arguments(record=record)
    subject = str(settings.db_path)
    snapshot, taken = await take_snapshot(settings)
    checks, recorded = [*taken.checks, *alerts_of(snapshot, settings)], list[Moment]()
    if (lost := strays_check(settings.db_path)).failed:
        checks.append(lost)
    if not taken.ok:
        report = Report(_TITLE, tuple(checks), subject=subject, refused=taken.refused)
        return Monitoring(report, snapshot, (), settings)
    try:
        recorded, number = await read_recorded(settings, snapshot.taken_at - timedelta(days=keep_days))
        if number > SNAPSHOTS:
            words = f"{counted(number, 'snapshot')}, of which at most {SNAPSHOTS:,} are read, spread evenly"
            checks.append(Check("what_was_recorded", "pass", "can be read", words))
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        checks.append(Check("what_was_recorded", "error", "can be read", fault.observed, fault.remedy))
    if ahead := [moment for moment, _ in recorded if is_ahead(moment, snapshot.taken_at)]:
        observed = f"{counted(len(ahead), 'sample')}, the last one {age(max(ahead), snapshot.taken_at)}: left out"
        checks.append(Check("future_samples", "warn", "no sample from the future", observed, SEE_CLOCK))
        recorded = [one for one in recorded if one[0] not in ahead]
    if record:
        checks.append(await record_snapshot(settings, snapshot, keep_days))
    now = [(snapshot.taken_at, sample) for sample in snapshot.samples]
    moments = sorted([*recorded, *now], key=lambda moment: moment[0])
    return Monitoring(Report(_TITLE, tuple(checks), subject=subject), snapshot, tuple(moments), settings)
