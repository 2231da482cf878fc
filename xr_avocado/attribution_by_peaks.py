"""attribution_by_peaks: what predictions are made of, on average, where peaks are shared by many cell types or by few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.annotations import Peaks
from xr_avocado.attribute import Part, explain
from xr_avocado.axis import every_row
from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    COMPONENT,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    check_cube,
    check_whole,
    label_rows,
)
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.pair import Spans

if TYPE_CHECKING:
    import torch

__all__ = ["attribution_by_peaks"]


def attribution_by_peaks(
    ds: xr.Dataset,
    assay: str,
    *,
    peaks: Any,
    celltype: str | Iterable[str] | None = None,
    of: Part | None = None,
    steps: int = 32,
    baseline: Literal["zero", "mean"] | None = None,
    blocks: int = 50,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Average attributions by how many cell types share a peak, where a cell type has it and where it has not.

    The systematic form of figure 5: a peak of all cell types can be foretold from the position alone, one of few only from the cell type
    too. Bins under a peak of any cell type count, as in `variable_loci`, in a random draw of the 5-kbp blocks that hold one.

    Memory: a block at a time, some 50 MB, and the peaks.

    Parameters
    ----------
    ds, of, steps, baseline, device
        As in `attribute`; all bins have the same number of points, whose errors cancel in a mean.
    assay
        An assay.
    peaks
        Peaks called on observed tracks: a frame with the columns celltype and assay, or a mapping from ``(celltype,
        assay)`` to a track's intervals.
    celltype
        The cell types whose predictions are taken apart; by default all that have peaks of the assay, which count in any case.
    blocks
        Blocks drawn, at most.
    seed
        Fixes the draw.
    progress
        Show a progress bar.

    Returns
    -------
    A frame of assay, celltypes (with a peak at the bin), peak (bool: whether the cell type itself has it), component, bins (of all cell
    types that have the component) and attribution (mean); prediction, baseline and, for a cube with signal, signal are among the components.

    Raises
    ------
    CubeError
        Where no cell type has peaks of the assay on this cube.

    Examples
    --------
    >>> import pandas as pd, xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> peaks = pd.DataFrame(
    ...     {
    ...         "chrom": "chr1",
    ...         "start": [50_000, 51_000],
    ...         "end": [52_000, 53_000],
    ...         "celltype": ["C1", "C2"],
    ...         "assay": "DNase",
    ...     }
    ... )
    >>> table = fitted.avocado.attribution_by_peaks("DNase", peaks=peaks, steps=8, progress=False)
    >>> table[table.component == "prediction"][["celltypes", "peak", "bins"]].values.tolist()
    [[1, False, 80], [1, True, 80], [2, True, 80]]
    """
    called, bins = Peaks(peaks), bins_of(check_cube(ds))
    known = [c for c in called.celltypes(assay) if c in ds[CELLTYPE].values]
    if not known:
        raise CubeError(f"no cell type of this cube has peaks of {assay!r}; give them as peaks=")
    wanted = known if celltype is None else ds[CELLTYPE].values[label_rows(ds, CELLTYPE, celltype)].tolist()
    if not wanted:
        raise CubeError(f"celltype is empty: name one of those with peaks of {assay!r}, or leave it out")
    if missing := [c for c in wanted if c not in known]:
        raise CubeError(f"{missing[0]} has no peaks of {assay!r}: they say where it has one and where not")
    blocks, seed = check_whole("blocks", blocks), check_whole("seed", seed, least=0)
    explained = explain(ds, wanted, [assay], of, steps, np.inf, baseline, device)
    spans = {c: called.rows(bins, Experiment(c, assay)) for c in known}
    names = [*explained.components, "prediction", "baseline", *([SIGNAL] if SIGNAL in ds else [])]
    sums, counts = np.zeros((2, len(names), 2 * len(known) + 2))
    for rows in tqdm(_drawn(bins, spans.values(), blocks, seed), desc="attribute", unit="block", disable=not progress):
        cover = {c: spans[c].cover(rows) > 0 for c in known}
        shared = np.sum(list(cover.values()), axis=0)
        parts = list(explained.parts(rows))
        if SIGNAL in ds:
            own = ds[SIGNAL].sel({CELLTYPE: wanted, ASSAY: assay}).isel({POSITION: rows})
            parts = [np.vstack([p, s]) for p, s in zip(parts, own.transpose(CELLTYPE, POSITION).values, strict=True)]
        for c, values in zip(wanted, parts, strict=True):
            group, size = 2 * shared + cover[c], sums.shape[1]
            sums += [np.bincount(group, np.nan_to_num(v), minlength=size) for v in values]
            # A cell type whose track was not observed has no signal to count.
            counts += [np.bincount(group, ~np.isnan(v), minlength=size) for v in values]
    return _by_peaks(assay, names, sums.reshape(len(names), -1, 2), counts.reshape(len(names), -1, 2))


def _drawn(bins: GenomeBins, spans: Iterable[Spans], blocks: int, seed: int) -> list[slice]:
    """Draw blocks of 200 bins (5 kbp of 25 bp) that hold a peak."""
    wide = bins.coarsen(200)
    held = np.unique(np.concatenate([_blocks_under(bins, wide, under) for under in spans]))
    if not len(held):
        raise CubeError("no peak lies on this cube: are the chromosomes named the same, and is it the same assembly?")
    chosen = np.sort(np.random.default_rng(seed).permutation(held)[:blocks])
    first, last = bins.overlaps(*wide.at(chosen))
    return [slice(int(a), int(b)) for a, b in zip(first, last, strict=True)]


def _blocks_under(bins: GenomeBins, wide: GenomeBins, spans: Spans) -> np.ndarray:
    chrom, start, _ = bins.at(spans.first)
    _, _, end = bins.at(spans.last - 1)
    return every_row(*wide.overlaps(chrom, start, end))


def _by_peaks(assay: str, names: list[str], sums: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    with np.errstate(invalid="ignore"):
        means = sums / counts
    rows = [
        (assay, k, bool(peak), name, int(counts[i, k, peak]), means[i, k, peak])
        for k, peak in np.argwhere(counts[0] > 0).tolist()
        if k
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=[ASSAY, "celltypes", "peak", COMPONENT, "bins", "attribution"])
