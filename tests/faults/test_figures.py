"""Every figure: a picture, words in its place, axes that say their units; whatever it is given."""

from collections.abc import Callable, Mapping
from datetime import date, timedelta

import numpy as np
import pytest
from charts_helpers import drawn, is_blank, texts
from damage import ROWS, query, run_sql
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle

import abathur_nb as nb
from abathur_nb import charts
from abathur_nb.charts import Chart
from abathur_nb.config.settings import Settings
from abathur_nb.runbook.explore import growth_of
from abathur_nb.store.schema import expected_tables

MS = 1_000_000
LIMITED = ("session retrieval", "memory retrieval")


def times(count: int, median_ms: float = 0.2) -> list[int]:
    rng = np.random.default_rng(count)
    return [int(value) + 1 for value in rng.lognormal(np.log(median_ms * MS), 0.5, count)]


def result(samples: Mapping[str, list[int]], *limited: str, limit_ms: float = 10) -> nb.BenchmarkResult:
    return nb.BenchmarkResult(nb.Report("benchmark", ()), samples, {}, dict.fromkeys(limited, (0.99, limit_ms)))


OPEN = "open end: too few samples for a bound"


def full(count: int) -> nb.BenchmarkResult:
    curves = {f"concurrency/{n}": times(count, n / 10) for n in (1, 2, 5, 10, 20, 50, 100, 200)}
    growth = {f"growth/{n}": times(count) for n in (1000, 10_000, 100_000, 1_000_000)}
    return result({**{name: times(count) for name in LIMITED}, **curves, **growth}, *LIMITED)


@pytest.mark.parametrize("count", [367, 368])
def test_the_distribution_shows_samples_limit_and_interval_and_says_them_in_words(count: int) -> None:
    """The slowest sample is no end of an interval: of 367 the one of p99 has none, and runs off the edge."""
    chart = charts.latency_distribution(full(count))
    drawn(chart)
    assert [ax.get_title() for ax in chart.axes] == [f"{name}: {count:,} samples" for name in LIMITED]
    assert [ax.get_ylabel() for ax in chart.axes] == ["samples", "samples"]
    assert chart.axes[-1].get_xlabel() == "time of one read (ms, logarithmic)"
    assert chart.alt.count(", limit 10 ms") == 2
    assert (OPEN in texts(chart)) is (count == 367)
    for ax in chart.axes:
        legend = ax.get_legend()
        assert legend is not None
        assert {"samples", "95 % interval of p99", "limit 10 ms"} < {text.get_text() for text in legend.get_texts()}
        (span,) = (patch for patch in ax.patches if patch.get_label() == "95 % interval of p99")
        assert isinstance(span, Rectangle)
        assert bool(span.get_x() + span.get_width() == pytest.approx(ax.get_xlim()[1])) is (count == 367)


def test_where_there_is_nothing_to_draw_words_say_so() -> None:
    check = nb.Check("benchmark", "error", observed="could not run: disk full")
    limits = dict.fromkeys(LIMITED, (0.99, 10.0))
    blank = {
        charts.rows_over_time(growth_of({})): "no row yet: there is nothing to draw",
        charts.growth_curve(result({LIMITED[0]: times(300)}, *LIMITED[:1])): "not measured: run with full = True",
    }
    for samples in ({}, {"growth/1000": times(300)}):
        chart = charts.latency_distribution(nb.BenchmarkResult(nb.Report("benchmark", (check,)), samples, {}, limits))
        blank[chart] = "nothing was measured: the report says why"
    for chart, words in blank.items():
        assert is_blank(chart)
        assert chart.alt == words


@pytest.mark.parametrize("count", [367, 368])
@pytest.mark.parametrize(
    ("draw", "x", "y"),
    [
        (charts.concurrency_curve, "reads at a time", "until all are answered (ms)"),
        (charts.growth_curve, "synthetic memories in the table", "time of one read (ms)"),
    ],
    ids=["concurrency", "growth"],
)
def test_a_curve_names_its_axes_and_an_open_bound(
    draw: Callable[[nb.BenchmarkResult], Chart], x: str, y: str, count: int
) -> None:
    """Of 367 samples p99 has no upper bound, of 368 it has one."""
    chart = draw(full(count))
    drawn(chart)
    (ax,) = chart.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert {"p50, 95 % interval", "p99, 95 % interval"} <= set(texts(chart).split("\n"))
    assert "ms at the median for 1" in chart.alt
    bars = next(c for c in ax.containers if isinstance(c, ErrorbarContainer) and c.get_label() == "p99, 95 % interval")
    line, _, (collection,) = bars.lines
    tops = [float(segment[1][1]) for segment in collection.get_segments()]
    values = [float(value) for value in np.asarray(line.get_ydata())]
    is_open = count == 367
    assert all(top == pytest.approx(value) if is_open else top > value for top, value in zip(tops, values, strict=True))
    assert (OPEN in texts(chart)) is is_open


DAY = date(2026, 11, 1)


def test_a_table_of_another_program_may_have_any_name() -> None:
    names = ("$\\frac$", "a$b", "a\nb", "\u202eevil", "x" * 500, "_hidden", "", "<script>")
    crowd = {"crowd": {DAY + timedelta(days=n): n + 1 for n in range(700)}}
    for found in ({name: {DAY: n} for n, name in enumerate(names, 1)}, crowd):
        drawn(charts.rows_over_time(growth_of(found)))


async def test_the_sums_are_the_rows_of_every_table(database: Settings) -> None:
    run_sql(
        database.db_path,
        *ROWS,
        "INSERT INTO tasks (id, prompt, submitted_at) VALUES ('t2', 'p', '2020-02-29 00:00:00.000')",
        "INSERT INTO metrics (metric_name, metric_value, timestamp) VALUES ('m', 1, '9999-12-31 23:59:59.999')",
        "INSERT INTO tasks (id, prompt, submitted_at) VALUES ('t3', 'p', 'yesterday')",
    )
    found = (await nb.explore(database)).growth
    counted = {table: query(database.db_path, f"SELECT count(*) FROM {table}")[0][0] for table in expected_tables()}
    frame = found.to_frame()
    sums = frame.groupby("table")["rows"].sum().to_dict()
    assert sums == {**counted, "tasks": counted["tasks"] - 1}
    assert all(counted.values()), "each table was tried"
    assert ("tasks", date(2020, 2, 29), 1) in found.rows
    assert frame["day"].max().year == 9999
    assert "1 row without a valid timestamp" in str(found)


def test_every_table_is_told_in_words_and_the_smaller_ones_are_one_line() -> None:
    chart = charts.rows_over_time(growth_of({f"table_{n}": {DAY: n + 1} for n in range(20)}))
    assert all(f"table_{n} {n + 1}" in chart.alt for n in range(20))
    assert "15 smaller tables" in texts(chart)


def test_the_lines_end_at_the_sums() -> None:
    found = {"audit": {DAY + timedelta(days=n): n for n in range(1, 5)}, "tasks": {DAY + timedelta(days=2): 3}}
    chart = charts.rows_over_time(growth_of(found))
    ends = {str(line.get_label()): np.asarray(line.get_ydata())[-1] for line in chart.axes[0].lines}
    assert ends == {"audit": 10, "tasks": 3}
