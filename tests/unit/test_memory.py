"""Memories as an application uses them: versions, and an audit row for each change."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from damage import query, run_sql

from abathur_nb.config.settings import Settings
from abathur_nb.errors import InvalidValueError
from abathur_nb.store.database import Database
from abathur_nb.store.memory import MEMORY_TYPES
from abathur_nb.store.values import MAX_BYTES

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
async def test_a_bad_value_is_refused_by_name_and_nothing_is_written(
    name: str, bad: Any, db: Database, database: Settings
) -> None:
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
