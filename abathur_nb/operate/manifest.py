"""A backup: a copy of a database, and the manifest beside it that says what it holds and how that was proven."""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

from abathur_nb.apart import ask
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import misfits, open_regular, read_regular, sealed, unsealed
from abathur_nb.operate.content import Content
from abathur_nb.scratch import make_private_file
from abathur_nb.wording import printable, shown, url_fault

__all__ = [
    "Backup",
    "file_sha256",
    "find_backup",
    "list_backups",
    "manifest_of",
    "pack",
    "read_backup",
    "unpack",
    "write_manifest",
]

MANIFEST = ".manifest.json"  # behind the name of the backup
# Taken before something replaces or repairs a database: what stood there then is, as a rule, not wanted back.
BEFORE_A_CHANGE = ("pre_put_back", "pre_repair", "pre_restore", "pre_rollback")
NAME = re.compile(r"abathur_([a-z][a-z0-9_]{0,40})_(\d{8}_\d{6}_\d{3})\.db(\.zst)?")
_FORMAT = 1
_CHUNK = 2**20  # bytes
_SHAPE = {
    "format": int,
    "file": str,
    "bytes": int,
    "sha256_of_file": str,
    "reason": str,
    "env": str,
    "database": str,
    "application_id": int,
    "user_version": int,
    "taken_at": str,
    "content": {"digest": str, "schema": str, "rows": dict},
    "proof": {"restored_s": (int, float), "validated_s": (int, float), "findings": [str]},
}


@dataclass(frozen=True, slots=True)
class Backup:
    """Hold a backup's file and what its manifest says, which is as it was written."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def taken_at(self) -> datetime:
        """When its snapshot was taken, UTC."""
        return datetime.fromisoformat(self.facts["taken_at"]).replace(tzinfo=UTC)

    @property
    def content(self) -> Content:
        """What its snapshot held."""
        return Content(**self.facts["content"])

    @property
    def findings(self) -> tuple[str, ...]:
        """The names of the checks that its database failed when it was taken."""
        return tuple(self.facts["proof"]["findings"])

    @property
    def before_a_change(self) -> bool:
        """Tell whether it was taken before a repair or a replacement, for whoever wants that undone."""
        return self.facts["reason"] in BEFORE_A_CHANGE

    @property
    def compressed(self) -> bool:
        """Tell whether it has to be unpacked before it can be read."""
        return self.path.suffix == ".zst"

    @property
    def manifest(self) -> Path:
        """The file beside it that says what it holds."""
        return manifest_of(self.path)


def manifest_of(path: Path) -> Path:
    """Return where the manifest of a backup stands."""
    return path.with_name(f"{path.name}{MANIFEST}")


def write_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    """Write what is known of a backup, in canonical form, with its own hash."""
    make_private_file(path)
    path.write_bytes(sealed({"format": _FORMAT, **facts}))


def read_backup(path: Path) -> Backup:
    """Read the manifest of the backup at ``path``, whose own bytes it leaves for ``unpack``. Read-only.

    Raises RefusedError if there is no backup, or no manifest, or one that was changed or belongs to another file.
    """
    manifest = manifest_of(path)
    if not os.path.lexists(path):
        raise RefusedError(f"there is no backup {path}", f"see what there is: ls {quote(str(path.parent))}")
    remedy = "take another backup; this one can't be proven"
    try:
        facts = unsealed(read_regular(manifest))
        if misfits(facts, _SHAPE) or not _readable(facts):
            raise ValueError("it lacks what a manifest must say")
    except FileNotFoundError:
        raise RefusedError(f"{path} has no manifest {manifest.name}, so nobody knows what it holds", remedy) from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{manifest} is damaged: {printable(str(error))}", remedy) from None
    if facts["format"] != _FORMAT:
        raise RefusedError(f"{manifest} is of format {facts['format']}, known is {_FORMAT}", "update abathur_nb")
    if facts["file"] != path.name:
        raise RefusedError(f"{manifest} is the manifest of {shown(facts['file'])}", remedy)
    return Backup(path, facts)


def _readable(facts: Mapping[str, Any]) -> bool:
    try:
        datetime.fromisoformat(facts["taken_at"])
    except ValueError:
        return False
    return True


def list_backups(folder: Path) -> tuple[list[Backup], list[str]]:
    """Return the backups in ``folder``, oldest first, and a sentence for each file that should be one. Read-only.

    Their own bytes are not read: ``unpack`` does that.
    """
    found, faults = [], []
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is wanted
    except FileNotFoundError:
        return [], []
    for name in names:
        data = name.removesuffix(MANIFEST)
        if not NAME.fullmatch(data) or (name != data and data in names):
            continue
        if name != data:
            faults.append(f"{name} has lost its backup")
            continue
        try:
            found.append(read_backup(folder / name))
        except RefusedError as error:
            faults.append(error.observed)
    return sorted(found, key=lambda backup: (backup.taken_at, backup.path.name)), faults


def find_backup(folder: Path, name: str | os.PathLike[str] | None, env: str) -> Backup:
    """Return the backup that ``name`` names, or the newest whose database passed validation. Read-only.

    ``name`` is a path, or a file's name in ``folder``. What was taken before a repair or a replacement is found by its
    name only. Raises RefusedError if there is none.
    """
    if name is not None:
        if fault := url_fault("backup", os.fspath(name)):
            raise ConfigurationError(fault)
        path = Path(name).expanduser()
        return read_backup(path if path.is_absolute() else folder / path)
    backups, faults = list_backups(folder)
    sound = [b for b in backups if not b.findings and not b.before_a_change and b.facts["env"] == env]
    if sound:
        return sound[-1]
    others = [f"{b.path.name} of {b.facts['env']}, whose database failed {len(b.findings)} checks" for b in backups]
    known = "; ".join([*others, *faults]) or "there is no backup at all"
    raise RefusedError(f"{folder} holds no sound backup of {env}: {known}", "name one: -p backup FILE")


def unpack(backup: Backup, scratch: Path) -> Path:
    """Return the path of a backup's database, unpacked into ``scratch`` if need be, its bytes proven.

    Raises RefusedError if a single byte is another than when it was taken.
    """
    try:
        size, found = os.lstat(backup.path).st_size, file_sha256(backup.path)
    except OSError as error:
        raise RefusedError(
            f"{backup.path} cannot be read: {error.strerror}", "see to the disk, or take another"
        ) from None
    wanted = backup.facts["sha256_of_file"]
    if (found, size) != (wanted, backup.facts["bytes"]):
        size_told = (
            f"{size:,} bytes of {backup.facts['bytes']:,}, sha256 {found[:12]}… where {wanted[:12]}… was written"
        )
        raise RefusedError(f"{backup.path} is damaged: {size_told}", "choose another backup")
    if not backup.compressed:
        return backup.path
    import zstandard

    target = scratch / backup.path.stem
    with open_regular(backup.path) as packed, target.open("xb") as plain:
        zstandard.ZstdDecompressor().copy_stream(packed, plain)
    target.chmod(0o600)
    return target


def pack(path: Path) -> Path:
    """Compress a file with zstd beside it, remove it, and return the new one's path."""
    import zstandard

    target = path.with_name(f"{path.name}.zst")
    with path.open("rb") as plain, target.open("xb") as packed:
        zstandard.ZstdCompressor(level=3, threads=-1).copy_stream(plain, packed)
    shutil.copymode(path, target)
    path.unlink()
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file, which a store may have open here; raise OSError for others. Read-only."""
    return str(ask("digest", path))
