"""to_bigwig: tracks of a cube as bigWig files, and the sheet that build_cube reads them back from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    IMPUTED,
    IMPUTED_TRACKS,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    as_experiments,
    check_cube,
)
from xr_avocado.genome import GenomeBins, unknown_chromosome
from xr_avocado.index import bins_of
from xr_avocado.io.atomic import replacing
from xr_avocado.io.bigwig_writer import check_room, track_writer, written_rows
from xr_avocado.quantile_map import undo_of
from xr_avocado.transforms import transform_named

__all__ = ["SHEET", "to_bigwig"]

SHEET = "samples.tsv"
TOGETHER = 16
"""Files written at a time: a lazy layer computes what the tracks of an assay share once for all of them."""
PIECE = 1 << 20
"""Bins computed at a time, of each of these: 64 MB of float32 in all. Whole chunks of a store, which lie at its multiples."""


def to_bigwig(
    ds: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    variable: str = IMPUTED,
    tracks: Iterable[Any] | None = None,
    untransform: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Write tracks as bigWig files, one a track, in the units of the signal, and a sheet of them.

    Files are called ``{celltype}.{assay}.{variable}.bw``, with what does not belong into a file name replaced by ``_``.
    ``samples.tsv``, beside them, is what ``build_cube`` reads them back from. NaN becomes a gap; the last bin of a chromosome is
    written as long as it is. Each file is complete or absent; a file of that name that is there is replaced.

    Memory: about a million bins of 16 tracks of one assay are computed at a time; one file after the other then takes 14 bytes a bin
    while its zoom levels are made.

    Parameters
    ----------
    ds
        A cube.
    folder
        Where to write; made if it is not there.
    variable
        ``"imputed"``, ``"signal"`` or another variable of celltype x assay x position.
    tracks
        ``(celltype, assay)`` pairs; by default all that were imputed, or observed for ``"signal"``.
    untransform
        Undo the cube's transform, and before it the normalization of a cube that was normalized (a track whose pair was not
        observed has none of its own, and is written on the scale of its mark's reference); otherwise values are written as they are.
    progress
        Show a progress bar.

    Returns
    -------
        One row a file: celltype, assay, path.

    Raises
    ------
    CubeError
        Where the cube lacks the variable, a label, or its chromosomes' lengths (``attrs["chromsizes"]``).
    BigWigError
        Where the folder cannot be written to, or its disk has too little room.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = to_bigwig(cube, folder, variable="signal", tracks=[("C1", "H3K4me3")], progress=False)
    ...     [path.rsplit("/")[-1] for path in files.path]
    ['C1.H3K4me3.signal.bw']
    """
    if set(check_cube(ds, variable)[variable].dims) != {CELLTYPE, ASSAY, POSITION}:
        raise CubeError(
            f"{variable!r} has the dims {', '.join(map(str, ds[variable].dims))}; tracks are celltype x assay x position"
        )
    bins = bins_of(ds)
    sizes = _sizes(ds, bins)
    chosen = _chosen(ds, variable, tracks)
    home = Path(os.path.abspath(folder))
    home.mkdir(parents=True, exist_ok=True)
    paths = dict(zip(chosen, _paths(home, chosen, variable), strict=True))
    check_room(home, len(bins) * len(chosen))
    with tqdm(total=len(bins) * len(chosen), desc="write", unit="bin", unit_scale=True, disable=not progress) as bar:
        for group in _groups(chosen):
            inverses = [_inverse_of(ds, variable, track) if untransform else np.asarray for track in group]
            _write_group(ds[variable], bins, sizes, {track: paths[track] for track in group}, inverses, bar)
    sheet = pd.DataFrame([(*track, str(path)) for track, path in paths.items()], columns=[CELLTYPE, ASSAY, "path"])
    with replacing(home / SHEET) as temporary:
        sheet.assign(path=[path.name for path in paths.values()]).to_csv(
            temporary, sep="\t", index=False, lineterminator="\n"
        )
    return sheet


def _inverse_of(ds: xr.Dataset, variable: str, track: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    """Give what brings a track's values to the signal's own units: its normalization undone, then the transform."""
    inverse = transform_named(ds.attrs.get("transform", "none")).inverse
    if variable not in (SIGNAL, IMPUTED, AVERAGE):
        return inverse
    undo = undo_of(ds, track)
    return lambda values: inverse(undo(values))


def _write_group(
    layer: xr.DataArray,
    bins: GenomeBins,
    sizes: dict[str, int],
    paths: dict[Experiment, Path],
    inverses: list[Callable[[np.ndarray], np.ndarray]],
    bar: Any,
) -> None:
    """Write tracks of one assay side by side, piece by piece."""
    celltypes, (assay, *_) = [track.celltype for track in paths], [track.assay for track in paths]
    layer = layer.sel({CELLTYPE: celltypes, ASSAY: assay}).transpose(CELLTYPE, POSITION)
    with ExitStack() as open_files:
        writers = [open_files.enter_context(track_writer(path, bins, sizes)) for path in paths.values()]
        for rows in written_rows(bins, sizes, step=PIECE):
            piece = layer.isel({POSITION: rows}).values
            for writer, values, inverse in zip(writers, piece, inverses, strict=True):
                # In float64: a float32 sinh of float32 is off by more than float32 has to be.
                writer.add(rows, inverse(values.astype(np.float64)))
                bar.update(len(values))


def _groups(tracks: Sequence[Experiment]) -> Iterator[list[Experiment]]:
    by_assay: dict[str, list[Experiment]] = {}
    for track in tracks:
        by_assay.setdefault(track.assay, []).append(track)
    for same in by_assay.values():
        yield from (same[i : i + TOGETHER] for i in range(0, len(same), TOGETHER))


def _chosen(ds: xr.Dataset, variable: str, tracks: Iterable[Any] | None) -> list[Experiment]:
    if tracks is not None:
        chosen = list(dict.fromkeys(as_experiments(ds, tracks)))
    else:
        mask = {SIGNAL: OBSERVED, IMPUTED: IMPUTED_TRACKS}.get(variable, "")
        shape = (ds.sizes[CELLTYPE], ds.sizes[ASSAY])
        there = ds[mask].transpose(CELLTYPE, ASSAY).values if mask in ds else np.ones(shape, bool)
        pairs = zip(*np.nonzero(there), strict=True)
        chosen = [Experiment(str(ds[CELLTYPE].values[c]), str(ds[ASSAY].values[a])) for c, a in pairs]
    if not chosen:
        raise CubeError(f"there is no track of {variable!r} to write")
    return chosen


def _sizes(ds: xr.Dataset, bins: GenomeBins) -> dict[str, int]:
    sizes = ds.attrs.get("chromsizes")
    if not sizes:
        raise CubeError(
            "a bigWig needs the lengths of chromosomes, and this cube has none; set them: "
            'ds.attrs["chromsizes"] = xr_avocado.assembly.chromosome_sizes("hg38")'
        )
    for chrom in bins.chroms:
        if chrom not in sizes:
            raise CubeError(f"attrs['chromsizes']: {unknown_chromosome(chrom, tuple(sizes))}")
    return {str(chrom): int(size) for chrom, size in sizes.items() if chrom in bins.chroms}


def _paths(home: Path, tracks: Sequence[Experiment], variable: str) -> Iterator[Path]:
    """A name for each track: letters, digits and ``-_+.`` of its labels, numbered where two would be the same."""
    taken: set[str] = set()
    for track in tracks:
        stem = ".".join(_safe(part) for part in (*track, variable))
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        yield home / f"{name}.bw"


def _safe(label: str) -> str:
    return re.sub(r"[^\w+.-]|^[.-]", "_", label)[:60] or "_"
