"""The observed tracks laid out in blocks of positions, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Panel", "batches"]


@dataclass(frozen=True)
class Panel:
    """Observed tracks on a device.

    Parameters
    ----------
    values
        Tracks x blocks x bins a block, float16 or float32; NaN where a block reaches past its segment or nothing was measured.
    celltype, assay
        Index of each track's cell type and assay, int64.
    """

    values: Tensor
    celltype: Tensor
    assay: Tensor

    @property
    def n_blocks(self) -> int:
        """Blocks of positions."""
        return self.values.shape[1]

    def take(self, blocks: Tensor, tracks: Tensor) -> Tensor:
        """Values of ``tracks`` (blocks x k) in each of ``blocks``: blocks x bins x k, float32."""
        return self.values[tracks, blocks[:, None]].float().transpose(1, 2)

    def joined(self, other: Panel) -> Panel:
        """The panel of both panels' tracks."""
        pairs = [(self.values, other.values), (self.celltype, other.celltype), (self.assay, other.assay)]
        return Panel(*map(torch.cat, pairs))


@dataclass(frozen=True)
class Batch:
    """Blocks to visit, and the tracks (indices into the panel, blocks x k) to visit them with."""

    blocks: Tensor
    tracks: Tensor


def batches(panel: Panel, *, tracks_per_position: int, batch: int, generator: torch.Generator) -> Iterator[Batch]:
    """Visit every block once, in random order, each with its own random draw of tracks.

    ``batch`` counts samples (position x track). Drawing tracks per block, not per position, keeps every tensor of a step
    contiguous; the draw is without replacement.
    """
    n_tracks, n_blocks, bins = panel.values.shape
    k = min(tracks_per_position, n_tracks)
    size = max(1, batch // (bins * k))
    order = torch.randperm(n_blocks, generator=generator)
    for first in range(0, n_blocks, size):
        blocks = order[first : first + size]
        draw = torch.rand(len(blocks), n_tracks, generator=generator).topk(k, dim=1).indices
        yield Batch(blocks.to(panel.values.device), draw.to(panel.values.device))
