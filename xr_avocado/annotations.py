"""Genes, enhancers and peaks on a cube's bins: the rows that annotated measures are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.cube import ASSAY, CELLTYPE, CubeError, Experiment
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of
from xr_avocado.intervals import as_frame
from xr_avocado.pair import Convention, Spans

__all__ = ["KINDS", "Marks", "Peaks", "promoters_of", "rows_under", "spans_of"]

KINDS = ("genes", "promoters", "enhancers", "peaks")
UPSTREAM = 2_000
"""A promoter: 2 kb upstream of a gene's start, as Avocado and the challenge have it."""


def rows_under(bins: GenomeBins, intervals: pd.DataFrame, kind: str = "intervals") -> Spans:
    """Find the bins that overlap an interval, each once.

    Raises
    ------
    CubeError
        Where none does.
    """
    rows = _rows_under(bins, intervals)
    if not rows.first.size:
        raise CubeError(
            f"none of the {len(intervals):,} {kind} overlaps a bin of this cube, which has "
            f"{', '.join(bins.chroms[:6])}: are the chromosomes named the same, and is it the same assembly?"
        )
    return rows


def _rows_under(bins: GenomeBins, intervals: pd.DataFrame) -> Spans:
    chrom, start, end = (intervals[name].to_numpy() for name in ("chrom", "start", "end"))
    return Spans(*bins.overlaps(chrom, start, end)).once()


def promoters_of(genes: pd.DataFrame, upstream: int = UPSTREAM) -> pd.DataFrame:
    """Cut the stretch upstream of each gene's start; genes need a strand.

    Raises
    ------
    CubeError
        Where there is no ``strand`` column.
    """
    forward = _is_forward(genes)
    start = np.where(forward, genes["start"] - upstream, genes["end"])
    end = np.where(forward, genes["start"], genes["end"] + upstream)
    promoters = pd.DataFrame({"chrom": genes["chrom"], "start": np.maximum(start, 0), "end": end}, index=genes.index)
    return promoters[promoters["end"] > promoters["start"]]


def spans_of(
    bins: GenomeBins,
    intervals: pd.DataFrame,
    kind: str,
    sizes: Mapping[str, int],
) -> Spans:
    """Find the challenge's rows of each interval, counted as often as intervals cover them.

    With s = start // 25 and e = end // 25 + 1 these are the bins [s, e) of a gene or enhancer, and for a gene's
    promoter the 80 bins before s on the plus strand, after e on the minus strand (for other bin sizes, as many as make
    2 kb). Bins that would lie past a chromosome's end count in the denominator for genes and enhancers, as they did
    there.
    """
    width = bins.binsize
    first_bin, last_bin = intervals["start"].to_numpy() // width, intervals["end"].to_numpy() // width + 1
    if kind == "promoters":
        reach, forward = UPSTREAM // width, _is_forward(intervals)
        first_bin, last_bin = (
            np.where(forward, first_bin - reach, last_bin),
            np.where(forward, first_bin, last_bin + reach),
        )
    first_bin = np.maximum(first_bin, 0)
    first, last = bins.overlaps(intervals["chrom"].to_numpy(), first_bin * width, last_bin * width)
    on_cube = first < last
    in_genome = -(-intervals["chrom"].map(dict(sizes)).to_numpy(float) // width)
    past = np.zeros(len(intervals)) if kind == "promoters" else np.nan_to_num(np.maximum(last_bin - in_genome, 0))
    return Spans(first[on_cube], last[on_cube], (last - first + past)[on_cube].astype(np.int64))


class Peaks:
    """Peaks called on tracks, by experiment.

    Parameters
    ----------
    peaks
        A frame (or what `as_frame` reads) with the columns ``celltype`` and ``assay`` beside the intervals, or a
        mapping from ``(celltype, assay)`` to that track's intervals, such as the path of its narrowPeak file.
    """

    def __init__(self, peaks: Any) -> None:
        self._by_track: dict[Experiment, Any] = {}
        if isinstance(peaks, Mapping):
            for pair in peaks:
                if not isinstance(pair, tuple) or len(pair) != 2:
                    raise CubeError(
                        f"peaks are a mapping from (celltype, assay) to intervals; {pair!r} is no such pair"
                    )
            self._by_track = {Experiment(*map(str, pair)): intervals for pair, intervals in peaks.items()}
            return
        frame = as_frame(peaks)
        if not {CELLTYPE, ASSAY} <= set(frame.columns):
            raise CubeError(
                f"peaks need the columns {CELLTYPE!r} and {ASSAY!r}, or come as a mapping from (celltype, assay) to "
                f"intervals; got the columns {', '.join(map(str, frame.columns))}"
            )
        for pair, rows in frame.groupby([CELLTYPE, ASSAY], sort=False, observed=True):
            self._by_track[Experiment(*map(str, pair))] = rows

    def __contains__(self, pair: object) -> bool:
        return pair in self._by_track

    def celltypes(self, assay: str) -> list[str]:
        """Cell types whose track of an assay has peaks."""
        return [pair.celltype for pair in self._by_track if pair.assay == assay]

    def rows(self, bins: GenomeBins, pair: Experiment) -> Spans:
        """Find the bins under a peak of a track; there may be none in a region of a chromosome that has peaks."""
        peaks = as_frame(self._by_track[pair])
        if peaks["chrom"].isin(bins.chroms).any():
            return _rows_under(bins, peaks)
        return rows_under(bins, peaks, f"peaks of {pair}")


class Marks:
    """Annotations on the cube's bins, as runs of rows: each bin once, or by the challenge's rule as often as covered."""

    def __init__(self, ds: xr.Dataset, annotations: Mapping[str, Any] | None, convention: Convention) -> None:
        given = {kind: intervals for kind, intervals in (annotations or {}).items() if intervals is not None}
        if unknown := sorted(set(given) - set(KINDS)):
            raise ValueError(f"{', '.join(map(repr, unknown))}: annotations are given as {', '.join(KINDS)}")
        self.bins = bins_of(ds)
        self.peaks = Peaks(given.pop("peaks")) if "peaks" in given else None
        frames = {kind: as_frame(intervals) for kind, intervals in given.items()}
        sizes = ds.attrs.get("chromsizes", {})
        self.everywhere: dict[str, Spans] = {}
        for kind, frame in frames.items():
            self.everywhere[kind] = rows_under(self.bins, frame, kind)
            if convention == "challenge" and kind != "promoters":
                self.everywhere[kind] = spans_of(self.bins, frame, kind, sizes)
        if "genes" in frames and "promoters" not in frames:
            genes = frames["genes"]
            self.everywhere["promoters"] = (
                spans_of(self.bins, genes, "promoters", sizes)
                if convention == "challenge"
                else rows_under(self.bins, promoters_of(genes), "promoters")
            )

    def of(self, pair: Experiment) -> dict[str, Spans | None]:
        """Return the annotations of a track: those of all tracks, and its own peaks."""
        own = self.peaks.rows(self.bins, pair) if self.peaks is not None and pair in self.peaks else None
        return {**self.everywhere, "peaks": own}


def _is_forward(genes: pd.DataFrame) -> np.ndarray:
    if "strand" not in genes.columns:
        raise CubeError("genes need a 'strand' column (+ or -) for their promoters; or give the promoters themselves")
    return (genes["strand"].astype(str) == "+").to_numpy()
