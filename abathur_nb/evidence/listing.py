"""The table of an archive's runs: when, what, verdict, duration, who, the beginning of the id, archived or not."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from abathur_nb.evidence.ledger import read_ledger
from abathur_nb.evidence.reading import Entry, chosen_archive, read_archive
from abathur_nb.evidence.stores import local
from abathur_nb.wording import moment_of, printable

__all__ = ["command", "listed", "table"]

_HEAD = ("when (UTC)", "what", "env", "verdict", "duration", "who", "run", "archived")
_SHORTEST = 15  # characters of a run id: its second
_NO_EVIDENCE = {
    "unsealed": "was never sealed: it died, or still runs. It is no evidence.",
    "altered": "is not as it was written: verify says what is wrong.",
}


def listed(entry: Entry) -> dict[str, Any]:
    """Return what a list says of one run: plain data, None for what is not known."""
    said: Mapping[str, Any] = entry.record or entry.started or (entry.line.data if entry.line else {})
    started, ended = said.get("started_at"), said.get("ended_at")
    return {
        "run_id": entry.run_id,
        **{name: said.get(name) for name in ("started_at", "ended_at", "notebook", "env")},
        "verdict": entry.verdict,
        "seconds": _seconds(started, ended),
        **{name: said.get(name) for name in ("user", "host")},
        "archived": entry.line is not None,
        "as_template": entry.line.data["as_template"] if entry.line else None,
        "faults": list(entry.faults),
    }


def _seconds(started: str | None, ended: str | None) -> float | None:
    try:
        return (moment_of(ended or "") - moment_of(started or "")).total_seconds()
    except ValueError:  # of a line of the ledger, or not ended
        return None


def table(entries: Sequence[Entry]) -> str:
    """Return the runs as aligned plain text that a terminal takes for nothing else, the newest last."""
    length = _unique([entry.run_id for entry in entries])
    rows = [_HEAD, *(_row(listed(entry), length) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for entry in entries:
        if words := _NO_EVIDENCE.get(entry.verdict):
            lines += [f"{entry.run_id[:length]} {words}", *(f"  {_line(fault)}" for fault in entry.faults)]
    if loose := sum(entry.verdict not in _NO_EVIDENCE and entry.line is None for entry in entries):
        lines.append(
            f"sealed, but not archived: {loose}. Nothing vouches for these: python -m abathur_nb archive OUT.ipynb"
        )
    return "\n".join(lines)


def _row(run: Mapping[str, Any], length: int) -> tuple[str, ...]:
    who = f"{run['user']} on {run['host']}" if run["user"] else "?"
    verdict = run["verdict"].upper() if run["verdict"] in _NO_EVIDENCE else run["verdict"]
    when = str(run["started_at"] or "?").partition(".")[0]
    texts = (when, run["notebook"] or "?", run["env"] or "?", verdict, _duration(run["seconds"]), who)
    return (*map(_line, texts), run["run_id"][:length], _archived(run))


def _archived(run: Mapping[str, Any]) -> str:
    if not run["archived"]:
        return "NO"
    return "yes" if run["as_template"] else "yes, with other cells than the template's"


def _line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if abs(seconds) < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def _unique(run_ids: Sequence[str]) -> int:
    """Return how many characters tell all these ids apart."""
    return next(n for n in count(_SHORTEST) if len({run_id[:n] for run_id in run_ids}) == len(run_ids))


def command(arguments: argparse.Namespace) -> int:
    """Print the runs of an archive, and return 0. Read-only."""
    archive = chosen_archive(arguments)
    with local(archive) as folder:
        ledger = read_ledger(folder)
        entries = read_archive(folder, ledger)
    sys.stderr.writelines(f"abathur_nb runs: {printable(fault)}\n" for fault in ledger.faults)
    if arguments.json:
        sys.stdout.write("".join(f"{json.dumps(listed(entry))}\n" for entry in entries))
    else:
        sys.stdout.write(f"{table(entries)}\n" if entries else f"no runs in {printable(str(archive))}\n")
    return 0
