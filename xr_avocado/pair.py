"""A truth and a prediction, and every measure of the two, worked out piece by piece; each sort is done once for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from xr_avocado.axis import every_row, merged_runs
from xr_avocado.pieces import average_ranks, empty, nth_largest, pieces_of

__all__ = ["CONVENTIONS", "Convention", "Pair", "Spans", "Track"]

Convention = Literal["avocado", "challenge", "chromimpute"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


class Spans(NamedTuple):
    """Runs of rows, which may overlap (a bin in two genes counts twice), as the challenge counts its annotations.

    ``size`` is the number of bins each run adds to the denominator where it has more than rows, since the challenge
    also counts those that lie past the end of the chromosome; None for the number of rows.
    """

    first: np.ndarray
    last: np.ndarray
    size: np.ndarray | None = None

    def once(self) -> Spans:
        """Join runs that overlap, so that each row counts once."""
        return Spans(*merged_runs(self.first, self.last))

    def under(self, rows: slice) -> np.ndarray:
        """Spell out the rows of a slice that the runs lie on, counted from its start, each as often as runs do."""
        return every_row(*(np.clip(ends - rows.start, 0, rows.stop - rows.start) for ends in (self.first, self.last)))

    def cover(self, rows: slice) -> np.ndarray:
        """Count the runs over each row of a slice."""
        return np.bincount(self.under(rows), minlength=rows.stop - rows.start)


class Top(NamedTuple):
    """A track's largest values: those above the n-th largest, and those equal to it up to a row."""

    nth: float
    last: int

    def mask(self, values: np.ndarray, rows: slice) -> np.ndarray:
        """Mark them among the values of a slice of rows."""
        top = values > self.nth
        equal = np.flatnonzero(values == self.nth)
        top[equal[equal <= self.last - rows.start]] = True
        return top


class Track:
    """One track without labels, and what measures ask of it: each found once, and piece by piece.

    Parameters
    ----------
    values
        One value a bin; kept as they are where they are float32 or float64, in memory or not.
    name
        What errors call it.
    """

    def __init__(self, values: ArrayLike, name: str = "a track") -> None:
        values = np.asarray(values)
        if values.ndim != 1:
            raise ValueError(
                f"{name} must be one track, one value a bin; got shape {values.shape}: score tracks one by one"
            )
        self.values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        self._tops: dict[tuple[float, bool], Top] = {}
        self._last_taken: tuple[np.ndarray, Track] | None = None

    def __len__(self) -> int:
        return self.values.size

    def __iter__(self) -> Iterator[np.ndarray]:
        """Go through the values in pieces."""
        return (self.values[rows] for rows in pieces_of(len(self)))

    @cached_property
    def has_nan(self) -> bool:
        """Whether any value is NaN."""
        return any(bool(np.isnan(piece).any()) for piece in self)

    @cached_property
    def is_constant(self) -> bool:
        """Whether all values are the same."""
        return all(bool((piece == self.values[:1]).all()) for piece in self)

    @cached_property
    def ranks(self) -> np.ndarray:
        """Rank of each value from 1, equal ones at the mean of their ranks."""
        return average_ranks(self.values)

    def top(self, fraction: float, *, ties: bool = False) -> Top:
        """Find the top fraction of the bins; of equal values the earlier bins, or with ``ties`` all of them."""
        if (fraction, ties) not in self._tops:
            self._tops[fraction, ties] = self._top(int(fraction * len(self)), ties)
        return self._tops[fraction, ties]

    def _top(self, n: int, ties: bool) -> Top:
        if n == 0:
            return Top(np.nan, -1)
        nth = nth_largest(self.values, n)
        if ties:
            return Top(nth, len(self))
        left, last = n - sum(np.count_nonzero(piece > nth) for piece in self), -1
        for rows in pieces_of(len(self)):
            equal = np.flatnonzero(self.values[rows] == nth)[: max(0, left)]
            last = rows.start + int(equal[-1]) if equal.size else last
            left -= equal.size
        return Top(nth, last)

    def without_nan(self) -> Track:
        """Put 0 where a value is NaN."""
        if not self.has_nan:
            return self
        values = empty(len(self), self.values.dtype)
        for rows in pieces_of(len(self)):
            values[rows] = np.where(np.isnan(self.values[rows]), 0, self.values[rows])
        return Track(values)

    def taken(self, mask: np.ndarray) -> Track:
        """Keep the bins of a mask; the last such track is remembered, for the next prediction with the same bins."""
        if self._last_taken is None or self._last_taken[0] is not mask:
            values, done = empty(_count(mask), self.values.dtype), 0
            for rows in pieces_of(len(self)):
                kept = self.values[rows][mask[rows]]
                values[done : done + kept.size] = kept
                done += kept.size
            self._last_taken = (mask, Track(values))
        return self._last_taken[1]


class Pair:
    """A truth and a prediction, prepared once for all measures: they share each sort and selection.

    Holds a piece of 2^22 bins at a time, at some 40 bytes a bin. What is needed of longer tracks beside their values
    (ranks; copies without NaN bins) lies in temporary files, 26 bytes a bin; every measure is as exact as on one piece.

    Parameters
    ----------
    y, p
        Truth and prediction, one value a bin: arrays, in memory or memory-mapped, or tracks prepared already.
    convention
        How NaN and ties are treated; see `xr_avocado.measures`.
    keep
        Mask of the bins to score; all by default.

    Examples
    --------
    >>> pair = Pair([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 5.0])
    >>> pair.mse(), round(pair.gwcorr(), 3)
    (1.0, 0.956)
    """

    def __init__(
        self,
        y: ArrayLike | Track,
        p: ArrayLike | Track,
        *,
        convention: Convention = "avocado",
        keep: np.ndarray | None = None,
    ) -> None:
        y, p = (t if isinstance(t, Track) else Track(t, name) for t, name in ((y, "y"), (p, "p")))
        if len(y) != len(p):
            raise ValueError(f"truth and prediction must have the same bins; got {len(y)} and {len(p)}")
        if convention not in CONVENTIONS:
            raise ValueError(f"{convention!r} is not a convention; choose one of {', '.join(CONVENTIONS)}")
        if keep is not None and (np.shape(keep) != (len(y),) or keep.dtype != bool):
            raise ValueError(f"keep is one bool a bin, {len(y)} of them; got {keep.dtype} of shape {np.shape(keep)}")
        self.challenge = convention == "challenge"
        if self.challenge:
            y, p = y.without_nan(), p.without_nan()
        self.bins = len(y)
        self.valid = _where_known(y, p, keep) if y.has_nan or p.has_nan else keep
        self.y, self.p = (y, p) if self.valid is None else (y.taken(self.valid), p.taken(self.valid))

    def __len__(self) -> int:
        return len(self.y)

    # --- what measures share -----------------------------------------------------------------------------------------

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Go through pieces: their rows on the axis, and those of their bins that are scored."""
        done = 0
        for rows in pieces_of(self.bins):
            n = rows.stop - rows.start if self.valid is None else _count(self.valid[rows])
            yield rows, slice(done, done + n)
            done += n

    def _scored(self, values: np.ndarray, rows: slice) -> np.ndarray:
        """Values of an annotation at a piece's bins that are scored."""
        if np.shape(values) != (self.bins,):
            raise ValueError(f"annotations must have one value a bin, {self.bins}; got shape {np.shape(values)}")
        piece = np.asarray(values)[rows]
        return piece if self.valid is None else piece[self.valid[rows]]

    def _under(self, where: np.ndarray | Spans, rows: slice) -> np.ndarray:
        """Which of a piece's bins that are scored lie in a mask, or on spans as often as these lie on them."""
        if not isinstance(where, Spans):
            return np.flatnonzero(self._scored(where, rows))
        if self.valid is None:
            return where.under(rows)
        valid, under = self.valid[rows], where.under(rows)
        return (np.cumsum(valid) - 1)[under[valid[under]]]

    def _errors(self, at: slice, which: Any = slice(None)) -> np.ndarray:
        return np.subtract(self.y.values[at][which], self.p.values[at][which], dtype=np.float64) ** 2

    def _mean_error(self, where: np.ndarray | Spans) -> float:
        _check_mask(where)
        total, size = 0.0, 0
        for rows, at in self._pieces():
            errors = self._errors(at, self._under(where, rows))
            total, size = total + float(errors.sum()), size + errors.size
        if isinstance(where, Spans) and where.size is not None:
            size += int(np.sum(where.size - (where.last - where.first)))
        return _ratio(total, size)

    def _top_error(self, track: Track) -> float:
        top, total, size = track.top(0.01, ties=self.challenge), 0.0, 0
        for at in pieces_of(len(self)):
            errors = self._errors(at, top.mask(track.values[at], at))
            total, size = total + float(errors.sum()), size + errors.size
        return _ratio(total, size)

    def _overlap(self, a: float, b: float) -> float:
        """Share of the truth's top fraction a that is in the prediction's top fraction b, as one of 1 % of the bins."""
        y, p, n1 = self.y.top(a), self.p.top(b), int(0.01 * len(self))
        both = sum(_count(y.mask(self.y.values[at], at) & p.mask(self.p.values[at], at)) for at in pieces_of(len(self)))
        return _ratio(both, n1)

    # --- the measures ------------------------------------------------------------------------------------------------

    def mse(self) -> float:
        """Mean squared error over all bins."""
        return _ratio(sum(float(self._errors(at).sum()) for at in pieces_of(len(self))), len(self))

    def gwcorr(self) -> float:
        """Pearson correlation over all bins."""
        return np.nan if self._is_flat() else _pearson(self.y.values, self.p.values)

    def gwspear(self) -> float:
        """Spearman correlation over all bins."""
        return np.nan if self._is_flat() else _pearson(self.y.ranks, self.p.ranks)

    def _is_flat(self) -> bool:
        return self.y.is_constant or self.p.is_constant

    def mse1obs(self) -> float:
        """MSE in the top 1 % of bins by truth."""
        return self._top_error(self.y)

    def mse1imp(self) -> float:
        """MSE in the top 1 % of bins by prediction."""
        return self._top_error(self.p)

    def match1(self) -> float:
        """Share of the top 1 % that truth and prediction have in common."""
        return self._overlap(0.01, 0.01)

    def catch1obs(self) -> float:
        """Share of the truth's top 1 % in the prediction's top 5 %."""
        return self._overlap(0.01, 0.05)

    def catch1imp(self) -> float:
        """Share of the prediction's top 1 % in the truth's top 5 %."""
        return self._overlap(0.05, 0.01)

    def aucobs1(self) -> float:
        """ROC AUC of the prediction for the truth's top 1 %."""
        return _top_auc(self.y, self.p)

    def aucimp1(self) -> float:
        """ROC AUC of the truth for the prediction's top 1 %."""
        return _top_auc(self.p, self.y)

    def mseprom(self, promoters: np.ndarray | Spans) -> float:
        """MSE in promoters."""
        return self._mean_error(promoters)

    def msegene(self, genes: np.ndarray | Spans) -> float:
        """MSE in gene bodies."""
        return self._mean_error(genes)

    def mseenh(self, enhancers: np.ndarray | Spans) -> float:
        """MSE in enhancers."""
        return self._mean_error(enhancers)

    def msevar(self, variance: np.ndarray) -> float:
        """MSE weighted by each bin's variance over cell types."""
        total = weights = 0.0
        for rows, at in self._pieces():
            weight = np.nan_to_num(self._scored(variance, rows).astype(np.float64))
            total, weights = total + float(self._errors(at) @ weight), weights + float(weight.sum())
        return _ratio(total, weights)

    def catchpeakobs(self, peaks: np.ndarray | Spans) -> float:
        """ROC AUC of the prediction for bins under a peak."""
        _check_mask(peaks)
        return _auc(self._labels(peaks), self.p)

    def _labels(self, where: np.ndarray | Spans) -> Iterator[tuple[np.ndarray, slice]]:
        for rows, at in self._pieces():
            label = np.zeros(at.stop - at.start, bool)
            label[self._under(where, rows)] = True
            yield label, at


def _where_known(y: Track, p: Track, keep: np.ndarray | None) -> np.ndarray:
    known = empty(len(y), bool)
    for rows in pieces_of(len(y)):
        known[rows] = ~(np.isnan(y.values[rows]) | np.isnan(p.values[rows]))
        if keep is not None:
            known[rows] &= keep[rows]
    return known


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlate two arrays that are not constant; twice through them, since one sum of squares would cancel."""
    pieces = pieces_of(x.size)
    mean_x, mean_y = (np.float64(sum(v[rows].sum(dtype=np.float64) for rows in pieces) / x.size) for v in (x, y))
    moments = np.zeros(3)
    for rows in pieces:
        dx, dy = x[rows] - mean_x, y[rows] - mean_y
        moments += dx @ dy, dx @ dx, dy @ dy
    return float(moments[0] / np.sqrt(moments[1] * moments[2]))


def _top_auc(labelled: Track, ranked: Track) -> float:
    top = labelled.top(0.01)
    return _auc(((top.mask(labelled.values[at], at), at) for at in pieces_of(len(ranked))), ranked)


def _auc(labels: Iterable[tuple[np.ndarray, slice]], ranked: Track) -> float:
    """Area under the ROC curve, from the sum of the ranks of the bins labelled."""
    total, n1 = 0.0, 0
    for label, at in labels:
        total, n1 = total + float(ranked.ranks[at][label].sum()), n1 + _count(label)
    return _ratio(total - n1 * (n1 + 1) / 2, float(n1) * (len(ranked) - n1))


def _check_mask(where: np.ndarray | Spans) -> None:
    if not isinstance(where, Spans) and np.asarray(where).dtype != bool:
        raise ValueError(f"a mask is one bool a bin; got {np.asarray(where).dtype}")


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 else np.nan
