"""Training of the context term: random bins, random tracks hidden, predicted from the rest."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextNet
from xr_avocado.model.levels import Levels
from xr_avocado.model.sampling import Panel

__all__ = ["ContextSampler", "TrainedContext", "train_context"]

logger = logging.getLogger("xr_avocado")

REPORTS = 50
"""Points of the training curve that are kept."""
VALUES = 1 << 16
"""Values (bins x cell types x assays) that a step reads, at most: large panels take fewer bins, and as many targets."""


@dataclass(frozen=True)
class TrainedContext:
    """What training leaves: the networks, and (samples seen, mean squared error) along the way, one network after the other."""

    members: tuple[ContextNet, ...]
    history: list[tuple[float, float]]


class ContextSampler:
    """Draws bins, and reads the tracks there at every scale.

    Bins are drawn in proportion to a mixture of one and their signal (mean plus spread over the tracks), and their errors weighted back,
    so that the expected loss is the plain mean over bins: most bins are background and teach little.

    Memory: a tenth of the panel for the coarse scales on the device, 16 bytes a bin beside it.
    """

    def __init__(self, panel: Panel, config: Config, labels: tuple[int, int], generator: torch.Generator) -> None:
        self.panel, self.config, self.labels, self.random = panel, config, labels, generator
        self.pyramid = [_block_means(panel.values, scale) for scale in config.context_scales]
        self.celltypes = panel.celltype.unique()
        # On the CPU: the draw is small, and not every device has float64.
        salience = _salience(panel.values).cpu()
        self.bins = salience.flatten().nonzero().squeeze(1).to(torch.int32)
        share = salience.flatten()[self.bins.long()]
        share = config.context_focus * share / share.mean() + (1 - config.context_focus)
        self.weight = (1 / share).float()
        self.cumulative = share.double().cumsum(0)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw bins (flat slots in the blocks) and the weights of their errors."""
        at = torch.rand(n, generator=self.random, dtype=torch.float64) * self.cumulative[-1]
        i = torch.searchsorted(self.cumulative, at).clamp(max=len(self.bins) - 1)
        device = self.panel.values.device
        return self.bins[i].long().to(device), self.weight[i].to(device)

    def some_celltypes(self) -> Tensor:
        """Draw the cell types of a step, ascending: all of a small panel."""
        most = self.config.context_celltypes
        if len(self.celltypes) <= most:
            return self.celltypes
        drawn = torch.randperm(len(self.celltypes), generator=self.random)[:most].sort().values
        return self.celltypes[drawn.to(self.celltypes.device)]

    def read(self, slots: Tensor, celltypes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read the tracks of some cell types (ascending), which make up the second axis of what comes back.

        Signal (bins x cell types x assays x scales), which tracks have a value (bins x cell types x assays), and the tracks' flat
        cells in the last two.
        """
        tracks = torch.isin(self.panel.celltype, celltypes).nonzero().squeeze(1)
        row = torch.searchsorted(celltypes, self.panel.celltype[tracks])
        cell = row * self.labels[1] + self.panel.assay[tracks]
        columns = [
            level.flatten(1)[tracks[:, None], slots // scale].T
            for level, scale in zip(self.pyramid, self.config.context_scales, strict=True)
        ]
        by_track = torch.stack(columns, -1).float()
        known = ~by_track[..., 0].isnan()
        shape = (len(celltypes), self.labels[1])
        signal = torch.zeros(len(slots), shape[0] * shape[1], by_track.shape[-1], device=slots.device)
        signal[:, cell] = by_track.nan_to_num()
        visible = torch.zeros(signal.shape[:2], device=slots.device)
        visible[:, cell] = known.float()
        return signal.unflatten(1, shape), visible.unflatten(1, shape), cell

    def hide(self, visible: Tensor, cell: Tensor, hidden: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hide this many tracks at each bin, chosen at random, some of them as targets: visible tracks left, and the targets' labels."""
        chance = torch.rand(len(visible), len(cell), generator=self.random).to(visible.device)
        cells = cell[chance.topk(hidden, dim=1).indices]
        left = visible.flatten(1).scatter(1, cells, 0.0).view_as(visible)
        asked = cells[:, :targets]
        return left, asked // self.labels[1], asked % self.labels[1]


def train_context(
    panel: Panel, config: Config, labels: tuple[int, int], *, seed: int = 0, progress: bool = True
) -> TrainedContext:
    """Train the context term on a panel; memory as ``ContextSampler`` plus a batch's activations.

    Parameters
    ----------
    panel
        Tracks to learn from, at least two.
    config
        Sizes and rates; ``context_samples`` targets are seen for each of its ``epochs``.
    labels
        Number of cell types and of assays.
    seed
        Fixes initial values and draws.
    progress
        Show a bar.
    """
    cuda = [panel.values.device] if panel.values.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        return _train(panel, config, labels, torch.Generator().manual_seed(seed), progress=progress)


def _train(
    panel: Panel, config: Config, labels: tuple[int, int], generator: torch.Generator, *, progress: bool
) -> TrainedContext:
    levels = Levels.of(panel, labels)
    sampler = ContextSampler(panel, config, labels, generator)
    samples = config.epochs * min(config.context_samples, len(sampler.bins) * len(panel.values))
    members: list[ContextNet] = []
    history: list[tuple[float, float]] = []
    total = samples * config.context_members
    with tqdm(total=total, desc="fit context", unit="sample", unit_scale=True, disable=not progress) as bar:
        try:
            for _ in range(config.context_members):
                members.append(ContextNet(config, levels, generator=generator).to(panel.values.device))
                _train_member(members[-1], sampler, samples, history, bar)
        except KeyboardInterrupt:
            seen = int(history[-1][0]) if history else 0
            logger.warning("interrupted: keeping the context term after some %d samples", seen)
            # One that has just begun would spoil the mean.
            members = members[:-1] or members
    return TrainedContext(tuple(member.eval() for member in members), history)


def _train_member(
    net: ContextNet, sampler: ContextSampler, samples: int, history: list[tuple[float, float]], bar: tqdm
) -> None:
    config = sampler.config
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.context_learning_rate, weight_decay=config.context_decay)
    before = history[-1][0] if history else 0.0
    seen, reports, running = 0, 0, []
    while seen < samples:
        rate = config.context_learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * seen / samples)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        count, loss = _step(net, sampler, optimizer)
        seen += count
        running.append(loss)
        bar.update(count)
        if seen * REPORTS >= samples * (reports + 1) or seen >= samples:
            history.append((before + seen, float(torch.stack(running).mean())))
            reports, running = reports + 1, []
            bar.set_postfix(mse=f"{history[-1][1]:.4f}")
            if not math.isfinite(history[-1][1]):
                raise ValueError(
                    f"training error of the context term is no longer finite: lower {config.context_learning_rate=}"
                )


class Task(NamedTuple):
    """Bins with some tracks hidden: what the net is shown and asked for, the truth, and the weight of each error."""

    shown: tuple[Tensor, ...]
    truth: Tensor
    weight: Tensor

    @classmethod
    def draw(cls, sampler: ContextSampler, spread: Tensor) -> Task:
        """Draw bins, and hide up to a share of their tracks: at least one is hidden, and one is left to read.

        Errors count in the measure halfway between the signal's own units, in which a few strong experiments are all that matters,
        and standard units, in which the noise of weak ones does.
        """
        config = sampler.config
        rows = sampler.some_celltypes()
        bins = min(config.context_batch, max(32, VALUES // (len(rows) * sampler.labels[1])))
        slots, weight = sampler.draw(bins)
        signal, known, cell = sampler.read(slots, rows)
        share = config.context_mask * float(torch.rand(1, generator=sampler.random))
        hidden = max(1, min(len(cell) - 1, 1 + int(share * len(cell))))
        visible, celltype, assay = sampler.hide(known, cell, hidden, min(hidden, config.context_targets))
        at = torch.arange(bins, device=slots.device)[:, None]
        truth, there = signal[at, celltype, assay, 0], known[at, celltype, assay]
        units = spread.mean() / spread[rows[celltype], assay]
        return cls((signal, visible, celltype, assay, rows), truth, there * weight[:, None] * units)


def _step(net: ContextNet, sampler: ContextSampler, optimizer: torch.optim.Optimizer) -> tuple[int, Tensor]:
    task = Task.draw(sampler, net.spread)
    error = (net(*task.shown) - task.truth).square()
    loss = (error * task.weight).sum() / task.truth.numel()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return task.truth.numel(), loss.detach()


def _block_means(values: Tensor, scale: int) -> Tensor:
    """Means over the bins of a coarser scale, unmeasured ones left out: tracks x blocks x bins of that scale."""
    if scale == 1:
        return values
    levels = [track.float().unflatten(-1, (-1, scale)).nanmean(-1).nan_to_num().to(values.dtype) for track in values]
    return torch.stack(levels)


def _salience(values: Tensor) -> Tensor:
    """Mean plus spread over the tracks at each bin, at least a little where anything was measured, 0 elsewhere."""
    total = torch.zeros(values.shape[1:], device=values.device)
    square, count = total.clone(), total.clone()
    for track in values:
        known = track.float().nan_to_num()
        total += known
        square += known**2
        count += ~track.isnan()
    mean = total / count.clamp(min=1)
    spread = (square / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
    return torch.where(count > 0, mean.abs() + spread + 1e-3, 0.0)
