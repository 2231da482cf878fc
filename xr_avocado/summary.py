"""What a cube holds, in a few lines: for ``ds.avocado`` in a terminal or a notebook, and for ``xr-avocado info``."""

from __future__ import annotations

from html import escape
from typing import Any

import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, FITTED, IMPUTED, IMPUTED_TRACKS, OBSERVED, SIGNAL, check_cube
from xr_avocado.index import bins_of

__all__ = ["as_html", "as_text", "summary"]


def summary(ds: xr.Dataset) -> dict[str, str]:
    """Say what a cube holds, a line each: genome, labels, experiments, signal, imputed tracks, model.

    Reads no signal.

    Raises
    ------
    CubeError, GenomeError
        Where the dataset is no cube.
    """
    bins, observed = bins_of(ds), check_cube(ds)[OBSERVED]
    rows = {
        "genome": f"{ds.attrs.get('genome', 'unknown')}, {len(bins):,} bins of {bins.binsize} bp in "
        f"{len(bins.segments):,} segments of {len(bins.chroms)} chromosomes",
        "cell types": f"{ds.sizes[CELLTYPE]}: {_some(ds[CELLTYPE].values)}",
        "assays": f"{ds.sizes[ASSAY]}: {_some(ds[ASSAY].values)}",
        "experiments": f"{int(observed.sum())} of {observed.size} were run",
        "signal": f"{ds.attrs.get('transform', 'none')}, {ds[SIGNAL].dtype}" if SIGNAL in ds else "none",
    }
    if IMPUTED in ds:
        rows["imputed"] = f"{int(ds[IMPUTED_TRACKS].sum())} tracks" if IMPUTED_TRACKS in ds else "all tracks"
    return rows | {"model": _model(ds.attrs.get(FITTED))}


def as_text(ds: xr.Dataset) -> str:
    """Lay the summary out for a terminal; of a dataset that is no cube, why it is none."""
    return "\n".join(f"{name:<12} {value}" for name, value in _rows(ds).items())


def as_html(ds: xr.Dataset) -> str:
    """Lay the summary out for a notebook."""
    cells = (
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in _rows(ds).items()
    )
    return f"<table>{''.join(cells)}</table>"


def _rows(ds: xr.Dataset) -> dict[str, str]:
    try:
        return summary(ds)
    except ValueError as error:
        return {"no cube": str(error)}


def _model(fitted: Any) -> str:
    if not fitted:
        return "none; train one with .avocado.fit(), or xr-avocado fit"
    if "best_epoch" not in fitted:
        return f"read from: {fitted.get('source', 'elsewhere')}; trained on {len(fitted['trained_on'])} experiments"
    return (
        f"trained on {len(fitted['trained_on'])} experiments, {len(fitted['validation'])} set aside, "
        f"epoch {fitted['best_epoch']} kept, seed {fitted['seed']}, version {fitted['version']}"
    )


def _some(labels: Any, most: int = 8) -> str:
    return ", ".join(map(str, labels[:most])) + (", …" if len(labels) > most else "")
