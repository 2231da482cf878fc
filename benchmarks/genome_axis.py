"""Whether the genome axis pays: against pandas indexes and spelled-out coordinates of the same bins, measured in one run.

``python benchmarks/genome_axis.py [--chromosomes 4]`` prints how many times as much time, memory and bytes the plain ways
take as the table of segments does. The plain ways hold every bin, so that a few chromosomes of hg38 are compared, not all.
"""

from __future__ import annotations

import argparse
import pickle
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.assembly import chromosome_sizes
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins, select


def measure(call: Callable[[], Any], repeat: int = 5) -> tuple[float, float, Any]:
    """Best seconds of a few calls, and the peak bytes of one."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return min(seconds), peak, result


def by_segments(sizes: dict[str, int]) -> xr.Dataset:
    return assign_bins(xr.Dataset(attrs={"chromsizes": sizes}), GenomeBins.from_chromsizes(sizes, 25))


def by_multiindex(sizes: dict[str, int]) -> xr.Dataset:
    bins = GenomeBins.from_chromsizes(sizes, 25)
    chrom = pd.Categorical.from_codes(
        np.repeat(np.arange(len(sizes)), np.diff([*_first_rows(bins), len(bins)])), list(sizes)
    )
    index = pd.MultiIndex.from_arrays([chrom, bins.start], names=["chrom", "start"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "position")
    return xr.Dataset(coords=coords).assign_coords(end=("position", bins.end))


def _first_rows(bins: GenomeBins) -> list[int]:
    return [rows.start for rows in bins.segment_slices]


def by_mask(sizes: dict[str, int]) -> xr.Dataset:
    bins = GenomeBins.from_chromsizes(sizes, 25)
    return xr.Dataset(coords={name: ("position", getattr(bins, name)) for name in ("chrom", "start", "end")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromosomes", type=int, default=4, help="how many chromosomes of hg38, from chr22 down")
    n = parser.parse_args().chromosomes
    sizes = {f"chr{i}": chromosome_sizes("hg38")[f"chr{i}"] for i in range(22, 22 - n, -1)}
    chrom, a, b = "chr22", 20_000_000, 20_100_000

    ways: dict[str, tuple[Callable[[dict[str, int]], xr.Dataset], Callable[[xr.Dataset], xr.Dataset]]] = {
        "segments": (by_segments, lambda ds: select(ds, f"{chrom}:{a}-{b}")),
        "MultiIndex": (by_multiindex, lambda ds: ds.sel(chrom=chrom).sel(start=slice(a, b - 1))),
        "plain coordinates": (by_mask, lambda ds: ds.isel(position=((ds.chrom == chrom) & (ds.end > a) & (ds.start < b)).values)),
    }  # fmt: skip
    table = {}
    for way, (build, cut) in ways.items():
        built = measure(lambda build=build: build(sizes), repeat=2)
        found = measure(lambda cut=cut, ds=built[2]: cut(ds))
        assert list(found[2].sizes.values()) == [(b - a) // 25], "the ways must find the same bins"
        copied = measure(lambda ds=built[2]: ds.copy(deep=True), repeat=2)
        table[way] = {
            "build: time": built[0],
            "build: memory": built[1],
            "select 100 kb: time": found[0],
            "select 100 kb: memory": found[1],
            "deep copy: time": copied[0],
            "pickle: bytes": len(pickle.dumps(built[2])),
        }
    costs = pd.DataFrame(table)
    ratios = costs.drop(columns="segments").div(costs["segments"], axis=0)
    print(f"{GenomeBins.from_chromsizes(sizes, 25)!r}: how many times as much as with segments")
    print(ratios.map("{:,.1f} x".format).to_string())


if __name__ == "__main__":
    main()
