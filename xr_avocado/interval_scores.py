"""Scores of intervals: what share of the truth they hold, how wide they are, and both in one number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, Experiment, label_rows
from xr_avocado.errors import Errors
from xr_avocado.methods import in_space
from xr_avocado.pieces import pieces_of
from xr_avocado.transforms import transform_named

__all__ = ["LEVELS", "IntervalScores"]

LEVELS = (0.5, 0.8, 0.95)
"""Shares of the truth that the intervals scored by default should hold."""


class IntervalScores:
    """Scores the intervals of a calibrated cube's ``imputed`` track by track, a piece at a time.

    The interval score is the mean width plus, where the truth lies outside, ``2 / (1 - level)`` times how far: the lowest is that of the true
    quantiles (Gneiting and Raftery 2007, doi:10.1198/016214506000001437).

    Raises
    ------
    CubeError
        Where the cube is not calibrated.
    ValueError
        Where a level is out of range.
    """

    def __init__(self, ds: xr.Dataset, levels: Sequence[float], space: str) -> None:
        self.ds, self.levels, self.errors = ds, levels, Errors.of(ds)
        for level in levels:
            self.errors.table.check(level)
        self.transform, self.space = ds.attrs.get("transform", "none"), space

    @staticmethod
    def columns(levels: Sequence[float]) -> list[str]:
        """Name the scores: ``coverage50``, ``width50``, ``score50`` and so on."""
        return [f"{name}{100 * level:g}" for level in levels for name in ("coverage", "width", "score")]

    def of(self, pair: Experiment, y: np.ndarray, p: np.ndarray, keep: np.ndarray | None = None) -> dict[str, float]:
        """Score a track: truth and prediction in the space to score in, and the bins to score, by default all that have both."""
        c, a = (int(label_rows(self.ds, dim, [label])[0]) for dim, label in zip((CELLTYPE, ASSAY), pair, strict=True))
        total, n = np.zeros((len(self.levels), 3)), 0
        for rows in pieces_of(len(p)):
            known = ~(np.isnan(y[rows]) | np.isnan(p[rows])) & (True if keep is None else keep[rows])
            truth, predicted = y[rows][known].astype(np.float64), self._in_cube_units(p[rows][known])
            n += truth.size
            for i, level in enumerate(self.levels):
                bounds = self.errors.bounds(predicted, c, a, level)
                lower, upper = (in_space(bound, self.transform, self.space) for bound in bounds)
                missed = np.maximum(lower - truth, 0) + np.maximum(truth - upper, 0)
                width = upper - lower
                total[i] += (missed == 0).sum(), width.sum(), (width + 2 / (1 - level) * missed).sum()
        figures = total / n if n else np.full(total.shape, np.nan)
        return dict(zip(self.columns(self.levels), figures.ravel().tolist(), strict=True))

    def _in_cube_units(self, values: np.ndarray) -> np.ndarray:
        if self.space in (self.transform, {"none": "signal"}.get(self.transform)):
            return values
        signal = values if self.space == "signal" else transform_named(self.space).inverse(values)
        return transform_named(self.transform).forward(signal)
