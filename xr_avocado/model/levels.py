"""Level and spread of every track: what the context term measures signal in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xr_avocado.model.sampling import Panel

__all__ = ["Levels"]

ROUNDS = 100
"""Alternating least squares of a two-way table converges long before."""
SHRINKAGE = 1.0
"""Tracks of no effect that each cell type is taken to have beside its own: a few noisy ones should not move a guess all the way."""


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
    """Fill the gaps of a two-way table with row effect + column effect, fitted by least squares, row effects shrunk."""
    there = ~np.isnan(table)
    known = np.where(there, table, 0.0)
    overall = known.sum() / max(1, there.sum())
    row, column = np.zeros((len(table), 1)), np.zeros((1, table.shape[1]))
    for _ in range(ROUNDS):
        column = (there * (known - overall - row)).sum(0, keepdims=True) / np.maximum(1, there.sum(0, keepdims=True))
        row = (there * (known - overall - column)).sum(1, keepdims=True) / (there.sum(1, keepdims=True) + SHRINKAGE)
    return np.where(there, table, overall + row + column)
