"""What stands at the database path, told without touching it; and what each verb and the store make of it."""

import asyncio
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage import fingerprint, flip_bits, held, run_as_other, run_sql, untouched
from patience import HANGING_S

from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, BusyError
from abathur_nb.runbook.backup import backup_database
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.preflight import preflight
from abathur_nb.runbook.restore import restore_database
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.connection import SIDE_FILES
from abathur_nb.store.database import Database
from abathur_nb.store.target import identify


def make_stale_pair(path: Path) -> None:
    """Make what SQLite leaves behind of a read-only open: empty, and refused all the same."""
    Path(f"{path}-wal").touch()
    Path(f"{path}-shm").write_bytes(bytes(32768))


OF_ANOTHER = ("PRAGMA application_id = 7", "PRAGMA user_version = 1", "CREATE TABLE sessions (x)")
PLAIN = ("CREATE TABLE x (y)", "INSERT INTO x VALUES (1)")
# (what is made, the state, a piece of what is told)
STRANGE: list[tuple[Callable[[Path], object], str, str]] = [
    (Path.mkdir, "refused", "is a directory"),
    (os.mkfifo, "refused", "is not a regular file"),
    (lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK), "refused", "is not a regular file"),
    (lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)), "refused", "is not a regular file"),
    (lambda path: path.symlink_to("/etc/passwd"), "refused", "is a symbolic link"),
    (lambda path: path.symlink_to("nowhere.db"), "refused", "is a symbolic link"),
    (lambda path: path.symlink_to(path), "refused", "is a symbolic link"),
    (lambda path: Path(f"{path}-wal").write_bytes(b"x" * 4152), "remains", "side files of a former one"),
    (make_stale_pair, "remains", "side files of a former one"),
    (lambda path: Path(f"{path}-journal").write_bytes(b"x" * 512), "remains", "side files of a former one"),
    (Path.touch, "empty", "empty file of 0 bytes"),
    (lambda path: path.write_bytes(b"0123456789"), "refused", "not SQLite or is encrypted"),
    (lambda path: path.write_bytes(bytes(range(256)) * 256), "refused", "not SQLite or is encrypted"),
    (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(84)), "refused", "not SQLite or is encrypted"),
    (
        lambda path: run_sql(path, *OF_ANOTHER),
        "refused",
        "another application's or incomplete: application_id 0x00000007",
    ),
    (lambda path: run_sql(path, *PLAIN), "refused", "another application's or incomplete: application_id 0x00000000"),
]


async def _open(settings: Settings) -> None:
    async with Database.open(settings):
        pass


async def verdicts(settings: Settings) -> tuple[bool, bool, str]:
    """Ask both verbs and the store; return (validate refused, initialize refused, the error)."""
    async with asyncio.timeout(HANGING_S):
        validated, initialized = await validate_database(settings), await initialize_database(settings)
        with pytest.raises(AbathurError) as caught:
            await _open(settings)
    for report in (validated, initialized):
        assert not report.ok
        for check in report.checks:
            assert not check.failed or check.remedy or check.evidence, f"{check.name} has no remedy"
    return validated.refused, initialized.refused, str(caught.value)


@pytest.mark.parametrize(("make", "state", "told"), STRANGE, ids=range(len(STRANGE)))
async def test_what_is_no_database_of_ours_is_refused_and_left_as_it_is(
    settings: Settings, make: Callable[[Path], object], state: str, told: str
) -> None:
    folder = settings.db_path.parent
    folder.mkdir()
    folder.chmod(0o700)
    make(settings.db_path)
    before = {path.name: fingerprint(path) for path in folder.iterdir()}
    with untouched(Path("/etc/passwd")):
        async with asyncio.timeout(HANGING_S):
            target = await identify(settings)
        assert (target.state, target.check.status) == (state, "fail")
        assert told in target.check.observed
        assert target.check.remedy
        validate_refuses, initialize_refuses, error = await verdicts(settings)
    assert initialize_refuses
    # An empty file is a finding about a database; the rest is not validate's to judge.
    assert validate_refuses == (state != "empty")
    assert told in error
    assert {path.name: fingerprint(path) for path in folder.iterdir()} == before


OURS: dict[str, tuple[str, ...]] = {
    "another application's": ("PRAGMA application_id = 1",),
    "has Abathur's tables, but its application_id is missing, as after a dump": ("PRAGMA application_id = 0",),
    "incomplete": ("PRAGMA application_id = 0", "DROP TABLE metrics"),
    "newer than this package: user_version 2, expected 1": ("PRAGMA user_version = 2",),
    "of a schema that was never released": ("PRAGMA user_version = 0",),
    "holds trigger evil": (
        "CREATE TRIGGER evil AFTER INSERT ON audit BEGIN DELETE FROM tasks; END",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET type = 'Trigger' WHERE name = 'evil'",
    ),
    "holds view a, view evil": ("CREATE VIEW evil AS SELECT load_extension('/x')", "CREATE VIEW a AS SELECT 1"),
}


@pytest.mark.parametrize("told", OURS)
async def test_a_database_that_must_not_be_touched_is_refused_and_left_as_it_is(database: Settings, told: str) -> None:
    run_sql(database.db_path, *OURS[told])
    with untouched(database.db_path):
        target = await identify(database)
        assert (target.state, target.check.status) == ("refused", "fail")
        assert told in target.check.observed
        # A trigger or a view is a finding about a database, which only a store can't use.
        error = f"{target.check.observed}: {target.check.remedy}"
        assert await verdicts(database) == (" evil" not in told, True, error)


@pytest.mark.parametrize("spoil", ["schema page", "truncated to a page", "truncated within a page"])
async def test_a_damaged_database_is_corrupt_for_every_verb(database: Settings, spoil: str) -> None:
    if spoil == "schema page":
        flip_bits(database.db_path, 100, 8)
    else:
        os.truncate(database.db_path, 4096 if spoil.endswith("to a page") else 5000)
    with untouched(database.db_path):
        target = await identify(database)
        assert target.state == "damaged"
        assert "CORRUPT" in target.check.observed
        remedy = (await validate_database(database)).checks[0].remedy
        assert remedy.startswith(f"to see why, and how to repair it: {shlex.join(database.command('troubleshoot'))}")
        assert "restore a backup" in target.check.remedy
        _, initialize_refuses, error = await verdicts(database)
    assert initialize_refuses
    assert "CORRUPT" in error


async def test_a_database_locked_whole_is_refused_in_time_with_its_holder(database: Settings) -> None:
    settings = replace(database, busy_timeout_ms=100)
    with held(database.db_path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE", "COMMIT") as process:
        with untouched(database.db_path):
            target = await identify(settings)
            assert target.state == "refused"
            assert f"is locked by PID {process.pid} (" in target.check.observed
            validate_refuses, initialize_refuses, error = await verdicts(settings)
        assert (validate_refuses, initialize_refuses) == (True, True)
        assert f"PID {process.pid}" in error
        with pytest.raises(BusyError):
            await _open(settings)
    async with Database.open(settings):
        pass


async def test_what_another_may_not_read_is_refused_with_the_owner(public: Path) -> None:
    """A directory and a file of root's, asked by somebody without privileges."""
    program = (
        "from abathur_nb.store.target import identify\n"
        "for name in sys.argv[1:]:\n"
        "    target = asyncio.run(identify(nb.resolve('development', db_path=name)))\n"
        "    print(target.state, '|', target.check.observed, '|', target.check.remedy)\n"
    )
    locked, file = public / "locked", public / "x.db"
    locked.mkdir(mode=0o700)
    (locked / "x.db").touch()
    file.write_bytes(b"secret")
    file.chmod(0o600)
    own = public / "own.db"
    own.write_bytes(b"secret")
    own.chmod(0)
    shutil.chown(own, 65534)
    *told, mine = [line.split(" | ") for line in run_as_other(program, locked / "x.db", file, own).splitlines()]
    assert mine[2] == f"chmod 600 {own}"
    in_locked, unreadable = told
    assert "cannot be examined" in in_locked[1]
    assert "may not be read by" in unreadable[1]
    for (state, _, remedy), path in zip(told, (locked / "x.db", file), strict=True):
        assert (state, remedy) == ("refused", f"see who owns it, and run this as that user: namei -l {path}")


async def test_a_fifo_for_a_side_file_or_a_link_to_nowhere_above_is_refused(database: Settings) -> None:
    for suffix in SIDE_FILES:
        path = Path(f"{database.db_path}{suffix}")
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        async with asyncio.timeout(HANGING_S):
            report = await validate_database(database)
        assert (report.refused, "is not a regular file" in report.checks[0].observed) == (True, True)
        path.unlink()
    for leads_to, told in (("nowhere", "is not a directory"), ("link", "levels of symbolic links")):
        link = database.db_path.with_name("link")
        link.symlink_to(leads_to)
        settings = replace(database, db_path=link / "sub" / "abathur.db")
        for report in (
            await preflight(settings),
            await initialize_database(settings),
            await validate_database(settings),
        ):
            assert not report.ok
            assert told in " ".join(check.observed for check in report.checks)
        link.unlink()


async def test_the_number_of_another_schema_is_not_set_back(database: Settings) -> None:
    (await backup_database(database)).raise_for_failures()
    run_sql(database.db_path, "DROP INDEX idx_audit_task", "PRAGMA user_version = 2")
    remedy = (await identify(database)).check.remedy
    assert "PRAGMA" not in remedy
    move = re.search(r"mv -n .*?(?=;)", remedy)
    assert move
    subprocess.run(move[0], shell=True, check=True)  # noqa: ASYNC221, S602 - as an operator would
    assert (await restore_database(database, apply=True)).ok


async def test_a_mistyped_path_is_answered_with_the_name_of_a_similar_file(database: Settings) -> None:
    (check,) = (await validate_database(replace(database, db_path=database.db_path.with_name("abatur.db")))).checks
    assert check.observed.endswith("abatur.db; did you mean abathur.db?")
