"""The old state or the new one is there at every moment, what was there before is kept, nothing unproven is taken."""

import os
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from backup_helpers import ADD, content_of, run_sql, taken
from damage import fingerprint, untouched

import abathur_nb as nb
from abathur_nb.backups.aside import new_folder
from abathur_nb.backups.copying import copy_in
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed
from abathur_nb.report import Report
from abathur_nb.store.target import journal_of


def observed(report: Report) -> str:
    return "\n".join(check.observed for check in report.checks)


def spoil(settings: Settings) -> None:
    """Write over most pages of the file, and leave its header."""
    with settings.db_path.open("r+b") as file:
        file.seek(5000)
        file.write(b"x" * 100_000)


@pytest.fixture
async def backup(database: Settings) -> Backup:
    """Return a backup of a database that was written to since."""
    found = await taken(database)
    run_sql(database.db_path, ADD.replace("?", "'since'"))
    return found


async def test_an_open_reader_keeps_its_snapshot_and_then_sees_the_new_content(
    database: Settings, backup: Backup
) -> None:
    with untouched(database.db_path):
        report = await nb.restore_database(database)
    assert (report.ok, report.title) == (True, "restore (plan)")
    assert backup.path.name in observed(report)
    reader = sqlite3.connect(database.db_path, isolation_level=None)
    count = "SELECT count(*) FROM memory_entries"
    reader.execute("BEGIN")
    assert reader.execute(count).fetchone() == (4,)
    for _ in range(2):  # the copy that is made for safety is never taken unasked
        (await nb.restore_database(database, apply=True)).raise_for_failures()
    assert reader.execute(count).fetchone() == (4,)
    reader.execute("COMMIT")
    assert reader.execute(count).fetchone() == (3,)
    reader.close()
    assert await content_of(database) == backup.content
    kept = list_backups(database.backup_dir)[0][1]
    assert kept.before_a_change
    assert kept.content.rows["memory_entries"] == 4


async def test_beside_the_log_of_another_database_it_is_exact(
    database: Settings, backup: Backup, tmp_path: Path
) -> None:
    other = nb.resolve("development", db_path=tmp_path / "other" / "abathur.db")
    (await nb.initialize_database(other)).raise_for_failures()
    conn = sqlite3.connect(other.db_path)
    with conn:
        conn.executemany(ADD, [(str(n),) for n in range(50)])
    shutil.copy(f"{other.db_path}-wal", f"{database.db_path}-wal")
    conn.close()
    (await nb.restore_database(database, apply=True)).raise_for_failures()
    assert await content_of(database) == backup.content


@pytest.mark.parametrize("state", ["absent", "corrupt", "no header", "empty", "side files alone"])
async def test_whatever_stood_there_the_content_comes_back_and_the_rest_is_kept(
    state: str, database: Settings, backup: Backup
) -> None:
    path = database.db_path
    if state in ("absent", "side files alone"):
        path.unlink()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if state == "corrupt":
        spoil(database)
    elif state == "no header":
        path.write_bytes(bytes(100) + path.read_bytes()[100:])
    elif state == "empty":
        path.write_bytes(b"")
    elif state == "side files alone":
        Path(f"{path}-wal").write_bytes(b"what may hold rows")
    report = await nb.restore_database(database, apply=True)
    report.raise_for_failures()
    assert await content_of(database) == backup.content
    assert path.stat().st_mode & 0o777 == 0o600
    folders = list(path.parent.glob("abathur_aside_*"))
    assert len(folders) == (state != "absent")
    if state == "no header":
        assert (folders[0] / path.name).read_bytes()[:100] == bytes(100)
    if state == "side files alone":
        assert (folders[0] / f"{path.name}-wal").read_bytes() == b"what may hold rows"
    assert not journal_of(path).exists()


async def test_a_replacement_that_dies_at_a_rename_is_completed_by_the_next_one(
    database: Settings, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(database)
    real, done = os.rename, list[tuple[str, ...]]()

    def die(*paths: str) -> None:
        if len(done) == 2:  # the first one prepares the draft
            raise KeyboardInterrupt
        done.append(paths)
        real(*paths)

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", die)
        with pytest.raises(KeyboardInterrupt):
            await nb.restore_database(database, apply=True)
    assert journal_of(database.db_path).exists()
    assert (await nb.initialize_database(database)).refused, "nothing is made beside what is half done"
    report = await nb.restore_database(database, apply=True)
    report.raise_for_failures()
    assert await content_of(database) == backup.content
    assert "begun before" in [check.name for check in report.checks]


async def test_what_is_damaged_foreign_or_unfit_is_refused_and_nothing_changed(
    database: Settings, backup: Backup, tmp_path: Path
) -> None:
    cases = {"damaged": backup.path.read_bytes()[:-1], "no manifest": b""}
    with untouched(database.db_path):
        for name, content in cases.items():
            copy = tmp_path / backup.path.name
            copy.write_bytes(content)
            if name == "damaged":
                shutil.copy(backup.manifest, tmp_path)
            else:
                (tmp_path / backup.manifest.name).unlink()
            report = await nb.restore_database(database, backup=copy, apply=True)
            assert report.refused
            assert name in observed(report)
        other = replace(database, env="qa")
        report = await nb.restore_database(other, backup=backup.path, apply=True)
        assert report.refused
        assert "is a backup of development, not of qa" in observed(report)
        assert (await nb.restore_database(other, backup=backup.path, from_env="development")).ok
        for absent in ("nothing.db", tmp_path):
            assert (await nb.restore_database(database, backup=absent, apply=True)).refused


@pytest.mark.usefixtures("backup")
async def test_where_it_must_be_confirmed_only_the_hash_of_this_very_plan_will_do(database: Settings) -> None:
    strict = replace(database, confirm_changes=True)
    plan = await nb.restore_database(strict)
    digits = next(c.observed for c in plan.checks if c.name == "plan").split()[1]
    with untouched(database.db_path):
        for confirm in (None, "", "0" * 16):
            assert (await nb.restore_database(strict, apply=True, confirm=confirm)).refused
        assert (await nb.roll_back(strict, to="fresh", apply=True, confirm=digits)).refused, "another plan"
    (await nb.restore_database(strict, apply=True, confirm=digits)).raise_for_failures()


@pytest.mark.usefixtures("backup")
async def test_a_drill_restores_into_scratch_alone(database: Settings) -> None:
    with untouched(database.db_path):
        report = await nb.restore_database(database, drill=True)
    report.raise_for_failures()
    assert [check.name for check in report.checks] == ["backup", "RPO", "existing database", "drill", "RTO"]
    assert not list(database.db_path.parent.glob(".abathur-*"))


@pytest.mark.parametrize("arguments", [{"apply": "yes"}, {"confirm": 7}, {"drill": 1}, {"drill": True, "apply": True}])
async def test_a_wrong_argument_is_a_configuration_error(arguments: dict[str, object], database: Settings) -> None:
    with pytest.raises(nb.ConfigurationError):
        await nb.restore_database(database, **arguments)  # type: ignore[arg-type]


async def test_a_fresh_start_keeps_what_was_there_as_a_proven_backup(database: Settings) -> None:
    run_sql(database.db_path, ADD.replace("?", "'k'"))
    before = await content_of(database)
    (await nb.roll_back(database, to="fresh", apply=True)).raise_for_failures()
    assert (await content_of(database)).rows["memory_entries"] == 3
    (kept,) = list_backups(database.backup_dir)[0]
    assert (kept.content, kept.facts["reason"]) == (before, "pre_rollback")
    (await nb.roll_back(database, to=kept.path.name, apply=True)).raise_for_failures()
    assert await content_of(database) == before


@pytest.mark.parametrize("state", ["absent", "no directory", "empty", "side files alone", "text"])
async def test_there_is_nothing_to_roll_back_where_no_database_is(
    state: str, database: Settings, backup: Backup
) -> None:
    path = database.db_path
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    if state in ("empty", "text"):
        path.write_text("a text" * (state == "text"))
    elif state == "side files alone":
        Path(f"{path}-wal").write_bytes(b"what may hold rows")
    elif state == "no directory":
        database = replace(database, db_path=path.parent / "typo" / "abathur.db")
    before = {name: fingerprint(name) for name in path.parent.parent.rglob("*")}
    for to in ("fresh", str(backup.path)):
        report = await nb.roll_back(database, to=to, apply=True)
        assert report.refused
        assert [check.name for check in report.checks] == ["database file"]
    assert {name: fingerprint(name) for name in path.parent.parent.rglob("*")} == before


async def test_what_to_roll_back_to_must_be_named_and_the_commands_for_it_are_shown(database: Settings) -> None:
    with untouched(database.db_path):
        for to in ("", 7):
            with pytest.raises(nb.ConfigurationError, match="to: expected 'fresh' or a backup"):
                await nb.roll_back(database, to=to, apply=True)  # type: ignore[arg-type]
    for number in (1, 2):
        with pytest.raises(nb.ConfigurationError) as raised:
            await nb.roll_back(database, to=None)
        told = rf"papermill rollback\.ipynb out\.ipynb {re.escape(database.as_arguments)} -p to ([^;\s]+)"
        given = re.findall(told, str(raised.value))
        assert len(given) == number
        for to in given:
            assert (await nb.roll_back(database, to=to)).ok
        (await nb.backup_database(database)).raise_for_failures()


async def test_a_copy_that_fails_leaves_the_old_content(database: Settings, backup: Backup, tmp_path: Path) -> None:
    before = await content_of(database)
    half = tmp_path / "half.db"
    half.write_bytes(backup.path.read_bytes()[:8192])
    with pytest.raises(sqlite3.DatabaseError):
        await copy_in(half, database)
    assert await content_of(database) == before


async def test_a_begun_replacement_is_completed_by_the_plan_that_was_approved(
    database: Settings, backup: Backup
) -> None:
    folder = new_folder(database.db_path)
    shutil.copy(backup.path, folder / f"new.{database.db_path.name}")
    journal_of(database.db_path).write_bytes(sealed({"folder": folder.name}))
    strict = replace(database, confirm_changes=True)
    old = database.db_path.read_bytes()
    plan = await nb.roll_back(strict, to="fresh")
    steps = next(check.observed for check in plan.checks if check.name == "plan")
    assert f"1. complete the replacement of {database.db_path} that was begun with {folder}" in steps
    assert journal_of(database.db_path).exists()
    report = await nb.roll_back(strict, to="fresh", apply=True, confirm=steps.split()[1])
    report.raise_for_failures()
    assert not journal_of(database.db_path).exists()
    assert (folder / database.db_path.name).read_bytes() == old
    # What was to be put there before is what was there before when the rollback came.
    assert list_backups(database.backup_dir)[0][-1].content == backup.content
    assert (await content_of(database)).rows["memory_entries"] == 3


async def test_a_database_that_was_moved_is_restored_twice_from_the_backup_of_its_old_place(
    database: Settings, backup: Backup, tmp_path: Path
) -> None:
    moved = replace(database, db_path=tmp_path / "moved" / "abathur.db")
    (await nb.initialize_database(moved)).raise_for_failures()
    for _ in range(2):
        (await nb.restore_database(moved, apply=True)).raise_for_failures()
        assert await content_of(moved) == backup.content
