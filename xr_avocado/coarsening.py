"""Averages over runs of neighbouring bins, block by block: arrays in, arrays out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from xr_avocado.genome import GenomeBins

__all__ = ["HOW", "coarsen_array"]

HOW = ("mean", "max", "min")
PIECE = 1 << 17
"""Bins at a time: beside the values, 36 bytes a bin of coordinates and weights."""


def coarsen_array(values: Any, bins: GenomeBins, coarse: GenomeBins, *, axis: int, how: str) -> Any:
    """Reduce an array along a genome axis to wider bins; lazily, chunk by chunk, where it is a dask array.

    Parameters
    ----------
    values
        Numpy or dask array with one entry a bin along ``axis``.
    bins, coarse
        The axis it is on, and the wider bins of the same segments.
    axis
        The dimension the bins lie along.
    how
        ``mean`` (each bin weighs as many bp as it covers), ``max`` or ``min``; all pass NaN over where a wider bin has a value.
    """
    if not hasattr(values, "dask"):
        return _reduce_pieces(np.asarray(values), bins, axis, how, coarse.binsize)
    import dask.array as da

    edges = _whole_bins(bins, coarse, np.cumsum((0, *values.chunks[axis])))
    rows = np.append(_coarse_rows(bins, coarse, edges[:-1]), len(coarse))
    values = values.rechunk({axis: tuple(np.diff(edges).tolist())})
    chunks = list(values.chunks)
    chunks[axis] = tuple(np.diff(rows).tolist())
    dtype = _result_dtype(values.dtype, how)
    meta = np.empty((0,) * values.ndim, dtype)
    return da.map_blocks(
        _reduce_block, values, bins, axis, how, coarse.binsize, chunks=tuple(chunks), dtype=dtype, meta=meta
    )


def _coarse_rows(bins: GenomeBins, coarse: GenomeBins, rows: np.ndarray) -> np.ndarray:
    chrom, start, _ = bins.at(rows)
    return coarse.overlaps(chrom, start, start + 1)[0]


def _whole_bins(bins: GenomeBins, coarse: GenomeBins, edges: np.ndarray) -> np.ndarray:
    """Move the edges of chunks down to rows at which a coarse bin starts."""
    if not len(bins):
        return np.array([0, 0])
    chrom, start, end = coarse.at(_coarse_rows(bins, coarse, edges[:-1]))
    return np.append(np.unique(bins.overlaps(chrom, start, end)[0]), len(bins))


def _reduce_block(
    values: np.ndarray, bins: GenomeBins, axis: int, how: str, binsize: int, block_info: Any = None
) -> np.ndarray:
    first, last = block_info[0]["array-location"][axis]
    return _reduce_pieces(values, bins[first:last], axis, how, binsize)


def _reduce_pieces(values: np.ndarray, bins: GenomeBins, axis: int, how: str, binsize: int) -> np.ndarray:
    if len(bins) <= PIECE:
        return _reduce(values, bins, axis, how, binsize)
    coarse = bins.coarsen(binsize // bins.binsize)
    edges = _whole_bins(bins, coarse, np.append(np.arange(0, len(bins), PIECE), len(bins)))
    parts = [(slice(None),) * axis + (slice(*edge),) for edge in pairwise(edges.tolist())]
    return np.concatenate([_reduce(values[at], bins[at[-1]], axis, how, binsize) for at in parts], axis)


def _reduce(values: np.ndarray, bins: GenomeBins, axis: int, how: str, binsize: int) -> np.ndarray:
    dtype = _result_dtype(values.dtype, how)
    if not len(bins):
        return values.astype(dtype)
    rows = bins.coarsen(binsize // bins.binsize).rows_of(bins)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    if how != "mean":
        return {"max": np.fmax, "min": np.fmin}[how].reduceat(values, starts, axis=axis)
    values = np.moveaxis(values.astype(np.result_type(dtype, np.float32), copy=False), axis, -1)
    width = (bins.end - bins.start).astype(values.dtype)
    known = ~np.isnan(values)
    if known.all():
        mean = np.add.reduceat(values * width, starts, axis=-1) / np.add.reduceat(width, starts)
    else:
        covered = np.add.reduceat(known * width, starts, axis=-1)
        total = np.add.reduceat(np.where(known, values, 0) * width, starts, axis=-1)
        mean = np.divide(total, covered, out=np.full_like(total, np.nan), where=covered > 0)
    return np.moveaxis(mean, -1, axis).astype(dtype, copy=False)


def _result_dtype(dtype: np.dtype, how: str) -> np.dtype:
    return dtype if how != "mean" or dtype.kind == "f" else np.dtype(np.float64)
