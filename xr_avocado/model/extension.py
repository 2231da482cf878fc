"""Training of what is new alone, rows of labels or blocks of positions, with the network and all that is known frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from xr_avocado.io.checkpoint import Checkpoint
from xr_avocado.model.average import AverageActivity
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.optimizer import BlockTable
from xr_avocado.model.sampling import Batch, Panel, batches
from xr_avocado.model.squared_error import piece_of, squared_error
from xr_avocado.model.state import as_arrays, named, under

__all__ = ["learn_blocks", "learn_rows"]

BATCH = 8_000
"""Samples (position x track) of a step: a row has so few numbers that many small steps do better than few large ones."""
RATE = 0.01
"""Adam's, for new rows, at the start."""
PRIOR = 0.003
"""Weight of the squared distance of a new row from the mean of the known ones, in standard deviations of these."""


def learn_rows(
    net: AvocadoNet,
    axis: Literal["celltype", "assay"],
    known: int,
    panel: Panel,
    genome: Sequence[Tensor],
    average: AverageActivity | None = None,
    *,
    epochs: int,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Learn the rows of new labels from their tracks: new labels x factors.

    They start at the mean of the known rows and are held near it, as far as their tracks leave them free: a single track says little
    of how a cell type's other tracks look. No gradient is taken of anything else.

    Parameters
    ----------
    net
        The trained network; its last rows along the axis are those of the new labels.
    axis
        Where labels are new.
    known
        Number of labels that are not.
    panel
        Tracks of the new labels.
    genome
        Trained genome factors of each scale, in the panel's blocks.
    average
        Average activity, where the model adds it.
    epochs
        Passes over the blocks.
    seed
        Fixes the order of blocks and the draws of tracks.
    progress
        Show a bar.
    """
    name = f"{axis}_factors"
    net = net.requires_grad_(False).eval()
    table = getattr(net, name)
    mean, spread = table[:known].mean(0), _spread(table[:known])
    rows = mean.expand(len(table) - known, -1).clone().requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=RATE)
    random = torch.Generator().manual_seed(seed)
    steps = -(-panel.n_blocks // panel.blocks_a_step(net.config.tracks_per_position, BATCH))
    with tqdm(total=epochs * steps, desc=f"extend {axis}", unit="step", disable=not progress) as bar:
        for epoch in range(epochs):
            drawn = batches(panel, tracks_per_position=net.config.tracks_per_position, batch=BATCH, generator=random)
            for i, batch in enumerate(drawn):
                done = (epoch * steps + i) / (epochs * steps)
                optimizer.param_groups[0]["lr"] = RATE * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
                celltype, assay = _labels(panel, batch)
                term = net.genome_term([values[batch.blocks.to(panel.device)] for values in genome])
                tables = {**dict(net.named_parameters()), name: torch.cat([table[:known], rows])}
                loss = _loss(net, term, _track_term(net, tables, celltype, assay), batch, panel, average)
                loss = loss + PRIOR * ((rows - mean) / spread).square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update()
    return rows.detach()


def learn_blocks(
    net: AvocadoNet,
    panel: Panel,
    average: AverageActivity | None = None,
    *,
    epochs: int,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    report: Callable[[int], object] = lambda blocks: None,
) -> list[Tensor]:
    """Learn the genome factors of new blocks: for each scale, blocks x bins of it x factors.

    The weights take no gradient: two thirds of the work of training. Memory: the panel, 12 bytes a factor, a batch's activations.

    Parameters
    ----------
    net
        The trained network.
    panel
        Tracks in the new blocks.
    average
        Average activity, where the model adds it.
    epochs
        Passes over the blocks.
    seed
        Fixes initial values and draws.
    checkpoint
        Where to keep how far it is, at the end of a pass; what it holds is gone on with, on the CPU bit for bit.
    report
        Is told the blocks of each step, and those that were done before.
    """
    net, config = net.requires_grad_(False).eval(), net.config
    random = torch.Generator().manual_seed(seed)
    genome = []
    for scale, factors in zip(config.scales, config.genome_factors, strict=True):
        start = (
            torch.rand(panel.n_blocks, config.block // scale, factors, generator=random) * 2 - 1
        ) * config.factor_scale
        genome.append(BlockTable(start.to(panel.device), decay=config.genome_decay))
    done = 0
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        done = saved.state["epochs"]
        random.set_state(torch.from_numpy(saved.arrays["random"]))
        for i, table in enumerate(genome):
            table.restore(under(f"genome/{i}", saved.arrays))
    report(done * panel.n_blocks)
    # Where nothing was measured there is nothing to learn.
    for number in range(done, epochs if len(panel.values) else 0):
        rate = config.genome_learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * number / epochs)))
        drawn = batches(panel, tracks_per_position=net.config.tracks_per_position, batch=config.batch, generator=random)
        for batch in drawn:
            blocks = batch.blocks.to(panel.device)
            rows = [table.read(blocks) for table in genome]
            with torch.autocast(panel.device.type, _dtype(panel.device), enabled=_dtype(panel.device) != torch.float32):
                term, track = net.genome_term(rows), net.track_term(*_labels(panel, batch))
            _loss(net, term, track, batch, panel, average).backward()
            for table, leaf in zip(genome, rows, strict=True):
                table.step(blocks, leaf, rate=rate, visit=number + 1)
            report(len(batch.blocks))
        if checkpoint is not None and checkpoint.due and number + 1 < epochs:
            tensors = {"random": random.get_state()}
            for i, table in enumerate(genome):
                tensors |= named(f"genome/{i}", table.state())
            checkpoint.save(as_arrays(tensors), {"epochs": number + 1})
    return [table.values for table in genome]


def _loss(
    net: AvocadoNet, genome: Tensor, track: Tensor, batch: Batch, panel: Panel, average: AverageActivity | None
) -> Tensor:
    """Mean squared error of a batch, where there is a value, from its shares of the first layer."""
    truth = panel.take(batch.blocks, batch.tracks)
    if average is not None:
        truth = truth - average(batch.blocks, *_labels(panel, batch))
    n_blocks, bins, k = truth.shape
    piece = piece_of(n_blocks, bins * k, net.config.nodes, panel.device)
    layers = list(net.weights[1:]), list(net.biases[1:])
    total = squared_error(genome, track, truth, *layers, piece=piece, dtype=_dtype(panel.device))
    return total / (~truth.isnan()).sum().clamp(min=1)


def _track_term(net: AvocadoNet, tables: Mapping[str, Tensor], celltype: Tensor, assay: Tensor) -> Tensor:
    """As the network's own, with other tables of factors."""
    weights = net.weights[0].split(
        [net.config.celltype_factors, net.config.assay_factors, sum(net.config.genome_factors)], 1
    )
    by_celltype = functional.linear(tables["celltype_factors"], weights[0])
    return by_celltype[celltype] + functional.linear(tables["assay_factors"], weights[1])[assay]


def _labels(panel: Panel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cell types and assays of the tracks of a batch: blocks x k."""
    tracks = batch.tracks.to(panel.device)
    return panel.celltype[tracks], panel.assay[tracks]


def _dtype(device: torch.device) -> torch.dtype:
    """Of activations and products: half the bits where that is faster, as in training."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _spread(known: Tensor) -> Tensor:
    """Standard deviation of the known rows in each factor; of a single one, its size."""
    spread = known.std(0) if len(known) > 1 else known.abs()
    return spread.clamp(min=float(spread.mean()) * 0.1 + 1e-6)
