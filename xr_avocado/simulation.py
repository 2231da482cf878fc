"""How a simulated panel comes about: elements on the genome, their activity in each cell type, the reads of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from xr_avocado.genome import GenomeBins

__all__ = ["ASSAYS", "Response", "active", "elements", "lineages", "responses", "track"]

FRAGMENT = 200
"""Length of a sequenced fragment in bp: a read counts in every bin within it, which is why neighbours resemble each other."""
READS = 3.0
"""Reads expected in a fragment's length of background."""
RANK = 6
"""Dimensions in which cell types differ."""


class Kind(NamedTuple):
    """A class of element: bp from one to the next, median length, and how its activity varies between cell types."""

    spacing: int
    length: int
    spread: float
    usual: float
    usual_spread: float
    variety: float


KINDS = {
    "gene": Kind(40_000, 10_000, 0.9, usual=0.0, usual_spread=2.0, variety=3.5),
    "enhancer": Kind(10_000, 600, 0.4, usual=-2.0, usual_spread=1.5, variety=4.0),
    "insulator": Kind(15_000, 200, 0.0, usual=2.5, usual_spread=1.5, variety=1.0),
    "polycomb": Kind(120_000, 18_000, 0.6, usual=-0.5, usual_spread=1.5, variety=3.0),
    "heterochromatin": Kind(150_000, 35_000, 0.6, usual=0.8, usual_spread=1.5, variety=1.5),
}


class Response(NamedTuple):
    """What an assay sees of a kind of element: enrichment over background, and the profile it has along the element."""

    kind: str
    enrichment: float
    profile: str
    width: int = 0
    of_silence: bool = False


ASSAYS: dict[str, tuple[Response, ...]] = {
    "H3K4me3": (Response("gene", 26, "start", 650), Response("enhancer", 1.5, "middle", 400)),
    "H3K27ac": (Response("gene", 13, "start", 800), Response("enhancer", 10, "middle", 500)),
    "H3K4me1": (Response("enhancer", 6, "middle", 1_100), Response("gene", 3.5, "flanks", 1_600)),
    "DNase": (
        Response("gene", 12, "start", 140),
        Response("enhancer", 11, "middle", 130),
        Response("insulator", 5, "middle", 100),
    ),
    "H3K36me3": (Response("gene", 4, "late body"),),
    "H3K27me3": (Response("polycomb", 2.6, "domain", 1_500), Response("gene", 3, "start", 2_200, of_silence=True)),
    "H3K9me3": (Response("heterochromatin", 2.4, "domain", 2_500),),
    "CTCF": (Response("insulator", 30, "middle", 90), Response("gene", 1, "start", 150)),
    "H3K9ac": (Response("gene", 15, "start", 600), Response("enhancer", 5, "middle", 400)),
    "H3K79me2": (Response("gene", 5, "early body"),),
    "H4K20me1": (Response("gene", 2.5, "late body"), Response("polycomb", 0.8, "domain", 1_500)),
    "H3K4me2": (Response("gene", 11, "start", 1_100), Response("enhancer", 5, "middle", 700)),
}


def responses(n_assays: int, *, seed: int) -> dict[str, tuple[Response, ...]]:
    """Name assays and what they see: those of ``ASSAYS`` first, then made-up marks of randomly chosen elements."""
    random = np.random.default_rng([seed, 1])
    chosen = dict(list(ASSAYS.items())[:n_assays])
    seen = [r for assay in ASSAYS.values() for r in assay]
    for number in range(len(chosen) + 1, n_assays + 1):
        picked = random.choice(len(seen), 2, replace=False)
        chosen[f"mark{number}"] = tuple(
            seen[i]._replace(enrichment=seen[i].enrichment * random.uniform(0.5, 1.2)) for i in picked
        )
    return chosen


def elements(sizes: Mapping[str, int], *, seed: int) -> pd.DataFrame:
    """Place elements on chromosomes: a frame of chrom, start, end, strand and kind, sorted; then ``loading`` and ``usual``.

    ``loading`` columns say what an element's activity depends on. Half of it belongs to the neighbourhood, so that what lies
    close together tends to be active together, as an enhancer is with its gene.
    """
    random = np.random.default_rng([seed, 2])
    rows = [_placed(random, chrom, size, name, kind) for chrom, size in sizes.items() for name, kind in KINDS.items()]
    table = pd.concat(rows, ignore_index=True)
    table["chrom"] = pd.Categorical(table["chrom"], categories=list(sizes), ordered=True)
    table = table.sort_values(["chrom", "start", "end"], ignore_index=True).astype({"chrom": str})
    around = table["chrom"].astype(str) + ":" + (table["start"] // 60_000).astype(str)
    code, names = pd.factorize(around)
    shared = random.normal(size=(len(names), RANK))[code]
    loadings = np.sqrt(0.5 / RANK) * (shared + random.normal(size=(len(table), RANK)))
    table["usual"] = [random.normal(KINDS[k].usual, KINDS[k].usual_spread) for k in table["kind"]]
    table["strength"] = random.gamma(4, 0.25, len(table))
    return table.join(pd.DataFrame(loadings, columns=[f"loading{i}" for i in range(RANK)]))


def _placed(random: np.random.Generator, chrom: str, size: int, name: str, kind: Kind) -> pd.DataFrame:
    number = max(1, round(size / kind.spacing))
    middle = random.uniform(0, size, number)
    length = np.maximum(kind.length * np.exp(kind.spread * random.normal(size=number)), 1)
    start = np.clip(middle - length / 2, 0, size - 1).astype(np.int64)
    end = np.minimum(np.ceil(start + length).astype(np.int64), size)
    strand = random.choice(["+", "-"], number)
    return pd.DataFrame({"chrom": chrom, "start": start, "end": end, "strand": strand, "kind": name})


def lineages(n_celltypes: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give each cell type a lineage (about three cell types in each) and a place in activity space near its relatives."""
    random = np.random.default_rng([seed, 3])
    lineage = np.arange(n_celltypes) * max(1, round(n_celltypes / 3)) // n_celltypes
    common = random.normal(size=(lineage.max(initial=0) + 1, RANK))
    return lineage, np.sqrt(0.75) * common[lineage] + np.sqrt(0.25) * random.normal(size=(n_celltypes, RANK))


def active(table: pd.DataFrame, states: np.ndarray) -> np.ndarray:
    """Activity of each element in each cell type, from 0 to 1: elements x cell types."""
    variety = table["kind"].map({name: kind.variety for name, kind in KINDS.items()}).to_numpy()
    loadings = table[[f"loading{i}" for i in range(RANK)]].to_numpy()
    return 1 / (1 + np.exp(-(table["usual"].to_numpy()[:, None] + variety[:, None] * (loadings @ states.T))))


class Profile(NamedTuple):
    """Where the elements that a response sees leave signal: bin rows, the element each belongs to, and its height there."""

    row: np.ndarray
    element: np.ndarray
    height: np.ndarray
    of_silence: bool

    def enrichment(self, activity: np.ndarray, n_bins: int) -> np.ndarray:
        """Enrichment over background of each bin, given the activity of each element."""
        state = 1 - activity if self.of_silence else activity
        return np.bincount(self.row, self.height * state[self.element], minlength=n_bins)


def profile_of(table: pd.DataFrame, response: Response, bins: GenomeBins) -> Profile:
    """Lay the profile of a response over all elements of its kind."""
    own = np.flatnonzero(table["kind"].to_numpy() == response.kind)
    start, end, strength = (table[column].to_numpy()[own] for column in ("start", "end", "strength"))
    forward = table["strand"].to_numpy()[own] == "+"
    anchor = np.where(forward, start, end - 1) if response.profile in ("start", "flanks") else (start + end) // 2
    along = "body" in response.profile or response.profile == "domain"
    margin = 4 * max(response.width, bins.binsize)
    low, high = (start, end) if along else (anchor, anchor + 1)
    first, last = bins.overlaps(table["chrom"].to_numpy(str)[own], np.maximum(low - margin, 0), high + margin)
    count = last - first
    k = np.repeat(np.arange(len(own)), count)
    row = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
    _, left, right = bins.at(row)
    height = _height(response, bins.binsize, (left + right) / 2, start[k], end[k], anchor[k], forward[k])
    return Profile(row, own[k], response.enrichment * strength[k] * height, response.of_silence)


def _height(
    response: Response,
    binsize: int,
    at: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    anchor: np.ndarray,
    forward: np.ndarray,
) -> np.ndarray:
    width = max(response.width, binsize / 2)
    fraction = np.clip(np.where(forward, at - start, end - at) / (end - start), 0, 1)
    inside = (at >= start) & (at < end)
    if response.profile == "late body":
        return inside * (0.3 + 0.7 * fraction)
    if response.profile == "early body":
        return inside * np.exp(-2.5 * fraction)
    if response.profile == "domain":
        outside = np.maximum(start - at, at - end)
        return 1 / (1 + np.exp(np.clip(outside / (width / 2), -50, 50)))
    peak = np.exp(-0.5 * ((at - anchor) / width) ** 2)
    if response.profile == "flanks":
        return peak - 0.8 * np.exp(-0.5 * ((at - anchor) / (0.35 * width)) ** 2)
    return peak


def background(bins: GenomeBins, *, seed: int) -> np.ndarray:
    """Relative background of each bin, the same in every experiment: slow waves, and stretches where no read maps."""
    random = np.random.default_rng([seed, 4])
    blocks = bins.coarsen(max(1, 5_000 // bins.binsize))
    wave = np.exp(0.2 * random.normal(size=len(blocks)))
    wave[random.random(len(blocks)) < 0.015] = 0
    return wave[blocks.rows_of(bins)]


def track(rate: np.ndarray, bins: GenomeBins, *, reads: float, random: np.random.Generator) -> np.ndarray:
    """Draw an experiment: reads at ``rate`` times the background, as -log10 of the Poisson p value of each bin.

    Parameters
    ----------
    rate
        Expected reads of each bin, relative to the genome's background.
    reads
        Reads expected in a fragment's length of background.
    """
    reach = max(1, FRAGMENT // bins.binsize)
    share = (bins.end - bins.start) / bins.binsize / reach
    counts = random.poisson(rate * share * reads)
    in_fragment = np.concatenate([_window_sums(counts[rows], reach) for rows in bins.segment_slices])
    return surprise(int(in_fragment.max(initial=0)), reads)[in_fragment]


def _window_sums(counts: np.ndarray, reach: int) -> np.ndarray:
    total = np.concatenate([[0], np.cumsum(counts)])
    at = np.arange(len(counts))
    return total[np.minimum(at + reach - reach // 2, len(counts))] - total[np.maximum(at - reach // 2, 0)]


def surprise(highest: int, mean: float) -> np.ndarray:
    """Return -log10 P(X >= k) of a Poisson variable, for k from 0 to ``highest``."""
    k = np.arange(highest + 200 + int(4 * mean))
    log_factorial = np.concatenate([[0], np.cumsum(np.log(k[1:]))])
    log_pmf = k * np.log(mean) - mean - log_factorial
    upper = np.logaddexp.accumulate(log_pmf[::-1])[::-1]
    return np.maximum(-upper[: highest + 1] / np.log(10), 0)
