"""SQL: the statements and named queries of ``sql/``, the tokens of a statement, and the plan that SQLite makes."""

import asyncio
import json
import pickle
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from subprocess import CalledProcessError, run
from types import MappingProxyType
from typing import Any, Literal

from abathur_nb.errors import InvalidValueError
from abathur_nb.store import apart
from abathur_nb.text import shown

Parameters = Sequence[object] | Mapping[str, object]  # of a statement: by position, or by name
_PACKAGED = Path(__file__).parents[1] / "data"
# The directory of sql/ and notebooks/: abathur_nb/data in a wheel, the repository's root in a checkout.
DATA = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2]

# In the order in which they must run.
DDL_FILES = ("ddl-memory-tables.sql", "ddl-core-tables.sql", "ddl-indexes.sql")
SEED_FILE = "seed-memories.sql"

# The longest alternative comes first. An unfinished string or comment runs to the end, as in SQLite.
_TOKEN = re.compile(
    r"""(?P<layout> [ \t\n\f\r]+ | --[^\n]* | /\*.*?(?:\*/|\Z) )
    | [xX]?'(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z) | \[[^]]*(?:\]|\Z)
    | 0[xX][0-9a-fA-F]+ | (?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)? | [:@$\#?]?[\w\x80-\U0010ffff][\w$\x80-\U0010ffff]*
    | ->>? | \|\| | <> | [<>=!]= | << | >> | .""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_HEADER_LINE = re.compile(r"--\s*(name|index|parameters|scan|sort):\s*(.*)")

# Runs one statement and returns its rows, through any SQLite library.
Fetch = Callable[[str, Parameters], Awaitable[Iterable[Sequence[Any]]]]
StepKind = Literal["search", "table scan", "index scan", "automatic index", "sort"]

# Until SQLite 3.35 a step has the word TABLE, and the table's name before its alias.
_STEP = re.compile(
    r"(?P<verb>SCAN|SEARCH) (?:TABLE )?(?P<name>SUBQUERY \d+|\S+)(?: AS \S+)?"
    r"(?: USING (?P<auto>AUTOMATIC )?(?:PARTIAL )?(?:COVERING )?INDEX(?: (?P<index>[^\s(].*?))?(?= \(|$))?"
)
_BY_INDEX = re.compile(r"USING (?:COVERING )?INDEX (?P<index>.+?) FOR IN-OPERATOR")
_DERIVED = re.compile(r"(?:CO-ROUTINE|MATERIALIZE) (?P<name>\S+)")
_NOT_A_TABLE = re.compile(r"SCAN (?:(?:\d+ )?CONSTANT ROWS?|\d+-ROW VALUES|SUBQUERY \d+|(?:TABLE )?\S+ VIRTUAL TABLE)")

_MOST_CHARACTERS = 100_000  # of a SELECT to explain: splitting it into tokens takes 20 ms
_VERBS = {"SELECT", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE"}


@dataclass(frozen=True, slots=True)
class Query:
    """Hold a named query, which the store runs, explain.ipynb plans and benchmark.ipynb times.

    ``index`` is the index that its plan must use (None: a rowid lookup or a plain INSERT), ``parameters`` an example
    for its ``:names``; ``scan`` and ``sort`` are the reasons why its plan may scan or sort.
    """

    name: str
    sql: str
    doc: str
    index: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict, hash=False)
    scan: str | None = None
    sort: str | None = None


def split(script: str) -> Iterator[tuple[str, str]]:
    """Yield the comments above each statement of an SQL script, and the statement without its ``;``.

    Comments inside a statement stay in it, as in ``sqlite_master``. Raises ValueError if the last statement is cut off.
    """
    start = end = 0
    while (end := script.find(";", end) + 1) > 0:
        # Only SQLite's own lexer knows which `;` ends a statement: others are in comments and strings.
        if sqlite3.complete_statement(script[start:end]):
            comments, statement = _without_leading_comments(script[start:end])
            yield comments, statement.removesuffix(";").rstrip()
            start = end
    if rest := _without_leading_comments(script[start:])[1]:
        raise ValueError(f"the last statement is incomplete: {rest[:60]!r}")


@cache
def statements(filename: str) -> tuple[str, ...]:
    """Return the statements of a file in ``sql/`` without the comments between them."""
    return tuple(statement for _, statement in split(_read(filename)))


@cache
def load_queries(filename: str = "queries.sql") -> Mapping[str, Query]:
    """Return the named queries of a file in ``sql/`` by name, in the order of the file."""
    queries = [_query(comments.splitlines(), statement) for comments, statement in split(_read(filename))]
    return MappingProxyType({query.name: query for query in queries})


def _query(comments: Sequence[str], statement: str) -> Query:
    headers = [match for match in map(_HEADER_LINE.match, comments) if match]
    fields: dict[str, Any] = {match[1]: match[2] for match in headers}
    fields["parameters"] = json.loads(fields.get("parameters", "{}"))
    fields["index"] = None if fields.get("index") == "none" else fields.get("index")
    # Comments above the name are not part of the query.
    doc = comments[comments.index(headers[0].string) :]
    words = (line.removeprefix("--").strip() for line in doc if not _HEADER_LINE.match(line))
    return Query(sql=statement, doc=" ".join(words), **fields)


def normalized(sql: str) -> str:
    """Return SQL without its layout and comments, so that equal statements are equal texts."""
    return " ".join(tokens(sql))


def tokens(sql: str) -> list[str]:
    """Return the tokens of SQL without its layout and comments."""
    return [match[0] for match in _TOKEN.finditer(sql) if match["layout"] is None]


def _without_leading_comments(text: str) -> tuple[str, str]:
    start = 0
    while (match := _TOKEN.match(text, start)) and match["layout"] is not None:
        start = match.end()
    return text[:start].strip(), text[start:].rstrip()


def _read(filename: str) -> str:
    return (DATA / "sql" / filename).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Step:
    """Hold how one row of a query plan reads ``table`` (or its alias), and the ``index`` it uses, if any."""

    kind: StepKind
    table: str
    index: str | None = None


async def read_plan(fetch: Fetch, sql: str, params: Parameters = ()) -> list[str]:
    """Return the plan of one statement as lines indented by level, without running it; empty if it has none.

    Use a new connection: a cached statement keeps a plan whose index was dropped.
    """
    lines, levels = list[str](), {0: 0}  # by row: the level of its child rows
    for number, parent, _, detail in await fetch(f"EXPLAIN QUERY PLAN {sql}", params):
        level = levels.get(parent, 0)
        levels[number] = level + 1
        lines.append("  " * level + str(detail))
    return lines


async def plan_apart(path: Path, patience: float, sql: str, params: Parameters) -> list[str]:
    """Return the plan of one SELECT as lines, made in a process with limits of time and memory. Read-only.

    Waits up to ``patience`` seconds for a lock. Raises InvalidValueError for anything but one SELECT within the
    limits, and sqlite3.Error as SQLite does.
    """
    require_single_select(sql)
    if not isinstance(params, Mapping | Sequence):
        raise InvalidValueError(f"expected a sequence of parameters, or a mapping by name, found {shown(params)}")
    given = dict(params) if isinstance(params, Mapping) else tuple(params)
    for value in (*given, *given.values()) if isinstance(given, dict) else given:
        if type(value) not in (type(None), bool, int, float, str, bytes):  # the other process can read only these
            raise InvalidValueError(f"expected None, a number, text or bytes as a parameter, found {shown(value)}")
    try:
        return await read_plan(lambda *asked: asyncio.to_thread(_ask, path, patience, *asked), sql, given)
    except CalledProcessError:
        observed = f"planning it takes more than {apart.PLAN_S} s or {apart.PLAN_MB} MB: {sql.strip()[:80]!r}"
        raise InvalidValueError(observed, "nest fewer subqueries and WITH clauses") from None


def _ask(path: Path, patience: float, sql: str, params: Parameters) -> list[Sequence[Any]]:
    asked = pickle.dumps((f"{path.as_uri()}?mode=ro", patience, sql, params))
    done = run(apart.command("plan"), input=asked, capture_output=True, check=True)  # noqa: S603 - no shell
    answer = pickle.loads(done.stdout)  # noqa: S301 - from a program of our own
    if isinstance(answer, Exception):
        raise answer
    return list(answer)


def plan_steps(plan: Iterable[str]) -> list[Step]:
    """Return what a plan does, in its order: searches, full scans of a table or an index, automatic indexes, sorts.

    Constant rows, the results of subqueries, table-valued functions and the queue of a recursive query are not scans.
    """
    steps, derived = list[Step](), set[str]()
    around: list[tuple[int, str]] = []  # the indent and the name of each subquery around a line
    for line in plan:
        detail = line.lstrip(" ")
        indent = len(line) - len(detail)
        while around and around[-1][0] >= indent:
            derived.add(around.pop()[1])  # after its lines, where a table may have the same name
        if (step := _read_step(detail)) and not (step.kind.endswith("scan") and step.table in derived):
            steps.append(step)
        if match := _DERIVED.match(detail):
            around.append((indent, match["name"]))
        elif detail == "RECURSIVE STEP":  # it scans a queue named like its subquery
            derived.add(around[-1][1])
    return steps


def _read_step(detail: str) -> Step | None:
    if "TEMP B-TREE" in detail:
        return Step("sort", "")
    if by_index := _BY_INDEX.match(detail):
        return Step("search", "", by_index["index"])
    match = _STEP.match(detail)
    if match is None or match["name"].startswith("(") or _NOT_A_TABLE.match(detail):
        return None
    if match["auto"]:
        return Step("automatic index", match["name"])
    if match["verb"] == "SEARCH":
        return Step("search", match["name"], match["index"])
    return Step("index scan" if match["index"] else "table scan", match["name"], match["index"])


def require_single_select(sql: str) -> None:
    """Raise InvalidValueError for anything but one SELECT, or WITH … SELECT; one ``;`` may end it."""
    if not isinstance(sql, str) or "\0" in sql or any("\ud800" <= c <= "\udfff" for c in sql):
        raise InvalidValueError("expected one SELECT as text, without NUL characters and lone surrogates")
    if len(sql) > _MOST_CHARACTERS:
        raise InvalidValueError(f"expected one SELECT of at most {_MOST_CHARACTERS:,} characters, found {len(sql):,}")
    found = tokens(sql)
    kind = "several statements" if ";" in found[:-1] else verb(found)
    if kind != "SELECT":
        raise InvalidValueError(f"expected one SELECT, found {kind.strip(';') or 'nothing'}: {sql.strip()[:80]!r}")


def verb(found: Sequence[str]) -> str:
    """Return the verb of a statement: its first word or, after WITH, the first verb outside parentheses."""
    first, depth = found[0].upper() if found else "", 0
    for token in found if first == "WITH" else ():
        depth += (token == "(") - (token == ")")
        if depth == 0 and token.upper() in _VERBS:
            return token.upper()
    return first
