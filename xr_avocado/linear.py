"""Linear baselines as weights: what each observed track adds to a prediction, learned from the tracks' second moments.

A prediction is a weighted sum of the observed tracks and a constant, so that all a fit needs to know of the genome is
one matrix: the mean product of each two tracks. It is gathered in one pass over the training bins, and holds for them
exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

__all__ = ["Panel", "cp_weights", "ridge_weights", "second_moments"]


class Panel(NamedTuple):
    """Which experiments were observed, and how their tracks go together.

    ``celltype`` and ``assay`` are indices, one an observed experiment; ``moments`` is the mean product of each two
    tracks, a constant track of ones being the last.
    """

    celltype: np.ndarray
    assay: np.ndarray
    moments: np.ndarray

    def __len__(self) -> int:
        return len(self.celltype)

    def mean_of(self, tracks: np.ndarray) -> np.ndarray | None:
        """Weights of the mean of the tracks marked; None where none is."""
        return np.append(tracks / tracks.sum(), 0.0) if tracks.any() else None

    def track(self, celltype: int, assay: int) -> np.ndarray | None:
        """Weights that give one track itself; None where it was not observed."""
        return self.mean_of((self.celltype == celltype) & (self.assay == assay))


def second_moments(blocks: Iterable[np.ndarray], n_tracks: int) -> np.ndarray:
    """Mean product of each two tracks over blocks of bins (tracks x bins), a constant track appended."""
    moments, n_bins = np.zeros((n_tracks + 1, n_tracks + 1)), 0
    for block in blocks:
        tracks = np.vstack([block, np.ones(block.shape[1])]).astype(np.float64)
        moments += tracks @ tracks.T
        n_bins += block.shape[1]
    return moments / max(n_bins, 1)


def ridge_weights(panel: Panel, celltype: int, assay: int, *, penalty: float) -> np.ndarray | None:
    """Weights of the observed tracks that predict one experiment by ridge regression; None where nobody has the assay.

    Features of the target (c, a) at a bin are the average activity of a, a constant, and for every other assay b that c
    has, how far c lies from b's average activity there. The regression is learned on the other cell types that have a,
    each described in the same way, without c's own track of a. The coefficients are shrunk towards plain average
    activity.
    """
    average = panel.mean_of((panel.assay == assay) & (panel.celltype != celltype))
    if average is None:
        return None
    others = [int(b) for b in np.unique(panel.assay[panel.celltype == celltype]) if b != assay]
    gram, target = np.zeros((len(others) + 2,) * 2), np.zeros(len(others) + 2)
    for c in panel.celltype[(panel.assay == assay) & (panel.celltype != celltype)]:
        features = _ridge_features(panel, int(c), assay, others, hidden=celltype)
        if features is not None:
            gram += features @ panel.moments @ features.T
            target += features @ panel.moments @ (panel.track(int(c), assay) - features[0])
    if not gram.any():
        return average
    shrunk = gram + penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    coefficients = np.linalg.solve(shrunk, target)
    coefficients[0] += 1
    return coefficients @ _ridge_features(panel, celltype, assay, others, hidden=celltype)


def _ridge_features(panel: Panel, celltype: int, assay: int, others: list[int], *, hidden: int) -> np.ndarray | None:
    """Each feature as weights of the observed tracks: features x (tracks + 1)."""
    away = (panel.celltype != celltype) & (panel.celltype != hidden)
    average = panel.mean_of((panel.assay == assay) & away)
    if average is None:
        return None
    features = [average]
    for b in others:
        own, mean = panel.track(celltype, b), panel.mean_of((panel.assay == b) & (panel.celltype != celltype))
        features.append(np.zeros_like(average) if own is None or mean is None else own - mean)
    return np.array([*features, np.append(np.zeros(len(panel)), 1.0)])


def cp_weights(
    panel: Panel,
    pairs: np.ndarray,
    shape: tuple[int, int],
    *,
    rank: int,
    penalty: float,
    seeds: int,
    iterations: int = 100,
) -> np.ndarray:
    """Weights of the observed tracks that predict pairs (indices, pairs x 2) by CP factorization: pairs x (tracks + 1).

    The tensor is a sum of ``rank`` products of a cell type's, an assay's and a bin's factor. Given the first two, the
    bin's factors are a ridge regression of its observed values, the same for every bin, which is what makes the
    prediction linear. Cell type and assay factors are found by alternating least squares, shrunk towards 1, and the
    predictions of several starts are averaged.
    """
    weights = np.zeros((len(pairs), len(panel) + 1))
    for seed in range(seeds):
        celltypes, assays = _cp_factors(panel, shape, rank, penalty, iterations, seed)
        bins = _bin_factors(celltypes[panel.celltype] * assays[panel.assay], penalty)
        weights[:, :-1] += (celltypes[pairs[:, 0]] * assays[pairs[:, 1]]) @ bins / seeds
    return weights


def _cp_factors(
    panel: Panel, shape: tuple[int, int], rank: int, penalty: float, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    celltypes, assays = (1 + 0.5 * rng.normal(size=(n, rank)) for n in shape)
    moments = panel.moments[:-1, :-1]
    shrink = penalty / 10 * np.trace(moments) / len(panel) * np.eye(rank)
    for _ in range(iterations):
        bins = _bin_factors(celltypes[panel.celltype] * assays[panel.assay], penalty)
        among_bins, with_tracks = bins @ moments @ bins.T, bins @ moments
        for own, labels, other in (
            (celltypes, panel.celltype, assays[panel.assay]),
            (assays, panel.assay, celltypes[panel.celltype]),
        ):
            for i in np.unique(labels):
                at = labels == i
                gram = other[at].T @ other[at] * among_bins + shrink
                own[i] = np.linalg.solve(gram, (other[at] * with_tracks[:, at].T).sum(0) + shrink.sum(1))
            own /= np.sqrt((own**2).mean(0))
    return celltypes, assays


def _bin_factors(design: np.ndarray, penalty: float) -> np.ndarray:
    """Matrix that turns a bin's observed values into its factors: rank x tracks."""
    return np.linalg.solve(design.T @ design + penalty * np.eye(design.shape[1]), design.T)
