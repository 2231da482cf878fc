"""read_keras and to_keras: models of the published package as fitted cubes, and fitted cubes as its models."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import dask.array as da
import numpy as np
import xarray as xr

from xr_avocado.assembly import assembly_name, chromosome_sizes
from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTOR,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTOR,
    CELLTYPE_FACTORS,
    FITTED,
    NETWORK,
    OBSERVED,
    POSITION,
    CubeError,
    check_cube,
    factor_dim,
    genome_factors,
    position_dim,
)
from xr_avocado.genome import GenomeBins, GenomeError, unknown_chromosome
from xr_avocado.index import assign_bins, bins_of
from xr_avocado.intervals import as_frame
from xr_avocado.io.keras import (
    ASSAY_LAYER,
    BINSIZE,
    CELLTYPE_LAYER,
    GENOME_LAYERS,
    SCALES,
    Expanded,
    Header,
    Pair,
    Rows,
    read_pair,
    write_pair,
)

if TYPE_CHECKING:
    from xr_avocado.model.config import Config

__all__ = ["read_keras", "to_keras"]

logger = logging.getLogger("xr_avocado")

Name: TypeAlias = str | os.PathLike[str]
ARRAY_FACTORS = "array_genome_factors"
"""In ``attrs["avocado"]``: lengths of the vectors of 25 bp, 250 bp and 5 kbp, where the first dim of factors holds all of them."""
ROWS = 1 << 18
"""Rows of a dask chunk of genome factors; one of the published models then has 26 MB."""
WIDTHS = tuple(BINSIZE * scale for scale in SCALES)


def read_keras(
    path: Name | Sequence[Name],
    *,
    genome: str | Path | Mapping[str, int] | None = None,
    chrom: str | Sequence[str] | None = None,
    regions: Any = None,
) -> xr.Dataset:
    """Read a model that the published Avocado package saved (``.json`` and ``.h5``) as a fitted cube without signal.

    What the cube has is what a fitted one has, so that ``impute``, ``embed``, ``sel`` and ``to_zarr`` work on it; Keras is not
    needed, nothing in the files is run, and they are checked before they are believed. A model that is split over several files, one
    a chromosome, opens as one cube. Labels and network are read, with a few MB of memory a model; the genome's factors stay in the h5
    and are read where they are asked for.

    Parameters
    ----------
    path
        What the names of the two files have in common (``"avocado-chr19"``), or either file; or several, one a chromosome.
    genome
        The assembly: a name that bioframe knows, a ``chrom.sizes`` file, or a mapping. Without it each chromosome is taken to be as
        long as its model.
    chrom
        The chromosome that each model covers from its first base, one for each path; by default what the name ends with. Without
        ``genome`` it may be any name: positions are then rows of the model's array.
    regions
        Instead of ``chrom``: what the rows of the array are, one after the other, as a model of the pilot regions has it (BED file,
        PyRanges, frame or region strings, in the order of the array).

    Returns
    -------
    A fitted cube: ``observed`` (celltype x assay, bool: the experiments that the model was trained on, where the json names them),
    ``celltype_factors``, ``assay_factors``, ``network_*`` and ``genome_factors_25bp``, ``_250bp`` and ``_5kbp``, lazy, along
    ``position`` and its coarse dims. ``attrs["transform"]`` is ``"arcsinh"``, as that of all published models.

    The package aligns the coarse scales to the array: row i reads row i // 10 and i // 200 of them. On chromosomes from their first
    base that is the genome's own grid. Where it is not, as on pilot regions, all factors of a position are in
    ``genome_factors_25bp`` (in the order 25 bp, 250 bp, 5 kbp), and there are no coarse dims.

    Raises
    ------
    CubeError
        Where a file is missing, damaged or hostile, json and h5 do not belong together, models of several files differ in more than
        their genome factors, or there are more or fewer positions than the chromosome or the regions have.
    GenomeError
        Where the genome, a chromosome or the regions cannot be understood.

    References
    ----------
    Schreiber et al. 2020, doi:10.1186/s13059-020-01977-6; the files are those of ``Avocado.save``.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=3, n_assays=3, chromsizes={"chr1": 50_000})
    >>> fitted = cube.avocado.fit("small", epochs=1, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = fitted.avocado.to_keras(f"{folder}/avocado-chr1", progress=False)
    ...     model = xa.read_keras(f"{folder}/avocado-chr1")
    ...     model.avocado.impute("C1", "H3K4me3").imputed.sel(celltype="C1", assay="H3K4me3").values.shape
    (2000,)
    """
    paths = list(path) if isinstance(path, Sequence) and not isinstance(path, str) else [path]
    if not paths:
        raise CubeError("there is no model to read: give the name of one, or several")
    sizes = None if genome is None else chromosome_sizes(genome)
    pairs = [read_pair(p) for p in paths]
    for pair in pairs[1:]:
        _check_one_model(pairs[0], pair)
    lengths = [pair.header.n_genomic_positions for pair in pairs]
    if regions is None:
        names = _chromosomes(paths, chrom)
        sizes = {c: n * BINSIZE for c, n in zip(names, lengths, strict=True)} if sizes is None else sizes
        bins = GenomeBins([(c, 0, _end(c, n, sizes)) for c, n in zip(names, lengths, strict=True)], BINSIZE)
    else:
        bins, sizes = _bins_of_regions(regions, lengths, chrom, sizes)
    attrs: dict[str, Any] = {} if genome is None else {"genome": assembly_name(genome)}
    attrs |= {"chromsizes": sizes, "binsize": BINSIZE, "transform": "arcsinh", "uncovered": "zero"}
    return _with_genome(_labelled(pairs[0], attrs), bins, pairs)


def _check_one_model(first: Pair, other: Pair) -> None:
    for name in ("celltypes", "assays"):
        if getattr(first.header, name) != getattr(other.header, name):
            raise CubeError(
                f"{first.path} and {other.path} have other {name}, so they are of different models: read each on its own"
            )
    mine, theirs = ([p.celltype_factors, p.assay_factors, *p.weights, *p.biases] for p in (first, other))
    same_shapes = first.header.genome_factors == other.header.genome_factors and len(mine) == len(theirs)
    if not same_shapes or not all(map(np.array_equal, mine, theirs)):
        raise CubeError(
            f"{first.path} and {other.path} differ in the network or in the factors of cell types and assays, so they are of "
            "different models: read each on its own"
        )


def _chromosomes(paths: Sequence[Name], chrom: str | Sequence[str] | None) -> list[str]:
    """Settle which chromosome each model covers."""
    if chrom is None:
        found = [re.search(r"chr\w+$", re.sub(r"\.(json|h5)$", "", os.path.basename(p))) for p in paths]
        if None in found:
            raise CubeError(
                f"the name {os.path.basename(paths[found.index(None)])!r} does not end with a chromosome: give chrom= what the model "
                "covers from its first base, or regions= what its rows are"
            )
        names = [match[0] for match in found if match]
    else:
        names = [chrom] if isinstance(chrom, str) else [str(c) for c in chrom]
    if len(names) != len(paths):
        raise CubeError(f"one chromosome a model: got {len(names)} for {len(paths)}")
    if len(set(names)) < len(names):
        raise CubeError(f"each chromosome has one model; {next(c for c in names if names.count(c) > 1)} is there twice")
    return names


def _end(chrom: str, length: int, sizes: Mapping[str, int]) -> int:
    """Last base of a model's chromosome that it covers."""
    if chrom not in sizes:
        raise GenomeError(unknown_chromosome(chrom, tuple(sizes)))
    whole = -(-sizes[chrom] // BINSIZE)
    if length > whole:
        raise CubeError(
            f"the model has {length:,} positions, but {chrom} is {sizes[chrom]:,} bp long and has {whole:,} bins of {BINSIZE} bp: is it "
            "of another assembly or chromosome, or of regions? Then give genome=, chrom= or regions="
        )
    if length < whole - 1:
        logger.info("the model covers %s up to %s of %s bp", chrom, length * BINSIZE, sizes[chrom])
    return min(length * BINSIZE, sizes[chrom])


def _bins_of_regions(
    regions: Any, lengths: Sequence[int], chrom: Any, sizes: dict[str, int] | None
) -> tuple[GenomeBins, dict[str, int]]:
    if chrom is not None or len(lengths) > 1:
        raise CubeError("regions= goes with one model, and without chrom=: it says what the rows of its array are")
    frame = as_frame(regions, sizes=sizes)
    if sizes is None:
        ends = frame.groupby("chrom", sort=False)["end"].max()
        sizes = {str(c): -(-int(end) // BINSIZE) * BINSIZE for c, end in ends.items()}
    bins = GenomeBins.from_regions(frame, BINSIZE, sizes)
    if len(bins) != lengths[0]:
        raise CubeError(
            f"the regions have {len(bins):,} bins of {BINSIZE} bp, but the model has {lengths[0]:,} positions: give the regions that "
            "it was trained on, in the order of its array"
        )
    return bins, sizes


def _labelled(pair: Pair, attrs: dict[str, Any]) -> xr.Dataset:
    """All of a model but the genome."""
    header = pair.header
    observed = np.zeros((len(header.celltypes), len(header.assays)), bool)
    for c, a in header.experiments:
        observed[header.celltypes.index(c), header.assays.index(a)] = True
    variables: dict[str, Any] = {
        OBSERVED: ((CELLTYPE, ASSAY), observed),
        CELLTYPE_FACTORS: ((CELLTYPE, CELLTYPE_FACTOR), pair.celltype_factors),
        ASSAY_FACTORS: ((ASSAY, ASSAY_FACTOR), pair.assay_factors),
    }
    for i, (weight, bias) in enumerate(zip(pair.weights, pair.biases, strict=True)):
        dims = (f"{NETWORK}{i}_out", f"{NETWORK}{i}_in")
        variables |= {f"{NETWORK}weight_{i}": (dims, weight), f"{NETWORK}bias_{i}": (dims[:1], bias)}
    return xr.Dataset(variables, {CELLTYPE: list(header.celltypes), ASSAY: list(header.assays)}, attrs)


def _with_genome(ds: xr.Dataset, bins: GenomeBins, pairs: Sequence[Pair]) -> xr.Dataset:
    """Add the genome's factors, one dim a scale, or all on one where the scales are the array's and not the genome's."""
    own = pairs[0].header.genome_factors
    scales: Sequence[int]
    factors: Sequence[int]
    # Of several models each has a chromosome from its first base.
    if len(pairs) > 1 or _on_grid(bins):
        scales, factors, extra = SCALES, own, {}
        tables = [da.concatenate([_lazy(pair.genome[i]) for pair in pairs]) for i in range(len(SCALES))]
    else:
        scales, factors, extra = SCALES[:1], (sum(own),), {ARRAY_FACTORS: list(own)}
        tables = [_lazy(Expanded(pairs[0].genome))]
    for scale, table in zip(scales, tables, strict=True):
        width = BINSIZE * scale
        dim = position_dim(width, BINSIZE)
        ds = assign_bins(
            ds.assign({genome_factors(width): ((dim, factor_dim(width)), table)}), bins.coarsen(scale), dim
        )
    return ds.assign_attrs({FITTED: _provenance(pairs[0].header, scales, factors) | extra})


def _on_grid(bins: GenomeBins) -> bool:
    """Tell whether runs of 10 and of 200 rows of the array are the genome's bins of 250 bp and 5 kbp."""
    first = np.array([rows.start for rows in bins.segment_slices])
    start = bins.segments["start"].to_numpy() // BINSIZE
    return not (first % SCALES[-1]).any() and not (start % SCALES[-1]).any()


def _lazy(rows: Rows) -> da.Array:
    meta = np.empty((0, 0), np.float32)
    # A token would read the whole table.
    return da.from_array(rows, (ROWS, -1), name=False, asarray=False, inline_array=True, meta=meta)


def _provenance(header: Header, scales: Sequence[int], factors: Sequence[int]) -> dict[str, Any]:
    from xr_avocado import __version__
    from xr_avocado.model.config import PRESETS

    sizes = {"celltype_factors": header.n_celltype_factors, "assay_factors": header.n_assay_factors}
    sizes |= {"layers": header.n_layers, "nodes": header.n_nodes, "batch": header.batch_size}
    config = PRESETS["paper"].updated(sizes | {"scales": tuple(scales), "genome_factors": tuple(factors)})
    return {
        "version": __version__,
        "config": config.to_attrs(),
        "source": "published package",
        "celltypes": list(header.celltypes),
        "assays": list(header.assays),
        "trained_on": [list(pair) for pair in header.experiments],
        "validation": [],
    }


def to_keras(ds: xr.Dataset, path: Name, *, overwrite: bool = False, progress: bool = True) -> tuple[Path, Path]:
    """Write a fitted cube as the ``.json`` and ``.h5`` that the published Avocado package loads.

    That package knows factors and a network, on 25-bp bins whose coarse scales are counted from the first row. So this is for models
    of factors alone (``fit("paper")``, ``fit("small")``, or read by ``read_keras``), of one chromosome from its first base, or of
    the very regions that ``read_keras`` read. Lazy factors are read and written 819,200 rows at a time (82 MB of 25 factors); each file is
    whole or absent. The state of the optimizer is left out, as training that goes on there starts it anew.

    Parameters
    ----------
    ds
        A fitted cube.
    path
        What the names of the two files have in common, e.g. ``"avocado-chr19"``.
    overwrite
        Replace files that are there.
    progress
        Show a progress bar.

    Returns
    -------
    The paths of the json and of the h5.

    Raises
    ------
    CubeError
        Where the cube is not fitted, its model is not one that the package can express, or a file is there already.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=3, n_assays=3)
    >>> fitted = cube.avocado.fit("small", epochs=1, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [p.name for p in fitted.avocado.sel("chr1").avocado.to_keras(f"{folder}/avocado-chr1", progress=False)]
    ['avocado-chr1.json', 'avocado-chr1.h5']
    """
    from xr_avocado.model.config import Config

    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    config = Config.from_attrs(ds.attrs[FITTED]["config"])
    _check_expressible(ds, config)
    tables = _array_tables(ds)
    labels = {dim: tuple(str(label) for label in ds[dim].values) for dim in (CELLTYPE, ASSAY)}
    pairs = tuple(
        (c, a) for c, a in ds.attrs[FITTED].get("trained_on", []) if c in labels[CELLTYPE] and a in labels[ASSAY]
    )
    fine, middle, coarse = (int(table.shape[1]) for table in tables)
    header = Header(
        celltypes=labels[CELLTYPE],
        assays=labels[ASSAY],
        experiments=pairs,
        n_celltype_factors=config.celltype_factors,
        n_assay_factors=config.assay_factors,
        n_genomic_positions=len(bins_of(ds)),
        n_25bp_factors=fine,
        n_250bp_factors=middle,
        n_5kbp_factors=coarse,
        n_layers=config.layers,
        n_nodes=config.nodes,
        batch_size=config.batch,
    )
    weights: dict[str, Sequence[Any]] = {
        CELLTYPE_LAYER: [ds[CELLTYPE_FACTORS].transpose(CELLTYPE, ...).values],
        ASSAY_LAYER: [ds[ASSAY_FACTORS].transpose(ASSAY, ...).values],
    }
    weights |= {layer: [table] for layer, table in zip(GENOME_LAYERS, tables, strict=True)}
    for i, layer in enumerate(header.dense):
        weights[layer] = [ds[f"{NETWORK}weight_{i}"].values.T, ds[f"{NETWORK}bias_{i}"].values]
    return write_pair(path, header, weights, overwrite=overwrite, progress=progress)


def _check_expressible(ds: xr.Dataset, config: Config) -> None:
    """Raise where the published package would predict something else from the model's factors, or could not hold them."""
    if config.context or config.average:
        part = "a context term" if config.context else "average activity"
        raise CubeError(
            f"this model predicts with {part}, which the published package does not know: train one of factors alone, e.g. "
            '.avocado.fit("paper")'
        )
    expanded = ARRAY_FACTORS in ds.attrs[FITTED]
    if bins_of(ds).binsize != BINSIZE or (not expanded and config.scales != SCALES):
        raise CubeError(
            f"the published package knows bins of {', '.join(map(str, WIDTHS))} bp, but this model has "
            f"{', '.join(str(bins_of(ds).binsize * scale) for scale in config.scales)}"
        )
    if not len(bins_of(ds)):
        raise CubeError("this cube has no positions; the published package needs some")
    if not expanded and not _on_grid(bins_of(ds)):
        raise CubeError(
            "the published package has one model a chromosome and counts coarse bins from the chromosome's first base; cut the cube "
            f'to one that begins there, e.g. .avocado.sel("{bins_of(ds).chroms[0]}")'
        )


def _array_tables(ds: xr.Dataset) -> list[Any]:
    """Genome factors of each scale, laid out as the package's array has them: bins of that scale x factors."""
    bins = bins_of(ds)
    if ARRAY_FACTORS in ds.attrs[FITTED]:
        return _split(ds[genome_factors(BINSIZE)].transpose(POSITION, ...).data, ds.attrs[FITTED][ARRAY_FACTORS])
    tables = []
    for scale, width in zip(SCALES, WIDTHS, strict=True):
        dim = position_dim(width, BINSIZE)
        rows = bins_of(ds, dim).rows_of(bins.coarsen(scale))
        run = rows[-1] + 1 - rows[0] == len(rows)
        tables.append(ds[genome_factors(width)].transpose(dim, ...).data[slice(rows[0], rows[-1] + 1) if run else rows])
    return tables


def _split(expanded: Any, factors: Iterable[int]) -> list[Any]:
    """Take the scales apart that ``read_keras`` put side by side; raise where rows were cut so that they no longer lie in runs."""
    edges = np.cumsum([0, *factors]).tolist()
    tables = [expanded[::scale, a:b] for scale, a, b in zip(SCALES, edges, edges[1:], strict=False)]
    for first in range(0, len(expanded), ROWS // SCALES[-1] * SCALES[-1]):
        piece = np.asarray(expanded[first : first + ROWS // SCALES[-1] * SCALES[-1]])
        for scale, a, b in zip(SCALES, edges, edges[1:], strict=False):
            runs = np.repeat(piece[::scale, a:b], scale, axis=0)[: len(piece)]
            if not np.array_equal(piece[:, a:b], runs):
                raise CubeError(
                    "this cube is a part of the regions that its model was read on, and the published package counts coarse bins from "
                    "the first row: write the whole one, before anything is cut out of it"
                )
    return tables
