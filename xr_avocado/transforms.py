"""The transforms between a track's own units and the values a cube holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["TRANSFORMS", "Transform", "transform_named"]


class Transform(NamedTuple):
    """A monotone map of the signal and its inverse; both work on numpy and dask arrays alike."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]


TRANSFORMS = {
    "arcsinh": Transform(np.arcsinh, np.sinh),
    "log1p": Transform(np.log1p, np.expm1),
    "none": Transform(lambda signal: signal, lambda values: values),
}


def transform_named(name: str) -> Transform:
    """Look a transform up by the name that ``attrs["transform"]`` holds.

    Examples
    --------
    >>> float(transform_named("arcsinh").inverse(transform_named("arcsinh").forward(3.0)))
    3.0
    """
    if name not in TRANSFORMS:
        raise ValueError(f"{name!r} is not a transform; choose one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]
