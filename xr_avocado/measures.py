"""How well one track predicts another: the field's measures, each a plain function of two arrays.

``y`` is the truth and ``p`` the prediction, one value a bin, both in the same space (say which: an MSE of arcsinh
signal and one of -log10 p are not comparable). Every score is a float, and NaN where it is undefined: no bins, nothing
selected, a constant track, labels of one kind only. Matches and catches are fractions, not percentages.

Three conventions differ where the literature does:

- ``"avocado"`` and ``"chromimpute"``: bins where either track is NaN are dropped; the top 1 % are exactly
  ``int(0.01 * N)`` bins, and of equal values the earlier bin is in.
- ``"challenge"`` (ENCODE Imputation Challenge): NaN counts as 0; the top 1 % are all bins that reach the n-th largest
  value, so that ties enlarge the set. It ranks by no matches or catches; these keep ChromImpute's exact counts.

Sources: Schreiber et al. 2020 (doi:10.1186/s13059-020-01977-6, table 1), Schreiber et al. 2023
(doi:10.1186/s13059-023-02915-y, the challenge), Ernst and Kellis 2015 (doi:10.1038/nbt.3157, ChromImpute).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from xr_avocado.pair import CONVENTIONS, Convention, Pair, Spans

__all__ = [
    "CONVENTIONS", "MEASURES", "Convention", "Pair", "Spans", "aucimp1", "aucobs1", "catch1imp", "catch1obs",
    "catchpeakobs", "gwcorr", "gwspear", "match1", "mse", "mse1imp", "mse1obs", "mseenh", "msegene", "mseprom",
    "msevar", "score", "scores_of",
]  # fmt: skip

MEASURES: dict[str, str | None] = {
    "mse": None, "gwcorr": None, "gwspear": None, "mse1obs": None, "mse1imp": None, "match1": None, "catch1obs": None,
    "catch1imp": None, "aucobs1": None, "aucimp1": None, "mseprom": "promoters", "msegene": "genes",
    "mseenh": "enhancers", "msevar": "variance", "catchpeakobs": "peaks",
}  # fmt: skip
"""Each measure's name, and the annotation it needs beside the two tracks."""


def score(
    y: ArrayLike,
    p: ArrayLike,
    *,
    measures: Sequence[str] | None = None,
    annotations: Mapping[str, Any] | None = None,
    convention: Convention = "avocado",
    keep: np.ndarray | None = None,
) -> dict[str, float]:
    """Score a prediction by several measures at once; they share each sort.

    Parameters
    ----------
    y, p
        Truth and prediction, one value a bin; arrays of the whole genome may be memory-mapped, see `Pair`.
    measures
        Names among ``MEASURES``; all of them by default.
    annotations
        What the annotated measures need: ``promoters``, ``genes`` and ``enhancers`` as a mask of the bins or as
        `Spans`, ``peaks`` likewise, ``variance`` as one value a bin. A measure whose annotation is not given scores
        NaN.
    convention
        How NaN and ties are treated; see the module's text.
    keep
        Mask of the bins to score; all by default.

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
    return scores_of(Pair(y, p, convention=convention, keep=keep), names, annotations or {})


def scores_of(pair: Pair, names: Iterable[str], given: Mapping[str, Any]) -> dict[str, float]:
    """Work out the measures named, those without their annotation as NaN."""
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
        if not isinstance(name, str) or name not in MEASURES:
            raise ValueError(f"{name!r} is not a measure; choose among {', '.join(MEASURES)}")
    return names


def mse(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Mean squared error over all bins (Avocado's MSEglobal).

    Examples
    --------
    >>> mse([0.0, 1.0, 2.0], [0.0, 1.0, 5.0])
    3.0
    """
    return Pair(y, p, convention=convention).mse()


def gwcorr(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Pearson correlation over all bins; NaN where a track is constant.

    Examples
    --------
    >>> round(gwcorr([0.0, 1.0, 2.0], [0.0, 1.0, 5.0]), 3)
    0.945
    """
    return Pair(y, p, convention=convention).gwcorr()


def gwspear(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Spearman correlation over all bins, equal values at their average rank; NaN where a track is constant.

    Examples
    --------
    >>> gwspear([0.0, 1.0, 2.0], [0.0, 1.0, 5.0])
    1.0
    """
    return Pair(y, p, convention=convention).gwspear()


def mse1obs(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Mean squared error in the top 1 % of bins by truth.

    Examples
    --------
    >>> mse1obs(np.arange(200), np.arange(200) + 3)
    9.0
    """
    return Pair(y, p, convention=convention).mse1obs()


def mse1imp(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Mean squared error in the top 1 % of bins by prediction.

    Examples
    --------
    >>> mse1imp(np.arange(200), np.arange(200)[::-1])
    39205.0
    """
    return Pair(y, p, convention=convention).mse1imp()


def match1(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Share of the top 1 % of bins that truth and prediction have in common.

    Examples
    --------
    >>> match1(np.arange(200), np.roll(np.arange(200), 1))
    0.5
    """
    return Pair(y, p, convention=convention).match1()


def catch1obs(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Share of the truth's top 1 % that lies in the prediction's top 5 %.

    Examples
    --------
    >>> catch1obs(np.arange(200), np.roll(np.arange(200), 1))
    1.0
    """
    return Pair(y, p, convention=convention).catch1obs()


def catch1imp(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Share of the prediction's top 1 % that lies in the truth's top 5 %.

    Examples
    --------
    >>> catch1imp(np.arange(200), np.roll(np.arange(200), -1))
    1.0
    """
    return Pair(y, p, convention=convention).catch1imp()


def aucobs1(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Area under the ROC curve of the prediction for the truth's top 1 % of bins.

    Examples
    --------
    >>> round(aucobs1(np.arange(200), np.roll(np.arange(200), 5)), 3)
    0.975
    """
    return Pair(y, p, convention=convention).aucobs1()


def aucimp1(y: ArrayLike, p: ArrayLike, *, convention: Convention = "avocado") -> float:
    """Area under the ROC curve of the truth for the prediction's top 1 % of bins.

    Examples
    --------
    >>> round(aucimp1(np.arange(200), np.roll(np.arange(200), -1)), 3)
    0.995
    """
    return Pair(y, p, convention=convention).aucimp1()


def mseprom(y: ArrayLike, p: ArrayLike, promoters: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Mean squared error in promoters: a mask (each bin once), or `Spans` (a bin in two promoters twice).

    Examples
    --------
    >>> mseprom([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], np.array([False, True, True]))
    4.5
    """
    return Pair(y, p, convention=convention).mseprom(promoters)


def msegene(y: ArrayLike, p: ArrayLike, genes: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Mean squared error in gene bodies: a mask (each bin once), or `Spans` (a bin in two genes twice).

    Examples
    --------
    >>> msegene([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], np.array([False, True, True]))
    4.5
    """
    return Pair(y, p, convention=convention).msegene(genes)


def mseenh(y: ArrayLike, p: ArrayLike, enhancers: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Mean squared error in enhancers: a mask (each bin once), or `Spans` (a bin in two enhancers twice).

    Examples
    --------
    >>> mseenh([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], np.array([True, True, False]))
    0.0
    """
    return Pair(y, p, convention=convention).mseenh(enhancers)


def msevar(y: ArrayLike, p: ArrayLike, variance: np.ndarray, *, convention: Convention = "avocado") -> float:
    """Mean squared error weighted by each bin's variance over all cell types' truth for the assay (ddof 0).

    Examples
    --------
    >>> msevar([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], np.array([1.0, 0.0, 2.0]))
    6.0
    """
    return Pair(y, p, convention=convention).msevar(variance)


def catchpeakobs(y: ArrayLike, p: ArrayLike, peaks: np.ndarray | Spans, *, convention: Convention = "avocado") -> float:
    """Area under the ROC curve of the prediction for bins that overlap a peak called on the truth.

    Examples
    --------
    >>> catchpeakobs([0.0, 1.0, 2.0], [0.0, 1.0, 5.0], np.array([False, False, True]))
    1.0
    """
    return Pair(y, p, convention=convention).catchpeakobs(peaks)
