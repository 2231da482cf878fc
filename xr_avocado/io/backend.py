"""The xarray backend for bigWig files: ``xr.open_dataset("x.bw", engine="bigwig")``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from xr_avocado.cube import POSITION, SIGNAL
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins
from xr_avocado.intervals import as_frame
from xr_avocado.io.bigwig import UNCOVERED, Uncovered, chromosomes, read_bins
from xr_avocado.io.header import BigWigError
from xr_avocado.io.segments import check_axis

__all__ = ["BigWigBackend"]


class BigWigBackend(BackendEntrypoint):
    """Open a bigWig file as a lazy dataset: ``signal`` along ``position``, in the file's own units.

    Parameters of ``xr.open_dataset``: ``binsize`` (25 bp), ``uncovered`` (``"zero"`` counts bases without a record as 0,
    ``"ignore"`` leaves them out) and ``regions`` (region strings, a BED file, a frame or PyRanges; by default whole chromosomes).
    With ``chunks`` the signal is a dask array that threads and processes can read.

    Examples
    --------
    >>> import tempfile, xarray as xr
    >>> from xr_avocado.io.bigwig import write_bins
    >>> bins = GenomeBins([("chr1", 0, 110)], binsize=50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bins(f"{folder}/x.bw", bins, np.arange(3.0), {"chr1": 110}, progress=False)
    ...     xr.open_dataset(f"{folder}/x.bw", engine=BigWigBackend, binsize=50).signal.values.tolist()
    [0.0, 1.0, 2.0]
    """

    description = "Signal of a bigWig file in bins along the genome"
    url = "https://genome.ucsc.edu/goldenPath/help/bigWig.html"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "binsize", "uncovered", "regions")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        binsize: int = 25,
        uncovered: Uncovered = "zero",
        regions: Any = None,
    ) -> xr.Dataset:
        """Open the file; reads its header only."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            raise BigWigError(f"a bigWig is opened by its path; got {type(filename_or_obj).__name__}")
        if uncovered not in UNCOVERED:
            raise ValueError(f"uncovered must be one of {', '.join(UNCOVERED)}; got {uncovered!r}")
        path = os.path.abspath(filename_or_obj)
        sizes = chromosomes(path)
        if regions is None:
            bins = GenomeBins.from_chromsizes(sizes, binsize)
        else:
            bins = GenomeBins.from_regions(as_frame(regions, sizes=sizes), binsize, sizes)
        check_axis(bins, sizes, source=path)
        signal = xr.Variable((POSITION,), indexing.LazilyIndexedArray(BinnedArray(path, bins, uncovered)))
        signal.encoding = {"preferred_chunks": {POSITION: 1 << 20}, "source": path}
        ds = xr.Dataset({SIGNAL: signal}, attrs={"chromsizes": sizes, "uncovered": uncovered, "transform": "none"})
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return assign_bins(ds, bins).drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell by the suffix: ``.bw``, ``.bigwig`` in any case."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        return Path(filename_or_obj).suffix.lower() in (".bw", ".bigwig")


class BinnedArray(BackendArray):
    """The bins of a file as an array, read when it is indexed; it holds the path, so that it pickles and each read is its own."""

    dtype = np.dtype(np.float32)

    def __init__(self, path: str, bins: GenomeBins, uncovered: Uncovered) -> None:
        self.path, self.bins, self.uncovered = path, bins, uncovered
        self.shape = (len(bins),)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        (rows,) = key
        if isinstance(rows, slice) and rows.step in (None, 1):
            return self._means(self.bins[rows])
        wanted = np.arange(len(self.bins))[rows]
        unique, back = np.unique(wanted, return_inverse=True)
        return self._means(self.bins[unique])[back.reshape(np.shape(wanted))]

    def _means(self, bins: GenomeBins) -> np.ndarray:
        return read_bins(self.path, bins, uncovered=self.uncovered).astype(self.dtype)
