"""bigWig files: the mean of every bin of a genome axis, read and written in blocks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np

from xr_avocado.genome import GenomeBins
from xr_avocado.io.bigwig_writer import write_bins
from xr_avocado.io.header import BigWigError, check_header
from xr_avocado.io.segments import check_axis, segments_of

__all__ = [
    "READERS",
    "UNCOVERED",
    "BigWigError",
    "Reader",
    "Uncovered",
    "chromosomes",
    "read_bins",
    "write_bins",
]

Uncovered = Literal["zero", "ignore"]
Reader = Literal["auto", "pyBigWig", "pybigtools"]
UNCOVERED = ("zero", "ignore")
READERS = ("auto", "pyBigWig", "pybigtools")
BLOCK = 8_000_000
"""Bases read at a time: 32 MB of float32, whatever the chromosome's length."""


def chromosomes(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read the chromosomes a bigWig file knows, and their lengths in bp, in the file's order.

    Raises
    ------
    BigWigError
        Where the file is not there, is a folder, a bigBed or of another format, or was cut short.
    """
    with _Bases(check_header(path)) as reader:
        return reader.chromosomes()


def read_bins(
    path: str | os.PathLike[str],
    bins: GenomeBins,
    *,
    uncovered: Uncovered = "zero",
    rows: slice | None = None,
    reader: Reader = "auto",
) -> np.ndarray:
    """Read the exact mean of a bigWig file's signal in each bin.

    Every base counts the same, and a partial bin (the last of a chromosome) is averaged over its own length. Values that are
    not finite, which some tools write, count as not covered. Reads blocks of 8 Mb: 32 MB beside the result, or less.

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
    reader
        ``"pyBigWig"`` reads bases and averages them; ``"pybigtools"`` (an extra) averages while it reads, and is faster.
        ``"auto"`` takes pybigtools where it is installed.

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
    if uncovered not in UNCOVERED:
        raise ValueError(f"uncovered must be one of {', '.join(UNCOVERED)}; got {uncovered!r}")
    bins = bins if rows is None else bins[rows]
    with _open(check_header(path), reader) as opened:
        check_axis(bins, opened.chromosomes(), source=os.fspath(path))
        means = np.empty(len(bins))
        for chrom, start, width, at in _blocks(bins):
            means[at] = opened.means(chrom, start, width, at.stop - at.start, uncovered)
    return means


def _blocks(bins: GenomeBins) -> Iterator[tuple[str, int, int, slice]]:
    """Cut an axis into runs of equally wide bins: chromosome, first base, width of a bin, rows."""
    size = bins.binsize
    step = max(BLOCK // size, 1)
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


class _Opened(Protocol):
    def __enter__(self) -> _Opened: ...

    def __exit__(self, *error: object) -> None: ...

    def chromosomes(self) -> dict[str, int]: ...

    def means(self, chrom: str, start: int, width: int, count: int, uncovered: Uncovered) -> np.ndarray: ...


def _open(name: str, reader: Reader) -> _Opened:
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}; got {reader!r}")
    installed = importlib.util.find_spec("pybigtools") is not None
    if reader == "pybigtools" and not installed:
        raise ImportError("reader='pybigtools' needs the package pybigtools: pip install 'xr-avocado[fast]'")
    return _Binned(name) if installed and reader != "pyBigWig" else _Bases(name)


class _Bases:
    """A file read base by base with pyBigWig."""

    def __init__(self, name: str) -> None:
        import pyBigWig

        self.name = name
        try:
            self.handle = pyBigWig.open(name)
        except RuntimeError:
            raise BigWigError(
                f"{name} is damaged: its header or index cannot be read; copy or download it again"
            ) from None

    def __enter__(self) -> _Bases:
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.close()

    def chromosomes(self) -> dict[str, int]:
        return {str(chrom): int(size) for chrom, size in (self.handle.chroms() or {}).items()}

    def means(self, chrom: str, start: int, width: int, count: int, uncovered: Uncovered) -> np.ndarray:
        try:
            bases = self.handle.values(chrom, start, start + width * count, numpy=True)
        except RuntimeError:
            end = start + width * count
            raise BigWigError(
                f"{self.name} is damaged: {chrom}:{start:,}-{end:,} cannot be read; copy or download it again"
            ) from None
        if len(bases) == 0:
            return np.full(count, 0.0 if uncovered == "zero" else np.nan)
        return _mean_of_rows(bases.reshape(count, width), uncovered)


def _mean_of_rows(bases: np.ndarray, uncovered: Uncovered) -> np.ndarray:
    # einsum sums float32 in float64 without a float64 copy; a sum is finite exactly where all its bases are.
    with np.errstate(invalid="ignore"):
        means = np.einsum("ij->i", bases, dtype=np.float64) / bases.shape[1]
    partly = np.flatnonzero(~np.isfinite(means))
    if partly.size:
        covered = np.isfinite(bases[partly])
        total = np.where(covered, bases[partly], 0).sum(1, dtype=np.float64)
        number = covered.sum(1) if uncovered == "ignore" else np.full(partly.size, bases.shape[1])
        means[partly] = np.divide(total, number, out=np.full(partly.size, np.nan), where=number > 0)
    return means


class _Binned:
    """A file averaged bin by bin with pybigtools; what it cannot tell apart is left to pyBigWig."""

    def __init__(self, name: str) -> None:
        import pybigtools

        self.bases = _Bases(name)
        self.error = pybigtools.BBIReadError
        self.handle = pybigtools.open(name)

    def __enter__(self) -> _Binned:
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.close()
        self.bases.__exit__()

    def chromosomes(self) -> dict[str, int]:
        return self.bases.chromosomes()

    def means(self, chrom: str, start: int, width: int, count: int, uncovered: Uncovered) -> np.ndarray:
        try:
            means = self._summary(
                chrom, start, width, count, fillna=None, uncovered=0.0 if uncovered == "zero" else None
            )
            finite = bool(np.isfinite(means).all())
            if not finite and uncovered == "ignore":
                # Here NaN means no record or a NaN in one; where uncovered bases count, only the latter is NaN.
                finite = bool(np.isfinite(self._summary(chrom, start, width, count, fillna=None, uncovered=0.0)).all())
        except BaseException as error:
            # A panic of its Rust code on a damaged file is no Exception; pyBigWig then finds the words.
            if not isinstance(error, self.error) and type(error).__name__ != "PanicException":
                raise
            return self.bases.means(chrom, start, width, count, uncovered)
        return means if finite else self.bases.means(chrom, start, width, count, uncovered)

    def _summary(self, chrom: str, start: int, width: int, count: int, **how: Any) -> np.ndarray:
        end = start + width * count
        return self.handle.values(chrom, start, end, bins=count, summary="mean", exact=True, **how)
