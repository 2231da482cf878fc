"""Panels and models to try things on: simulated, with no file needed, or published, fetched once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado import simulation
from xr_avocado.cube import ASSAY, CELLTYPE, DIMS, OBSERVED, SIGNAL, CubeError, check_whole
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins
from xr_avocado.pretrained import pretrained, roadmap_pilot
from xr_avocado.transforms import transform_named

__all__ = ["pretrained", "roadmap_pilot", "simulate", "simulated_elements"]

SIZES = {"chr1": 1_200_010, "chr2": 800_017}


def simulate(
    n_celltypes: int = 8,
    n_assays: int = 6,
    chromsizes: Mapping[str, int] | None = None,
    *,
    binsize: int = 25,
    seed: int = 0,
) -> xr.Dataset:
    """Simulate a panel in which every experiment was run: -log10 p values of reads, arcsinh transformed.

    Genes, enhancers, insulators and repressed domains lie on the genome, each more or less active in each cell type; related
    cell types (``C1``, ``C2``, ``C3``; ``C4``, …) share most of their activity, and neighbouring elements some of it. Each
    assay responds to some kinds of element, in sharp peaks (H3K4me3, DNase) or over gene bodies and domains (H3K36me3,
    H3K27me3). Experiments differ in depth and in how well they worked, and their reads are drawn at random. So average
    activity is a fair guess of a track, and relatives and other assays tell more.

    Holds all tracks in memory: 4 bytes a value, 15 MB as called without arguments.

    Parameters
    ----------
    n_celltypes
        Number of cell types, named ``C1``, ``C2``, ….
    n_assays
        Number of assays: H3K4me3, H3K27ac, H3K4me1, DNase, H3K36me3, H3K27me3, H3K9me3, CTCF, H3K9ac, H3K79me2, H4K20me1,
        H3K4me2, and then ``mark13``, ….
    chromsizes
        Chromosome lengths in bp; two chromosomes of 2 Mb together unless given.
    binsize
        Width of a bin in bp.
    seed
        The same seed gives the same panel.

    Returns
    -------
    A cube: ``signal`` (cell type x assay x position, float32) and ``observed``.

    Raises
    ------
    CubeError
        Where a number of cell types or assays is below 1, a chromosome is empty, or something given is of another kind.

    Examples
    --------
    >>> cube = simulate(n_celltypes=3, n_assays=2, chromsizes={"chr1": 100_010})
    >>> dict(cube.sizes)
    {'celltype': 3, 'assay': 2, 'position': 4001}
    >>> cube.assay.values.tolist(), int(cube.end[-1])
    (['H3K4me3', 'H3K27ac'], 100010)
    """
    sizes = _checked(n_celltypes, n_assays, SIZES if chromsizes is None else chromsizes, seed)
    bins = GenomeBins.from_chromsizes(sizes, binsize)
    seen = simulation.responses(n_assays, seed=seed)
    signal = _tracks(n_celltypes, seen, sizes, bins, seed)
    observed = np.ones((n_celltypes, n_assays), bool)
    cube = xr.Dataset(
        {SIGNAL: (DIMS, signal, {"long_name": "signal", "units": "-log10 p"}), OBSERVED: ((CELLTYPE, ASSAY), observed)},
        coords={CELLTYPE: [f"C{i + 1}" for i in range(n_celltypes)], ASSAY: list(seen)},
        attrs={
            "genome": "simulated",
            "chromsizes": sizes,
            "binsize": binsize,
            "transform": "arcsinh",
            "uncovered": "zero",
        },
    )
    return assign_bins(cube, bins)


def simulated_elements(chromsizes: Mapping[str, int] | None = None, *, seed: int = 0) -> pd.DataFrame:
    """List the genes, enhancers, insulators and domains that ``simulate`` puts on these chromosomes with this seed.

    Parameters
    ----------
    chromsizes
        Chromosome lengths in bp, as ``simulate`` takes them.
    seed
        The seed given to ``simulate``.

    Returns
    -------
    A frame of chrom, start, end, strand and kind; 0-based, half-open.

    Examples
    --------
    >>> simulated_elements().kind.value_counts().to_dict()
    {'enhancer': 200, 'insulator': 133, 'gene': 50, 'polycomb': 17, 'heterochromatin': 13}
    """
    sizes = _checked(1, 1, SIZES if chromsizes is None else chromsizes, seed)
    return simulation.elements(sizes, seed=seed)[["chrom", "start", "end", "strand", "kind"]]


def _tracks(
    n_celltypes: int,
    seen: Mapping[str, tuple[simulation.Response, ...]],
    sizes: Mapping[str, int],
    bins: GenomeBins,
    seed: int,
) -> np.ndarray:
    """All tracks, transformed: cell types x assays x positions, float32."""
    table = simulation.elements(sizes, seed=seed)
    activity = simulation.active(table, simulation.lineages(n_celltypes, seed=seed)[1])
    floor = simulation.background(bins, seed=seed)
    random = np.random.default_rng([seed, 5])
    # How well an experiment worked lies partly with the sample, partly with the experiment itself.
    worked = np.exp(0.25 * random.normal(size=(n_celltypes, 1)) + 0.25 * random.normal(size=(n_celltypes, len(seen))))
    reads = simulation.READS * np.exp(0.3 * random.normal(size=worked.shape))
    forward = transform_named("arcsinh").forward
    tracks = np.empty((n_celltypes, len(seen), len(bins)), np.float32)
    for a, assay in enumerate(seen.values()):
        profiles = [simulation.profile_of(table, response, bins) for response in assay]
        for c in range(n_celltypes):
            enrichment = sum(profile.enrichment(activity[:, c], len(bins)) for profile in profiles)
            rate = floor * (1 + worked[c, a] * enrichment)
            tracks[c, a] = forward(simulation.track(rate, bins, reads=reads[c, a], random=random))
    return tracks


def _checked(n_celltypes: int, n_assays: int, sizes: Any, seed: int) -> dict[str, int]:
    check_whole("n_celltypes", n_celltypes)
    check_whole("n_assays", n_assays)
    check_whole("seed", seed, least=0)
    if not isinstance(sizes, Mapping) or not sizes:
        raise CubeError(f"chromsizes are a mapping from chromosome to its length in bp, as {SIZES}; got {sizes!r}")
    return {str(chrom): check_whole(f"the length of {chrom}", size) for chrom, size in sizes.items()}
