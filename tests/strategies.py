"""The plain model of a genome axis that tests compare with, a list of intervals, and what is drawn beside the package's strategies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from hypothesis import strategies as st

from xr_avocado.genome import GenomeBins
from xr_avocado.testing import CHROMS, Interval, binsizes, cube_of, cubes, genome_bins, segment_tables

__all__ = [
    "CHROMS",
    "Interval",
    "binsizes",
    "coordinates",
    "cube_of",
    "cubes",
    "genome_bins",
    "intervals_near",
    "is_axis",
    "rows_of",
    "segment_tables",
    "spell_out",
]


@st.composite
def rows_of(draw: st.DrawFn, n: int, *, ascending: bool = True) -> slice | np.ndarray:
    """What an axis of n bins may be indexed with: a slice, a mask or rows."""
    kind = draw(st.sampled_from(["slice", "mask", "rows"]))
    if kind == "slice":
        step = draw(st.sampled_from([None, 1, 2, 3] + ([] if ascending else [-1])))
        return slice(draw(st.none() | st.integers(-n, n)), draw(st.none() | st.integers(-n, n)), step)
    if kind == "mask":
        return np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    rows = draw(st.lists(st.integers(0, n - 1), max_size=min(n, 12), unique=ascending)) if n else []
    return np.array(sorted(rows) if ascending else rows, np.int64)


@st.composite
def intervals_near(draw: st.DrawFn, bins: GenomeBins) -> Interval:
    """An interval on, beside or beyond the segments of an axis."""
    chrom = draw(st.sampled_from([*bins.chroms, "chrUn"]))
    start = draw(st.integers(0, 500))
    return chrom, start, start + draw(st.integers(1, 300))


def spell_out(segments: list[Interval] | GenomeBins, binsize: int | None = None) -> list[Interval]:
    """Every bin of an axis, one by one."""
    if isinstance(segments, GenomeBins):
        segments, binsize = list(segments.segments.itertuples(index=False, name=None)), segments.binsize
    bins = []
    for chrom, start, end in segments:
        for k in range(start // binsize, end // binsize + 1):
            left, right = max(start, k * binsize), min(end, (k + 1) * binsize)
            if left < right:
                bins.append((chrom, left, right))
    return bins


def coordinates(x: GenomeBins | xr.Dataset | xr.DataArray | pd.DataFrame) -> list[Interval]:
    """The bins that an axis, a cube or a frame says it has."""
    columns = [np.atleast_1d(np.asarray(getattr(x, name))).tolist() for name in ("chrom", "start", "end")]
    return list(zip(*columns, strict=True))


def is_axis(bins: list[Interval]) -> bool:
    """Whether bins are in an order that an axis can have."""
    left: set[str] = set()
    for (chrom, _, end), (following, start, _) in zip(bins, bins[1:], strict=False):
        if following != chrom:
            left.add(chrom)
        if following in left or (following == chrom and start < end):
            return False
    return True
