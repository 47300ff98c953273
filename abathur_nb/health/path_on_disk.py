"""Checks of a database's path: directories, owners, modes, mounts, file system, free disk, size of the log."""

import grp
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from shlex import join, quote
from typing import Literal

from abathur_nb.config.settings import Settings, Severity
from abathur_nb.errors import RefusedError
from abathur_nb.files import nearest_existing
from abathur_nb.report import Check, Status
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import SIDE_FILES, explain_error
from abathur_nb.text import MB, counted, user_name

FILE_MODES = "file_modes"
ELSEWHERE = "put the database on a local disk: -p db_path /a/local/disk/abathur.db"

_ALL = os.R_OK | os.W_OK | os.X_OK  # access to a directory; fsync opens it for reading
_LOG_S, _FRAMES_A_SECOND = 10, 10_000  # the shortest time limit of `log_check`, and the speed of a slow machine


def location_checks(settings: Settings) -> list[Check]:
    """Check the directory, its file system and the free disk. Read-only."""
    folder = settings.db_path.parent
    try:
        place = nearest_existing(folder)
        found = [*directory_checks(settings), _file_system(settings, place), _free_disk(settings, place)]
        return [*found, *mounted_files(settings.db_path)]
    except OSError as error:  # a directory was removed meanwhile
        fault = explain_error(folder, error)
        return [_judged("directory", "refuse", "a directory that still exists", fault.observed, fault.remedy)]


def directory_checks(settings: Settings) -> list[Check]:
    """Check the database's directory and the directories above it. Read-only."""
    return [_directory(settings), _above(settings)]


def forbids(checks: Iterable[Check]) -> bool:
    """Return whether one of these checks forbids a database at this path; a failed check alone does not."""
    return any(check.data.get("forbids") for check in checks)


def _judged(check_id: str, severity: Severity | None, expected: str, observed: str, remedy: str = "") -> Check:
    """Return a check with the status for ``severity``; without a severity it passes."""
    status: Status = "pass" if severity is None else "warn" if severity == "warn" else "fail"
    data = {"forbids": True} if severity == "refuse" else {}
    return Check(check_id, status, expected, observed, remedy if severity else "", data=data)


def _directory(settings: Settings) -> Check:
    """Check the owner and mode of the database's directory; init makes a missing one."""
    folder, me = settings.db_path.parent, user_name(os.geteuid())
    install, account = install_command(settings, folder), settings.service_account
    # If db_path is set, this may be a trial on a machine without the service account.
    for_another = account not in ("", me) and (settings.is_default_path or _has_account(account))
    expected = f"a directory of {account if for_another else me}'s own, mode 0700"
    if not os.path.lexists(folder):
        place = nearest_existing(folder)
        if not os.access(place, _ALL):
            observed = f"{folder} is missing, and {me} may not create it in {place}"
            return _judged("directory", "refuse", expected, observed, install)
        observed = f"{folder} will be created with mode 0700" + (f" for {me}, not for {account}" * for_another)
        return _judged("directory", "warn" if for_another else None, expected, observed, install)
    found = os.lstat(folder)
    mode, mine = stat.S_IMODE(found.st_mode), found.st_uid == os.geteuid()
    another = f"take a directory of its own: -p db_path {quote(str(folder / 'abathur' / settings.db_path.name))}"
    chmod = f"chmod 700 {quote(str(folder))}"
    as_owner = f"run it as the owner: sudo -u {quote(user_name(found.st_uid))} {join(settings.command('init'))}"
    if mode & 0o077:  # others may use it, as they use /tmp or /etc
        chmod = f"if nobody else uses it: {chmod}; else {another}"
    # The file system may forbid what the mode allows.
    usable = f"{as_owner}; or {another}" if not mine else ELSEWHERE if mode & 0o700 == 0o700 else chmod
    # A user who may write to the directory can replace the files; read access is a lesser fault.
    faults: list[tuple[bool, Severity | None, str]] = [
        (not stat.S_ISDIR(found.st_mode), "refuse", f"db_path: name a file in a directory, not {quote(str(folder))}"),
        (not os.access(folder, _ALL), "refuse", usable),
        (not mine, settings.on_shared_directory, as_owner),
        (writable_by_others(folder), settings.on_shared_directory, chmod),
        (for_another, "warn", install),
        (bool(mode & 0o077), "warn", chmod),
        (True, None, ""),
    ]
    severity, remedy = next((severity, remedy) for at_fault, severity, remedy in faults if at_fault)
    observed = f"{folder} is {user_name(found.st_uid)}'s, mode {mode:04o}"
    return _judged("directory", severity, expected, observed, remedy)


def _above(settings: Settings) -> Check:
    """Check the directories above: a user who may rename an entry in one can replace the database."""
    folder, severity = settings.db_path.parent, settings.on_shared_directory
    trusted = {0, os.geteuid(), *([os.lstat(folder).st_uid] if os.path.lexists(folder) else [])}
    faults: dict[str, Severity] = {}
    for above, entry in _way_to(folder):
        status, worst, words = os.stat(above), severity, ""
        if status.st_uid not in trusted:
            if severity == "fail" and _is_unmapped(status.st_uid):  # root of another user namespace may own it
                worst, words = "warn", ", who is not in this user namespace"
        elif not writable_by_others(above):
            continue
        elif status.st_mode & stat.S_ISVTX and (not os.path.lexists(entry) or os.lstat(entry).st_uid in trusted):
            worst, words = "warn", ", sticky"  # only its owner may rename an entry
        faults[f"{above} is {user_name(status.st_uid)}'s, mode {stat.S_IMODE(status.st_mode):04o}{words}"] = worst
    owners = " or ".join(dict.fromkeys(("root", user_name(os.geteuid()))))
    expected = f"each belongs to {owners}, and nobody else may write to it: who renames one can replace the database"
    observed = "; ".join(faults) or f"as expected, from / to {folder.parent}"
    remedy = f"let only root or you change the directories above; to see each: namei -l {quote(str(folder))}"
    found = severity if severity in faults.values() else "warn" if faults else None
    return _judged("directories_above", found, expected, observed, remedy)


def _way_to(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each directory on the way to ``path``, following links, and the entry that is looked up in it."""
    for entry in (*reversed(path.parents[:-1]), path):
        if not os.path.isdir(entry.parent):
            return
        yield Path(os.path.realpath(entry.parent)), entry
        if entry.is_symlink() and os.path.isdir(entry):
            yield from _way_to(entry.parent / entry.readlink())


def _is_unmapped(uid: int) -> bool:
    """Return whether a user id stands for all users outside this user namespace (user_namespaces(7))."""
    mapped = Path("/proc/self/uid_map").read_text().split()
    return uid == int(Path("/proc/sys/kernel/overflowuid").read_text()) and mapped != ["0", "0", "4294967295"]


def _has_account(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except (KeyError, ValueError):  # a name that cannot be encoded is a ValueError
        return False


def no_folder(settings: Settings) -> RefusedError | None:
    """Return why no backup directory can be made or used at its path, as it is a link or a file; or None."""
    folder = settings.backup_dir
    place = folder if os.path.lexists(folder) else nearest_existing(folder)
    if os.path.isdir(place) and not place.is_symlink():
        return None
    remedy = f"move it away: mv -n {quote(str(place))} {quote(f'{place}.old')}"
    if os.path.isdir(place):
        remedy = f"name the directory itself: export ABATHUR_BACKUP_DIR={quote(os.path.realpath(folder))}"
    return RefusedError(f"{place} is a link or not a directory", remedy)


def install_command(settings: Settings, folder: Path) -> str:
    """Return the command that makes ``folder`` for its owner, and the owner's account if it is missing."""
    name = settings.service_account or user_name(os.geteuid())
    user = quote(name.removeprefix("#"))  # install takes a number without #
    exists = user.isdecimal() or _has_account(name)
    make_account = "" if exists else f"sudo useradd --system --user-group {user} && "
    return f"{make_account}sudo install -d -o {user} -m 700 {quote(str(folder))}"


def writable_by_others(path: Path) -> bool:
    """Return whether others than the owner may write to a file or directory. Read-only.

    A group with the owner's name counts as private: systems that make one for each user set the umask to 002. With an
    access control list, the group bits are the most that the list can grant (acl(5)).
    """
    found = os.lstat(path)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = ""
    private = group == user_name(found.st_uid) and not _has_access_list(path)
    return bool(found.st_mode & (stat.S_IWOTH if private else stat.S_IWOTH | stat.S_IWGRP))


def _has_access_list(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError:
        return False


def _file_system(settings: Settings, place: Path) -> Check:
    name = file_system(place)
    kind = kind_of(name)
    by_kind: dict[str, Severity] = {
        "shared": "refuse",
        "host share": settings.on_host_share,
        "memory": settings.on_tmpfs,
        "layered": settings.on_overlay,
        "unknown": "warn",
    }
    severity, observed = by_kind.get(kind), f"{name} at {place}"
    remedy = f"{ELSEWHERE}; to see all file systems: df -hT {quote(str(place))}"
    if kind == "unknown":
        observed += ", an unknown type: it may be local or shared"
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        severity, observed = "refuse", f"{name}, mounted read-only at {place}"
        remedy = f"{ELSEWHERE}; or mount it for writing: findmnt -T {quote(str(place))}"
    expected = "a local file system on a disk, such as ext4, xfs or btrfs"
    return _judged("file_system", severity, expected, observed, remedy)


def free_mb(path: Path) -> float:
    """Return the free space, for this user, of the file system of ``path``. Read-only."""
    return shutil.disk_usage(path).free / MB


def _free_disk(settings: Settings, place: Path) -> Check:
    free, low = free_mb(place), settings.min_free_mb
    enough = max(low, settings.recommended_free_mb)
    severity: Severity | None = "fail" if free < low else "warn" if free < enough else None
    expected, observed = f"{enough:,} MB or more; less than {low:,} MB fails", f"{free:,.0f} MB at {place}"
    remedy = f"make room; to see what takes it: du -xh --max-depth=2 {quote(str(place))} | sort -h | tail"
    return _judged("free_disk", severity, expected, observed, remedy)


async def file_modes(path: Path) -> Check:
    """Check who may read and write a database, its side files and its directory. Read-only."""
    names = (path, *(Path(f"{path}{suffix}") for suffix in SIDE_FILES))
    found = {str(name): status for name in names if (status := _status(name))}
    folder = os.stat(path.parent)
    wrong = [name for name, at in found.items() if stat.S_IMODE(at.st_mode) != 0o600]
    strange = [name for name, at in found.items() if at.st_uid != folder.st_uid]
    listed = [name for name in (*found, str(path.parent)) if _has_access_list(Path(name))]
    shared = writable_by_others(path.parent)
    remedies = [f"chmod 600 {join(wrong)}"] if wrong else []
    # Files in a shared directory, such as /tmp, may belong to others than its owner.
    remedies += [f"sudo chown --reference={quote(str(path.parent))} {join(strange)}"] if strange and not shared else []
    remedies += [f"chmod 700 {quote(str(path.parent))}"] if shared else []
    remedies += [f"setfacl -b {join(listed)}"] if listed and remedies else []
    shown = [
        f"{name} {stat.S_IMODE(at.st_mode):04o}" + (f" of {user_name(at.st_uid)}" if strange else "")
        for name, at in (*((Path(name).name, at) for name, at in found.items()), ("directory", folder))
    ]
    expected = "0600 for the database and its side files, in a directory that only their owner may write to"
    observed, data = f"{', '.join(shown[:-1])}; {shown[-1]}", {"not_0600": wrong}
    evidence = [f"{name} has an access control list; to see it: getfacl {quote(name)}" for name in listed]
    return Check.that(FILE_MODES, not remedies, expected, observed, "; ".join(remedies), evidence=evidence, data=data)


async def file_names(path: Path) -> Check:
    """Check that a database has no second hard link: opened by that name, SQLite misses its log. Read-only."""
    count, quoted = os.lstat(path).st_nlink, quote(str(path))
    expected = "one name: SQLite finds the log of a database by its name"
    observed = f"{count} names (hard links)" if count > 1 else "one name"
    remedy = f'list all: find "$(stat -c %m {quoted})" -xdev -samefile {quoted}; rm each other name that is not in use'
    remedy += "; the next init removes one in .abathur-init-…"
    # For a moment, init gives a new database a second name.
    return Check.that("file_names", count == 1, expected, observed, remedy, "warn")


async def wal_size(path: Path, most_mb: int) -> Check:
    """Check that the write-ahead log is not larger than ``most_mb``. Read-only."""
    size = log_bytes(path) / MB
    expected, observed = f"at most {most_mb} MB", f"{size:.1f} MB"
    remedy = "run troubleshoot.ipynb: it names the reader that keeps SQLite from resetting the WAL, if there is one"
    return Check.that("wal_size", size <= most_mb, expected, observed, remedy, "warn", name="WAL size")


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:  # side files come and go
        return None


def log_bytes(path: Path) -> int:
    """Return the size of the write-ahead log, 0 if there is none. Read-only."""
    status = _status(Path(f"{path}-wal"))
    return status.st_size if status else 0


def log_check(path: Path, seconds: int = 0) -> Check:
    """Check that the log is undamaged up to its last commit; a connection must have read the database. Read-only.

    If it takes longer than ``seconds``, it is skipped; without them, its time limit depends on the size of the log. The
    next process that opens the log ignores all frames after a damaged one, and the next writer overwrites them. An
    unfinished last transaction is normal; if damage looks like one, the check warns.
    """
    size, quick = log_bytes(path), bool(seconds)
    seconds = seconds or _LOG_S + size // 4096 // _FRAMES_A_SECOND
    found = ask("log", path, str(seconds)) if size else {"frames": 0, "read": 0, "torn": -1}
    expected = "all frames are undamaged, up to the last commit"
    if found is None or found["torn"] == -2:
        observed = f"could not tell: the checksums of its frames were not computed in {seconds} s"
        status: Status = "skip" if quick or found is None else "error"
        return Check("log", status, expected, observed, "run this again when the machine is idle")
    torn, where = found["torn"], f"frame {found['torn']:,}" if found["torn"] else "its header"
    cause = f"{where} is damaged"
    if found.get("doubt"):
        cause = f"could not tell: either {cause}, or a process was killed while it committed"
    observed = f"SQLite reads {found['read']:,} of {found['frames']:,} frames\ncause: {cause}"
    observed = counted(found["read"], "frame") if torn < 0 else observed
    copy = " ".join(("cp -p", *(quote(f"{path}{suffix}") for suffix in ("", "-wal")), "DIR/"))
    remedy = f"before a writer overwrites the log, copy it with the database: {copy}; stop its processes"
    otherwise: Status = "warn" if found.get("doubt") else "fail"
    return Check.that("log", torn < 0, expected, observed, remedy, otherwise, data={"torn": torn})


FileSystem = Literal["local", "layered", "memory", "host share", "shared", "unknown"]
# Exact names in mountinfo, for FUSE without "fuse."; the shared ones come from coreutils' stat.c, gnulib's mountlist.c
# and systemd. The index of a log is shared memory: another machine or kernel does not see it.
_NAMES: dict[FileSystem, str] = {
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


def kind_of(name: str) -> FileSystem:
    """Return the kind of a file system by its exact name; one of FUSE is layered unless it is shared."""
    base, _, of_fuse = name.partition(".")
    is_fuse = base in ("fuse", "fuseblk")
    kinds = {one: kind for kind, names in _NAMES.items() for one in names.split()}
    found = kinds.get(of_fuse if is_fuse else name, "unknown")
    return "layered" if is_fuse and found not in ("shared", "host share") else found


def mounted_files(path: Path) -> list[Check]:
    """Return a warning if the database or a side file is itself a mount point. Read-only; Linux only."""
    # Such a file can be written to, but not renamed or removed (EBUSY).
    points = {point for point, _ in _mounts()}
    found = [name for name in (str(path), *(f"{path}{s}" for s in SIDE_FILES)) if os.path.realpath(name) in points]
    if not found:
        return []
    expected = "the directory is mounted, not a single file of the database"
    observed = f"mount points, which cannot be renamed or removed: {', '.join(found)}"
    folder = quote(str(path.parent))
    # If only the database file is mounted, its log is lost with the container.
    remedy = f"stop its processes, copy the database with its -wal into one directory, and mount that at {folder} "
    return [Check("mounted_files", "warn", expected, observed, f"{remedy}in place of the file: -v DIRECTORY:{folder}")]


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the name of the file system that holds ``path``, or ``unknown``. Read-only.

    ``mounts`` is the text of ``/proc/self/mountinfo``, by default this process's own.
    """
    real = os.path.realpath(path)
    found = [mount for mount in _mounts(mounts) if real == mount[0] or real.startswith(mount[0].rstrip("/") + "/")]
    # The innermost mount; of several at one point, the last hides the others.
    return max(reversed(found), key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def _mounts(text: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the mount point and the file system of each mount (proc(5)). Linux only, else none."""
    with suppress(OSError):
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape") if text is None else text
    for line in (text or "").splitlines():
        fields, _, behind = line.partition(" - ")
        # A blank, a tab, a newline and a backslash in a mount point are written in octal.
        yield re.sub(r"\\([0-7]{3})", lambda c: chr(int(c[1], 8)), fields.split()[4]), behind.split()[0]
