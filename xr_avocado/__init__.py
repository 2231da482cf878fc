"""Epigenomic signal as a labelled xarray cube (cell type x assay x position), and the model that imputes it.

``import xr_avocado`` puts the verbs on every dataset, as ``ds.avocado``. The names below are loaded when first used, so that
the import itself stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import xr_avocado.accessor  # noqa: F401  (registers ds.avocado)

if TYPE_CHECKING:
    from xr_avocado import datasets, evaluate, plot, tasks
    from xr_avocado.genome import GenomeBins
    from xr_avocado.index import GenomeIndex
    from xr_avocado.io.build import build_cube
    from xr_avocado.io.zarr import open_cube
    from xr_avocado.weights import read_keras, to_keras

__all__ = [
    "GenomeBins",
    "GenomeIndex",
    "build_cube",
    "datasets",
    "evaluate",
    "open_cube",
    "plot",
    "read_keras",
    "tasks",
    "to_keras",
]
__version__ = "0.1.0"

_HOME = {
    "GenomeBins": "xr_avocado.genome",
    "GenomeIndex": "xr_avocado.index",
    "build_cube": "xr_avocado.io.build",
    "open_cube": "xr_avocado.io.zarr",
    "read_keras": "xr_avocado.weights",
    "to_keras": "xr_avocado.weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
