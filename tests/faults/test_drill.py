"""A drill goes the way of the restoration: where it is green a restoration works, where it is red none does."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from backup_helpers import content_of, taken
from damage import held, run_as_other
from forms import MODES, made
from sampling import sampled

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, list_backups, read_backup
from abathur_nb.config.settings import Settings

SIZES = (4096, 8192)  # of a page: a database of another size is replaced, one of the same is written into


async def agree(settings: Settings, backup: Backup) -> bool:
    """Drill, then restore; return what both say, which must be the same, and true of the database."""
    before = settings.db_path.stat()
    drill = await nb.restore_database(settings, backup=backup.path, drill=True)
    assert settings.db_path.stat().st_mtime_ns == before.st_mtime_ns, "a drill leaves the database alone"
    report = await nb.restore_database(settings, backup=backup.path, apply=True)
    assert drill.ok == report.ok, f"{drill}\n{report}"
    if not report.refused:
        assert await content_of(settings) == backup.content
        with closing(sqlite3.connect(settings.db_path)) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return report.ok


async def test_neither_vacuum_nor_journal_mode_is_in_the_way(database: Settings, tmp_path: Path) -> None:
    backup = await taken(database)
    for number, mode in enumerate(MODES):
        live = await made(tmp_path / f"live-{number}" / "abathur.db", vacuum=number % 3, mode=mode)
        assert await agree(live, backup)


@pytest.mark.parametrize(("live", "other"), [("UTF-8", "UTF-16le"), ("UTF-16be", "UTF-8"), ("UTF-16le", "UTF-16be")])
async def test_another_encoding_is_replaced_and_not_written_into(live: str, other: str, tmp_path: Path) -> None:
    backup = (await nb.backup_database(await made(tmp_path / "other" / "abathur.db", encoding=other))).ok
    assert backup
    (path,) = (tmp_path / "other" / "backups").glob("*.db")
    settings = await made(tmp_path / "live" / "abathur.db", encoding=live)
    # What is restored is encoded as the backup is, which validate says of both.
    assert await agree(settings, read_backup(path)) == (other == "UTF-8")


OPENED: dict[str, Callable[[Path], object]] = {
    "0400": partial(Path.chmod, mode=0o400),
    "0644": partial(Path.chmod, mode=0o644),
    "0777, of the directory": lambda path: path.parent.chmod(0o777),
    "another owner": lambda path: shutil.chown(path, 65534),
}


@pytest.mark.parametrize(
    "at", sampled(product(OPENED, SIZES), *zip(OPENED, (4096, 8192, 8192, 4096), strict=True)), ids=str
)
async def test_who_may_use_the_database_is_judged_by_a_drill_too(
    at: tuple[str, int], database: Settings, tmp_path: Path
) -> None:
    (how, size), backup = at, await taken(database)
    settings = await made(tmp_path / "live" / "abathur.db", page_size=size)
    OPENED[how](settings.db_path)
    # A file that is replaced leaves its mode behind, and its directory does not.
    assert await agree(settings, backup) == (size != 4096 and "directory" not in how)
    report = await nb.restore_database(settings, backup=backup.path, drill=True)
    assert report.ok == (size != 4096 and "directory" not in how)


CONDITIONS: dict[str, tuple[tuple[str, ...] | None, bool, bool]] = {
    # What another process has done, then whether it can be written into, and whether it can be moved aside.
    "nobody": (None, True, True),
    "an idle connection": (("SELECT count(*) FROM tasks",), True, False),
    "a reader": (("BEGIN", "SELECT count(*) FROM tasks"), True, False),
    "a writer": (("BEGIN IMMEDIATE",), False, False),
}


@pytest.mark.parametrize(
    "at", sampled(product(CONDITIONS, SIZES), *zip(CONDITIONS, (8192, 8192, 4096, 4096), strict=True)), ids=str
)
async def test_whoever_has_it_open_forbids_what_would_harm(
    at: tuple[str, int], database: Settings, tmp_path: Path
) -> None:
    (condition, size), backup = at, await taken(database)
    settings = replace(await made(tmp_path / "live" / "abathur.db", page_size=size), busy_timeout_ms=200)
    statements, in_place, aside = CONDITIONS[condition]
    users: AbstractContextManager[Any] = held(settings.db_path, *statements) if statements else nullcontext()
    with users as process:
        works = await agree(settings, backup)
        assert works == (in_place if size == 4096 else aside)
        if not works:
            report = await nb.restore_database(settings, backup=backup.path, drill=True)
            assert f"PID {process.pid} (" in str(report)
    assert await agree(settings, backup), "once nobody is in the way"


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_kept_of_a_file_that_is_replaced_is_both_its_backup_and_the_file(
    size: int, database: Settings, tmp_path: Path
) -> None:
    backup = await taken(database)
    settings = await made(tmp_path / "live" / "abathur.db", page_size=size)
    before, whole = await content_of(settings), settings.db_path.read_bytes()
    (await nb.restore_database(settings, backup=backup.path, apply=True)).raise_for_failures()
    (kept,) = list_backups(settings.backup_dir)[0]
    assert kept.content == before
    moved = [path.read_bytes() for path in settings.db_path.parent.glob("abathur_aside_*/abathur.db")]
    assert moved == ([] if size == 4096 else [whole])


@pytest.mark.parametrize(
    "at",
    sampled(product(("the directory", "the file", "the backups"), SIZES), ("the directory", 4096), ("the file", 8192)),
    ids=str,
)
async def test_the_rights_of_who_drills_are_those_of_who_restores(at: tuple[str, int], public: Path) -> None:
    right, size = at
    settings = await made(public / "live" / "abathur.db", page_size=size)
    other = await taken(await made(public / "other" / "abathur.db"))
    shutil.copytree(other.path.parent, public / "given")
    for path in (public, *public.rglob("*")):
        if not path.is_relative_to(public / "other"):
            shutil.chown(path, 65534, 65534)
    settings.backup_dir.mkdir(exist_ok=True)
    shutil.chown(settings.backup_dir, 65534, 65534)
    {"the directory": settings.db_path.parent, "the file": settings.db_path, "the backups": settings.backup_dir}[
        right
    ].chmod(0o500 if right != "the file" else 0o400)
    program = (
        "settings = nb.resolve('development', db_path=sys.argv[1], backup_dir=sys.argv[2])\n"
        "for given in ({'drill': True}, {'apply': True}):\n"
        "    report = asyncio.run(nb.restore_database(settings, backup=sys.argv[3], **given))\n"
        "    print(report.ok, report.refused, *(c.observed for c in report.checks if c.failed), sep='|')\n"
    )
    backup = public / "given" / other.path.name
    told = run_as_other(program, settings.db_path, settings.backup_dir, backup, imports="import tqdm\n")
    drill, restore = (line for line in told.splitlines() if line.startswith(("True|", "False|")))
    # What is moved aside need not be writable itself.
    works = right == "the file" and size != 4096
    assert drill.startswith(str(works)), (drill, restore)
    assert restore.startswith(f"{works}|{not works}"), restore
    assert works or "may not be written to" in drill
