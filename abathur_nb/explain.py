"""Explain: whether the planner answers every named query by its index (the runbook's sections 4.2 and 6.4)."""

import sqlite3
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import aiosqlite

from abathur_nb.connection import connect, explain_error
from abathur_nb.errors import AbathurError
from abathur_nb.expected import expected_objects, expected_tables
from abathur_nb.explanation import Plans, PlanTree, told
from abathur_nb.plan import Fetch, plan_steps, read_plan, tree_lines
from abathur_nb.report import Check, Report, Status, run_check
from abathur_nb.settings import Settings
from abathur_nb.sql import Parameters, Query, load_queries
from abathur_nb.target import refusal

__all__ = ["explain_queries", "judge_plans"]

_TITLE = "explain"
_REMEDY = "run validate.ipynb: it names each index that is missing or altered; if none is, run ANALYZE and this again"
_MISSING = "run troubleshoot.ipynb: it shows the plan that makes it again, and the parameters that carry it out"
_UNREAD = "run validate.ipynb: it names each table that is missing, altered or unreadable; then run this again"


async def explain_queries(settings: Settings) -> Plans:
    """Read the plan of every named query and judge it. Read-only: no query is run."""
    nothing = dict.fromkeys(_indexes(), ())
    if refused := await refusal(_TITLE, settings):
        return Plans(refused, load_queries(), coverage=nothing)
    path = settings.db_path
    try:
        # Without a cache: a cached statement keeps the plan of an index dropped since.
        async with connect(path, settings=settings, cached_statements=0) as conn:
            await conn.execute_fetchall("BEGIN")  # one snapshot of schema and statistics
            return await judge_plans(partial(_fetch, conn), load_queries(), subject=str(path))
    except (sqlite3.Error, OSError, AbathurError) as error:
        found = explain_error(path, error)
        observed = f"could not run: {found.observed}"
        check = Check("database_file", "error", "opens read-only", observed, found.remedy or _UNREAD)
        return Plans(Report(_TITLE, (check,), subject=str(path)), load_queries(), coverage=nothing)


async def judge_plans(live: Fetch, queries: Mapping[str, Query], *, subject: str = "") -> Plans:
    """Judge the plans of ``queries`` over ``live``, which must keep no statements. Read-only."""
    schema = [row for row in await live(load_queries("inspect.sql")["schema"].sql, ()) if row[2] in expected_tables()]
    indexes = {str(row[1]) for row in schema if row[0] == "index"}
    missing, extra = set(_indexes()) - indexes, indexes - set(_indexes())
    trees: dict[str, PlanTree] = {}
    checks = [
        await run_check(
            query.name, partial(_judge, live, query, missing, extra, trees), remedy=_UNREAD, name=query.name
        )
        for query in queries.values()
    ]
    coverage = {
        index: tuple(name for name, tree in trees.items() if any(step.index == index for step in plan_steps(tree)))
        for index in _indexes()
    }
    # The planner may well prefer an index that somebody added; that is for whoever did to weigh.
    idle: Status = "warn" if any(_uses(tree, extra) for tree in trees.values()) else "fail"
    checks.append(_coverage_check(coverage, idle))
    return Plans(Report(_TITLE, tuple(checks), subject=subject), queries, trees, coverage)


async def _tree(fetch: Fetch, query: Query) -> PlanTree:
    return tuple(await read_plan(fetch, query.sql, query.parameters))


def _uses(tree: PlanTree, indexes: Collection[str]) -> str:
    """Return the first of ``indexes`` that a plan uses, or an empty text."""
    return next((step.index for step in plan_steps(tree) if step.index and step.index in indexes), "")


async def _judge(
    live: Fetch, query: Query, missing: Collection[str], extra: Collection[str], trees: dict[str, PlanTree]
) -> Check:
    tree = trees[query.name] = await _tree(live, query)
    if not tree and query.index is None:
        return Check(query.name, "skip", "no plan", "not applicable: the statement has none", name=query.name)
    allowed = {"table scan": query.scan, "index scan": query.scan, "sort": query.sort}
    steps = plan_steps(tree)
    faults = [told([step]) for step in steps if step.kind != "search" and not allowed.get(step.kind)]
    if query.index and not any(step.index == query.index for step in steps):
        faults.append(f"no use of {query.index}" + (", which is missing" if query.index in missing else ""))
    added = _uses(tree, extra)
    if faults and added:
        faults.append(f"served by {added}, which is not of sql/")
    reasons = "; ".join(f"allowed: {reason}" for reason in (query.scan, query.sort) if reason)
    return Check.that(
        query.name,
        not faults,
        expected=query.index or reasons or "a search by rowid",
        observed="; ".join(faults) or told(steps),
        remedy=_MISSING if query.index in missing else _REMEDY,
        otherwise="warn" if added and query.index not in missing else "fail",
        evidence=tree_lines(tree),
        name=query.name,
    )


def _coverage_check(coverage: Mapping[str, tuple[str, ...]], otherwise: Status) -> Check:
    idle = [index for index, names in coverage.items() if not names]
    return Check.that(
        "coverage",
        not idle,
        expected=f"each of {len(coverage)} indexes serves a query",
        observed=f"{len(idle)} serve none: {', '.join(idle)}" if idle else f"all {len(coverage)} do",
        remedy=_REMEDY,
        otherwise=otherwise,
        evidence=(f"{index}: {', '.join(names) or 'none'}" for index, names in coverage.items()),
    )


def _indexes() -> tuple[str, ...]:
    return tuple(found.name for found in expected_objects().values() if found.type == "index")


async def _fetch(conn: aiosqlite.Connection, sql: str, params: Parameters) -> list[Any]:
    return list(await conn.execute_fetchall(sql, params))
