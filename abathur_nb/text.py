"""Text for people: values made printable, names that were nearly right, times, counts, and rows as a table."""

import os
import platform
import pwd
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from html import escape
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING
from urllib.parse import unquote

# Older ones can damage a database in WAL mode that another process writes (https://sqlite.org/wal.html#walresetbug).
SHELL = "with SQLite's shell, 3.51.3 or newer (or 3.50.7, 3.44.6): sqlite3"
MB = 1_000_000  # bytes, in all that is shown
AHEAD_S = 300  # a moment further ahead of the clock is wrong, or the clock is: two machines may differ by less
SEE_CLOCK = "see the clock (timedatectl): it is wrong now, or was when this was written"
# A slash is enough: a Path makes one of two. A scheme may be chained, as in simplecache::s3://.
_BEGIN = r"([A-Za-z][\w+.:-]{1,60}):/+(?=\S)"
_URL = re.compile(_BEGIN)
# As `shown` quotes it, with its blanks; else up to a blank.
_URL_IN_TEXT = re.compile(rf"(?:(?<=')|(?<=(\"))){_BEGIN}(?:\\.|(?(1)[^\"\\]|[^'\\]))*|{_BEGIN}\S+")
_ENCODED = re.compile(r"%(?:25)*(23|3a|3b|3f|40)", re.IGNORECASE)
# How the name of a parameter ends that holds a credential; a key only as a word of its own: there are monkeys, too.
_CREDENTIAL = re.compile(
    r".*(?:token|secret|sig(?:nature)?|pass[-_]?(?:word|wd|phrase)|pwd|credentials?|hmac|jwt"
    r"|(?:\b|_|api|access|(?-i:[a-z](?=K)))(?:auth|key(?:id)?|pass|sas))\d*",
    re.IGNORECASE,
)
_HOST = re.compile(r"\w[\w-]*\.\w[\w.:-]*")
# What ends a URL in a text, such as in JSON or SQL: none of it stands in a URL, or only as a sign of quoting.
_WORD = re.compile(r"[^\s\"'<>{}|^`]+")
_SLASH = re.compile(r"[/\\]|%(?:25)*(?:2f|5c)", re.IGNORECASE)
_SIGNED = "parameters, a query or a fragment"
_GIVEN = re.compile(r"[?#;&]([\w.-]+)=.")
_USER_IS_A_NAME = ("abfs", "abfss", "ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs")  # of a person, or of a container


# Control characters, surrogates, separators of lines and paragraphs, direction overrides. str.isprintable also refuses
# joiners, ideographic blanks, and the emoji that its Python does not know yet.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BLANKS = r" \xa0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000"
# What Unicode lets a font ignore (Default_Ignorable_Code_Point), such as joiners.
IGNORABLE = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_BLANK = re.compile(f"[{_BLANKS}{IGNORABLE}]+")
# Signs that show nothing and shape nothing: two values that differ by one would look the same in a message.
_INVISIBLE = re.compile(r"[\u200b\u2060-\u2064\ufeff]")


def is_printable(text: str) -> bool:
    """Return whether a text can be shown, and shows anything (an empty one passes). The same on every Python."""
    if text.isascii():  # the same, in a tenth of the time
        return text.isprintable() and not text.isspace()
    return not _UNPRINTABLE.search(text) and not _BLANK.fullmatch(text)


def printable(text: str) -> str:
    """Escape what cannot be shown or encoded (control characters, lone surrogates, direction overrides)."""
    if text.isprintable():  # which refuses all of these and more, in a tenth of the time
        return text
    return _UNPRINTABLE.sub(lambda c: c[0] if c[0] == "\n" else _escaped(c), text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def timestamp(moment: datetime) -> str:
    """Return a UTC time as the database writes it: ``YYYY-MM-DD HH:MM:SS.mmm``."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def utc_now() -> str:
    """Return the present UTC time as text."""
    return timestamp(datetime.now(UTC))


def moment_of(text: str) -> datetime:
    """Return the moment that a text names, in UTC, which a text without an offset is in. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:  # 0001-01-01T00:00+01:00
        raise ValueError(f"not a moment that has a UTC time: {text}") from None


def is_ahead(moment: datetime, now: datetime | None = None) -> bool:
    """Return whether a moment lies more than five minutes in the future: it is wrong, or this clock is."""
    return (moment - (now or datetime.now(UTC))).total_seconds() > AHEAD_S


def age(moment: datetime, now: datetime | None = None) -> str:
    """Return how old a moment is, such as ``3.0 hours old``, or how far it lies in the future."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{duration(-seconds)} in the future" if seconds < -AHEAD_S else f"{duration(max(seconds, 0))} old"


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are two: ``90 s``, ``3.5 hours``."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def counted(number: int, one: str) -> str:
    """Return a number with its noun, whose plural ends in s: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def did_you_mean(found: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean …?"`` for a near miss of one of ``names``, else an empty text."""
    plain = found.strip().casefold()
    near = get_close_matches(plain, [*names], 1, 0.7)
    # Short names are unlike by that measure when two letters are swapped, or half of one is missing.
    near = near or [
        n
        for n in names
        if len(plain) > 2 and (n.startswith(plain) or plain.startswith(n) or sorted(n) == sorted(plain))
    ]
    return f"; did you mean {near[0]}?" if near else ""


def some(names: Sequence[str], most: int = 20) -> str:
    """Return the first names as text, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def shown(value: object) -> str:
    """Return a short printable form of any value, for a message."""
    try:
        text = printable(_quoted(value) if isinstance(value, str) else repr(value)).replace("\n", "\\n")
        text = _INVISIBLE.sub(_escaped, text)
    except Exception:  # noqa: BLE001 - a hostile or enormous value must not break the message about it
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def _quoted(text: str) -> str:
    # As repr does it, which also escapes what its Python does not take for printable.
    quote = '"' if "'" in text and '"' not in text else "'"
    return quote + text.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote


def url_fault(name: str, value: str) -> str:
    """Say that the URL in ``value`` may hold a secret, which a record would keep; an empty text if it cannot."""
    part = _secret_part(value)
    noted = f"{name}: expected a URL without {part}, which a record would keep: set credentials by variables"
    return noted if part else ""


def without_url_secrets(text: str) -> str:
    """Return a message with each URL in it that may hold a secret cut down to its scheme, if it has one."""
    text = _URL_IN_TEXT.sub(lambda url: f"{url[0].partition('/')[0]}//…" if _secret_part(url[0]) else url[0], text)
    return _WORD.sub(lambda word: "…" if _secret_part_of_word(word[0]) else word[0], text)


def _secret_part(text: str) -> str:
    """Name the part of the URLs in a text that may be a secret: credentials, or what signs an address."""
    text = text.strip()
    for url in _URL.finditer(text):
        rest = text[url.end() :] if url.start() == 0 else text[url.end() :].split()[0]
        if part := _secret_part_of(url[1].lower(), _ENCODED.sub(lambda octet: chr(int(octet[1], 16)), rest)):
            return part
    return next(filter(None, map(_secret_part_of_word, _WORD.findall(text))), "")


def _secret_part_of_word(word: str) -> str:
    """Name the part that may be a secret of an address without a scheme, such as ``host/k?sig=…`` or ``a:b@host/k``."""
    host, *path = _SLASH.split(unquote(unquote(word)), maxsplit=1)
    if path and ":" in host.rpartition("@")[0]:
        return "a password"
    known = _HOST.match(host)
    names = _GIVEN.findall(path[0] if path else host if known else "")
    with_code = path and known and "code" in map(str.lower, names)
    return _SIGNED if with_code or any(map(_CREDENTIAL.fullmatch, names)) else ""


def _secret_part_of(scheme: str, rest: str) -> str:
    authority = rest.partition("/")[0]
    user, at, _ = authority.rpartition("@")
    port = authority.partition(":")[2]
    if re.search(r"[;?#].", rest, re.DOTALL):
        return _SIGNED
    if ":" in user or (port.strip("0123456789") and "@" in rest):  # a cloud's password may hold a slash
        return "a password"
    return "a user, which may be a token" if at and scheme not in _USER_IS_A_NAME else ""


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"  # the form that sudo -u takes, where a shell does not see it: to that a # begins a comment


def process_name(pid: int) -> str:
    """Return ``PID 12 (command)``; for 0, words for a process that this PID namespace does not show."""
    return f"PID {pid} ({_command_of(pid)})" if pid else "a process that cannot be seen from here (another container?)"


def _command_of(pid: int) -> str:
    """Return the command line of a process as one printable line, shortened. Linux only."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "its command cannot be read"
    return printable(" ".join(text.split()))[:80]


def as_user(uid: int) -> str:
    """Return the words that stand before a command, in a shell, so that another user runs it."""
    return f"sudo -u {quote(user_name(uid))}"


def versions() -> str:
    """Say who runs what, where and when, for the record."""
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("abathur_nb", "aiosqlite"))
    runtime = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{packages}, {runtime} · {user_name(os.geteuid())} on {platform.node()} · {utc_now()} UTC"


if TYPE_CHECKING:
    import pandas as pd


_OPEN = 20  # rows; those behind them are folded away
_MOST = 200  # rows of HTML, lest it grow to megabytes
_SHORT = 36  # characters that stand on one line
_LONG = 120  # characters that would be a tower of words in a column left narrow
_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere"
# What begins a cell that is to be seen first: the marks of report.py.
_LOUD = ("✗", "?", "!")


@dataclass(frozen=True, slots=True)
class Table:
    """Hold rows of text under ``heads``, the first ones open and the rest folded; ``nothing`` stands for no rows.

    All texts are made printable. A first cell that begins with a report's mark of failure is bold.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    nothing: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(tuple(printable(cell) for cell in row) for row in self.rows))

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, under the same heads."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.heads))

    def __str__(self) -> str:
        return (
            "\n".join(" · ".join(cell.replace("\n", "; ") for cell in row if cell) for row in self.rows) or self.nothing
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.to_html(), "text/plain": str(self)}

    def to_html(self) -> str:
        """Return the table as an HTML fragment: no script, no link, readable in a light and a dark theme."""
        if not self.rows:
            return f"<p>{escape(self.nothing)}</p>"
        first, rest = self.rows[:_OPEN], self.rows[_OPEN:_MOST]
        folded = f"<details><summary>{len(rest):,} more</summary>{self._html(rest)}</details>" if rest else ""
        left = len(self.rows) - _MOST
        return self._html(first) + folded + (f"<p>and {left:,} more: to_frame() has them all</p>" if left > 0 else "")

    def _html(self, rows: Sequence[tuple[str, ...]]) -> str:
        head = "".join(f"<th style='text-align:left'>{escape(head)}</th>" for head in self.heads)
        body = "".join(f"<tr>{''.join(_cell(text) for text in row)}</tr>" for row in rows)
        return f"<table style='table-layout:auto'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    # Short ones, such as times and run ids, must not be broken; long ones must.
    wide = f"min-width:{18 if len(text) > _LONG else 9}em;max-width:48em"
    width = wide if any(len(line) > _SHORT for line in text.split("\n")) else "white-space:pre"
    colour = ";color:#c4420f;font-weight:bold" if text.startswith(_LOUD) else ""
    return f"<td style='{_CELL};{width}{colour}'>{escape(text)}</td>"
