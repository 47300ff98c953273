"""The dashboard: what monitor recorded over time, with the limits at which its rules fire."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from abathur_nb.figure import (
    BLUE,
    GREEN,
    GREY,
    MILLISECONDS,
    ORANGE,
    PURPLE,
    RED,
    Chart,
    blank,
    label,
    new_chart,
    time_axis,
)
from abathur_nb.operate.alerts import RULES, Rule
from abathur_nb.operate.gauges import LAST_BACKUP, LAST_VALIDATION, RETRIEVAL, Sample

if TYPE_CHECKING:
    from abathur_nb.operate.monitor import Monitoring

__all__ = ["monitoring_over_time"]

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY, RED)
_FORMS = {"bytes": EngFormatter(unit="B"), "ms": MILLISECONDS}
_CROWD = 100  # points; more of them are drawn without markers


@dataclass(frozen=True, slots=True)
class _Panel:
    """Name gauges that are drawn together, each with its words, in ``unit`` of the gauge's own.

    ``log`` where a limit lies far above what is usual, ``age`` for the time since the moments that the gauges hold.
    """

    title: str
    axis: str
    gauges: Mapping[str, str]
    unit: float = 1
    log: bool = False
    age: bool = False


_PANELS = (
    _Panel(
        "The file and its log",
        "bytes",
        {"abathur_database_bytes": "the file", "abathur_wal_bytes": "its log"},
        log=True,
    ),
    _Panel("Free room on its disk", "bytes", {"abathur_disk_free_bytes": "free"}),
    _Panel("Rows of the largest tables", "rows", {"abathur_rows": ""}),
    _Panel("Rows of the largest namespaces", "versions", {"abathur_namespace_rows": ""}),
    _Panel("Versions of memories", "versions", {"abathur_memory_versions": ""}),
    _Panel("Retrieval", "ms", {RETRIEVAL: ""}, 1e-3, log=True),
    _Panel("Age", "hours", {LAST_BACKUP: "last backup", LAST_VALIDATION: "last validation"}, 3600, age=True),
)
_Line = list[tuple[datetime, float]]


def monitoring_over_time(monitoring: "Monitoring") -> Chart:
    """Draw what was recorded of a database over time, one panel a subject, and the limits of the alert rules in it."""
    if not monitoring.moments:
        return blank("nothing could be measured: the report says why")
    found = [(panel, lines) for panel in _PANELS if (lines := _lines(panel, monitoring.moments))]
    chart, axes = new_chart(0.6 + 1.75 * len(found), len(found), sharex=True)
    told = [_draw(ax, panel, lines, monitoring) for ax, (panel, lines) in zip(axes, found, strict=True)]
    time_axis(axes[-1])
    axes[-1].set_xlabel("time (UTC)")
    chart.alt = f"Over time, snapshots: {len({at for at, _ in monitoring.moments}):,}. " + ". ".join(told)
    return chart


def _lines(panel: _Panel, moments: Sequence[tuple[datetime, Sample]]) -> dict[tuple[str, tuple[str, ...]], _Line]:
    """Return the lines of a panel, those that end highest first: by gauge and labels, the values at their moments."""
    lines: dict[tuple[str, tuple[str, ...]], _Line] = {}
    for at, sample in moments:
        if sample.name in panel.gauges and (sample.value or not panel.age):
            value = at.timestamp() - sample.value if panel.age else sample.value
            lines.setdefault((sample.name, tuple(sample.labels.values())), []).append((at, value / panel.unit))
    return dict(sorted(lines.items(), key=lambda line: -line[1][-1][1])[: len(_COLOURS)])


def _draw(ax: Axes, panel: _Panel, lines: Mapping[tuple[str, tuple[str, ...]], _Line], monitoring: "Monitoring") -> str:
    told = []
    for colour, ((gauge, labels), line) in zip(_COLOURS, lines.items(), strict=False):
        words = ", ".join(labels) or panel.gauges[gauge]
        marker = "" if len(line) > _CROWD else "o"
        times: Any = [at for at, _ in line]
        ax.plot(times, [value for _, value in line], color=colour, marker=marker, ms=3, label=label(words))
        told.append(f"{words} {line[-1][1]:,.4g}")
        for rule in _rules(gauge, labels):
            limit = rule.limit_of(monitoring.settings) * rule.unit / panel.unit
            ax.axhline(limit, color=colour, linestyle="--", linewidth=1.2, label=label(f"limit: {rule.title}"))
            told.append(f"its limit {limit:,.4g}")
    ax.set_title(panel.title, fontsize=10)
    ax.set_ylabel(f"{panel.axis} (log)" if panel.log else panel.axis)
    if panel.log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(_FORMS.get(panel.axis, EngFormatter()))
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return f"{panel.title}, {panel.axis} at last: {', '.join(told)}"


def _rules(gauge: str, labels: Sequence[str]) -> Iterator[Rule]:
    for rule in RULES:
        if (
            rule.gauge == gauge
            and tuple(rule.labels.values()) == tuple(labels)
            and rule.fires != "absent"
            and not rule.per
        ):
            yield rule
