"""A plan is made in a process of its own, with limits: no statement keeps the store, or fills its memory."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from patience import HANGING_S
from sampling import sampled

from abathur_nb.config.settings import Settings
from abathur_nb.errors import InvalidValueError
from abathur_nb.store.database import Database


def nested(levels: int, first: str, further: str) -> str:
    """Return a SELECT from the last of so many names of WITH, each made from the one before it, ``{0}``."""
    made = "".join(f", c{i} AS ({further.format(f'c{i - 1}')})" for i in range(1, levels))
    return f"WITH c0 AS ({first}){made} SELECT * FROM c{levels - 1}"


DOUBLED = nested(24, "SELECT 1 AS x", "SELECT a.x FROM {0} AS a, {0} AS b")
HOSTILE = {
    "joins": DOUBLED,
    "expressions": nested(60, "SELECT priority AS x FROM tasks", "SELECT x + x AS x FROM {0}"),
    "windows": f"SELECT {', '.join(f'sum(id) OVER (PARTITION BY id + {i})' for i in range(1900))} FROM audit",
    "depth": nested(1500, "SELECT 1 AS x", "SELECT x FROM {0} LIMIT 5"),
    "length": f"SELECT '{'x' * 100_000}'",
}


@pytest.mark.parametrize("kind", sampled(HOSTILE, "expressions", "length"))
def test_what_takes_too_long_to_plan_is_refused_in_time(database: Settings, kind: str) -> None:
    """Asked in a process of its own: within this one, nothing would end the test if it were planned here."""
    script = """if True:
        import asyncio, resource, sys
        import abathur_nb as nb

        async def ask():
            async with nb.Database.open(nb.resolve(db_path=sys.argv[1])) as db:
                try:
                    await db.explain_query_plan(sys.stdin.read())
                except nb.InvalidValueError as error:
                    print(error)
                assert len(await db.explain_query_plan("SELECT 1")) == 1, "the store serves on"

        inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # from who started it
        asyncio.run(ask())
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):  # of these, the largest
            assert resource.getrusage(who).ru_maxrss <= max(inherited, 600_000)
        """
    command = [sys.executable, "-c", script, str(database.db_path)]
    done = subprocess.run(command, input=HOSTILE[kind], capture_output=True, text=True, timeout=HANGING_S, check=True)
    assert done.stdout.startswith(
        ("to plan it takes more than 5 s or 512 MB", "one SELECT of 100,000 characters or less")
    )


def test_under_a_harder_limit_of_the_users_own_it_still_plans(database: Settings) -> None:
    script = """if True:
        import asyncio, resource, sys
        import abathur_nb as nb

        async def ask():
            async with nb.Database.open(nb.resolve(db_path=sys.argv[1])) as db:
                print(await db.explain_query_plan("SELECT 1"))

        resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
        asyncio.run(ask())
        """
    # Root may raise a limit again, unless that is taken from him.
    bounded = ["setpriv", "--bounding-set=-sys_resource"] if os.geteuid() == 0 else []
    command = [*bounded, sys.executable, "-c", script, str(database.db_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['SCAN CONSTANT ROW']\n"


async def test_a_cancelled_question_leaves_no_process(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: asyncio.Future[asyncio.subprocess.Process] = asyncio.get_running_loop().create_future()
    start = asyncio.create_subprocess_exec

    async def told(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        started.set_result(await start(*command, **options))
        return started.result()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", told)
    async with Database.open(database) as db:
        asking = asyncio.ensure_future(db.explain_query_plan(DOUBLED))
        process = await started
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert process.returncode == -signal.SIGKILL


async def test_what_sqlite_does_not_take_as_parameters_is_refused_and_each_of_its_values_is_taken(
    database: Settings,
) -> None:
    wrong: dict[str, tuple[Any, ...]] = {
        "a parameter is None, a number, text or bytes": ((object(),), {"a": object()}, ([1],), (1 + 2j,)),
        "parameters are a sequence, or a mapping by name": (None, 5, {1, 2}),
        "does not take this": ((), (1, 2), {"b": 1}, (2**64,), ("\ud800",)),
    }
    async with Database.open(database) as db:
        for words, cases in wrong.items():
            for given in cases:
                with pytest.raises(InvalidValueError, match=words):
                    await db.explain_query_plan("SELECT :a", given)
        for value in (None, True, 1, 1.5, "x", b"x"):
            assert await db.explain_query_plan("SELECT * FROM tasks WHERE id = ?", [value])
