"""Read ``sql/``: the statements of a script, and the named queries."""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

Parameters = Sequence[object] | Mapping[str, object]  # of a statement: by place, or by name
_PACKAGED = Path(__file__).parents[1] / "data"
# Where sql/ and notebooks/ stand: in the wheel beside this file, in a checkout one level up.
DATA = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2]

# In the order in which they must run.
DDL_FILES = ("ddl-memory-tables.sql", "ddl-core-tables.sql", "ddl-indexes.sql")
SEED_FILE = "seed-memories.sql"

# Longest first where one alternative begins another. A broken-off string or comment runs to the end, as in SQLite.
_TOKEN = re.compile(
    r"""(?P<layout> [ \t\n\f\r]+ | --[^\n]* | /\*.*?(?:\*/|\Z) )
    | [xX]?'(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z) | `(?:[^`]|``)*(?:`|\Z) | \[[^]]*(?:\]|\Z)
    | 0[xX][0-9a-fA-F]+ | (?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)? | [:@$\#?]?[\w\x80-\U0010ffff][\w$\x80-\U0010ffff]*
    | ->>? | \|\| | <> | [<>=!]= | << | >> | .""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_HEADER_LINE = re.compile(r"--\s*(name|index|parameters|scan|sort):\s*(.*)")


@dataclass(frozen=True, slots=True)
class Query:
    """Hold a named query: the object that the store runs, explain explains and benchmark times.

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
        raise ValueError(f"the last statement breaks off: {rest[:60]!r}")


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
    # What is above the name is not part of the query.
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
