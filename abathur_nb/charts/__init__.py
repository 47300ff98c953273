"""Every figure: takes results, returns a Chart; drawn without pyplot, so nothing has to be closed."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from abathur_nb.charts.figures import (
    BLUE,
    MILLISECONDS,
    ORANGE,
    RED,
    Chart,
    blank,
    draw_intervals,
    grid,
    label,
    monitoring_over_time,
    new_chart,
    one_line,
    percentiles_over_time,
    rows_over_time,
    sizes_over_time,
    verdicts_over_time,
)
from abathur_nb.percentiles import percentiles
from abathur_nb.store.schema import expected_objects, expected_tables
from abathur_nb.text import counted

if TYPE_CHECKING:
    from abathur_nb.runbook.benchmark import BenchmarkResult
    from abathur_nb.runbook.explain import Plans
    from abathur_nb.runbook.validate import Schema

__all__ = [
    "Chart",
    "concurrency_curve",
    "coverage_matrix",
    "growth_curve",
    "latency_distribution",
    "monitoring_over_time",
    "percentiles_over_time",
    "rows_over_time",
    "sizes_over_time",
    "table_sizes",
    "verdicts_over_time",
]

_OPEN = "open where the samples are too few for a bound"


def latency_distribution(result: "BenchmarkResult") -> Chart:
    """Draw how long those reads took whose p99 has a limit, with the p99, its 95 % interval and the limit."""
    wanted = {name: limit for name, (level, limit) in result.limits.items() if level == 0.99 and name in result.samples}
    if not wanted:
        return blank("nothing was measured: the report says why")
    chart, axes = new_chart(1.0 + 1.9 * len(wanted), len(wanted), sharex=True)
    words = []
    ends = [end for name, limit in wanted.items() for end in (*result.samples[name], limit * 1e6)]
    left, right = min(ends) / 1e6 / 1.3, max(ends) / 1e6 * 1.3
    for ax, (name, limit) in zip(axes, wanted.items(), strict=True):
        milliseconds = np.asarray(result.samples[name]) / 1e6
        p99 = percentiles(result.samples[name])[-1]
        bins = np.geomspace(milliseconds.min() * 0.9, milliseconds.max() * 1.1, 60)
        ax.hist(milliseconds, bins=list(bins), color=BLUE, label="samples")
        ax.axvspan(p99.low or left, p99.high or right, color=ORANGE, alpha=0.45, label="95 % interval of p99")
        if p99.low is None or p99.high is None:  # it runs off the edge
            ax.text(0.99, 0.9, _OPEN, transform=ax.transAxes, ha="right", fontsize=8, backgroundcolor="white")
        ax.axvline(p99.value, color="black", linestyle="--", label=f"p99 {p99.value:.3g} ms")
        ax.axvline(limit, color=RED, linewidth=2, label=f"limit {limit:g} ms")
        ax.set(xscale="log", title=f"{name}: {counted(len(milliseconds), 'sample')}", ylabel="samples")
        ax.legend(fontsize=8, loc="upper center")
        words.append(f"{name}: {p99}, limit {limit:g} ms")
    axes[-1].set(xlim=(left, right), xlabel="time of one read (ms, logarithmic)")
    axes[-1].xaxis.set_major_formatter(MILLISECONDS)
    chart.alt = "Histogram of read times. " + "; ".join(words)
    return chart


def concurrency_curve(result: "BenchmarkResult") -> Chart:
    """Draw how long so many reads take together; needs a result with ``full=True``."""
    words = "Time until all of so many concurrent reads are answered"
    return _curve(result.curve("concurrency"), "reads at a time", "until all are answered (ms)", words)


def growth_curve(result: "BenchmarkResult") -> Chart:
    """Draw how the time of one memory retrieval grows with the table; needs a result with ``full=True``."""
    words = "Time of one memory retrieval by size of the table"
    return _curve(result.curve("growth"), "synthetic memories in the table", "time of one read (ms)", words)


def _curve(measured: dict[str, Sequence[int]], x: str, y: str, words: str) -> Chart:
    """Draw p50 and p99 over a curve, each with its interval."""
    curve = {int(name): samples for name, samples in measured.items()}
    if not curve:
        return blank("not measured: run with full = True")
    chart, (ax,) = new_chart(3.6)
    found = {at: percentiles(samples) for at, samples in curve.items()}
    for level, (colour, marker) in {0: (BLUE, "o"), 2: (ORANGE, "^")}.items():
        points = [levels[level] for levels in found.values()]
        bounds = [(point.low, point.value, point.high) for point in points]
        style = {"color": colour, "marker": marker, "capsize": 3}
        draw_intervals(ax, list(curve), bounds, f"{points[0].name}, 95 % interval", **style)
    if any(None in (point.low, point.high) for levels in found.values() for point in (levels[0], levels[2])):
        ax.plot([], [], linestyle="", label=_OPEN)
    ax.legend()
    grid(ax)
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=words)
    ax.set_xticks(list(curve), [f"{at:,}" for at in curve])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # the values often span less than a power of ten
    ax.yaxis.set_major_formatter(MILLISECONDS)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    ends = ", ".join(f"{median(curve[at]) / 1e6:.3g} ms at the median for {at:,}" for at in (min(curve), max(curve)))
    chart.alt = f"{words}: {ends}"
    return chart


def coverage_matrix(plans: "Plans") -> Chart:
    """Draw which query uses which of the 33 indexes."""
    indexes = sorted(plans.coverage, key=lambda name: (expected_tables().index(expected_objects()[name].table), name))
    # Queries in the order of their indexes, so that a full set of indexes shows as a staircase.
    queries = list(dict.fromkeys(query for index in indexes for query in plans.coverage[index]))
    chart, (ax,) = new_chart(8.5)
    points = [(queries.index(query), row) for row, index in enumerate(indexes) for query in plans.coverage[index]]
    unused = [index for index in indexes if not plans.coverage[index]]
    for row in map(indexes.index, unused):
        ax.axhspan(row - 0.5, row + 0.5, color=RED, alpha=0.3)
    ax.plot([x for x, _ in points], [y for _, y in points], "s", color=BLUE, markersize=6)
    ax.set_xticks(range(len(queries)), queries, rotation=90, fontsize=7)
    ax.set_yticks(range(len(indexes)), indexes, fontsize=7)
    ax.set(xlim=(-0.7, len(queries) - 0.3), ylim=(len(indexes) - 0.5, -0.5))
    grid(ax)
    ax.set_title(f"{len(indexes) - len(unused)} of {len(indexes)} indexes serve a query")
    words = f"Matrix of {len(indexes)} indexes and {len(queries)} queries"
    chart.alt = f"{words}; unused: {', '.join(unused) or 'none'}"
    return chart


def table_sizes(schema: "Schema") -> Chart:
    """Draw each table's rows, and the size of it and its indexes where this SQLite has dbstat."""
    own = {table: schema.sizes.get(table, 0) for table in schema.rows}
    of_indexes = {table: sum(schema.sizes.get(name, 0) for name in _indexes_of(schema, table)) for table in own}
    tables = sorted(own, key=lambda table: (own[table] + of_indexes[table], schema.rows[table]))
    if not tables:
        return blank("no table could be read: the report says why")
    chart, (ax,) = new_chart(1.2 + 0.32 * len(tables))
    places = range(len(tables))
    rows = [counted(schema.rows[table], "row") for table in tables]
    if schema.sizes:
        begins = [own[table] for table in tables]
        ends = [own[table] + of_indexes[table] for table in tables]
        ax.barh(places, begins, color=BLUE, label="rows")
        ax.barh(places, [of_indexes[table] for table in tables], left=begins, color=ORANGE, label="its indexes")
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
        ax.set_xlabel("size in the file (bytes)")
        ax.legend(loc="lower right")
    else:
        ends = [schema.rows[table] for table in tables]
        ax.barh(places, ends, color=BLUE)
        ax.set_xlabel("rows")
    ax.set_yticks(places, [label(table) for table in tables])
    for y, (end, words) in enumerate(zip(ends, rows, strict=True)):
        ax.annotate(words, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.margins(x=0.15)
    ax.set_title("Tables by size")
    largest_first = zip(reversed(tables), reversed(rows), strict=True)
    chart.alt = "Tables by size: " + ", ".join(f"{one_line(name, 100)} {words}" for name, words in largest_first)
    return chart


def _indexes_of(schema: "Schema", table: str) -> set[str]:
    named = {found.name for found in schema.objects.values() if found.type == "index" and found.table == table}
    return named | {name for name in schema.sizes if name.startswith(f"sqlite_autoindex_{table}_")}
