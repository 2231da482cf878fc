"""embed: the learned factors as tables: PyRanges of genomic bins, AnnData of cell types and assays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    FITTED,
    POSITION,
    CubeError,
    check_cube,
    genome_factors,
    position_dim,
    scale_name,
)
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of, select
from xr_avocado.intervals import to_pyranges

if TYPE_CHECKING:
    import anndata
    import pyranges

__all__ = ["embed"]

LARGEST_TABLE = 2_000_000
"""Rows of a factor table, at most: a PyRanges of 4 million rows x 25 factors takes 11 s and 1.2 GB to make."""


def embed(
    ds: xr.Dataset, axis: str = POSITION, *, regions: Any = None, scales: Any = None, as_: str = "pyranges"
) -> pyranges.PyRanges | pd.DataFrame | anndata.AnnData:
    """Give the learned factors of an axis as a table that other tools read.

    Parameters
    ----------
    ds
        A fitted cube.
    axis
        ``"position"``, ``"celltype"`` or ``"assay"``.
    regions
        For positions: a region string, PyRanges, frame or BED file; by default every position of the cube, up to 2 million bins.
    scales
        For positions: the widths in bp to give, e.g. ``250`` or ``(25, 250)``; by default all. Rows are bins of the finest of them;
        factors of coarser bins repeat over the bins inside.
    as_
        For positions: ``"pyranges"`` or ``"frame"`` (chrom, start, end first).

    Returns
    -------
    For positions one row a bin with columns ``factor_25bp_0``, ...; for cell types and assays an AnnData with one observation a label,
    the factors in ``obsm["X_avocado"]``, ready for ``scanpy.pp.neighbors(use_rep="X_avocado")``. The whole table is in memory.

    Raises
    ------
    CubeError
        Where the cube is not fitted, the axis or scale is unknown, or the table would exceed 2 million rows.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit(epochs=1, progress=False)
    >>> fitted.avocado.embed("celltype").obsm["X_avocado"].shape[0]
    4
    >>> fitted.avocado.embed("position", regions="chr1:10,000-20,000", scales=5000, as_="frame")[
    ...     ["chrom", "start", "end"]
    ... ].values.tolist()
    [['chr1', 10000, 15000], ['chr1', 15000, 20000]]
    """
    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    if axis in (CELLTYPE, ASSAY):
        return _labels_anndata(ds, axis)
    if axis != POSITION:
        raise CubeError(f"axis {axis!r} is unknown; choose 'position', 'celltype' or 'assay'")
    if as_ not in ("pyranges", "frame"):
        raise ValueError(f"as_ is 'pyranges' or 'frame'; got {as_!r}")
    frame = position_table(ds if regions is None else select(ds, regions), scales)
    return to_pyranges(frame) if as_ == "pyranges" else frame


def _labels_anndata(ds: xr.Dataset, axis: str) -> anndata.AnnData:
    import anndata

    name, other = (CELLTYPE_FACTORS, ASSAY) if axis == CELLTYPE else (ASSAY_FACTORS, CELLTYPE)
    tracks = ds["observed"].sum(other).values
    obs = pd.DataFrame({"n_observed": tracks}, index=pd.Index(ds[axis].values.astype(str), name=axis))
    return anndata.AnnData(
        obs=obs, obsm={"X_avocado": ds[name].values}, uns={"avocado": {"params": ds.attrs[FITTED]["config"]}}
    )


def position_table(ds: xr.Dataset, scales: Any = None) -> pd.DataFrame:
    """Factors of every bin of a fitted cube: chrom, start, end, then one column a factor; one row a bin of the finest scale."""
    bins = bins_of(ds)
    known = [bins.binsize * scale for scale in ds.attrs[FITTED]["config"]["scales"]]
    wanted = known if scales is None else sorted(np.atleast_1d(scales).tolist())
    if unknown := set(wanted) - set(known):
        raise CubeError(f"there are no factors of {min(unknown)} bp; this model has {', '.join(map(str, known))} bp")
    axes = {bp: bins if bp == bins.binsize else _covering(ds, bins, bp) for bp in wanted}
    finest = axes[wanted[0]]
    if len(finest) > LARGEST_TABLE:
        raise CubeError(
            f"a table of {len(finest):,} bins is too large to hold ({LARGEST_TABLE:,} at most); give regions=, coarser scales= "
            f"(e.g. scales={known[-1]}), or work on the variable {genome_factors(wanted[0])!r}, which is lazy"
        )
    table = pd.DataFrame({"chrom": finest.chrom, "start": finest.start, "end": finest.end})
    columns = [_factor_columns(ds, bp, finest) for bp in wanted]
    return pd.concat([table, *columns], axis=1)


def _covering(ds: xr.Dataset, bins: GenomeBins, bp: int) -> GenomeBins:
    """The cube's coarse bins that hold its positions, and no others."""
    axis = bins_of(ds, position_dim(bp, bins.binsize))
    return axis[np.unique(axis.rows_of(bins))]


def _factor_columns(ds: xr.Dataset, bp: int, finest: GenomeBins) -> pd.DataFrame:
    axis = bins_of(ds, position_dim(bp, bins_of(ds).binsize))
    rows = axis.rows_of(finest)
    held = ds[genome_factors(bp)][int(rows.min()) : int(rows.max()) + 1].values
    values = held[rows - rows.min()]
    return pd.DataFrame(values, columns=[f"factor_{scale_name(bp)}_{i}" for i in range(values.shape[1])])
