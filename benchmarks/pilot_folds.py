"""Accuracy on real tracks: 20 Roadmap tracks, four folds that each hide one track of every cell type and every mark.

``python benchmarks/pilot_folds.py [ROADMAP_PILOT_FOLDER]`` builds the cube, and for each fold hides five tracks, fits on the other fifteen,
imputes the five and scores them beside the baselines, in arcsinh space over all 1,126,469 bins of the pilot regions. It prints the mean
over the tracks of the folds run, the same per mark, each as a ratio to average activity's, and the seconds that fitting took as a
ratio to those of building the cube. ``--unseen`` fits on the even regions alone and scores on the odd ones, which the model never saw,
beside a model that saw them. The factors of the default model, which impute nothing, are as small as they can be, unless ``--factors``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import xarray as xr

import xr_avocado as xa
from xr_avocado.intervals import as_frame
from xr_avocado.search import SMALLEST

MEASURES = ["mse", "mse1obs", "mse1imp", "gwcorr", "gwspear", "match1"]


def latin_folds(cube: xr.Dataset) -> list[list[tuple[str, str]]]:
    """Each cell type lacks one mark, all different; fold k hides the mark k places further on in each."""
    marks = ["H3K4me1", "H3K4me3", "H3K9me3", "H3K27me3", "H3K36me3"]
    observed = cube.observed.sel(assay=marks)
    lacks = {str(c): int((~observed.sel(celltype=c)).values.argmax()) for c in cube.celltype.values}
    return [[(c, marks[(lack + k) % 5]) for c, lack in lacks.items()] for k in (1, 2, 3, 4)]


def score_fold(
    cube: xr.Dataset, hidden: list[tuple[str, str]], baselines: list[str], options: dict
) -> tuple[pd.DataFrame, float]:
    start = time.perf_counter()
    fitted = cube.avocado.hold_out(hidden).avocado.fit(**options)
    seconds = time.perf_counter() - start
    full = fitted.avocado.impute(tracks=hidden)
    methods = ["imputed", *baselines]
    return full.avocado.evaluate(cube, tracks=hidden, methods=methods, measures=MEASURES, progress=False), seconds


def score_unseen(
    cube: xr.Dataset, regions: pd.DataFrame, hidden: list[tuple[str, str]], options: dict
) -> tuple[pd.DataFrame, float]:
    """Fit on the even regions and impute the odd ones, and fit on all and impute the same."""
    even, odd = (cube.avocado.sel(regions.iloc[k::2]) for k in (0, 1))
    tables, seconds = [], 0.0
    for name, shown in (("positions seen", cube), ("positions not seen", even)):
        start = time.perf_counter()
        model = shown.avocado.hold_out(hidden).avocado.fit(**options)
        seconds += time.perf_counter() - start
        full = odd.avocado.hold_out(hidden).avocado.impute(tracks=hidden, model=model)
        methods = {name: "imputed"} | ({"average": "average"} if shown is cube else {})
        tables.append(full.avocado.evaluate(odd, tracks=hidden, methods=methods, measures=MEASURES, progress=False))
    return pd.concat(tables), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared/data/roadmap_pilot")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument("--baselines", nargs="*", default=["average", "additive", "ridge"])
    parser.add_argument("--preset")
    parser.add_argument("--config", type=json.loads, default={}, help="settings as JSON, e.g. '{\"epochs\": 5}'")
    parser.add_argument(
        "--unseen", action="store_true", help="score positions that the model never saw, and had it seen them"
    )
    parser.add_argument("--table", type=Path, help="write every track's scores here, as TSV")
    parser.add_argument("--plot", type=Path, help="draw them here")
    parser.add_argument("--factors", action="store_true", help="train the default model's factors in full as well")
    parser.add_argument("--jobs", type=int, default=2, help="folds run at once, each in a process of one thread")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if not a.folder.is_dir():
        print(f"skipped: the real tracks are not here ({a.folder})")
        return
    smallest = {} if a.preset or a.factors else {**SMALLEST, "genome_factors": (1, 1, 1)}
    options = {"preset": a.preset, "config": smallest | a.config, "seed": a.seed}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cube = xa.build_cube(
            a.folder / "samples.tsv", f"{folder}/pilot.zarr", genome="hg19", regions=a.folder / "pilot_regions.hg19.bed"
        )
        built = time.perf_counter() - start
        held = [latin_folds(cube)[k - 1] for k in a.folds]
        regions = as_frame(a.folder / "pilot_regions.hg19.bed")
        jobs = [
            joblib.delayed(score_unseen)(cube, regions, hidden, options)
            if a.unseen
            else joblib.delayed(score_fold)(cube, hidden, a.baselines, options)
            for hidden in held
        ]
        runs = joblib.Parallel(n_jobs=a.jobs)(jobs)
    table = pd.concat([scores for scores, _ in runs], ignore_index=True)
    if a.table:
        table.to_csv(a.table, sep="\t", index=False)
    if a.plot:
        np.ravel(xa.plot.scores(table))[0].figure.savefig(a.plot, dpi=120)
    print(f"\nfolds {a.folds}, preset {a.preset}, {a.config}: arcsinh space, mean over {5 * len(runs)} held-out tracks")
    mean = table.groupby("method", sort=False)[MEASURES].mean()
    print(mean.round(4).to_string())
    print("\nmse per mark")
    print(table.pivot_table(index="method", columns="assay", values="mse", sort=False).round(4).to_string())
    print("\ngwcorr per mark")
    print(table.pivot_table(index="method", columns="assay", values="gwcorr", sort=False).round(4).to_string())
    print("\nas a ratio to average activity's")
    print((mean / mean.loc["average"]).round(3).to_string())
    print(f"\nfit took {sum(s for _, s in runs) / len(runs) / built:.1f} times as long as building the cube")


if __name__ == "__main__":
    main()
