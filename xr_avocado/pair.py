"""A truth and a prediction, and every measure of the two; each sort and selection is done once for all of them."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["CONVENTIONS", "Convention", "Pair", "Spans", "average_ranks"]

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


class Pair:
    """A truth and a prediction, prepared once for all measures: they share each sort and selection.

    Holds both tracks, and as measures ask for them their squared error and ranks as float64: about 40 bytes a bin.

    Parameters
    ----------
    y, p
        Truth and prediction, one value a bin.
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
        self, y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado", keep: np.ndarray | None = None
    ) -> None:
        y, p = _track(y, "y"), _track(p, "p")
        if y.shape != p.shape:
            raise ValueError(f"truth and prediction must have the same bins; got {y.size} and {p.size}")
        if convention not in CONVENTIONS:
            raise ValueError(f"{convention!r} is not a convention; choose one of {', '.join(CONVENTIONS)}")
        self.challenge = convention == "challenge"
        if self.challenge:
            y, p = np.nan_to_num(y, nan=0.0), np.nan_to_num(p, nan=0.0)
        self.valid = ~(np.isnan(y) | np.isnan(p))
        if keep is not None:
            self.valid &= keep
        self._whole = bool(self.valid.all())
        self.y, self.p = self._kept(y), self._kept(p)

    def __len__(self) -> int:
        return self.y.size

    def _kept(self, values: ArrayLike) -> np.ndarray:
        values = np.asarray(values)
        if values.shape != self.valid.shape:
            raise ValueError(f"annotations must have one value a bin, {self.valid.size}; got shape {values.shape}")
        return values if self._whole else values[self.valid]

    # --- what measures share -----------------------------------------------------------------------------------------

    @cached_property
    def error(self) -> np.ndarray:
        """Squared error of each bin."""
        return np.subtract(self.y, self.p, dtype=np.float64) ** 2

    @cached_property
    def ranks_y(self) -> np.ndarray:
        """Ranks of the truth."""
        return average_ranks(self.y)

    @cached_property
    def ranks_p(self) -> np.ndarray:
        """Ranks of the prediction."""
        return average_ranks(self.p)

    @cached_property
    def _tops(self) -> dict[tuple[str, float, bool], np.ndarray]:
        return {}

    def top(self, track: Literal["y", "p"], fraction: float, *, ties: bool = False) -> np.ndarray:
        """Mask of the top fraction of a track's bins; with ``ties``, all bins that reach the n-th largest value."""
        key = (track, fraction, ties)
        if key not in self._tops:
            self._tops[key] = _top(getattr(self, track), int(fraction * len(self)), ties)
        return self._tops[key]

    def _overlap(self, a: np.ndarray, b: np.ndarray) -> float:
        n1 = int(0.01 * len(self))
        return float(np.count_nonzero(a & b) / n1) if n1 else np.nan

    def _mean_error(self, where: np.ndarray | Spans) -> float:
        if not isinstance(where, Spans):
            return _mean(self.error[_mask(self._kept(where))])
        error = self.error if self._whole else _scatter(self.error, self.valid)
        total = _between(np.cumsum(error), where).sum()
        size = _between(np.cumsum(self.valid), where).sum()
        if where.size is not None:
            size += np.sum(where.size - (where.last - where.first))
        return _ratio(float(total), float(size))

    # --- the measures ------------------------------------------------------------------------------------------------

    def mse(self) -> float:
        """Mean squared error over all bins."""
        return _mean(self.error)

    def gwcorr(self) -> float:
        """Pearson correlation over all bins."""
        return _pearson(self.y, self.p)

    def gwspear(self) -> float:
        """Spearman correlation over all bins."""
        return _pearson(self.ranks_y, self.ranks_p)

    def mse1obs(self) -> float:
        """MSE in the top 1 % of bins by truth."""
        return _mean(self.error[self.top("y", 0.01, ties=self.challenge)])

    def mse1imp(self) -> float:
        """MSE in the top 1 % of bins by prediction."""
        return _mean(self.error[self.top("p", 0.01, ties=self.challenge)])

    def match1(self) -> float:
        """Share of the top 1 % that truth and prediction have in common."""
        return self._overlap(self.top("y", 0.01), self.top("p", 0.01))

    def catch1obs(self) -> float:
        """Share of the truth's top 1 % in the prediction's top 5 %."""
        return self._overlap(self.top("y", 0.01), self.top("p", 0.05))

    def catch1imp(self) -> float:
        """Share of the prediction's top 1 % in the truth's top 5 %."""
        return self._overlap(self.top("p", 0.01), self.top("y", 0.05))

    def aucobs1(self) -> float:
        """ROC AUC of the prediction for the truth's top 1 %."""
        return _auc(self.top("y", 0.01), self.ranks_p)

    def aucimp1(self) -> float:
        """ROC AUC of the truth for the prediction's top 1 %."""
        return _auc(self.top("p", 0.01), self.ranks_y)

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
        weight = np.nan_to_num(self._kept(variance).astype(np.float64))
        return _ratio(float(self.error @ weight), float(weight.sum()))

    def catchpeakobs(self, peaks: np.ndarray) -> float:
        """ROC AUC of the prediction for bins under a peak."""
        return _auc(_mask(self._kept(peaks)), self.ranks_p)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Rank values from 1, equal ones at the mean of their ranks: float64."""
    order = np.argsort(values)
    ordered = values[order]
    first = (
        np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if values.size else np.empty(0, np.int64)
    )
    last = np.append(first[1:], values.size)
    ranks = np.empty(values.size)
    ranks[order] = np.repeat((first + 1 + last[: len(first)]) / 2, np.diff(np.append(first, values.size)))
    return ranks


def _track(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(
            f"{name} must be one track, one value a bin; got shape {values.shape}: score tracks one by one"
        )
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _top(values: np.ndarray, n: int, ties: bool) -> np.ndarray:
    if n == 0:
        return np.zeros(values.size, bool)
    nth = np.partition(values, values.size - n)[values.size - n]
    if ties:
        return values >= nth
    top = values > nth
    top[np.flatnonzero(values == nth)[: n - np.count_nonzero(top)]] = True
    return top


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if x.size == 0 or x.min() == x.max() or y.min() == y.max():
        return np.nan
    x, y = x - x.mean(dtype=np.float64), y - y.mean(dtype=np.float64)
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def _auc(label: np.ndarray, ranks: np.ndarray) -> float:
    n1 = np.count_nonzero(label)
    return _ratio(float(ranks[label].sum() - n1 * (n1 + 1) / 2), float(n1 * (label.size - n1)))


def _mask(where: np.ndarray) -> np.ndarray:
    if where.dtype != bool:
        raise ValueError(f"a mask is one bool a bin; got {where.dtype}")
    return where


def _between(cumulative: np.ndarray, spans: Spans) -> np.ndarray:
    cumulative = np.concatenate([[0], cumulative])
    return cumulative[spans.last] - cumulative[spans.first]


def _scatter(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    full = np.zeros(valid.size)
    full[valid] = values
    return full


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else np.nan
