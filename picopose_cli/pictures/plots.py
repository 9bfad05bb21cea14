"""Figures of scores: curves over thresholds and bars for each object (matplotlib, without a display)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from picopose_cli.base.files import atomic_path
from picopose_cli.base.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 120
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's colours, distinguishable by colour-blind readers."""


@dataclass(frozen=True)
class Panel:
    """Curves over the same thresholds (T,): `lines` of values (T,) in [0, 1] by their label."""

    title: str
    axis: str
    thresholds: Array
    lines: Mapping[str, Array]


@dataclass(frozen=True)
class Bars:
    """Groups of bars: for each label in `series` one value in [0, 1] (or None) for each of `groups`."""

    title: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]


def draw_scores(path: Path, heading: str, value: str, panels: Sequence[Panel], bars: Bars) -> None:
    """Write a PNG with the panels in a row, `value` naming what they show, and the bars below.

    Raises PicoPoseError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(4.2 * len(panels), 0.16 * len(bars.groups) * (len(bars.series) + 1) + 2)
    figure = Figure(figsize=(width, 7.6), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading)
    grid = figure.add_gridspec(2, len(panels))
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    for column, panel in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        _draw_curves(axes, panel, labels if len(labels) > 1 else [""] * column + labels)
        if column == 0:
            axes.set_ylabel(value)
    axes = figure.add_subplot(grid[1, :])
    _draw_bars(axes, bars)
    # the bars of several files have the colours of their curves; those of one file have colours of their own
    longest = max(len(label) for label in bars.series)
    columns = max(1, min(len(bars.series), int(7 * width / (longest + 6))))
    axes.legend(fontsize="small", ncols=columns, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_curves(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    """Draw the lines of a panel, each in the colour of its place in `labels`."""
    for label, values in panel.lines.items():
        axes.plot(panel.thresholds, values, marker="o", markersize=4, color=_colour(labels.index(label)), label=label)
    axes.set(title=panel.title, xlabel=panel.axis, ylim=(0, 1.03), xlim=(0, float(panel.thresholds[-1]) * 1.04))
    axes.grid(alpha=0.3)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    count = len(bars.series)
    for index, (label, values) in enumerate(bars.series.items()):
        offset = (index - (count - 1) / 2) * 0.8 / count
        places = [group + offset for group in range(len(bars.groups))]
        heights = [0.0 if value is None else value for value in values]
        axes.bar(places, heights, width=0.8 / count, color=_colour(index), label=label)
    axes.set(xlabel="object", ylim=(0, 1.03), xlim=(-0.6, len(bars.groups) - 0.4))
    axes.set_title(bars.title, loc="left")
    axes.set_xticks(range(len(bars.groups)), bars.groups)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
