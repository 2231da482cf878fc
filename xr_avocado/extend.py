"""extend: learn new cell types, new assays or new positions with a model that is trained, and leave all that it knows as it is."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    FITTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    check_cube,
    check_whole,
    experiments,
)
from xr_avocado.extend_labels import Training, check_learnable, learn_labels
from xr_avocado.extend_positions import CHECKPOINT_MINUTES, learn_positions, on_grid
from xr_avocado.fit_store import FitStore, identity
from xr_avocado.generations import EXTENDED, plural
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.joining import (
    check_alike,
    joined_axes,
    new_bins,
    on_positions,
    rows_of_bins,
    with_labels,
    with_positions,
    without_layers,
)
from xr_avocado.refine import check_refinable, refined

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
    refine: bool = False,
    only_new: bool = False,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    client: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Learn what is new on one axis of another cube (cell types, assays or positions) and join it to the fitted one.

    Everything that the model knows is frozen: every parameter, and every prediction of earlier labels and positions, stays as it is
    bit for bit.

    **New cell types or assays**: their factors are learnt, from as little as one track each, several labels at once, in minutes. A model
    with a context term has no parameter of a cell type, so a new one is predicted from its own tracks at once (as
    ``impute(model=)`` does without ``extend``); of a new assay it learns what belongs to that assay. Which tracks it reads: for a pair,
    those of the labels that it knew when it learnt the pair's own. So a new cell type's tracks are read for the new cell type, and not
    for the earlier ones; average activity in a model that adds it is that of the same tracks. ``fit`` on the joined cube, or
    ``impute(model=)`` with the earlier model, lets all tracks tell on all.

    **New positions**: their genome factors are learnt, chromosome by chromosome and piece by piece, each by itself, so that a
    chromosome comes out the same whichever others are with it. This is the second stage of the paper. The context term has
    nothing of a position's own and needs none of it. With ``store`` what is done is kept: whatever ends the process, and whenever, the same
    call goes on, on the CPU to the same result bit for bit. With ``client`` chromosomes are tasks that know nothing of each other.

    Memory: the tracks of the new labels (of a new assay with a context term: all) and the genome's factors, 1 GB at most: of a
    longer genome, evenly spread stretches will do. At new positions 1 GB for a piece (its tracks, and 16 bytes a factor), one at a time, and
    the factors learnt, which with ``store`` stay on the disk. Signal is joined lazily where it is lazy.

    Parameters
    ----------
    ds
        A fitted cube.
    new_cube
        A cube that is new on one axis, with the model's bins, transform and normalization. With labels that the fitted one lacks: on bins
        that it has, all or some (elsewhere the new signal is NaN); tracks of known labels are passed over. With bins that it lacks: of
        known labels, all or some; bins that it has are passed over, as are experiments that ``fit`` set aside for validation.
    epochs
        Passes over the positions: by default 4 for labels, and for positions as many as made the model.
    refine
        Then train everything further, the old with the new, from where it is: on all tracks, at a tenth of the rates, for as many epochs as
        ``epochs`` says. Nothing is bit for bit what it was, and every pair is predicted from all tracks. Memory is that of ``fit``.
    only_new
        Give back the new positions alone, not joined to the model's.
    store
        Folder to write the model to, all but the signal; what comes back is lazy and takes its signal from the cubes given. A call
        that was finished before opens it.
    overwrite
        Replace a store, or work towards it, that is of another call.
    client
        ``distributed.Client`` to learn chromosomes on. A worker that dies costs what its chromosome has done since the last
        checkpoint, which ``store`` (on a disk that all workers see) keeps. Each worker computes on ``device``.
    seed
        Fixes the draws.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``; by default the fastest at hand.
    progress
        Show a progress bar.

    Returns
    -------
    The fitted cube with the new labels behind its own, or the new positions where they belong in genome order: ``signal``, ``observed``
    and the factors joined, and ``attrs["avocado"]`` brought up to date: ``celltypes``, ``assays``, ``trained_on``, and an entry in ``extended``
    (axis, labels, tracks, epochs, seed, version, cube). Layers that were computed before (``imputed``, ``average``) are dropped. A fitted cube
    without signal stays without. Where nothing is new, the fitted cube itself.

    Raises
    ------
    CubeError
        Where the cube is not fitted, something is new on more than one axis, a new label has no observed track, all signal that is new is
        NaN, the cubes do not go together, new positions meet old ones inside a bin of a coarse scale, or ``store`` holds something else, another process
        works towards it, or its disk is full: with room, the same call goes on.
    GenomeError
        Where bins are parts of the model's bins.
    ValueError
        Where an option does not go with what is new.

    Notes
    -----
    As in Schreiber et al. 2020 (doi:10.1186/s13059-020-1977-6), whose package fits new cell types and assays so, without the record.

    Measured on real tracks (a cell type that the model had not seen, one of its tracks given, the other three scored in arcsinh space): the context
    term has an MSE of 0.63 of average activity's without training and 0.62 fitted anew; factors have 0.82 in a fifth of the time of fitting
    them anew, with a correlation below the average's. ``python benchmarks/extend.py``.

    Where new positions come with experiments that the earlier ones lack, the context term reads larger arrays at the earlier ones, of which the new
    part is empty: its predictions there are then the same up to rounding.

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
    >>> elsewhere = xa.datasets.simulate(n_celltypes=4, n_assays=3, chromsizes={"chr2": 20_000})
    >>> fitted.avocado.extend(elsewhere, epochs=1, progress=False).sizes["position"]
    2800
    """
    from xr_avocado.model.training import device_named

    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    check_cube(new_cube, SIGNAL)
    check_alike(ds, new_cube)
    epochs = None if epochs is None else check_whole("epochs", epochs)
    seed = check_whole("seed", seed, least=0)
    dim, labels, bins = _what_is_new(ds, new_cube)
    if dim is None:
        _tell_passed_over(ds, new_cube)
        return ds
    if refine:
        check_refinable(ds, only_new=only_new)
    if dim != POSITION and (only_new or client is not None):
        raise ValueError(f"only_new and client are for new positions; what is new is {dim} {', '.join(labels[:5])}")
    training = Training(epochs or _epochs(ds, dim), seed, device_named(device), progress)
    ds = without_layers(ds)
    if dim == POSITION:
        ds = on_grid(ds, only_new=only_new)
        new_cube = new_cube[[SIGNAL, OBSERVED]].isel({POSITION: rows_of_bins(bins_of(new_cube), bins)})
        if not only_new:
            joined_axes(ds, new_cube)
    tracks = _tracks(ds, new_cube, dim, labels)
    about = _provenance(ds, new_cube, dim, labels, tracks, training, refine=refine)
    joined = _joined(ds, new_cube, dim, labels, only_new=only_new)

    def learn(kept: FitStore | None) -> xr.Dataset:
        if dim == POSITION:
            learnt = learn_positions(ds, new_cube, tracks, training, kept, client)
            model = on_positions(ds, learnt) if only_new else with_positions(ds, learnt)
        else:
            model = learn_labels(ds, new_cube, dim, labels, tracks, training)
        model = model.assign_attrs({FITTED: about})
        if refine:
            model = refined(_with_signal(model, joined), training, kept)
        return model.drop_vars(SIGNAL, errors="ignore")

    if store is None:
        return _with_signal(learn(None), joined)
    with FitStore(store, about, minutes=CHECKPOINT_MINUTES, overwrite=overwrite).alone() as kept:
        model = kept.finished
        if model is None:
            model = kept.write(learn(kept), interrupted=False, progress=progress)
        return _with_signal(model, joined)


def _epochs(ds: xr.Dataset, dim: str) -> int:
    """Passes unless asked otherwise: for positions as many as made the model."""
    about = ds.attrs[FITTED]
    return int(about.get("best_epoch", about["config"]["epochs"])) if dim == POSITION else EPOCHS


def _what_is_new(ds: xr.Dataset, new_cube: xr.Dataset) -> tuple[str | None, list[str], GenomeBins]:
    """Find the axis on which something is new, the labels there, and the bins that are new."""
    new = {}
    for dim in (CELLTYPE, ASSAY):
        known = set(map(str, ds[dim].values))
        if labels := [str(label) for label in new_cube[dim].values if str(label) not in known]:
            new[dim] = labels
    bins = new_bins(bins_of(ds), bins_of(new_cube))
    if len(bins):
        new[POSITION] = [f"{len(bins):,} bins"]
    if len(new) > 1:
        told = "; ".join(
            f"{dim} {', '.join(labels[:3])}{', …' if len(labels) > 3 else ''}" for dim, labels in new.items()
        )
        raise CubeError(
            f"the cube is new on {len(new)} axes ({told}): extend by one after the other, each time with a cube cut to what is "
            "known on the other axes"
        )
    axis, labels = next(iter(new.items()), (None, []))
    return axis, labels, bins


def _tell_passed_over(ds: xr.Dataset, new_cube: xr.Dataset) -> None:
    known = set(experiments(ds))
    if more := [pair for pair in experiments(new_cube) if pair not in known]:
        logger.warning(
            "nothing is new but tracks of known labels (%s%s), which extend does not learn: fit again with them",
            ", ".join(map(str, more[:3])),
            ", …" if len(more) > 3 else "",
        )


def _tracks(ds: xr.Dataset, new_cube: xr.Dataset, dim: str, labels: list[str]) -> list[Experiment]:
    """Experiments to learn from: those of new labels; at new positions all but those that fit set aside."""
    run = experiments(new_cube)
    if dim != POSITION:
        chosen = [pair for pair in run if getattr(pair, dim) in labels]
        check_learnable(ds, dim, labels, chosen)
        return chosen
    aside = {tuple(pair) for pair in ds.attrs[FITTED].get("validation", [])}
    chosen = [pair for pair in run if pair not in aside]
    if not chosen:
        raise CubeError(
            f"the cube has no experiment at the new positions to learn from: it has {len(run)}, and fit set these aside"
        )
    return chosen


def _provenance(
    ds: xr.Dataset,
    new_cube: xr.Dataset,
    dim: str,
    labels: list[str],
    tracks: list[Experiment],
    training: Training,
    *,
    refine: bool,
) -> dict[str, Any]:
    """Say what was learnt from what, beside what the model was made of."""
    from xr_avocado import __version__

    about = ds.attrs[FITTED]
    pairs = [list(pair) for pair in tracks]
    entry = {"axis": dim, "labels": [] if dim == POSITION else labels, "tracks": pairs, "refined": refine}
    entry |= {"epochs": training.epochs, "seed": training.seed, "version": __version__}
    entry["cube"] = identity(new_cube, tracks)
    names = {} if dim == POSITION else {plural(dim): list(dict.fromkeys([*about[plural(dim)], *labels]))}
    return (
        about
        | names
        | {
            "trained_on": [*about["trained_on"], *(pair for pair in pairs if pair not in about["trained_on"])],
            EXTENDED: [*about.get(EXTENDED, []), entry],
        }
    )


def _joined(ds: xr.Dataset, new_cube: xr.Dataset, dim: str, labels: list[str], *, only_new: bool) -> xr.Dataset:
    """Join the cubes without a model: labels, ``observed``, and ``signal`` where the fitted cube has it."""
    if only_new:
        return on_positions(ds[[OBSERVED]], new_cube)
    if SIGNAL not in ds:
        return ds[[OBSERVED]]
    bare = ds[[SIGNAL, OBSERVED]]
    return with_positions(bare, new_cube) if dim == POSITION else with_labels(bare, new_cube, dim, labels)


def _with_signal(model: xr.Dataset, joined: xr.Dataset) -> xr.Dataset:
    if SIGNAL not in joined:
        return model
    out = model.assign({SIGNAL: joined[SIGNAL].variable})
    return out[[SIGNAL, OBSERVED, *(name for name in model.data_vars if name != OBSERVED)]]
