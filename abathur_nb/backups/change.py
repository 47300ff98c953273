"""The one way to change a database: find, plan, approve, back up, change, verify."""

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from abathur_nb.backups.aside import complete
from abathur_nb.backups.taking import back_up
from abathur_nb.config.parameters import Parameter
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.files import private_directory, sweep
from abathur_nb.health.checks import file_checks
from abathur_nb.report import Check, Report, Status
from abathur_nb.store.connection import explain_error
from abathur_nb.text import shown, url_fault

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Change:
    """Hold the findings before a change, its plan, and the function that carries it out.

    Without ``steps`` and ``begun`` there is nothing to do. ``do`` carries out the steps, and appends a check of each
    completed step to its argument.
    """

    checks: tuple[Check, ...]  # the findings
    action: str = ""
    steps: tuple[str, ...] = ()  # in words or SQL; the engine adds the backup and the validation
    facts: Mapping[str, str] = field(default_factory=dict)  # what the plan depends on
    do: "Callable[[list[Check]], Awaitable[None]] | None" = None
    forbidden: bool = False
    begun: str = ""  # the first step, which completes an unfinished replacement
    backup: str = ""  # the reason of the backup before the change; empty for no backup
    validates: bool = True  # False if no database is left to validate
    switch: str = "apply"  # the parameter that asks for the change
    pending: Status = "pass"  # status of a plan that is only shown
    past: Callable[[Iterable[Check]], Iterable[Check]] = tuple  # rewords the findings after the change
    judged: Callable[[Iterable[Check]], Iterable[Check]] = tuple  # rewords the checks of validate

    def approval(self, settings: Settings, *, apply: bool, confirm: str | None) -> Check:
        """Return the check that shows the plan; it fails if the plan is to be applied and is not approved.

        The plan's hash changes with any step, fact, database or environment.
        """
        path, needed = str(settings.db_path), settings.confirm_changes
        kept = f"back up {path} as abathur_{self.backup}_… in {settings.backup_dir}, and prove that backup"
        steps = [self.begun, kept if self.backup else "", *self.steps, f"validate {path}" if self.validates else ""]
        steps = [step for step in steps if step]
        whole = {"action": self.action, "env": settings.env, "database": path, "steps": steps, "facts": {**self.facts}}
        digits = sha256(canonical(whole))[:_DIGITS]
        approved = not apply or not needed or confirm == digits
        parameters = f"-p {self.switch} True" + (f" -p confirm {digits}" if needed else "")
        observed = "\n".join((f"hash {digits}", *(f"{n}. {step}" for n, step in enumerate(steps, 1))))
        if not apply:
            observed += f"\nonly shown, nothing changed; to carry it out, repeat your parameters and add: {parameters}"
        elif confirm is not None and not approved:
            observed += f"\nconfirm is {shown(confirm)}: this is the hash of another plan, or of older data"
        status = "fail" if not approved else "pass" if apply else self.pending
        expected = f"in {settings.env}, confirm is the hash of this plan" if needed else "the plan is shown first"
        remedy = "" if status == "pass" else f"read the steps; to carry them out: {parameters}"
        return Check("plan", status, expected, observed, remedy, data={"hash": digits, "steps": steps})


async def make_change(
    settings: Settings, title: str, finding: AbstractAsyncContextManager[Change], *, apply: bool, confirm: str | None
) -> Report:
    """Report the findings and the plan of a change; with ``apply``, make the change if the plan is approved.

    A refused change changes nothing. If a change fails halfway, the report shows the completed steps, then the error.
    """
    checks, past, done = tuple[Check, ...](), tuple[Check, ...](), list[Check]()
    subject, action = str(settings.db_path), title
    try:
        async with finding as change:
            checks = change.checks
            if not (change.steps or change.begun):
                return Report(title, checks, subject=subject, refused=change.forbidden)
            action = change.action
            title += "" if apply else " (plan)"
            approval = change.approval(settings, apply=apply, confirm=confirm)
            checks, past = (*checks, approval), (*change.past(checks), approval)
            if not apply or change.forbidden or approval.failed:
                return Report(title, checks, subject=subject, refused=change.forbidden or approval.failed)
            await carry_out(settings, change, done)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        observed = f"the steps above were done; then: {fault.observed}" if done else fault.observed
        failed = Check("change", "error", "every step of the plan, or none", observed, fault.remedy, name=action)
        return Report(title, (*(past if done else checks), *done, failed), subject=subject, refused=not done)
    return Report(title, (*past, *done), subject=subject)


async def carry_out(settings: Settings, change: Change, done: list[Check]) -> None:
    """Make a change; append to ``done`` a check of each completed step, then the checks of validate.

    Raises the errors of the change; if ``done`` is still empty, nothing has changed.
    """
    if change.do is None:
        return
    if change.begun:
        expected, names = "no unfinished replacement", _names_in(settings.db_path.parent)
        try:
            moved = ", ".join(map(str, complete(settings.db_path))) or "nothing"
        except OSError:
            if names != _names_in(settings.db_path.parent):  # something has changed: it is not refused
                observed = "the unfinished replacement may still be unfinished"
                done.append(Check("begun_before", "warn", expected, observed, "run this again"))
            raise
        observed = f"completed an unfinished replacement; moved aside: {moved}"
        done.append(Check("begun_before", "warn", expected, observed, "no action is needed"))
    with private_directory(settings.backup_dir, owned_as=settings.db_path.parent) if change.backup else nullcontext():
        backup, _ = await back_up(settings, reason=change.backup) if change.backup else (None, [])
        if backup:
            path = str(backup.path)
            done.append(Check("kept", "pass", "a proven backup", path, name="backup before", data={"path": path}))
        try:
            await change.do(done)
        except (sqlite3.Error, OSError, AbathurError) as error:
            # After an I/O error it is unknown whether the change was committed.
            unknown = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
            if backup and len(done) == 1 and not unknown:  # refused before its first step
                done.clear()
                backup.remove()
            raise
    for folder in dict.fromkeys((settings.db_path.parent, settings.backup_dir)):
        sweep(folder)
    if change.validates:
        done += change.judged(await file_checks(settings))


def _names_in(folder: Path) -> dict[str, int]:
    """Return the names in a directory, each with its inode."""
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def file_named(value: object) -> str:
    """Return the path that an argument gives; empty if it is not a path, or names no file, as `/`."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    return text if isinstance(text, str) and Path(os.path.expanduser(text)).name else ""


def check_arguments(
    *faults: str, confirm: object = None, file: tuple[str, object, str] | None = None, **switches: object
) -> None:
    """Raise ConfigurationError with ``faults`` and those of the arguments; ``file`` is a name, a value and a kind."""
    found = [*faults, *(Parameter(name, bool, False).fault(value) for name, value in switches.items())]
    found.append(Parameter("confirm", str, None).fault(confirm))
    if file and file[1] is not None:
        name, value, kind = file
        path = file_named(value)
        unnamed = f"{name}: expected the name or path of a {kind}, found {shown(value)}"
        found.append(url_fault(name, path) if path else unnamed)
    if any(found):
        raise ConfigurationError([*filter(None, found)])
