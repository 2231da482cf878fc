"""Folds of experiments for cross-validation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from xr_avocado.cube import CubeError, Experiment, as_experiments, check_whole, experiments

__all__ = ["folds_of"]

logger = logging.getLogger("xr_avocado")


def folds_of(ds: xr.Dataset, folds: Any = "latin", *, seed: int = 0) -> list[list[Experiment]]:
    """Divide the observed experiments into folds to hold out in turn.

    Parameters
    ----------
    ds
        A cube.
    folds
        ``"latin"``: each fold hides at most one track of every cell type and assay, and one of each where the panel
        allows it. A number of folds, over which the tracks of each cell type and assay are spread evenly. Or the folds
        themselves.
    seed
        Fixes the choice.

    Returns
    -------
    Lists of experiments. Where folds are not given, a cell type's or an assay's only track is in none.

    Raises
    ------
    CubeError
        Where a fold is empty or not observed, or would hide all tracks of a cell type or an assay.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> [len(fold) for fold in folds_of(xa.datasets.simulate(n_celltypes=4, n_assays=3))]
    [3, 3, 3, 3]
    """
    seed = check_whole("seed", seed, least=0)
    if isinstance(folds, str) and folds != "latin" or not isinstance(folds, str | int | np.integer | Iterable):
        raise ValueError(f"folds are 'latin', a number, or lists of (celltype, assay) pairs; got {folds!r}")
    if isinstance(folds, str | int | np.integer):
        layers = _matchings(_hideable(experiments(ds)), np.random.default_rng(seed))
        chosen = layers if isinstance(folds, str) else _spread(layers, int(folds))
    else:
        chosen = [as_experiments(ds, fold) for fold in folds]
    if not chosen:
        raise CubeError("folds are an empty list; give 'latin', a number, or lists of (celltype, assay) pairs")
    for i, fold in enumerate(chosen, 1):
        _check(ds, i, fold)
    return chosen


def _hideable(tracks: list[Experiment]) -> list[Experiment]:
    celltypes, assays = Counter(t.celltype for t in tracks), Counter(t.assay for t in tracks)
    kept = [t for t in tracks if celltypes[t.celltype] > 1 and assays[t.assay] > 1]
    if len(kept) < len(tracks):
        logger.info("%d tracks are the only ones of their cell type or assay, and in no fold", len(tracks) - len(kept))
    if not kept:
        raise CubeError("no experiment can be held out: each is the only one of its cell type or of its assay")
    return kept


def _matchings(tracks: list[Experiment], rng: np.random.Generator) -> list[list[Experiment]]:
    """Divide tracks into sets with no cell type and no assay twice, the largest first."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    celltypes, assays = (rng.permutation(sorted({t[axis] for t in tracks})).tolist() for axis in (0, 1))
    left = {(celltypes.index(t.celltype), assays.index(t.assay)): t for t in tracks}
    found = []
    while left:
        rows, columns = np.array(sorted(left)).T
        graph = csr_array((np.ones(len(left)), (rows, columns)), shape=(len(celltypes), len(assays)))
        match = maximum_bipartite_matching(graph, perm_type="column")
        found.append([left.pop((c, int(a))) for c, a in enumerate(match) if a >= 0])
    return found


def _spread(layers: list[list[Experiment]], folds: int) -> list[list[Experiment]]:
    tracks = [track for layer in layers for track in layer]
    if not 2 <= folds <= len(tracks):
        raise CubeError(f"folds must be between 2 and the {len(tracks)} tracks that can be held out; got {folds}")
    return [[tracks[i] for i in part] for part in np.array_split(np.arange(len(tracks)), folds)]


def _check(ds: xr.Dataset, number: int, fold: list[Experiment]) -> None:
    there = set(experiments(ds))
    if not fold:
        raise CubeError(f"fold {number} holds out nothing")
    if missing := [str(track) for track in fold if track not in there]:
        raise CubeError(f"fold {number}: {', '.join(missing[:5])} was not observed, so it cannot be held out")
    left = there - set(fold)
    for axis, kind in enumerate(("cell type", "assay")):
        if lost := sorted({track[axis] for track in fold} - {track[axis] for track in left}):
            raise CubeError(
                f"fold {number} hides every track of the {kind} {', '.join(lost[:5])}: take more folds, or smaller ones"
            )
