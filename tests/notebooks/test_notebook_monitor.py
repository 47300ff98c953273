"""monitor as an operator runs it: it looks, keeps what it is told to keep, and fails where something is wrong."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from damage import MEMORY, SESSION, untouched
from damage import run_sql as spoil
from notebook_operate_helpers import execute
from running import only_run, record_of

from abathur_nb.config.settings import Settings


def recorded(settings: Settings) -> int:
    with closing(sqlite3.connect(settings.db_path)) as conn:
        ((count,),) = conn.execute("SELECT count(*) FROM metrics WHERE metric_name LIKE 'abathur%'")
    return int(count)


def test_it_looks_and_keeps_nothing_unless_it_is_told_to(database: Settings, tmp_path: Path) -> None:
    spoil(database.db_path, SESSION, MEMORY)
    with untouched(database.db_path):
        run = execute("monitor", database, tmp_path).succeeded()
    assert "age of the last proven backup: there is none" in run.report
    assert len(run.shown("image/png")) == 1
    execute("monitor", database, tmp_path, "-p", "record", "True").succeeded()
    assert recorded(database) > 40


def test_its_record_holds_what_was_measured(database: Settings, tmp_path: Path) -> None:
    execute("monitor", database, tmp_path).succeeded()
    record = record_of(only_run(database))
    assert (record["notebook"], record["verdict"]) == ("monitor", "pass")
    assert ["abathur_up", {}, 1.0] in record["facts"]["metrics"]["samples"]


def test_a_critical_alert_fails_it_where_the_settings_say_so(
    database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABATHUR_ALERTS_FAIL", "true")
    with untouched(database.db_path):
        run = execute("monitor", database, tmp_path)
    run.failed("monitor of", "age of the last proven backup: there is none").showed_its_report()


def test_a_damaged_database_fails_it_and_stays_as_it_is(database: Settings, tmp_path: Path) -> None:
    with database.db_path.open("r+b") as file:
        file.write(b"x" * 1000)
    before = database.db_path.read_bytes()
    execute("monitor", database, tmp_path, "-p", "record", "True").failed("monitor of").showed_its_report()
    assert database.db_path.read_bytes() == before
