"""Opening a store, reading regions and writing bigWigs, against bare zarr and bare pyBigWig.

``python benchmarks/files.py [--json FILE]`` writes a simulated cube of 12 tracks and some 10^6 bins to a store, then, in one run and in turn,
opens it and a bare zarr group, reads regions of 100 kb of all tracks through the cube and from the bare arrays, and writes tracks as bigWigs
and the same values with bare pyBigWig. Ratios are of the medians; 1 is the bare library's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyBigWig
import torch
import xarray as xr
import zarr
from figures import about, row, table, write

import xr_avocado as xa

BINS = 1_000_000
REGION = 100_000
RUNS = 7


def medians(*calls: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Median seconds of each call, taken in turn."""
    for call in calls:
        call()
    taken = np.empty((runs, len(calls)))
    for i in range(runs):
        for j, call in enumerate(calls):
            start = time.perf_counter()
            call()
            taken[i, j] = time.perf_counter() - start
    return np.median(taken, 0).tolist()


def opening(store: Path) -> dict:
    ours, bare = medians(lambda: xa.open_cube(store), lambda: dict(zarr.open_group(store, mode="r").arrays()))
    return row("opening a store", 1e3 * ours, "ms", limit=f"bare zarr: {1e3 * bare:.3g} ms", ratio=ours / bare)


def regions(store: Path) -> list[dict]:
    cube, array = xa.open_cube(store), zarr.open_group(store, mode="r")["signal"]
    starts = np.linspace(0, BINS * 25 - REGION, 5).astype(int)

    def ours() -> list[np.ndarray]:
        return [cube.avocado.sel(f"chr1:{start}-{start + REGION}").signal.values for start in starts]

    def bare() -> list[np.ndarray]:
        return [np.asarray(array[:, :, s // 25 : -(-(s + REGION) // 25)]).astype(np.float32) for s in starts.tolist()]

    for one, other in zip(ours(), bare(), strict=True):
        np.testing.assert_array_equal(one, other)
    mine, theirs = (seconds / len(starts) for seconds in medians(ours, bare))
    limit = f"bare zarr: {1e3 * theirs:.3g} ms"
    return [row("100 kb of 12 tracks from a store", 1e3 * mine, "ms", limit=limit, ratio=mine / theirs)]


def exports(cube: xr.Dataset, folder: Path) -> list[dict]:
    tracks = cube.avocado.experiments[:4]
    few = cube[["signal", "observed"]].load()
    values = [np.sinh(few.signal.sel(celltype=c, assay=a).values.astype(float)) for c, a in tracks]

    def bare() -> None:
        for number, track in enumerate(values):
            file = pyBigWig.open(str(folder / f"{number}.bw"), "w")
            file.addHeader([("chr1", BINS * 25)])
            for first in range(0, BINS, 1 << 18):
                file.addEntries("chr1", first * 25, values=track[first : first + (1 << 18)], span=25, step=25)
            file.close()

    ours = lambda: few.avocado.to_bigwig(folder / "out", variable="signal", tracks=tracks, n_jobs=0, progress=False)
    mine, theirs = medians(ours, bare, runs=3)
    rate = len(tracks) * BINS / mine / 1e6
    limit = f"bare pyBigWig: {len(tracks) * BINS / theirs / 1e6:.3g} million bins a second"
    written = row("writing bigWigs, one thread", rate, "million bins a second", limit=limit, ratio=theirs / mine)
    path = str(folder / "0.bw")
    region = (4_000_000, 4_000_000 + REGION)

    def read() -> np.ndarray:
        with xr.open_dataset(path, engine="bigwig") as ds:
            return ds.avocado.sel(f"chr1:{region[0]}-{region[1]}").signal.values

    def bare_read() -> np.ndarray:
        with pyBigWig.open(path) as file:
            return np.array(file.values("chr1", *region)).reshape(-1, 25).mean(1)

    mine, theirs = medians(read, bare_read)
    limit = f"bare pyBigWig: {1e3 * theirs:.3g} ms"
    return [written, row("opening a bigWig and reading 100 kb", 1e3 * mine, "ms", limit=limit, ratio=mine / theirs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        store = Path(home) / "cube.zarr"
        cube = xa.datasets.simulate(4, 3, {"chr1": BINS * 25})
        cube.avocado.to_zarr(store, progress=False)
        rows = [opening(store), *regions(store), *exports(xa.open_cube(store), Path(home))]
    print(table({"files": {"figures": rows}}))
    write(a.json, "files", rows, about())


if __name__ == "__main__":
    main()
