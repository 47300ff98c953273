"""The quarantine: every row that a repair changes, whole and as it was, in a file that puts it back."""

import hashlib
import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import aiosqlite

from abathur_nb.errors import RefusedError
from abathur_nb.evidence.canonical import canonical, misfits, moment, sha256, uncanonical, whole_number
from abathur_nb.expected import expected_columns, expected_tables
from abathur_nb.files import at, make_private_file, open_regular, private_directory, scratch_directory, sweep
from abathur_nb.limits import stored
from abathur_nb.operate.rows import Change
from abathur_nb.operate.transfer import publish
from abathur_nb.settings import Settings
from abathur_nb.wording import shown, timestamp

__all__ = ["affected", "digest_of", "plain", "quarantine_dir", "read_quarantine", "value_of", "write_quarantine"]

_FORMAT = 1
_LITERAL = re.compile(r"NULL|'(?:[^']|'')*'")
_NAMED = 5  # faults that an error names


async def affected(conn: aiosqlite.Connection, changes: Iterable[Change]) -> AsyncIterator[bytes]:
    """Yield a line for each row that each change will change, as it is now. Read-only.

    ``conn`` must have the functions of `limits`.
    """
    for change in changes:
        keys = [column.name for column in expected_columns(change.table) if column.in_key]
        done: dict[str, Any] = {"column": change.column, "becomes": change.empty} if change.column else {}
        async with conn.execute(change.rows) as cursor:
            names = [column[0] for column in cursor.description][1:]
            async for rowid, *values in cursor:
                row = {name: plain(value) for name, value in zip(names, values, strict=True)}
                key = {name: row[name] for name in keys}
                yield canonical({"table": change.table, "rowid": rowid, "key": key, "change": done, "row": row})


async def digest_of(lines: AsyncIterator[bytes]) -> str:
    """Return the SHA-256 of all lines."""
    digest = hashlib.sha256()
    async for line in lines:
        digest.update(line)
    return digest.hexdigest()


def quarantine_dir(settings: Settings) -> Path:
    """Return where the quarantine files of an environment are."""
    return settings.backup_dir / "quarantine"


async def write_quarantine(settings: Settings, lines: AsyncIterator[bytes]) -> tuple[Path, str, int]:
    """Write the lines to a new file of mode 0600 in ``backup_dir``/quarantine, durably.

    Returns its path, the SHA-256 of the lines and their number. Raises OSError.
    """
    folder = quarantine_dir(settings)
    now = datetime.now(UTC)
    digest, count = hashlib.sha256(), 0
    head = {"format": _FORMAT, "env": settings.env, "database": str(settings.db_path), "taken_at": timestamp(now)}
    # A killed repair leaves no file that breaks off. No other directory serves: this one may be a mount of its own.
    sweep(folder)
    with private_directory(folder, owned_as=settings.db_path.parent), scratch_directory(folder, "backup") as scratch:
        draft = scratch / "quarantine"
        make_private_file(draft, owned_as=folder)
        with at(draft), draft.open("wb") as file:
            whole = hashlib.sha256(canonical(head))
            file.write(canonical(head))
            async for line in lines:
                file.write(line)
                digest.update(line)
                whole.update(line)
                count += 1
            file.write(canonical({"rows": count, "sha256": whole.hexdigest()}))
        path = folder / f"quarantine_{now:%Y%m%d_%H%M%S}_{now.microsecond // 1000:03}_{digest.hexdigest()[:12]}.jsonl"
        publish(draft, path)
    return path, digest.hexdigest(), count


def read_quarantine(path: Path) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """Return the head of a quarantine file and its entries; raise RefusedError if a byte is another. Read-only."""
    try:
        with open_regular(path) as file:
            head, *lines, end = file.read().splitlines(keepends=True)
        first, entries, last = uncanonical(head), [uncanonical(line) for line in lines], uncanonical(end)
    except FileNotFoundError:
        raise RefusedError(f"no file {path}", f"see what there is: ls {quote(str(path.parent))}") from None
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path} is no quarantine file: {error}", "name another one") from None
    faults = misfits(first, _HEAD)
    if last != {"rows": len(entries), "sha256": sha256(head + b"".join(lines))}:
        faults.append("its hash is not the one that its last line names")
    for line, entry in enumerate(entries, 2):
        faults += [f"line {line}: {fault}" for fault in misfits(entry, _ENTRY) or _strange_columns(entry)]
    if faults:
        observed = f"{path} is not as it was written: {'; '.join(faults[:_NAMED])}"
        raise RefusedError(observed, f"name another one: ls {quote(str(path.parent))}")
    return first, entries


def _strange_columns(entry: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the columns that an entry names; a table that was altered may have had others."""
    keys = {column.name for column in expected_columns(entry["table"]) if column.in_key}
    change, row = entry["change"], entry["row"]
    faults = [] if entry["key"].keys() == keys <= row.keys() else [f"key: expected {', '.join(sorted(keys))}"]
    faults += [f"row: expected text as names, found {shown(name)}" for name in row if not _value(name)]
    # It becomes a part of a statement: no SQL of a stranger's may.
    known = change.keys() == {"column", "becomes"} and change["column"] in row and _LITERAL.fullmatch(change["becomes"])
    if change and not known:
        faults.append(f"change: expected a column of the row and the literal that it becomes, found {shown(change)}")
    return faults


def plain(value: object) -> object:
    """Return a value of SQLite's as JSON has it; else an object that names its kind: blob, real, broken text."""
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"real": repr(value)}
    kept = stored(value)
    return {"text": kept.hex()} if isinstance(kept, bytes) else kept


def _value(data: object) -> bool:
    """Return whether JSON is what ``plain`` makes of a value of SQLite's."""
    try:
        if isinstance(data, dict):
            return not misfits(data, {str: str}) and value_of(data) is not None
        if isinstance(data, int):
            return not isinstance(data, bool) and -(2**63) <= data < 2**63
        return not isinstance(data, list) and plain(data) == data
    except (KeyError, TypeError, ValueError):  # among them a surrogate, which is no text to SQLite
        return False


def table(data: object) -> bool:
    """Return whether JSON is the name of a table of the schema."""
    return data in expected_tables()


def value_of(found: Any) -> tuple[str, object]:
    """Return the SQL that takes a value of a quarantine file, and the value; raise for what ``plain`` did not write."""
    if not isinstance(found, dict):
        return "?", found
    ((kind, text),) = found.items()
    if kind == "real":
        return "?", float(text)
    return {"text": "CAST(? AS TEXT)", "blob": "?"}[kind], bytes.fromhex(text)


_HEAD = {"format": whole_number, "env": str, "database": str, "taken_at": moment}
_ENTRY = {"table": table, "rowid": int, "key": {str: _value}, "change": {str: str}, "row": {str: _value}}
