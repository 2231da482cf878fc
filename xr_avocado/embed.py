"""embed, to_anndata: the learned factors, and the tracks, as tables that other tools read: PyRanges, frames, AnnData."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.aggregate import QUANTILES, Aggregation, Anchor, Windows, aggregate, check_aggregation, covered
from xr_avocado.axis import rows_of_runs
from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    DIMS,
    FITTED,
    IMPUTED,
    IMPUTED_TRACKS,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    check_bins,
    check_cube,
    genome_factors,
    position_dim,
    scale_name,
)
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import bins_of, select
from xr_avocado.intervals import as_frame, to_pyranges

if TYPE_CHECKING:
    import anndata
    import pyranges

__all__ = ["embed", "to_anndata"]

logger = logging.getLogger("xr_avocado")
LARGEST_TABLE = 2_000_000
"""Rows of a factor table, at most: a PyRanges of 4 million rows x 25 factors takes 11 s and 1.2 GB to make."""
LARGEST_VALUES = 250_000_000
"""Values of any other table, at most: 1 GB."""


def embed(
    ds: xr.Dataset,
    axis: str = POSITION,
    *,
    regions: Any = None,
    agg: Aggregation | None = None,
    scales: int | Sequence[int] | None = None,
    anchor: Anchor | None = None,
    flank: int | tuple[int, int] = 0,
    windows: int | None = None,
    as_: Literal["pyranges", "frame"] = "pyranges",
) -> pyranges.PyRanges | pd.DataFrame | anndata.AnnData:
    """Give the learned factors of an axis as a table that other tools read.

    Positions come bin by bin or, with ``agg``, aggregated: one row an interval of ``regions`` (genes, peaks, 40-kb bins), each scale
    aggregated over its own bins, so that a coarse factor counts once however many fine bins it spans. The paper found that the mean
    over 40 kb loses information (section 4.6); quantiles, or windows with their own columns each, keep more of it.

    Parameters
    ----------
    ds
        A fitted cube.
    axis
        ``"position"``, ``"celltype"`` or ``"assay"``; what follows is for positions alone.
    regions
        A region string, PyRanges, frame or BED file. Without ``agg`` by default every position of the cube, up to 2 million bins.
    agg
        How to aggregate the bins that an interval overlaps. ``"mean"``: over its bases, so that a bin counts by the bp inside.
        ``"max"``, or ``"quantile"`` for the 10, 50 and 90 % quantiles (three columns a factor): over the bins, each alike. A callable
        likewise, called as numpy's reductions are: ``np.std``, ``np.median``, ``f(values, axis=1)`` with values intervals x bins x
        factors, to give intervals x factors. By default None, which gives bins, or ``"mean"`` where one of the next three is given.
    scales
        The widths in bp to give, e.g. ``250`` or ``(25, 250)``; by default all. Without ``agg`` rows are bins of the finest of them,
        and factors of coarser bins repeat over the bins inside.
    anchor
        Take the ``"start"`` (5' end), ``"center"`` or ``"end"`` (3' end) of each interval in its place, and go ``flank`` from there.
    flank
        Widen intervals, by bp on both sides or ``(upstream, downstream)``.
    windows
        Cut each interval into so many windows of one width, numbered from 5' to 3'. Scales up to that width are aggregated in each
        window, coarser ones once over the interval. Intervals must be of one length, which ``anchor`` and ``flank`` see to.
    as_
        ``"pyranges"`` (which orders its rows by chromosome and strand) or ``"frame"`` (in the order of ``regions``).

    Returns
    -------
    For positions chrom, start and end (in PyRanges Chromosome, Start and End), then a float32 column a factor: ``factor_25bp_0``, ... .
    One row a bin, or with ``agg`` one row an interval, with its own coordinates and all its columns as given; then ``covered``, the
    fraction of its bp (with flanks) on bins of the cube; then the factors, with windows ``factor_25bp_0_w0``, ... (all columns of the
    first window come first, those of an interval last), and quantiles as ``factor_25bp_0_q10``. What runs off a segment is aggregated
    over the part that lies on it, and a window or interval off the cube is NaN; a warning says how many.

    For cell types and assays an AnnData with one observation a label, the factors in ``obsm["X_avocado"]``, ready for
    ``scanpy.pp.neighbors(use_rep="X_avocado")``.

    The whole table is in memory. Aggregating takes about 0.3 GB more, or the factors of the longest interval where that is more than
    6 Mb; lazy factors are read chunk by chunk.

    Raises
    ------
    CubeError
        Where the cube is not fitted, the axis or scale is unknown, the table would exceed 2 million bins or 250 million values, the
        strand is needed and not there, or intervals for ``windows`` differ in length.
    GenomeError
        Where no interval overlaps the cube.

    Notes
    -----
    The paper's promoter features (section 4.6): 2 kb upstream of the gene in 8 windows of 250 bp. Each has the mean of its 25 factors of
    25 bp and its 40 factors of 250 bp; the 45 of 5 kbp are the same for the whole promoter: 8 x (25 + 40) + 45 = 565 columns.
    A bin wider than 250 bp takes no part in the windows; a promoter off the 250-bp grid has windows on two bins, weighed by their bp.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> config = {"context": False, "genome_factors": (25, 40, 45)}
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit(config=config, epochs=1, progress=False)
    >>> fitted.avocado.embed("celltype").obsm["X_avocado"].shape[0]
    4
    >>> bins = fitted.avocado.embed("position", regions="chr1:10,000-20,000", scales=5000, as_="frame")
    >>> bins[["chrom", "start", "end"]].values.tolist()
    [['chr1', 10000, 15000], ['chr1', 15000, 20000]]

    Genes, and the paper's features of their promoters:

    >>> genes = pd.DataFrame({"chrom": "chr1", "start": [1_000, 9_000], "end": [1_500, 9_900], "strand": ["+", "-"]})
    >>> fitted.avocado.embed("position", regions=genes, agg="max", scales=250, as_="frame").shape
    (2, 45)
    >>> promoters = fitted.avocado.embed(
    ...     "position", regions=genes, anchor="start", flank=(2_000, 0), windows=8, as_="frame"
    ... )
    >>> promoters.filter(like="factor_").shape, promoters.covered.tolist()
    ((2, 565), [0.5, 1.0])
    """
    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    _check_axis(axis)
    aggregates = anchor is not None or windows is not None or bool(np.any(flank))
    if axis != POSITION:
        if aggregates or any(option is not None for option in (regions, agg, scales)):
            raise CubeError(
                f"regions, agg, scales, anchor, flank and windows are for positions; leave them out for {axis!r}"
            )
        return _labels_anndata(ds, axis)
    if as_ not in ("pyranges", "frame"):
        raise ValueError(f"as_ is 'pyranges' or 'frame'; got {as_!r}")
    check_bins(ds, "embed")
    if agg is None and aggregates:
        agg = "mean"
    if agg is None:
        frame = position_table(ds if regions is None else select(ds, regions), scales)
    else:
        frame = interval_table(ds, regions, agg, scales=scales, anchor=anchor, flank=flank, windows=windows)
    return to_pyranges(frame) if as_ == "pyranges" else frame


def _check_axis(axis: str) -> None:
    if axis not in DIMS:
        raise CubeError(f"axis {axis!r} is unknown; choose 'position', 'celltype' or 'assay'")


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
    wanted = _wanted_scales(ds, scales)
    finest = _covering(ds, wanted[0])
    if len(finest) > LARGEST_TABLE:
        raise CubeError(
            f"a table of {len(finest):,} bins is too large to hold ({LARGEST_TABLE:,} at most); give regions=, aggregate over genes or "
            f"wide bins (regions= and agg=), give coarser scales= (e.g. scales={_known_scales(ds)[-1]}), or work on the variable "
            f"{genome_factors(wanted[0])!r}, which is lazy"
        )
    table = pd.DataFrame({"chrom": finest.chrom, "start": finest.start, "end": finest.end})
    columns = [_factor_columns(ds, bp, finest) for bp in wanted]
    return pd.concat([table, *columns], axis=1)


def _known_scales(ds: xr.Dataset) -> list[int]:
    return [int(ds.attrs["binsize"]) * scale for scale in ds.attrs[FITTED]["config"]["scales"]]


def _wanted_scales(ds: xr.Dataset, scales: Any) -> list[int]:
    known = _known_scales(ds)
    wanted = known if scales is None else sorted(np.unique(scales).tolist())
    if unknown := set(wanted) - set(known):
        raise CubeError(f"there are no factors of {min(unknown)} bp; this model has {', '.join(map(str, known))} bp")
    if not wanted:
        raise CubeError(f"scales names none; this model has {', '.join(map(str, known))} bp")
    return wanted


def _axis_of(ds: xr.Dataset, bp: int) -> GenomeBins:
    return bins_of(ds, position_dim(bp, bins_of(ds).binsize))


def _covering(ds: xr.Dataset, bp: int) -> GenomeBins:
    """The cube's bins of a scale that hold its positions, and no others."""
    bins, axis = bins_of(ds), _axis_of(ds, bp)
    if bp == bins.binsize:
        return bins
    axis.check_covers(bins)
    segments = bins.segments
    return axis[rows_of_runs(*axis.overlaps(segments["chrom"], segments["start"], segments["end"]))]


def _factor_columns(ds: xr.Dataset, bp: int, finest: GenomeBins) -> pd.DataFrame:
    rows = _axis_of(ds, bp).rows_of(finest)
    held = _factors(ds, bp)[int(rows.min()) : int(rows.max()) + 1].values
    values = held[rows - rows.min()]
    return pd.DataFrame(values, columns=_factor_names(bp, values.shape[1]))


def _factors(ds: xr.Dataset, bp: int) -> xr.DataArray:
    return ds[genome_factors(bp)].transpose(position_dim(bp, bins_of(ds).binsize), ...)


def _factor_names(bp: int, n: int, agg: Any = None, window: str = "") -> list[str]:
    names = [f"factor_{scale_name(bp)}_{i}{window}" for i in range(n)]
    return names if agg != "quantile" else [f"{name}_q{100 * q:.0f}" for q in QUANTILES for name in names]


def interval_table(
    ds: xr.Dataset,
    regions: Any,
    agg: Aggregation,
    *,
    scales: Any = None,
    anchor: Anchor | None = None,
    flank: int | tuple[int, int] = 0,
    windows: int | None = None,
) -> pd.DataFrame:
    """Factors aggregated over intervals, as `embed` describes them; one row an interval, in the order given."""
    check_aggregation(agg)
    if regions is None:
        raise CubeError("give the intervals to aggregate over as regions= (genes, peaks, bins of 40 kb)")
    wanted = _wanted_scales(ds, scales)
    intervals = as_frame(regions, sizes=ds.attrs.get("chromsizes"))
    cut = Windows.of(intervals, anchor=anchor, flank=flank, windows=windows)
    inner = [bp for bp in wanted if windows is not None and bp <= cut.width]
    once = [bp for bp in wanted if bp not in inner]
    names = [
        name
        for suffix, scales in [*((f"_w{i}", inner) for i in range(cut.start.shape[1] if inner else 0)), ("", once)]
        for bp in scales
        for name in _factor_names(bp, _factors(ds, bp).shape[1], agg, suffix)
    ]
    _check_table(intervals, names)
    share = share_covered(bins_of(ds), intervals, cut)
    values = [
        np.concatenate([aggregate(_factors(ds, bp), _axis_of(ds, bp), at, agg) for bp in scales], axis=2)
        for at, scales in ((cut, inner), (cut.whole, once))
        if scales
    ]
    table = np.concatenate([v.reshape(len(intervals), -1) for v in values], axis=1)
    # After a plain isel the coarse scales reach further than the positions that were chosen.
    table[share == 0] = np.nan
    return pd.concat([intervals.assign(covered=share), pd.DataFrame(table, columns=names, copy=False)], axis=1)


def _check_table(intervals: pd.DataFrame, names: list[str]) -> None:
    if len(intervals) * len(names) > LARGEST_VALUES:
        raise CubeError(
            f"a table of {len(intervals):,} intervals x {len(names)} columns is too large to hold ({LARGEST_VALUES:,} values at most); "
            "give fewer intervals at a time, fewer scales= or fewer windows="
        )
    if taken := sorted(set(intervals.columns) & {"covered", *names}):
        raise CubeError(
            f"regions have a column {taken[0]!r}, which is a column of the table that is to be made: rename or drop it"
        )


def share_covered(bins: GenomeBins, intervals: pd.DataFrame, cut: Windows) -> np.ndarray:
    whole = cut.whole
    share = (covered(bins, whole) / (whole.end - whole.start))[:, 0]
    off, partly = int((share == 0).sum()), int(((share > 0) & (share < 1)).sum())
    if off == len(share):
        row = intervals.iloc[0]
        raise GenomeError(
            f"none of the {len(share):,} intervals overlaps a bin: the first is {row.chrom}:{row.start:,}-{row.end:,}, and the cube "
            f"is {bins!r}; are the chromosomes named the same, and is it the same assembly?"
        )
    if off or partly:
        logger.warning(
            "of %d intervals %d lie off the cube's segments and are NaN, and %d run off a segment and count with the part on it; the "
            "column 'covered' says which",
            len(share),
            off,
            partly,
        )
    return share


def to_anndata(ds: xr.Dataset, by: str = POSITION, *, regions: Any = None) -> anndata.AnnData:
    """Give the tracks as an AnnData: observations are bins, cell types or assays, and variables what they were measured by.

    Parameters
    ----------
    ds
        A cube with ``signal``, ``imputed`` or both.
    by
        What an observation is. ``"position"``: a bin, its variables the tracks that were observed or imputed. ``"celltype"``: its
        variables are (assay, bin), assay by assay. ``"assay"``: its variables are (cell type, bin).
    regions
        A region string, PyRanges, frame or BED file; by default the whole cube, where it is small enough.

    Returns
    -------
    AnnData with ``X`` the observed signal (float32, in the cube's transformed units, NaN where nothing was measured; None for a cube
    without ``signal``), ``layers["imputed"]`` where the cube has it, and chrom, start and end of bins in ``obs`` or ``var``. Of a fitted
    cube ``obsm["X_avocado"]`` holds the factors of each observation; those of positions are of all scales side by side. In memory.

    Raises
    ------
    CubeError
        Where the cube has neither layer, ``by`` is unknown, or there would be more than 250 million values.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=3)
    >>> cube.avocado.to_anndata(regions="chr1:1,000-2,000").obs.head(2)
                     chrom  start   end
    chr1:1000-1025    chr1   1000  1025
    chr1:1025-1050    chr1   1025  1050
    >>> cube.avocado.to_anndata("celltype", regions="chr1:1,000-2,000").shape
    (4, 120)
    """
    import anndata

    check_cube(ds)
    _check_axis(by)
    layers = [name for name in (SIGNAL, IMPUTED) if name in ds]
    if not layers:
        raise CubeError("this cube has neither 'signal' nor 'imputed'; add the latter with .avocado.impute()")
    check_bins(ds, "make a table of")
    here = ds if regions is None else select(ds, regions)
    rest = tuple(dim for dim in (CELLTYPE, ASSAY, POSITION) if dim != by)
    keep = _tracks_with_values(here) if by == POSITION else np.ones(np.prod([here.sizes[dim] for dim in rest]), bool)
    _check_values(here.sizes[by], int(keep.sum()))
    values = {
        name: here[name].transpose(by, *rest).values.reshape(here.sizes[by], -1)[:, keep].astype(np.float32, copy=False)
        for name in layers
    }
    table = anndata.AnnData(
        values.pop(SIGNAL, None), obs=_labels_of(here, (by,)), var=_labels_of(here, rest)[keep], layers=values
    )
    if FITTED in ds.attrs:
        table.obsm["X_avocado"] = _own_factors(here, by)
    return table


def _tracks_with_values(ds: xr.Dataset) -> np.ndarray:
    known = [ds[name].transpose(CELLTYPE, ASSAY).values for name in (OBSERVED, IMPUTED_TRACKS) if name in ds]
    return np.logical_or.reduce(known).ravel()


def _check_values(n_obs: int, n_vars: int) -> None:
    if n_obs * n_vars > LARGEST_VALUES:
        raise CubeError(
            f"a table of {n_obs:,} x {n_vars:,} values is too large to hold ({LARGEST_VALUES:,} at most); give regions=, or make the "
            "bins wider first with .avocado.coarsen()"
        )


def _labels_of(ds: xr.Dataset, dims: tuple[str, ...]) -> pd.DataFrame:
    """One row for each combination of the labels along dims, the last dim running fastest; bins have their coordinates."""
    columns: dict[str, Any] = {}
    shape = tuple(ds.sizes[dim] for dim in dims)
    for dim, rows in zip(dims, np.indices(shape, sparse=False).reshape(len(dims), -1), strict=True):
        if dim == POSITION:
            bins = bins_of(ds)
            columns |= {"chrom": bins.chrom[rows], "start": bins.start[rows], "end": bins.end[rows]}
        else:
            columns[dim] = ds[dim].values.astype(str)[rows]
    frame = pd.DataFrame(columns)
    parts: list[Any] = [frame[dim] for dim in dims if dim != POSITION]
    if POSITION in dims:
        parts.append(frame["chrom"] + ":" + frame["start"].astype(str) + "-" + frame["end"].astype(str))
    names = parts[0] if len(parts) == 1 else parts[0] + " " + parts[1]
    return frame.set_axis(pd.Index(names.to_numpy()))


def _own_factors(ds: xr.Dataset, by: str) -> np.ndarray:
    if by != POSITION:
        name = CELLTYPE_FACTORS if by == CELLTYPE else ASSAY_FACTORS
        return ds[name].transpose(by, ...).values
    return position_table(ds).iloc[:, 3:].to_numpy()
