"""Verify: whether an archive is as it was written, every hash, link and signature recomputed."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from abathur_nb.evidence.findings import of_order, of_run, strangers
from abathur_nb.evidence.keys import PublicKeys, public_keys
from abathur_nb.evidence.ledger import LEDGER, Ledger, read_ledger
from abathur_nb.evidence.reading import Entry, archive_at, read_entry, run_ids
from abathur_nb.evidence.statement import Checked, check_signers
from abathur_nb.evidence.stores import local
from abathur_nb.report import Check, Report, Status
from abathur_nb.wording import counted

__all__ = ["command", "verify_archive"]

_TITLE = "verify"
_FIND_OUT = "find out who did it; trust a copy that verify passes"
# What must hold, in the order in which a fault is named as the first; what is said when it does; what to do about one.
_RULES = {
    "ledger": (
        "each line whole, with its own hash and the hash of the line before",
        "{lines}, each with the hash of the one before",
        _FIND_OUT,
    ),
    "last_line": ("a whole one", "it is whole", "it is no tampering: the next run of this environment closes it"),
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
    for rule, told in (
        *(one for entry in entries for one in of_run(entry, keys, statements)),
        *of_order(entries, ledger),
        *strangers(archive, entries),
    ):
        found[rule].append(told)
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
    no_evidence = [told for entry in entries if (told := _no_evidence(entry))]
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


def _no_evidence(entry: Entry) -> str:
    if entry.faults or (entry.line and entry.record):
        return ""
    if entry.record:
        ending = "sealed as {verdict}, but without a line in the ledger: not archived, or the line was taken away"
        return f"{entry.run_id} {entry.record['notebook']}: {ending.format(verdict=entry.verdict)}"
    begun = f"{entry.started['notebook']}: begun" if entry.started else "begun"
    return f"{entry.run_id} {begun}, never sealed: it died, or still runs"


def command(arguments: argparse.Namespace) -> int:
    """Print the report on an archive, faults first; return 0 if there is none, else 1. Read-only."""
    keys = public_keys(arguments.key)
    with local(archive_at("ARCHIVE", arguments.archive)) as archive:
        report = replace(verify_archive(archive, keys=keys), subject=arguments.archive)
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
