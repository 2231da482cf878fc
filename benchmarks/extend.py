"""Extension on real tracks, of cell types and of positions; and on a simulated genome-scale panel, in bounded memory.

``python benchmarks/extend.py [ROADMAP_PILOT_FOLDER] [--parts celltypes positions step genome]``

celltypes: a cell type is left out entirely, a model is fitted on the others (15 or 16 Roadmap tracks, 1,126,469 bins of the pilot regions), and
the cell type is added with 1, 2 and 3 of its tracks. The rest of its tracks are imputed and scored in arcsinh space, over all bins, beside
average activity and beside a full refit with the same tracks. Two models: one of factors alone (``extend``), and the context term, which
needs no training for a new cell type (``impute(model=)``). Seconds are told as a ratio to the refit's, measured in the same run.

positions: a model of factors is fitted on every other pilot region, five tracks hidden, and extended to the others; the five are scored there,
beside average activity and a model that was fitted on all regions.

step: samples a second of learning new positions, which takes no gradient of the weights, as a ratio to those of training, interleaved, at
the paper's size (2 x 2,048; 16.8 against 25.2 MFLOP a sample) and at a small one (1 x 64).

genome: 1,000 tracks x 10 million bins of float16 (20 GB), made up as they are read, one pass of new positions with a small model, with
``store=``. It prints the most memory that the process took, beside what it took before and the bound.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

import xr_avocado as xa
from xr_avocado import extend_positions
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins
from xr_avocado.intervals import as_frame
from xr_avocado.model.config import PRESETS
from xr_avocado.model.extension import learn_blocks
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.sampling import Panel
from xr_avocado.model.training import Trainer

FOLDER = Path(__file__).parents[2] / "shared/data/roadmap_pilot"
MEASURES = ["mse", "gwcorr"]
FACTORS: dict[str, Any] = {"preset": "small", "epochs": 6, "validation": None}
CONTEXT: dict[str, Any] = {
    "config": {"context_members": 1, "nodes": 8, "layers": 1, "genome_factors": (1, 1, 1)},
    "epochs": 4,
}


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def pilot(folder: Path) -> xr.Dataset:
    with tempfile.TemporaryDirectory() as home:
        return xa.build_cube(
            folder / "samples.tsv", f"{home}/pilot.zarr", genome="hg19", regions=folder / "pilot_regions.hg19.bed", progress=False
        ).load()  # fmt: skip


def celltypes(folder: Path, left_out: list[str]) -> None:
    if not folder.is_dir():
        print(f"skipped: the real tracks are not here ({folder})")
        return
    cube = pilot(folder)
    rows = [row for celltype in left_out for row in one_celltype(cube, celltype)]
    table = pd.DataFrame(rows).groupby(["tracks", "method"], sort=False).mean(numeric_only=True)
    print(f"\nremaining tracks of {', '.join(left_out)}, arcsinh space, all bins; seconds as a ratio to the refit's")
    print(table.round(4).to_string())


def one_celltype(cube: xr.Dataset, celltype: str) -> list[dict[str, Any]]:
    others = cube.sel(celltype=[c for c in cube.celltype.values if c != celltype])
    models = {
        name: others.avocado.fit(**options, progress=False)
        for name, options in (("factors", FACTORS), ("context", CONTEXT))
    }
    own = [p for p in cube.avocado.experiments if p.celltype == celltype]
    rows = []
    for k in (1, 2, 3):
        asked, given = own[k:], own[:k]
        shown = cube.avocado.hold_out(asked)
        new = shown.sel(celltype=[celltype], assay=[p.assay for p in given])
        more, extending = timed(lambda new=new: models["factors"].avocado.extend(new, progress=False))
        refits = {n: timed(lambda o=o, s=shown: s.avocado.fit(**o, progress=False)) for n, o in (("factors", FACTORS), ("context", CONTEXT))}  # fmt: skip
        runs = {
            "factors, extended": (more, extending / refits["factors"][1], {}),
            "factors, refitted": (refits["factors"][0], 1.0, {}),
            "context, untrained": (shown, 0.0, {"model": models["context"]}),
            "context, refitted": (refits["context"][0], 1.0, {}),
        }
        for name, (ds, ratio, options) in runs.items():
            full = ds.avocado.impute(tracks=asked, **options)
            methods = {name: "imputed"} | ({"average": "average"} if name == "factors, extended" else {})
            scores = full.avocado.evaluate(cube, tracks=asked, methods=methods, measures=MEASURES, progress=False)
            for method, part in scores.groupby("method", sort=False):
                seconds = ratio if method == name else np.nan
                rows.append({"tracks": k, "method": method, **part[MEASURES].mean(), "seconds": seconds})
        print(pd.DataFrame(rows[-5:]).round(4).assign(celltype=celltype).to_string(index=False), flush=True)
    return rows


def positions(folder: Path) -> None:
    if not folder.is_dir():
        print(f"skipped: the real tracks are not here ({folder})")
        return
    cube, regions = pilot(folder), as_frame(folder / "pilot_regions.hg19.bed")
    even, odd = (cube.avocado.sel(regions.iloc[k::2]) for k in (0, 1))
    hidden = [pair for i, pair in enumerate(cube.avocado.experiments) if i % 4 == i // 4 % 4]
    first, fitting = timed(lambda: even.avocado.hold_out(hidden).avocado.fit(**FACTORS, progress=False))
    more, extending = timed(lambda: first.avocado.extend(odd.avocado.hold_out(hidden), only_new=True, progress=False))
    whole = cube.avocado.hold_out(hidden).avocado.fit(**FACTORS, progress=False).avocado.sel(regions.iloc[1::2])
    tables = []
    for name, ds in (("extended", more), ("fitted on all", whole)):
        methods = {name: "imputed"} | ({"average": "average"} if ds is more else {})
        full = ds.avocado.impute(tracks=hidden)
        tables.append(full.avocado.evaluate(odd, tracks=hidden, methods=methods, measures=MEASURES, progress=False))
    print(
        f"\n{len(hidden)} hidden tracks at {odd.sizes['position']:,} bins that the first fit did not see, arcsinh space"
    )
    print(pd.concat(tables).groupby("method", sort=False)[MEASURES].mean().round(4).to_string())
    print(f"extending took {extending / fitting:.2f} times as long as the first fit, on as many bins")


def step() -> None:
    rows = []
    for name, config in {"paper": PRESETS["paper"], "small": PRESETS["small"]}.items():
        config = config.updated({"tracks_per_position": 8, "batch": 8_000})
        random = torch.Generator().manual_seed(0)
        n_blocks = 20 if name == "paper" else 400
        index = torch.arange(24)
        panel = Panel(torch.randn(24, n_blocks, config.block, generator=random).half(), index % 6, index // 6)
        trainer = Trainer(panel, None, config, (6, 4), seed=0)
        net = AvocadoNet(config, 6, 4, generator=random)
        samples = n_blocks * config.block * config.tracks_per_position
        seconds = np.empty((3, 2))
        for i in range(3):
            with tqdm(disable=True) as bar:
                seconds[i, 0] = timed(lambda t=trainer, b=bar: t.epoch(0, b))[1]
            seconds[i, 1] = timed(lambda n=net, p=panel: learn_blocks(n, p, epochs=1))[1]
        train, extend = samples / np.median(seconds, 0)
        rows.append({"size": name, "training": train, "new positions": extend, "ratio": extend / train})
    print("\nsamples a second, one thread, median of three")
    print(pd.DataFrame(rows).round(2).to_string(index=False))


class Repeated:
    """A panel larger than memory: a few simulated tracks, repeated along the genome and shifted from track to track."""

    dtype, ndim = np.dtype(np.float16), 3

    def __init__(self, shape: tuple[int, int, int]) -> None:
        few = xa.datasets.simulate(4, 6, {"chr1": 2_500_000}).signal.values.astype(np.float16)
        self.shape, self.period = shape, few.shape[2]
        # As long as any piece that is asked for, wherever in the period it begins.
        self.base = np.tile(few.reshape(-1, few.shape[2]), 2 + (1 << 20) // few.shape[2])

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        c, a, p = (range(*i.indices(n)) for i, n in zip(index, self.shape, strict=True))
        out = np.empty((len(c), len(a), len(p)), np.float16)
        for i, j in np.ndindex(out.shape[:2]):
            track = c[i] * self.shape[1] + a[j]
            first = (p.start + 1_009 * track) % self.period
            out[i, j] = self.base[track % len(self.base), first : first + len(p)]
        return out


def panel(sizes: dict[str, int], n_celltypes: int = 40, n_assays: int = 25) -> xr.Dataset:
    bins = GenomeBins.from_chromsizes(sizes)
    shape = (n_celltypes, n_assays, len(bins))
    signal = da.from_array(Repeated(shape), (1, 1, 1 << 20), name=False, asarray=False, inline_array=True).astype(
        np.float32
    )
    ds = xr.Dataset(
        {"signal": (("celltype", "assay", "position"), signal), "observed": (("celltype", "assay"), np.ones(shape[:2], bool))},
        {"celltype": [f"C{i}" for i in range(n_celltypes)], "assay": [f"A{i}" for i in range(n_assays)]},
        {"transform": "arcsinh", "chromsizes": sizes},
    )  # fmt: skip
    return assign_bins(ds, bins)


def genome(bins: int) -> None:
    fitted = panel({"chr1": 500_000}).avocado.fit(
        "small", config={"tracks_per_position": 2}, epochs=1, validation=None, progress=False
    )
    new = panel({f"chr{i}": bins * 5 for i in range(2, 7)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with tempfile.TemporaryDirectory() as home:
        run = lambda: fitted.avocado.extend(new, epochs=1, only_new=True, store=f"{home}/genome.zarr", progress=False)
        model, seconds = timed(run)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        written = sum(f.stat().st_size for f in Path(home).rglob("*") if f.is_file()) / 1e9
        size = model.signal.size * 2 / 1e9
    print(f"1,000 tracks x {model.sizes['position']:,} bins, {size:.0f} GB of float16; one pass, two tracks a position")
    print(
        f"{seconds:.0f} s, {model.sizes['position'] * 2 / seconds / 1e6:.2f} million samples a second; store {written:.2f} GB"
    )
    print(
        f"memory: {before:.2f} GB before, {peak:.2f} GB at most; a piece is bounded by {extend_positions.MEMORY / 1e9:.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parts = ["celltypes", "positions", "step", "genome"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--celltypes", nargs="+", default=["E116"], help="to leave out, one after the other")
    parser.add_argument("--bins", type=int, default=10_000_000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.parts == ["genome"]:
        genome(a.bins)
        return
    if "genome" in a.parts:
        # The most that a process took cannot be set back, so this one is on its own.
        subprocess.run([sys.executable, __file__, "--parts", "genome", "--bins", str(a.bins)], check=True)
    if "step" in a.parts:
        step()
    if "celltypes" in a.parts:
        celltypes(a.folder, a.celltypes)
    if "positions" in a.parts:
        positions(a.folder)


if __name__ == "__main__":
    main()
