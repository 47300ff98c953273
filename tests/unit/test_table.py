"""A quiet table: escaped, the first rows open, never megabytes of it."""

import re
from html import escape

import pytest

from abathur_nb.text import Table

HEADS = ("", "name")


def rows(count: int) -> tuple[tuple[str, ...], ...]:
    return tuple(("✓ pass", f"row {number}") for number in range(count))


def test_a_table_of_a_few_rows_stands_open() -> None:
    html = Table(HEADS, rows(20), "none").to_html()
    assert html.count("<tr>") == 21
    assert "<details>" not in html


def test_the_rows_behind_the_twentieth_are_folded_away() -> None:
    html = Table(HEADS, rows(21), "none").to_html()
    first, folded = html.split("<details>")
    assert "row 19" in first
    assert folded.startswith("<summary>1 more</summary>")
    assert "row 20" in folded


def test_of_thousands_of_rows_two_hundred_are_shown_and_the_rest_is_counted() -> None:
    table = Table(HEADS, rows(5000), "none")
    html = table.to_html()
    assert html.count("<tr>") == 202  # two heads
    assert html.endswith("<p>and 4,800 more: to_frame() has them all</p>")
    assert len(table.to_frame()) == 5000


def test_no_rows_are_said_in_words() -> None:
    table = Table(HEADS, (), "no run yet")
    assert table.to_html() == "<p>no run yet</p>"
    assert str(table) == "no run yet"
    assert list(table.to_frame().columns) == ["", "name"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "' onload='x", "<b>", "&amp;", "</td></table>"])
def test_no_text_becomes_markup(text: str) -> None:
    html = Table(("<i>",), ((text,),), "none").to_html()
    assert f">{escape(text)}</td>" in html
    assert set(re.findall(r"</?(\w+)", html)) == {"table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("text", ["a\0b", "\u202eevil", "\ud800", "\x1b[31mred"])
def test_every_text_is_made_printable(text: str) -> None:
    bundle = Table(("x",), ((text,),), "none")._repr_mimebundle_()
    assert text not in bundle["text/html"] + bundle["text/plain"]
    assert all(shown.isprintable() for shown in bundle.values())


def test_what_failed_stands_out_and_what_passed_does_not() -> None:
    html = Table(("",), (("✓ pass",), ("✗ fail",), ("? unsealed",)), "none").to_html()
    bold = [cell for cell in re.findall(r"<td [^>]*>[^<]*", html) if "font-weight:bold" in cell]
    assert [cell.partition(">")[2] for cell in bold] == ["✗ fail", "? unsealed"]


def test_as_text_a_row_is_a_line() -> None:
    assert str(Table(HEADS, (("✗ fail", "a\nb"), ("", "c")), "none")) == "✗ fail · a; b\nc"
