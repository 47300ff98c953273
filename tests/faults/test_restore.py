"""The old state or the new one is there at every moment, what was there before is kept, nothing unproven is taken."""

import hashlib
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import zstandard
from backup_helpers import ADD, content_of, taken
from damage import MEMORY, flip_bits, held, query, run_sql, untouched
from forms import made
from hostile import BYTES, reshaped
from manifests import as_before, rewritten
from mounting import tmpfs
from sampling import sampled
from situations import VERBS, begun, gone, instead, stale, tree, without_side_files
from troubleshoot_helpers import check_of

import abathur_nb as nb
from abathur_nb.backups.aside import complete, new_folder
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed
from abathur_nb.report import Report
from abathur_nb.store.target import journal_of
from abathur_nb.text import MB


def observed(report: Report) -> str:
    return "\n".join(check.observed for check in report.checks)


def overwrite(settings: Settings, place: int, content: bytes) -> None:
    without_side_files(settings.db_path)
    with settings.db_path.open("r+b") as file:
        file.seek(place)
        file.write(content)


destroy_header = partial(overwrite, place=0, content=bytes(100))


@pytest.fixture
async def backup(database: Settings) -> Backup:
    """Return a backup of a database that was written to since."""
    found = await taken(database)
    run_sql(database.db_path, ADD.replace("?", "'since'"))
    return found


@pytest.mark.usefixtures("backup")
async def test_a_damaged_header_is_named_once(database: Settings) -> None:
    overwrite(database, 18, b"\x09")
    (found,) = (c for c in (await nb.restore_database(database)).checks if c.id == "existing_database")
    assert found.observed == f"{database.db_path} is CORRUPT: its header has the write version 9"


@pytest.mark.usefixtures("backup")
async def test_two_directories_on_one_disk_share_its_room(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 3 * database.db_path.stat().st_size / MB  # enough for each directory, not for both
    monkeypatch.setattr("abathur_nb.backups.replacement.free_mb", lambda _: room)
    report = await nb.restore_database(database)
    assert [check.status for check in report.checks if check.id == "room"] == ["fail", "fail"]


async def test_an_open_reader_keeps_its_snapshot(database: Settings, backup: Backup) -> None:
    with untouched(database.db_path):
        report = await nb.restore_database(database)
        drill = await nb.restore_database(database, drill=True)
    drill.raise_for_failures()
    assert [check.name for check in drill.checks] == ["backup", "RPO", "existing database", "drill", "RTO"]
    assert not list(database.db_path.parent.glob(".abathur-*"))
    assert (report.ok, report.title) == (True, "restore (plan)")
    assert backup.path.name in observed(report)
    assert "sqlite_" not in observed(report), "SQLite's own table"
    count = "SELECT count(*) FROM memory_entries"
    with closing(sqlite3.connect(database.db_path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute(count).fetchone() == (4,)
        for _ in range(2):  # the copy that is made for safety is never taken unasked
            (await nb.restore_database(database, apply=True)).raise_for_failures()
        assert reader.execute(count).fetchone() == (4,)
        reader.execute("COMMIT")
        assert reader.execute(count).fetchone() == (3,)
    assert await content_of(database) == backup.content
    kept = list_backups(database.backup_dir)[0][1]
    assert kept.before_a_change
    assert kept.content.rows["memory_entries"] == 4


def contents(path: Path, pattern: str) -> list[bytes]:
    """Return what is in the files beside a database; SQLite may leave an empty log and a -shm after a read."""
    found = [file for file in sorted(path.parent.glob(pattern)) if not file.name.endswith("-shm")]
    return [content for file in found if (content := file.read_bytes())]


Change = Callable[[Settings], None]
STATES: dict[str, Change] = {
    "absent": gone,
    "corrupt": partial(overwrite, place=5000, content=b"x" * 100_000),
    "no header": destroy_header,
    "empty": instead(Path.touch),
    "log alone": stale,
}


@pytest.mark.parametrize("state", STATES)
async def test_whatever_was_there_is_replaced_and_kept(state: str, database: Settings, backup: Backup) -> None:
    path = database.db_path
    without_side_files(path)
    STATES[state](database)
    before = contents(path, "abathur.db*")
    (await nb.restore_database(database, apply=True)).raise_for_failures()
    assert await content_of(database) == backup.content
    assert path.stat().st_mode & 0o777 == 0o600
    assert contents(path, "abathur_aside_*/*") == before
    assert not journal_of(path).exists()


async def test_a_damaged_or_foreign_backup_is_refused(database: Settings, backup: Backup, tmp_path: Path) -> None:
    copy, other = tmp_path / backup.path.name, replace(database, env="qa")
    copy.write_bytes(backup.path.read_bytes()[:-1])
    wrong = ((copy, "no manifest"), (copy, "damaged"), ("nothing.db", ""), (tmp_path, ""))
    for given, settings, words in (
        *((given, database, words) for given, words in wrong),
        (backup.path, other, "is a backup of development, not of qa"),
    ):
        with untouched(database.db_path):
            report = await nb.restore_database(settings, backup=given, apply=True)
        assert report.refused
        assert words in observed(report)
        shutil.copy(backup.manifest, tmp_path)
    assert (await nb.restore_database(other, backup=backup.path, from_env="development")).ok


@pytest.mark.usefixtures("backup")
async def test_where_it_must_be_confirmed_only_the_hash_of_this_very_plan_will_do(database: Settings) -> None:
    strict = replace(database, confirm_changes=True)
    plan = await nb.restore_database(strict)
    digits = check_of(plan, "plan").observed.split()[1]
    with untouched(database.db_path):
        for confirm in (None, "", "0" * 16):
            assert (await nb.restore_database(strict, apply=True, confirm=confirm)).refused
        assert (await nb.roll_back(strict, to="fresh", apply=True, confirm=digits)).refused, "another plan"
    (await nb.restore_database(strict, apply=True, confirm=digits)).raise_for_failures()


async def test_a_fresh_start_keeps_what_was_there_as_a_proven_backup(database: Settings) -> None:
    run_sql(database.db_path, ADD.replace("?", "'k'"))
    before = await content_of(database)
    (await nb.roll_back(database, to="fresh", apply=True)).raise_for_failures()
    assert (await content_of(database)).rows["memory_entries"] == 3
    (kept,) = list_backups(database.backup_dir)[0]
    assert (kept.content, kept.facts["reason"]) == (before, "pre_rollback")
    (await nb.roll_back(database, to=kept.path.name, apply=True)).raise_for_failures()
    assert await content_of(database) == before


@pytest.mark.parametrize("state", [gone, instead(Path.touch), stale, instead(lambda path: path.write_text("a text"))])
async def test_there_is_no_rollback_without_a_database(state: Change, database: Settings, backup: Backup) -> None:
    state(database)
    typo = replace(database, db_path=database.db_path.parent / "typo" / "abathur.db")
    before = tree(database.db_path.parent)
    for settings, to in product((database, typo), ("fresh", str(backup.path))):
        report = await nb.roll_back(settings, to=to, apply=True)
        assert report.refused
        assert [check.name for check in report.checks] == ["database file"]
    assert tree(database.db_path.parent) == before


async def test_what_to_roll_back_to_must_be_named_and_the_commands_for_it_are_shown(database: Settings) -> None:
    nothing: tuple[Any, ...] = ("", 7)
    wrong: tuple[Any, ...] = ({"apply": "yes"}, {"confirm": 7}, {"drill": 1}, {"drill": True, "apply": True})
    with untouched(database.db_path):
        for to in nothing:
            with pytest.raises(nb.ConfigurationError, match="to: expected 'fresh' or a backup"):
                await nb.roll_back(database, to=to, apply=True)
        for arguments in wrong:
            with pytest.raises(nb.ConfigurationError):
                await nb.restore_database(database, **arguments)
    for number in (1, 2):
        with pytest.raises(nb.ConfigurationError) as raised:
            await nb.roll_back(database, to=None)
        told = rf"{re.escape(shlex.join(database.command('rollback')))} -p to ([^;\s]+)"
        given = re.findall(told, str(raised.value))
        assert len(given) == number
        for to in given:
            assert (await nb.roll_back(database, to=to)).ok
        (await nb.backup_database(database)).raise_for_failures()


async def test_an_approved_plan_completes_a_begun_replacement(database: Settings, backup: Backup) -> None:
    begun(database)
    (folder,) = database.db_path.parent.glob("abathur_aside_*")
    strict = replace(database, confirm_changes=True)
    old = database.db_path.read_bytes()
    steps = check_of(await nb.roll_back(strict, to="fresh"), "plan").observed
    assert f"1. complete the unfinished replacement of {database.db_path} in {folder}" in steps
    assert journal_of(database.db_path).exists()
    report = await nb.roll_back(strict, to="fresh", apply=True, confirm=steps.split()[1])
    report.raise_for_failures()
    assert not journal_of(database.db_path).exists()
    assert (folder / database.db_path.name).read_bytes() == old
    # What was to be put there before is what was there before when the rollback came.
    assert list_backups(database.backup_dir)[0][-1].content == backup.content
    assert (await content_of(database)).rows["memory_entries"] == 3


@pytest.mark.parametrize(("left", "failing"), [(False, 2), (False, 6), (True, 1), (True, 4)])
async def test_what_an_error_of_the_disk_stops_is_refused_only_if_nothing_has_moved(
    left: bool, failing: int, database: Settings, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``left``, a begun replacement is to be completed; without, a damaged database to be replaced."""
    begun(database) if left else flip_bits(database.db_path, 3 * 4096)
    before, calls = tree(database.db_path.parent), iter(range(1, 99))

    def force(path: Path) -> None:
        if next(calls) == failing:
            raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("abathur_nb.backups.aside.fsync", force)
    report = await nb.restore_database(database, backup=backup.path, apply=True)
    assert not report.ok
    assert report.refused is (tree(database.db_path.parent) == before) is (failing == 2)


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
        assert query(settings.db_path, "PRAGMA integrity_check") == [("ok",)]
    return report.ok


# What was done to it, or what another process does; whether it can then be written into, and moved aside.
CONDITIONS: dict[str, tuple[Callable[[Path], object] | tuple[str, ...], bool, bool]] = {
    "0400": (partial(Path.chmod, mode=0o400), False, True),
    "0644": (partial(Path.chmod, mode=0o644), False, True),
    "0777, of the directory": (lambda path: path.parent.chmod(0o777), False, False),
    "another owner": (lambda path: shutil.chown(path, 65534), False, True),
    "nobody": ((), True, True),
    "an idle connection": (("SELECT count(*) FROM tasks",), True, False),
    "a reader": (("BEGIN", "SELECT count(*) FROM tasks"), True, False),
    "a writer": (("BEGIN IMMEDIATE",), False, False),
}
_KEPT = zip(CONDITIONS, (4096, 8192, 8192, 4096, 8192, 8192, 4096, 4096), strict=True)


@pytest.mark.parametrize("at", sampled(product(CONDITIONS, SIZES), *_KEPT), ids=str)
async def test_a_drill_judges_who_may_use_it_or_does(at: tuple[str, int], database: Settings, tmp_path: Path) -> None:
    (condition, size), backup = at, await taken(database)
    settings = replace(await made(tmp_path / "live" / "abathur.db", page_size=size), busy_timeout_ms=200)
    done, in_place, aside = CONDITIONS[condition]
    users: AbstractContextManager[Any] = nullcontext()
    if callable(done):
        done(settings.db_path)
    elif done:
        users = held(settings.db_path, *done)
    with users as process:
        works = await agree(settings, backup)
        assert works == (in_place if size == 4096 else aside)
        if process and not works:
            report = await nb.restore_database(settings, backup=backup.path, drill=True)
            assert f"PID {process.pid} (" in str(report)
    # A file that is replaced leaves its mode behind, and its directory does not.
    assert await agree(settings, backup) == (works or process is not None), "once nobody is in the way"


MIB = 2**20
HUGE = 600 * MIB


@cache
def packed(size: int, start: bytes = b"") -> bytes:
    """Return a frame of zstd that unpacks to so many bytes, nearly all of them 0."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    pieces = [compressor.compress(start), *(compressor.compress(bytes(MIB)) for _ in range(size // MIB))]
    return b"".join([*pieces, compressor.compress(bytes(size % MIB)), compressor.flush()])


def planted(backup: Backup, content: bytes, **facts: object) -> None:
    """Put other bytes in the place of a backup, with a manifest that is right about their hash and size."""
    backup.path.write_bytes(content)
    rewritten(backup, bytes=len(content), sha256_of_file=hashlib.sha256(content).hexdigest(), **facts)


MAGIC = b"SQLite format 3\0"
# What is in the file, what the manifest says that it unpacks to (None: nothing, as before), the words of the refusal.
BOMBS: dict[str, tuple[Callable[[], bytes], int | None, str]] = {
    "a byte more than it says": (lambda: packed(200_001), 200_000, "unpack to more than 200,000"),
    "less than it says": (lambda: packed(200_000, MAGIC), 300_000, "can't be read"),
    "as much as it says, at no ratio of ours": (lambda: packed(HUGE), HUGE, "unpack to more than 268,435,456"),
    "much, and it does not say so": (lambda: packed(HUGE), None, "unpack to more than 268,435,456"),
    "two frames": (lambda: packed(100_000, MAGIC) + packed(8 * MIB), 200_000, "unpack to more than 200,000"),
    "no zstd": (lambda: b"x" * 5000, 200_000, "can't be unpacked"),
    "no database": (lambda: packed(200_000), 200_000, "file is not a database"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_what_unpacks_to_anything_else_is_refused(bomb: str, database: Settings) -> None:
    content, told, words = BOMBS[bomb]
    backup = await taken(database, compress=True)
    planted(backup, content(), bytes_unpacked=told or 0)
    if told is None:
        as_before(backup)
    before = tree(database.db_path.parent)
    for verb in ("plan of a restoration", "drill", "restore"):
        report = await VERBS[verb](database)
        assert report.refused
        failed = report.checks[-1]
        assert str(backup.path) in failed.observed
        assert words in failed.observed
        assert "another backup" in failed.remedy
        assert tree(database.db_path.parent) == before


async def test_unpacking_leaves_the_disk_some_room(database: Settings, tmp_path: Path) -> None:
    backup = await taken(database, compress=True)
    planted(backup, packed(100 * MIB, MAGIC), bytes_unpacked=0)
    as_before(backup)
    with tmpfs(tmp_path / "small", "size=80m") as small:
        settings = replace(database, db_path=small / "abathur.db", on_tmpfs="warn")
        report = await nb.restore_database(settings, backup=backup.path)
        assert report.refused
        assert str(backup.path) in report.checks[-1].observed
        assert "must stay free" in report.checks[-1].observed
        assert "df -h" in report.checks[-1].remedy
        assert list(small.iterdir()) == []


async def test_a_backup_that_packs_well_is_not_refused(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are lowered here, so that a small database passes them."""
    run_sql(database.db_path, MEMORY.replace("'{}'", "json_object('v', hex(zeroblob(4000000)))"))
    for ratio, suffix in ((1000, ".zst"), (10, ".db")):
        monkeypatch.setattr("abathur_nb.backups.taking._RATIO", ratio)
        monkeypatch.setattr("abathur_nb.backups.taking._ALWAYS", MIB)
        backup = await taken(database, compress=True)
        assert backup.path.suffix == suffix, "what packs too well is left as it is"
        assert backup.facts["bytes_unpacked"] > 8_000_000
        (await nb.restore_database(database, drill=True)).raise_for_failures()
    assert len(list_backups(database.backup_dir)[0]) == 2


async def test_without_zstd_no_compressed_backup_is_made(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    report = await nb.backup_database(database, compress=True)
    assert report.refused
    (failed,) = (check for check in report.checks if check.failed)
    assert failed.remedy == "pip install 'abathur_nb[zstd]'"
    assert not database.backup_dir.exists()


@pytest.fixture
def replacement(database: Settings) -> Path:
    """Return the folder of a replacement whose journal is written, and nothing else is done."""
    folder = new_folder(database.db_path)
    (folder / "new.abathur.db").write_bytes(b"the new one")
    journal_of(database.db_path).write_bytes(sealed({"folder": folder.name}))
    return folder


def test_killed_after_its_last_move_it_leaves_the_new_database(replacement: Path, database: Settings) -> None:
    (replacement / "new.abathur.db").unlink()
    (replacement / "abathur.db").write_bytes(b"the old one")
    with untouched(database.db_path):
        complete(database.db_path)
    assert (replacement / "abathur.db").read_bytes() == b"the old one"
    assert not journal_of(database.db_path).exists()


def test_what_took_the_name_meanwhile_is_left_and_refused(replacement: Path, database: Settings) -> None:
    (replacement / "abathur.db").write_bytes(b"the old one")
    with untouched(database.db_path), pytest.raises(nb.RefusedError, match="another file has taken the name"):
        complete(database.db_path)
    assert (replacement / "abathur.db").read_bytes() == b"the old one"
    assert journal_of(database.db_path).exists()


def test_a_log_that_was_moved_is_kept_beside_one_that_was_made_since(replacement: Path, database: Settings) -> None:
    (replacement / "abathur.db-wal").write_bytes(b"rows")
    Path(f"{database.db_path}-wal").write_bytes(b"made since")
    old = database.db_path.read_bytes()
    complete(database.db_path)
    assert database.db_path.read_bytes() == b"the new one"
    kept = {path.name: path.read_bytes() for path in replacement.iterdir()}
    assert kept == {"abathur.db": old, "abathur.db-wal": b"rows", "abathur.db-wal+": b"made since"}


def test_a_journal_of_any_other_shape_is_refused_and_nothing_is_moved(replacement: Path, database: Settings) -> None:
    journal = journal_of(database.db_path)
    spoilt = {what: sealed(data) for what, data in reshaped({"folder": replacement.name})}
    spoilt |= BYTES | {name: sealed({"folder": name}) for name in ("..", "a/b", "abathur_aside_x", "abathur.db")}
    journal.unlink()
    before = tree(database.db_path.parent)
    for what, content in spoilt.items():
        journal.write_bytes(content)
        with pytest.raises(nb.RefusedError) as caught:
            complete(database.db_path)
        assert str(journal) in caught.value.observed, what
        assert journal.read_bytes() == content
    journal.unlink()
    assert tree(database.db_path.parent) == before


@pytest.mark.parametrize(
    ("is_there", "content"),
    [(True, b"{}"), (True, None), (False, sealed({"folder": "abathur_aside_20260101_000000_000"}))],
)
async def test_a_useless_journal_is_left_and_the_command_named_that_moves_it(
    is_there: bool, content: bytes | None, database: Settings
) -> None:
    journal = journal_of(database.db_path)
    await taken(database)
    if content is None:
        journal.mkdir()
    else:
        journal.write_bytes(content)
    if not is_there:
        gone(database)
    for look in (nb.initialize_database, nb.validate_database):
        assert any("troubleshoot" in check.remedy for check in (await look(database)).checks)
    before = tree(database.db_path.parent)
    for refused in (await nb.restore_database(database, apply=True), await nb.troubleshoot(database, repair=True)):
        assert refused.refused
        command = refused.checks[-1].remedy.rpartition("; then ")[2]
    assert tree(database.db_path.parent) == before
    *_, source, target = shlex.split(command)
    Path(source).rename(target)
    if not is_there:
        (await nb.restore_database(database, apply=True)).raise_for_failures()
    (await nb.validate_database(database)).raise_for_failures()


_SUFFIXES = ("", "-wal", "-journal")
_MOVED: dict[str, Change] = {  # by verb: what makes it move the file aside
    **dict.fromkeys(("restore", "drill", "rollback", "fresh start"), destroy_header),
    **dict.fromkeys(("repair", "troubleshoot"), stale),
    "plan of a restoration": begun,
}


@contextmanager
def bound(file: Path) -> Iterator[None]:
    volume = Path(shutil.copy(file, file.parent.parent / "volume"))
    volume.chmod(0o600)
    subprocess.run(["mount", "--bind", volume, file], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", file], check=True)


@pytest.mark.parametrize(
    "at", sampled(product(_MOVED, _SUFFIXES), *zip(_MOVED, cycle(_SUFFIXES), strict=False)), ids=str
)
async def test_a_mounted_file_is_refused_before_any_move(at: tuple[str, str], database: Settings) -> None:
    verb, suffix = at
    await taken(database)
    _MOVED[verb](database)
    suffix = suffix or ("" if database.db_path.exists() else "-shm")
    file = Path(f"{database.db_path}{suffix}")
    file.touch()
    with bound(file):
        before = tree(database.db_path.parent)
        report = await VERBS[verb](database)
        assert tree(database.db_path.parent) == before
    assert not report.ok
    assert report.refused is (verb != "drill")
    (check,) = (check for check in report.checks if check.id == "mounted_files")
    assert check.status == "fail"
    assert str(file) in check.observed
    assert f"mount that at {file.parent}" in check.remedy


async def test_what_writes_in_place_goes_on_and_the_looks_warn(database: Settings) -> None:
    await taken(database)
    with bound(database.db_path):
        for verb in ("preflight", "validate", "drill", "restore", "fresh start"):
            report = await VERBS[verb](database)
            report.raise_for_failures()
            told = [check.status for check in report.checks if check.id == "mounted_files"]
            assert told == ["warn"] or verb not in ("preflight", "validate"), verb
