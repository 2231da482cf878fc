"""Labels that the other tracks contradict: tracks that fit no label, and pairs that fit each other's better.

Everything here is worked out from the tracks' second moments, so that it costs the same however many bins they have:
averages and ridge imputations are weighted sums of tracks, and the correlation of two weighted sums follows from the
moments alone.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from xr_avocado.linear import Panel, ridge_weights

__all__ = ["Swap", "assay_fit", "own_fit", "part_of", "strangers", "swap_scores", "swaps"]

PENALTY = 0.1
"""That of the ridge baseline."""
PAIRS = 256
"""Pairs of tracks that are scored exactly: those that a first, cheap pass finds most suspect."""
TRIED = 12
"""Exchanges whose effect on all tracks is compared, at a time."""
CLINGS = 0.05
"""A track that correlates with its own label's imputation so much more than with the other's is under its own label."""


class Swap(NamedTuple):
    """Two tracks (rows of the panel) whose labels fit better when exchanged, and how much against them they speak."""

    first: int
    second: int
    score: float


def own_fit(panel: Panel, tracks: np.ndarray | None = None) -> np.ndarray:
    """Correlation of each track with its leave-one-out ridge imputation; NaN where no other cell type has the assay."""
    which = np.arange(len(panel)) if tracks is None else tracks
    weights = [_weights_without(panel, [int(i)])[0] for i in which]
    return np.array([_correlation(panel, _one(panel, i), w) for i, w in zip(which, weights, strict=True)])


def assay_fit(panel: Panel, track: int) -> np.ndarray:
    """Correlation of a track with the average activity of each assay over the other cell types: one value an assay."""
    away = panel.celltype != panel.celltype[track]
    averages = [panel.mean_of(away & (panel.assay == a)) for a in range(int(panel.assay.max()) + 1)]
    return np.array([_correlation(panel, _one(panel, track), w) for w in averages])


def strangers(panel: Panel, *, limit: float) -> list[int]:
    """Find tracks that fit no label: noise, or signal of other places.

    A track is one where it correlates with its own imputation, and with each mark's average, less than ``limit`` times as
    much as the mark's other tracks do with their imputations, at the median. The worst is taken out first and the rest
    judged without it, since it spoils their imputations.
    """
    kept = np.arange(len(panel))
    while len(kept):
        rest = part_of(panel, kept)
        own = own_fit(rest)
        relative = [_relative_fit(rest, own, i) for i in range(len(rest))]
        if min(relative) >= limit:
            break
        kept = np.delete(kept, np.argmin(relative))
    return [i for i in range(len(panel)) if i not in set(kept.tolist())]


def _relative_fit(panel: Panel, own: np.ndarray, i: int) -> float:
    """How well a track fits any label, relative to the tracks that have it; infinite where no label can be judged."""
    fits = assay_fit(panel, i)
    fits[panel.assay[i]] = np.fmax(fits[panel.assay[i]], own[i])
    best = []
    for mark, fit in enumerate(fits):
        others = own[(panel.assay == mark) & (np.arange(len(panel)) != i)]
        usual = np.median(others[np.isfinite(others)]) if np.isfinite(others).any() else 0.0
        if np.isfinite(fit) and usual > 0:
            best.append(fit / usual)
    return max(best, default=np.inf)


def swap_scores(panel: Panel) -> dict[tuple[int, int], float]:
    """Score pairs of tracks: what two imputations say about which of the two tracks has which label.

    With t1, t2 the tracks and p1, p2 the ridge imputations of their labels, each made without either track, the score is
    the correlation of t1 - t2 with p1 - p2. It is clearly above 0 where the labels are right, its sign turns when they
    are exchanged, and what two tracks of an assay have in common cancels. Undefined scores are left out. In panels of
    more than 23 tracks only the 256 pairs are scored that look worst when the other track's share is merely taken out of
    the leave-one-out imputations, without learning these anew.
    """
    pairs = list(combinations(range(len(panel)), 2))
    if len(pairs) > PAIRS:
        rough = _rough_scores(panel)
        pairs = sorted(pairs, key=lambda pair: rough[pair])[:PAIRS]
    scores = {pair: _swap_score(panel, *pair) for pair in pairs}
    return {pair: score for pair, score in scores.items() if np.isfinite(score)}


def swaps(panel: Panel, *, limit: float) -> tuple[list[Swap], Panel, dict[tuple[int, int], float]]:
    """Find exchanged labels, one pair after the other; give the panel with these put right, and its pairs' scores.

    A pair scores below ``limit``, and neither track clings to its own label: else one of them may be wrong alone. An
    exchange also spoils the imputations of other tracks, which may then look exchanged too. So the pair is taken whose
    exchange does most for the fit of all tracks that it touches (those of the two cell types and assays) to their own
    imputations, and the rest are scored again with it undone.
    """
    found: list[Swap] = []
    scores = swap_scores(panel)
    while len(found) < len(panel) // 2:
        taken = {i for swap in found for i in swap[:2]}
        suspect = [pair for pair in sorted(scores, key=lambda pair: scores[pair]) if not taken & set(pair)]
        tried = [pair for pair in suspect[:TRIED] if scores[pair] < limit and _clings(panel, *pair) < CLINGS]
        gains = [_gain(panel, *pair) for pair in tried]
        if not gains or max(gains) <= 0:
            break
        best = tried[int(np.argmax(gains))]
        found.append(Swap(*best, scores[best]))
        panel = _exchanged(panel, *best)
        scores = swap_scores(panel)
    return found, panel, scores


def _swap_score(panel: Panel, i: int, j: int) -> float:
    first, second = _weights_without(panel, [i, j])
    if first is None or second is None:
        return np.nan
    return _correlation(panel, _one(panel, i) - _one(panel, j), first - second)


def _clings(panel: Panel, i: int, j: int) -> float:
    """How much better the one of two tracks that holds on more correlates with its own label's imputation than the other's."""
    first, second = _weights_without(panel, [i, j])
    margins = []
    for track, own, other in ((i, first, second), (j, second, first)):
        margins.append(_correlation(panel, _one(panel, track), own) - _correlation(panel, _one(panel, track), other))
    return max(margins)


def _rough_scores(panel: Panel) -> np.ndarray:
    """Swap scores of all pairs, tracks x tracks, from the leave-one-out imputations less what the other track adds."""
    n = len(panel)
    weights = [_weights_without(panel, [i])[0] for i in range(n)]
    w = np.array([np.full(n, np.nan) if weight is None else weight[:n] for weight in weights])
    moments = panel.moments[:n, :n]
    of_track, of_each_other = w @ moments, w @ moments @ w.T
    power, own, fitted = np.diag(moments), np.diag(of_track), np.diag(of_each_other)
    product = own[:, None] + own - of_track - of_track.T + w * (power - moments) + w.T * (power[:, None] - moments)
    difference = power[:, None] + power - 2 * moments
    imputed = fitted[:, None] + fitted - 2 * of_each_other - 2 * w * w.T * moments
    imputed += w.T**2 * power[:, None] + w**2 * power
    imputed += 2 * w.T * (own[:, None] - of_track.T) + 2 * w * (own - of_track)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = product / np.sqrt(difference * imputed)
    return np.where(np.isfinite(scores), scores, np.inf)


def _gain(panel: Panel, i: int, j: int) -> float:
    """How much better all tracks that an exchange touches fit their own imputations with it, as a sum of correlations."""
    pair = [i, j]
    touched = np.isin(panel.celltype, panel.celltype[pair]) | np.isin(panel.assay, panel.assay[pair])
    after, before = (own_fit(p, np.flatnonzero(touched)) for p in (_exchanged(panel, i, j), panel))
    return float(np.nansum(after) - np.nansum(before))


def _exchanged(panel: Panel, i: int, j: int) -> Panel:
    order = np.arange(len(panel))
    order[[i, j]] = j, i
    return Panel(panel.celltype[order], panel.assay[order], panel.moments)


def _weights_without(panel: Panel, hidden: list[int]) -> list[np.ndarray | None]:
    """Weights that impute each of the hidden tracks' labels from all other tracks."""
    kept = np.delete(np.arange(len(panel)), hidden)
    part = part_of(panel, kept)
    out: list[np.ndarray | None] = []
    for i in hidden:
        weights = ridge_weights(part, int(panel.celltype[i]), int(panel.assay[i]), penalty=PENALTY)
        whole = np.zeros(len(panel) + 1)
        if weights is not None:
            whole[np.append(kept, len(panel))] = weights
        out.append(None if weights is None else whole)
    return out


def part_of(panel: Panel, tracks: np.ndarray) -> Panel:
    """Give the panel of some of the tracks."""
    with_constant = np.append(tracks, len(panel))
    moments = panel.moments[np.ix_(with_constant, with_constant)]
    return Panel(panel.celltype[tracks], panel.assay[tracks], moments)


def _one(panel: Panel, i: int) -> np.ndarray:
    return np.eye(1, len(panel) + 1, i)[0]


def _correlation(panel: Panel, first: np.ndarray, second: np.ndarray | None) -> float:
    """Correlation of two weighted sums of tracks; NaN where one of them is constant."""
    if second is None:
        return np.nan
    moments = panel.moments - np.outer(panel.moments[-1], panel.moments[-1])
    product, *power = (a @ moments @ b for a, b in ((first, second), (first, first), (second, second)))
    return float(product / np.sqrt(power[0] * power[1])) if min(power) > 1e-12 else np.nan
