"""Growth: each row on the day on which it came, so that the sums are the rows."""

import sqlite3
from contextlib import closing
from datetime import date, timedelta

import numpy as np
from charts_helpers import drawn, is_blank, texts
from damage import ROWS, run_sql
from matplotlib.patches import Rectangle

from abathur_nb import charts
from abathur_nb.config.settings import Settings
from abathur_nb.runbook.explore import growth_of, read_growth
from abathur_nb.runbook.memories import Excerpt
from abathur_nb.store.connection import connect
from abathur_nb.store.schema import expected_tables

DAY = date(2026, 11, 1)


async def growth(settings: Settings) -> tuple[Excerpt, int]:
    async with connect(settings.db_path, settings=settings) as conn:
        return await read_growth(conn)


async def test_the_sums_are_the_rows_of_every_table(database: Settings) -> None:
    run_sql(
        database.db_path,
        *ROWS,
        "INSERT INTO tasks (id, prompt, submitted_at) VALUES ('t2', 'p', '2020-02-29 00:00:00.000')",
        "INSERT INTO metrics (metric_name, metric_value, timestamp) VALUES ('m', 1, '9999-12-31 23:59:59.999')",
        "INSERT INTO tasks (id, prompt, submitted_at) VALUES ('t3', 'p', 'yesterday')",
    )
    found, undated = await growth(database)
    with closing(sqlite3.connect(database.db_path)) as conn:
        counted = {table: conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in expected_tables()}
    frame = found.to_frame()
    sums = frame.groupby("table")["rows"].sum().to_dict()
    assert sums == {**counted, "tasks": counted["tasks"] - 1}
    assert all(counted.values()), "each table was tried"
    assert undated == 1
    assert ("tasks", date(2020, 2, 29), 1, 1) in found.rows
    assert frame.groupby("table")["total"].last().to_dict() == sums
    assert frame["day"].max().year == 9999
    assert "1 row without a valid timestamp" in str(found)


async def test_a_later_version_of_a_memory_came_when_it_was_written(database: Settings) -> None:
    sql = (
        "INSERT INTO memory_entries (namespace, key, value, memory_type, version, created_at, updated_at)"
        " VALUES ('user:a', 'k', '{{}}', 'semantic', {}, '2020-01-01 00:00:00.000', '2020-01-0{} 00:00:00.000')"
    )
    # The first was deleted on the fourth day.
    run_sql(database.db_path, "DELETE FROM memory_entries", *(sql.format(*each) for each in ((1, 4), (2, 2), (3, 3))))
    found, _ = await growth(database)
    assert [row[1:3] for row in found.rows if row[0] == "memory_entries"] == [(date(2020, 1, n), 1) for n in (1, 2, 3)]


# --- its figure


def test_every_table_is_told_in_words_and_the_smaller_ones_are_one_line() -> None:
    chart = charts.rows_over_time(growth_of({f"table_{n}": {DAY: n + 1} for n in range(20)}))
    drawn(chart)
    assert all(f"table_{n} {n + 1}" in chart.alt for n in range(20))
    assert "smaller ones" in texts(chart)


def test_the_lines_end_at_the_sums() -> None:
    found = {"audit": {DAY + timedelta(days=n): n for n in range(1, 5)}, "tasks": {DAY + timedelta(days=2): 3}}
    chart = charts.rows_over_time(growth_of(found))
    drawn(chart)
    ends = {str(line.get_label()): np.asarray(line.get_ydata())[-1] for line in chart.axes[1].lines}
    assert ends == {"audit": 10, "tasks": 3}
    bars = [bar for bar in chart.axes[0].patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 13


def test_it_is_drawn_whatever_it_holds() -> None:
    names = {"<script>": {DAY: 1}, "$\\frac$": {DAY: 2}, "\u202e": {DAY: 3}, "x" * 500: {DAY: 4}}
    ages = {"long ago": {date(1, 1, 1): 1}, "far away": {date(9999, 12, 31): 10**9}}
    for found in (names, ages, {"crowd": {DAY + timedelta(days=n): n + 1 for n in range(3000)}}):
        drawn(charts.rows_over_time(growth_of(found)))
    assert is_blank(charts.rows_over_time(growth_of({})))


def test_a_single_day_is_drawn_and_its_bar_does_not_fill_the_picture() -> None:
    for day in (DAY, date.min, date.max):
        chart = charts.rows_over_time(growth_of({"tasks": {day: 3}}))
        drawn(chart)
        (bar,) = (patch for patch in chart.axes[0].patches if isinstance(patch, Rectangle))
        first, last = chart.axes[0].get_xlim()
        assert bar.get_width() <= (last - first) / 7 or day != DAY
