"""Aggregate what lies along a genome axis over intervals and the windows they are cut into, each interval read 5' to 3'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from xr_avocado.axis import every_row
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins

__all__ = ["Aggregation", "Anchor", "Windows", "aggregate", "check_aggregation", "covered"]

Aggregation = Literal["mean", "max", "quantile"] | Callable[..., np.ndarray]
Anchor = Literal["start", "center", "end"]
QUANTILES = (0.1, 0.5, 0.9)
SPAN = 1 << 18
"""Rows that intervals worked on together may start within: what is read at once."""
ROWS = 1 << 19
"""Rows of intervals worked on together, each counted as often as an interval holds it."""


@dataclass(frozen=True)
class Windows:
    """Intervals cut into as many windows each, from 5' to 3': chromosome by interval, bounds as intervals x windows."""

    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, intervals: pd.DataFrame, *, anchor: Anchor | None, flank: Any, windows: int | None) -> Windows:
        """Anchor, widen and cut intervals; those on the minus strand are read from right to left.

        Raises
        ------
        CubeError
            Where the strand is needed and not given, or intervals to be cut into windows are not of one length.
        """
        upstream, downstream = _flanks(flank)
        if (anchor in ("start", "end") or upstream != downstream) and "strand" not in intervals.columns:
            raise CubeError(
                "regions have no strand, so upstream is not known; give them a column 'strand' ('+' or '-'), or a flank that is the "
                "same on both sides"
            )
        start, end, minus = _anchored(intervals, anchor)
        start, end = start - np.where(minus, downstream, upstream), end + np.where(minus, upstream, downstream)
        if (end <= start).any():
            raise CubeError(f"anchor={anchor!r} leaves a point of each interval; say how far to go from it with flank=")
        return cls(intervals["chrom"].to_numpy(), *_cut(start, end, minus, windows))

    @property
    def whole(self) -> Windows:
        """The intervals, in one window each."""
        return Windows(self.chrom, self.start.min(axis=1, keepdims=True), self.end.max(axis=1, keepdims=True))

    @property
    def width(self) -> int:
        """Width of the narrowest window in bp."""
        return int((self.end - self.start).min())


def _flanks(flank: Any) -> tuple[int, int]:
    both = (flank, flank) if np.ndim(flank) == 0 else tuple(flank)
    if len(both) != 2 or any(isinstance(x, bool) or x != int(x) or x < 0 for x in both):
        raise ValueError(f"flank is a number of bp, 0 or more, or two of them (upstream, downstream); got {flank!r}")
    return int(both[0]), int(both[1])


def _anchored(intervals: pd.DataFrame, anchor: Anchor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start, end = intervals["start"].to_numpy(), intervals["end"].to_numpy()
    minus = (intervals["strand"] == "-").to_numpy() if "strand" in intervals.columns else np.zeros(len(start), bool)
    if anchor is None:
        return start, end, minus
    if anchor not in get_args(Anchor):
        raise ValueError(f"anchor is one of {', '.join(map(repr, get_args(Anchor)))}, or None; got {anchor!r}")
    point = (start + end) // 2 if anchor == "center" else np.where(minus == (anchor == "start"), end, start)
    return point, point, minus


def _cut(start: np.ndarray, end: np.ndarray, minus: np.ndarray, windows: int | None) -> tuple[np.ndarray, np.ndarray]:
    if windows is None:
        return start[:, None], end[:, None]
    length = end - start
    if isinstance(windows, bool) or windows != int(windows) or windows < 1:
        raise ValueError(f"windows is how many windows an interval is cut into, at least 1; got {windows!r}")
    if length.min() != length.max():
        raise CubeError(
            f"windows are cut from intervals of one length; these have {length.min():,} to {length.max():,} bp. Take a stretch of "
            "one length around each with anchor= and flank=, e.g. anchor='start', flank=(2000, 0) for promoters"
        )
    if length[0] < windows:
        raise ValueError(f"{windows} windows are more than the {length[0]:,} bp of an interval")
    edges = length[0] * np.arange(windows + 1) // windows
    left, right = start[:, None] + edges, end[:, None] - edges
    return np.where(minus[:, None], right[:, 1:], left[:, :-1]), np.where(minus[:, None], right[:, :-1], left[:, 1:])


def covered(bins: GenomeBins, windows: Windows) -> np.ndarray:
    """Count the bp of each window that lie on the axis: int64, intervals x windows."""
    out = np.zeros(windows.start.shape, np.int64)
    segments = bins.segments
    for chrom, own in segments.groupby("chrom", sort=False):
        at = windows.chrom == chrom
        first, last = own["start"].to_numpy(), own["end"].to_numpy()
        before = np.cumsum(last - first) - (last - first)
        upto = []
        for base in (windows.start[at], windows.end[at]):
            i = np.searchsorted(first, base, side="right") - 1
            within = np.minimum(base, last[i]) - first[i] + before[i]
            upto.append(np.where(i < 0, 0, within))
        out[at] = upto[1] - upto[0]
    return out


def check_aggregation(agg: Any) -> None:
    """Raise where there is no such way to aggregate."""
    if not callable(agg) and agg not in ("mean", "max", "quantile"):
        raise ValueError(f"agg is 'mean', 'max', 'quantile' or a callable; got {agg!r}")


def aggregate(factors: Any, bins: GenomeBins, windows: Windows, agg: Aggregation) -> np.ndarray:
    """Aggregate the factors of the bins that each window overlaps.

    Parameters
    ----------
    factors
        Bins x factors; numpy, or lazy and then read once, in runs of `SPAN` rows or of an interval where that is longer.
    bins
        The axis of these rows.
    windows
        Intervals x windows.
    agg
        As for `embed`.

    Returns
    -------
    Intervals x windows x columns, float32; the columns are the factors, and for ``"quantile"`` all factors at each quantile in turn.
    NaN for a window without a bin.
    """
    first, last = (
        rows.ravel() for rows in bins.overlaps(windows.chrom[:, None], np.maximum(windows.start, 0), windows.end)
    )
    bounds = np.stack([windows.start.ravel(), windows.end.ravel()], axis=1)
    n_columns = factors.shape[1] * (len(QUANTILES) if agg == "quantile" else 1)
    out = np.full((first.size, n_columns), np.nan, np.float32)
    for at in _batches(first, last):
        low, high = int(first[at].min()), int(last[at].max())
        rows = np.asarray(factors[low:high])
        run = first[at] - low, last[at] - low
        if agg == "mean":
            out[at] = _means(rows, *run, _overlap(bins, first[at], last[at], bounds[at]))
        else:
            for chosen, stack in _stacks(rows, *run):
                out[at[chosen]] = _reduced(stack, agg)
    return out.reshape(*windows.start.shape, n_columns)


def _batches(first: np.ndarray, last: np.ndarray) -> Iterator[np.ndarray]:
    """Intervals that hold a row, in the order of their rows, in batches of bounded reading and work."""
    some = np.flatnonzero(first < last)
    some = some[np.argsort(first[some], kind="stable")]
    work = np.cumsum(last[some] - first[some])
    changes = np.diff(first[some] // SPAN).astype(bool) | np.diff(work // ROWS).astype(bool)
    return iter(batch for batch in np.split(some, np.flatnonzero(changes) + 1) if batch.size)


def _overlap(bins: GenomeBins, first: np.ndarray, last: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The bp that each interval shares with each of its bins, run by run."""
    _, start, end = bins.at(every_row(first, last))
    left, right = (np.repeat(bound, last - first) for bound in bounds.T)
    return np.minimum(end, right) - np.maximum(start, left)


def _means(rows: np.ndarray, first: np.ndarray, last: np.ndarray, bp: np.ndarray) -> np.ndarray:
    from scipy.sparse import csr_array

    indptr = np.concatenate([[0], np.cumsum(last - first)])
    total = np.add.reduceat(bp, indptr[:-1])
    # Sums of long runs lose digits in float32.
    dtype = np.float32 if (last - first).max() < 10_000 else np.float64
    weights = (bp / np.repeat(total, last - first)).astype(dtype)
    matrix = csr_array((weights, every_row(first, last), indptr), shape=(len(first), len(rows)))
    return matrix @ rows.astype(dtype, copy=False)


def _stacks(rows: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Intervals of equally many bins, and their rows as intervals x bins x factors."""
    length = last - first
    order = np.argsort(length, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(length[order])) + 1):
        yield chosen, rows[first[chosen][:, None] + np.arange(length[chosen[0]])]


def _reduced(stack: np.ndarray, agg: Aggregation) -> np.ndarray:
    if agg == "max":
        return stack.max(axis=1)
    if agg == "quantile":
        return np.moveaxis(np.quantile(stack, QUANTILES, axis=1), 0, 1).reshape(len(stack), -1)
    assert callable(agg)
    out = np.asarray(agg(stack, axis=1))
    if out.shape != (len(stack), stack.shape[2]):
        raise ValueError(
            f"agg was given intervals x bins x factors, {stack.shape}, and gave {out.shape}: it is to reduce axis=1, as np.std and "
            "np.median do"
        )
    return out
