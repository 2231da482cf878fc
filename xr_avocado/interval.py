"""interval: bounds that hold a share of the truth, beside what is imputed; and the error to be expected, as layers."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    DIMS,
    IMPUTED,
    IMPUTED_LOWER,
    IMPUTED_UPPER,
    check_cube,
)
from xr_avocado.derived import Derived, Stored
from xr_avocado.errors import Errors
from xr_avocado.impute import LazyLayer

__all__ = ["interval"]


def interval(ds: xr.Dataset, level: float = 0.8) -> xr.Dataset:
    """Add the lazy layers ``imputed_lower`` and ``imputed_upper``, between which a share ``level`` of the truth lies.

    The bounds are quantiles of the errors that `calibrate` measured on held-out tracks, at the level of what is imputed and for its
    assay: as much of the truth lies below the lower as above the upper, and they are not symmetric about ``imputed``, since signal
    is skewed. As ``imputed`` is a mean, it can lie above the upper bound of a narrow interval. No bound is below the lowest value that the
    tracks have; where more bins than may be left out below have just that value (as 0 where nothing was read), the interval starts there
    and may hold more than its share.

    They hold for pairs that were not observed, and for observed ones where ``imputed`` leaves them out (``leave_one_out=True``); else what
    is imputed for these is nearer the truth than the bounds say.

    Lazy: nothing is computed until it is asked for, and then what is imputed of the same positions and tracks is computed with it. Memory
    while computing: as `impute`.

    Parameters
    ----------
    ds
        A calibrated cube with ``imputed``.
    level
        Share of the truth between the bounds, above 0 and up to 0.99.

    Returns
    -------
    The cube plus ``imputed_lower`` and ``imputed_upper`` (celltype x assay x position, float32, in the cube's transformed units; NaN where
    ``imputed`` is).

    Raises
    ------
    CubeError
        Where the cube is not calibrated or has no ``imputed``.
    ValueError
        Where the level is out of range.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=3)
    >>> fitted = cube.avocado.fit(config={"epochs": 1, "context_samples": 5_000}, progress=False).avocado.calibrate(
    ...     progress=False
    ... )
    >>> full = fitted.avocado.impute().avocado.interval(level=0.5)
    >>> full.imputed_upper.attrs["level"]
    0.5
    """
    errors = Errors.of(check_cube(ds, IMPUTED))
    errors.table.check(level)
    imputed = ds[IMPUTED].transpose(*DIMS)
    base = imputed.data.predictor if isinstance(imputed.data, LazyLayer) else Stored(ds, imputed.data)
    layers = {}
    for side, name in enumerate((IMPUTED_LOWER, IMPUTED_UPPER)):
        layer = LazyLayer.of(Derived(base, partial(_bound, errors=errors, level=level, side=side)))
        about = {"long_name": f"{('lower', 'upper')[side]} bound of the imputed signal", "level": float(level)}
        layers[name] = imputed.copy(data=layer).assign_attrs(about)
    return ds.assign(layers)


def _bound(
    values: np.ndarray, celltype: np.ndarray, assay: np.ndarray, *, errors: Errors, level: float, side: int
) -> np.ndarray:
    pairs = zip(values, celltype.tolist(), assay.tolist(), strict=True)
    return np.stack([errors.bounds(track, c, a, level)[side] for track, c, a in pairs]).astype(np.float32)
