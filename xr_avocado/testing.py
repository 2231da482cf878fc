"""Hypothesis strategies for genome axes and cubes, for the tests of code that uses them; needs the package hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from hypothesis import strategies as st

from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins

__all__ = ["binsizes", "cube_of", "cubes", "genome_bins", "segment_tables"]

Interval = tuple[str, int, int]
CHROMS = ("chr1", "chr10", "chr2", "chrX", "7")


@st.composite
def segment_tables(draw: st.DrawFn, max_segments: int = 4, max_length: int = 90) -> list[Interval]:
    """Draw segments as a genome axis takes them: chromosomes in any order, each one's segments ascending, some touching.

    Parameters
    ----------
    max_segments
        Segments of a chromosome, at most.
    max_length
        Length of a segment in bp, at most.
    """
    table = []
    for chrom in draw(st.lists(st.sampled_from(CHROMS), min_size=1, max_size=3, unique=True)):
        end = 0
        for _ in range(draw(st.integers(1, max_segments))):
            start = end + draw(st.integers(0, 40))
            end = start + draw(st.integers(1, max_length))
            table.append((chrom, start, end))
    return table


def binsizes() -> st.SearchStrategy[int]:
    """Draw a bin size: one base, the default, and some that divide nothing."""
    return st.sampled_from([1, 3, 10, 25, 200])


@st.composite
def genome_bins(draw: st.DrawFn, **options: Any) -> GenomeBins:
    """Draw a genome axis; ``options`` are those of `segment_tables`."""
    return GenomeBins(draw(segment_tables(**options)), draw(binsizes()))


@st.composite
def cubes(draw: st.DrawFn, *, complete: bool = False, lazy: bool | None = None, **options: Any) -> xr.Dataset:
    """Draw a cube of one to four cell types and assays on any axis.

    Parameters
    ----------
    complete
        Every experiment was run; otherwise at least one was.
    lazy
        Whether signal is a dask array, in chunks of any size; by default either.
    options
        Those of `segment_tables`.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from xr_avocado.testing import cubes
    >>> @settings(max_examples=5, database=None)
    ... @given(cubes())
    ... def signal_is_there_where_it_was_measured(cube):
    ...     assert (cube.signal.notnull().all("position") == cube.observed).all()
    >>> signal_is_there_where_it_was_measured()
    """
    bins = draw(genome_bins(**options))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    cube = cube_of(bins, n_celltypes=shape[0], n_assays=shape[1], seed=draw(st.integers(0, 99)))
    if not complete:
        n = shape[0] * shape[1]
        run = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
        observed = xr.DataArray(np.array(run).reshape(shape), dims=("celltype", "assay"))
        cube = cube.assign(observed=observed, signal=cube.signal.where(observed))
    if draw(st.booleans()) if lazy is None else lazy:
        sizes = {dim: draw(st.integers(1, n)) for dim, n in zip(cube.signal.dims, cube.signal.shape, strict=True)}
        cube = cube.assign(signal=cube.signal.chunk(sizes))
    return cube


def cube_of(bins: GenomeBins, *, n_celltypes: int = 2, n_assays: int = 2, seed: int = 0, **attrs: Any) -> xr.Dataset:
    """Make a cube of random signal on these bins, every experiment observed."""
    shape = (n_celltypes, n_assays, len(bins))
    cube = xr.Dataset(
        {
            "signal": (("celltype", "assay", "position"), np.random.default_rng(seed).random(shape, np.float32)),
            "observed": (("celltype", "assay"), np.ones(shape[:2], bool)),
        },
        coords={
            "celltype": [f"C{i + 1}" for i in range(n_celltypes)],
            "assay": [f"A{i + 1}" for i in range(n_assays)],
        },
        attrs={"transform": "arcsinh", **attrs},
    )
    return assign_bins(cube, bins)
