"""Verify every hash, link and signature of an archive; copy an archive that passes."""

import argparse
import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any

from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.evidence.canonical import sha256
from abathur_nb.evidence.ledger import FIRST, LEDGER, RUN_ID, Ledger, Line, content_of, newest_lines, parse
from abathur_nb.evidence.record import (
    NOTEBOOK,
    PAGE,
    PDF,
    RECORD,
    STARTED,
    STATEMENT,
    Entry,
    Started,
    is_folder,
    read_with_ledger,
    run_ids,
)
from abathur_nb.evidence.statement import Checked, PublicKeys, check_of, check_signers, check_statement, public_keys
from abathur_nb.evidence.stores import LINE, Store, archive_at, chosen_archive, copies_in, copy_lines, local, open_store
from abathur_nb.files import read_regular
from abathur_nb.report import Check, Report, Status
from abathur_nb.text import counted, moment_of, shown, some

_SEALED = {STARTED, RECORD}  # the only files of a run without a line in the ledger
_EVERY_RUN = _SEALED | {NOTEBOOK, STATEMENT}  # the required files of a run with a line
_FILES = _EVERY_RUN | {PAGE, PDF}
_CLOCKS = timedelta(minutes=2)  # a line is dated before it waits for the lock, and a clock may be set back a little
_NAMED = 5  # objects that an error names
_FIND_OUT = "find out who changed it; trust a copy that passes verify"
# By check, in the order of the report: what is expected, what is observed if it passes, and the remedy.
_RULES = {
    "ledger": ("each line has the hash of the previous one", "{lines}, each with the previous hash", _FIND_OUT),
    "last_line": ("a whole last line", "it is whole", "not tampering: the next run of this environment repairs it"),
    "runs": ("each file has its hash in the ledger", "{archived} of {runs} archived, none altered", _FIND_OUT),
    "order": ("each run began after the line it names", "{begun}, each after the line it names", _FIND_OUT),
    "statements": ("each matches record and hashes", "{statements}, all matching", _FIND_OUT),
    "anchors": ("each ledger has the line that a fleet run recorded", "{anchors} read, each has it", _FIND_OUT),
    "nothing_else": ("only ledger and runs", "only ledger and runs", "find out whose it is, and move it away"),
}
_NOT_COPIED = ("anchors", "last_line", "nothing_else")  # rules about files that are not copied
Found = Iterator[tuple[str, str]]  # the id of the rule, or of a warning, and what was found


def verify_archive(
    archive: Path,
    *,
    keys: PublicKeys = MappingProxyType({}),
    read: tuple[Ledger, Sequence[Entry]] | None = None,
    collected: str = "",
) -> Report:
    """Check every hash and link of an archive, and signatures with ``keys``. Read-only; follows no symbolic link.

    ``read`` is what `read_with_ledger` has just returned. Runs that are unsealed or not in the ledger cause a warning:
    they are not evidence, but no fault. The archive of a fleet run anchors the ledgers of its databases: those on this
    host are read, or the copies in ``collected``. Raises RefusedError if the directory can't be read.
    """
    ledger, runs = read or read_with_ledger(archive)
    # Runs in the ledger first, in its order: an id may be forged, a position in the chain can't.
    entries = sorted(runs, key=lambda run: run.line.number if run.line else inf)
    if not entries and ledger == Ledger():
        observed = f"found neither a run nor a ledger in {archive}"
        remedy = "name the directory of an archive, such as runs/"
        return Report("verify", (Check("ledger", "fail", _RULES["ledger"][0], observed, remedy),), subject=str(archive))
    found: dict[str, list[str]] = {name: [] for name in (*_RULES, "no_evidence", "other_cells", "notes")}
    found["ledger"] += ledger.faults
    found["last_line"] += [ledger.torn] if ledger.torn else []
    found["notes"] += ledger.notes
    statements: list[tuple[str, Checked]] = []
    rows = _anchors(entries)
    anchors = [(row, lines) for row in rows if (lines := _ledger_of(row, collected))]
    if unseen := len(rows) - len(anchors):
        words = "they are on other hosts; if a fleet run has collected them: verify ARCHIVE --collected PLACE"
        found["notes"].append(f"{unseen} of {counted(len(rows), 'ledger')} of a fleet run were not read: {words}")
    for rule, fault in (
        *(one for entry in entries for one in _of_run(entry, keys, statements)),
        *_of_order(entries, ledger),
        *_of_anchors(anchors),
        *_strangers(archive, entries),
    ):
        found[rule].append(fault)
    count = {
        "lines": counted(len(ledger.lines), "line"),
        "runs": len(entries),
        "archived": sum(entry.line is not None for entry in entries),
        "begun": counted(sum(entry.started is not None for entry in entries), "run"),
        "statements": counted(len(statements), "statement"),
        "anchors": f"{len(anchors)} of {counted(len(rows), 'ledger')}",
    }
    checks = []
    for name, faults in found.items():
        expected, passed, remedy = _RULES.get(name, ("", "", ""))
        if faults or (passed and (anchors or name != "anchors")):  # omit warnings without a finding
            otherwise: Status = "fail" if name in _RULES else "warn"
            checks.append(check_of(name, faults, expected, passed.format(**count), remedy, otherwise))
    return Report("verify", (*checks, check_signers(statements, keys)), subject=str(archive))


def _of_run(entry: Entry, keys: PublicKeys, statements: list[tuple[str, Checked]]) -> Found:
    """Yield the faults in the files of one run, and add the check of its statement to ``statements``."""
    yield from (("runs", fault) for fault in entry.faults)
    run, line = f"{entry.run_id} {entry.notebook}", entry.line
    if line is None:
        words = "started but not sealed: it died, or is still running"
        if entry.record:
            words = f"sealed as {entry.verdict}, but without a line in the ledger: not archived, or it was removed"
        if not entry.faults:
            yield "no_evidence", f"{run}: {words}"
        return
    files, as_template = line.data["files"], line.data["as_template"]
    if not as_template:
        yield "other_cells", f"{run}: its cells are not known to be the template's"
    if set(files) - _FILES or _EVERY_RUN - set(files):
        expected, found = (", ".join(map(shown, sorted(names))) for names in (_EVERY_RUN, files))
        yield "runs", f"{LEDGER} line {line.number}: expected the hashes of {expected}, found {found}"
    for name in sorted(_FILES & set(files) - _SEALED) if is_folder(entry.folder) else ():
        where = f"{entry.run_id}/{name}"
        try:
            content = read_regular(entry.folder / name, most=inf)
        except OSError as error:
            words = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            yield "runs", f"{where}: it {words}"
            continue
        if sha256(content) != files[name]:
            yield "runs", f"{where}: its hash is not the one in the ledger"
        elif name == STATEMENT and entry.sealed:
            hashes = {other: digest for other, digest in files.items() if other != STATEMENT}
            checked = check_statement(content, hashes, entry.sealed, keys, as_template=as_template)
            statements.append((entry.run_id, checked))
            yield from (("statements", f"{where}: {fault}") for fault in checked.faults)


def _of_order(entries: list[Entry], ledger: Ledger) -> Found:
    """Yield each run whose recorded last line of the ledger is missing, or contradicts when or where it began.

    A run of another archive with the same key names a line that is missing here, unless it was the first run there.
    """
    known = (FIRST, *(line.sha256 for line in ledger.lines))
    following = dict(zip(known, ledger.lines, strict=False))
    first = next((_place(entry.started) for entry in entries if entry.started and entry.line), "")
    for entry, started in ((entry, entry.started) for entry in entries if entry.started):
        head, began = started.ledger_head, started.started_at
        after = following.get(head)
        if head not in known:
            yield "order", f"{entry.run_id}: the ledger's last line when it began is missing now: removed or rewritten"
        elif after and after != entry.line and moment_of(began) - moment_of(after.data["written_at"]) > _CLOCKS:
            words = f"it began at {began}, but does not name {LEDGER} line {after.number}, which was written before"
            yield "order", f"{entry.run_id}: {words}"
        elif head == FIRST and entry.line and _place(started) != first:
            yield "order", f"{entry.run_id}: it began in {_place(started)}, the first run in {first}: not this archive"


def _anchors(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    """Return the newest row, of a fleet run of each inventory, that names the last line of a database's ledger."""
    known: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for entry in entries:
        if entry.line and entry.sealed and (fleet := entry.found("fleet")):
            rows = {(fleet["inventory"], row["host"], row["database"]): row for row in fleet["databases"]}
            if not entry.sealed.parameters.get("only"):  # else it is only about some; the others are anchored still
                known = {key: row for key, row in known.items() if key[0] != fleet["inventory"] or key in rows}
            known |= {key: row for key, row in rows.items() if row["head"]}
    return [*known.values()]


def _ledger_of(row: Mapping[str, Any], collected: str) -> Iterator[Line] | None:
    """Return the newest lines of a database's ledger, in its copy or on this host; None if it is on another host."""
    if collected and row.get("collected"):
        return copy_lines("/".join([collected.rstrip("/"), *row["collected"].split("/")[-2:]]))
    is_here = row["state"].get("host") == platform.node()
    return newest_lines(Path(os.path.expanduser(row["archive"]))) if is_here else None


def _of_anchors(anchors: Sequence[tuple[Mapping[str, Any], Iterator[Line]]]) -> Found:
    """Yield each database whose ledger lacks the line that a fleet run has recorded."""
    for row, lines in anchors:
        where = f"{row['host']}:{row['database']}"
        try:
            if all(line.sha256 != row["head"] for line in lines):
                words = "its newest runs were removed, or its ledger rewritten"
                yield "anchors", f"{where}: the line of run {row.get('run')} is missing: {words}"
        except RefusedError as error:
            yield "anchors", f"{where}: {error.observed}"


def _place(started: Started) -> str:
    return f"{started.env} {started.settings.get('archive_dir')} on {started.host}"


def _strangers(archive: Path, entries: list[Entry]) -> Found:
    """Yield the files that do not belong in the archive; hidden files are only noted."""
    folders = {archive: {LEDGER, *(entry.run_id for entry in entries)}}
    for entry in entries:
        folders[entry.folder] = set(entry.line.data["files"]) if entry.line else _SEALED
    for folder, expected in folders.items():
        # A sealed run that is killed during archiving leaves files but no line.
        leftovers = _FILES if expected is _SEALED and os.path.lexists(folder / RECORD) else set()
        try:
            paths = sorted(folder.iterdir()) if folder == archive or is_folder(folder) else []
        except OSError as error:
            yield "nothing_else", f"{folder.name}: it cannot be read: {error.strerror}"
            continue
        for path in paths:
            name = path.relative_to(archive)
            if path.name.startswith(".") or path.name in leftovers - expected:
                yield "notes", f"{shown(str(name))} is a leftover, not evidence"
            elif path.name not in expected and not RUN_ID.fullmatch(str(name)):
                yield "nothing_else", shown(str(name))


def command(arguments: argparse.Namespace) -> int:
    """Print the report on an archive, or on each copy in a place; return 0 if all pass, else 1. ``copy`` copies it."""
    if arguments.command == "copy":
        return _copy(arguments)
    keys = public_keys(arguments.key)
    given = archive_at("ARCHIVE", arguments.archive)
    copies, failed = copies_in(given), 0
    collected = arguments.collected or (str(given) if copies else "")
    for one in copies or [given]:
        with local(one) as archive:
            report = verify_archive(archive, keys=keys, collected=collected)
        report = replace(report, subject=str(one) if copies else arguments.archive)
        sys.stdout.write(f"{one}: {report.summary}\n" if copies and report.ok else f"{report}\n")
        failed += not report.ok
    if copies:
        sys.stdout.write(f"{failed} of {len(copies)} copies failed\n")
    return 1 if failed else 0


def copy_archive(archive: Path, url: str, *, whole: bool = True) -> dict[str, list[str]]:
    """Copy the runs of an archive's ledger to a directory or a URL of fsspec; return what was ``copied`` and ``left``.

    Writes the files of each run, then its line: an interrupted copy is a shorter archive, which the next one completes.
    Existing objects are compared, never changed; unless ``whole``, only from the last common run on, whose line has the
    hashes of those before. Runs without a line are ``left``. Raises RefusedError before writing if the copy holds
    anything else, or ``verify`` finds a fault.
    """
    store = open_store(url)
    if Path(store.where).is_absolute() and Path(store.where, "x").resolve().is_relative_to(archive.resolve()):
        raise RefusedError(f"{store.where} is inside the archive", "name another directory")
    if faults := [one for one in verify_archive(archive).checks if one.failed and one.id not in _NOT_COPIED]:
        raise RefusedError(
            f"{archive} fails verification: {faults[0].name}: {faults[0].observed}. Nothing was copied",
            f"python -m abathur_nb verify {quote(str(archive))}",
        )
    content = content_of(archive)
    content = content[: content.rfind(b"\n") + 1]
    wanted = dict(_wanted(archive, content))
    found = store.found()
    common = [name for name in wanted if name in found]
    ends = [0, *(place for place, name in enumerate(common, 1) if LINE.fullmatch(name))]  # of runs, by their lines
    common = common[0 if whole else ends[-2:][0] :]
    unlike = [name for name in common if not _is_same(store, name, found[name], wanted[name])]
    if unlike := [*unlike, *sorted(found.keys() - wanted.keys())]:
        raise RefusedError(
            f"{store.where} holds what the archive {archive} does not: {some(unlike, _NAMED)}. Nothing was copied",
            "name an empty directory or URL, or verify both to find out which was altered",
        )
    added = [name for name in wanted if name not in found]
    for name in added:
        store.add(name, wanted[name]())
    return {"copied": added, "left": sorted(run_ids(archive) - parse(content).runs.keys())}


def collect_archive(archive: Path, place: str, host: str, database: str) -> str:
    """Copy what is new in the archive of a database to ``PLACE/HOST/DATABASE-HASH``, and return that URL.

    ``place`` is a directory or a URL. Refuses what `copy_archive` refuses; compares only the last run that both have.
    """
    name = re.sub(r"[^\w.-]+", "-", database.strip("/")).strip("-.")[-80:]
    url = f"{place.rstrip('/')}/{host}/{name}-{sha256(database.encode())[:8]}"
    copy_archive(archive, url, whole=False)
    return url


def _wanted(archive: Path, ledger: bytes) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of each object of a copy, in the order of writing, and the function that reads it."""
    for line, piece in zip(parse(ledger).lines, ledger.split(b"\n"), strict=False):
        for name in sorted(line.data.get("files", ()), key=lambda name: (name != STARTED, name)):  # started.json first
            yield f"{line.data['run_id']}/{name}", partial(read_regular, archive / line.data["run_id"] / name, most=inf)
        yield f"ledger/{line.number:08}.jsonl", partial(bytes, piece + b"\n")


def _is_same(store: Store, name: str, md5: str, read: Callable[[], bytes]) -> bool:
    content = read()
    # MD5 notices accidents and another archive's objects; verify recomputes the SHA-256.
    return md5 == hashlib.md5(content, usedforsecurity=False).hexdigest() or store.read(name) == content


def _copy(arguments: argparse.Namespace) -> int:
    archive = chosen_archive(arguments)
    if isinstance(archive, str):
        raise ConfigurationError(f"--archive: expected a directory, found {shown(archive)}: a copy cannot be copied")
    done = copy_archive(archive, arguments.url)
    lines = counted(sum(bool(LINE.fullmatch(name)) for name in done["copied"]), "line")
    objects = counted(len(done["copied"]), "object")
    sys.stdout.write(f"copied {lines} of the ledger, {objects} in all, to {arguments.url}\n")
    if left := done["left"]:
        sys.stdout.write(f"not copied, because not in the ledger and not evidence: {', '.join(left)}\n")
    return 0
