"""Write evidence as canonical JSON with its own hash, without the home directory and without secrets."""

import base64
import hashlib
import json
import os
import pwd
import re
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus

from abathur_nb.config.settings import SECRET_SETTINGS, Settings
from abathur_nb.errors import ConfigurationError, RefusedError
from abathur_nb.store.values import check_depth
from abathur_nb.text import is_printable, moment_of, shown, without_url_secrets


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def canonical(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` as one line of JSON: keys sorted, no blanks, UTF-8, a newline at the end.

    Equal data gives equal bytes, and so equal hashes. All keys must be text.
    """
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text += "\n"  # an f-string would copy the text, which may have many MB
    # UTF-8 cannot encode a lone surrogate; backslashreplace writes JSON's escape, \udc80.
    return text.encode(errors="backslashreplace")


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` in canonical form with a key ``sha256``: the hash of the canonical form without that key."""
    # Convert through JSON first: integer keys become text, which sorts differently (10 before 2).
    plain = json.loads(json.dumps(data, allow_nan=False))
    return canonical({**plain, "sha256": sha256(canonical(plain))})


def uncanonical(content: bytes) -> dict[str, Any]:
    """Parse the bytes of ``canonical``; raise ValueError, with the reason, if they are not in exactly that form."""
    try:
        data = json.loads(content.decode())
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")  # noqa: TRY004 - every fault of the content is one kind
        check_depth("content", data)  # deeper data would exhaust the stack of its readers
        written = canonical(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not canonical JSON ({error})") from None
    if written != content:
        raise ValueError("it is not in canonical form")
    return data


def unsealed(content: bytes) -> dict[str, Any]:
    """Parse the bytes of ``sealed`` and drop the hash; raise ValueError, with the reason, if they were altered."""
    data = uncanonical(content)
    if data.pop("sha256", None) != sha256(canonical(data)):
        raise ValueError("its hash does not match its content")
    return data


def misfits(data: Any, shape: Any, where: str = "") -> list[str]:
    """Return the differences between JSON data and the expected shape, each with its path; an empty list if none.

    A shape is a type (a bool is not a number); a set of allowed texts; a function that returns a bool, and whose name
    says what it accepts; a list with one shape for all items, or with a shape for each; a tuple of alternatives; or a
    mapping with at least these keys (``key?`` is optional), or with any keys (``{str: shape}``).
    """
    if isinstance(shape, Mapping) and isinstance(data, dict):
        inner = dict.fromkeys(data, shape[str]) if str in shape else shape
        faults = [f"{where}{key}: missing" for key in inner if key not in data and not key.endswith("?")]
        for key, kind in inner.items():
            name = key if key in data else key.removesuffix("?")
            faults += misfits(data[name], kind, f"{where}{name}.") if name in data else []
        return faults
    if isinstance(shape, list) and isinstance(data, list) and len(shape) in (1, len(data)):
        each = zip(data, shape * len(data), strict=False)
        return [fault for at, (item, one) in enumerate(each) for fault in misfits(item, one, f"{where}{at}.")]
    if isinstance(shape, tuple):
        found = [misfits(data, one, where) for one in shape]
        return [] if [] in found else found[0]
    if isinstance(shape, Mapping | list):
        of_length = "list" if len(shape) == 1 else f"list of {len(shape)}"
        holds, expected = False, "object" if isinstance(shape, Mapping) else of_length
    elif isinstance(shape, frozenset):
        holds, expected = isinstance(data, str) and data in shape, f"one of {', '.join(sorted(shape))}"
    elif isinstance(shape, type):
        holds, expected = isinstance(data, shape) and (shape is bool or not isinstance(data, bool)), shape.__name__
    else:
        holds, expected = shape(data), shape.__name__.replace("_", " ")
    return [] if holds else [f"{where.removesuffix('.')}: expected {expected}, found {shown(data)}"]


def whole_number(data: object) -> bool:
    """Return whether JSON is an integer from 0 that SQLite can store."""
    return isinstance(data, int) and not isinstance(data, bool) and 0 <= data < 2**63


def number(data: object) -> bool:
    """Return whether JSON is a number from 0 to below 1e15, more than any measurement."""
    return isinstance(data, int | float) and not isinstance(data, bool) and 0 <= data < 1e15


def printable_text(data: object) -> bool:
    """Return whether JSON is printable text: no control characters, no lone surrogates, not only blanks."""
    return isinstance(data, str) and is_printable(data)


def moment(data: object) -> bool:
    """Return whether JSON is a time in ISO 8601, with or without an offset."""
    try:
        return isinstance(data, str) and moment_of(data) is not None
    except ValueError:
        return False


# What may precede the home directory. After a letter, dot, slash or tilde it is part of a longer path, except after an
# escape sequence of a terminal or of JSON, an option's letter (-I/home/al), ../.., or the beginning of a file's URI.
_BEGINS = (
    r"(?:(?<![\w./~])|(?<=[\d\[]m)|(?<=\\[abfnrtv])|(?<=[^\w-]-[A-Za-z])|(?<=\A-[A-Za-z])|(?<=\.\.)|(?<=file://)"
    r"|(?<=file://localhost)|(?<=[^\w./~:]/)|(?<=\A/))"
)
_ENDS = r"(?![\w@-]|\.\w)"  # /home/al is not part of /home/alice or /home/al.old


def tilde(value: Any) -> Any:
    """Return JSON-able data with the home directory replaced by ``~`` in each text and key.

    Punctuation may precede it, as in ``${X:-/home/al}``; ``/mnt/home/al`` and ``/home/alice`` are kept.
    """
    return _tilde(value, _homes())


def _homes() -> list[str]:
    """Return the spellings of the home directory, the longest first."""
    named = [os.path.expanduser("~")]
    with suppress(KeyError):  # in a container, the user may not be in /etc/passwd
        named.append(pwd.getpwuid(os.geteuid()).pw_dir)
    # A home may be reached through a link: /home itself is one on some systems.
    found = {f(home).rstrip("/") for home in named if os.path.isabs(home) for f in (os.path.abspath, os.path.realpath)}
    spelled = {s for home in found - {""} for s in (*_written(home), quote(home, safe=""), home.replace("/", "\\/"))}
    return sorted(spelled, key=len, reverse=True)


def _tilde(value: Any, homes: list[str]) -> Any:
    if isinstance(value, str):
        for home in homes:
            if home in value:
                path = re.escape(home)  # </root> is a closing tag
                value = re.sub(rf"{_BEGINS}(?!(?<=<){path}>){path}{_ENDS}", "~", value)
        return value
    if isinstance(value, Mapping):
        return {_tilde(key, homes): _tilde(item, homes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tilde(item, homes) for item in value]
    return value


_SHORTEST = 8  # characters of a secret


def secret_values(settings: Settings) -> dict[str, str]:
    """Return the secrets of a run by name: the secret settings, and the environment variables in ``secrets``.

    Raises ConfigurationError for a secret that is too short to search for.
    """
    found = _given_secrets(settings)
    if short := [name for name, value in found.items() if len(value.strip()) < _SHORTEST]:
        expected = f"expected a secret of at least {_SHORTEST} characters: a shorter one may occur in other text"
        raise ConfigurationError([f"{name}: {expected}" for name in short])
    return found


def _given_secrets(settings: Settings | None) -> dict[str, str]:
    names = settings.secrets if settings else os.environ.get("ABATHUR_SECRETS", Settings.secrets)
    found = {name: os.environ.get(name, "") for name in names.replace(",", " ").split()}
    for name in SECRET_SETTINGS:
        found[name] = getattr(settings, name) if settings else os.environ.get(f"ABATHUR_{name.upper()}", "")
    return {name: value for name, value in found.items() if value.strip()}


def refuse_secrets(settings: Settings, files: Mapping[str, bytes]) -> None:
    """Raise RefusedError if a file holds the value of a secret; the error names both.

    Finds a value that is raw, in base64, or escaped once or twice for JSON, HTML or a URL; not one in a picture, in
    compressed or encrypted data, or across markup or line ends.
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
        remedy = "remove it from the notebook's outputs or parameters, and run the notebook again"
        raise RefusedError(f"nothing was archived: a file would hold the value of {'; of '.join(found)}", remedy)


def masked(text: str, settings: Settings | None = None) -> str:
    """Return a line for a log without the values of secrets and the secret parts of URLs.

    Without settings, the environment variables name the secrets. A secret that is too short to search for is not
    masked.
    """
    for value in (value for value in _given_secrets(settings).values() if len(value.strip()) >= _SHORTEST):
        for spelling in _spellings(value):
            text = text.replace(spelling, "•••")
    return without_url_secrets(text)


def _spellings(value: str) -> list[str]:
    """Return the spellings of a secret that a file may hold, the longest first."""
    value = value.strip()
    # Each line of a PEM key is a secret, except the first and the last.
    lines = [line.strip() for line in value.splitlines() if not line.startswith("-----")]
    pieces = {value} | {piece for piece in (str(tilde(value)), *lines) if len(piece) >= 2 * _SHORTEST}
    # Escape twice: an HTML page may show JSON, a JSON notebook a URL.
    found = {twice for piece in pieces for once in _written(piece) for twice in _written(once)}
    raw = value.encode(errors="surrogateescape")
    for phase in range(3):
        # The first and the last group of base64 may also encode the bytes before and after.
        encoded = base64.b64encode(b"\0" * phase + raw).decode()
        sure = encoded[4 if phase else 0 : len(encoded) - (4 if (phase + len(raw)) % 3 else 0)]
        found |= {sure, sure.replace("+", "-").replace("/", "_")}
    return sorted(found, key=len, reverse=True)


def _written(text: str) -> set[str]:
    """Return a text as it is, and escaped for JSON, HTML and a URL."""
    octets = text.encode(errors="surrogateescape")
    return {
        *(text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]),
        *(escape(text), escape(text, quote=False), quote(octets), quote(octets, safe=""), quote_plus(octets)),
    }
