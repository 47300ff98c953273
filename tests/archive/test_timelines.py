"""Every figure over time: one moment, thousands, none; each verdict by shape and colour; intervals, limits, sizes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import record_with
from charts_helpers import drawn, is_blank
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from abathur_nb import charts
from abathur_nb.evidence.record import EXIT_CODES, Entry
from abathur_nb.report import Report
from abathur_nb.runbook.history import History

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
VERDICTS = (*EXIT_CODES, "unsealed", "altered")
ALL = (charts.verdicts_over_time, charts.percentiles_over_time, charts.sizes_over_time)


def at(hours: float, verdict: str = "pass", notebook: str = "validate", size: int | None = None, **facts: Any) -> Entry:
    run_id = f"{BEGIN + timedelta(hours=hours):%Y%m%dT%H%M%S%f}"[:18] + "Z-abcdef"
    ended = {} if verdict in ("unsealed", "altered") else {"verdict": verdict}
    database = {"after": None if size is None else {"size": size}}
    record = record_with(run_id=run_id, notebook=notebook, facts=facts, database=database, **ended)
    faults = ("altered",) if verdict == "altered" else ()
    return Entry(run_id, Path(), record, None if verdict == "unsealed" else record, None, faults)


def history(*runs: Entry) -> History:
    return History(Report("history", ()), Path(), runs)


def measured(hours: float, ms: float = 1.0, limit: float = 20, rows: str = "500", high: float | None = 3) -> Entry:
    bounds = {"p50": (ms * 0.9, ms, ms * 1.1), "p99": (ms * 2, ms * 2.5, high and ms * high)}
    limits = {"memory retrieval": ("p99", limit)}
    found = {"memory retrieval": bounds}
    return at(hours, notebook="benchmark", percentiles_ms=found, limits_ms=limits, machine={"rows": rows})


def lines(ax: Axes) -> dict[str, Any]:
    """Return what is drawn as a line, by what the legend calls it."""
    return {str(line.get_label()): line for line in ax.lines}


def test_each_verdict_is_drawn_and_counted_and_no_two_look_alike_without_colour() -> None:
    chart = charts.verdicts_over_time(history(at(-1), *(at(hour, name) for hour, name in enumerate(VERDICTS))))
    drawn(chart)
    (ax,) = chart.axes
    for name in VERDICTS:
        count = 2 if name == "pass" else 1
        assert len(lines(ax)[f"{name}: {count}"].get_xdata()) == count
        assert f"{count} {name}" in chart.alt
    assert ax.get_xlabel() == "start of the run (UTC)"
    assert len({(line.get_marker(), line.get_fillstyle()) for line in ax.lines}) == len(VERDICTS)


def test_a_notebook_may_be_named_anything() -> None:
    labels = ("$\\frac$", "a$b$", "<script>", "x" * 500, "_hidden", "", "été")
    chart = charts.verdicts_over_time(history(*(at(hour, notebook=label) for hour, label in enumerate(labels))))
    drawn(chart)
    assert len(chart.axes[0].get_yticklabels()) == len(labels)


def errorbars(ax: Axes) -> dict[str, ErrorbarContainer]:
    return {str(found.get_label()): found for found in ax.containers if isinstance(found, ErrorbarContainer)}


def test_the_percentiles_are_drawn_with_their_intervals_and_the_limit() -> None:
    chart = charts.percentiles_over_time(history(measured(0), measured(24, ms=2), at(30)))
    drawn(chart)
    (ax,) = chart.axes
    assert (ax.get_title(), ax.get_ylabel(), ax.get_yscale()) == ("memory retrieval", "ms (logarithmic)", "log")
    bars = errorbars(ax)
    assert set(bars) == {"p50, 95 % interval", "p99, 95 % interval"}
    assert list(np.asarray(bars["p99, 95 % interval"][0].get_ydata())) == [2.5, 5]
    (drawn_bars,) = bars["p99, 95 % interval"][2]
    assert [[y for _, y in bar] for bar in drawn_bars.get_segments()] == [[2, 3], [4, 6]]
    assert list(lines(ax)["limit 20 ms"].get_ydata()) == [20, 20]
    assert "memory retrieval p99 2.5 ms at first, 5 ms at last, limit 20 ms" in chart.alt


def test_the_sizes_show_the_file_first_and_then_the_largest_at_last() -> None:
    names = [f"t{number}" for number in range(20)]
    early = at(0, size=50_000, sizes=dict.fromkeys(names, 4096))
    late = at(24, size=60_000, sizes={name: 4096 * (number + 1) for number, name in enumerate(names)})
    chart = charts.sizes_over_time(history(early, late))
    drawn(chart)
    (ax,) = chart.axes
    assert list(lines(ax)) == ["the file", "t19", "t18", "t17", "t16", "t15"]
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 6
    assert ax.get_ylabel() == "size (bytes)"
    assert ax.get_ylim()[0] == 0
    assert "the file 50,000 bytes at first, 60,000 at last" in chart.alt


@pytest.mark.parametrize("draw", ALL)
def test_one_run_is_drawn_at_its_hour_and_not_in_years_and_without_any_words_say_so(draw: Any) -> None:
    assert is_blank(draw(history()))
    run = measured(0)
    assert run.record
    chart = draw(history(replace(run, record=replace(run.record, database={"after": {"size": 4096}}))))
    drawn(chart)
    first, last = chart.axes[-1].get_xlim()
    assert last - first == 1  # day
