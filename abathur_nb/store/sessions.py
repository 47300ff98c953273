"""The sessions of a database: create, read and change them."""

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from abathur_nb.errors import InvalidValueError
from abathur_nb.store.guarded import Connection, Run, Write
from abathur_nb.store.values import MAX_BYTES, check_choice, check_name, check_whole, decoded, json_text, spellings
from abathur_nb.text import shown

STATUSES = ("created", "active", "paused", "terminated", "archived")
_JSON = ("events", "state", "metadata")
_AUDIT = {
    **dict.fromkeys(("agent_id", "task_id", "memory_operation_type", "memory_namespace", "memory_entry_id")),
    "action_type": "session_trim",
    "result": "success",
}


class Sessions:
    """Read and write the table ``sessions``; reached as ``db.sessions``."""

    def __init__(self, run: Run, write: Write, write_at_once: Write) -> None:
        self._run, self._write, self._write_at_once = run, write, write_at_once

    async def create_session(
        self,
        session_id: str,
        app_name: str,
        user_id: str,
        project_id: str | None = None,
        initial_state: dict[str, Any] | None = None,
    ) -> None:
        """Create a session in status ``created``; raise InvalidValueError if its id already exists."""
        row = {"session_id": session_id, "app_name": app_name, "user_id": user_id, "project_id": project_id}
        row = {what: check_name(what, value, optional=what == "project_id") for what, value in row.items()}
        initial_state = {} if initial_state is None else initial_state
        row["state"] = json_text("initial_state", _in_nfc("initial_state", initial_state), (dict,))
        is_new = await self._stored(session_id) == row["session_id"]
        async with self._write() as writer:
            if not is_new or not await self._run("insert_session", row, writer):
                raise InvalidValueError(f"session {shown(session_id)} already exists")

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        """Return one session with events, state and metadata decoded, or None."""
        rows = await self._run("get_session", {"session_id": await self._stored(session_id)})
        return decoded(rows[0], _JSON) if rows else None

    async def list_sessions(
        self, project_id: str | None = None, status: str | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Return the ``limit`` newest sessions, all or of a project; for a ``status`` alone, the last used ones."""
        check_whole("limit", limit, 1, 100_000)
        name = "list_sessions" if project_id is None else "list_sessions_of_project"
        if status is not None:
            check_choice("status", status, STATUSES)
            name += "_by_status" if project_id is None else "_with_status"
        rows: list[Any] = []
        for (spelling,) in spellings(project_id):
            found = await self._run(name, {"project_id": spelling, "status": status, "limit": limit})
            rows = sorted([*rows, *found], key=lambda row: str(row["created_at"]), reverse=True) if rows else found
        return [decoded(row, _JSON) for row in rows[:limit]]

    async def append_event(
        self, session_id: str, event: dict[str, Any], state_delta: dict[str, Any] | None = None
    ) -> None:
        """Append an event and replace the keys of ``state_delta`` in the state, in one atomic statement."""
        text = json_text("event", event, (dict,), within=1)
        if state_delta in (None, {}):
            await self._update("append_event", session_id, event=text)
        else:
            await self._update("append_event_with_delta", session_id, event=text, **_delta("state_delta", state_delta))

    async def trim_events(self, session_id: str, keep_last: int) -> int:
        """Remove all events but the ``keep_last`` newest, with an audit row; return how many were removed.

        Raises InvalidValueError if the session is not found or ``keep_last`` is not a whole number of at least 0.
        """
        check_whole("keep_last", keep_last, 0, 2**63 - 1)
        given = {"session_id": await self._stored(session_id)}
        async with self._write_at_once() as writer:  # nothing may change between the count and the trim
            removed: int = max(0, (await self._sizes(writer, given["session_id"]))["count"] - keep_last)
            if removed:
                await self._run("trim_events", {**given, "removed": removed}, writer)
                data = json.dumps({**given, "removed": removed, "kept": keep_last}, ensure_ascii=False)
                await self._run("insert_audit", {**_AUDIT, "action_data": data}, writer)
        return removed

    async def update_status(self, session_id: str, status: str) -> None:
        """Set a session's status, and terminated_at or archived_at when it is first terminated or archived."""
        check_choice("status", status, STATUSES)
        await self._update("update_session_status", session_id, status=status)

    async def terminate_session(self, session_id: str) -> None:
        """Set a session's status to ``terminated``."""
        await self.update_status(session_id, "terminated")

    async def get_state(self, session_id: str, key: str) -> Any:
        """Return the value of one key of a session's state, or None if the session or the key is missing."""
        if not isinstance(key, str):
            raise InvalidValueError(f"expected text, found {shown(key)}", what="key")
        state = (await self.get_session(session_id) or {"state": {}})["state"]
        return next((state[spelling] for (spelling,) in spellings(key) if spelling in state), None)

    async def set_state(self, session_id: str, key: str, value: Any) -> None:
        """Replace one key of a session's state by any JSON value, in one atomic statement."""
        check_name("key", key)  # before a dict needs its hash
        await self._update("set_state", session_id, **_delta("value", {key: value}))

    async def _stored(self, session_id: str) -> str:
        """Return the id of a session as it is stored: as given, or else in NFC."""
        *others, (written,) = spellings(session_id)
        for (spelling,) in others:
            if await self._run("session_sizes", {"session_id": spelling}):
                return str(spelling)
        return written  # type: ignore[no-any-return]

    async def _update(self, name: str, session_id: str, **given: Any) -> None:
        given |= {"session_id": await self._stored(session_id), "max_bytes": MAX_BYTES}
        async with self._write() as writer:
            if not await self._run(name, given, writer):
                raise _too_large(given, await self._sizes(writer, given["session_id"]))

    async def _sizes(self, writer: Connection, session_id: object) -> sqlite3.Row:
        rows = await self._run("session_sizes", {"session_id": session_id}, writer)
        if not rows:
            remedy = "create it: await db.sessions.create_session(…)"
            raise InvalidValueError(f"session {shown(session_id)} not found", remedy)
        return rows[0]


def _too_large(given: Mapping[str, object], sizes: sqlite3.Row) -> InvalidValueError:
    session_id, event = shown(given["session_id"]), len(str(given.get("event", "")).encode())
    remedy = "keep large values as memories (db.memory.add_memory) and only small values in the state"
    if event and sizes["events"] + event >= MAX_BYTES:
        # After the append, half of the limit is free, or this event is alone.
        keep_last = sizes["count"] * max(0, MAX_BYTES // 2 - event) // sizes["events"]
        trim = f"await db.sessions.trim_events({given['session_id']!r}, keep_last={keep_last})"
        remedy = f"remove its oldest events: {trim}" if sizes["count"] else "append it as several smaller events"
    observed = f"its events have {sizes['events']:,} bytes, its state {sizes['state']:,}"
    return InvalidValueError(f"session {session_id} would grow beyond {MAX_BYTES:,} bytes of JSON: {observed}", remedy)


def _delta(what: str, delta: dict[str, Any]) -> dict[str, str]:
    # SQLite's own merge is recursive and drops nulls, so the statement removes the keys and then adds them.
    # A key is removed as given and in NFC, with and without escapes: other programs may have written any of these.
    text = json_text(what, _in_nfc(what, delta), (dict,))
    keys = (spelling for key in delta for (spelling,) in spellings(key))
    names = dict.fromkeys(json.dumps(key, ensure_ascii=escaped) for key in keys for escaped in (False, True))
    return {"delta": text, "cleared": "{" + ",".join(f"{name}:null" for name in names) + "}"}


def _in_nfc(what: str, state: Any) -> Any:
    """Return a state with its keys in NFC, as names are written; raise InvalidValueError for an invalid key."""
    if not isinstance(state, dict):
        return state  # json_text refuses it
    written = {check_name("key" if what == "value" else f"{what} key", key): value for key, value in state.items()}
    if len(written) < len(state):
        raise InvalidValueError("two of its keys become equal in NFC, the form that is stored", what=what)
    return written
