"""Explain: whether SQLite uses the right index for every named query (the runbook's sections 4.2 and 6.4)."""

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError
from abathur_nb.report import Check, Report, Status, run_check
from abathur_nb.store.connection import connect, explain_error
from abathur_nb.store.schema import expected_objects, expected_tables
from abathur_nb.store.sql import Fetch, Query, StepKind, load_queries, plan_steps, read_plan
from abathur_nb.store.target import refusal
from abathur_nb.text import Shown, Table

if TYPE_CHECKING:
    import pandas as pd


_WORDS: dict[StepKind, str] = {  # {0} is the step, {1} its index or the word rowid
    "search": "search by {1}",
    "table scan": "full scan of the table {0.table}",
    "index scan": "full scan of the index {0.index}",
    "automatic index": "an automatic index on {0.table}",
    "sort": "a sort",
}


@dataclass(frozen=True, slots=True)
class Plans(Shown):
    """Hold the plan of every named query; a notebook shows them as a table.

    ``coverage`` names, for each of the 33 indexes, the queries whose plans use it.
    """

    report: Report
    queries: Mapping[str, Query]
    lines: Mapping[str, list[str]] = field(default_factory=dict)
    coverage: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def _table(self) -> Table:
        rows = [
            (check.status, check.name, query.index or "", "\n".join(check.evidence), query.doc)
            for check in self.report.checks
            if (query := self.queries.get(check.id))
        ]
        return Table(("status", "query", "index", "plan", "answers"), tuple(rows), "no plan: the report says why")

    def by_index(self) -> Table:
        """Return which queries each of the 33 indexes serves; unused indexes come first, marked."""
        rows = tuple(
            (index if names else f"✗ {index}", expected_objects()[index].table, ", ".join(names) or "no query")
            for index, names in sorted(self.coverage.items(), key=lambda found: bool(found[1]))
        )
        caption = f"{sum(map(bool, self.coverage.values()))} of {len(rows)} indexes serve a query"
        return Table(("index", "table", "serves"), rows, "", opened=len(rows), caption=caption)

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a query: its verdict, its index, its plan."""
        return self._table().to_frame()

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: the plan of each query, as lines."""
        return {"plans": {**self.lines}}


_TITLE = "explain"
_REMEDY = "run validate.ipynb: it names what is missing, altered or unreadable; if it passes, run ANALYZE, then explain"


async def explain_queries(settings: Settings) -> Plans:
    """Read the plan of every named query and judge it. Read-only: no query is run."""
    nothing = dict.fromkeys(_indexes(), ())
    if refused := await refusal(_TITLE, settings):
        return Plans(refused, load_queries(), coverage=nothing)
    path = settings.db_path
    try:
        # A new connection: a cached statement would keep a plan that uses a dropped index.
        async with connect(path, settings.busy_timeout_ms) as conn:
            await conn.execute_fetchall("BEGIN")  # one snapshot of schema and statistics
            return await judge_plans(conn.execute_fetchall, load_queries(), subject=str(path))
    except (sqlite3.Error, OSError, AbathurError) as error:
        found = explain_error(path, error)
        observed = f"could not run: {found.observed}"
        check = Check("database_file", "error", "opens read-only", observed, found.remedy or _REMEDY)
        return Plans(Report(_TITLE, (check,), subject=str(path)), load_queries(), coverage=nothing)


async def judge_plans(live: Fetch, queries: Mapping[str, Query], *, subject: str = "") -> Plans:
    """Judge the plans of ``queries``; ``live`` runs SQL, and must not cache statements. Read-only."""
    ours = _indexes()
    schema = await live(load_queries("inspect.sql")["schema"].sql, ())
    indexes = {str(row[1]) for row in schema if row[0] == "index" and row[2] in expected_tables()}
    # The planner may prefer an index that an operator added: a warning, unless one of ours is missing.
    added = indexes.difference(ours) if indexes.issuperset(ours) else set[str]()
    plans: dict[str, list[str]] = {}
    checks = [
        await run_check(name, partial(_judge, live, query, added, plans), remedy=_REMEDY, name=name)
        for name, query in queries.items()
    ]
    used = {name: {step.index for step in plan_steps(lines)} for name, lines in plans.items()}
    coverage = {index: tuple(name for name, found in used.items() if index in found) for index in ours}
    idle = [index for index, names in coverage.items() if not names]
    observed = f"{len(idle)} unused: {', '.join(idle)}" if idle else f"all {len(coverage)} are used"
    evidence = (f"{index}: {', '.join(names) or 'none'}" for index, names in coverage.items())
    expected = f"each of {len(coverage)} indexes serves a query"
    otherwise: Status = "warn" if any(found & added for found in used.values()) else "fail"
    checks.append(Check.that("coverage", not idle, expected, observed, _REMEDY, otherwise, evidence))
    return Plans(Report(_TITLE, tuple(checks), subject=subject), queries, plans, coverage)


async def _judge(live: Fetch, query: Query, added: Collection[str], plans: dict[str, list[str]]) -> Check:
    plan = plans[query.name] = await read_plan(live, query.sql, query.parameters)
    if not plan and query.index is None:
        return Check(query.name, "skip", "no plan", "not applicable: the statement has no plan", name=query.name)
    steps = plan_steps(plan)
    words = {step: _WORDS[step.kind].format(step, step.index or "rowid") for step in steps}
    allowed = {"search": True, "table scan": query.scan, "index scan": query.scan, "sort": query.sort}
    faults = [words[step] for step in steps if not allowed.get(step.kind)]
    used = [step.index for step in steps if step.index]
    if query.index and query.index not in used:
        faults.append(f"{query.index} is not used")
    instead = [index for index in used if index in added]
    if faults and instead:
        faults.append(f"served by {instead[0]}, which is not in sql/")
    reasons = "; ".join(f"allowed: {reason}" for reason in (query.scan, query.sort) if reason)
    expected = query.index or reasons or "a search by rowid"
    observed = "; ".join(faults or dict.fromkeys(words.values()))
    otherwise: Status = "warn" if instead else "fail"
    return Check.that(query.name, not faults, expected, observed, _REMEDY, otherwise, plan, name=query.name)


def _indexes() -> tuple[str, ...]:
    return tuple(found.name for found in expected_objects().values() if found.type == "index")
