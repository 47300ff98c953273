"""What only a person can answer: recorded as said by them, on a date, and never as passed by itself."""

import re
from datetime import UTC, date, datetime

from abathur_nb.errors import ConfigurationError
from abathur_nb.report import Check
from abathur_nb.wording import is_printable, shown

__all__ = ["FORM", "said", "said_fault"]

FORM = '"Ada Lovelace, 2026-11-20"'
_LONGEST = 200  # characters
_ANSWER = re.compile(r"(?P<person>[^,\s](?:.*\S)?)\s*,\s*(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})")


def said(question: str, answer: str | None, *, check_id: str = "said") -> Check:
    """Record who answers for something that no program can find out: ``answer`` names the person and the day.

    The check is ``skip``, whatever is said: a statement is no proof. None says that nobody answers for it. Raises
    ConfigurationError, telling the form, for anything else.
    """
    expected = "a person who answers for it, and the day on which they said so"
    if answer is None:
        return Check(check_id, "skip", expected, "nobody has said so", f"name them: {FORM}", name=question)
    if fault := said_fault(question, answer):
        raise ConfigurationError(fault)
    person, day = _parts(answer)
    return Check(check_id, "skip", expected, f"said by {person} on {day}", name=question)


def said_fault(name: str, answer: object) -> str:
    """Say what is wrong with an answer, or return an empty text. Read-only."""
    try:
        _, day = _parts(answer)
    except (ValueError, TypeError):
        return f"{name}: expected a person's name and a date, as in {FORM}, found {shown(answer)}"
    # Of here and of UTC the later: who is east of Greenwich may have written the date of a day that UTC has not yet.
    today = max(datetime.now(UTC).date(), datetime.now().astimezone().date())
    return f"{name}: expected a date of today or before, as in {FORM}, found {day}" if day > today else ""


def _parts(answer: object) -> tuple[str, date]:
    """Return the name and the date; raise ValueError or TypeError if the text is not of that form."""
    if not isinstance(answer, str):
        raise TypeError
    match = _ANSWER.fullmatch(answer.strip())
    if not match or not is_printable(answer) or len(answer) > _LONGEST or not re.search(r"[^\W\d_]", match["person"]):
        raise ValueError
    return match["person"], date.fromisoformat(match["day"])
