"""Every figure: takes results, returns a Chart; drawn without pyplot, so nothing has to be closed."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from abathur_nb.charts.figure import BLUE, GREY, MILLISECONDS, ORANGE, RED, Chart, blank, new_chart, one_line
from abathur_nb.charts.timelines import (
    monitoring_over_time,
    percentiles_over_time,
    rows_over_time,
    sizes_over_time,
    verdicts_over_time,
)
from abathur_nb.percentiles import percentiles
from abathur_nb.store.schema import expected_objects, expected_tables
from abathur_nb.text import counted

if TYPE_CHECKING:
    from abathur_nb.measure.measurements import BenchmarkResult
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
    axes[-1].set_xlim(left, right)
    axes[-1].set_xlabel("time of one read (ms, logarithmic)")
    axes[-1].xaxis.set_major_formatter(MILLISECONDS)
    chart.alt = "Histogram of read times. " + "; ".join(words)
    return chart


def concurrency_curve(result: "BenchmarkResult") -> Chart:
    """Draw how long so many reads take together; needs a result with ``full=True``."""
    curve = {int(tasks): samples for tasks, samples in result.curve("concurrency").items()}
    if not curve:
        return blank("not measured: run with full = True")
    chart, (ax,) = new_chart(3.6)
    ends = _percentile_lines(ax, curve)
    ax.set(xscale="log", yscale="log", xlabel="reads at a time", ylabel="until all are answered (ms)")
    ax.set_xticks(list(curve), [str(tasks) for tasks in curve])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(MILLISECONDS)
    ax.set_title("Concurrent memory retrievals")
    chart.alt = f"Time until all of so many concurrent reads are answered: {ends}"
    return chart


def growth_curve(result: "BenchmarkResult") -> Chart:
    """Draw how the time of one memory retrieval grows with the table; needs a result with ``full=True``."""
    curve = {int(rows): samples for rows, samples in result.curve("growth").items()}
    if not curve:
        return blank("not measured: run with full = True")
    chart, (ax,) = new_chart(3.6)
    ends = _percentile_lines(ax, curve)
    ax.set(xscale="log", yscale="log", xlabel="synthetic memories in the table", ylabel="time of one read (ms)")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # less than a power of ten, as a rule
    ax.yaxis.set_major_formatter(MILLISECONDS)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title("Memory retrieval as the table grows")
    chart.alt = f"Time of one memory retrieval by size of the table: {ends}"
    return chart


def coverage_matrix(plans: "Plans") -> Chart:
    """Draw which query uses which of the 33 indexes."""
    indexes = sorted(plans.coverage, key=lambda name: (expected_tables().index(expected_objects()[name].table), name))
    # Queries in the order of their indexes, so that a full set of indexes shows as a staircase.
    queries = list(dict.fromkeys(query for index in indexes for query in plans.coverage[index]))
    chart, (ax,) = new_chart(8.5)
    points = [(queries.index(query), row) for row, index in enumerate(indexes) for query in plans.coverage[index]]
    unused = [row for row, index in enumerate(indexes) if not plans.coverage[index]]
    for row in unused:
        ax.axhspan(row - 0.5, row + 0.5, color=RED, alpha=0.3)
    ax.plot([x for x, _ in points], [y for _, y in points], "s", color=BLUE, markersize=6)
    ax.set_xticks(range(len(queries)), queries, rotation=90, fontsize=7)
    ax.set_yticks(range(len(indexes)), indexes, fontsize=7)
    ax.set(xlim=(-0.7, len(queries) - 0.3), ylim=(len(indexes) - 0.5, -0.5))
    ax.grid(visible=True, color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_title(f"{len(indexes) - len(unused)} of {len(indexes)} indexes serve a query")
    chart.alt = f"Matrix of {len(indexes)} indexes and {len(queries)} queries; unused: " + (
        ", ".join(indexes[row] for row in unused) or "none"
    )
    return chart


def table_sizes(schema: "Schema") -> Chart:
    """Draw each table's rows, and how much room it and its indexes take up where this SQLite can tell."""
    own = {table: schema.sizes.get(table, 0) for table in schema.rows}
    of_indexes = {table: sum(schema.sizes.get(name, 0) for name in _indexes_of(schema, table)) for table in own}
    tables = sorted(own, key=lambda table: (own[table] + of_indexes[table], schema.rows[table]))
    if not tables:
        return blank("no table could be read: the report says why")
    chart, (ax,) = new_chart(1.2 + 0.32 * len(tables))
    places = range(len(tables))
    if schema.sizes:
        begins = [own[table] for table in tables]
        ends = [own[table] + of_indexes[table] for table in tables]
        ax.barh(places, begins, color=BLUE, label="rows")
        ax.barh(places, [of_indexes[table] for table in tables], left=begins, color=ORANGE, label="its indexes")
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
        ax.set_xlabel("size in the file (bytes)")
        ax.legend(loc="lower right")
    else:
        ends = [schema.rows[name] for name in tables]
        ax.barh(places, ends, color=BLUE)
        ax.set_xlabel("rows")
    # A table of somebody else's may be named anything; a pair of $ would be read as mathematics.
    ax.set_yticks(places, [one_line(name, 40).replace("$", r"\$") for name in tables])
    for y, (table, end) in enumerate(zip(tables, ends, strict=True)):
        ax.annotate(
            counted(schema.rows[table], "row"), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    ax.margins(x=0.15)
    ax.set_title("Tables by size")
    chart.alt = "Tables by size: " + ", ".join(
        f"{one_line(name, 100)} {counted(schema.rows[name], 'row')}" for name in reversed(tables)
    )
    return chart


def _indexes_of(schema: "Schema", table: str) -> set[str]:
    named = {found.name for found in schema.objects.values() if found.type == "index" and found.table == table}
    return named | {name for name in schema.sizes if name.startswith(f"sqlite_autoindex_{table}_")}


def _percentile_lines(ax: Axes, curve: dict[int, Sequence[int]]) -> str:
    """Draw p50 and p99 over ``curve``, each with its interval; say where they begin and end."""
    found = {x: percentiles(samples) for x, samples in curve.items()}
    for at, (label, colour, marker) in {0: ("p50", BLUE, "o"), 2: ("p99", ORANGE, "^")}.items():
        shown = {x: levels[at] for x, levels in found.items()}
        values = [p.value for p in shown.values()]
        errors = np.maximum(
            [
                [p.value - (p.low or p.value) for p in shown.values()],
                [(p.high or p.value) - p.value for p in shown.values()],
            ],
            0,
        )
        ax.errorbar(
            list(curve), values, yerr=errors, color=colour, marker=marker, capsize=3, label=f"{label}, 95 % interval"
        )
        _open_bounds(ax, [(x, p.value) for x, p in shown.items() if p.low is None], colour, -20)
        _open_bounds(ax, [(x, p.value) for x, p in shown.items() if p.high is None], colour, 20)
    ax.legend()
    ax.grid(visible=True, which="major", color="#dddddd", linewidth=0.5)
    first, last = min(curve), max(curve)
    return ", ".join(f"{median(curve[x]) / 1e6:.3g} ms at the median for {x:,}" for x in (first, last))


def _open_bounds(ax: Axes, points: Sequence[tuple[int, float]], colour: str, length: int) -> None:
    """Draw an arrow of so many points from each value, up or down, where its interval has no end on that side."""
    for point in points:
        style = {"arrowstyle": "<-", "color": colour, "linestyle": ":"}
        ax.annotate("", point, (0, length), textcoords="offset points", arrowprops=style)
    if points and _OPEN not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], color=GREY, linestyle=":", label=_OPEN)
