"""No look drops a lock, or sees damage in what writers leave; a damaged log is found."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from damage import held, run_sql
from locking import CASES, public
from sampling import sampled

import abathur_nb as nb
from abathur_nb.backups.aside import require_movable
from abathur_nb.config.settings import Settings
from abathur_nb.health import path_on_disk as modes
from abathur_nb.health.path_on_disk import log_check
from abathur_nb.store import apart

_FRAME = 4096 + 24
_PROGRAM = """
import os, sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
for pages in sys.argv[2:]:
    conn.execute("UPDATE t SET x = randomblob(?)", (4000 * int(pages),))
os._exit(0)
"""


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "x.db"
    run_sql(path, "PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    return path


def write(db: Path, *pages: int) -> None:
    """Commit transactions of so many pages each, in a process that does not close the database."""
    subprocess.run([sys.executable, "-I", "-S", "-c", _PROGRAM, db, *map(str, pages)], check=True)


def write_without_index(db: Path, *pages: int) -> None:
    """Leave transactions in the log that its index does not name, as a process killed before that does."""
    index = Path(f"{db}-shm").read_bytes()[:136]
    write(db, *pages)
    with Path(f"{db}-shm").open("r+b") as file:
        file.write(index)


def frames(db: Path) -> int:
    return (Path(f"{db}-wal").stat().st_size - 32) // _FRAME


def damage(db: Path, frame: int, place: int = 100) -> None:
    """Change a bit of a frame, counted from 0; from the end, if negative."""
    with Path(f"{db}-wal").open("r+b") as log:
        at = 32 + (frame % frames(db)) * _FRAME + place
        (byte,) = os.pread(log.fileno(), 1, at)
        os.pwrite(log.fileno(), bytes([byte ^ 1]), at)


def unfinished(db: Path) -> None:
    write_without_index(db, 9)
    damage(db, -1)


def overwritten(db: Path, *commits: int) -> None:
    """Leave the rest of each of these commits behind a short one that was written over it."""
    for pages in commits:
        write_without_index(db, pages)
        write(db, 1)


HEALTHY: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "commits": lambda db: write(db, 1, 30, 2),
    "a commit that its writer did not live to announce": lambda db: write_without_index(db, 9),
    "an unfinished last transaction": unfinished,
    "what is left of one, behind the next": lambda db: overwritten(db, 9),
    "what is left of two": lambda db: overwritten(db, 30, 9),
}
TORN = {  # the frame, and the place in it
    "the header": (0, -8),
    "the first frame": (0, 100),
    "the number of a page": (3, 0),
    "the salts of a frame": (3, 9),
    "the checksum of a frame": (3, 17),
    "the frame before the last": (-2, 100),
    "the last frame, which the index names": (-1, 100),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_writers_leave_in_a_log_is_no_damage(name: str, db: Path) -> None:
    with held(db, "SELECT * FROM t"):
        write(db, 1, 5, 5)
        HEALTHY[name](db)
        check = log_check(db)
    assert check.status == "pass", check.observed


@pytest.mark.parametrize("name", TORN)
def test_a_damaged_log_is_found_while_its_index_is_in_use(name: str, db: Path) -> None:
    with held(db, "SELECT * FROM t"):
        write(db, 1, 5, 5)
        damage(db, *TORN[name])
        check = log_check(db)
    assert (check.status, f"{db}-wal" in check.remedy, "restore" in check.remedy) == ("fail", True, False)


@pytest.mark.parametrize("left", [(), (9,), (30, 9)])
def test_one_commit_behind_the_damage_may_be_a_killed_writers(left: tuple[int, ...], db: Path) -> None:
    with held(db, "SELECT * FROM t"):
        write(db, 1, 5, 5)
        overwritten(db, *left) if left else damage(db, -2)
        kept = [Path(f"{db}{suffix}").read_bytes() for suffix in ("", "-wal")]
    for suffix, content in zip(("", "-wal"), kept, strict=True):  # as a power cut leaves them
        Path(f"{db}{suffix}").write_bytes(content)
    with held(db, "SELECT * FROM t"):
        check = log_check(db)
    assert (check.status, "could not tell" in check.observed) == ("warn", True)


def number(db: Path, how: str) -> int:
    """Return the number of the last transaction in a database, 99 where it can't be read."""
    try:
        with closing(sqlite3.connect(f"{db.as_uri()}?{how}", uri=True)) as conn:
            return int(conn.execute("SELECT max(n) FROM v").fetchone()[0] or 0)
    except sqlite3.DatabaseError:
        return 99


@pytest.mark.parametrize(
    "at",  # how much was written into the database, whether a row is changed to and fro, whether rows are added
    sampled(product((0, 3, 7, 9), (False, True), (True, False)), (0, True, True), (7, True, False), (9, False, True)),
    ids=str,
)
def test_a_database_newer_than_its_damaged_log_is_known(at: tuple[int, bool, bool], db: Path) -> None:
    written, toggles, rows = at
    saved, wrong = dict[str, bytes](), []
    with closing(sqlite3.connect(db)) as reader, closing(sqlite3.connect(db, isolation_level=None)) as conn:
        conn.executescript("PRAGMA wal_autocheckpoint = 0; CREATE TABLE v (n, x); CREATE TABLE w (x);")
        conn.executescript("INSERT INTO w VALUES (0); INSERT INTO v VALUES (0, 0); PRAGMA wal_checkpoint(TRUNCATE);")
        for n in range(1, 10):
            change = f"UPDATE w SET x = {n % 2};" if toggles else ""
            row = f"INSERT INTO v VALUES ({n}, zeroblob({n % 4} * 3000))" if rows else f"UPDATE v SET n = {n}"
            conn.executescript(f"BEGIN; {row}; {change} COMMIT;")
            if n == written:
                reader.executescript("BEGIN; SELECT count(*) FROM v;")  # while it lasts, the log does not begin anew
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        saved = {suffix: Path(f"{db}{suffix}").read_bytes() for suffix in ("", "-wal")}
    for frame in range((len(saved["-wal"]) - 32) // _FRAME):
        Path(f"{db}-shm").unlink(missing_ok=True)
        for suffix, content in saved.items():
            Path(f"{db}{suffix}").write_bytes(content)
        damage(db, frame, *([3] if frame % 4 == 0 else []))  # there, the number of the page
        alone, through = number(db, "mode=ro&immutable=1"), number(db, "mode=ro")
        # Where it ends with the damaged frame of the one page that was changed, nobody can tell.
        known = through < 99 and (rows or alone != through + 1)
        if known and apart._newer(str(db), str(frame + 1)) != (alone > through):
            wrong.append((frame, alone, through))
    assert wrong == []


@pytest.mark.parametrize(("frame", "since"), [(0, ()), (4, (1,))])
def test_commits_that_are_cut_off_are_found_whoever_has_written_since(
    frame: int, since: tuple[int, ...], db: Path
) -> None:
    write(db, 1, 5, 5, 5)
    damage(db, frame)
    with held(db, "SELECT * FROM t"):
        write(db, *since)
        check = log_check(db)
    assert check.status == "fail"


def test_a_log_too_large_to_be_judged_is_not_called_whole(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_LOG_S", 0)
    with held(db, "SELECT * FROM t"):
        write(db, 1, 5)
        check = log_check(db)
    # A repair would write over what nobody has looked at.
    assert (check.status, "were not computed" in check.observed) == ("error", True)


# --- no call drops a lock that SQLite holds in its process, and no lock is overlooked


_SUPPORT = Path(__file__).resolve().parents[1] / "support"
# As in a container: processes that do not see the others, on the same files.
_APART = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
# Prints what troubleshoot says of the locks, and what a replacement does.
_LOOK = """
import asyncio, sys, abathur_nb as nb
from abathur_nb.backups.aside import require_movable
settings = nb.resolve("development", db_path=sys.argv[1])
print(next(c.observed for c in asyncio.run(nb.troubleshoot(settings)).checks if c.name == "locks").replace("\\n", " "))
try:
    require_movable(settings.db_path)
except nb.BusyError as error:
    print(str(error).replace("\\n", " "))
"""
_UNSEEN = "a process that cannot be seen from here (another container?)"


def test_every_public_call_has_a_case() -> None:
    missing = {*public()} - {name.split()[0] for name in CASES}
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
def test_a_lock_of_another_container_is_reported(statements: tuple[str, ...], writes: bool, database: Settings) -> None:
    with held(database.db_path, *statements, within=_APART):
        command = [*_APART, sys.executable, "-c", _LOOK, str(database.db_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    observed, refused = done.stdout.splitlines()
    assert (_UNSEEN in observed) == writes, observed
    assert _UNSEEN in refused


async def test_nothing_is_moved_that_this_very_process_has_open(database: Settings) -> None:
    require_movable(database.db_path)
    async with nb.Database.open(database):
        with pytest.raises(nb.BusyError, match=f"PID {os.getpid()} "):
            require_movable(database.db_path)
    require_movable(database.db_path)
    with held(database.db_path, "SELECT * FROM tasks") as other, pytest.raises(nb.BusyError, match=f"PID {other.pid} "):
        require_movable(database.db_path)
