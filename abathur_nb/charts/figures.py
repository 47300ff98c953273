"""What every figure is made of, and every figure over time: of an archive, of rows, of what monitor recorded."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from abathur_nb.measure.alerts import DISK_FREE, LAST_BACKUP, LAST_VALIDATION, RETRIEVAL, RULES, WAL_BYTES
from abathur_nb.text import counted, printable

if TYPE_CHECKING:
    from abathur_nb.evidence.record import Entry
    from abathur_nb.runbook.explore import Excerpt
    from abathur_nb.runbook.history import History
    from abathur_nb.runbook.monitor import Monitoring

# Okabe and Ito's palette, which the colour-blind can distinguish (https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY = "#666666"
LINES = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (RED, "v"), (PURPLE, "D"), (GREY, "x"))
MILLISECONDS = FuncFormatter(lambda value, _: f"{value:g}")
Interval = tuple[float | None, float, float | None]  # the lower bound, the value, the upper bound
_WIDTH = 9.0  # inches: a notebook's width at 100 %


class Chart(Figure):
    """Hold a figure, and as ``alt`` the words that say what it shows; a notebook has both."""

    alt = ""

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=160, facecolor="white")
        size = {"width": round(self.get_figwidth() * 96), "alt": self.alt}
        return {"image/png": picture.getvalue(), "text/plain": self.alt}, {"image/png": size}


def new_chart(height: float, rows: int = 1, *, sharex: bool = False) -> tuple[Chart, Sequence[Axes]]:
    """Return an empty chart of so many rows of axes, ``height`` inches high."""
    chart = Chart(figsize=(_WIDTH, height), layout="constrained")
    axes = chart.subplots(rows, 1, squeeze=False, sharex=sharex)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return chart, list(axes)


def blank(words: str) -> Chart:
    """Return a chart that says in words why there is nothing to draw."""
    chart = Chart(figsize=(_WIDTH, 0.5))
    chart.text(0.01, 0.4, words, color=GREY)
    chart.alt = words
    return chart


def label(name: str) -> str:
    """Return any name as a short text for a figure."""
    return one_line(name, 40).replace("$", r"\$")  # a pair of $ would be read as mathematics


def time_axis(ax: Axes, words: str = "start of the run (UTC)") -> None:
    """Show UTC times on the x axis of ``ax``, labelled ``words``, once everything is drawn."""
    first, last = ax.dataLim.intervalx
    if first == last:  # a single moment, around which matplotlib would show four years
        ax.set_xlim(first - 0.5, last + 0.5)
    ends = [date2num(day) for day in (date.min, date.max)]  # type: ignore[no-untyped-call]
    ax.set_xlim(*np.clip(ax.get_xlim(), *ends))  # a margin beyond them could not be drawn
    locator = AutoDateLocator(tz="UTC")  # type: ignore[no-untyped-call]
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz="UTC"))  # type: ignore[no-untyped-call]
    ax.set_xlabel(words)


def grid(ax: Axes, axis: Literal["both", "y"] = "both") -> None:
    """Draw a grid behind what is in ``ax``."""
    ax.grid(visible=True, axis=axis, color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)


def legend_beside(ax: Axes, size: int = 8) -> None:
    """Put the legend of ``ax`` to its right."""
    ax.legend(fontsize=size, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_intervals(ax: Axes, xs: Sequence[Any], bounds: Sequence[Interval], words: str, **style: Any) -> None:
    """Draw values with their intervals; a bound that the samples are too few for has no bar."""
    values = [value for _, value, _ in bounds]
    errors = [
        [value - (value if low is None else low) for low, value, _ in bounds],
        [(value if high is None else high) - value for _, value, high in bounds],
    ]
    ax.errorbar(xs, values, yerr=np.maximum(errors, 0), label=words, **style)


def one_line(name: str, length: int) -> str:
    """Return any name as one printable line of at most ``length`` characters."""
    text = printable(name).replace("\n", "\\n")
    return text if len(text) <= length else f"{text[: length - 1]}…"


# A panel: its title, its unit, how many of the gauges' units that is, and the gauges in it with their words. A limit
# may lie far above what is usual: some are logarithmic. An age is the time since the moments that the gauges hold.
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
_FORMS = {"bytes": EngFormatter(unit="B"), "bytes (log)": EngFormatter(unit="B"), "ms (log)": MILLISECONDS}
_CROWD = 100  # points; more of them are drawn small


def monitoring_over_time(monitoring: "Monitoring") -> Chart:
    """Draw what was recorded of a database over time, one panel a subject, and the limits of the alert rules in it."""
    gauges = {sample.name for _, sample in monitoring.moments if sample.value or not _is_moment(sample.name)}
    panels = [panel for panel in _PANELS if gauges & panel[3].keys()]
    if not panels:
        return blank("nothing could be measured: the report says why")
    chart, axes = new_chart(0.6 + 1.75 * len(panels), len(panels), sharex=True)
    noted = [_draw_panel(ax, panel, monitoring) for ax, panel in zip(axes, panels, strict=True)]
    time_axis(axes[-1], "time (UTC)")
    chart.alt = f"Over time, snapshots: {len({at for at, _ in monitoring.moments}):,}. " + ". ".join(noted)
    return chart


def _is_moment(gauge: str) -> bool:
    return gauge.endswith("_timestamp_seconds")


def _draw_panel(ax: Axes, panel: _Panel, monitoring: "Monitoring") -> str:
    """Draw the lines of a panel that end highest, and the limits of their rules; return what they show, in words."""
    title, axis, unit, gauges = panel
    lines: defaultdict[tuple[str, tuple[str, ...]], list[tuple[Any, float]]] = defaultdict(list)
    for at, sample in monitoring.moments:
        if sample.name in gauges and (sample.value or not _is_moment(sample.name)):
            value = at.timestamp() - sample.value if _is_moment(sample.name) else sample.value
            lines[sample.name, tuple(sample.labels.values())].append((at, value / unit))
    noted = []
    for (colour, _), ((gauge, labels), line) in zip(
        LINES, sorted(lines.items(), key=lambda line: -line[1][-1][1]), strict=False
    ):
        words = ", ".join(labels) or gauges[gauge]
        marker = "" if len(line) > _CROWD else "o"
        times, values = zip(*line, strict=True)
        ax.plot(times, values, color=colour, marker=marker, ms=3, label=label(words))
        noted.append(f"{words} {values[-1]:,.4g}")
        for rule in RULES:
            if (rule.gauge, tuple(rule.labels.values())) == (gauge, labels) and not rule.per:
                limit = rule.limit_of(monitoring.settings) * rule.unit / unit
                ax.axhline(limit, color=colour, linestyle="--", linewidth=1.2, label=label(f"limit: {rule.title}"))
                noted.append(f"its limit {limit:,.4g}")
    ax.set_title(title, fontsize=10)
    ax.set_ylabel(axis)
    if axis.endswith("(log)"):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(_FORMS.get(axis, EngFormatter()))
    legend_beside(ax, 7)
    return f"{title}, {axis} at last: {', '.join(noted)}"


# A shape and a colour for each verdict, the good ones below the bad ones; hollow and black for what is not evidence.
_VERDICTS: Mapping[str, Mapping[str, Any]] = {
    "pass": {"marker": "o", "color": GREEN, "markersize": 6},
    "refused": {"marker": "s", "color": ORANGE, "markersize": 7},
    "interrupted": {"marker": "v", "color": GREY, "markersize": 8},
    "timeout": {"marker": "D", "color": PURPLE, "markersize": 7},
    "error": {"marker": "P", "color": RED, "markersize": 9},
    "fail": {"marker": "X", "color": RED, "markersize": 9},
    "unsealed": {"marker": "o", "color": "black", "markersize": 8, "fillstyle": "none"},
    "altered": {"marker": "*", "color": "black", "markersize": 11},
}
_FILE = "the file"
_WEEK = 7  # days


def verdicts_over_time(history: "History") -> Chart:
    """Draw each run of an archive at its time, a row a notebook, by the shape and the colour of its verdict."""
    runs = history.runs
    if not runs:
        return blank("no run yet: there is nothing to draw")
    labels = list(dict.fromkeys(run.label for run in runs))
    chart, (ax,) = new_chart(1.4 + 0.36 * len(labels))
    for verdict, style in _VERDICTS.items():
        if found := [run for run in runs if run.verdict == verdict]:
            small = {"markersize": 3, "alpha": 0.5} if verdict == "pass" and len(runs) > _CROWD else {}
            rows = [labels.index(run.label) for run in found]
            ax.plot(_times(found), rows, linestyle="", label=f"{verdict}: {len(found):,}", **{**style, **small})
    ax.set_yticks(range(len(labels)), [label(name) for name in labels])
    ax.set_ylim(len(labels) - 0.5, -0.5)
    grid(ax, "y")
    time_axis(ax)
    ax.set_title(counted(len(runs), "run") if len(runs) > 1 else "One run: nothing to compare it with yet")
    chart.legend(loc="outside lower center", ncols=len(_VERDICTS) // 2, fontsize=8)
    counts = {name: Counter(run.verdict for run in runs if run.label == name) for name in labels}
    noted = (f"{name} {', '.join(f'{n} {verdict}' for verdict, n in found.items())}" for name, found in counts.items())
    chart.alt = f"Verdicts of {counted(len(runs), 'run')}, {_span(runs)}: {'; '.join(noted)}"
    return chart


def percentiles_over_time(history: "History") -> Chart:
    """Draw the percentiles of what has a limit, with their intervals, over the benchmarks of an archive.

    A line joins the runs on one database, one machine and as many rows; others can't be compared with them.
    """
    runs = [run for run in history.runs if run.found("percentiles_ms")]
    names = list(dict.fromkeys(name for run in runs for name in _measured(run)))
    if not names:
        tried = any(run.notebook == "benchmark" for run in history.runs)
        return blank(f"no benchmark {'came to its figures ' if tried else ''}yet: run benchmark.ipynb")
    chart, axes = new_chart(0.9 + 2.0 * len(names), len(names), sharex=True)
    noted = []
    for ax, name in zip(axes, names, strict=True):
        found = [run for run in runs if name in _measured(run)]
        level, limit = found[-1].found("limits_ms")[name]
        for drawn, colour, marker in (("p50", BLUE, "o"), (level, ORANGE, "^")):
            having = [run for run in found if drawn in run.found("percentiles_ms")[name]]
            _draw_percentile(ax, having, name, drawn, colour, marker)
        limits = [run.found("limits_ms")[name][1] for run in found]
        if len({*limits}) > 1:
            ax.step(_times(found), limits, where="post", color=RED, linewidth=2, label=f"limit, at last {limit:g} ms")
        else:
            ax.axhline(limit, color=RED, linewidth=2, label=f"limit {limit:g} ms")
        ax.set(yscale="log", title=label(name), ylabel="ms (logarithmic)")
        ax.yaxis.set_major_formatter(MILLISECONDS)
        legend_beside(ax)
        first, last = (run.found("percentiles_ms")[name][level][1] for run in (found[0], found[-1]))
        noted.append(f"{name} {level} {first:.3g} ms at first, {last:.3g} ms at last, limit {limit:g} ms")
    time_axis(axes[-1])
    chart.alt = f"Percentiles of {len(runs):,} benchmarks, {_span(runs)}: {'; '.join(noted)}"
    return chart


def _measured(run: "Entry") -> list[str]:
    """Return what has both a limit and the percentile that it is for."""
    return [
        name
        for name, (level, _) in run.found("limits_ms").items()
        if level in run.found("percentiles_ms").get(name, ())
    ]


def _draw_percentile(ax: Axes, runs: Sequence["Entry"], name: str, level: str, colour: str, marker: str) -> None:
    """Draw one percentile of ``name`` over its runs, a line for each basis that the figures have."""
    words = f"{level}, 95 % interval"
    style: dict[str, Any] = {"elinewidth": 0.5} if len(runs) > _CROWD else {"elinewidth": 1, "capsize": 2}
    style |= {"color": colour, "marker": marker, "markersize": _marker_size(runs), "linewidth": 1}
    for basis in dict.fromkeys(map(_basis, runs)):
        found = [run for run in runs if _basis(run) == basis]
        draw_intervals(ax, _times(found), [run.found("percentiles_ms")[name][level] for run in found], words, **style)
        words = ""  # one line of the legend for all


def _basis(run: "Entry") -> tuple[str, ...]:
    """Return what the figures depend on, apart from the versions, whose effect is to be shown."""
    machine = run.found("machine")
    return (run.database, *(str(machine.get(name)) for name in ("processor", "file system", "readers", "rows")))


def sizes_over_time(history: "History") -> Chart:
    """Draw how the file of the database has grown, and the largest tables and indexes in it."""
    lines: dict[str, list[tuple[Entry, int]]] = {}
    for run in history.runs:
        of = f" of {run.database}" if run.label != run.notebook else ""
        for name, size in {_FILE: run.size, **run.found("sizes")}.items():
            if size is not None:
                lines.setdefault(f"{name}{of}", []).append((run, size))
    if not lines:
        return blank("no size is recorded yet: run validate.ipynb")
    chart, (ax,) = new_chart(3.4)
    largest = sorted(lines, key=lambda name: (not name.startswith(_FILE), -lines[name][-1][1]))[: len(LINES)]
    ends = []
    for name, (colour, marker) in zip(largest, LINES, strict=False):
        times, sizes = _times([run for run, _ in lines[name]]), [size for _, size in lines[name]]
        ax.plot(times, sizes, color=colour, marker=marker, markersize=_marker_size(times), label=label(name))
        ends.append(f"{one_line(name, 100)} {sizes[0]:,} bytes at first, {sizes[-1]:,} at last")
    ax.yaxis.set_major_formatter(EngFormatter(unit="B"))
    ax.set(title="The file, and the largest tables and indexes in it", ylabel="size (bytes)")
    ax.set_ylim(bottom=0)
    legend_beside(ax)
    time_axis(ax)
    chart.alt = f"Sizes over time: {'; '.join(ends)}"
    return chart


def rows_over_time(growth: "Excerpt") -> Chart:
    """Draw how many rows came on each day, and how many there were by then: the largest tables, the rest as one."""
    by_day: defaultdict[str, dict[date, int]] = defaultdict(dict)
    for table, day, rows in growth.rows:
        by_day[table][day] = rows
    totals = {table: sum(days.values()) for table, days in by_day.items()}
    if not totals:
        return blank("no row yet: there is nothing to draw")
    largest = sorted(totals, key=lambda table: -totals[table])
    alone = len(LINES) if len(largest) <= len(LINES) else len(LINES) - 1
    groups = {table: [table] for table in largest[:alone]}
    if rest := largest[alone:]:
        groups[f"{len(rest)} smaller ones"] = rest
    every = sorted({day for days in by_day.values() for day in days})
    dates: list[Any] = list(every)  # matplotlib's types know no dates
    chart, (daily, whole) = new_chart(4.8, 2, sharex=True)
    below = np.zeros(len(every))
    for (name, tables), (colour, marker) in zip(groups.items(), LINES, strict=False):
        came = np.array([sum(by_day[table].get(day, 0) for table in tables) for day in every])
        daily.bar(dates, came, bottom=below, width=1, color=colour)
        small: dict[str, Any] = {"marker": marker, "markersize": 4} if len(every) <= _CROWD // 4 else {}
        whole.plot(dates, np.cumsum(came), color=colour, label=label(name), **small)
        below += came
    daily.set(title="Rows by the day on which they came", ylabel="rows a day")
    whole.set(ylabel="rows by then", ylim=(0, None))
    for ax in (daily, whole):
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    time_axis(whole, "day (UTC)")
    beside = timedelta(days=_WEEK - (every[-1] - every[0]).days)
    # Of a single day the bar would be as wide as the picture.
    if timedelta() < beside < min(date.max - every[-1], every[0] - date.min):
        whole.set_xlim(dates[0] - beside, dates[-1] + timedelta(days=1))
    chart.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=len(LINES), fontsize=8)
    noted = ", ".join(f"{one_line(table, 100)} {totals[table]:,}" for table in largest)
    chart.alt = f"Rows by the day on which they came, {every[0]} to {every[-1]}: {noted}"
    return chart


def _times(runs: Sequence["Entry"]) -> list[Any]:
    return [run.started_at for run in runs]


def _span(runs: Sequence["Entry"]) -> str:
    return f"{runs[0].started_at:%Y-%m-%d} to {runs[-1].started_at:%Y-%m-%d}"


def _marker_size(points: Sequence[object]) -> float:
    return 2 if len(points) > _CROWD else 5
