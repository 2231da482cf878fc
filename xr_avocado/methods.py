"""What `evaluate` compares: layers of a cube, baselines, and tracks imputed elsewhere, each as a lazy layer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.baselines import BASELINES
from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    DIMS,
    IMPUTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    as_experiments,
    check_cube,
    experiments,
)
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.io.sheet import Track, read_sheet
from xr_avocado.pieces import empty, pieces_of
from xr_avocado.transforms import transform_named

__all__ = [
    "Space",
    "aligned",
    "in_space",
    "layers_of",
    "read_folder",
    "read_pieces",
    "read_tracks",
    "sources_of",
    "tracks_to_score",
    "true_layer",
    "was_observed",
]

POSITIONS = 1 << 18
"""Positions of a dask chunk, at most."""
BATCH = 1 << 24
"""Values of one method that are held at once, where an axis is one piece."""

Space = Literal["arcsinh", "signal"]


def sources_of(ds: xr.Dataset, methods: Any) -> dict[str, Any]:
    """Name what is to be compared: None stands for ``imputed``, where the cube has it, and ``average``."""
    if methods is None:
        methods = [IMPUTED, "average"] if IMPUTED in ds else ["average"]
    if isinstance(methods, Mapping):
        return {str(name): source for name, source in methods.items()}
    if not isinstance(methods, Iterable):
        raise ValueError(f"methods are names, or a mapping from names to layers and folders; got {methods!r}")
    return {str(name): name for name in ([methods] if isinstance(methods, str) else methods)}


def layers_of(ds: xr.Dataset, sources: Mapping[str, Any], tracks: Iterable[Experiment]) -> dict[str, xr.DataArray]:
    """Resolve sources to layers on the cube's bins.

    Parameters
    ----------
    ds
        A cube.
    sources
        By name: the name of a layer or a baseline, a DataArray, or a folder of bigWigs. A DataArray whose attrs name no
        ``transform`` is taken to be in the cube's.
    tracks
        The pairs that will be read.

    Raises
    ------
    CubeError
        Where a layer lacks tracks or bins.
    ValueError
        Where a name is neither a layer nor a baseline nor a folder.
    """
    pairs = list(tracks)
    return {name: aligned(_layer(ds, source, pairs), ds) for name, source in sources.items()}


def _layer(ds: xr.Dataset, source: Any, pairs: list[Experiment]) -> xr.DataArray:
    if isinstance(source, xr.DataArray):
        return _with_tracks(source, pairs)
    if source in BASELINES:
        return BASELINES[source](ds, tracks=pairs)
    if source == IMPUTED:
        check_cube(ds, IMPUTED)
    if isinstance(source, str) and source in ds and set(ds[source].dims) == set(DIMS):
        return ds[source]
    if isinstance(source, str | Path) and os.path.isdir(source):
        return read_folder(source, ds, tracks=pairs)
    raise ValueError(
        f"{str(source)!r} is neither a layer of this cube, nor a baseline ({', '.join(BASELINES)}), nor a folder of "
        "bigWigs"
    )


def _with_tracks(layer: xr.DataArray, pairs: list[Experiment]) -> xr.DataArray:
    if set(layer.dims) != set(DIMS):
        raise CubeError(f"a layer has the dims {', '.join(DIMS)}; got {', '.join(map(str, layer.dims))}")
    for dim, wanted in ((CELLTYPE, {p.celltype for p in pairs}), (ASSAY, {p.assay for p in pairs})):
        if missing := sorted(wanted - set(map(str, layer[dim].values))):
            raise CubeError(
                f"the layer {str(layer.name)!r} has no {dim} {', '.join(missing[:5])}: score other tracks, or add them"
            )
    return layer


def aligned(layer: xr.DataArray, ds: xr.Dataset) -> xr.DataArray:
    """Give a layer the cube's bins, if it has them all, and the name of its transform."""
    mine, theirs = (
        bins_of(ds),
        bins_of(layer if "binsize" in layer.attrs else layer.assign_attrs(binsize=ds.attrs.get("binsize"))),
    )
    if mine != theirs:
        layer = layer.isel({POSITION: _rows_of(mine, theirs)})
    return layer.assign_attrs(transform=layer.attrs.get("transform", ds.attrs.get("transform", "none")))


def _rows_of(mine: GenomeBins, theirs: GenomeBins) -> slice | np.ndarray:
    theirs.check_covers(mine)
    first, last = theirs.overlaps(*mine.segments.to_numpy(object).T)
    if len(mine) and mine.binsize == theirs.binsize and (first[1:] == last[:-1]).all():
        return slice(int(first[0]), int(last[-1]))
    return theirs.rows_of(mine)


def read_folder(folder: str | Path, ds: xr.Dataset, *, tracks: Iterable[Experiment]) -> xr.DataArray:
    """Read tracks imputed elsewhere from a folder of bigWigs, lazily, on the cube's bins.

    The folder has a ``samples.tsv`` (celltype, assay, path relative to it), as ``to_bigwig`` writes it, or files whose
    names begin with the labels: ``E003.H3K4me1.anything.bw``, ``E003_H3K4me1.bigWig``. Values are taken to be in the
    signal's own units.

    Raises
    ------
    CubeError
        Where a track is not in the folder, or is there twice.
    SheetError
        Where ``samples.tsv`` is no sheet.
    """
    path = Path(folder) / "samples.tsv"
    sheet = read_sheet(path, replicates="mean") if os.path.isfile(path) else None
    files = {}
    for pair in tracks:
        found = _by_name(Path(folder), pair) if sheet is None else _in_sheet(pair, sheet)
        files[pair] = _the_one(found, Path(folder), pair)
    layer = _Folder(files, ds)
    chunks = (1, 1, max(1, min(layer.shape[2], POSITIONS)))
    array = da.from_array(layer, chunks=chunks, name=False, asarray=False, meta=np.empty((0, 0, 0), np.float32))
    coords = {name: coord for name, coord in ds.coords.items() if set(coord.dims) <= set(DIMS)}
    out = xr.DataArray(array, dims=DIMS, name=Path(folder).name, attrs={"transform": "none"})
    return out.assign_coords(xr.Coordinates(coords, {k: v for k, v in ds.xindexes.items() if k in coords}))


class _Folder:
    """An array that is read on indexing: celltype x assay x position, float32."""

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, files: Mapping[Experiment, Path], ds: xr.Dataset) -> None:
        celltypes, assays = (ds[dim].values.astype(str).tolist() for dim in (CELLTYPE, ASSAY))
        self.bins = bins_of(ds)
        self.shape = (len(celltypes), len(assays), len(self.bins))
        self.files = {(celltypes.index(p.celltype), assays.index(p.assay)): path for p, path in files.items()}

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        from xr_avocado.io.bigwig import read_bins

        celltypes, assays, positions = (_rows(k, n) for k, n in zip(key, self.shape, strict=True))
        shape = celltypes.shape + assays.shape + positions.shape
        celltypes, assays, positions = map(np.atleast_1d, (celltypes, assays, positions))
        out = np.full((len(celltypes), len(assays), len(positions)), np.nan, np.float32)
        for i, c in enumerate(celltypes.tolist()):
            for j, a in enumerate(assays.tolist()):
                if (c, a) in self.files and len(positions):
                    rows = slice(int(positions.min()), int(positions.max()) + 1)
                    out[i, j] = read_bins(self.files[c, a], self.bins, rows=rows)[positions - rows.start]
        return out.reshape(shape)


def _rows(key: Any, n: int) -> np.ndarray:
    return np.arange(*key.indices(n)) if isinstance(key, slice) else np.arange(n)[key]


def _in_sheet(pair: Experiment, sheet: list[Track]) -> list[Path]:
    return [Path(path) for track in sheet if (track.celltype, track.assay) == pair for path in track.paths]


def _by_name(folder: Path, pair: Experiment) -> list[Path]:
    starts = tuple(f"{pair.celltype}{sep}{pair.assay}{end}" for sep in "._-" for end in "._-")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".bw", ".bigwig")]
    return [path for path in files if path.name.startswith(starts)]


def _the_one(found: list[Path], folder: Path, pair: Experiment) -> Path:
    if len(found) != 1:
        what = f"{len(found)} files for" if found else "no bigWig of"
        raise CubeError(
            f"{folder} has {what} {pair}: name it {pair.celltype}.{pair.assay}.bw, or list the files in a "
            "samples.tsv with the columns celltype, assay, path"
        )
    return found[0]


def true_layer(truth: xr.Dataset, ds: xr.Dataset) -> xr.DataArray:
    """The tracks of the truth on the cube's bins."""
    return aligned(truth[SIGNAL].assign_attrs(transform=truth.attrs.get("transform", "none")), ds)


def read_pieces(
    layers: Mapping[str, xr.DataArray], pairs: list[Experiment], space: Space
) -> Iterator[tuple[Experiment, slice, dict[str, np.ndarray]]]:
    """Compute track by track and piece by piece, all layers together, so that they share what they read: float32.

    Where an axis is one piece, as many tracks are computed at once as ``BATCH`` allows.
    """
    n = next(iter(layers.values())).sizes[POSITION]
    step = max(1, BATCH // max(1, n)) if len(pieces_of(n)) == 1 else 1
    for batch in (pairs[i : i + step] for i in range(0, len(pairs), step)):
        tracks = [{name: layer.sel(pair._asdict()).variable for name, layer in layers.items()} for pair in batch]
        for rows in pieces_of(n):
            lazy = [{name: track[{POSITION: rows}].data for name, track in each.items()} for each in tracks]
            for pair, values in zip(batch, dask.compute(lazy)[0], strict=True):
                yield pair, rows, {k: in_space(v, layers[k].attrs["transform"], space) for k, v in values.items()}


def read_tracks(
    layers: Mapping[str, xr.DataArray], pairs: list[Experiment], space: Space
) -> Iterator[tuple[Experiment, dict[str, np.ndarray]]]:
    """Compute whole tracks: those of more than a piece lie in temporary files, 4 bytes a bin and layer."""
    for pair, rows, values in read_pieces(layers, pairs, space):
        n = next(iter(layers.values())).sizes[POSITION]
        if rows == slice(0, n):
            yield pair, values
            continue
        if rows.start == 0:
            whole = {name: empty(n, np.float32) for name in values}
        for name, track in whole.items():
            track[rows] = values[name]
        if rows.stop == n:
            yield pair, whole
            whole = {}


def in_space(values: np.ndarray, transform: str, space: str) -> np.ndarray:
    """Convert values of a cube of that transform to arcsinh or to the signal's own units: float32."""
    values = values.astype(np.float32, copy=False)
    if transform == space or (transform == "none" and space == "signal"):
        return values
    signal = transform_named(transform).inverse(values)
    return signal if space == "signal" else transform_named(space).forward(signal)


def tracks_to_score(ds: xr.Dataset, truth: xr.Dataset, tracks: Iterable[Any] | None) -> list[Experiment]:
    """Settle the pairs: those given, else those that only the truth has, else all that it has."""
    there = experiments(truth)
    if tracks is None:
        known = [e for e in there if e.celltype in ds[CELLTYPE].values and e.assay in ds[ASSAY].values]
        return [e for e in known if not was_observed(ds, e)] or known
    pairs = as_experiments(ds, tracks)
    if missing := [str(p) for p in pairs if p not in set(there)]:
        raise CubeError(f"the truth has no track of {', '.join(missing[:5])}: give the cube that held them as truth=")
    return pairs


def was_observed(ds: xr.Dataset, pair: Experiment) -> bool:
    """Tell whether a track was there for methods to see."""
    return bool(ds[OBSERVED].sel(pair._asdict()))
