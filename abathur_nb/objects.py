"""The checks of a live schema's objects: its tables, its indexes, and the counters of its ids."""

from collections.abc import Iterable, Mapping
from difflib import unified_diff
from pathlib import Path
from shlex import quote

import aiosqlite

from abathur_nb.expected import SchemaObject, expected_objects
from abathur_nb.report import Check
from abathur_nb.schema import Differences, quoted
from abathur_nb.sql import load_queries
from abathur_nb.wording import shown

__all__ = ["indexes_check", "sequences_check", "tables_check"]

_LAST_ID = 2**63 - 1


async def tables_check(live: Mapping[str, SchemaObject], path: Path) -> Check:
    """Compare the live tables with ``sql/``; a view or trigger is one too many."""
    differences = Differences.between(live, ("table", "view", "trigger"))
    evidence = [
        *(f"expected: {expected_objects()[name].sql};" for name in differences.missing),
        *(_difference(expected_objects()[name].sql, live[name].sql) for name in differences.altered),
        *_drops(differences.extra, live),
    ]
    remedy = "restore a backup, or make the table again as in sql/ and copy its rows"
    if not (differences.missing or differences.altered):
        remedy = f"find out who made it; if nobody needs it: sqlite3 {quote(str(path))}, and run the DROP below"
    return _objects_check("tables", live, differences, ("table", "view", "trigger"), remedy, evidence)


async def indexes_check(live: Mapping[str, SchemaObject], path: Path) -> Check:
    """Compare the live indexes with ``sql/``; the evidence is what mends them."""
    differences = Differences.between(live, ("index",))
    extra = {name.casefold(): name for name in differences.extra}
    # To SQLite a name in other capitals is the same name, and taken.
    replaced = {name: name for name in differences.altered}
    replaced |= {name: extra.pop(name.casefold()) for name in differences.missing if name.casefold() in extra}
    evidence = [
        *(f"{_one_line(expected_objects()[name].sql)};" for name in differences.missing if name not in replaced),
        *(
            line
            for name, found in replaced.items()
            for line in (
                f"-- found: {_one_line(live[found].sql)};",
                f"DROP INDEX {found}; {_one_line(expected_objects()[name].sql)};",
            )
        ),
        *_drops(extra.values(), live),
    ]
    remedy = f"sqlite3 {quote(str(path))}, and run the statements of the evidence"
    if extra:
        remedy += "; of a DROP behind --, only what nobody needs"
    return _objects_check("indexes", live, differences, ("index",), remedy, evidence)


def _objects_check(
    name: str,
    live: Mapping[str, SchemaObject],
    differences: Differences,
    kinds: tuple[str, ...],
    remedy: str,
    evidence: Iterable[str],
) -> Check:
    expected = sum(found.type in kinds for found in expected_objects().values())
    count = sum(found.type in kinds for found in live.values())
    told = str(differences)
    return Check.that(
        name,
        not told,
        expected=f"the {expected} of sql/, each with the same SQL, and no other",
        observed=f"{count} {name}" + (f"; {told}" if told else ", each as in sql/"),
        remedy=remedy,
        evidence=evidence,
    )


def _drops(extra: Iterable[str], live: Mapping[str, SchemaObject]) -> Iterable[str]:
    """Yield what is extra and the statement that would drop it, as comments: to run it is somebody's decision."""
    for name in extra:
        yield f"-- extra: {_one_line(live[name].sql)};"
        yield f"-- DROP {live[name].type.upper()} {_one_line(quoted(name))};"


def _one_line(sql: str) -> str:
    # Behind a -- nothing may begin a line of its own. The DDL of an index holds no comment, which would hide its end.
    return " ".join(sql.split())


def _difference(expected: str, found: str) -> str:
    """Return the lines in which two statements differ, with one line around them."""
    return "\n".join(unified_diff(expected.splitlines(), found.splitlines(), "expected", "found", n=1, lineterm=""))


async def sequences_check(conn: aiosqlite.Connection, path: Path) -> Check:
    """Check the counters of AUTOINCREMENT against the ids that there are. Read-only."""
    rows = await conn.execute_fetchall(load_queries("inspect.sql")["sequences"].sql)
    # An id below the largest would be given out twice, and after the last one every insert fails.
    wrong = [row for row in rows if row["kind"] != "integer" or not (row["largest"] or 0) <= row["seq"] < _LAST_ID // 2]
    return Check.that(
        "sequences",
        not wrong,
        expected="the last id given out, of each table that counts its ids, is a number not below the largest there",
        observed=", ".join(f"{row['name']} {shown(row['seq'])}, largest {row['largest']}" for row in wrong) or "right",
        remedy=f"sqlite3 {quote(str(path))}, and run the statements of the evidence",
        evidence=(
            f"DELETE FROM sqlite_sequence WHERE name = '{row['name']}'; "
            f"INSERT INTO sqlite_sequence VALUES ('{row['name']}', {row['largest'] or 0});"
            for row in wrong
        ),
    )
