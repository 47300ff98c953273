"""Fill a copy of a database with deterministic rows, skewed like real ones, and time reads of them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import count, cycle, islice
from time import perf_counter_ns
from typing import TypeVar

import aiosqlite

from abathur_nb.errors import RefusedError
from abathur_nb.store.connection import run_to_end
from abathur_nb.store.database import Database
from abathur_nb.store.sql import load_queries

# A row depends only on its number: a database filled to 1,000 rows is the beginning of one filled to 10,000.
Row = tuple[object, ...]
T = TypeVar("T")

_BATCH = 100_000  # rows in one transaction: smaller transactions write index pages more often
_CACHE_SIZE = -500_000  # KiB, when negative; a third faster than with 64 MB

# How many versions each of ten memories has: most have one, few have many. _PLACES: the memory and version of a row.
_VERSIONS = (1, 1, 1, 1, 1, 1, 2, 2, 3, 7)
_PLACES = tuple((memory, version) for memory, last in enumerate(_VERSIONS) for version in range(1, last + 1))

_BEGIN = datetime(2025, 1, 1)  # noqa: DTZ001 - the columns hold UTC without its name
_TEXT = "The user prefers short answers, metric units and examples in Python; asked to be reminded of open questions. "
_EVENT = f'{{"type":"message","role":"user","text":"{_TEXT[:60]}"}}'
_EVENTS = tuple(f"[{','.join([_EVENT] * number)}]" for number in range(6))
_STATUSES = ("archived",) * 12 + ("terminated",) * 4 + ("active",) * 2 + ("paused", "created")
_TYPES = ("semantic",) * 5 + ("episodic",) * 4 + ("procedural",)


async def fill(
    conn: aiosqlite.Connection, rows: int, *, start: int = 0, progress: Callable[[int], object] | None = None
) -> None:
    """Insert ``rows`` versions of memories and as many sessions, after ``start`` of each from an earlier call.

    ``conn`` must be in autocommit mode. Close it afterwards: its cache stays large, and after an error a transaction
    is open. ``progress`` is called with the number of rows just added. All ids, namespaces and names begin with
    ``synthetic``, so that they differ from those of live rows.
    """
    await conn.execute_fetchall(f"PRAGMA cache_size = {_CACHE_SIZE}")
    for table, row_of in _TABLES.items():
        for first in range(start, start + rows, _BATCH):
            stop = min(first + _BATCH, start + rows)
            await conn.execute_fetchall("BEGIN IMMEDIATE")
            # The connection's thread makes the rows, so that the event loop is not blocked.
            await conn.executemany(load_queries("synthetic.sql")[table].sql, map(row_of, range(first, stop)))
            await conn.commit()
            if progress is not None:
                progress(stop - first)


def memory_keys(rows: int, count: int) -> list[tuple[str, str]]:
    """Return up to ``count`` (namespace, key) pairs of current memories that `fill` inserts, across namespaces."""
    last, _ = _place(rows - 1)
    live = [memory for memory in range(last + 1) if not _is_deleted(memory)]
    return [(_namespace(memory), f"key-{memory}") for memory in _spread(live, count)]


def session_ids(rows: int, count: int) -> list[str]:
    """Return up to ``count`` ids of sessions that `fill` inserts, spread over the whole table."""
    return [_session(n) for n in _spread(range(rows), count)]


def _spread(items: Sequence[T], count: int) -> list[T]:
    count = min(count, len(items))
    return [items[n * len(items) // count] for n in range(count)]


def _part(n: int, salt: float) -> float:
    # The fractional parts of the multiples of a number fill 0 to 1 evenly and look random.
    return (n + 1) * salt % 1.0


def _pick(choices: Sequence[T], n: int, salt: float = 0.8191725134) -> T:
    return choices[int(_part(n, salt) * len(choices))]


def _rank(n: int, of: int, salt: float) -> int:
    """Return a rank from 0 to ``of`` - 1 by Zipf's law: rank r is drawn about 1/(r + 1) times as often as the first."""
    return int(of ** _part(n, salt)) - 1


def _moment(n: int, later_days: int = 0) -> str:
    after = timedelta(days=later_days, milliseconds=int(_part(n, 0.7548776662) * 365 * 86_400_000))
    return (_BEGIN + after).isoformat(" ", "milliseconds")


def _session(n: int) -> str:
    # An odd factor permutes the 32-bit numbers: the ids are unique and unordered, like random ones.
    return f"synthetic-{n * 2654435761 % 2**32:08x}"


def _namespace(memory: int) -> str:
    rank = _rank(memory, 10 + memory // 10, 0.6180339887)
    return f"synthetic:{('user', 'project', 'agent')[rank % 3]}-{rank:05}:{('facts', 'preferences')[rank % 2]}"


def _place(n: int) -> tuple[int, int]:
    """Return the number of the memory that row ``n`` belongs to, and its version."""
    block, place = divmod(n, len(_PLACES))
    memory, version = _PLACES[place]
    return block * len(_VERSIONS) + memory, version


def _is_deleted(memory: int) -> bool:
    return _part(memory, 0.5698402909) < 0.05


def _sessions(n: int) -> Row:
    user, project = _rank(n, 10 + n // 10, 0.6180339887), _rank(n, 50, 0.4656557543)
    names = (f"synthetic-app-{n % 5}", f"synthetic-user-{user}", f"synthetic-project-{project}" if n % 3 == 0 else None)
    state, status = f'{{"step":{n % 10},"mode":"dark","language":"en"}}', _pick(_STATUSES, n)
    ended = _moment(n, 2) if status in ("terminated", "archived") else None
    archived = ended if status == "archived" else None
    return (_session(n), *names, status, _EVENTS[n % 6], state, _moment(n), _moment(n, 1), ended, archived)


def _memories(n: int) -> Row:
    memory, version = _place(n)
    value = f'{{"n":{n},"text":"{_TEXT[: 20 + n * 7 % 80]}"}}'
    of_all_versions = (_namespace(memory), f"key-{memory}", _pick(_TYPES, memory), int(_is_deleted(memory)))
    agents = [f"synthetic-agent-{_rank(of, 10 + memory // 50, 0.4656557543)}" for of in (memory, n)]
    return (*of_all_versions, version, value, *agents, _moment(memory), _moment(memory, 5 * version))


_TABLES: dict[str, Callable[[int], Row]] = {"sessions": _sessions, "memory_entries": _memories}

_KEYS = 1000  # distinct keys, read in turn

Read = Callable[[], Awaitable[object]]


def session_reads(db: Database, rows: int) -> Iterator[Read]:
    """Yield, without end, reads of the sessions in a copy that was filled to ``rows``."""
    return (partial(db.sessions.get_session, session_id) for session_id in cycle(session_ids(rows, _KEYS)))


def memory_reads(db: Database, rows: int) -> Iterator[Read]:
    """Yield, without end, reads of memories in a copy that was filled to ``rows``, in large and small namespaces."""
    return (partial(db.memory.get_memory, namespace, key) for namespace, key in cycle(memory_keys(rows, _KEYS)))


def together(reads: Iterator[Read], tasks: int) -> Iterator[Read]:
    """Yield reads that each run ``tasks`` of the given reads at once."""

    async def read_all(batch: list[Read]) -> list[object]:
        return await asyncio.gather(*(read() for read in batch))

    while True:
        yield partial(read_all, list(islice(reads, tasks)))


async def time_reads(reads: Iterator[Read], repetitions: int, *, warm_up: int = 100) -> list[int]:
    """Return the nanoseconds that each read took, after a warm-up that is not counted.

    Raises RefusedError for a read that finds nothing: its time would be too short.
    """
    samples = []
    for read in islice(reads, warm_up):
        await read()
    for read in islice(reads, repetitions):
        start = perf_counter_ns()
        found = await read()
        samples.append(perf_counter_ns() - start)
        if found is None or (isinstance(found, list) and None in found):
            raise RefusedError("a synthetic row is missing from the copy", "run validate.ipynb, then run this again")
    return samples


@asynccontextmanager
async def writing(db: Database) -> AsyncIterator[None]:
    """Add memories in a background task while the block runs."""

    async def write_on() -> None:
        for n in count():
            await db.memory.add_memory("synthetic:writer:busy", f"key-{n}", {"n": n}, "semantic", "session:writer")

    writer = asyncio.create_task(write_on())
    try:
        yield
    finally:
        writer.cancel()
        await run_to_end(asyncio.wait([writer]))
        if not writer.cancelled():
            writer.result()


@contextmanager
def one_cpu() -> Iterator[None]:
    """Pin this thread, and those that it starts, to one CPU if the system can, so that figures can be compared.

    A move to another CPU costs 100 µs on small machines and occurs at random.
    """
    if not hasattr(os, "sched_setaffinity"):  # only Linux has it
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
