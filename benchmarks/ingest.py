"""How fast build_cube takes bigWigs in, against one bare pass of the reader over the same bases.

    python benchmarks/ingest.py [samples.tsv [regions.bed [genome]]]

Both passes are run here and now, on one core and on all, so that the ratios hold on any machine. A bin's bytes are what it is as
float32. Without a sheet it takes the real pilot tracks beside the checkout, else it simulates some.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.cube import experiments
from xr_avocado.genome import GenomeBins
from xr_avocado.intervals import as_frame
from xr_avocado.io.bigwig import read_bins, write_bins
from xr_avocado.io.build import build_cube
from xr_avocado.io.export import to_bigwig
from xr_avocado.io.sheet import read_sheet
from xr_avocado.io.zarr import open_cube

PILOT = Path(__file__).parents[2] / "shared" / "data" / "roadmap_pilot"


def simulated(folder: Path) -> tuple[Path, str, dict[str, int]]:
    sizes, rng = {"chr1": 30_000_010}, np.random.default_rng(0)
    bins = GenomeBins.from_chromsizes(sizes)
    rows = []
    for i in range(8):
        path = folder / f"{i}.bw"
        write_bins(path, bins, np.round(rng.gamma(0.5, 1.0, len(bins)), 2), sizes, progress=False)
        rows.append((f"C{i}", "A", path.name))
    pd.DataFrame(rows, columns=["celltype", "assay", "path"]).to_csv(folder / "samples.tsv", sep="\t", index=False)
    return folder / "samples.tsv", "chr1", sizes


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_pass(paths: list[str], bins: GenomeBins) -> None:
    """Decode every base of the regions with pyBigWig and drop it."""
    import pyBigWig

    spans = [tuple(row) for row in bins.segments.itertuples(index=False)]
    for path in paths:
        handle = pyBigWig.open(path)
        for chrom, start, end in spans:
            for first in range(start, end, 8_000_000):
                handle.values(chrom, first, min(first + 8_000_000, end), numpy=True)
        handle.close()


def read_all(paths: list[str], bins: GenomeBins) -> None:
    for path in paths:
        read_bins(path, bins)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, given = Path(name), sys.argv[1:]
        if given or PILOT.is_dir():
            defaults = [str(PILOT / "samples.tsv"), str(PILOT / "pilot_regions.hg19.bed"), "hg19"]
            sheet, regions, genome = [*given, *defaults[len(given) :]]
        else:
            sheet, regions, genome = simulated(folder)
        sizes = chromosome_sizes(genome)
        bins = GenomeBins.from_regions(as_frame(regions, sizes=sizes), 25, sizes)
        paths = [path for track in read_sheet(sheet) for path in track.paths]
        size, cores = len(paths) * len(bins) * 4 / 1e6, len(os.sched_getaffinity(0))
        print(f"{len(paths)} tracks of {len(bins):,} bins: {size:,.0f} MB as float32; {cores} cores")

        bare_pass(paths[:1], bins)
        took = {"bare pass of pyBigWig, one core": seconds(partial(bare_pass, paths, bins))}
        took["read_bins, one core"] = seconds(partial(read_all, paths, bins))
        how = {"genome": genome, "regions": regions, "progress": False}
        one_bin = {**how, "regions": bins[:1].segments, "n_jobs": 1}
        took["build_cube of one bin: starting up"] = seconds(partial(build_cube, sheet, folder / "bin.zarr", **one_bin))
        for n_jobs in sorted({1, cores}):
            store = folder / f"{n_jobs}.zarr"
            took[f"build_cube, n_jobs={n_jobs}"] = seconds(partial(build_cube, sheet, store, n_jobs=n_jobs, **how))
        took["a second build_cube, all done"] = seconds(partial(build_cube, sheet, store, **how))
        cube = open_cube(store)
        took["reading the store back, to float32"] = seconds(cube.signal.compute)
        some = experiments(cube)[:4]
        export = seconds(lambda: to_bigwig(cube, folder / "out", variable="signal", tracks=some, progress=False))

        bare = took["bare pass of pyBigWig, one core"]
        for what, s in took.items():
            print(f"{what:38s} {s:7.2f} s {size / s:8.1f} MB/s {s / bare:6.2f} x the bare pass")
        part = size * len(some) / len(paths)
        print(f"{'to_bigwig, with zoom levels':38s} {export:7.2f} s {part / export:8.1f} MB/s for {len(some)} tracks")
        files = sum(os.path.getsize(p) for p in paths) / 1e6
        stored = sum(p.stat().st_size for p in store.rglob("*") if p.is_file()) / 1e6
        print(
            f"on disk: bigWigs {files:.1f} MB, store {stored:.1f} MB, {stored * 8e6 / len(paths) / len(bins):.1f} bits a value"
        )


if __name__ == "__main__":
    main()
