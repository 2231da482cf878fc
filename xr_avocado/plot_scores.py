"""Figures of scores: methods compared by mark, and by how many cell types share a peak."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from xr_avocado.cube import ASSAY, CELLTYPE, IMPUTED
from xr_avocado.loci import REFERENCE
from xr_avocado.measures import MEASURES
from xr_avocado.plot_style import COLORS, FAINT, INK, NAMES, OTHER_COLORS, check_table, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["loci", "scores"]

BASELINE_COLORS = {
    "average": "#9A9A9A",
    "celltype_average": "#D6BE8F",
    "additive": "#8FB4CC",
    "ridge": "#86AD80",
    "cp": "#BD9CC0",
}
"""Muted, so that what is compared with them stands out."""
COLUMNS = 3
"""Panels beside one another."""


def scores(
    table: pd.DataFrame, *, measures: str | Sequence[str] | None = None, axes: Iterable[Axes] | None = None
) -> np.ndarray:
    """Draw what ``evaluate`` or ``cross_validate`` returned: a panel a measure, marks across, a color a method.

    Each dot is a track and each bar the mean of its mark; baselines are muted. A track that was scored on several bootstraps is
    drawn at their mean.

    Parameters
    ----------
    table
        A frame with the columns celltype, assay, method, and one a measure.
    measures
        What to draw; by default every measure that has a value in the table.
    axes
        Draw into these, one a measure; by default a new figure.

    Returns
    -------
    The axes, one a measure.

    Raises
    ------
    ValueError
        Where the table lacks a measure, there is nothing to draw, or there are not as many axes as measures.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> table = xa.datasets.simulate().avocado.evaluate(methods=["average", "ridge"], progress=False)
    >>> axes = xa.plot.scores(table, measures=["mse", "gwcorr"])
    >>> axes[0].get_title(loc="left"), axes[0].get_ylabel()
    ('mse (arcsinh)', '↓ lower is better')
    """
    check_table(table, (CELLTYPE, ASSAY, "method"), "evaluate")
    names = _measures(table, measures)
    tracks = table.groupby([ASSAY, CELLTYPE, "method"], sort=False, observed=True)[names].mean().reset_index()
    # A method without a score would have its name beside the figure and nothing in it.
    scored = tracks.groupby("method")[names].transform("count").any(axis=1)
    tracks = tracks[scored] if scored.any() else tracks
    marks, methods = (tracks[column].unique().tolist() for column in (ASSAY, "method"))
    drawn = _panels(len(names), 0.7 + 0.15 * len(marks) * (len(methods) + 1.5)) if axes is None else [*axes]
    if len(drawn) != len(names):
        raise ValueError(f"there are {len(names)} measures to draw, but {len(drawn)} axes were given")
    space = ", ".join(table["space"].unique()) if "space" in table else ""
    for ax, name in zip(drawn, names, strict=True):
        _draw_measure(ax, tracks, name, marks, _colors(methods))
        _label_measure(ax, name, marks, space)
    _legend(drawn[_columns(len(names)) - 1], _key(_colors(methods)))
    return np.asarray(drawn)


def loci(table: pd.DataFrame, *, assay: str | Sequence[str] | None = None) -> np.ndarray:
    """Draw what ``variable_loci`` returned: error, recall and precision by the number of cell types that share a peak.

    A column an assay; below them, how many bins each number is about. The observed signal, called in the same way as the
    methods', is the reference.

    Parameters
    ----------
    table
        The frame from ``variable_loci``.
    assay
        A label or several; by default all.

    Returns
    -------
    The axes: mse, recall, precision and bins x assays.

    Raises
    ------
    ValueError
        Where the table has no such assay, or no rows.

    References
    ----------
    Schreiber et al. 2020, figure 2.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=1)
    >>> called = xa.datasets.simulated_elements().query("kind == 'gene'")
    >>> peaks = {pair: called[i::2] for i, pair in enumerate(cube.avocado.experiments)}
    >>> table = cube.avocado.variable_loci(peaks=peaks, methods=["average"], progress=False)
    >>> loci(table).shape
    (4, 1)
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    check_table(table, (ASSAY, "method", "celltypes", "mse", "recall", "precision", "bins"), "variable_loci")
    known = table[ASSAY].unique().tolist()
    assays = known if assay is None else [assay] if isinstance(assay, str) else list(assay)
    if unknown := [name for name in assays if name not in known] or not assays:
        raise ValueError(f"{unknown} is not in the table, which has the assays {', '.join(known) or 'of no row'}")
    rows = ("mse", "recall", "precision", "bins")
    size, heights = (1.2 + 2.2 * len(assays), 7.2), (3, 3, 3, 1.4)
    figure, axes = plt.subplots(
        4,
        len(assays),
        figsize=size,
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    colors = {REFERENCE: INK, **_colors([m for m in table["method"].unique() if m != REFERENCE])}
    for column, name in zip(axes.T, assays, strict=True):
        own = table[table[ASSAY] == name]
        for ax, measure in zip(column[:3], rows, strict=False):
            for method, by in own.groupby("method", sort=False, observed=True):
                line = "--" if method == REFERENCE else "-"
                ax.plot(by["celltypes"], by[measure], line, color=colors[method], marker=".", label=_name(method))
        reference = own[own["method"] == own["method"].iloc[0]]
        column[3].bar(reference["celltypes"], reference["bins"], color=FAINT)
        column[3].xaxis.set_major_locator(MaxNLocator(integer=True))
        column[0].set_title(name, fontsize="medium", color=INK)
    for ax, measure in zip(axes[:, 0], ("mse (arcsinh)", "recall", "precision", "bins"), strict=True):
        ax.set_ylabel(measure, color=INK)
    axes[1, 0].set_ylim(-0.03, 1.03)
    axes[2, 0].set_ylim(-0.03, 1.03)
    for ax in axes.flat:
        quiet(ax)
    axes[3, 0].yaxis.set_major_formatter("{x:,.0f}")
    figure.supxlabel("cell types with a peak", fontsize="medium", color=INK)
    _legend(axes[0, -1], axes[0, -1].get_legend_handles_labels()[0])
    return axes


def _measures(table: pd.DataFrame, measures: str | Sequence[str] | None) -> list[str]:
    there = [name for name in MEASURES if name in table and table[name].notna().any()]
    asked = there if measures is None else [measures] if isinstance(measures, str) else list(measures)
    if missing := [name for name in asked if name not in table]:
        raise ValueError(f"the table has no measure {', '.join(map(repr, missing))}; it has {', '.join(there)}")
    if not asked:
        raise ValueError("there is nothing to draw: the table has no rows, or no measure with a value")
    return asked


def _draw_measure(ax: Axes, tracks: pd.DataFrame, name: str, marks: list[str], colors: dict[str, str]) -> None:
    width = 0.8 / len(colors)
    for i, (method, color) in enumerate(colors.items()):
        own = tracks[tracks["method"] == method]
        x = own[ASSAY].map(marks.index).to_numpy() - 0.4 + (i + 0.5) * width
        ax.scatter(x, own[name], s=14, color=color, linewidths=0, label=method, zorder=3)
        mean = own.groupby(ASSAY, sort=False, observed=True)[name].mean()
        at = np.array([marks.index(mark) for mark in mean.index]) - 0.4 + (i + 0.5) * width
        ax.hlines(mean, at - 0.42 * width, at + 0.42 * width, color=color, linewidth=2.2, zorder=2)


def _label_measure(ax: Axes, name: str, marks: list[str], space: str) -> None:
    error = name.startswith("mse")
    title = f"{name} ({space})" if error and space else name
    ax.set_title(title, loc="left", fontsize="medium", color=INK)
    ax.set_ylabel("↓ lower is better" if error else "↑ higher is better", fontsize="small", color=INK)
    room = ax.bbox.width / ax.figure.dpi / len(marks)
    if 0.09 * max(map(len, marks)) < room:
        ax.set_xticks(range(len(marks)), marks)
    else:
        ax.set_xticks(range(len(marks)), marks, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.6, len(marks) - 0.4)
    if error:
        ax.set_ylim(bottom=0)
    for between in np.arange(len(marks) - 1) + 0.5:
        ax.axvline(between, color=FAINT, linewidth=0.8, zorder=0)
    quiet(ax)
    ax.tick_params(axis="x", length=0, labelsize="small")
    ax.tick_params(axis="y", labelsize="small")


def _colors(methods: list[str]) -> dict[str, str]:
    """Strong colors for what is compared, muted ones for baselines."""
    strong = (COLORS["signal"], *OTHER_COLORS)
    others = [name for name in methods if name not in BASELINE_COLORS and name != IMPUTED]
    own = {name: strong[i % len(strong)] for i, name in enumerate(others)}
    return {name: BASELINE_COLORS.get(name) or own.get(name) or COLORS[IMPUTED] for name in methods}


def _columns(n: int) -> int:
    return min(COLUMNS, math.ceil(math.sqrt(n)))


def _panels(n: int, width: float) -> list[Axes]:
    import matplotlib.pyplot as plt

    columns = _columns(n)
    size = (max(2.6, width) * columns + 1.7, 2.5 * -(-n // columns))
    _, axes = plt.subplots(-(-n // columns), columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return list(axes.flat[:n])


def _key(colors: dict[str, str]) -> list[Any]:
    """Say what the colors are, and what a dot and a bar."""
    from matplotlib.lines import Line2D

    marks: list[dict[str, Any]] = [{"color": color, "label": _name(method)} for method, color in colors.items()]
    handles = [Line2D([], [], linestyle="", marker="o", markersize=5, **mark) for mark in marks]
    dot = Line2D([], [], linestyle="", marker="o", markersize=3, color=INK, label="a track")
    return [*handles, dot, Line2D([], [], linewidth=2.2, color=INK, label="mean of a mark")]


def _name(method: str) -> str:
    return NAMES.get(method, method.replace("celltype", "cell type").replace("_", " "))


def _legend(ax: Axes, handles: list[Any]) -> None:
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        labelcolor=INK,
        fontsize="small",
    )
