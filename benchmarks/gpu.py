"""The GPU set: training, imputation, the context term and a panel on the host, in under five minutes, to a JSON file.

``python benchmarks/gpu.py [--device cuda] [--json gpu.json]`` prints, and writes, each figure beside what the machine can do, measured in the
same run: the rate of a large matrix product in bfloat16 (CUDA) or float32, and of a copy.

========================  =================================================================================
train                     samples (position x track) a second of training at the paper's size, 25.2 MFLOP each
train, panel on the host  the same where signal does not fit the device
train, 8 tracks           the same with eight tracks a position: the first layer's genome term is shared
stage 2                   samples a second of learning new positions, all else frozen, 16.8 MFLOP each; and minutes for the paper's 23 billion
impute                    bins a second of imputing at the paper's size, 8.4 MFLOP each; and seconds for a genome's 121 million
context                   samples a second of training the default model's context term
========================  =================================================================================

``--tiny`` has everything in seconds on any machine: it shows that the script runs, not what a machine can do.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import engine
import torch
from engine import Stepper, imputation, panel_of, rate, training

from xr_avocado.model.config import PRESETS, Config, config_for
from xr_avocado.model.context_training import _Run
from xr_avocado.model.extension import learn_blocks
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.sampling import Panel
from xr_avocado.model.training import Trainer

GENOME = 121_000_000
"""Bins of 25 bp in hg19."""
SCHEDULE = 23e9
"""Samples of the paper's stage 2: about 200 passes over the genome, a track a position."""


def product_rate(device: torch.device, size: int) -> float:
    """FLOP a second of a large product, in the precision of training."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 * rate(lambda: a @ b, device)


def copy_rate(device: torch.device, values: int) -> float:
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes * rate(lambda: target.copy_(source), device)


def from_host(config: Config, device: torch.device) -> float:
    """Samples a second of training where the panel stays on the host."""
    panel = panel_of(config, 400, torch.device("cpu"))
    panel = Panel(panel.values, panel.celltype.to(device), panel.assay.to(device))
    step = Stepper(Trainer(panel, None, config, (6, 4), seed=0))
    return step.samples * rate(step, device)


def stage_2(config: Config, device: torch.device) -> float:
    """Samples a second of learning the genome factors of new positions, over some passes, as a chromosome has."""
    # As many on a GPU that drawing the first values, which is done once a chromosome, does not count.
    panel, passes = panel_of(config, 200, device), 100 if device.type == "cuda" else 2
    net = AvocadoNet(config, 6, 4).to(device)
    samples = passes * panel.n_blocks * config.block * config.tracks_per_position
    return samples * rate(lambda: learn_blocks(net, panel, epochs=passes), device)


def context(config: Config, device: torch.device) -> float:
    """Samples a second of training the context term."""
    run = _Run(panel_of(config, 400, device), config, (6, 4), torch.Generator().manual_seed(0))
    before = sum(run.advance() for _ in range(20)) / 20
    return before * rate(run.advance, device)


def figures(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    small = {"nodes": 32, "batch": 4_000} if tiny else {}
    paper = PRESETS["paper"].updated(small)
    shared = paper.updated({"tracks_per_position": 8, "batch": small.get("batch", 320_000)})
    flops = product_rate(device, 256 if tiny else 8192)
    out: dict[str, Any] = {
        "product FLOP/s": flops,
        "copy bytes/s": copy_rate(device, 1 << (18 if tiny else 28)),
        "train samples/s": training(paper, device),
        "train, panel on the host samples/s": from_host(paper, device),
        "train, 8 tracks samples/s": training(shared, device),
        "stage 2 samples/s": stage_2(paper, device),
        "impute bins/s": imputation(paper, device),
        "impute, bfloat16 bins/s": imputation(paper, device, narrow=True),
        "context samples/s": context(config_for(24).updated({"epochs": 1000}), device),
    }
    work = 2 * paper.nodes**2 * (paper.layers - 1)
    for name, times in (("train", 3), ("train, 8 tracks", 3), ("stage 2", 2)):
        out[f"{name}: ratio to the product rate"] = times * work * out[f"{name} samples/s"] / flops
    out["impute: ratio to the product rate"] = work * out["impute bins/s"] / flops
    for name in ("impute", "impute, bfloat16"):
        out[f"{name}: seconds for a genome's track"] = GENOME / out[f"{name} bins/s"]
    out["stage 2: minutes for the paper's schedule"] = SCHEDULE / out["stage 2 samples/s"] / 60
    if device.type == "cuda":
        out["peak device memory, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file to write (default: gpu.json)")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs")
    a = parser.parse_args()
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        print("skipped: no CUDA device here; --device cpu --tiny shows that the script runs")
        return
    device = torch.device(a.device)
    if a.tiny:
        engine.SECONDS = 0.05
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "tiny": a.tiny,
    }
    measured = about | figures(device, tiny=a.tiny)
    for name, value in measured.items():
        print(f"{name:<40} {value:,.3g}" if isinstance(value, float) else f"{name:<40} {value}")
    a.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
