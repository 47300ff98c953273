"""The one currency: what a Check and a Report say, in every form in which they are shown."""

import json
import sqlite3
from html.parser import HTMLParser
from typing import Any

import pytest

from abathur_nb.errors import AbathurError, BusyError, ChecksFailedError
from abathur_nb.report import Check, Report, Status, run_check
from abathur_nb.text import printable

HOSTILE = "<script>alert(1)</script>|a\nb\x00\u202e\udce9\x1b[31m"
EVERY = tuple(Check(f"is {s}", s, "wanted", f"found {s}", "do this") for s in ("pass", "skip", "warn", "fail", "error"))


def report(*checks: Check, **given: Any) -> Report:
    return Report("validate", checks, subject="/x/y.db", **given)


@pytest.mark.parametrize(
    ("status", "ok"), [("pass", True), ("warn", True), ("skip", True), ("fail", False), ("error", False)]
)
def test_only_what_failed_or_could_not_run_fails_a_report(status: Status, ok: bool) -> None:
    made = report(Check("a", "pass"), Check("indexes", status, observed="32 indexes\nmore"))
    assert made.ok is ok
    if ok:
        made.raise_for_failures()
        return
    with pytest.raises(
        ChecksFailedError, match=r"^validate of /x/y\.db: 1 of 2 checks failed: indexes: 32 indexes\. The"
    ):
        made.raise_for_failures()


def test_a_refused_report_is_not_ok_even_if_no_check_failed() -> None:
    made = report(Check("a", "pass"), refused=True)
    assert not made.ok
    assert made.summary == "validate refused: 1 pass"
    with pytest.raises(ChecksFailedError, match="refused"):
        made.raise_for_failures()


def test_the_summary_counts_and_a_report_without_checks_says_so() -> None:
    assert report(*EVERY).summary == "validate failed: 1 error, 1 fail, 1 warn, 1 pass, 1 skip"
    assert report().summary == "validate passed: no checks"


def test_a_check_that_holds_has_no_remedy_but_keeps_what_was_observed() -> None:
    told = {"expected": "33", "remedy": "do this", "otherwise": "warn"}
    good = Check.that("n", True, observed="33", **told)  # type: ignore[arg-type]
    bad = Check.that("n", False, observed="32", **told)  # type: ignore[arg-type]
    assert (good.status, good.observed, good.remedy) == ("pass", "33", "")
    assert (bad.status, bad.observed, bad.remedy) == ("warn", "32", "do this")


def test_a_check_has_an_id_for_programs_and_a_title_which_is_the_id_in_words_unless_it_is_given() -> None:
    plain, named = Check("file_modes", "pass"), Check("wal_size", "warn", name="WAL size", data={"bytes": 5})
    assert (plain.name, dict(plain.data), named.name) == ("file modes", {}, "WAL size")
    told = json.loads(report(plain, named).to_json())["checks"][1]
    assert (told["id"], told["name"], told["data"]) == ("wal_size", "WAL size", {"bytes": 5})
    assert len({plain, named}) == 2


@pytest.mark.parametrize("error", [sqlite3.OperationalError("locked"), OSError(28, "No space"), BusyError("x")])
async def test_a_check_that_cannot_be_asked_could_not_run(error: Exception) -> None:
    async def ask() -> Check:
        raise error

    check = await run_check("integrity", ask, remedy="look")
    assert (check.status, check.failed, check.remedy) == ("error", True, "look")
    assert check.observed == f"could not run: {type(error).__name__}: {error}"


async def test_a_fault_of_the_package_is_no_observation() -> None:
    async def ask() -> Check:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await run_check("integrity", ask, remedy="look")


def test_every_form_shows_every_check_failures_first() -> None:
    made = report(*EVERY)
    worst_first = ["is error", "is fail", "is warn"]
    for text in (str(made), made.to_html(), made.to_markdown()):
        places = [text.index(f"{name}") for name in worst_first]
        assert places == sorted(places)
        assert max(places) < min(text.index("is pass"), text.index("is skip"))
    assert list(made.to_frame()["name"]) == [check.name for check in EVERY]
    columns = ["id", "name", "status", "expected", "observed", "remedy", "evidence", "data"]
    assert list(report().to_frame().columns) == columns
    told = json.loads(made.to_json())
    assert told["ok"] is False
    assert [check["status"] for check in told["checks"]] == [check.status for check in EVERY]
    assert made._repr_mimebundle_() == {"text/html": made.to_html(), "text/plain": str(made)}


class Tags(HTMLParser):
    """Collect the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        self.found |= {tag, *(name for name, _ in attrs)}


def test_hostile_text_is_shown_escaped_in_every_form() -> None:
    made = Report("validate", [Check(*(HOSTILE, "fail", HOSTILE, HOSTILE, HOSTILE), (HOSTILE,))], subject=HOSTILE)  # type: ignore[arg-type]
    html, markdown = made.to_html(), made.to_markdown()
    for text in (str(made), html, markdown, made.to_json()):
        text.encode()  # no lone surrogate is left
        assert not {"\x00", "\u202e", "\x1b"} & set(text)
    tags = Tags()
    tags.feed(html)
    assert tags.found <= {
        *["div", "p", "b", "br", "small", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre"],
        *["class", "style", "open"],
    }
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 3  # one row, whatever newlines and bars it holds
    assert "<script>" not in table[2]
    assert table[2].count("|") - table[2].count("\\|") == 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é 漢 ", "plain é 漢 "), ("a\nb", "a\nb"), ("\x00\r\t", "\\x00\\r\\t"), ("\u202e\ud800", "\\u202e\\ud800")],
)
def test_printable_escapes_what_cannot_be_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_much_evidence_is_folded_in_text_and_html_but_whole_in_json() -> None:
    made = report(Check("a", "fail", evidence=tuple(f"row {n}" for n in range(9))))
    assert "and 4 more" in str(made)
    assert "<details><summary>evidence: 9" in made.to_html()
    assert "<details open>" in report(Check("a", "fail", evidence=("one",))).to_html()
    assert len(json.loads(made.to_json())["checks"][0]["evidence"]) == 9


def test_an_error_shows_itself_to_a_notebook_as_one_line() -> None:
    assert AbathurError("so it is")._render_traceback_() == ["AbathurError: so it is"]
