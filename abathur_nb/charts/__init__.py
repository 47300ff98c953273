"""The charts of the notebooks. Each takes a result and returns a Chart; none uses pyplot, so no figure stays open."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from io import BytesIO
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from abathur_nb.measure.alerts import DISK_FREE, LAST_BACKUP, LAST_VALIDATION, RETRIEVAL, RULES, WAL_BYTES
from abathur_nb.percentiles import percentiles
from abathur_nb.text import counted, printable

if TYPE_CHECKING:
    from abathur_nb.evidence.record import Entry
    from abathur_nb.measure.hosts import Fleet
    from abathur_nb.runbook.benchmark import BenchmarkResult
    from abathur_nb.runbook.explore import Excerpt
    from abathur_nb.runbook.history import History
    from abathur_nb.runbook.monitor import Monitoring

__all__ = [
    "Chart",
    "ages_of_fleet",
    "concurrency_curve",
    "fleet_squares",
    "growth_curve",
    "latency_distribution",
    "monitoring_over_time",
    "percentiles_over_time",
    "rows_over_time",
    "sizes_over_time",
    "verdicts_over_time",
]


def __dir__() -> list[str]:
    return __all__


# Okabe and Ito's palette, which the colour-blind can distinguish (https://jfly.uni-koeln.de/color/).
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
_GREY = "#666666"
_LINES = ((_BLUE, "o"), (_ORANGE, "^"), (_GREEN, "s"), (_RED, "v"), (_PURPLE, "D"), (_GREY, "x"))
_MILLISECONDS = FuncFormatter(lambda value, _: f"{value:g}")
_BYTES = EngFormatter(unit="B")
_OPEN = "open end: too few samples for a bound"
_WIDTH = 9.0  # inches: a notebook's width at 100 %

_Bounds = tuple[float | None, float, float | None]  # the lower bound, the value, the upper bound
_Line = list[tuple[Any, float]]  # (x, y)


class Chart(Figure):
    """Hold a figure, and in ``alt`` the text that describes it; a notebook stores both."""

    alt = ""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict[str, Any], Any]:
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=160, facecolor="white")
        size = {"width": round(self.get_figwidth() * 96), "alt": self.alt}
        return {"image/png": picture.getvalue(), "text/plain": self.alt}, {"image/png": size}


def _new_chart(height: float, rows: int = 1) -> tuple[Chart, list[Axes]]:
    """Return an empty chart, ``height`` inches high, with ``rows`` rows of axes that share an x axis."""
    chart = Chart(figsize=(_WIDTH, height), layout="constrained")
    axes = list(chart.subplots(rows, 1, squeeze=False, sharex=rows > 1)[:, 0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#dddddd", linewidth=0.5)
        ax.set_axisbelow(True)
    return chart, axes


def _blank(words: str) -> Chart:
    """Return a chart that says in words why there is nothing to draw."""
    chart = Chart(figsize=(_WIDTH, 0.5))
    chart.text(0.01, 0.4, words, color=_GREY)
    chart.alt = words
    return chart


def _one_line(name: str, length: int = 100) -> str:
    """Return any name as one printable line of at most ``length`` characters."""
    text = printable(name).replace("\n", "\\n")
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _label(name: str) -> str:
    """Return any name as a short text for a figure."""
    return _one_line(name, 40).replace("$", r"\$")  # a pair of $ would be read as mathematics


def _legend_beside(ax: Axes, size: int = 8) -> None:
    ax.legend(fontsize=size, loc="center left", bbox_to_anchor=(1, 0.5))


def _marker_size(points: Sequence[object]) -> float:
    return 2 if len(points) > 100 else 5


def _draw_lines(ax: Axes, lines: Mapping[str, _Line], **style: Any) -> None:
    """Draw one line for each colour, with the legend beside them, on a y axis that begins at 0."""
    for (name, points), (colour, marker) in zip(lines.items(), _LINES, strict=False):
        size = _marker_size(points)
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=size, label=_label(name), **style)
    ax.set_ylim(bottom=0)
    _legend_beside(ax)


def _time_axis(ax: Axes, words: str) -> None:
    """Format the x axis of ``ax`` as UTC times; call this after everything is drawn."""
    first, last = ax.dataLim.intervalx
    if first == last:  # a single moment, around which matplotlib would show four years
        ax.set_xlim(first - 0.5, last + 0.5)
    ends = [date2num(day) for day in (date.min, date.max)]  # type: ignore[no-untyped-call]
    ax.set_xlim(*np.clip(ax.get_xlim(), *ends))  # matplotlib cannot draw a margin beyond them
    locator = AutoDateLocator(tz="UTC")  # type: ignore[no-untyped-call]
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz="UTC"))  # type: ignore[no-untyped-call]
    ax.set_xlabel(words)


def _draw_intervals(ax: Axes, xs: Sequence[Any], bounds: Sequence[_Bounds], words: str, **style: Any) -> None:
    """Draw values with their intervals; a bound that is None (too few samples) has no bar."""
    whole = [[value if bound is None else bound for bound in (low, value, high)] for low, value, high in bounds]
    ax.errorbar(xs, [value for _, value, _ in bounds], yerr=np.diff(whole).clip(0).T, label=words, **style)


# --- the benchmark


def latency_distribution(result: "BenchmarkResult") -> Chart:
    """Draw the times of the reads whose p99 has a limit, with the p99, its 95 % interval and the limit."""
    wanted = {name: limit for name, (level, limit) in result.limits.items() if level == 0.99 and name in result.samples}
    if not wanted:
        return _blank("nothing was measured: the report says why")
    chart, axes = _new_chart(1.0 + 1.9 * len(wanted), len(wanted))
    words = []
    ends = [end for name, limit in wanted.items() for end in (*result.samples[name], limit * 1e6)]
    left, right = min(ends) / 1e6 / 1.3, max(ends) / 1e6 * 1.3
    for ax, (name, limit) in zip(axes, wanted.items(), strict=True):
        milliseconds = np.asarray(result.samples[name]) / 1e6
        p99 = percentiles(result.samples[name])[-1]
        bins = np.geomspace(milliseconds.min() * 0.9, milliseconds.max() * 1.1, 60)
        ax.hist(milliseconds, bins=list(bins), color=_BLUE, label="samples")
        ax.axvspan(p99.low or left, p99.high or right, color=_ORANGE, alpha=0.45, label="95 % interval of p99")
        if p99.low is None or p99.high is None:  # the interval reaches the edge
            ax.text(0.99, 0.9, _OPEN, transform=ax.transAxes, ha="right", fontsize=8, backgroundcolor="white")
        ax.axvline(p99.value, color="black", linestyle="--", label=f"p99 {p99.value:.3g} ms")
        ax.axvline(limit, color=_RED, linewidth=2, label=f"limit {limit:g} ms")
        ax.set(xscale="log", title=f"{name}: {counted(len(milliseconds), 'sample')}", ylabel="samples")
        ax.legend(fontsize=8, loc="upper center")
        words.append(f"{name}: {p99}, limit {limit:g} ms")
    axes[-1].set(xlim=(left, right), xlabel="time of one read (ms, logarithmic)")
    axes[-1].xaxis.set_major_formatter(_MILLISECONDS)
    chart.alt = "Histogram of read times. " + "; ".join(words)
    return chart


def concurrency_curve(result: "BenchmarkResult") -> Chart:
    """Draw how long 1 to 200 concurrent reads take; needs a result with ``full=True``."""
    words = "Time until all concurrent reads are answered"
    return _curve(result.curve("concurrency"), "reads at a time", "until all are answered (ms)", words)


def growth_curve(result: "BenchmarkResult") -> Chart:
    """Draw how the time of one memory retrieval grows with the table; needs a result with ``full=True``."""
    words = "Time of one memory retrieval by size of the table"
    return _curve(result.curve("growth"), "synthetic memories in the table", "time of one read (ms)", words)


def _curve(measured: dict[str, Sequence[int]], x: str, y: str, words: str) -> Chart:
    """Draw p50 and p99 at each point of a curve, with their intervals."""
    curve = {int(name): percentiles(samples) for name, samples in measured.items()}
    if not curve:
        return _blank("not measured: run with full = True")
    chart, (ax,) = _new_chart(3.6)
    for level, (colour, marker) in {0: (_BLUE, "o"), 2: (_ORANGE, "^")}.items():
        points = [levels[level] for levels in curve.values()]
        bounds = [(point.low, point.value, point.high) for point in points]
        style = {"color": colour, "marker": marker, "capsize": 3}
        _draw_intervals(ax, list(curve), bounds, f"{points[0].name}, 95 % interval", **style)
    if any(None in (point.low, point.high) for levels in curve.values() for point in (levels[0], levels[2])):
        ax.plot([], [], linestyle="", label=_OPEN)
    ax.legend()
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=words)
    ax.set_xticks(list(curve), [f"{at:,}" for at in curve])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # the values often span less than a power of ten
    ax.yaxis.set_major_formatter(_MILLISECONDS)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    ends = ", ".join(f"{curve[at][0].value:.3g} ms at the median for {at:,}" for at in (min(curve), max(curve)))
    chart.alt = f"{words}: {ends}"
    return chart


# --- what monitor recorded

# A panel: its title, its unit, the size of that unit in the gauges' unit, and its gauges with their names. An axis is
# logarithmic if a limit may lie far above the usual values. If a gauge holds a time, its age is drawn.
_Panel = tuple[str, str, float, Mapping[str, str]]
_PANELS: tuple[_Panel, ...] = (
    ("The file and its log", "bytes (log)", 1, {"abathur_database_bytes": "the file", WAL_BYTES: "its log"}),
    ("Free room on its disk", "bytes", 1, {DISK_FREE: "free"}),
    ("Rows of the largest tables", "rows", 1, {"abathur_rows": ""}),
    ("Rows of the largest namespaces", "versions", 1, {"abathur_namespace_rows": ""}),
    ("Versions of memories", "versions", 1, {"abathur_memory_versions": ""}),
    ("Retrieval", "ms (log)", 1e-3, {RETRIEVAL: ""}),
    ("Age", "hours", 3600, {LAST_BACKUP: "last backup", LAST_VALIDATION: "last validation"}),
)
_FORMS = {"bytes": _BYTES, "bytes (log)": _BYTES, "ms (log)": _MILLISECONDS}


def monitoring_over_time(monitoring: "Monitoring") -> Chart:
    """Draw the samples of a database over time, one panel for each subject, with the limits of the alert rules."""
    lines: defaultdict[tuple[str, tuple[str, ...]], list[tuple[Any, float]]] = defaultdict(list)
    for at, sample in monitoring.moments:
        is_moment = sample.name.endswith("_timestamp_seconds")  # 0 for never
        if sample.value or not is_moment:
            value = at.timestamp() - sample.value if is_moment else sample.value
            lines[sample.name, tuple(sample.labels.values())].append((at, value))
    panels = [panel for panel in _PANELS if any(gauge in panel[3] for gauge, _ in lines)]
    if not panels:
        return _blank("nothing could be measured: the report says why")
    chart, axes = _new_chart(0.6 + 1.75 * len(panels), len(panels))
    noted = []
    for ax, (title, axis, unit, gauges) in zip(axes, panels, strict=True):
        found = sorted((one for one in lines.items() if one[0][0] in gauges), key=lambda one: -one[1][-1][1])
        words = []
        for (colour, _), ((gauge, labels), line) in zip(_LINES, found, strict=False):
            times, values = zip(*line, strict=True)
            words.append(f"{', '.join(labels) or gauges[gauge]} {values[-1] / unit:,.4g}")
            style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": _marker_size(times) / 2}
            ax.plot(times, np.divide(values, unit), label=_label(", ".join(labels) or gauges[gauge]), **style)
            for rule in RULES:
                if (rule.gauge, tuple(rule.labels.values())) == (gauge, labels) and not rule.per:
                    limit = rule.limit_of(monitoring.settings) * rule.unit.size / unit
                    ax.axhline(limit, color=colour, linestyle="--", linewidth=1.2, label=_label(f"limit: {rule.title}"))
                    words.append(f"its limit {limit:,.4g}")
        ax.set_title(title, fontsize=10)
        ax.set(ylabel=axis, **{"yscale": "log"} if axis.endswith("(log)") else {"ylim": (0, None)})
        ax.yaxis.set_major_formatter(_FORMS.get(axis, EngFormatter()))
        _legend_beside(ax, 7)
        noted.append(f"{title}, {axis} at last: {', '.join(words)}")
    _time_axis(axes[-1], "time (UTC)")
    chart.alt = f"Over time, snapshots: {len({at for at, _ in monitoring.moments}):,}. " + ". ".join(noted)
    return chart


# --- the runs of an archive

# The marker of each verdict, in drawing order: worse ones lie on top. Black: the run is not evidence.
_VERDICTS: Mapping[str, Mapping[str, Any]] = {
    "pass": {"marker": "o", "color": _GREEN, "markersize": 6},
    "refused": {"marker": "s", "color": _ORANGE, "markersize": 7},
    "interrupted": {"marker": "v", "color": _GREY, "markersize": 8},
    "timeout": {"marker": "D", "color": _PURPLE, "markersize": 7},
    "error": {"marker": "P", "color": _RED, "markersize": 9},
    "fail": {"marker": "X", "color": _RED, "markersize": 9},
    "unsealed": {"marker": "o", "color": "black", "markersize": 8, "fillstyle": "none"},
    "altered": {"marker": "*", "color": "black", "markersize": 11},
}
_START = "start of the run (UTC)"
_FILE = "the file"


def verdicts_over_time(history: "History") -> Chart:
    """Draw each run of an archive at its start, one row for each notebook; the marker shows the verdict."""
    runs = history.runs
    if not runs:
        return _blank("no run yet: there is nothing to draw")
    labels = list(dict.fromkeys(run.label for run in runs))
    chart, (ax,) = _new_chart(1.4 + 0.36 * len(labels))
    for verdict, style in _VERDICTS.items():
        if found := [run for run in runs if run.verdict == verdict]:
            rows = [labels.index(run.label) for run in found]
            times: list[Any] = [run.started_at for run in found]
            ax.plot(times, rows, linestyle="", label=f"{verdict}: {len(found):,}", **style)
    ax.set_yticks(range(len(labels)), [_label(name) for name in labels])
    ax.set_ylim(len(labels) - 0.5, -0.5)
    _time_axis(ax, _START)
    ax.set_title(counted(len(runs), "run") if len(runs) > 1 else "One run: nothing to compare it with yet")
    chart.legend(loc="outside lower center", ncols=len(_VERDICTS) // 2, fontsize=8)
    counts = {name: Counter(run.verdict for run in runs if run.label == name) for name in labels}
    noted = (f"{name} {', '.join(f'{n} {verdict}' for verdict, n in found.items())}" for name, found in counts.items())
    chart.alt = f"Verdicts of {counted(len(runs), 'run')}, {_span(runs)}: {'; '.join(noted)}"
    return chart


def percentiles_over_time(history: "History") -> Chart:
    """Draw the percentiles that have a limit, and the p50, with their intervals, over the benchmarks of an archive.

    A line joins comparable runs: the same database, processor, file system, readers and rows.
    """
    runs = [run for run in history.runs if run.found("percentiles_ms")]
    measured: dict[str, list[Entry]] = {}  # the runs that hold a measurement's limit and that percentile
    for run in runs:
        for name, (level, _) in run.found("limits_ms").items():
            if level in run.found("percentiles_ms").get(name, ()):
                measured.setdefault(name, []).append(run)
    if not measured:
        return _blank("no benchmark has figures yet: run benchmark.ipynb")
    chart, axes = _new_chart(0.9 + 2.0 * len(measured), len(measured))
    noted = []
    for ax, (name, found) in zip(axes, measured.items(), strict=True):
        level, limit = found[-1].found("limits_ms")[name]
        for drawn, colour, marker in (("p50", _BLUE, "o"), (level, _ORANGE, "^")):
            style = {"color": colour, "marker": marker, "markersize": _marker_size(found), "linewidth": 1}
            words = f"{drawn}, 95 % interval"
            for basis in dict.fromkeys(map(_basis, found)):
                alike = {run.started_at: run.found("percentiles_ms")[name] for run in found if _basis(run) == basis}
                bounds = {at: levels[drawn] for at, levels in alike.items() if drawn in levels}
                _draw_intervals(ax, [*bounds], [*bounds.values()], words, elinewidth=0.5, capsize=2, **style)
                words = ""  # one legend entry for all
        ax.axhline(limit, color=_RED, linewidth=2, label=f"limit {limit:g} ms")
        ax.set(yscale="log", title=_label(name), ylabel="ms (logarithmic)")
        ax.yaxis.set_major_formatter(_MILLISECONDS)
        _legend_beside(ax)
        first, last = (run.found("percentiles_ms")[name][level][1] for run in (found[0], found[-1]))
        noted.append(f"{name} {level} {first:.3g} ms at first, {last:.3g} ms at last, limit {limit:g} ms")
    _time_axis(axes[-1], _START)
    chart.alt = f"Percentiles of {len(runs):,} benchmarks, {_span(runs)}: {'; '.join(noted)}"
    return chart


def _basis(run: "Entry") -> tuple[str, ...]:
    """Return what comparable runs have in common; not the versions, because the chart shows their effect."""
    machine = run.found("machine")
    return (run.database, *(str(machine.get(name)) for name in ("processor", "file system", "readers", "rows")))


def sizes_over_time(history: "History") -> Chart:
    """Draw the size of the database file, and of the largest tables and indexes in it, over time."""
    lines: defaultdict[str, _Line] = defaultdict(list)
    for run in history.runs:
        of = f" of {run.database}" if run.label != run.notebook else ""
        for name, size in {_FILE: run.size, **run.found("sizes")}.items():
            if size is not None:
                lines[f"{name}{of}"].append((run.started_at, size))
    if not lines:
        return _blank("no size is recorded yet: run validate.ipynb")
    chart, (ax,) = _new_chart(3.4)
    largest = sorted(lines, key=lambda name: (not name.startswith(_FILE), -lines[name][-1][1]))[: len(_LINES)]
    _draw_lines(ax, {name: lines[name] for name in largest})
    ax.yaxis.set_major_formatter(_BYTES)
    ax.set(title="The file, and the largest tables and indexes in it", ylabel="size (bytes)")
    _time_axis(ax, _START)
    ends = [f"{_one_line(n)} {lines[n][0][1]:,} bytes at first, {lines[n][-1][1]:,} at last" for n in largest]
    chart.alt = f"Sizes over time: {'; '.join(ends)}"
    return chart


def _span(runs: Sequence["Entry"]) -> str:
    return f"{runs[0].started_at:%Y-%m-%d} to {runs[-1].started_at:%Y-%m-%d}"


# --- growth


def rows_over_time(growth: "Excerpt") -> Chart:
    """Draw the cumulative number of existing rows by day of creation: of the largest tables, and of all others."""
    by_day: defaultdict[str, Counter[date]] = defaultdict(Counter)
    for table, day, rows in growth.rows:
        by_day[table][day] = rows
    if not by_day:
        return _blank("no row yet: there is nothing to draw")
    largest = sorted(by_day, key=lambda table: -by_day[table].total())
    drawn = {table: by_day[table] for table in largest[: len(_LINES) - 1]}
    if rest := largest[len(drawn) :]:
        drawn[counted(len(rest), "smaller table")] = sum((by_day[table] for table in rest), Counter())
    dates = sorted({day for days in by_day.values() for day in days})
    chart, (ax,) = _new_chart(3.4)
    sums = {name: [*accumulate(days[day] for day in dates)] for name, days in drawn.items()}
    _draw_lines(ax, {name: list(zip(dates, rows, strict=True)) for name, rows in sums.items()}, drawstyle="steps-post")
    ax.set(title="Existing rows by day of creation", ylabel="rows so far")
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    _time_axis(ax, "day (UTC)")
    noted = ", ".join(f"{_one_line(table)} {by_day[table].total():,}" for table in largest)
    chart.alt = f"Existing rows by day of creation, {dates[0]} to {dates[-1]}: {noted}"
    return chart


# --- a fleet

_OF_VERDICT = {
    "pass": (_BLUE, "s"),
    "refused": (_GREY, "X"),
    "fail": (_RED, "v"),
    "timeout": (_ORANGE, "^"),
    "interrupted": (_ORANGE, "s"),
    "error": (_PURPLE, "D"),
    "altered": ("black", "P"),
    "unreachable": ("black", "x"),
}
_A_ROW = 60  # squares; a host with more takes several rows


def fleet_squares(fleet: "Fleet") -> Chart:
    """Draw a square for each database, by its host and its verdict."""
    of_host: defaultdict[str, list[str]] = defaultdict(list)
    for row in fleet.rows:  # the worst come first
        of_host[row["host"]].append(row["verdict"])
    points: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    ticks, y = dict[int, str](), 0
    for host, verdicts in of_host.items():
        ticks[y] = f"{_label(host)} ({len(verdicts)})"
        for number, verdict in enumerate(verdicts):
            points[verdict].append((number % _A_ROW, y + number // _A_ROW))
        y += 1 + (len(verdicts) - 1) // _A_ROW
    chart, (ax,) = _new_chart(min(1.4 + 0.22 * y, 40))
    size = 60 if y <= 60 else 20
    for verdict, (colour, marker) in _OF_VERDICT.items():
        if found := points[verdict]:
            xs, ys = zip(*found, strict=True)
            ax.scatter(xs, ys, s=size, c=colour, marker=marker, label=f"{verdict} {len(found):,}")
    ax.set(xlim=(-0.7, min(_A_ROW, max(map(len, of_host.values()), default=1)) - 0.3), ylim=(y - 0.5, -0.5))
    ax.set_yticks([*ticks], [*ticks.values()], fontsize=8 if y <= 60 else 5)
    ax.set(xticks=[], title=fleet.summary)
    ax.grid(visible=False)
    _legend_beside(ax)
    chart.alt = fleet.summary
    return chart


def ages_of_fleet(fleet: "Fleet") -> Chart:
    """Draw how many databases have a backup and a validation that is at most so old, in parts of their limits."""
    chart, (ax,) = _new_chart(3.0)
    words = []
    for name, colour in (("backup", _BLUE), ("validation", _ORANGE)):
        found = fleet.ages(name)
        known = sorted(age for age in found if age is not None)
        ax.step([*known, *known[-1:]], range(1, len(known) + 1 + bool(known)), where="post", color=colour, label=name)
        words.append(f"{sum(age <= 1 for age in known):,} of {len(found):,} within the limit of the last {name}")
    ax.axvline(1, color=_RED, linewidth=2, label="limit")
    ax.set(xlabel="age, in parts of its limit", ylabel="databases", title="; ".join(words))
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    _legend_beside(ax)
    chart.alt = "; ".join(words)
    return chart
