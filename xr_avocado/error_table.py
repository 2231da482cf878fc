"""Tables of how far the truth lies from predictions, by level of the prediction and assay: quantiles, root mean square, share at the floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xr_avocado.cube import check_number

__all__ = ["PROBABILITIES", "ErrorTable", "error_unit"]

PROBABILITIES = np.array([0.005, 0.01, 0.025, 0.05, *np.arange(0.1, 0.95, 0.05), 0.95, 0.975, 0.99, 0.995])
"""Of the quantiles that a table holds; others are interpolated, none lies beyond."""
LEVELS = np.array([0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
"""Quantiles of the predictions that divide them into levels: nine bins of ten are background."""
ALL_ASSAYS = 0.5
"""Tracks that the errors of all assays together count as, beside an assay's own."""
FEWEST = 100
"""Errors of a level that an assay's own quantiles need."""


@dataclass(frozen=True)
class ErrorTable:
    """Errors (truth less prediction) by assay and level of the prediction.

    Parameters
    ----------
    level
        Mean prediction of each level, ascending.
    quantiles
        Of errors, in the units that they came in: assays x levels x ``PROBABILITIES``.
    rms
        Root of the mean square: assays x levels.
    at_floor
        Share of the truth that lies at the least value that there is: assays x levels.
    """

    level: np.ndarray
    quantiles: np.ndarray
    rms: np.ndarray
    at_floor: np.ndarray

    @classmethod
    def of(
        cls,
        predicted: np.ndarray,
        error: np.ndarray,
        weight: np.ndarray,
        floored: np.ndarray,
        assay: np.ndarray,
        n_assays: int,
    ) -> ErrorTable:
        """Tabulate errors of tracks: tracks x bins each, but for the tracks' assays.

        Each assay's own figures are drawn towards those of all, the more so the fewer tracks it has; where it has none they are those of
        all. Weights count bins that were drawn more often than others; bins of weight 0 are left out.
        """
        used = weight > 0
        tracks = np.bincount(assay, minlength=n_assays)
        of_assay = np.broadcast_to(assay[:, None], used.shape)[used]
        predicted, error, weight, floored = (x[used] for x in (predicted, error, weight, floored))
        edges = np.unique(_quantiles(predicted, weight, LEVELS))
        _, row = np.unique(np.searchsorted(edges, predicted, side="right"), return_inverse=True)
        level, out = [], []
        for i in range(row.max() + 1):
            at = row == i
            level.append(np.average(predicted[at], weights=weight[at]))
            every = _figures(error[at], weight[at], floored[at])
            out.append(np.tile(every, (n_assays, 1)))
            for a in np.flatnonzero(tracks):
                own = at & (of_assay == a)
                if own.sum() >= FEWEST:
                    share = tracks[a] / (tracks[a] + ALL_ASSAYS)
                    out[-1][a] += share * (_figures(error[own], weight[own], floored[own]) - every)
        figures = np.stack(out, axis=1)
        return cls(np.array(level), figures[..., :-2], np.sqrt(figures[..., -2]), figures[..., -1])

    @staticmethod
    def check(level: float) -> None:
        """Raise where quantiles of an interval's bounds are beyond those that a table holds."""
        most = PROBABILITIES[-1] - PROBABILITIES[0]
        if not 0 < check_number("level", level) <= most:
            raise ValueError(
                f"level is the share of the truth that an interval holds, above 0 and up to {most:.2f}; got {level!r}"
            )

    def bounds(self, predicted: np.ndarray, assay: int, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower and upper error of an interval that holds a share ``level`` of the truth, and where it starts at the floor.

        The interval leaves as much out below as above. Where more of the truth than that lies at the floor itself, the interval
        starts there, and leaves out above what it may, but no less than would be left out if all of the floor were.
        """
        outside = (1 - level) / 2
        floor = self.at_floor[assay]
        starts = floor >= outside
        above = np.where(starts, np.maximum(1 - floor, level), 1 - outside)
        lower, upper = self._curve(assay, np.full(len(self.level), outside)), self._curve(assay, above)
        at = [np.interp(predicted, self.level, curve) for curve in (lower, upper, starts.astype(float))]
        return at[0], at[1], at[2] >= 0.5

    def deviation(self, predicted: np.ndarray, assay: int) -> np.ndarray:
        """Root mean square error at a prediction."""
        return np.interp(predicted, self.level, self.rms[assay])

    def _curve(self, assay: int, probability: np.ndarray) -> np.ndarray:
        """Quantile of the error at each level, of a probability for each."""
        return np.array(
            [np.interp(p, PROBABILITIES, q) for p, q in zip(probability, self.quantiles[assay], strict=True)]
        )


def error_unit(spread: Any, usual: float) -> Any:
    """What errors of a track are measured in: halfway between its own spread, which peaks go with, and that of all, as background does."""
    return (spread * usual) ** 0.5


def _figures(error: np.ndarray, weight: np.ndarray, floored: np.ndarray) -> np.ndarray:
    """Quantiles of errors, then their mean square and the share at the floor."""
    means = np.average(np.stack([error**2, floored]), weights=weight, axis=1)
    return np.append(_quantiles(error, weight, PROBABILITIES), means)


def _quantiles(values: np.ndarray, weight: np.ndarray, probability: np.ndarray) -> np.ndarray:
    order = np.argsort(values)
    reached = np.cumsum(weight[order], dtype=np.float64)
    # The middle of each value's own weight, so that quantiles of few values are not drawn to one side.
    return np.interp(probability, (reached - weight[order] / 2) / reached[-1], values[order])
