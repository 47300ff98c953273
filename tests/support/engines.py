"""The two SQLite libraries of the tests, Python's own and the one in the apsw wheel, behind one function each."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from abathur_nb.store.sql import DDL_FILES, SEED_FILE, Fetch, Parameters, statements

LIBRARIES = ("sqlite3", "apsw")
REFUSALS = (sqlite3.IntegrityError, apsw.ConstraintError)

Run = Callable[..., list[tuple[Any, ...]]]


@contextmanager
def opened(library: str, path: Path | str = ":memory:") -> Iterator[Run]:
    """Open a database with one of LIBRARIES, in autocommit mode, foreign keys on, and yield what runs a statement."""
    conn: Any
    if library == "sqlite3":
        conn = sqlite3.connect(path, isolation_level=None, cached_statements=0)
    else:
        conn = apsw.Connection(str(path), statementcachesize=0)

    def run(sql: str, params: Parameters = ()) -> list[tuple[Any, ...]]:
        bound = dict(params) if isinstance(params, Mapping) else tuple(params)
        return [tuple(row) for row in conn.execute(sql, bound)]

    try:
        run("PRAGMA foreign_keys = ON")
        yield run
    finally:
        conn.close()


def build(run: Run, files: Iterable[str] = (*DDL_FILES, SEED_FILE)) -> None:
    for filename in files:
        for statement in statements(filename):
            run(statement)


def as_fetch(run: Run) -> Fetch:
    """Return the same as an async function, as plans are read over."""

    async def fetch(sql: str, params: Parameters) -> Sequence[Sequence[Any]]:
        return run(sql, params)

    return fetch
