"""What stands at the database path: known from its directory entry and its identity, before anything is done to it."""

import asyncio
import json
import os
import re
import sqlite3
import stat
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Literal

from aiosqlite import Connection

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, RefusedError, bound_reached
from abathur_nb.report import Check, Report
from abathur_nb.store import apart, pages
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import SIDE_FILES, connect, explain_error, pragma
from abathur_nb.store.guarded import strays, strays_check
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION, expected_objects
from abathur_nb.store.sql import load_queries, normalized
from abathur_nb.text import SHELL, as_user, some, user_name

_ANOTHER = "db_path: name another path, or move it away by hand"
_RESTORE = "stop its writers and restore a backup"
FIND_OUT = "it does not belong here: find out who made it; if nobody needs it, drop it"
_MOST = 20  # statements of a command
_LOOK_S = 10  # at most; the schema of a file that is not hostile takes milliseconds
_KINDS = {
    stat.S_ISDIR: "is a directory",
    stat.S_ISLNK: "is a symbolic link",
    stat.S_ISFIFO: "is a FIFO",
    stat.S_ISSOCK: "is a socket",
    stat.S_ISCHR: "is a character device",
    stat.S_ISBLK: "is a block device",
}


@dataclass(frozen=True, slots=True)
class Target:
    """Say what stands at the database path.

    ``absent`` and free to be made; an ``empty`` shell of 0 bytes; a ``damaged`` file; ``remains`` of a database that is
    gone; ``refused``, which must not be touched; or ``present``, a database of this application whose schema this
    package knows. ``check`` says why, and ``error`` is the kind that it is to whoever needs a database.
    """

    state: "State"
    check: Check
    error: type[AbathurError] = RefusedError


State = Literal["absent", "empty", "damaged", "remains", "refused", "present"]


def _target(state: State, observed: str, remedy: str = "") -> Target:
    status: Literal["pass", "fail"] = "pass" if state in ("absent", "present") else "fail"
    expected = "an Abathur database, a regular file in a directory that is not a link"
    return Target(state, Check("database_file", status, expected=expected, observed=observed, remedy=remedy))


def examine(settings: Settings, *, journal: bool = True) -> Target:
    """Tell from the directory alone what stands at ``settings.db_path``. Read-only; opens nothing.

    Without ``journal`` a replacement that was begun is not looked for.
    """
    path = settings.db_path
    if path.name.endswith(SIDE_FILES):  # SQLite would take it for a part of the database that is named like the rest
        named = f"{path} is named as SQLite names a side file ({', '.join(SIDE_FILES)})"
        return _target("refused", named, "db_path: name another one, such as abathur.db")
    if journal and os.path.lexists(journal_of(path)):
        begun = f"{path} was being replaced, and that was not completed: {journal_of(path).name} says so"
        return _target(
            "remains", begun, "run troubleshoot.ipynb, restore.ipynb or rollback.ipynb: each plans to complete it first"
        )
    try:
        parent = os.lstat(path.parent)
        if stat.S_ISLNK(parent.st_mode):
            real = os.path.realpath(path.parent)
            return _target(
                "refused", f"{path.parent} is a symbolic link to {real}", f"db_path: name {real}/{path.name}"
            )
        found = os.lstat(path)
    except FileNotFoundError:
        return _absent(settings)
    except OSError as error:
        return _target("refused", f"{path} cannot be looked at: {error.strerror}", _as_owner(settings, path.parent))
    for name in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)):
        # SQLite would wait for ever for the other end of a FIFO, be it only a side file.
        if words := _kind(name):
            remedy = "db_path: name a regular file, or one that is to be made"
            if stat.S_ISLNK(found.st_mode) and os.path.lexists(f"{path}-wal"):  # at the other place it is not read
                real = os.path.realpath(path)
                remedy = (
                    f"{path}-wal may hold committed rows of {real}: if so, stop its users and move it back to {path}"
                )
            return _target("refused", f"{name} {words}", remedy)
    if found.st_size == 0:
        mounted = [check.remedy for check in mounted_files(path)]  # a container's runtime makes what is missing
        remedy = f"see that nothing uses it, then: rm {quote(str(path))} && {_command('init', settings)}"
        remedy = f"{mounted[0]}; then: {_command('init', settings)}" if mounted else remedy
        return _target("empty", f"{path} is an empty shell of 0 bytes", remedy)
    if not os.access(path, os.R_OK):
        return _target("refused", f"{path} may not be read by {user_name(os.geteuid())}", _as_owner(settings, path))
    return _target("present", f"{path}, {found.st_size:,} bytes")


def _kind(name: str) -> str:
    """Say what stands at ``name`` if it is not a regular file; an empty text if it is one, or nothing."""
    try:
        mode = os.lstat(name).st_mode
    except FileNotFoundError:
        return ""
    return next((words for is_kind, words in _KINDS.items() if is_kind(mode)), "")


def _absent(settings: Settings) -> Target:
    path = settings.db_path
    stale = [f"{path}{suffix}" for suffix in SIDE_FILES if os.path.lexists(f"{path}{suffix}")]
    if stale and not os.path.lexists(path):  # else it was made since the look before, and these are its own
        # A database made beside another's log would be given that log's rows.
        remedy = f"they may hold committed rows of a lost database; to move them aside: {repair_command(settings)}"
        return _target("remains", f"no database, but side files of a former one: {', '.join(stale)}", remedy)
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    if not os.path.isdir(above):  # noqa: PTH112 - False, where Path raises for a link into a closed directory
        link = " that leads nowhere" if above.is_symlink() else ""
        return _target(
            "refused", f"{above} is {'a link' if link else 'no directory'}{link}", "db_path: name another one"
        )
    if above != path.parent:
        return _target("absent", f"no database, and no directory {path.parent}")
    return _target("absent", f"no database at {path}")


def journal_of(path: Path) -> Path:
    """Return where a replacement of the database that takes several steps writes down that it has begun."""
    return path.with_name(f"{path.name}.replacing.json")


async def identify(settings: Settings, *, refuses: Collection[str] = ("trigger", "view")) -> Target:
    """Tell what stands at ``settings.db_path``, its application and schema version included. Read-only.

    ``refuses`` names the kinds of objects with which the caller can't use a database: a store, triggers and views.

    The file is read through SQLite alone: closing a descriptor of one's own would drop the locks that this very
    process holds on it through SQLite.
    """
    target = examine(settings)
    if target.state != "present":
        return target
    path = settings.db_path
    if found := strays(path, own=True):  # SQLite would mix its files with those at the path
        remedy = f"close it here; to save what it holds, from another process: {repair_command(settings)}"
        return _target("refused", f"this process, {found[0]}", remedy)
    try:
        async with connect(path, settings=settings) as conn:
            application_id, version = await pragma(conn, "application_id"), await pragma(conn, "user_version")
            alien = await conn.execute_fetchall(load_queries("inspect.sql")["triggers_and_views"].sql)
            foreign, fault = await foreign_check(conn, settings), await version_fault(conn, settings)
    except (sqlite3.Error, OSError, AbathurError) as error:
        state, explained = await explain_unopened(path, error)
        observed = explained.observed
        remedy = f"{_RESTORE}: {restore_command(settings)}" if state == "damaged" else explained.remedy
        target = replace(_target(state, observed, remedy), error=type(explained))
        # A sound database, perhaps: nobody can tell before its recovery.
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK:
            check = replace(
                target.check,
                status="error",
                observed=f"could not run: {observed}",
                remedy=repair_command(settings),
                data={"error": observed},
            )
            return replace(target, check=check)
        return target
    if ids := spoilt_ids(application_id, version):
        return _target("damaged", f"{path} {ids}", f"{_RESTORE}: {restore_command(settings)}")
    if foreign and not foreign.data:
        return Target("refused", foreign)
    if fault and not foreign:
        return _target("refused", fault.observed, fault.remedy)
    if aliens := [row for row in alien if row["type"] in refuses]:
        names, drops = some([f"{row['type']} {row['name']}" for row in aliens]), [row["drops"] for row in aliens]
        return _target("refused", f"{path} holds {names}", f"{FIND_OUT} {shell_command(path, drops)}")
    return Target("refused", foreign) if foreign else target


async def explain_unopened(path: Path, error: Exception) -> tuple[State, AbathurError]:
    """Return whether a file that SQLite can't open is a ``damaged`` database of ours, and the error. Read-only."""
    explained, code = explain_error(path, error), getattr(error, "sqlite_errorcode", 0) & 0xFF
    if str(error) == "unsupported file format":  # one byte of the header, which no other error names
        code = sqlite3.SQLITE_NOTADB
    if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or bound_reached(error):
        return "refused", explained
    ours = await asyncio.to_thread(_is_ours, path)
    fault = await asyncio.to_thread(ask, "header", path) if ours else ""
    if ours and (fault or code == sqlite3.SQLITE_NOTADB):
        destroyed = "its header (the first 100 bytes) is destroyed, the tables behind it are Abathur's"
        explained = RefusedError(f"{path} is CORRUPT: {fault or destroyed}", _RESTORE)
    elif not ours and code == sqlite3.SQLITE_CORRUPT:
        explained = RefusedError(f"{path} is another application's, and CORRUPT ({error})", _ANOTHER)
    return "damaged" if ours else "refused", explained


def _is_ours(path: Path) -> bool:
    """Tell from a file's header, or from the tables behind a destroyed one, whether it is Abathur's. Read-only.

    By another process: this one may have the file open through SQLite, and would drop its locks.
    """
    look = apart.program(pages.__file__, str(path))
    try:
        done = subprocess.run(look, capture_output=True, timeout=_LOOK_S, check=True)  # noqa: S603 - a path
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    known = {name: normalized(table.sql) for name, table in expected_objects().items()}
    return found.pop("application_id", 0) == APPLICATION_ID or any(
        normalized(sql) == known.get(name) for name, sql in found.items()
    )


def spoilt_ids(application_id: int, version: int) -> str:
    """Say that one byte of the header's ids is damaged, if no other application or version would have them."""
    found, ours = (
        [number.to_bytes(4, "big", signed=True) for number in ids]
        for ids in ((application_id, version), (APPLICATION_ID, SCHEMA_VERSION))
    )
    bytes_off = sum(one != two for one, two in zip(b"".join(found), b"".join(ours), strict=True))
    if bytes_off != 1 or found[1][3:] != ours[1][3:]:  # the last byte is what a newer version would change
        return ""
    return f"is CORRUPT: one byte of its header, which says application_id {application_id:#x}, user_version {version}"


async def foreign_check(conn: Connection, settings: Settings) -> Check | None:
    """Return the check of a database that is not marked as ours, or None. Read-only.

    Its data says so where it has all tables and indexes of ours, and a repair can mark it.
    """
    path, found = settings.db_path, await pragma(conn, "application_id")
    if found == APPLICATION_ID:
        return None
    if found == 0 and await _has_our_schema(conn):
        observed = f"{path} has Abathur's tables, but its application_id is missing, as after a dump"
        return replace(_target("refused", observed, f"to set it: {repair_command(settings)}").check, data={"remade": 1})
    observed = f"{path} is another application's or half-made: application_id {found:#010x}"
    return _target("refused", observed, f"{_ANOTHER} (Abathur has {APPLICATION_ID:#x})").check


async def version_fault(conn: Connection, settings: Settings) -> RefusedError | None:
    """Return the error of a database whose schema version is not the one that this package knows, or None. Read-only.

    Where its schema is the known one, only the number is wrong.
    """
    path, version = settings.db_path, await pragma(conn, "user_version")
    if version == SCHEMA_VERSION:
        return None
    if await _has_our_schema(conn):
        remedy = f"its schema is that of version {SCHEMA_VERSION}; if the number was set by hand, set it back "
        remedy += shell_command(path, [f"PRAGMA user_version = {SCHEMA_VERSION};"])
    else:
        moved = f"mv -n {quote(str(path))} {quote(f'{path}.version-{version}')}"
        remedy = f"stop its users and move it aside: {moved}; then restore a backup: {restore_command(settings)}; "
        remedy += f"or make a new one: {_command('init', settings)}"
    words = "half-made, or of no schema that was ever released"
    if version > SCHEMA_VERSION:
        words, remedy = "newer than this package", f"update abathur_nb; if no newer one exists: {remedy}"
    return RefusedError(f"{path} is {words}: user_version {version}, known is {SCHEMA_VERSION}", remedy)


async def _has_our_schema(conn: Connection) -> bool:
    rows = await conn.execute_fetchall(load_queries("inspect.sql")["schema"].sql)
    live = {row["name"]: normalized(row["sql"] or "") for row in rows}
    return all(live.get(name) == normalized(found.sql) for name, found in expected_objects().items())


def shell_command(path: Path, statements: Sequence[str]) -> str:
    """Return the command that runs statements for which no verb stands; its shell must be of a sound version."""
    rest = f"; then look again: there are {len(statements) - _MOST:,} more" if len(statements) > _MOST else ""
    return f"{SHELL} {quote(str(path))} {quote(' '.join(statements[:_MOST]))}{rest}"


async def require_present(settings: Settings) -> None:
    """Raise RefusedError, with the remedy, unless an Abathur database stands at ``settings.db_path``. Read-only.

    BusyError where it stays locked.
    """
    target = await identify(settings)
    if target.state != "present":
        check = wanted(target, settings)
        raise target.error(check.data.get("error", check.observed), check.remedy)


async def refusal(title: str, settings: Settings, *, refuses: Collection[str] = ()) -> Report | None:
    """Return the Report of a verb that needs an Abathur database and may not go on, or None. Read-only."""
    target = await identify(settings, refuses=refuses)
    if target.state == "present":
        return None
    # An empty shell and a damaged file are findings about a database, the rest is none of ours to judge.
    refused = target.state not in ("empty", "damaged")
    check = wanted(target, settings)
    return Report(
        title, (check if refused else to_be_repaired(check, settings),), subject=str(settings.db_path), refused=refused
    )


def repair_command(settings: Settings) -> str:
    """Return the command that says why a check fails, and shows the plan of a repair, which it does if noted to."""
    return _command("troubleshoot", settings)


def restore_command(settings: Settings) -> str:
    """Return the command that shows the plan of a restoration, which it does if noted to."""
    return _command("restore", settings)


def rollback_command(settings: Settings, to: str) -> str:
    """Return the command that shows the plan of going back to a backup or to a fresh database."""
    return f"{_command('rollback', settings)} -p to {quote(to)}"


def _command(notebook: str, settings: Settings) -> str:
    # A db_path that is given has its backups beside it, unless they are named.
    usual = settings.is_own_path or settings.backup_dir == settings.db_path.with_name("backups")
    where = "" if usual else f"ABATHUR_BACKUP_DIR={quote(str(settings.backup_dir))} "
    return f"{where}papermill {notebook}.ipynb out.ipynb {settings.as_arguments}"


def to_be_repaired(check: Check, settings: Settings) -> Check:
    """Return ``check`` with the command that repairs before its remedy by hand, if it failed."""
    if not check.failed and (check.remedy or check.status == "pass"):
        return check
    by_hand = f"; by hand: {check.remedy}" if check.remedy else ""
    return replace(check, remedy=f"to see why, and how to repair it: {repair_command(settings)}{by_hand}")


def wanted(target: Target, settings: Settings) -> Check:
    """Return the check of a target that should be a database: where there is none, it fails too."""
    if target.state in ("absent", "remains") and (lost := strays_check(settings.db_path)).failed:
        return lost
    if target.state not in ("absent", "empty"):
        return target.check
    make_it = target.check.remedy or _command("init", settings)
    # A lost database is more than a new one, where there is something to restore.
    if any(settings.backup_dir.glob("abathur_*.db*")):
        make_it = f"bring it back from a backup: {restore_command(settings)}; or make a new one: {make_it}"
    return replace(target.check, status="fail", remedy=make_it)


def init_as(settings: Settings, uid: int) -> str:
    """Return the remedy of who is not the owner: the command that runs init as the user ``uid``."""
    init = f"papermill init.ipynb /tmp/out.ipynb {settings.as_arguments}"
    return f"run it as the owner: {as_user(uid)} {init}"


def _as_owner(settings: Settings, path: Path) -> str:
    """Return the remedy of who may not use the database at ``path``, or its directory. Read-only."""
    try:
        found, folder = os.lstat(path), os.lstat(path.parent)
    except OSError:
        return f"see who owns it: namei -l {quote(str(path))}"
    is_file = not stat.S_ISDIR(found.st_mode)
    if found.st_uid == os.geteuid():
        return f"chmod {600 if is_file else 700} {quote(str(path))}"
    if is_file and found.st_uid != folder.st_uid:  # its owner may not use the directory, and is informed
        return give_to_owner(path)
    return init_as(settings, found.st_uid)


def give_to_owner(path: Path, *more: str) -> str:
    """Return the command that gives a database's files to whom their directory belongs to."""
    return f"sudo chown --reference={quote(str(path.parent))} {' '.join(map(quote, more or [str(path)]))}"


Kind = Literal["local", "layered", "memory", "host share", "shared", "unknown"]
# By the exact names of the kernel, as mountinfo has them, those of FUSE without "fuse."; the remote ones are those of
# coreutils' stat.c, gnulib's mountlist.c and systemd. The index of a write-ahead log is memory that the processes of
# one kernel share: another machine, or the host of a virtual one, does not see it.
_NAMES: dict[Kind, str] = {
    "local": "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs reiserfs reiser4 nilfs2 ubifs jffs2 ntfs3 simfs",
    "layered": "overlay overlayfs aufs unionfs ecryptfs fuse fuseblk",
    "memory": "tmpfs ramfs rootfs",
    # A container's bind mount on a laptop: Docker Desktop gives virtiofs a name of its own.
    "host share": "virtiofs 9p fakeowner osxfs grpcfuse",
    "shared": """nfs nfs4 cifs smb smb2 smb3 smbfs smbnetfs ncp ncpfs afs k-afs auristorfs coda ceph ceph-fuse cephfs
        lustre lustre_lite gpfs mmfs gfs gfs2 ocfs2 beegfs fhgfs orangefs pvfs2 panfs snfs cvfs acfs ibrix vxfs wekafs
        scoutfs glusterfs mfs moosefs lizardfs saunafs juicefs quobyte xtreemfs rozofs seaweedfs eosxd sshfs s3fs goofys
        gcsfuse blobfuse blobfuse2 mount-s3 mountpoint-s3 rclone davfs davfs2 curlftpfs ftpfs gvfsd-fuse fuse_dfs hdfs
        vboxsf vmhgfs vmhgfs-fuse hgfs prl_fs prl_fsd drvfs hostfs""",
}
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def kind_of(name: str) -> Kind:
    """Return what a file system is by its exact name; one of FUSE that is not known is layered."""
    base, _, of_fuse = name.partition(".")
    if base in ("fuse", "fuseblk"):
        found = _KIND_OF.get(of_fuse, "layered")
        return found if found in ("shared", "host share") else "layered"
    return _KIND_OF.get(name, "unknown")


def mounted_files(path: Path) -> list[Check]:
    """Return a warning if the database or a side file is itself a mount point, else nothing. Read-only; Linux only.

    Such a file can be written to, and neither renamed nor removed (EBUSY).
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return []
    # Most machines mount no such file: to look at each mount takes ten times as long as to read them.
    if re.split(r"[\s\\]", path.name)[0] not in mounts:
        return []
    names = [f"{path}{suffix}" for suffix in ("", *SIDE_FILES)]
    found = [name for name in names if _mount_of(Path(name), mounts)[0] == os.path.realpath(name)]
    if not found:
        return []
    expected = "the directory is mounted, and no single file of the database"
    observed = f"a mount point itself, which cannot be renamed or removed: {', '.join(found)}"
    folder = quote(str(path.parent))
    # A log beside a file that is mounted alone is lost with the container.
    remedy = f"stop its processes, copy the database with its -wal into one directory, and mount that at {folder} "
    return [Check("mounted_files", "warn", expected, observed, f"{remedy}in place of the file: -v DIRECTORY:{folder}")]


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the name of the file system that holds ``path``, ``unknown`` where it can't be known. Read-only."""
    return _mount_of(path, mounts)[1]


def _mount_of(path: Path, mounts: str | None = None) -> tuple[str, str]:
    """Return the mount point of the file system that holds ``path``, and its name. Read-only.

    ``mounts`` is the text of ``/proc/self/mountinfo`` (proc(5)), by default this process's own; Linux only.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return "", "unknown"
    real, found = os.path.realpath(path), list[tuple[str, str, str, str]]()
    for line in mounts.splitlines():
        fields, _, behind = line.partition(" - ")
        number, parent, _, _, written = fields.split()[:5]
        # A blank, a tab, a newline and a backslash in a mount point are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), written)
        if real == point or real.startswith(point.rstrip("/") + "/"):
            found.append((point, number, parent if parent != number else "", behind.split()[0]))
    numbers, at, point, kind = {number for _, number, _, _ in found}, "", "", "unknown"
    # As the kernel looks a path up: at each step the mount that the path comes to first. One that was mounted later on
    # a directory above hides what was mounted deeper before: that one's parent is another mount.
    while here := [mount for mount in found if (mount[2] if mount[2] in numbers else "") == at]:
        point, at, _, kind = min(here, key=lambda mount: len(mount[0]))
    return point, kind
