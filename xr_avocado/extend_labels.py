"""Learning new cell types or new assays: their factors, and what the context term needs of them, with all else frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.axis import rows_of_runs
from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    CONTEXT,
    CONTEXT_MEMBER,
    CONTEXT_PARAMETER,
    DIMS,
    FITTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    TRACK_MEAN,
    TRACK_SPREAD,
    CubeError,
    Experiment,
    experiments,
    genome_factors,
    position_dim,
)
from xr_avocado.fit import Layout, load_panel
from xr_avocado.generations import plural
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.joining import rows_of_bins, with_labels
from xr_avocado.predictors import network_arrays
from xr_avocado.track_levels import levels_with

if TYPE_CHECKING:
    import torch

    from xr_avocado.model.config import Config

__all__ = ["Training", "check_learnable", "genome_tables", "learn_labels"]

MEMORY = 1 << 30
"""Bytes of tracks and genome factors that labels are learnt from, about: of a longer genome some stretches will do."""
RUNS = 16
"""Stretches of a genome that is longer, spread evenly."""
FACTORS = {CELLTYPE: CELLTYPE_FACTORS, ASSAY: ASSAY_FACTORS}


@dataclass(frozen=True)
class Training:
    """How to train: passes over the positions, what fixes the draws, where, and whether to show a bar."""

    epochs: int
    seed: int
    device: torch.device
    progress: bool


def check_learnable(ds: xr.Dataset, dim: str, labels: list[str], tracks: list[Experiment]) -> None:
    """Raise where a new label has no track to learn it from, or the context term none of the known labels to learn it beside."""
    if nothing := [label for label in labels if label not in {getattr(pair, dim) for pair in tracks}]:
        raise CubeError(
            f"{dim} {nothing[0]} has no observed track, so nothing can be learnt of it: add one, or leave the label out of the cube"
        )
    if CONTEXT in ds and SIGNAL not in ds:
        raise CubeError(
            "the model reads the observed tracks of the cube, and this cube has no signal: put the model on the cube that it was "
            "fitted on"
        )


def learn_labels(
    ds: xr.Dataset, new_cube: xr.Dataset, dim: str, labels: list[str], tracks: list[Experiment], training: Training
) -> xr.Dataset:
    """Join the cubes and learn the factors of new labels, and what the context term needs of them."""
    from xr_avocado.model.config import Config

    config = Config.from_attrs(ds.attrs[FITTED]["config"])
    base = ds if SIGNAL in ds else ds.assign({SIGNAL: (DIMS, _no_signal(ds))})
    joined = with_labels(base, new_cube, dim, labels)
    joined = joined.assign_attrs({FITTED: _with_names(ds.attrs[FITTED], dim, labels)})
    joined = _with_factors(joined, bins_of(new_cube), dim, ds.sizes[dim], tracks, config, training)
    return _with_context(joined, ds, bins_of(new_cube), config, training) if CONTEXT in ds else joined


def _no_signal(ds: xr.Dataset) -> da.Array:
    shape = tuple(ds.sizes[d] for d in DIMS)
    return da.full(shape, np.float32(np.nan), dtype=np.float32, chunks=(1, 1, 1 << 20))


def _with_names(about: dict[str, Any], dim: str, labels: list[str]) -> dict[str, Any]:
    return about | {plural(dim): list(dict.fromkeys([*about[plural(dim)], *labels]))}


def _with_factors(
    joined: xr.Dataset,
    bins: GenomeBins,
    dim: str,
    known: int,
    tracks: list[Experiment],
    config: Config,
    training: Training,
) -> xr.Dataset:
    """Learn the factors of the labels behind the known ones."""
    from xr_avocado.model.average import AverageActivity
    from xr_avocado.model.extension import learn_rows
    from xr_avocado.model.prediction import network_from_arrays

    # Average activity reads the other tracks of the same assays.
    read = experiments(joined) if config.average else tracks
    part = _some_positions(joined, bins, config, len(tracks) + (len(read) if config.average else 0))
    layout = Layout.of(bins_of(part), config)
    panel = load_panel(part, tracks, layout, config, training.device)
    average = None
    if config.average:
        average = AverageActivity(load_panel(part, read, layout, config, training.device), joined.sizes[ASSAY])
    arrays = network_arrays(joined)
    # What was joined of factors that are not learnt yet.
    arrays[FACTORS[dim]] = np.nan_to_num(arrays[FACTORS[dim]])
    net = network_from_arrays(config, arrays, training.device)
    genome = genome_tables(joined, layout, config, training.device)
    axis: Literal["celltype", "assay"] = "celltype" if dim == CELLTYPE else "assay"
    t = training
    rows = learn_rows(net, axis, known, panel, genome, average, epochs=t.epochs, seed=t.seed, progress=t.progress)
    old = joined[FACTORS[dim]].transpose(dim, ...)
    values = np.concatenate([old.values[:known], rows.cpu().numpy()])
    return joined.assign({FACTORS[dim]: (old.dims, values, old.attrs)})


def _some_positions(joined: xr.Dataset, bins: GenomeBins, config: Config, n_tracks: int) -> xr.Dataset:
    """Cut the cube to the positions that labels are learnt from: those given, or evenly spread stretches of these."""
    factors = sum(f / scale for f, scale in zip(config.genome_factors, config.scales, strict=True))
    sums = 8 * joined.sizes[ASSAY] if config.average else 0
    # Of the factors also what is read and what of it is used; of the bins what lays them out.
    most = max(RUNS, int(MEMORY / (config.block * (2.2 * n_tracks + 12 * factors + sums + 48))))
    blocks = bins.coarsen(config.block)
    if len(blocks) > most:
        length = most // RUNS
        starts = np.linspace(0, len(blocks) - length, RUNS).astype(int)
        bins = bins[rows_of_bins(bins, blocks[rows_of_runs(starts, starts + length)])]
    return joined.isel({POSITION: rows_of_bins(bins_of(joined), bins)})


def genome_tables(ds: xr.Dataset, layout: Layout, config: Config, device: torch.device) -> list[torch.Tensor]:
    """Read the genome factors of a layout's bins, laid out in blocks: for each scale, blocks x bins of it x factors; 0 where no bin is."""
    import torch

    fine = layout.coarse[0].binsize
    tables = []
    for bins, slots, scale in zip(layout.coarse, layout.slots, config.scales, strict=True):
        dim = position_dim(bins.binsize, fine)
        rows = rows_of_bins(bins_of(ds, dim), bins)
        values = ds[genome_factors(bins.binsize)].transpose(dim, ...)
        at = bins_of(ds, dim)[rows].rows_of(bins)
        table = np.zeros((layout.n_blocks * (config.block // scale), values.shape[1]), np.float32)
        table[slots] = values[rows].values[at]
        tables.append(torch.from_numpy(table).view(layout.n_blocks, config.block // scale, -1).to(device))
    return tables


def _with_context(
    joined: xr.Dataset,
    ds: xr.Dataset,
    bins: GenomeBins,
    config: Config,
    training: Training,
) -> xr.Dataset:
    """Give the context term the levels of the new pairs, and the parameters of assays that it does not know."""
    from xr_avocado.model.context_extension import learn_assays
    from xr_avocado.model.levels import Levels

    levels = levels_with(ds, joined.isel({POSITION: rows_of_bins(bins_of(joined), bins)}))
    joined = joined.assign({name: levels[name].assign_attrs(ds[name].attrs) for name in levels.data_vars})
    before, after = (cube.attrs[FITTED][plural(ASSAY)] for cube in (ds, joined))
    if len(before) == len(after):
        return joined
    part = _some_positions(joined, bins, config, int(joined[OBSERVED].sum()))
    layout = Layout.of(bins_of(part), config)
    panel = load_panel(part, experiments(part), layout, config, training.device)
    of_model = [after.index(str(label)) for label in joined[ASSAY].values]
    import torch

    panel = type(panel)(panel.values, panel.celltype, torch.tensor(of_model, device=training.device)[panel.assay])
    tables = np.ones((2, joined.sizes[CELLTYPE], len(after)), np.float32)
    tables[:, :, of_model] = [joined[name].transpose(CELLTYPE, ASSAY).values for name in (TRACK_MEAN, TRACK_SPREAD)]
    samples = training.epochs * min(config.context_samples, len(bins_of(part)) * len(panel.values))
    vectors = learn_assays(
        config,
        ds[CONTEXT].values,
        Levels(*tables),
        panel,
        len(before),
        samples=samples,
        seed=training.seed,
        progress=training.progress,
    )
    return joined.drop_vars(CONTEXT).assign(
        {CONTEXT: ((CONTEXT_MEMBER, CONTEXT_PARAMETER), vectors, ds[CONTEXT].attrs)}
    )
