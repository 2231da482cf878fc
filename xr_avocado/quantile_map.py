"""Monotone maps of tracks to a reference of their mark: where they are kept on a cube, and how they are applied and undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, OBSERVED, Experiment

__all__ = ["KNOT", "NORMALIZED", "OWN_KNOTS", "REFERENCE_KNOTS", "apply_map", "map_tracks", "undo_of"]

NORMALIZED = "normalized"
"""The attribute of a cube whose observed tracks were mapped; it holds how."""
OWN_KNOTS, REFERENCE_KNOTS, KNOT = "own_knots", "reference_knots", "knot"
"""Variables, celltype x assay x knot: values of a track, ascending, and the values of its mark that these become."""
STEP = 1 << 16
"""Bins mapped at a time: in double precision, and several times over."""


def apply_map(values: np.ndarray, knots: np.ndarray, becomes: np.ndarray) -> np.ndarray:
    """Map values, linearly between knots and with slope 1 beyond them; NaN knots map nothing.

    Swap the last two arguments to undo a map.

    Examples
    --------
    >>> apply_map(np.array([0.0, 0.5, 3.0]), np.array([0.0, 1.0]), np.array([0.0, 2.0])).tolist()
    [0.0, 1.0, 4.0]
    """
    if np.isnan(knots).any():
        return values
    inside = np.interp(values, knots, becomes)
    beyond = np.minimum(values - knots[0], 0) + np.maximum(values - knots[-1], 0)
    return (inside + beyond).astype(values.dtype)


def map_tracks(values: Any, knots: np.ndarray, becomes: np.ndarray) -> Any:
    """Map all tracks of an array, celltype x assay x position, each by its own knots; lazily where it is a dask array."""
    if not hasattr(values, "dask"):
        return _map_block(values, knots, becomes)
    import dask.array as da

    meta = np.empty((0, 0, 0), values.dtype)
    return da.map_blocks(_map_block, values, knots=knots, becomes=becomes, dtype=values.dtype, meta=meta)


def _map_block(values: np.ndarray, knots: np.ndarray, becomes: np.ndarray, block_info: Any = None) -> np.ndarray:
    first = [axis[0] for axis in block_info[0]["array-location"]] if block_info else (0, 0)
    out = np.empty_like(values)
    for c, a in np.ndindex(values.shape[:2]):
        at = first[0] + c, first[1] + a
        for row in range(0, values.shape[2], STEP):
            piece = slice(row, row + STEP)
            out[c, a, piece] = apply_map(values[c, a, piece], knots[at], becomes[at])
    return out


def undo_of(ds: xr.Dataset, track: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    """Give the function that undoes a cube's normalization for a track, imputed or observed.

    A track that was observed has its own map. One that was not has none, and stays on the reference of its mark.
    """
    where = track._asdict()
    if NORMALIZED not in ds.attrs or not bool(ds[OBSERVED].sel(where)):
        return lambda values: values
    order = [CELLTYPE, ASSAY, KNOT]
    own, reference = (ds[name].transpose(*order).sel(where).values for name in (OWN_KNOTS, REFERENCE_KNOTS))
    return lambda values: apply_map(values, reference, own)
