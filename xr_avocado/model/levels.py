"""Level and spread of every track: what the context term measures signal in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from xr_avocado.model.sampling import Panel

__all__ = ["Levels"]

SHRINKAGES = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Of rows and of columns of a two-way table, those tried; the last leaves nothing of an effect."""


@dataclass(frozen=True)
class Levels:
    """Mean and standard deviation over the bins of every pair of cell type and assay, measured or estimated.

    Depth and quality of an experiment, and of all experiments of a cell type, stretch a track by factors of two. Measured in its own
    standard deviations, a peak is as high in one cell type as in another, so what a network learns of one holds for the next.

    Parameters
    ----------
    mean, spread
        Cell types x assays, float32, in the units of the cube's signal; ``spread`` is above 0.
    """

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, panel: Panel, labels: tuple[int, int]) -> Levels:
        """Measure the tracks of a panel, one at a time, and estimate the pairs that it lacks."""
        mean, spread = np.full((2, *labels), np.nan)
        for values, celltype, assay in zip(panel.values, panel.celltype.tolist(), panel.assay.tolist(), strict=True):
            mean[celltype, assay], spread[celltype, assay] = _moments(values)
        return cls.completed(mean, spread)

    @classmethod
    def completed(cls, mean: np.ndarray, spread: np.ndarray) -> Levels:
        """Estimate what is NaN: cell type plus assay for the mean, cell type times assay for the spread."""
        # A dead track has no spread of its own: one unit per unit does no harm.
        spread = np.where(spread > 0, spread, np.where(np.isnan(spread), np.nan, 1.0))
        spread = np.exp(_filled(np.log(spread)))
        return cls(_filled(mean).astype(np.float32), spread.astype(np.float32))


def _moments(values: Tensor) -> tuple[float, float]:
    known = values[~values.isnan()]
    # In float32: float16 overflows at 65,504 summed, and not every device has float64.
    mean = known.float().mean()
    return float(mean), float(torch.sqrt((known.float() - mean).square().mean()))


def _filled(table: np.ndarray) -> np.ndarray:
    """Fill the gaps of a two-way table with mean + row effect + column effect, shrunk as far as foretells its own entries best.

    Shrinkage counts entries of no effect that each row (each column) is taken to have beside its own. It is chosen by the error of
    every entry as the others foretell it, which a linear fit gives without another fit: residual / (1 - leverage).
    """
    there = ~np.isnan(table)
    if not there.any():
        return np.zeros_like(table)
    overall = table[there].mean()
    target = np.where(there, table - overall, 0.0)
    rows, columns = table.shape
    # The normal equations of a regression on the labels' indicators.
    counts = np.concatenate([there.sum(1), there.sum(0)])
    products = np.diag(counts.astype(float))
    products[:rows, rows:], products[rows:, :rows] = there, there.T
    sums = np.concatenate([target.sum(1), target.sum(0)])
    least, best = np.inf, target
    for row, column in product(SHRINKAGES, SHRINKAGES):
        inverse = np.linalg.inv(products + np.diag(np.repeat([row, column], [rows, columns])))
        effects, own = inverse @ sums, np.diag(inverse)
        fitted = effects[:rows, None] + effects[rows:]
        leverage = own[:rows, None] + own[rows:] + 2 * inverse[:rows, rows:]
        error = float(np.square((target - fitted)[there] / (1 - leverage[there])).mean())
        if error < least:
            least, best = error, fitted
    return np.where(there, table, overall + best)
