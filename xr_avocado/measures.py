"""How well one track predicts another: the field's measures, each a plain function of two arrays.

``y`` is the truth and ``p`` the prediction, one value a bin, both in the same space (say which: an MSE of arcsinh signal and one of
-log10 p are not comparable). Every score is a float, and NaN where it is undefined: no bins, nothing selected, a constant
track, labels of one kind only. Matches and catches are fractions, not percentages.

Three conventions differ where the literature does:

- ``"avocado"`` and ``"chromimpute"``: bins where either track is NaN are dropped; the top 1 % are exactly ``int(0.01 * N)`` bins, and of
  equal values the earlier bin is in.
- ``"challenge"`` (ENCODE Imputation Challenge): NaN counts as 0; the top 1 % are all bins that reach the n-th largest value, so
  that ties enlarge the set. It defines no matches or catches; these keep ChromImpute's exact counts.

Sources: Schreiber et al. 2020 (doi:10.1186/s13059-020-01977-6, table 1), Schreiber et al. 2023 (doi:10.1186/s13059-023-02915-y,
the challenge), Ernst and Kellis 2015 (doi:10.1038/nbt.3157, ChromImpute).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "CONVENTIONS", "MEASURES", "Convention", "Pair", "Spans", "aucimp1", "aucobs1", "catch1imp", "catch1obs", "catchpeakobs", "gwcorr",
    "gwspear", "match1", "mse", "mse1imp", "mse1obs", "mseenh", "msegene", "mseprom", "msevar", "score",
]  # fmt: skip

Convention = Literal["avocado", "challenge", "chromimpute"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)

MEASURES = {
    "mse": None, "gwcorr": None, "gwspear": None, "mse1obs": None, "mse1imp": None, "match1": None, "catch1obs": None, "catch1imp": None,
    "aucobs1": None, "aucimp1": None, "mseprom": "promoters", "msegene": "genes", "mseenh": "enhancers", "msevar": "variance",
    "catchpeakobs": "peaks",
}  # fmt: skip
"""Each measure's name, and the annotation it needs beside the two tracks."""


class Spans(NamedTuple):
    """Runs of rows, which may overlap (a bin in two genes counts twice), as the challenge counts its annotations.

    ``size`` is the number of bins each run adds to the denominator; None for the number of rows it has.
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
        How NaN and ties are treated; see the module's text.

    Examples
    --------
    >>> pair = Pair([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 5.0])
    >>> pair.mse(), round(pair.gwcorr(), 3)
    (1.0, 0.982)
    """

    def __init__(self, y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> None:
        y, p = _track(y, "y"), _track(p, "p")
        if y.shape != p.shape:
            raise ValueError(f"truth and prediction must have the same bins; got {y.size} and {p.size}")
        if convention not in CONVENTIONS:
            raise ValueError(f"{convention!r} is not a convention; choose one of {', '.join(CONVENTIONS)}")
        self.challenge = convention == "challenge"
        if self.challenge:
            y, p = np.nan_to_num(y, nan=0.0), np.nan_to_num(p, nan=0.0)
        self.valid = ~(np.isnan(y) | np.isnan(p))
        self._whole = bool(self.valid.all())
        self.y, self.p = self._kept(y), self._kept(p)

    def __len__(self) -> int:
        return self.y.size

    def _kept(self, values: ArrayLike) -> np.ndarray:
        values = np.asarray(values)
        if values.shape != self.valid.shape:
            raise ValueError(f"annotations must have one value a bin, {self.valid.size}; got shape {values.shape}")
        return values if self._whole else values[self.valid]

    # --- what measures share ---------------------------------------------------------------------------------------------

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
        total = np.concatenate([[0.0], np.cumsum(error)])
        size = where.size if where.size is not None else _between(np.concatenate([[0], np.cumsum(self.valid)]), where)
        return _ratio(float(_between(total, where).sum()), float(np.sum(size)))

    # --- the measures ------------------------------------------------------------------------------------------------------

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


def score(
    y: ArrayLike,
    p: ArrayLike,
    *,
    measures: Sequence[str] | None = None,
    annotations: Mapping[str, Any] | None = None,
    convention: Convention = "avocado",
) -> dict[str, float]:
    """Score a prediction by several measures at once; they share each sort.

    Parameters
    ----------
    y, p
        Truth and prediction, one value a bin.
    measures
        Names among ``MEASURES``; all of them by default.
    annotations
        What the annotated measures need: ``promoters``, ``genes`` and ``enhancers`` as a mask of the bins or as `Spans`, ``peaks`` as
        a mask, ``variance`` as one value a bin. A measure whose annotation is not given scores NaN.
    convention
        How NaN and ties are treated; see the module's text.

    Raises
    ------
    ValueError
        Where a measure is unknown, or the arrays do not have the same bins.

    Examples
    --------
    >>> score([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], measures=["mse", "gwspear", "mse1obs"])
    {'mse': 3.0, 'gwspear': 1.0, 'mse1obs': nan}
    """
    names = check_measures(measures)
    pair, given = Pair(y, p, convention=convention), annotations or {}
    scores = {}
    for name in names:
        needs = MEASURES[name]
        if needs is None:
            scores[name] = getattr(pair, name)()
        else:
            scores[name] = np.nan if given.get(needs) is None else getattr(pair, name)(given[needs])
    return scores


def check_measures(measures: Sequence[str] | None) -> list[str]:
    """Return the measures asked for, all by default; raise where one is unknown."""
    names = list(MEASURES) if measures is None else [measures] if isinstance(measures, str) else list(measures)
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"{name!r} is not a measure; choose among {', '.join(MEASURES)}")
    return names


def mse(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Mean squared error over all bins (Avocado's MSEglobal)."""
    return Pair(y, p, convention=convention).mse()


def gwcorr(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Pearson correlation over all bins; NaN where a track is constant."""
    return Pair(y, p, convention=convention).gwcorr()


def gwspear(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Spearman correlation over all bins, equal values at their average rank; NaN where a track is constant."""
    return Pair(y, p, convention=convention).gwspear()


def mse1obs(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Mean squared error in the top 1 % of bins by truth."""
    return Pair(y, p, convention=convention).mse1obs()


def mse1imp(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Mean squared error in the top 1 % of bins by prediction."""
    return Pair(y, p, convention=convention).mse1imp()


def match1(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Share of the top 1 % of bins that truth and prediction have in common."""
    return Pair(y, p, convention=convention).match1()


def catch1obs(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Share of the truth's top 1 % that lies in the prediction's top 5 %."""
    return Pair(y, p, convention=convention).catch1obs()


def catch1imp(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Share of the prediction's top 1 % that lies in the truth's top 5 %."""
    return Pair(y, p, convention=convention).catch1imp()


def aucobs1(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Area under the ROC curve of the prediction for the truth's top 1 % of bins."""
    return Pair(y, p, convention=convention).aucobs1()


def aucimp1(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Area under the ROC curve of the truth for the prediction's top 1 % of bins."""
    return Pair(y, p, convention=convention).aucimp1()


def mseprom(y: ArrayLike, p: ArrayLike, promoters: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Mean squared error in promoters: a mask (each bin once), or `Spans` (a bin in two promoters twice)."""
    return Pair(y, p, convention=convention).mseprom(promoters)


def msegene(y: ArrayLike, p: ArrayLike, genes: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Mean squared error in gene bodies: a mask (each bin once), or `Spans` (a bin in two genes twice)."""
    return Pair(y, p, convention=convention).msegene(genes)


def mseenh(y: ArrayLike, p: ArrayLike, enhancers: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Mean squared error in enhancers: a mask (each bin once), or `Spans` (a bin in two enhancers twice)."""
    return Pair(y, p, convention=convention).mseenh(enhancers)


def msevar(y: ArrayLike, p: ArrayLike, variance: np.ndarray, *, convention: Convention = "avocado") -> float:
    """Mean squared error weighted by each bin's variance over all cell types' truth for the assay (ddof 0)."""
    return Pair(y, p, convention=convention).msevar(variance)


def catchpeakobs(y: ArrayLike, p: ArrayLike, peaks: np.ndarray, *, convention: Convention = "avocado") -> float:
    """Area under the ROC curve of the prediction for bins that overlap a peak called on the truth (a mask)."""
    return Pair(y, p, convention=convention).catchpeakobs(peaks)


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
    return cumulative[spans.last] - cumulative[spans.first]


def _scatter(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    full = np.zeros(valid.size)
    full[valid] = values
    return full


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else np.nan
