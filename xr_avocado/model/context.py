"""The context term: a track at a bin from the observed tracks around it, with no parameter of the position's or the cell type's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from xr_avocado.model.config import Config
from xr_avocado.model.levels import Levels

__all__ = ["ContextEnsemble", "ContextNet", "n_columns"]


class ContextNet(nn.Module):
    """Average activity of the assay plus a correction from the other tracks at the bin, at a few scales, all in standard units.

    Every track is measured in its own standard deviations from its own mean (``Levels``). For a target (cell type c, assay a) at a bin
    the correction reads three things: what else is known of c there (its other assays, a slot each); each other cell type d that has
    the assay, by what is known of d, of c and of the track itself; and the mean of every assay over the other cell types. The
    target itself is never among what is read. Cost a bin: what is known of each cell type is read once for all targets.

    Two readers correct, and the mean of both is the prediction. One compares cell types, by what it has learnt to read in their tracks.
    The other sees a plain table: c's own tracks, how they differ from the others' mean, and of the assay the mean, highest, lowest, and means
    that favour cell types alike at the bin. Trained side by side, each on its own error, they err elsewhere.

    It holds nothing per position, so it cannot over-fit a small panel's bins and predicts where it never trained; and nothing per cell
    type, which is described by the levels of its tracks alone, so it cannot learn pairs of cell type and assay by heart.

    Parameters
    ----------
    config
        Sizes.
    levels
        Mean and spread of every pair; they settle the number of cell types and of assays.
    generator
        Source of the initial values.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, config: Config, levels: Levels, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.from_numpy(levels.mean), persistent=False)
        self.register_buffer("spread", torch.from_numpy(levels.spread), persistent=False)
        scales, units, nodes = len(config.context_scales), config.context_units, config.context_nodes
        heads, n_a, n_assays = config.context_heads, config.context_assay_factors, levels.mean.shape[1]
        self.assay = _normal((n_assays, n_a), 1.0, generator)
        # One slot an assay: what its signal means, and that it was measured at all.
        self.read = _normal((n_assays, 2 * scales, units), 0.5, generator)
        self.read_bias = _normal((n_assays, units), 0.1, generator)
        self.read_levels = _linear(2, units, generator)
        self.slot = _normal((n_assays * units, nodes), units**-0.5, generator)
        self.slot_seen = _normal((n_assays, nodes), 0.1, generator)
        self.slot_bias = nn.Parameter(torch.zeros(nodes))
        self.of_target = _linear(nodes + n_a, nodes // 2, generator)
        self.of_other = _linear(nodes, nodes // 2, generator, bias=False)
        self.of_track = _linear(units, nodes // 2, generator, bias=False)
        self.weight = _linear(nodes // 2, heads, generator)
        self.compared = _linear(nodes // 2, nodes // 2, generator)
        self.others = _linear(n_assays * (scales + 1), nodes // 2, generator)
        inputs = nodes + nodes // 2 + heads * scales + scales + n_a + nodes // 2
        self.hidden = nn.ModuleList([_linear(inputs, nodes, generator), _linear(nodes, nodes, generator)])
        self.out = _linear(nodes, 1, generator)
        self.table = nn.ModuleList(
            [_linear(n_columns(n_assays, config), nodes, generator), _linear(nodes, nodes, generator)]
        )
        self.table_out = _linear(nodes, 1, generator)
        # Start at the average itself: the network learns the difference.
        for out in (self.out, self.table_out):
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def forward(
        self, signal: Tensor, visible: Tensor, celltype: Tensor, assay: Tensor, rows: Tensor | slice = slice(None)
    ) -> Tensor:
        """Predict targets (celltype, assay: bins x k): bins x k, in the units of the signal.

        Parameters
        ----------
        signal
            Bins x cell types x assays x scales; what is not visible is not read.
        visible
            Bins x cell types x assays: 1 where the track may be read, else 0; 0 at every target.
        celltype, assay
            The targets of each bin; cell types as they stand in the signal.
        rows
            The cell types that the signal holds; by default all.
        """
        return self.readings(signal, visible, celltype, assay, rows).mean(0)

    def readings(
        self, signal: Tensor, visible: Tensor, celltype: Tensor, assay: Tensor, rows: Tensor | slice = slice(None)
    ) -> Tensor:
        """Predict as ``forward`` does, with each reader by itself: readers x bins x k."""
        level, spread = self.mean[rows], self.spread[rows]
        signal = (signal - level[..., None]) / spread[..., None] * visible[..., None]
        bins = torch.arange(len(signal), device=signal.device)[:, None]
        column, seen = signal[bins, :, assay], visible[bins, :, assay]
        average = column.sum(2) / seen.sum(2, keepdim=True).clamp(min=1)
        tracks = self._relative(signal, visible)
        others, name = self._others(signal, visible, bins, celltype), self.assay[assay]
        compared = self._by_comparison(tracks, visible, level, spread, celltype, assay, column, seen)
        far = _distance(signal, visible)[bins, celltype]
        table = [
            tracks[bins, celltype].flatten(2),
            visible[bins, celltype],
            *_range(column, seen),
            *_alike(column, seen, far),
        ]
        read = [
            self._head(self.hidden, self.out, [*compared, average, name, functional.relu(self.others(others))]),
            self._head(self.table, self.table_out, [*table, average, name, others]),
        ]
        stretch = 1.0 if self.training else self.config.context_stretch
        predicted = average[..., 0] + torch.stack(read)
        return level[celltype, assay] + spread[celltype, assay] * stretch * predicted

    def _head(self, layers: Iterable[nn.Module], out: nn.Module, inputs: list[Tensor]) -> Tensor:
        """Correct by what was read of each target: bins x k."""
        read = torch.cat(inputs, -1)
        for layer in layers:
            read = functional.relu(layer(read))
            read = _dropout(read, self.config.context_dropout) if self.training else read
        return out(read).squeeze(-1)

    def _by_comparison(
        self,
        tracks: Tensor,
        visible: Tensor,
        level: Tensor,
        spread: Tensor,
        celltype: Tensor,
        assay: Tensor,
        column: Tensor,
        seen: Tensor,
    ) -> list[Tensor]:
        """What is known of each target's cell type, and what the others that have the assay tell of it."""
        levels = torch.stack([spread.log(), level / spread], -1)
        units = torch.einsum("pcas,asf->pcaf", tracks, self.read) + (self.read_bias + self.read_levels(levels))
        units = functional.relu(units)
        # Means over the assays there are: at a pair never measured one more is known than training could show.
        share = 2 * visible / visible.sum(2, keepdim=True).clamp(min=1)
        known = (units * share[..., None]).flatten(2) @ self.slot + share @ self.slot_seen + self.slot_bias
        known = functional.relu(known)
        bins = torch.arange(len(tracks), device=tracks.device)[:, None]
        target = known[bins, celltype]
        of_target = torch.cat([target, self.assay[assay]], -1)
        weights, told = self._compare(of_target, known, units[bins, :, assay], seen)
        share = seen / seen.sum(2, keepdim=True).clamp(min=1)
        return [
            target,
            torch.einsum("pkc,pkcf->pkf", share, told),
            torch.einsum("pkch,pkcs->pkhs", weights, column).flatten(2),
        ]

    def _relative(self, signal: Tensor, visible: Tensor) -> Tensor:
        """Each track, and how it differs from the assay's mean over the other cell types: bins x cell types x assays x 2 scales."""
        count = visible.sum(1, keepdim=True) - visible
        others = (signal.sum(1, keepdim=True) - signal) / count.clamp(min=1)[..., None]
        return torch.cat([signal, (signal - others) * (visible * (count > 0))[..., None]], -1)

    def _compare(self, target: Tensor, known: Tensor, tracks: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Each cell type as a source for a target: weights of its heads, 0 where it lacks the assay, and what it tells.

        Both are bins x k x cell types x (heads or units).
        """
        token = self.of_target(target)[:, :, None] + self.of_other(known)[:, None] + self.of_track(tracks)
        token = functional.relu(token)
        weights = self.weight(token).masked_fill(seen[..., None] == 0, -1e4).softmax(2)
        return weights * (seen.sum(2) > 0)[..., None, None], functional.relu(self.compared(token))

    def _others(self, signal: Tensor, visible: Tensor, bins: Tensor, celltype: Tensor) -> Tensor:
        """Mean of every assay over the cell types other than the target's, and whether there is one."""
        count = visible.sum(1)[:, None] - visible[bins, celltype]
        total = signal.sum(1)[:, None] - signal[bins, celltype]
        mean = total / count.clamp(min=1)[..., None]
        return torch.cat([mean.flatten(2), (count > 0).to(mean.dtype)], -1)


class ContextEnsemble(nn.Module):
    """Several context terms; the prediction is their mean.

    Networks that start elsewhere and see other draws err elsewhere, most of all on pairs of cell type and assay that none has seen.

    Parameters
    ----------
    members
        The context terms, of the same sizes.
    """

    def __init__(self, members: Iterable[ContextNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def first(self) -> ContextNet:
        """One of them; levels and sizes are the same in all."""
        return cast(ContextNet, self.members[0])

    def forward(self, signal: Tensor, visible: Tensor, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict as `ContextNet` does."""
        return torch.stack([member(signal, visible, celltype, assay) for member in self.members]).mean(0)


def n_columns(n_assays: int, config: Config) -> int:
    """Columns of the plain table that a target is read from: those of every assay, and those of its own assay."""
    scales = len(config.context_scales)
    return n_assays * (3 * scales + 2) + 6 * scales + config.context_assay_factors


def _range(column: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Highest and lowest of the tracks of a target's assay, 0 where there is none: each bins x k x scales."""
    there, some = seen[..., None] > 0, seen.any(2)[..., None]
    highest, lowest = column.masked_fill(~there, -torch.inf).amax(2), column.masked_fill(~there, torch.inf).amin(2)
    return highest.masked_fill(~some, 0), lowest.masked_fill(~some, 0)


def _distance(signal: Tensor, visible: Tensor) -> Tensor:
    """How far each cell type is from each at a bin: bins x cell types x cell types x scales.

    Root mean square difference of the assays that both have, peaks compressed; 1 where there are none.
    """
    tracks, there = signal.asinh().permute(0, 3, 1, 2), visible[:, None]
    shared = there @ there.mT
    squares = tracks.square() @ there.mT
    far = (squares + squares.mT - 2 * tracks @ tracks.mT).clamp(min=0) / shared.clamp(min=1)
    # Not quite 0, where a root has no slope and rounding is all there is.
    return (far + 1e-4).sqrt().masked_fill(shared == 0, 1.0).permute(0, 2, 3, 1)


def _alike(column: Tensor, seen: Tensor, far: Tensor) -> list[Tensor]:
    """Means of the tracks of a target's assay that favour cell types near its own: each bins x k x scales.

    Near at the same scale, a little and much favoured, and near at all scales.
    """
    unseen = (seen == 0)[..., None]
    nearness = [-far, -3 * far, -3 * far.mean(-1, keepdim=True)]
    return [(near.masked_fill(unseen, -1e4).softmax(2) * column).sum(2) for near in nearness]


def _dropout(read: Tensor, rate: float) -> Tensor:
    """Drop units: as torch does, by random bytes instead of floats, which on a processor took a sixth of training."""
    dropped = min(255, round(256 * rate))
    random = torch.empty(-(-read.numel() // 8), dtype=torch.int64, device=read.device).random_(-(2**63), None)
    keep = random.view(torch.uint8)[: read.numel()].view_as(read) >= dropped
    return read * (keep * (256 / (256 - dropped)))


def _normal(shape: tuple[int, ...], scale: float, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) * scale)


def _linear(n_in: int, n_out: int, generator: torch.Generator | None, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    with torch.no_grad():
        bound = n_in**-0.5
        for parameter in layer.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
    return layer
