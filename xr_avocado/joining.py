"""Cubes joined along labels or along the genome: lazily, and without a word of the signal read where it is lazy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.axis import merged_runs, rows_of_runs
from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    IMPUTED,
    IMPUTED_TRACKS,
    POSITION,
    SUPPORT,
    SUPPORT_ASSAY,
    SUPPORT_CELLTYPE,
    CubeError,
)
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import bins_of
from xr_avocado.quantile_map import NORMALIZED

__all__ = ["check_alike", "new_bins", "rows_of_bins", "with_labels", "without_layers"]


def check_alike(model: xr.Dataset, ds: xr.Dataset) -> None:
    """Raise where a cube's bins or values are not of the kind that a model was trained on."""
    for name, default in (("binsize", None), ("transform", "none")):
        here, there = (cube.attrs.get(name, default) for cube in (ds, model))
        if here != there:
            raise CubeError(
                f"the model was trained on {name} {there!r}, the cube has {here!r}: build the cube with the model's"
            )
    if (NORMALIZED in ds.attrs) != (NORMALIZED in model.attrs):
        raise CubeError(
            "one of the model and the cube is normalized, the other is not: bring the cube to the model's scale with "
            ".avocado.normalize(), or off its own with .avocado.denormalize()"
        )


def rows_of_bins(axis: GenomeBins, bins: GenomeBins) -> slice | np.ndarray:
    """Rows of an axis that overlap the bins of another: a slice where they are one run."""
    return rows_of_runs(*_overlaps(axis, bins))


def new_bins(axis: GenomeBins, bins: GenomeBins) -> GenomeBins:
    """Those bins that an axis lacks.

    Raises
    ------
    GenomeError
        Where a bin is a part of one of the axis.
    """
    first, last = merged_runs(*_overlaps(bins, axis))
    known = bins[rows_of_runs(first, last)]
    if axis[rows_of_bins(axis, known)] != known:
        raise GenomeError(
            f"{known!r} are not bins of the model, {axis!r}, though they overlap these: their segments begin or end inside a bin of the "
            "other's; cut both at multiples of the bin size"
        )
    return bins[rows_of_runs(np.r_[0, last], np.r_[first, len(bins)])]


def _overlaps(axis: GenomeBins, bins: GenomeBins) -> tuple[np.ndarray, np.ndarray]:
    table = bins.segments
    return axis.overlaps(*(table[name].to_numpy() for name in ("chrom", "start", "end")))


def without_layers(ds: xr.Dataset) -> xr.Dataset:
    """Drop what was computed from a cube's labels and positions as they were."""
    layers = (IMPUTED, IMPUTED_TRACKS, AVERAGE, SUPPORT, SUPPORT_CELLTYPE, SUPPORT_ASSAY)
    return ds.drop_vars(list(layers), errors="ignore")


def with_labels(ds: xr.Dataset, new: xr.Dataset, dim: str, labels: Sequence[str]) -> xr.Dataset:
    """Append labels of ``new`` to ``ds``, with all that lies along them; what ``new`` lacks is missing (NaN, False, "").

    Along the other labels and along the positions the result is that of ``ds``; the bins of ``new`` are some of its bins.
    """
    rows = bins_of(ds).rows_of(bins_of(new))
    new = new.sel({dim: list(labels)})
    joined: dict[Hashable, Any] = {}
    for name, variable in ds.variables.items():
        if dim in variable.dims and name != dim:
            shape = {d: len(labels) if d == dim else n for d, n in variable.sizes.items()}
            part = _part(new, name, ds, dim, rows) if name in new.variables else _missing(variable, shape)
            joined[name] = xr.Variable.concat([variable, part.transpose(*variable.dims)], dim)
            joined[name].attrs = variable.attrs
    names = np.array([*ds[dim].values.astype(str), *labels])
    bare = ds.drop_dims(dim).assign_coords({dim: names})
    bare = bare.assign_coords({name: v for name, v in joined.items() if name in ds.coords})
    out = bare.assign({name: v for name, v in joined.items() if name not in ds.coords})
    return out[list(ds.data_vars)]


def _part(new: xr.Dataset, name: Hashable, ds: xr.Dataset, dim: str, rows: np.ndarray) -> xr.Variable:
    """One variable of the new labels, along the other dims of ``ds``."""
    array = new[name]
    other = ASSAY if dim == CELLTYPE else CELLTYPE
    if other in array.dims:
        array = array.reindex({other: ds[other].values}, fill_value=_fill(array.dtype))
    variable = array.variable
    if POSITION in variable.dims and not (len(rows) == ds.sizes[POSITION]):
        variable = variable.transpose(..., POSITION)
        variable = xr.Variable(variable.dims, _spread(variable.data, rows, ds.sizes[POSITION]), variable.attrs)
    return variable


def _missing(like: xr.Variable, sizes: dict[Hashable, int]) -> xr.Variable:
    shape = tuple(sizes[d] for d in like.dims)
    if POSITION in like.dims:
        return xr.Variable(like.dims, da.full(shape, np.nan, dtype=like.dtype, chunks="auto"))
    return xr.Variable(like.dims, np.full(shape, _fill(like.dtype), like.dtype))


def _fill(dtype: np.dtype) -> Any:
    return {"b": False, "U": "", "O": "", "i": 0, "u": 0}.get(dtype.kind, np.nan)


def _spread(data: Any, rows: np.ndarray, n: int) -> Any:
    """Put the last axis of an array at rows (ascending) of a longer one, NaN between them."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    pieces, at = [], 0
    xp = da if isinstance(data, da.Array) else np
    for first, last in zip(np.r_[0, breaks], np.r_[breaks, len(rows)], strict=True):
        pieces.append(xp.full((*data.shape[:-1], rows[first] - at), np.nan, dtype=data.dtype))
        pieces.append(data[..., int(first) : int(last)])
        at = int(rows[last - 1]) + 1
    pieces.append(xp.full((*data.shape[:-1], n - at), np.nan, dtype=data.dtype))
    return xp.concatenate([piece for piece in pieces if piece.shape[-1]], axis=-1)
