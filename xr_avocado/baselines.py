"""What a model must beat: predictions from means and linear models, each a lazy layer of a cube.

Every function takes a cube with the tracks to be predicted hidden (`hold_out`) and returns a lazy DataArray, celltype x
assay x position, in the cube's transformed units. Observed tracks are predicted leave-one-out: a track never sees
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    DIMS,
    OBSERVED,
    SIGNAL,
    CubeError,
    as_experiments,
    check_cube,
)
from xr_avocado.linear import Panel, cp_weights, ridge_weights, second_moments

__all__ = ["BASELINES", "add_average", "additive", "average", "celltype_average", "cp", "ridge"]

POSITIONS = 1 << 18
"""Positions of a dask chunk, at most."""
CHUNK = 1 << 25
"""Values of a dask chunk, at most: 128 MB."""
RUN = 1 << 14, 1 << 18
"""Neighbouring bins that linear baselines read at a time to train on: at least, and at most where there are few
tracks."""
TRAINING_BINS = 1 << 20


def average(ds: xr.Dataset, *, tracks: Iterable[Any] | None = None) -> xr.DataArray:
    """Average activity: at each bin, the mean of the same assay over the other cell types that have it.

    Lazy: computing a piece reads that piece of the observed tracks of the assays in it, one track at a time. Memory while computing, a
    thread: one dask chunk, at most 128 MB, three times over (the result, a copy of it, the tracks that are left out of their own mean), and a
    decoded chunk of the store.

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
    return _layer(ds, Means(ds, tracks, [(False, True, 1)]), AVERAGE)


def celltype_average(ds: xr.Dataset, *, tracks: Iterable[Any] | None = None) -> xr.DataArray:
    """Cell type average: at each bin, the mean of the same cell type over its other assays.

    Parameters and errors are those of `average`, and so is memory, with sums (16 bytes a bin of a chunk) for each cell type; NaN where the cell type has no other assay measured at that
    bin.
    """
    return _layer(ds, Means(ds, tracks, [(True, False, 1)]), "celltype_average")


def additive(ds: xr.Dataset, *, tracks: Iterable[Any] | None = None) -> xr.DataArray:
    """Additive model: at each bin, the assay's mean plus the cell type's mean less the mean of all tracks.

    All three means leave the predicted track out. Parameters and errors are those of `average`; computing a piece reads
    that piece of all observed tracks, one at a time, and holds sums (16 bytes a bin of a chunk) for each cell type and assay in it.
    """
    return _layer(ds, Means(ds, tracks, [(False, True, 1), (True, False, 1), (False, False, -1)]), "additive")


def ridge(
    ds: xr.Dataset,
    *,
    tracks: Iterable[Any] | None = None,
    penalty: float = 0.1,
    training_bins: int | None = TRAINING_BINS,
) -> xr.DataArray:
    """Ridge regression on the cell type's other assays and average activity.

    For a track (c, a) the features at a bin are the average activity of a, a constant, and for each other assay b of c,
    how far c lies from b's average activity. The coefficients are learned where the answer is known, on the other cell
    types that have a (a feature whose assay such a cell type lacks is 0 there), shrunk towards plain average activity,
    and track by track, so that an observed track takes no part in its own prediction. A NaN bin counts as 0.

    Lazy: the first piece that is computed learns the coefficients, from second moments gathered in one pass over the
    training bins. It holds 4 million values of the observed tracks at a time, or 16,384 bins of them all where that is more, 24 bytes
    each (100 MB); each piece then what `average` does.

    Parameters
    ----------
    ds
        A cube.
    tracks
        ``(celltype, assay)`` pairs to predict; others come back as NaN. By default all pairs.
    penalty
        Weight of the penalty, relative to the mean power of the features.
    training_bins
        Bins to learn from, at least, in evenly spaced runs; None for all.

    Returns
    -------
    celltype x assay x position, float32; NaN where no other cell type has the assay.

    Raises
    ------
    CubeError
        Where the cube has no signal, or a pair is not on it.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=3)
    >>> predicted = xa.baselines.ridge(cube.avocado.hold_out([("C1", "H3K4me3")]), tracks=[("C1", "H3K4me3")])
    >>> bool(predicted.sel(celltype="C1", assay="H3K4me3").notnull().all())
    True
    """
    return _layer(ds, Weighted(ds, tracks, partial(_ridge, penalty=penalty), training_bins), "ridge")


def cp(
    ds: xr.Dataset,
    *,
    tracks: Iterable[Any] | None = None,
    rank: int = 5,
    penalty: float = 0.1,
    seeds: int = 8,
    training_bins: int | None = TRAINING_BINS,
) -> xr.DataArray:
    """CP factorization by alternating least squares, the mean of several random starts: PREDICTD's linear model.

    A bin's factors are fitted to all its observed values, so that an observed track cannot be left out of its own
    prediction: hide it with `hold_out` first. A NaN bin counts as 0. Lazy, as `ridge` is.

    Parameters
    ----------
    ds
        A cube.
    tracks
        ``(celltype, assay)`` pairs to predict, none of them observed. By default all that are not.
    rank
        Number of components.
    penalty
        Ridge penalty on a bin's factors.
    seeds
        Number of random starts.
    training_bins
        Bins to learn from, at least, in evenly spaced runs; None for all.

    Returns
    -------
    celltype x assay x position, float32; NaN for observed pairs, and where a cell type or an assay has
    no observed track.

    Raises
    ------
    CubeError
        Where the cube has no signal, or a pair asked for is not on it or was observed.

    References
    ----------
    Durham et al. 2018, doi:10.1038/s41467-018-03635-9.
    """
    check_cube(ds, SIGNAL)
    pairs = None if tracks is None else as_experiments(ds, tracks)
    for pair in pairs or ():
        if ds[OBSERVED].sel(pair._asdict()):
            raise CubeError(
                f"{pair} is observed, so CP factorization has seen it; hide it first with hold_out([{tuple(pair)}])"
            )
    solve = partial(_cp, shape=(ds.sizes[CELLTYPE], ds.sizes[ASSAY]), rank=rank, penalty=penalty, seeds=seeds)
    layer = Weighted(ds, pairs, solve, training_bins)
    layer.asked &= ~layer.observed
    return _layer(ds, layer, "cp")


def add_average(ds: xr.Dataset, *, tracks: Iterable[Any] | None = None) -> xr.Dataset:
    """Add average activity, the mean of each assay over the other cell types, as the lazy layer ``average``.

    Memory while computing: that of `xr_avocado.baselines.average`, three dask chunks of at most 128 MB a thread.

    Parameters
    ----------
    ds
        A cube.
    tracks
        ``(celltype, assay)`` pairs to average for; by default all, observed or not.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=3, n_assays=1)
    >>> mean = cube.signal.sel(celltype=["C2", "C3"]).mean("celltype")
    >>> bool(abs(cube.avocado.average().average.sel(celltype="C1") - mean).max() < 1e-6)
    True
    """
    return ds.assign({AVERAGE: average(ds, tracks=tracks)})


BASELINES: dict[str, Callable[..., xr.DataArray]] = {
    "average": average,
    "celltype_average": celltype_average,
    "additive": additive,
    "ridge": ridge,
    "cp": cp,
}
"""The baselines by the name that `evaluate` knows them by."""


class TrackLayer:
    """An array that is computed on indexing, from the observed tracks: celltype x assay x position, float32."""

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, ds: xr.Dataset, tracks: Iterable[Any] | None) -> None:
        self.signal = check_cube(ds, SIGNAL)[SIGNAL].transpose(*DIMS).data
        self.observed = np.asarray(ds[OBSERVED].transpose(CELLTYPE, ASSAY).values, bool)
        self.shape = self.signal.shape
        self.asked = np.ones(self.observed.shape, bool) if tracks is None else _marked(ds, tracks)

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        celltypes, assays, positions = (
            # Of a slice only what it holds: the whole axis would be 8 bytes a bin in every task.
            np.arange(*k.indices(n)) if isinstance(k, slice) else np.arange(n)[k]
            for k, n in zip(key, self.shape, strict=True)
        )
        shape = celltypes.shape + assays.shape + positions.shape
        celltypes, assays, positions = map(np.atleast_1d, (celltypes, assays, positions))
        out = np.full((len(celltypes), len(assays), len(positions)), np.nan, np.float32)
        i, j = np.nonzero(self.asked[np.ix_(celltypes, assays)])
        if len(i) and len(positions):
            first, last = int(positions.min()), int(positions.max()) + 1
            out[i, j] = self.predict(np.stack([celltypes[i], assays[j]], 1), slice(first, last))[:, positions - first]
        return out.reshape(shape)

    def predict(self, pairs: np.ndarray, rows: slice) -> np.ndarray:
        """Predict pairs (indices, pairs x 2) at a slice of positions: pairs x positions."""
        raise NotImplementedError

    def track(self, celltype: int, assay: int, rows: slice) -> np.ndarray:
        """Read a piece of a track; as part of a dask task already, so without starting other threads."""
        piece = self.signal[int(celltype), int(assay), rows]
        return piece.compute(scheduler="synchronous") if isinstance(piece, da.Array) else np.asarray(piece)


class Means(TrackLayer):
    """Signed sum of means over the other observed tracks of the same cell type, of the same assay, or of all."""

    def __init__(self, ds: xr.Dataset, tracks: Iterable[Any] | None, terms: list[tuple[bool, bool, int]]) -> None:
        super().__init__(ds, tracks)
        self.terms = terms

    def predict(self, pairs: np.ndarray, rows: slice) -> np.ndarray:
        n = rows.stop - rows.start
        wanted = {tuple(map(int, pair)) for pair in pairs}
        # In float64 a sum less one of its terms is as good as exact, so that no trace of the track is left in it.
        sums = {group: np.zeros((2, n)) for pair in wanted for group in self._groups(*pair)}
        own: dict[tuple[int, int], np.ndarray] = {}
        for c, a in np.argwhere(self.observed).tolist():
            groups = [group for group in self._groups(c, a) if group in sums]
            if groups:
                track = self.track(c, a, rows)
                counted = _value_and_count(track)
                for group in groups:
                    sums[group] += counted
                if (c, a) in wanted:
                    own[c, a] = track
        out = np.empty((len(pairs), n), np.float32)
        for k, (c, a) in enumerate(pairs.tolist()):
            taken, mean = _value_and_count(own[c, a]) if (c, a) in own else 0.0, np.zeros(n)
            for group, (_, _, sign) in zip(self._groups(c, a), self.terms, strict=True):
                total, count = sums[group] - taken
                mean += sign * np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
            out[k] = mean
        return out

    def _groups(self, celltype: int, assay: int) -> list[tuple[int, int]]:
        return [(celltype if same_c else -1, assay if same_a else -1) for same_c, same_a, _ in self.terms]


class Weighted(TrackLayer):
    """Weighted sums of the observed tracks, with weights that are learned when first needed."""

    def __init__(
        self,
        ds: xr.Dataset,
        tracks: Iterable[Any] | None,
        solve: Callable[[Panel, np.ndarray], np.ndarray],
        training_bins: int | None,
    ) -> None:
        super().__init__(ds, tracks)
        if training_bins is not None and training_bins < 1:
            raise ValueError(f"training_bins must be at least 1, or None for all; got {training_bins}")
        self.solve, self.training_bins = solve, training_bins
        self.celltype, self.assay = np.nonzero(self.observed)
        self._learned: dict[tuple[int, int], np.ndarray] = {}
        self._panel: Panel | None = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_lock": Lock()})

    def predict(self, pairs: np.ndarray, rows: slice) -> np.ndarray:
        weights = self._weights(pairs)
        out = np.repeat(weights[:, -1:], rows.stop - rows.start, 1).astype(np.float32)
        for j in np.flatnonzero(np.nan_to_num(weights[:, :-1]).any(0)).tolist():
            out += weights[:, j, None].astype(np.float32) * self._filled(j, rows)
        return out

    def _weights(self, pairs: np.ndarray) -> np.ndarray:
        with self._lock:
            if self._panel is None:
                moments = second_moments(self._training_blocks(), len(self.celltype))
                self._panel = Panel(self.celltype, self.assay, moments)
            new = [pair for pair in map(tuple, pairs.tolist()) if pair not in self._learned]
            if new:
                self._learned.update(zip(new, self.solve(self._panel, np.array(new)), strict=True))
            return np.array([self._learned[pair] for pair in map(tuple, pairs.tolist())])

    def _training_blocks(self) -> Iterator[np.ndarray]:
        n, wanted = self.shape[2], self.training_bins or self.shape[2]
        run = min(wanted, max(RUN[0], min(RUN[1], (1 << 22) // max(1, len(self.celltype)))))
        runs = -(-min(n, wanted) // run)
        starts = np.arange(0, n, run) if runs * run >= n else np.linspace(0, n - run, runs).astype(int)
        for start in starts.tolist():
            yield np.stack([self._filled(j, slice(start, min(n, start + run))) for j in range(len(self.celltype))])

    def _filled(self, j: int, rows: slice) -> np.ndarray:
        return np.nan_to_num(self.track(self.celltype[j], self.assay[j], rows)).astype(np.float32)


def _ridge(panel: Panel, pairs: np.ndarray, *, penalty: float) -> np.ndarray:
    weights = [ridge_weights(panel, c, a, penalty=penalty) for c, a in pairs.tolist()]
    return np.array([np.full(len(panel) + 1, np.nan) if w is None else w for w in weights])


def _cp(panel: Panel, pairs: np.ndarray, **options: Any) -> np.ndarray:
    weights = cp_weights(panel, pairs, **options)
    known = np.isin(pairs[:, 0], panel.celltype) & np.isin(pairs[:, 1], panel.assay)
    return np.where(known[:, None], weights, np.nan)


def _value_and_count(track: np.ndarray) -> np.ndarray:
    there = ~np.isnan(track)
    return np.stack([np.where(there, track, 0.0), there]).astype(np.float64)


def _marked(ds: xr.Dataset, tracks: Iterable[Any]) -> np.ndarray:
    asked = xr.zeros_like(ds[OBSERVED].transpose(CELLTYPE, ASSAY).compute(), dtype=bool)
    for pair in as_experiments(ds, tracks):
        asked.loc[pair._asdict()] = True
    return asked.values


def _layer(ds: xr.Dataset, layer: TrackLayer, name: str) -> xr.DataArray:
    n_celltypes, _, n = layer.shape
    step = max(1, min(n, POSITIONS))
    chunks = (min(n_celltypes, max(1, CHUNK // step)), 1, step)
    array = da.from_array(
        layer, chunks=chunks, name=False, asarray=False, inline_array=True, meta=np.empty((0, 0, 0), np.float32)
    )
    like = ds[SIGNAL].transpose(*DIMS)
    attrs = {"long_name": name.replace("_", " "), "transform": ds.attrs.get("transform", "none")}
    return like.copy(data=array).rename(name).assign_attrs(attrs)
