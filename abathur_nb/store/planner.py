"""Plan a statement in a process of its own: read one pickle from standard input, answer with another.

A process of its own, with limits, because SQLite may compile a statement of twenty lines for minutes and gigabytes, and
within a process nothing stops it: before SQLite 3.41 an interrupt and a progress handler wait for the end.
"""

import pickle
import resource
import sqlite3
import sys

SECONDS, MEGABYTES = 5, 512  # a statement of this package's own takes a millisecond and 15 MB


def main() -> None:
    """Answer with the rows of EXPLAIN QUERY PLAN, or with the error."""
    uri, timeout, statement, parameters = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent alone
    limits = {resource.RLIMIT_CPU: SECONDS, resource.RLIMIT_AS: MEGABYTES * 1_000_000, resource.RLIMIT_CORE: 0}
    for what, limit in limits.items():
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    answer: object
    try:
        conn = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
        answer = conn.execute(statement, parameters).fetchall()
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        answer = error
    pickle.dump(answer, sys.stdout.buffer)
