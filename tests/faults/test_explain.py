"""Every named query has its index on both SQLite libraries, each fault of a plan is seen, no plan keeps the store."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from damage import run_sql
from engines import LIBRARIES, Run, as_fetch, build, opened
from patience import HANGING_S
from related_rows import related_rows
from sampling import sampled

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.measure.synthetic import fill
from abathur_nb.runbook.explain import Plans, judge_plans
from abathur_nb.store.schema import expected_objects
from abathur_nb.store.sql import Query, load_queries, plan_steps, read_plan

INDEXES = [found.name for found in expected_objects().values() if found.type == "index"]
STATES = ("empty", "seeded and analysed", "filled", "filled and analysed")
ROWS = 20_000

# The values of which there are most in a filled database: where a planner knows that, it is tempted to scan or sort.
_HOT = """\
status=archived user_id=synthetic-user-0 app_name=synthetic-app-0 project_id=synthetic-project-0 prefix=synthetic:
namespace=synthetic:user-00000:facts prefix_end=synthetic; memory_type=semantic created_by=synthetic-agent-0
updated_by=synthetic-agent-0 before=2025-12-30 since=2025-01-02 document_type=markdown sync_status=synced
embedding_model=synthetic-model-0 state=terminated memory_operation_type=create metric_name=synthetic.latency
memory_namespace=synthetic:user-00000:facts"""
HOT = dict(pair.split("=") for pair in _HOT.split())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "filled.db"

    async def fill_it() -> None:
        async with aiosqlite.connect(path, isolation_level=None) as conn:
            await fill(conn, ROWS)

    with opened("sqlite3", path) as run:
        build(run)
        asyncio.run(fill_it())
        for statement in related_rows(ROWS):
            run(statement)
    return path


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=sampled(STATES, "empty", "filled and analysed"))
def run(request: pytest.FixtureRequest, library: str, filled: Path, tmp_path: Path) -> Iterator[Run]:
    """Open a database in each of STATES, analysed by the very library that reads it (one has STAT4, one has not)."""
    path = tmp_path / "a.db"
    if "filled" in request.param:
        shutil.copy(filled, path)
    with opened(library, path) as run:
        if "filled" not in request.param:
            build(run)
        if "empty" in request.param:
            run("DELETE FROM memory_entries")
        if "analysed" in request.param:
            run("ANALYZE")
        yield run


@pytest.fixture
def live(library: str) -> Iterator[Run]:
    with opened(library) as run:
        build(run)
        yield run


async def plans_of(run: Run, *queries: Query) -> Plans:
    chosen = {query.name: query for query in queries} or load_queries()
    return await judge_plans(as_fetch(run), chosen)


async def verdict(run: Run, query: Query) -> nb.Check:
    return (await plans_of(run, query)).report.checks[0]


def made_up(sql: str, index: str | None = None, scan: str | None = None, sort: str | None = None) -> Query:
    return Query("made_up", sql, "A query of this test.", index, {}, scan, sort)


RUNBOOK = {
    "SELECT * FROM sessions WHERE status = 'active' ORDER BY last_update_time DESC": "idx_sessions_status_updated",
    """SELECT * FROM memory_entries WHERE namespace = 'user:alice:pref' AND key = 'theme' AND is_deleted = 0
    ORDER BY version DESC LIMIT 1""": "idx_memory_namespace_key_version",
}
SORTED, JOINED = "SELECT * FROM tasks ORDER BY prompt LIMIT 9", "SELECT * FROM tasks JOIN agents ON model = prompt"
INSERT = "INSERT INTO metrics (metric_name, metric_value) VALUES ('a', 1)"
SCAN, ALLOWED = "full scan of the table tasks", (None, "few", "short")
# A query, its index, why it may scan, why it may sort: what is said of its plan.
JUDGED: dict[tuple[str | None, ...], tuple[str, ...]] = {
    ("SELECT * FROM tasks WHERE prompt = 'x'",): ("fail", SCAN),
    ("SELECT count(*) FROM state",): ("fail", "full scan of the index sqlite_autoindex_state_1"),
    ("SELECT * FROM tasks WHERE status = 'x' ORDER BY id",): ("fail", "a sort"),
    ("SELECT * FROM tasks WHERE id = 'x'", "idx_tasks_parent"): ("fail", "idx_tasks_parent is not used"),
    (SORTED,): ("fail", SCAN, "a sort"),
    (SORTED, *ALLOWED): ("pass",),
    (JOINED,): ("fail", SCAN, "an automatic index on agents"),
    (JOINED, *ALLOWED): ("fail", "an automatic index on agents"),
    (INSERT,): ("skip",),  # it has no plan
    (INSERT, "idx_audit_task"): ("fail", "idx_audit_task is not used"),
}


async def test_every_query_has_its_index_scans_and_sorts_nothing_and_every_index_is_needed(run: Run) -> None:
    plans = await plans_of(run)
    plans.report.raise_for_failures()
    assert list(plans.coverage) == INDEXES
    assert {check.name for check in plans.report.checks if check.status == "skip"} == {"insert_audit"}
    steps = {name: {step.kind for step in plan_steps(plan)} for name, plan in plans.lines.items()}
    assert {name for name, kinds in steps.items() if not kinds <= {"search"}} == {"list_sessions"}
    assert steps["list_sessions"] == {"table scan"}
    assert [query.name for query in load_queries().values() if query.scan] == ["trim_events", "list_sessions"]
    assert not any(query.sort for query in load_queries().values())
    for sql, index in RUNBOOK.items():
        (line,) = await read_plan(as_fetch(run), sql)
        assert f"USING INDEX {index} " in line
    for table in ("sessions", "tasks", "agents", "memory_entries"):
        found = plan_steps(await read_plan(as_fetch(run), f"DELETE FROM {table} WHERE id = 1"))
        assert {step.kind for step in found} == {"search"}, "deleting a parent scans no children"
        assert len(found) >= 2
    for index in INDEXES:
        run("BEGIN")
        run(f"DROP INDEX {index}")
        queries = [load_queries()[name] for name in plans.coverage[index]]
        without = [await read_plan(as_fetch(run), query.sql, query.parameters) for query in queries]
        run("ROLLBACK")
        assert without != [plans.lines[query.name] for query in queries], index


async def test_of_each_index_the_queries_are_shown_and_the_unused_come_first(database: Settings) -> None:
    plans = await nb.explain_queries(database)
    table = plans.by_index()
    assert table.rows == tuple(
        (index, expected_objects()[index].table, ", ".join(names)) for index, names in plans.coverage.items()
    )
    assert (table.caption, table.to_html().count("<tr>")) == ("33 of 33 indexes serve a query", 34)
    run_sql(database.db_path, "DROP INDEX idx_audit_task")
    table = (await nb.explain_queries(database)).by_index()
    assert (table.caption, table.rows[0]) == (
        "32 of 33 indexes serve a query",
        ("✗ idx_audit_task", "audit", "no query"),
    )
    database.db_path.unlink()
    assert (await nb.explain_queries(database)).by_index().caption == "0 of 33 indexes serve a query"


async def test_the_most_frequent_values_change_no_index(run: Run) -> None:
    for query in load_queries().values():
        parameters = {name: HOT.get(name, example) for name, example in query.parameters.items()}
        steps = plan_steps(await read_plan(as_fetch(run), query.sql, parameters))
        assert query.index is None or query.index in [step.index for step in steps], query.name
        assert query.scan or {step.kind for step in steps} <= {"search"}, query.name


async def test_each_fault_of_a_plan_is_told_apart_and_a_scan_or_sort_allowed_that_has_a_reason(live: Run) -> None:
    for (sql, *given), (status, *told) in JUDGED.items():
        check = await verdict(live, made_up(str(sql), *given))
        assert check.status == status, sql
        assert status != "fail" or (check.observed, bool(check.remedy)) == ("; ".join(told), True)
        assert bool(check.evidence) == (sql != INSERT)
        assert status != "pass" or check.expected == "allowed: few; allowed: short"


async def test_a_missing_or_altered_index_is_named_with_the_notebook_that_finds_it(live: Run) -> None:
    live("DROP INDEX idx_checkpoints_session")
    assert "full scan of the table checkpoints" in (await verdict(live, load_queries()["delete_session"])).observed
    live(expected_objects()["idx_checkpoints_session"].sql)
    live("DROP INDEX idx_audit_task")
    plans = await plans_of(live)
    failed = {check.name: check for check in plans.report.checks if check.failed}
    assert set(failed) == {"audit_of_task", "coverage"}
    assert "idx_audit_task is not used" in failed["audit_of_task"].observed
    assert plans.coverage["idx_audit_task"] == ()
    assert "idx_audit_task" in failed["coverage"].observed
    assert failed["audit_of_task"].remedy.startswith("run validate.ipynb")
    live("CREATE INDEX idx_audit_task ON audit (timestamp, task_id)")
    check = await verdict(live, load_queries()["audit_of_task"])
    assert (check.status, check.observed) == ("fail", "full scan of the index idx_audit_task")


async def test_a_missing_table_is_named_and_the_other_queries_are_explained(database: Settings) -> None:
    run_sql(database.db_path, "DROP TABLE metrics")
    plans = await nb.explain_queries(database)
    status = {check.name: check.status for check in plans.report.checks}
    assert [status[name] for name in ("metric_history", "get_session", "coverage")] == ["error", "pass", "fail"]
    assert all(check.remedy for check in plans.report.checks if check.failed)
    assert len(plans.to_frame()) == len(load_queries())


async def test_an_index_that_somebody_added_warns_where_it_serves_and_fails_nothing(database: Settings) -> None:
    """A copy of each of the 33, which the planner takes for as good."""
    run_sql(database.db_path, *(expected_objects()[name].sql.replace(name, f"added_{name}", 1) for name in INDEXES))
    report = (await nb.explain_queries(database)).report
    assert report.ok, str(report)
    told = [check for check in report.checks if check.status == "warn"]
    assert any("is not in sql/" in check.observed for check in told)
    run_sql(database.db_path, f"DROP INDEX {INDEXES[0]}")
    assert not (await nb.explain_queries(database)).report.ok, "one of ours is missing all the same"


async def test_the_plans_are_shown_as_a_frame_as_text_and_as_safe_html(database: Settings) -> None:
    plans = await nb.explain_queries(database)
    row = plans.to_frame().set_index("query").loc["get_memory"]
    assert (row["status"], row["index"]) == ("pass", "idx_memory_namespace_key_version")
    assert "USING INDEX idx_memory_namespace_key_version" in row["plan"]
    assert "SEARCH" in str(plans)
    strange = Query("<b>name</b>", "SELECT '<script>'", "<i>doc</i>")
    html = Plans(nb.Report("explain", (nb.Check(strange.name, "pass"),)), {strange.name: strange})
    assert not re.search("<script|<b>", html._repr_mimebundle_()["text/html"])


# --- a plan is made in a process of its own, with limits: no statement keeps the store, or fills its memory


def nested(levels: int, first: str, further: str) -> str:
    """Return a SELECT from the last of so many names of WITH, each made from the one before it, ``{0}``."""
    made = "".join(f", c{i} AS ({further.format(f'c{i - 1}')})" for i in range(1, levels))
    return f"WITH c0 AS ({first}){made} SELECT * FROM c{levels - 1}"


DOUBLED = nested(24, "SELECT 1 AS x", "SELECT a.x FROM {0} AS a, {0} AS b")
HOSTILE = {
    "joins": DOUBLED,
    "expressions": nested(60, "SELECT priority AS x FROM tasks", "SELECT x + x AS x FROM {0}"),
    "windows": f"SELECT {', '.join(f'sum(id) OVER (PARTITION BY id + {i})' for i in range(1900))} FROM audit",
    "depth": nested(1500, "SELECT 1 AS x", "SELECT x FROM {0} LIMIT 5"),
    "length": f"SELECT '{'x' * 100_000}'",
}


@pytest.mark.parametrize("kind", sampled(HOSTILE, "expressions", "length"))
def test_what_takes_too_long_to_plan_is_refused_in_time(database: Settings, kind: str) -> None:
    """Asked in a process of its own: within this one, nothing would end the test if it were planned here."""
    script = """if True:
        import asyncio, resource, sys
        import abathur_nb as nb

        async def ask():
            async with nb.Database.open(nb.resolve(db_path=sys.argv[1])) as db:
                try:
                    await db.explain_query_plan(sys.stdin.read())
                except nb.InvalidValueError as error:
                    print(error)
                assert len(await db.explain_query_plan("SELECT 1")) == 1, "the store serves on"

        inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # from who started it
        asyncio.run(ask())
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):  # of these, the largest
            assert resource.getrusage(who).ru_maxrss <= max(inherited, 600_000)
        """
    command = [sys.executable, "-c", script, str(database.db_path)]
    done = subprocess.run(command, input=HOSTILE[kind], capture_output=True, text=True, timeout=HANGING_S, check=True)
    assert done.stdout.startswith(
        ("planning it takes more than 5 s or 512 MB", "expected one SELECT of at most 100,000 characters")
    )


async def test_only_parameters_that_sqlite_takes_are_accepted(database: Settings) -> None:
    wrong: dict[str, tuple[Any, ...]] = {
        "expected None, a number, text or bytes as a parameter": ((object(),), {"a": object()}, ([1],), (1 + 2j,)),
        "expected a sequence of parameters, or a mapping by name": (None, 5, {1, 2}),
        "does not accept this": ((), (1, 2), {"b": 1}, (2**64,), ("\ud800",)),
    }
    async with nb.Database.open(database) as db:
        for words, cases in wrong.items():
            for given in cases:
                with pytest.raises(nb.InvalidValueError, match=words):
                    await db.explain_query_plan("SELECT :a", given)
        for value in (None, True, 1, 1.5, "x", b"x"):
            assert await db.explain_query_plan("SELECT * FROM tasks WHERE id = ?", [value])
