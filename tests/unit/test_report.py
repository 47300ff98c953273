"""What a person is shown: checks and reports in every form, tables, ages; escaped, printable, failures first."""

import json
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

import pytest

from abathur_nb.errors import AbathurError, BusyError, ChecksFailedError
from abathur_nb.report import Check, Report, Status, run_check
from abathur_nb.text import Table, age, is_ahead, moment_of

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
    told = r"^validate of /x/y\.db: 1 of 2 checks failed: indexes: 32 indexes\. The"
    with pytest.raises(ChecksFailedError, match=told):
        made.raise_for_failures()


def test_a_report_is_summed_up_and_a_refused_one_is_not_ok() -> None:
    made = report(Check("a", "pass"), refused=True)
    assert (made.ok, made.summary) == (False, "validate refused: 1 pass")
    with pytest.raises(ChecksFailedError, match="refused"):
        made.raise_for_failures()
    assert report(*EVERY).summary == "validate failed: 1 error, 1 fail, 1 warn, 1 pass, 1 skip"
    assert report().summary == "validate passed: no checks"


def test_a_check_has_an_id_for_programs_and_a_title_which_is_the_id_in_words_unless_it_is_given() -> None:
    plain, named = Check("file_modes", "pass"), Check("wal_size", "warn", name="WAL size", data={"bytes": 5})
    assert (plain.name, dict(plain.data), named.name) == ("file modes", {}, "WAL size")
    told = json.loads(report(plain, named).to_json())["checks"][1]
    assert (told["id"], told["name"], told["data"]) == ("wal_size", "WAL size", {"bytes": 5})
    assert len({plain, named}) == 2


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("locked"), OSError(28, "No space"), BusyError("x"), KeyError()]
)
async def test_a_check_that_cannot_be_asked_could_not_run_but_our_own_fault_is_raised(error: Exception) -> None:
    async def ask() -> Check:
        raise error

    if isinstance(error, KeyError):
        with pytest.raises(KeyError):
            await run_check("integrity", ask, remedy="look")
        return
    check = await run_check("integrity", ask, remedy="look")
    assert (check.status, check.failed, check.remedy) == ("error", True, "look")
    assert check.observed == f"could not run: {type(error).__name__}: {error}"


def test_every_form_shows_every_check_failures_first() -> None:
    made = report(*EVERY)
    for text in (str(made), made.to_html(), made.to_markdown()):
        places = [text.index(name) for name in ("is fail", "is error", "is warn")]
        assert places == sorted(places)
        assert max(places) < min(text.index("is pass"), text.index("is skip"))
    with pytest.raises(ChecksFailedError, match=r"is fail.*is error"):
        made.raise_for_failures()
    assert list(made.to_frame()["name"]) == [check.name for check in EVERY]
    columns = ["id", "name", "status", "expected", "observed", "remedy", "evidence", "data"]
    assert list(report().to_frame().columns) == columns
    told = json.loads(made.to_json())
    assert told["ok"] is False
    assert [check["status"] for check in told["checks"]] == [check.status for check in EVERY]
    assert made._repr_mimebundle_() == {"text/html": made.to_html(), "text/plain": str(made)}
    assert AbathurError("so it is")._render_traceback_() == ["AbathurError: so it is"]


def test_hostile_text_is_shown_escaped_in_every_form() -> None:
    made = Report("validate", [Check(*(HOSTILE, "fail", HOSTILE, HOSTILE, HOSTILE), (HOSTILE,))], subject=HOSTILE)  # type: ignore[arg-type]
    html, markdown = made.to_html(), made.to_markdown()
    for text in (str(made), html, markdown, made.to_json()):
        text.encode()  # no lone surrogate is left
        assert not {"\x00", "\u202e", "\x1b"} & set(text)
    assert set(re.findall(r"</?(\w+)", html)) <= {
        *("div", "p", "b", "br", "small", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre")
    }
    row = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    assert len(row) == 1  # whatever newlines and bars it holds
    assert "<script>" not in row[0]
    assert row[0].count("|") - row[0].count("\\|") == 6


def test_much_evidence_is_folded_in_text_and_html_but_whole_in_json() -> None:
    made = report(Check("a", "fail", evidence=tuple(f"row {n}" for n in range(9))))
    assert "and 4 more" in str(made)
    assert "<details><summary>evidence: 9" in made.to_html()
    assert "<details open>" in report(Check("a", "fail", evidence=("one",))).to_html()
    assert len(json.loads(made.to_json())["checks"][0]["evidence"]) == 9


def rows(count: int) -> tuple[tuple[str, ...], ...]:
    return tuple(("✓ pass", f"row {number}") for number in range(count))


def test_of_a_table_twenty_rows_stand_open_and_no_more_than_two_hundred_are_shown() -> None:
    few, more, many = (Table(("", "name"), rows(count), "none") for count in (20, 21, 5000))
    assert (few.to_html().count("<tr>"), "<details>" in few.to_html()) == (21, False)
    first, folded = more.to_html().split("<details>")
    assert "row 19" in first
    assert folded.startswith("<summary>1 more</summary>")
    assert many.to_html().count("<tr>") == 202  # two heads
    assert many.to_html().endswith("<p>and 4,800 more: to_frame() has them all</p>")
    assert len(many.to_frame()) == 5000


def test_a_table_without_rows_says_so_and_as_text_a_row_is_a_line() -> None:
    table = Table(("", "name"), (), "no run yet")
    assert (table.to_html(), str(table)) == ("<p>no run yet</p>", "no run yet")
    assert list(table.to_frame().columns) == ["", "name"]
    assert str(Table(("", "name"), (("✗ fail", "a\nb"), ("", "c")), "none")) == "✗ fail · a; b\nc"
    html = Table(("",), (("✓ pass",), ("✗ fail",), ("? unsealed",)), "none").to_html()
    bold = [cell for cell in re.findall(r"<td [^>]*>[^<]*", html) if "font-weight:bold" in cell]
    assert [cell.partition(">")[2] for cell in bold] == ["✗ fail", "? unsealed"], "what failed stands out"


def test_no_text_of_a_table_becomes_markup_and_each_is_printable() -> None:
    for text in ("<script>alert(1)</script>", "' onload='x", "&amp;", "</td></table>"):
        html = Table(("<i>",), ((text,),), "none").to_html()
        assert f">{escape(text)}</td>" in html
        assert set(re.findall(r"</?(\w+)", html)) == {"table", "thead", "tbody", "tr", "th", "td"}
    for text in ("a\0b", "\u202eevil", "\ud800", "\x1b[31mred"):
        bundle = Table(("x",), ((text,),), "none")._repr_mimebundle_()
        assert text not in bundle["text/html"] + bundle["text/plain"]
        assert all(shown.isprintable() for shown in bundle.values())


NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "told", "ahead"),
    [
        (-366 * 86_400, "366.0 days old", False),
        (-3 * 3600, "3.0 hours old", False),
        (-90, "90 s old", False),
        (0, "0 s old", False),
        (300, "0 s old", False),
        (301, "5.0 minutes in the future", True),
        (366 * 86_400, "366.0 days in the future", True),
    ],
)
def test_a_moment_more_than_five_minutes_ahead_is_in_the_future(seconds: int, told: str, ahead: bool) -> None:
    moment = NOW + timedelta(seconds=seconds)
    assert (age(moment, NOW), is_ahead(moment, NOW)) == (told, ahead)


def test_a_moment_with_an_offset_is_converted_and_one_without_is_utc() -> None:
    for text in ("2026-11-30 12:00:00.000", "2026-11-30T17:30:00+05:30", "2026-11-30T04:00:00-08:00"):
        assert moment_of(text) == NOW
    for text in ("", "yesterday", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"):
        with pytest.raises(ValueError, match=r"isoformat|UTC"):
            moment_of(text)
