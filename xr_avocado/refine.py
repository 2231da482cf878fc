"""Refining an extended model: all of it trained a little further, from where it is, on all tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    CONTEXT,
    FITTED,
    OBSERVED,
    SIGNAL,
    CubeError,
    Experiment,
    check_cube,
    experiments,
)
from xr_avocado.extend_labels import Training, genome_tables
from xr_avocado.fit import Layout, load_panel, with_context, with_parameters
from xr_avocado.fit_store import FitStore
from xr_avocado.index import bins_of
from xr_avocado.predictors import network_arrays
from xr_avocado.weights import ARRAY_FACTORS

if TYPE_CHECKING:
    from xr_avocado.model.config import Config
    from xr_avocado.model.sampling import Panel

__all__ = ["check_refinable", "refined"]

GENTLE = 0.1
"""Share of the rates that made the model."""


def check_refinable(ds: xr.Dataset, *, only_new: bool) -> None:
    """Raise where a model cannot be trained further, before anything is learnt."""
    check_cube(ds, SIGNAL)
    about = ds.attrs[FITTED]
    if ARRAY_FACTORS in about:
        raise CubeError(
            "the coarse scales of this published model lie on its array, which training further would part: leave out refine"
        )
    if only_new:
        raise ValueError("refine trains on all positions, so it does not go with only_new")
    if about["assays"] != [str(label) for label in ds[ASSAY].values]:
        raise CubeError("this cube was cut to some of its model's assays; refine the whole one")


def refined(ds: xr.Dataset, training: Training, kept: FitStore | None) -> xr.Dataset:
    """Train all parts of a fitted cube further, on its observed tracks; those that fit set aside choose the epoch still.

    Memory as `fit`. The attributes stay, but for the best epoch, which is that of the model's first training.
    """
    import torch

    from xr_avocado.model.config import Config
    from xr_avocado.model.training import train

    about = ds.attrs[FITTED]
    config = _gentle(Config.from_attrs(about["config"]), training.epochs)
    held = {Experiment(*pair) for pair in about.get("validation", [])} & set(experiments(ds))
    tracks = [pair for pair in experiments(ds) if pair not in held]
    layout = Layout.of(bins_of(ds), config)
    every = load_panel(ds, [*tracks, *sorted(held)], layout, config, training.device)
    panel, aside = every.some(slice(len(tracks))), every.some(slice(len(tracks), None)) if held else None
    network = {name: torch.from_numpy(values.copy()) for name, values in network_arrays(ds).items()}
    start = network, genome_tables(ds, layout, config, training.device)
    labels = ds.sizes[CELLTYPE], ds.sizes[ASSAY]
    at = None if kept is None else kept.checkpoint("refined-factors")
    trained = train(
        panel, aside, config, labels, seed=training.seed, progress=training.progress, checkpoint=at, start=start
    )
    out = with_parameters(ds, trained, layout, about)
    out = out.assign_attrs({FITTED: about}).assign({OBSERVED: ds[OBSERVED]})
    if CONTEXT not in ds:
        return out
    return _with_context(out, ds, every, config, training, kept)


def _gentle(config: Config, epochs: int) -> Config:
    rates = ("learning_rate", "genome_learning_rate", "context_learning_rate")
    return config.updated({"epochs": epochs} | {name: GENTLE * getattr(config, name) for name in rates})


def _with_context(
    out: xr.Dataset, ds: xr.Dataset, panel: Panel, config: Config, training: Training, kept: FitStore | None
) -> xr.Dataset:
    import torch

    from xr_avocado.model.context_training import train_context

    labels = ds.sizes[CELLTYPE], ds.sizes[ASSAY]
    start = [torch.from_numpy(values.copy()) for values in ds[CONTEXT].values]
    at = None if kept is None else kept.checkpoint("refined-context")
    context = train_context(
        panel, config, labels, seed=training.seed, progress=training.progress, checkpoint=at, start=start
    )
    return with_context(out, context)
