"""Coarse scales at a bin: smooth windows around it, each a mixture of the means of three blocks on the genome's grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """Where bins are read from at a scale: the block that each lies in, and the blocks before and after it.

    The three means are mixed by the quadratic B-spline: of a bin in the middle of its block by 3/4, and 1/8 on either side; of one at its edge
    half and half with the block beyond. So a window is centred on its bin, nothing jumps where blocks meet, and all that is kept
    is the blocks' means. Bins of the finest scale are read as they are.

    Parameters
    ----------
    block
        Row of the block that each bin lies in: bins, int64.
    place
        Number of each bin on a grid whose blocks start at multiples of ``scale``: bins, int64.
    scale
        Bins of a block.
    continues
        Whether a run of blocks goes on, on the genome, from the run before.
    run
        Blocks of such a run.
    """

    block: Tensor
    place: Tensor
    scale: int
    continues: Tensor
    run: int = 1

    def at(self, bins: slice | Tensor) -> Windows:
        """Take those of some bins."""
        return replace(self, block=self.block[bins], place=self.place[bins])

    def to(self, device: torch.device) -> Windows:
        """Move them to a device."""
        block, place, continues = (of.to(device) for of in (self.block, self.place, self.continues))
        return replace(self, block=block, place=place, continues=continues)

    def read(self, means: Tensor, tracks: Tensor | None = None) -> Tensor:
        """Read tracks at the bins, all or some, from the means of blocks (tracks x blocks): tracks x bins, float32.

        Where a block does not go on, or a track was not measured in the block beside, the bin's own counts for it.
        """
        if self.scale == 1:
            return _taken(means, self.block, tracks)
        goes_on, followed = self._goes_on(self.block).long(), self._goes_on(self.block + 1).long()
        blocks = torch.cat([self.block - goes_on, self.block, self.block + followed])
        three = _taken(means, blocks, tracks).unflatten(1, (3, -1))
        middle = (self.place % self.scale + 0.5) / self.scale - 0.5
        before, after = (0.5 - middle) ** 2 / 2, (0.5 + middle) ** 2 / 2
        shares = torch.stack([before, 1 - before - after, after])
        return torch.where(three.isnan(), three[:, 1:2], three).mul_(shares).sum(1)

    def _goes_on(self, block: Tensor) -> Tensor:
        """Whether blocks go on from the ones before; one past the end does not."""
        n = self.run * len(self.continues)
        inside = block.clamp(max=n - 1)
        return (block > 0) & (block < n) & ((inside % self.run != 0) | self.continues[inside // self.run])


def _taken(means: Tensor, blocks: Tensor, tracks: Tensor | None) -> Tensor:
    """Take all or some tracks in some blocks: tracks x blocks, float32."""
    if tracks is None:
        return means[:, blocks].float()
    # By one index, which is half as dear as by two; the means that some tracks are taken from lie in one piece.
    at = tracks[:, None] * means.shape[1] + blocks
    return means.flatten().index_select(0, at.flatten()).view(at.shape).float()
