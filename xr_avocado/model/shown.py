"""What the context term is shown of targets: the other tracks at a bin in standard units, before any parameter is applied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Shown", "Tracks", "arcsinh", "differing_in", "of_assay", "share_of", "weight_of"]


class Shown(NamedTuple):
    """What is read of targets, beside what is known of every cell type.

    Parameters
    ----------
    celltype, assay
        The targets: bins x k.
    level, spread
        Mean and standard deviation of each: bins x k.
    column, seen
        The tracks of each target's assay, and which may be read: bins x k x cell types (x scales).
    average
        Mean of these: bins x k x scales.
    others
        Mean of every assay over the cell types other than the target's, and whether there is one: bins x k x assays (scales + 1).
    table
        Each target's own tracks, weighted by ``share_of``, these weights, highest and lowest of its assay, and means that favour cell types alike at the bin:
        bins x k x columns.
    """

    celltype: Tensor
    assay: Tensor
    level: Tensor
    spread: Tensor
    column: Tensor
    seen: Tensor
    average: Tensor
    others: Tensor
    table: list[Tensor]


@dataclass(frozen=True)
class Tracks:
    """All tracks that may be read at some bins. No parameter is in it, so that it is computed once for all networks of an ensemble.

    Parameters
    ----------
    signal
        In standard units, 0 where it may not be read: bins x cell types x assays x scales.
    visible
        Bins x cell types x assays: 1 where the track may be read.
    level, spread
        Mean and standard deviation of every pair: cell types x assays.
    differing
        Each track, and how it differs from the assay's mean over the other cell types: bins x cell types x assays x 2 scales.
    """

    signal: Tensor
    visible: Tensor
    level: Tensor
    spread: Tensor
    differing: Tensor

    @classmethod
    def of(cls, signal: Tensor, visible: Tensor, level: Tensor, spread: Tensor) -> Tracks:
        """Take signal in its own units: bins x cell types x assays x scales; what is not visible is not read."""
        signal = (signal - level[..., None]) / spread[..., None] * visible[..., None]
        return cls(signal, visible, level, spread, _differing(signal, visible, 1))

    def shown(self, celltype: Tensor, assay: Tensor) -> Shown:
        """Show targets (bins x k), none of which may be read."""
        bins = self._bins
        column, seen = (of_assay(table, assay) for table in (self.signal, self.visible))
        own = [self.differing[bins, celltype], self.visible[bins, celltype]]
        far = _root_mean(*(table[bins, :, celltype] for table in self._apart))
        return self._shown(celltype, assay, column, seen, own, far, self._others(celltype))

    def shown_without(self, celltype: Tensor, assay: Tensor) -> Shown:
        """Show targets (bins x k) that may be read as if each one could not. No rounding depends on the target's own track."""
        bins = self._bins
        column, seen = (of_assay(table, assay) for table in (self.signal, self.visible))
        keep = 1 - functional.one_hot(celltype, self.visible.shape[1]).to(self.visible.dtype)
        column, seen = column * keep[..., None], seen * keep
        own = [_at(table[bins, celltype], assay, 0.0) for table in (self.differing, self.visible, self._compressed)]
        far = _root_mean(*(table.transpose(1, 2) for table in self._apart_from(own[2], own[1])))
        mean = column.sum(2) / seen.sum(2, keepdim=True).clamp(min=1)
        others = [_at(of, assay, new) for of, new in zip(self._others(celltype), (mean, seen.any(2)), strict=True)]
        return self._shown(celltype, assay, column, seen, own[:2], far, others)

    @property
    def _bins(self) -> Tensor:
        return torch.arange(len(self.signal), device=self.signal.device)[:, None]

    @cached_property
    def levels(self) -> Tensor:
        """One, logarithm of the spread, and mean in spreads, of every pair: cell types x assays x 3."""
        return torch.stack([torch.ones_like(self.spread), self.spread.log(), self.level / self.spread], -1)

    @cached_property
    def described(self) -> Tensor:
        """Each track, how it differs and its levels, all 0 where it may not be read: bins x cell types x assays x (2 scales + 3)."""
        return torch.cat([self.differing, self.levels * self.visible[..., None]], -1)

    @cached_property
    def _apart(self) -> tuple[Tensor, Tensor]:
        return self._apart_from(self._compressed, self.visible)

    @cached_property
    def _compressed(self) -> Tensor:
        return arcsinh(self.signal)

    def _shown(
        self, celltype: Tensor, assay: Tensor, column: Tensor, seen: Tensor, own: list[Tensor], far: Tensor, others: list[Tensor]
    ) -> Shown:  # fmt: skip
        average = column.sum(2) / seen.sum(2, keepdim=True).clamp(min=1)
        tracks, there = own
        share = share_of(there)
        table = [(tracks * share[..., None]).flatten(2), share, *_extremes(column, seen), *_alike(column, seen, far)]
        level, spread = self.level[celltype, assay], self.spread[celltype, assay]
        mean, there = others
        read = torch.cat([mean.flatten(2), there.to(mean.dtype)], -1)
        return Shown(celltype, assay, level, spread, column, seen, average, read, table)

    def _others(self, celltype: Tensor) -> list[Tensor]:
        """Mean of every assay over the cell types other than some (bins x k x assays x scales), and whether there is one."""
        count = self.visible.sum(1)[:, None] - self.visible[self._bins, celltype]
        total = self.signal.sum(1)[:, None] - self.signal[self._bins, celltype]
        return [total / count.clamp(min=1)[..., None], count > 0]

    def _apart_from(self, compressed: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Summed squared differences of some rows of tracks (bins x k x assays x scales) from each cell type, and over how many assays.

        Bins x scales x k x cell types; bins x 1 x k x cell types.
        """
        rows, tracks = compressed.permute(0, 3, 1, 2), self._compressed.permute(0, 3, 1, 2)
        there, all_there = there[:, None], self.visible[:, None]
        squares = rows.square() @ all_there.mT + there @ tracks.square().mT
        return squares - 2 * rows @ tracks.mT, there @ all_there.mT


def arcsinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine, by functions that a processor computes several numbers at a time: six times as fast as torch's own."""
    if x.requires_grad:
        # Those have a slope of 0 at 0, where arcsinh has 1.
        return x.asinh()
    size, square = x.abs(), x.square()
    return (size + square / (1 + (1 + square).sqrt())).log1p().copysign(x)


def of_assay(table: Tensor, assay: Tensor) -> Tensor:
    """What a table (bins x cell types x assays x ...) has of each target's assay: bins x k x cell types x ..."""
    bins, celltypes = (torch.arange(n, device=table.device) for n in table.shape[:2])
    rows = ((bins[:, None] * len(celltypes))[..., None] + celltypes) * table.shape[2] + assay[..., None]
    return table.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def share_of(visible: Tensor) -> Tensor:
    """Weights of a cell type's tracks (bins x k x assays), which add up to 2, however many are visible."""
    return visible * weight_of(visible.sum(2, keepdim=True))


def weight_of(count: Tensor) -> Tensor:
    """Weight of each of so many tracks of a cell type.

    At a pair that was never measured one more is known of the cell type than training could show: a sum would be larger than any it saw.
    """
    return 2 / count.clamp(min=1)


def _at(table: Tensor, assay: Tensor, value: Tensor | float) -> Tensor:
    """Replace what a table (bins x k x assays x ...) has of each target's assay."""
    bins, of = (torch.arange(n, device=table.device) for n in table.shape[:2])
    table[bins[:, None], of, assay] = value
    return table


def _differing(signal: Tensor, visible: Tensor, axis: int) -> Tensor:
    """Tracks, and how they differ from the mean over the other cell types, which lie along an axis: twice the scales."""
    count = visible.sum(axis, keepdim=True) - visible
    others = (signal.sum(axis, keepdim=True) - signal) / count.clamp(min=1)[..., None]
    return torch.cat([signal, (signal - others) * (visible * (count > 0))[..., None]], -1)


def differing_in(shown: Shown) -> Tensor:
    """The tracks of each target's assay, and how they differ from the mean of those that are seen: bins x k x cell types x 2 scales."""
    return _differing(shown.column, shown.seen, 2)


def _extremes(column: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Highest and lowest of the tracks of a target's assay, 0 where there is none: each bins x k x scales."""
    there, some = seen[..., None] > 0, seen.any(2)[..., None]
    highest, lowest = column.masked_fill(~there, -torch.inf).amax(2), column.masked_fill(~there, torch.inf).amin(2)
    return highest.masked_fill(~some, 0), lowest.masked_fill(~some, 0)


def _root_mean(squares: Tensor, shared: Tensor) -> Tensor:
    """Root mean square difference, 1 where no assay is shared: bins x k x cell types x scales."""
    # Not quite 0, where a root has no slope and rounding is all there is.
    far = (squares.clamp(min=0) / shared.clamp(min=1) + 1e-4).sqrt().masked_fill(shared == 0, 1.0)
    return far.mT.contiguous()


def _alike(column: Tensor, seen: Tensor, far: Tensor) -> list[Tensor]:
    """Means of the tracks of a target's assay that favour cell types near its own: each bins x k x scales.

    Near at the same scale, a little and much favoured, and near at all scales.
    """
    unseen = (seen == 0)[..., None]
    nearness = [-far, -3 * far, -3 * far.mean(-1, keepdim=True)]
    return [(near.masked_fill(unseen, -1e4).softmax(2) * column).sum(2) for near in nearness]
