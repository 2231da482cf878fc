"""Give a cube its genome axis, read it back, cut regions out of it and make its bins wider."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.axis import GenomeIndex, coordinate_names, rows_of_runs
from xr_avocado.coarsening import HOW, coarsen_array
from xr_avocado.cube import (
    FITTED,
    MODEL,
    POSITION,
    CubeError,
    check_whole,
)
from xr_avocado.genome import GenomeBins, GenomeError, unknown_chromosome
from xr_avocado.intervals import as_frame, is_region, parse_region

__all__ = ["GenomeIndex", "assign_bins", "bins_of", "coarsen", "select"]

logger = logging.getLogger("xr_avocado")
Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def assign_bins(ds: Labelled, bins: GenomeBins, dim: str = POSITION) -> Labelled:
    """Lay a genome axis on a dim, as the lazy coordinates ``chrom``, ``start`` and ``end``.

    Nothing is computed: the axis is its table of segments. On the dim ``position_250bp`` of a fitted cube the coordinates are
    ``chrom_250bp``, ``start_250bp`` and ``end_250bp``. ``attrs["binsize"]`` of a dataset follows the bins of ``position``.

    Raises
    ------
    CubeError
        Where the dim has another length than there are bins.

    Examples
    --------
    >>> ds = xr.Dataset({"signal": ("position", np.arange(4.0))})
    >>> assign_bins(ds, GenomeBins([("chr1", 0, 100)], binsize=25)).end.values.tolist()
    [25, 50, 75, 100]
    """
    if ds.sizes.get(dim, len(bins)) != len(bins):
        raise CubeError(
            f"{dim!r} is {ds.sizes[dim]:,} long, but there are {len(bins):,} bins; give one bin for each entry"
        )
    index = GenomeIndex(bins, dim)
    out = ds.drop_vars([name for name in index.names.values() if name in ds.coords])
    out = out.assign_coords(xr.Coordinates.from_xindex(index))
    return out.assign_attrs(binsize=bins.binsize) if dim == POSITION and isinstance(ds, xr.Dataset) else out


def bins_of(ds: xr.Dataset | xr.DataArray, dim: str = POSITION) -> GenomeBins:
    """Read the genome axis of a dim: from its index, or from plain coordinates that a store or a shuffle left of it.

    Raises
    ------
    CubeError
        Where there is neither an index nor coordinates that are bins in genome order.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> len(bins_of(cube)) == cube.sizes["position"]
    True
    """
    for index in ds.xindexes.get_unique():
        if isinstance(index, GenomeIndex) and index.dim == dim:
            return index.bins
    names = coordinate_names(dim)
    if dim not in ds.dims or not all(name in ds.coords and ds[name].dims == (dim,) for name in names):
        raise CubeError(
            f"the bins along {dim!r} are not known: there is no genome index, and not all of the coordinates {', '.join(names)}; "
            "open cubes with xr_avocado.open_cube, or give the bins with xr_avocado.index.assign_bins"
        )
    try:
        chrom, start, end = (ds[name].values for name in names)
        return GenomeBins.from_coordinates(chrom, start, end, _binsize(ds, dim))
    except GenomeError as error:
        raise CubeError(
            f"the coordinates {', '.join(names)} are no bins in genome order ({error}); "
            f"sort the dataset, or give the bins with xr_avocado.index.assign_bins"
        ) from None


def _binsize(ds: xr.Dataset | xr.DataArray, dim: str) -> int:
    scale = re.fullmatch(rf"{POSITION}_(\d+)(M|k|)bp", dim)
    if scale:
        return int(scale[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[scale[2]]
    if "binsize" not in ds.attrs:
        raise CubeError(f"the bin size along {dim!r} is not known; set it: ds.attrs['binsize'] = 25")
    return int(ds.attrs["binsize"])


def select(ds: Labelled, region: Any) -> Labelled:
    """Cut regions out of a cube: ``ds.avocado.sel("chr2:1Mb-2Mb")``.

    Every dim of bins is cut, the coarse scales of a fitted cube too, so that what comes back is a cube that can do what the
    whole one could. All bins that overlap the region are kept, also where it starts or ends inside one. Lazy: nothing is read.

    Parameters
    ----------
    ds
        A cube, fitted or not, or one of its variables.
    region
        ``"chr2"``, ``"chr2:1,000,000-2,000,000"``, ``"chr2:5Mb-"`` (0-based, half-open), a list of these, or a table of
        intervals: PyRanges (0.1 or pyranges1), a bioframe frame, the path of a BED file. Bins of several regions come back in
        genome order, each once; intervals of a table that lie elsewhere are passed over.

    Raises
    ------
    GenomeError
        Where a region string names an unknown chromosome, ends past its chromosome or holds no bin, or no interval of a table
        overlaps a bin.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> chrom = str(cube.chrom[0].values)
    >>> cube.avocado.sel(f"{chrom}:1,010-1,060").start.values.tolist()
    [1000, 1025, 1050]
    """
    axes = {str(dim): bins_of(ds, str(dim)) for dim in _position_dims(ds)}
    regions = [region] if is_region(region) else region
    if isinstance(regions, list | tuple) and all(map(is_region, regions)) and regions:
        asked = [parse_region(r) for r in regions]
        for interval in asked:
            _check_in_chromosome(*interval, ds.attrs.get("chromsizes", {}))
        return ds.isel({dim: _rows_of_regions(bins, asked) for dim, bins in axes.items()})
    frame = as_frame(region)
    return ds.isel({dim: _rows_of_table(bins, frame, tell=i == 0) for i, (dim, bins) in enumerate(axes.items())})


def _position_dims(ds: xr.Dataset | xr.DataArray) -> list[Hashable]:
    dims = [dim for dim in ds.dims if dim == POSITION or str(dim).startswith(f"{POSITION}_")]
    if not dims:
        raise CubeError(
            f"there is no {POSITION!r} dim to select a region on; the dims are {', '.join(map(str, ds.dims))}"
        )
    return sorted(dims, key=lambda dim: dim != POSITION)


def _check_in_chromosome(chrom: str, start: int | None, end: int | None, sizes: Mapping[str, int]) -> None:
    if sizes and chrom not in sizes:
        raise GenomeError(unknown_chromosome(chrom, tuple(sizes)))
    length = sizes.get(chrom)
    if length is not None and ((start or 0) >= length or (end or 0) > length):
        asked = f"{chrom}:{start or 0:,}-{'' if end is None else format(end, ',')}"
        raise GenomeError(
            f"{asked} reaches past the end of {chrom}, which is {length:,} long: end the region there, or leave the end out; "
            "is it from another assembly?"
        )


def _rows_of_regions(bins: GenomeBins, regions: list[tuple[str, int | None, int | None]]) -> slice | np.ndarray:
    runs = [bins.rows(*region) for region in regions]
    return rows_of_runs(np.array([run.start for run in runs]), np.array([run.stop for run in runs]))


def _rows_of_table(bins: GenomeBins, frame: pd.DataFrame, *, tell: bool) -> slice | np.ndarray:
    first, last = bins.overlaps(frame["chrom"].to_numpy(), frame["start"].to_numpy(), frame["end"].to_numpy())
    here = int((first < last).sum())
    if not here:
        raise GenomeError(f"none of the {len(frame):,} intervals overlaps a bin: {_why_none(bins, frame)}")
    if tell and here < len(frame):
        logger.info("%d of %d intervals overlap no bin of the cube and are passed over", len(frame) - here, len(frame))
    return rows_of_runs(first, last)


def _why_none(bins: GenomeBins, frame: pd.DataFrame) -> str:
    elsewhere = frame["chrom"][~frame["chrom"].isin(bins.chroms)]
    if len(elsewhere) == len(frame):
        return unknown_chromosome(str(elsewhere.iloc[0]), bins.chroms)
    row = frame[frame["chrom"].isin(bins.chroms)].iloc[0]
    return f"the first is {row.chrom}:{row.start:,}-{row.end:,}, and the cube is {bins!r}"


def coarsen(ds: xr.Dataset, factor: int, how: str = "mean") -> xr.Dataset:
    """Make a cube of bins ``factor`` times as wide.

    The new bins lie on the genome's own grid, inside each segment, and average what they cover by the bp covered, so that the
    partial bins at the ends of segments count as little as they are. Averaging is done on the values as they are stored, which
    are transformed: the mean of arcsinh values is not the arcsinh of the mean. NaN is passed over. Dask arrays stay lazy and are
    worked on chunk by chunk: a thread holds one, what becomes of it, and some 5 MB.

    The factors of a fitted model belong to its bins, so a fitted cube comes back without its model; impute first, then coarsen.

    Parameters
    ----------
    ds
        A cube; its variables along ``position`` must be numbers.
    factor
        How many bins make one, at least 1.
    how
        ``mean``, ``max`` or ``min``.

    Raises
    ------
    CubeError
        Where the factor or ``how`` is not one of these, or a variable along ``position`` holds no numbers.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> xa.datasets.simulate().avocado.coarsen(8).attrs["binsize"]
    200
    """
    factor = check_whole("factor", factor)
    if how not in HOW:
        raise CubeError(f"how is one of {', '.join(HOW)}; got {how!r}")
    ds = _without_model(ds)
    bins = bins_of(ds)
    coarse = bins.coarsen(factor)
    ds = ds.drop_vars([name for name in coordinate_names(POSITION) if name in ds.coords])
    wider = {
        name: _coarsen_variable(str(name), v, bins, coarse, how)
        for name, v in ds.variables.items()
        if POSITION in v.dims
    }
    out = ds.drop_dims(POSITION).drop_vars([name for name in wider if name in ds.coords], errors="ignore")
    out = out.assign_coords({k: v for k, v in wider.items() if k in ds.coords})
    out = out.assign({k: v for k, v in wider.items() if k not in ds.coords})
    return assign_bins(out[list(ds.data_vars)], coarse)


def _coarsen_variable(name: str, variable: xr.Variable, bins: GenomeBins, coarse: GenomeBins, how: str) -> xr.Variable:
    if variable.dtype.kind not in "biuf":
        raise CubeError(f"{name!r} lies along {POSITION} and holds no numbers, so it has no {how}; drop it first")
    values = coarsen_array(variable.data, bins, coarse, axis=variable.dims.index(POSITION), how=how)
    return xr.Variable(variable.dims, values, variable.attrs)


def _without_model(ds: xr.Dataset) -> xr.Dataset:
    if FITTED not in ds.attrs:
        return ds
    logger.info("the model of this cube belongs to its own bins and is left behind")
    out = ds.drop_vars([name for name in ds.data_vars if str(name).startswith(MODEL)])
    out = out.drop_dims([dim for dim in out.dims if str(dim).startswith(f"{POSITION}_")])
    out.attrs = {key: value for key, value in ds.attrs.items() if key != FITTED}
    return out
