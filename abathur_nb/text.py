"""Text for people: printable values, suggestions, secrets of URLs, times, counts, and tables."""

import pwd
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from html import escape
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    import pandas as pd

# An older shell can damage a database in WAL mode while another process writes (sqlite.org/wal.html#walresetbug).
SHELL = "with SQLite's shell, 3.51.3 or newer (or 3.50.7, 3.44.6): sqlite3"
MB = 1_000_000  # bytes; the unit of sizes in messages
AHEAD_S = 300  # a time further in the future is wrong, or the clock is; two clocks may differ by less
SEE_CLOCK = "check the clock (timedatectl): it is wrong now, or was wrong when this was written"
# Control characters, surrogates, line and paragraph separators, direction overrides. str.isprintable would also refuse
# joiners, ideographic blanks and newer emoji, depending on the version of Python.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Default_Ignorable_Code_Point of Unicode, such as joiners.
IGNORABLE = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_SHOWN, _CONTEXT = 200, 30  # characters shown of a long text, and before its first difference
_BLANK = re.compile(rf"[ \xa0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000{IGNORABLE}]+")
# Invisible characters: two values that differ only in one would look the same in a message.
_INVISIBLE = re.compile(r"[\u200b\u2060-\u2064\ufeff]")


def is_printable(text: str) -> bool:
    """Return whether a text is printable and not only blanks (an empty one passes); the same on each Python version."""
    if text.isascii():  # the same answer in a tenth of the time
        return text.isprintable() and not text.isspace()
    return not _UNPRINTABLE.search(text) and not _BLANK.fullmatch(text)


def printable(text: str) -> str:
    """Escape control characters, lone surrogates and direction overrides, but not line feeds."""
    if text.isprintable():  # stricter, and takes a tenth of the time
        return text
    return _UNPRINTABLE.sub(lambda c: c[0] if c[0] == "\n" else _escaped(c), text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def timestamp(moment: datetime) -> str:
    """Return a UTC time as the database writes it: ``YYYY-MM-DD HH:MM:SS.mmm``."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def file_stamp(moment: datetime) -> str:
    """Return a UTC time for the name of a file: ``YYYYMMDD_HHMMSS_mmm``."""
    return f"{moment:%Y%m%d_%H%M%S}_{moment.microsecond // 1000:03}"


def utc_now() -> str:
    """Return the present UTC time as text."""
    return timestamp(datetime.now(UTC))


def moment_of(text: str) -> datetime:
    """Return an ISO 8601 text as a UTC time; a text without an offset is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:  # 0001-01-01T00:00+01:00
        raise ValueError(f"a time that is out of range in UTC: {text}") from None


def is_ahead(moment: datetime, now: datetime | None = None) -> bool:
    """Return whether a moment lies more than five minutes in the future: it or the clock is wrong."""
    return (moment - (now or datetime.now(UTC))).total_seconds() > AHEAD_S


def age(moment: datetime, now: datetime | None = None) -> str:
    """Return how old a moment is, such as ``3.0 hours old``, or how far it lies in the future."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{duration(-seconds)} in the future" if seconds < -AHEAD_S else f"{duration(max(seconds, 0))} old"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that it holds twice: ``90 s``, ``3.5 hours``."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def counted(number: int, one: str) -> str:
    """Return a number with its noun, whose plural ends in s: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def did_you_mean(found: str, names: Collection[str], mark: str = "") -> str:
    """Return ``"; did you mean …?"`` with the similar one of ``names`` after ``mark``; an empty text if none is."""
    plain = found.strip().casefold()
    near = get_close_matches(plain, names, 1)
    if not near and len(plain) > 2:
        near = [name for name in names if name.startswith(plain) or plain.startswith(name)]
    return f"; did you mean {mark}{near[0]}?" if near else ""


def some(names: Sequence[str], most: int = 20, between: str = ", ") -> str:
    """Return the first names as text, and the number of the others."""
    return between.join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def clipped(before: str, after: str) -> list[str]:
    """Return two texts; long ones are cut to the place where they first differ."""
    if max(len(before), len(after)) <= _SHOWN:
        return [before, after]
    same = [*takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))]
    cut = max(0, len(same) - _CONTEXT)
    parts = ((text[cut : cut + _SHOWN], text[cut + _SHOWN :]) for text in (before, after))
    return [f"{'…' if cut else ''}{part}{'…' if rest else ''}" for part, rest in parts]


def shown(value: object) -> str:
    """Return a short printable form of any value, for a message."""
    try:
        text = printable(_quoted(value) if isinstance(value, str) else repr(value)).replace("\n", "\\n")
        text = _INVISIBLE.sub(_escaped, text)
    except Exception:  # noqa: BLE001 - a hostile or huge value must not break the message
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def _quoted(text: str) -> str:
    # As repr does; but what repr escapes depends on the version of Python.
    quote = '"' if "'" in text and '"' not in text else "'"
    return quote + text.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote


# One slash is enough: Path turns two into one. Schemes may be chained, as in simplecache::s3://.
_BEGIN = r"([A-Za-z][\w+.:-]{1,60}):/+(?=\S)"
_URL = re.compile(_BEGIN)
# A URL that `shown` has quoted ends at the closing quote, any other at a blank.
_URL_IN_TEXT = re.compile(rf"(?:(?<=')|(?<=(\"))){_BEGIN}(?:\\.|(?(1)[^\"\\]|[^'\\]))*|{_BEGIN}\S+")
_ENCODED = re.compile(r"%(?:25)*(23|3a|3b|3f|40)", re.IGNORECASE)
# In URLs of these schemes the user is a user name or a container, not a token.
_USER_IS_A_NAME = ("abfs", "abfss", "ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs")
# A word of text, JSON or SQL: the excluded characters occur in no URL.
_WORD = re.compile(r"[^\s\"'<>{}|^`]+")
_LOGIN = re.compile(r"[^/\\]*:[^/\\]*@[^/\\]*[/\\]")  # of an address without a scheme, such as user:password@host/path
_CODE = re.compile(r"\w[\w-]*\.[\w.:-]+/[^?]*\?(?:.*&)?code=.", re.IGNORECASE)  # the key of a cloud's function
_GIVEN = re.compile(r"[?#;&]([\w.-]+)=.")
# Names of parameters that hold a credential. `key` must be a word of its own: `monkey` does not count.
_CREDENTIAL = re.compile(
    r".*(?:token|secret|sig(?:nature)?|pass[-_]?(?:word|wd|phrase)|pwd|credentials?|hmac|jwt"
    r"|(?:\b|_|api|access|(?-i:[a-z](?=K)))(?:auth|key(?:id)?|pass|sas))\d*",
    re.IGNORECASE,
)


def url_fault(name: str, value: str) -> str:
    """Return a fault if ``value`` holds a URL with a possible secret, which a record would keep; else an empty text."""
    expected = "a URL without a password, parameters, a query or a fragment, which a record would keep"
    return f"{name}: expected {expected}: set credentials in environment variables" if _holds_secret(value) else ""


def without_url_secrets(text: str) -> str:
    """Return a message in which each URL with a possible secret is cut to its scheme."""
    text = _URL_IN_TEXT.sub(lambda url: f"{url[0].partition('/')[0]}//…" if _holds_secret(url[0]) else url[0], text)
    return _WORD.sub(lambda word: "…" if _is_signed(word[0]) else word[0], text)


def _holds_secret(text: str) -> bool:
    """Return whether a URL in a text may hold credentials or a signature."""
    text = text.strip()
    for url in _URL.finditer(text):
        rest = text[url.end() :] if url.start() == 0 else text[url.end() :].split()[0]
        rest = _ENCODED.sub(lambda octet: chr(int(octet[1], 16)), rest)
        authority = rest.partition("/")[0]
        user, at, _ = authority.rpartition("@")
        # A password may hold a slash; then the text after the colon is not a port number.
        login = ":" in user or (authority.partition(":")[2].strip("0123456789") and "@" in rest)
        token = at and url[1].lower() not in _USER_IS_A_NAME
        if login or token or re.search(r"[;?#].", rest, re.DOTALL):
            return True
    return any(map(_is_signed, _WORD.findall(text)))


def _is_signed(word: str) -> bool:
    """Return whether an address without a scheme may hold a secret, such as ``host/k?sig=…`` or ``a:b@host/k``."""
    word = unquote(unquote(word))
    return bool(_LOGIN.match(word) or _CODE.match(word)) or any(map(_CREDENTIAL.fullmatch, _GIVEN.findall(word, 1)))


def user_name(uid: int) -> str:
    """Return the name of a user, or ``#`` and the number of a user without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"  # as sudo -u takes it; a shell needs it quoted


def process_name(pid: int) -> str:
    """Return ``PID 12 (command)``, or words for PID 0, a process outside this PID namespace. Linux only."""
    if not pid:
        return "a process that cannot be seen from here (another container?)"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        command = "its command cannot be read"
    return f"PID {pid} ({printable(' '.join(command.split()))[:80]})"


def html_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return rows of ``<td>`` cells, already escaped, as an HTML table."""
    head = "".join(f"<th style='text-align:left'>{escape(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    # A notebook's own style gives all columns one width.
    return f"<table style='table-layout:auto'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_OPEN = 20  # rows that are shown by default; the rest is folded
_MOST = 200  # rows of HTML, so that it does not grow to megabytes
_SHORT, _NAME = 36, 48  # characters that stay on one line: of words, of one word such as the name of a backup
_LONG = 120  # characters that need a wider column
_CELL = "vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere"
# The colour of a cell by the mark with which it begins.
COLOURS = {"✗": "#c4420f", "?": "#c4420f", "!": "#a66f00", **dict.fromkeys("█░▏", "#2f86c0")}


def html_cell(value: object, more: str = "") -> str:
    """Return a cell for `html_table`: a text, coloured if it begins with a mark, or a number, which is aligned right.

    ``more`` is HTML after it.
    """
    text, side = _words(value), "right" if isinstance(value, int | float) else "left"
    # Short texts, such as times and run ids, must stay on one line.
    wide = f"min-width:{18 if len(text) > _LONG else 9}em;max-width:48em"
    width = (
        wide if any(len(line) > (_SHORT if " " in line else _NAME) for line in text.split("\n")) else "white-space:pre"
    )
    colour = f";color:{COLOURS[text[0]]};font-weight:bold" if text[:1] in COLOURS else ""
    return f"<td style='text-align:{side};{_CELL};{width}{colour}'>{escape(text)}{more}</td>"


def _named(head: str, value: object) -> str:
    """Return a cell as text on one line: a number with its head, without which it says nothing."""
    return f"{head} {_words(value)}" if isinstance(value, int | float) else _words(value).replace("\n", "; ")


def _words(value: object) -> str:
    """Return the text of a cell; that of None is empty."""
    if isinstance(value, datetime):
        return timestamp(value)
    return f"{value:,}" if isinstance(value, int | float) else "" if value is None else str(value)


class Shown:
    """Show a result in a notebook: as the table that its ``_table()`` returns, or as its own HTML and text."""

    __slots__ = ()

    def _table(self) -> "Table":
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self._table())

    def to_html(self) -> str:
        """Return the result as HTML without scripts or links, for light and dark themes."""
        return self._table().to_html()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.to_html(), "text/plain": str(self)}


@dataclass(frozen=True, slots=True)
class Table(Shown):
    """Hold rows of printable text, numbers, UTC times and None under ``heads``.

    A notebook shows the first ``opened`` rows and folds the rest; without rows it shows ``nothing``.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    nothing: str
    opened: int = _OPEN
    caption: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", printable(self.caption))
        rows = (tuple(printable(cell) if isinstance(cell, str) else cell for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", tuple(rows))

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, under the same heads."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.heads))

    def __str__(self) -> str:
        lines = (" · ".join(filter(None, map(_named, self.heads, row))) for row in self.rows)
        return f"{self.caption}\n{chr(10).join(lines) or self.nothing}".strip()

    def to_html(self) -> str:
        """Return the table as HTML without scripts or links, for light and dark themes."""
        caption = f"<p><b>{escape(self.caption)}</b></p>" if self.caption else ""
        if not self.rows:
            return f"{caption}<p>{escape(self.nothing)}</p>"
        first, rest = self.rows[: self.opened], self.rows[self.opened : _MOST]
        folded = f"<details><summary>{len(rest):,} more</summary>{self._html(rest)}</details>" if rest else ""
        left = len(self.rows) - _MOST
        more = f"<p>and {left:,} more: to_frame() has them all</p>" if left > 0 else ""
        return caption + self._html(first) + folded + more

    def _html(self, rows: Sequence[tuple[object, ...]]) -> str:
        return html_table(self.heads, (map(html_cell, row) for row in rows))
