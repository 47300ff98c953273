"""The page of a run: it says what the record says, shows what the notebook showed, runs nothing and asks nobody."""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import archives
import pandas as pd
import pytest
from archives import record_with
from browser import CANARY, asked_for, sung

from abathur_nb import charts
from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence import page
from abathur_nb.evidence.archive import keep
from abathur_nb.evidence.page import clean, render
from abathur_nb.evidence.record import EXIT_CODES, VERDICTS, Record, Verdict
from abathur_nb.report import Check, Report
from abathur_nb.runbook.explore import growth_of
from abathur_nb.runbook.validate import Schema

CHECKS = (
    Check("integrity", "pass", "ok", "ok"),
    Check("indexes", "fail", "the 33 of sql/", "32 indexes", "run the statements", ("CREATE INDEX idx_audit_task",)),
    Check("WAL", "warn", "less", "more"),
)
FIELDS: dict[str, Any] = {
    "run_id": "20261123T041742422Z-8086a2",
    "template": {"name": "validate.ipynb", "sha256": "5885bd04a5c0d19a" + "0" * 48},
    "env": "staging",
    "parameters": {"env": "staging", "db_path": None, "rows": 500},
    "user": "alice",
    "host": "db1",
    "versions": {"Python": "3.11.7", "SQLite": "3.40.1", "SQLite source": "2022-12-28 df5c", "papermill": "2.7.0"},
    "started_at": "2026-11-23 04:17:42.427",
    "ended_at": "2026-11-23 04:17:44.927",
    "verdict": "fail",
    "reports": [Report("validate", CHECKS).to_dict()],
    "database": {
        "before": {"path": "abathur.db", "size": 229376, "schema_sha256": "be2d1ee0bf8c915e" + "0" * 48},
        "after": {"path": "abathur.db", "size": 233472, "schema_sha256": "d3dbf37e484e254c" + "0" * 48},
    },
    "error": {"cell": 2, "id": None, "name": "OperationalError", "message": "disk I/O error"},
}
RECORD = record_with(**FIELDS)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one, red


def markdown(source: str, **more: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": source, **more}


def code(*outputs: Mapping[str, Any], source: str = "1", count: int | None = 1, **more: Any) -> dict[str, Any]:
    cell = {"cell_type": "code", "id": "c", "metadata": {}, "source": source, "execution_count": count, **more}
    return {**cell, "outputs": list(outputs)}


def shows(metadata: Mapping[str, Any] | None = None, /, **data: Any) -> dict[str, Any]:
    """Return an output with this data; ``text_html`` stands for text/html."""
    bundle = {name.replace("_", "/", 1): value for name, value in data.items()}
    return {"output_type": "display_data", "data": bundle, "metadata": metadata or {}}


def stream(text: Any, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def fails(name: str, value: str, *traceback: str) -> dict[str, Any]:
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": list(traceback)}


def notebook(*cells: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def page_of(*cells: Mapping[str, Any], record: Record = RECORD) -> str:
    return render(notebook(*cells), record).decode()


class Reader(HTMLParser):
    """Read what a piece of HTML shows: its texts, and each element with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element; an attribute without a value is the same as one with an empty value."""
        self.elements.append((tag, {name: value or None for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        """Keep a text that a reader sees."""
        if data.strip() and self.elements[-1][0] not in ("style", "title"):
            self.texts.append(data)


def words(html: str) -> str:
    return " ".join(" ".join(Reader(html).texts).split())


@pytest.mark.parametrize("verdict", EXIT_CODES)
def test_the_verdict_stands_first_as_a_shape_and_a_word(verdict: Verdict) -> None:
    shown = words(page_of(record=replace(RECORD, verdict=verdict)))
    mark, meaning = VERDICTS[verdict]
    assert shown.startswith(f"{mark} {verdict} validate of staging {meaning.capitalize()}. ")
    assert len({mark for mark, _ in VERDICTS.values()}) == len(EXIT_CODES)


def test_the_head_says_what_ran_where_when_by_whom_and_on_which_database() -> None:
    shown = words(page_of(code(), code(count=None)))
    for fact in (
        "run 20261123T041742422Z-8086a2",
        "notebook validate.ipynb, sha256 5885bd04a5c0d19a…",
        "environment staging",
        "when 2026-11-23 04:17:42.427 to 2026-11-23 04:17:44.927 UTC, 2.5 s",
        "who alice on db1",
        "versions Python 3.11.7, SQLite 3.40.1, papermill 2.7.0",
        "database before abathur.db, 229,376 bytes, schema be2d1ee0bf8c915e…",
        "database after abathur.db, 233,472 bytes, schema d3dbf37e484e254c…",
        "code cells 2, 1 of them never ran",
        "Parameters env staging db_path null rows 500",
    ):
        assert fact in shown
    same = replace(RECORD, database=dict.fromkeys(("before", "after"), RECORD.database["before"]))
    assert "database after the same size, ids and schema" in words(page_of(record=same))
    assert "database before none database after none" in words(
        page_of(record=replace(RECORD, database={"before": None, "after": None}))
    )


def test_what_failed_stands_before_what_ran() -> None:
    shown = words(page_of(code(source="THE CODE")))
    assert "3 checks: 1 fail, 1 warn, 1 pass." in shown
    parts = ["✗ fail indexes the 33 of sql/ 32 indexes evidence: 1 CREATE INDEX", "! warn WAL less more", "THE CODE"]
    assert [shown.index(part) for part in parts] == sorted(shown.index(part) for part in parts)
    assert "integrity" not in shown


def test_what_could_not_run_stands_behind_the_failure_that_is_its_cause() -> None:
    checks = (Check("b", "error", observed="not asked"), Check("a", "fail", observed="corrupt"))
    shown = words(page_of(record=replace(RECORD, reports=(Report("validate", checks),))))
    assert shown.index("✗ fail a") < shown.index("? could not run b")


def test_markdown_is_rendered() -> None:
    source = (
        "# Title\n\n*now* [docs](https://docs.invalid/x) [next](explain.ipynb)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    html = page_of(markdown(source))
    reader = Reader(html)
    assert "Title now docs next a b 1 2" in words(html)
    assert {"h1", "em", "table", "tbody"} <= {tag for tag, _ in reader.elements}
    links = [attributes for tag, attributes in reader.elements if tag == "a" and "#" not in str(attributes.get("href"))]
    # A link of the web is one, and asks for nothing by itself; a neighbour of the notebook isn't one of its copy.
    rel = {"rel": "noopener noreferrer"}
    assert links == [{"href": "https://docs.invalid/x", **rel}, rel]


def test_an_error_is_shown_without_its_colours() -> None:
    output = fails(
        "KeyError", "'a'", "\x1b[0;31mKeyError\x1b[0m  Traceback", "\x1b]8;;http://x\x07link\x1b]8;;\x07", "\x1bM\x07"
    )
    shown = words(page_of(code(output)))
    assert "KeyError: 'a' traceback KeyError Traceback link \\x07" in shown
    one_line = words(page_of(code(fails("RefusedError", "no", "RefusedError: no"))))
    assert "RefusedError: no A copy" in one_line


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (shows(text_html="<p>best</p>", text_plain="worse"), "best"),
        (shows(text_markdown="*best*", text_plain="worse"), "best"),
        (shows(text_plain=["two ", "lines"]), "two lines"),
        (shows(application_json={"a": [1]}), '{ "a": [ 1 ] }'),
        (shows(application_javascript="run()"), "not shown here: application/javascript"),
        (shows() | {"data": {"application/vnd.abathur.run+json": {}, "text/plain": "PASS"}}, "PASS"),
        (shows(image_png="<no base64>", text_plain="a figure"), "a figure"),
        (shows(), "not shown here: an output without content"),
    ],
)
def test_the_best_of_an_output_is_shown(output: dict[str, Any], shown: str) -> None:
    assert f"[1] code 1 {shown} A copy for reading." in words(page_of(code(output)))


def frame() -> str:
    return pd.DataFrame({"a": [1.5, None], "<b>": ["x", "y"]}).to_html(border=0)


def report() -> str:
    checks = [
        Check("indexes", "fail", "33", "<32>", "run it", tuple(f"CREATE {i}" for i in range(7))),
        Check("busy", "error", "x", "could not run", "wait", ("one & two",)),
        Check("slow", "warn", "fast", "slow"),
        *(Check(f"check {number}", "pass", "a", "b") for number in range(40)),
    ]
    return Report("validate", tuple(checks), subject="/data/x.db").to_html()


def bars() -> str:
    return Schema({}, {"tasks": 3, "<b>": 0}, {"tasks": 4096, "sqlite_autoindex_tasks_1": 9000}).by_size().to_html()


@pytest.mark.parametrize("make", [report, frame, bars])
def test_a_table_of_ours_comes_out_whole(make: Callable[[], str]) -> None:
    """Every element, attribute, style and word of it."""
    html = make()
    before, after = Reader(html), Reader(clean(html))
    assert after.elements == before.elements
    assert after.texts == before.texts
    assert words(html) in words(page_of(code(shows(text_html=html))))


def test_a_figure_comes_out_whole_with_its_words() -> None:
    data, metadata = charts.rows_over_time(growth_of({"tasks": {date(2026, 11, 1): 3}}))._repr_mimebundle_()
    picture = base64.encodebytes(data["image/png"]).decode()
    output = {"output_type": "display_data", "data": {**data, "image/png": picture}, "metadata": metadata}
    (shown,) = (attributes for tag, attributes in Reader(page_of(code(output))).elements if tag == "img")
    assert shown["src"] is not None
    assert base64.b64decode(shown["src"].removeprefix("data:image/png;base64,")) == data["image/png"]
    assert shown["alt"] == metadata["image/png"]["alt"]
    assert shown["width"] == str(metadata["image/png"]["width"])


# {js} is the canary. Where a value runs only after a click, a hover or the like, the harness does it.
HOSTILE = [
    "<script>{js}</script>",
    "</pre></code></td></details><script>{js}</script>",
    "'\"></p><script>{js}</script>",
    "</style><script>{js}</script><style>",
    "</title><script>{js}</script>",
    "--><script>{js}</script><!--",
    "<img src=x onerror={js}>",
    '" onerror={js} src=x: autofocus onfocus={js} onmouseover={js} x="',
    "<details open ontoggle={js}><summary>s</summary></details>",
    "<iframe srcdoc='<script>{js}</script>'></iframe>",
    "<iframe src='javascript:{js}'></iframe>",
    "<object data='data:text/html,<script>{js}</script>'></object>",
    "<a href=javascript:{js}>click</a>",
    "<a href='&#106;ava&Tab;script&colon;{js}'>click</a>",
    "[click](javascript:{js})",
    "[click](<JaVaScRiPt:{js}>) <javascript:{js}>",
    '![x](x:"onerror={js}) ![x" onerror={js} y="](x:)',
    "<a href='data:text/html,<script>{js}</script>' target=_self>click</a>",
    "<form action=javascript:{js}><input type=submit></form>",
    "<meta http-equiv=refresh content='0;url=data:text/html,<script>{js}</script>'>",
    "<base href='javascript:/a/-{js}//'><a href=#>click</a>",
    "<style>@keyframes k{{from{{width:1px}}}} b{{animation:k 1s}}</style><b onanimationstart={js}>a</b>",
    "<svg><a xlink:href=javascript:{js}><text y=9>click</text></a></svg>",
    "<svg><animate onbegin={js} attributeName=x dur=1s></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x: onerror={js}&gt;'>",
    "<noscript><p title='</noscript><img src=x: onerror={js}>'></noscript>",
    "<table><td background=javascript:{js}><caption onclick={js}>c</caption></table>",
    "<b style='width:expression({js});background:url(javascript:{js});behavior:url(#x)' onclick={js}>b</b>",
]
BARE = 1000  # and above: the number of a canary in a page that nothing guards


def hostile(number: int, offset: int = 0) -> str:
    return HOSTILE[number].format(js=CANARY.format(number=number + offset))


def planted(value: str) -> tuple[dict[str, Any], Record]:
    """Return a notebook and a record that hold a value wherever there is a text, and a page may not expect one."""
    cell = {"id": value, "metadata": {"tags": [value], "papermill": {"status": value}, value: value}}
    kinds = "text/html text/markdown text/plain text/latex image/svg+xml image/png image/jpeg application/json"
    script = value.partition("<script>")[2].partition("</script>")[0] or value
    outputs = [
        *({"output_type": "display_data", "data": {kind: value}, "metadata": {kind: value}} for kind in kinds.split()),
        shows(application_javascript=script),
        shows({"image/png": {"alt": value, "width": value}, value: value}, image_png=PIXEL, text_plain=value),
        shows({"text/html": {"isolated": True}}, text_html=value),
        {"output_type": "display_data", "data": {value: value}, "metadata": {}},
        shows() | {"data": {"application/vnd.abathur.run+json": {value: value}}},
        stream(value),
        stream(value, "stderr"),
        stream(value, value),
        fails(value, value, value),
    ]
    made = notebook(
        markdown(value, attachments={value: {"image/svg+xml": value}}, **cell),
        markdown(f"# {value}\n\n- {value}\n\n| {value} |\n|---|\n| {value} |\n\n    {value}\n\n`{value}`\n"),
        markdown(f"\n<div>\n\n{value}\n\n</div>\n"),
        {"cell_type": "raw", "source": value, **cell},
        {"cell_type": value, "source": value, **cell},
        code(*outputs, source=value, count=value, **cell),  # type: ignore[arg-type]
        **{value: value, "title": value, "language_info": {"name": value}},
    )
    return made, hostile_record(value)


def hostile_record(value: str) -> Record:
    """Return a record with each text, and each number, replaced where a record may have another."""
    return record_with(**{name: _with_texts({name: field}, value)[name] for name, field in FIELDS.items()})


_FIXED = {"size", "status", "verdict", "started_at", "ended_at", "finished_at", "refused"}


def _with_texts(data: Any, value: str) -> Any:
    if isinstance(data, dict):
        replaced = {key: item if key in _FIXED else _with_texts(item, value) for key, item in data.items()}
        return {**replaced, value: value}
    return [_with_texts(item, value) for item in data] if isinstance(data, list) else value


def without_the_policy(html: str) -> str:
    bare, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert count == 1
    return bare


@pytest.mark.needs("chromium")
def test_the_sanitizer_alone_stops_a_hostile_value_wherever_it_stands(tmp_path: Path) -> None:
    """In parameters, prose, outputs of every kind, streams, errors, the record: with no policy behind it.

    The control: unguarded, all but a few run. Those need Markdown, a sanitizer that they fool, or an older browser.
    """
    pages = []
    for number in range(len(HOSTILE)):
        html = render(*planted(hostile(number))).decode()
        value = hostile(number, BARE)
        pages += [without_the_policy(html), f'<!DOCTYPE html><title>x</title><p>{value}<p title="{value}">x']
        once = clean(HOSTILE[number].format(js="run()"))
        assert clean(once) == once, "else the browser could read another thing"
    heard = sung(tmp_path, pages)
    assert {number for number in heard if number < BARE} == set()
    still = [value for number, value in enumerate(HOSTILE) if number + BARE not in heard]
    assert len(still) <= 6, still


ELSEWHERE = [
    "<img src='{url}'>",
    "![x]({url})",
    "<picture><source srcset='{url}'><img srcset='{url} 1x' src=''></picture>",
    "<link rel=stylesheet href='{url}'><link rel=preload as=image href='{url}'><link rel=prefetch href='{url}'>",
    "<script src='{url}'></script>",
    "<iframe src='{url}'></iframe><object data='{url}'></object><embed src='{url}'>",
    "<video src='{url}' poster='{url}' autoplay></video><audio src='{url}' autoplay></audio>",
    "<style>@import '{url}'; body {{ background: url({url}) }}</style>",
    "<b style='background:url({url});background-image:url({url});list-style:url({url})'>b</b>",
    "<b style='background:u\\72l({url});border-image:image-set(\"{url}\" 1x);cursor:url({url}),auto'>b</b>",
    "<meta http-equiv=refresh content='0;url={url}'>",
    "<base href='{url}'><img src=x.png>",
    "<svg><image href='{url}'/><use href='{url}'/></svg>",
    "<table background='{url}'><td background='{url}'>x</table><body background='{url}'>",
    "<input type=image src='{url}'>",
    "<a href='{url}' ping='{url}'>{url}</a>",
    "{url}",
]


@pytest.mark.needs("chromium")
def test_a_page_asks_nothing_of_any_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with its policy nor without it; a page without sanitizer and policy does, and is heard."""
    values = [value.format(url=f"http://canary{n}.invalid/x.png") for n, value in enumerate(ELSEWHERE)]
    made = notebook(
        *(markdown(value) for value in values),
        *(code(shows(text_html=value), shows(text_markdown=value), stream(value)) for value in values),
    )
    html = render(made, hostile_record(" ".join(values))).decode()
    monkeypatch.setattr(page, "clean", lambda html: html)
    unclean = without_the_policy(render(made, RECORD).decode()).replace("http-equiv=refresh", "")
    found = asked_for(tmp_path, {"page": html, "bare": without_the_policy(html), "control": unclean})
    assert found["page"] == []
    assert found["bare"] == []
    hosts = {host for line in found["control"] for host in re.findall(r"canary\d+", line)}
    assert len(hosts) >= 9, found["control"]


@pytest.mark.parametrize(
    ("style", "kept"),
    [
        ("color: red; text-align:left;", "color: red; text-align:left;"),
        ("background:rgb(1, 2, 3);width:50%", "background:rgb(1, 2, 3);width:50%"),
        ("position:fixed;top:0;margin-top:-900px;z-index:9;color:red", "color:red"),
        ("display:none;opacity:0;font-size:900px;transform:none;height:9px", None),
        ("background:url(x);color:URL(x);width:var(--x);width:calc(1px);color:re\\64", None),
        ("color:red}body{color:blue", None),
        ("color:red/**/;width:1em/*", None),
    ],
)
def test_a_style_keeps_what_neither_loads_nor_covers_anything(style: str, kept: str | None) -> None:
    """What a cell shows can't be laid over the verdict."""
    ((_, attributes),) = Reader(clean(f"<p style='{style}'>x</p>")).elements
    assert attributes.get("style") == kept


def test_a_cell_cannot_dress_up_as_the_head() -> None:
    value = "<p class='verdict pass' id='cell-0'>✓ pass</p><header class=head>"
    html = page_of(markdown(value), code(shows(text_html=value)))
    assert html.count('class="verdict') == 1
    assert html.count('id="cell-0"') == 1
    assert html.count("<header") == 1


def test_a_run_without_a_page_gets_it_outside_of_the_archive(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = archives.run(settings)  # keeps it with a page
    bare = archives.start(settings)
    archives.seal(bare, settings)
    keep(bare, settings, archives.notebook("1 + 1"), html=False)
    monkeypatch.chdir(tmp_path)
    chosen = ["--archive", str(settings.archive_dir)]
    assert main(["page", folder.name, *chosen]) == 0
    assert capsys.readouterr().out == f"{folder / 'page.html'}\n"
    before = {path: path.stat().st_mtime_ns for path in bare.iterdir()}
    assert main(["page", bare.name, *chosen]) == 0
    made = tmp_path / f"{bare.name}.html"
    assert capsys.readouterr().out == f"{made}\n"
    assert "1 + 1" in made.read_text()
    assert made.stat().st_mode & 0o777 == 0o600
    assert {path: path.stat().st_mtime_ns for path in bare.iterdir()} == before
    assert main(["page", bare.name, *chosen]) == 2, "no file is overwritten"
    (bare / "notebook.ipynb").write_bytes(b"{}")
    assert main(["page", bare.name, *chosen, "--output", "other.html"]) == 2
    assert "was altered" in capsys.readouterr().err
