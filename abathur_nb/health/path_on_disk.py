"""The path of a database on this machine: its directories, owners, modes and file system, and the room on the disk."""

import errno
import grp
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from abathur_nb.causes import os_cause
from abathur_nb.config.settings import Settings, Severity
from abathur_nb.errors import RefusedError
from abathur_nb.files import nearest_existing
from abathur_nb.report import Check, Status
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import SIDE_FILES, explain_error
from abathur_nb.store.target import file_system, give_to_owner, init_as, kind_of, mounted_files
from abathur_nb.text import MB, counted, user_name

ELSEWHERE = "put the database on a local disk: -p db_path /a/local/disk/abathur.db"

_MOST_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_ALL = os.R_OK | os.W_OK | os.X_OK  # of a directory: to force the names in it to the disk, it must be opened


def location_checks(settings: Settings) -> tuple[list[Check], bool]:
    """Check the directory, its file system and the free disk, and tell whether any forbids a database. Read-only."""
    folder = settings.db_path.parent
    try:
        place = nearest_existing(folder)
        answers = [*directory_checks(settings), _file_system(settings, place), (_free_disk(settings, place), False)]
        answers += [(check, False) for check in mounted_files(settings.db_path)]
    except OSError as error:  # a directory that was there has vanished
        fault = explain_error(folder, error)
        answers = [(Check("directory", "fail", "a directory that stays", fault.observed, fault.remedy), True)]
    return [check for check, _ in answers], any(check.failed and forbids for check, forbids in answers)


def directory_checks(settings: Settings) -> list[tuple[Check, bool]]:
    """Check the database's directory and those above it, and tell of each whether it forbids a database. Read-only."""
    return [_directory(settings), _above(settings)]


def _directory(settings: Settings) -> tuple[Check, bool]:
    """Check who owns and may use the database's directory; a missing one will be made."""
    folder, place = settings.db_path.parent, nearest_existing(settings.db_path.parent)
    if place != folder:
        return _missing_directory(settings, place), True
    found = os.lstat(folder)
    mode = stat.S_IMODE(found.st_mode)
    mine = found.st_uid == os.geteuid()
    # Never the mode or the owner of a directory that serves others as well, such as /tmp or /etc.
    # One that nobody else may use serves nobody else, even if it can't be listed.
    own = _is_our_own(settings) or (mine and not mode & 0o077)
    another = f"take a directory of its own: -p db_path {quote(str(folder / 'abathur' / settings.db_path.name))}"
    chmod = f"chmod 700 {quote(str(folder))}" if own else another
    as_owner = init_as(settings, found.st_uid)
    shut = read_only(folder)
    if shut:
        usable = shut.remedy
    elif not mine:
        usable = f"{as_owner}; or make it the right one's: {install_command(settings, folder)}" if own else another
    else:  # what its mode allows, a file system may not
        usable = ELSEWHERE if mode & 0o700 == 0o700 else chmod
    # A shared directory lets others swap the files; one that only others can read is a lesser thing.
    faults: list[tuple[bool, Severity, str]] = [
        (not stat.S_ISDIR(found.st_mode), "refuse", f"db_path: name a file in a directory, not {quote(str(folder))}"),
        (not os.access(folder, _ALL), "refuse", usable),
        (not mine, settings.on_shared_directory, as_owner),
        (writable_by_others(folder), settings.on_shared_directory, chmod),
        (_is_for_another(settings), "warn", install_command(settings, folder)),
        (bool(mode & 0o077), "warn", chmod),
    ]
    expected = f"a directory of {user_name(os.geteuid())}'s own, mode 0700"
    observed = f"{folder} is {user_name(found.st_uid)}'s, mode {mode:04o}" + (f"; {shut.observed}" if shut else "")
    for at_fault, severity, remedy in faults:
        if at_fault:
            status: Status = "warn" if severity == "warn" else "fail"
            return Check("directory", status, expected, observed, remedy), severity == "refuse"
    return Check("directory", "pass", expected, observed), False


def _above(settings: Settings) -> tuple[Check, bool]:
    """Check the directories above the database's: who may rename what is in one of them can swap the database's."""
    folder, severity = settings.db_path.parent, settings.on_shared_directory
    trusted = {0, os.geteuid(), *([os.lstat(folder).st_uid] if os.path.lexists(folder) else [])}
    # What cannot be distinguished from root, or holds only until somebody makes the next directory, warns where a
    # database may be tried out.
    lesser: Severity = "warn" if severity == "fail" else severity
    faults: dict[Path, tuple[Severity, str]] = {}
    for above, entry in _way_to(folder):
        found, inside = os.lstat(above), os.lstat(entry) if os.path.lexists(entry) else None
        fault: tuple[Severity, str] | None = None
        if found.st_uid not in trusted:
            unmapped = _is_unmapped(found.st_uid)
            fault = (lesser, ", who is not in this user namespace") if unmapped else (severity, "")
        elif writable_by_others(above):
            # Where it is sticky only the owner of an entry renames it.
            sticky = found.st_mode & stat.S_ISVTX and (inside is None or inside.st_uid in trusted)
            fault = ("warn", ", sticky") if sticky else (severity, "")
        if fault:
            words = f"{above} is {user_name(found.st_uid)}'s, mode {stat.S_IMODE(found.st_mode):04o}"
            faults.setdefault(above, (fault[0], words + fault[1]))
    worst = next((s for s in ("refuse", "fail", "warn") if s in [s for s, _ in faults.values()]), None)
    owners = " or ".join(dict.fromkeys(("root", user_name(os.geteuid()))))
    check = Check.that(
        "directories_above",
        worst is None,
        expected=f"each belongs to {owners}, and nobody else may write to it: who renames one can swap the database",
        observed="; ".join(words for _, words in faults.values()) or f"as expected, from / to {folder.parent}",
        remedy=f"put the database below directories of root's or your own; to see each: namei -l {quote(str(folder))}",
        otherwise="warn" if worst == "warn" else "fail",
    )
    return check, worst == "refuse"


def _way_to(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each directory that a lookup of ``path`` passes, links followed, and the entry that it takes there."""
    here, names, links = Path("/"), [*reversed(path.parts[1:])], 0
    while names and os.path.isdir(here):  # noqa: PTH112 - False, where Path raises for one in a closed directory
        entry = here / names.pop()
        yield here, entry
        if not entry.is_symlink():
            here = here.parent if entry.name == ".." else entry
            continue
        links += 1
        if links > _MOST_LINKS:
            return
        target = str(entry.readlink())
        here = Path("/") if target.startswith("/") else here
        names += [name for name in reversed(target.split("/")) if name not in ("", ".")]


def _is_unmapped(uid: int) -> bool:
    """Return whether a number may stand for every user that this user namespace does not map (user_namespaces(7))."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        return uid == overflow and Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except (OSError, ValueError):
        return False


def _is_our_own(settings: Settings) -> bool:
    """Return whether the database's directory holds nothing but what belongs to it. Read-only."""
    ours = (settings.db_path.name, settings.backup_dir.name, settings.archive_dir.name, ".abathur-")
    try:
        return all(found.name.startswith(ours) for found in settings.db_path.parent.iterdir())
    except OSError:
        return False


def _missing_directory(settings: Settings, place: Path) -> Check:
    """Say that the directory will be made, unless it can't be, or would be made for the wrong user."""
    folder, me, account = settings.db_path.parent, user_name(os.geteuid()), settings.service_account
    status: Status = "pass"
    owner, observed, shut = me, f"{folder} will be made 0700", read_only(place)
    if not os.access(place, _ALL):
        lacks = "listed" if os.access(place, os.W_OK | os.X_OK) else "written to"
        status = "fail"
        observed = f"no {folder}, and " + (shut.observed if shut else f"{place} may not be {lacks} by {me}")
    elif _is_for_another(settings):
        status, owner, observed = "warn", account, f"{observed} for {me}, not for {account}"
    return Check.that(
        "directory",
        status == "pass",
        expected=f"a directory of {owner}'s own, mode 0700",
        observed=observed,
        remedy=shut.remedy if shut else install_command(settings, folder),
        otherwise=status,
    )


def _is_for_another(settings: Settings) -> bool:
    """Return whether the database is to belong to another than the one who runs this."""
    if settings.service_account in ("", user_name(os.geteuid())):
        return False
    account = _user(settings.service_account)
    if account is None:  # a trial on a machine of one's own has no such account and another path
        return settings.is_own_path
    return account.pw_uid != os.geteuid()


def writable_by_others(path: Path) -> bool:
    """Return whether anybody but its owner may write to a file or directory. Read-only.

    A group of the owner's name is taken for a private one: where each user has one, the umask is 002. With an access
    control list the group's bits are the most that it grants (acl(5)).
    """
    found = os.lstat(path)
    if not found.st_mode & stat.S_IWGRP:
        return bool(found.st_mode & stat.S_IWOTH)
    private = group_name(found.st_gid) == user_name(found.st_uid) and not has_access_list(path)
    return bool(found.st_mode & stat.S_IWOTH) or not private


def has_access_list(path: Path) -> bool:
    """Return whether a file or directory has an access control list; False where none can be had. Read-only."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except OSError:
        return False


def _file_system(settings: Settings, place: Path) -> tuple[Check, bool]:
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
    if kind == "unknown":
        observed += ", which is not known to be local or shared"
    if read_only(place):
        observed, severity = f"{name}, mounted read-only at {place}", "refuse"
    check = Check.that(
        "file_system",
        severity is None,
        expected="a local one that keeps what is written, such as ext4, xfs or btrfs",
        observed=observed,
        remedy=f"{ELSEWHERE}; to see what there is: df -hT {quote(str(place))}",
        otherwise="warn" if severity == "warn" else "fail",
    )
    return check, severity == "refuse"


def read_only(place: Path) -> RefusedError | None:
    """Return the error of a place that is mounted read-only, None for another. Read-only."""
    if not os.statvfs(place).f_flag & os.ST_RDONLY:
        return None
    fault = os_cause(OSError(errno.EROFS, os.strerror(errno.EROFS), str(place)), place)
    return RefusedError(fault.observed, f"{ELSEWHERE}; or {fault.remedy}")


def free_mb(path: Path) -> float:
    """Return how much room the file system of ``path`` has for this user. Read-only."""
    return shutil.disk_usage(path).free / MB


def _free_disk(settings: Settings, place: Path) -> Check:
    free = free_mb(place)
    low = settings.min_free_mb
    enough = max(low, settings.recommended_free_mb)
    return Check.that(
        "free_disk",
        free >= enough,
        expected=f"{enough:,} MB or more; less than {low:,} MB fails",
        observed=f"{free:,.0f} MB at {place}",
        remedy=f"make room; to see what takes it: du -xh --max-depth=2 {quote(str(place))} | sort -h | tail",
        otherwise="fail" if free < low else "warn",
    )


def install_command(settings: Settings, folder: Path) -> str:
    """Return the command that makes ``folder`` as a database of this environment wants it, and its owner if need be."""
    name = settings.service_account or user_name(os.geteuid())
    account = _user(name)
    make_account = ""
    if account is not None:
        user, group = account.pw_name, group_name(account.pw_gid)
    elif name.removeprefix("#").isdecimal():  # install takes a bare number
        user = group = name.removeprefix("#")
        if not settings.service_account:
            group = group_name(os.getegid())
    else:
        user = group = name
        make_account = f"sudo useradd --system --user-group {quote(user)} && "
    return f"{make_account}sudo install -d -o {quote(user)} -g {quote(group)} -m 700 {quote(str(folder))}"


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):  # a NUL or what can't be encoded is a ValueError
        return None


def group_name(gid: int) -> str:
    """Return the name of a group, or the number of one that has none. Read-only."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


FILE_MODES = "file_modes"
_MB = 1_000_000
_LOG_S, _FRAMES_A_SECOND = 10, 10_000  # how long a look at the log may take, and how much a slow machine sums up


async def file_modes(path: Path) -> Check:
    """Check who may read and write a database, its side files and its directory. Read-only."""
    found = {}
    for name in (str(path), *(f"{path}{suffix}" for suffix in SIDE_FILES)):
        try:
            found[name] = os.lstat(name)
        except FileNotFoundError:  # side files come and go
            continue
    wrong = [name for name, at in found.items() if stat.S_IMODE(at.st_mode) != 0o600]
    folder = os.stat(path.parent)
    strange = [name for name, at in found.items() if at.st_uid != folder.st_uid]
    listed = [name for name in (*found, str(path.parent)) if has_access_list(Path(name))]
    shut = writable_by_others(path.parent)
    remedies = [f"chmod 600 {' '.join(map(quote, wrong))}"] if wrong else []
    # The owner of a directory that serves others as well, such as /tmp, has no claim to it.
    remedies += [give_to_owner(path, *strange)] if strange and not shut else []
    remedies += [f"chmod 700 {quote(str(path.parent))}"] if shut else []
    remedies += [f"setfacl -b {' '.join(map(quote, listed))}"] if listed and remedies else []
    return Check.that(
        FILE_MODES,
        not remedies,
        expected="0600 for the database and its side files, in a directory of their owner's that only he writes to",
        observed=", ".join(f"{Path(name).name} {_mode(at, owner=bool(strange))}" for name, at in found.items())
        + f"; directory {_mode(folder, owner=bool(strange))}",
        remedy="; ".join(remedies),
        data={"not_0600": wrong},
        evidence=[f"{name} has an access control list; to see it: getfacl {quote(name)}" for name in listed],
    )


def _mode(found: os.stat_result, *, owner: bool) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}" + (f" of {user_name(found.st_uid)}" if owner else "")


async def file_names(path: Path) -> Check:
    """Check that a database has one name: who opened it by another would not see this one's log. Read-only."""
    count = os.lstat(path).st_nlink
    quoted = quote(str(path))
    return Check.that(
        "file_names",
        count == 1,
        expected="one name, because a database's log goes by its name",
        observed=f"{count} names (hard links)" if count > 1 else "one name",
        remedy=f'name all: find "$(stat -c %m {quoted})" -xdev -samefile {quoted}; see that nobody uses another one, '
        "and rm it; one in .abathur-init-… goes with the next init",
        # init itself gives a new database its second name, and takes away the first a moment later.
        otherwise="warn",
    )


async def wal_size(path: Path, settings: Settings) -> Check:
    """Check that the write-ahead log is no larger than the settings allow. Read-only."""
    size = _log_bytes(path) / _MB
    return Check.that(
        "wal_size",
        size <= settings.max_wal_mb,
        expected=f"at most {settings.max_wal_mb} MB",
        observed=f"{size:.1f} MB",
        remedy="run troubleshoot.ipynb: it names the reader that keeps SQLite from resetting the WAL, if there is one",
        otherwise="warn",
        name="WAL size",
    )


def _log_bytes(path: Path) -> int:
    try:
        return os.lstat(f"{path}-wal").st_size
    except FileNotFoundError:
        return 0


def log_check(path: Path, seconds: int = 0) -> Check:
    """Check that the log is whole to its last commit; a connection must have read the database. Read-only.

    It is skipped if it takes more than ``seconds``; without them it takes as long as the log is large. What is behind a
    damaged frame, the first process that reads the log anew does not read, and the next writer overwrites. An
    unfinished last transaction is normal; where damage looks like one, it warns.
    """
    size, patient = _log_bytes(path), not seconds
    seconds = seconds or _LOG_S + size // 4096 // _FRAMES_A_SECOND
    found = ask("log", path, str(seconds)) if size else {"frames": 0, "read": 0, "torn": -1}
    expected = "each frame is as it was written, to the last commit"
    if found is None or (found["torn"] == -2 and not patient):
        return Check("log", "skip", expected, f"could not tell: {seconds} s are too short for a look at it")
    if found["torn"] == -2:
        observed = f"could not run: its {found['frames']:,} frames were not summed up in {seconds} s"
        return Check("log", "error", expected, observed, "run this again when the machine is idle")
    where = f"frame {found['torn']:,}" if found["torn"] else "its header"
    cause = f"could not tell: either {where} is damaged, or a process was killed while it committed"
    cause = cause if found.get("doubt") else f"{where} is damaged"
    damaged = f"of {found['frames']:,} frames SQLite reads {found['read']:,}\ncause: {cause}"
    copy = " ".join(("cp -p", *(quote(f"{path}{suffix}") for suffix in ("", "-wal")), "DIR/"))
    return Check.that(
        "log",
        found["torn"] < 0,
        expected=expected,
        observed=counted(found["read"], "frame") if found["torn"] < 0 else damaged,
        remedy=f"first copy the database with its log, which the next writer overwrites: {copy}; stop its processes",
        otherwise="warn" if found.get("doubt") else "fail",
        data={"torn": found["torn"]},
    )
