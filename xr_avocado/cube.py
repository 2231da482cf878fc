"""The cube's vocabulary: the names of its dims and variables, what each holds, and the check that a dataset is a cube."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.transforms import TRANSFORMS

__all__ = ["CubeError", "Experiment", "check_cube", "experiments", "hold_out"]

CELLTYPE, ASSAY, POSITION = "celltype", "assay", "position"
DIMS = (CELLTYPE, ASSAY, POSITION)
SIGNAL, OBSERVED, AVERAGE = "signal", "observed", "average"
IMPUTED, IMPUTED_TRACKS = "imputed", "imputed_tracks"
SUPPORT, SUPPORT_CELLTYPE, SUPPORT_ASSAY = "support", "support_celltype", "support_assay"
IMPUTED_SD, IMPUTED_LOWER, IMPUTED_UPPER = "imputed_sd", "imputed_lower", "imputed_upper"
IMPUTATION = (IMPUTED, SUPPORT)
"""What the names of variables that ``impute`` adds start with."""
CELLTYPE_FACTORS, ASSAY_FACTORS, HISTORY = "celltype_factors", "assay_factors", "history"
CELLTYPE_FACTOR, ASSAY_FACTOR = "celltype_factor", "assay_factor"
COMPONENT = "component"
NETWORK = "network_"
CONTEXT, CONTEXT_MEMBER, CONTEXT_PARAMETER = "context_net", "context_member", "context_parameter"
CONTEXT_HISTORY = "context_history"
TRACK_MEAN, TRACK_SPREAD = "track_mean", "track_spread"
ERROR_QUANTILES, ERROR_RMS, ERROR_FLOOR = "error_quantiles", "error_rms", "error_floor"
ERROR_LEVEL, ERROR_PROBABILITY = "error_level", "error_probability"
ERRORS = (ERROR_QUANTILES, ERROR_RMS, ERROR_FLOOR)
MODEL = (
    NETWORK,
    "genome_factors_",
    CELLTYPE_FACTORS,
    ASSAY_FACTORS,
    HISTORY,
    CONTEXT,
    CONTEXT_HISTORY,
    TRACK_MEAN,
    TRACK_SPREAD,
    *ERRORS,
)
"""What the names of a model's variables start with."""
FITTED = "avocado"
"""The attribute of a fitted cube that holds its model's configuration and provenance."""


class CubeError(ValueError):
    """A dataset, label or argument that does not fit the cube it is used with."""


class Experiment(NamedTuple):
    """One track's labels."""

    celltype: str
    assay: str

    def __str__(self) -> str:
        return f"{self.celltype} {self.assay}"


def scale_name(bp: int) -> str:
    """Name a bin width as variables do: ``25bp``, ``5kbp``, ``1Mbp``."""
    for unit, size in (("Mbp", 1_000_000), ("kbp", 1_000)):
        if bp % size == 0:
            return f"{bp // size}{unit}"
    return f"{bp}bp"


def position_dim(bp: int, binsize: int) -> str:
    """Name the dim along which factors of a scale lie: ``position`` for the cube's own bins, else ``position_250bp``."""
    return POSITION if bp == binsize else f"{POSITION}_{scale_name(bp)}"


def genome_factors(bp: int) -> str:
    """Name the variable of a scale's factors: ``genome_factors_250bp``."""
    return f"genome_factors_{scale_name(bp)}"


def factor_dim(bp: int) -> str:
    """Name the factor dim of a scale: ``factor_250bp``."""
    return f"factor_{scale_name(bp)}"


def check_cube(ds: xr.Dataset, *needs: Hashable) -> xr.Dataset:
    """Return ``ds`` if it is a cube that has the variables named, else say what is missing and how to get it.

    Raises
    ------
    CubeError
        Where a dim, a label or a variable is missing, labels repeat, or the transform is unknown.
    """
    if not isinstance(ds, xr.Dataset):
        raise CubeError(f"a cube is an xarray.Dataset; got {type(ds).__name__}. Open a store with xr_avocado.open_cube")
    for dim in (CELLTYPE, ASSAY):
        if dim not in ds.coords or ds[dim].dims != (dim,):
            raise CubeError(
                f"this dataset has no {dim!r} labels, so it is no cube; make one with xr_avocado.build_cube"
            )
        check_labels(dim, ds[dim].values)
    if OBSERVED not in ds:
        raise CubeError(
            f"this dataset has no {OBSERVED!r} variable (celltype x assay, bool: which experiments were run)"
        )
    for variable, dims in ((OBSERVED, DIMS[:2]), (SIGNAL, DIMS)):
        if variable in ds and set(ds[variable].dims) != set(dims):
            own = ", ".join(map(str, ds[variable].dims)) or "no dim"
            raise CubeError(f"{variable!r} of a cube lies along {', '.join(dims)}; this one lies along {own}")
    for name in needs:
        if name not in ds:
            advice = _MADE_BY.get(str(name)) or f"it has {', '.join(map(str, ds.data_vars))}"
            raise CubeError(f"this cube has no {name!r}; {advice}")
    if str(ds.attrs.get("transform", "none")) not in TRANSFORMS:
        raise CubeError(f"unknown transform {ds.attrs['transform']!r} in attrs; known are {', '.join(TRANSFORMS)}")
    return ds


def check_bins(ds: xr.Dataset, to: str) -> None:
    """Raise where a cube has no bins; ``to`` says for what."""
    if not ds.sizes[POSITION]:
        raise CubeError(f"this cube has no bins to {to}; choose another region")


_MADE_BY = {
    SIGNAL: "build it from bigWigs with xr_avocado.build_cube",
    IMPUTED: "add it with .avocado.impute()",
    AVERAGE: "add it with .avocado.average()",
    CELLTYPE_FACTORS: "it is not fitted yet: call .avocado.fit() first",
    ASSAY_FACTORS: "it is not fitted yet: call .avocado.fit() first",
    HISTORY: "it is not fitted yet: call .avocado.fit() first",
}


def check_whole(name: str, value: Any, *, least: int = 1) -> int:
    """Return an argument that is a whole number, as Python's own; raise where it is none, or below the least that it may be."""
    number = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if isinstance(value, bool) or not number:
        raise CubeError(f"{name} is a whole number, at least {least}; got {value!r}")
    if value < least:
        raise CubeError(f"{name} must be at least {least}; got {value!r}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """Return an argument that is a finite number; raise where it is none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise CubeError(f"{name} is a number; got {value!r}")
    return float(value)


def check_labels(dim: str, labels: Iterable[Any]) -> None:
    """Raise where labels of a dim repeat."""
    index = pd.Index(np.asarray(list(labels), object))
    if index.has_duplicates:
        raise CubeError(f"{dim} labels repeat: {', '.join(map(str, index[index.duplicated()].unique()[:5]))}")


def check_known(dim: str, labels: Iterable[str], known: Iterable[str]) -> None:
    """Raise where a label is not among those known, naming a few that are."""
    known = [str(k) for k in known]
    for label in labels:
        if label not in known:
            some = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
            raise CubeError(f"{label!r} is not {'an' if dim[0] in 'aeiou' else 'a'} {dim} of this cube; it has {some}")


def label_rows(ds: xr.Dataset | xr.DataArray, dim: str, labels: str | Iterable[str]) -> np.ndarray:
    """Find the row of each label along a dim, or of one: int64; labels must be known."""
    if not isinstance(labels, Iterable):
        raise CubeError(f"{dim} is a label of this cube, or several; got {labels!r}")
    labels = [labels] if isinstance(labels, str) else list(labels)
    check_known(dim, labels, ds[dim].values)
    return pd.Index(ds[dim].values.astype(str)).get_indexer(labels)


def as_experiments(ds: xr.Dataset, tracks: Iterable[Any]) -> list[Experiment]:
    """Read ``(celltype, assay)`` pairs, or a frame with these columns, checked against the cube's labels."""
    if not isinstance(tracks, Iterable):
        raise CubeError(f"tracks are (celltype, assay) pairs, or a frame with these columns; got {tracks!r}")
    rows = tracks[[CELLTYPE, ASSAY]].itertuples(index=False) if isinstance(tracks, pd.DataFrame) else tracks
    pairs = []
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Iterable) or len(tuple(row)) != 2:
            raise CubeError(f"a track is a (celltype, assay) pair; got {row!r}")
        pairs.append(Experiment(*map(str, row)))
    check_known(CELLTYPE, [p.celltype for p in pairs], ds[CELLTYPE].values)
    check_known(ASSAY, [p.assay for p in pairs], ds[ASSAY].values)
    return pairs


def experiments(ds: xr.Dataset) -> list[Experiment]:
    """List the experiments that were run, cell type by cell type."""
    observed = check_cube(ds)[OBSERVED].transpose(CELLTYPE, ASSAY)
    c, a = np.nonzero(observed.values)
    return [Experiment(str(x), str(y)) for x, y in zip(ds[CELLTYPE].values[c], ds[ASSAY].values[a], strict=True)]


def hold_out(ds: xr.Dataset, tracks: Iterable[Any]) -> xr.Dataset:
    """Hide experiments, as if they had not been run: not ``observed``, their ``signal`` NaN.

    The whole cube stays the truth to score against: ``ds.avocado.hold_out(tracks).avocado.fit().avocado.impute()``. Lazy where
    the signal is; of signal in memory it makes a copy.

    Parameters
    ----------
    ds
        A cube.
    tracks
        ``(celltype, assay)`` pairs, or a frame with these columns.

    Raises
    ------
    CubeError
        Where a pair is not on the cube, or was not observed in the first place.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> held = cube.avocado.hold_out([("C1", "H3K4me3")])
    >>> int(cube.observed.sum()) - int(held.observed.sum())
    1
    """
    held = xr.zeros_like(check_cube(ds)[OBSERVED])
    for pair in as_experiments(ds, tracks):
        if not ds[OBSERVED].sel(pair._asdict()):
            raise CubeError(f"{pair} was not observed, so it cannot be held out")
        held.loc[pair._asdict()] = True
    out = ds.assign({OBSERVED: ds[OBSERVED] & ~held})
    return out.assign({SIGNAL: ds[SIGNAL].where(~held).assign_attrs(ds[SIGNAL].attrs)}) if SIGNAL in ds else out
