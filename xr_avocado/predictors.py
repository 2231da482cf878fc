"""Predictors: arrays of predicted tracks that are computed on indexing, from factors or from the observed tracks around."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    CONTEXT,
    DIMS,
    FITTED,
    NETWORK,
    OBSERVED,
    SIGNAL,
    TRACK_MEAN,
    TRACK_SPREAD,
    CubeError,
    check_cube,
    genome_factors,
    position_dim,
)
from xr_avocado.generations import as_known_to, generations_of
from xr_avocado.index import bins_of
from xr_avocado.track_reader import TrackReader, read_tracks

if TYPE_CHECKING:
    from xr_avocado.genome import GenomeBins
    from xr_avocado.model.config import Config
    from xr_avocado.model.context import ContextEnsemble
    from xr_avocado.model.network import AvocadoNet
    from xr_avocado.model.windows import Windows

__all__ = ["ContextPredictor", "FactorPredictor", "Predictor", "predictor_of"]

READ = 1 << 25
"""Values of observed tracks (tracks x positions) that are read at a time: 128 MB."""
CONTEXT_VALUES = 1 << 23
"""The same that the context term is given at a time: 32 MB."""


def predictor_of(ds: xr.Dataset, asked: np.ndarray, device: str, precision: str = "float32") -> Predictor:
    """Build the predictor that a fitted cube's model calls for, for the pairs asked for (celltype x assay, bool)."""
    from xr_avocado.model.config import Config

    config = Config.from_attrs(ds.attrs[FITTED]["config"])
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16'; got {precision!r}")
    if config.context and precision != "float32":
        raise ValueError(
            "this model has a context term, whose layers are narrow and gain nothing from bfloat16: leave precision out"
        )
    kind = ContextPredictor if config.context else partial(FactorPredictor, precision=precision)
    # Only what reads tracks can tell that there are more of them.
    if (config.context or config.average) and any(numbers.any() for numbers in generations_of(ds)):
        return GenerationPredictor(ds, asked, config, device, kind)
    return kind(ds, asked, config, device)


class Predictor(ABC):
    """An array that is computed on indexing: celltypes x assays x positions, float32.

    ``celltypes`` and ``assays`` are indices into the model's labels, ``positions`` a run of rows of its genome axis; one that is a
    single index is no dim, nor is ``positions`` once it is a point. A view of single tracks (``along``) has them on one dim, tracks x
    positions. Pickles without the network, which each process builds for itself.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, ds: xr.Dataset, asked: np.ndarray, config: Config, device: str) -> None:
        self.config, self.asked, self.device = config, asked, device
        self.bins = bins_of(ds)
        self.celltypes, self.assays = (np.arange(n) for n in asked.shape)
        self.positions, self.point, self.paired = range(len(self.bins)), False, False
        self.observed = ds[OBSERVED].transpose(CELLTYPE, ASSAY).values
        # Shared by all views of this predictor: its network is built once, and what one view has read is there for the next.
        self._shared: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": {}}

    def __copy__(self) -> Predictor:
        # Not by way of the state, which leaves the network out.
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        return view

    @abstractmethod
    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs (indices) at the positions of a slice of rows: pairs x positions."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes that are dims still."""
        names = ("tracks",) if self.paired else ("celltypes", "assays")
        labels = tuple(name for name in names if np.ndim(getattr(self, name)))
        return labels if self.point else (*labels, "positions")

    @property
    def tracks(self) -> np.ndarray:
        """Cell types of a view of single tracks; ``assays`` has as many."""
        return self.celltypes

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dim."""
        return tuple(len(getattr(self, name)) for name in self.dims)

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.dims)

    @property
    def identity(self) -> str:
        """Token that is the same, in any process, where the same is predicted: of arrays in memory all values, of lazy ones the name."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_shared", "device")}
        return tokenize(type(self).__name__, sorted(state.items()))

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
            for axis in ("celltypes", "assays") if name == "tracks" else (name,):
                setattr(view, axis, getattr(self, axis)[i])
        return view

    def along(self, celltypes: np.ndarray, assays: np.ndarray) -> Predictor:
        """View of single tracks, given by as many places on the two axes: tracks x positions."""
        view = copy.copy(self)
        view.celltypes, view.assays, view.paired = self.celltypes[celltypes], self.assays[assays], True
        return view

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        part = self.narrowed(index if isinstance(index, tuple) else (index,))
        if part is None:
            return np.asarray(self[(slice(None),) * self.ndim][index])
        return part.compute()

    def compute(self) -> np.ndarray:
        """Predict all of it; NaN for pairs that were not asked for."""
        celltypes, assays = np.atleast_1d(self.celltypes), np.atleast_1d(self.assays)
        celltypes, assays = np.broadcast_arrays(*((celltypes, assays) if self.paired else np.ix_(celltypes, assays)))
        wanted, positions = self.asked[celltypes, assays], self.positions
        if not wanted.any() or not len(positions):
            return np.full(self.shape, np.nan, np.float32)
        rows = slice(min(positions[0], positions[-1]), max(positions[0], positions[-1]) + 1)
        predicted = self.predict(celltypes[wanted], assays[wanted], rows)
        predicted = predicted[:, :: positions.step] if positions.step > 0 else predicted[:, ::-1][:, :: -positions.step]
        if wanted.all():
            return predicted.reshape(self.shape)
        out = np.full((*wanted.shape, len(positions)), np.nan, np.float32)
        out[wanted] = predicted
        return out.reshape(self.shape)


class FactorPredictor(Predictor):
    """Predicts with the network on the factors, plus average activity where the model adds it."""

    def __init__(
        self, ds: xr.Dataset, asked: np.ndarray, config: Config, device: str, *, precision: str = "float32"
    ) -> None:
        super().__init__(ds, asked, config, device)
        self.precision = precision
        self.network = network_arrays(ds)
        self.signal = _signal(ds) if config.average else None
        widths = [self.bins.binsize * scale for scale in config.scales]
        self.factors = [ds[genome_factors(bp)].data for bp in widths]
        self.axes = [self.bins, *(bins_of(ds, position_dim(bp, self.bins.binsize)) for bp in widths[1:])]
        for axis in self.axes[1:]:
            axis.check_covers(self.bins)

    @property
    def net(self) -> AvocadoNet:
        """The network on its device, built on first use."""
        if "net" not in self._shared:
            import torch

            from xr_avocado.model.prediction import network_from_arrays

            net = network_from_arrays(self.config, self.network, torch.device(self.device))
            self._shared["net"] = net.narrow() if self.precision == "bfloat16" else net
        return self._shared["net"]

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs (indices) at the positions of a slice of rows: pairs x positions."""
        from xr_avocado.model.prediction import predict_positions

        factors, at = self.factors_at(rows)
        predicted = predict_positions(self.net, factors, at, celltype, assay)
        if self.signal is not None:
            predicted += self.average(celltype, assay, rows)
        return predicted

    def factors_at(self, rows: slice) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Genome factors of each scale around a slice of rows, and the row of these that each position lies in."""
        bins = self.bins[rows]
        factors, at = [], []
        for axis, table in zip(self.axes, self.factors, strict=True):
            row = axis.rows_of(bins)
            factors.append(_read(table[row[0] : row[-1] + 1]))
            at.append(row - row[0])
        return factors, at

    def average(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Average activity of each pair, itself left out: pairs x positions; 0 where no other cell type has the assay."""
        assert self.signal is not None
        out = np.zeros((len(celltype), rows.stop - rows.start), np.float32)
        for a in np.unique(assay):
            has = np.flatnonzero(self.observed[:, a])
            tracks = {int(c): _read(self.signal[int(c), int(a), rows]).astype(np.float32) for c in has}
            total = sum((np.nan_to_num(t) for t in tracks.values()), np.zeros(out.shape[1]))
            count = sum((~np.isnan(t) for t in tracks.values()), np.zeros(out.shape[1], np.float32))
            for k in np.flatnonzero(assay == a):
                own = tracks.get(int(celltype[k]), np.float32(np.nan))
                out[k] = (total - np.nan_to_num(own)) / np.maximum(count - ~np.isnan(own), 1)
        return out


class ContextPredictor(Predictor):
    """Predicts with the context term, from the tracks observed on the cube now; needs no factor of the positions."""

    def __init__(self, ds: xr.Dataset, asked: np.ndarray, config: Config, device: str) -> None:
        super().__init__(ds, asked, config, device)
        self.parameters = ds[CONTEXT].values
        self.signal = _signal(ds)
        if not self.observed.any():
            raise CubeError(
                "no experiment of this cube is observed, so the context term has nothing to read; give it some tracks"
            )
        # The cube may have been cut to some labels, or put in another order, since the model was trained. Cell types are what their
        # tracks are, so any will do; assays have parameters.
        about = ds.attrs[FITTED]
        _model_rows(ds, CELLTYPE, about["celltypes"])
        self.n_assays = len(about["assays"])
        self.model_assay = _model_rows(ds, ASSAY, about["assays"])
        self.mean, self.spread = (
            _of_model(ds[name], self.model_assay, self.n_assays) for name in (TRACK_MEAN, TRACK_SPREAD)
        )

    @property
    def net(self) -> ContextEnsemble:
        """The context term on its device, built on first use."""
        if "net" not in self._shared:
            import torch

            from xr_avocado.model.levels import Levels
            from xr_avocado.model.prediction import context_from_vector

            levels = Levels(self.mean, self.spread)
            device = torch.device(self.device)
            self._shared["net"] = context_from_vector(self.config, self.parameters, levels, device)
        return self._shared["net"]

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs from the observed tracks around them, a few positions at a time: pairs x positions."""
        from xr_avocado.model.prediction import predict_context

        cells = np.nonzero(self.observed)
        of_model = cells[0] * self.n_assays + self.model_assay[cells[1]]
        out = np.empty((len(celltype), rows.stop - rows.start), np.float32)
        for stretch in _pieces(rows, READ // len(of_model), self.config.block):
            tracks, first = self.tracks_around(stretch)
            for piece in _pieces(stretch, CONTEXT_VALUES // len(of_model), self.config.block):
                levels, windows = self.levels(tracks, first, piece)
                out[:, piece.start - rows.start : piece.stop - rows.start] = predict_context(
                    self.net, levels, windows, of_model, celltype, self.model_assay[assay]
                )
        return out

    def tracks_around(self, rows: slice) -> tuple[np.ndarray, int]:
        """Read observed tracks out to the ends of the coarsest bins next to those of some rows: tracks x positions, and the first row of these."""
        around, cells = self._around(rows), np.nonzero(self.observed)
        if not isinstance(self.signal, da.Array):
            return read_tracks(self.signal, cells, around), around.start
        # One call, so that threads cannot end up with two.
        return self._shared.setdefault("tracks", TrackReader(self.signal, cells)).read(around), around.start

    def _around(self, rows: slice) -> slice:
        held = self._widest.rows_of(self.bins[rows])
        first, last = max(0, held[0] - 1), min(len(self._widest) - 1, held[-1] + 1)
        chrom, start, end = self._widest.at(np.array([first, last]))
        return slice(
            int(self.bins.overlaps(chrom[0], start[0], end[0])[0]),
            int(self.bins.overlaps(chrom[1], start[1], end[1])[1]),
        )

    @property
    def _widest(self) -> GenomeBins:
        return self.bins.coarsen(max(self.config.context_scales))

    def levels(self, tracks: np.ndarray, first: int, rows: slice) -> tuple[list[np.ndarray], list[Windows]]:
        """Observed tracks at each scale of the context term, and the bins of each scale that each position is read from.

        What is read of ``tracks``, which begin at the row ``first``, reaches to the ends of the coarsest bins next to those that hold the rows,
        so that the result does not depend on how the positions were cut into pieces.
        """
        import torch

        from xr_avocado.model.windows import Windows

        reach = self._around(rows)
        around, tracks = self.bins[reach], tracks[:, reach.start - first : reach.stop - first]
        inside = slice(rows.start - reach.start, rows.stop - reach.start)
        place = torch.from_numpy(around.start[inside] // around.binsize)
        levels, windows = [], []
        for scale in self.config.context_scales:
            coarse = around.coarsen(scale)
            of = coarse.rows_of(around)
            levels.append(_means(tracks, of) if scale > 1 else tracks)
            windows.append(Windows(torch.from_numpy(of[inside]), place, scale, torch.from_numpy(coarse.continues)))
        return levels, windows


class GenerationPredictor(Predictor):
    """Predicts each pair from the tracks of the labels that the model knew when it learnt the pair's own, and no later ones.

    So what ``extend`` adds changes no earlier prediction: each generation is predicted as it was, with arrays of the same shapes.
    """

    def __init__(
        self, ds: xr.Dataset, asked: np.ndarray, config: Config, device: str, kind: Callable[..., Predictor]
    ) -> None:  # fmt: skip
        super().__init__(ds, asked, config, device)
        celltype, assay = generations_of(ds)
        self.generation = np.maximum.outer(celltype, assay)
        self.parts: dict[int, tuple[Predictor, np.ndarray, np.ndarray]] = {}
        for number in np.unique(self.generation[asked]).tolist():
            known = celltype <= number, assay <= number
            part = kind(as_known_to(ds, number), asked[np.ix_(*known)], config, device)
            self.parts[number] = (part, np.cumsum(known[0]) - 1, np.cumsum(known[1]) - 1)

    def predict(self, celltype: np.ndarray, assay: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs (indices) at the positions of a slice of rows: pairs x positions."""
        out = np.empty((len(celltype), rows.stop - rows.start), np.float32)
        generation = self.generation[celltype, assay]
        for number in np.unique(generation).tolist():
            part, celltypes, assays = self.parts[number]
            at = generation == number
            out[at] = part.predict(celltypes[celltype[at]], assays[assay[at]], rows)
        return out


def _pieces(rows: slice, most: int, least: int) -> Iterator[slice]:
    """Cut a slice of rows into pieces of so many rows at most, unless that is fewer than ``least``."""
    step = max(most, least)
    for first in range(rows.start, rows.stop, step):
        yield slice(first, min(first + step, rows.stop))


def _signal(ds: xr.Dataset) -> Any:
    return check_cube(ds, SIGNAL)[SIGNAL].transpose(*DIMS).data


def network_arrays(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """The network's parameters, by the names of its state dict."""
    arrays = {CELLTYPE_FACTORS: ds[CELLTYPE_FACTORS].values, ASSAY_FACTORS: ds[ASSAY_FACTORS].values}
    for name in map(str, ds.data_vars):
        if name.startswith(NETWORK):
            kind, _, layer = name.removeprefix(NETWORK).rpartition("_")
            arrays[f"{'weights' if kind == 'weight' else 'biases'}.{layer}"] = ds[name].values
    return arrays


def _model_rows(ds: xr.Dataset, dim: str, known: list[str]) -> np.ndarray:
    """Row that each label of the cube has in the model."""
    rows = pd.Index(known).get_indexer(pd.Index(ds[dim].values.astype(str)))
    if (rows < 0).any():
        new = ", ".join(map(str, ds[dim].values[rows < 0][:5]))
        raise CubeError(
            f"the model does not know {dim} {new}; it was trained on {', '.join(known[:8])}: fit again with these tracks"
        )
    return rows


def _of_model(table: xr.DataArray, assays: np.ndarray, n_assays: int) -> np.ndarray:
    """Spread a table's assays over those of the model; those that the cube lacks are never read."""
    out = np.ones((table.sizes[CELLTYPE], n_assays), np.float32)
    out[:, assays] = table.transpose(CELLTYPE, ASSAY).values
    return out


def _means(tracks: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Means of runs of positions (``of``: ascending run of each), unmeasured ones left out, NaN where none was measured."""
    firsts = np.flatnonzero(np.concatenate([[True], np.diff(of) > 0]))
    count = np.add.reduceat(~np.isnan(tracks), firsts, axis=1, dtype=np.int32)
    total = np.add.reduceat(np.nan_to_num(tracks), firsts, axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _read(array: Any) -> np.ndarray:
    """Bring a piece of an array to memory; in a dask task already, so without starting other threads."""
    return array.compute(scheduler="synchronous") if isinstance(array, da.Array) else np.asarray(array)
