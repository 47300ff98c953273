"""The memories of a database: versions that are added and marked, never rewritten, each change with its audit row."""

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiosqlite

from abathur_nb.errors import InvalidValueError
from abathur_nb.values import check_name, check_namespace, check_whole, decoded, json_text, prefix_range
from abathur_nb.wording import shown, timestamp

if TYPE_CHECKING:
    from abathur_nb.database import Database

__all__ = ["MEMORY_TYPES", "Memory"]

MEMORY_TYPES = ("semantic", "episodic", "procedural")
_JSON = ("value", "metadata")


class Memory:
    """Read and write the table ``memory_entries``; reached as ``db.memory``."""

    def __init__(self, db: "Database") -> None:
        self._db = db

    async def add_memory(
        self,
        namespace: str,
        key: str,
        value: dict[str, Any] | list[Any],
        memory_type: str,
        created_by: str | None,
        task_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """Add a memory and return its entry's id; a deleted key goes on with its next version number.

        Raises InvalidValueError if the key is live ("already exists") or a value is not to be written.
        """
        _check_place(namespace, key)
        _check_type(memory_type)
        _check_people(created_by=created_by, task_id=task_id)
        given = {
            "namespace": namespace,
            "key": key,
            "value": json_text("value", value),
            "memory_type": memory_type,
            "created_by": created_by,
            "metadata": "{}" if metadata is None else json_text("metadata", metadata, (dict,)),
        }
        async with self._db.changing() as writer:
            rows = await self._db.change(writer, "insert_memory", given)
            if not rows:
                raise InvalidValueError(f"memory {shown(namespace)} {shown(key)} already exists: update it instead")
            await self._audit(writer, "create", namespace, key, rows, task_id)
            return int(rows[0]["id"])

    async def get_memory(self, namespace: str, key: str, version: int | None = None) -> dict[str, Any] | None:
        """Return the current version, or the one of that number, superseded or deleted as it may be; else None."""
        if version is None:
            rows = await self._db.fetch("get_memory", {"namespace": namespace, "key": key})
        else:
            check_whole("version", version, 1, 2**63 - 1)
            given = {"namespace": namespace, "key": key, "version": version}
            rows = await self._db.fetch("get_memory_version", given)
        return decoded(rows[0], _JSON) if rows else None

    async def update_memory(
        self,
        namespace: str,
        key: str,
        value: dict[str, Any] | list[Any],
        updated_by: str | None,
        task_id: str | None = None,
    ) -> int:
        """Add the next version of a live memory and return its entry's id; InvalidValueError if it is not found.

        The new version keeps who created the memory and when, and says who updated it.
        """
        _check_place(namespace, key)
        _check_people(updated_by=updated_by, task_id=task_id)
        given = {"namespace": namespace, "key": key, "value": json_text("value", value), "updated_by": updated_by}
        async with self._db.changing() as writer:
            rows = await self._db.change(writer, "insert_memory_version", given)
            if not rows:
                raise InvalidValueError(f"memory {shown(namespace)} {shown(key)} not found")
            await self._audit(writer, "update", namespace, key, rows, task_id)
            return int(rows[0]["id"])

    async def delete_memory(self, namespace: str, key: str, task_id: str | None = None) -> bool:
        """Mark every live version as deleted; tell whether there was one."""
        _check_people(task_id=task_id)
        async with self._db.changing() as writer:
            rows = await self._db.change(writer, "soft_delete_memory", {"namespace": namespace, "key": key})
            if rows:
                await self._audit(writer, "delete", namespace, key, rows, task_id)
            return bool(rows)

    async def search_memories(
        self, namespace_prefix: str, memory_type: str | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Return the current versions in the namespaces that start with a literal prefix, newest first in each."""
        check_whole("limit", limit, 1, 100_000)
        prefix, prefix_end = prefix_range(namespace_prefix)
        given: dict[str, object] = {"prefix": prefix, "prefix_end": prefix_end, "limit": limit}
        name = "search_memories"
        if memory_type is not None:
            _check_type(memory_type)
            name, given = "search_memories_of_type", {**given, "memory_type": memory_type}
        return [decoded(row, _JSON) for row in await self._db.fetch(name, given)]

    async def list_namespaces(self) -> list[str]:
        """Return the namespaces that hold a live memory, in order."""
        return [row[0] for row in await self._db.fetch("list_namespaces", {})]

    async def get_memory_history(self, namespace: str, key: str) -> list[dict[str, Any]]:
        """Return every version, deleted ones too, newest first."""
        rows = await self._db.fetch("memory_history", {"namespace": namespace, "key": key})
        return [decoded(row, _JSON) for row in rows]

    async def cleanup_expired_memories(self, ttl_days: int = 90) -> int:
        """Mark the episodic entries created more than ``ttl_days`` ago as deleted; return how many."""
        check_whole("ttl_days", ttl_days, 0, 36_500)
        before = timestamp(datetime.now(UTC) - timedelta(days=ttl_days))
        async with self._db.changing() as writer:
            rows = await self._db.change(writer, "expire_memories", {"before": before})
            await self._audit_expired(writer, rows)
            return len(rows)

    async def _audit(
        self,
        writer: aiosqlite.Connection,
        operation: str,
        namespace: str,
        key: str,
        rows: list[Any],
        task_id: str | None,
    ) -> None:
        await self._db.change(writer, "insert_audit", _audit_row(operation, namespace, key, rows, task_id))

    async def _audit_expired(self, writer: aiosqlite.Connection, rows: list[Any]) -> None:
        """Write the audit rows of all entries in one hop to the writer's thread: others wait for its lock."""
        entries = [_audit_row("delete", row["namespace"], row["key"], [row], None) for row in rows]
        await self._db.change_many(writer, "insert_audit", entries)


def _audit_row(
    operation: str, namespace: str, key: str, rows: list[Any], task_id: str | None
) -> dict[str, str | int | None]:
    """Return the audit row of one change, which names the newest of the entries that it touched."""
    versions = sorted(row["version"] for row in rows)
    return {
        "agent_id": None,
        "task_id": task_id,
        "action_type": f"memory_{operation}",
        "action_data": json.dumps(
            {"key": key, "versions": versions}, ensure_ascii=False, separators=(",", ":")
        ),  # all checked before
        "result": "success",
        "memory_operation_type": operation,
        "memory_namespace": namespace,
        "memory_entry_id": max(row["id"] for row in rows),
    }


def _check_place(namespace: object, key: object) -> None:
    check_namespace(namespace)
    check_name("key", key)


def _check_type(memory_type: object) -> None:
    if memory_type not in MEMORY_TYPES:
        raise InvalidValueError(
            f"Invalid memory_type: expected one of {', '.join(MEMORY_TYPES)}, found {shown(memory_type)}"
        )


def _check_people(**names: object) -> None:
    for what, value in names.items():
        check_name(what, value, optional=True)
