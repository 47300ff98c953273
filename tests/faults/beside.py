"""What is done beside others: backups, restores, looks, and files that are taken away under an open store.

A backup is one moment, and holds what was acknowledged before it began; a restore is exact; a look drops no lock; what
is acknowledged after files were removed or replaced is kept; no look finds damage in a log that is written, and each
finds a damaged frame. The controls are the runbook's recipes (cp, sections 1.2 and 7), a look that opens the files
itself, a plain connection, which writes its lost log over the file, and a look at a log and its index of two moments.
"""

import asyncio
import hashlib
import mmap
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

from damage import MEMORY, held, leave_log, query, run_sql

import abathur_nb as nb
from abathur_nb.backups.taking import unpack
from abathur_nb.config.settings import Settings
from abathur_nb.health.path_on_disk import log_check
from faults.experiments import content_of, counting, fault_in, first_backup, forked, newest_backup

# --- backups beside a hot writer

_KEYS, _EACH = 400, 10  # rows that are written over in turn, so many a commit, each on a page of its own
_INSERT = """
    INSERT INTO memory_entries (namespace, key, value, memory_type)
    VALUES ('hot:a', :number, json_object('n', 0, 'padding', printf('%.1000c', 'x')), 'semantic')
"""
_UPDATE = """
    UPDATE memory_entries SET value = json_set(value, '$.n', :commit) WHERE namespace = 'hot:a' AND key = :number
"""
_COUNT = "INSERT INTO metrics (metric_name, metric_value) VALUES ('hot', ?)"


def copy_beside(name: str, settings: Settings, _: Random) -> tuple[bool, str]:
    with counting(partial(_write, settings.db_path)) as acknowledged:
        before = acknowledged()
        copy = settings.db_path.parents[1] / "copy.db"
        if name == "sound":
            asyncio.run(nb.backup_database(settings)).raise_for_failures()
            copy = unpack(first_backup(settings), copy.parent)
        else:
            subprocess.run(["cp", settings.db_path, copy], check=True)
        moved = acknowledged() > before
    return moved, _torn(copy, before)


def _written(commit: int) -> list[int]:
    return [(commit + n * _KEYS // _EACH) % _KEYS for n in range(_EACH)]


def _write(db: Path, shared: mmap.mmap) -> None:
    conn = sqlite3.connect(db, timeout=60, isolation_level=None)
    conn.execute("PRAGMA synchronous = NORMAL")
    conn.execute("BEGIN")
    conn.executemany(_INSERT, ({"number": n} for n in range(_KEYS)))
    conn.execute("COMMIT")
    for commit in count(1):
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(_UPDATE, ({"commit": commit, "number": number} for number in _written(commit)))
        conn.execute(_COUNT, (commit,))
        conn.execute("COMMIT")
        shared[:8] = commit.to_bytes(8, "little")


def _torn(db: Path, acknowledged: int) -> str:
    """Say in what a copy is not one moment of the database that such a process wrote to; empty if it is one."""
    if fault := fault_in(db):
        return fault
    commits = query(db, "SELECT metric_value FROM metrics WHERE metric_name = 'hot' ORDER BY id")
    found = dict(query(db, "SELECT CAST(key AS INTEGER), value ->> 'n' FROM memory_entries WHERE namespace = 'hot:a'"))
    last = len(commits)
    wanted = dict.fromkeys(range(_KEYS), 0)
    for commit in range(1, last + 1):
        wanted |= dict.fromkeys(_written(commit), commit)
    if commits != [(commit,) for commit in range(1, last + 1)]:
        return f"it holds {last} commits with gaps"
    if found != wanted:
        return f"it holds half of a commit: {len(wanted.items() - found.items())} rows are of another moment"
    return "" if last >= acknowledged else f"it lacks {acknowledged - last} commits that were acknowledged before"


# --- restores beside a stale log and open readers

_READERS = (("SELECT count(*) FROM memory_entries",), ("BEGIN", "SELECT count(*) FROM memory_entries"))


def restore_beside(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Restore a backup where a killed writer left a log and up to three readers look on."""
    wanted, fault = first_backup(settings).content, ""
    keys = (f"'left-{number}'" for number in range(random.randrange(1, 400)))
    leave_log(settings.db_path, *(MEMORY.replace("'k'", key) for key in keys))  # as a killed writer does
    stale = Path(f"{settings.db_path}-wal").stat().st_size > 0 and content_of(settings.db_path) != wanted
    with ExitStack() as readers:
        for _ in range(random.randrange(1, 4)):
            readers.enter_context(held(settings.db_path, *random.choice(_READERS)))
        if name == "sound":
            report = asyncio.run(nb.restore_database(settings, apply=True))
            fault = "" if report.ok else f"refused: {report.summary}"
        else:
            subprocess.run(["cp", newest_backup(settings), settings.db_path], check=True)
        during = content_of(settings.db_path)
    exact = [wanted] * 2 == [during, content_of(settings.db_path)]
    return stale, fault or ("" if exact else "what is there is not what was backed up")


# --- looks from the process of a transaction

_METRIC = (
    "INSERT INTO metrics (metric_name, metric_value, labels) VALUES (?, ?, json_object('x', printf('%.*c', ?, 'x')))"
)
_OTHER = f"""
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
conn.execute("BEGIN IMMEDIATE")
for number in range(300):
    conn.execute({_METRIC!r}, ("other", number, 500))
conn.execute("COMMIT")
"""


def look_inside(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Look while this process writes, and let another process try to write."""
    try:
        harm = asyncio.run(_write_and_look(settings, _LOOKS[name], random))
    except nb.AbathurError as error:  # the other one, alone by all that it sees, has deleted the log
        harm = str(error)
    return True, harm or fault_in(settings.db_path)


async def _write_and_look(settings: Settings, look: Callable[[Settings], Awaitable[object]], random: Random) -> str:
    async with nb.Database.open(settings) as db, db.write() as conn:
        for number in range(random.randrange(1, 300)):
            await conn.execute(_METRIC, ("own", number, random.randrange(1000)))
        await look(settings)
        command = [sys.executable, "-I", "-S", "-c", _OTHER, str(settings.db_path)]
        other = await asyncio.to_thread(subprocess.run, command, stderr=subprocess.DEVNULL, check=False)
    return "" if other.returncode else "another process wrote inside the transaction"


async def _open_files(settings: Settings) -> None:
    for suffix in ("", "-wal", "-shm"):
        hashlib.sha256(Path(f"{settings.db_path}{suffix}").read_bytes())


_LOOKS: dict[str, Callable[[Settings], Awaitable[object]]] = {"sound": nb.troubleshoot, "naive": _open_files}

# --- files removed or replaced under an open store

_ROWS = 60
_ROW = (
    "INSERT INTO memory_entries (namespace, key, value, memory_type) "
    "VALUES (?, ?, json_object('v', printf('%.900c', 'x')), 'semantic')"
)
_ANOTHER = (
    "import sqlite3, sys; conn = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    f"for n in range({_ROWS}): conn.execute(sys.argv[2], ('other:', str(n)))"
)
# As somebody types them: in a process of their own, so that no lock of the store's is dropped.
_WAYS = (
    "rm {db}-wal {db}-shm",
    "rm {db}-shm",
    "cp {db} {db}.new && mv {db}.new {db}",
    "for x in '' -wal -shm; do cp {db}$x {db}.new && mv {db}.new {db}$x; done",
)


def split(name: str, settings: Settings, random: Random) -> tuple[bool, str]:
    """Take files away after and before a random number of writes, let another process write, and look for all rows."""
    way, others = random.choice(_WAYS), list[bool]()

    def strike() -> None:
        subprocess.run(["sh", "-c", way.format(db=settings.db_path)], check=True)
        command = [sys.executable, "-I", "-S", "-c", _ANOTHER, str(settings.db_path), _ROW]
        others.append(subprocess.run(command, check=False, capture_output=True).returncode == 0)

    store = _store if name == "sound" else _plain
    kept = asyncio.run(store(settings, random.randint(1, 40), strike, random.randint(0, 120)))
    wanted = {("other:", str(n)) for n in range(_ROWS)} | {("own:", str(n)) for n in kept}
    harm = _gone(settings, wanted)
    return others == [True], f"{way}: {harm}" if harm else ""


def _gone(settings: Settings, wanted: set[tuple[str, str]]) -> str:
    if fault := fault_in(settings.db_path):
        return fault
    gone = wanted - {*query(settings.db_path, "SELECT namespace, key FROM memory_entries")}
    return f"{len(gone)} of {len(wanted)} acknowledged rows are gone" if gone else ""


async def _store(settings: Settings, before: int, strike: Callable[[], None], after: int) -> list[int]:
    """Return which writes a store acknowledges after the strike."""
    kept = []
    async with nb.Database.open(settings) as db:
        for n in range(before + after):
            if n == before:
                strike()
            try:
                await db.memory.add_memory("own:", str(n), {"v": "x" * 900}, "semantic", None)
            except nb.RefusedError:
                continue
            kept += [n] if n >= before else []
        if not after:
            strike()
    return kept


async def _plain(settings: Settings, before: int, strike: Callable[[], None], after: int) -> list[int]:
    kept = []
    with closing(sqlite3.connect(settings.db_path, isolation_level=None)) as conn:
        for n in range(before):
            conn.execute(_ROW, ("own:", str(n)))
        strike()
        for n in range(before, before + after):
            try:
                conn.execute(_ROW, ("own:", str(n)))
            except sqlite3.Error:
                continue
            kept.append(n)
    return kept


# --- looks at the log of a database

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
            harms.append(_LOG_LOOKS[name](db))
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
        found = _LOG_LOOKS[name](db)
    return True, "" if found else f"not found, frame {frame + 1}, byte {place}"


def _leave_log(db: Path, random: Random) -> int:
    """Make a database whose log a killed process left; return the last frame but one that ends a transaction."""
    with forked() as pid:
        if pid == 0:
            conn = sqlite3.connect(db, isolation_level=None)
            conn.executescript(f"PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; {_TABLE};")
            for _ in range(random.randrange(5, 40)):
                _write_rows(conn, random, (1, 60))
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    content = Path(f"{db}-wal").read_bytes()
    heads = (content[place + 4 : place + 8] for place in range(32, len(content), _FRAME))
    return [number for number, head in enumerate(heads, 1) if head != bytes(4)][-2]


def _write_rows(conn: sqlite3.Connection, random: Random, rows: tuple[int, int]) -> None:
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
        _write_rows(conn, random, rows)
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
                return f"SQLite reads {read} of {number} frames" if number > read else ""
    return ""


_LOG_LOOKS = {"sound": _ask, "naive": _read_twice}
