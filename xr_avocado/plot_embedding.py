"""Figures of embeddings: cell types or assays as points, near each other where their factors are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.cube import ASSAY, ASSAY_FACTORS, CELLTYPE, CELLTYPE_FACTORS, CubeError, check_cube
from xr_avocado.plot_style import COLORS, INK, OTHER_COLORS, new_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["embedding"]

LABELS = 60
"""Points that are named, at most."""
PALETTE = (*COLORS.values(), *OTHER_COLORS)
MARKERS = "osD^vP*X"


def embedding(
    ds: xr.Dataset,
    axis: Literal["celltype", "assay"] = "celltype",
    *,
    method: Literal["pca", "umap"] = "pca",
    groups: Mapping[str, str] | pd.Series | None = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw cell types or assays by their learned factors: their first two principal components, or UMAP.

    Parameters
    ----------
    ds
        A fitted cube.
    axis
        ``"celltype"`` or ``"assay"``.
    method
        ``"pca"``, which keeps distances as well as two dimensions can; or ``"umap"``, which keeps neighbours and needs umap-learn.
    groups
        What each label belongs to (a tissue, a kind of mark), which gives points their color and shape.
    seed
        Fixes UMAP.
    ax
        Draw into these axes; by default a new figure.

    Raises
    ------
    CubeError
        Where the cube is not fitted or has fewer than three labels.
    ValueError
        Where axis or method is unknown.
    ImportError
        Where umap-learn is asked for and not installed.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> xa.plot.embedding(fitted).get_title(loc="left")
    'cell types by their factors'
    """
    if axis not in (CELLTYPE, ASSAY):
        raise ValueError(f"axis is 'celltype' or 'assay'; got {axis!r}")
    if method not in ("pca", "umap"):
        raise ValueError(f"method is 'pca' or 'umap'; got {method!r}")
    name = CELLTYPE_FACTORS if axis == CELLTYPE else ASSAY_FACTORS
    factors = check_cube(ds, name)[name].transpose(axis, ...).values.astype(float)
    labels = ds[axis].values.astype(str)
    if len(labels) < 3:
        raise CubeError(f"two dimensions need three {axis} labels; this cube has {len(labels)}")
    at, dims = _pca(factors) if method == "pca" else _umap(factors, seed)
    ax = new_axes((6.2, 5)) if ax is None else ax
    _draw_points(ax, at, labels, groups)
    ax.set_xlabel(dims[0], color=INK)
    ax.set_ylabel(dims[1], color=INK)
    ax.margins(0.12)
    kinds = "cell types" if axis == CELLTYPE else "assays"
    ax.set_title(f"{kinds} by their factors", loc="left", fontsize="medium", color=INK)
    quiet(ax)
    if len(labels) <= LABELS:
        _name_points(ax, at, labels)
    return ax


def _pca(factors: np.ndarray) -> tuple[np.ndarray, list[str]]:
    centered = factors - factors.mean(0)
    left, size, _ = np.linalg.svd(centered, full_matrices=False)
    # A component has no sign of its own; this one does not depend on the machine.
    left = left * np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])])
    share = size**2 / (np.square(size).sum() or 1.0)
    return (left * size)[:, :2], [f"component {k + 1} ({share[k]:.0%} of variance)" for k in range(2)]


def _umap(factors: np.ndarray, seed: int) -> tuple[np.ndarray, list[str]]:
    try:
        from umap import UMAP
    except ImportError:
        raise ImportError("method='umap' needs umap-learn: pip install umap-learn, or take method='pca'") from None
    few = len(factors) < 15
    with np.errstate(all="ignore"):
        made = UMAP(
            n_neighbors=min(15, len(factors) - 1), init="random" if few else "spectral", random_state=seed, n_jobs=1
        )
        return made.fit_transform(factors), ["UMAP 1", "UMAP 2"]


def _draw_points(ax: Axes, at: np.ndarray, labels: np.ndarray, groups: Any) -> None:
    own = (
        pd.Series("", index=labels) if groups is None else pd.Series(groups).reindex(labels).fillna("other").astype(str)
    )
    for i, (group, points) in enumerate(pd.DataFrame(at, index=labels).groupby(own, sort=False)):
        color, marker = PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % len(MARKERS)]
        ax.scatter(points[0], points[1], color=color, marker=marker, s=34, linewidths=0, label=group, zorder=2)
    if groups is not None:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=INK, fontsize="small")


def _name_points(ax: Axes, at: np.ndarray, labels: np.ndarray) -> None:
    """Write each name beside its point, on the side where it covers fewest points and names."""
    ax.figure.canvas.figure.draw_without_rendering()
    points = ax.transData.transform(at) * 72 / ax.figure.dpi
    taken = [np.array([*p - 3, *p + 3]) for p in points]
    for label, point, xy in zip(labels, points, at, strict=True):
        size = np.array([4.8 * len(label), 8.0])
        corners = [point + c for c in ((5, -4), (-5 - size[0], -4), (-size[0] / 2, 5), (-size[0] / 2, -13))]
        boxes = [np.array([*corner, *corner + size]) for corner in corners]
        best = min(range(4), key=lambda i: sum(_overlap(boxes[i], other) for other in taken))
        taken.append(boxes[best])
        ax.annotate(
            label, xy, xytext=corners[best] - point, textcoords="offset points",
            fontsize=8, color=INK,
        )  # fmt: skip


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))
