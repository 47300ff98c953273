"""What test_validate and other tests share."""

from dataclasses import replace

from damage import untouched

from abathur_nb.config.settings import Settings
from abathur_nb.report import Check
from abathur_nb.runbook.validate import validate_database
from abathur_nb.store.target import repair_command

CHECKS = (
    *("application_id", "user_version", "encoding", "journal mode", "integrity", "foreign keys", "tables", "indexes"),
    *("other objects", "sequences", "seed memories", "names", "file modes", "file names", "WAL size"),
    *("JSON columns", "values", "required values", "timestamps", "moments", "readable text", "JSON limits"),
    *("session sizes", "log", "open files"),
)


async def validated(settings: Settings) -> dict[str, Check]:
    """Validate without a byte changed, and return the checks by name."""
    with untouched(settings.db_path):
        report = await validate_database(settings)
    assert not report.refused
    checks = {check.name: check for check in report.checks}
    assert tuple(checks) == CHECKS, "a check that is added or renamed stands in CHECKS above, in its order"
    for name, check in checks.items():
        # What troubleshoot does not repair, it is not named for.
        if check.failed and check.id not in ("other_objects", "values", "required_values", "timestamps", "moments"):
            first = f"to see why, and how to repair it: {repair_command(settings)}"
            assert check.remedy.startswith(first)
            by_hand = check.remedy.removeprefix(first).removeprefix("; by hand: ")
            checks[name] = replace(check, remedy=by_hand or repair_command(settings))
        assert check.expected
        assert check.observed
        assert bool(check.remedy) == (check.status in ("fail", "error", "warn"))
    return checks


def failing(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.failed}
