"""No call drops a lock that SQLite holds in its process, and no lock is overlooked because its owner cannot be seen."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from damage import held
from locking import CASES, public

import abathur_nb as nb
from abathur_nb.backups.aside import require_movable
from abathur_nb.config.settings import Settings
from abathur_nb.files import Lock, posix_locks

_SUPPORT = Path(__file__).resolve().parents[1] / "support"
# As in a container: processes that do not see the others, on the same files.
_APART = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable)
_HOLD = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    conn.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""
_UNSEEN = "a process that cannot be seen from here (another container?)"


def test_every_public_call_has_a_case() -> None:
    missing = {*public()} - {*CASES}
    assert not missing, "add them to support/locking.py"


def test_no_call_changes_a_lock_of_its_own_process(tmp_path: Path) -> None:
    command = [sys.executable, str(_SUPPORT / "locking.py"), str(tmp_path / "data" / "abathur.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize(
    ("statements", "writes"),
    [
        (("BEGIN IMMEDIATE",), True),
        (("SELECT * FROM tasks",), False),
        (("PRAGMA journal_mode = DELETE", "BEGIN", "SELECT * FROM tasks"), False),
    ],
)
def test_a_lock_whose_owner_cannot_be_seen_is_reported_and_nothing_moved(
    statements: tuple[str, ...], writes: bool, database: Settings
) -> None:
    holding = [*_APART, "-I", "-S", "-c", _HOLD, str(database.db_path), *statements]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        looking = [*_APART, __file__, str(database.db_path)]
        path = {**os.environ, "PYTHONPATH": str(_SUPPORT)}
        done = subprocess.run(looking, env=path, capture_output=True, text=True, check=False)
        process.kill()
    assert done.returncode == 0, done.stderr
    observed, refused = json.loads(done.stdout.splitlines()[-1])
    assert (_UNSEEN in observed) == writes, observed
    assert _UNSEEN in refused


# Keeps the kernel's list longer than one page, and changing.
_CHURN = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    for first in range(10**9):
        for byte in range(60):
            fcntl.lockf(file, fcntl.LOCK_EX if first % 2 == 0 else fcntl.LOCK_UN, 1, 2 * byte)
        if first == 0:
            print("locking", flush=True)
"""


def test_a_lock_held_is_found_at_each_look_beside_processes_that_lock_and_unlock(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", _CHURN]
    with ExitStack() as stack, (tmp_path / "held").open("w") as file:
        for number in range(4):
            churn = stack.enter_context(
                subprocess.Popen([*command, str(tmp_path / f"{number}")], stdout=subprocess.PIPE)
            )
            stack.callback(churn.kill)
            assert churn.stdout is not None
            churn.stdout.readline()
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 5)
        own = Lock(os.getpid(), True, "", 5)
        looks = [[lock._replace(file="") for lock in posix_locks()] for _ in range(60)]
    assert sum(own not in look for look in looks) == 0


async def test_nothing_is_moved_that_this_very_process_has_open(database: Settings) -> None:
    require_movable(database.db_path)
    async with nb.Database.open(database):
        with pytest.raises(nb.BusyError, match=f"PID {os.getpid()} "):
            require_movable(database.db_path)
    require_movable(database.db_path)
    with held(database.db_path, "SELECT * FROM tasks") as other, pytest.raises(nb.BusyError, match=f"PID {other.pid} "):
        require_movable(database.db_path)


def _look(path: str) -> None:
    """Print what troubleshoot says of the locks, and what a replacement does."""
    settings = nb.resolve("development", db_path=path)
    report = asyncio.run(nb.troubleshoot(settings))
    refused = ""
    try:
        require_movable(settings.db_path)
    except nb.BusyError as error:
        refused = str(error)
    sys.stdout.write(json.dumps([next(c.observed for c in report.checks if c.name == "locks"), refused]))


if __name__ == "__main__":
    _look(sys.argv[1])
