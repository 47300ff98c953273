"""Looks at the log of a database: none may find damage beside a writer, and each must where a frame is damaged.

The control reads the log and its index one after the other, as a plain program would: of two moments.
"""

import mmap
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

from damage import held, run_sql

from abathur_nb.config.settings import Settings
from abathur_nb.health.path_on_disk import log_check
from faults.experiments import counting, forked

_TABLE = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)"
_FRAME = 4096 + 24
_READING = ("BEGIN", "SELECT count(*) FROM t")


# By kind: PRAGMA synchronous, rows in a transaction, pages until a checkpoint; readers beside it.
_WRITERS = {
    "NORMAL": ("NORMAL", (1, 40), 1000, 0),
    "FULL": ("FULL", (1, 40), 1000, 0),
    "checkpoints": ("FULL", (1, 4), 20, 0),
    "readers": ("FULL", (1, 40), 1000, 4),
    "large": ("NORMAL", (300, 900), 1000, 0),
}


def look_beside(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    kind, db = random.choice(list(_WRITERS)), settings.db_path
    synchronous, rows, checkpoint, readers = _WRITERS[kind]
    run_sql(db, "PRAGMA journal_mode = WAL", _TABLE)
    work = partial(_keep_writing, db, random, synchronous, rows, checkpoint)
    with counting(work) as acknowledged, ExitStack() as others:
        for _ in range(readers):
            others.enter_context(_reading(db, random))
        harms, before = list[str](), acknowledged()
        while len(harms) < 10 or acknowledged() == before:
            harms.append(_LOOKS_BY[name](db))
    harm = next(filter(None, harms), "")
    return True, f"{kind}: {harm}" if harm else ""


def look_at_damage(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Look at a log in which one frame is damaged that has two commits behind it."""
    db = settings.db_path
    frame = random.randrange(_leave_log(db, random) - 1)
    with ExitStack() as users:
        if random.random() < 0.5:  # who has read the log before goes on with its index
            users.enter_context(held(db, *_READING))
        with Path(f"{db}-wal").open("r+b") as log:
            place = 32 + frame * _FRAME + random.randrange(_FRAME)
            (byte,) = os.pread(log.fileno(), 1, place)
            os.pwrite(log.fileno(), bytes([byte ^ random.randrange(1, 256)]), place)
        users.enter_context(held(db, "PRAGMA schema_version"))
        found = _LOOKS_BY[name](db)
    return True, "" if found else f"not found, frame {frame + 1}, byte {place}"


def _leave_log(db: Path, random: Random) -> int:
    """Make a database whose log a killed process left; return the last frame but one that ends a transaction."""
    with forked() as pid:
        if pid == 0:
            conn = sqlite3.connect(db, isolation_level=None)
            conn.executescript(f"PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; {_TABLE};")
            for _ in range(random.randrange(5, 40)):
                _write(conn, random, (1, 60))
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    content = Path(f"{db}-wal").read_bytes()
    heads = (content[place + 4 : place + 8] for place in range(32, len(content), _FRAME))
    return [number for number, head in enumerate(heads, 1) if head != bytes(4)][-2]


def _write(conn: sqlite3.Connection, random: Random, rows: tuple[int, int]) -> None:
    conn.execute("BEGIN IMMEDIATE")
    for _ in range(random.randint(*rows)):
        conn.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (random.randrange(3000), random.randbytes(3000)))
    conn.execute("COMMIT" if random.random() < 0.9 else "ROLLBACK")


def _keep_writing(
    db: Path, random: Random, synchronous: str, rows: tuple[int, int], checkpoint: int, shared: mmap.mmap
) -> None:
    conn = sqlite3.connect(db, timeout=60, isolation_level=None)
    # Few pages are cached: a large transaction writes to the log, and there again, before it ends.
    conn.executescript(f"PRAGMA synchronous = {synchronous}; PRAGMA cache_size = 50;")
    conn.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}").fetchall()
    for number in count(1):
        _write(conn, random, rows)
        shared[:8] = number.to_bytes(8, "little")


@contextmanager
def _reading(db: Path, random: Random) -> Iterator[None]:
    """Let a process read during the block, one short transaction after the other."""
    with forked() as pid:
        if pid == 0:
            conn = sqlite3.connect(db, timeout=60, isolation_level=None)
            while True:
                for statement in (*_READING, "COMMIT"):
                    conn.execute(statement).fetchall()
                time.sleep(random.random() / 50)
        yield


def _ask(db: Path) -> str:
    check = log_check(db)
    return check.observed if check.failed else ""


def _read_twice(db: Path) -> str:
    """Compare what the log holds with what its index said a moment before."""
    if not Path(f"{db}-shm").exists():
        return ""
    with Path(f"{db}-shm").open("rb") as index:
        read = int.from_bytes(index.read(20)[16:], sys.byteorder)
    with Path(f"{db}-wal").open("rb") as log:
        header = log.read(32)
        places = range(32, os.fstat(log.fileno()).st_size - _FRAME + 1, _FRAME)
        for number in range(len(places), 0, -1):
            head = os.pread(log.fileno(), 16, places[number - 1])
            if head[8:] == header[16:24] and any(head[4:8]):
                return f"of {number} frames SQLite reads {read}" if number > read else ""
    return ""


_LOOKS_BY = {"sound": _ask, "naive": _read_twice}
