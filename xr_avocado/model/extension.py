"""Training of what is new alone: rows of cell types or assays, with the network, the genome and the rows that are known frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from tqdm.auto import tqdm

from xr_avocado.model.average import AverageActivity
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.sampling import Panel, batches

__all__ = ["learn_rows"]

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
    steps = -(-panel.n_blocks // max(1, BATCH // (panel.values.shape[2] * _tracks(net, panel))))
    with tqdm(total=epochs * steps, desc=f"extend {axis}", unit="step", disable=not progress) as bar:
        for epoch in range(epochs):
            drawn = batches(panel, tracks_per_position=_tracks(net, panel), batch=BATCH, generator=random)
            for i, batch in enumerate(drawn):
                done = (epoch * steps + i) / (epochs * steps)
                optimizer.param_groups[0]["lr"] = RATE * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
                celltype, assay = panel.celltype[batch.tracks], panel.assay[batch.tracks]
                factors = [values[batch.blocks] for values in genome]
                tables = {name: torch.cat([table[:known], rows])}
                predicted = functional_call(net, tables, (factors, celltype, assay))
                if average is not None:
                    predicted = predicted + average(batch.blocks, celltype, assay)
                truth = panel.take(batch.blocks, batch.tracks)
                there = ~truth.isnan()
                error = torch.where(there, predicted - truth.nan_to_num(), 0.0)
                loss = error.square().sum() / there.sum().clamp(min=1)
                loss = loss + PRIOR * ((rows - mean) / spread).square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.update()
    return rows.detach()


def _tracks(net: AvocadoNet, panel: Panel) -> int:
    return min(net.config.tracks_per_position, len(panel.values))


def _spread(known: Tensor) -> Tensor:
    """Standard deviation of the known rows in each factor; of a single one, its size."""
    spread = known.std(0) if len(known) > 1 else known.abs()
    return spread.clamp(min=float(spread.mean()) * 0.1 + 1e-6)
