"""What the files of a database say: who may use them, under how many names, how large and how whole its log is."""

import os
import stat
from pathlib import Path
from shlex import quote

from abathur_nb.apart import ask
from abathur_nb.connection import SIDE_FILES
from abathur_nb.location import has_access_list, writable_by_others
from abathur_nb.report import Check
from abathur_nb.settings import Settings
from abathur_nb.target import give_to_owner
from abathur_nb.wording import counted, user_name

__all__ = ["FILE_MODES", "file_modes", "file_names", "log_check", "wal_size"]

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
    unfinished last transaction is normal.
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
    damaged = f"of {found['frames']:,} frames SQLite reads {found['read']:,}\ncause: {where} is damaged"
    copy = " ".join(("cp -p", *(quote(f"{path}{suffix}") for suffix in ("", "-wal")), "DIR/"))
    return Check.that(
        "log",
        found["torn"] < 0,
        expected=expected,
        observed=counted(found["read"], "frame") if found["torn"] < 0 else damaged,
        remedy=f"first copy the database with its log, which the next writer overwrites: {copy}; stop its processes",
    )
