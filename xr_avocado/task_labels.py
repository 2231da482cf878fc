"""Labels of downstream tasks, built of files: expressed genes, replication timing, FIREs, promoter-enhancer pairs."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.aggregate import Windows, aggregate, covered
from xr_avocado.cube import POSITION, CubeError, check_number
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import bins_of
from xr_avocado.intervals import as_frame, text_lines
from xr_avocado.task_folds import PAIR
from xr_avocado.task_tables import LABEL, PLACE
from xr_avocado.transforms import transform_named

__all__ = ["expression", "fire", "interactions", "replication_timing"]

logger = logging.getLogger("xr_avocado")

BINSIZE = 25
Track = str | os.PathLike[str] | xr.DataArray


def expression(
    tracks: Track | Mapping[str, Track], genes: Any, *, threshold: float = 0.5, transform: str = "arcsinh"
) -> pd.DataFrame:
    """Label genes by their signal: expressed where its mean over the gene's body reaches a threshold.

    Reads the track over the genes alone, 25-bp bin by bin, in runs of 2^18 bins or of the longest gene: some 20 MB.

    Parameters
    ----------
    tracks
        A bigWig file of RNA-seq, or ``{"+": file, "-": file}`` where it is stranded (negative values, as some write for the minus
        strand, count as positive). Or a track of a cube, ``cube.signal.sel(celltype="E003", assay="H3K36me3")``, which is taken in the
        units that it has.
    genes
        PyRanges, a frame, or a BED file; with a strand where the tracks have one.
    threshold
        Of the mean, in transformed units. The paper's is 0.5.
    transform
        What to do to a bin of a bigWig: ``"arcsinh"``, ``"log1p"`` or ``"none"``.

    Returns
    -------
    The genes, with the columns ``covered`` (fraction of the body on the track's bins), ``signal`` (the mean) and ``label`` (bool). Genes
    that the track has no bin of are left out.

    Raises
    ------
    GenomeError
        Where no gene is on the track, or genes have no strand and the tracks do.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> track = xa.datasets.simulate().signal.sel(celltype="C1", assay="H3K36me3")
    >>> genes = pd.DataFrame({"chrom": "chr1", "start": [0, 40_000], "end": [10_000, 60_000]})
    >>> expression(track, genes, threshold=1.0)[["covered", "label"]].shape
    (2, 2)
    """
    threshold = check_number("threshold", threshold)
    frame = as_frame(genes).drop(columns=["covered", "signal", LABEL], errors="ignore")
    frame = frame.assign(covered=0.0, signal=np.nan)
    for own, track in _by_strand(frame, tracks):
        values, bins = _along(
            track, frame[own], transform_named(transform).forward, absolute=isinstance(tracks, Mapping)
        )
        windows = Windows.of(frame[own], anchor=None, flank=0, windows=None)
        frame.loc[own, "signal"] = aggregate(values, bins, windows, "mean")[:, 0, 0]
        frame.loc[own, "covered"] = covered(bins, windows)[:, 0] / (frame["end"] - frame["start"])[own]
    return _labelled(frame, frame["signal"] >= threshold, "genes")


def _by_strand(genes: pd.DataFrame, tracks: Any) -> list[tuple[np.ndarray, Any]]:
    if not isinstance(tracks, Mapping):
        return [(np.ones(len(genes), bool), tracks)]
    if set(tracks) != {"+", "-"}:
        raise ValueError(
            f"stranded tracks are given as {{'+': file, '-': file}}; got the keys {', '.join(map(str, tracks))}"
        )
    if "strand" not in genes or not genes["strand"].isin(["+", "-"]).all():
        raise GenomeError("the tracks are stranded, so genes need a column 'strand' with + or -")
    both = [((genes["strand"] == strand).to_numpy(), tracks[strand]) for strand in "+-"]
    return [(own, track) for own, track in both if own.any()]


class _Signal:
    """Bins x 1 of a track, read on slicing."""

    def __init__(self, track: Any, bins: GenomeBins, forward: Any, *, absolute: bool) -> None:
        self.track, self.bins, self.forward, self.absolute = track, bins, forward, absolute
        self.shape = (len(bins), 1)

    def __getitem__(self, rows: slice) -> np.ndarray:
        if isinstance(self.track, xr.DataArray):
            return self.track[{POSITION: rows}].values[:, None]
        from xr_avocado.io.bigwig import read_bins

        values = read_bins(self.track, self.bins, rows=rows)
        return np.asarray(self.forward(np.abs(values) if self.absolute else values), np.float32)[:, None]


def _along(track: Any, genes: pd.DataFrame, forward: Any, *, absolute: bool) -> tuple[_Signal, GenomeBins]:
    if isinstance(track, xr.DataArray):
        if track.dims != (POSITION,):
            raise CubeError(
                f"a track lies along {POSITION!r} alone; this array has the dims {', '.join(map(str, track.dims))}: choose one with "
                ".sel(celltype=..., assay=...)"
            )
        return _Signal(track, bins_of(track), forward, absolute=False), bins_of(track)
    sizes = _chromosomes_with(track, genes)
    frame = genes[genes["chrom"].isin(list(sizes))]
    frame = frame[frame["start"] < frame["chrom"].map(sizes)]
    bins = GenomeBins(_merged(frame, sizes), BINSIZE)
    return _Signal(track, bins, forward, absolute=absolute), bins


def _chromosomes_with(path: Any, intervals: pd.DataFrame) -> dict[str, int]:
    from xr_avocado.io.bigwig import chromosomes

    sizes = chromosomes(path)
    if not intervals["chrom"].isin(list(sizes)).any():
        raise GenomeError(
            f"{path} has none of the chromosomes of the intervals ({', '.join(intervals['chrom'].unique()[:3])}); it has "
            f"{', '.join(list(sizes)[:3])}: are they named the same, and is it the same assembly?"
        )
    return sizes


def _merged(intervals: pd.DataFrame, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Segments of whole bins that hold all intervals, as a genome axis takes them."""
    out = []
    for chrom, own in intervals.groupby("chrom", sort=False):
        own = own.sort_values("start")
        start = own["start"].to_numpy() // BINSIZE * BINSIZE
        reach = np.maximum.accumulate(np.minimum(-(-own["end"].to_numpy() // BINSIZE) * BINSIZE, sizes[chrom]))
        first = np.flatnonzero(np.append(True, start[1:] > reach[:-1]))
        last = np.append(first[1:], len(own)) - 1
        out += [(str(chrom), int(start[i]), int(reach[j])) for i, j in zip(first, last, strict=True)]
    return out


def _labelled(frame: pd.DataFrame, label: pd.Series, kind: str) -> pd.DataFrame:
    known = frame["signal"].notna()
    if not known.any():
        raise GenomeError(f"none of the {len(frame):,} {kind} is on the track: is it the same assembly?")
    if not known.all():
        logger.warning("%d of %d %s are not on the track, and are left out", (~known).sum(), len(frame), kind)
    return frame.assign(**{LABEL: label})[known].reset_index(drop=True)


def replication_timing(
    source: Any, *, regions: Any = None, binsize: int = 40_000, threshold: float = 0.0
) -> pd.DataFrame:
    """Label wide bins by the sign of their replication timing: early where the mean is above 0.

    Parameters
    ----------
    source
        A bigWig file of the timing signal (early over late, as a logarithm or centred on 0). Or a table of intervals with a column
        ``score``, such as a bedGraph read with that name.
    regions
        What to cut into bins: a region string, PyRanges, a frame, a BED file; by default all chromosomes of the source.
    binsize
        Width of a bin in bp.
    threshold
        What the mean over the bases that have a value must be above.

    Returns
    -------
    chrom, start, end, ``signal`` and ``label`` (bool), one row a bin. Bins without a value are left out.

    Raises
    ------
    GenomeError
        Where no bin has a value, or a table has no column ``score``.

    Examples
    --------
    >>> timing = pd.DataFrame({"chrom": "chr1", "start": [0, 50_000], "end": [50_000, 90_000], "score": [1.0, -2.0]})
    >>> replication_timing(timing)[["start", "signal", "label"]].values.tolist()
    [[0, 1.0, True], [40000, -1.25, False], [80000, -2.0, False]]
    """
    threshold = check_number("threshold", threshold)
    path = isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in (".bw", ".bigwig")
    if path:
        from xr_avocado.io.bigwig import chromosomes, read_bins

        sizes = chromosomes(source)
        bins = _tiles(regions, sizes, binsize)
        signal = read_bins(source, bins, uncovered="ignore")
    else:
        table = as_frame(source)
        if "score" not in table or not pd.api.types.is_numeric_dtype(table["score"]):
            raise GenomeError(
                f"the table has no column 'score' of numbers; it has {', '.join(map(str, table.columns))}"
            )
        bins = _tiles(regions, table.groupby("chrom", sort=False)["end"].max().to_dict(), binsize)
        signal = _mean_score(table, bins)
    frame = pd.DataFrame({"chrom": bins.chrom, "start": bins.start, "end": bins.end, "signal": signal})
    return _labelled(frame, frame["signal"] > threshold, "bins")


def _tiles(regions: Any, sizes: Mapping[str, int], binsize: int) -> GenomeBins:
    if regions is None:
        return GenomeBins.from_chromsizes(sizes, binsize)
    return GenomeBins.from_regions(as_frame(regions, sizes=sizes)[list(PLACE)], binsize, sizes)


def _mean_score(table: pd.DataFrame, bins: GenomeBins) -> np.ndarray:
    """Mean score of each bin over the bp that intervals cover; NaN where none does."""
    from xr_avocado.axis import every_row

    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    first, last = bins.overlaps(table["chrom"].to_numpy(), start, end)
    rows = every_row(first, last)
    _, left, right = bins.at(rows)
    shared = np.minimum(np.repeat(end, last - first), right) - np.maximum(np.repeat(start, last - first), left)
    score = np.repeat(table["score"].to_numpy(np.float64), last - first)
    shared = np.where(np.isnan(score), 0, shared)
    bp = np.bincount(rows, shared, minlength=len(bins))
    total = np.bincount(rows, shared * np.nan_to_num(score), minlength=len(bins))
    return np.divide(total, bp, out=np.full(len(bins), np.nan), where=bp > 0)


def fire(source: Any, *, regions: Any = None, binsize: int = 40_000, column: str = "fire") -> pd.DataFrame:
    """Label wide bins by whether they are frequently interacting regions (FIREs).

    Parameters
    ----------
    source
        All bins, with a column of 0 and 1; or the FIREs alone, with ``regions``.
    regions
        What to cut into bins, those that overlap no FIRE being negative: a region string, PyRanges, a frame, a BED file.
    binsize
        Width of these bins in bp.
    column
        The column of 0 and 1.

    Returns
    -------
    chrom, start, end and ``label`` (bool), one row a bin.

    Raises
    ------
    GenomeError
        Where there are neither labels nor ``regions``, labels are not 0 and 1, or no FIRE lies in ``regions``.

    Examples
    --------
    >>> fire([("chr1", 40_000, 80_000)], regions="chr1:0-120,000").label.tolist()
    [False, True, False]
    """
    table = as_frame(source)
    if regions is None:
        if column not in table:
            raise GenomeError(
                f"the table has no column {column!r} of 0 and 1; it has {', '.join(map(str, table.columns))}. Name it as column=, or, "
                "where all of its intervals are FIREs, give regions="
            )
        return table[list(PLACE)].assign(**{LABEL: _zero_or_one(table[column], column)})
    wide = as_frame(regions)
    sizes = wide.groupby("chrom", sort=False)["end"].max().to_dict()
    bins = _tiles(wide, sizes, binsize)
    label = np.zeros(len(bins), bool)
    first, last = bins.overlaps(table["chrom"].to_numpy(), table["start"].to_numpy(), table["end"].to_numpy())
    for i, j in zip(first, last, strict=True):
        label[i:j] = True
    if not label.any():
        raise GenomeError(f"none of the {len(table):,} FIREs lies in regions: is it the same assembly?")
    return pd.DataFrame({"chrom": bins.chrom, "start": bins.start, "end": bins.end, LABEL: label})


def _zero_or_one(values: pd.Series, column: str) -> np.ndarray:
    number = pd.to_numeric(values, errors="coerce")
    if not number.isin([0, 1]).all():
        i = int((~number.isin([0, 1])).to_numpy().argmax())
        raise GenomeError(f"the column {column!r} is of 0 and 1; row {i} has {values.iloc[i]}")
    return number.to_numpy() == 1


def interactions(source: Any, negatives: Any = None, *, column: str | None = None) -> pd.DataFrame:
    """Read pairs of intervals, such as promoters and enhancers, and whether they interact.

    Parameters
    ----------
    source
        A BEDPE file (plain or gzipped, with or without a header), or a frame with its columns: chrom1, start1, end1, chrom2, start2,
        end2. Without ``negatives`` one of its columns says which pairs interact.
    negatives
        Pairs that do not interact, likewise; then all of ``source`` do.
    column
        The column of 0 and 1: its name, or ``"column11"`` for the eleventh of a file without a header. By default ``label``.

    Returns
    -------
    The six coordinates, strand1 and strand2 where they are known, and ``label`` (bool), one row a pair.

    Raises
    ------
    GenomeError
        Where a column is missing, an end is unknown (``.`` and -1 in BEDPE), or coordinates are not 0-based, half-open ones.

    Examples
    --------
    >>> row = {"chrom1": "chr1", "start1": 0, "end1": 100, "chrom2": "chr1", "start2": 900, "end2": 950}
    >>> interactions(pd.DataFrame([{**row, "label": 1}])).label.tolist()
    [True]
    """
    table = _bedpe(source)
    if negatives is None:
        name = column or LABEL
        if name not in table:
            raise GenomeError(
                f"the pairs have no column {name!r} of 0 and 1; they have {', '.join(map(str, table.columns))}. Name it as column=, or "
                "give the pairs that do not interact as negatives="
            )
        label = _zero_or_one(table[name], name)
    else:
        others = _bedpe(negatives)
        label = np.repeat([True, False], [len(table), len(others)])
        table = pd.concat([table, others], ignore_index=True)
    strands = [name for name in ("strand1", "strand2") if name in table and table[name].isin(["+", "-"]).all()]
    return table[[*PAIR, *strands]].assign(**{LABEL: label})


_BEDPE = (*PAIR, "name", "score", "strand1", "strand2")


def _bedpe(source: Any) -> pd.DataFrame:
    table = source.reset_index(drop=True) if isinstance(source, pd.DataFrame) else _read_bedpe(source)
    if missing := [name for name in PAIR if name not in table]:
        raise GenomeError(f"pairs have no column {', '.join(missing)}; they have {', '.join(map(str, table.columns))}")
    for i in (1, 2):
        end = table[[f"{name}{i}" for name in PLACE]].set_axis(list(PLACE), axis=1)
        unknown = end["chrom"].astype(str).isin([".", ""])
        if unknown.any():
            raise GenomeError(
                f"pair {int(unknown.argmax()) + 1} has an end that is not known ('.'): leave such pairs out"
            )
        try:
            checked = as_frame(end)
        except GenomeError as error:
            raise GenomeError(f"end {i} of the pairs: {error}") from None
        table = table.assign(**{f"{name}{i}": checked[name].to_numpy() for name in PLACE})
    return table


def _read_bedpe(path: Any) -> pd.DataFrame:
    if not isinstance(path, str | os.PathLike):
        raise GenomeError(f"pairs are a frame, or the path of a BEDPE file; got {type(path).__name__}")
    text = io.StringIO("\n".join(text_lines(path)))
    try:
        table = pd.read_csv(text, sep="\t", header=None, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise GenomeError(f"{path} is not a BEDPE file, one pair a line: {str(error).strip()}") from None
    if table.shape[1] > 1 and str(table.iloc[0, 1]) in ("start1", "x1"):
        names = [str(name).lstrip("#") for name in table.iloc[0]]
        names[:6] = PAIR
        table = table.iloc[1:].reset_index(drop=True)
    else:
        table = table[~table[0].str.startswith("#")].reset_index(drop=True)
        names = [*_BEDPE[: table.shape[1]], *(f"column{i + 1}" for i in range(len(_BEDPE), table.shape[1]))]
    if table.shape[1] < len(PAIR) or table.empty:
        raise GenomeError(
            f"{path} has {len(table):,} rows of {table.shape[1]} columns; a BEDPE file has {', '.join(PAIR)}, …"
        )
    return table.set_axis(names, axis=1)
