"""Cubes in zarr stores: opened lazily, written whole or not at all."""

from __future__ import annotations

import glob
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.axis import coordinate_names
from xr_avocado.cube import ASSAY, CELLTYPE, OBSERVED, POSITION, SIGNAL, CubeError, check_cube
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import assign_bins
from xr_avocado.io.atomic import fitting, local_path, replacing, sweep, unfinished
from xr_avocado.io.chunks import COUNTED, CheckedStore, count_chunks
from xr_avocado.io.encoding import (
    BINSIZE,
    CHUNK,
    FORMAT,
    PROVENANCE,
    SEGMENTS,
    VERSION,
    Precision,
    is_position,
    to_disk,
)
from xr_avocado.io.lock import only_one

__all__ = ["open_cube", "to_zarr", "write_cube"]


def open_cube(store: Any, *, chunks: Mapping[str, int] | None = None) -> xr.Dataset:
    """Open a cube, fitted or not, from its zarr store.

    Reads metadata, labels and ``observed`` only; everything else is lazy. Signal that is stored as float16 comes as float32.

    Parameters
    ----------
    store
        The folder that ``build_cube`` or ``to_zarr`` wrote, or any zarr store of such a layout. A store whose ``chrom``, ``start``
        and ``end`` are arrays opens too.
    chunks
        Dask chunks by dim; by default the chunks of the store, so that each is decoded once.

    Raises
    ------
    CubeError
        Where there is no store, its build has not finished, it is no cube, or a newer version of the package wrote it.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = cube.avocado.to_zarr(f"{folder}/cube.zarr", progress=False)
    ...     open_cube(f"{folder}/cube.zarr").signal.dims
    ('celltype', 'assay', 'position')
    """
    ds = _open(store, chunks)
    version = ds.attrs.pop(FORMAT, VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise CubeError(f"{store} has format {version}; this xr_avocado reads up to {VERSION}: install a newer one")
    for dim in (CELLTYPE, ASSAY):
        if dim not in ds.variables or ds[dim].dims != (dim,):
            raise CubeError(f"{store} has no {dim!r} labels, so it is no cube; make one with xr_avocado.build_cube")
    ds = _with_axes(ds, store)
    if SIGNAL in ds:
        ds[SIGNAL].attrs.pop(PROVENANCE, None)
    # Each in one call: xarray aligns everything anew at every change.
    ds = ds.assign({name: _as_float32(v) for name, v in ds.variables.items() if v.dtype == np.float16})
    labels = {n: v for n, v in ds.variables.items() if v.dtype.kind in "OTU" and v.dims == (n,)}
    ds = ds.assign_coords({n: (n, np.array(v.values.tolist(), str), v.attrs) for n, v in labels.items()})
    # A folder lists its arrays in no order of its own.
    return check_cube(ds[sorted(ds.data_vars, key=lambda name: (name != SIGNAL, name != OBSERVED, str(name)))])


def _open(store: Any, chunks: Mapping[str, int] | None) -> xr.Dataset:
    if isinstance(store, str | os.PathLike) and "://" not in str(store):
        if not str(store):
            raise CubeError(f"there is no store {store!r}; give the folder that build_cube or to_zarr wrote")
        _check_there(Path(store))
        files: Any = CheckedStore(os.path.abspath(store), read_only=True)
    else:
        files = store
    try:
        with warnings.catch_warnings():
            # Of an array whose metadata is damaged or gone zarr only warns, and leaves it out.
            warnings.filterwarnings("error", ".*is not recognized as a component of a Zarr hierarchy")
            ds = xr.open_zarr(files, consolidated=False, chunks={} if chunks is None else dict(chunks))
        if OBSERVED in ds:
            ds[OBSERVED].load()
    except Exception as error:
        raise CubeError(f"{store} cannot be read as a zarr store: {type(error).__name__}: {error}") from error
    for variable in ds.variables.values():
        variable.attrs.pop(COUNTED, None)
    return ds


def _check_there(path: Path) -> None:
    if os.path.exists(path):
        return
    if os.path.exists(unfinished(path)):
        raise CubeError(
            f"the build of {path} has not finished: run the same build_cube again, it goes on where it stopped"
        )
    if os.path.exists(fitting(path)):
        raise CubeError(f"the training of {path} has not finished: run the same fit again, it goes on where it stopped")
    for old in glob.glob(f"{glob.escape(str(path.parent))}/.{glob.escape(path.name)}.*.old"):
        raise CubeError(
            f"there is no store {path}: replacing it was interrupted. Its former contents are {old}; rename it"
        )
    raise CubeError(f"there is no store {path}; make one with xr_avocado.build_cube")


def _as_float32(array: xr.Variable) -> xr.Variable:
    wide = array.astype(np.float32)
    wide.encoding = {**array.encoding, "dtype": np.dtype(np.float16)}
    return wide


def _with_axes(ds: xr.Dataset, store: Any) -> xr.Dataset:
    attrs = {**ds.attrs}
    segments, binsize = attrs.pop(SEGMENTS, None), attrs.get(BINSIZE)
    ds.attrs = attrs
    if POSITION in ds.dims:
        ds = _assign(ds, _bins(ds, POSITION, segments, binsize, store), POSITION, store)
    for name in list(ds.data_vars):
        for dim in [str(d) for d in ds[name].dims if is_position(d) and d != POSITION]:
            bins = _bins(ds, dim, ds[name].attrs.pop(SEGMENTS, None), ds[name].attrs.pop(BINSIZE, None), store)
            ds = _assign(ds, bins, dim, store) if coordinate_names(dim)[0] not in ds.coords else ds
    return ds


def _bins(ds: xr.Dataset, dim: str, segments: Any, binsize: int | None, store: Any) -> GenomeBins:
    columns = [ds[name].values for name in coordinate_names(dim) if name in ds.variables]
    try:
        if segments is not None and binsize is not None:
            return GenomeBins(segments, binsize)
        if len(columns) == 3:
            chrom, start, end = columns
            return GenomeBins.from_coordinates(chrom, start, end, binsize or int((end - start).max()))
    except GenomeError as error:
        raise CubeError(f"{store}: the bins along {dim!r} cannot be read: {error}") from None
    raise CubeError(
        f"{store} does not say which bins lie along {dim!r}: it needs the attributes {SEGMENTS} and {BINSIZE}, or the "
        f"coordinates {', '.join(coordinate_names(dim))}. Make cubes with xr_avocado.build_cube"
    )


def _assign(ds: xr.Dataset, bins: GenomeBins, dim: str, store: Any) -> xr.Dataset:
    if len(bins) != ds.sizes[dim]:
        raise CubeError(
            f"{store} is damaged: {dim!r} has {ds.sizes[dim]:,} entries, but its segments have {len(bins):,} bins"
        )
    return assign_bins(ds.drop_vars([name for name in coordinate_names(dim) if name in ds.variables]), bins, dim)


def to_zarr(
    ds: xr.Dataset,
    store: str | os.PathLike[str],
    *,
    precision: Precision = "float16",
    overwrite: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Write a cube, fitted or not, to a zarr store, and open it from there.

    Lazy variables are computed chunk by chunk, so that a cube larger than memory can be written: one chunk a thread is held, and
    the blocks that it is computed from; what a model predicts is written along the genome, in one pass. The store is complete or absent: it is written beside its place and then renamed, also
    where it replaces the store that ``ds`` was opened from.

    Parameters
    ----------
    ds
        A cube.
    store
        The folder to write.
    precision
        Of ``signal``, ``imputed`` and ``average``: ``"float16"`` (11 significant bits), ``"float32"``, or the number of mantissa
        bits to keep (fewer take less room; 8 about 12 % less than float16). Signal that is not transformed is float32 at
        least. A model's parameters are stored as they are.
    overwrite
        Replace a store that is there; nothing but a zarr store is replaced.
    progress
        Show a progress bar.

    Returns
    -------
        The cube as ``open_cube`` opens it.

    Raises
    ------
    CubeError
        Where ``ds`` is no cube, or something is there already.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stored = to_zarr(cube, f"{folder}/cube.zarr", progress=False)
    ...     bool(abs(stored.signal - cube.signal).max() < 0.01)
    True
    """
    target = _target(store, overwrite=overwrite)
    with only_one(target):
        # Another process may have written it since.
        return write_cube(ds, _target(target, overwrite=overwrite), precision=precision, progress=progress)


def write_cube(ds: xr.Dataset, target: Path, *, precision: Precision = "float16", progress: bool) -> xr.Dataset:
    """Write a cube as `to_zarr` does, where the right to write ``target`` is held (`only_one`), and open it."""
    plain, encoding = to_disk(check_cube(ds), precision=precision)
    # Layers of predictions, which tell what they are.
    layers = [str(name) for name, v in ds.data_vars.items() if POSITION in v.dims and hasattr(v.data, "identity")]
    of_layers = {name: encoding.pop(name) for name in layers}
    check_replaceable(target)
    with replacing(target) as temporary:
        sweep(target)
        with _bar(target.name, shown=progress):
            plain.drop_vars(layers).to_zarr(temporary, mode="w-", consolidated=False, zarr_format=3, encoding=encoding)
        if layers:
            _write_along(plain[layers].reset_coords(drop=True), of_layers, temporary, progress=progress)
        count_chunks(temporary)
    return open_cube(target)


def _write_along(layers: xr.Dataset, encoding: dict[Any, Any], path: Path, *, progress: bool) -> None:
    """Add layers to a store from one end of the genome to the other, so that what they are predicted from is read once.

    Dask would take chunks in an order of its own.
    """
    layers = layers.drop_vars(list(layers.coords))
    layers.to_zarr(path, mode="a", compute=False, consolidated=False, encoding=encoding)
    step = math.lcm(*(encoding[name]["chunks"][v.dims.index(POSITION)] for name, v in layers.data_vars.items()))
    step *= max(1, CHUNK // step)
    with tqdm(total=layers.sizes[POSITION], desc="impute", unit="bin", unit_scale=True, disable=not progress) as bar:
        for first in range(0, layers.sizes[POSITION], step):
            rows = slice(first, min(first + step, layers.sizes[POSITION]))
            layers.isel({POSITION: rows}).to_zarr(path, mode="r+", region={POSITION: rows}, consolidated=False)
            bar.update(rows.stop - rows.start)


def _target(store: str | os.PathLike[str], *, overwrite: bool) -> Path:
    path = local_path(store, "a cube is")
    # Not Path.exists(), which raises where a name is too long or a folder may not be looked into.
    if os.path.exists(path) and not overwrite:
        raise CubeError(f"{path} is there already; give overwrite=True to replace it, or another name")
    check_replaceable(path)
    return path


def check_replaceable(path: Path) -> None:
    """Raise where something is there that is neither a zarr store nor an empty folder."""
    is_store = any(os.path.isfile(path / name) for name in ("zarr.json", ".zgroup", ".zattrs"))
    if os.path.exists(path) and not is_store and not (path.is_dir() and not any(path.iterdir())):
        raise CubeError(f"{path} is no zarr store, so it is not replaced; choose another name, or remove it yourself")


def _bar(name: str, *, shown: bool) -> Any:
    from tqdm.dask import TqdmCallback

    return TqdmCallback(desc=name) if shown else nullcontext()
