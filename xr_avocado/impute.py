"""impute: a lazy layer of predicted tracks, computed where and when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    CONTEXT,
    DIMS,
    FITTED,
    IMPUTED,
    IMPUTED_TRACKS,
    NETWORK,
    OBSERVED,
    POSITION,
    SIGNAL,
    as_experiments,
    check_cube,
    genome_factors,
    label_rows,
    position_dim,
)
from xr_avocado.index import bins_of

if TYPE_CHECKING:
    import torch

    from xr_avocado.model.context import ContextNet
    from xr_avocado.model.network import AvocadoNet

__all__ = ["impute"]

POSITIONS = 1 << 18
"""Positions of a dask chunk, at most; divides the chunks that stores have, so that no chunk is decoded in halves."""
CONTEXT_VALUES = 1 << 23
"""Values of observed tracks (tracks x positions) that the context term holds at a time: 32 MB."""
CHUNK = 1 << 25
"""Values of a dask chunk, at most: 128 MB."""


def impute(
    ds: xr.Dataset,
    celltype: str | Iterable[str] | None = None,
    assay: str | Iterable[str] | None = None,
    *,
    tracks: Iterable[Any] | None = None,
    only_missing: bool = False,
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Add the lazy layer ``imputed``: what the model predicts for the tracks asked for.

    Nothing is computed until it is asked for, and then only that: one track of one region reads the factors (and, where the model adds
    average activity, the observed tracks of that assay) of that region. A dask chunk shares the position term over all its tracks.

    Memory while computing: one dask chunk a thread, at most 128 MB of output, the factors of its positions and 64 MB of activations.

    Parameters
    ----------
    ds
        A fitted cube.
    celltype, assay
        A label or several; by default all.
    tracks
        Instead of those two: ``(celltype, assay)`` pairs.
    only_missing
        Leave out the experiments that were observed.
    device
        Where to compute; by default the fastest at hand.

    Returns
    -------
    The cube plus ``imputed`` (celltype x assay x position, float32, in the cube's transformed units; NaN for pairs that were not asked
    for) and ``imputed_tracks`` (celltype x assay, bool: the pairs asked for).

    Raises
    ------
    CubeError
        Where the cube is not fitted, or a label is not on it.
    GenomeError
        Where positions of the cube were not trained on.

    Notes
    -----
    For an experiment that the model was trained on, the average leaves that track out, but the factors have seen it: to judge a model,
    hide tracks with ``hold_out`` before ``fit``.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit(epochs=1, progress=False)
    >>> full = fitted.avocado.impute("C1")
    >>> full.avocado.sel("chr1:1,000-2,000").imputed.sel(celltype="C1").shape
    (4, 40)
    """
    from xr_avocado.model.training import device_named

    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    asked = tracks_asked(ds, celltype, assay, tracks, only_missing=only_missing)
    array = LazyLayer.of(Predictor(ds, asked, str(device_named(device))))
    attrs = {"long_name": "imputed signal", "transform": ds.attrs.get("transform", "none")}
    return ds.assign(
        {
            IMPUTED: ((CELLTYPE, ASSAY, POSITION), array, attrs),
            IMPUTED_TRACKS: ((CELLTYPE, ASSAY), asked, {"long_name": "pairs that imputed holds"}),
        }
    )


def tracks_asked(
    ds: xr.Dataset, celltype: Any, assay: Any, tracks: Iterable[Any] | None, *, only_missing: bool
) -> np.ndarray:
    """Mark the pairs asked for: celltype x assay, bool."""
    asked = np.zeros((ds.sizes[CELLTYPE], ds.sizes[ASSAY]), bool)
    if tracks is not None:
        if celltype is not None or assay is not None:
            raise ValueError("give tracks=, or celltype= and assay=, not both")
        pairs = as_experiments(ds, tracks)
        c = label_rows(ds, CELLTYPE, [p.celltype for p in pairs])
        a = label_rows(ds, ASSAY, [p.assay for p in pairs])
        asked[c, a] = True
    else:
        asked[np.ix_(_labels(ds, CELLTYPE, celltype), _labels(ds, ASSAY, assay))] = True
    return asked & ~ds[OBSERVED].transpose(CELLTYPE, ASSAY).values if only_missing else asked


def _labels(ds: xr.Dataset, dim: str, labels: Any) -> np.ndarray:
    if labels is None:
        return np.arange(ds.sizes[dim])
    return label_rows(ds, dim, [labels] if isinstance(labels, str) else labels)


class LazyLayer(da.Array):
    """A dask array of predictions that slices its predictor, not its chunks.

    Dask computes whole chunks, except that it merges the first slice into them; so ``imputed.sel(celltype=..., assay=...)`` after a
    slice by region would compute all tracks of the region. Here any chain of slices, integers and lists of labels narrows what will be
    predicted. Every other operation gives an ordinary dask array.
    """

    __slots__ = ("predictor",)

    @classmethod
    def of(cls, predictor: Predictor) -> LazyLayer:
        """Chunk a predictor: all its cell types together, as many assays and positions as fit ``CHUNK``."""
        n_celltypes = predictor.celltypes.size
        step = max(1, min(len(predictor.positions), POSITIONS, CHUNK // max(1, n_celltypes)))
        assays = max(1, min(predictor.assays.size, CHUNK // max(1, n_celltypes * step)))
        sizes = {"celltypes": n_celltypes or 1, "assays": assays, "positions": step}
        chunks = tuple(sizes[name] for name in predictor.dims)
        meta = np.empty((0,) * len(chunks), np.float32)
        # A token would hash every factor of the genome, so the name is random.
        base = da.from_array(predictor, chunks, name=False, asarray=False, inline_array=True, meta=meta)
        array = cls.__new__(cls, base.dask, base.name, base.chunks, base.dtype, base._meta, base.shape)
        array.predictor = predictor
        return array

    def __getitem__(self, index: Any) -> da.Array:
        view = self.predictor.narrowed(index if isinstance(index, tuple) else (index,))
        return super().__getitem__(index) if view is None else LazyLayer.of(view)

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyLayer.of, (self.predictor,)


class Predictor:
    """An array that is computed on indexing: celltypes x assays x positions, float32.

    ``celltypes`` and ``assays`` are indices into the model's labels, ``positions`` a run of rows of its genome axis; one that is a
    single index is no dim, nor is ``positions`` once it is a point. Pickles without the network, which each process builds for itself.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, ds: xr.Dataset, asked: np.ndarray, device: str) -> None:
        from xr_avocado.model.config import Config

        self.config = Config.from_attrs(ds.attrs[FITTED]["config"])
        self.asked, self.device = asked, device
        self.bins = bins_of(ds)
        self.celltypes, self.assays = (np.arange(n) for n in asked.shape)
        self.positions, self.point = range(len(self.bins)), False
        self.observed = ds[OBSERVED].transpose(CELLTYPE, ASSAY).values
        reads_signal = self.config.context or self.config.average
        self.signal = check_cube(ds, SIGNAL)[SIGNAL].transpose(*DIMS).data if reads_signal else None
        self.network = context_arrays(ds) if self.config.context else network_arrays(ds)
        if not self.config.context:
            widths = [self.bins.binsize * scale for scale in self.config.scales]
            self.factors = [ds[genome_factors(bp)].data for bp in widths]
            self.axes = [self.bins, *(bins_of(ds, position_dim(bp, self.bins.binsize)) for bp in widths[1:])]
            for axis in self.axes[1:]:
                axis.check_covers(self.bins)
        self._net: AvocadoNet | ContextNet | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_net": None}

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes that are dims still."""
        labels = tuple(name for name in ("celltypes", "assays") if np.ndim(getattr(self, name)))
        return labels if self.point else (*labels, "positions")

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dim."""
        return tuple(len(getattr(self, name)) for name in self.dims)

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.dims)

    def narrowed(self, index: tuple[Any, ...]) -> Predictor | None:
        """View of a part, for slices and integers (and one list of labels); None for any other index."""
        if len(index) > self.ndim or sum(isinstance(i, list | np.ndarray) for i in index) > 1:
            return None
        view = copy.copy(self)
        for name, i in zip(self.dims, index, strict=False):
            basic = isinstance(i, slice | int | np.integer)
            if not basic and (name == "positions" or not isinstance(i, list | np.ndarray)):
                return None
            if name == "positions" and not isinstance(i, slice):
                view.point = True
                i = slice(range(len(self.positions))[i], range(len(self.positions))[i] + 1)
            setattr(view, name, getattr(self, name)[i])
        return view

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        part = self.narrowed(index if isinstance(index, tuple) else (index,))
        if part is None:
            return np.asarray(self[(slice(None),) * self.ndim][index])
        return part.compute()

    def compute(self) -> np.ndarray:
        """Predict all of it; NaN for pairs that were not asked for."""
        celltypes, assays = np.atleast_1d(self.celltypes), np.atleast_1d(self.assays)
        positions = self.positions
        out = np.full((len(celltypes), len(assays), len(positions)), np.nan, np.float32)
        i, j = np.nonzero(self.asked[np.ix_(celltypes, assays)])
        if len(i) and len(positions):
            rows = slice(min(positions[0], positions[-1]), max(positions[0], positions[-1]) + 1)
            predicted = self.predict(celltypes[i], assays[j], rows)
            out[i, j] = (
                predicted[:, :: positions.step] if positions.step > 0 else predicted[:, ::-1][:, :: -positions.step]
            )
        return out.reshape(self.shape)

    @property
    def net(self) -> AvocadoNet | ContextNet:
        """The network on its device, built on first use."""
        if self._net is None:
            import torch

            from xr_avocado.model.prediction import context_from_arrays, network_from_arrays

            device = torch.device(self.device)
            if self.config.context:
                self._net = context_from_arrays(self.config, self.network, self.observed.shape, device)
            else:
                self._net = network_from_arrays(self.config, self.network, device)
        return self._net

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs (indices) at the positions of a slice of rows: pairs x positions."""
        if self.config.context:
            return self.from_context(celltype, assay, rows)
        from xr_avocado.model.prediction import predict_positions

        bins = self.bins[rows]
        factors, at = [], []
        for axis, table in zip(self.axes, self.factors, strict=True):
            row = axis.rows_of(bins)
            factors.append(_read(table[row[0] : row[-1] + 1]))
            at.append(row - row[0])
        predicted = predict_positions(self.net, factors, at, celltype, assay)
        return predicted if self.signal is None else predicted + self.average(celltype, assay, rows)

    def from_context(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs from the observed tracks around them, a few positions at a time: pairs x positions."""
        from xr_avocado.model.prediction import predict_context

        cells = np.flatnonzero(self.observed)
        step = max(self.config.block, CONTEXT_VALUES // len(cells))
        out = np.empty((len(celltype), rows.stop - rows.start), np.float32)
        for first in range(rows.start, rows.stop, step):
            piece = slice(first, min(first + step, rows.stop))
            levels, at = self.context_levels(cells, piece)
            out[:, first - rows.start : piece.stop - rows.start] = predict_context(
                self.net, levels, at, cells, celltype, assay
            )
        return out

    def context_levels(self, cells: np.ndarray, rows: slice) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Observed tracks at each scale of the context term, and the bin of each scale that each position lies in.

        What is read reaches to the ends of the coarsest bins that hold the positions, so that the result does not depend on how the
        positions were cut into pieces.
        """
        widest = self.bins.coarsen(max(self.config.context_scales))
        held = widest.rows_of(self.bins[rows])
        chrom, start, end = widest.at(held[[0, -1]])
        first = int(self.bins.overlaps(chrom[0], start[0], end[0])[0])
        last = int(self.bins.overlaps(chrom[1], start[1], end[1])[1])
        around = self.bins[first:last]
        tracks = _read_tracks(self.signal, np.unravel_index(cells, self.observed.shape), slice(first, last))
        inside = slice(rows.start - first, rows.stop - first)
        levels, at = [], []
        for scale in self.config.context_scales:
            of = around.coarsen(scale).rows_of(around) if scale > 1 else np.arange(last - first)
            levels.append(_means(tracks, of) if scale > 1 else tracks)
            at.append(of[inside])
        return levels, at

    def average(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Average activity of each pair, itself left out: pairs x positions; 0 where no other cell type has the assay."""
        out = np.zeros((len(celltype), rows.stop - rows.start), np.float32)
        for a in np.unique(assay):
            has = np.flatnonzero(self.observed[:, a])
            tracks = {int(c): _read(self.signal[int(c), int(a), rows]).astype(np.float32) for c in has}
            total = sum((np.nan_to_num(t) for t in tracks.values()), np.zeros(out.shape[1], np.float32))
            count = sum((~np.isnan(t) for t in tracks.values()), np.zeros(out.shape[1], np.float32))
            for k in np.flatnonzero(assay == a):
                own = tracks.get(int(celltype[k]), np.float32(np.nan))
                out[k] = (total - np.nan_to_num(own)) / np.maximum(count - ~np.isnan(own), 1)
        return out


def network_arrays(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """The network's parameters, by the names of its state dict."""
    arrays = {CELLTYPE_FACTORS: ds[CELLTYPE_FACTORS].values, ASSAY_FACTORS: ds[ASSAY_FACTORS].values}
    for name in map(str, ds.data_vars):
        if name.startswith(NETWORK):
            kind, _, layer = name.removeprefix(NETWORK).rpartition("_")
            arrays[f"{'weights' if kind == 'weight' else 'biases'}.{layer}"] = ds[name].values
    return arrays


def context_arrays(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """The context term's parameters, by the names of its state dict."""
    return {name.removeprefix(CONTEXT): ds[name].values for name in map(str, ds.data_vars) if name.startswith(CONTEXT)}


def _read_tracks(signal: Any, cells: tuple[np.ndarray, np.ndarray], rows: slice) -> np.ndarray:
    """Bring tracks of a run of positions to memory: tracks x positions, float32."""
    pieces = [signal[int(c), int(a), rows] for c, a in zip(*cells, strict=True)]
    if isinstance(signal, da.Array):
        pieces = dask.compute(*pieces, scheduler="synchronous")
    return np.stack([np.asarray(piece, np.float32) for piece in pieces])


def _means(tracks: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Means of runs of positions (``of``: ascending run of each), unmeasured ones left out, 0 where none was measured."""
    firsts = np.flatnonzero(np.concatenate([[True], np.diff(of) > 0]))
    count = np.add.reduceat(~np.isnan(tracks), firsts, axis=1, dtype=np.int32)
    total = np.add.reduceat(np.nan_to_num(tracks), firsts, axis=1)
    return (total / np.maximum(count, 1)).astype(np.float32)


def _read(array: Any) -> np.ndarray:
    """Bring a piece of an array to memory; in a dask task already, so without starting other threads."""
    return array.compute(scheduler="synchronous") if isinstance(array, da.Array) else np.asarray(array)
