"""The checks of a live schema's objects: its tables, its indexes, the counters of its ids, its seed memories."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path

import aiosqlite

from abathur_nb.report import Check
from abathur_nb.store.guarded import Connection
from abathur_nb.store.schema import Differences, SchemaObject, SeedRow, expected_objects, expected_seeds, quoted
from abathur_nb.store.sql import load_queries
from abathur_nb.store.target import FIND_OUT, shell_command
from abathur_nb.text import shown, some

OTHERS = "other_objects"
_MOST = 1000  # objects of others that a check shows in full
_LAST_ID = 2**63 - 1


async def objects_check(live: Mapping[str, SchemaObject], check_id: str, kind: str) -> Check:
    """Compare the tables, or the indexes, of ``sql/`` with the live ones; the evidence repairs an index."""
    ours, found = expected_objects(), Differences.between(live, (kind,))
    expected = sum(one.type == kind for one in ours.values())
    words = str(replace(found, extra=()))
    if kind == "table":
        evidence = [f"expected: {ours[name].sql};" for name in found.missing]
        evidence += [_difference(ours[name].sql, live[name].sql) for name in found.altered]
    else:
        evidence = [f"{_one_line(ours[name].sql)};" for name in found.missing]
        for name in found.altered:
            evidence += [f"-- found: {_one_line(live[name].sql)};", f"DROP INDEX {name}; {_one_line(ours[name].sql)};"]
    return Check.that(
        check_id,
        not words,
        expected=f"the {expected} of sql/, each with the same SQL",
        observed=f"{expected - len(found.missing)} {check_id}" + (f"; {words}" if words else ", each as in sql/"),
        remedy="restore a backup, or make the table again as in sql/ and copy its rows" if kind == "table" else "",
        evidence=evidence,
        data={"missing": found.missing, "altered": found.altered},
    )


async def others_check(live: Mapping[str, SchemaObject], path: Path) -> Check:
    """Name what is not of ``sql/``: an extra table or index warns, anything else fails."""
    ours, missing = expected_objects(), Differences.between(live, ("table",)).missing
    found = [one for name, one in live.items() if name not in ours or one.type != ours[name].type]
    # Other tables and indexes, such as those of a replication tool, change nothing of ours; the rest, first, runs code.
    found.sort(key=lambda one: (one.type in ("table", "index"), one.name))
    harmful = [one for one in found if one.type not in ("table", "index")]
    renamed = [one.name for one in found if missing and one.type == "table"]  # which has all rows of a missing one
    drops = in_the_way(live) if renamed else harmful or found
    # A unique index, a reference or an unknown collation of it may refuse what the store writes.
    remedy = FIND_OUT if harmful else "find out who made it; if the store fails to write, or nobody needs it, drop it:"
    remedy += f" {shell_command(path, [_drop(one) for one in drops])}"
    if renamed:
        others = f"; {_names(drops)}: {remedy}" if drops else ""
        remedy = f"drop no table: {some(renamed)} may be {' or '.join(missing)} under another name{others}"
    evidence = []
    for one in found[:_MOST]:  # as comments: to run a DROP is somebody's decision
        evidence += [f"-- extra: {_one_line(one.sql)};", *([f"-- {_drop(one)}"] if one in drops or not renamed else [])]
    return Check.that(
        OTHERS,
        not found,
        expected="none but those of sql/",
        observed=f"extra: {_names(found)}" if found else "none",
        remedy=remedy,
        evidence=evidence,
        otherwise="fail" if harmful else "warn",
        data={"extra": [one.name for one in found[:_MOST]]},
    )


def _names(found: Sequence[SchemaObject]) -> str:
    return some([f"{one.type} {one.name}" for one in found])


def in_the_way(live: Mapping[str, SchemaObject]) -> list[SchemaObject]:
    """Return what must go before a table is renamed: views and triggers, and what has the name of a missing table."""
    missing = Differences.between(live, ("table",)).missing
    return [one for one in live.values() if one.type in ("view", "trigger") or one.name in missing]


def _drop(one: SchemaObject) -> str:
    return f"DROP {one.type.split()[-1].upper()} {_one_line(quoted(one.name))};"


def _one_line(sql: str) -> str:
    # Behind a -- nothing may begin a line of its own. The DDL of an index holds no comment, which would hide its end.
    return " ".join(sql.split())


def _difference(expected: str, found: str) -> str:
    """Return the lines in which two statements differ, with one line around them."""
    return "\n".join(unified_diff(expected.splitlines(), found.splitlines(), "expected", "found", n=1, lineterm=""))


async def sequences_check(conn: aiosqlite.Connection) -> Check:
    """Check the counters of AUTOINCREMENT against the ids that there are. Read-only."""
    rows = await conn.execute_fetchall(load_queries("inspect.sql")["sequences"].sql)
    # An id below the largest would be given out twice, and after the last one every insert fails.
    wrong = [row for row in rows if row["kind"] != "integer" or not (row["largest"] or 0) <= row["seq"] < _LAST_ID // 2]
    repairs = []
    for row in wrong:
        repairs.append(f"DELETE FROM sqlite_sequence WHERE name = '{row['name']}'")
        repairs.append(f"INSERT INTO sqlite_sequence VALUES ('{row['name']}', {row['largest'] or 0})")
    return Check.that(
        "sequences",
        not wrong,
        expected="the last id given out, of each table that counts its ids, is a number not below the largest there",
        observed=", ".join(f"{row['name']} {shown(row['seq'])}, largest {row['largest']}" for row in wrong) or "right",
        evidence=(f"{statement};" for statement in repairs),
        data={"statements": repairs},
    )


async def seeds_check(conn: Connection) -> Check:
    """Check that version 1 of each seed is as its file made it; the evidence is what restores it. Read-only."""
    seeds, faults, newer = expected_seeds(), {}, 0
    keys = [{"namespace": seed.namespace, "key": seed.key} for seed in seeds]
    history = load_queries()["memory_history"].sql
    found = await conn.apply(lambda of: [of.execute(history, key).fetchall() for key in keys])
    for seed, versions in zip(seeds, found, strict=True):
        rows = {row["version"]: row for row in versions}
        newer += any(isinstance(version, int) and version > seed.version for version in rows)
        if fault := _seed_fault(seed, rows.get(seed.version)):
            faults[seed] = fault
    restoring = {seed: _restoring(seed) for seed in faults}
    evidence = []
    for seed, fault in faults.items():
        name = f"{seed.namespace} / {seed.key}: version {seed.version}"
        evidence += [f"-- {name} {fault}", f"{restoring[seed]};"]
    return Check.that(
        "seed_memories",
        not faults,
        expected=f"version 1 of each of the {len(seeds)}, with its content",
        observed=f"{len(seeds) - len(faults)} of {len(seeds)}" + (f"; {newer} with later versions" if newer else ""),
        evidence=evidence,
        data={"restored_by": [{"namespace": s.namespace, "key": s.key, "sql": sql} for s, sql in restoring.items()]},
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
    """Return what is wrong with the row of a seed; an empty text if it is as the seed file made it."""
    if found is None:
        return "is missing"
    for column in ("value", "metadata", "memory_type", "created_by", "updated_by"):
        if not _is_same(found[column], getattr(seed, column)):
            return f"holds {shown(found[column])} as its {column}"
    return ""


def _is_same(found: object, expected: str) -> bool:
    """Return whether two texts are equal, or are equal JSON in another layout."""
    try:  # as text: to Python 1 and true are the same
        one, other = (json.dumps(json.loads(str(text)), sort_keys=True) for text in (found, expected))
        return isinstance(found, str) and one == other
    except (ValueError, RecursionError):
        return found == expected
