"""A compressed backup is unpacked within bounds, whatever its manifest says, and nothing of a refused one is left."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from backup_helpers import taken
from damage import fingerprint, run_sql, untouched
from manifests import as_before, rewritten

import abathur_nb as nb
from abathur_nb.backups.manifest import Backup, list_backups
from abathur_nb.config.settings import Settings

MIB = 2**20


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
BOMBS = {
    "a byte more than it says": (packed(200_001), 200_000, "unpack to more than 200,000"),
    "less than it says": (packed(200_000, MAGIC), 300_000, "of 300,000"),
    "as much as it says, at no ratio of ours": (packed(4096 * MIB), 4096 * MIB, "unpack to more than 268,435,456"),
    "much, and it does not say so": (packed(600 * MIB), None, "unpack to more than 268,435,456"),
    "much, and it says a number without end": (packed(600 * MIB), 2**63 - 1, "unpack to more than 268,435,456"),
    "two frames": (packed(100_000, MAGIC) + packed(8 * MIB), 200_000, "unpack to more than 200,000"),
    "no zstd": (b"x" * 5000, 200_000, "can't be unpacked"),
    "a frame that breaks off": (packed(8 * MIB)[:-50], 8 * MIB, "unpack"),
    "no database": (packed(200_000), 200_000, "not a SQLite database"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_what_unpacks_otherwise_than_a_backup_of_ours_is_refused_by_its_name(
    bomb: str, database: Settings
) -> None:
    content, told, words = BOMBS[bomb]
    backup = await taken(database, compress=True)
    planted(backup, content, bytes_unpacked=told or 0)
    if told is None:
        as_before(backup)
    before = {path: fingerprint(path) for path in database.db_path.parent.rglob("*")}
    for drill, apply in ((False, False), (True, False), (False, True)):
        with untouched(database.db_path):
            report = await nb.restore_database(database, drill=drill, apply=apply)
        assert report.refused
        failed = report.checks[-1]
        assert str(backup.path) in failed.observed
        assert words in failed.observed
        assert "another backup" in failed.remedy
        after = {path: fingerprint(path) for path in database.db_path.parent.rglob("*") if path.suffix != ".db-shm"}
        assert {path for path in after if after[path] != before.get(path) and path.is_file()} <= {
            Path(f"{database.db_path}-wal")
        }


async def test_it_leaves_the_disk_some_room_and_the_refusal_blames_the_backup(
    database: Settings, tmp_path: Path
) -> None:
    backup = await taken(database, compress=True)
    planted(backup, packed(100 * MIB, MAGIC), bytes_unpacked=0)
    as_before(backup)
    small = tmp_path / "small"
    small.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,mode=700", "tmpfs", small], check=True)  # noqa: ASYNC221
    try:
        settings = replace(database, db_path=small / "abathur.db", on_tmpfs="warn")
        report = await nb.restore_database(settings, backup=backup.path)
        assert report.refused
        assert str(backup.path) in report.checks[-1].observed
        assert "must stay free" in report.checks[-1].observed
        assert "df -h" in report.checks[-1].remedy
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # noqa: ASYNC221


async def test_a_backup_of_ours_is_never_refused_however_well_it_packs(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are lowered here, so that a small database passes them."""
    run_sql(
        database.db_path,
        "INSERT INTO memory_entries (namespace, key, value, memory_type) "
        "VALUES ('user:a', 'k', json_object('v', hex(zeroblob(4000000))), 'semantic')",
    )
    for ratio, suffix in ((1000, ".zst"), (10, ".db")):
        monkeypatch.setattr("abathur_nb.backups.taking._RATIO", ratio)
        monkeypatch.setattr("abathur_nb.backups.taking._ALWAYS", MIB)
        backup = await taken(database, compress=True)
        assert backup.path.suffix == suffix, "what packs too well is left as it is"
        assert backup.facts["bytes_unpacked"] > 8_000_000
        (await nb.restore_database(database, drill=True)).raise_for_failures()
    assert len(list_backups(database.backup_dir)[0]) == 2


async def test_without_zstd_a_compressed_backup_is_refused_before_it_is_made(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    report = await nb.backup_database(database, compress=True)
    assert report.refused
    (failed,) = (check for check in report.checks if check.failed)
    assert failed.remedy == "pip install 'abathur_nb[zstd]'"
    assert not database.backup_dir.exists()
