"""evaluate: score imputed tracks against held-out truth, beside the baselines; and the measures themselves, as plain functions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import dask
import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.baselines import BASELINES
from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    DIMS,
    FITTED,
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
from xr_avocado.index import bins_of
from xr_avocado.measures import *  # noqa: F403
from xr_avocado.measures import MEASURES, Convention, check_measures, score
from xr_avocado.transforms import transform_named

__all__ = ["evaluate", *MEASURES]

logger = logging.getLogger("xr_avocado")

Space = Literal["arcsinh", "signal"]
BATCH = 1 << 25
"""Values of one method that are held at once, where a single track has not more."""


def evaluate(
    ds: xr.Dataset,
    truth: xr.Dataset | None = None,
    *,
    tracks: Iterable[Any] | None = None,
    methods: Iterable[str] | Mapping[str, Any] | None = None,
    space: Space = "arcsinh",
    measures: Sequence[str] | None = None,
    convention: Convention = "avocado",
    progress: bool = True,
) -> pd.DataFrame:
    """Score imputed tracks against the truth, beside the baselines: one row a track and method.

    A score says something about imputation only for tracks that the method has not seen. So hide some, fit, impute, and give the
    whole cube as the truth: ``cube.avocado.hold_out(tracks).avocado.fit().avocado.impute().avocado.evaluate(cube)``. Baselines leave
    each track out of its own prediction; a model cannot, and the column ``trained`` marks the tracks that it was fitted to.

    Memory: as many tracks at a time as fit 128 MB a method, at least one; scoring takes some 40 bytes a bin beside them (6 GB for a
    whole human genome at 25 bp; cut it to a chromosome for less).

    Parameters
    ----------
    ds
        A cube with the layers to score.
    truth
        A cube that holds the true tracks; by default ``ds`` itself.
    tracks
        ``(celltype, assay)`` pairs to score. By default those that the truth has and ``ds`` has not; where there are none, all that the
        truth has.
    methods
        Layers of ``ds`` and baselines by name. By default ``imputed`` where ``ds`` has it, and ``average``.
    space
        ``"arcsinh"`` or ``"signal"`` (the track's own units, -log10 p as a rule): what the scores are computed on.
    measures
        Names among ``measures.MEASURES``; by default all.
    convention
        ``"avocado"``, ``"challenge"`` or ``"chromimpute"``: how ties and NaN are treated, see `xr_avocado.measures`.
    progress
        Show a progress bar.

    Returns
    -------
    A frame of celltype, assay, method, space, observed (the track was there for the method to see), trained (the model was fitted
    to it), bins (that were scored), and one column a measure, NaN where it is undefined.

    Raises
    ------
    CubeError
        Where a layer is missing, a pair is not on the cubes or not in the truth, or the cubes do not have the same bins.
    ValueError
        Where a method, measure, space or convention is unknown.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> table = cube.avocado.evaluate(methods=["average"], measures=["mse", "gwcorr"], progress=False)
    >>> list(table.columns[-2:])
    ['mse', 'gwcorr']
    """
    names = check_measures(measures)
    _check_space(space)
    true_cube = check_cube(ds if truth is None else truth, SIGNAL)
    pairs = _tracks_to_score(ds, true_cube, tracks)
    layers = {name: _aligned(layer, ds) for name, layer in _layers(ds, methods, pairs).items()}
    layers = {None: _aligned_truth(true_cube, ds), **layers}
    seen = _trained_on(ds)
    rows = []
    with tqdm(total=len(pairs) * (len(layers) - 1), desc="evaluate", unit="track", disable=not progress) as bar:
        for pair, values in _read(layers, pairs, space):
            y = values.pop(None)
            for method, p in values.items():
                scores = score(y, p, measures=names, convention=convention)
                fitted = method not in BASELINES and method in ds and pair in seen
                rows.append(
                    [*pair, method, space, _was_observed(ds, pair), fitted, _scored(y, p, convention), *scores.values()]
                )
                bar.update()
    columns = [CELLTYPE, ASSAY, "method", "space", OBSERVED, "trained", "bins", *names]
    return pd.DataFrame(rows, columns=columns)


def _check_space(space: str) -> None:
    if space not in ("arcsinh", "signal"):
        raise ValueError(f"{space!r} is not a space to score in; choose 'arcsinh' or 'signal'")


def _tracks_to_score(ds: xr.Dataset, truth: xr.Dataset, tracks: Iterable[Any] | None) -> list[Experiment]:
    there = experiments(truth)
    if tracks is None:
        known = [e for e in there if e.celltype in ds.get_index(CELLTYPE) and e.assay in ds.get_index(ASSAY)]
        return [e for e in known if not _was_observed(ds, e)] or known
    pairs = as_experiments(ds, tracks)
    if missing := [str(p) for p in pairs if p not in set(there)]:
        raise CubeError(f"the truth has no track of {', '.join(missing[:5])}: give the cube that held them as truth=")
    return pairs


def _was_observed(ds: xr.Dataset, pair: Experiment) -> bool:
    return bool(ds[OBSERVED].sel(pair._asdict()))


def _trained_on(ds: xr.Dataset) -> set[Experiment]:
    fitted = ds.attrs.get(FITTED, {})
    return {Experiment(*pair) for key in ("trained_on", "validation") for pair in fitted.get(key, ())}


def _layers(ds: xr.Dataset, methods: Any, pairs: list[Experiment]) -> dict[str, xr.DataArray]:
    if methods is None:
        methods = [IMPUTED, "average"] if IMPUTED in ds else ["average"]
    methods = [methods] if isinstance(methods, str) else methods
    return {name: _layer(ds, name, pairs) for name in methods}


def _layer(ds: xr.Dataset, name: str, pairs: list[Experiment]) -> xr.DataArray:
    if name in BASELINES:
        return BASELINES[name](ds, tracks=pairs)
    if name == IMPUTED:
        check_cube(ds, IMPUTED)
    if name not in ds or set(ds[name].dims) != set(DIMS):
        raise ValueError(f"{name!r} is neither a layer of this cube nor a baseline ({', '.join(BASELINES)})")
    return ds[name]


def _aligned_truth(truth: xr.Dataset, ds: xr.Dataset) -> xr.DataArray:
    return _aligned(
        truth[SIGNAL].where(truth[OBSERVED]).assign_attrs(transform=truth.attrs.get("transform", "none")), ds
    )


def _aligned(layer: xr.DataArray, ds: xr.Dataset) -> xr.DataArray:
    """Give a layer the cube's bins, if it has them all, and the name of its transform."""
    mine, theirs = bins_of(ds), bins_of(layer)
    if mine != theirs:
        layer = layer.isel({POSITION: theirs.rows_of(mine)})
    return layer.assign_attrs(transform=layer.attrs.get("transform", ds.attrs.get("transform", "none")))


def _read(
    layers: Mapping[Any, xr.DataArray], pairs: list[Experiment], space: Space
) -> Iterator[tuple[Experiment, dict[Any, np.ndarray]]]:
    """Compute a few tracks at a time, all methods together, so that they share what they read."""
    n_bins = next(iter(layers.values())).sizes[POSITION]
    step = max(1, BATCH // max(1, n_bins))
    for batch in (pairs[i : i + step] for i in range(0, len(pairs), step)):
        lazy = [{name: layer.sel(pair._asdict()).data for name, layer in layers.items()} for pair in batch]
        for pair, values in zip(batch, dask.compute(lazy)[0], strict=True):
            yield pair, {name: _in_space(v, layers[name].attrs["transform"], space) for name, v in values.items()}


def _in_space(values: np.ndarray, transform: str, space: Space) -> np.ndarray:
    if transform == space:
        return values
    signal = transform_named(transform).inverse(values.astype(np.float32, copy=False))
    return signal if space == "signal" else transform_named(space).forward(signal)


def _scored(y: np.ndarray, p: np.ndarray, convention: str) -> int:
    return y.size if convention == "challenge" else int(np.count_nonzero(~np.isnan(y) & ~np.isnan(p)))
