"""A sample of bins of the observed tracks that fits memory, however large the cube is."""

from __future__ import annotations

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.cube import POSITION, SIGNAL, Experiment

__all__ = ["BINS", "VALUES", "read_sample", "sample_runs"]

BINS = 1 << 21
"""Bins of the sample, at most."""
VALUES = 1 << 26
"""Values of the sample, at most: 256 MB for all tracks together."""
RUNS = 16
"""Runs of neighbouring bins that make up the sample: few, since stores are read by chunks of up to a million bins."""


def sample_runs(n_bins: int, n_tracks: int) -> list[slice]:
    """Choose the bins to work on: all where so many tracks fit the sample, else runs spread evenly over the axis."""
    most = min(BINS, VALUES // max(1, n_tracks))
    if n_bins <= most:
        return [slice(0, n_bins)]
    length = max(1, most // RUNS)
    return [slice(start, start + length) for start in np.linspace(0, n_bins - length, RUNS).astype(int).tolist()]


def read_sample(ds: xr.Dataset, tracks: list[Experiment], runs: list[slice], *, progress: bool) -> np.ndarray:
    """Read runs of bins of tracks, one track at a time: tracks x bins, float32; what is not finite is NaN."""
    out = np.empty((len(tracks), sum(rows.stop - rows.start for rows in runs)), np.float32)
    for i, track in enumerate(tqdm(tracks, desc="read", unit="track", disable=not progress)):
        layer = ds[SIGNAL].sel(track._asdict())
        out[i] = np.concatenate([layer.isel({POSITION: rows}).values for rows in runs])
        out[i, ~np.isfinite(out[i])] = np.nan
    return out
