"""Level and spread of tracks that a model has not seen, beside those that it knows."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    FITTED,
    OBSERVED,
    TRACK_MEAN,
    TRACK_SPREAD,
    CubeError,
    Experiment,
    experiments,
    label_rows,
)
from xr_avocado.sample import read_sample, sample_runs

__all__ = ["levels_with"]


def levels_with(model: xr.Dataset, ds: xr.Dataset) -> xr.Dataset:
    """Give ``track_mean`` and ``track_spread`` for the labels of a cube: the model's own where it has them.

    Of new labels, observed tracks are measured on a sample of at most 2 million bins, one track at a time, and the other pairs are estimated
    from all tracks that were measured, as `fit` estimates them.
    """
    from xr_avocado.model.levels import Levels

    labels = {dim: [str(label) for label in ds[dim].values] for dim in (CELLTYPE, ASSAY)}
    known = {dim: [str(label) for label in model[dim].values] for dim in (CELLTYPE, ASSAY)}
    rows = {dim: known[dim] + [label for label in labels[dim] if label not in known[dim]] for dim in labels}
    shape = (len(rows[CELLTYPE]), len(rows[ASSAY]))
    inside = (slice(len(known[CELLTYPE])), slice(len(known[ASSAY])))
    own = np.full((2, *shape), np.nan, np.float32)
    for table, name in zip(own, (TRACK_MEAN, TRACK_SPREAD), strict=True):
        table[inside] = model[name].transpose(CELLTYPE, ASSAY).values
    measured = np.full((2, *shape), np.nan)
    for pair in _measured(model):
        at = tuple(label_rows(model, dim, [label])[0] for dim, label in zip((CELLTYPE, ASSAY), pair, strict=True))
        measured[(slice(None), *at)] = own[(slice(None), *at)]
    new = [p for p in experiments(ds) if p.celltype not in known[CELLTYPE] or p.assay not in known[ASSAY]]
    for pair, moments in zip(new, _moments(ds, new), strict=True):
        measured[:, rows[CELLTYPE].index(pair.celltype), rows[ASSAY].index(pair.assay)] = moments
    completed = Levels.completed(*measured)
    filled = np.where(np.isnan(own), np.stack([completed.mean, completed.spread]), own)
    at = np.ix_(*([rows[dim].index(label) for label in labels[dim]] for dim in (CELLTYPE, ASSAY)))
    return xr.Dataset(
        {name: ((CELLTYPE, ASSAY), table[at]) for name, table in zip((TRACK_MEAN, TRACK_SPREAD), filled, strict=True)},
        labels,
    )


def _measured(model: xr.Dataset) -> list[Experiment]:
    """Pairs whose levels the model's context term measured, of those on the cube."""
    about = model.attrs[FITTED]
    known = {dim: set(map(str, model[dim].values)) for dim in (CELLTYPE, ASSAY)}
    pairs = [Experiment(*pair) for pair in [*about["trained_on"], *about["validation"]]]
    return [pair for pair in pairs if pair.celltype in known[CELLTYPE] and pair.assay in known[ASSAY]]


def _moments(ds: xr.Dataset, tracks: list[Experiment]) -> list[tuple[float, float]]:
    """Mean and standard deviation of each track, over a sample of its bins where it is long."""
    found = []
    for track in tracks:
        values = read_sample(ds, [track], sample_runs(ds.sizes["position"], 1), progress=False)[0].astype(np.float64)
        if np.isnan(values).all():
            raise CubeError(
                f"{track} is marked as {OBSERVED} but its signal is all NaN; set observed to False or rebuild it"
            )
        found.append((float(np.nanmean(values)), float(np.nanstd(values))))
    return found
