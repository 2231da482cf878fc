"""What aggregating the factors over 20,000 intervals costs: against one plain read of the same rows, measured in one run.

``python benchmarks/embed.py [--intervals 20000]`` makes factors of the paper's sizes for three chromosomes of hg38, draws genes there, and
prints how many times as long `embed` takes as numpy's fancy indexing of every factor row that the genes' promoters overlap.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import xr_avocado  # noqa: F401  (registers ds.avocado)
from xr_avocado.assembly import chromosome_sizes
from xr_avocado.cube import factor_dim, genome_factors, position_dim
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins

SCALES = {25: 25, 250: 40, 5000: 45}
PROMOTER: dict[str, Any] = {"anchor": "start", "flank": (2000, 0)}


def fitted(chroms: list[str]) -> xr.Dataset:
    """A cube with factors drawn at random, as if it had been fitted."""
    sizes = {chrom: chromosome_sizes("hg38")[chrom] for chrom in chroms}
    random = np.random.default_rng(0)
    labels = {"celltype": ["C1"], "assay": ["A1"]}
    cube = xr.Dataset({"observed": (("celltype", "assay"), np.ones((1, 1), bool))}, coords=labels)
    cube.attrs = {"chromsizes": sizes, "avocado": {"config": {"scales": [bp // 25 for bp in SCALES]}}}
    for dim in labels:
        cube[f"{dim}_factors"] = ((dim, f"{dim}_factor"), np.zeros((1, 2), np.float32))
    for bp, n in SCALES.items():
        bins = GenomeBins.from_chromsizes(sizes, bp)
        dim = position_dim(bp, 25)
        cube[genome_factors(bp)] = ((dim, factor_dim(bp)), random.random((len(bins), n), np.float32))
        cube = assign_bins(cube, bins, dim)
    return cube


def draw_genes(cube: xr.Dataset, n: int) -> pd.DataFrame:
    random = np.random.default_rng(1)
    sizes = cube.attrs["chromsizes"]
    chrom = random.choice(list(sizes), n)
    start = (random.random(n) * (pd.Series(chrom).map(sizes) - 200_000)).astype(int) + 50_000
    strand = random.choice(["+", "-"], n)
    genes = pd.DataFrame({"chrom": chrom, "start": start, "end": start + random.integers(500, 50_000, n)})
    return genes.assign(strand=strand)


def rows_of(bins: GenomeBins, genes: pd.DataFrame) -> np.ndarray:
    """Every row under a promoter, promoter by promoter."""
    plus = (genes["strand"] == "+").to_numpy()
    start = np.where(plus, genes["start"] - 2000, genes["end"])
    first, last = bins.overlaps(genes["chrom"].to_numpy(), start, start + 2000)
    return np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])


def seconds(call: Callable[[], Any], repeat: int = 3) -> float:
    best = np.inf
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intervals", type=int, default=20_000)
    n = parser.parse_args().intervals
    cube = fitted(["chr20", "chr21", "chr22"])
    genes = draw_genes(cube, n)
    factors = [cube[genome_factors(bp)].values for bp in SCALES]
    rows = [rows_of(cube.avocado.bins if bp == 25 else GenomeBins.from_chromsizes(cube.attrs["chromsizes"], bp), genes) for bp in SCALES]  # fmt: skip
    read = seconds(lambda: [values[at] for values, at in zip(factors, rows, strict=True)])
    ways: dict[str, dict[str, Any]] = {
        "promoters, mean": PROMOTER,
        "promoters, mean, PyRanges": PROMOTER | {"as_": "pyranges"},
        "promoters, 8 windows": PROMOTER | {"windows": 8},
        "promoters, 8 windows, PyRanges": PROMOTER | {"windows": 8, "as_": "pyranges"},
        "promoters, max": PROMOTER | {"agg": "max"},
        "promoters, quantile": PROMOTER | {"agg": "quantile"},
        "promoters, np.std": PROMOTER | {"agg": np.std},
    }
    count = sum(map(len, rows))
    print(f"{n:,} promoters of 2 kb, {count:,} rows; one plain read of these rows: {read:.2f} s. In such reads:")
    for name, options in ways.items():
        took = seconds(lambda o=options: cube.avocado.embed("position", regions=genes, **({"as_": "frame"} | o)))
        print(f"{name:<32}{took / read:7.1f} x  ({took:.2f} s)", flush=True)


if __name__ == "__main__":
    main()
