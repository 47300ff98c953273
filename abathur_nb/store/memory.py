"""The memories of a database: versions are added or marked as deleted, never rewritten; each change is audited."""

from datetime import UTC, datetime, timedelta
from typing import Any

from abathur_nb.errors import InvalidValueError
from abathur_nb.store.guarded import Connection, Run, Write
from abathur_nb.store.values import (
    check_choice,
    check_name,
    check_namespace,
    check_whole,
    compact_json,
    decoded,
    json_text,
    prefix_range,
    spellings,
)
from abathur_nb.text import shown, timestamp

MEMORY_TYPES = ("semantic", "episodic", "procedural")
_JSON = ("value", "metadata")
Value = dict[str, Any] | list[Any]


class Memory:
    """Read and write the table ``memory_entries``; reached as ``db.memory``."""

    def __init__(self, run: Run, write: Write) -> None:
        self._run, self._write = run, write

    async def add_memory(
        self,
        namespace: str,
        key: str,
        value: Value,
        memory_type: str,
        created_by: str | None,
        task_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """Add a memory and return its entry's id; a deleted key continues with its next version number.

        Raises InvalidValueError if the key is live ("already exists") or a value is invalid.
        """
        given_as = list(spellings(namespace, key))
        namespace, key = check_namespace(namespace), check_name("key", key)
        check_choice("memory_type", memory_type, MEMORY_TYPES)
        task_id = check_name("task_id", task_id, optional=True)
        given = {
            "namespace": namespace,
            "key": key,
            "value": json_text("value", value),
            "memory_type": memory_type,
            "created_by": check_name("created_by", created_by, optional=True),
            "metadata": "{}" if metadata is None else json_text("metadata", metadata, (dict,)),
        }
        async with self._write() as writer:
            rows = await self._run("insert_memory", given, writer)
            others = [{"namespace": n, "key": k} for n, k in given_as if (n, k) != (namespace, key)]
            if not rows or any([await self._run("get_memory", other, writer) for other in others]):
                raise InvalidValueError(f"memory {shown(namespace)} {shown(key)} already exists: update it instead")
            await self._audit(writer, "create", namespace, key, rows, task_id)
            return int(rows[0]["id"])

    async def get_memory(self, namespace: str, key: str, version: int | None = None) -> dict[str, Any] | None:
        """Return a memory's current version, or any version by number, even a deleted one; None if it is missing."""
        if version is not None:
            check_whole("version", version, 1, 2**63 - 1)
        name = "get_memory" if version is None else "get_memory_version"
        rows = await self._fetch(name, namespace, key, version=version)
        return decoded(rows[0], _JSON) if rows else None

    async def update_memory(
        self, namespace: str, key: str, value: Value, updated_by: str | None, task_id: str | None = None
    ) -> int:
        """Add the next version of a live memory and return its entry's id; raise InvalidValueError if not found."""
        check_namespace(namespace)
        check_name("key", key)
        task_id = check_name("task_id", task_id, optional=True)
        updated_by = check_name("updated_by", updated_by, optional=True)
        given = {"value": json_text("value", value), "updated_by": updated_by}
        async with self._write() as writer:
            for n, k in spellings(namespace, key):
                if rows := await self._run("insert_memory_version", {**given, "namespace": n, "key": k}, writer):
                    await self._audit(writer, "update", n, k, rows, task_id)
                    return int(rows[0]["id"])
            remedy = "add it: await db.memory.add_memory(…)"
            raise InvalidValueError(f"memory {shown(namespace)} {shown(key)} not found", remedy)

    async def delete_memory(self, namespace: str, key: str, task_id: str | None = None) -> bool:
        """Mark every live version of a memory as deleted; return whether there was a live version."""
        task_id = check_name("task_id", task_id, optional=True)
        async with self._write() as writer:
            for n, k in spellings(namespace, key):
                if rows := await self._run("soft_delete_memory", {"namespace": n, "key": k}, writer):
                    await self._audit(writer, "delete", n, k, rows, task_id)
                    return True
            return False

    async def search_memories(
        self, namespace_prefix: str, memory_type: str | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Return the current versions in namespaces that start with a literal prefix, by namespace, newest first."""
        check_whole("limit", limit, 1, 100_000)
        if memory_type is not None:
            check_choice("memory_type", memory_type, MEMORY_TYPES)
        name = "search_memories" if memory_type is None else "search_memories_of_type"
        rows: list[Any] = []
        for (spelling,) in spellings(namespace_prefix):
            prefix, end = prefix_range(spelling)
            given = {"limit": limit, "memory_type": memory_type, "prefix": prefix, "prefix_end": end}
            rows += await self._run(name, given)
        return [decoded(row, _JSON) for row in rows[:limit]]

    async def list_namespaces(self) -> list[str]:
        """Return the namespaces that hold a live memory, in order."""
        return [row[0] for row in await self._run("list_namespaces", {})]

    async def get_memory_history(self, namespace: str, key: str) -> list[dict[str, Any]]:
        """Return all versions of a memory, deleted ones included, newest first."""
        return [decoded(row, _JSON) for row in await self._fetch("memory_history", namespace, key)]

    async def cleanup_expired_memories(self, ttl_days: int = 90) -> int:
        """Mark the episodic entries created more than ``ttl_days`` ago as deleted; return how many."""
        check_whole("ttl_days", ttl_days, 0, 36_500)
        before = timestamp(datetime.now(UTC) - timedelta(days=ttl_days))
        async with self._write() as writer:
            await self._run("audit_expired_memories", {"before": before}, writer)
            return len(await self._run("expire_memories", {"before": before}, writer, last=True))

    async def _fetch(self, name: str, namespace: str, key: str, **more: object) -> list[Any]:
        for n, k in spellings(namespace, key):
            if rows := await self._run(name, {"namespace": n, "key": k, **more}):
                return rows
        return []

    async def _audit(
        self, writer: Connection, operation: str, namespace: str, key: str, rows: list[Any], task_id: str | None
    ) -> None:
        """Add the audit row of a change, with the id of the newest changed entry, and commit."""
        given = {
            "agent_id": None,
            "task_id": task_id,
            "action_type": f"memory_{operation}",
            "action_data": compact_json({"key": key, "versions": sorted(row["version"] for row in rows)}),
            "result": "success",
            "memory_operation_type": operation,
            "memory_namespace": namespace,
            "memory_entry_id": max(row["id"] for row in rows),
        }
        await self._run("insert_audit", given, writer, last=True)
