"""What every figure is made of: a Chart with words in its place, its axes, its colours."""

from collections.abc import Sequence
from datetime import date
from io import BytesIO
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from abathur_nb.text import printable

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
