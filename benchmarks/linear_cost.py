"""Whether the cost of training grows linearly: time a sample from 10^5 to 10^7 positions, and from 20 to 1,000 tracks.

``python benchmarks/linear_cost.py [--device cpu] [--json FILE]`` trains on simulated panels, a fixed number of steps on each, in turn and
several times over, and prints the time of a sample (position x track) as a ratio to that on the smallest panel, for the factors and for the
context term. The panels of 10^5 to 10^7 positions have 4 tracks (10^7: 80 MB of signal, 1.2 GB of factors and moments), those of
20 to 1,000 tracks 50,000 positions. The model is the same on all. What is flat within 20 % grows linearly.
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
TRACKS = (20, 200, 1_000)
STEPS = 16
ROUNDS = 5


def panel_of(n_tracks: int, positions: int, device: torch.device) -> tuple[Panel, tuple[int, int]]:
    """Noise with peaks; a tenth of the labels are assays."""
    n_assays = max(2, round((n_tracks / 10) ** 0.5) * 2)
    index = torch.arange(n_tracks)
    random = torch.Generator().manual_seed(0)
    values = torch.empty(n_tracks, positions // CONFIG.block, CONFIG.block, dtype=torch.float16)
    for track in values:
        track.copy_(torch.randn(track.shape, generator=random).abs_())
    return Panel(values, index // n_assays, index % n_assays).on(device), (n_tracks // n_assays + 1, n_assays)


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
    parser.add_argument("--axes", nargs="+", default=["positions", "tracks"], choices=["positions", "tracks"])
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(a.device)
    panels = {
        "positions": lambda: {f"{n:,} positions": panel_of(4, int(n * a.largest), device) for n in POSITIONS},
        "tracks": lambda: {f"{n:,} tracks": panel_of(n, int(50_000 * a.largest), device) for n in TRACKS},
    }
    # Made one after the other, since the longest takes gigabytes.
    table = pd.concat([measured(panels[axis](), device) for axis in a.axes], ignore_index=True)
    print(f"device {device}, one thread, torch {torch.__version__}, numpy {np.__version__}")
    print(table.round({"ns a sample": 0, "ratio": 2}).to_string(index=False))
    figures = [
        row(f"{part}, {panel}", ns, "ns a sample", limit="the smallest panel's", ratio=ratio, goal="within 20 %")
        for panel, part, ns, ratio in table.itertuples(index=False)
    ]
    write(a.json, "linear_cost", figures, about(a.device))


if __name__ == "__main__":
    main()
