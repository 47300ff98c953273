"""Verify: whether an archive is as it was written, every hash, link and signature recomputed."""

import argparse
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from abathur_nb.errors import RefusedError
from abathur_nb.evidence.archive import NOTEBOOK, PAGE, STATEMENT
from abathur_nb.evidence.canonical import open_regular, read_regular
from abathur_nb.evidence.keys import PublicKeys, public_keys
from abathur_nb.evidence.ledger import FIRST, LEDGER, RUN_ID, Ledger, read_ledger
from abathur_nb.evidence.reading import Entry, archive_at, is_folder, local, read_entry, run_ids
from abathur_nb.evidence.record import RECORD, STARTED
from abathur_nb.evidence.statement import Checked, check_signers, check_statement
from abathur_nb.report import Check, Report, Status
from abathur_nb.wording import shown

__all__ = ["add_arguments", "command", "verify_archive"]

_TITLE = "verify"
_EVERY_RUN = {STARTED, RECORD, NOTEBOOK, STATEMENT}  # has these, and as a rule a page
_FILES = _EVERY_RUN | {PAGE}
_FIND_OUT = "find out who did it; trust a copy that verify passes"
# What must hold, in the order in which a fault is named as the first; what to do about one.
_RULES = {
    "ledger": ("each line whole, with its own hash and the hash of the line before", _FIND_OUT),
    "last line": ("a whole one", "it is no tampering: the next run of this environment closes it"),
    "runs": (
        "each file is there, with the hash that the ledger names; each record says what the ledger says",
        _FIND_OUT,
    ),
    "order": ("what each run, when it began, names as the last line is a line of the ledger", _FIND_OUT),
    "statements": ("each says in canonical form what the record and the hashes say", _FIND_OUT),
    "nothing else": ("nothing but the ledger and the runs", "find out whose it is, and move it away"),
}
_CLOCKS_S = 120  # a line says when it was to be written, and then waits its turn; a clock may be set back a little
Found = Iterator[tuple[str, str]]  # a name of _RULES, or "notes", and what was found


def verify_archive(archive: Path, *, keys: PublicKeys = MappingProxyType({})) -> Report:
    """Recompute every hash and link of an archive, and with ``keys`` every signature. Read-only; follows no link.

    What is wrong fails a check, the first fault named first. Unsealed runs, and sealed ones without a line in the
    ledger, are a warning: no evidence, and no fault. Raises RefusedError for a directory that can't be read.
    """
    names = run_ids(archive)  # before the ledger: of a run that ends meanwhile the folder is found too
    try:
        ledger, unread = read_ledger(archive), ""
    except RefusedError as error:
        ledger, unread = Ledger(), str(error)
    entries = [read_entry(archive, run_id, ledger.runs.get(run_id)) for run_id in sorted(names | ledger.runs.keys())]
    if not entries and ledger == Ledger():
        unread = unread or f"no run, and no line of a ledger, is in {archive}"
    found: dict[str, list[str]] = {name: [] for name in (*_RULES, "notes")}
    found["ledger"] += [unread, *ledger.faults] if unread else ledger.faults
    found["last line"] += [ledger.torn] if ledger.torn else []
    found["notes"] += ledger.notes
    statements: list[tuple[str, Checked]] = []
    for rule, told in (
        *(one for entry in entries for one in _run(entry, keys, statements)),
        *_order(entries, ledger),
        *_strangers(archive, entries),
    ):
        found[rule].append(told)
    signatures = _signatures(statements, keys)
    archived = sum(entry.line is not None for entry in entries)
    passed = {
        "ledger": f"{len(ledger.lines)} lines, each linked to the one before",
        "last line": "a whole one",
        "runs": f"{archived} archived of {len(entries)}, as they were written",
        "order": f"{sum(entry.started is not None for entry in entries)} runs, each behind a line that stands",
        "statements": f"{len(statements)} statements, as the records say",
        "nothing else": "nothing else",
    }
    checks = [
        Check.that(
            name,
            not found[name],
            expected=expected,
            observed=_first(found[name]) or passed[name],
            remedy=remedy,
            evidence=_several(found[name]),
        )
        for name, (expected, remedy) in _RULES.items()
    ]
    no_evidence = [told for entry in entries if (told := _no_evidence(entry))]
    edited = [
        f"{entry.run_id} {entry.line.data['notebook']}: its cells are not known to be the template's"
        for entry in entries
        if entry.line and not entry.line.data["as_template"]
    ]
    for name, noted in (("no evidence", no_evidence), ("other cells", edited), ("notes", found["notes"])):
        if noted:
            checks.append(Check(name, "warn", observed=_first(noted), evidence=tuple(_several(noted))))
    return Report(_TITLE, (*checks, signatures), subject=str(archive))


def _first(found: Sequence[str]) -> str:
    return (found[0] + (f"; and {len(found) - 1} more" if found[1:] else "")) if found else ""


def _several(found: Sequence[str]) -> Sequence[str]:
    """Return what was found, unless the first is all: that is told already."""
    return found if len(found) > 1 else ()


def _signatures(statements: list[tuple[str, Checked]], keys: PublicKeys) -> Check:
    """Judge who signed; without a key none is checked, which is worth a warning where there is a signature."""
    faults, notes = check_signers(statements, keys)
    status: Status = "fail" if faults else "pass"
    if not keys:
        status = "warn" if any(checked.claimed for _, checked in statements) else "skip"
    return Check(
        "signatures",
        status,
        expected="by a given key, of each run since the first that has one",
        observed=_first(faults) or "; ".join(notes),
        remedy="give each key with --key; if one is missing, find out who took it away" if faults else "",
        evidence=tuple(_several(faults)),
    )


def _run(entry: Entry, keys: PublicKeys, statements: list[tuple[str, Checked]]) -> Found:
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
    for name in sorted(_FILES & set(files) - {STARTED, RECORD}):
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


def _order(entries: list[Entry], ledger: Ledger) -> Found:
    """Yield each run that began behind a line which is not there, or was no longer the last one when it began.

    One behind its own line would have to hash itself.
    """
    known = (FIRST, *(line.sha256 for line in ledger.lines))
    next_to = dict(zip(known, ledger.lines, strict=False))
    for entry in entries:
        if entry.started is None:
            continue
        head, began = entry.started["ledger_head"], entry.started["started_at"]
        if head not in known:
            yield "order", f"{entry.run_id}: the last line of the ledger when it began is gone: cut off, or rewritten"
        elif head in next_to and _seconds_between(next_to[head].data["written_at"], began) > _CLOCKS_S:
            named = f"{LEDGER} line {next_to[head].number}"
            yield "order", f"{entry.run_id}: it began at {began}, and does not know {named}, which was written before"


def _seconds_between(earlier: str, later: str) -> float:
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (ValueError, TypeError):  # a forged time may name a zone
        return float("inf")


def _strangers(archive: Path, entries: list[Entry]) -> Found:
    """Yield what else is in the archive; what is hidden, and what others may read or write, is only noted."""
    known = {entry.run_id for entry in entries}
    folders = {archive: {LEDGER} | known}
    for entry in entries:
        folders[entry.folder] = set(entry.line.data["files"]) if entry.line else _FILES
    open_to_others = ["the archive itself"] if _is_open_to_others(archive) else []
    for folder, expected in folders.items():
        if folder != archive and not is_folder(folder):
            continue
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            yield "nothing else", f"{folder.name}: it cannot be read: {error.strerror}"
            continue
        for path in paths:
            where = shown(str(path.relative_to(archive)))
            if path.name not in expected and not RUN_ID.fullmatch(str(path.relative_to(archive))):
                hidden = path.name.startswith(".")  # of a killed run, or of JupyterLab
                yield ("notes", f"{where} is a leftover, no evidence") if hidden else ("nothing else", where)
            elif _is_open_to_others(path):
                open_to_others.append(where)
    if open_to_others:
        yield "notes", f"others may use {len(open_to_others)} files or folders: {', '.join(open_to_others[:3])}"


def _is_open_to_others(path: Path) -> bool:
    try:
        found = os.lstat(path).st_mode
    except OSError:  # gone since, or a fault that is told elsewhere
        return False
    return not stat.S_ISLNK(found) and bool(found & 0o077)


def _no_evidence(entry: Entry) -> str:
    if entry.faults or (entry.line and entry.record):
        return ""
    if entry.record:
        ending = "sealed as {verdict}, but without a line in the ledger: not archived, or the line was taken away"
        return f"{entry.run_id} {entry.record['notebook']}: {ending.format(verdict=entry.verdict)}"
    begun = f"{entry.started['notebook']}: begun" if entry.started else "begun"
    return f"{entry.run_id} {begun}, never sealed: it died, or still runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``verify`` takes."""
    parser.add_argument("archive", metavar="ARCHIVE", help="the directory of an archive, or the URL of a copy")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="PUBLIC.pem",
        help="a public key that runs must be signed with; several may be given",
    )


def command(arguments: argparse.Namespace) -> int:
    """Print the report on an archive and the first fault; return 0 if there is none, else 1. Read-only."""
    keys = public_keys(arguments.key)
    with _local(arguments.archive) as archive:
        report = replace(verify_archive(archive, keys=keys), subject=arguments.archive)
    sys.stdout.write(f"{report}\n")
    failed = [check for check in report.checks if check.failed]
    faults = [fault for check in failed for fault in check.evidence or (check.observed,)]
    if faults:
        sys.stdout.write(f"{'the one fault' if len(faults) == 1 else f'first of {len(faults)} faults'}: {faults[0]}\n")
    return 0 if report.ok else 1


def _local(archive: str) -> AbstractContextManager[Path]:
    if "://" not in archive:
        return local(archive_at("ARCHIVE", archive))
    from abathur_nb.evidence.copying import fetched

    return fetched(archive)
