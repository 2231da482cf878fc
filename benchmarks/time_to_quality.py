"""Time to quality on real tracks: held-out error against CPU seconds of training, beside average activity and the best baseline.

``python benchmarks/time_to_quality.py [ROADMAP_PILOT_FOLDER] [--folds 1 2 3 4]`` builds the cube, hides a fold's five tracks, trains the default
model's context term, which is what imputes, on the other fifteen with one thread, and takes a snapshot of it along the way. Each snapshot then
imputes the five on an even tenth of the blocks; its MSE is printed with the CPU seconds of training that led to it (reading the
tracks into memory apart, setting up of training included), beside the MSE there of the baselines, fitted on all positions, and
the first moment at which each was passed.

A snapshot is of a run on its schedule: it shows how soon quality is reached on the way to the end, not the best that a shorter
schedule would do, which ``--config '{"context_samples": 100000}'`` shows.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from figures import about, row, write
from pilot_folds import latin_folds

import xr_avocado as xa
from xr_avocado.cube import experiments
from xr_avocado.fit import Layout, load_panel, resolve_config
from xr_avocado.model.context import ContextEnsemble
from xr_avocado.model.context_training import ContextSampler, TrainedContext, _Run

BASELINES = ["average", "additive", "ridge"]
EVERY = 1.0
"""CPU seconds from one snapshot to the next."""
SHARE = 10
"""One block in so many is scored."""


def snapshots(run: _Run, most: float) -> list[tuple[float, int, TrainedContext]]:
    """Train for so many CPU seconds at most; (seconds, samples, the networks) along the way."""
    taken, spent, samples = [], 0.0, 0
    while not run.finished and spent < most:
        start = time.process_time()
        samples += run.advance()
        spent += time.process_time() - start
        if not taken or spent - taken[-1][0] >= EVERY * (1 + spent / 30) or run.finished:
            taken.append((spent, samples, TrainedContext(tuple(copy.deepcopy(m) for m in run.members), [])))
    return taken


@torch.no_grad()
def impute(taken: TrainedContext, sampler: ContextSampler, labels: torch.Tensor, slots: torch.Tensor) -> np.ndarray:
    """Tracks (celltype, assay) at some slots, as ``impute`` gives them: tracks x slots."""
    net = ContextEnsemble(taken.members).eval()
    row = torch.searchsorted(sampler.celltypes, labels[:, 0].contiguous())
    out = []
    for some in slots.split(2048):
        signal, visible, _ = sampler.read(some, sampler.celltypes)
        out.append(net(signal, visible, row.expand(len(some), -1), labels[:, 1].expand(len(some), -1)))
    return torch.cat(out).T.numpy()


def curve(
    cube: xr.Dataset, hidden: list[tuple[str, str]], config: dict, most: float, seed: int
) -> tuple[pd.DataFrame, pd.Series]:
    """Mean error of the hidden tracks at each snapshot, and of the baselines, on the same bins."""
    held = cube.avocado.hold_out(hidden)
    tracks = experiments(held)
    settings = resolve_config(len(tracks), None, config, None)
    layout = Layout.of(cube.avocado.bins, settings)
    block = layout.slots[0] // settings.block
    rows = np.flatnonzero(block % SHARE == 0)
    truth = np.stack([cube.signal.sel(celltype=c, assay=a).values[rows] for c, a in hidden])
    errors = {}
    for name in BASELINES:
        layer = getattr(xa.baselines, name)(held, tracks=hidden)
        guess = np.stack([layer.sel(celltype=c, assay=a).values[rows] for c, a in hidden])
        errors[name] = float(np.square(guess - truth).mean())
    panel = load_panel(held, tracks, layout, settings, torch.device("cpu"))
    torch.manual_seed(seed)
    start = time.process_time()
    run = _Run(panel, settings, (cube.sizes["celltype"], cube.sizes["assay"]), torch.Generator().manual_seed(seed))
    setup = time.process_time() - start
    labels = [(list(cube.celltype.values).index(c), list(cube.assay.values).index(a)) for c, a in hidden]
    slots = torch.from_numpy(layout.slots[0][rows])
    points = [
        (
            setup + spent,
            samples,
            float(np.square(impute(nets, run.sampler, torch.tensor(labels), slots) - truth).mean()),
        )
        for spent, samples, nets in snapshots(run, most)
    ]
    return pd.DataFrame(points, columns=["cpu seconds", "samples", "mse"]), pd.Series(errors)


def passed(points: pd.DataFrame, error: float) -> str:
    below = points[points.mse < error]
    return (
        f"passed after {below.iloc[0, 0]:.1f} CPU s" if len(below) else f"not passed in {points.iloc[-1, 0]:.0f} CPU s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared/data/roadmap_pilot")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of training, at most (default: 60)")
    parser.add_argument(
        "--config", type=json.loads, default={}, help="settings as JSON, as '{\"context_samples\": 100000}'"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    if not a.folder.is_dir():
        print(f"skipped: the real tracks are not here ({a.folder})")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cube = xa.build_cube(
            a.folder / "samples.tsv",
            f"{folder}/pilot.zarr",
            genome="hg19",
            regions=a.folder / "pilot_regions.hg19.bed",
            progress=False,
        )
        figures = []
        for fold in a.folds:
            points, errors = curve(cube, latin_folds(cube)[fold - 1], a.config, a.seconds, a.seed)
            report(fold, points, errors)
            best = errors.idxmin()
            for name, goal in (("average", "10"), (best, "30")):
                below = points[points.mse < errors[name]]
                seconds = below.iloc[0, 0] if len(below) else float("inf")
                which = "average activity" if name == "average" else f"the best baseline, {name}"
                figures.append(row(f"fold {fold}: training until it passes {which}", seconds, "CPU s", goal=goal))
            write(a.json, "time_to_quality", figures, about())


def report(fold: int, points: pd.DataFrame, errors: pd.Series) -> None:
    print(f"\nfold {fold}, one thread, torch {torch.__version__}: mean over 5 held-out tracks, a tenth of the blocks\n")
    print(points.round({"cpu seconds": 1, "mse": 4}).to_string(index=False))
    for name, error in errors.items():
        print(f"{name:<10} mse {error:.4f}: {passed(points, error)}", flush=True)


if __name__ == "__main__":
    main()
