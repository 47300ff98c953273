"""The table of backups shows each file in the directory, and which of them is none."""

import abathur_nb as nb
from abathur_nb.config.settings import Settings


async def test_backups_stand_there_newest_first_with_what_they_hold(database: Settings) -> None:
    for reason in ("first", "second"):
        (await nb.backup_database(database, reason=reason)).raise_for_failures()
    found = nb.show_backups(database)
    assert list(found["reason"]) == ["second", "first"]
    assert list(found["rows"]) == [4, 4]  # three seeds, and their sequence
    assert set(found["its database"]) == {"sound"}
    assert set(found["environment"]) == {"development"}
    assert all(found["restored in"] > 0)
    assert [name.startswith("abathur_second_") for name in found.index] == [True, False]


async def test_a_file_that_is_no_backup_is_shown_as_one_that_is_none(database: Settings) -> None:
    (await nb.backup_database(database)).raise_for_failures()
    (manifest,) = database.backup_dir.glob("*.manifest.json")
    manifest.write_text("{}")
    (told,) = nb.show_backups(database)["its database"]
    assert "no backup" in told
    assert "damaged" in told


def test_where_there_is_no_directory_there_is_no_backup(database: Settings) -> None:
    assert len(nb.show_backups(database)) == 0
    assert not database.backup_dir.exists()
