"""What a calibrated cube knows of its errors: the standard deviation and the bounds that go with what is imputed for a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    ERROR_FLOOR,
    ERROR_LEVEL,
    ERROR_QUANTILES,
    ERROR_RMS,
    TRACK_SPREAD,
    CubeError,
)
from xr_avocado.error_table import ErrorTable, error_unit

__all__ = ["Errors"]


@dataclass(frozen=True)
class Errors:
    """Tables of errors by level of what is imputed, and what errors of each pair are measured in.

    Parameters
    ----------
    table
        Errors by assay and level.
    unit
        Of the errors of each pair: celltype x assay, in the cube's transformed units.
    floor
        The lowest value that tracks have.
    """

    table: ErrorTable
    unit: np.ndarray
    floor: float

    @classmethod
    def of(cls, ds: xr.Dataset) -> Errors:
        """Read them from a calibrated cube.

        Raises
        ------
        CubeError
            Where the cube is not calibrated.
        """
        if ERROR_QUANTILES not in ds:
            raise CubeError(
                "this cube does not know how far its imputations are from the truth: call .avocado.calibrate() on the fitted cube "
                "first, which takes a third of the time of .avocado.fit(), and then .avocado.impute()"
            )
        names = (ERROR_QUANTILES, ERROR_RMS, ERROR_FLOOR)
        figures = [_completed(ds[name].transpose(ASSAY, ERROR_LEVEL, ...).values) for name in names]
        about = ds[ERROR_QUANTILES].attrs
        unit = error_unit(ds[TRACK_SPREAD].transpose(CELLTYPE, ASSAY).values, about["spread"])
        return cls(ErrorTable(ds[ERROR_LEVEL].values, *figures), unit, about["floor"])

    def deviation(self, predicted: np.ndarray, celltype: int, assay: int) -> np.ndarray:
        """Root mean square error to be expected at predictions of a pair (rows of the cube's labels)."""
        return self.unit[celltype, assay] * self.table.deviation(predicted, assay)

    def bounds(self, predicted: np.ndarray, celltype: int, assay: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound at predictions of a pair (rows of the cube's labels)."""
        below, above, starts = self.table.bounds(predicted, assay, level)
        unit = self.unit[celltype, assay]
        lower, upper = (np.maximum(predicted + unit * error, self.floor) for error in (below, above))
        return np.where(starts & ~np.isnan(predicted), self.floor, lower), upper


def _completed(table: np.ndarray) -> np.ndarray:
    """Give assays that joined the cube after it was calibrated the mean of the others."""
    missing = np.isnan(table).reshape(len(table), -1).any(1)
    return (
        np.where(missing.reshape(-1, *[1] * (table.ndim - 1)), table[~missing].mean(0), table)
        if missing.any()
        else table
    )
