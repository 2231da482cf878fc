"""Training and imputation of the factor model against what the machine can do: its own matmul rate and copy bandwidth.

``python benchmarks/engine.py [--device cpu] [--threads 1] [--json FILE]`` measures, in one run, the rate of a large float32 matrix product
and of a copy, then the samples (position x track) a second that a training step and an imputation reach at the paper's size (2 x 2,048
nodes; 25, 40 and 45 genome factors) and at a small one (1 x 64). A sample's useful work is the layers above the first, 3 times
2 x nodes^2 FLOP in training and once to predict, and its share of the first layer's genome term. The limit is the slower of that work at
the matmul rate and of one write and one read of each layer's activations (in training, three of each) at the copy bandwidth. The ratio is what was
reached over that limit; 1 is the hardware's, unless activations stay in the processor's cache. Beside training stands the same step with torch's own
gradient of the whole batch ("train, plain"). On a CPU seconds are the process's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import about as where
from figures import row, write
from torch import Tensor

from xr_avocado.model.config import PRESETS, Config
from xr_avocado.model.prediction import predict_positions
from xr_avocado.model.sampling import Panel, batches
from xr_avocado.model.training import Trainer

SIZES = {
    "paper": PRESETS["paper"].updated({"tracks_per_position": 8, "batch": 8_000}),
    "small": PRESETS["small"].updated({"tracks_per_position": 8, "batch": 40_000}),
}
TRACKS = 24
SECONDS = 3.0


def rate(call: Callable[[], object], device: torch.device) -> float:
    """Calls a second, over some seconds, after one to warm up; on the CPU of the process's own time, whatever else the machine does."""
    cuda = device.type == "cuda"
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if cuda else lambda: None
    call()
    wait()
    start, count = clock(), 0
    while clock() - start < SECONDS:
        # On a GPU several at a time, so that the next is launched while one runs.
        for _ in range(8 if cuda else 1):
            call()
            count += 1
        wait()
    return count / (clock() - start)


def machine(device: torch.device) -> tuple[float, float]:
    """FLOP a second of a large float32 product, and bytes a second read and written by a copy."""
    a, b = (torch.randn(2048, 2048, device=device) for _ in range(2))
    flops = 2 * 2048**3 * rate(lambda: a @ b, device)
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    return flops, 2 * source.numel() * 4 * rate(lambda: target.copy_(source), device)


def panel_of(config: Config, n_blocks: int, device: torch.device) -> Panel:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(TRACKS, n_blocks, config.block, generator=random).half().to(device)
    index = torch.arange(TRACKS, device=device)
    return Panel(values, index % 6, index // 6)


def training(config: Config, device: torch.device, *, plain: bool = False) -> float:
    """Samples a second of training steps; ``plain``: with torch's own gradient of the whole batch, as a baseline."""
    trainer = Trainer(panel_of(config, 200, device), None, config, (6, 4), seed=0)
    trainer.net.train()
    if plain:
        trainer._error = partial(plain_error, trainer)  # type: ignore[method-assign]
    step = Stepper(trainer)
    return step.samples * rate(step, device)


class Stepper:
    """Takes a step with one batch after another, all of one size of ``samples``."""

    def __init__(self, trainer: Trainer) -> None:
        config = trainer.config
        options = {"tracks_per_position": config.tracks_per_position, "batch": config.batch}
        drawn = list(batches(trainer.panel, **options, generator=trainer.random))
        self.trainer = trainer
        self.batches = cycle([batch for batch in drawn if len(batch.blocks) == len(drawn[0].blocks)])
        self.samples = drawn[0].tracks.numel() * config.block

    def __call__(self) -> None:
        self.trainer.step(next(self.batches), decay=1.0, visit=1)


def plain_error(trainer: Trainer, rows: list[Tensor], celltype: Tensor, assay: Tensor, truth: Tensor) -> Tensor:
    """Squared error of a batch the usual way: all of it forward, then all of it back."""
    predicted = trainer.net(rows, celltype, assay)
    return torch.where(truth.isnan(), 0.0, predicted - truth.nan_to_num()).square().sum()


def imputation(config: Config, device: torch.device, *, narrow: bool = False) -> float:
    """Bins a second of imputing all tracks of a run of positions; ``narrow``: with products of bfloat16."""
    trainer = Trainer(panel_of(config, 50 if config.nodes > 1000 else 500, device), None, config, (6, 4), seed=0)
    factors = [table.values.flatten(0, 1).cpu().numpy() for table in trainer.genome]
    bins = np.arange(len(factors[0]))
    rows = [bins // scale for scale in config.scales]
    celltype, assay = trainer.panel.celltype.cpu().numpy(), trainer.panel.assay.cpu().numpy()
    net = trainer.net.narrow().eval() if narrow else trainer.net.eval()
    return TRACKS * len(bins) * rate(lambda: predict_positions(net, factors, rows, celltype, assay), device)


def limit(config: Config, passes: int, per_position: int, flops: float, bandwidth: float) -> tuple[float, str]:
    """Samples a second that the machine allows, and by which of the two."""
    above = 2 * config.nodes**2 * (config.layers - 1) + 2 * config.nodes
    work = passes * (above + 2 * sum(config.genome_factors) * config.nodes / per_position)
    moved = passes * config.layers * 2 * 4 * config.nodes
    return min((flops / work, "matmul"), (bandwidth / moved, "copy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    device = torch.device(a.device)
    flops, bandwidth = machine(device)
    rows = []
    for name, config in SIZES.items():
        for verb, run, passes, per_position in (
            ("train", training, 3, config.tracks_per_position),
            ("train, plain", partial(training, plain=True), 3, config.tracks_per_position),
            ("impute", imputation, 1, TRACKS),
            ("impute, bfloat16", partial(imputation, narrow=True), 1, TRACKS),
        ):
            most, bound = limit(config, passes, per_position, flops, bandwidth)
            reached = run(config, device)
            rows.append((name, verb, reached, most, bound, reached / most))
    table = pd.DataFrame(rows, columns=["size", "verb", "samples/s", "limit", "bound by", "ratio"])
    about = where(a.device) | {"GFLOP/s": round(flops / 1e9, 1), "copy GB/s": round(bandwidth / 1e9, 1)}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    shown = table.assign(**{c: table[c].map("{:,.0f}".format) for c in ("samples/s", "limit")})
    print(shown.assign(ratio=table.ratio.round(2)).to_string(index=False))
    goals = {"paper": "ratio 0.9", "small train": "1.5 million", "small impute": "6 million"}
    figures = [
        row(
            f"{verb}, {size} size",
            reached,
            "samples a second",
            limit=f"{most:,.0f} ({bound})",
            ratio=ratio,
            goal="" if "," in verb else goals.get(size, goals.get(f"{size} {verb}", "")),
        )
        for size, verb, reached, most, bound, ratio in rows
    ]
    write(a.json, "engine", figures, about)


if __name__ == "__main__":
    main()
