"""A database file that is itself a mount point, as in a container: what would rename it refuses before it moves any."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path

import pytest
from damage import ROWS, run_sql
from sampling import sampled
from situations import VERBS, begun, stale, tree, without_side_files

import abathur_nb as nb
from abathur_nb.config.settings import Settings
from abathur_nb.repair.quarantine import quarantine_dir
from abathur_nb.report import Report


def destroy_header(settings: Settings) -> None:
    without_side_files(settings.db_path)
    with settings.db_path.open("r+b") as file:
        file.write(bytes(100))


_SUFFIXES = ("", "-wal", "-journal")
_MOVED = {  # by verb: what makes it move the file aside
    **dict.fromkeys(("restore", "drill", "rollback", "fresh start"), destroy_header),
    "repair": stale,
    "troubleshoot": stale,
    "plan of a restoration": begun,
}


@contextmanager
def bound(file: Path) -> Iterator[None]:
    """Mount a copy of a file over it."""
    volume = file.parent.parent / "volume"
    volume.write_bytes(file.read_bytes())
    volume.chmod(0o600)
    subprocess.run(["mount", "--bind", volume, file], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", file], check=True)


def run(verb: str, settings: Settings) -> Report:
    report: Report = asyncio.run(VERBS[verb](settings))
    return report


def statuses(report: Report) -> list[str]:
    return [check.status for check in report.checks if check.id == "mounted_files"]


@pytest.mark.parametrize(
    "at", sampled(product(_MOVED, _SUFFIXES), *zip(_MOVED, cycle(_SUFFIXES), strict=False)), ids=str
)
def test_what_would_rename_a_mounted_file_refuses_before_it_has_moved_any(
    at: tuple[str, str], database: Settings
) -> None:
    verb, suffix = at
    run("backup", database).raise_for_failures()
    _MOVED[verb](database)
    suffix = suffix or ("" if database.db_path.exists() else "-shm")
    file = Path(f"{database.db_path}{suffix}")
    file.touch()
    with bound(file):
        before = tree(database.db_path.parent)
        report = run(verb, database)
        assert tree(database.db_path.parent) == before
    assert not report.ok
    assert report.refused is (verb != "drill")
    assert statuses(report) == ["fail"]
    (check,) = (check for check in report.checks if check.id == "mounted_files")
    assert str(file) in check.observed
    assert f"mount that at {file.parent}" in check.remedy


def test_what_writes_in_place_goes_on_and_the_looks_warn(database: Settings) -> None:
    run("backup", database).raise_for_failures()
    run_sql(database.db_path, *ROWS)
    with bound(database.db_path):
        for verb in ("preflight", "validate"):
            report = run(verb, database)
            assert (report.ok, statuses(report)) == (True, ["warn"]), verb
        for verb in ("drill", "restore", "fresh start"):
            run(verb, database).raise_for_failures()


def test_an_empty_file_that_a_container_made_is_not_to_be_removed_by_a_command_that_fails(settings: Settings) -> None:
    settings.db_path.parent.mkdir(mode=0o700)
    settings.db_path.touch()
    with bound(settings.db_path):
        for verb in ("preflight", "init", "validate"):
            (check,) = (check for check in run(verb, settings).checks if check.id == "database_file")
            assert "mount that at" in check.remedy, verb
            assert "rm " not in check.remedy, verb


def test_a_quarantine_that_is_a_mount_of_its_own_takes_what_a_repair_changes(database: Settings) -> None:
    run_sql(database.db_path, *ROWS, "UPDATE audit SET agent_id = 'none'", "DELETE FROM tasks")
    folder = quarantine_dir(database)
    folder.mkdir(parents=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", folder], check=True)
    try:
        run("repair", database).raise_for_failures()
        (kept,) = folder.iterdir()
        asyncio.run(nb.troubleshoot(database, put_back=kept.name)).raise_for_failures()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
