"""Intervals on real tracks: do they hold their share of tracks that were held out, and are they sharper than a constant?

``python benchmarks/intervals.py [ROADMAP_PILOT_FOLDER]`` builds the cube of 20 Roadmap tracks, and for each of the four folds of
``pilot_folds.py`` hides five tracks, fits and calibrates on the other fifteen, imputes the five at 5 kb of every 100, and looks how much of the
truth lies in intervals that should hold 50, 80 and 95 % of it. Beside them: ``constant``, the same bounds at every level of what is
imputed, a pair of quantiles an assay, of the same held-out errors; and ``normal``, a normal distribution with ``imputed_sd``. It prints coverage by
mark and track, and mean width and interval score (Gneiting and Raftery 2007, doi:10.1198/016214506000001437; lower is better) as ratios to
the constant's; then how much better tracks that were trained on are imputed with ``leave_one_out=True`` than when they were hidden.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import joblib
import numpy as np
import pandas as pd
import xarray as xr
from pilot_folds import latin_folds

import xr_avocado as xa
from xr_avocado.calibrate import held_out, with_errors
from xr_avocado.intervals import as_frame
from xr_avocado.model.held_out import HeldOut

LEVELS = (0.5, 0.8, 0.95)
LENGTH = 5_000
"""Of the stretches that are scored, on the grid of the widest bins that the context term reads: bp."""


def stretches(regions: pd.DataFrame, every: int) -> pd.DataFrame:
    rows = [
        (chrom, start, start + LENGTH)
        for chrom, first, last in regions[["chrom", "start", "end"]].itertuples(index=False)
        for start in range(-(-first // LENGTH) * LENGTH, last - LENGTH, every)
    ]
    return pd.DataFrame(rows, columns=["chrom", "start", "end"])


def score(y: np.ndarray, lower: np.ndarray, upper: np.ndarray, level: float) -> dict[str, float]:
    missed = np.maximum(lower - y, 0) + np.maximum(y - upper, 0)
    width = upper - lower
    held = float(np.mean((y >= lower) & (y <= upper)))
    return {"coverage": held, "width": float(width.mean()), "score": float(np.mean(width + 2 / (1 - level) * missed))}


def constant_bounds(found: HeldOut, assay: int, level: float) -> np.ndarray:
    """Quantiles of an assay's held-out errors, whatever was imputed."""
    own = found.assay == assay
    error, weight = (x[own].ravel() for x in (found.truth - found.predicted, found.weight))
    order = np.argsort(error)
    reached = np.cumsum(weight[order]) / weight.sum()
    return np.interp([(1 - level) / 2, (1 + level) / 2], reached, error[order])


def run_fold(cube: xr.Dataset, scored: pd.DataFrame, hidden: list[tuple[str, str]], options: dict[str, Any]) -> Any:
    held, seconds = cube.avocado.hold_out(hidden), []
    start = time.perf_counter()
    fitted = held.avocado.fit(config=options["config"], seed=options["seed"], progress=False)
    seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    found = held_out(fitted, effort=options["effort"], seed=options["seed"], device=None, progress=False)
    fitted = with_errors(fitted, found)
    seconds.append(time.perf_counter() - start)
    # The widest windows reach into the stretches beside.
    around = fitted.avocado.sel(scored.assign(start=scored.start - LENGTH, end=scored.end + LENGTH))
    truth = cube.avocado.sel(scored)
    full = around.avocado.impute(leave_one_out=True).avocado.sel(scored).load()
    errors = ((full.imputed - truth.signal) ** 2).mean("position").to_dataframe("mse").reset_index().dropna()
    errors["hidden"] = [pair in hidden for pair in zip(errors.celltype, errors.assay, strict=True)]
    sd = around.avocado.impute(tracks=hidden, uncertainty=True).avocado.sel(scored).imputed_sd.load()
    rows = []
    for level in LEVELS:
        bounds = full.avocado.interval(level)
        z = NormalDist().inv_cdf((1 + level) / 2)
        for celltype, assay in hidden:
            pair = {"celltype": celltype, "assay": assay}
            y, p = (x.sel(pair).values for x in (truth.signal, full.imputed))
            low, high = constant_bounds(found, list(cube.assay.values).index(assay), level)
            off = z * sd.sel(pair).values
            for method, lower, upper in (
                ("interval", bounds.imputed_lower.sel(pair).values, bounds.imputed_upper.sel(pair).values),
                ("normal", np.maximum(p - off, 0), p + off),
                ("constant", np.maximum(p + low, 0), np.maximum(p + high, 0)),
            ):
                rows.append({**pair, "method": method, "level": level, **score(y, lower, upper, level)})
    return pd.DataFrame(rows), errors, seconds


def report(table: pd.DataFrame, errors: pd.DataFrame, seconds: np.ndarray) -> None:
    print("\ncoverage by mark, mean over its held-out tracks")
    by_mark = table.pivot_table(index=["method", "level"], columns="assay", values="coverage", sort=False)
    print(by_mark.assign(all=by_mark.mean(axis=1)).round(3).to_string())
    print("\ncoverage of the interval by track")
    own = table[table.method == "interval"]
    print(own.pivot_table(index=["assay", "celltype"], columns="level", values="coverage").round(3).to_string())
    print("\nmean width and interval score, as a ratio to those of a constant an assay")
    mean = table.groupby(["method", "level"], sort=False)[["width", "score"]].mean()
    print((mean / mean.xs("constant")).round(3).to_string())
    same = errors.groupby(["celltype", "assay", "hidden"]).mse.mean().unstack()
    ratio = (same[False] / same[True]).dropna()
    print(
        f"\nmse of tracks trained on, left out of their own imputation, as a ratio to the same tracks' when hidden from training: "
        f"{same[False].sum() / same[True].sum():.3f} ({ratio.min():.2f} to {ratio.max():.2f}; {len(ratio)} tracks)"
    )
    print(f"calibrating took {seconds[:, 1].sum() / seconds[:, 0].sum():.2f} times as long as fitting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared/data/roadmap_pilot")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument("--config", type=json.loads, default={}, help="settings of fit as JSON, e.g. '{\"epochs\": 5}'")
    parser.add_argument("--effort", type=float, default=0.3)
    parser.add_argument("--every", type=int, default=100_000, help="base pairs from one scored stretch to the next")
    parser.add_argument("--jobs", type=int, default=2, help="folds run at once, each in a process of one thread")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if not a.folder.is_dir():
        print(f"skipped: the real tracks are not here ({a.folder})")
        return
    regions = a.folder / "pilot_regions.hg19.bed"
    options = {"config": a.config, "effort": a.effort, "seed": a.seed}
    with tempfile.TemporaryDirectory() as folder:
        cube = xa.build_cube(
            a.folder / "samples.tsv", f"{folder}/pilot.zarr", genome="hg19", regions=regions, progress=False
        ).load()
        scored = stretches(as_frame(regions), a.every)
        jobs = [joblib.delayed(run_fold)(cube, scored, latin_folds(cube)[k - 1], options) for k in a.folds]
        runs = joblib.Parallel(n_jobs=a.jobs)(jobs)
    print(f"folds {a.folds}, {a.config}, effort {a.effort}: arcsinh space, {len(scored) * LENGTH // 25:,} bins")
    tables, errors, seconds = zip(*runs, strict=True)
    report(pd.concat(tables), pd.concat(errors), np.array(seconds))


if __name__ == "__main__":
    main()
