"""Preflight: whether this machine, and the place of the database on it, can carry one (the runbook's section 1)."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import aiosqlite

from abathur_nb import probe
from abathur_nb.connection import connect, pragma
from abathur_nb.report import Check, Report, Status, run_check
from abathur_nb.scratch import nearest_existing, scratch_directory
from abathur_nb.settings import Settings, Severity
from abathur_nb.target import identify, user_name

__all__ = ["HAZARDS", "Hazard", "file_system", "location_checks", "preflight"]

Version = tuple[int, ...]


class Hazard(NamedTuple):
    """Hold a fault known of some versions of SQLite: from ``first`` to ``last``, less the branches that mended it."""

    name: str
    first: Version
    last: Version
    mended: tuple[Version, ...]
    effect: str
    remedy: str


HAZARDS = (
    # https://sqlite.org/wal.html, "The WAL-Reset Bug"
    Hazard(
        "WAL-reset race",
        (3, 7, 0),
        (3, 51, 2),
        ((3, 44, 6), (3, 50, 7)),
        "two connections that commit and checkpoint at once can corrupt the database",
        "use a SQLite of 3.51.3 or newer (conda env create -f environment.yml); until then, one writing process",
    ),
)

# What a database in write-ahead mode meets on these: its index is shared memory, which no network carries.
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs")
_LAYERED = ("overlay", "aufs", "fuse")
_MB = 1_000_000
_PROBE_SECONDS = 5


async def preflight(settings: Settings) -> Report:
    """Report whether a database can be made and used at ``settings.db_path``. Leaves nothing behind."""
    folder = settings.db_path.parent
    location, refused = location_checks(settings)
    asked: Sequence[tuple[str, Callable[[], Awaitable[Check]]]] = (
        ("file system behaviour", lambda: _behaviour(settings)),
        ("database file", lambda: _target(settings)),
    )
    found = await asyncio.gather(
        *(run_check(name, ask, remedy=f"namei -l {quote(str(folder))}") for name, ask in asked)
    )
    checks = (*_software(), *_hazards(settings), *location, *found, _backups(settings))
    return Report("preflight", checks, subject=str(settings.db_path), refused=refused)


def location_checks(settings: Settings) -> tuple[list[Check], bool]:
    """Check the directory, its file system and the free disk, and tell whether any forbids a database. Read-only."""
    place = nearest_existing(settings.db_path.parent)
    answers = [_directory(settings, place), _file_system(settings, place), (_free_disk(settings, place), False)]
    return [check for check, _ in answers], any(check.failed and forbids for check, forbids in answers)


def _software() -> list[Check]:
    conn = sqlite3.connect(":memory:")
    try:
        json_works = conn.execute("SELECT json_insert('[1]', '$[#]', 2)").fetchone()[0] == "[1,2]"
    except sqlite3.Error:
        json_works = False
    finally:
        conn.close()
    python = sys.version.split()[0]
    shell = shutil.which("sqlite3")
    newer = "install a newer Python: conda env create -f environment.yml"
    return [
        Check.that("Python", sys.version_info >= (3, 11), expected="3.11 or newer", observed=python, remedy=newer),
        Check.that(
            "SQLite",
            sqlite3.sqlite_version_info >= (3, 35),
            expected="3.35 or newer",
            observed=sqlite3.sqlite_version,
            remedy=newer,
        ),
        Check.that(
            "SQLite's JSON functions",
            json_works,
            expected="compiled in",
            observed="work" if json_works else "missing",
            remedy=newer,
        ),
        Check.that(
            "SQLite's thread safety",
            sqlite3.threadsafety > 0,
            expected="connections may live in threads",
            observed=f"sqlite3.threadsafety = {sqlite3.threadsafety}",
            remedy=newer,
        ),
        Check("aiosqlite", "pass", expected="importable", observed=aiosqlite.__version__),
        Check.that(
            "sqlite3 shell",
            shell is not None,
            expected="there, for salvaging a damaged database",
            observed=shell or "not found",
            remedy="sudo apt-get install sqlite3 (or: conda install sqlite)",
            otherwise="skip",
        ),
    ]


def _hazards(settings: Settings, linked: Version = sqlite3.sqlite_version_info) -> list[Check]:
    checks = []
    for hazard in HAZARDS:
        mended = any(linked[:2] == branch[:2] and linked >= branch for branch in hazard.mended)
        struck = hazard.first <= linked <= hazard.last and not mended
        observed = f"SQLite {'.'.join(map(str, linked))}"
        checks.append(
            Check.that(
                hazard.name,
                not struck,
                expected="a version of SQLite without it",
                observed=f"{observed}: {hazard.effect}" if struck else observed,
                remedy=hazard.remedy,
                otherwise="fail" if settings.require_safe_wal else "warn",
            )
        )
    return checks


def _directory(settings: Settings, place: Path) -> tuple[Check, bool]:
    """Check who owns and who may write to the database's directory; a missing one will be made."""
    folder = settings.db_path.parent
    me = user_name(os.geteuid())
    install = _install(settings, folder)
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


async def _behaviour(settings: Settings) -> Check:
    """Try on a database of its own what write-ahead mode needs of the file system, with a second process."""
    place = nearest_existing(settings.db_path.parent)
    with scratch_directory(place, "probe") as scratch:
        path = scratch / "probe.db"
        path.touch(mode=0o600)
        async with connect(path, settings=settings, mode="rw") as conn:
            await conn.execute_fetchall("PRAGMA journal_mode = WAL")
            await conn.execute_fetchall("PRAGMA user_version = 7")
            mode, written = await pragma(conn, "journal_mode"), await pragma(conn, "user_version")
            await conn.execute_fetchall("BEGIN IMMEDIATE")
            seen = await _second_process(path)
    wanted = {"journal_mode": "wal", "user_version": 7, "lock": "SQLITE_BUSY"}
    return Check.that(
        "file system behaviour",
        (mode, written) == ("wal", 7) and seen == wanted,
        expected="journal mode wal is kept; a second process reads, and is refused a second write lock",
        observed=f"journal mode {mode}; the second process: {', '.join(f'{k} {v}' for k, v in seen.items())}",
        remedy=f"put the database on a local disk: -p db_path …; to see what there is: df -hT {quote(str(place))}",
        evidence=[f"tried in a scratch directory in {place}"],
    )


async def _second_process(path: Path) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        # -I and -S: no site-packages, which would take longer than the probe itself
        *(sys.executable, "-I", "-S", probe.__file__, path.as_uri().removeprefix("file://")),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _PROBE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        return {"error": f"no answer within {_PROBE_SECONDS} s"}
    answer: dict[str, object] = json.loads(output or b'{"error": "ended without an answer"}')
    return answer


async def _target(settings: Settings) -> Check:
    return (await identify(settings)).check


def _backups(settings: Settings) -> Check:
    folder = settings.backup_dir
    usable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    fault = "may not be written to" if folder.is_dir() else "is no directory yet"
    return Check.that(
        "backup directory",
        usable,
        expected="a directory that may be written to",
        observed=str(folder) if usable else f"{folder} {fault}",
        remedy=_install(settings, folder),
        otherwise="warn",
    )


def _install(settings: Settings, folder: Path) -> str:
    owner = settings.service_account or user_name(os.geteuid())
    return f"sudo install -d -o {owner} -g {owner} -m 700 {quote(str(folder))}"
