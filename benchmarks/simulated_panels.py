"""Accuracy on simulated panels, small to large: the default model beside a preset of factors alone and the baselines.

``python benchmarks/simulated_panels.py [SIZE ...]`` simulates panels of 4 x 4, 20 x 10 and 100 x 20 (cell types x assays) with planted
structure, shows the models a part of each (all but one track a cell type of the smallest, 60 % and 40 % of the larger), and scores
tracks that were hidden, in arcsinh space over all bins. It prints each method's mean MSE and correlation as a ratio to, and a difference
from, average activity's, and the seconds of each fit as a ratio to those of the preset's.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

import xr_avocado as xa
from xr_avocado.search import SMALLEST

BASELINES = ["average", "additive", "ridge"]


class Size(NamedTuple):
    """A panel: cell types, assays, base pairs, share of the tracks that the models see, hidden tracks that are scored."""

    celltypes: int
    assays: int
    bp: int
    seen: float
    scored: int


SIZES = {
    "4x4": Size(4, 4, 3_000_000, 0.75, 4),
    "20x10": Size(20, 10, 500_000, 0.6, 20),
    "100x20": Size(100, 20, 300_000, 0.4, 20),
}


def hidden_tracks(cube: xr.Dataset, size: Size, seed: int) -> list[tuple[str, str]]:
    """Draw tracks to hide, so that every cell type and assay keeps some: whole diagonals of the table, which is shuffled."""
    random = np.random.default_rng(seed)
    celltypes, assays = random.permutation(size.celltypes), random.permutation(size.assays)
    diagonals = round((1 - size.seen) * size.assays)
    pairs = [(c, (c + k) % size.assays) for k in range(diagonals) for c in range(size.celltypes)]
    return [(str(cube.celltype.values[celltypes[c]]), str(cube.assay.values[assays[a]])) for c, a in pairs]


def compare(size: Size, seed: int, epochs: int) -> tuple[pd.DataFrame, dict[str, float]]:
    cube = xa.datasets.simulate(size.celltypes, size.assays, chromsizes={"chr1": size.bp}, seed=seed)
    hidden = hidden_tracks(cube, size, seed)
    held = cube.avocado.hold_out(hidden)
    scored = [hidden[i] for i in np.random.default_rng(seed).permutation(len(hidden))[: size.scored]]
    tables, seconds = [], {}
    for name, preset in (("default", None), ("preset small", "small")):
        start = time.perf_counter()
        # There are few positions to learn from: a few of the default's twelve rounds of samples do, and factors impute nothing there.
        config = {} if preset else {**SMALLEST, "genome_factors": (1, 1, 1)}
        fitted = held.avocado.fit(preset, config=config, epochs=None if preset else epochs, seed=seed)
        seconds[name] = time.perf_counter() - start
        methods = {name: "imputed"} | ({b: b for b in BASELINES} if preset is None else {})
        full = fitted.avocado.impute(tracks=scored)
        tables.append(full.avocado.evaluate(cube, tracks=scored, methods=methods, measures=["mse", "gwcorr"]))
    return pd.concat(tables), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"among {', '.join(SIZES)}; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4, help="of the default model")
    a = parser.parse_args()
    if unknown := [name for name in a.sizes if name not in SIZES]:
        parser.error(f"no panel {unknown[0]!r}; there are {', '.join(SIZES)}")
    for name in a.sizes or SIZES:
        table, seconds = compare(SIZES[name], a.seed, a.epochs)
        mean = table.groupby("method", sort=False)[["mse", "gwcorr"]].mean()
        shown = pd.DataFrame(
            {
                "mse": mean.mse,
                "mse / average's": mean.mse / mean.mse["average"],
                "gwcorr": mean.gwcorr,
                "gwcorr - average's": mean.gwcorr - mean.gwcorr["average"],
            }
        )
        print(f"\npanel {name}, seed {a.seed}: arcsinh space, mean over {SIZES[name].scored} held-out tracks, all bins")
        print(shown.round(4).to_string())
        print(f"fitting took {seconds['default'] / seconds['preset small']:.1f} times as long as the preset's")


if __name__ == "__main__":
    main()
