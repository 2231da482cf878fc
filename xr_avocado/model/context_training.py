"""Training of the context term: random bins, random tracks hidden, predicted from the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from tqdm.auto import tqdm

from xr_avocado.io.checkpoint import Checkpoint, Saved
from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextNet
from xr_avocado.model.levels import Levels
from xr_avocado.model.sampling import Panel
from xr_avocado.model.state import as_arrays, moments, named, random_states, restore_moments, restore_random, under
from xr_avocado.model.windows import Windows

__all__ = ["ContextSampler", "Task", "TrainedContext", "learn", "task_error", "train_context"]

logger = logging.getLogger("xr_avocado")

REPORTS = 50
"""Points of the training curve that are kept."""
VALUES = 1 << 16
"""Values (bins x cell types x assays) that a step reads, at most: large panels take fewer bins, and as many targets."""
ROWS = 1 << 14
"""Rows (bins x targets x cell types) that go forward and back together on a CPU: 4 MB each, and all that small panels have in a step."""


@dataclass(frozen=True)
class TrainedContext:
    """What training leaves: the networks, and (samples seen, mean squared error) along the way, one network after the other."""

    members: tuple[ContextNet, ...]
    history: list[tuple[float, float]]
    interrupted: bool = False


class ContextSampler:
    """Draws bins, and reads the tracks there at every scale.

    Bins are drawn in proportion to a mixture of one and their signal (mean plus spread over the tracks), and their errors weighted back,
    so that the expected loss is the plain mean over bins: most bins are background and teach little.

    Memory: three tenths of the panel for the coarse scales on the device, 16 bytes a bin beside it.
    """

    def __init__(self, panel: Panel, config: Config, labels: tuple[int, int], generator: torch.Generator) -> None:
        self.panel, self.config, self.labels, self.random = panel, config, labels, generator
        self.pyramid = [_block_means(panel.values, scale) for scale in config.context_scales]
        self.continues = torch.ones(panel.n_blocks, dtype=torch.bool) if panel.continues is None else panel.continues
        self.continues = self.continues.to(panel.values.device)
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
        by_track = torch.stack([self._read(i, tracks, slots) for i in range(len(self.pyramid))], -1).transpose(0, 1)
        known = ~by_track[..., 0].isnan()
        shape = (len(celltypes), self.labels[1])
        signal = torch.zeros(len(slots), shape[0] * shape[1], by_track.shape[-1], device=slots.device)
        signal[:, cell] = by_track.nan_to_num()
        visible = torch.zeros(signal.shape[:2], device=slots.device)
        visible[:, cell] = known.float()
        return signal.unflatten(1, shape), visible.unflatten(1, shape), cell

    def _read(self, i: int, tracks: Tensor, slots: Tensor) -> Tensor:
        """Read some tracks at a scale: tracks x bins."""
        level, scale = self.pyramid[i], self.config.context_scales[i]
        windows = Windows(slots // scale, slots, scale, self.continues, level.shape[2])
        return windows.read(level.flatten(1), tracks)

    def hide(self, visible: Tensor, cell: Tensor, hidden: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hide this many tracks at each bin, chosen at random, some of them as targets: visible tracks left, and the targets' labels."""
        chance = torch.rand(len(visible), len(cell), generator=self.random).to(visible.device)
        cells = cell[chance.topk(hidden, dim=1).indices]
        left = visible.flatten(1).scatter(1, cells, 0.0).view_as(visible)
        asked = cells[:, :targets]
        return left, asked // self.labels[1], asked % self.labels[1]


def train_context(
    panel: Panel,
    config: Config,
    labels: tuple[int, int],
    *,
    seed: int = 0,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
    start: Sequence[Tensor] = (),
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
    checkpoint
        Where to keep how far it is; what it holds is gone on with, on the CPU bit for bit.
    start
        Parameters of each member, one after the other, to begin with instead of random ones.
    """
    cuda = [panel.values.device] if panel.values.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        run = _Run(panel, config, labels, torch.Generator().manual_seed(seed), start)
        if checkpoint is not None and (saved := checkpoint.load()) is not None:
            run.restore(saved)
        return _train(run, checkpoint, progress=progress)


class _Run:
    """State of training all members, one after the other."""

    def __init__(
        self, panel: Panel, config: Config, labels: tuple[int, int], generator: torch.Generator, start: Sequence[Tensor] = ()
    ) -> None:  # fmt: skip
        self.config, self.device, self.start = config, panel.device, start
        self.levels = Levels.of(panel, labels)
        # The sampler works where the values are: on the host, where they do not fit the device.
        at = panel.values.device
        here = replace(panel, celltype=panel.celltype.to(at), assay=panel.assay.to(at))
        self.sampler = ContextSampler(here, config, labels, generator)
        self.samples = config.epochs * min(config.context_samples, len(self.sampler.bins) * len(panel.values))
        self.members: list[ContextNet] = []
        self.history: list[tuple[float, float]] = []
        # Of the member in training: samples seen, points of its curve, losses since the last one.
        self.seen, self.reports = 0, 0
        self.losses: list[Tensor] = []
        # Parameters at its last report, and those that had the least error until the next, below that of the start: what is left of it
        # where it diverges.
        self.last: dict[str, Tensor] = {}
        self.least: tuple[float, dict[str, Tensor]] = (math.inf, {})
        self.stopped = False

    @property
    def before(self) -> int:
        """Samples that the members before this one saw."""
        return int(self.history[-self.reports - 1][0]) if len(self.history) > self.reports else 0

    @property
    def finished(self) -> bool:
        return self.stopped or (len(self.members) == self.config.context_members and self.seen >= self.samples)

    def begin(self) -> None:
        """Begin a member."""
        net = ContextNet(self.config, self.levels, generator=self.sampler.random).to(self.device)
        if self.start:
            vector_to_parameters(self.start[len(self.members)].to(self.device), net.parameters())
        rate, decay = self.config.context_learning_rate, self.config.context_decay
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
        self.members.append(net)
        self.seen, self.reports, self.losses = 0, 0, []
        self.last, self.least = {}, (math.inf, {})

    def advance(self) -> int:
        """Take a step with the member in training, or the next one's first; return the samples it saw."""
        if not self.members or self.seen >= self.samples:
            self.begin()
        rate = self.config.context_learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * self.seen / self.samples)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        count, loss = _step(self.members[-1], self.sampler, self.optimizer)
        self.seen += count
        self.losses.append(loss)
        if self.seen * REPORTS >= self.samples * (self.reports + 1) or self.seen >= self.samples:
            self._report()
        return count

    def _report(self) -> None:
        point = (float(self.before + self.seen), float(torch.stack(self.losses).mean()))
        self.history.append(point)
        self.reports, self.losses = self.reports + 1, []
        if not math.isfinite(point[1]):
            self._diverged()
        if point[1] < self.least[0]:
            self.least = point[1], self.last
        self.last = {name: value.clone() for name, value in self.members[-1].state_dict().items()}

    def _diverged(self) -> None:
        """Stop with the last good state: the members before, or else this one where its error was least."""
        says = "training error of the context term is no longer finite: lower context_learning_rate, which is"
        rate, (_, good) = self.config.context_learning_rate, self.least
        if good:
            self.members[-1].load_state_dict(good)
        elif len(self.members) == 1:
            raise ValueError(f"{says} {rate:g}")
        logger.warning("%s %g; what was learnt before is kept", says, rate)
        self.stopped, self.seen = True, min(self.seen, self.samples - 1)

    def save(self, checkpoint: Checkpoint) -> None:
        tensors = named("random", random_states(self.sampler.random, self.device))
        tensors |= named("moments", moments(self.optimizer))
        for i, member in enumerate(self.members):
            tensors |= named(f"members/{i}", member.state_dict())
        if self.losses:
            tensors["losses"] = torch.stack(self.losses)
        # What is left where it diverges is the same after a kill.
        tensors |= named("last", self.last) | named("least", self.least[1])
        state = {
            "members": len(self.members),
            "seen": self.seen,
            "reports": self.reports,
            "history": self.history,
            "stopped": self.stopped,
            "least": self.least[0],
        }
        checkpoint.save(as_arrays(tensors), state)

    def restore(self, saved: Saved) -> None:
        for i in range(saved.state["members"]):
            self.begin()
            self.members[-1].load_state_dict(under(f"members/{i}", saved.arrays))
        restore_moments(self.optimizer, under("moments", saved.arrays))
        restore_random(under("random", saved.arrays), self.sampler.random, self.device)
        self.seen, self.reports = saved.state["seen"], saved.state["reports"]
        self.history, self.stopped = [(x, y) for x, y in saved.state["history"]], saved.state["stopped"]
        self.last, self.least = under("last", saved.arrays), (saved.state["least"], under("least", saved.arrays))
        self.losses = [torch.tensor(x, device=self.device) for x in saved.arrays.get("losses", ())]


def _train(run: _Run, checkpoint: Checkpoint | None, *, progress: bool) -> TrainedContext:
    total = run.samples * run.config.context_members
    bar = tqdm(total=total, initial=run.before + run.seen, desc="fit context", unit="sample", unit_scale=True, disable=not progress)  # fmt: skip
    interrupted = False
    with bar:
        try:
            while not run.finished:
                bar.update(run.advance())
                if not run.losses:
                    bar.set_postfix(mse=f"{run.history[-1][1]:.4f}")
                if checkpoint is not None and (checkpoint.due or run.finished):
                    run.save(checkpoint)
        except KeyboardInterrupt:
            interrupted = True
            seen = int(run.history[-1][0]) if run.history else 0
            logger.warning("interrupted: keeping the context term after some %d samples", seen)
    # One that has just begun would spoil the mean.
    members = (run.members[:-1] or run.members) if run.seen < run.samples else run.members
    return TrainedContext(tuple(member.eval() for member in members), run.history, interrupted)


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

    def to(self, device: torch.device) -> Task:
        """Move it to where the net is."""
        return Task(tuple(x.to(device) for x in self.shown), self.truth.to(device), self.weight.to(device))

    def some(self, bins: slice) -> Task:
        """Take some of its bins."""
        *shown, rows = self.shown
        return Task((*(x[bins] for x in shown), rows), self.truth[bins], self.weight[bins])


def learn(net: ContextNet, task: Task) -> Tensor:
    """Add up the gradients of a task's error, and return it. On a CPU a few bins at a time, whose activations stay in the cache."""
    bins, k = task.truth.shape
    piece = bins if net.mean.device.type != "cpu" else max(1, ROWS // (k * task.shown[0].shape[1]))

    def compute(size: int) -> Tensor:
        net.zero_grad(set_to_none=True)
        total = task.truth.new_zeros(())
        for first in range(0, bins, size):
            error = task_error(net, task.some(slice(first, first + size))) / task.truth.numel()
            error.backward()
            total += error.detach()
        return total

    return net.halving.whole(bins, piece, compute)


def task_error(net: ContextNet, task: Task) -> Tensor:
    """Sum of squared errors over the targets, weighted: of each reader by itself, since trained on their mean's they would err together."""
    error = (net.readings(*task.shown) - task.truth).square().mean(0)
    return (error * task.weight).sum()


def _step(net: ContextNet, sampler: ContextSampler, optimizer: torch.optim.Optimizer) -> tuple[int, Tensor]:
    task = Task.draw(sampler, net.spread.to(sampler.panel.device)).to(net.spread.device)
    loss = learn(net, task)
    optimizer.step()
    return task.truth.numel(), loss


def _block_means(values: Tensor, scale: int) -> Tensor:
    """Means over the bins of a coarser scale, unmeasured ones left out, NaN where none was measured: tracks x blocks x bins of that scale."""
    if scale == 1:
        return values
    levels = [track.float().unflatten(-1, (-1, scale)).nanmean(-1).to(values.dtype) for track in values]
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
