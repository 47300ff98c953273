"""Measure the speed that the project promises: ``make bench`` prints one table of ratios of medians.

Both sides of a ratio are measured in one run, in alternating blocks, so that a drift of the machine's speed strikes
both. Reads are measured pinned to one CPU, because a hop between two CPUs costs 100 µs on small machines; the unpinned
figure stands beside them. Exits with 1 if a figure is missed. ``bench.py NAME…`` measures only rows that hold a NAME.
"""

import asyncio
import compileall
import gc
import io
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import cycle, islice, repeat
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import aiosqlite
import nbformat
from archives import chain, ledger_line
from dasking import cluster
from nbclient import NotebookClient

import abathur_nb as nb
from abathur_nb.backups.manifest import Content
from abathur_nb.backups.taking import back_up, prove
from abathur_nb.evidence.archive import prepared, read_source
from abathur_nb.evidence.ledger import LEDGER
from abathur_nb.files import fsync
from abathur_nb.measure import synthetic
from abathur_nb.measure.synthetic import one_cpu
from abathur_nb.runner.execution import execute
from abathur_nb.store.connection import connect, connection_pragmas
from abathur_nb.store.sql import DATA, DDL_FILES, SEED_FILE, statements
from abathur_nb.text import timestamp

QUERIES = nb.load_queries()
BLOCKS = 5
Sides = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Row:
    """Hold one promise: what is measured, how ours may compare with theirs, and how both sides are timed."""

    what: str
    limit: float
    measure: Callable[[Path], Sides | Coroutine[Any, Any, Sides]]
    at_least: bool = False  # theirs / ours must reach the limit, where otherwise ours / theirs must stay below it
    statistic: Callable[[list[int]], float] = median
    pinned: bool = False


def p99(samples: list[int]) -> float:
    return quantiles(samples, n=100)[98]


def timed(work: Callable[..., object], *given: object) -> int:
    start = perf_counter_ns()
    work(*given)
    return perf_counter_ns() - start


async def timed_await(work: Callable[..., Awaitable[object]], *given: object) -> int:
    start = perf_counter_ns()
    await work(*given)
    return perf_counter_ns() - start


def turns(sides: Sides, ours: Any, theirs: Any, blocks: int) -> Iterator[tuple[list[int], Any]]:
    """Yield each block of either side in turn, with the samples that it adds to; the first of each is a warm-up."""
    for block in range(blocks + 1):
        for side, measure in zip(sides, (ours, theirs), strict=True):
            gc.collect()
            yield side if block else [], measure


def alternate(ours: Callable[[], Sequence[int]], theirs: Callable[[], Sequence[int]], blocks: int = BLOCKS) -> Sides:
    sides: Sides = ([], [])
    for side, measure in turns(sides, ours, theirs, blocks):
        side.extend(measure())
    return sides


Side = Callable[[], Sequence[int] | Awaitable[Sequence[int]]]


async def alternate_async(ours: Side, theirs: Side, blocks: int = BLOCKS) -> Sides:
    """Return what `alternate` does, for sides of which one is awaited at least."""
    sides: Sides = ([], [])
    for side, measure in turns(sides, ours, theirs, blocks):
        found = measure()
        side.extend(await found if isinstance(found, Awaitable) else found)
    return sides


async def timed_all(work: Callable[..., Awaitable[object]], given: Iterable[tuple[Any, ...]] = ((),)) -> list[int]:
    """Return the nanoseconds of a call with each of the given arguments, one after the other."""
    return [await timed_await(work, *arguments) for arguments in given]


def settings_for(path: Path) -> nb.Settings:
    return nb.resolve("development", db_path=path)


@asynccontextmanager
async def filled(place: Path, rows: int) -> AsyncIterator[nb.Settings]:
    """Give a new database with ``rows`` memories and sessions, and remove it at the end."""
    settings = settings_for(place / f"filled-{rows}" / "abathur.db")
    (await nb.initialize_database(settings)).raise_for_failures()
    async with connect(settings.db_path, settings.busy_timeout_ms, mode="rw") as conn:
        await synthetic.fill(conn, rows)
    try:
        yield settings
    finally:
        shutil.rmtree(settings.db_path.parent)


@contextmanager
def plain(settings: nb.Settings, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """Open the database with the standard library alone, with the same PRAGMAs."""
    uri = f"{settings.db_path.as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)) as conn:
        conn.row_factory = sqlite3.Row
        pragmas = connection_pragmas(settings.busy_timeout_ms, settings.synchronous)
        conn.executescript("".join(f"PRAGMA {name} = {value};" for name, value in pragmas.items()))
        yield conn


def checked(settings: nb.Settings, *pragmas: str) -> list[int]:
    """Time PRAGMAs alone; read-only, as ours are: SQLite then leaves the CHECKs out of integrity_check."""

    def check() -> None:
        with plain(settings, mode="ro") as conn:
            for pragma in pragmas:
                conn.execute(f"PRAGMA {pragma}").fetchall()

    return [timed(check)]


def papermill_of(name: str, place: Path) -> Sides:
    """Time papermill on a notebook and on one empty cell; init.ipynb makes a database each time."""
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("")], metadata={"kernelspec": kernelspec})
    nbformat.write(empty, place / "empty.ipynb")
    papermill = [str(Path(sys.executable).with_name("papermill")), "--no-progress-bar"]
    numbers = iter(range(1000)) if name == "init" else repeat(0)

    def run(notebook: Path, *arguments: str) -> list[int]:
        command = [*papermill, str(notebook), str(place / "out.ipynb"), *arguments]
        return [timed(lambda: subprocess.run(command, check=True, capture_output=True))]

    def ours(of: str = name) -> list[int]:
        path = place / f"papermill-{next(numbers)}" / "abathur.db"
        return run(DATA / "notebooks" / f"{of}.ipynb", "-p", "db_path", str(path))

    ours("init")
    return alternate(ours, lambda: run(place / "empty.ipynb"), blocks=9)


def initialize(place: Path) -> Sides:
    count = iter(range(10_000))

    def ours() -> list[int]:
        async def run() -> int:
            settings = settings_for(place / f"ours-{next(count)}" / "abathur.db")
            settings.db_path.parent.mkdir(mode=0o700)
            return await timed_await(lambda: nb.initialize_database(settings))

        return [asyncio.run(run()) for _ in range(10)]

    def create(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("BEGIN")
            for filename in (*DDL_FILES, SEED_FILE):
                for statement in statements(filename):
                    conn.execute(statement)
            conn.execute("COMMIT")

    def theirs() -> list[int]:
        paths = [place / f"theirs-{next(count)}.db" for _ in range(10)]
        return [timed(create, path) for path in paths]

    return alternate(ours, theirs)


def reads(name: str) -> Callable[[Path], Coroutine[Any, Any, Sides]]:
    """Return the measurement of one kind of read against plain sqlite3 with the same SQL and decoding."""

    async def measure(place: Path) -> Sides:
        async with filled(place, 10_000) as settings, nb.Database.open(settings) as db:
            with plain(settings) as conn:
                if name == "get_session":
                    get: Any = db.sessions.get_session
                    keys: list[tuple[str, ...]] = [(i,) for i in synthetic.session_ids(10_000, 1000)]
                    names, columns = ["session_id"], ["events", "state", "metadata"]
                else:
                    get, keys = db.memory.get_memory, [*synthetic.memory_keys(10_000, 1000)]
                    names, columns = ["namespace", "key"], ["value", "metadata"]

                def get_plain(*key: str) -> dict[str, Any]:
                    given = dict(zip(names, key, strict=True))
                    found = dict(conn.execute(QUERIES[name].sql, given).fetchall()[0])
                    return {**found, **{column: json.loads(found[column]) for column in columns}}

                assert await get(*keys[0]) == get_plain(*keys[0])
                return await alternate_async(
                    lambda: timed_all(get, keys), lambda: [timed(get_plain, *key) for key in keys]
                )

    return measure


async def concurrent(place: Path) -> Sides:
    """Time 50 reads at a time, and the same through a connection opened for each, with the same PRAGMAs."""
    async with filled(place, 10_000) as settings, nb.Database.open(settings) as db:
        keys = cycle(synthetic.session_ids(10_000, 1000))

        async def get_alone(session_id: str) -> list[Any]:
            async with aiosqlite.connect(settings.db_path, isolation_level=None) as conn:
                for pragma, value in connection_pragmas(settings.busy_timeout_ms, settings.synchronous).items():
                    await conn.execute(f"PRAGMA {pragma} = {value}")
                return list(await conn.execute_fetchall(QUERIES["get_session"].sql, {"session_id": session_id}))

        async def gather(get: Callable[[str], Awaitable[object]], rounds: int) -> list[int]:
            batches = [[get(key) for key in islice(keys, 50)] for _ in range(rounds)]
            return [await timed_await(asyncio.gather, *batch) for batch in batches]

        return await alternate_async(lambda: gather(db.sessions.get_session, 20), lambda: gather(get_alone, 5))


async def beside_writer(place: Path) -> Sides:
    """Time reads beside a writer that never rests, 100 rows a transaction, and where all share a locked connection."""
    insert = "INSERT INTO metrics (metric_name, metric_value) VALUES ('busy', 1)"
    async with filled(place, 10_000) as settings, nb.Database.open(settings) as db:
        keys = [(key,) for key in synthetic.session_ids(10_000, 300)]
        sql = QUERIES["get_session"].sql

        @asynccontextmanager
        async def beside(write: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
            async def write_on() -> None:
                while True:
                    await write()

            writer = asyncio.create_task(write_on())
            try:
                yield
            finally:
                writer.cancel()
                await asyncio.wait([writer])

        async def write_ours() -> None:
            async with db.write() as conn:
                for _ in range(100):
                    await conn.execute(insert)

        async def ours() -> list[int]:
            async with beside(write_ours):
                return await timed_all(db.sessions.get_session, keys)

        async with connect(settings.db_path, settings.busy_timeout_ms, mode="rw") as shared:
            lock = asyncio.Lock()

            async def write_theirs() -> None:
                async with lock:
                    await shared.execute("BEGIN IMMEDIATE")
                    for _ in range(100):
                        await shared.execute(insert)
                    await shared.commit()

            async def get_shared(key: str) -> object:
                async with lock:
                    return await shared.execute_fetchall(sql, {"session_id": key})

            async def theirs() -> list[int]:
                async with beside(write_theirs):
                    return await timed_all(get_shared, keys)

            return await alternate_async(ours, theirs)


async def add_memory(place: Path) -> Sides:
    async with filled(place, 10_000) as settings, nb.Database.open(settings) as db:
        with plain(settings) as conn:
            numbers = iter(range(10_000_000))

            def ours() -> Awaitable[list[int]]:
                given = [("bench:a", f"k{n}", {"n": n}, "semantic", "me") for n in islice(numbers, 300)]
                return timed_all(db.memory.add_memory, given)

            def add_plain(n: int) -> None:
                conn.execute("BEGIN IMMEDIATE")
                memory = {"namespace": "bench:b", "key": f"k{n}", "value": json.dumps({"n": n})}
                memory |= {"memory_type": "semantic", "created_by": "me", "metadata": "{}"}
                (row,) = conn.execute(QUERIES["insert_memory"].sql, memory).fetchall()
                audit = dict.fromkeys(("agent_id", "task_id"), None) | {"action_type": "memory_create"}
                audit |= {"action_data": json.dumps({"key": f"k{n}", "versions": [1]}), "result": "success"}
                audit |= {"memory_operation_type": "create", "memory_namespace": "bench:b"}
                conn.execute(QUERIES["insert_audit"].sql, audit | {"memory_entry_id": row["id"]}).fetchall()
                conn.execute("COMMIT")

            return await alternate_async(ours, lambda: [timed(add_plain, n) for n in islice(numbers, 300)])


async def growth(place: Path) -> Sides:
    def gets(db: nb.Database, rows: int) -> Awaitable[list[int]]:
        return timed_all(db.memory.get_memory, islice(cycle(synthetic.memory_keys(rows, 700)), 2000))

    async with (
        filled(place, 1_000_000) as large,
        filled(place, 1_000) as small,
        nb.Database.open(large) as many,
        nb.Database.open(small) as few,
    ):
        return await alternate_async(lambda: gets(many, 1_000_000), lambda: gets(few, 1_000))


async def validate(place: Path) -> Sides:
    async with filled(place, 100_000) as settings:
        pragmas = ("integrity_check", "foreign_key_check")
        ours = partial(timed_all, lambda: nb.validate_database(settings))
        return await alternate_async(ours, lambda: checked(settings, *pragmas), blocks=9)


async def backing_up(place: Path) -> Sides:
    """Time a backup without digests and proof, and the bare backup API; both force the copy to the disk."""
    count = iter(range(1000))
    async with filled(place, 100_000) as settings:

        async def undigested(*_: object, **__: object) -> Content:
            return Content("", "", {})

        async def unproven(*_: object) -> dict[str, object]:
            return {"at": "", "restored_s": 0.0, "validated_s": 0.0, "findings": []}

        async def ours() -> list[int]:
            with patch.multiple("abathur_nb.backups.taking", read_content=undigested, prove=unproven):
                found = await timed_all(lambda: back_up(settings, reason="bench"))
            shutil.rmtree(settings.backup_dir)
            return found

        def copy(path: Path) -> None:
            with plain(settings, mode="ro") as conn, closing(sqlite3.connect(path)) as target:
                conn.backup(target)
            fsync(path)

        def theirs() -> list[int]:
            path = place / f"copy-{next(count)}.db"
            found = timed(copy, path)
            path.unlink()
            return [found]

        return await alternate_async(ours, theirs, blocks=9)


async def proving(place: Path) -> Sides:
    async with filled(place, 100_000) as settings:
        with redirect_stdout(sys.stderr):  # the progress bar is no row of the table
            backup, _ = await back_up(settings, reason="bench")

        async def ours() -> list[int]:
            with tempfile.TemporaryDirectory(dir=place) as scratch:
                return await timed_all(lambda: prove(settings, backup, Path(scratch)))

        copy = replace(settings, db_path=backup.path)
        return await alternate_async(ours, lambda: checked(copy, "integrity_check"), blocks=9)


def imports(place: Path) -> Sides:
    def run(module: str) -> list[int]:
        command = [sys.executable, "-c", f"import {module}"]
        return [timed(lambda: subprocess.run(command, check=True, cwd=place)) for _ in range(3)]

    return alternate(lambda: run("abathur_nb"), lambda: run("aiosqlite"), blocks=9)


def recording(place: Path) -> Sides:
    """Time the execution of validate.ipynb, and of one without the cells' words that record it."""
    settings = settings_for(place / "abathur.db")
    asyncio.run(nb.initialize_database(settings))

    def run(*, bare: bool) -> list[int]:
        cells = nbformat.from_dict(prepared(read_source("validate"), {"db_path": str(settings.db_path)}))
        for cell in cells.cells if bare else ():
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if not re.match(r"run(?:\.seal\(| = |$)", line))
        assert bare != any("start_run" in cell.source for cell in cells.cells)

        def work() -> None:
            assert execute(lambda: NotebookClient(cells), environment={}).how == "completed"

        return [timed(work)]

    return alternate(lambda: run(bare=False), lambda: run(bare=True), blocks=15)


RUNNER = (sys.executable, "-m", "abathur_nb", "run", "validate", "--env", "development", "--page=never")


def timed_run(path: Path, *command: str) -> list[int]:
    return [timed(lambda: subprocess.run([*command, "-p", "db_path", path], check=True, capture_output=True))]


def with_ledger(place: Path) -> Sides:
    """Time the runner in an archive with a run a minute, 100,000 in all, and in one without a ledger."""
    sides = []
    for count in (100_000, 0):
        settings = settings_for(place / str(count) / "abathur.db")
        asyncio.run(nb.initialize_database(settings))
        moments = [datetime.now(UTC) - timedelta(minutes=number) for number in reversed(range(count))]
        lines = (ledger_line(0, run_id=f"{at:%Y%m%dT%H%M%S}000Z-000000", written_at=timestamp(at)) for at in moments)
        settings.archive_dir.mkdir(mode=0o700)
        (settings.archive_dir / LEDGER).write_bytes(chain(lines))
        sides.append(partial(timed_run, settings.db_path, *RUNNER))
    long, none = sides
    return alternate(long, none, blocks=25)


@cache
def runs_of_both() -> Sides:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "data" / "abathur.db"
        asyncio.run(nb.initialize_database(settings_for(path)))
        theirs = [str(Path(sys.executable).with_name("papermill")), "--no-progress-bar"]
        theirs += [str(DATA / "notebooks" / "validate.ipynb"), str(Path(name) / "out.ipynb")]
        return alternate(partial(timed_run, path, *RUNNER), partial(timed_run, path, *theirs), blocks=60)


def stalls(_: Path) -> Sides:
    ours, _theirs = runs_of_both()
    return ours, [int(median(ours))]


@cache
def batch_and_single(number: int = 40) -> dict[str, Sides]:
    """Time a batch of databases, two at a time, and a single run of ten of them; per database, its CPU time too."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / str(one) / "abathur.db" for one in range(number)]
        for path in paths:
            asyncio.run(nb.initialize_database(settings_for(path)))
        command = [word for word in RUNNER if word != "--page=never"]

        def spent(*words: object) -> tuple[int, int]:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall = timed(lambda: subprocess.run([*command, *map(str, words)], check=True, capture_output=True))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return wall, round((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e9)

        batches = [spent("--each", *paths, "--jobs", 2) for _ in range(3)]
        singles = [spent("-p", "db_path", path) for path in paths[:10]]
        kinds = {"wall": 0, "CPU": 1}
        return {
            kind: ([one[at] // number for one in batches], [one[at] for one in singles]) for kind, at in kinds.items()
        }


async def by_dask(place: Path) -> Sides:
    """Time 60 databases through Dask, and the same without it; return what Dask adds to each, and a millisecond."""
    number, inventory = 60, place / "fleet.toml"
    for one in range(number):
        await nb.initialize_database(settings_for(place / str(one) / "abathur.db"))
    inventory.write_text(f'[hosts.here]\nenv = "development"\ndatabases = ["{place}/*/abathur.db"]')
    with cluster(place / "dask", {}) as started, redirect_stderr(io.StringIO()):
        started.worker("here")

        async def run(scheduler: str | None) -> list[int]:
            control = settings_for(place / "control" / "abathur.db")
            work = partial(nb.run_fleet, control, inventory, scheduler=scheduler)
            return [await timed_await(work)]

        await run(started.address)  # starts the processes that wait for further databases
        ours, theirs = await alternate_async(partial(run, started.address), partial(run, None), blocks=3)
    return [max(0, int(median(ours) - median(theirs)) // number)], [1_000_000]


def page_of_many(_: Path) -> Sides:
    """Time the page of 5,000 databases, 20 of them bad, and take a second."""
    state = {"size": 10**7, "free": 10**10, "schema": {"missing": [], "altered": [], "extra": []}, "p99_ms": 1.0}
    state |= {"backup": "2026-11-30 10:00:00.000", "validation": "2026-11-30 10:00:00.000", "versions": {}}
    state |= {"backup_limit_hours": 26, "validation_limit_days": 7}
    row = {
        "reason": "why",
        "env": "production",
        "archive": "/srv/runs",
        "archived": "/srv/runs/page.html",
        "state": state,
    }
    rows = tuple(
        {"run": "R", "host": f"h{n // 100}", "database": f"/srv/{n}.db", "verdict": "fail" if n % 250 == 7 else "pass"}
        | row
        for n in range(5000)
    )

    def work() -> int:
        fleet = nb.Fleet(rows)
        pictures = [chart(fleet)._repr_mimebundle_()[0]["image/png"] for chart in FLEET_CHARTS]
        return len(fleet.to_html()) + sum(map(len, pictures)) * 4 // 3

    assert work() < 3_000_000
    return [timed(work) for _ in range(5)], [10**9]


FLEET_CHARTS = (nb.charts.fleet_squares, nb.charts.ages_of_fleet)
ROWS = (
    *(
        Row(f"papermill {name}.ipynb / papermill on one empty cell", limit, partial(papermill_of, name))
        for name, limit in {"init": 1.25, "validate": 1.25, "backup": 1.35, "explain": 1.6}.items()
    ),
    Row("initialize_database / plain sqlite3, one transaction, WAL, FULL", 2.5, initialize),
    Row("get_session p50 / plain sqlite3", 4, reads("get_session"), pinned=True),
    Row("get_memory p50 / plain sqlite3", 4, reads("get_memory"), pinned=True),
    Row("a connection for each call / 50 concurrent gets", 20, concurrent, at_least=True, pinned=True),
    Row(
        "one locked connection / p99 of reads beside a writer of 100 rows",
        5,
        beside_writer,
        at_least=True,
        statistic=p99,
        pinned=True,
    ),
    Row("add_memory with its audit row / plain sqlite3", 2, add_memory, pinned=True),
    Row("get_memory p99 at 1,000,000 / at 1,000 memories", 1.5, growth, statistic=p99, pinned=True),
    Row("validate_database at 100,000 / integrity and foreign keys alone", 1.25, validate),
    Row("backup without digest and proof / the bare backup API", 1.5, backing_up),
    Row("the proof of a backup / integrity_check of the same file", 3, proving),
    Row("import abathur_nb / import aiosqlite", 3, imports),
    Row("validate.ipynb with its record / without", 1.1, recording),
    Row("the runner, no page, no signature / plain papermill, validate.ipynb", 1, lambda _: runs_of_both()),
    Row("CPU of validate.ipynb in a batch / by a single command", 0.3, lambda _: batch_and_single()["CPU"]),
    Row("a single command / a database of 40, two at a time", 5, lambda _: batch_and_single()["wall"], at_least=True),
    Row("what Dask adds to a database / 1 ms", 20, by_dask),
    Row("the page of 5,000 databases / 1 s", 5, page_of_many),
    Row("the slowest of 60 runs by the runner / their median", 3, stalls, statistic=max),
    Row("the runner at 100,000 lines in its ledger / at none", 1.1, with_ledger),
)


def measured(row: Row) -> Sides:
    with tempfile.TemporaryDirectory() as place:
        found = row.measure(Path(place))
        return found if isinstance(found, tuple) else asyncio.run(found)


def ratio(row: Row, sides: Sides) -> float:
    ours, theirs = map(row.statistic, sides)
    return theirs / ours if row.at_least else ours / theirs


def main(wanted: Sequence[str]) -> int:
    """Measure every row, or those whose text holds one of ``wanted``; print the table; return the exit code."""
    compileall.compile_dir(Path(nb.__file__).parent, quiet=1)  # as a package that was installed is
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs")
    print(f"{'what':<66} {'must be':>8} {'is':>6} {'unpinned':>9}  ours ms  theirs ms")
    missed = 0
    for row in ROWS:
        if wanted and not any(part in row.what for part in wanted):
            continue
        unpinned = f"{ratio(row, measured(row)):9.2f}" if row.pinned else f"{'':9}"
        with one_cpu() if row.pinned else nullcontext():
            sides = measured(row)
        found = ratio(row, sides)
        met = found >= row.limit if row.at_least else found <= row.limit
        missed += not met
        ours, theirs = (row.statistic(side) / 1e6 for side in sides)
        bound = f"{'≥' if row.at_least else '≤'} {row.limit:g}"
        print(
            f"{row.what:<66} {bound:>8} {found:6.2f} {unpinned}  {ours:7.3f}  {theirs:9.3f}  {'' if met else 'MISSED'}",
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
