"""to_chromhmm: tracks as ChromHMM reads them: present or not in bins of 200 bp, a file a cell type and chromosome."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    DIMS,
    IMPUTED,
    POSITION,
    CubeError,
    check_cube,
    check_number,
    check_whole,
    label_rows,
)
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.io.atomic import folder_to_write, replacing
from xr_avocado.transforms import transform_named

__all__ = ["to_chromhmm"]

VALUES = 1 << 25
"""Values of a cell type's tracks that are computed at a time, at most: 128 MB."""
PIECE = 1 << 20
"""Bins of the cube that are computed at a time, at most: a chunk of a store."""
MISSING = 2


def to_chromhmm(
    ds: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    variable: str = IMPUTED,
    celltype: str | Iterable[str] | None = None,
    assay: str | Iterable[str] | None = None,
    threshold: float = 2.0,
    binsize: int = 200,
    progress: bool = True,
) -> pd.DataFrame:
    """Write tracks in ChromHMM's binarized format, for its ``LearnModel`` and ``MakeSegmentation``.

    A mark is present (1) in a bin where the mean of the track over it, in the signal's own units, is at least ``threshold``, else absent
    (0). Bins that the cube does not have, and marks that a cell type lacks, are missing (2). Files are called
    ``{celltype}_{chrom}_binary.txt``: first the cell type and the chromosome, then the names of the marks, then a line a bin, from the
    start of the chromosome; the last, shorter bin is left out, as ChromHMM leaves it out.

    Memory: about a million bins of one cell type's tracks at a time, of more than 32 marks fewer (128 MB), what computing them takes, and
    50 MB; and 3 bytes a mark and bin of a chromosome: 75 MB for 20 marks of human chromosome 1.

    Parameters
    ----------
    ds
        A cube.
    folder
        Where to write; made if it is not there. Files of these names are replaced; each is complete or absent.
    variable
        ``"imputed"``, ``"signal"`` or another variable of celltype x assay x position, in the cube's transform.
    celltype, assay
        A label or several; by default all.
    threshold
        In the units of the signal before its transform: 2 is a p value of 0.01 where signal is -log10 p, as for the calls of
        `variable_loci`. ChromHMM's own binarization is one of read counts, and has another.
    binsize
        Width of ChromHMM's bins in bp (its ``-b``), a multiple of the cube's.
    progress
        Show a progress bar.

    Returns
    -------
    One row a file: celltype, chrom, path.

    Raises
    ------
    CubeError
        Where the cube lacks the variable, a label or chromosome lengths, ``binsize`` is no multiple of its bin size, ``threshold`` is no
        number, or the folder cannot be written.

    References
    ----------
    Ernst & Kellis 2017, doi:10.1038/nprot.2017.124; the format is that of the manual's "binarized data files".

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=2, n_assays=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = cube.avocado.to_chromhmm(folder, variable="signal", progress=False)
    ...     [line.split() for line in Path(files.path[0]).read_text().splitlines()[:2]]
    [['C1', 'chr1'], ['H3K4me3', 'H3K27ac']]
    """
    if set(check_cube(ds, variable)[variable].dims) != set(DIMS):
        raise CubeError(
            f"{variable!r} has the dims {', '.join(map(str, ds[variable].dims))}; tracks have {', '.join(DIMS)}"
        )
    bins, sizes = bins_of(ds), ds.attrs.get("chromsizes")
    binsize = check_whole("binsize", binsize)
    if binsize % bins.binsize or binsize < bins.binsize:
        raise CubeError(f"bins of {binsize} bp are no multiple of the cube's, which have {bins.binsize} bp")
    if not sizes or any(chrom not in sizes for chrom in bins.chroms):
        raise CubeError(
            "files start and end with their chromosomes, so attrs['chromsizes'] must have the length of each"
        )
    celltypes, assays = (_chosen(ds, dim, labels) for dim, labels in ((CELLTYPE, celltype), (ASSAY, assay)))
    threshold = check_number("threshold", threshold)
    home = folder_to_write(folder, "ChromHMM's files are")
    layer = ds[variable].sel({ASSAY: assays}).transpose(*DIMS)
    inverse = transform_named(ds.attrs.get("transform", "none")).inverse
    coarse, rows = bins.coarsen(binsize // bins.binsize), []
    with tqdm(
        total=len(celltypes) * len(coarse), desc="chromhmm", unit="bin", unit_scale=True, disable=not progress
    ) as bar:
        for label in celltypes:
            own = layer.sel({CELLTYPE: label})
            for chrom in bins.chroms:
                present = np.full((int(sizes[chrom]) // binsize, len(assays)), MISSING, np.uint8)
                for at, means in _means(own, bins, coarse, coarse.rows(chrom), inverse):
                    line = coarse.at(at)[1] // binsize
                    whole = line < len(present)
                    present[line[whole]] = np.where(np.isnan(means), MISSING, means >= threshold).T[whole]
                    bar.update(len(at))
                path = home / f"{_safe(label)}_{_safe(chrom)}_binary.txt"
                _write(path, label, chrom, assays, present)
                rows.append((label, chrom, str(path)))
    return pd.DataFrame(rows, columns=[CELLTYPE, "chrom", "path"])


def _chosen(ds: xr.Dataset, dim: str, labels: str | Iterable[str] | None) -> list[str]:
    every = ds[dim].values.astype(str)
    rows = slice(None) if labels is None else label_rows(ds, dim, labels)
    if not len(every[rows]):
        raise CubeError(f"there is no {dim} to write; by default all {len(every)} are")
    return every[rows].tolist()


def _means(
    own: xr.DataArray, bins: GenomeBins, coarse: GenomeBins, rows: slice, inverse: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Means of the tracks of a cell type over wide bins, piece by piece: their rows, and assays x bins; NaN where nothing is."""
    step = max(1, min(PIECE, VALUES // own.shape[0]) * bins.binsize // coarse.binsize)
    for first in range(rows.start, rows.stop, step):
        at = np.arange(first, min(first + step, rows.stop))
        begin, end = bins.overlaps(*coarse.at(at[[0, -1]]))
        piece = slice(int(begin[0]), int(end[-1]))
        starts = np.searchsorted(coarse.rows_of(bins[piece]), at)
        # All tracks together, since what is imputed shares over them; in double precision one at a time.
        tracks = np.asarray(own.isel({POSITION: piece}).values)
        yield at, np.stack([_mean_of(inverse(track.astype(np.float64)), starts) for track in tracks])


def _mean_of(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Means of runs of a track, what is missing left out; NaN where all is."""
    there = ~np.isnan(values)
    count = np.add.reduceat(there, starts, dtype=np.int64)
    total = np.add.reduceat(np.where(there, values, 0.0), starts)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _write(path: Path, celltype: str, chrom: str, assays: list[str], present: np.ndarray) -> None:
    text = np.full((len(present), 2 * len(assays)), ord("\t"), np.uint8)
    text[:, ::2] = present + ord("0")
    text[:, -1] = ord("\n")
    with replacing(path) as temporary, temporary.open("wb") as file:
        marks = "\t".join(assays)
        file.write(f"{celltype}\t{chrom}\n{marks}\n".encode())
        file.write(text.data)


def _safe(label: str) -> str:
    return re.sub(r"[^\w+.-]|^[.-]", "_", label)
