"""What an archive must not hold: the home directory's name, and the values of secrets."""

import base64
import json
import os
import pwd
import re
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus

from abathur_nb.config.settings import SECRET_SETTINGS, Settings
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.text import without_url_secrets

# What stands before a path that begins there: no letter, dot or tilde, as in a longer path, but an escape sequence
# of a terminal or of JSON, an option's letter (-I/home/al), steps upwards, or the beginning of a file's URI.
_BEGINS = re.compile(
    r"(?:(?:\A|[^\w./~:])/*|:(?:/{2,})?|\[[\d;]*m|\\[abfnrtv]|(?:\A|[^\w-])-[A-Za-z]|(?:\A|[^\w./])(?:\.\./)*\.\."
    r"|file://[\w.-]*)\Z"
)
_ENDS = r"(?![\w@-]|\.\w)"  # /home/al is not part of /home/alice or /home/al.old
_SEEN_BEFORE = 300  # characters
_SHORTEST = 8  # characters of a secret


def tilde(value: Any) -> Any:
    """Return JSON-able data with the home directory written ``~`` in every text of it, keys included.

    In ``/mnt/home/al`` and ``/home/alice`` it is not the home directory ``/home/al``, and stays. Behind punctuation,
    as in ``${X:-/home/al}`` and ``git+/home/al``, it is taken for it.
    """
    homes = _homes()
    return _tilde(value, homes) if homes else value


def _homes() -> tuple[str, ...]:
    """Return the spellings of the home directory, the longest first."""
    try:
        entry = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a container's user may have no entry
        entry = ""
    named = [home for home in (os.path.expanduser("~"), entry) if os.path.isabs(home)]
    # A home may be reached through a link: /home itself is one on some systems.
    found = {form(home).rstrip("/") for home in named for form in (str, os.path.abspath, os.path.realpath)} - {""}
    forms = (str, quote, lambda home: quote(home, safe=""), lambda home: home.replace("/", "\\/"), _in_json)
    return tuple(sorted({form(home) for home in found for form in forms}, key=len, reverse=True))


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _tilde(value: Any, homes: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        for home in (home for home in homes if home in value):
            value = _replace(value, home)
        return value
    if isinstance(value, Mapping):
        return {_tilde(key, homes): _tilde(item, homes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tilde(item, homes) for item in value]
    return value


def _replace(text: str, home: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        before = text[max(0, match.start() - _SEEN_BEFORE) : match.start()]
        is_tag = before.endswith("<") and text[match.end() : match.end() + 1] == ">"
        return "~" if _BEGINS.search(before) and not is_tag else match[0]

    return re.sub(rf"{re.escape(home)}{_ENDS}", replaced, text)


def secret_values(settings: Settings) -> dict[str, str]:
    """Return the secrets of a run by name: the secret settings, and the variables that ``secrets`` names.

    Raises ConfigurationError for one that is too short to be searched for.
    """
    named = {name: os.environ.get(name, "") for name in settings.secrets.replace(",", " ").split()}
    named |= {name: getattr(settings, name) for name in SECRET_SETTINGS}
    found = {name: value for name, value in named.items() if value.strip()}
    if short := [name for name, value in found.items() if len(value.strip()) < _SHORTEST]:
        wanted = f"expected a secret of at least {_SHORTEST} characters: a shorter one is found in other text"
        raise ConfigurationError([f"{name}: {wanted}" for name in short])
    return found


def refuse_secrets(settings: Settings, files: Mapping[str, bytes]) -> None:
    """Raise RefusedError, naming each secret and the files that hold its value.

    Found as it is, as JSON, HTML and a URL write it, one of these within another, and in base64. Not found: what a
    picture shows, what was compressed or encrypted, and a value in pieces, with markup or ends of lines between them.
    """
    secrets = {name: _spellings(value) for name, value in secret_values(settings).items()}
    texts = {name: content.decode(errors="surrogateescape") for name, content in files.items()} if secrets else {}
    found = [
        f"{secret} in {name}"
        for secret, spellings in secrets.items()
        for name, text in texts.items()
        if any(spelling in text for spelling in spellings)
    ]
    if found:
        remedy = "take it out of what the notebook shows, or of its parameters, and run it again"
        raise RefusedError(f"nothing was archived, because it would hold the value of {'; of '.join(found)}", remedy)


def masked(text: str, settings: Settings | None = None) -> str:
    """Return a line for a log with the values of secrets taken out, and what of a URL may be one.

    Without settings, which a fault may have kept from being resolved: those of the variables that say so themselves.
    """
    if settings is None:
        names = os.environ.get("ABATHUR_SECRETS", Settings.secrets).replace(",", " ").split()
        values = [os.environ.get(name, "") for name in (*names, *(f"ABATHUR_{s.upper()}" for s in SECRET_SETTINGS))]
    else:
        values = [*secret_values(settings).values()]
    for value in (value for value in values if len(value.strip()) >= _SHORTEST):
        for spelling in _spellings(value):
            text = text.replace(spelling, "•••")
    return without_url_secrets(text)


def _spellings(value: str) -> list[str]:
    """Return a secret as a file may write it, the longest spelling first."""
    value = value.strip()
    # Of a key in PEM form each line is a secret, but for those that say what it is.
    lines = [line.strip() for line in value.splitlines() if not line.startswith("-----")]
    pieces = {value} | {piece for piece in (str(tilde(value)), *lines) if len(piece) >= 2 * _SHORTEST}
    # Twice: a page in HTML shows JSON, a notebook in JSON shows a URL.
    found = {twice for piece in pieces for once in _written(piece) for twice in _written(once)}
    raw = value.encode(errors="surrogateescape")
    for phase in range(3):
        # Of the first and the last group other bytes decide as well.
        encoded = base64.b64encode(b"\0" * phase + raw).decode()
        sure = encoded[4 if phase else 0 : len(encoded) - (4 if (phase + len(raw)) % 3 else 0)]
        found |= {sure, sure.replace("+", "-").replace("/", "_")}
    return sorted(found, key=len, reverse=True)


def _written(text: str) -> set[str]:
    """Return a text as it is, and as JSON, HTML and a URL write it."""
    octets = text.encode(errors="surrogateescape")
    return {
        *(text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]),
        *(escape(text), escape(text, quote=False), quote(octets), quote(octets, safe=""), quote_plus(octets)),
    }
