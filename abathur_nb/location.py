"""The place of a database on this machine: its directory, its file system, the room on the disk."""

import os
import re
import shutil
import stat
from pathlib import Path
from shlex import quote

from abathur_nb.report import Check, Status
from abathur_nb.scratch import nearest_existing
from abathur_nb.settings import Settings, Severity
from abathur_nb.wording import user_name

__all__ = ["file_system", "install_command", "location_checks"]

# What a database in write-ahead mode meets on these: its index is shared memory, which no network carries.
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs")
_LAYERED = ("overlay", "aufs", "fuse")
_MB = 1_000_000


def location_checks(settings: Settings) -> tuple[list[Check], bool]:
    """Check the directory, its file system and the free disk, and tell whether any forbids a database. Read-only."""
    place = nearest_existing(settings.db_path.parent)
    answers = [_directory(settings, place), _file_system(settings, place), (_free_disk(settings, place), False)]
    return [check for check, _ in answers], any(check.failed and forbids for check, forbids in answers)


def _directory(settings: Settings, place: Path) -> tuple[Check, bool]:
    """Check who owns and who may write to the database's directory; a missing one will be made."""
    folder = settings.db_path.parent
    me = user_name(os.geteuid())
    install = install_command(settings, folder)
    expected = f"a directory of {me}'s own, mode 0700"
    name = "directory"
    if place != folder:
        may = os.access(place, os.W_OK | os.X_OK)
        observed = f"{folder} will be made 0700" if may else f"no {folder}, and {place} may not be written to by {me}"
        return Check.that(name, may, expected=expected, observed=observed, remedy=install), True
    found = os.lstat(folder)
    mode = stat.S_IMODE(found.st_mode)
    owner = user_name(found.st_uid)
    observed = f"{folder} is {owner}'s, mode {mode:04o}"
    # A shared directory lets others swap the files; one that only others can read is a lesser thing.
    faults: list[tuple[bool, Severity, str]] = [
        (not stat.S_ISDIR(found.st_mode), "refuse", f"db_path: name a file in a directory, not {quote(str(folder))}"),
        (not os.access(folder, os.W_OK | os.X_OK), "refuse", f"run it as the owner: sudo -u {owner} …; or: {install}"),
        (found.st_uid != os.geteuid(), settings.on_shared_directory, f"run it as the owner: sudo -u {owner} …"),
        (bool(mode & stat.S_IWOTH), settings.on_shared_directory, f"chmod 700 {quote(str(folder))}"),
        (bool(mode & 0o077), "warn", f"chmod 700 {quote(str(folder))}"),
    ]
    for at_fault, severity, remedy in faults:
        if at_fault:
            status: Status = "warn" if severity == "warn" else "fail"
            return Check(name, status, expected=expected, observed=observed, remedy=remedy), severity == "refuse"
    return Check(name, "pass", expected=expected, observed=observed), False


def _file_system(settings: Settings, place: Path) -> tuple[Check, bool]:
    kind = file_system(place)
    severity: Severity | None = None
    if kind in _NETWORK:
        severity = "refuse"
    elif kind in ("tmpfs", "ramfs"):
        severity = settings.on_tmpfs
    elif kind.partition(".")[0] in _LAYERED:
        severity = settings.on_overlay
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        kind, severity = f"{kind}, mounted read-only", "refuse"
    check = Check.that(
        "file system",
        severity is None,
        expected="a local one that keeps what is written, such as ext4, xfs or btrfs",
        observed=f"{kind} at {place}",
        remedy=f"put the database on a local disk: -p db_path …; to see what there is: df -hT {quote(str(place))}",
        otherwise="warn" if severity == "warn" else "fail",
    )
    return check, severity == "refuse"


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the name of the file system that holds ``path``, ``unknown`` where it can't be told. Read-only.

    ``mounts`` is the text of ``/proc/self/mountinfo`` (proc(5)), by default this process's own; Linux only.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return "unknown"
    real = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields, _, behind = line.partition(" - ")
        # A blank, a tab, a newline and a backslash in a mount point are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two at one point the later hides the earlier
            best, kind = point, behind.split()[0]
    return kind


def _free_disk(settings: Settings, place: Path) -> Check:
    free = shutil.disk_usage(place).free / _MB
    low = settings.min_free_mb
    enough = max(low, settings.recommended_free_mb)
    return Check.that(
        "free disk",
        free >= enough,
        expected=f"{enough:,} MB or more; less than {low:,} MB fails",
        observed=f"{free:,.0f} MB at {place}",
        remedy=f"make room; to see what takes it: du -xh --max-depth=2 {quote(str(place))} | sort -h | tail",
        otherwise="fail" if free < low else "warn",
    )


def install_command(settings: Settings, folder: Path) -> str:
    """Return the command that makes ``folder`` as a database of this environment wants it."""
    owner = settings.service_account or user_name(os.geteuid())
    return f"sudo install -d -o {owner} -g {owner} -m 700 {quote(str(folder))}"
