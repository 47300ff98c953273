"""Which backups there are, which are kept, and the removal of the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from abathur_nb.backups.manifest import Backup, list_backups, of_database, sweep_manifests
from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.files import fsync
from abathur_nb.report import Check
from abathur_nb.text import MB, SEE_CLOCK, age, is_ahead, printable, shown, timestamp

_MOST = 10_000
# The form of a moment that two backups of one period share.
_PERIODS = {"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m"}


@dataclass(frozen=True, slots=True)
class Retention:
    """Hold how many backups are kept: the newest ones, and the newest of each of so many days, weeks and months.

    Days are UTC; periods without a backup do not count. Raises ConfigurationError for anything but whole numbers
    from 0 to 10,000, and where nothing would be kept.
    """

    last: int = 7
    daily: int = 7
    weekly: int = 4
    monthly: int = 12

    def __post_init__(self) -> None:
        found = {f"keep_{f.name}": getattr(self, f.name) for f in fields(self)}
        faults = [
            f"{name}: expected a whole number from 0 to {_MOST:,}, found {shown(value)}"
            for name, value in found.items()
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST
        ]
        if not faults and not any(found.values()):
            faults = ["keep_last, keep_daily, keep_weekly, keep_monthly: all are 0, and no backup would be kept"]
        if faults:
            raise ConfigurationError(faults)


def expired(backups: Sequence[Backup], keep: Retention) -> list[Backup]:
    """Return those of ``backups`` (of one database, oldest first) that no rule keeps, oldest first.

    The newest one, and the newest that can serve, are kept whatever the rules say. Those taken
    before a change are counted by themselves: many changes shall not push out the others.
    """
    return [
        backup
        for before_a_change in (False, True)
        for backup in _expired([b for b in backups if b.before_a_change == before_a_change], keep)
    ]


def _expired(backups: Sequence[Backup], keep: Retention) -> list[Backup]:
    newest_first = backups[::-1]
    kept = {backup.path for backup in newest_first[: max(keep.last, 1)]}
    kept |= {backup.path for backup in [b for b in newest_first if not b.unfit][:1]}
    for period, form in _PERIODS.items():
        newest: dict[str, Backup] = {}
        for backup in newest_first:
            newest.setdefault(backup.taken_at.strftime(form), backup)
        kept |= {backup.path for backup in [*newest.values()][: getattr(keep, period)]}
    return [backup for backup in backups if backup.path not in kept]


def remove(backup: Backup) -> None:
    """Remove a backup and its manifest. Raises OSError."""
    # The manifest last: it alone says of what is left that it is not a backup any more.
    backup.path.unlink(missing_ok=True)
    backup.manifest.unlink(missing_ok=True)


def apply_retention(settings: Settings, keep: Retention, made: Backup) -> Iterable[Check]:
    """Remove the backups of this database that ``keep`` lets go, and yield a check of what is there now.

    ``made``, of this run, stays, whatever others made meanwhile. Those of another environment or database in the same
    directory are left alone; so is what is not a whole backup, but for manifests alone.
    """
    folder = settings.backup_dir
    swept = sweep_manifests(folder)
    found, faults = list_backups(folder)
    # What was renamed was kept by hand.
    own = of_database((b for b in found if not b.renamed), settings.env, settings.db_path)
    gone, left = [backup for backup in expired(own, keep) if backup.path != made.path], []
    for backup in gone:
        try:
            remove(backup)
        except OSError as error:
            left.append(f"{backup.path.name}: {error.strerror}")
    if gone:
        fsync(folder)
    yield Check.that(
        "retention",
        not left,
        expected=", ".join(f"{getattr(keep, f.name)} {f.name}" for f in fields(keep)),
        observed=f"{len(own) - len(gone)} kept, {len(gone) - len(left)} removed, {len(left)} could not be",
        remedy="remove them by hand, or see who owns them",
        otherwise="warn",
        evidence=[*left, *(f"removed {backup.path.name}" for backup in gone)],
    )
    ahead = [f"{b.path.name}: {age(b.taken_at)}" for b in own if b not in gone and is_ahead(b.taken_at)]
    yield Check.that(
        "clock",
        not ahead,
        expected="no backup was taken in the future",
        observed="; ".join(ahead) or "none was",
        remedy=SEE_CLOCK,
        otherwise="warn",
    )
    yield Check.that(
        "leftovers",
        not faults,
        expected="every file in the directory is a whole backup",
        observed=f"{len(faults)} are not" if faults else "every one is",
        remedy="see what they are, then remove them by hand",
        otherwise="warn",
        evidence=[*faults.values(), *(f"removed {name}, whose backup was gone" for name in swept)],
    )


if TYPE_CHECKING:
    import pandas as pd


def show_backups(settings: Settings) -> "pd.DataFrame":
    """Return the backups in ``backup_dir``, newest first, one row a file. Read-only; their bytes are not proven here.

    Columns: ``file``, ``environment``, ``reason``, ``taken at`` (UTC), ``age`` (hours), ``rows``, ``MB`` on the disk,
    ``restored in`` (seconds, validation included, when it was proven), ``its database`` (sound, or what it failed;
    whether it serves, its clock was wrong, its manifest is an older one). What should be a backup and is not has a row
    that says why.
    """
    import pandas as pd

    backups, faults = list_backups(settings.backup_dir)
    now = datetime.now(UTC)
    rows = [
        {
            "file": printable(backup.path.name),
            "environment": printable(backup.facts["env"]),
            "reason": printable(backup.facts["reason"]),
            "taken at": timestamp(backup.taken_at),
            "age": round((now - backup.taken_at).total_seconds() / 3600, 1),
            "rows": backup.content.total,
            "MB": round(backup.facts["bytes"] / MB, 1),
            "restored in": round(backup.facts["proof"]["restored_s"] + backup.facts["proof"]["validated_s"], 2),
            "its database": _told(backup),
        }
        for backup in reversed(backups)
    ]
    rows += [{"file": file, "its database": f"no backup: {fault}"} for file, fault in faults.items()]
    columns = ["file", "environment", "reason", "taken at", "age", "rows", "MB", "restored in", "its database"]
    # The name of the index, shown in the head's corner and not in a row of its own.
    return pd.DataFrame(rows, columns=columns).set_index("file").rename_axis(index=None, columns="file")


def _told(backup: Backup) -> str:
    words = [f"failed {', '.join(backup.findings)}" if backup.findings else "sound"]
    notes = {
        "does not serve": backup.unfit,
        "renamed": backup.renamed,
        "taken in the future": is_ahead(backup.taken_at),
        "older manifest": backup.is_older,
    }
    return printable("; ".join([*words, *(note for note, holds in notes.items() if holds)]))
