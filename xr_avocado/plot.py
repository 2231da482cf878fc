"""Figures: those of their own files, and which experiments there are, how training and search went, and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    FITTED,
    HISTORY,
    IMPUTED,
    OBSERVED,
    SIGNAL,
    CubeError,
    check_cube,
)
from xr_avocado.plot_attributions import attribution_by_peaks, attributions
from xr_avocado.plot_browser import browser_tracks
from xr_avocado.plot_embedding import embedding
from xr_avocado.plot_scores import loci, scores
from xr_avocado.plot_style import COLORS, FAINT, INK, NAMES, OTHER_COLORS, check_table, new_axes, quiet
from xr_avocado.plot_tasks import tasks
from xr_avocado.plot_tracks import tracks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xr_avocado.search import Search

__all__ = [
    "attribution_by_peaks",
    "attributions",
    "browser_tracks",
    "embedding",
    "history",
    "loci",
    "panel",
    "qc",
    "scores",
    "search",
    "tasks",
    "tracks",
]


def panel(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw which experiments there are: cell types down, assays across; a fitted cube also shows those set aside.

    Parameters
    ----------
    ds
        A cube.
    ax
        Draw into these axes; by default a new figure.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> ax = xa.plot.panel(xa.datasets.simulate().avocado.hold_out([("C2", "DNase")]))
    >>> ax.get_title(loc="left")
    '47 of 48 experiments were run'
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    observed = check_cube(ds)[OBSERVED].transpose(CELLTYPE, ASSAY)
    state = observed.astype(int).copy()
    for c, a in ds.attrs.get(FITTED, {}).get("validation", []):
        if c in ds[CELLTYPE].values and a in ds[ASSAY].values:
            state.loc[{CELLTYPE: c, ASSAY: a}] = 2
    ax = new_axes((3.4 + 0.3 * state.sizes[ASSAY], 1.3 + 0.24 * state.sizes[CELLTYPE])) if ax is None else ax
    colors = [FAINT, COLORS[SIGNAL], OTHER_COLORS[1]]
    ax.pcolormesh(state.values, cmap=ListedColormap(colors), vmin=0, vmax=2, edgecolor="white", linewidth=1.5)
    ax.set_xticks(np.arange(state.sizes[ASSAY]) + 0.5, ds[ASSAY].values, rotation=90)
    ax.set_yticks(np.arange(state.sizes[CELLTYPE]) + 0.5, ds[CELLTYPE].values)
    ax.invert_yaxis()
    ax.tick_params(length=0, labelcolor=INK)
    ax.spines[:].set_visible(False)
    ax.set_title(
        f"{int(observed.sum())} of {observed.size} experiments were run", loc="left", fontsize="medium", color=INK
    )
    labels = ["not run", "run", "run, kept for validation"]
    shown = [k for k in range(3) if (state.values == k).any()]
    handles = [Patch(color=colors[k], label=labels[k]) for k in shown]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=INK)
    return ax


def history(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the errors that training saw, epoch by epoch, the average's beside them, and the epoch that was kept.

    Parameters
    ----------
    ds
        A fitted cube.
    ax
        Draw into these axes; by default a new figure.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=2, progress=False)
    >>> xa.plot.history(fitted).get_xlabel()
    'epoch'
    """
    from matplotlib.ticker import MaxNLocator

    seen = check_cube(ds, HISTORY)[HISTORY].transpose("epoch", "metric")
    ax = new_axes((5.5, 3.2)) if ax is None else ax
    styles = {
        "train_mse": ("training tracks", COLORS[SIGNAL], "-"),
        "validation_mse": ("tracks set aside", COLORS[IMPUTED], "-"),
        "validation_average_mse": ("average activity, same tracks", COLORS[AVERAGE], "--"),
    }
    for metric, (label, color, line) in styles.items():
        if metric in seen.metric.values and np.isfinite(seen.sel(metric=metric)).any():
            ax.plot(seen.epoch, seen.sel(metric=metric), line, color=color, label=label, marker=".", markersize=4)
    best = ds.attrs.get(FITTED, {}).get("best_epoch")
    if best is not None:
        ax.axvline(best, color=INK, linewidth=0.8, linestyle=":", label=f"epoch kept ({best})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"mean squared error ({ds.attrs.get('transform', 'signal')})")
    ax.set_ylim(bottom=0)
    quiet(ax)
    ax.legend(frameon=False, labelcolor=INK)
    return ax


def search(found: Search, *, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw what ``.avocado.search`` found: the trials as they came, and how much each setting mattered.

    Left, each trial's score as a ratio to average activity's on the same tracks, and the best so far; pruned trials are hollow, at what
    they had when they were pruned, over fewer tracks. Right, the importance of each setting among the complete trials.

    Parameters
    ----------
    found
        A `Search`.
    axes
        Draw into these two; by default a new figure.

    Returns
    -------
    The two axes.

    Raises
    ------
    CubeError
        Where it is none.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(3, 3, {"chr1": 50_000})
    >>> fit = {"preset": "small", "epochs": 1}
    >>> found = cube.avocado.search(2, space={"nodes": (4, 32)}, fit=fit, progress=False)
    >>> [ax.get_xlabel() for ax in xa.plot.search(found)]
    ['trial', 'share of variance explained']
    """
    if not hasattr(found, "importance"):
        raise CubeError(f"what is to be drawn is what .avocado.search returns; got {type(found).__name__}")
    if axes is None:
        import matplotlib.pyplot as plt

        height = max(3.2, 1.1 + 0.28 * len(found.importance))
        axes = plt.subplots(1, 2, figsize=(10, height), layout="constrained")[1]
    trials, settings = axes
    _draw_trials(trials, found)
    shares = found.importance.iloc[::-1]
    settings.barh(shares.index, shares.fillna(0), color=COLORS[SIGNAL])
    settings.set_xlabel("share of variance explained")
    settings.set_xlim(left=0)
    complete = int((found.table["state"] == "complete").sum())
    few = " (too few)" if shares.isna().all() else ""
    settings.set_title(f"importance among {complete} complete trials{few}", loc="left", fontsize="medium", color=INK)
    quiet(settings)
    return np.asarray(axes)


def _draw_trials(ax: Axes, found: Search) -> None:
    from matplotlib.ticker import MaxNLocator

    table = found.table
    complete, pruned = (table[table["state"] == state] for state in ("complete", "pruned"))
    best = complete["ratio"].cummin() if found.measure.startswith("mse") else complete["ratio"].cummax()
    ax.plot(complete["trial"], best, drawstyle="steps-post", color=COLORS[IMPUTED], label="best so far")
    ax.scatter(complete["trial"], complete["ratio"], color=COLORS[SIGNAL], label="complete", zorder=2, s=24)
    ax.scatter(
        pruned["trial"], pruned["ratio"], facecolor="none", edgecolor=COLORS[SIGNAL], label="pruned", zorder=2, s=24
    )
    ax.axhline(1, color=COLORS[AVERAGE], linestyle="--", label=NAMES[AVERAGE])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("trial")
    ax.set_ylabel(f"{found.measure} / average activity's")
    quiet(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize="small")


FIGURES_OF_QC = {
    "scale": ("background: log2 ratio to\nthe mark's other tracks", 2.0),
    "peaks": ("top 1 %: log2 ratio to\nthe mark's other tracks", 4.0),
    "imputed": ("correlation with\nits own imputation", 1.0),
    "swap": ("labels: below 0, an exchange\nof two fits better", 0.5),
}
"""What `qc` draws: columns of its table, with a title and the figure at which colors end."""


def qc(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw what ``.avocado.qc`` returns: cell types down, assays across, a map a figure; flagged tracks are framed and named.

    Parameters
    ----------
    table
        The frame from ``.avocado.qc``.
    axes
        Draw into these four; by default a new figure, which also lists what was flagged.

    Returns
    -------
    The four axes: background and peaks against the mark's other tracks, correlation with the own imputation, and what
    the imputations say about the labels.

    Raises
    ------
    CubeError
        Where columns of ``.avocado.qc`` are missing, or another number of axes was given.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> table = xa.datasets.simulate(n_celltypes=4, n_assays=3).avocado.qc(progress=False)
    >>> axes = xa.plot.qc(table)
    >>> len(axes)
    4
    """
    check_table(table, (CELLTYPE, ASSAY, *FIGURES_OF_QC, "flag"), "qc")
    if axes is not None and len(axes) != len(FIGURES_OF_QC):
        raise CubeError(f"there are {len(FIGURES_OF_QC)} maps to draw, but {len(axes)} axes were given")
    celltypes, assays = (list(dict.fromkeys(table[dim])) for dim in (CELLTYPE, ASSAY))
    flagged = table[table["flag"] != ""]
    drawn = list(_new_maps(len(celltypes), len(assays), flagged) if axes is None else axes)
    for ax, (name, (title, end)) in zip(drawn, FIGURES_OF_QC.items(), strict=True):
        figure = table.pivot(index=CELLTYPE, columns=ASSAY, values=name).reindex(index=celltypes, columns=assays)
        mesh = ax.pcolormesh(figure.to_numpy(float), cmap="PuOr_r", vmin=-end, vmax=end, edgecolor="white", linewidth=1)
        for c, a in zip(flagged[CELLTYPE], flagged[ASSAY], strict=True):
            ax.add_patch(_frame((assays.index(a), celltypes.index(c))))
        # What was not run is gray, since white is a figure of 0.
        ax.set_facecolor(FAINT)
        ax.set_xticks(np.arange(len(assays)) + 0.5, assays, rotation=90)
        ax.set_yticks(np.arange(len(celltypes)) + 0.5, celltypes if ax is drawn[0] else [])
        ax.invert_yaxis()
        ax.tick_params(length=0, labelcolor=INK)
        ax.spines[:].set_visible(False)
        ax.set_title(title, loc="left", fontsize="small", color=INK)
        ax.figure.colorbar(
            mesh, ax=ax, location="bottom", shrink=0.9, extend="neither" if name == "imputed" else "both"
        )
    return np.asarray(drawn)


def _frame(corner: tuple[int, int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=1.8)


def _new_maps(n_celltypes: int, n_assays: int, flagged: pd.DataFrame) -> np.ndarray:
    import matplotlib.pyplot as plt

    size = 4 * (0.9 + 0.3 * n_assays) + 4, max(3.2, 2.2 + 0.26 * n_celltypes)
    figure, axes = plt.subplots(1, 5, figsize=size, layout="constrained", width_ratios=[1, 1, 1, 1, 1.2])
    lines = [f"{c} {a}: {flag}" for c, a, flag in flagged[[CELLTYPE, ASSAY, "flag"]].values]
    most = int(size[1] / 0.22)
    more = [f"… and {len(lines) - most} more"] if len(lines) > most else []
    text = "\n".join([*lines[:most], *more]) or "no track is flagged"
    axes[-1].axis("off")
    axes[-1].set_title("flagged", loc="left", fontsize="small", color=INK)
    axes[-1].text(0, 1, text, va="top", fontsize="small", color=INK)
    return axes[:-1]
