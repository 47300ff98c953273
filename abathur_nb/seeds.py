"""The seed memories of a live database: whether each still holds what it was made with, and what restores it."""

import json
import sqlite3

from abathur_nb.expected import SeedRow, expected_seeds
from abathur_nb.guarded import Connection
from abathur_nb.report import Check
from abathur_nb.sql import load_queries
from abathur_nb.wording import shown

__all__ = ["seeds_check"]


async def seeds_check(conn: Connection) -> Check:
    """Check that version 1 of each seed is as its file made it; the evidence is what restores it. Read-only."""
    faults, newer = {}, 0
    seeds = expected_seeds()
    keys = [{"namespace": seed.namespace, "key": seed.key} for seed in seeds]
    history = load_queries()["memory_history"].sql
    found = await conn.apply(lambda of: [of.execute(history, key).fetchall() for key in keys])
    for seed, versions in zip(seeds, found, strict=True):
        rows = {row["version"]: row for row in versions}
        newer += any(isinstance(version, int) and version > seed.version for version in rows)
        if fault := _seed_fault(seed, rows.get(seed.version)):
            faults[seed] = fault
    restored = [{"namespace": seed.namespace, "key": seed.key, "sql": _restoring(seed)} for seed in faults]
    return Check.that(
        "seed_memories",
        not faults,
        expected=f"version 1 of each of the {len(seeds)}, with its content",
        observed=f"{len(seeds) - len(faults)} of {len(seeds)}" + (f"; {newer} with later versions" if newer else ""),
        evidence=(
            line
            for seed, fault in faults.items()
            for line in (f"-- {seed.namespace} / {seed.key}: version {seed.version} {fault}", f"{_restoring(seed)};")
        ),
        data={"restored_by": restored},
    )


def _restoring(seed: SeedRow) -> str:
    """Return the statement that gives a seed back its content, in place: audit rows refer to the row by its id."""
    row = {name: str(value).replace("'", "''") for name, value in seed._asdict().items()}
    same = f"namespace = '{row['namespace']}' AND key = '{row['key']}'"
    # What a user deleted, a version 1 that is put back does not revive.
    deleted = f"(SELECT ifnull(min(is_deleted), 0) FROM memory_entries WHERE {same})"
    content = [name for name in row if name not in ("namespace", "key", "version")]
    values = ", ".join(value if name == "version" else f"'{value}'" for name, value in row.items())
    return (
        f"INSERT INTO memory_entries ({', '.join(row)}, is_deleted) VALUES ({values}, {deleted}) "
        f"ON CONFLICT (namespace, key, version) DO UPDATE SET {', '.join(f'{n} = excluded.{n}' for n in content)}"
    )


def _seed_fault(seed: SeedRow, found: sqlite3.Row | None) -> str:
    """Say what is wrong with the row of a seed, nothing if it is as the seed file made it."""
    if found is None:
        return "is missing"
    for column in ("value", "metadata"):
        if not _same_json(found[column], getattr(seed, column)):
            return f"holds {shown(found[column])}" + (" as its metadata" if column == "metadata" else "")
    if (found["memory_type"], found["created_by"], found["updated_by"]) != (
        seed.memory_type,
        seed.created_by,
        seed.updated_by,
    ):
        return f"is {found['memory_type']}, created by {found['created_by']}, updated by {found['updated_by']}"
    return ""


def _same_json(found: object, expected: str) -> bool:
    try:  # as text: to Python 1 and true are the same
        return isinstance(found, str) and _canonical(found) == _canonical(expected)
    except (ValueError, RecursionError):
        return False


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)
