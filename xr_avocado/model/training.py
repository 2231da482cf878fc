"""The training loop: batches of blocks, validation, early stopping, the best epoch kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from xr_avocado.io.checkpoint import Checkpoint, Saved
from xr_avocado.model.average import AverageActivity
from xr_avocado.model.config import Config
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.optimizer import BlockTable
from xr_avocado.model.sampling import Batch, Panel, batches
from xr_avocado.model.sharing import gradients
from xr_avocado.model.squared_error import piece_of, squared_error
from xr_avocado.model.state import as_arrays, moments, named, random_states, restore_moments, restore_random, under

__all__ = ["METRICS", "Trained", "Trainer", "device_named", "train"]

T = TypeVar("T")

logger = logging.getLogger("xr_avocado")

METRICS = ("train_mse", "validation_mse", "validation_average_mse", "learning_rate")
VALIDATION_BLOCKS = 400
"""Blocks on which each epoch is scored, spread evenly: at 25 bp, 80,000 bins; more would cost small panels their speed."""
VALIDATION_SAMPLES = 1 << 18
"""Samples (bin x validation track) an epoch is scored on, about: with many tracks fewer blocks do; all would cost more than training."""


@dataclass(frozen=True)
class Trained:
    """What training leaves: the network, genome factors per scale (blocks x bins x factors), METRICS per epoch."""

    net: AvocadoNet
    genome: list[Tensor]
    history: list[tuple[float, ...]]
    best_epoch: int
    interrupted: bool = False


@dataclass
class _Best:
    score: float = math.inf
    epoch: int = -1
    network: dict[str, Tensor] = field(default_factory=dict)
    genome: list[Tensor] = field(default_factory=list)


def device_named(device: str | torch.device | None) -> torch.device:
    """Choose the device: the one named, else CUDA, else MPS, else the CPU.

    Raises
    ------
    ValueError
        Where the device named is not on this machine.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} is not at hand ({reason}); leave device=None to take what there is"
        ) from None
    return chosen


class Trainer:
    """State of a training run over one panel; ``train`` drives it.

    Memory on the device: the panel where it fits (2 bytes a value), 12 bytes a genome factor and 4 more for the best epoch's copy, sums
    of each assay (8 bytes an assay and bin, beside the panel) if the model adds average activity, and a batch's share of the first
    layer. Where the device runs out of memory, batches are computed in halves, their gradients summed: slower, and the same result.
    """

    def __init__(
        self, panel: Panel, validation: Panel | None, config: Config, labels: tuple[int, int], *, seed: int
    ) -> None:
        self.panel, self.validation, self.config = panel, validation, config
        self.device, self.share = panel.device, panel.share
        self.random = torch.Generator().manual_seed(seed)
        self.net = AvocadoNet(config, *labels, generator=self.random).to(self.device)
        self.genome = [self._new_table(s, f) for s, f in zip(config.scales, config.genome_factors, strict=True)]
        self.average = AverageActivity(panel, labels[1]) if config.average else None
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        # Float32 parameters, moments and sums; what is large, activations and their products, has half the bits where that is faster.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
        self.most_blocks = panel.blocks_a_step(config.tracks_per_position, config.batch)
        # Of the epoch in training: the generator's state when it began, and the errors of the batches that are done.
        self.began = self.random.get_state()
        self.losses: list[Tensor] = []

    def start_from(self, network: Mapping[str, Tensor], genome: Iterable[Tensor]) -> None:
        """Begin with parameters that were trained before: of the network by name, of the genome for each scale."""
        self.net.load_state_dict(network)
        for table, values in zip(self.genome, genome, strict=True):
            table.values.copy_(values)

    def _new_table(self, scale: int, factors: int) -> BlockTable:
        shape = (self.panel.all_blocks, self.config.block // scale, factors)
        start = self.share.cut(
            (torch.rand(shape, generator=self.random) * 2 - 1) * self.config.factor_scale
        ).contiguous()
        return BlockTable(start.to(self.device), decay=self.config.genome_decay)

    def predict(self, genome: list[Tensor], blocks: Tensor, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict tracks (blocks x k) in blocks: blocks x bins x k."""
        predicted = self.net(genome, celltype, assay)
        return predicted if self.average is None else predicted + self.average(blocks, celltype, assay)

    def step(self, batch: Batch, *, decay: float, visit: int) -> Tensor:
        """One step on one batch; returns its mean squared error, still on the device."""
        blocks, tracks = batch.blocks.to(self.device), batch.tracks.to(self.device)
        rows = [table.read(blocks) for table in self.genome]
        celltype, assay = self.panel.celltype[tracks], self.panel.assay[tracks]
        truth = self.panel.take(batch.blocks, batch.tracks)
        if self.average is not None:
            truth = truth - self.average(batch.blocks, celltype, assay)
        known = (~truth.isnan()).sum().float()
        self.share.add_up(known)
        loss = self._in_memory(lambda: self._backward(rows, celltype, assay, truth, known.clamp(min=1)))
        if self.share.world > 1:
            self.share.add_up(loss, *gradients(list(self.net.parameters())))
        self.optimizer.step()
        for table, leaf in zip(self.genome, rows, strict=True):
            table.step(blocks, leaf, rate=self.config.genome_learning_rate * decay, visit=visit)
        return loss

    def _backward(self, rows: list[Tensor], celltype: Tensor, assay: Tensor, truth: Tensor, known: Tensor) -> Tensor:
        """Squared error of a batch over the values known in all of it, and its gradients in the parameters and rows."""
        for leaf in (*self.net.parameters(), *rows):
            leaf.grad = None
        total = torch.zeros((), device=self.device)
        for first in range(0, len(truth), self.most_blocks):
            part = slice(first, first + self.most_blocks)
            loss = self._error([leaf[part] for leaf in rows], celltype[part], assay[part], truth[part]) / known
            loss.backward()
            total += loss.detach()
        return total

    def _error(self, rows: list[Tensor], celltype: Tensor, assay: Tensor, truth: Tensor) -> Tensor:
        n_blocks, bins, k = truth.shape
        half = torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()
        with half:
            genome, track = self.net.genome_term(rows), self.net.track_term(celltype, assay)
        return squared_error(
            genome,
            track,
            truth,
            self.net.weights[1:],
            self.net.biases[1:],
            piece=piece_of(n_blocks, bins * k, self.config.nodes, self.device),
            dropout=self.config.dropout,
            dtype=self.dtype,
        )

    def _in_memory(self, call: Callable[[], T]) -> T:
        """Call, and again with half the blocks at a time as long as the device runs out of memory."""
        while True:
            try:
                return call()
            except torch.cuda.OutOfMemoryError:
                if self.most_blocks == 1:
                    raise
            # Past the except clause, which holds on to what was allocated.
            self._halve()

    def _halve(self) -> None:
        if self.most_blocks == self.panel.blocks_a_step(self.config.tracks_per_position, self.config.batch):
            logger.warning("out of memory on %s: each batch is computed in parts from here on", self.device)
        self.most_blocks = max(1, self.most_blocks // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def epoch(self, number: int, bar: tqdm, after_step: Callable[[], None] = lambda: None) -> float:
        """Visit every block once; returns the mean of the batches' errors.

        What is done of an epoch that was begun is not done again: the draws are repeated from the state in which it began.
        """
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * number / self.config.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * decay
        self.net.train()
        if not self.losses:
            self.began = self.random.get_state()
        self.random.set_state(self.began)
        c, done = self.config, len(self.losses)
        drawn = batches(self.panel, tracks_per_position=c.tracks_per_position, batch=c.batch, generator=self.random)
        for batch in islice(drawn, done, None):
            self.losses.append(self.step(batch, decay=decay, visit=number + 1))
            bar.update()
            after_step()
        loss, self.losses = float(torch.stack(self.losses).mean()), []
        return loss

    def validate(self) -> tuple[float, float]:
        """Mean squared error on the validation tracks, of the model and of average activity (NaN where there is none)."""
        panel = self.validation
        return (math.nan, math.nan) if panel is None else self._in_memory(lambda: self._validate(panel))

    @torch.no_grad()
    def _validate(self, panel: Panel) -> tuple[float, float]:
        self.net.eval()
        samples = len(panel.values) * panel.values.shape[2]
        enough = max(1, VALIDATION_SAMPLES // samples)
        n_blocks = min(VALIDATION_BLOCKS, enough, panel.all_blocks)
        at = panel.values.device
        chosen = torch.linspace(0, panel.all_blocks - 1, n_blocks).long().to(at)
        chosen = self.share.rows(chosen[self.share.mine(chosen)])
        every = torch.arange(len(panel.celltype), device=at)
        # Of the model, of average activity, and how many.
        sums = torch.zeros(3, dtype=torch.float64)
        for blocks in chosen.split(max(1, min(self.most_blocks, self.config.batch // samples))):
            tracks = every.expand(len(blocks), -1)
            truth = panel.take(blocks, tracks)
            celltype, assay = (index[tracks.to(self.device)] for index in (panel.celltype, panel.assay))
            rows = [table.values[blocks.to(self.device)] for table in self.genome]
            predicted = self.predict(rows, blocks, celltype, assay)
            average = torch.zeros_like(truth) if self.average is None else self.average(blocks, celltype, assay)
            known = ~truth.isnan()
            errors = [functional.mse_loss(p[known], truth[known], reduction="sum") for p in (predicted, average)]
            sums += torch.stack([*errors, known.sum()]).cpu()
        total = sums.to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        self.share.add_up(total)
        model, average_only = (total[:2] / total[2].clamp(min=1)).tolist()
        return model, average_only if self.average is not None else math.nan

    def keep(self, best: _Best, score: float, epoch: int) -> None:
        """Copy the present state as the best so far."""
        best.score, best.epoch = score, epoch
        best.network = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        best.genome = best.genome or [torch.empty_like(table.values) for table in self.genome]
        for copy, table in zip(best.genome, self.genome, strict=True):
            copy.copy_(table.values)


def train(
    panel: Panel,
    validation: Panel | None,
    config: Config,
    labels: tuple[int, int],
    *,
    seed: int = 0,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
    start: tuple[Mapping[str, Tensor], Iterable[Tensor]] | None = None,
) -> Trained:
    """Train a model on a panel; the epoch with the lowest validation error (the last one, without validation) is what comes back.

    Parameters
    ----------
    panel, validation
        Tracks to learn from, and tracks that only choose the epoch.
    config
        Sizes and rates.
    labels
        Number of cell types and of assays.
    seed
        Fixes the initial values, the order of blocks and the draws of tracks; on one device a run repeats bit for bit.
    progress
        Show a bar.
    checkpoint
        Where to keep how far it is; what it holds is gone on with, on the CPU bit for bit.
    start
        Parameters to begin with, as `Trainer.start_from` takes them, instead of random ones.

    Notes
    -----
    An interrupt (Ctrl-C) ends training early and keeps the best epoch so far. An error that is no longer finite does the same, with
    a warning.
    """
    with torch.random.fork_rng(devices=[panel.values.device] if panel.values.device.type == "cuda" else []):
        torch.manual_seed(seed)
        trainer = Trainer(panel, validation, config, labels, seed=seed)
        if start is not None:
            trainer.start_from(*start)
        run = _Run(trainer, checkpoint)
        return run.train(progress=progress)


class _Run:
    """How far a trainer is: epochs done, their history, the best of them."""

    def __init__(self, trainer: Trainer, checkpoint: Checkpoint | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint
        self.best, self.history = _Best(), list[tuple[float, ...]]()
        self.stopped = False
        if checkpoint is not None and (saved := checkpoint.load()) is not None:
            self.restore(saved)

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.history) == self.trainer.config.epochs

    def train(self, *, progress: bool) -> Trained:
        """Train the epochs that are left."""
        interrupted = False
        with self._bar(progress) as bar:
            try:
                while not self.finished:
                    self._epoch(bar)
            except KeyboardInterrupt:
                interrupted = True
                if self.best.epoch < 0:
                    # Not one epoch is done: keep what there is, and with it what was trained before.
                    self.trainer.keep(self.best, math.nan, 0)
                    self.history.append((math.nan,) * len(METRICS))
                logger.warning("interrupted: keeping epoch %d", self.best.epoch + 1)
        if self.best.epoch < 0:
            raise ValueError(
                "training did not finish one epoch with a finite error: lower learning_rate and genome_learning_rate"
            )
        self.trainer.net.load_state_dict(self.best.network)
        panel = self.trainer.panel
        genome = [panel.share.whole(table, panel.all_blocks) for table in self.best.genome]
        return Trained(self.trainer.net.eval(), genome, self.history, self.best.epoch, interrupted)

    def _bar(self, shown: bool) -> tqdm:
        trainer, config = self.trainer, self.trainer.config
        steps = -(-trainer.panel.all_blocks // trainer.panel.blocks_a_step(config.tracks_per_position, config.batch))
        done = len(self.history) * steps + len(trainer.losses)
        return tqdm(total=config.epochs * steps, initial=done, desc="fit factors", unit="step", disable=not shown)

    def _epoch(self, bar: tqdm) -> None:
        trainer, number = self.trainer, len(self.history)
        loss = trainer.epoch(number, bar, self._save_if_due)
        score, average = trainer.validate()
        self.history.append((loss, score, average, trainer.optimizer.param_groups[0]["lr"]))
        shown = {"train": loss, "validation": score, "average": average}
        bar.set_postfix(epoch=number + 1, **{k: f"{v:.4f}" for k, v in shown.items() if math.isfinite(v)})
        if not math.isfinite(loss):
            logger.warning("training error is no longer finite at epoch %d: lower learning_rate", number + 1)
            self.stopped = True
        elif trainer.validation is None or score < self.best.score:
            trainer.keep(self.best, score, number)
        elif trainer.config.patience and number - self.best.epoch >= trainer.config.patience:
            self.stopped = True
        if self.finished and self.checkpoint is not None:
            self.save(self.checkpoint)

    def _save_if_due(self) -> None:
        if self.checkpoint is not None and self.checkpoint.due:
            self.save(self.checkpoint)

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep everything that training changes."""
        trainer, best = self.trainer, self.best
        tensors = named("network", trainer.net.state_dict()) | named("moments", moments(trainer.optimizer))
        tensors |= named("random", random_states(trainer.random, trainer.device)) | {"began": trainer.began}
        tensors |= named("best_network", best.network)
        tensors |= {f"best_genome/{i}": table for i, table in enumerate(best.genome)}
        for i, table in enumerate(trainer.genome):
            tensors |= named(f"genome/{i}", table.state())
        if trainer.losses:
            tensors["losses"] = torch.stack(trainer.losses)
        state = {"history": self.history, "stopped": self.stopped, "best": [best.score, best.epoch]}
        checkpoint.save(as_arrays(tensors), state)

    def restore(self, saved: Saved) -> None:
        """Go back to what was kept."""
        trainer, arrays, device = self.trainer, saved.arrays, self.trainer.device
        trainer.net.load_state_dict(under("network", arrays))
        restore_moments(trainer.optimizer, under("moments", arrays))
        restore_random(under("random", arrays), trainer.random, device)
        trainer.began = torch.from_numpy(arrays["began"])
        trainer.losses = [torch.tensor(x, device=device) for x in arrays.get("losses", ())]
        for i, table in enumerate(trainer.genome):
            table.restore(under(f"genome/{i}", arrays))
        genome = under("best_genome", arrays)
        score, epoch = saved.state["best"]
        network = {name: value.to(device) for name, value in under("best_network", arrays).items()}
        self.best = _Best(score, epoch, network, [genome[str(i)].to(device) for i in range(len(genome))])
        self.history = [tuple(row) for row in saved.state["history"]]
        self.stopped = saved.state["stopped"]
