"""The training loop: batches of blocks, validation, early stopping, the best epoch kept."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from xr_avocado.model.average import AverageActivity
from xr_avocado.model.config import Config
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.optimizer import BlockTable
from xr_avocado.model.sampling import Batch, Panel, batches

__all__ = ["METRICS", "Trained", "Trainer", "device_named", "train"]

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

    Memory on the device: the panel (2 bytes a value), 12 bytes a genome factor and 4 more for the best epoch's copy, sums of each
    assay (8 bytes an assay and bin) if the model adds average activity, and a batch's activations.
    """

    def __init__(
        self, panel: Panel, validation: Panel | None, config: Config, labels: tuple[int, int], *, seed: int
    ) -> None:
        self.panel, self.validation, self.config = panel, validation, config
        self.device = panel.values.device
        self.random = torch.Generator().manual_seed(seed)
        self.net = AvocadoNet(config, *labels, generator=self.random).to(self.device)
        self.genome = [self._new_table(s, f) for s, f in zip(config.scales, config.genome_factors, strict=True)]
        self.average = AverageActivity(panel, labels[1]) if config.average else None
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def _new_table(self, scale: int, factors: int) -> BlockTable:
        shape = (self.panel.n_blocks, self.config.block // scale, factors)
        start = (torch.rand(shape, generator=self.random) * 2 - 1) * self.config.factor_scale
        return BlockTable(start.to(self.device), decay=self.config.genome_decay)

    def predict(self, genome: list[Tensor], blocks: Tensor, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict tracks (blocks x k) in blocks: blocks x bins x k."""
        predicted = self.net(genome, celltype, assay)
        return predicted if self.average is None else predicted + self.average(blocks, celltype, assay)

    def step(self, batch: Batch, *, decay: float, visit: int) -> Tensor:
        """One step on one batch; returns its mean squared error, still on the device."""
        rows = [table.read(batch.blocks) for table in self.genome]
        truth = self.panel.take(batch.blocks, batch.tracks)
        predicted = self.predict(rows, batch.blocks, self.panel.celltype[batch.tracks], self.panel.assay[batch.tracks])
        known = ~truth.isnan()
        error = torch.where(known, predicted - truth.nan_to_num(), 0.0)
        loss = error.square().sum() / known.sum().clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        for table, leaf in zip(self.genome, rows, strict=True):
            table.step(batch.blocks, leaf, rate=self.config.genome_learning_rate * decay, visit=visit)
        return loss.detach()

    def epoch(self, number: int, bar: tqdm) -> float:
        """Visit every block once; returns the mean of the batches' errors."""
        decay = 0.02 + 0.49 * (1 + math.cos(math.pi * number / self.config.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * decay
        self.net.train()
        c, losses = self.config, []
        for batch in batches(
            self.panel, tracks_per_position=c.tracks_per_position, batch=c.batch, generator=self.random
        ):
            losses.append(self.step(batch, decay=decay, visit=number + 1))
            bar.update()
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean squared error on the validation tracks, of the model and of average activity (NaN where there is none)."""
        if self.validation is None:
            return math.nan, math.nan
        self.net.eval()
        samples = self.validation.values[:, 0].numel()
        enough = max(1, VALIDATION_SAMPLES // samples)
        n_blocks = min(VALIDATION_BLOCKS, enough, self.panel.n_blocks)
        chosen = torch.linspace(0, self.panel.n_blocks - 1, n_blocks).long().to(self.device)
        every = torch.arange(len(self.validation.celltype), device=self.device)
        sums = torch.zeros(2, dtype=torch.float64)
        count = 0
        for blocks in chosen.split(max(1, self.config.batch // samples)):
            tracks = every.expand(len(blocks), -1)
            truth = self.validation.take(blocks, tracks)
            celltype, assay = self.validation.celltype[tracks], self.validation.assay[tracks]
            predicted = self.predict([t.values[blocks] for t in self.genome], blocks, celltype, assay)
            average = torch.zeros_like(truth) if self.average is None else self.average(blocks, celltype, assay)
            known = ~truth.isnan()
            sums += torch.stack(
                [functional.mse_loss(p[known], truth[known], reduction="sum") for p in (predicted, average)]
            ).cpu()
            count += int(known.sum())
        model, average_only = (sums / max(count, 1)).tolist()
        return model, average_only if self.average is not None else math.nan

    def keep(self, best: _Best, score: float, epoch: int) -> None:
        """Copy the present state as the best so far."""
        best.score, best.epoch = score, epoch
        best.network = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        best.genome = [table.values.clone() for table in self.genome]


def train(
    panel: Panel,
    validation: Panel | None,
    config: Config,
    labels: tuple[int, int],
    *,
    seed: int = 0,
    progress: bool = True,
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

    Notes
    -----
    An interrupt (Ctrl-C) ends training early and keeps the best epoch so far. An error that is no longer finite does the same, with
    a warning.
    """
    with torch.random.fork_rng(devices=[panel.values.device] if panel.values.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _train(Trainer(panel, validation, config, labels, seed=seed), progress=progress)


def _train(trainer: Trainer, *, progress: bool) -> Trained:
    config, best = trainer.config, _Best()
    history: list[tuple[float, ...]] = []
    bins, n_tracks = trainer.panel.values.shape[2], len(trainer.panel.values)
    size = max(1, config.batch // (bins * min(config.tracks_per_position, n_tracks)))
    with tqdm(
        total=config.epochs * -(-trainer.panel.n_blocks // size), desc="fit factors", unit="step", disable=not progress
    ) as bar:
        try:
            for number in range(config.epochs):
                loss = trainer.epoch(number, bar)
                score, average = trainer.validate()
                history.append((loss, score, average, trainer.optimizer.param_groups[0]["lr"]))
                shown = {"train": loss, "validation": score, "average": average}
                bar.set_postfix(epoch=number + 1, **{k: f"{v:.4f}" for k, v in shown.items() if math.isfinite(v)})
                if not math.isfinite(loss):
                    logger.warning("training error is no longer finite at epoch %d: lower learning_rate", number + 1)
                    break
                if trainer.validation is None or score < best.score:
                    trainer.keep(best, score, number)
                elif config.patience and number - best.epoch >= config.patience:
                    break
        except KeyboardInterrupt:
            if best.epoch < 0:
                # Not one epoch is done: keep what there is, and with it what was trained before.
                trainer.keep(best, math.nan, 0)
                history.append((math.nan,) * len(METRICS))
            logger.warning("interrupted: keeping epoch %d", best.epoch + 1)
    if best.epoch < 0:
        raise ValueError(
            "training did not finish one epoch with a finite error: lower learning_rate and genome_learning_rate"
        )
    trainer.net.load_state_dict(best.network)
    return Trained(trainer.net.eval(), best.genome, history, best.epoch)
