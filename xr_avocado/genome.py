"""The genome axis: a table of segments cut into bins, and the arithmetic between bins and coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["GenomeBins", "GenomeError"]


class GenomeError(KeyError, ValueError):
    """A chromosome, region or segment table that does not fit the genome axis it is used with."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class GenomeBins:
    """An ordered run of genomic bins, held as a table of segments.

    Bins lie on the genome's own grid: bin ``k`` covers ``[k * binsize, (k + 1) * binsize)``, clipped to its segment. A whole
    chromosome is a segment, and so is any region; the last, partial bin of a chromosome exists. The table holds 20 bytes a
    segment however many bins it describes, and any sorted subset of bins is again such a table.

    Parameters
    ----------
    segments
        ``(chrom, start, end)`` rows or a frame with these columns; 0-based half-open, each chromosome's rows together and
        ascending. Touching segments are merged.
    binsize
        Width of a bin in bp.

    Raises
    ------
    GenomeError
        Where segments are empty, overlap or are out of order.

    Examples
    --------
    >>> bins = GenomeBins([("chr1", 0, 110), ("chr2", 50, 100)], binsize=25)
    >>> len(bins), bins.end[-3:].tolist()
    (7, [110, 75, 100])
    >>> bins[2:6].segments.values.tolist()
    [['chr1', 50, 110], ['chr2', 50, 75]]
    """

    __slots__ = ("_code", "_end", "_offset", "_start", "binsize", "chroms")

    binsize: int
    chroms: tuple[str, ...]

    def __init__(self, segments: pd.DataFrame | Iterable[Sequence[Any]], binsize: int) -> None:
        if isinstance(segments, str) or not isinstance(segments, Iterable):
            raise GenomeError(
                f"segments are rows of (chrom, start, end), or a frame with these columns; got {segments!r}"
            )
        frame = pd.DataFrame(segments if isinstance(segments, pd.DataFrame) else list(segments))
        if frame.shape[1] < 3 and len(frame):
            raise GenomeError(f"a segment is (chrom, start, end); got rows of {frame.shape[1]} values")
        columns = ["chrom", "start", "end"] if "chrom" in frame.columns else list(frame.columns[:3])
        chrom, start, end = (frame[c].to_numpy() for c in columns) if len(frame) else (np.empty(0, str),) * 3
        code, names = pd.factorize(np.asarray(chrom).astype(str))
        _check_binsize(binsize)
        start, end = (_whole(values) for values in (start, end))
        _check_segments(code, names, start, end)
        self._set(tuple(map(str, names)), code, start, end, int(binsize))

    def _set(self, chroms: tuple[str, ...], code: np.ndarray, start: np.ndarray, end: np.ndarray, binsize: int) -> None:
        code, start, end = _merge_touching(code, start, end, binsize)
        used = np.unique(code)
        self.chroms = tuple(chroms[c] for c in used)
        self._code = np.searchsorted(used, code).astype(np.int32)
        self._start, self._end, self.binsize = start, end, binsize
        self._offset = np.concatenate([[0], np.cumsum(-(-end // binsize) - start // binsize)]).astype(np.int64)

    @classmethod
    def _of(
        cls, chroms: tuple[str, ...], code: np.ndarray, start: np.ndarray, end: np.ndarray, binsize: int
    ) -> GenomeBins:
        bins = cls.__new__(cls)
        bins._set(chroms, code, start, end, binsize)
        return bins

    @classmethod
    def from_chromsizes(cls, sizes: Mapping[str, int], binsize: int = 25) -> GenomeBins:
        """Cut whole chromosomes, in the order given, into bins."""
        return cls([(chrom, 0, size) for chrom, size in sizes.items()], binsize)

    @classmethod
    def from_regions(
        cls, regions: pd.DataFrame | Iterable[Sequence[Any]], binsize: int, sizes: Mapping[str, int]
    ) -> GenomeBins:
        """Cut regions into whole bins: each is widened to the bin grid, and ends at most where its chromosome does."""
        exact = cls(regions, binsize)
        frame = exact.segments
        for chrom, last in zip(exact.segment_chrom, exact._end, strict=True):
            _check_in_genome(str(chrom), int(last), sizes)
        length = frame["chrom"].map(sizes).to_numpy(np.int64) if len(frame) else np.empty(0, np.int64)
        start = exact._start // binsize * binsize
        end = np.minimum(-(-exact._end // binsize) * binsize, length)
        code = exact._code.astype(np.int64)
        # Widening can make neighbours share a bin; that bin then belongs to the first of them.
        follows = (np.diff(code) == 0) & (start[1:] < end[:-1])
        start[1:][follows] = end[:-1][follows]
        keep = start < end
        return cls._of(exact.chroms, code[keep], start[keep], end[keep], binsize)

    @classmethod
    def from_coordinates(cls, chrom: np.ndarray, start: np.ndarray, end: np.ndarray, binsize: int) -> GenomeBins:
        """Recover the table from one ``(chrom, start, end)`` a bin, as a plain store of materialised coordinates has them."""
        bins = cls(pd.DataFrame({"chrom": chrom, "start": start, "end": end}), binsize)
        if len(bins) != len(chrom):
            raise GenomeError(
                f"{len(chrom)} intervals are not bins of {binsize} bp; give the bin size they were made with"
            )
        return bins

    # --- what it holds -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._offset[-1])

    @property
    def segments(self) -> pd.DataFrame:
        """The segments, as a frame of chrom, start, end."""
        return pd.DataFrame({"chrom": self.segment_chrom, "start": self._start, "end": self._end})

    @property
    def segment_chrom(self) -> np.ndarray:
        """Chromosome of each segment."""
        return self._names[self._code]

    @property
    def segment_slices(self) -> list[slice]:
        """The rows of each segment, in order."""
        return [slice(int(a), int(b)) for a, b in zip(self._offset[:-1], self._offset[1:], strict=True)]

    @property
    def chrom(self) -> np.ndarray:
        """Chromosome of each bin: str, one entry a bin."""
        return np.repeat(self._names[self._code], np.diff(self._offset))

    @property
    def start(self) -> np.ndarray:
        """First base of each bin, 0-based: int64."""
        start = self._grid_starts()
        start[self._offset[:-1]] = self._start
        return start

    @property
    def end(self) -> np.ndarray:
        """End of each bin, exclusive: int64."""
        end = self._grid_starts()
        end += self.binsize
        end[self._offset[1:] - 1] = self._end
        return end

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chromosome, start and end of the bins in the given rows (any integer array, any order)."""
        rows = np.asarray(rows, np.int64)
        segment = np.searchsorted(self._offset, rows, side="right") - 1
        left = (rows - self._offset[segment] + self._start[segment] // self.binsize) * self.binsize
        start = np.maximum(left, self._start[segment])
        return self._names[self._code[segment]], start, np.minimum(left + self.binsize, self._end[segment])

    @property
    def _names(self) -> np.ndarray:
        return np.array(self.chroms, dtype=f"U{max(map(len, self.chroms), default=1)}")

    @property
    def continues(self) -> np.ndarray:
        """Whether each bin goes on from the one before, which is that of the segment's bins but the first: bool."""
        out = np.ones(len(self), bool)
        out[self._offset[:-1]] = False
        return out

    def _grid_starts(self) -> np.ndarray:
        shift = self._start // self.binsize - self._offset[:-1]
        # In place: on a genome each of these arrays is a gigabyte.
        grid = np.arange(len(self))
        grid += np.repeat(shift, np.diff(self._offset))
        grid *= self.binsize
        return grid

    # --- from coordinates to rows --------------------------------------------------------------------------------------

    def rows(self, chrom: str, start: int | None = None, end: int | None = None) -> slice:
        """Find the rows of the bins that overlap ``chrom:start-end`` (half-open); they are always one slice.

        Raises
        ------
        GenomeError
            Where the chromosome is not on this axis, or the region holds none of its bins.
        """
        if chrom not in self.chroms:
            raise GenomeError(unknown_chromosome(chrom, self.chroms))
        first, last = self.overlaps(
            chrom, 0 if start is None else start, np.iinfo(np.int64).max if end is None else end
        )
        if start is not None and end is not None and start >= end:
            raise GenomeError(
                f"region {chrom}:{start}-{end} is empty: its start must be below its end (0-based, half-open)"
            )
        if first >= last:
            raise GenomeError(self._nothing_here(chrom, start, end))
        return slice(int(first), int(last))

    def overlaps(self, chrom: Any, start: Any, end: Any) -> tuple[np.ndarray, np.ndarray]:
        """First row and one past the last row of the bins that overlap each interval; equal where none does."""
        chrom, start, end = np.broadcast_arrays(np.asarray(chrom, str), np.asarray(start), np.asarray(end))
        code = pd.Index(self.chroms).get_indexer(chrom.ravel()).reshape(chrom.shape)
        first, last = np.zeros(chrom.shape, np.int64), np.zeros(chrom.shape, np.int64)
        for k in np.unique(code[code >= 0]):
            at = code == k
            segments = slice(*np.searchsorted(self._code, [k, k + 1]))
            first[at] = self._first_bin_ending_after(start[at].astype(np.int64), segments)
            last[at] = self._first_bin_starting_from(end[at].astype(np.int64), segments)
        return first, np.maximum(first, last)

    def _first_bin_ending_after(self, base: np.ndarray, segments: slice) -> np.ndarray:
        i = np.searchsorted(self._end[segments], base, side="right") + segments.start
        i_in = np.minimum(i, segments.stop - 1)
        inside = np.maximum(base, self._start[i_in]) // self.binsize - self._start[i_in] // self.binsize
        return np.where(i < segments.stop, self._offset[i_in] + inside, self._offset[segments.stop])

    def _first_bin_starting_from(self, base: np.ndarray, segments: slice) -> np.ndarray:
        i = np.searchsorted(self._start[segments], base, side="left") + segments.start - 1
        i_in = np.maximum(i, segments.start)
        upto = np.minimum(base, self._end[i_in])
        inside = -(-upto // self.binsize) - self._start[i_in] // self.binsize
        return np.where(i >= segments.start, self._offset[i_in] + inside, self._offset[segments.start])

    def _nothing_here(self, chrom: str, start: int | None, end: int | None) -> str:
        own = self.segments[self.segment_chrom == chrom]
        spans = ", ".join(f"{s:,}-{e:,}" for s, e in own[["start", "end"]].head(4).itertuples(index=False))
        more = f" and {len(own) - 4} more" if len(own) > 4 else ""
        asked = f"{chrom}:{start or 0:,}-{'' if end is None else format(end, ',')}"
        return f"{asked} holds no bin of this cube; on {chrom} it has {spans}{more}"

    # --- new axes from this one ----------------------------------------------------------------------------------------

    def __getitem__(self, rows: slice | np.ndarray) -> GenomeBins:
        """Take a slice, a boolean mask or an array of rows: the axis of just these bins, in this order.

        Raises
        ------
        GenomeError
            Where the rows lie outside, repeat, or leave genome order; chromosomes may change places as a whole.
        """
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            if step == 1:
                return self._runs(np.array([first]), np.array([max(first, last)]))
            rows = np.arange(first, last, step)
        rows = np.asarray(rows)
        rows = (
            np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + len(self), rows).astype(np.int64)
        )
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise GenomeError(f"there are {len(self):,} bins; rows reach from {rows.min():,} to {rows.max():,}")
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts = rows[np.concatenate([[0], breaks]).astype(int)] if rows.size else rows
        lasts = rows[np.concatenate([breaks - 1, [rows.size - 1]]).astype(int)] + 1 if rows.size else rows
        if np.all(firsts[1:] > lasts[:-1]):
            return self._runs(firsts, lasts)
        try:
            return GenomeBins(self._runs(firsts, lasts).segments, self.binsize)
        except GenomeError as error:
            raise GenomeError(f"bins can only be taken in genome order, each once: {error}") from None

    def _runs(self, firsts: np.ndarray, lasts: np.ndarray) -> GenomeBins:
        """The bins of rows ``firsts[i]:lasts[i]``, in order; an axis only where the runs ascend."""
        firsts, lasts = firsts[firsts < lasts], lasts[firsts < lasts]
        a = np.searchsorted(self._offset, firsts, side="right") - 1
        count = np.searchsorted(self._offset, lasts, side="left") - a
        run = np.repeat(np.arange(len(a)), count)
        segment = a[run] + np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
        grid = self._start[segment] // self.binsize - self._offset[segment]
        start = np.maximum(self._start[segment], (firsts[run] + grid) * self.binsize)
        end = np.minimum(self._end[segment], (lasts[run] + grid) * self.binsize)
        return self._of(self.chroms, self._code[segment].astype(np.int64), start, end, self.binsize)

    def coarsen(self, factor: int) -> GenomeBins:
        """Lay bins ``factor`` times as wide over the same segments, on the genome's grid."""
        return self._of(self.chroms, self._code.astype(np.int64), self._start, self._end, self.binsize * int(factor))

    def rows_of(self, finer: GenomeBins) -> np.ndarray:
        """Row of this (coarser or equal) axis that holds each bin of a finer one: int64, one entry a finer bin.

        Raises
        ------
        GenomeError
            Where a finer bin lies outside this axis.
        """
        segment = self.check_covers(finer)
        base = self._offset[segment] - self._start[segment] // self.binsize
        return finer._grid_starts() // self.binsize + np.repeat(base, np.diff(finer._offset))

    def check_covers(self, finer: GenomeBins) -> np.ndarray:
        """Find the segment of this axis that holds each segment of a finer one, or raise GenomeError; no cost a bin."""
        if self.binsize % finer.binsize:
            raise GenomeError(f"bins of {finer.binsize} bp do not nest in bins of {self.binsize} bp")
        code = pd.Index(self.chroms).get_indexer(pd.Index(finer.chroms))[finer._code]
        reach = max(int(self._end.max(initial=0)), int(finer._end.max(initial=0))) + 1
        i = (
            np.searchsorted(
                self._code * np.int64(reach) + self._start, code * np.int64(reach) + finer._start, side="right"
            )
            - 1
        )
        i_in = np.maximum(i, 0)
        if len(code) and not len(self):
            raise GenomeError("an axis without bins holds no other")
        held = (
            (code >= 0) & (i >= 0) & (self._code[i_in] == code) & (finer._end <= self._end[i_in])
            if len(code)
            else code >= 0
        )
        if not held.all():
            row = finer.segments[~held].iloc[0]
            raise GenomeError(
                f"{row.chrom}:{row.start:,}-{row.end:,} is not covered by these {self.binsize}-bp bins, which lie on "
                f"{len(self._start)} segments of {', '.join(self.chroms[:5])}"
            )
        return i_in

    @classmethod
    def concat(cls, pieces: Sequence[GenomeBins]) -> GenomeBins:
        """Join axes end to end; chromosomes must stay together and ascend."""
        if len({piece.binsize for piece in pieces}) > 1:
            raise GenomeError(
                f"cannot join bins of {sorted({p.binsize for p in pieces})} bp: coarsen the finer cube first"
            )
        joined = cls(pd.concat([piece.segments for piece in pieces], ignore_index=True), pieces[0].binsize)
        if len(joined) != sum(map(len, pieces)):
            raise GenomeError("cannot join pieces that meet inside a bin")
        return joined

    # --- identity and files --------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GenomeBins):
            return NotImplemented
        mine, theirs = self.__dask_tokenize__(), other.__dask_tokenize__()
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self.binsize, self.chroms, self._start.tobytes(), self._end.tobytes(), self._code.tobytes()))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (
            type(self).__name__,
            self.binsize,
            self.chroms,
            *(a.tobytes() for a in (self._code, self._start, self._end)),
        )

    def __repr__(self) -> str:
        where = ", ".join(self.chroms[:4]) + (", …" if len(self.chroms) > 4 else "")
        return f"<GenomeBins: {len(self):,} bins of {self.binsize} bp in {len(self._start)} segments of {where or 'nothing'}>"

    def to_attrs(self) -> dict[str, Any]:
        """Give the JSON form that stores hold: ``binsize`` and ``segments``."""
        return {"binsize": self.binsize, "segments": self.segments.to_numpy(object).tolist()}

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> GenomeBins:
        """Read the JSON form back; other keys are passed over."""
        return cls(attrs["segments"], attrs["binsize"])


def _merge_touching(
    code: np.ndarray, start: np.ndarray, end: np.ndarray, binsize: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    joins = (code[1:] == code[:-1]) & (start[1:] == end[:-1]) & (start[1:] % binsize == 0)
    first, last = np.concatenate([[True], ~joins]), np.concatenate([~joins, [True]])
    return (code[first], start[first], end[last]) if len(code) else (code, start, end)


def _whole(values: np.ndarray) -> np.ndarray:
    """Give starts or ends as int64; raise where one is no whole number."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    for i in np.flatnonzero(~(np.abs(numbers) < 2**53) | (numbers != np.floor(numbers)))[:1]:
        raise GenomeError(f"segment {i + 1} has {values[i]!r} as its start or end; both are whole numbers of bp")
    return numbers.astype(np.int64)


def _check_binsize(binsize: Any) -> None:
    if isinstance(binsize, bool) or not isinstance(binsize, Real) or not float(binsize).is_integer() or binsize < 1:
        raise GenomeError(f"bin size must be a whole number of bp, at least 1; got {binsize!r}")


def _check_segments(code: np.ndarray, names: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    def tell(i: int, what: str) -> None:
        raise GenomeError(f"segment {i + 1}, {names[code[i]]}:{start[i]:,}-{end[i]:,}, {what}")

    for i in np.flatnonzero((start < 0) | (end <= start))[:1]:
        tell(i, "is empty or starts below 0: coordinates are 0-based and half-open, start < end")
    changes = np.flatnonzero(np.diff(code) != 0) + 1
    for i in changes[code[changes] < np.maximum.accumulate(code)[changes - 1]][:1]:
        tell(i, "comes back to a chromosome that the table had left: sort it by chromosome and start")
    same = np.diff(code) == 0
    for i in np.flatnonzero(same & (start[1:] < start[:-1]))[:1] + 1:
        tell(i, "starts before the one above it: sort the table by chromosome and start")
    for i in np.flatnonzero(same & (start[1:] < end[:-1]))[:1] + 1:
        tell(
            i, "overlaps the one above it: merge overlapping regions first, e.g. with bioframe.merge or PyRanges.merge"
        )


def _check_in_genome(chrom: str, end: int, sizes: Mapping[str, int]) -> None:
    if chrom not in sizes:
        raise GenomeError(unknown_chromosome(chrom, tuple(sizes)))
    if end > sizes[chrom]:
        raise GenomeError(
            f"{chrom} ends at {sizes[chrom]:,}, but a region reaches {end:,}: is it from another assembly?"
        )


def unknown_chromosome(chrom: str, known: Sequence[str]) -> str:
    other = chrom.removeprefix("chr") if chrom.startswith("chr") else f"chr{chrom}"
    hint = f"; did you mean {other!r}?" if other in known else ""
    return f"chromosome {chrom!r} is not here; there are {', '.join(known[:6])}{', …' if len(known) > 6 else ''}{hint}"
