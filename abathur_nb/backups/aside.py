"""Replacing a file that SQLite can't write into: what is there is moved aside, the new one takes its name.

Several renames are no transaction. A journal says what is to be done before the first of them, and whoever finds one
completes it. The side files go first: a main file that is gone and a log that stays would give its rows to whatever
database is made there next.
"""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from abathur_nb.errors import BusyError, RefusedError
from abathur_nb.evidence.canonical import misfits, sealed, unsealed
from abathur_nb.files import fsync, make_private_directory, read_regular, write_durably
from abathur_nb.store.connection import SIDE_FILES, lock_holders
from abathur_nb.store.target import journal_of, mounted_files
from abathur_nb.text import process_name

_FOLDER = "abathur_aside_"


class JournalError(RefusedError):
    """Say that a journal cannot be read, or names a folder that is missing: nobody can complete its replacement."""


def new_folder(path: Path) -> Path:
    """Make a private directory beside the database for what is moved aside, and return it."""
    moment = datetime.now(UTC)
    folder = path.with_name(f"{_FOLDER}{moment:%Y%m%d_%H%M%S}_{moment.microsecond // 1000:03}")
    try:
        make_private_directory(folder, owned_as=path.parent)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise
    return folder


def _folder_of_ours(data: object) -> bool:
    """Return whether JSON is a name that ``new_folder`` gives: whatever else it names must not be moved or removed."""
    return isinstance(data, str) and re.fullmatch(rf"{_FOLDER}\d{{8}}_\d{{6}}_\d{{3}}", data, re.ASCII) is not None


def replace_file(path: Path, folder: Path, draft: Path) -> list[Path]:
    """Move the database and its side files into ``folder`` and give the name to ``draft``; return what was moved.

    ``draft`` is a whole database inside ``folder``, closed. Killed at any moment, ``complete`` goes on with it. Raises
    as `require_movable` does.
    """
    require_movable(path)
    draft.rename(_draft_in(folder, path))
    fsync(_draft_in(folder, path))
    fsync(folder)
    write_durably(journal_of(path), sealed({"folder": folder.name}))
    return complete(path)


def begun(path: Path) -> tuple[Path, Path] | None:
    """Return the folder of a replacement that was begun, and where its new database is; None without one. Read-only.

    Raises JournalError where that cannot be known, RefusedError where another file has taken the name.
    """
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
        remedy = "run troubleshoot.ipynb: its plan moves that file aside"
        raise JournalError(f"{journal} can't be completed: {error}", remedy) from None
    draft = _draft_in(folder, path)
    # Without a draft only the journal is left to be removed: the new database has its name.
    if not draft.exists() or _is_same(path, draft):
        return folder, path
    if os.path.lexists(path) and os.path.lexists(folder / path.name):
        raise _taken(path)
    return folder, draft


def _taken(path: Path) -> RefusedError:
    remedy = f"see what it is, move it away, then run this again: {quote(str(path))}"
    return RefusedError(f"another file took the name {path} meanwhile", remedy)


def complete(path: Path) -> list[Path]:
    """Go on with a replacement that was begun; return what is moved aside now, nothing if none was begun.

    Raises RefusedError as `begun` does, and as `require_movable` does.
    """
    found = begun(path)
    if found is None:
        return []
    (folder, new), draft = found, _draft_in(found[0], path)
    if new == draft:
        require_movable(path)
        for name in (f"{path}{suffix}" for suffix in (*SIDE_FILES, "")):
            with suppress(FileNotFoundError):
                os.rename(name, _free(folder / Path(name).name))  # noqa: PTH104
        fsync(folder)
        fsync(path.parent)
        try:
            os.link(draft, path)
        except FileExistsError:
            raise _taken(path) from None
    fsync(path.parent)
    moved = sorted(entry for entry in folder.iterdir() if entry != draft)
    draft.unlink(missing_ok=True)
    journal_of(path).unlink()
    fsync(path.parent)
    return moved


def set_journal_aside(path: Path) -> list[Path]:
    """Move a journal that nobody can complete into a new directory; return all that lies in directories of its kind."""
    folder, journal = new_folder(path), journal_of(path)
    try:
        journal.rename(folder / journal.name)
    except OSError:
        folder.rmdir()
        raise
    fsync(folder)
    fsync(path.parent)
    return sorted(path.parent.glob(f"{_FOLDER}*/*"))


def _draft_in(folder: Path, path: Path) -> Path:
    """Return where the new database waits, under a name that nothing has that is moved beside it."""
    return folder / f"new.{path.name}"


def _free(path: Path) -> Path:
    """Return a name that nothing has: a rename would replace what was moved there before this was killed."""
    while os.path.lexists(path):
        path = path.with_name(f"{path.name}+")
    return path


def _is_same(path: Path, draft: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(draft))
    except FileNotFoundError:
        return False


def discard(folder: Path, path: Path) -> None:
    """Remove a folder into which nothing of the database at ``path`` was moved, nor will be by a journal."""
    if not os.path.lexists(journal_of(path)) and not any(
        entry.name.startswith(path.name) for entry in folder.iterdir()
    ):
        shutil.rmtree(folder, ignore_errors=True)


def users_of(path: Path, *, own: bool = False) -> list[str]:
    """Name the other processes that have the database or a side file of it open, or locked. Read-only; Linux only.

    ``own`` counts this process too. Of what another user has open, root alone sees more than one lock.
    """
    files = set()
    for suffix in ("", *SIDE_FILES):
        with suppress(OSError):
            found = os.stat(f"{path}{suffix}")
            files.add((found.st_dev, found.st_ino))
    pids = {pid for pid in _having_open(files) if own or pid != os.getpid()}
    return sorted({*map(process_name, pids), *lock_holders(path, exclusive=False)})


def _having_open(files: set[tuple[int, int]]) -> Iterable[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    found = os.stat(descriptor)
                    if (found.st_dev, found.st_ino) in files:
                        yield int(process.name)


def require_movable(path: Path) -> None:
    """Raise RefusedError where a file of the database is a mount point, BusyError while a process has one open.

    A process, this one included, would go on writing to the file that was moved.
    """
    for mounted in mounted_files(path):
        raise RefusedError(mounted.observed, mounted.remedy)
    if users := users_of(path, own=True):
        raise BusyError(f"{path} or a side file of it is open in {', '.join(users)}", "stop it, then try again")
