"""explore shows what a database holds, whoever wrote it and while others write, and changes nothing."""

import asyncio
import json
import sqlite3
import tracemalloc
from contextlib import closing
from typing import Any

import pytest
from damage import AGENT, MEMORY, SESSION, TASK, run_sql, spoil_table, untouched
from explore_helpers import HOSTILE, fill, insert
from situations import tree
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.page import clean
from abathur_nb.runbook.explore import Exploration, explore
from abathur_nb.store.schema import expected_tables

AUDIT = "INSERT INTO audit (action_type) VALUES ('x')"
PARTS = ("sessions", "session", "namespaces", "memories", "memory", "audit", "growth", "diagram")


def remember(settings: Settings, namespace: str, key: str, *values: object) -> None:
    """Write a memory whose versions are these values, whatever they are."""
    sql = "INSERT INTO memory_entries (namespace, key, value, memory_type, version) VALUES (?, ?, ?, 'semantic', ?)"
    for version, value in enumerate(values, 1):
        insert(settings, sql, namespace, key, value, version)


def told(found: Exploration) -> dict[str, str]:
    return {check.name: check.observed for check in found.report.checks}


def bundles(found: Exploration) -> dict[str, dict[str, str]]:
    return {name: getattr(found, name)._repr_mimebundle_() for name in PARTS}


async def test_each_part_says_how_much_there_is_and_nothing_changes(database: Settings) -> None:
    await fill(database)
    before = tree(database.db_path.parent)
    found = await explore(database)
    bundles(found)
    assert tree(database.db_path.parent) == before
    assert found.report.ok
    expected = {
        "sessions": "1 session, the last used first",
        "session": "session s1: 1 value of its state, 2 events",
        "namespaces": "6 namespaces, the largest first",
        "memories": f"{3 + 2} current memories, the last updated first",
        "memory": "user:alice:likes tea: 3 versions",
    }
    assert expected.items() <= told(found).items()
    assert found.session.rows == (
        ("state", "app:mode", '"dark"'),
        ("event", "2", '{"type": "message", "n": 2}'),
        ("event", "1", '{"type": "message", "n": 1}'),
    )
    assert found.to_record() == {"rows": found.rows}
    assert (found.rows["memory_entries"], found.rows["sessions"]) == (3 + 5, 1)


async def test_of_what_is_not_there_words_say_so_and_nothing_fails(database: Settings) -> None:
    found = await explore(database, namespace="nobody:")
    assert found.report.ok
    assert [one.name for one in found.report.checks if one.status == "warn"] == ["namespaces"]
    said = {name: bundle["text/plain"] for name, bundle in bundles(found).items()}
    assert all(said.values())
    assert said["sessions"] == said["session"] == "no session yet"
    assert said["namespaces"] == "no namespace begins with 'nobody:'"
    assert (said["memories"], said["audit"]) == ("no current memory", "no audit row")
    await fill(database)
    name = "'; DROP TABLE sessions; --"
    found = await explore(database, namespace="user:a", key=name, session=name)
    warned = {one.name: one.observed for one in found.report.checks if one.status == "warn"}
    assert warned == {"session": f'no session "{name}"', "memory": f'no key "{name}" in these namespaces'}
    run_sql(database.db_path, *(f"DELETE FROM {table}" for table in expected_tables()))
    found = await explore(database)
    assert found.report.ok
    assert all(part.to_frame().empty for part in (found.sessions, found.namespaces, found.memory, found.growth))
    run_sql(database.db_path, "DROP TABLE audit")
    found = await explore(database)
    assert "no such table: audit" in told(found)["audit trail"]
    assert not check_of(found.report, "sessions").failed


async def test_a_prefix_is_taken_literally_and_names_choose(database: Settings) -> None:
    await fill(database)
    remember(database, "user:100xy", "k", "{}")
    remember(database, "user:carol", "tea", "{}")
    run_sql(database.db_path, "INSERT INTO audit (action_type, memory_namespace) VALUES ('x', 'user:100xy')")
    for prefix in ("user:100%", "user:100%_"):
        found = await explore(database, namespace=prefix)
        names = [*(row[0] for row in (*found.memories.rows, *found.namespaces.rows)), *(r[3] for r in found.audit.rows)]
        assert (set(names), len(names) > 2) == ({"user:100%_x"}, True)
    assert (await explore(database, namespace="%")).memories.rows == ()
    # The control: without its sign it begins both.
    assert len((await explore(database, namespace="user:100")).memories.rows) == 2
    found = await explore(database, namespace="user:carol", key="tea", session="s1")
    assert found.memory.caption.startswith("user:carol tea: ")
    assert found.session.caption.startswith("session s1: ")
    assert (await explore(database, key="tea")).memory.caption.startswith("user:alice:likes tea"), "the most versions"


async def test_every_listing_ends_at_the_limit_and_tells_of_how_many_it_is(database: Settings) -> None:
    session = "INSERT INTO sessions (id, app_name, user_id, events, state) VALUES (?, 'a', 'u', ?, ?)"
    for n in range(7):
        insert(database, session, f"s{n}", json.dumps([{}] * 9), json.dumps(dict.fromkeys(map(str, range(8)))))
        insert(database, "INSERT INTO audit (action_type, memory_namespace) VALUES ('x', 'n:a')")
        remember(database, f"n:{n}", "k", *["{}"] * (9 if n == 3 else 1))
    found = await explore(database, namespace="n:", limit=4)
    words = "8 values of its state, of which 4 are shown, 9 events, of which 4 are shown"
    assert told(found)["session"].endswith(words)
    assert told(found)["namespaces"] == "7 namespaces, the largest first, of which 4 are shown"
    assert told(found)["memory"] == "n:3 k: 9 versions, the last 4"
    assert told(found)["memories"].startswith("7 current memories, ")
    assert told(found)["audit trail"].startswith("7 audit rows ")
    for part in (found.sessions, found.memories, found.audit):
        assert part.caption.endswith(", of which 4 are shown")
        assert len(part.rows) == len(part.to_frame()) == 4
    assert [part for part, _, _ in found.session.rows] == ["state"] * 4 + ["event"] * 4
    assert [row[0] for row in found.namespaces.table.rows] == ["n:3", "n:0", "n:1", "n:2"]
    assert [version for version, *_ in found.memory.rows] == [9, 8, 7, 6]
    assert {cells[2] for cells in found.memory.table.rows} == {"nothing, as far as it was read"}, "none is the first"


async def test_the_frames_have_the_columns_and_types_that_one_goes_on_with(database: Settings) -> None:
    await fill(database)
    sql = "INSERT INTO audit (action_type, memory_entry_id) VALUES ('x', {})"
    run_sql(database.db_path, TASK, AGENT, sql.format("NULL"), sql.format(2**53 + 1))
    found = await explore(database)
    columns = {name: " ".join(getattr(found, name).to_frame().columns) for name in PARTS[:-1]}
    assert columns == {
        "sessions": "id app_name user_id project_id status events bytes tasks agents checkpoints created_at"
        " last_update_time terminated_at archived_at",
        "session": "part name value",
        "namespaces": "namespace memories versions superseded deleted bytes newest",
        "memories": "namespace key version memory_type value bytes created_by updated_by created_at updated_at",
        "memory": "version state is_deleted memory_type value bytes metadata created_by updated_by created_at"
        " updated_at id",
        "audit": "timestamp action_type memory_operation_type memory_namespace memory_entry_id agent_id task_id result"
        " action_data id",
        "growth": "table day rows",
    }
    for frame in (found.sessions.to_frame(), found.memories.to_frame(), found.memory.to_frame()):
        assert str(frame["created_at"].dtype).endswith("UTC]"), "a time that one can compute with"
    ids = found.audit.to_frame()["memory_entry_id"]
    assert str(ids.dtype) == "Int64"
    assert 2**53 + 1 in ids.dropna().tolist(), "exact beside a NULL"
    run_sql(database.db_path, "UPDATE sessions SET created_at = 'yesterday'")
    found = await explore(database)
    assert found.sessions.to_frame()["created_at"].tolist() == ["yesterday"], "an invalid time stays to be seen"


async def test_what_is_hostile_is_shown_and_does_nothing(database: Settings) -> None:
    session = "INSERT INTO sessions (id, app_name, user_id, events, state) VALUES (?1, ?1, ?1, ?2, ?3)"
    insert(database, session, HOSTILE, json.dumps([{HOSTILE: HOSTILE}]), json.dumps({HOSTILE: HOSTILE}))
    remember(database, f"a:{HOSTILE}:b", HOSTILE, json.dumps({HOSTILE: 1}), json.dumps([HOSTILE]), HOSTILE)
    audit = "INSERT INTO audit (action_type, memory_namespace, result, action_data) VALUES (?1, ?2, ?1, ?1)"
    insert(database, audit, HOSTILE, f"a:{HOSTILE}:b")
    found = await explore(database, namespace="a:")
    assert found.report.ok
    assert (found.sessions.to_frame()["id"].iloc[0], found.memories.to_frame()["key"].iloc[0]) == (HOSTILE, HOSTILE)
    shown = {name: bundle for name, bundle in bundles(found).items() if name not in ("growth", "diagram")}
    for name, bundle in {**shown, "report": found.report._repr_mimebundle_()}.items():
        html, plain = bundle["text/html"], bundle["text/plain"]
        assert "<script" not in html, name
        assert not {"\u202e", "\x1b"} & {*html, *plain}, name
        assert "&lt;script&gt;" in html or name == "report", name
        assert clean(html) == clean(clean(html)), name


async def test_of_many_events_those_that_are_shown_cost_memory(database: Settings) -> None:
    insert(database, SESSION)
    insert(database, "UPDATE sessions SET events = ?", f"[{','.join('7' * 500_000)}]")
    tracemalloc.start()
    try:
        found, (_, peak) = await explore(database, limit=3), tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.session.rows == tuple(("event", str(n), "7") for n in (500_000, 499_999, 499_998))
    assert "500,000 events, of which 3 are shown" in found.session.caption
    assert peak < 25_000_000


async def test_a_part_not_read_in_time_is_named(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is up at once: what has not been read by then is interrupted."""
    await fill(database)
    monkeypatch.setattr("abathur_nb.runbook.explore.PART_S", 0.0)
    numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500000)"
    insert(database, f"INSERT INTO audit (action_type) {numbers} SELECT 'x' FROM n")
    found = await explore(database)
    late = {one.name: one.remedy for one in found.report.checks if "not read within 0 s" in one.observed}
    assert late["growth"]
    assert all(late.values())


async def test_a_session_of_what_the_schema_forbids_is_shown(database: Settings) -> None:
    session = "INSERT INTO sessions (id, app_name, user_id, events, state, metadata) VALUES ('s', 'a', 'u', ?1, ?1, ?1)"
    for stored in (b"\xff\x00", b"[]", 7, 1.5, "null", "{broken", '{"x": NaN}', "[" * 5000, "[" * 985 + "]" * 985):
        run_sql(database.db_path, "DELETE FROM sessions", "DELETE FROM memory_entries")
        insert(database, session, stored)
        remember(database, "user:a", "k", stored, stored)
        found = await explore(database, namespace="user:a")
        assert found.report.ok, str(found.report)
        assert all(bundle["text/plain"] for bundle in bundles(found).values())
        assert not found.session.to_frame().isna().any(axis=None)


async def test_a_damaged_page_costs_the_parts_that_stand_on_it_and_the_rest_is_shown(database: Settings) -> None:
    await fill(database)
    spoil_table(database.db_path, "memory_entries")
    with untouched(database.db_path):
        found = await explore(database)
    assert {"memories", "growth"} <= {one.name for one in found.report.checks if one.failed}
    assert "malformed" in told(found)["memories"]
    assert check_of(found.report, "memories").remedy == "run validate.ipynb"
    assert not check_of(found.report, "session").failed
    assert found.session.rows
    assert all(bundle["text/plain"] for bundle in bundles(found).values())


async def test_all_parts_are_of_one_snapshot_whoever_writes_meanwhile(database: Settings) -> None:
    """Each commit adds one session, one memory and one audit row: in no part there is more than in another."""
    run_sql(database.db_path, *(f"DELETE FROM {table}" for table in expected_tables()))
    commits = 0
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as conn:
        look = asyncio.create_task(explore(database, limit=1000))
        while not look.done():
            commits += 1
            rows = SESSION.replace("'s1'", f"'s{commits}'"), MEMORY.replace("'k'", f"'k{commits}'"), AUDIT
            conn.executescript(f"BEGIN; {'; '.join(rows)}; COMMIT;")
            await asyncio.sleep(0)  # lets the look go on
    found = look.result()
    assert found.report.ok
    seen, tables = found.rows["sessions"], ("sessions", "memory_entries", "audit")
    assert seen < commits, "somebody wrote after the snapshot was taken"
    assert {found.rows[table] for table in tables} == {seen} == {sum(row[1] for row in found.namespaces.rows)}
    assert {len(part.rows) for part in (found.sessions, found.memories, found.audit)} == {min(seen, 1000)}
    came = found.growth.to_frame().groupby("table")["rows"].sum().to_dict()
    assert came == {table: seen for table in tables if seen}


async def test_all_wrong_arguments_are_named_at_once(database: Settings) -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"namespace": "a\nb", "key": "", "session": 7, "limit": 0},
        {"namespace": b"a", "key": "x" * 513, "session": "\ud800", "limit": True},
        {"namespace": "\u202e", "key": "a\x00b", "session": "", "limit": 1001},
    )
    for given in wrong:
        with pytest.raises(nb.ConfigurationError) as refused:
            await explore(database, **given)
        assert [fault.partition(":")[0] for fault in refused.value.faults] == [*given]
        assert "limit: expected " in str(refused.value)
