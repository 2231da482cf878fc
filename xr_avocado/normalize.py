"""normalize: map each observed track to a reference of its mark, background and peaks apart; denormalize: back again."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    DIMS,
    FITTED,
    IMPUTED,
    IMPUTED_TRACKS,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    check_cube,
    experiments,
    label_rows,
)
from xr_avocado.fit import without_parameters
from xr_avocado.quantile_map import KNOT, NORMALIZED, OWN_KNOTS, REFERENCE_KNOTS, map_tracks
from xr_avocado.sample import read_sample, sample_runs
from xr_avocado.transforms import transform_named

__all__ = ["denormalize", "normalize"]

KNOTS = 64
"""Knots of a map in the background, and as many among the peaks."""
FEWEST = 100
"""Bins of the sample that a part of a track has, at least, for a map of it."""


def normalize(ds: xr.Dataset, *, peak: float = 2.0, progress: bool = True) -> xr.Dataset:
    """Map each observed track to a reference of its mark, bins of background and bins of peaks apart.

    Experiments of a mark differ in depth and in how well the antibody worked, and so in distribution. Here the quantiles
    of a track become the mean of those of its mark's tracks, monotonely, in two parts: bins below ``peak`` keep below it,
    bins above keep above. So background is compared with background and a track keeps its number of peak bins, which an
    ordinary quantile normalization would make the same in all cell types. Whether this helps a model is for ``evaluate``
    to say; nothing else in the package asks for it.

    Lazy: the maps are learned from a sample of at most 2 million bins and 256 MB (the same as that of ``qc``), the signal
    is mapped as it is read. Learning them holds that sample and 32 bytes a bin of it; of signal in memory the mapped one is a copy. Every map is kept on the cube, in small variables that ``to_zarr`` stores; ``to_bigwig`` and
    ``denormalize`` undo it. A track whose pair was not observed has no map of its own: what is imputed for it is on the
    reference of its mark, and stays there.

    Hide tracks with ``hold_out`` before this, not after, or they will have had a part in the reference. And scores compare
    like with like: ``fitted.avocado.impute().avocado.denormalize().avocado.evaluate(truth)``.

    Parameters
    ----------
    ds
        A cube.
    peak
        Signal from which on a bin counts as a peak's, in the signal's own units; 2 is for -log10 p.
    progress
        Show a progress bar.

    Returns
    -------
    The cube with its ``signal`` mapped (float32), ``own_knots`` and ``reference_knots`` (celltype x assay x knot, in
    transformed units; NaN where a track has no map), and ``attrs["normalized"]``. A layer that was imputed before is
    dropped, as it is on another scale.

    Raises
    ------
    CubeError
        Where the cube has no signal, no experiment was run, or it is normalized already.
    ValueError
        Where ``peak`` is not a finite number.

    References
    ----------
    Schreiber et al. 2023, doi:10.1186/s13059-023-02915-y: quantile normalization of peaks and background separately.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=2)
    >>> even = cube.avocado.normalize(progress=False)
    >>> before, after = (x.signal.quantile(0.99, "position").sel(assay="H3K4me3").std() for x in (cube, even))
    >>> bool(after < before / 3)
    True
    """
    if not np.isfinite(peak):
        raise ValueError(f"peak is a signal from which on a bin counts as a peak's; got {peak}")
    run = experiments(check_cube(ds, SIGNAL))
    if NORMALIZED in ds.attrs:
        raise CubeError("this cube is normalized already; undo that first with .avocado.denormalize()")
    if FITTED in ds.attrs:
        raise CubeError(
            "this cube is fitted on its signal as it is; normalize the cube that it was fitted from, and fit that"
        )
    if not run:
        raise CubeError("no experiment of this cube was run (observed is all False), so there is nothing to normalize")
    sample = read_sample(ds, run, sample_runs(ds.sizes[POSITION], len(run)), progress=progress)
    split = float(transform_named(ds.attrs.get("transform", "none")).forward(np.float64(peak)))
    parts = np.stack([_quantiles(track, split) for track in sample])
    knots = np.full((2, ds.sizes[CELLTYPE], ds.sizes[ASSAY], 2 * KNOTS + 1), np.nan)
    celltype, assay = (label_rows(ds, d, labels) for d, labels in zip(DIMS, zip(*run, strict=True), strict=False))
    for a in np.unique(assay):
        same = assay == a
        knots[:, celltype[same], a] = _maps(parts[same], split)
    old = [name for name in (IMPUTED, IMPUTED_TRACKS, AVERAGE) if name in ds]
    dims = (CELLTYPE, ASSAY, KNOT)
    out = ds.drop_vars(old).assign({OWN_KNOTS: (dims, knots[0], _OWN), REFERENCE_KNOTS: (dims, knots[1], _REFERENCE)})
    out = out.assign_attrs({NORMALIZED: {"peak": float(peak), "tracks": [list(track) for track in run]}})
    return _mapped(out, [SIGNAL], *knots)


def denormalize(ds: xr.Dataset) -> xr.Dataset:
    """Undo `normalize`: bring ``signal``, ``imputed`` and ``average`` back to the scale of each observed track.

    Tracks whose pair is not observed on this cube stay on the reference of their mark. A model that was fitted on the
    normalized signal is left behind, since it would read other numbers than it learned from; so impute first.

    Lazy. Raises CubeError where the cube is not normalized.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=2)
    >>> back = cube.avocado.normalize(progress=False).avocado.denormalize()
    >>> bool(abs(back.signal - cube.signal).max() < 1e-5)
    True
    """
    if NORMALIZED not in check_cube(ds).attrs:
        raise CubeError("this cube is not normalized, so there is nothing to undo")
    order = (CELLTYPE, ASSAY, KNOT)
    own, reference = (ds[name].where(ds[OBSERVED]).transpose(*order).values for name in (OWN_KNOTS, REFERENCE_KNOTS))
    layers = {name: ds[name] for name in (IMPUTED, IMPUTED_TRACKS) if name in ds}
    bare = without_parameters(ds).drop_vars([OWN_KNOTS, REFERENCE_KNOTS]).assign(layers)
    bare.attrs = {key: value for key, value in bare.attrs.items() if key != NORMALIZED}
    return _mapped(bare, [name for name in (SIGNAL, IMPUTED, AVERAGE) if name in bare], reference, own)


_OWN = {"long_name": "values of a track, which become the reference knots of its mark"}
_REFERENCE = {"long_name": "what a track's own knots become: quantiles of its mark, averaged over tracks"}


def _mapped(ds: xr.Dataset, names: list[str], knots: np.ndarray, becomes: np.ndarray) -> xr.Dataset:
    layers = {name: ds[name].transpose(*DIMS) for name in names}
    return ds.assign({name: x.copy(data=map_tracks(x.data, knots, becomes)) for name, x in layers.items()})


def _quantiles(track: np.ndarray, split: float) -> np.ndarray:
    """Quantiles of a track's background, and of its peaks: 2 x knots; NaN where it has too few bins of them."""
    there = np.sort(track[~np.isnan(track)]).astype(np.float64)
    out = np.full((2, KNOTS), np.nan)
    if not there.size or there[0] == there[-1]:
        return out
    cut = int(np.searchsorted(there, split))
    even = np.arange(KNOTS) / KNOTS
    # Denser towards the highest peaks, which are few and far apart.
    dense = 1 - even[::-1] ** 3
    for part, (values, levels) in enumerate(((there[:cut], even), (there[cut:], dense))):
        if values.size >= FEWEST:
            out[part] = np.quantile(values, levels)
    return out


def _maps(parts: np.ndarray, split: float) -> np.ndarray:
    """Own and reference knots of the tracks of a mark, from tracks x parts x knots: 2 x tracks x knots of a map."""
    own = np.empty((len(parts), 2 * KNOTS + 1))
    reference = np.empty_like(own)
    own[:, KNOTS] = reference[:, KNOTS] = split
    known = ~np.isnan(parts).any(2)
    steps = np.arange(1.0, KNOTS + 1)
    for part, (at, unknown) in enumerate(
        ((slice(KNOTS), split - steps[::-1]), (slice(KNOTS + 1, None), split + steps))
    ):
        has = known[:, part, None]
        mean = parts[known[:, part], part].mean(0) if has.any() else unknown
        # A part that a track lacks is not mapped.
        own[:, at], reference[:, at] = np.where(has, parts[:, part], mean), mean
    for i, knots in enumerate(own):
        # Of equal values all become the same: the mean of what their ranks would.
        tied = np.unique(knots, return_inverse=True)[1]
        reference[i] = (np.bincount(tied, reference[i]) / np.bincount(tied))[tied]
    out = np.stack([own, reference])
    out[:, ~known.any(1)] = np.nan
    return out
