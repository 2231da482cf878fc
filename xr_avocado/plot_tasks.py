"""The figure of downstream tasks: average precision of feature sets, beside a guess that is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from xr_avocado.plot_style import COLORS, INK, OTHER_COLORS, quiet
from xr_avocado.tasks import MAJORITY, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["tasks"]

SETS = {"own": "own tracks", "imputed": "imputed tracks", "factors": "factors", "all": "all tracks"}
FIXED = {"own": COLORS["signal"], "imputed": COLORS["imputed"], "factors": "#009E73", "all": INK}
COLUMNS = 3
"""Panels beside one another, at most."""


def tasks(table: pd.DataFrame, *, by: str | Sequence[str] = "task", axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw what ``tasks.cross_validate`` returned, as figure 4 of the paper: a panel a task, a row a feature set.

    Each faint dot is a fold, the strong one their mean, the bar its standard error on both sides. The dashed line is the majority baseline:
    what a guess that is the same for every row scores.

    Parameters
    ----------
    table
        A frame as ``tasks.cross_validate`` gives it, or several after one another, with a column that tells them apart.
    by
        The columns whose values have a panel each, such as ``"celltype"`` where you added one.
    axes
        Draw into these, one a panel; by default a new figure.

    Returns
    -------
    The axes, one a panel.

    Raises
    ------
    ValueError
        Where the table has no rows or lacks a column, or there are not as many axes as panels.

    References
    ----------
    Schreiber et al. 2020, figure 4.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> labels = np.arange(60) % 3 == 0
    >>> table = xa.tasks.cross_validate({"own": labels[:, None] * 1.0}, labels, folds=3, progress=False)
    >>> [ax.get_title(loc="left") for ax in xa.plot.tasks(table)]
    ['expression']
    """
    keys = [by] if isinstance(by, str) else list(by)
    if missing := [
        name for name in (*keys, "features", "average_precision") if name not in getattr(table, "columns", ())
    ]:
        raise ValueError(
            f"there is no column {missing[0]!r} in what is to be drawn; give the frame that tasks.cross_validate returns"
        )
    if table.empty:
        raise ValueError("there is nothing to draw: the table has no rows")
    panels = list(table.groupby(keys, sort=False))
    names = [name for name in table["features"].unique() if name != MAJORITY]
    drawn = _panels(len(panels), len(names)) if axes is None else list(axes)
    if len(drawn) != len(panels):
        raise ValueError(f"there are {len(panels)} panels to draw, but {len(drawn)} axes were given")
    others = [name for name in names if name not in FIXED]
    colors = FIXED | {name: OTHER_COLORS[i % len(OTHER_COLORS)] for i, name in enumerate(others)}
    for ax, (key, own) in zip(drawn, panels, strict=True):
        _draw(ax, own, names, colors)
        ax.set_title(", ".join(str(part).replace("_", " ") for part in key), loc="left", fontsize="medium", color=INK)
    return np.asarray(drawn)


def _draw(ax: Axes, table: pd.DataFrame, names: list[str], colors: dict[str, str]) -> None:
    mean = summary(table).groupby("features")[["mean", "se"]].mean()
    for y, name in enumerate(names):
        folds = table.loc[table["features"] == name, "average_precision"].dropna()
        if folds.empty:
            continue
        height = y + 0.16 * np.resize([-1, -0.5, 0, 0.5, 1], len(folds))
        ax.scatter(folds, height, s=9, color=colors[name], alpha=0.3, linewidths=0, zorder=2)
        ax.errorbar(
            mean.loc[name, "mean"], y, xerr=mean.loc[name, "se"], fmt="o", markersize=6, color=colors[name], zorder=3
        )
    if MAJORITY in mean.index:
        ax.axvline(mean.loc[MAJORITY, "mean"], linestyle="--", linewidth=1, color=INK, label=MAJORITY, zorder=1)
        ax.annotate(
            MAJORITY,
            (mean.loc[MAJORITY, "mean"], 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize="x-small",
            color=INK,
        )
    ax.set_yticks(range(len(names)), [SETS.get(name, name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("average precision", fontsize="small", color=INK)
    quiet(ax)
    ax.tick_params(axis="y", length=0)


def _panels(n: int, sets: int) -> list[Axes]:
    import matplotlib.pyplot as plt

    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    size = (1.4 + 2.8 * columns, rows * (0.9 + 0.34 * sets))
    _, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return list(axes.flat[:n])
