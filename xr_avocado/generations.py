"""Generations of labels: what a model knew when it learnt each label, so that what was learnt later changes no earlier prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, CONTEXT, CONTEXT_MEMBER, CONTEXT_PARAMETER, FITTED

__all__ = ["EXTENDED", "as_known_to", "generations_of", "plural"]

EXTENDED = "extended"
"""In ``attrs["avocado"]``: what was learnt after fit, one entry a call of ``extend``, in order."""


def plural(dim: str) -> str:
    """Name the list of a dim's labels in ``attrs["avocado"]``."""
    return f"{dim}s"


def generations_of(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Number the generation of each cell type and each assay of a fitted cube: 0 where fit learnt it, i where the i-th extension did.

    A refinement trains the whole model on all tracks, so that labels before it are of generation 0 too.
    """
    return tuple(_numbers(ds, dim, ds[dim].values) for dim in (CELLTYPE, ASSAY))  # type: ignore[return-value]


def as_known_to(ds: xr.Dataset, generation: int) -> xr.Dataset:
    """Cut a fitted cube, and its context term, to the labels that a generation knew."""
    about = ds.attrs[FITTED]
    keep = {dim: np.flatnonzero(_numbers(ds, dim, ds[dim].values) <= generation) for dim in (CELLTYPE, ASSAY)}
    of_model = {dim: np.flatnonzero(_numbers(ds, dim, about[plural(dim)]) <= generation) for dim in (CELLTYPE, ASSAY)}
    labels = {plural(dim): [about[plural(dim)][i] for i in rows] for dim, rows in of_model.items()}
    out = ds.isel(keep).assign_attrs({FITTED: about | labels})
    if CONTEXT not in ds or len(of_model[ASSAY]) == len(about[plural(ASSAY)]):
        return out
    from xr_avocado.model.config import Config
    from xr_avocado.model.context_extension import of_assays

    vectors = of_assays(
        Config.from_attrs(about["config"]), ds[CONTEXT].values, len(about[plural(ASSAY)]), of_model[ASSAY]
    )
    return out.drop_vars(CONTEXT).assign({CONTEXT: ((CONTEXT_MEMBER, CONTEXT_PARAMETER), vectors)})


def _numbers(ds: xr.Dataset, dim: str, labels: Any) -> np.ndarray:
    entries = ds.attrs[FITTED].get(EXTENDED, [])
    refined = max((i for i, entry in enumerate(entries) if entry["refined"]), default=-1)
    number = {
        label: i + 1
        for i, entry in enumerate(entries)
        if i > refined and entry["axis"] == dim
        for label in entry["labels"]
    }
    return np.array([number.get(str(label), 0) for label in labels], int)
