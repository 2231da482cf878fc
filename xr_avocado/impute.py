"""impute: a lazy layer of predicted tracks, computed where and when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    CONTEXT,
    CONTEXT_MEMBER,
    CONTEXT_PARAMETER,
    DIMS,
    ERROR_LEVEL,
    ERROR_PROBABILITY,
    ERROR_QUANTILES,
    ERRORS,
    FITTED,
    IMPUTED,
    IMPUTED_SD,
    IMPUTED_TRACKS,
    OBSERVED,
    SIGNAL,
    TRACK_MEAN,
    TRACK_SPREAD,
    CubeError,
    Experiment,
    as_experiments,
    check_cube,
    experiments,
    label_rows,
)
from xr_avocado.derived import Derived
from xr_avocado.errors import Errors
from xr_avocado.joining import check_alike
from xr_avocado.leave_one_out import LeftOut
from xr_avocado.predictors import Predictor, predictor_of
from xr_avocado.support import support
from xr_avocado.track_levels import levels_with

if TYPE_CHECKING:
    import torch

__all__ = ["impute"]

POSITIONS = 1 << 18
"""Positions of a dask chunk, at most; divides the chunks that stores have, so that no chunk is decoded in halves."""
CHUNK = 1 << 25
"""Values of a dask chunk, at most: 128 MB."""
TRACK_CHUNK = 1 << 22
"""Values of a dask chunk of single tracks, at most, unless these are very many: 16 MB, so that all threads have some."""
FEWEST = 1 << 12
"""Positions of such a chunk, at least: what is read around them (to the ends of the next 5-kbp bins) is little beside."""
TOGETHER = 1 << 28
"""Bytes of a layer that is computed at once, at most, rather than track by track."""


def impute(
    ds: xr.Dataset,
    celltype: str | Iterable[str] | None = None,
    assay: str | Iterable[str] | None = None,
    *,
    tracks: Iterable[Any] | None = None,
    only_missing: bool = False,
    leave_one_out: bool = False,
    uncertainty: bool = False,
    model: xr.Dataset | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Add the lazy layer ``imputed``: what the model predicts for the tracks asked for.

    Nothing is computed until it is asked for, and then only that: one track of one region reads that region. A model with a context
    term reads the observed tracks there, out to the ends of the 5-kbp bins next to those that hold it, from the cube as it is now: a
    track that was added since ``fit`` counts. (Of a cube cut to a region there is nothing around it to read: cut what comes back
    instead.) A model of factors alone reads them (and, where it adds average activity, the observed tracks of the
    assay). A dask chunk shares over its tracks what depends on the position alone.

    Memory while computing, a thread: one dask chunk, at most 128 MB of output, and about as much again of what it reads and of
    activations. Where a context term reads a lazy cube, up to 512 MB of the tracks stay in memory beside, as long as the result does, for
    the chunks that come next: so each chunk of a store is decoded once, or, of more than 32 tracks, as often as it has parts that fit.

    Parameters
    ----------
    ds
        A fitted cube, or with ``model`` any cube.
    celltype, assay
        A label or several; by default all.
    tracks
        Instead of those two: ``(celltype, assay)`` pairs.
    only_missing
        Leave out the experiments that were observed.
    leave_one_out
        Impute each observed track from the others alone, its mean and spread too, which are otherwise its own; to compare it with,
        as in `qc`. Nothing is trained again, so the network's weights have still learnt from the track among the rest, and
        predict it better than one that they never saw: see the Notes.
    uncertainty
        Add the lazy layer ``imputed_sd``: the root mean square error to be expected, as `calibrate` measured it on held-out tracks at
        this level of ``imputed``. For bounds see `interval`.
    model
        A fitted cube whose context term predicts instead, on positions that it may never have seen: train on some regions, impute the
        genome. It reads the observed tracks of ``ds``, with the same bin size and transform, of assays that it knows. Cell types that it
        does not know are predicted from their own tracks, without training: level and spread of these are measured on up to 2
        million bins, which is read at once.
    precision
        Of the products of hidden layers after the first, of a model of factors alone. ``"bfloat16"`` is twice as fast at the paper's size on
        processors that have it, and more on GPUs; on one network it was off by a thousandth of the prediction's standard deviation.
    device
        Where to compute; by default the fastest at hand.

    Returns
    -------
    The cube plus ``imputed`` (celltype x assay x position, float32, in the cube's transformed units; NaN for pairs that were not asked
    for), ``imputed_tracks`` (celltype x assay, bool: the pairs asked for), and ``support``, ``support_celltype`` and ``support_assay``
    (celltype x assay: whether each pair is observed, imputed or extrapolated, and from how many tracks of its cell type and of its assay;
    see `xr_avocado.support`).

    Raises
    ------
    ValueError
        Where the precision is none that there is, or is asked of a context term, whose layers are narrow.
    CubeError
        Where the cube is not fitted, or with ``uncertainty`` not calibrated, a label is not on it, ``model`` has no context term or does not fit the cube, or
        ``leave_one_out`` is asked of a model without one.
    GenomeError
        Where positions of the cube were not trained on.

    Notes
    -----
    No observed track is read for its own imputation, but training has seen it: to judge a model, hide tracks with ``hold_out`` before
    ``fit``. With ``leave_one_out`` tracks that training saw among others have 0.84 of the mean squared error that they have when hidden
    from training (0.53 to 1.17, 20 real tracks; docs/accuracy.md). A cube cut inside a 5-kbp bin shows the context term less than the whole one at its ends.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> quick = {"epochs": 1, "context_samples": 5_000}  # for this example; leave it out for real work
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit(config=quick, progress=False)
    >>> full = fitted.avocado.impute("C1")
    >>> full.avocado.sel("chr1:1,000-2,000").imputed.sel(celltype="C1").shape
    (4, 40)

    Positions that the model never saw:

    >>> elsewhere = xa.datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr9": 50_000})
    >>> elsewhere.avocado.impute("C1", model=fitted).imputed.sizes["position"]
    2000
    """
    from xr_avocado.model.training import device_named

    fitted = check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS) if model is None else with_model(ds, model)
    asked = tracks_asked(ds, celltype, assay, tracks, only_missing=only_missing)
    predictor = predictor_of(fitted, asked, str(device_named(device)), precision)
    array = LazyLayer.of(Derived(predictor, LeftOut(fitted)) if leave_one_out else predictor)
    attrs = {"long_name": "imputed signal", "transform": ds.attrs.get("transform", "none")}
    sure = deviation(ds, fitted, array, attrs) if uncertainty else {}
    return ds.assign(
        {
            IMPUTED: (DIMS, array, attrs),
            **sure,
            IMPUTED_TRACKS: ((CELLTYPE, ASSAY), asked, {"long_name": "pairs that imputed holds"}),
            **support(fitted),
        }
    )


def deviation(ds: xr.Dataset, fitted: xr.Dataset, array: LazyLayer, attrs: dict[str, str]) -> dict[str, Any]:
    """The layer of errors to be expected, and the tables of another cube's model, which `interval` needs as well."""
    function = partial(_deviation, errors=Errors.of(fitted))
    about = {**attrs, "long_name": "error of the imputed signal to be expected (root mean square)"}
    layer = {IMPUTED_SD: (DIMS, LazyLayer.of(Derived(array.predictor, function)), about)}
    if fitted is ds:
        return layer
    if CONTEXT in ds:
        raise CubeError(
            "this cube has a model of its own, and only one model's uncertainty has a place on it: give the cube without its model, "
            f"ds[['{SIGNAL}', '{OBSERVED}']]"
        )
    names = (*ERRORS, ERROR_LEVEL, ERROR_PROBABILITY, TRACK_SPREAD)
    return layer | {name: fitted[name].variable for name in names}


def _deviation(values: np.ndarray, celltype: np.ndarray, assay: np.ndarray, *, errors: Errors) -> np.ndarray:
    pairs = zip(values, celltype.tolist(), assay.tolist(), strict=True)
    return np.stack([errors.deviation(track, c, a) for track, c, a in pairs]).astype(np.float32)


def with_model(ds: xr.Dataset, model: xr.Dataset) -> xr.Dataset:
    """Put the context term of a fitted cube on another cube; raise where they do not go together."""
    check_cube(model, CELLTYPE_FACTORS, ASSAY_FACTORS)
    check_cube(ds, SIGNAL)
    if CONTEXT not in model:
        raise CubeError(
            "this model is one of factors alone, and knows the positions that it was trained on; fit with a context term "
            "(the default, without preset) to predict elsewhere"
        )
    check_alike(model, ds)
    known = {dim: {str(label) for label in model[dim].values} for dim in (CELLTYPE, ASSAY)}
    if new := [str(label) for label in ds[ASSAY].values if str(label) not in known[ASSAY]]:
        raise CubeError(
            f"the model does not know assay {', '.join(new[:5])}; it knows {', '.join(map(str, model[ASSAY].values[:8]))}: "
            "leave these out of the cube, or learn them with .avocado.extend()"
        )
    levels = levels_with(model, ds)
    own: dict[Any, Any] = {
        name: ((CELLTYPE, ASSAY), levels[name].transpose(CELLTYPE, ASSAY).values) for name in levels.data_vars
    }
    if ERROR_QUANTILES in model:
        by_assay = model[list(ERRORS)].sel(assay=ds[ASSAY].values)
        own |= {name: by_assay[name].variable for name in (*ERRORS, ERROR_LEVEL, ERROR_PROBABILITY)}
    bare = ds.drop_vars([*ERRORS, ERROR_LEVEL, ERROR_PROBABILITY, CONTEXT, TRACK_MEAN, TRACK_SPREAD], errors="ignore")
    about = model.attrs[FITTED]
    new = [str(label) for label in ds[CELLTYPE].values if str(label) not in about["celltypes"]]
    # Levels of their tracks were measured too, as those of trained ones are, which is what leaving one out undoes.
    tracks = [list(pair) for pair in experiments(ds) if pair.celltype in new]
    about = about | {"celltypes": [*about["celltypes"], *new], "trained_on": [*about["trained_on"], *tracks]}
    return bare.assign(own | {CONTEXT: ((CONTEXT_MEMBER, CONTEXT_PARAMETER), model[CONTEXT].values)}).assign_attrs(
        {FITTED: about}
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
    return label_rows(ds, dim, labels)


def computed_together(layer: xr.DataArray, tracks: Iterable[Experiment]) -> xr.DataArray:
    """Compute tracks of a lazy layer at once where they are few: what the model shares over them is then done once."""
    if not isinstance(layer.data, LazyLayer) or layer.size * layer.dtype.itemsize > TOGETHER:
        return layer
    wanted = np.zeros((layer.sizes[CELLTYPE], layer.sizes[ASSAY]), bool)
    for celltype, assay in tracks:
        wanted[label_rows(layer, CELLTYPE, [celltype]), label_rows(layer, ASSAY, [assay])] = True
    return layer.copy(data=layer.data.only(wanted).compute())


class _TakenForDask(type):
    """The type of a class that is taken for ``dask.array.Array`` where classes are compared."""

    # xarray refuses to compute a dataset whose lazy arrays are of more than one type, and counts the types in a set.
    def __eq__(cls, other: object) -> bool:
        return other is da.Array or super().__eq__(other)

    def __hash__(cls) -> int:
        return hash(da.Array)


class LazyLayer(da.Array, metaclass=_TakenForDask):
    """A dask array of predictions that slices its predictor, not its chunks.

    Dask computes whole chunks, except that it merges the first slice into them; so ``imputed.sel(celltype=..., assay=...)`` after a
    slice by region would compute all tracks of the region. Here any chain of slices, integers and lists of labels narrows what will be
    predicted. Every other operation gives an ordinary dask array.
    """

    predictor: Predictor

    @classmethod
    def of(cls, predictor: Predictor) -> LazyLayer:
        """Chunk a predictor: all its cell types (or tracks) together, as many assays and positions as fit."""
        n = max(1, predictor.celltypes.size)
        step = max(FEWEST, TRACK_CHUNK // n) if predictor.paired else max(1, CHUNK // n)
        step = max(1, min(len(predictor.positions), POSITIONS, step))
        assays = max(1, min(predictor.assays.size, CHUNK // (n * step)))
        sizes = {"celltypes": n, "tracks": n, "assays": assays, "positions": step}
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

    @property
    def identity(self) -> str:
        """Token of what is predicted, the same in any process; the name, which is random, tells no two calls alike."""
        return self.predictor.identity

    def transpose(self, *axes: Any) -> da.Array:
        """Permute the axes; in their own order it stays a layer of predictions."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return self if order is not None and tuple(order) == tuple(range(self.ndim)) else super().transpose(*axes)

    @property
    def vindex(self) -> Any:
        """Pointwise selection: cell types and assays as arrays of one length give these tracks alone, computed together."""
        return _Pointwise(self.predictor, super().vindex)

    def only(self, wanted: np.ndarray) -> LazyLayer:
        """Leave the pairs that are not wanted (celltype x assay, bool) NaN."""
        view = copy.copy(self.predictor)
        view.asked = np.zeros_like(view.asked)
        here = np.ix_(np.atleast_1d(view.celltypes), np.atleast_1d(view.assays))
        view.asked[here] = wanted & self.predictor.asked[here]
        return LazyLayer.of(view)

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyLayer.of, (self.predictor,)


class _Pointwise:
    def __init__(self, predictor: Predictor, otherwise: Any) -> None:
        self.predictor, self.otherwise = predictor, otherwise

    def __getitem__(self, index: Any) -> da.Array:
        if self.predictor.dims == ("celltypes", "assays", "positions") and len(index) == 3:
            celltypes, assays, rows = index
            flat = [isinstance(i, np.ndarray) and i.ndim == 1 and i.dtype.kind == "i" for i in (celltypes, assays)]
            if all(flat) and isinstance(rows, slice) and len(celltypes) == len(assays):
                return LazyLayer.of(self.predictor.along(celltypes, assays))[:, rows]
        return self.otherwise[index]
