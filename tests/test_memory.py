"""Memory of the verbs that go along the genome: what the docstrings say, on a cube whose layers are larger than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xr_avocado as xa

CHILD = """
import json, sys
import dask, numpy as np, pandas as pd
import xr_avocado as xa
from xr_avocado import aggregate, impute, pieces, sample, segment
from xr_avocado.io import export
from xr_avocado.loci import Relationship

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

def genes(ds):
    start = np.arange(5_000, ds.sizes["position"] * 25 - 5_000, 40_000)
    return pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 2_000, "strand": "+"})

def peaks(ds):
    return pd.concat([genes(ds).assign(celltype=c, assay=a) for c, a in ds.avocado.experiments])

def at_loci(ds):
    tracks = [(c, ds.assay.values[0]) for c in ds.celltype.values]
    ds.avocado.variable_loci(ds, peaks=peaks(ds), tracks=tracks, methods={"itself": "signal"}, progress=False)

def related(ds):
    first, second = ds.assay.values[:2]
    pairs = [Relationship(first, "promoter", second, "promoter", 1)]
    ds.avocado.relationships(ds, genes=genes(ds), methods={"itself": "signal"}, pairs=pairs, progress=False)

def explained(ds):
    region = f"chr1:0-{min(10_000_000, 25 * ds.sizes['position'])}"
    return ds.avocado.attribute("C1", ds.assay.values[0], region, steps=1, tolerance=1.0).attribution

verbs = {
    "impute": lambda ds, out: float(ds.avocado.impute().imputed.max()),
    "to_zarr": lambda ds, out: ds.avocado.impute()[["imputed", "imputed_tracks", "observed"]].avocado.to_zarr(out, progress=False),
    "to_bigwig": lambda ds, out: ds.avocado.impute().avocado.to_bigwig(out, n_jobs=0, progress=False),
    "coarsen": lambda ds, out: float(ds.avocado.coarsen(250).signal.max()),
    "embed": lambda ds, out: ds.avocado.embed("position", regions=genes(ds), agg="mean", as_="frame"),
    "to_anndata": lambda ds, out: ds.avocado.to_anndata(regions="chr1:0-250,000"),
    "attribute": lambda ds, out: float(explained(ds).max()),
    "qc": lambda ds, out: ds.avocado.qc(progress=False),
    "segment": lambda ds, out: ds.avocado.segment(3, sample=20_000, iterations=1, starts=1, progress=False),
    "variable_loci": lambda ds, out: at_loci(ds),
    "relationships": lambda ds, out: related(ds),
}

# A part of what is computed at once otherwise, so that a layer of some seconds is larger than what is held.
impute.POSITIONS //= 4
for module, name in [
    (export, "VALUES"), (sample, "BINS"), (pieces, "PIECE"), (aggregate, "SPAN"), (aggregate, "ROWS"), (segment, "PIECE"),
]:
    setattr(module, name, getattr(module, name) // 8)
small, large, out, *chosen = sys.argv[1:]
grown = {}
with dask.config.set(scheduler="threads", num_workers=2):
    for name in chosen:
        # Once for what libraries hold.
        verbs[name](xa.open_cube(small), f"{out}/small-{name}")
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        verbs[name](xa.open_cube(large), f"{out}/large-{name}")
        grown[name] = peak() - before
print(json.dumps(grown))
"""
TRACKS, BINS = 9, 2_000_000
FIXED = 48e6
"""Bytes that do not grow with the layer, which takes 72e6: in each of two threads a chunk, what it is computed from, and a decoded chunk of the store."""
SAMPLE = (1 << 21) // 8

ABOVE_FIXED = {
    "impute": 0,
    "to_zarr": 0,
    # Zoom levels take 14 bytes a bin, of one file at a time.
    "to_bigwig": 14 * BINS,
    "coarsen": 0,
    "embed": 0,
    "to_anndata": 0,
    "attribute": 0,
    "qc": (4 * TRACKS + 32) * SAMPLE,
    # Of bins of 250 bp: components as they are and in order (3 and 1), and what decoding takes with 3 states.
    "segment": 8 * (16 + 3 * 3) * BINS // 10,
    "variable_loci": 0,
    "relationships": 0,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    config = {"nodes": 2, "layers": 1, "genome_factors": (1, 2, 1), "context": False, "average": True}
    paths = [folder / "small.zarr", folder / "large.zarr"]
    for path, bins in zip(paths, (20_000, BINS), strict=True):
        cube = xa.datasets.simulate(3, 3, {"chr1": bins * 25})
        cube.avocado.fit(config=config, epochs=1, validation=None, store=path, progress=False)
    return paths


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak where Linux keeps it")
@pytest.mark.parametrize(
    "verbs",
    [
        ["impute", "to_zarr", "to_bigwig"],
        ["coarsen", "embed", "to_anndata", "qc", "segment"],
        ["variable_loci", "relationships", "attribute"],
    ],
    ids=["written", "looked at", "scored and explained"],
)
def test_a_layer_larger_than_memory_goes_through_chunk_by_chunk(
    stores: list[Path], tmp_path: Path, verbs: list[str]
) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, *stores, tmp_path, *verbs]
    # Memory of arrays that are gone goes back at once, so that the peak is of what was held and not of how malloc reuses it.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    env = os.environ | malloc | {"PYTHONPATH": paths}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    held = json.loads(run.stdout)
    assert held.keys() == set(verbs)
    over = {verb: n / 1e6 for verb, n in held.items() if n > FIXED + ABOVE_FIXED[verb]}
    assert not over, held
