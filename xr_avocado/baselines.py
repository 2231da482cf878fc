"""What a model must beat: predictions that need no model, or a linear one, each a lazy layer of a cube.

Every function takes a cube with the tracks to be predicted hidden (`hold_out`) and returns a lazy DataArray, celltype x assay x
position, in the cube's transformed units. Observed tracks are predicted leave-one-out: a track never sees itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, AVERAGE, CELLTYPE, DIMS, OBSERVED, SIGNAL, as_experiments, check_cube

__all__ = ["BASELINES", "add_average", "average"]


def average(ds: xr.Dataset, *, tracks: Iterable[Any] | None = None) -> xr.DataArray:
    """Average activity: at each bin, the mean of the same assay over the other cell types that have it.

    Lazy, chunked as ``signal`` is; computing holds a few chunks of it.

    Parameters
    ----------
    ds
        A cube.
    tracks
        ``(celltype, assay)`` pairs to predict; others come back as NaN. By default all pairs.

    Returns
    -------
    celltype x assay x position, float32; NaN where no other cell type has the assay measured at that bin.

    Raises
    ------
    CubeError
        Where the cube has no signal, or a pair is not on it.

    References
    ----------
    Schreiber et al. 2020, "A pitfall for machine learning methods aiming to predict across cell types",
    doi:10.1186/s13059-020-02177-y.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> xa.baselines.average(cube).dims
    ('celltype', 'assay', 'position')
    """
    return _layer(ds, _mean_of_others(_measured(ds), CELLTYPE), AVERAGE, tracks)


def add_average(ds: xr.Dataset, *, tracks: Iterable[Any] | None = None) -> xr.Dataset:
    """Add the lazy layer ``average``: see `average`, whose arguments it takes."""
    return ds.assign({AVERAGE: average(ds, tracks=tracks)})


BASELINES: dict[str, Callable[..., xr.DataArray]] = {"average": average}
"""The baselines by the name that `evaluate` knows them by."""


def _measured(ds: xr.Dataset) -> xr.DataArray:
    """Observed tracks alone, as float64: a sum less one of its terms is then exact, and no trace of that term is left in it."""
    signal = check_cube(ds, SIGNAL)[SIGNAL]
    signal = signal if signal.chunks else signal.chunk()
    return signal.where(ds[OBSERVED]).transpose(*DIMS).astype(np.float64)


def _mean_of_others(values: xr.DataArray, dim: str) -> xr.DataArray:
    filled, there = values.fillna(0.0), values.notnull()
    count = there.sum(dim) - there
    return (filled.sum(dim) - filled) / count.where(count > 0)


def _layer(ds: xr.Dataset, values: xr.DataArray, name: str, tracks: Iterable[Any] | None) -> xr.DataArray:
    asked = xr.ones_like(ds[OBSERVED], dtype=bool)
    if tracks is not None:
        asked[:] = False
        for pair in as_experiments(ds, tracks):
            asked.loc[pair._asdict()] = True
    layer = values.where(asked).astype(np.float32).transpose(*DIMS).rename(name)
    return layer.assign_attrs({"transform": ds.attrs.get("transform", "none")}).assign_coords(
        {d: ds[d] for d in (CELLTYPE, ASSAY)}
    )
