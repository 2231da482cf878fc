"""Extension: a cell type learnt from 1, 2 and 3 of its tracks, on real tracks; and stage 2 on a simulated genome-scale panel, in bounded memory.

``python benchmarks/extend.py [ROADMAP_PILOT_FOLDER] [--parts celltypes genome]``

celltypes: a cell type is left out entirely, a model is fitted on the others (15 or 16 Roadmap tracks, 1,126,469 bins of the pilot regions), and
the cell type is added with 1, 2 and 3 of its tracks. The rest of its tracks are imputed and scored in arcsinh space, over all bins, beside
average activity and beside a full refit with the same tracks. Two models: one of factors alone (``extend``), and the context term, which
needs no training for a new cell type (``impute(model=)``). Seconds are told as a ratio to the refit's, measured in the same run.

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

import xr_avocado as xa
from xr_avocado import extend_positions
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins

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


def celltypes(folder: Path, left_out: list[str]) -> None:
    if not folder.is_dir():
        print(f"skipped: the real tracks are not here ({folder})")
        return
    with tempfile.TemporaryDirectory() as home:
        cube = xa.build_cube(
            folder / "samples.tsv", f"{home}/pilot.zarr", genome="hg19", regions=folder / "pilot_regions.hg19.bed", progress=False
        ).load()  # fmt: skip
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
    parser.add_argument("--parts", nargs="+", default=["celltypes", "genome"], choices=["celltypes", "genome"])
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
    celltypes(a.folder, a.celltypes)


if __name__ == "__main__":
    main()
