"""Layers that follow from another, value by value, as lazily as the one that they follow from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xr_avocado.predictors import Predictor

__all__ = ["Derived"]


class Derived(Predictor):
    """A predictor whose values are a function of another's: of values (pairs x positions) and the pairs' two indices."""

    def __init__(self, base: Predictor, function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> None:
        # What it predicts, and which of it, is as with the other; the network is built once for both.
        self.__dict__.update(base.__dict__)
        self.base, self.function = base, function

    def __getstate__(self) -> dict[str, object]:
        # Built anew in each process, and shared with the base there as well.
        return self.__dict__

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Apply the function to what the base predicts."""
        return self.function(self.base.predict(celltype, assay, rows), celltype, assay)
