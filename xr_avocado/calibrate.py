"""calibrate: measure how far imputed tracks lie from held-out truth, so that `impute` and `interval` can say how sure they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    CONTEXT,
    ERROR_FLOOR,
    ERROR_LEVEL,
    ERROR_PROBABILITY,
    ERROR_QUANTILES,
    ERROR_RMS,
    ERRORS,
    FITTED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    check_bins,
    check_cube,
    check_number,
    check_whole,
    experiments,
)
from xr_avocado.error_table import PROBABILITIES, ErrorTable, error_unit
from xr_avocado.fit import Layout, load_panel
from xr_avocado.folds import folds_of
from xr_avocado.index import bins_of

if TYPE_CHECKING:
    import torch

    from xr_avocado.model.held_out import HeldOut

__all__ = ["calibrate"]

FOLDS = 8
"""Folds by default: a network learns more from another track than from more samples."""
BINS = 1 << 15
"""Bins at which each held-out track is compared with the truth."""


def calibrate(
    ds: xr.Dataset,
    folds: Any = None,
    *,
    effort: float = 0.3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Measure the errors of imputation on tracks that are held out, and put tables of them on the fitted cube.

    What the model says of tracks that it was trained on tells too little of its errors on those that it has not seen. So the observed
    tracks are held out fold by fold, a context term is trained on the rest, with less effort than ``fit`` takes, and what it predicts
    for them is compared with the truth: conformal prediction by cross-validation (Barber et al. 2021, doi:10.1214/20-AOS1965), a
    track being the unit that is held out. The errors are kept as quantiles, by level of what is imputed and by assay, an
    assay of few tracks leaning on all assays. The model itself is left as it is.

    Errors are those of networks that have seen fewer tracks and samples than the cube's own, so intervals are a little wider than need be.
    They hold for tracks that are exchangeable with the observed ones, on average over tracks: not for each single track,
    nor for a cell type that is unlike all others (see `support`).

    Memory: twice the observed tracks (2.6 bytes a bin each, twice that if untransformed), 48 bytes a bin, and 2 MB a track for the bins
    that are compared. Time: ``effort`` of training the context term.

    Parameters
    ----------
    ds
        A fitted cube with a context term, and the observed tracks that it was trained on.
    folds
        As `cross_validate` takes them. By default eight, which never hide a cell type's or an assay's last track.
    effort
        Samples that all folds together see in training, as a share of those that ``fit`` takes.
    seed
        Fixes folds, initial values and draws.
    device
        Where to compute; by default the fastest at hand.
    progress
        Show a progress bar.

    Returns
    -------
    The cube plus ``error_quantiles`` (assay x error_level x error_probability) and ``error_rms`` and ``error_floor`` (assay x
    error_level): quantiles and root mean square of truth less imputed, and share of the truth at the lowest value that the tracks have.
    The coordinate ``error_level`` is what is imputed, in the cube's transformed units. The unit of errors is the geometric mean of
    ``track_spread`` and its median over the tracks: background is alike in all tracks, peaks go with the spread.

    Raises
    ------
    CubeError
        Where the cube is not fitted, its model has no context term, or no track can be held out.
    ValueError
        Where ``effort`` is not above 0.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=3)
    >>> fitted = cube.avocado.fit(config={"epochs": 1, "context_samples": 5_000}, progress=False).avocado.calibrate(
    ...     progress=False
    ... )
    >>> full = fitted.avocado.impute(uncertainty=True).avocado.interval(level=0.8)
    >>> here = full.avocado.sel("chr1:1,000-2,000").sel(celltype="C1", assay="H3K4me3")
    >>> bool((here.imputed_lower <= here.imputed_upper).all())
    True
    """
    found = held_out(ds, folds, effort=effort, seed=seed, device=device, progress=progress)
    return with_errors(ds, found)


def held_out(
    ds: xr.Dataset,
    folds: Any = None,
    *,
    effort: float,
    seed: int,
    device: str | torch.device | None,
    progress: bool,
) -> HeldOut:
    """Predict the observed tracks by context terms that have not seen them; parameters and errors are those of `calibrate`."""
    from xr_avocado.model.config import Config
    from xr_avocado.model.held_out import predict_held_out
    from xr_avocado.model.training import device_named

    check_bins(check_cube(ds, SIGNAL), "calibrate on")
    if FITTED not in ds.attrs or CONTEXT not in ds:
        raise CubeError(
            "calibrate needs a fitted cube whose model has a context term (the default of .avocado.fit(), without preset): "
            "factors would have to be learnt anew for every fold; .avocado.cross_validate() does that, and scores them"
        )
    if not check_number("effort", effort) > 0:
        raise ValueError(f"effort is a share of the samples that fit takes, above 0; got {effort!r}")
    seed = check_whole("seed", seed, least=0)
    tracks = experiments(ds)
    chosen = even_folds(ds, seed=seed) if folds is None else folds_of(ds, folds, seed=seed)
    rows = [[tracks.index(track) for track in fold] for fold in chosen]
    config = Config.from_attrs(ds.attrs[FITTED]["config"])
    panel = load_panel(ds, tracks, Layout.of(bins_of(ds), config), config, device_named(device))
    samples = config.epochs * config.context_members * min(config.context_samples, panel.values.numel())
    config = config.updated(
        {"epochs": 1, "context_members": 1, "context_samples": max(1, round(effort * samples / len(rows)))}
    )
    labels, bins = (ds.sizes[CELLTYPE], ds.sizes[ASSAY]), min(BINS, ds.sizes[POSITION])
    return predict_held_out(panel, rows, config, labels, bins=bins, seed=seed, progress=progress)


def even_folds(ds: xr.Dataset, *, seed: int) -> list[list[Experiment]]:
    """Deal out the tracks to folds, each of which leaves a track of every cell type and assay that has several."""
    folds: list[list[Experiment]] = [[] for _ in range(FOLDS)]
    every = Counter(label for track in experiments(ds) for label in enumerate(track))
    left = [every.copy() for _ in folds]
    for i, track in enumerate(track for fold in folds_of(ds, "latin", seed=seed) for track in fold):
        k = i % FOLDS
        if all(left[k][label] > 1 for label in enumerate(track)):
            left[k].subtract(enumerate(track))
            folds[k].append(track)
    return [fold for fold in folds if fold]


def with_errors(ds: xr.Dataset, found: HeldOut) -> xr.Dataset:
    """Put tables of the errors of tracks that were held out on a cube."""
    known, floor, usual = ~np.isnan(found.truth), float(np.nanmin(found.truth)), float(np.median(found.spread))
    table = ErrorTable.of(
        found.predicted,
        (np.nan_to_num(found.truth) - found.predicted) / error_unit(found.spread, usual)[:, None],
        found.weight * known,
        found.truth == floor,
        found.assay,
        ds.sizes[ASSAY],
    )
    about = {"tracks": len(found.assay), "floor": floor, "spread": usual}
    by_level = (ASSAY, ERROR_LEVEL)
    quantiles = {"long_name": "quantiles of truth less imputed in held-out tracks, in error units", **about}
    rms = {"long_name": "root mean square of truth less imputed in held-out tracks, in error units"}
    share = {"long_name": "share of held-out truth at its lowest value"}
    # Of what an earlier call found: at other levels, it would not go beside this.
    bare = ds.drop_vars([*ERRORS, ERROR_LEVEL, ERROR_PROBABILITY], errors="ignore")
    return bare.assign(
        {
            ERROR_QUANTILES: ((*by_level, ERROR_PROBABILITY), table.quantiles.astype(np.float32), quantiles),
            ERROR_RMS: (by_level, table.rms.astype(np.float32), rms),
            ERROR_FLOOR: (by_level, table.at_floor.astype(np.float32), share),
        }
    ).assign_coords({ERROR_LEVEL: table.level, ERROR_PROBABILITY: PROBABILITIES})
