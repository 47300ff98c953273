"""Initialize: a whole database or none, whatever happens, and never a byte of what is there already."""

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from damage import drop_check, drop_index, flip_bits, held, run_as_other, run_sql, spoil_json, untouched
from patience import HANGING_S

from abathur_nb.config.settings import Settings, resolve
from abathur_nb.files import scratch_directory
from abathur_nb.report import Report
from abathur_nb.runbook.init import initialize_database
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.schema import expected_objects
from abathur_nb.store.sql import statements
from abathur_nb.text import user_name

STEPS = (
    "2.1 database file",
    "2.2 PRAGMA settings",
    "2.3 memory tables",
    "2.4 core tables",
    "2.5 indexes",
    "2.6 seed memories",
)


def outcome(report: Report) -> str:
    """Say in one word what became of it."""
    if report.refused:
        return "refused"
    told = {check.name: check.observed for check in report.checks}
    return "already" if told.get("create", "").startswith("already initialized") else "created"


def whole(path: Path) -> bool:
    """Return whether a finished database stands at ``path``, asking nobody but sqlite3."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as conn:
        objects = {row[0]: row[1] for row in conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")}
        objects.pop("sqlite_sequence", None)
        return (
            conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            and conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            and conn.execute("PRAGMA application_id").fetchone() == (0x41424154,)
            and conn.execute("PRAGMA user_version").fetchone() == (1,)
            and conn.execute("SELECT count(*) FROM memory_entries").fetchone() == (3,)
            and objects == {name: found.sql for name, found in expected_objects().items()}
        )


def left_in(folder: Path) -> set[str]:
    """Name what is in a directory; SQLite may leave an empty log and a -shm after a read."""
    return {path.name for path in folder.glob("*") if not path.name.endswith(("-wal", "-shm"))}


# --- a fresh one


async def test_a_fresh_database_is_whole_private_and_told_step_by_step(settings: Settings) -> None:
    report = await initialize_database(settings)
    report.raise_for_failures()
    assert outcome(report) == "created"
    names = [check.name for check in report.checks]
    assert [name for name in names if name in STEPS] == list(STEPS)
    assert names.index("2.6 seed memories") < names.index("2.7 integrity") < names.index("published") == len(names) - 1
    assert whole(settings.db_path)
    assert left_in(settings.db_path.parent) == {"abathur.db"}
    assert (await validate_database(settings)).ok
    assert "journal_mode = wal" in {check.name: check.observed for check in report.checks}["2.2 PRAGMA settings"]


async def test_a_second_run_says_already_initialized_and_changes_no_byte(database: Settings) -> None:
    with untouched(database.db_path):
        for dry_run in (False, True, False):
            report = await initialize_database(database, dry_run=dry_run)
            report.raise_for_failures()
            assert outcome(report) == "already"
        (published,) = [check.observed for check in report.checks if check.name == "published"]
        assert published == f"{database.db_path} was there already; its name was forced again"
    # Nor beside a writer with something in its log.
    insert = "INSERT INTO metrics (metric_name, metric_value) VALUES ('m', 1)"
    with held(database.db_path, insert), untouched(database.db_path):
        assert outcome(await initialize_database(database)) == "already"


async def test_a_dry_run_shows_the_exact_statements_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    report = await initialize_database(settings, dry_run=True)
    assert report.ok
    assert list(tmp_path.iterdir()) == []
    shown = {check.name: check.evidence for check in report.checks if check.status == "skip"}
    assert shown["2.5 indexes"] == tuple(f"{statement};" for statement in statements("ddl-indexes.sql"))
    assert any(str(settings.db_path) in line for line in shown["2.1 database file"])
    with closing(sqlite3.connect(tmp_path / "by-hand.db", isolation_level=None)) as conn:
        for name, lines in shown.items():
            for line in lines if name != "2.1 database file" else ():
                conn.execute(line)
    assert whole(tmp_path / "by-hand.db")


async def test_modes_are_private_under_any_umask_and_an_existing_directory_keeps_its_own(settings: Settings) -> None:
    folder = settings.db_path.parent
    folder.mkdir()
    folder.chmod(0o750)
    for umask in (0o000, 0o022, 0o777):
        deep = replace(settings, db_path=folder / f"{umask}" / "abathur.db")
        before = os.umask(umask)
        try:
            (await initialize_database(deep)).raise_for_failures()
        finally:
            os.umask(before)
        with held(deep.db_path, "BEGIN IMMEDIATE", "DELETE FROM audit"):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in deep.db_path.parent.iterdir()}
        assert modes == {"abathur.db": 0o600, "abathur.db-wal": 0o600, "abathur.db-shm": 0o600}
        assert stat.S_IMODE(deep.db_path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


async def test_what_root_makes_belongs_to_the_owner_of_the_directory(public: Path) -> None:
    os.chown(public, 65534, 65534)
    settings = resolve("development", db_path=public / "abathur.db")
    report = await initialize_database(settings)
    assert outcome(report) == "created"
    assert [check.name for check in report.checks if check.failed] == ["directory"]  # and yet it is said
    found = settings.db_path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o600)
    # The owner can use it.
    program = "print(asyncio.run(nb.validate_database(nb.resolve('production', db_path=sys.argv[1]))).ok)"
    public.chmod(0o700)
    assert run_as_other(program, settings.db_path) == "True\n"


async def test_any_file_name_will_do(settings: Settings) -> None:
    for name in ("a?b#c%20.db", "é漢.db", "'quoted\".db", "-rf", ".hidden", "x" * 255):
        odd = replace(settings, db_path=settings.db_path.with_name(name))
        report = await initialize_database(odd)
        assert report.refused == (len(name) == 255), "no room for -journal"
        assert report.refused or whole(odd.db_path)
    assert len(left_in(settings.db_path.parent)) == 5


# --- what is there already

WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    ("index missing", drop_index, "missing: idx_audit_task"),
    ("CHECK missing", drop_check, "altered: tasks"),
    ("JSON spoiled", spoil_json, "broken: tasks.input_data"),
    ("schema page", lambda path: flip_bits(path, 100, 8), "CORRUPT"),
    ("another page", lambda path: flip_bits(path, 4096 * 20, 8), "CORRUPT"),
    ("truncated", lambda path: os.truncate(path, 9000), "CORRUPT"),
    ("emptied", lambda path: os.truncate(path, 0), "empty shell"),
    ("no WAL", lambda path: run_sql(path, "PRAGMA journal_mode = DELETE"), "delete"),
]


@pytest.mark.parametrize(("name", "spoil", "told"), WRONG, ids=[name for name, _, _ in WRONG])
async def test_what_is_not_valid_is_refused_with_what_was_found_and_not_a_byte_changed(
    database: Settings, name: str, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(database.db_path)
    with untouched(database.db_path):
        report = await initialize_database(database)
    assert report.refused, name
    assert not report.ok
    failed = [check for check in report.checks if check.failed]
    assert any(told in check.observed for check in failed)
    assert any(check.remedy for check in failed)
    assert left_in(database.db_path.parent) == {"abathur.db"}


async def test_stale_side_files_are_refused_and_kept(settings: Settings) -> None:
    settings.db_path.parent.mkdir(mode=0o700)
    for suffix in ("-wal", "-shm", "-journal"):
        stale = Path(f"{settings.db_path}{suffix}")
        stale.write_bytes(b"committed rows, perhaps")
        with untouched(stale):
            report = await initialize_database(settings)
        assert report.refused
        assert "to move them aside: papermill troubleshoot.ipynb" in report.checks[0].remedy
        assert [path.name for path in settings.db_path.parent.iterdir()] == [stale.name]
        stale.unlink()


async def test_a_link_or_a_file_as_parent_is_refused_and_nothing_lands_behind_it(
    settings: Settings, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    settings.db_path.parent.symlink_to(elsewhere)
    assert (await initialize_database(settings)).refused
    assert list(elsewhere.iterdir()) == []
    settings.db_path.parent.unlink()
    settings.db_path.parent.touch()
    with untouched(settings.db_path.parent):
        assert (await initialize_database(settings)).refused
        assert (await initialize_database(replace(settings, db_path=settings.db_path / "deeper" / "x.db"))).refused


@pytest.mark.parametrize(("env", "refused", "owner"), [("development", False, 65534), ("production", True, 0)])
async def test_a_database_in_a_shared_directory_is_refused_too_where_a_new_one_is(
    database: Settings, env: str, refused: bool, owner: int
) -> None:
    folder = database.db_path.parent
    folder.chmod(0o777 if owner == os.geteuid() else 0o700)
    for path in (folder, database.db_path):
        os.chown(path, owner, -1)
    before = left_in(folder) - {"abathur.db-wal", "abathur.db-shm"}
    with untouched(database.db_path):
        report = await initialize_database(resolve(env, db_path=database.db_path))
    assert (report.ok, report.refused) == (False, refused)
    (check,) = [check for check in report.checks if check.name == "directory"]
    as_owner = (
        f"run it as the owner: sudo -u {user_name(owner)} "
        f"papermill init.ipynb /tmp/out.ipynb -p env {env} -p db_path {database.db_path}"
    )
    assert (check.status, check.remedy) == ("fail", f"chmod 700 {folder}" if owner == os.geteuid() else as_owner)
    assert left_in(folder) - {"abathur.db-wal", "abathur.db-shm"} == before
    assert any("already initialized" in check.observed for check in report.checks) is not refused


# --- races


# Forks children from a process that has imported everything, and prints what became of each.
SWAPS = """
import asyncio, json, os, sys
from pathlib import Path
import abathur_nb as nb

def init(path):
    report = asyncio.run(nb.initialize_database(nb.resolve("development", db_path=path)))
    return 0 if report.ok else 2

base = Path(sys.argv[1])
init(base / "warm" / "x.db")
moments = [".abathur-init*", ".abathur-init*/*", "abathur.db", "never"]
for n in range(24):
    folder, moved, elsewhere = (base / f"{n}{name}" for name in ("", "-moved", "-elsewhere"))
    folder.mkdir(mode=0o700); elsewhere.mkdir(mode=0o700)
    child, ended, moment = os.fork(), (0, 0), moments[n % 4]
    if child == 0:
        code = 3
        try:
            sys.stderr = open(os.devnull, "w")
            code = init(folder / "abathur.db")
        finally:
            os._exit(code)
    while ended == (0, 0) and not any(folder.glob(moment)):
        ended = os.waitpid(child, os.WNOHANG)
    os.rename(folder, moved); os.symlink(elsewhere, folder)
    code = os.waitstatus_to_exitcode((ended if ended != (0, 0) else os.waitpid(child, 0))[1])
    print(json.dumps([code, os.listdir(elsewhere), (moved / "abathur.db").exists(), ended != (0, 0)]))
"""


async def test_of_racing_tasks_one_creates(settings: Settings) -> None:
    reports = await asyncio.gather(*(initialize_database(settings) for _ in range(8)))
    assert sorted(map(outcome, reports)) == ["already"] * 7 + ["created"]
    assert all(report.ok for report in reports)
    assert left_in(settings.db_path.parent) == {"abathur.db"}


def test_a_directory_swapped_for_a_link_in_the_middle_brings_nothing_elsewhere(tmp_path: Path) -> None:
    """It is swapped as soon as init has made its scratch directory, a file in it, or the database; or has ended."""
    command = [sys.executable, "-c", SWAPS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING_S, check=True)
    assert not done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(not there for *_, there, _ in rounds) >= 6  # else few were caught in the middle, and little is proved
    assert sum(ended for *_, ended in rounds) >= 6
    for code, elsewhere, there, ended in rounds:
        assert elsewhere == []
        # No false success, no bare traceback; one that is moved before it is looked at is not where it was asked for.
        assert code in ({0} if ended else {0, 2} if there else {2})


# --- what killed runs leave, and what living ones hold


async def test_orphans_are_swept_and_named_and_living_ones_are_left(settings: Settings) -> None:
    folder = settings.db_path.parent
    folder.mkdir(mode=0o700)
    orphan = folder / ".abathur-init-0123456789ab"
    orphan.mkdir()
    (orphan / "abathur.db").write_bytes(b"half")
    with scratch_directory(folder, "init") as living:
        (living / "abathur.db").write_bytes(b"half")
        report = await initialize_database(settings)
        assert (living / "abathur.db").read_bytes() == b"half"
    report.raise_for_failures()
    assert {check.name: check.evidence for check in report.checks}["2.1 database file"] == (orphan.name,)
    assert left_in(folder) == {"abathur.db"}


async def test_a_cancelled_run_leaves_all_or_nothing(settings: Settings) -> None:
    made, turns = 0, 0
    while made < 2:
        task = asyncio.create_task(initialize_database(settings))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        folder = settings.db_path.parent
        left = left_in(folder) if folder.exists() else set()
        assert left in (set(), {"abathur.db"})
        if left:
            assert whole(settings.db_path)
            made += 1
            for path in folder.iterdir():
                path.unlink()
        turns += 25


# --- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that gives a file system of its own a size in KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", folder], check=True)

    def resize(kib: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", folder], check=True)
        return folder

    yield resize
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_on_a_full_disk_it_is_refused_and_nothing_half_made_is_left(small_disk: Callable[[int], Path]) -> None:
    refusals = 0
    for kib in (*range(4, 120, 24), *range(120, 1400, 90)):
        folder = small_disk(kib)
        settings = resolve("development", db_path=folder / "abathur.db")
        settings = replace(settings, min_free_mb=0, recommended_free_mb=0)
        report = await initialize_database(settings)
        if report.refused:
            refusals += 1
            assert not report.ok
            told = " ".join(check.observed for check in report.checks if check.failed)
            assert "full" in told or "No space left" in told or "could not be" in told, told
            assert list(folder.iterdir()) == []
            continue
        report.raise_for_failures()
        assert whole(settings.db_path)
        for path in folder.iterdir():
            path.unlink()
    assert 5 < refusals < 20  # both were seen


async def test_a_valid_database_that_others_may_read_is_a_finding_and_not_refused(database: Settings) -> None:
    database.db_path.chmod(0o644)
    report = await initialize_database(database)
    assert (report.ok, report.refused) == (False, False)
    assert [check.name for check in report.checks if check.failed] == ["file modes"]
    assert any("already initialized" in check.observed for check in report.checks)
