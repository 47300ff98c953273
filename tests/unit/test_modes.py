"""What the file system says of a database: modes, access control lists, names, the size of the log."""

import asyncio
import os
import pwd
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from damage import SESSION, grant_by_acl, held
from validate_helpers import failing, validated

from abathur_nb.config.settings import Settings
from abathur_nb.health.path_on_disk import writable_by_others
from abathur_nb.runbook.init import initialize_database
from abathur_nb.text import user_name


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o700, 0o601, 0o400, 0o200])
async def test_a_file_of_any_mode_but_0600_is_named_with_the_command(database: Settings, mode: int) -> None:
    database.db_path.chmod(mode)
    check = (await validated(database))["file modes"]
    assert check.status == "fail"
    assert f"abathur.db {mode:04o}" in check.observed
    assert check.remedy.startswith(f"chmod 600 {database.db_path}")


async def test_side_files_and_the_directory_are_looked_at_too(database: Settings) -> None:
    with held(database.db_path, "BEGIN IMMEDIATE", SESSION, "COMMIT"):
        for suffix in ("-wal", "-shm"):
            Path(f"{database.db_path}{suffix}").chmod(0o644)
        database.db_path.parent.chmod(0o777)
        check = (await validated(database))["file modes"]
    assert "abathur.db 0600, abathur.db-wal 0644, abathur.db-shm 0644; directory 0777" in check.observed
    folder = database.db_path.parent
    assert check.remedy == f"chmod 600 {folder}/abathur.db-wal {folder}/abathur.db-shm; chmod 700 {folder}"


def test_a_file_of_another_than_its_directorys_owner_is_named_with_the_command(database: Settings) -> None:
    folder, path = database.db_path.parent, database.db_path
    os.chown(path, 65534, 65534)
    check = asyncio.run(validated(database))["file modes"]
    assert check.status == "fail"
    me, other = user_name(os.geteuid()), user_name(65534)
    assert f"abathur.db 0600 of {other}" in check.observed
    assert check.observed.endswith(f"; directory 0700 of {me}")
    assert check.remedy.startswith(f"sudo chown --reference={folder} {path}")
    subprocess.run(["sh", "-c", check.remedy.removeprefix("sudo ")], check=True)
    assert asyncio.run(validated(database))["file modes"].status == "pass"
    os.chown(path, 65534, 65534)
    folder.chmod(0o777)  # like /tmp: whose it is does not say whose the file should be
    assert "chown" not in asyncio.run(validated(database))["file modes"].remedy


def test_an_access_control_list_is_named_with_the_command_that_shows_it(database: Settings) -> None:
    path = database.db_path
    grant_by_acl(path, 65534, 7, mask=6)
    check = asyncio.run(validated(database))["file modes"]
    assert check.status == "fail"
    assert "abathur.db 0660" in check.observed
    assert check.evidence == (f"{path} has an access control list; to see it: getfacl {path}",)
    assert check.remedy.startswith(f"chmod 600 {path} ")  # and what SQLite has just made beside it
    assert check.remedy.endswith(f"; setfacl -b {path}")
    # The first command alone shuts the list off.
    subprocess.run(["sh", "-c", check.remedy.partition(";")[0]], check=True)
    check = asyncio.run(validated(database))["file modes"]
    assert check.status == "pass"


async def test_a_directory_that_lets_others_write_by_its_list_alone_is_found(database: Settings) -> None:
    """A private group's bits are the owner's own, and hide what a list grants behind them."""
    folder = database.db_path.parent
    group = pwd.getpwuid(os.getuid()).pw_gid
    os.chown(folder, -1, group)
    folder.chmod(0o770)
    assert not writable_by_others(folder), "whoever runs this needs a group of one's own: useradd --user-group"
    assert (await validated(database))["file modes"].status == "pass"
    grant_by_acl(folder, 65534, 7)
    check = (await validated(database))["file modes"]
    assert (check.status, check.remedy) == ("fail", f"chmod 700 {folder}; setfacl -b {folder}")
    folder.chmod(0o700)
    assert (await validated(database))["file modes"].status == "pass"


def test_a_second_name_of_the_file_warns_with_the_command_that_finds_it(database: Settings) -> None:
    path = database.db_path
    other = path.parent.parent / "another name.db"
    os.link(path, other)
    checks = asyncio.run(validated(database))
    assert failing(checks) == set()
    assert (checks["file names"].status, checks["file names"].observed) == ("warn", "2 names (hard links)")
    command = checks["file names"].remedy.removeprefix("name all: ").partition(";")[0]
    # The file system may be large: the one directory will do.
    here = command.replace(f'"$(stat -c %m {path})"', f'"$(dirname {path.parent})"')
    assert here != command
    found = subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True).stdout
    assert set(found.splitlines()) == {str(path), str(other)}
    other.unlink()
    assert asyncio.run(validated(database))["file names"].status == "pass"


async def test_init_that_gives_the_second_name_itself_does_not_warn_of_it(settings: Settings) -> None:
    report = await initialize_database(settings)
    (check,) = (check for check in report.checks if check.name == "2.7 file names")
    assert (check.status, check.observed) == ("pass", "one name")


async def test_a_large_log_warns(database: Settings) -> None:
    """A reader that stays holds it back."""
    fill = "INSERT INTO metrics (metric_name, metric_value) VALUES (hex(randomblob(600000)), 1)"
    with held(database.db_path, "BEGIN", "SELECT count(*) FROM metrics"), held(database.db_path, fill):
        checks = await validated(replace(database, max_wal_mb=1))
        assert checks["WAL size"].status == "warn"
        assert float(checks["WAL size"].observed.removesuffix(" MB")) > 1
        assert failing(checks) == set()
