"""build_cube: from a sheet of bigWig files to a cube in a zarr store, track by track, each in a process of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.assembly import assembly_name, chromosome_sizes
from xr_avocado.cube import ASSAY, CELLTYPE, DIMS, OBSERVED, SIGNAL, check_whole
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.intervals import as_frame
from xr_avocado.io.atomic import former, link_tree, local_path, remove, swap_in, telling, unfinished
from xr_avocado.io.bigwig import UNCOVERED, Uncovered
from xr_avocado.io.chunks import count_chunks
from xr_avocado.io.encoding import (
    PROVENANCE,
    Precision,
    array_encoding,
    json_attrs,
    label_encoding,
    precision_of,
    store_attrs,
)
from xr_avocado.io.lock import only_one
from xr_avocado.io.plan import Plan, check_same_layout, make_plan
from xr_avocado.io.sheet import SheetError, Track, axis_of, complain, inspect_files, read_sheet
from xr_avocado.io.workers import run_jobs
from xr_avocado.io.zarr import check_replaceable, open_cube
from xr_avocado.transforms import transform_named

__all__ = ["SheetError", "build_cube"]

logger = logging.getLogger("xr_avocado")

SKELETON = "store"
"""Where the staging folder has the store, but for its chunks."""


def build_cube(
    sheet: Any,
    store: str | os.PathLike[str],
    *,
    genome: str | Path | Mapping[str, int],
    regions: Any = None,
    binsize: int = 25,
    transform: str = "arcsinh",
    uncovered: Uncovered = "zero",
    replicates: Literal["mean"] | None = None,
    precision: Precision = "float16",
    n_jobs: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Build a cube from bigWig files, or add tracks to one that was built before.

    All files are checked before the first is read, and all that is wrong is told at once. Each track is then read in a process of
    its own, so that a file that crashes its reader costs no other track. The store appears when it is complete: a build that was
    interrupted or met a bad file goes on, when it is called again, with the tracks that are not done (they lie in a hidden folder
    beside the store), and ends with the very bytes of an undisturbed one.

    Where the store is there already, tracks of the sheet that it lacks are added, with new labels behind those it has; its own
    tracks stay as they are. A file that is not the one its track was built from (by length and contents at both ends) is an error.

    Memory: each process holds one chunk, 2**20 bins of one track: about 100 MB with the interpreter and its libraries.

    Parameters
    ----------
    sheet
        A TSV or CSV file, or a frame, with the columns ``celltype``, ``assay`` and ``path`` (relative to the sheet's folder; those
        of a frame to the current folder).
    store
        The folder to write.
    genome
        An assembly by name (``"hg38"``), a ``chrom.sizes`` file, or chromosome lengths.
    regions
        Region strings, a BED file, a frame or PyRanges, which are widened to whole bins and merged where they overlap; by default
        the whole chromosomes of the assembly that all files have.
    binsize
        Width of a bin in bp.
    transform
        ``"arcsinh"``, ``"log1p"`` or ``"none"``: of the mean of each bin.
    uncovered
        What bases without a record are: ``"zero"`` counts them as 0, ``"ignore"`` leaves them out of the mean.
    replicates
        ``"mean"`` averages the files of an experiment that has several rows; otherwise these are an error.
    precision
        ``"float16"``, ``"float32"``, or the number of mantissa bits to keep; untransformed signal is float32 at least.
    n_jobs
        Processes at a time; by default one a core.
    progress
        Show a progress bar over tracks.

    Returns
    -------
        The cube, as ``open_cube`` opens it.

    Raises
    ------
    SheetError
        Where the sheet or its files cannot be built from, or some tracks failed; it lists them.
    CubeError
        Where the store is there and was built with other settings.
    GenomeError
        Where the assembly or the regions are not known.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from xr_avocado.io.bigwig import write_bins
    >>> bins, sizes = GenomeBins([("chr1", 0, 110)], 25), {"chr1": 110}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bins(f"{folder}/a.bw", bins, np.arange(5.0), sizes, progress=False)
    ...     sheet = pd.DataFrame({"celltype": ["C1"], "assay": ["H3K4me3"], "path": [f"{folder}/a.bw"]})
    ...     cube = build_cube(sheet, f"{folder}/cube.zarr", genome=sizes, progress=False)
    ...     np.sinh(cube.signal.values).round(2).tolist()
    [[[0.0, 1.0, 2.0, 3.0, 4.0]]]
    """
    transform_named(transform)
    if uncovered not in UNCOVERED:
        raise ValueError(f"uncovered must be one of {', '.join(UNCOVERED)}; got {uncovered!r}")
    precision_of(precision, transform)
    n_jobs = None if n_jobs is None else check_whole("n_jobs", n_jobs)
    target = local_path(store, "a cube is")
    with only_one(target):
        _restore(target)
        check_replaceable(target)
        sizes = chromosome_sizes(genome)
        tracks = read_sheet(sheet, replicates=replicates)
        existing = open_cube(target) if os.path.exists(target) else None
        bins = _axis(tracks, regions, binsize, sizes, existing)
        attrs = {"genome": assembly_name(genome), "chromsizes": sizes, "transform": transform, "uncovered": uncovered}
        plan = make_plan(target, tracks, bins, attrs, precision=precision, existing=existing)
        if plan.new or existing is None:
            with telling(target):
                _write_skeleton(plan, existing)
                _build_tracks(plan, n_jobs or _cores(), progress=progress)
                _assemble(plan, existing)
        else:
            logger.info("%s has all %d tracks of the sheet already", target, len(tracks))
        return open_cube(target)


def _restore(target: Path) -> None:
    """Put a store back that a build was killed in replacing, in the instant when it was neither the old nor the new one."""
    old = former(unfinished(target) / SKELETON)
    if os.path.exists(old) and not os.path.exists(target):
        os.rename(old, target)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _axis(
    tracks: list[Track], regions: Any, binsize: int, sizes: dict[str, int], existing: xr.Dataset | None
) -> GenomeBins:
    found, problems = inspect_files(tracks)
    frame = None if regions is None else as_frame(regions, sizes=sizes)
    own = None if existing is None or frame is not None else _whole_chromosomes(bins_of(existing), sizes)
    if own is not None:
        # Files that are added may have more chromosomes than the store; they need not have fewer.
        sizes = {chrom: sizes[chrom] for chrom in own}
    bins, left_out = axis_of(frame, binsize, sizes, found, problems)
    if left_out:
        logger.info("left out, since not all files have them: %s", ", ".join(left_out))
    return bins


def _whole_chromosomes(bins: GenomeBins, sizes: Mapping[str, int]) -> list[str] | None:
    own = {chrom: sizes[chrom] for chrom in bins.chroms if chrom in sizes}
    return list(own) if bins == GenomeBins.from_chromsizes(own, bins.binsize) else None


def _write_skeleton(plan: Plan, existing: xr.Dataset | None) -> None:
    """Write the whole store but for the signal's chunks; it is also the check that the disk can be written to."""
    import dask.array as da

    skeleton = plan.staging / SKELETON
    remove(skeleton)
    skeleton.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(plan.celltypes), len(plan.assays), len(plan.bins))
    dtype = np.dtype(plan.settings["dtype"])
    provenance = {"sources": plan.sources, "keepbits": plan.settings["keepbits"]}
    signal_attrs = {"long_name": "signal", PROVENANCE: provenance}
    if existing is not None:
        signal_attrs = {**existing[SIGNAL].attrs, **signal_attrs}
    ds = xr.Dataset(
        {
            SIGNAL: (DIMS, da.full(shape, dtype.type(np.nan), dtype=dtype, chunks=shape), signal_attrs),
            OBSERVED: (DIMS[:2], plan.observed, {"long_name": "the experiment was run"}),
        },
        coords={CELLTYPE: np.array(plan.celltypes, object), ASSAY: np.array(plan.assays, object)},
        attrs=json_attrs(store_attrs(plan.attrs, plan.bins)),
    )
    encoding = {
        SIGNAL: array_encoding(dtype, (1, 1, plan.settings["chunk"])),
        OBSERVED: array_encoding(plan.observed.dtype, plan.observed.shape),
        CELLTYPE: label_encoding(),
        ASSAY: label_encoding(),
    }
    ds.to_zarr(skeleton, mode="w-", consolidated=False, zarr_format=3, encoding=encoding, compute=False)
    if existing is not None:
        check_same_layout(plan.target, skeleton)


def _build_tracks(plan: Plan, n_jobs: int, *, progress: bool) -> None:
    (plan.staging / "tracks").mkdir(exist_ok=True)
    todo = [track for track in plan.new if not plan.folder(track).exists()]
    if len(todo) < len(plan.new):
        logger.info("%d of %d tracks are done already", len(plan.new) - len(todo), len(plan.new))
    jobs = [{"paths": track.paths, "folder": str(plan.folder(track))} for track in todo]
    failed = []
    with tqdm(total=len(plan.new), initial=len(plan.new) - len(todo), unit="track", disable=not progress) as bar:
        for i, error in run_jobs(jobs, plan.settings, n_jobs=n_jobs):
            if error is not None:
                logger.error("%s failed: %s", todo[i], error)
                failed.append((i, f"{todo[i]} ({', '.join(todo[i].paths)}): {error}"))
            bar.update()
    done = len(plan.new) - len(failed)
    complain(
        [message for _, message in sorted(failed)],
        f"{len(failed)} of {len(plan.new)} tracks failed; {done} are done and kept. Mend what is told, or take these files out of the sheet, "
        "and call build_cube again: it goes on from here",
    )


def _assemble(plan: Plan, existing: xr.Dataset | None) -> None:
    skeleton = plan.staging / SKELETON
    chunks = skeleton / SIGNAL / "c"
    if existing is not None and (plan.target / SIGNAL / "c").exists():
        link_tree(plan.target / SIGNAL / "c", chunks)
    for track in plan.new:
        built = plan.folder(track) / "c" / "0" / "0"
        if built.exists():
            link_tree(built, chunks / str(plan.celltypes.index(track.celltype)) / str(plan.assays.index(track.assay)))
    count_chunks(skeleton)
    swap_in(skeleton, plan.target)
    remove(plan.staging)
