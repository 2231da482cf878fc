"""support: how much of a pair's cell type and of its assay the model has seen, and so how far its imputation reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    CONTEXT,
    FITTED,
    OBSERVED,
    SUPPORT,
    SUPPORT_ASSAY,
    SUPPORT_CELLTYPE,
    label_rows,
)

__all__ = ["SUPPORTS", "support"]

SUPPORTS = ("observed", "imputed", "extrapolated")
"""Values of the variable ``support``."""


def support(ds: xr.Dataset) -> dict[str, Any]:
    """Count, for each pair, the tracks beside its own that its imputation rests on; part of what ``impute`` returns.

    Parameters
    ----------
    ds
        A fitted cube.

    Returns
    -------
    Variables, each celltype x assay: ``support_celltype`` and ``support_assay``, how many other tracks of the pair's cell type and of its
    assay the model was trained on or, where it has a context term, reads from the cube as it is now; and ``support``: ``"observed"``
    where the cube has the track itself, else ``"imputed"``, or ``"extrapolated"`` where one of the two numbers is 0, so that nothing ties
    the imputation to this cell type, or to this assay.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=3).avocado.hold_out([("C1", "H3K4me3")])
    >>> full = cube.avocado.fit("small", epochs=1, progress=False).avocado.impute()
    >>> pair = full.sel(celltype="C1", assay="H3K4me3")
    >>> str(pair.support.item()), int(pair.support_celltype), int(pair.support_assay)
    ('imputed', 2, 3)
    """
    seen, observed = seen_tracks(ds), ds[OBSERVED].transpose(CELLTYPE, ASSAY).values
    others = [(seen.sum(axis, keepdims=True) - seen).astype(np.int32) for axis in (1, 0)]
    lone = (others[0] == 0) | (others[1] == 0)
    kind = np.where(observed, SUPPORTS[0], np.where(lone, SUPPORTS[2], SUPPORTS[1]))
    pair, other = (CELLTYPE, ASSAY), "other tracks of the pair's {} that the model has seen"
    return {
        SUPPORT: (pair, kind, {"long_name": f"{', '.join(SUPPORTS[:2])} or {SUPPORTS[2]}"}),
        SUPPORT_CELLTYPE: (pair, others[0], {"long_name": other.format("cell type")}),
        SUPPORT_ASSAY: (pair, others[1], {"long_name": other.format("assay")}),
    }


def seen_tracks(ds: xr.Dataset) -> np.ndarray:
    """Mark the tracks that the model was trained on or reads: celltype x assay, bool."""
    seen = pairs_of_model(ds, "trained_on")
    # A context term has learnt from those set aside from the factors too, and reads all that there are.
    return seen | ds[OBSERVED].transpose(CELLTYPE, ASSAY).values if CONTEXT in ds else seen


def pairs_of_model(ds: xr.Dataset, *lists: str) -> np.ndarray:
    """Mark the pairs that the model's lists of these names have, as far as the cube has their labels: celltype x assay, bool."""
    labels = {dim: set(map(str, ds[dim].values)) for dim in (CELLTYPE, ASSAY)}
    tracks = [pair for name in lists for pair in ds.attrs[FITTED].get(name, ())]
    tracks = [(c, a) for c, a in tracks if c in labels[CELLTYPE] and a in labels[ASSAY]]
    marked = np.zeros((ds.sizes[CELLTYPE], ds.sizes[ASSAY]), bool)
    if tracks:
        c, a = zip(*tracks, strict=True)
        marked[label_rows(ds, CELLTYPE, c), label_rows(ds, ASSAY, a)] = True
    return marked
