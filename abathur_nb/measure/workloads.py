"""The work that a benchmark times: reads of a filled copy, alone, together, and beside a writer."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count, cycle, islice
from time import perf_counter_ns

from abathur_nb.errors import RefusedError
from abathur_nb.measure import synthetic
from abathur_nb.store.connection import run_to_end
from abathur_nb.store.database import Database

_WARM_UP = 100
_KEYS = 1000  # distinct keys that are read in turn

Read = Callable[[], Awaitable[object]]


def session_reads(db: Database, rows: int) -> Iterator[Read]:
    """Yield reads of the sessions in a copy that was filled to ``rows``, without end."""
    for session_id in cycle(synthetic.session_ids(rows, _KEYS)):
        yield lambda session_id=session_id: db.sessions.get_session(session_id)  # type: ignore[misc]


def memory_reads(db: Database, rows: int) -> Iterator[Read]:
    """Yield reads of the memories in a copy that was filled to ``rows``, hot ones and cold ones, without end."""
    for namespace, key in cycle(synthetic.memory_keys(rows, _KEYS)):
        yield lambda namespace=namespace, key=key: db.memory.get_memory(namespace, key)  # type: ignore[misc]


def together(reads: Iterator[Read], tasks: int) -> Iterator[Read]:
    """Yield reads of which each is ``tasks`` of the given ones at a time."""
    while True:
        batch = list(islice(reads, tasks))

        async def read_all(batch: list[Read] = batch) -> list[object]:
            return await asyncio.gather(*(read() for read in batch))

        yield read_all


async def time_reads(reads: Iterator[Read], repetitions: int, *, warm_up: int = _WARM_UP) -> list[int]:
    """Return the nanoseconds that each read took, after a warm-up that is not counted."""
    samples = []
    for read in islice(reads, warm_up):
        await read()
    for read in islice(reads, repetitions):
        start = perf_counter_ns()
        found = await read()
        samples.append(perf_counter_ns() - start)
        if found is None or (
            isinstance(found, list) and None in found
        ):  # a fast answer that finds nothing must not count
            raise RefusedError("a synthetic row is missing from the copy", "run validate.ipynb, and this again")
    return samples


@asynccontextmanager
async def writing(db: Database) -> AsyncIterator[None]:
    """Keep a writer of this process busy with memories of its own while the block runs."""

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
    """Pin this thread, and those that it starts, to one CPU; without effect where the system can't.

    A hop between two CPUs costs 100 µs on small machines and strikes by chance: figures that are to be compared with
    one another are measured without it.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux alone
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
