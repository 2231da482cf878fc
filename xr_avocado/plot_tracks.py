"""Figures of tracks along the genome: observed, imputed, average activity, and genes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    IMPUTED,
    IMPUTED_LOWER,
    IMPUTED_UPPER,
    OBSERVED,
    SIGNAL,
    CubeError,
    Experiment,
    as_experiments,
    check_cube,
    label_rows,
)
from xr_avocado.genome import GenomeError
from xr_avocado.index import bins_of, select
from xr_avocado.intervals import as_frame
from xr_avocado.plot_genes import draw_genes, lanes_of
from xr_avocado.plot_rows import HEIGHT, Row, Steps, draw_row, label_positions, label_signal, new_rows
from xr_avocado.plot_style import colors_of
from xr_avocado.transforms import transform_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["tracks"]

TRACKS = 12
"""Tracks drawn unless they were asked for by name."""


def tracks(
    ds: xr.Dataset,
    region: Any,
    *,
    celltype: str | Iterable[str] | None = None,
    assay: str | Iterable[str] | None = None,
    pairs: Iterable[Any] | None = None,
    variables: Sequence[str] | None = None,
    genes: Any = None,
    transformed: bool = True,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw tracks over a region, one row each: observed, imputed and average activity of a pair below one another.

    The rows of a pair share their vertical scale, so that heights compare. Regions of more than 2,000 bins are drawn as means of
    neighbouring bins. Where the cube has an `interval`, its bounds are drawn over ``imputed`` (and averaged as it is, which does not make
    them those of the averages). Reads only the tracks and the region drawn, a pair at a time: some 20 bytes a bin of the region and layer,
    beside what computing them takes.

    Parameters
    ----------
    ds
        A cube.
    region
        One region of one chromosome, as ``.avocado.sel`` takes it.
    celltype, assay
        A label or several; by default all, up to twelve pairs.
    pairs
        Instead of those two: ``(celltype, assay)`` pairs.
    variables
        Layers to draw; by default those of ``signal``, ``imputed`` and ``average`` that the cube has. Rows without a value are
        left out.
    genes
        Intervals to draw below the tracks: PyRanges, frame or BED file, best with columns ``strand`` and ``name``.
    transformed
        Draw what the cube holds (arcsinh of the signal, as a rule); if False, the track's own units.
    axes
        Draw into these, one a row (the last for ``genes``); by default a new figure.

    Returns
    -------
    The axes, one a row, top to bottom.

    Raises
    ------
    CubeError
        Where a layer or label is not on the cube, or nothing is left to draw.
    GenomeError
        Where the region is not on the cube, or lies on several chromosomes.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate().avocado.average()
    >>> axes = xa.plot.tracks(cube, "chr1:100kb-200kb", celltype="C1", assay=["H3K4me3", "H3K36me3"])
    >>> [ax.get_title(loc="left") for ax in axes]
    ['C1 H3K4me3', '', 'C1 H3K36me3', '']
    """
    names = _layers(ds, variables)
    wanted = _pairs(ds, celltype, assay, pairs)
    bounds = [name for name in (IMPUTED_LOWER, IMPUTED_UPPER) if name in ds and IMPUTED in names]
    here = select(ds[[OBSERVED, *names, *bounds]], region)
    bins = bins_of(here)
    if len(bins.chroms) != 1:
        raise GenomeError(f"a figure shows one chromosome; {region!r} lies on {', '.join(bins.chroms)}")
    steps = Steps.of(bins)
    rows = _rows(here, wanted, names, steps, transformed)
    lanes = None if genes is None else lanes_of(as_frame(genes), bins)
    heights = [HEIGHT] * len(rows) + ([] if lanes is None else [lanes.height])
    if axes is not None and len(axes) != len(heights):
        raise CubeError(f"there are {len(heights)} rows to draw, but {len(axes)} axes were given")
    drawn = new_rows(heights, sum(row.first for row in rows)) if axes is None else list(axes)
    for ax, row in zip(drawn, rows, strict=False):
        draw_row(ax, row, steps)
    if lanes is not None:
        draw_genes(drawn[-1], lanes, steps)
    label_positions(drawn[-1], bins)
    label_signal(drawn, ds.attrs.get("transform", "none") if transformed else "none", own=axes is None)
    return np.asarray(drawn)


def _rows(here: xr.Dataset, pairs: list[Experiment], names: list[str], steps: Steps, transformed: bool) -> list[Row]:
    inverse = transform_named("none" if transformed else here.attrs.get("transform", "none")).inverse
    colors, rows = colors_of(names), []
    for pair in pairs:
        whole = {name: inverse(np.asarray(here[name].sel(pair._asdict()).values, float)) for name in names}
        values = {name: steps.mean(v) for name, v in whole.items()}
        drawn = {name: v for name, v in values.items() if np.isfinite(v).any()}
        band = _band(here, pair, steps, inverse) if IMPUTED in drawn else None
        heights = [*drawn.values(), *([] if band is None else band[1:])]
        top = max((float(np.nanmax(v)) for v in heights), default=0.0) or 1.0
        for i, (name, v) in enumerate(drawn.items()):
            rows.append(Row(pair, name, colors[name], v, top, i == 0, band if name == IMPUTED else None))
    if not rows:
        raise CubeError(f"none of {', '.join(names)} has a value here for {', '.join(map(str, pairs[:5]))}")
    return rows


def _band(
    here: xr.Dataset, pair: Experiment, steps: Steps, inverse: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of what is imputed for a pair, where the cube has them."""
    if IMPUTED_LOWER not in here or IMPUTED_UPPER not in here:
        return None
    names = IMPUTED_LOWER, IMPUTED_UPPER
    lower, upper = (steps.mean(inverse(np.asarray(here[n].sel(pair._asdict()).values, float))) for n in names)
    return lower, upper


def _layers(ds: xr.Dataset, variables: Sequence[str] | None) -> list[str]:
    if variables is None:
        variables = [name for name in (SIGNAL, IMPUTED, AVERAGE) if name in ds] or [SIGNAL]
    variables = [variables] if isinstance(variables, str) else list(variables)
    check_cube(ds, *variables)
    return variables


def _pairs(ds: xr.Dataset, celltype: Any, assay: Any, pairs: Iterable[Any] | None) -> list[Experiment]:
    if pairs is not None:
        if celltype is not None or assay is not None:
            raise CubeError("give pairs=, or celltype= and assay=, not both")
        return as_experiments(ds, pairs)
    chosen = {}
    for dim, labels in ((CELLTYPE, celltype), (ASSAY, assay)):
        every = ds[dim].values
        chosen[dim] = every[slice(None) if labels is None else label_rows(ds, dim, labels)].tolist()
    found = [Experiment(str(c), str(a)) for c in chosen[CELLTYPE] for a in chosen[ASSAY]]
    if len(found) > TRACKS and (celltype is None or assay is None):
        raise CubeError(f"{len(found)} tracks are too many for a figure: name some with celltype=, assay= or pairs=")
    return found
