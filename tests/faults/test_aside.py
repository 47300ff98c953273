"""A damaged file is replaced whole: going on after a kill takes nothing for old that is new, and loses nothing."""

from pathlib import Path

import pytest
from backup_helpers import content_of, taken
from damage import fingerprint, untouched
from hostile import BYTES, reshaped
from situations import gone

import abathur_nb as nb
from abathur_nb.backups.aside import complete, new_folder
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.canonical import sealed
from abathur_nb.store.target import journal_of


@pytest.fixture
def begun(database: Settings) -> Path:
    """Return the folder of a replacement whose journal is written, and nothing else is done."""
    folder = new_folder(database.db_path)
    (folder / "new.abathur.db").write_bytes(b"the new one")
    journal_of(database.db_path).write_bytes(sealed({"folder": folder.name}))
    for suffix in ("-wal", "-shm"):
        Path(f"{database.db_path}{suffix}").unlink(missing_ok=True)
    return folder


def test_killed_after_its_last_move_it_leaves_the_new_database(begun: Path, database: Settings) -> None:
    (begun / "new.abathur.db").unlink()
    (begun / "abathur.db").write_bytes(b"the old one")
    with untouched(database.db_path):
        complete(database.db_path)
    assert (begun / "abathur.db").read_bytes() == b"the old one"
    assert not journal_of(database.db_path).exists()


def test_what_took_the_name_meanwhile_is_left_and_refused(begun: Path, database: Settings) -> None:
    (begun / "abathur.db").write_bytes(b"the old one")
    with untouched(database.db_path), pytest.raises(nb.RefusedError, match="another file took the name"):
        complete(database.db_path)
    assert (begun / "abathur.db").read_bytes() == b"the old one"
    assert journal_of(database.db_path).exists()


def test_a_log_that_was_moved_is_kept_beside_one_that_was_made_since(begun: Path, database: Settings) -> None:
    (begun / "abathur.db-wal").write_bytes(b"rows")
    Path(f"{database.db_path}-wal").write_bytes(b"made since")
    old = database.db_path.read_bytes()
    complete(database.db_path)
    assert database.db_path.read_bytes() == b"the new one"
    kept = {path.name: path.read_bytes() for path in begun.iterdir()}
    assert kept == {"abathur.db": old, "abathur.db-wal": b"rows", "abathur.db-wal+": b"made since"}


@pytest.mark.parametrize("name", ["draft.db", "replacement.db"])
async def test_no_name_of_a_database_is_one_of_its_replacement_s_own(name: str, tmp_path: Path) -> None:
    settings = nb.resolve("development", db_path=tmp_path / "data" / name)
    (await nb.initialize_database(settings)).raise_for_failures()
    backup = await taken(settings)
    for suffix in ("-wal", "-shm"):
        Path(f"{settings.db_path}{suffix}").unlink(missing_ok=True)
    damaged = bytes(100) + settings.db_path.read_bytes()[100:]
    settings.db_path.write_bytes(damaged)
    (await nb.restore_database(settings, apply=True)).raise_for_failures()
    assert await content_of(settings) == backup.content
    ((folder,),) = [list(settings.db_path.parent.glob("abathur_aside_*"))]
    assert [path.read_bytes() for path in folder.iterdir()] == [damaged]


def test_a_journal_of_any_other_shape_is_refused_and_nothing_is_moved(begun: Path, database: Settings) -> None:
    journal = journal_of(database.db_path)
    spoilt = {what: sealed(data) for what, data in reshaped({"folder": begun.name})}
    spoilt |= BYTES | {
        name: sealed({"folder": name}) for name in ("..", "a/b", "abathur_aside_x", database.db_path.name)
    }
    before = {path: fingerprint(path) for path in database.db_path.parent.rglob("*") if path != journal}
    for what, content in spoilt.items():
        journal.write_bytes(content)
        with pytest.raises(nb.RefusedError) as caught:
            complete(database.db_path)
        assert str(journal) in caught.value.observed, what
        assert journal.read_bytes() == content
    assert {path: fingerprint(path) for path in database.db_path.parent.rglob("*") if path != journal} == before


@pytest.mark.parametrize(
    ("is_there", "content"),
    [(True, b"{}"), (True, None), (False, sealed({"folder": "abathur_aside_20260101_000000_000"}))],
)
async def test_a_journal_that_nobody_can_complete_is_moved_aside_and_the_database_usable(
    is_there: bool, content: bytes | None, database: Settings
) -> None:
    path, journal = database.db_path, journal_of(database.db_path)
    await taken(database)
    if content is None:
        journal.mkdir()
    else:
        journal.write_bytes(content)
    if not is_there:
        gone(database)
    for look in (nb.initialize_database, nb.validate_database, nb.restore_database):
        assert any("troubleshoot.ipynb" in check.remedy for check in (await look(database)).checks)
    plan = await nb.troubleshoot(database)
    assert not plan.refused
    with untouched(path):
        done = await nb.troubleshoot(database, repair=True)
    (aside,) = path.parent.glob("abathur_aside_*/*")
    assert aside.is_dir() if content is None else aside.read_bytes() == content
    assert done.ok is is_there
    if not is_there:
        assert "restore.ipynb" in done.checks[-1].remedy
        (await nb.restore_database(database, apply=True)).raise_for_failures()
    (await nb.validate_database(database)).raise_for_failures()
