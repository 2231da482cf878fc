"""Rows of a figure along the genome: bins as steps, heights that compare, positions as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xr_avocado.cube import Experiment
from xr_avocado.genome import GenomeBins
from xr_avocado.plot_style import INK, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Row", "Steps", "draw_row", "label_positions", "label_signal", "new_rows", "quiet_row"]

COLUMNS = 2_000
"""Steps drawn across a figure, at most: more than its pixels would take time and show nothing."""
TICKS = 8
"""Labels on the axis of positions, at most."""
HEIGHT = 0.62
"""Of a row, in inches."""


class Row(NamedTuple):
    """One row of a figure: a layer of a pair, the height of each step, the height that the pair's rows share, and bounds, if any."""

    pair: Experiment
    name: str
    color: str
    values: np.ndarray
    top: float
    first: bool
    band: tuple[np.ndarray, np.ndarray] | None = None


class Steps(NamedTuple):
    """How bins are drawn: edges in bp, with a step of its own for each gap between bins, and the bins averaged in each."""

    edges: np.ndarray
    firsts: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(cls, bins: GenomeBins) -> Steps:
        """Lay out the bins of one chromosome."""
        start, end = bins.start, bins.end
        runs = [np.arange(rows.start, rows.stop, max(1, -(-len(bins) // COLUMNS))) for rows in bins.segment_slices]
        firsts = np.concatenate(runs)
        lasts = np.append(firsts[1:], len(bins)) - 1
        parted = np.flatnonzero(end[lasts[:-1]] != start[firsts[1:]])
        edges = np.append(start[firsts], end[-1])
        return cls(np.insert(edges, parted + 1, end[lasts[parted]]), firsts, parted + 1)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Average the bins of each step; NaN in gaps."""
        width = np.diff(np.append(self.firsts, len(values)))
        return np.insert(np.add.reduceat(values, self.firsts) / width, self.gaps, np.nan)


def draw_row(ax: Axes, row: Row, steps: Steps) -> None:
    """Draw a layer of a pair, with its name at the right and, on the pair's first row, the pair above."""
    ax.stairs(row.values, steps.edges, fill=True, color=row.color, linewidth=0)
    if row.band is not None:
        lower, upper = row.band
        ax.stairs(upper, steps.edges, baseline=lower, fill=True, color=INK, alpha=0.2, linewidth=0)
        # Where the band lies on what is imputed, gray alone would not tell where it begins.
        for bound in (lower, upper):
            ax.stairs(bound, steps.edges, baseline=None, color=INK, linewidth=0.5)
        ax.text(1.008, 0.1, "gray: interval", transform=ax.transAxes, color=INK, va="center", fontsize="x-small")
    ax.set_ylim(0 if np.nanmin(row.values) >= 0 else float(np.nanmin(row.values)), 1.05 * row.top)
    ax.set_yticks([0, row.top], ["0", f"{row.top:.3g}"])
    quiet_row(ax, steps)
    label = NAMES.get(row.name, row.name)
    ax.text(1.008, 0.4, label, transform=ax.transAxes, color=row.color, va="center", fontsize="small")
    if row.first:
        ax.set_title(str(row.pair), loc="left", fontsize="small", fontweight="bold", color=INK, pad=3)


def quiet_row(ax: Axes, steps: Steps) -> None:
    """Give a row its limits, and leave labels of positions to the last one."""
    ax.set_xlim(steps.edges[0], steps.edges[-1])
    ax.tick_params(axis="y", length=2, labelsize="x-small", labelcolor=INK)
    ax.tick_params(axis="x", bottom=False, labelbottom=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#999999")


def label_positions(ax: Axes, bins: GenomeBins) -> None:
    """Label the axis of positions, in the unit that its numbers are shortest in."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit, size = _unit(int(bins.end[-1] - bins.start[0]), int(bins.end[-1]))
    decimals = _decimals(int(bins.end[-1] - bins.start[0]), size)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=TICKS, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda bp, _: f"{bp / size:,.{decimals}f}"))
    ax.tick_params(axis="x", bottom=True, labelbottom=True, labelsize="small", labelcolor=INK)
    ax.set_xlabel(f"{bins.chroms[0]} ({unit})", fontsize="small", color=INK)


def label_signal(axes: Sequence[Axes], transform: str, *, own: bool) -> None:
    """Label the heights of all rows at once, along the left edge of the figure if it is our own, else on the first row."""
    text = "signal" if transform == "none" else f"{transform} signal"
    axes[0].figure.supylabel(text, fontsize="small", color=INK) if own else axes[0].set_ylabel(text, fontsize="small")


def _unit(span: int, end: int) -> tuple[str, int]:
    """Give Mb for regions that reach past 1 Mb, kb for shorter ones, and bp where a kb would need decimals."""
    if span < 5_000:
        return "bp", 1
    return ("Mb", 1_000_000) if end >= 1_000_000 else ("kb", 1_000)


def _decimals(span: int, size: int) -> int:
    step = span / TICKS / size
    return 0 if size == 1 else max(0, int(np.ceil(-np.log10(step))))


def new_rows(heights: Sequence[float], n_titles: int) -> list[Axes]:
    """Make a figure of rows that share their positions, with room for titles, inches high."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = sum(heights) + 0.25 * n_titles + 0.5
    layout = ConstrainedLayoutEngine(h_pad=0.03, hspace=0.0)
    _, axes = plt.subplots(
        len(heights), 1, figsize=(10, height), squeeze=False, layout=layout, height_ratios=list(heights)
    )
    return list(axes[:, 0])
