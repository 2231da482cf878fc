"""Memory of the verbs that go along the genome: what the docstrings say, on a cube whose layers are larger than that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xr_avocado as xa

CHILD = """
import sys
import dask
import xr_avocado as xa
import xr_avocado.impute, xr_avocado.io.export

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

def run(store, out):
    full = xa.open_cube(store).avocado.impute()
    if sys.argv[1] == "impute":
        float(full.imputed.max())
    elif sys.argv[1] == "to_zarr":
        full[["imputed", "imputed_tracks", "observed"]].avocado.to_zarr(out, progress=False)
    else:
        full.avocado.to_bigwig(out, n_jobs=0, progress=False)

# An eighth of what is computed at once otherwise, so that a layer of some seconds is larger than what is held.
xr_avocado.impute.POSITIONS //= 8
xr_avocado.io.export.VALUES //= 8
with dask.config.set(scheduler="threads", num_workers=2):
    # Once for what libraries hold.
    run(sys.argv[2], f"{sys.argv[4]}/first")
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    run(sys.argv[3], f"{sys.argv[4]}/second")
print(peak() - before)
"""
TRACKS, BINS = 9, 2_000_000
FIXED = 40e6
"""Bytes that do not grow with the layer: in each of two threads a chunk, what it is computed from, and a decoded chunk of the store."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    config = {"nodes": 2, "layers": 1, "genome_factors": (1, 1, 1), "context": False, "average": True}
    paths = [folder / "small.zarr", folder / "large.zarr"]
    for path, bins in zip(paths, (20_000, BINS), strict=True):
        cube = xa.datasets.simulate(3, 3, {"chr1": bins * 25})
        cube.avocado.fit(config=config, epochs=1, validation=None, store=path, progress=False)
    return paths


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak where Linux keeps it")
@pytest.mark.parametrize("verb", ["impute", "to_zarr", "to_bigwig"])
def test_a_layer_larger_than_memory_goes_through_chunk_by_chunk(stores: list[Path], tmp_path: Path, verb: str) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, verb, *stores, tmp_path]
    # Memory of arrays that are gone goes back at once, so that the peak is of what was held and not of how malloc reuses it.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    env = os.environ | malloc | {"PYTHONPATH": paths}
    run = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    # Zoom levels of a bigWig take 14 bytes a bin, of one file at a time.
    bound = FIXED + 14 * BINS * (verb == "to_bigwig")
    assert int(run.stdout) < bound < 4 * TRACKS * BINS
