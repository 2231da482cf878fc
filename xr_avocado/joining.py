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
    IMPUTATION,
    OBSERVED,
    POSITION,
    CubeError,
)
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import assign_bins, bins_of
from xr_avocado.io.encoding import is_position
from xr_avocado.quantile_map import NORMALIZED

__all__ = [
    "check_alike",
    "joined_axes",
    "new_bins",
    "on_positions",
    "rows_of_bins",
    "with_labels",
    "with_positions",
    "without_layers",
]


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
    return ds.drop_vars([name for name in ds.data_vars if str(name).startswith((AVERAGE, *IMPUTATION))])


def with_labels(ds: xr.Dataset, new: xr.Dataset, dim: str, labels: Sequence[str]) -> xr.Dataset:
    """Append labels of ``new`` to ``ds``, with all that lies along them; what ``new`` lacks is missing (NaN, False, "").

    Along the other labels and along the positions the result is that of ``ds``; the bins of ``new`` are some of its bins.
    """
    bins_of(ds).check_covers(bins_of(new))
    # Not row by row, which takes gigabytes of a genome.
    runs = list(zip(*(ends.tolist() for ends in _overlaps(bins_of(ds), bins_of(new))), strict=True))
    new = new.sel({dim: list(labels)})
    joined: dict[Hashable, Any] = {}
    for name, variable in ds.variables.items():
        if dim in variable.dims and name != dim:
            shape = {d: len(labels) if d == dim else n for d, n in variable.sizes.items()}
            part = _part(new, name, ds, dim, runs) if name in new.variables else _missing(variable, shape)
            joined[name] = xr.Variable.concat([variable, part.transpose(*variable.dims)], dim)
            joined[name].attrs = variable.attrs
    names = np.array([*ds[dim].values.astype(str), *labels])
    bare = ds.drop_dims(dim).assign_coords({dim: names})
    bare = bare.assign_coords({name: v for name, v in joined.items() if name in ds.coords})
    out = bare.assign({name: v for name, v in joined.items() if name not in ds.coords})
    return out[list(ds.data_vars)]


def _part(new: xr.Dataset, name: Hashable, ds: xr.Dataset, dim: str, runs: list[tuple[int, int]]) -> xr.Variable:
    """One variable of the new labels, along the other dims of ``ds``."""
    array = new[name]
    other = ASSAY if dim == CELLTYPE else CELLTYPE
    if other in array.dims:
        array = array.reindex({other: ds[other].values}, fill_value=_fill(array.dtype))
    variable = array.variable
    if POSITION in variable.dims and variable.sizes[POSITION] != ds.sizes[POSITION]:
        variable = variable.transpose(..., POSITION)
        variable = xr.Variable(variable.dims, _spread(variable.data, runs, ds.sizes[POSITION]), variable.attrs)
    return variable


def _missing(like: xr.Variable, sizes: dict[Hashable, int]) -> xr.Variable:
    shape = tuple(sizes[d] for d in like.dims)
    if POSITION in like.dims:
        return xr.Variable(like.dims, da.full(shape, np.nan, dtype=like.dtype, chunks="auto"))
    return xr.Variable(like.dims, np.full(shape, _fill(like.dtype), like.dtype))


def _fill(dtype: np.dtype) -> Any:
    return {"b": False, "U": "", "O": "", "i": 0, "u": 0}.get(dtype.kind, np.nan)


def _spread(data: Any, runs: list[tuple[int, int]], n: int) -> Any:
    """Put the last axis of an array at runs of rows (ascending) of a longer one, NaN between them."""
    pieces, done, at = [], 0, 0
    xp = da if isinstance(data, da.Array) else np
    for first, last in runs:
        pieces.append(xp.full((*data.shape[:-1], first - at), np.nan, dtype=data.dtype))
        pieces.append(data[..., done : done + last - first])
        done, at = done + last - first, last
    pieces.append(xp.full((*data.shape[:-1], n - at), np.nan, dtype=data.dtype))
    return xp.concatenate([piece for piece in pieces if piece.shape[-1]], axis=-1)


class _Join:
    """Two axes of one dim in genome order: where runs of each come to lie.

    Raises
    ------
    CubeError
        Where the axes meet inside a bin.
    """

    def __init__(self, old: GenomeBins, new: GenomeBins, chroms: Sequence[str]) -> None:
        pieces = []
        for source, axis in enumerate((old, new)):
            table = axis.segments
            rows = zip(table["chrom"], table["start"], table["end"], axis.segment_slices, strict=True)
            pieces += [(chroms.index(c), int(s), int(e), source, rows_) for c, s, e, rows_ in rows]
        pieces.sort(key=lambda piece: piece[:3])
        try:
            self.bins = GenomeBins([(chroms[c], s, e) for c, s, e, _, _ in pieces], old.binsize)
        except GenomeError as error:
            raise CubeError(_meets(old, str(error))) from None
        if len(self.bins) != len(old) + len(new):
            raise CubeError(_meets(old, "one ends and the other begins in the same bin"))
        self.runs = [(source, rows) for _, _, _, source, rows in pieces]

    def concatenated(self, old: Any, new: Any, axis: int) -> Any:
        """Put the rows of two arrays in order; lazily where one of them is lazy."""
        arrays = (old, new)
        before = (slice(None),) * axis
        parts = [arrays[source][(*before, rows)] for source, rows in self.runs]
        xp = da if any(isinstance(array, da.Array) for array in arrays) else np
        return xp.concatenate(parts, axis=axis)


def _meets(old: GenomeBins, why: str) -> str:
    return (
        f"positions that are new meet those of the model inside a bin of {old.binsize:,} bp ({why}), whose factors would be those of both: cut the "
        "new ones so that they begin at a multiple of that, or extend by them alone with only_new=True"
    )


def _chromosome_order(*cubes: xr.Dataset) -> list[str]:
    """Chromosomes of cubes in the order of the first one's genome; others behind."""
    names = [[*ds.attrs.get("chromsizes", {}), *bins_of(ds).chroms] for ds in cubes]
    own = list(bins_of(cubes[0]).chroms)
    order = list(dict.fromkeys(name for several in names for name in several))
    # A cube's own order counts, whatever its sizes say.
    return order if [name for name in order if name in own] == own else list(dict.fromkeys([*own, *order]))


def joined_axes(ds: xr.Dataset, new: xr.Dataset) -> dict[str, _Join]:
    """Join the bins of ``new`` to those of every dim of bins of ``ds``.

    Raises
    ------
    CubeError
        Where they meet inside a bin of one of the dims.
    """
    chroms, bins = _chromosome_order(ds, new), bins_of(new)
    joins = {}
    for dim in [dim for dim in map(str, ds.dims) if is_position(dim)]:
        own = bins_of(ds, dim)
        joins[dim] = _Join(own, bins.coarsen(own.binsize // bins.binsize), chroms)
    for dim, join in joins.items():
        try:
            join.bins.check_covers(joins[POSITION].bins)
        except GenomeError as error:
            raise CubeError(_meets(bins_of(ds, dim), str(error))) from None
    return joins


def with_positions(ds: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Put the positions of ``new`` where they belong among those of ``ds``, on every dim of bins; labels are those of ``ds``.

    What ``new`` lacks of the variables along positions is missing; what has no positions is that of ``ds``.
    """
    joins = joined_axes(ds, new)
    dims, chroms = list(joins), _chromosome_order(ds, new)
    joined: dict[Hashable, Any] = {}
    for name, variable in ds.data_vars.items():
        for dim in [d for d in dims if d in variable.dims]:
            sizes = {**variable.sizes, dim: new.sizes[dim]}
            part = _of_labels(new[name], ds) if name in new else _missing(variable.variable, sizes)
            data = joins[dim].concatenated(variable.data, part.transpose(*variable.dims).data, variable.dims.index(dim))
            joined[name] = (variable.dims, data, variable.attrs)
    observed = ds[OBSERVED] | _of_labels(new[OBSERVED], ds).transpose(*ds[OBSERVED].dims).data
    out = ds.drop_dims(dims).assign(joined).assign({OBSERVED: observed})
    for dim, join in joins.items():
        out = assign_bins(out, join.bins, dim)
    sizes = {**new.attrs.get("chromsizes", {}), **ds.attrs.get("chromsizes", {})}
    return out[list(ds.data_vars)].assign_attrs({"chromsizes": {c: sizes[c] for c in chroms if c in sizes}})


def on_positions(ds: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Give ``new``, its positions and all that lies along them, the labels of ``ds`` and what has no positions there."""
    dims = [dim for dim in map(str, new.dims) if is_position(dim)]
    bare = ds.drop_dims([dim for dim in map(str, ds.dims) if is_position(dim)])
    out = bare.assign({name: _of_labels(array, ds) for name, array in new.data_vars.items()})
    for dim in dims:
        out = assign_bins(out, bins_of(new, dim), dim)
    sizes = {name: new.attrs[name] for name in ("chromsizes",) if name in new.attrs}
    return out.assign_attrs(sizes)


def _of_labels(array: xr.DataArray, ds: xr.Dataset) -> xr.Variable:
    """Bring a variable to the labels of a cube; labels that it lacks are missing."""
    labels = {dim: ds[dim].values for dim in (CELLTYPE, ASSAY) if dim in array.dims}
    return array.reindex(labels, fill_value=_fill(array.dtype)).variable
