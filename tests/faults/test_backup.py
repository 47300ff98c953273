"""A backup is proven and private; of many a restoration takes the newest unasked, or says why it can't."""

import asyncio
import shutil
import stat
import subprocess
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from backup_helpers import content_of, taken
from damage import MEMORY, ROWS, flip_bits, run_sql, untouched
from hostile import BYTES, PLACES, reshaped
from manifests import as_before, redated, rewritten
from sampling import sampled
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb import files
from abathur_nb.backups.manifest import Backup, apply_retention, expired, find_backup, list_backups, read_backup
from abathur_nb.backups.taking import unpack
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.files import locked
from abathur_nb.measure.alerts import LAST_BACKUP
from abathur_nb.measure.snapshot import take_snapshot
from abathur_nb.store.schema import APPLICATION_ID, SCHEMA_VERSION
from abathur_nb.text import printable


@pytest.mark.parametrize("compress", [False, True])
async def test_a_backup_is_private_and_exact(compress: bool, database: Settings, tmp_path: Path) -> None:
    run_sql(database.db_path, *ROWS)
    with untouched(database.db_path):
        backup = await taken(database, compress=compress)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in database.backup_dir.iterdir()}
    assert modes == {backup.path: 0o600, backup.manifest: 0o600}
    assert stat.S_IMODE(database.backup_dir.stat().st_mode) == 0o700
    assert backup.path.name.endswith(".db.zst" if compress else ".db")
    copy = unpack(backup, tmp_path)
    assert copy.read_bytes()[18:20] == b"\2\2", "in WAL mode"
    assert backup.content == await content_of(database) == await content_of(replace(database, db_path=copy))


async def test_the_digest_is_another_for_each_single_change(database: Settings) -> None:
    path = database.db_path
    run_sql(path, "INSERT INTO metrics (metric_name, metric_value, labels) VALUES ('1', 1, '{\"a\":1}')")
    digests = [(await content_of(database)).digest for _ in range(2)]
    for change in (
        "UPDATE metrics SET metric_value = 2",
        "UPDATE metrics SET labels = CAST('{\"a\":1}' AS BLOB)",
        "UPDATE sqlite_sequence SET seq = 9 WHERE name = 'metrics'",
        "ALTER TABLE metrics ADD COLUMN more",
        "DELETE FROM metrics",
    ):
        run_sql(path, change)
        digests.append((await content_of(database)).digest)
    assert len(set(digests)) == len(digests) - 1


async def test_a_wrong_argument_is_refused_before_anything_is_made(database: Settings) -> None:
    wrong: tuple[dict[str, Any], ...] = ({"reason": "../x"}, {"reason": "A"}, {"reason": ""}, {"compress": "yes"})
    for arguments in wrong:
        with pytest.raises(nb.ConfigurationError):
            await nb.backup_database(database, **arguments)
    for keep in ({"last": -1}, {"daily": 1.5}, {"weekly": True}, dict.fromkeys(("last", "daily", "weekly"), 0)):
        with pytest.raises(nb.ConfigurationError, match="keep_"):
            nb.Retention(**{"monthly": 0, **keep})  # type: ignore[arg-type]
    assert not database.backup_dir.exists()


async def test_without_database_room_or_directory_it_is_refused(database: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    lacking: dict[str, Any] = {"db_path": tmp_path / "none.db", "min_free_mb": 10**9}
    for name, value in (*lacking.items(), ("backup_dir", tmp_path / "file"), ("backup_dir", tmp_path / "link")):
        assert (await nb.backup_database(replace(database, **{name: value}))).refused


ONE = nb.Retention(last=1, daily=0, weekly=0, monthly=0)


def made(days: float, *, findings: tuple[str, ...] = (), reason: str = "nightly") -> Backup:
    """Return a backup, of which there is no file, taken so many days before a certain moment."""
    taken_at = f"2026-11-{23 - int(days):02} {12 - int(days % 1 * 24):02}:00:00.000"
    ids = {"application_id": APPLICATION_ID, "user_version": SCHEMA_VERSION}
    facts = {"taken_at": taken_at, "proof": {"findings": list(findings)}, "reason": reason, **ids}
    return Backup(Path(f"/nowhere/{reason}-{days}"), facts)


def test_retention_keeps_the_newest_the_newest_sound_one_and_the_newest_of_each_period() -> None:
    backups = [made(days) for days in (20, 10, 9, 2.25, 2, 1, 0.25, 0)]
    gone = expired(backups, nb.Retention(last=1, daily=2, weekly=0, monthly=0))
    assert [backup.path.name for backup in gone] == [f"nightly-{days}" for days in (20, 10, 9, 2.25, 2, 0.25)]
    assert expired(backups, nb.Retention(last=8, daily=0, weekly=0, monthly=0)) == []
    unsound = [made(9), made(8), *(made(days, findings=("indexes",)) for days in (3, 2, 1))]
    assert [backup.path.name for backup in expired(unsound, ONE)] == ["nightly-9", "nightly-3", "nightly-2"]
    # What was taken before a change does not push out the others.
    changes = [made(9), *(made(days, reason="pre_repair") for days in (3, 2, 1))]
    assert [b.path.name for b in expired(changes, replace(ONE, last=2))] == ["pre_repair-3"]


@pytest.fixture
async def other(database: Settings, tmp_path: Path) -> Settings:
    found = nb.resolve("development", db_path=tmp_path / "other" / "abathur.db", backup_dir=database.backup_dir)
    (await nb.initialize_database(found)).raise_for_failures()
    return found


async def test_retention_leaves_another_database_s_backups_alone(database: Settings, other: Settings) -> None:
    kept = await taken(other)
    for _ in range(3):
        (await nb.backup_database(database, keep=ONE)).raise_for_failures()
    first, second = list_backups(database.backup_dir)[0]
    assert (first.path, second.facts["database"]) == (kept.path, str(database.db_path))


# --- which backup a restoration takes unasked: the newest by its sequence number, or it says why not


async def last_backup(settings: Settings) -> float | None:
    return (await take_snapshot(settings))[0].value(LAST_BACKUP)


async def chosen(settings: Settings) -> nb.Check:
    """Return what a restoration says of the backup that it takes unasked."""
    return check_of(await nb.restore_database(settings), "backup")


# A newer one, and its manifest, under names that a backup never has.
RENAMED = {
    "as an older one": ("abathur_manual_20000101_000000_000.db", "abathur_manual_20000101_000000_000.db.manifest.json"),
    "not UTF-8": ("x\udcff.db", "x\udcff.db.manifest.json"),
    "each by itself": ("before.db", "before.manifest.json"),
}


def rename(newer: Backup, name: str) -> tuple[Path, str]:
    """Rename a backup and its manifest; return its path, and the name by which the manifest is told."""
    path, manifest = (newer.path.with_name(to) for to in RENAMED[name])
    return newer.path.rename(path), printable(newer.manifest.rename(manifest).name)


async def refused_until_named(database: Settings, older: Backup, newer: str) -> None:
    """Assert that nothing is chosen, that the newer one is named and why, and that the older one can be named."""
    for drill, apply in ((False, False), (True, False), (False, True)):
        with untouched(database.db_path):
            report = await nb.restore_database(database, drill=drill, apply=apply)
        assert report.refused
        failed = next(check for check in report.checks if check.failed)
        assert newer in failed.observed
        assert older.path.name in failed.observed
        assert f"-p backup {older.path.name}" in failed.remedy
    assert (await nb.restore_database(database, backup=older.path.name)).ok
    assert (await nb.roll_back(database, to=older.path.name)).ok


async def test_an_older_backup_behind_an_unfit_one_wants_a_name(database: Settings) -> None:
    older = await taken(database)
    run_sql(database.db_path, "DROP INDEX idx_audit_task", "ALTER TABLE audit ADD COLUMN more")
    newer = await taken(database)
    await refused_until_named(database, older, newer.path.name)
    assert await last_backup(database) == older.taken_at.timestamp()
    assert "does not serve" in str(nb.show_backups(database)).partition("\n")[0]
    assert not (await nb.restore_database(database, backup=newer.path.name)).refused, "it can be named as well"
    older.path.unlink()
    with pytest.raises(nb.ChecksFailedError, match=rf"{newer.path.name}: its database failed "):
        (await nb.restore_database(database)).raise_for_failures()


@pytest.mark.parametrize("name", RENAMED)
async def test_a_newer_one_that_was_renamed_counts_by_its_manifest(name: str, database: Settings) -> None:
    older, newer = await taken(database), await taken(database)
    path, manifest = rename(newer, name)
    told = manifest.removesuffix(".manifest.json")
    if name == "each by itself":
        await refused_until_named(database, older, told)
    else:
        found = await chosen(database)
        assert (found.status, told in found.observed, "its manifest names" in found.observed) == ("warn", True, True)
    assert told in set(nb.show_backups(database).to_frame()["file"])
    (await nb.backup_database(database, keep=ONE)).raise_for_failures()
    assert path.exists(), "what was renamed is kept by hand"
    assert list_backups(database.backup_dir)[0][-1].facts["sequence"] == 3
    assert (await nb.restore_database(database)).ok, "it is older now"


@pytest.mark.parametrize("name", ["not UTF-8", "each by itself"])
async def test_a_renamed_one_whose_manifest_is_damaged_may_be_newer(name: str, database: Settings) -> None:
    older, newer = await taken(database), await taken(database)
    newer.manifest.write_bytes(newer.manifest.read_bytes()[:-20])
    await refused_until_named(database, older, rename(newer, name)[1])


async def test_where_a_backup_is_damaged_the_newest_older_one_is_named(database: Settings) -> None:
    first, second, kept, newest = [await taken(database, reason=reason) for reason in ("a", "b", "pre_repair", "d")]
    for damaged, older in ((newest, second), (second, first), (first, None)):
        flip_bits(damaged.path, 9000)
        report = await nb.restore_database(database, backup=damaged.path.name)
        failed = next(check for check in report.checks if check.failed)
        assert damaged.path.name in failed.observed
        named = f"-p backup {older.path.name}" if older else "choose another backup"
        assert failed.remedy.endswith(named)
    assert (await nb.restore_database(database)).refused
    assert (await nb.restore_database(database, backup=kept.path.name)).ok


async def test_a_copy_of_the_newest_under_another_name_is_none_that_is_passed_over(database: Settings) -> None:
    newest = await taken(database)
    for name in ("a.db", "z.db"):
        shutil.copy(newest.path, newest.path.with_name(name))
        shutil.copy(newest.manifest, newest.path.with_name(f"{name}.manifest.json"))
    newest.path.with_name("other.manifest.json").write_text("{}")
    assert (await chosen(database)).status == "pass"


async def test_a_backup_of_a_change_or_another_database_is_named_and_left(database: Settings, other: Settings) -> None:
    usual, before = await taken(database), await taken(database, reason="pre_rollback")
    found = await chosen(database)
    assert (found.status, usual.path.name in found.observed) == ("warn", True)
    assert f"{before.path.name} is newer" in found.observed
    assert await last_backup(database) == usual.taken_at.timestamp()
    own, newer, moved = await taken(database), await taken(other), replace(other, db_path=Path("/moved.db"))
    for settings, wanted, status in ((database, own, "pass"), (other, newer, "pass"), (moved, newer, "warn")):
        found = await chosen(settings)
        assert (found.status, wanted.path.name in found.observed) == (status, True)


async def test_a_backup_of_the_future_is_a_finding_wherever_its_age_is_judged(database: Settings) -> None:
    found = redated(await taken(database, reason="ahead"), timedelta(minutes=10))
    told = await chosen(database)
    assert (told.status, found.path.name in told.observed, "in the future" in told.observed) == ("warn", True, True)
    assert "taken in the future" in str(nb.show_backups(database)).partition("\n")[0]
    assert check_of((await nb.monitor(database)).report, "age of the last proven backup").status == "warn"
    for minutes, status in ((10, "warn"), (4, "pass")):  # two machines may differ by some minutes
        redated(found, timedelta(minutes=minutes))
        assert check_of(await nb.backup_database(database), "clock").status == status
        found = list_backups(database.backup_dir)[0][0]


@pytest.mark.parametrize("days", [365, -20_000])
async def test_no_clock_makes_a_run_delete_its_own_backup(days: int, database: Settings) -> None:
    for number in range(2):
        redated(await taken(database), timedelta(days=days + number))
    report = await nb.backup_database(database, keep=ONE)
    made = Path(check_of(report, "copy").observed.split(",")[0])
    assert report.ok
    assert list_backups(database.backup_dir)[0][-1].path == made
    assert await last_backup(database) == read_backup(made).taken_at.timestamp()
    second, third = [await taken(database) for _ in range(2)]
    assert {check.name for check in apply_retention(database, ONE, second)} == {"retention", "clock", "leftovers"}
    assert [path.exists() for path in (made, second.path, third.path)] == [False, True, True]


async def test_concurrent_backups_get_distinct_sequence_numbers(database: Settings) -> None:
    await asyncio.gather(*(nb.backup_database(database) for _ in range(4)))
    found = list_backups(database.backup_dir)[0]
    assert [backup.facts["sequence"] for backup in found] == [1, 2, 3, 4]
    rewritten(found[0], sequence=2**63 - 1)
    assert (await nb.backup_database(database)).ok, "a manifest may claim the last number there is"


async def test_manifests_of_before_serve_and_are_shown_as_older_and_offsets_are_converted(database: Settings) -> None:
    for compress in (False, True):
        found = await taken(database, compress=compress)
        as_before(found)
        (await nb.restore_database(database, drill=True)).raise_for_failures()
    assert all("older manifest" in told for told in str(nb.show_backups(database)).splitlines())
    (await nb.restore_database(database, apply=True)).raise_for_failures()
    rewritten(found, taken_at="2026-11-30T10:00:00+05:30")
    assert "2026-11-30 04:30:00.000" in str(nb.show_backups(database))


@pytest.mark.parametrize("every", sampled((1, 12), 12))
async def test_a_manifest_of_any_other_shape_costs_its_own_backup_alone(every: int, database: Settings) -> None:
    bad, good = await taken(database), await taken(database)
    facts, refused = unsealed(bad.manifest.read_bytes()), 0
    for what, changed in islice(reshaped(facts), 0, None, every):
        bad.manifest.write_bytes(sealed(changed))
        found, faults = list_backups(database.backup_dir)
        assert good.path in [backup.path for backup in found], what
        assert set(faults) | {backup.path.name for backup in found} == {bad.path.name, good.path.name}, what
        nb.show_backups(database).to_html().encode()
        with suppress(nb.RefusedError):  # where it is newer and cannot be restored
            find_backup(database.backup_dir, None, database.env, database.db_path)
        if bad.path.name in faults:
            assert bad.manifest.name in faults[bad.path.name], what
            refused += 1
    for content in BYTES.values():
        bad.manifest.write_bytes(content)
        assert ([backup.path for backup in list_backups(database.backup_dir)[0]]) == [good.path]
    for make in PLACES.values():
        for path in (bad.manifest, bad.path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            make(path)
        assert good.path in [backup.path for backup in list_backups(database.backup_dir)[0]]
        assert (await nb.restore_database(database)).ok
        assert (await nb.restore_database(database, backup=bad.path)).refused
    assert refused > 200 // every
    assert (await nb.restore_database(database)).ok


async def test_a_manifest_alone_is_swept_by_the_next_backup(database: Settings) -> None:
    gone, kept = await taken(database), await taken(database)
    gone.path.unlink()
    report = await nb.backup_database(database)
    report.raise_for_failures()
    assert not gone.manifest.exists()
    assert kept.manifest.exists()
    assert gone.manifest.name in check_of(report, "leftovers").evidence[0]
    assert [check.name for check in report.checks if check.status == "warn"] == []


async def test_a_manifest_stays_while_its_backup_is_made(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    half, kept = await taken(database), await taken(database)
    aside = half.path.rename(half.path.with_suffix(".draft"))
    monkeypatch.setattr(files, "_PATIENCE_S", 0)
    with locked(database.backup_dir):
        assert not list_backups(database.backup_dir)[0][:-1]
        assert (await nb.backup_database(database)).refused, "its own turn has not come"
        assert half.manifest.exists()
        aside.rename(half.path)
    found, faults = list_backups(database.backup_dir)
    assert ([backup.path for backup in found], faults) == ([half.path, kept.path], {})


@pytest.mark.parametrize("how", ["another environment", "moved and back"])
async def test_a_newer_one_of_this_file_under_another_name_is_not_passed_over(how: str, database: Settings) -> None:
    older = await taken(database)
    folder, other = database.db_path.parent, replace(database, env="staging")
    if how == "moved and back":
        other = replace(database, db_path=folder.with_name("moved") / database.db_path.name)
        database = replace(database, backup_dir=folder.with_name("backups"))
        shutil.copytree(folder / "backups", database.backup_dir)
        other = replace(other, backup_dir=database.backup_dir)
        folder.rename(other.db_path.parent)
    run_sql(other.db_path, MEMORY)
    newer = await taken(other)
    if how == "moved and back":
        other.db_path.parent.rename(folder)
    with untouched(database.db_path):
        report = await nb.restore_database(database, apply=True)
    assert report.refused
    assert f"-p backup {older.path.name}" in str(report)
    named = f"-p backup {newer.path.name}"
    assert f"restored only by name: {named}{' -p from_env staging' if other.env == 'staging' else ''}" in str(report)


@pytest.mark.parametrize("linked", [True, False])
async def test_a_backup_directory_that_is_a_link_or_a_file_is_named_beforehand_and_its_remedy_cures_it(
    linked: bool, database: Settings, tmp_path: Path
) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    database.backup_dir.symlink_to(real) if linked else database.backup_dir.touch()
    for report in (await nb.preflight(database), await nb.backup_database(database)):
        check = check_of(report, "backup directory")
        assert check.observed == f"{database.backup_dir} is a link or not a directory"
        way, _, command = check.remedy.partition(": ")
    if linked:
        assert (way, command) == ("name the directory itself", f"export ABATHUR_BACKUP_DIR={real}")
        database = replace(database, backup_dir=real)
    else:
        await asyncio.to_thread(subprocess.run, ["sh", "-ec", command], check=True)
    (await nb.backup_database(database)).raise_for_failures()
