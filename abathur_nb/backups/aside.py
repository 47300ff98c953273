"""Replace a file that SQLite can't write into: move the old file aside and give its name to the new one.

Several renames are not one transaction: a journal, written before the first rename, names the directory, so that the
next change completes the replacement. The side files are moved first: a log left behind would add its rows to the next
database at that path.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from glob import iglob
from pathlib import Path
from shlex import quote

from abathur_nb.config.settings import Settings
from abathur_nb.errors import BusyError, RefusedError
from abathur_nb.evidence.canonical import misfits, sealed, unsealed
from abathur_nb.files import at, fsync, make_private_file, private_directory, read_regular, write_durably
from abathur_nb.health.path_on_disk import mounted_files
from abathur_nb.report import Check
from abathur_nb.store.apart import ask
from abathur_nb.store.connection import SIDE_FILES, lock_owners, open_for_change
from abathur_nb.store.target import journal_of
from abathur_nb.text import file_stamp, process_name

FOLDERS = "abathur_aside_"  # prefix of the directories into which files are moved


def new_folder(path: Path) -> Path:
    """Make a private directory beside the database for files that are moved aside; return its path."""
    folder = path.with_name(f"{FOLDERS}{file_stamp(datetime.now(UTC))}")
    with private_directory(folder, owned_as=path.parent):
        return folder


def _folder_of_ours(data: object) -> bool:
    """Return whether ``data`` is a name that ``new_folder`` gives; no other directory may be moved or removed."""
    return isinstance(data, str) and re.fullmatch(rf"{FOLDERS}\d{{8}}_\d{{6}}_\d{{3}}", data, re.ASCII) is not None


def draft_in(folder: Path, path: Path) -> Path:
    """Return the path in ``folder`` of the new database before it gets its name; no moved file has it."""
    return folder / f"new.{path.name}"


async def replace_file(path: Path, write: Callable[[Path], Awaitable[None]], done: list[Check]) -> None:
    """Move the database and its side files into a new directory, and give its name to the file that ``write`` makes.

    If the process is killed at any moment, `complete` continues. Raises as `require_movable` does.
    """
    folder = new_folder(path)
    draft = draft_in(folder, path)
    try:
        await write(draft)
        require_movable(path)
        fsync(draft)
        fsync(folder)
        write_durably(journal_of(path), sealed({"folder": folder.name}))
        moved = ", ".join(entry.name for entry in complete(path))
    except BaseException:
        gone = [name for suffix in ("", *SIDE_FILES) if os.path.lexists(name := folder / f"{path.name}{suffix}")]
        if gone or os.path.lexists(journal_of(path)):
            observed = f"the replacement of {path} in {folder} may be unfinished"
            done.append(Check("begun", "warn", "a complete replacement", observed, "run this again"))
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    done.append(Check("moved_aside", "pass", "the previous files, unchanged", f"{folder}: {moved}"))


def begun(path: Path) -> tuple[Path, Path] | None:
    """Return the folder of an unfinished replacement and its new database, or None. Read-only. Raises RefusedError."""
    journal = journal_of(path)
    try:
        data = unsealed(read_regular(journal))
        if faults := misfits(data, {"folder": _folder_of_ours}):
            raise ValueError("; ".join(faults))
        folder = path.with_name(data["folder"])
        if not folder.is_dir():
            raise ValueError(f"{folder} is missing")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        away = f"mv -n {quote(str(journal))} {quote(f'{journal}.old')}"
        remedy = f"pick the file with your rows, {path} or one in {FOLDERS}… beside it; move it to {path}; then {away}"
        raise RefusedError(f"{journal} can't be completed: {error}", remedy) from None
    draft = draft_in(folder, path)
    # Without a draft, the new database already has its name, and only the journal must be removed.
    if not draft.exists() or (os.path.lexists(path) and os.path.samestat(os.lstat(path), os.lstat(draft))):
        return folder, path
    if os.path.lexists(path) and os.path.lexists(folder / path.name):
        remedy = f"check this file, move it away, then run this again: {quote(str(path))}"
        raise RefusedError(f"another file has taken the name {path}", remedy)
    return folder, draft


def complete(path: Path) -> list[Path]:
    """Complete an unfinished replacement; return the files moved aside. Raises RefusedError as `begun` does."""
    if not (found := begun(path)):
        return []
    (folder, new), draft = found, draft_in(found[0], path)
    if new == draft:
        require_movable(path)
        move_aside(path, (*SIDE_FILES, ""), folder)
        os.link(draft, path)  # if another file has just taken the name, the next run reports it (`begun`)
    fsync(path.parent)
    moved = sorted(entry for entry in folder.iterdir() if entry != draft)
    draft.unlink(missing_ok=True)
    journal_of(path).unlink()
    fsync(path.parent)
    return moved


def move_aside(path: Path, suffixes: Iterable[str], folder: Path | None = None) -> Path:
    """Move the database's files with these suffixes into a directory beside it; return its path. Raises OSError."""
    folder = folder or new_folder(path)
    try:
        for name in (f"{path.name}{suffix}" for suffix in suffixes):
            aside = folder / name
            while os.path.lexists(aside):  # moved there by a process that was killed
                aside = aside.with_name(f"{aside.name}+")
            with suppress(FileNotFoundError):
                os.rename(path.with_name(name), aside)  # noqa: PTH104
    except OSError:
        with suppress(OSError):  # fails if a file was moved
            folder.rmdir()
        raise
    fsync(folder)
    fsync(path.parent)
    return folder


async def set_log_aside(settings: Settings, *, write: bool) -> Check:
    """Copy a database and its damaged log into a new directory beside it, then move the log there.

    With ``write``, SQLite first writes the readable part of the log into the database. Raises OSError, and
    as `require_movable` does: a process that has the log open may still read more of it.
    """
    path = settings.db_path
    require_movable(path)
    folder = new_folder(path)
    copy, copied_log = folder / path.name, folder / f"{path.name}-wal"
    try:
        with at(folder):
            make_private_file(copy, owned_as=path.parent)
            await asyncio.to_thread(ask, "copy", path, f"{path}-wal", "", copy)
        for written in (copy, copied_log, folder, path.parent):
            fsync(written)
    except BaseException:
        shutil.rmtree(folder)
        raise
    if write:
        # Neither this checkpoint nor the last connection that closes changes the log.
        async with open_for_change(path, settings.busy_timeout_ms) as conn:
            await conn.execute_fetchall("PRAGMA wal_checkpoint(FULL)")
    require_movable(path)
    copied_log.unlink()  # the log itself replaces this copy
    move_aside(path, SIDE_FILES, folder)
    expected, observed = "a log that SQLite reads to its end", f"{folder} has the database and its log, unchanged"
    remedy = f"they may hold transactions that {path} now lacks: keep {folder} until you know that none is needed"
    return Check("log_aside", "warn", expected, observed, remedy)


def users_of(path: Path, *, own: bool = False) -> list[str]:
    """Return the processes that have a file of the database open or locked, this one only with ``own``. Read-only."""
    files, pids = [], set[int]()
    for suffix in ("", *SIDE_FILES):
        with suppress(OSError):
            files.append(os.stat(f"{path}{suffix}"))
    for descriptor in iglob("/proc/[0-9]*/fd/*"):  # noqa: PTH207 - Path.glob raises if a process ends meanwhile
        with suppress(OSError):
            found = os.stat(descriptor)
            if any(os.path.samestat(found, file) for file in files):
                pids.add(int(descriptor.split("/")[2]))
    pids -= set() if own else {os.getpid()}
    return sorted({*map(process_name, pids), *lock_owners(ask("look", path)[0], exclusive=False)})


def require_movable(path: Path) -> None:
    """Raise RefusedError if a file of the database is a mount point, BusyError if a process has one open."""
    for mounted in mounted_files(path):
        raise RefusedError(mounted.observed, mounted.remedy)
    if users := users_of(path, own=True):
        raise BusyError(f"{path} or a side file of it is open in {', '.join(users)}", "stop it, then try again")
