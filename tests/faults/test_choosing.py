"""Which backup a restoration takes unasked: the newest, by a sequence that no clock turns, or it says why it can't."""

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from shlex import quote

import pytest
from backup_helpers import taken
from damage import MEMORY, TASK, flip_bits, run_sql, untouched
from hostile import BYTES, PLACES, reshaped
from manifests import as_before, redated, rewritten

import abathur_nb as nb
from abathur_nb import files
from abathur_nb.backups.manifest import Backup, apply_retention, find_backup, list_backups, read_backup
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed, unsealed
from abathur_nb.files import locked
from abathur_nb.measure.alerts import LAST_BACKUP
from abathur_nb.measure.snapshot import take_snapshot
from abathur_nb.text import printable

ONE = nb.Retention(last=1, daily=0, weekly=0, monthly=0)

# --- what is wrong with the database when the newer backup is taken, and whether that backup may serve

SERVES: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "another table": ("CREATE TABLE _litestream_lock (id INTEGER)",),
    "another index": ("CREATE INDEX idx_extra ON audit (result)",),
    "another unique index": ("CREATE UNIQUE INDEX idx_extra ON audit (id, result)",),
    "a virtual table": ("CREATE VIRTUAL TABLE places USING rtree(id, low, high)",),
    "JSON that is broken": (TASK, "UPDATE tasks SET input_data = '{'"),
    "a reference without a row": ("INSERT INTO audit (action_type, agent_id) VALUES ('x', 'none')",),
    "a value out of range": (TASK, "UPDATE tasks SET priority = 99"),
    "a row of tomorrow": (MEMORY, "UPDATE memory_entries SET created_at = '9999-01-01 00:00:00.000'"),
    "a seed that was edited": ("UPDATE memory_entries SET value = '{}' WHERE id = 1",),
    "a counter of ids": ("DELETE FROM sqlite_sequence",),
}
SERVES_NOT: dict[str, tuple[str, ...]] = {
    "a missing index": ("DROP INDEX idx_audit_task",),
    "a missing table": ("DROP TABLE metrics",),
    "another column": ("ALTER TABLE audit ADD COLUMN more",),
}


async def last_backup(settings: Settings) -> float | None:
    return (await take_snapshot(settings))[0].value(LAST_BACKUP)


@pytest.mark.parametrize("change", SERVES)
async def test_the_newest_is_taken_whatever_else_was_wrong_with_its_database(change: str, database: Settings) -> None:
    older = await taken(database)
    run_sql(database.db_path, MEMORY.replace("'k'", "'precious'"), *SERVES[change])
    newer = (await nb.backup_database(database)).checks[2].observed
    for drill in (True, False):
        report = await nb.restore_database(database, drill=drill)
        assert not report.refused, str(report)
        chosen = next(check for check in report.checks if check.name == "backup")
        assert chosen.observed.split(",")[0] in newer
        assert older.path.name not in chosen.observed
        assert chosen.status == ("warn" if list_backups(database.backup_dir)[0][-1].findings else "pass")
    newest = list_backups(database.backup_dir)[0][-1]
    assert await last_backup(database) == newest.taken_at.timestamp()
    assert "does not serve" not in nb.show_backups(database)["its database"].iloc[0]


def _cut(newer: Backup) -> None:
    newer.manifest.write_bytes(newer.manifest.read_bytes()[:-20])


def _flip(newer: Backup) -> None:
    flip_bits(newer.path, 9000)


def _renamed(to: str, manifest: str = "") -> Callable[[Backup], None]:
    def rename(newer: Backup) -> None:
        newer.manifest.rename(newer.path.with_name(manifest or f"{to}.manifest.json"))
        newer.path.rename(newer.path.with_name(to))

    return rename


# A newer one under a name that a backup never has, and the name by which a restoration takes it.
RENAMED: dict[str, tuple[str, str]] = {
    "for a person": ("before the upgrade.db", ""),
    "in capitals": ("ABATHUR_MANUAL_20261130_120000_000.DB", ""),
    "as an older one": ("abathur_manual_20000101_000000_000.db", ""),
    "as one before a change": ("abathur_pre_repair_20300101_000000_000.db", ""),
    "without a suffix": ("x", ""),
    "not UTF-8": ("x\udcff.db", ""),
    "each by itself": ("before.db", "before.manifest.json"),
    "with a suffix": ("x.db.bak", "x.db.manifest.json.bak"),
}
SPOILT: dict[str, Callable[[Backup], object]] = {
    "a manifest that is cut": _cut,
    "a manifest of another shape": lambda newer: rewritten(newer, content=[]),
    "a manifest of another file": lambda newer: rewritten(newer, file="abathur_x_20260101_000000_000.db"),
    "a manifest of a newer format": lambda newer: rewritten(newer, format=2),
    "no manifest": lambda newer: newer.manifest.unlink(),
    "a manifest alone": lambda newer: newer.path.unlink(),
    "a newer schema": lambda newer: rewritten(newer, user_version=99),
    "another application": lambda newer: rewritten(newer, application_id=7),
    "damaged pages": lambda newer: rewritten(
        newer, proof={"restored_s": 1, "validated_s": 1, "findings": ["integrity", "values"]}
    ),
    "other bytes": _flip,
    "a failed proof": lambda newer: rewritten(newer, content={**newer.facts["content"], "digest": "0" * 64}),
}


async def refused_until_named(database: Settings, older: Backup, newer: Path, *, known: bool = True) -> None:
    """Assert that nothing is chosen, that the newer one is named and why, and that the older one can be named."""
    for drill, apply in ((False, False), (True, False), (False, True)):
        with untouched(database.db_path):
            report = await nb.restore_database(database, drill=drill, apply=apply)
        assert report.refused
        failed = next(check for check in report.checks if check.failed)
        assert newer.name in failed.observed
        assert failed.remedy
        if known:  # by its manifest, and not only once its bytes are read
            assert older.path.name in failed.observed
        assert f"-p backup {older.path.name}" in failed.remedy
    assert (await nb.restore_database(database, backup=older.path.name)).ok
    assert (await nb.roll_back(database, to=older.path.name)).ok


@pytest.mark.parametrize("change", SERVES_NOT)
async def test_a_newer_one_that_the_store_would_not_open_is_named_and_the_older_one_wants_a_name(
    change: str, database: Settings
) -> None:
    older = await taken(database)
    run_sql(database.db_path, *SERVES_NOT[change])
    newer = await taken(database)
    await refused_until_named(database, older, newer.path)
    assert await last_backup(database) == older.taken_at.timestamp()
    assert "does not serve" in nb.show_backups(database)["its database"].iloc[0]
    assert not (await nb.restore_database(database, backup=newer.path.name)).refused, "it can be named as well"


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_newer_one_that_was_spoilt_is_named_and_the_older_one_wants_a_name(
    spoil: str, database: Settings
) -> None:
    older, newer = await taken(database), await taken(database)
    SPOILT[spoil](newer)
    known = spoil not in ("other bytes", "a failed proof")
    await refused_until_named(database, older, newer.path, known=known)
    if known:
        assert await last_backup(database) == older.taken_at.timestamp()


@pytest.mark.parametrize("name", RENAMED)
async def test_a_newer_one_that_was_renamed_counts_by_its_manifest(name: str, database: Settings) -> None:
    older, newer = await taken(database), await taken(database)
    path, manifest = RENAMED[name]
    _renamed(path, manifest)(newer)
    renamed = newer.path.with_name(path)
    told = printable(manifest.replace(".manifest.json", "") or path)
    await refused_until_named(database, older, Path(told))
    plan = await nb.restore_database(database)
    assert (f"; newer, and taken by its name only: -p backup {printable(quote(path))}" in str(plan)) != bool(manifest)
    assert told in nb.show_backups(database).index
    named = await nb.restore_database(database, backup=renamed)
    assert (named.refused, named.ok) == (bool(manifest), not manifest)
    assert manifest or "its manifest is of" in str(named)
    (await nb.backup_database(database, keep=ONE)).raise_for_failures()
    assert renamed.exists(), "what was renamed is kept by hand"
    assert list_backups(database.backup_dir)[0][-1].facts["sequence"] == 3
    assert (await nb.restore_database(database)).ok, "it is older now"


@pytest.mark.parametrize("name", [name for name in RENAMED if not name.startswith("as ")])
async def test_a_renamed_one_whose_manifest_is_damaged_is_named_as_perhaps_newer(name: str, database: Settings) -> None:
    older, newer = await taken(database), await taken(database)
    _cut(newer)
    _renamed(*RENAMED[name])(newer)
    report = await nb.restore_database(database)
    chosen = next(check for check in report.checks if check.id == "backup")
    assert (chosen.status, older.path.name in chosen.observed) == ("warn", True)
    assert printable(RENAMED[name][1] or f"{RENAMED[name][0]}.manifest.json") in chosen.observed
    assert "may be newer" in chosen.observed
    older.path.unlink()
    assert printable(RENAMED[name][1] or RENAMED[name][0]) in str(await nb.restore_database(database)), (
        "of none as well"
    )


async def test_where_the_newest_is_damaged_the_newest_that_is_whole_is_named(database: Settings) -> None:
    first, second, third, kept, newest = [
        await taken(database, reason=reason) for reason in ("a", "b", "c", "pre_repair", "d")
    ]
    for damaged in (third, newest):
        _flip(damaged)
    for given in (None, newest.path.name):
        failed = next(check for check in (await nb.restore_database(database, backup=given)).checks if check.failed)
        assert newest.path.name in failed.observed
        assert failed.remedy.endswith(f"-p backup {second.path.name}")
    for damaged in (first, second):
        _flip(damaged)
    failed = next(check for check in (await nb.restore_database(database)).checks if check.failed)
    assert failed.remedy == "choose another backup"
    assert (await nb.restore_database(database, backup=kept.path.name)).ok


async def test_a_copy_of_the_newest_under_another_name_is_none_that_is_passed_over(database: Settings) -> None:
    newest = await taken(database)
    for name in ("a.db", "z.db"):
        shutil.copy(newest.path, newest.path.with_name(name))
        shutil.copy(newest.manifest, newest.path.with_name(f"{name}.manifest.json"))
    newest.path.with_name("other.manifest.json").write_text("{}")
    report = await nb.restore_database(database)
    assert [check.status for check in report.checks if check.id == "backup"] == ["pass"]


@pytest.mark.parametrize("spoil", SPOILT)
async def test_an_older_one_that_was_spoilt_is_none_of_a_restoration_s_business(spoil: str, database: Settings) -> None:
    older, newer = await taken(database), await taken(database)
    SPOILT[spoil](older)
    report = await nb.restore_database(database)
    assert report.ok
    assert newer.path.name in next(check.observed for check in report.checks if check.name == "backup")


async def test_with_none_that_serves_each_is_named_with_what_is_wrong(database: Settings) -> None:
    run_sql(database.db_path, "DROP INDEX idx_audit_task")
    newer = await taken(database)
    with pytest.raises(nb.ChecksFailedError, match=rf"{newer.path.name}: its database failed indexes"):
        (await nb.restore_database(database)).raise_for_failures()


@pytest.mark.parametrize("older", [True, False], ids=["an older one", "no other"])
async def test_where_the_newest_cannot_serve_what_a_change_kept_is_named_as_well(
    older: bool, database: Settings
) -> None:
    first = await taken(database) if older else None
    spoilt, kept = await taken(database), await taken(database, reason="pre_repair")
    _cut(spoilt)
    failed = next(check for check in (await nb.restore_database(database)).checks if check.failed)
    named = re.findall(r"-p backup (\S+?)(?=;|$)", failed.remedy)
    assert named == [first.path.name, kept.path.name] if first else [kept.path.name]
    for name in named:
        assert (await nb.restore_database(database, backup=name)).ok


async def test_what_was_taken_before_a_change_is_named_and_left(database: Settings) -> None:
    usual, before = await taken(database), await taken(database, reason="pre_rollback")
    report = await nb.restore_database(database)
    chosen = next(check for check in report.checks if check.name == "backup")
    assert report.ok
    assert chosen.status == "warn"
    assert usual.path.name in chosen.observed
    assert f"{before.path.name} is newer" in chosen.observed
    assert await last_backup(database) == usual.taken_at.timestamp()


async def test_another_database_of_the_environment_is_taken_only_where_there_is_none_of_this_one(
    database: Settings, tmp_path: Path
) -> None:
    other = nb.resolve("development", db_path=tmp_path / "other" / "abathur.db", backup_dir=database.backup_dir)
    (await nb.initialize_database(other)).raise_for_failures()
    own, newer = await taken(database), await taken(other)
    for settings, wanted in ((database, own), (other, newer), (replace(other, db_path=tmp_path / "moved.db"), newer)):
        report = await nb.restore_database(settings)
        chosen = next(check for check in report.checks if check.name == "backup")
        assert wanted.path.name in chosen.observed
        assert chosen.status == ("warn" if settings.db_path.name == "moved.db" else "pass")


# --- the clock


@pytest.mark.parametrize("before", [False, True], ids=["a sequence", "manifests of before"])
@pytest.mark.parametrize("days", [365, -20_000])
async def test_no_clock_that_was_wrong_turns_the_order_or_takes_what_a_run_made(
    days: int, before: bool, database: Settings
) -> None:
    for number in range(3):
        found = redated(await taken(database), timedelta(days=days + number))
        if before:
            as_before(found)
    for keep in (nb.Retention(last=3, daily=0, weekly=0, monthly=0), ONE, nb.Retention(0, 1, 1, 1)):
        report = await nb.backup_database(database, keep=keep)
        assert report.ok
        (made,) = {Path(check.observed.split(",")[0]) for check in report.checks if check.name == "copy"}
        assert made.exists()
        assert list_backups(database.backup_dir)[0][-1].path == made
        restoration = await nb.restore_database(database)
        chosen = next(check for check in restoration.checks if check.name == "backup")
        assert str(made) in chosen.observed
        assert chosen.status == "pass"
    assert await last_backup(database) == read_backup(made).taken_at.timestamp()


async def test_a_backup_of_the_future_is_a_finding_wherever_its_age_is_judged(database: Settings) -> None:
    await taken(database)
    found = redated(await taken(database, reason="ahead"), timedelta(minutes=10))
    restoration = await nb.restore_database(database)
    chosen = next(check for check in restoration.checks if check.name == "backup")
    assert (chosen.status, found.path.name in chosen.observed) == ("warn", True)
    assert "in the future" in chosen.observed
    assert "taken in the future" in nb.show_backups(database)["its database"].iloc[0]
    alert = next(c for c in (await nb.monitor(database)).report.checks if c.name == "age of the last proven backup")
    assert alert.status == "warn"
    report = await nb.backup_database(database)
    (clock,) = (check for check in report.checks if check.name == "clock")
    assert (clock.status, found.path.name in clock.observed) == ("warn", True)
    redated(found, timedelta(minutes=4))
    (clock,) = (check for check in (await nb.backup_database(database)).checks if check.name == "clock")
    assert clock.status == "pass", "two machines may differ by some minutes"


async def test_a_run_keeps_what_it_made_though_another_made_a_newer_one_meanwhile(database: Settings) -> None:
    older, made, newer = [await taken(database) for _ in range(3)]
    assert {check.name for check in apply_retention(database, ONE, made)} == {"retention", "clock", "leftovers"}
    assert [path.exists() for path in (older.path, made.path, newer.path)] == [False, True, True]


async def test_each_gets_a_number_of_its_own_at_once_and_after_the_last_one(database: Settings) -> None:
    await asyncio.gather(*(nb.backup_database(database) for _ in range(4)))
    found = list_backups(database.backup_dir)[0]
    assert [backup.facts["sequence"] for backup in found] == [1, 2, 3, 4]
    rewritten(found[0], sequence=2**63 - 1)
    assert (await nb.backup_database(database)).ok, "a manifest may claim the last number there is"


async def test_a_moment_with_an_offset_is_converted(database: Settings) -> None:
    found = await taken(database)
    rewritten(found, taken_at="2026-11-30T10:00:00+05:30")
    assert f"{read_backup(found.path).taken_at:%H:%M %Z}" == "04:30 UTC"
    assert nb.show_backups(database)["taken at"].iloc[0] == "2026-11-30 04:30:00.000"


async def test_manifests_of_before_serve_and_are_shown_as_older(database: Settings) -> None:
    for compress in (False, True):
        as_before(await taken(database, compress=compress))
        (await nb.restore_database(database, drill=True)).raise_for_failures()
    assert all("older manifest" in told for told in nb.show_backups(database)["its database"])


# --- one bad file costs that file


async def test_a_manifest_of_any_other_shape_costs_its_own_backup_alone(database: Settings) -> None:
    bad, good = await taken(database), await taken(database)
    facts, refused = unsealed(bad.manifest.read_bytes()), 0
    for what, changed in reshaped(facts):
        bad.manifest.write_bytes(sealed(changed))
        found, faults = list_backups(database.backup_dir)
        assert good.path in [backup.path for backup in found], what
        assert set(faults) | {backup.path.name for backup in found} == {bad.path.name, good.path.name}, what
        nb.show_backups(database).to_html().encode()
        with suppress(nb.RefusedError):  # where it is newer, and can't serve
            find_backup(database.backup_dir, None, database.env, database.db_path)
        if bad.path.name in faults:
            assert bad.manifest.name in faults[bad.path.name], what
            refused += 1
    assert refused > 200
    assert (await nb.restore_database(database)).ok


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
async def test_a_manifest_that_is_not_its_json_costs_its_own_backup_alone(content: bytes, database: Settings) -> None:
    bad, good = await taken(database), await taken(database)
    bad.manifest.write_bytes(content)
    found, faults = list_backups(database.backup_dir)
    assert ([backup.path for backup in found], list(faults)) == ([good.path], [bad.path.name])
    assert (await nb.restore_database(database)).ok
    assert (await nb.restore_database(database, backup=bad.path)).refused


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
async def test_what_is_not_a_file_costs_its_own_backup_alone(
    make: Callable[[Path], object], database: Settings
) -> None:
    bad, good = await taken(database), await taken(database)
    for path in (bad.manifest, bad.path):
        path.unlink()
        make(path)
        assert good.path in [backup.path for backup in list_backups(database.backup_dir)[0]]
        assert (await nb.restore_database(database)).ok
        assert (await nb.restore_database(database, backup=bad.path)).refused


# --- what a killed backup or expiry leaves


async def test_a_manifest_alone_is_swept_by_the_next_backup(database: Settings) -> None:
    gone, kept = await taken(database), await taken(database)
    gone.path.unlink()
    report = await nb.backup_database(database)
    report.raise_for_failures()
    assert not gone.manifest.exists()
    assert kept.manifest.exists()
    (leftovers,) = (check for check in report.checks if check.name == "leftovers")
    assert gone.manifest.name in leftovers.evidence[0]
    assert [check.name for check in report.checks if check.status == "warn"] == []


async def test_a_manifest_whose_backup_is_being_published_right_now_stays(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# --- the case that was seen: a replication tool's table


async def test_a_default_restoration_keeps_the_rows_of_after_the_table_of_a_replication_tool(
    database: Settings,
) -> None:
    await taken(database)
    run_sql(database.db_path, "CREATE TABLE _litestream_lock (id INTEGER)", MEMORY.replace("'k'", "'precious'"))
    await taken(database)
    (await nb.restore_database(database, apply=True)).raise_for_failures()
    with closing(sqlite3.connect(database.db_path)) as conn:
        found = conn.execute("SELECT count(*) FROM memory_entries WHERE key = 'precious'").fetchone()
    assert found == (1,)
    assert json.loads(list_backups(database.backup_dir)[0][0].manifest.read_text())["proof"]["findings"] == []


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
    assert newer.path.name in str(report)
    assert f"-p backup {older.path.name}" in str(report)


async def test_the_same_file_by_a_link_is_the_same_database(database: Settings) -> None:
    await taken(database)
    link = database.db_path.parent.with_name("link")
    link.symlink_to(database.db_path.parent.parent)
    by_link = replace(database, db_path=link / "data" / database.db_path.name)
    newer = await taken(by_link)
    report = await nb.restore_database(database)
    assert newer.path.name in next(check.observed for check in report.checks if check.name == "backup")
