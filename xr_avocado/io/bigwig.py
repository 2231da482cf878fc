"""bigWig files: the mean of every bin of a genome axis, read and written in blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np

from xr_avocado.genome import GenomeBins
from xr_avocado.io.bigwig_writer import write_bins
from xr_avocado.io.header import BigWigError, read_chromosomes, read_header, read_index
from xr_avocado.io.records import Records, bin_means, join, read_block
from xr_avocado.io.segments import check_axis, segments_of

__all__ = ["UNCOVERED", "BigWig", "BigWigError", "Uncovered", "chromosomes", "read_bins", "write_bins"]

Uncovered = Literal["zero", "ignore"]
UNCOVERED = ("zero", "ignore")
STEP = 1 << 21
"""Bases averaged at a time: as many records at most."""


def chromosomes(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read the chromosomes a bigWig file knows, and their lengths in bp, in the file's order.

    Raises
    ------
    BigWigError
        Where the file is not there, is a folder, a bigBed or of another format, or was cut short.
    """
    with BigWig(path) as file:
        return file.sizes


def read_bins(
    path: str | os.PathLike[str],
    bins: GenomeBins,
    *,
    uncovered: Uncovered = "zero",
    rows: slice | None = None,
) -> np.ndarray:
    """Read the exact mean of a bigWig file's signal in each bin.

    Every base counts the same, and a partial bin (the last of a chromosome) is averaged over its own length. Values that are
    not finite, which some tools write, count as not covered. What the file says is checked against itself, so that damage is an
    error and no other value, as far as the format allows: it has a checksum of compressed records, and none of the rest.

    Reads 2 Mb at a time: 15 MB beside the result for records of 25 bp, 200 MB for a record a base.

    Parameters
    ----------
    path
        The file.
    bins
        The bins; all chromosomes must be in the file.
    uncovered
        What bases without a record are: ``"zero"`` counts them as 0, ``"ignore"`` leaves them out of the mean, which is NaN
        where a bin has no other.
    rows
        Read these bins only.

    Returns
    -------
    np.ndarray
        One float64 a bin, in the units of the file.

    Raises
    ------
    BigWigError
        Where the file cannot be read, lacks a chromosome, or a bin lies beyond the end of its chromosome.

    Examples
    --------
    >>> import tempfile
    >>> bins = GenomeBins([("chr1", 0, 110)], binsize=50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bins(f"{folder}/x.bw", bins, np.array([1.0, np.nan, 3.0]), {"chr1": 110})
    ...     read_bins(f"{folder}/x.bw", bins).tolist()
    [1.0, 0.0, 3.0]
    """
    with BigWig(path) as file:
        return file.means(bins if rows is None else bins[rows], uncovered=uncovered)


class BigWig:
    """A bigWig file open for reading; its index is read once, when it is first needed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = name = os.fspath(path)
        if "://" in name:
            raise BigWigError(f"{name} is a URL: download the file first and give its path")
        # Not Path.exists(), which raises where a folder may not be looked into.
        if os.path.exists(name) and not os.path.isfile(name):
            kind = "folder" if os.path.isdir(name) else "pipe or device"
            raise BigWigError(f"{name} is a {kind}, not a bigWig file")
        try:
            self._file = open(name, "rb")
        except FileNotFoundError:
            raise BigWigError(f"{name} is not there") from None
        except (OSError, ValueError) as error:
            raise BigWigError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from None
        try:
            self._header = read_header(name, self._file)
            self.sizes = read_chromosomes(name, self._file, self._header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BigWig:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def means(self, bins: GenomeBins, *, uncovered: Uncovered = "zero") -> np.ndarray:
        """Average the signal over bins; see `read_bins`."""
        if uncovered not in UNCOVERED:
            raise ValueError(f"uncovered must be one of {', '.join(UNCOVERED)}; got {uncovered!r}")
        check_axis(bins, self.sizes, source=self.name)
        means = np.empty(len(bins))
        for chrom, start, width, at in _runs(bins):
            count = at.stop - at.start
            records = self._records(chrom, start, start + width * count)
            means[at] = bin_means(records, start, width, count, zero=uncovered == "zero")
        return means

    @cached_property
    def _blocks(self) -> np.ndarray:
        return read_index(self.name, self._file, self._header, np.array(list(self.sizes.values()), np.int64))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {chrom: number for number, chrom in enumerate(self.sizes)}

    def _records(self, chrom: str, start: int, end: int) -> Records:
        blocks, number = self._blocks, list(self.sizes).index(chrom)
        own = blocks[slice(*np.searchsorted(blocks["chrom"], [number, number + 1]))]
        first, last = np.searchsorted(own["end"], start, "right"), np.searchsorted(own["start"], end, "left")
        # With a neighbor on each side: a damaged index may have one end too early or start too late.
        near = own[max(first - 1, 0) : last + 1]
        compressed = self._header.compressed
        return join(self.name, [read_block(self.name, self._file, block, compressed=compressed) for block in near])


def _runs(bins: GenomeBins) -> Iterator[tuple[str, int, int, slice]]:
    """Cut an axis into runs of equally wide bins: chromosome, first base, width of a bin, rows."""
    size = bins.binsize
    step = max(STEP // size, 1)
    for chrom, start, end, at in segments_of(bins):
        head, tail = start % size > 0, end % size > 0
        if at.stop - at.start == 1 and (head or tail):
            yield chrom, start, end - start, at
            continue
        if head:
            yield chrom, start, size - start % size, slice(at.start, at.start + 1)
        for row in range(at.start + head, at.stop - tail, step):
            first = (start // size + row - at.start) * size
            yield chrom, first, size, slice(row, min(row + step, at.stop - tail))
        if tail:
            yield chrom, end - end % size, end % size, slice(at.stop - 1, at.stop)
