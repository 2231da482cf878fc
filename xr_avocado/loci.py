"""Where imputation is hard, and what it must keep: variable loci, and relationships between marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.annotations import Peaks, promoters_of
from xr_avocado.cube import ASSAY, CELLTYPE, SIGNAL, CubeError, Experiment, check_cube, experiments
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.intervals import as_frame
from xr_avocado.measures import gwcorr
from xr_avocado.methods import layers_of, read_pieces, sources_of, tracks_to_score, true_layer
from xr_avocado.pair import Spans

__all__ = ["RELATIONSHIPS", "Relationship", "relationships", "variable_loci"]

PEAK = float(np.arcsinh(2))
"""A bin is called a peak above this arcsinh signal: -log10 p of 2."""
REFERENCE = "observed"
PLACES = ("promoter", "body")


def variable_loci(
    ds: xr.Dataset,
    truth: xr.Dataset | None = None,
    *,
    peaks: Any,
    tracks: Iterable[Any] | None = None,
    methods: Iterable[str] | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score by how many cell types share a peak: one of all cell types is easy to impute, one of a single one hard.

    For each assay, a bin has as many cell types as have a peak of the assay over it; bins without any are left out. All
    (cell type, bin) of the tracks scored are pooled by that number. A bin is called a peak where its arcsinh signal is
    above 1.4436, a -log10 p of 2. The observed signal, called in the same way, is the reference: ``method`` is
    ``observed``.

    Memory: a piece of 2^22 bins at a time, of every method, or as many short tracks as fit 64 MB a method.

    Parameters
    ----------
    ds, truth, tracks, methods
        As in `evaluate`. Tracks without peaks are passed over.
    peaks
        Peaks called on observed tracks: a frame with the columns celltype and assay, or a mapping from ``(celltype,
        assay)`` to a track's intervals.
    progress
        Show a progress bar.

    Returns
    -------
    A frame of assay, method, celltypes (with a peak), bins, mse (arcsinh), recall and precision.

    Raises
    ------
    CubeError
        Where no track to be scored has peaks.

    References
    ----------
    Schreiber et al. 2020, section "Avocado's imputations at variable loci" and figure 2, which ``xr_avocado.plot.loci`` draws.

    Examples
    --------
    >>> import pandas as pd, xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=3, n_assays=2)
    >>> peaks = pd.DataFrame(
    ...     {"chrom": "chr1", "start": [50_000], "end": [60_000], "celltype": "C1", "assay": "H3K4me3"}
    ... )
    >>> table = cube.avocado.variable_loci(peaks=peaks, methods=["average"], progress=False)
    >>> table[["method", "celltypes", "bins"]].values.tolist()
    [['observed', 1, 400], ['average', 1, 400]]
    """
    true_cube, called = check_cube(ds if truth is None else truth, SIGNAL), Peaks(peaks)
    pairs = [pair for pair in tracks_to_score(ds, true_cube, tracks) if pair in called]
    if not pairs:
        raise CubeError("none of the tracks to be scored has peaks: give the peaks of their cell types and assays")
    layers = {REFERENCE: true_layer(true_cube, ds), **layers_of(ds, sources_of(ds, methods), pairs)}
    bins, rows = bins_of(ds), []
    with tqdm(total=len(pairs), desc="variable loci", unit="track", disable=not progress) as bar:
        for assay in dict.fromkeys(pair.assay for pair in pairs):
            peaks_of = {c: called.rows(bins, Experiment(c, assay)) for c in called.celltypes(assay)}
            counts = {name: np.zeros((5, len(peaks_of) + 1)) for name in layers}
            for pair, piece, values in read_pieces(layers, [p for p in pairs if p.assay == assay], "arcsinh"):
                shared = np.sum([spans.cover(piece) for spans in peaks_of.values()], axis=0)
                own = peaks_of[pair.celltype].cover(piece) > 0
                for name, p in values.items():
                    counts[name] += _counts(values[REFERENCE], p, own, shared, len(peaks_of))
                bar.update(int(piece.stop == len(bins)))
            rows += [row for name, count in counts.items() for row in _by_celltypes(assay, name, count)]
    return pd.DataFrame(rows, columns=[ASSAY, "method", "celltypes", "bins", "mse", "recall", "precision"])


def _counts(y: np.ndarray, p: np.ndarray, peak: np.ndarray, shared: np.ndarray, most: int) -> np.ndarray:
    """Sums by the number of cell types that share a bin: bins, squared errors, peaks, calls, called peaks."""
    there = np.flatnonzero((shared > 0) & ~(np.isnan(y) | np.isnan(p)))
    y, p, peak, at = y[there], p[there], peak[there], shared[there]
    call = p > PEAK
    weights = [np.ones(at.size), (y - p).astype(np.float64) ** 2, peak, call, peak & call]
    return np.stack([np.bincount(at, weights=w, minlength=most + 1) for w in weights])


def _by_celltypes(assay: str, method: str, counts: np.ndarray) -> list[tuple[Any, ...]]:
    bins, error, peaks, calls, hits = counts
    with np.errstate(invalid="ignore"):
        mse, recall, precision = error / bins, hits / peaks, hits / calls
    return [(assay, method, int(k), int(bins[k]), mse[k], recall[k], precision[k]) for k in np.flatnonzero(bins)]


class Relationship(NamedTuple):
    """Two marks, each in genes' promoters or bodies, and the sign of the correlation to expect (0 for none)."""

    first: str
    first_place: str
    second: str
    second_place: str
    expected: int

    def __str__(self) -> str:
        return f"{self.first} {self.first_place} - {self.second} {self.second_place}"


RELATIONSHIPS = (
    Relationship("H3K4me3", "promoter", "H3K27me3", "promoter", -1),
    Relationship("H3K36me3", "body", "RNA", "body", 1),
    Relationship("H3K4me1", "promoter", "H3K27me3", "promoter", 0),
    Relationship("H3K4me3", "promoter", "H3K36me3", "body", 1),
    Relationship("H3K27me3", "promoter", "H3K36me3", "body", -1),
)
"""The pairs of the Avocado paper's section 2.2. ``RNA`` stands for any assay whose name begins so."""


def relationships(
    ds: xr.Dataset,
    truth: xr.Dataset | None = None,
    *,
    genes: Any,
    methods: Iterable[str] | Mapping[str, Any] | None = None,
    pairs: Iterable[Relationship] = RELATIONSHIPS,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare how marks go together over genes in imputed tracks with how they do in observed ones.

    For each cell type that has both marks, the mean arcsinh signal over each gene's promoter (2 kb upstream) or body is
    taken, and the two marks are correlated (Pearson) over all genes that the cube holds. The Avocado paper looks at
    these pairs too, but its formula is in a supplement that we do not have: this one is our own.

    Memory: that of `variable_loci`.

    Parameters
    ----------
    ds, truth, methods
        As in `evaluate`.
    genes
        Intervals with a strand.
    pairs
        What to compare; by default the paper's five, as far as the cube has their marks.
    progress
        Show a progress bar.

    Returns
    -------
    A frame of celltype, relationship, expected (sign), method, genes, r_observed and r (of the method's tracks).

    Raises
    ------
    CubeError
        Where no cell type has both marks of a pair, or no gene lies on the cube.

    Examples
    --------
    >>> import numpy as np, pandas as pd, xr_avocado as xa
    >>> start = np.arange(10_000, 700_000, 10_000)
    >>> genes = pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 5_000, "strand": "+"})
    >>> table = xa.datasets.simulate().avocado.relationships(genes=genes, methods=["average"], progress=False)
    >>> table.columns.tolist()
    ['celltype', 'relationship', 'expected', 'method', 'genes', 'r_observed', 'r']
    """
    true_cube, bins = check_cube(ds if truth is None else truth, SIGNAL), bins_of(ds)
    wanted = _comparisons(true_cube, pairs)
    tracks = list(dict.fromkeys(track for _, first, second in wanted for track in (first, second)))
    layers = {"": true_layer(true_cube, ds), **layers_of(ds, sources_of(ds, methods), tracks)}
    places = _places(bins, as_frame(genes))
    sums: dict[tuple[str, Experiment, str], np.ndarray] = {}
    with tqdm(total=len(tracks), desc="relationships", unit="track", disable=not progress) as bar:
        for track, piece, values in read_pieces(layers, tracks, "arcsinh"):
            for name, v in values.items():
                for place, spans in places.items():
                    sums[name, track, place] = sums.get((name, track, place), 0) + _sums(v, spans, piece)
            bar.update(int(piece.stop == len(bins)))
    means = {key: _mean(*of_genes) for key, of_genes in sums.items()}
    rows = []
    for pair, first, second in wanted:
        r = {
            name: gwcorr(means[name, first, pair.first_place], means[name, second, pair.second_place])
            for name in layers
        }
        rows += [
            (first.celltype, str(pair), pair.expected, name, len(places["body"].first), r[""], r[name])
            for name in r
            if name
        ]
    return pd.DataFrame(rows, columns=[CELLTYPE, "relationship", "expected", "method", "genes", "r_observed", "r"])


def _comparisons(truth: xr.Dataset, pairs: Iterable[Relationship]) -> list[tuple[Relationship, Experiment, Experiment]]:
    there, found = experiments(truth), []
    for pair in _read_pairs(pairs):
        for celltype in dict.fromkeys(track.celltype for track in there):
            own = {track.assay.split("-")[0].split("_")[0]: track for track in there if track.celltype == celltype}
            if pair.first in own and pair.second in own:
                found.append((pair, own[pair.first], own[pair.second]))
    if not found:
        raise CubeError("no cell type of the truth has both marks of a relationship; name your own with pairs=")
    return found


def _read_pairs(pairs: Any) -> list[Relationship]:
    read = []
    for pair in pairs if isinstance(pairs, Iterable) else [pairs]:
        if not isinstance(pair, tuple) or len(pair) != 5 or not {pair[1], pair[3]} <= set(PLACES):
            raise CubeError(
                "pairs are xr_avocado.loci.Relationship(first, first_place, second, second_place, expected), with places "
                f"{' and '.join(map(repr, PLACES))}; got {pair!r}"
            )
        read.append(Relationship(*pair))
    return read


def _places(bins: GenomeBins, genes: pd.DataFrame) -> dict[str, Spans]:
    """Rows of the promoter and the body of each gene that has both on the cube."""
    promoters = promoters_of(genes)
    body, promoter = (
        bins.overlaps(frame["chrom"].to_numpy(), frame["start"].to_numpy(), frame["end"].to_numpy())
        for frame in (genes.loc[promoters.index], promoters)
    )
    both = (body[0] < body[1]) & (promoter[0] < promoter[1])
    if not both.any():
        raise CubeError(f"none of the {len(genes):,} genes has its promoter and body on this cube")
    return {"body": Spans(*(ends[both] for ends in body)), "promoter": Spans(*(ends[both] for ends in promoter))}


def _sums(values: np.ndarray, spans: Spans, rows: slice) -> np.ndarray:
    """Sum of the values under each span within a piece, and their number: 2 x spans."""
    there = ~np.isnan(values)
    first, last = (np.clip(ends - rows.start, 0, values.size) for ends in (spans.first, spans.last))
    upto = np.cumsum([np.where(there, values, 0.0), there], axis=1, dtype=np.float64)
    upto = np.concatenate([np.zeros((2, 1)), upto], axis=1)
    return upto[:, last] - upto[:, first]


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
