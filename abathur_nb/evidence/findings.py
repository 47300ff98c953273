"""What is wrong with an archive, run by run, line by line, file by file."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from abathur_nb.evidence.keys import PublicKeys
from abathur_nb.evidence.ledger import FIRST, LEDGER, RUN_ID, Ledger
from abathur_nb.evidence.reading import Entry, is_folder
from abathur_nb.evidence.record import NOTEBOOK, PAGE, PDF, RECORD, STARTED, STATEMENT
from abathur_nb.evidence.statement import Checked, check_statement
from abathur_nb.files import open_regular, read_regular
from abathur_nb.wording import moment_of, shown

__all__ = ["Found", "of_order", "of_run", "strangers"]

_SEALED = {STARTED, RECORD}  # all that a run without a line has
_EVERY_RUN = _SEALED | {NOTEBOOK, STATEMENT}  # that has a line; and as a rule a page
_FILES = _EVERY_RUN | {PAGE, PDF}
_CLOCKS_S = 120  # a line says when it was to be written, and then waits its turn; a clock may be set back a little
Found = Iterator[tuple[str, str]]  # the id of the check of what must hold, or "notes", and what was found


def of_run(entry: Entry, keys: PublicKeys, statements: list[tuple[str, Checked]]) -> Found:
    """Yield what is wrong with the files of one run, and add what was found out of its statement to ``statements``."""
    yield from (("runs", fault) for fault in entry.faults)
    if entry.line is None or not is_folder(entry.folder):
        return
    files = entry.line.data["files"]
    if set(files) - _FILES or _EVERY_RUN - set(files):
        yield (
            "runs",
            f"{LEDGER} line {entry.line.number}: expected the hashes of {_told(_EVERY_RUN)}, found {_told(files)}",
        )
    for name in sorted(_FILES & set(files) - _SEALED):
        where = f"{entry.run_id}/{name}"
        try:
            with open_regular(entry.folder / name) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != files[name]:
                yield "runs", f"{where}: it is not the file that the ledger names"
            elif name == STATEMENT and entry.record and not entry.faults:
                hashes = {other: digest for other, digest in files.items() if other != STATEMENT}
                content, as_template = read_regular(entry.folder / name), entry.line.data["as_template"]
                checked = check_statement(content, hashes, entry.record, keys, as_template=as_template)
                statements.append((entry.run_id, checked))
                yield from (("statements", f"{where}: {fault}") for fault in checked.faults)
        except FileNotFoundError:
            yield "runs", f"{where}: it is gone"
        except OSError as error:
            yield "runs", f"{where}: it cannot be read: {error.strerror}"


def _told(names: Mapping[str, str] | set[str]) -> str:
    return ", ".join(map(shown, sorted(names)))


def of_order(entries: list[Entry], ledger: Ledger) -> Found:
    """Yield each run that did not begin where it says, behind a line of this ledger; and note odd times.

    One that began behind its own line would have to hash itself. A run of another archive, signed with the same key,
    began behind lines that are not here, unless it was the first there.
    """
    known = (FIRST, *(line.sha256 for line in ledger.lines))
    behind = dict(zip(known, ledger.lines, strict=False))  # the line that follows
    first = next((_place(entry.started) for entry in entries if entry.started and entry.line), "")
    for entry, started in ((entry, entry.started) for entry in entries if entry.started):
        head, began = started["ledger_head"], started["started_at"]
        after = behind.get(head)
        if head not in known:
            yield "order", f"{entry.run_id}: the last line of the ledger when it began is gone: cut off, or rewritten"
        elif after and after != entry.line and _is_before(after.data["written_at"], began):
            told = f"it began at {began}, and does not know {LEDGER} line {after.number}, which was written before"
            yield "order", f"{entry.run_id}: {told}"
        elif head == FIRST and entry.line and _place(started) != first:
            yield "order", f"{entry.run_id}: it began in {_place(started)}, the first run in {first}: another archive"
    before = ""
    for line in ledger.lines:
        written, latest = line.data["written_at"], max(before, line.data.get("ended_at", ""))
        if latest and _is_before(written, latest):
            yield "notes", f"{LEDGER} line {line.number} says {written}, and {latest} was before: a clock was set back"
        before = written


def _place(started: Mapping[str, Any]) -> str:
    return f"{started['env']} {started['settings'].get('archive_dir')} on {started['host']}"


def _is_before(earlier: str, later: str) -> bool:
    """Return whether a moment is clearly before another one; so is what is not a moment."""
    try:
        return (moment_of(later) - moment_of(earlier)).total_seconds() > _CLOCKS_S
    except ValueError:
        return True


def strangers(archive: Path, entries: list[Entry]) -> Found:
    """Yield what else is in the archive; what is hidden, and what others may read or write, is only noted."""
    folders = {archive: {LEDGER, *(entry.run_id for entry in entries)}}
    for entry in entries:
        folders[entry.folder] = set(entry.line.data["files"]) if entry.line else _SEALED
    open_to_others = ["the archive itself"] if _is_open_to_others(archive) else []
    for folder, expected in folders.items():
        if folder != archive and not is_folder(folder):
            continue
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            yield "nothing_else", f"{folder.name}: it cannot be read: {error.strerror}"
            continue
        for path in paths:
            where = shown(str(path.relative_to(archive)))
            if path.name not in expected and not RUN_ID.fullmatch(str(path.relative_to(archive))):
                # Of a killed run, or of JupyterLab; of one that was killed while it was archived, or still is.
                is_left = path.name.startswith(".") or (expected == _SEALED and _is_half_archived(path))
                yield ("notes", f"{where} is a leftover, no evidence") if is_left else ("nothing_else", where)
            elif _is_open_to_others(path):
                open_to_others.append(where)
    if open_to_others:
        yield "notes", f"others may use {len(open_to_others)} files or folders: {', '.join(open_to_others[:3])}"


def _is_half_archived(path: Path) -> bool:
    return path.name in _FILES and os.path.lexists(path.with_name(RECORD))  # which is sealed first


def _is_open_to_others(path: Path) -> bool:
    try:
        found = os.lstat(path).st_mode
    except OSError:  # gone since, or a fault that is told elsewhere
        return False
    return not stat.S_ISLNK(found) and bool(found & 0o077)
