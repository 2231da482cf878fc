"""How a cube's variables are laid out on disk: dtypes, chunks, compression, and the genome axes as attributes."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from xr_avocado.axis import coordinate_names
from xr_avocado.cube import ASSAY, AVERAGE, CELLTYPE, IMPUTED, POSITION, SIGNAL, CubeError
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of

__all__ = ["CHUNK", "FORMAT", "VERSION", "Precision", "compressors", "narrow", "precision_of", "to_disk"]

Precision: TypeAlias = Literal["float16", "float32"] | int

FORMAT = "xr_avocado_format"
"""The attribute of a store that names the version of its layout."""
VERSION = 1
CHUNK = 1 << 20
"""Bins of a chunk, at most: 2 MB of float16, one track."""
SHORTEST = 1 << 14
"""Bins of a dask chunk from which on it is a chunk of the store as well."""
PROVENANCE = "built_from"
"""The attribute of stored signal that says which files it was built from; only the store has it."""
SEGMENTS, BINSIZE = "segments", "binsize"
_SIGNAL_LIKE = (SIGNAL, IMPUTED, AVERAGE)
_MANTISSA = 23


def precision_of(precision: Precision, transform: str) -> tuple[np.dtype, int | None]:
    """Tell the dtype on disk and the mantissa bits to keep (None: all) of signal that was transformed so.

    float16 ends at 65,504, so that signal in its own units (transform ``"none"``) is always stored as float32.

    Raises
    ------
    ValueError
        Where the precision is none that there is.
    """
    keepbits = precision if isinstance(precision, int) and not isinstance(precision, bool) else None
    if precision not in ("float16", "float32") and (keepbits is None or not 1 <= keepbits <= _MANTISSA):
        raise ValueError(
            f"precision must be 'float16', 'float32' or a number of mantissa bits to keep, 1-{_MANTISSA}; got {precision!r}"
        )
    narrow_enough = precision == "float16" or (keepbits is not None and keepbits <= 10)
    return np.dtype(np.float16 if narrow_enough and transform != "none" else np.float32), keepbits


def narrow(values: np.ndarray, *, dtype: np.dtype, keepbits: int | None) -> np.ndarray:
    """Round to a number of mantissa bits, and cast; NaN stays NaN.

    Raises
    ------
    CubeError
        Where a value does not fit the dtype.
    """
    values = np.asarray(values, np.float32)
    if keepbits is not None and keepbits < _MANTISSA:
        values = _rounded(values, _MANTISSA - keepbits)
    with np.errstate(over="ignore"):
        out = values.astype(dtype)
    if (np.isinf(out) & np.isfinite(values)).any():
        raise CubeError(
            f"signal of {np.nanmax(np.abs(values)):,.0f} does not fit {dtype}; write with precision='float32'"
        )
    return out


def _rounded(values: np.ndarray, drop: int) -> np.ndarray:
    # Half to even on the integer pattern, as numcodecs' BitRound, so that stores need no codec beyond the specification's.
    bits = np.ascontiguousarray(values).view(np.uint32)
    nudge = ((bits >> np.uint32(drop)) & np.uint32(1)) + np.uint32((1 << (drop - 1)) - 1)
    rounded = ((bits + nudge) & ~np.uint32((1 << drop) - 1)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def compressors(dtype: np.dtype) -> tuple[Any, ...]:
    """Give the compression of an array: zstd of shuffled bytes, which real tracks compress best with, and a checksum of the result."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    # Blosc notices next to no flipped bit; the checksum costs 4 bytes and a few percent of the time to read.
    return (BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=dtype.itemsize), Crc32cCodec())


def to_disk(ds: xr.Dataset, *, precision: Precision) -> tuple[xr.Dataset, dict[Hashable, dict[str, Any]]]:
    """Lay a cube out as stores have it: a plain dataset, lazy where it is large, and the encoding of its variables."""
    axes = {str(dim): bins_of(ds, str(dim)) for dim in ds.dims if is_position(dim)}
    dtype, keepbits = precision_of(precision, ds.attrs.get("transform", "none"))
    plain = ds.drop_vars([name for dim in axes for name in coordinate_names(dim) if name in ds.coords]).drop_encoding()
    encoding: dict[Hashable, dict[str, Any]] = {}
    for name, variable in list(plain.variables.items()):
        if variable.dtype.kind in "UTO":
            plain[name] = (variable.dims, variable.values.astype(object), json_attrs(variable.attrs))
            encoding[name] = label_encoding()
            continue
        chunks = _chunks(variable)
        if any(map(is_position, variable.dims)):
            variable = variable.chunk(dict(zip(variable.dims, chunks, strict=True)))
        if name in _SIGNAL_LIKE:
            variable = _narrowed(variable, dtype, keepbits)
        coarse = next((axes[str(d)].to_attrs() for d in variable.dims if is_position(d) and d != POSITION), {})
        plain[name] = (variable.dims, variable.data, json_attrs({**variable.attrs, **coarse}))
        encoding[name] = array_encoding(variable.dtype, chunks)
    plain.attrs = json_attrs(store_attrs(ds.attrs, axes.get(POSITION)))
    return plain, encoding


def store_attrs(attrs: dict[Any, Any], bins: GenomeBins | None) -> dict[Any, Any]:
    """Give the attributes of a store: those of the cube, its axis and the version of the layout."""
    return {FORMAT: VERSION, **attrs, **(bins.to_attrs() if bins is not None else {})}


def array_encoding(dtype: np.dtype, chunks: tuple[int, ...]) -> dict[str, Any]:
    """Encode an array as xarray takes it; chunks of nothing but fill value are not written."""
    fill = {"fill_value": dtype.type(np.nan)} if dtype.kind == "f" else {}
    return {"chunks": chunks or None, "compressors": compressors(dtype), "write_empty_chunks": False, **fill}


def label_encoding() -> dict[str, Any]:
    """Encode labels: zstd, and a checksum."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return {"compressors": (ZstdCodec(), Crc32cCodec())}


def is_position(dim: Hashable) -> bool:
    """Tell whether a dim is one of bins: ``position`` or a coarse scale of it."""
    return dim == POSITION or str(dim).startswith(f"{POSITION}_")


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Chunk by track and by runs of positions; small variables are one chunk."""
    if not any(map(is_position, variable.dims)):
        return tuple(max(n, 1) for n in variable.shape)
    whole = [n for d, n in variable.sizes.items() if not is_position(d) and d not in (CELLTYPE, ASSAY)]
    most = max(CHUNK >> int(np.ceil(np.log2(max(int(np.prod(whole)), 1)))), 1 << 10)
    sizes = {CELLTYPE: 1, ASSAY: 1}
    return tuple(
        _run(variable, axis, min(most, max(n, 1))) if is_position(d) else sizes.get(str(d), max(n, 1))
        for axis, (d, n) in enumerate(variable.sizes.items())
    )


def _run(variable: xr.Variable, axis: int, most: int) -> int:
    """The dask chunk where it is even and not too large, so that writing merges no blocks; else the most."""
    own = variable.chunks[axis] if variable.chunks else ()
    even = len(set(own[:-1])) == 1 and own[-1] <= own[0]
    return int(own[0]) if even and min(most, SHORTEST) <= own[0] <= most else most


def _narrowed(variable: xr.Variable, dtype: np.dtype, keepbits: int | None) -> xr.Variable:
    if variable.dtype == dtype and keepbits is None:
        return variable
    data = variable.data
    if hasattr(data, "map_blocks"):
        block = partial(narrow, dtype=dtype, keepbits=keepbits)
        return variable.copy(data=data.map_blocks(block, dtype=dtype, meta=np.empty((0,) * data.ndim, dtype)))
    return variable.copy(data=narrow(data, dtype=dtype, keepbits=keepbits))


def json_attrs(attrs: dict[Any, Any]) -> dict[str, Any]:
    """Give attributes as JSON has them: numpy scalars and arrays as numbers and lists.

    Raises
    ------
    CubeError
        Where an attribute is nothing that JSON can hold.
    """
    out = {}
    for key, value in attrs.items():
        try:
            out[str(key)] = json.loads(json.dumps(value, default=lambda x: x.tolist()))
        except (TypeError, ValueError, AttributeError):
            raise CubeError(
                f"attrs[{key!r}] is of type {type(value).__name__}, which a store cannot hold: drop it or make it text"
            ) from None
    return out
