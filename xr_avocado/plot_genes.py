"""Genes below a figure's tracks: boxes in as few lanes as they and their names need, an arrow for the strand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from xr_avocado.genome import GenomeBins
from xr_avocado.plot_rows import Steps, quiet_row
from xr_avocado.plot_style import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Lanes", "draw_genes", "lanes_of"]

LANES = 6
"""Lanes of genes, at most; what does not fit stays out, and the figure says how many."""
LETTER = 0.0075
"""Width of a letter of a name, as a part of the figure's."""
LANE = 0.2
"""Height of a lane, in inches."""


class Lanes(NamedTuple):
    """Genes of a region with the lane of each, and how many found none."""

    genes: pd.DataFrame
    left_out: int

    @property
    def height(self) -> float:
        """Height of all lanes, in inches."""
        return LANE * (1.5 + self.genes["lane"].max() if len(self.genes) else 1.5)


def lanes_of(genes: pd.DataFrame, bins: GenomeBins) -> Lanes:
    """Take the genes of a region, and give each the first lane where it and its name have room."""
    first, last = int(bins.start[0]), int(bins.end[-1])
    here = (genes["chrom"] == bins.chroms[0]) & (genes["start"] < last) & (genes["end"] > first)
    own = genes[here].sort_values("start", kind="stable").reset_index(drop=True)
    names = next((own[c] for c in ("name", "gene_name", "gene", "Name") if c in own), pd.Series("", own.index))
    label = names.fillna("").astype(str).replace(".", "")
    strand = own["strand"].astype(str) if "strand" in own else pd.Series("", own.index)
    own = own.assign(label=label, strand=strand, start=own["start"].clip(first, last), end=own["end"].clip(first, last))
    taken, lane = np.full(LANES, -np.inf), np.full(len(own), -1)
    reach = own["end"] + (own["label"].str.len() + 2) * LETTER * (last - first)
    for i, (start, end) in enumerate(zip(own["start"], reach, strict=True)):
        free = np.flatnonzero(taken <= start)
        if len(free):
            lane[i], taken[free[0]] = free[0], end
    own = own.assign(lane=lane)
    return Lanes(own[lane >= 0], int((lane < 0).sum()))


def draw_genes(ax: Axes, lanes: Lanes, steps: Steps) -> None:
    """Draw each gene as a box with its name after it and, where the strand is known, an arrow at its 3' end."""
    width = steps.edges[-1] - steps.edges[0]
    for gene in lanes.genes.itertuples():
        ax.barh(gene.lane, gene.end - gene.start, left=gene.start, height=0.42, color=INK, linewidth=0)
        if gene.strand in ("+", "-"):
            at, marker = (gene.end, ">") if gene.strand == "+" else (gene.start, "<")
            ax.plot([at], [gene.lane], marker=marker, color=INK, markersize=4, clip_on=False)
        if gene.end + (len(gene.label) + 1) * LETTER * width < steps.edges[-1]:
            ax.text(gene.end + LETTER * width, gene.lane, gene.label, va="center", fontsize="x-small", color=INK)
        else:
            ax.text(
                gene.start - LETTER * width,
                gene.lane,
                gene.label,
                va="center",
                ha="right",
                fontsize="x-small",
                color=INK,
            )
    quiet_row(ax, steps)
    ax.set_ylim((lanes.genes["lane"].max() if len(lanes.genes) else 0) + 0.8, -0.8)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    text = "genes" if len(lanes.genes) else "no gene here"
    ax.text(1.008, 0.5, text, transform=ax.transAxes, color=INK, va="center", fontsize="small")
    if lanes.left_out:
        ax.text(1.008, 0.1, f"({lanes.left_out} more)", transform=ax.transAxes, color=INK, fontsize="x-small")
