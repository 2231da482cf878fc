"""extend: learn new cell types, new assays or new positions with a model that is trained, and leave all that it knows as it is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    FITTED,
    OBSERVED,
    SIGNAL,
    CubeError,
    Experiment,
    check_cube,
    experiments,
)
from xr_avocado.extend_labels import Training, learn_labels
from xr_avocado.generations import EXTENDED
from xr_avocado.index import bins_of
from xr_avocado.joining import check_alike, new_bins, without_layers

if TYPE_CHECKING:
    import torch

__all__ = ["extend"]

EPOCHS = 4
"""Passes over the positions for new labels, unless asked otherwise."""

logger = logging.getLogger("xr_avocado")


def extend(
    ds: xr.Dataset,
    new_cube: xr.Dataset,
    *,
    epochs: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Learn what is new on one axis of another cube, cell types or assays, and join it to the fitted one.

    Everything that the model knows is frozen: every parameter, and every prediction of earlier labels, stays as it is bit for bit. Learnt
    are the factors of the new labels, from as little as one track each, several labels at once.

    A model with a context term has no parameter of a cell type, so a new one is predicted from its own tracks at once (as
    ``impute(model=)`` does without ``extend``); of a new assay it learns what belongs to that assay. Which tracks it reads: for a pair,
    those of the labels that it knew when it learnt the pair's own. So a new cell type's tracks are read for the new cell type, and not
    for the earlier ones; average activity in a model that adds it is that of the same tracks. ``fit`` on the joined cube, or
    ``impute(model=)`` with the earlier model, lets all tracks tell on all.

    Memory: the tracks of the new labels (of a new assay with a context term: all) and the genome's factors, 1 GB at most: of a
    longer genome, evenly spread stretches will do. Signal is joined lazily.

    Parameters
    ----------
    ds
        A fitted cube.
    new_cube
        A cube with labels that the fitted one lacks, on one axis, and bins that it has, all or some (elsewhere the new signal is NaN).
        The bins, transform and normalization are the model's. Its tracks of known labels are passed over.
    epochs
        Passes over the positions; 4 unless given.
    seed
        Fixes the draws.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``; by default the fastest at hand.
    progress
        Show a progress bar.

    Returns
    -------
    The fitted cube with the new labels behind its own: ``signal``, ``observed`` and the factors joined, and
    ``attrs["avocado"]`` brought up to date: ``celltypes``, ``assays``, ``trained_on``, and an entry in ``extended`` (axis, labels, tracks,
    epochs, seed, version). Layers that were computed before (``imputed``, ``average``) are dropped. Where nothing is new, the fitted cube
    itself.

    Raises
    ------
    CubeError
        Where the cube is not fitted, labels are new on more than one axis, a new label has no observed track, or the cubes do not go
        together.
    GenomeError
        Where bins are parts of the model's bins.

    Notes
    -----
    As in Schreiber et al. 2020 (doi:10.1186/s13059-020-1977-6), whose package fits new cell types and assays so, without the record.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=5, n_assays=3, chromsizes={"chr1": 50_000})
    >>> fitted = cube.isel(celltype=slice(4)).avocado.fit("small", epochs=1, progress=False)
    >>> newcomer = cube.sel(celltype=["C5"], assay=["H3K4me3"])
    >>> more = fitted.avocado.extend(newcomer, epochs=1, progress=False)
    >>> more.celltype.values.tolist()
    ['C1', 'C2', 'C3', 'C4', 'C5']
    >>> bool((more.celltype_factors[:4] == fitted.celltype_factors).all())
    True
    """
    from xr_avocado.model.training import device_named

    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    check_cube(new_cube, SIGNAL)
    check_alike(ds, new_cube)
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1; got {epochs}")
    new = _what_is_new(ds, new_cube)
    if not new:
        _tell_passed_over(ds, new_cube)
        return ds
    ((dim, labels),) = new.items()
    training = Training(epochs or EPOCHS, seed, device_named(device), progress)
    joined, tracks = learn_labels(without_layers(ds), new_cube, dim, labels, training)
    return _recorded(joined, dim, labels, tracks, training)


def _what_is_new(ds: xr.Dataset, new_cube: xr.Dataset) -> dict[str, list[str]]:
    """Find the axis with new labels, and these."""
    new = {}
    for dim in (CELLTYPE, ASSAY):
        known = set(map(str, ds[dim].values))
        if labels := [str(label) for label in new_cube[dim].values if str(label) not in known]:
            new[dim] = labels
    if beyond := len(new_bins(bins_of(ds), bins_of(new_cube))):
        new["position"] = [f"{beyond:,} bins"]
    if len(new) > 1:
        told = "; ".join(
            f"{dim} {', '.join(labels[:3])}{', …' if len(labels) > 3 else ''}" for dim, labels in new.items()
        )
        raise CubeError(
            f"the cube is new on {len(new)} axes ({told}): extend by one after the other, each time with a cube cut to what is known on the other axes"
        )
    return new


def _tell_passed_over(ds: xr.Dataset, new_cube: xr.Dataset) -> None:
    known = set(experiments(ds))
    if more := [pair for pair in experiments(new_cube) if pair not in known]:
        logger.warning(
            "nothing is new but tracks of known labels (%s%s), which extend does not learn: fit again with them",
            ", ".join(map(str, more[:3])),
            ", …" if len(more) > 3 else "",
        )


def _recorded(
    joined: xr.Dataset, dim: str, labels: list[str], tracks: list[Experiment], training: Training
) -> xr.Dataset:
    """Write into the cube's attributes what was learnt from what."""
    from xr_avocado import __version__

    about = joined.attrs[FITTED]
    pairs = [list(pair) for pair in tracks]
    entry = {"axis": dim, "labels": labels, "tracks": pairs, "refined": False}
    entry |= {"epochs": training.epochs, "seed": training.seed, "version": __version__}
    about = about | {
        "trained_on": [*about["trained_on"], *(pair for pair in pairs if pair not in about["trained_on"])],
        EXTENDED: [*about.get(EXTENDED, []), entry],
    }
    return joined.assign_attrs({FITTED: about}).assign({OBSERVED: joined[OBSERVED].astype(bool)})
