"""Ways to spoil a database, and to see that nothing else touched it. For the tests of the package and the notebooks."""

import hashlib
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

# A row each for what others hang from.
TASK = "INSERT INTO tasks (id, prompt) VALUES ('t1', 'p')"
AGENT = "INSERT INTO agents (id, name, specialization, task_id, model) VALUES ('a1', 'n', 's', 't1', 'm')"
SESSION = "INSERT INTO sessions (id, app_name, user_id) VALUES ('s1', 'app', 'alice')"
MEMORY = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('user:a', 'k', '{}', 'semantic')"
DOCUMENT = "INSERT INTO document_index (file_path, title, content_hash) VALUES ('/d', 'd', 'h')"
ROWS = (
    *(TASK, AGENT, SESSION, MEMORY, DOCUMENT),
    "INSERT INTO state (task_id, key, value) VALUES ('t1', 'k', '{}')",
    "INSERT INTO audit (action_type) VALUES ('x')",
    "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)",
    "INSERT INTO checkpoints (task_id, iteration, state) VALUES ('t1', 0, '{}')",
)


def run_sql(path: Path, *statements: str) -> None:
    """Run statements as somebody who minds no rule: no CHECK, no foreign key. The log is empty afterwards."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for statement in (
            *("PRAGMA ignore_check_constraints = ON", "PRAGMA foreign_keys = OFF"),
            *statements,
            "PRAGMA wal_checkpoint(TRUNCATE)",
        ):
            conn.execute(statement)


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return what a statement reads, over a connection of its own."""
    with closing(sqlite3.connect(path)) as conn:
        return conn.execute(sql).fetchall()


def leave_log(path: Path, *statements: str) -> None:
    """Leave what statements write in the log alone, as a process does that is killed before it would be emptied."""
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as conn:
        for statement in ("PRAGMA wal_autocheckpoint = 0", *statements):
            conn.execute(statement)
        shutil.copy(f"{copy}-wal", f"{path}-wal")
    Path(f"{path}-wal").chmod(0o600)
    copy.unlink()


def edit_schema(path: Path, name: str, old: str, new: str) -> None:
    """Replace a piece of an object's SQL in ``sqlite_master``, as a careless migration would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        edit = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ? AND instr(sql, ?) > 0"
        assert conn.execute(edit, (old, new, name, old)).rowcount == 1, f"{name} has no {old!r}"
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def drop_index(path: Path, name: str = "idx_audit_task") -> None:
    run_sql(path, f"DROP INDEX {name}")


def drop_check(path: Path) -> None:
    check = "CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled'))"
    edit_schema(path, "tasks", check, "")


def spoil_json(path: Path, text: str = "{broken") -> None:
    run_sql(path, TASK, f"UPDATE tasks SET input_data = '{text}'")


def flip_bits(path: Path, start: int, count: int = 64) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        found = file.read(count)
        file.seek(start)
        file.write(bytes(byte ^ 0xFF for byte in found))


def spoil_table(path: Path, table: str, start: int = 0) -> None:
    """Invert the first page of a table, from a place on."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    flip_bits(path, 4096 * (page - 1) + start, 4096 - start)


def grant_by_acl(path: Path, uid: int, perms: int, *, mask: int = 7) -> None:
    """Grant a user permissions on a file by name, as ``setfacl -m u:UID:PERMS,m:MASK`` does."""
    owner, nobody = path.stat().st_mode >> 6 & 7, 2**32 - 1
    entries = [(1, owner, nobody), (2, perms, uid), (4, 0, nobody), (16, mask, nobody), (32, 0, nobody)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", packed)


def fingerprint(path: Path) -> object:
    """Return what must stay as it is of whatever stands at ``path``: kind, mode, time, and a file's content."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
    moment = 0 if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns  # of a scratch file that came and went
    return (found.st_mode, found.st_uid, found.st_ino, moment, content)


@contextmanager
def untouched(path: Path) -> Iterator[None]:
    before = fingerprint(path)
    yield
    assert fingerprint(path) == before, f"{path} was changed"


@contextmanager
def running(program: str, *arguments: str | Path, within: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """Let another process run a program, ``within`` what starts it, and stay until the block ends."""
    command = [*within, sys.executable, "-I", "-S", "-c", f"{program}print(flush=True)\nsys.stdin.read()\n", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def held(path: Path, *statements: str, within: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """Let another process run statements on a database, and keep its connection open during the block."""
    program = (
        "import sqlite3, sys\n"
        "conn = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for statement in sys.argv[2:]: conn.execute(statement).fetchall()\n"
    )
    with running(program, path, *statements, within=within) as process:
        yield process


def run_as_other(program: str, *arguments: str | Path, uid: int = 65534, imports: str = "") -> str:
    """Return what a program prints that runs without privileges, as ``setpriv --reuid --regid --clear-groups`` does it.

    The privileges are dropped after the imports: the interpreter itself may stand where only root can read it. What the
    program starts is then run by the system's.
    """
    prelude = (
        "import asyncio, glob, mmap, os, shutil, sys, tempfile\n"
        "from pathlib import Path\n"
        "import abathur_nb as nb\n"
        "with tempfile.TemporaryDirectory() as folder:\n"  # what is imported or read at first use, is here
        "    settings = nb.resolve('development', db_path=folder + '/x.db')\n"
        "    asyncio.run(nb.initialize_database(settings)).raise_for_failures()\n"
        "    asyncio.run(nb.validate_database(settings)).to_json()\n"
        "    settings._repr_html_()\n"
        f"{imports}"
        f"os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
        "os.environ['HOME'] = '/nonexistent'\n"
        "sys.executable = shutil.which('python3', path=os.defpath) or sys.executable\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def empty_index(path: Path, *names: str) -> None:
    with closing(sqlite3.connect(path)) as conn:
        found = dict(conn.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'index'"))
    with path.open("r+b") as file:
        for name in names:
            file.seek(4096 * (found[name] - 1))
            file.write(bytes([10, 0, 0, 0, 0, 16, 0, 0]))  # an index leaf without a cell
