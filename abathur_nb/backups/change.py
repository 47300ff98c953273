"""The one way to change a database: find, plan, approve, back up, change, verify."""

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from abathur_nb.backups.aside import complete
from abathur_nb.backups.taking import kept_before
from abathur_nb.config.settings import Settings
from abathur_nb.errors import AbathurError, ConfigurationError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.files import sweep
from abathur_nb.health.checks import file_checks
from abathur_nb.report import Check, Report, Status
from abathur_nb.store.connection import explain_error
from abathur_nb.text import shown, url_fault

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the steps of a change, in the order in which they are done, and what they depend on (``facts``).

    ``switch`` is the parameter that asks for them to be done, ``pending`` the status of a plan that is only shown.
    """

    action: str
    settings: Settings
    steps: tuple[str, ...]
    facts: Mapping[str, str]
    switch: str = "apply"
    pending: Status = "pass"

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that are others for any other step, fact, database or environment."""
        whole = {
            "action": self.action,
            "env": self.settings.env,
            "database": str(self.settings.db_path),
            "steps": list(self.steps),
            "facts": dict(self.facts),
        }
        return sha256(canonical(whole))[:_DIGITS]

    @property
    def parameters(self) -> str:
        """The parameters that carry the plan out."""
        return f"-p {self.switch} True" + (f" -p confirm {self.hash}" if self.settings.confirm_changes else "")

    @property
    def remedy(self) -> str:
        """What to do about a plan that is not carried out yet."""
        return f"read the steps; to carry them out: {self.parameters}"

    def approval(self, *, apply: bool, confirm: str | None) -> Check:
        """Return the check that shows the plan, and fails where it is to be applied without being approved."""
        needed = self.settings.confirm_changes
        approved = not apply or not needed or confirm == self.hash
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(self.steps, 1))
        observed = f"hash {self.hash}\n{steps}"
        if not apply:
            observed += (
                f"\nonly shown, nothing is changed; to carry it out, add to the same parameters: {self.parameters}"
            )
        elif needed and confirm is not None and not approved:
            observed += f"\nconfirm is {shown(confirm)}: another plan was approved, or things have changed since"
        status = "fail" if not approved else "pass" if apply else self.pending
        expected = f"in {self.settings.env} confirm is the hash of this very plan" if needed else "it is shown first"
        data = {"hash": self.hash, "steps": self.steps}
        return Check("plan", status, expected, observed, "" if status == "pass" else self.remedy, data=data)


def _as_is(checks: Iterable[Check]) -> Iterable[Check]:
    return checks


@dataclass(frozen=True, slots=True)
class Change:
    """Hold what a change finds before it is made, and how it is made.

    ``checks`` is what was found; ``plan`` is None where nothing is to be done; ``forbidden`` says that it must not be
    done. ``do`` carries the plan out: it adds a check of each step to the list that it is given, once the step is
    done, and calls ``committed`` when a transaction is. ``begun`` says that a replacement which was killed is completed
    first; ``backup`` is the reason of the backup that is taken before, if one is. ``validates`` is False where no
    database is left to validate. ``past`` turns what was found into what had been found, ``judged`` what validate says.
    """

    checks: tuple[Check, ...]
    plan: Plan | None = None
    do: "Callable[[list[Check], Callable[[], object]], Awaitable[None]] | None" = None
    forbidden: bool = False
    begun: bool = False
    backup: str = ""
    validates: bool = True
    past: Callable[[Iterable[Check]], Iterable[Check]] = _as_is
    judged: Callable[[Iterable[Check]], Iterable[Check]] = _as_is


async def make_change(
    settings: Settings,
    title: str,
    finding: AbstractAsyncContextManager[Change],
    *,
    apply: bool,
    confirm: str | None,
) -> Report:
    """Show what is found and the plan of the change; with ``apply``, once the plan is approved, make it.

    What is refused has changed nothing. What fails halfway is reported behind the steps that were done.
    """
    checks, past, done = tuple[Check, ...](), tuple[Check, ...](), list[Check]()
    subject, action = str(settings.db_path), title
    try:
        async with finding as change:
            checks = change.checks
            if change.plan is None:
                return Report(title, checks, subject=subject, refused=change.forbidden)
            action = change.plan.action
            title += "" if apply else " (plan)"
            approval = change.plan.approval(apply=apply, confirm=confirm)
            if not apply or change.forbidden or approval.failed:
                refused = change.forbidden or approval.failed
                return Report(title, (*checks, approval), subject=subject, refused=refused)
            checks, past = (*checks, approval), (*change.past(checks), approval)
            await carry_out(settings, change, done)
    except (sqlite3.Error, OSError, AbathurError) as error:
        fault = explain_error(settings.db_path, error)
        checks, observed = (
            (past, f"the steps above were done; then: {fault.observed}") if done else (checks, fault.observed)
        )
        done.append(Check("change", "error", "the whole plan, or nothing of it", observed, fault.remedy, name=action))
        return Report(title, (*checks, *done), subject=subject, refused=len(done) == 1)
    return Report(title, (*past, *done), subject=subject)


async def carry_out(settings: Settings, change: Change, done: list[Check]) -> None:
    """Make a change, and add to ``done`` a check of each step once it is done, then those of validate.

    Raises what the change raises: with nothing in ``done`` nothing has changed.
    """
    if change.do is None:
        return
    if change.begun:
        done.append(finish_begun(settings))
    if change.backup:
        async with kept_before(settings, change.backup, done) as committed:
            await change.do(done, committed)
    else:
        await change.do(done, lambda: None)
    for folder in dict.fromkeys((settings.db_path.parent, settings.backup_dir)):
        sweep(folder)
    if change.validates:
        done += change.judged(await file_checks(settings))


def finish_begun(settings: Settings) -> Check:
    """Go on with a replacement that was killed, and return a check that says so. Raises RefusedError."""
    moved = ", ".join(map(str, complete(settings.db_path))) or "nothing"
    observed = f"a replacement that was begun is completed; moved aside: {moved}"
    return Check("begun_before", "warn", "no replacement was left half done", observed, "none is needed")


def check_apply(apply: object, confirm: object, *, switch: str = "apply") -> list[str]:
    """Return what is wrong with the two arguments by which a change is asked for."""
    faults = []
    if not isinstance(apply, bool):
        faults.append(f"{switch}: expected True or False, found {shown(apply)} ({type(apply).__name__})")
    if confirm is not None and not isinstance(confirm, str):
        faults.append(f"confirm: expected the hash of a plan, found {shown(confirm)} ({type(confirm).__name__})")
    return faults


def file_named(value: object) -> str:
    """Return the path that an argument gives, empty where it is not text or does not name a file, as `/` does."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    return text if isinstance(text, str) and Path(os.path.expanduser(text)).name else ""


def check_file(name: str, value: object, kind: str) -> list[str]:
    """Return what is wrong with an argument that names a file, or is None."""
    if value is not None and not file_named(value):
        return [f"{name}: expected the name or path of a {kind}, found {shown(value)}"]
    return list(filter(None, [url_fault(name, file_named(value))]))


def require(faults: list[str]) -> None:
    """Raise ConfigurationError if there is a fault."""
    if faults:
        raise ConfigurationError(faults)
