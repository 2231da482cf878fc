"""Whether the cost of training grows linearly: time a sample from 10^5 to 10^7 positions, and from 20 to 1,000 tracks.

``python benchmarks/linear_cost.py [--device cpu] [--json FILE]`` trains on simulated panels, a fixed number of steps on each, in turn and
several times over, and prints the time of a sample (position x track) as a ratio to that on the smallest panel of each axis, for the factors
and for the context term. The model is the same on all. What is flat within 20 % grows linearly.

==========  =======================================================================================================
positions   10^5 to 10^7, of 4 tracks (10^7: 80 MB of signal, 1.2 GB of factors and moments)
tracks      20 to 1,000, cell types and assays both more: 10 x 2, 25 x 8, 50 x 20; here and below 50,000 positions
celltypes   20 to 1,000 tracks of 5 assays: 4 x 5, 40 x 5, 200 x 5
assays      20 to 1,000 tracks of 10 cell types: 10 x 2, 10 x 20, 10 x 100
==========  =======================================================================================================
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import about, row, write

from xr_avocado.model.config import Config
from xr_avocado.model.context_training import _Run
from xr_avocado.model.sampling import Panel, batches
from xr_avocado.model.training import Trainer

CONFIG = Config(
    celltype_factors=16, assay_factors=16, genome_factors=(8, 16, 24), layers=2, nodes=64, tracks_per_position=4
)
POSITIONS = (100_000, 1_000_000, 10_000_000)
PANELS = {
    "tracks": ((10, 2), (25, 8), (50, 20)),
    "celltypes": ((4, 5), (40, 5), (200, 5)),
    "assays": ((10, 2), (10, 20), (10, 100)),
}
"""Cell types and assays along each axis."""
STEPS = 16
ROUNDS = 5


def panel_of(n_celltypes: int, n_assays: int, positions: int, device: torch.device) -> tuple[Panel, tuple[int, int]]:
    """Noise with peaks, of every pair of cell type and assay; and how many there are of each."""
    index = torch.arange(n_celltypes * n_assays)
    random = torch.Generator().manual_seed(0)
    values = torch.empty(len(index), positions // CONFIG.block, CONFIG.block, dtype=torch.float16)
    for track in values:
        track.copy_(torch.randn(track.shape, generator=random).abs_())
    return Panel(values, index // n_assays, index % n_assays).on(device), (n_celltypes, n_assays)


def seconds(call: Callable[[], int], device: torch.device) -> tuple[float, int]:
    """Seconds and samples of some steps: on the CPU its own time, whatever else the machine does."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    samples = sum(call() for _ in range(STEPS))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, samples


def factor_step(panel: Panel, labels: tuple[int, int]) -> Callable[[], int]:
    trainer = Trainer(panel, None, CONFIG, labels, seed=0)
    options = {"tracks_per_position": CONFIG.tracks_per_position, "batch": CONFIG.batch}
    drawn = batches(panel, **options, generator=trainer.random)
    kept = [batch for batch, _ in zip(drawn, range(STEPS * ROUNDS + 1), strict=False)]
    full = cycle([batch for batch in kept if len(batch.blocks) == len(kept[0].blocks)])

    def step() -> int:
        batch = next(full)
        trainer.step(batch, decay=1.0, visit=1)
        return batch.tracks.numel() * CONFIG.block

    return step


def context_step(panel: Panel, labels: tuple[int, int]) -> Callable[[], int]:
    return _Run(panel, CONFIG, labels, torch.Generator().manual_seed(0)).advance


def measured(panels: dict[str, tuple[Panel, tuple[int, int]]], device: torch.device) -> pd.DataFrame:
    """Nanoseconds a sample of each panel and part, over rounds that take the panels in turn.

    Steps of the context term draw how many samples they see, and share what is read at a bin among them: what counts is time over samples
    of all rounds together.
    """
    parts = {"factors": factor_step, "context": context_step}
    rows = []
    for part, make in parts.items():
        steps = {name: make(*panel) for name, panel in panels.items()}
        for step in steps.values():
            seconds(step, device)
        rounds = [{name: seconds(step, device) for name, step in steps.items()} for _ in range(ROUNDS)]
        cost = {name: np.divide(*np.sum([r[name] for r in rounds], axis=0)) for name in panels}
        rows += [(name, part, 1e9 * ns, ns / next(iter(cost.values()))) for name, ns in cost.items()]
    return pd.DataFrame(rows, columns=["panel", "part", "ns a sample", "ratio"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--largest", type=float, default=1.0, help="share of the largest panels' size, for a quick look"
    )
    axes = ["positions", *PANELS]
    parser.add_argument("--axes", nargs="+", default=axes, choices=axes)
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(a.device)

    def panels(axis: str) -> dict[str, tuple[Panel, tuple[int, int]]]:
        if axis == "positions":
            return {f"{n:,} positions": panel_of(2, 2, int(n * a.largest), device) for n in POSITIONS}
        positions = int(50_000 * a.largest)
        return {f"{c * n:,} tracks ({c} x {n})": panel_of(c, n, positions, device) for c, n in PANELS[axis]}

    # Made one after the other, since the longest takes gigabytes.
    table = pd.concat([measured(panels(axis), device).assign(axis=axis) for axis in a.axes], ignore_index=True)
    print(f"device {device}, one thread, torch {torch.__version__}, numpy {np.__version__}")
    print(table.round({"ns a sample": 0, "ratio": 2}).to_string(index=False))
    figures = [
        row(
            f"{part}, {axis}, {panel}",
            ns,
            "ns a sample",
            limit="the axis's smallest panel's",
            ratio=ratio,
            goal="within 20 %",
        )
        for panel, part, ns, ratio, axis in table.itertuples(index=False)
    ]
    write(a.json, "linear_cost", figures, about(a.device))


if __name__ == "__main__":
    main()
