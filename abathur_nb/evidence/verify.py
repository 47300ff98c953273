"""Verify: whether an archive is as it was written: every hash, link, file and signature is recomputed."""

import argparse
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from abathur_nb.evidence.keys import PublicKeys, public_keys
from abathur_nb.evidence.ledger import FIRST, LEDGER, RUN_ID, Ledger, read_ledger
from abathur_nb.evidence.reading import Entry, archive_at, is_folder, read_entry, run_ids
from abathur_nb.evidence.record import NOTEBOOK, PAGE, PDF, RECORD, STARTED, STATEMENT, Started
from abathur_nb.evidence.statement import Checked, check_signers, check_statement
from abathur_nb.evidence.stores import local
from abathur_nb.files import open_regular, read_regular
from abathur_nb.report import Check, Report, Status
from abathur_nb.text import counted, moment_of, shown

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
        head, began = started.ledger_head, started.started_at
        after = behind.get(head)
        if head not in known:
            yield "order", f"{entry.run_id}: the last line of the ledger when it began is gone: cut off, or rewritten"
        elif after and after != entry.line and _is_before(after.data["written_at"], began):
            words = f"it began at {began}, and does not know {LEDGER} line {after.number}, which was written before"
            yield "order", f"{entry.run_id}: {words}"
        elif head == FIRST and entry.line and _place(started) != first:
            yield "order", f"{entry.run_id}: it began in {_place(started)}, the first run in {first}: another archive"
    before = ""
    for line in ledger.lines:
        written, latest = line.data["written_at"], max(before, line.data.get("ended_at", ""))
        if latest and _is_before(written, latest):
            yield "notes", f"{LEDGER} line {line.number} says {written}, and {latest} was before: a clock was set back"
        before = written


def _place(started: Started) -> str:
    return f"{started.env} {started.settings.get('archive_dir')} on {started.host}"


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
    except OSError:  # gone since, or a fault that is reported elsewhere
        return False
    return not stat.S_ISLNK(found) and bool(found & 0o077)


_TITLE = "verify"
_FIND_OUT = "find out who did it; trust a copy that verify passes"
# What must hold, in the order in which a fault is named as the first; what is said when it does; what to do about one.
_RULES = {
    "ledger": (
        "each line whole, with its own hash and the hash of the line before",
        "{lines}, each with the hash of the one before",
        _FIND_OUT,
    ),
    "last_line": ("a whole one", "it is whole", "it is not tampering: the next run of this environment closes it"),
    "runs": (
        "each file is there, with the hash that the ledger names; each record says what the ledger says",
        "{archived} archived of {runs}, as they were written",
        _FIND_OUT,
    ),
    "order": (
        "what each run, when it began, names as the last line was then the last line of this ledger",
        "{begun}, each begun behind a line that stands",
        _FIND_OUT,
    ),
    "statements": (
        "each says in canonical form what the record and the hashes say",
        "{statements}, as the records say",
        _FIND_OUT,
    ),
    "nothing_else": (
        "nothing but the ledger and the runs",
        "the ledger and the runs alone",
        "find out whose it is, and move it away",
    ),
}


def verify_archive(archive: Path, *, keys: PublicKeys = MappingProxyType({})) -> Report:
    """Recompute every hash and link of an archive, and with ``keys`` every signature. Read-only; follows no link.

    What is wrong fails a check, the first fault named first. Unsealed runs, and sealed ones without a line in the
    ledger, are a warning: no evidence, and no fault. Raises RefusedError for a directory that can't be read.
    """
    names = run_ids(archive)  # before the ledger: of a run that ends meanwhile the folder is found too
    ledger = read_ledger(archive)
    in_order = (*ledger.runs, *sorted(names - ledger.runs.keys()))  # an id may be forged, its place in the chain not
    entries = [read_entry(archive, run_id, ledger.runs.get(run_id)) for run_id in in_order]
    if not entries and ledger == Ledger():
        return Report(_TITLE, (_no_archive(archive),), subject=str(archive))
    found: dict[str, list[str]] = {name: [] for name in (*_RULES, "notes")}
    found["ledger"] += ledger.faults
    found["last_line"] += [ledger.torn] if ledger.torn else []
    found["notes"] += ledger.notes
    statements: list[tuple[str, Checked]] = []
    for rule, words in (
        *(one for entry in entries for one in of_run(entry, keys, statements)),
        *of_order(entries, ledger),
        *strangers(archive, entries),
    ):
        found[rule].append(words)
    signatures = _signatures(statements, keys)
    count = {
        "lines": counted(len(ledger.lines), "line"),
        "runs": len(entries),
        "archived": sum(entry.line is not None for entry in entries),
        "begun": counted(sum(entry.started is not None for entry in entries), "run"),
        "statements": counted(len(statements), "statement"),
    }
    checks = [
        Check.that(
            name,
            not found[name],
            expected=expected,
            observed=_first(found[name]) or passed.format(**count),
            remedy=remedy,
            evidence=_several(found[name]),
        )
        for name, (expected, passed, remedy) in _RULES.items()
    ]
    no_evidence = [words for entry in entries if (words := _no_evidence(entry))]
    edited = [
        f"{entry.run_id} {entry.line.data['notebook']}: its cells are not known to be the template's"
        for entry in entries
        if entry.line and not entry.line.data["as_template"]
    ]
    for name, noted in (("no_evidence", no_evidence), ("other_cells", edited), ("notes", found["notes"])):
        if noted:
            checks.append(Check(name, "warn", observed=_first(noted), evidence=tuple(_several(noted))))
    return Report(_TITLE, (*checks, signatures), subject=str(archive))


def _no_archive(archive: Path) -> Check:
    observed = f"no run, and no line of a ledger, is in {archive}"
    near = [folder for folder in (archive / "runs", archive.parent) if (folder / LEDGER).is_file()]
    remedy = f"did you mean {near[0]}?" if near else "name the directory of an archive"
    return Check("ledger", "fail", _RULES["ledger"][0], observed, remedy)


def _first(found: Sequence[str]) -> str:
    return (found[0] + (f"; and {len(found) - 1} more" if found[1:] else "")) if found else ""


def _several(found: Sequence[str]) -> Sequence[str]:
    """Return what was found, unless the first is all: that is shown already."""
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


def _no_evidence(entry: Entry) -> str:
    if entry.faults or (entry.line and entry.record):
        return ""
    if entry.record:
        ending = "sealed as {verdict}, but without a line in the ledger: not archived, or the line was taken away"
        return f"{entry.run_id} {entry.record.notebook}: {ending.format(verdict=entry.verdict)}"
    begun = f"{entry.started.notebook}: begun" if entry.started else "begun"
    return f"{entry.run_id} {begun}, never sealed: it died, or still runs"


def command(arguments: argparse.Namespace) -> int:
    """Print the report on an archive, faults first; return 0 if there is none, else 1. Read-only."""
    keys = public_keys(arguments.key)
    with local(archive_at("ARCHIVE", arguments.archive)) as archive:
        report = replace(verify_archive(archive, keys=keys), subject=arguments.archive)
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
