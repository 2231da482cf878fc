"""What an error must be to be one of ours, for tests of wrong arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import xarray as xr

from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeError

__all__ = ["Call", "says"]

Call = Callable[[xr.Dataset], Any]
ACCIDENTS = re.compile(
    "not supported between|object is not|has no attribute|must be real number|unhashable|cannot be interpreted as|invalid literal|"
    "could not convert|cannot convert|object of type|unsupported operand|update sequence|index out of range|int\\(\\) argument"
)
"""What Python says where it stumbles over a value that nobody looked at."""


def says(call: Call, ds: xr.Dataset) -> str:
    """Call, and return what the error says: one of ours, or one that Python's own check of arguments raises."""
    with pytest.raises((CubeError, GenomeError, ValueError, TypeError, ImportError)) as error:
        call(ds)
    last = error.traceback[-1].path
    assert "xr_avocado" in str(last) or "test_trust" in str(last), f"raised in {last}: {error.value!r}"
    assert len(str(error.value)) > 20, f"says too little: {error.value!r}"
    assert not ACCIDENTS.search(str(error.value)), f"an accident: {error.value!r}"
    return str(error.value)
