"""Manifests as another moment, another version of the package, or a stranger would have written them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from abathur_nb.backups.manifest import Backup, read_backup
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.text import timestamp


def rewritten(backup: Backup, *without: str, **facts: Any) -> None:
    """Write other facts into a manifest, and its own hash anew."""
    told = {**unsealed(backup.manifest.read_bytes()), **facts}
    backup.manifest.write_bytes(sealed({name: value for name, value in told.items() if name not in without}))


def as_before(backup: Backup) -> None:
    """Take out what manifests did not say before backups had a sequence."""
    rewritten(backup, "sequence", "bytes_unpacked")


def redated(backup: Backup, ahead: timedelta) -> Backup:
    """Make a backup one that was taken with a clock that was ahead by so much: in its manifest and in its names."""
    moment = datetime.now(UTC) + ahead
    path = backup.path.with_name(f"abathur_{backup.facts['reason']}_{moment:%Y%m%d_%H%M%S}_000{backup.path.suffix}")
    rewritten(backup, taken_at=timestamp(moment), file=path.name)
    backup.manifest.rename(f"{path}.manifest.json")
    backup.path.rename(path)
    return read_backup(path)
