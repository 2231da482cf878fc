"""Layers that follow from another, value by value, as lazily as the one that they follow from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE
from xr_avocado.predictors import Predictor

__all__ = ["Derived", "Function", "Stored"]

Function = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of values (pairs x positions) and the pairs' rows along cell types and along assays."""


class Derived(Predictor):
    """A predictor whose values are a function of another's; it counts labels as they are on the cube that the other is a layer of now."""

    def __init__(self, base: Predictor, function: Function) -> None:
        # What it predicts, and which of it, is as with the other; the network is built once for both.
        self.__dict__.update(base.__dict__)
        self.base, self.function = base, function
        self.rows = [{int(label): row for row, label in enumerate(labels)} for labels in (base.celltypes, base.assays)]

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Apply the function to what the base predicts."""
        at = [
            np.array([known[i] for i in asked.tolist()])
            for known, asked in zip(self.rows, (celltype, assay), strict=True)
        ]
        return self.function(self.base.predict(celltype, assay, rows), *at)


class Stored(Predictor):
    """A layer that is there already, as a predictor: an array of celltype x assay x position."""

    def __init__(self, ds: xr.Dataset, values: Any) -> None:
        from xr_avocado.model.config import Config

        super().__init__(ds, np.ones((ds.sizes[CELLTYPE], ds.sizes[ASSAY]), bool), Config(), "cpu")
        self.values = values

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Read the values of pairs."""
        tracks = [self.values[c, a, rows] for c, a in zip(celltype.tolist(), assay.tolist(), strict=True)]
        return np.stack(dask.compute(*tracks, scheduler="synchronous")).astype(np.float32)
