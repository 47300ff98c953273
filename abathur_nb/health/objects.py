"""The checks of a live schema's objects: its tables, its indexes, the counters of its ids, its seed memories."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
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


async def tables_check(live: Mapping[str, SchemaObject]) -> Check:
    """Compare the tables of ``sql/`` with the live ones."""
    differences = Differences.between(live, ("table",))
    evidence = [
        *(f"expected: {expected_objects()[name].sql};" for name in differences.missing),
        *(_difference(expected_objects()[name].sql, live[name].sql) for name in differences.altered),
    ]
    remedy = "restore a backup, or make the table again as in sql/ and copy its rows"
    return _objects_check("tables", "table", differences, remedy, evidence)


async def indexes_check(live: Mapping[str, SchemaObject]) -> Check:
    """Compare the indexes of ``sql/`` with the live ones; the evidence is what repairs them."""
    differences = Differences.between(live, ("index",))
    evidence = [
        *(f"{_one_line(expected_objects()[name].sql)};" for name in differences.missing),
        *(
            line
            for name in differences.altered
            for line in (
                f"-- found: {_one_line(live[name].sql)};",
                f"DROP INDEX {name}; {_one_line(expected_objects()[name].sql)};",
            )
        ),
    ]
    return _objects_check("indexes", "index", differences, "", evidence)


async def others_check(live: Mapping[str, SchemaObject], path: Path) -> Check:
    """Name what is not of ``sql/``: an extra table or index warns, anything else fails."""
    ours, missing = expected_objects(), Differences.between(live, ("table",)).missing
    found = [one for name, one in live.items() if name not in ours or one.type != ours[name].type]
    # Other tables and indexes, such as those of a replication tool, change nothing of ours; the rest, first, runs code.
    found.sort(key=lambda one: (one.type in ("table", "index"), one.name))
    harmful = [one for one in found if one.type not in ("table", "index")]
    tables = [one.name for one in found if missing and one.type == "table"]  # a renamed one has all its rows
    drops = in_the_way(live) if tables else harmful or found
    # A unique index, a reference or an unknown collation of it may refuse what the store writes.
    remedy = FIND_OUT if harmful else "find out who made it; if the store fails to write, or nobody needs it, drop it:"
    remedy += f" {shell_command(path, [_drop(one) for one in drops])}"
    if any(one.type == "virtual table" for one in drops):
        remedy += "; a virtual table is dropped only where its module is known"
    if tables:
        remedy = f"drop no table: {some(tables)} may be {' or '.join(missing)} under another name" + (
            f"; {some([f'{one.type} {one.name}' for one in drops])}: {remedy}" if drops else ""
        )
    return Check.that(
        OTHERS,
        not found,
        expected="none but those of sql/",
        observed=f"extra: {some([f'{one.type} {one.name}' for one in found])}" if found else "none",
        remedy=remedy,
        data={"extra": [one.name for one in found[:_MOST]]},
        otherwise="fail" if harmful else "warn",
        # As comments: to run a DROP is somebody's decision.
        evidence=(
            line
            for one in found[:_MOST]
            for line in (f"-- extra: {_one_line(one.sql)};", f"-- {_drop(one)}")[: 1 + (one in drops or not tables)]
        ),
    )


def in_the_way(live: Mapping[str, SchemaObject]) -> list[SchemaObject]:
    """Return what must go before a table is renamed: views and triggers, and what has the name of a missing table."""
    missing = Differences.between(live, ("table",)).missing
    return [one for one in live.values() if one.type in ("view", "trigger") or one.name in missing]


def _drop(one: SchemaObject) -> str:
    return f"DROP {one.type.split()[-1].upper()} {_one_line(quoted(one.name))};"


def _objects_check(check_id: str, kind: str, differences: Differences, remedy: str, evidence: Iterable[str]) -> Check:
    expected = sum(found.type == kind for found in expected_objects().values())
    words = str(replace(differences, extra=()))
    return Check.that(
        check_id,
        not words,
        expected=f"the {expected} of sql/, each with the same SQL",
        observed=f"{expected - len(differences.missing)} {check_id}" + (f"; {words}" if words else ", each as in sql/"),
        remedy=remedy,
        evidence=evidence,
        data={"missing": differences.missing, "altered": differences.altered},
    )


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
    repairs = [
        (
            f"DELETE FROM sqlite_sequence WHERE name = '{row['name']}'",
            f"INSERT INTO sqlite_sequence VALUES ('{row['name']}', {row['largest'] or 0})",
        )
        for row in wrong
    ]
    return Check.that(
        "sequences",
        not wrong,
        expected="the last id given out, of each table that counts its ids, is a number not below the largest there",
        observed=", ".join(f"{row['name']} {shown(row['seq'])}, largest {row['largest']}" for row in wrong) or "right",
        evidence=(f"{delete}; {insert};" for delete, insert in repairs),
        data={"statements": [statement for pair in repairs for statement in pair]},
    )


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
        one, other = (json.dumps(json.loads(str(text)), sort_keys=True) for text in (found, expected))
        return isinstance(found, str) and one == other
    except (ValueError, RecursionError):
        return False
