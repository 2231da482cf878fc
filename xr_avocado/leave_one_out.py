"""Leave-one-out: what is imputed for a track that was trained on, as if its own level and spread were not known."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, CONTEXT, TRACK_MEAN, TRACK_SPREAD, CubeError
from xr_avocado.support import pairs_of_model

__all__ = ["LeftOut"]


class LeftOut:
    """Brings predictions from the mean and spread that a track had in training to those that the other tracks suggest.

    The context term reads no track for its own imputation; a track's mean and spread are all that it uses of it, and the prediction
    is linear in them. So this needs no network. Each pair's estimate is made when it is first asked for: milliseconds for 50 tracks,
    a twentieth of a second for 1,000.

    Raises
    ------
    CubeError
        Where the model has no context term.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        if CONTEXT not in ds:
            raise CubeError(
                "this model is one of factors alone, all of which have learnt from every track: leave_one_out=True needs a context term "
                "(the default, without preset); or hide the track with .avocado.hold_out(tracks) and fit again, or call "
                ".avocado.cross_validate()"
            )
        self.measured = pairs_of_model(ds, "trained_on", "validation")
        self.mean, self.spread = (ds[name].transpose(CELLTYPE, ASSAY).values for name in (TRACK_MEAN, TRACK_SPREAD))
        self._estimates: dict[tuple[int, int], tuple[float, float]] = {}

    def __call__(self, values: np.ndarray, celltype: np.ndarray, assay: np.ndarray) -> np.ndarray:
        """Convert predictions of pairs (indices): pairs x positions."""
        out = values.copy()
        for k, pair in enumerate(zip(celltype.tolist(), assay.tolist(), strict=True)):
            if self.measured[pair]:
                mean, spread = self.estimate(*pair)
                out[k] = mean + spread * ((values[k] - self.mean[pair]) / self.spread[pair])
        return out

    def estimate(self, celltype: int, assay: int) -> tuple[float, float]:
        """Mean and spread of a pair as the other tracks foretell them."""
        from xr_avocado.model.levels import Levels

        pair = celltype, assay
        if pair not in self._estimates:
            others = self.measured.copy()
            others[pair] = False
            levels = Levels.completed(*(np.where(others, table, np.nan) for table in (self.mean, self.spread)))
            self._estimates[pair] = float(levels.mean[pair]), float(levels.spread[pair])
        return self._estimates[pair]
