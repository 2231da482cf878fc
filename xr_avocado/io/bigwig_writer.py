"""Writing one track as a bigWig file, piece by piece, in the order that the format asks for."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from xr_avocado.genome import GenomeBins
from xr_avocado.io.atomic import local_path, remove, replacing
from xr_avocado.io.header import BigWigError, check_whole
from xr_avocado.io.segments import check_axis, segments_of

__all__ = ["TrackWriter", "as_float32", "check_room", "track_writer", "write_bins", "written_rows"]

logger = logging.getLogger("xr_avocado")

PIECE = 1 << 20
"""Bins written at a time."""
BYTES = 6
"""Bytes a bin takes in a file at most, or nearly: 4 of value, which seldom compress to less than 2, and the zoom levels."""
LARGEST = 9
"""Bytes a bin's record takes at most: start and value, which do not compress."""
MARGIN = 1 << 17
"""Bytes kept free for what libBigWig holds back, and for its index."""
SHORT = 64
"""Runs of finite values shorter than this, on average, are written with one start a value instead of one block a run."""


def write_bins(
    path: str | os.PathLike[str],
    bins: GenomeBins,
    values: np.ndarray | Callable[[slice], np.ndarray] | Iterable[np.ndarray],
    sizes: Mapping[str, int],
    *,
    progress: bool = True,
) -> None:
    """Write one value a bin as a bigWig file with zoom levels.

    Bins without a finite value are left out: they are gaps in the file. A partial bin is written as wide as it is. A track without
    any finite value gives a valid file that has the chromosomes and no records. The file is complete or absent: it is written
    beside its place and then renamed. Holds about a million bins at a time, and 14 bytes a bin at the end, when libBigWig makes the
    zoom levels: 1.7 GB for a human genome in bins of 25 bp.

    Parameters
    ----------
    path
        The file to write; one that is there is replaced.
    bins
        The bins.
    values
        One number a bin: an array, or a function from a slice of rows to their values, or an iterable of arrays over consecutive
        rows. An iterable must have its chromosomes in the order of ``sizes``, which is the only one the format can be written in.
    sizes
        Chromosome lengths in bp, in the order in which the file shall have them; at least those of the bins.
    progress
        Show a progress bar.

    Raises
    ------
    BigWigError
        Where a chromosome or an end does not fit ``sizes``, values do not fit the bins or float32, or the disk is full.
    CubeError
        Where the file cannot be written otherwise.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bins(
    ...         f"{folder}/x.bw", GenomeBins([("chr1", 0, 110)], 50), np.arange(3), {"chr1": 110}, progress=False
    ...     )
    """
    with (
        track_writer(path, bins, sizes) as writer,
        tqdm(total=len(bins), unit="bin", unit_scale=True, disable=not progress) as bar,
    ):
        for rows, piece in _pieces(values, bins, sizes):
            writer.add(rows, piece)
            bar.update(rows.stop - rows.start)


def written_rows(bins: GenomeBins, sizes: Mapping[str, int], *, step: int = PIECE) -> Iterator[slice]:
    """Cut the rows into the pieces in which a file is written: in the order of ``sizes``, cut at multiples of ``step``."""
    runs: list[list[int]] = []
    for rows in (bins.rows(chrom) for chrom in sizes if chrom in bins.chroms):
        if runs and runs[-1][1] == rows.start:
            runs[-1][1] = rows.stop
        else:
            runs.append([rows.start, rows.stop])
    for first, last in runs:
        cuts = [first, *range(first // step * step + step, last, step), last]
        yield from map(slice, cuts[:-1], cuts[1:])


@contextmanager
def track_writer(path: str | os.PathLike[str], bins: GenomeBins, sizes: Mapping[str, int]) -> Iterator[TrackWriter]:
    """Open a track for writing; the file takes its place when the block ends without an error."""
    check_axis(bins, sizes, source="sizes")
    with replacing(local_path(path, "a bigWig is")) as temporary:
        writer = TrackWriter(str(temporary), bins, sizes)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()
        if not writer.written:
            logger.warning("%s has no finite value to write: the file has chromosomes and no records", os.fspath(path))
        check_whole(temporary)


class TrackWriter:
    """A bigWig file being written; rows are added in the order of :func:`written_rows`."""

    def __init__(self, name: str, bins: GenomeBins, sizes: Mapping[str, int]) -> None:
        import pyBigWig

        self.bins, self.written, self.path, self.closing = bins, 0, Path(name), MARGIN + 64 * len(sizes)
        # libBigWig ends the whole process where it cannot open its file, and corrupts memory, or cuts the file, where the disk is full.
        self.path.touch()
        check_room(self.path.parent, len(bins))
        reserve(self.path, self.closing)
        self.handle = pyBigWig.open(name, "w")
        self.handle.addHeader([(str(chrom), int(size)) for chrom, size in sizes.items()])

    def close(self) -> None:
        """Write the index and the zoom levels.

        Raises
        ------
        BigWigError
            Where the disk has no room for them.
        """
        try:
            reserve(self.path, self.closing + BYTES * self.written)
        except BigWigError:
            self.abandon()
            raise
        self.handle.close()

    def abandon(self) -> None:
        """Let go of a file that will not be finished."""
        # Closing would make zoom levels: minutes, room on the disk, and a crash where the file was cut. The format's library knows no
        # other end, nor does it free a file without closing it, so the handle is never freed; what it holds is small.
        _let_go(self.path)
        os.truncate(self.path, 0)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.handle))

    def add(self, rows: slice, values: np.ndarray) -> None:
        """Add the values of a slice of rows."""
        bins, values = self.bins[rows], as_float32(values, rows)
        reserve(self.path, self.closing + LARGEST * len(values))
        size = bins.binsize
        for chrom, start, end, at in segments_of(bins):
            head = at.start + (start % size > 0 or end - start < size)
            tail = max(at.stop - (end % size > 0), head)
            self._add_one(chrom, start, min(start // size * size + size, end), values[at.start : head])
            self._add_full(chrom, -(-start // size) * size, values[head:tail])
            self._add_one(chrom, end - end % size, end, values[tail : at.stop])

    def _add_one(self, chrom: str, start: int, end: int, value: np.ndarray) -> None:
        if np.isfinite(value).any():
            self._put([chrom], [int(start)], ends=[int(end)], values=[float(value[0])])

    def _add_full(self, chrom: str, start: int, values: np.ndarray) -> None:
        finite, size = np.isfinite(values), self.bins.binsize
        edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(np.int8)))
        firsts, lasts = edges[::2].tolist(), edges[1::2].tolist()
        if len(firsts) > 1 and finite.sum() < SHORT * len(firsts):
            self._put(chrom, start + np.flatnonzero(finite) * size, values=values[finite], span=size)
            return
        for first, last in zip(firsts, lasts, strict=True):
            self._put(chrom, start + first * size, values=values[first:last], span=size, step=size)

    def _put(self, *where: Any, values: Any, **how: Any) -> None:
        try:
            self.handle.addEntries(*where, values=values, **how)
        except RuntimeError as error:
            raise BigWigError(f"values on {where[0]} cannot be written: {error}") from None
        self.written += len(values)


def _let_go(path: Path) -> None:
    """Close what this process has open of a file behind the back of the library that opened it and will not use it again."""
    folder = Path("/dev/fd")
    if not folder.is_dir():
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in [int(entry) for entry in os.listdir(folder)]:
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                # What the C library still has to write goes nowhere, so that it writes nothing to the descriptor's next owner.
                os.dup2(nothing, descriptor, inheritable=False)
                ctypes.CDLL(None).fflush(None)
                os.close(descriptor)
    os.close(nothing)


def check_room(folder: Path, bins: int) -> None:
    """Raise where the disk may have too little room for so many bins."""
    needed, free = BYTES * bins, shutil.disk_usage(folder).free
    if free < needed:
        raise BigWigError(
            f"{folder}: {bins:,} bins may need {needed / 1e6:,.0f} MB as bigWig, but the disk has {free / 1e6:,.0f} MB left: "
            "make room, or write to another disk"
        )


def reserve(path: Path, size: int) -> None:
    """Raise where a disk, or a quota on it, has no room for ``size`` bytes more beside ``path``.

    Raises
    ------
    BigWigError
        It names the folder.
    """
    room = path.with_name(f"{path.name}.room")
    try:
        with room.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(path.parent).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise BigWigError(
            f"{path.parent} has no room for {size / 1e6:,.1f} MB more ({error.strerror}): make room, or write to another disk"
        ) from None
    finally:
        remove(room)


def as_float32(values: np.ndarray, rows: slice) -> np.ndarray:
    """Give the values of a slice of rows as a file holds them; raise where there are not as many, or one is too large."""
    values = np.asarray(values)
    if values.shape != (rows.stop - rows.start,):
        raise BigWigError(f"{rows.stop - rows.start:,} bins need as many values; got an array of shape {values.shape}")
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    for i in np.flatnonzero(np.isinf(narrow) & np.isfinite(values))[:1]:
        raise BigWigError(
            f"{values[i]:g}, the value of bin {rows.start + i:,}, is more than a bigWig can hold (float32)"
        )
    return narrow


def _pieces(values: Any, bins: GenomeBins, sizes: Mapping[str, int]) -> Iterator[tuple[slice, np.ndarray]]:
    if isinstance(values, np.ndarray) and values.shape != (len(bins),):
        raise BigWigError(f"{len(bins):,} bins need as many values; got an array of shape {values.shape}")
    if isinstance(values, np.ndarray) or callable(values):
        read = values if callable(values) else values.__getitem__
        yield from ((rows, read(rows)) for rows in written_rows(bins, sizes))
        return
    own_order = [chrom for chrom in sizes if chrom in bins.chroms]
    if own_order != list(bins.chroms):
        raise BigWigError(
            f"the chromosomes of the bins ({', '.join(bins.chroms[:4])}, …) come in another order than in sizes "
            f"({', '.join(own_order[:4])}, …), so their values cannot be streamed: give an array, or a function from rows to values"
        )
    yield from _consecutive(values, len(bins))


def _consecutive(arrays: Iterable[np.ndarray], total: int) -> Iterator[tuple[slice, np.ndarray]]:
    first = 0
    for array in map(np.asarray, arrays):
        if first + len(array) > total:
            raise BigWigError(f"{total:,} bins need as many values; the iterable gives more")
        yield slice(first, first + len(array)), array
        first += len(array)
    if first < total:
        raise BigWigError(f"{total:,} bins need as many values; the iterable ended after {first:,}")
