"""to_bigwig: tracks of a cube as bigWig files, and the sheet that build_cube reads them back from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    check_bins,
    check_cube,
    check_whole,
    label_rows,
)
from xr_avocado.genome import GenomeBins, unknown_chromosome
from xr_avocado.index import bins_of
from xr_avocado.io.atomic import folder_to_write, replacing
from xr_avocado.io.bigwig_writer import check_room, written_rows
from xr_avocado.io.encoding import is_position
from xr_avocado.io.lock import only_one
from xr_avocado.io.segments import check_axis
from xr_avocado.io.unfinished import Unfinished
from xr_avocado.io.writers import Writers, writer_count
from xr_avocado.quantile_map import undo_of
from xr_avocado.transforms import transform_named

__all__ = ["SHEET", "to_bigwig"]

SHEET = "samples.tsv"
TOGETHER = 128
"""Tracks computed and written in one pass over the genome, at most: as many files are open."""
VALUES = 1 << 22
"""Values computed at a time for each core: 16 MB."""
PIECE = 1 << 20
"""Bins computed at a time, at most. Whole chunks of a store, which lie at its multiples."""
SHORTEST = 1 << 14
"""Bins computed at a time, at least."""


def to_bigwig(
    ds: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    variable: str = IMPUTED,
    tracks: Iterable[Any] | None = None,
    untransform: bool = True,
    n_jobs: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Write tracks as bigWig files, one a track, in the units of the signal, and a sheet of them.

    Files are called ``{celltype}.{assay}.{variable}.bw``, with what does not belong into a file name replaced by ``_``.
    ``samples.tsv``, beside them, is what ``build_cube`` reads them back from. NaN becomes a gap; the last bin of a chromosome is
    written as long as it is. Each file is complete or absent; a file of that name that is there is replaced.

    Up to 128 tracks are computed and written in one pass over the genome, so that what a model shares over tracks is computed once;
    writers work while the next piece is computed. After a kill the same call goes on: complete files are kept, and of a lazy
    layer the pieces that were computed (4 bytes a value, in the folder, until the files are complete).

    Memory: four pieces of 16 MB a core (of 128 tracks at least 8 MB) beside what computing one takes; each process then takes 14 bytes a
    bin while it finishes a file: 1.7 GB for a human genome.

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
    n_jobs
        Processes that write; by default one a core, as far as half of the machine's memory bears them, and none for a small export.
    progress
        Show a progress bar.

    Returns
    -------
        One row a file: celltype, assay, path.

    Raises
    ------
    CubeError
        Where the cube lacks the variable, a label, or its chromosomes' lengths (``attrs["chromsizes"]``), the folder cannot be
        written to, or another process writes tracks there.
    BigWigError
        Where its disk has too little room.

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
    check_bins(ds, "write")
    n_jobs = None if n_jobs is None else check_whole("n_jobs", n_jobs, least=0)
    bins = bins_of(ds)
    sizes = _sizes(ds, bins)
    check_axis(bins, sizes, source="attrs['chromsizes']")
    chosen = _chosen(ds, variable, tracks)
    home = folder_to_write(folder, "tracks are")
    paths = dict(zip(chosen, _paths(home, chosen, variable), strict=True))
    sheet = pd.DataFrame([(*track, str(path)) for track, path in paths.items()], columns=[CELLTYPE, ASSAY, "path"])
    with only_one(home / SHEET):
        _write_tracks(ds, variable, paths, sizes, home, untransform=untransform, n_jobs=n_jobs, progress=progress)
    return sheet


def _write_tracks(
    ds: xr.Dataset,
    variable: str,
    paths: dict[Experiment, Path],
    sizes: dict[str, int],
    home: Path,
    *,
    untransform: bool,
    n_jobs: int | None,
    progress: bool,
) -> None:
    """Write the files that are not there yet, and then their sheet."""
    bins, chosen, step = bins_of(ds), list(paths), _step(len(paths))
    kept = Unfinished(home / SHEET, _identity(ds, variable, chosen, untransform, step))
    left = [track for track in chosen if not kept.is_done(paths[track])]
    check_room(home, len(bins) * (len(left) + min(len(left), TOGETHER)))
    with tqdm(
        total=len(bins) * len(chosen),
        desc="impute" if variable == IMPUTED else "write",
        unit="bin",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        bar.update(len(bins) * (len(chosen) - len(left)))
        for first in range(0, len(chosen), TOGETHER):
            group = chosen[first : first + TOGETHER]
            inverses = {t: _inverse_of(ds, variable, t) if untransform else np.asarray for t in group if t in left}
            if inverses:
                pieces = _pieces(ds[variable], group, written_rows(bins, sizes, step=step), kept)
                n_writers = writer_count(len(inverses), len(bins), n_jobs)
                where = [paths[track] for track in inverses]
                with Writers(
                    where, bins, sizes, list(inverses.values()), step=step, n_jobs=n_writers, done=kept.mark
                ) as writers:
                    _write(writers, pieces, [group.index(track) for track in inverses], bar)
            kept.drop_pieces(group)
    names = [(*track, path.name) for track, path in paths.items()]
    with replacing(home / SHEET) as temporary:
        pd.DataFrame(names, columns=[CELLTYPE, ASSAY, "path"]).to_csv(
            temporary, sep="\t", index=False, lineterminator="\n"
        )
    kept.close()


def _inverse_of(ds: xr.Dataset, variable: str, track: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    """Give what brings a track's values to the signal's own units: its normalization undone, then the transform."""
    inverse = transform_named(ds.attrs.get("transform", "none")).inverse
    if variable not in (SIGNAL, IMPUTED, AVERAGE):
        return inverse
    undo = undo_of(ds, track)
    return lambda values: inverse(undo(values))


def _write(writers: Writers, pieces: Iterable[tuple[slice, np.ndarray]], places: list[int], bar: Any) -> None:
    for rows, values in pieces:
        writers.add(rows, values[places])
        bar.update(len(places) * (rows.stop - rows.start))
    # Making zoom levels takes longer than all that was written before.
    bar.set_description("finish")


def _pieces(
    layer: xr.DataArray, group: Sequence[Experiment], pieces: Iterable[slice], kept: Unfinished
) -> Iterator[tuple[slice, np.ndarray]]:
    """Compute a group's tracks together, piece by piece: tracks x bins. Those of a model are kept for a call after a kill."""
    track = {dim: ("track", label_rows(layer, dim, [t[i] for t in group])) for i, dim in enumerate((CELLTYPE, ASSAY))}
    layer = layer.transpose(CELLTYPE, ASSAY, POSITION)
    for rows in pieces:
        part = layer.isel({POSITION: rows}).isel(track).transpose("track", POSITION)
        yield rows, kept.piece(group, rows, part.to_numpy) if hasattr(layer.data, "identity") else part.to_numpy()


def _step(n_tracks: int) -> int:
    """Bins of a piece: enough for all cores, a power of two, so that the chunks of stores are cut evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = VALUES * min(cores, 16) // min(n_tracks, TOGETHER)
    return max(SHORTEST, min(PIECE, 1 << most.bit_length() - 1))


def _identity(ds: xr.Dataset, variable: str, *how: Any) -> str:
    """Token of all that an export depends on; that of a layer that a model predicts is its own to know."""
    from dask.base import tokenize

    small = {str(name): v.values for name, v in ds.variables.items() if not any(is_position(d) for d in v.dims)}
    data = ds[variable].data
    return tokenize(variable, how, ds.attrs, bins_of(ds).to_attrs(), small, getattr(data, "identity", data))


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
