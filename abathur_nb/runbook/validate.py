"""Validate: whether a database is sound, is ours, and holds what it must (the runbook's sections 2.7 and 4)."""

from abathur_nb.config.settings import Settings
from abathur_nb.health.checks import file_checks
from abathur_nb.health.objects import OTHERS
from abathur_nb.report import Report
from abathur_nb.store.target import refusal, to_be_repaired

# What troubleshoot does not repair: what is not ours, and values of which only a person knows the right one.
_BY_HAND = (OTHERS, "open_files", "values", "required_values", "timestamps", "moments")


async def validate_database(settings: Settings) -> Report:
    """Report whether the database is sound, ours, complete and well-filled. Read-only.

    All checks see one snapshot; each tells what it expected and observed. SQLite may leave an empty ``-wal`` and a
    ``-shm`` beside the file.
    """
    report = await refusal("validate", settings)
    if report:
        return report
    words = tuple(
        c if c.id in _BY_HAND else to_be_repaired(c, settings) for c in await file_checks(settings, unrepaired="")
    )
    return Report("validate", words, subject=str(settings.db_path))
