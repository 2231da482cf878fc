"""Learning new positions: their genome factors, chromosome by chromosome and piece by piece, with all else frozen."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    FITTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    factor_dim,
    genome_factors,
    label_rows,
    position_dim,
)
from xr_avocado.extend_labels import Training
from xr_avocado.fit import Layout
from xr_avocado.fit_store import FitStore
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins, bins_of
from xr_avocado.io.checkpoint import Checkpoint, read_array
from xr_avocado.io.keras import SCALES
from xr_avocado.predictors import network_arrays
from xr_avocado.weights import ARRAY_FACTORS

if TYPE_CHECKING:
    from xr_avocado.model.config import Config
    from xr_avocado.model.sampling import Panel

__all__ = ["CHECKPOINT_MINUTES", "learn_positions", "on_grid"]

MEMORY = 1 << 30
"""Bytes that a piece of a chromosome takes in training, about: tracks, factors and their moments."""
CHECKPOINT_MINUTES = 2.0
"""Least time between checkpoints within a piece; a piece that is done is kept at once."""

STEP = 1 << 20
"""Positions read at a time to see whether there is a value."""

Report = Callable[[int], object]
logger = logging.getLogger("xr_avocado")


@dataclass(frozen=True)
class Piece:
    """A run of whole blocks of a chromosome, learnt on its own: what fixes its draws is its place on the genome."""

    name: str
    rows: slice
    n_blocks: int
    seed: int


@dataclass(frozen=True)
class Chromosome:
    """All that learning a chromosome takes; it pickles, so that another process can do it.

    Parameters
    ----------
    cube
        Signal along the new positions of the chromosome.
    tracks
        Experiments to learn from.
    celltype, assay
        Row of each of these in the network's tables.
    network
        The network's parameters by name.
    settings
        The model's configuration, as attributes have it.
    pieces
        Runs of positions that are learnt one after the other.
    kept
        Folder, subject and minutes of checkpoints; None where what is learnt comes back instead.
    """

    cube: xr.Dataset
    tracks: list[Experiment]
    celltype: np.ndarray
    assay: np.ndarray
    network: dict[str, np.ndarray]
    settings: Mapping[str, Any]
    training: Training
    pieces: list[Piece]
    kept: tuple[Path, Mapping[str, Any], float] | None

    @property
    def config(self) -> Config:
        """The model's configuration."""
        from xr_avocado.model.config import Config

        return Config.from_attrs(self.settings)


def learn_positions(
    ds: xr.Dataset, new: xr.Dataset, tracks: list[Experiment], training: Training, kept: FitStore | None, client: Any
) -> xr.Dataset:
    """Learn the genome factors of a cube of new positions: the cube with these, lazy where they are kept in files."""
    from xr_avocado.model.config import Config

    _check_signal(new, tracks)
    config = Config.from_attrs(ds.attrs[FITTED]["config"])
    jobs = list(_chromosomes(ds, new, tracks, config, training, kept))
    total = training.epochs * sum(piece.n_blocks for job in jobs for piece in job.pieces)
    with tqdm(
        total=total, desc="extend positions", unit="block", unit_scale=True, disable=not training.progress
    ) as bar:
        run = _serially if client is None else partial(_on_cluster, client)
        learnt = run(jobs, bar.update)
    tables = zip(*(_rows_of_piece(job, i, factors) for job, factors in zip(jobs, learnt, strict=True) for i in range(len(job.pieces))), strict=True)  # fmt: skip
    for scale, pieces in zip(config.scales, tables, strict=True):
        coarse = bins_of(new).coarsen(scale)
        dim = position_dim(coarse.binsize, bins_of(new).binsize)
        xp = np if kept is None else da
        new = new.assign({genome_factors(coarse.binsize): ((dim, factor_dim(coarse.binsize)), xp.concatenate(pieces))})
        new = new if dim == POSITION else assign_bins(new, coarse, dim)
    return new


def _check_signal(new: xr.Dataset, tracks: list[Experiment]) -> None:
    """Raise where no track has a value at any of the new positions; reads up to the first."""
    for first in range(0, new.sizes[POSITION], STEP):
        signal = new[SIGNAL].isel({POSITION: slice(first, first + STEP)})
        if any(np.isfinite(signal.sel(track._asdict()).values).any() for track in tracks):
            return
    raise CubeError(
        f"at the {new.sizes[POSITION]:,} new positions the signal of all {len(tracks)} tracks is NaN, so nothing can be learnt of them: "
        "give the tracks values there, or leave these positions out of the cube"
    )


def on_grid(ds: xr.Dataset, *, only_new: bool) -> xr.Dataset:
    """Give a model whose coarse scales lie on its own array (`read_keras`) those of the genome, for positions that are new."""
    if ARRAY_FACTORS not in ds.attrs[FITTED]:
        return ds
    if not only_new:
        raise CubeError(
            "the coarse scales of this published model lie on the array of its regions, not on the genome, so its positions cannot be "
            "joined with others: take the new ones alone, with only_new=True"
        )
    about = {name: value for name, value in ds.attrs[FITTED].items() if name != ARRAY_FACTORS}
    scales = {"scales": list(SCALES), "genome_factors": list(ds.attrs[FITTED][ARRAY_FACTORS])}
    return ds.assign_attrs({FITTED: about | {"config": about["config"] | scales}})


def _chromosomes(
    ds: xr.Dataset,
    new: xr.Dataset,
    tracks: list[Experiment],
    config: Config,
    training: Training,
    kept: FitStore | None,
) -> Iterator[Chromosome]:
    bins, network = bins_of(new), network_arrays(ds)
    rows = {d: label_rows(ds, d, [getattr(t, d) for t in tracks]) for d in (CELLTYPE, ASSAY)}
    signal = new[[SIGNAL, OBSERVED]]
    for number, chrom in enumerate(bins.chroms):
        part = signal.isel({POSITION: bins.rows(chrom)})
        yield Chromosome(
            part,
            tracks,
            rows[CELLTYPE],
            rows[ASSAY],
            network,
            config.to_attrs(),
            training,
            list(_pieces(bins_of(part), number, config, len(tracks), ds.sizes[ASSAY], training.seed)),
            None if kept is None else (kept.folder, kept.about, kept.minutes),
        )


def _pieces(bins: GenomeBins, number: int, config: Config, n_tracks: int, n_assays: int, seed: int) -> Iterator[Piece]:
    """Divide a chromosome into runs of whole blocks that memory holds."""
    blocks = bins.coarsen(config.block)
    factors = sum(f / scale for f, scale in zip(config.genome_factors, config.scales, strict=True))
    a_bin = 2.2 * n_tracks + 16 * factors + (8 * n_assays if config.average else 0)
    most = max(1, int(MEMORY / (config.block * a_bin)))
    for first in range(0, len(blocks), most):
        last = min(first + most, len(blocks))
        chrom, start, end = blocks.at(np.array([first, last - 1]))
        rows = slice(
            int(bins.overlaps(chrom[0], start[0], end[0])[0]), int(bins.overlaps(chrom[1], start[1], end[1])[1])
        )
        place = [seed, zlib.crc32(str(chrom[0]).encode()), int(start[0])]
        draws = int(np.random.SeedSequence(place).generate_state(1)[0])
        yield Piece(f"{number:03}-{start[0]}", rows, last - first, draws)


def _serially(jobs: Sequence[Chromosome], report: Report) -> list[list[list[np.ndarray]]]:
    return [learn_chromosome(job, report) for job in jobs]


def _on_cluster(client: Any, jobs: Sequence[Chromosome], report: Report) -> list[list[list[np.ndarray]]]:
    """Learn chromosomes as tasks that know nothing of each other; one whose worker dies is given to another."""
    from distributed import as_completed

    with warnings.catch_warnings():
        # The network goes to the cluster once, as a task, which can be done again where the worker that holds it dies.
        warnings.filterwarnings("ignore", "Sending large graph")
        network = client.submit(dict, jobs[0].network, pure=False)
    futures = [client.submit(_learn_with, replace(job, network={}), network, pure=False) for job in jobs]
    blocks = {
        future.key: job.training.epochs * sum(p.n_blocks for p in job.pieces)
        for future, job in zip(futures, jobs, strict=True)
    }
    try:
        for future in as_completed(futures):
            future.result()
            report(blocks[future.key])
        return client.gather(futures)
    finally:
        client.cancel(futures)


def _learn_with(job: Chromosome, network: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    return learn_chromosome(replace(job, network=network))


def learn_chromosome(job: Chromosome, report: Report = lambda blocks: None) -> list[list[np.ndarray]]:
    """Learn the pieces of a chromosome: for each, the factors of each scale; nothing where they are kept in files."""
    # In a worker, dask would hand what is computed here to the cluster, and wait for it with a thread less.
    with dask.config.set(scheduler="synchronous"):
        return [_learn_piece(job, piece, report) for piece in job.pieces]


def _learn_piece(job: Chromosome, piece: Piece, report: Report) -> list[np.ndarray]:
    from xr_avocado.model.average import AverageActivity
    from xr_avocado.model.extension import learn_blocks
    from xr_avocado.model.prediction import network_from_arrays

    going = finished = None
    if job.kept is not None:
        folder, about, minutes = job.kept
        going, finished = (Checkpoint(folder / f"{piece.name}{end}", about, minutes=minutes) for end in ("", ".done"))
        if finished.path.exists():
            report(job.training.epochs * piece.n_blocks)
            return []
    part = job.cube.isel({POSITION: piece.rows})
    layout = Layout.of(bins_of(part), job.config)
    panel = _panel(job, part, layout)
    if not len(panel.values):
        segments = bins_of(part).segments
        place = f"{segments['chrom'].iloc[0]}:{segments['start'].iloc[0]:,}-{segments['end'].iloc[-1]:,}"
        logger.warning("nothing is learnt of %s: the signal of all %d tracks is NaN there", place, len(job.tracks))
    net = network_from_arrays(job.config, job.network, job.training.device)
    average = AverageActivity(panel, len(net.assay_factors)) if job.config.average else None
    tables = learn_blocks(
        net, panel, average, epochs=job.training.epochs, seed=piece.seed, checkpoint=going, report=report
    )
    learnt = [table.flatten(0, 1).cpu().numpy()[slots] for table, slots in zip(tables, layout.slots, strict=True)]
    if going is None or finished is None:
        return learnt
    finished.save({str(i): rows for i, rows in enumerate(learnt)}, {})
    going.path.unlink(missing_ok=True)
    return []


def _panel(job: Chromosome, part: xr.Dataset, layout: Layout) -> Panel:
    """Read the tracks of a piece, one at a time; those without a value in it are left out."""
    import torch

    from xr_avocado.model.sampling import Panel

    signal = part[SIGNAL].transpose(CELLTYPE, ASSAY, POSITION)
    at = [label_rows(part, d, [getattr(t, d) for t in job.tracks]) for d in (CELLTYPE, ASSAY)]
    dtype = torch.float32 if part.attrs.get("transform", "none") == "none" else torch.float16
    shape = (len(job.tracks), layout.n_blocks * job.config.block)
    values = torch.full(shape, torch.nan, dtype=dtype)
    slots = torch.from_numpy(layout.slots[0])
    there: list[int] = []
    for i, (c, a) in enumerate(zip(*at, strict=True)):
        track = np.asarray(signal[int(c), int(a)].values, np.float32)
        known = np.isfinite(track)
        if known.any():
            values[len(there), slots] = torch.from_numpy(np.where(known, track, np.float32(np.nan))).to(dtype)
            there.append(i)
    device = job.training.device
    values = values[: len(there)].view(len(there), layout.n_blocks, job.config.block).to(device)
    return Panel(values, *(torch.from_numpy(rows[there]).to(device) for rows in (job.celltype, job.assay)))


def _rows_of_piece(job: Chromosome, number: int, learnt: list[list[np.ndarray]]) -> list[Any]:
    """Factors of a piece for each scale: what was learnt, or where they are kept, lazily."""
    if job.kept is None:
        return list(learnt[number])
    piece, config = job.pieces[number], job.config
    path = job.kept[0] / f"{piece.name}.done"
    bins = bins_of(job.cube)[piece.rows]
    shapes = [(len(bins.coarsen(scale)), f) for scale, f in zip(config.scales, config.genome_factors, strict=True)]
    read = dask.delayed(read_array, pure=True)
    return [da.from_delayed(read(path, str(i)), shape, np.float32) for i, shape in enumerate(shapes)]
