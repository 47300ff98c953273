"""Sessions and memories as an application uses them: versions, events, and an audit row for each change."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from damage import query, run_sql

from abathur_nb.config.settings import Settings
from abathur_nb.errors import InvalidValueError, RefusedError
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.database import Database
from abathur_nb.store.memory import MEMORY_TYPES
from abathur_nb.store.sessions import STATUSES
from abathur_nb.store.values import MAX_BYTES

KEYS = ["a", "a.b", 'a"b', "a\\b", "é", "漢", "😀", "$", "[0]", "a'b", "/", "null"]


async def test_a_new_session_has_its_defaults(db: Database) -> None:
    await db.sessions.create_session("sess_1", "app", "alice", "p", {"a": [1, None]})
    session = await db.sessions.get_session("sess_1")
    assert session is not None
    created = session["created_at"]
    given = {"id": "sess_1", "app_name": "app", "user_id": "alice", "project_id": "p", "state": {"a": [1, None]}}
    defaults = {"status": "created", "events": [], "metadata": {}, "created_at": created}
    ends = {"last_update_time": created, "terminated_at": None, "archived_at": None}
    assert session == given | defaults | ends
    assert len(created) == 23
    assert await db.sessions.get_session("sess_2") is None
    with pytest.raises(ValueError, match="session 'sess_1' already exists"):
        await db.sessions.create_session("sess_1", "other", "bob")
    assert await db.sessions.get_session("sess_1") == session


async def test_a_listing_takes_a_project_a_status_both_or_neither(db: Database) -> None:
    for name, project in (("s1", "p"), ("s2", "p"), ("s3", "q"), ("s4", None)):
        await db.sessions.create_session(name, "app", "alice", project)
    await db.sessions.update_status("s2", "active")
    await db.sessions.update_status("s3", "active")

    async def listed(**given: Any) -> set[str]:
        return {session["id"] for session in await db.sessions.list_sessions(**given)}

    assert await listed() == {"s1", "s2", "s3", "s4"}
    assert await listed(project_id="p") == {"s1", "s2"}
    assert await listed(status="active") == {"s2", "s3"}
    assert await listed(project_id="p", status="active") == {"s2"}
    assert await listed(project_id="none") == set()
    assert await listed(limit=1) == {"s4"}
    for wrong in (0, -1, 10**9, 2**63, True, "5", 1.0):
        with pytest.raises(InvalidValueError, match="Invalid limit"):
            await db.sessions.list_sessions(limit=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="Invalid status"):
        await db.sessions.list_sessions(status="WHATEVER")


async def test_a_delta_replaces_keys_and_keeps_the_rest_as_it_was(db: Database) -> None:
    """Whole values and nulls: SQLite's own merge would go into objects and drop nulls."""
    await db.sessions.create_session(
        "s", "app", "alice", initial_state={"a": {"x": 1, "y": 2}, "b": 10**300, "c": 1e-7}
    )
    await db.sessions.append_event("s", {"n": 1}, {"a": {"z": None}, "new": None})
    await db.sessions.append_event("s", {"n": 2})
    await db.sessions.append_event("s", {"n": 3}, {})
    session = await db.sessions.get_session("s")
    assert session is not None
    assert session["events"] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert session["state"] == {"a": {"z": None}, "new": None, "b": 10**300, "c": 1e-7}
    assert session["last_update_time"] >= session["created_at"]


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_key_of_any_name_is_replaced_and_never_doubled(db: Database, escaped: bool) -> None:
    """Also where another program wrote it with escapes."""
    await db.sessions.create_session("s", "app", "alice")
    old = json.dumps(dict.fromkeys(KEYS, 1), ensure_ascii=escaped)
    async with db.write() as conn:
        await conn.execute_fetchall("UPDATE sessions SET state = ?", (old,))
    for key in KEYS:
        await db.sessions.append_event("s", {}, {key: [key]})
    assert (await db.sessions.get_session("s") or {})["state"] == {key: [key] for key in KEYS}
    async with db.read() as conn:
        ((text,),) = await conn.execute_fetchall("SELECT state FROM sessions")
    pairs = json.loads(text, object_pairs_hook=list)
    assert sorted(key for key, _ in pairs) == sorted(KEYS)


async def test_a_key_of_the_state_is_set_and_got(db: Database) -> None:
    await db.sessions.create_session("s", "app", "alice", initial_state={"keep": 1})
    values: list[Any] = [0, None, "text", [1, {"a": None}], {}, 1.5, True]
    for value in values:
        await db.sessions.set_state("s", "k", value)
        assert await db.sessions.get_state("s", "k") == value
    assert await db.sessions.get_state("s", "keep") == 1
    assert await db.sessions.get_state("s", "none") is None
    assert await db.sessions.get_state("none", "k") is None
    strange: list[Any] = [1, None, ["k"], {}, b"k"]
    for other in strange:
        with pytest.raises(InvalidValueError, match="Invalid key"):
            await db.sessions.get_state("s", other)
    for key in ("", "a\0", 7, ["k"]):
        with pytest.raises(InvalidValueError, match="Invalid key"):
            await db.sessions.set_state("s", key, 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="not JSON"):
        await db.sessions.set_state("s", "k", float("nan"))
    assert await db.sessions.get_state("s", "k") is True


async def test_each_status_can_be_set_and_sets_its_time_once_and_a_wrong_one_is_refused(db: Database) -> None:
    wrong: list[Any] = ["WHATEVER", "", "Active", None, 7, ["active"]]
    for status in STATUSES:
        await db.sessions.create_session(status, "app", "alice")
        await db.sessions.update_status(status, status)
        first = await db.sessions.get_session(status) or {}
        await db.sessions.update_status(status, status)
        again = await db.sessions.get_session(status) or {}
        assert first["status"] == status
        assert (first["terminated_at"] is not None) == (status == "terminated")
        assert (first["archived_at"] is not None) == (status == "archived")
        assert (again["terminated_at"], again["archived_at"]) == (first["terminated_at"], first["archived_at"])
    await db.sessions.terminate_session("active")
    assert (await db.sessions.get_session("active") or {})["terminated_at"]
    for status in wrong:
        with pytest.raises(ValueError, match="Invalid status"):
            await db.sessions.update_status("paused", status)
    assert (await db.sessions.get_session("paused") or {})["status"] == "paused"


@pytest.mark.parametrize("session_id", ["none", "", "\ud800", "a\0b", 7, None, 2**63, b"s"])
async def test_what_does_not_exist_is_not_found_by_any_id(db: Database, session_id: Any) -> None:
    """No id makes a bare error: a lone surrogate, a number too large for SQLite."""
    await db.sessions.create_session("s", "app", "alice")
    for work in (
        db.sessions.append_event(session_id, {}),
        db.sessions.append_event(session_id, {}, {"a": 1}),
        db.sessions.update_status(session_id, "active"),
        db.sessions.terminate_session(session_id),
        db.sessions.set_state(session_id, "k", 1),
        db.sessions.trim_events(session_id, 1),
    ):
        with pytest.raises(InvalidValueError, match=r"not found|does not accept this"):
            await work
    try:
        assert await db.sessions.get_session(session_id) is None
    except InvalidValueError as error:
        assert "does not accept this" in str(error)  # noqa: PT017
    assert len(await db.sessions.list_sessions()) == 1


async def test_a_session_may_not_outgrow_its_columns(db: Database) -> None:
    big = {"x": "x" * (MAX_BYTES // 2)}
    await db.sessions.create_session("s", "app", "alice")
    await db.sessions.append_event("s", big, big)
    with pytest.raises(InvalidValueError, match="would grow beyond 16,777,216 bytes") as refused:
        await db.sessions.append_event("s", big)
    assert "trim_events('s', keep_last=0)" in refused.value.remedy
    with pytest.raises(InvalidValueError, match="would grow beyond"):
        await db.sessions.append_event("s", {}, {"y": big})
    with pytest.raises(InvalidValueError, match="would grow beyond") as refused:
        await db.sessions.set_state("s", "y", big)
    assert "db.memory.add_memory" in refused.value.remedy
    await db.sessions.set_state("s", "x", 1)  # smaller than what it replaces
    session = await db.sessions.get_session("s")
    assert session is not None
    assert (len(session["events"]), session["state"]) == (1, {"x": 1})


async def audited(db: Database) -> list[tuple[Any, ...]]:
    async with db.read() as conn:
        columns = "action_type, action_data, result, memory_operation_type, memory_namespace, memory_entry_id"
        return [tuple(row) for row in await conn.execute_fetchall(f"SELECT {columns} FROM audit ORDER BY id")]


async def test_the_oldest_events_are_removed_and_each_removal_is_audited(database: Settings) -> None:
    async with Database.open(database) as db:
        for name in ("s", "other"):
            await db.sessions.create_session(name, "app", "alice", initial_state={"keep": 1})
            for n in range(5):
                await db.sessions.append_event(name, {"n": n})
        found = [await db.sessions.trim_events("s", keep_last) for keep_last in (5, 9, 2**63 - 1, 3, 3, 0, 0)]
        assert found == [0, 0, 0, 2, 0, 3, 0]
        session, other = [await db.sessions.get_session(name) or {} for name in ("s", "other")]
        assert (session["events"], session["state"], len(other["events"])) == ([], {"keep": 1}, 5)
        data = [f'{{"session_id": "s", "removed": {gone}, "kept": {kept}}}' for gone, kept in ((2, 3), (3, 0))]
        assert await audited(db) == [("session_trim", text, "success", None, None, None) for text in data]
        for wrong in (-1, 1.0, True, "3", None, 2**63):
            with pytest.raises(InvalidValueError, match="Invalid keep_last"):
                await db.sessions.trim_events("other", wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError, match="'none' not found"):
            await db.sessions.trim_events("none", 1)
        assert len(await audited(db)) == 2
    assert (await validate_database(database)).ok
    run_sql(database.db_path, "INSERT INTO audit (id, action_type) VALUES (9223372036854775807, 'the last id')")
    async with Database.open(database) as db:
        with pytest.raises(RefusedError, match="last id"):
            await db.sessions.trim_events("other", 0)
        assert len((await db.sessions.get_session("other") or {})["events"]) == 5, "no row of the audit, no removal"


async def test_what_is_not_a_json_object_is_no_event(db: Database) -> None:
    events: list[Any] = [[], "x", None, 7, {"a": float("nan")}, {"a": "\ud800"}, {1: 2}]
    await db.sessions.create_session("s", "app", "alice")
    for event in events:
        with pytest.raises(InvalidValueError, match="Invalid event"):
            await db.sessions.append_event("s", event)
        with pytest.raises(InvalidValueError, match="Invalid state_delta"):
            await db.sessions.append_event("s", {}, 0 if event is None else event)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="as several smaller events"):  # no trimming makes room for it
        await db.sessions.append_event("s", {"x": "x" * (MAX_BYTES - 10)})
    assert (await db.sessions.get_session("s") or {})["events"] == []


APPEND = """
import asyncio, sys
import abathur_nb as nb
async def main():
    async with nb.Database.open(nb.resolve("development", db_path=sys.argv[1])) as db:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(int(sys.argv[3])):
            await db.sessions.append_event("s", {"by": sys.argv[2], "n": n}, {f"{sys.argv[2]}-{n}": n})
asyncio.run(main())
"""


async def test_concurrent_appends_and_trims_lose_nothing(db: Database, database: Settings) -> None:
    await db.sessions.create_session("s", "app", "alice")
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", APPEND, str(database.db_path), str(n), "40"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for n in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"

    async def append(task: int) -> None:
        for n in range(10):
            await db.sessions.append_event("s", {"by": f"t{task}", "n": n}, {f"t{task}-{n}": n})

    removed = list[int]()

    async def trim() -> None:
        for _ in range(30):
            removed.append(await db.sessions.trim_events("s", 100))

    await asyncio.gather(
        trim(), *(worker.communicate(b"go\n") for worker in workers), *(append(task) for task in range(20))
    )
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    session = await db.sessions.get_session("s")
    assert session is not None
    assert sum(removed) + len(session["events"]) == len(session["state"]) == 3 * 40 + 20 * 10
    for by in (*"012", *(f"t{task}" for task in range(20))):  # each in its own order, the oldest removed
        own, count = [event["n"] for event in session["events"] if event["by"] == by], 40 if by in "012" else 10
        assert own == list(range(count - len(own), count))


PLACE = ("user:alice:pref", "theme")


def audit(settings: Settings) -> list[tuple[Any, ...]]:
    columns = "action_type, memory_operation_type, memory_namespace, memory_entry_id, task_id, action_data"
    return query(settings.db_path, f"SELECT {columns} FROM audit ORDER BY id")


async def test_a_new_memory_is_version_1_and_reads_back(db: Database, database: Settings) -> None:
    entry = await db.memory.add_memory(*PLACE, {"mode": "dark"}, "semantic", "session:abc", "task:xyz", {"m": 1})
    found = await db.memory.get_memory(*PLACE)
    assert found is not None
    moment = found["created_at"]
    given = {"namespace": PLACE[0], "key": PLACE[1], "value": {"mode": "dark"}, "memory_type": "semantic"}
    who = {"metadata": {"m": 1}, "created_by": "session:abc", "updated_by": "session:abc"}
    added = {"id": entry, "version": 1, "is_deleted": 0, "created_at": moment, "updated_at": moment}
    assert found == given | who | added
    data = '{"key":"theme","versions":[1]}'
    assert audit(database) == [("memory_create", "create", PLACE[0], entry, "task:xyz", data)]


async def test_versions_are_added_marked_and_never_counted_twice(db: Database, database: Settings) -> None:
    first = await db.memory.add_memory(*PLACE, {"n": 1}, "episodic", "a")
    second = await db.memory.update_memory(*PLACE, {"n": 2}, "b", "t1")
    with pytest.raises(ValueError, match="already exists"):
        await db.memory.add_memory(*PLACE, {"n": 0}, "semantic", "x")
    assert await db.memory.delete_memory(*PLACE, "t2") is True
    assert await db.memory.delete_memory(*PLACE) is False
    assert await db.memory.get_memory(*PLACE) is None
    with pytest.raises(ValueError, match="not found"):
        await db.memory.update_memory(*PLACE, {"n": 0}, "x")
    fourth = await db.memory.add_memory(*PLACE, [4], "semantic", "c")
    history = await db.memory.get_memory_history(*PLACE)
    assert [
        (m["id"], m["version"], m["is_deleted"], m["value"], m["created_by"], m["updated_by"]) for m in history
    ] == [(fourth, 3, 0, [4], "c", "c"), (second, 2, 1, {"n": 2}, "a", "b"), (first, 1, 1, {"n": 1}, "a", "a")]
    assert history[1]["memory_type"] == "episodic"
    assert history[1]["created_at"] == history[2]["created_at"]
    # By number also what is superseded or deleted.
    for version, value in ((1, {"n": 1}), (2, {"n": 2}), (3, [4])):
        assert (await db.memory.get_memory(*PLACE, version) or {})["value"] == value
    assert await db.memory.get_memory(*PLACE, 4) is None
    assert (await db.memory.get_memory(*PLACE) or {})["version"] == 3
    told = [(action, entry, task, data) for action, _, _, entry, task, data in audit(database)]
    assert told == [
        ("memory_create", first, None, '{"key":"theme","versions":[1]}'),
        ("memory_update", second, "t1", '{"key":"theme","versions":[2]}'),
        ("memory_delete", second, "t2", '{"key":"theme","versions":[1,2]}'),
        ("memory_create", fourth, None, '{"key":"theme","versions":[3]}'),
    ]


GOOD: dict[str, Any] = {"namespace": "user:a", "key": "k", "value": {}, "memory_type": "semantic", "created_by": "x"}
BAD: dict[str, list[Any]] = {  # test_names has all the names
    "namespace": ["no colon", None, "a:\ud800"],
    "key": ["", 7],
    "value": [None, 7, "x", b"{}", {"a": float("inf")}, {"a": "\ud800"}, {"a": "x" * MAX_BYTES}, {0: 1}],
    "memory_type": ["", "Semantic", "WHATEVER", None, 7, ["semantic"]],
    "created_by": ["", 7],
    "task_id": ["", 7],
    "metadata": [[], "x", {"a": float("nan")}],
}


@pytest.mark.parametrize(("name", "bad"), [(name, value) for name in BAD for value in BAD[name]])
async def test_a_bad_value_is_refused_by_name(name: str, bad: Any, db: Database, database: Settings) -> None:
    given = {**GOOD, name: bad}
    with pytest.raises(ValueError, match=f"^Invalid {name}") as caught:
        await db.memory.add_memory(**given)
    assert isinstance(caught.value, InvalidValueError)
    if name in ("namespace", "key", "value"):
        with pytest.raises(InvalidValueError, match=f"^Invalid {name}"):
            await db.memory.update_memory(given["namespace"], given["key"], given["value"], "x")
    written = query(database.db_path, "SELECT * FROM memory_entries WHERE created_by <> 'system'")
    assert (written, audit(database)) == ([], [])


@pytest.mark.parametrize("version", [0, -1, 2**63, 1.0, True, "1"])
async def test_a_version_that_cannot_be_one_is_refused(version: Any, db: Database) -> None:
    with pytest.raises(InvalidValueError, match="Invalid version"):
        await db.memory.get_memory(*PLACE, version)


async def test_a_prefix_is_literal_and_only_current_versions_are_found(db: Database) -> None:
    for namespace in ("user:a", "user:a:x", "userXa:", "user_a:", "user%a:", "User:a", "%:"):
        await db.memory.add_memory(namespace, "k", {}, "semantic", "x")
    await db.memory.update_memory("user:a", "k", {"n": 2}, "x")
    await db.memory.add_memory("user:a", "gone", {}, "semantic", "x")
    await db.memory.delete_memory("user:a", "gone")
    await db.memory.add_memory("user:a", "proc", {}, "procedural", "x")

    async def found(prefix: str, **given: Any) -> list[tuple[str, str, int]]:
        rows = await db.memory.search_memories(prefix, **given)
        return sorted((row["namespace"], row["key"], row["version"]) for row in rows)

    assert await found("user_") == [("user_a:", "k", 1)]
    assert await found("user%") == [("user%a:", "k", 1)]
    assert await found("%") == [("%:", "k", 1)]
    assert await found("user:") == [("user:a", "k", 2), ("user:a", "proc", 1), ("user:a:x", "k", 1)]
    assert await found("user:", memory_type="procedural") == [("user:a", "proc", 1)]
    assert await found("user:", memory_type="episodic") == []
    assert len(await found("")) == 8 + 3  # the seeds
    assert len(await found("", limit=2)) == 2
    wrong: list[dict[str, Any]] = [{"limit": 0}, {"limit": -1}, {"memory_type": "x"}, {"memory_type": ""}]
    for given in wrong:
        with pytest.raises(InvalidValueError):
            await db.memory.search_memories("user:", **given)
    await db.memory.add_memory("zzz:a", "k", {}, "semantic", "x")
    await db.memory.delete_memory("zzz:a", "k")
    names = await db.memory.list_namespaces()
    assert names == sorted(names)
    assert set(names) == {
        *("user:a", "user:a:x", "userXa:", "user_a:", "user%a:", "User:a", "%:"),
        *("app:abathur:agent_instructions", "app:abathur:config", "app:abathur:defaults"),
    }


async def test_only_live_episodic_memories_expire_each_with_its_audit_row(database: Settings) -> None:
    async with Database.open(database) as db:
        for memory_type in MEMORY_TYPES:
            for key in ("old", "new"):
                await db.memory.add_memory(f"a:{memory_type}", key, {}, memory_type, "x")
        await db.memory.add_memory("a:episodic", "gone", {}, "episodic", "x")
        await db.memory.delete_memory("a:episodic", "gone")
    run_sql(
        database.db_path,
        "UPDATE memory_entries SET created_at = strftime('%Y-%m-%d %H:%M:%f', 'now', '-91 days')"
        " WHERE key IN ('old', 'gone')",
    )
    before = len(audit(database))
    async with Database.open(database) as db:
        assert await db.memory.cleanup_expired_memories(92) == 0
        assert await db.memory.cleanup_expired_memories() == 1
        assert await db.memory.cleanup_expired_memories() == 0
        assert await db.memory.get_memory("a:episodic", "old") is None
        assert await db.memory.get_memory("a:episodic", "new")
        for wrong in (-1, 10**9, 1.5, True, None):
            with pytest.raises(InvalidValueError, match="Invalid ttl_days"):
                await db.memory.cleanup_expired_memories(wrong)  # type: ignore[arg-type]
    assert [(row[0], row[2]) for row in audit(database)[before:]] == [("memory_delete", "a:episodic")]


@pytest.mark.parametrize("change", ["add", "update", "delete", "expire"])
async def test_a_change_whose_audit_row_fails_is_undone(db: Database, database: Settings, change: str) -> None:
    await db.memory.add_memory(*PLACE, {"n": 1}, "episodic", "x")
    before = await db.memory.get_memory_history(*PLACE)
    run_sql(database.db_path, "ALTER TABLE audit RENAME TO audit_away")
    work: Callable[[], Awaitable[object]] = {
        "add": lambda: db.memory.add_memory("a:b", "k", {}, "semantic", "x"),
        "update": lambda: db.memory.update_memory(*PLACE, {"n": 2}, "x"),
        "delete": lambda: db.memory.delete_memory(*PLACE),
        "expire": lambda: db.memory.cleanup_expired_memories(0),
    }[change]
    with pytest.raises(Exception, match="audit"):
        await work()
    assert await db.memory.get_memory_history(*PLACE) == before
    assert await db.memory.get_memory("a:b", "k") is None
