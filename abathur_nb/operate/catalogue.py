"""The backups of an environment, as a table."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from abathur_nb.operate.manifest import Backup, list_backups
from abathur_nb.settings import Settings
from abathur_nb.wording import MB, is_ahead, printable, timestamp

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["show_backups"]


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
