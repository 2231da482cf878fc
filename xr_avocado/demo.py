"""The whole way on a simulated panel, in a minute or two: bigWigs, a cube, a model, imputed tracks, their scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr

from xr_avocado.baselines import add_average
from xr_avocado.cube import ASSAY, CELLTYPE, IMPUTED, SIGNAL, CubeError, Experiment, hold_out
from xr_avocado.datasets import simulate
from xr_avocado.evaluate import evaluate
from xr_avocado.fit import fit
from xr_avocado.impute import impute
from xr_avocado.io.atomic import local_path, remove, replacing
from xr_avocado.io.build import build_cube
from xr_avocado.io.export import SHEET, to_bigwig
from xr_avocado.io.sheet import read_sheet
from xr_avocado.io.zarr import open_cube, to_zarr

__all__ = ["Demo", "compare", "run_demo"]

HELD_OUT = (
    Experiment("C2", "H3K27ac"),
    Experiment("C3", "DNase"),
    Experiment("C4", "H3K4me3"),
    Experiment("C5", "H3K36me3"),
    Experiment("C6", "H3K4me1"),
    Experiment("C7", "H3K27me3"),
)
"""One track of each assay, each from another cell type."""
SHOWN = HELD_OUT[0], HELD_OUT[4]
REGION = "chr1:100kb-250kb"
SETTINGS = {"epochs": 8, "context_samples": 120_000, "context_members": 1}
"""About a minute of training: the default takes seven times as many samples."""


class Demo(NamedTuple):
    """What a demo leaves: the scores of the tracks it held out, and where its files are."""

    scores: pd.DataFrame
    store: Path
    bigwigs: Path
    figure: Path


def run_demo(
    folder: str | os.PathLike[str] = "demo",
    *,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Demo:
    """Simulate a panel as bigWig files, build a cube of them, hide six tracks, fit, impute the six, and score them.

    What an earlier demo left in the folder is replaced, and nothing else. Memory: under 1 GB.

    Parameters
    ----------
    folder
        Where to write ``tracks/`` (the simulated bigWigs and their sheet), ``cube.zarr``, ``demo.zarr`` (the fitted cube),
        ``imputed/`` (bigWigs) and ``demo.png``.
    config
        Settings of the model to change.
    seed
        Fixes the model; the panel is always the same.
    progress
        Show progress bars.

    Raises
    ------
    CubeError
        Where the folder cannot be written, or holds a cube or a sheet of these names that is no demo's.
    """
    local_path(folder, "a demo is")
    home = Path(folder)
    panel = _panel(home, progress=progress)
    held = hold_out(panel, HELD_OUT)
    fitted = fit(held, config={**SETTINGS, **(config or {})}, seed=seed, progress=progress)
    to_zarr(fitted, home / "demo.zarr", overwrite=True, progress=False)
    full = impute(fitted, tracks=HELD_OUT)
    # Scores, files and the figure all read these six tracks: they are computed once.
    full[IMPUTED] = full[IMPUTED].compute()
    to_bigwig(full, home / "imputed", progress=progress)
    table = evaluate(full, panel, tracks=HELD_OUT, measures=["mse", "gwcorr"], progress=False)
    figure = home / "demo.png"
    _draw(add_average(full).assign({SIGNAL: panel[SIGNAL]}), figure)
    return Demo(compare(table), home / "demo.zarr", home / "imputed", figure)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Turn what ``evaluate`` returns sideways: a row a track and their mean, a column a measure and method.

    Examples
    --------
    >>> rows = [("C1", "DNase", "imputed", 0.1, 0.9), ("C1", "DNase", "average", 0.2, 0.8)]
    >>> table = pd.DataFrame(rows, columns=["celltype", "assay", "method", "mse", "gwcorr"])
    >>> float(compare(table).loc[("C1", "DNase"), "mse imputed"])
    0.1
    """
    measures = [name for name in ("mse", "gwcorr") if name in table]
    wide = table.pivot(index=[CELLTYPE, ASSAY], columns="method", values=measures)
    methods = sorted(table["method"].unique(), key=lambda name: (name != IMPUTED, name))
    wide = wide[[(measure, method) for measure in measures for method in methods]]
    wide.columns = [" ".join(column) for column in wide.columns]
    wide.loc[("mean", ""), :] = wide.mean()
    return wide


def _panel(home: Path, *, progress: bool) -> xr.Dataset:
    """The simulated panel as a user would have it: bigWigs and a sheet, then a cube on disk."""
    simulated = simulate()
    tracks = home / "tracks"
    _check_ours(home, simulated)
    to_bigwig(simulated, tracks, variable=SIGNAL, progress=progress)
    remove(home / "cube.zarr")
    sizes = simulated.attrs["chromsizes"]
    return build_cube(tracks / SHEET, home / "cube.zarr", genome=sizes, progress=progress)


def _check_ours(home: Path, simulated: xr.Dataset) -> None:
    """Raise where what a demo would replace is no demo's."""
    stores = [home / name for name in ("cube.zarr", "demo.zarr")]
    sheets = [home / name / SHEET for name in ("tracks", "imputed")]
    others = [
        *(
            p
            for p in stores
            if os.path.exists(p) and open_cube(p).attrs.get("chromsizes") != simulated.attrs["chromsizes"]
        ),
        *(
            p
            for p in sheets
            if os.path.exists(p) and not {t.celltype for t in read_sheet(p)} <= {*simulated[CELLTYPE].values}
        ),
    ]
    if others:
        raise CubeError(f"{others[0]} is there and no demo's, so it is not replaced; choose another folder")


def _draw(ds: xr.Dataset, target: Path) -> None:
    from matplotlib import pyplot as plt

    from xr_avocado import plot

    axes = plot.tracks(ds, REGION, pairs=SHOWN)
    with replacing(target) as temporary:
        axes[0].figure.savefig(temporary, dpi=150, format="png")
    plt.close(axes[0].figure)
