"""Check and Report, the results of every function that examines or changes a database."""

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from sqlite3 import Error as SQLiteError
from typing import TYPE_CHECKING, Any, Literal

from abathur_nb.errors import AbathurError, ChecksFailedError, bound_reached
from abathur_nb.files import os_cause
from abathur_nb.text import COLOURS, Shown, html_cell, html_table, printable, some, utc_now

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["pass", "warn", "fail", "error", "skip"]

# A shape and a word: colour alone must not carry a meaning.
_MARKS: dict[Status, str] = {
    "error": "? could not run",
    "fail": "✗ fail",
    "warn": "! warn",
    "pass": "✓ pass",
    "skip": "– skip",
}
# A failed check may be the cause of one that could not run, so it comes first; other statuses come last.
_WORST_FIRST: dict[Status, int] = {"fail": 0, "error": 1, "warn": 2}
_FAILURES_NAMED = 6  # the most checks named in the error of a failed report
_SHOWN_PASSED = 30  # if more checks passed, they are folded away
_PRE = "<pre style='font-family:monospace;background:none;white-space:pre-wrap'>"
_SHOWN_OPEN = 5  # if there are more pieces of evidence, they are folded away


@dataclass(frozen=True, slots=True)
class Check:
    """Hold one check: what was expected, what was observed, what to do.

    Status ``error`` means that the check could not run, which counts as failed. ``evidence`` lists keys, statements or
    messages. Texts are for people and made printable; programs select a check by its ``id`` and read its ``data``,
    which must be valid in JSON. ``name`` is the title, by default the id in words.
    """

    id: str
    status: Status
    expected: str = ""
    observed: str = ""
    remedy: str = ""
    evidence: tuple[str, ...] = ()
    _: KW_ONLY
    name: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.id.replace("_", " "))
        for name in ("name", "expected", "observed", "remedy"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        object.__setattr__(self, "evidence", tuple(printable(line) for line in self.evidence))

    @classmethod
    def that(
        cls,
        check_id: str,
        holds: bool,
        expected: str,
        observed: str,
        remedy: str = "",
        otherwise: Status = "fail",
        evidence: Iterable[str] = (),
        *,
        name: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> "Check":
        """Return a check that passes if ``holds``; else it has the status ``otherwise`` and the remedy."""
        status: Status = "pass" if holds else otherwise
        noted = "" if holds else remedy
        return cls(check_id, status, expected, observed, noted, tuple(evidence), name=name, data=data or {})

    @property
    def failed(self) -> bool:
        """Return whether this check failed or could not run."""
        return self.status in ("fail", "error")


def id_of(title: str) -> str:
    """Return an id made from a title, for a check that has no id of its own."""
    return re.sub(r"(?:'s)?\W+", "_", title.lower())


async def run_check(check_id: str, find_out: Callable[[], Awaitable[Check]], *, remedy: str, name: str = "") -> Check:
    """Return the check of ``find_out()``, or an ``error`` check with ``remedy`` if that raises."""
    try:
        return await find_out()
    except (SQLiteError, OSError, AbathurError) as error:
        observed = f"could not run: {bound_reached(error) or f'{type(error).__name__}: {error}'}"
        # An error of SQLite may be caused by a system error.
        found = error if isinstance(error, OSError) else error.__cause__
        if isinstance(found, OSError) and isinstance(found.filename, str):
            cause = os_cause(found, Path(found.filename))
            observed, remedy = f"could not run: {cause.observed}", cause.remedy
        return Check(check_id, "error", "the check can run", observed, remedy, name=name)


@dataclass(frozen=True, slots=True)
class Report(Shown):
    """Hold the checks of one operation on one subject, usually the database's path.

    ``refused`` means that something prevented the work and nothing was done; a failed check says what.
    A notebook shows a table, failures first; ``str()`` returns plain text.
    """

    title: str
    checks: tuple[Check, ...]
    subject: str = ""
    refused: bool = False
    finished_at: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checks", tuple(self.checks))
        object.__setattr__(self, "subject", printable(self.subject))

    @property
    def ok(self) -> bool:
        """Return whether the operation was not refused, every check could run and no check failed."""
        return not self.refused and not any(check.failed for check in self.checks)

    @property
    def summary(self) -> str:
        """Return the verdict and the number of checks of each status, in one line."""
        found = Counter(check.status for check in self.checks)
        counts = ", ".join(f"{found[status]} {status}" for status in _MARKS if status in found)
        verdict = "refused" if self.refused else "passed" if self.ok else "failed"
        return f"{self.title} {verdict}: {counts or 'no checks'}"

    def raise_for_failures(self) -> None:
        """Raise ChecksFailedError, which names the failed checks, unless the report is ``ok``."""
        if self.ok:
            return
        failed = [check for check in self._worst_first() if check.failed]
        named = [f"{check.name}: {check.observed.partition(chr(10))[0][:200]}" for check in failed]
        verdict = "refused" if self.refused else f"{len(failed)} of {len(self.checks)} checks failed"
        words = f"{self.title} of {self.subject}: {verdict}: {some(named, _FAILURES_NAMED, ' | ')}"
        raise ChecksFailedError(f"{words}. The report says what to do.", report=self)

    def to_frame(self) -> "pd.DataFrame":
        """Return the checks as a pandas frame, one row for each, in the order in which they were made."""
        import pandas as pd

        columns = ["id", "name", "status", "expected", "observed", "remedy", "evidence", "data"]
        return pd.DataFrame([asdict(check) for check in self.checks], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON, with ``ok`` and ``summary``."""
        checks = [asdict(check) | {"evidence": list(check.evidence)} for check in self.checks]
        names = ("title", "subject", "refused", "finished_at", "ok", "summary")
        return {**{name: getattr(self, name) for name in names}, "checks": checks}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Return the report that ``to_dict`` wrote; a check without an id gets one made from its title."""
        checks = []
        for check in data["checks"]:
            given = {"id": id_of(check["name"]), "data": {}, **check, "evidence": tuple(check["evidence"])}
            checks.append(Check(**{one.name: given[one.name] for one in fields(Check)}))
        return cls(data["title"], tuple(checks), *(data[name] for name in ("subject", "refused", "finished_at")))

    def to_json(self) -> str:
        """Return ``to_dict()`` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the report as a Markdown table, failures first, with the evidence below."""
        rows = [f"**{_md(self.summary)}** — {_md(self.subject)} · {self.finished_at} UTC", ""]
        rows += ["| status | check | expected | observed | what to do |", "|---|---|---|---|---|"]
        for check in self._worst_first():
            cells = (_MARKS[check.status], check.name, check.expected, check.observed, check.remedy)
            rows.append("| " + " | ".join(_md(cell) for cell in cells) + " |")
        for check in self._worst_first():
            lines = [f"    {line}" for evidence in check.evidence for line in evidence.split("\n")]
            rows += ["", f"{_md(check.name)}:", "", *lines] if lines else []
        return "\n".join(rows) + "\n"

    def __str__(self) -> str:
        lines = [self.summary, f"  {self.subject} · {self.finished_at} UTC"]
        for check in self._worst_first():
            lines.append(f"{_MARKS[check.status]:<16} {check.name}: {check.observed}")
            evidence, left = check.evidence[:_SHOWN_OPEN], len(check.evidence) - _SHOWN_OPEN
            details = [("expected", check.expected), ("what to do", check.remedy)]
            details += [("evidence", line) for line in (*evidence, *([f"and {left} more"] if left > 0 else []))]
            lines += [f"{'':17}{label}: {text}" for label, text in details if text and check.status != "pass"]
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return the report as HTML without scripts or links, for light and dark themes."""
        shown = self._worst_first()
        passed = [check for check in shown if check.status in ("pass", "skip")]
        folded = passed if len(passed) > _SHOWN_PASSED else []
        table = _table([check for check in shown if check not in folded])
        rest = f"<details><summary>{len(folded)} that passed, or do not apply</summary>{_table(folded)}</details>"
        mark, colour = ("✓", "") if self.ok else ("✗", f" style='color:{COLOURS['✗']}'")
        return (
            f"<div class='abathur-report'><p><b{colour}>{mark} {escape(self.summary)}</b><br>"
            f"<small>{escape(self.subject)} · {self.finished_at} UTC</small></p>{table}{rest if folded else ''}</div>"
        )

    def _worst_first(self) -> list[Check]:
        return sorted(self.checks, key=lambda check: _WORST_FIRST.get(check.status, len(_WORST_FIRST)))


def _table(checks: Sequence[Check]) -> str:
    width = 5 if any(check.remedy for check in checks) else 4
    heads = ("", "check", "expected", "observed", "what to do")[:width]
    rows = []
    for check in checks:
        opened = " open" if check.failed and len(check.evidence) <= _SHOWN_OPEN else ""
        evidence = f"<details{opened}><summary>evidence: {len(check.evidence)}</summary>{_PRE}"
        evidence += f"{escape(chr(10).join(check.evidence))}</pre></details>"
        cells = [*map(html_cell, (_MARKS[check.status], check.name, check.expected))]
        cells += [html_cell(check.observed, evidence if check.evidence else ""), html_cell(check.remedy)]
        rows.append(cells[:width])
    return html_table(heads, rows) if checks else ""


def _md(text: str) -> str:
    # A table row is one line, and `|` ends a cell; HTML in a value must not become a tag.
    return escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
