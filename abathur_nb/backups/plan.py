"""What is about to be changed, shown before it is done, with a hash by which it is approved."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from abathur_nb.config.settings import Settings
from abathur_nb.errors import ConfigurationError
from abathur_nb.evidence.canonical import canonical, sha256
from abathur_nb.report import Check
from abathur_nb.text import shown, url_fault

__all__ = ["Plan", "check_apply", "check_file", "file_named", "require"]

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the steps of a change, in the order in which they are done, and what they depend on (``facts``).

    ``switch`` is the parameter that asks for them to be done.
    """

    action: str
    settings: Settings
    steps: tuple[str, ...]
    facts: Mapping[str, str]
    switch: str = "apply"

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
        return Check.that(
            "plan",
            approved,
            expected=f"in {self.settings.env} confirm is the hash of this very plan" if needed else "it is shown first",
            observed=observed,
            remedy=self.remedy,
            data={"hash": self.hash, "steps": self.steps},
        )


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
