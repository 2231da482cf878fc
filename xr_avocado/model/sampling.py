"""The observed tracks laid out in blocks of positions, and the batches drawn from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from xr_avocado.model.sharing import Share

__all__ = ["Batch", "Panel", "batches"]

logger = logging.getLogger("xr_avocado")

RESERVE = 2 << 30
"""Bytes of a device left to what steps allocate."""


@dataclass(frozen=True)
class Panel:
    """Observed tracks, on the device or, where they do not fit it, on the host.

    From the host only what a step asks for is moved, 2 bytes a sample: at 30 million samples a second, 60 MB/s of the bus. The copy is
    from pinned memory and asynchronous, so it passes while the device computes the step before.

    Parameters
    ----------
    values
        Tracks x blocks x bins a block, float16 or float32; NaN where a block reaches past its segment or nothing was measured.
    celltype, assay
        Index of each track's cell type and assay, int64, on the device.
    continues
        Of a whole panel: whether each block goes on, on the genome, from the one before it, where the values are; by default all do.
    share
        The share of the blocks that the values are, where several processes train.
    total
        Blocks of all shares; needed where there are several.
    """

    values: Tensor
    celltype: Tensor
    assay: Tensor
    continues: Tensor | None = field(default=None, kw_only=True)
    share: Share = field(default=Share(), kw_only=True)
    total: int | None = field(default=None, kw_only=True)

    @property
    def n_blocks(self) -> int:
        """Blocks of positions in this process."""
        return self.values.shape[1]

    @property
    def all_blocks(self) -> int:
        """Blocks of positions in all processes."""
        return self.n_blocks if self.total is None else self.total

    @property
    def device(self) -> torch.device:
        """Where steps are computed."""
        return self.celltype.device

    def take(self, blocks: Tensor, tracks: Tensor) -> Tensor:
        """Values of ``tracks`` (blocks x k, both where the values are) in each of ``blocks``: blocks x bins x k, float32."""
        values = self.values[tracks, blocks[:, None]]
        if self.device.type == "cuda" and not values.is_cuda:
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True).float().transpose(1, 2)

    def on(self, device: torch.device, *, beside: int = 0) -> Panel:
        """Move the panel to a device; its values stay on the host where a CUDA device has no room for them and so many bytes beside."""
        labelled = replace(self, celltype=self.celltype.to(device), assay=self.assay.to(device))
        # Three tenths for the coarse scales of the context term, and a reserve for what steps allocate.
        wanted = int(1.3 * self.values.nbytes) + beside + RESERVE
        if device.type == "cuda" and wanted > torch.cuda.mem_get_info(device)[0]:
            logger.info("the panel stays on the host: with all else it takes %.1f GB of %s", wanted / 1e9, device)
            return labelled
        continues = None if self.continues is None else self.continues.to(device)
        return replace(labelled, values=self.values.to(device), continues=continues)

    def some(self, tracks: slice | list[int]) -> Panel:
        """Some of the tracks; those of a slice without a copy."""
        return replace(self, values=self.values[tracks], celltype=self.celltype[tracks], assay=self.assay[tracks])

    def cut(self, share: Share) -> Panel:
        """The share of the blocks of a whole panel, without a copy."""
        return Panel(share.cut(self.values, 1), self.celltype, self.assay, share=share, total=self.n_blocks)

    def blocks_a_step(self, tracks_per_position: int, batch: int) -> int:
        """Blocks that make up a batch of so many samples, at least one, in all processes together."""
        n_tracks, _, bins = self.values.shape
        return min(self.all_blocks, max(1, batch // (bins * min(tracks_per_position, n_tracks))))


@dataclass(frozen=True)
class Batch:
    """Blocks to visit, and the tracks (indices into the panel, blocks x k) to visit them with, where the panel's values are."""

    blocks: Tensor
    tracks: Tensor


def batches(panel: Panel, *, tracks_per_position: int, batch: int, generator: torch.Generator) -> Iterator[Batch]:
    """Visit every block once, in random order, each with its own random draw of tracks.

    ``batch`` counts samples (position x track). Drawing tracks per block, not per position, keeps every tensor of a step
    contiguous; the draw is without replacement.
    """
    n_tracks, n_blocks, share = len(panel.values), panel.all_blocks, panel.share
    k = min(tracks_per_position, n_tracks)
    size = panel.blocks_a_step(tracks_per_position, batch)
    order = torch.randperm(n_blocks, generator=generator)
    for first in range(0, n_blocks, size):
        blocks = order[first : first + size]
        draw = torch.rand(len(blocks), n_tracks, generator=generator).topk(k, dim=1).indices
        if share.world > 1:
            # All processes draw alike, and each keeps what is its own.
            mine = share.mine(blocks)
            blocks, draw = share.rows(blocks[mine]), draw[mine]
        yield Batch(blocks.to(panel.values.device), draw.to(panel.values.device))
