"""explore as an operator runs it: it shows what is there, in the archived page too; what can't be read fails it."""

from pathlib import Path

import pytest
from damage import ROWS, flip_bits, untouched
from damage import run_sql as spoil
from explore_helpers import HOSTILE, fill, insert
from notebook_operate_helpers import execute
from running import only_run, record_of

from abathur_nb.cli import main
from abathur_nb.config.settings import Settings
from abathur_nb.evidence.record import PAGE

SVG = "image/svg+xml"


@pytest.fixture
async def rich(database: Settings) -> Settings:
    """Return the settings of a database with a row in each table, a history, and what somebody hostile wrote."""
    spoil(database.db_path, *(row for row in ROWS if "'s1'" not in row))
    await fill(database)
    insert(database, "INSERT INTO sessions (id, app_name, user_id) VALUES (?1, ?1, ?1)", HOSTILE)
    return database


def test_it_shows_each_part_and_changes_nothing(rich: Settings, tmp_path: Path) -> None:
    with untouched(rich.db_path):
        run = execute("explore", rich, tmp_path, "-r", "session", "s1", "-r", "key", "tea").succeeded()
    assert run.report.startswith("explore passed: 8 pass")
    (diagram,) = run.shown(SVG)
    assert "<title>Diagram of 9 tables" in diagram
    assert len(run.shown("image/png")) == 1
    html = "".join(run.shown())
    for shown in ("app:mode", "value.kinds[1]", "user:alice:likes tea: 3 versions", "memory_create", "busiest day"):
        assert shown in html
    assert "<script" not in html


def test_its_parameters_choose_what_is_shown(rich: Settings, tmp_path: Path) -> None:
    run = execute("explore", rich, tmp_path, "-r", "namespace", "user:100%_", "-p", "limit", "1").succeeded()
    assert "user:100%_x c: 1 versions" in run.report
    execute("explore", rich, tmp_path, "-p", "limit", "1001").failed("limit", "1..1000")


def test_its_record_holds_the_rows(rich: Settings, tmp_path: Path) -> None:
    execute("explore", rich, tmp_path).succeeded()
    record = record_of(only_run(rich))
    assert (record["notebook"], record["verdict"]) == ("explore", "pass")
    assert record["facts"]["rows"]["sessions"] == 2


def test_its_archived_page_shows_the_diagram(rich: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    ended = main(["run", "explore", "--env", "development", "-p", "db_path", str(rich.db_path)])
    assert ended == 0, capsys.readouterr().err
    page = (only_run(rich).folder / PAGE).read_text(encoding="utf-8")
    assert page.count(f'src="data:{SVG};base64,') == 1
    assert "user:alice:likes tea: 3 versions" in page
    assert "<script" not in page


def test_a_damaged_database_fails_it_and_stays_as_it_is(rich: Settings, tmp_path: Path) -> None:
    spoil(rich.db_path)
    flip_bits(rich.db_path, 100, 4000)
    with untouched(rich.db_path):
        execute("explore", rich, tmp_path).failed("explore of").showed_its_report()
