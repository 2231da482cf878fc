"""The context term: a track at a bin from the observed tracks around it, with no parameter of the position's or the cell type's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from xr_avocado.model.comparison import compare
from xr_avocado.model.config import Config
from xr_avocado.model.halving import Halving
from xr_avocado.model.levels import Levels
from xr_avocado.model.shown import Shown, Tracks, arcsinh, differing_in, of_assay, weight_of

__all__ = ["ContextEnsemble", "ContextNet", "KnownTracks", "n_columns"]

COMPRESSION = 3.0
"""Of the table's second copy: standard deviations times this, arcsinh."""


class ContextNet(nn.Module):
    """Average activity of the assay plus a correction from the other tracks at the bin, at a few scales, all in standard units.

    Every track is measured in its own standard deviations from its own mean (``Levels``). For a target (cell type c, assay a) at a bin
    the correction reads three things: what else is known of c there (its other assays, a slot each); each other cell type d that has
    the assay, by what is known of d, of c and of the track itself; and the mean of every assay over the other cell types. The
    target itself is never among what is read. Cost a bin: what is known of each cell type is read once for all targets.

    Two readers correct, and the mean of both is the prediction. One compares cell types, by what it has learnt to read in their tracks.
    The other sees a plain table: c's own tracks, how they differ from the others' mean, and of the assay the mean, highest, lowest, and means
    that favour cell types alike at the bin; as it is, which a few peaks rule, and compressed. Trained side by side, each on its own error, they
    err elsewhere.

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
        self.config, self.halving = config, Halving()
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
        tracks = Tracks.of(signal, visible, self.mean[rows], self.spread[rows])
        shown = tracks.shown(celltype, assay)
        units = self.units(tracks)
        return self.read_shown(shown, functional.relu(self.known(tracks, units)), of_assay(units, assay))

    def read_shown(self, shown: Shown, known: Tensor, units: Tensor) -> Tensor:
        """Predict with each reader by itself: readers x bins x k.

        Parameters
        ----------
        shown
            The targets.
        known
            What is known of each cell type: bins x cell types x nodes, or of each for each target, bins x k x cell types x nodes.
        units
            The tracks of each target's assay, as read: bins x k x cell types x units.
        """
        name, others = self.assay[shown.assay], shown.others
        compared = self._by_comparison(shown, known if known.ndim == 4 else known[:, None], units)
        table = torch.cat([*shown.table, shown.average, others], -1)
        read = [
            self._head(self.hidden, self.out, [*compared, shown.average, name, functional.relu(self.others(others))]),
            self._head(self.table, self.table_out, [name], torch.cat([table, arcsinh(COMPRESSION * table)], -1)),
        ]
        stretch = 1.0 if self.training else self.config.context_stretch
        return shown.level + shown.spread * stretch * (shown.average[..., 0] + torch.stack(read))

    def units(self, tracks: Tracks) -> Tensor:
        """Read each track by itself, 0 where it may not be read: bins x cell types x assays x units."""
        # The product lays assays outermost, which is slow to read track by track.
        return functional.relu(torch.einsum("pcas,asf->pcaf", tracks.described, self._reading()).contiguous())

    def _reading(self) -> Tensor:
        """What each assay's tracks are read by, signal first, then levels: assays x (2 scales + 3) x units."""
        bias = (self.read_bias + self.read_levels.bias)[:, None]
        return torch.cat([self.read, bias, self.read_levels.weight.T.expand(len(bias), -1, -1)], 1)

    def known(self, tracks: Tracks, units: Tensor) -> Tensor:
        """Read all tracks of each cell type together, before the ReLU: bins x cell types x nodes."""
        visible = tracks.visible
        weight = weight_of(visible.sum(2, keepdim=True))
        return weight * (units.flatten(2) @ self.slot + visible @ self.slot_seen) + self.slot_bias

    def known_without(self, tracks: Tracks, units: Tensor, shown: Shown) -> tuple[Tensor, Tensor]:
        """What is known, and the units of the assay, if each target was not read; targets (bins x k) are of one assay.

        Two things change: the assay's tracks differ from another mean, and the target's cell type has a track less. What the other assays tell
        is summed once for all targets, so that no rounding depends on a target's own track.
        """
        bins, assay, own = (
            torch.arange(len(units), device=units.device)[:, None],
            int(shown.assay[0, 0]),
            shown.celltype,
        )
        visible, slot = tracks.visible.clone(), self.slot.unflatten(0, (-1, units.shape[-1])).clone()
        visible[:, :, assay], of_assay, slot[assay] = 0, slot[assay].clone(), 0
        rest = units.flatten(2) @ slot.flatten(0, 1) + visible @ self.slot_seen
        here, count = tracks.visible[:, :, assay, None], tracks.visible.sum(2, keepdim=True)
        weight = weight_of(count)
        reading = self._reading()[assay].split([self.read.shape[1], tracks.levels.shape[-1]])
        after = functional.relu_(differing_in(shown) @ reading[0] + tracks.levels[:, assay] @ reading[1])
        known = (after * (here * weight)[:, None]) @ of_assay
        known += (weight * (rest + here * self.slot_seen[assay]) + self.slot_bias)[:, None]
        mine = weight_of(count - here)[bins, own] * rest[bins, own] + self.slot_bias
        known.scatter_(2, own[..., None, None].expand(*own.shape, 1, mine.shape[-1]), mine[:, :, None])
        return functional.relu_(known), after

    def _head(self, layers: nn.ModuleList, out: nn.Module, inputs: list[Tensor], given: Tensor | None = None) -> Tensor:
        """Correct by what was read of each target, after what is given and holds no parameter: bins x k."""
        read = torch.cat(inputs, -1)
        for i, layer in enumerate(cast(Iterable[nn.Linear], layers)):
            read = functional.relu(layer(read) if given is None or i else _after(layer, given, read))
            read = _dropout(read, self.config.context_dropout) if self.training else read
        return out(read).squeeze(-1)

    def _by_comparison(self, shown: Shown, known: Tensor, units: Tensor) -> list[Tensor]:
        """What is known of each target's cell type, and what the others that have the assay tell of it."""
        bins, of = (torch.arange(n, device=known.device) for n in known.shape[:2])
        target = known[bins[:, None], of, shown.celltype]
        of_target = self.of_target(torch.cat([target, self.assay[shown.assay]], -1))
        share = shown.seen / shown.seen.sum(2, keepdim=True).clamp(min=1)
        layers = self.of_track, self.weight, self.compared
        weights, told = compare(of_target, self.of_other(known), units, share, *layers)
        weights = weights.masked_fill(shown.seen[..., None] == 0, -1e4).softmax(2)
        # 0 where no cell type has the assay.
        weights = weights * (shown.seen.sum(2) > 0)[..., None, None]
        return [target, told, torch.einsum("pkch,pkcs->pkhs", weights, shown.column).flatten(2)]


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
        self.members, self.halving = nn.ModuleList(members), Halving()

    @property
    def first(self) -> ContextNet:
        """One of them; levels and sizes are the same in all."""
        return cast(ContextNet, self.members[0])

    def forward(self, signal: Tensor, visible: Tensor, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict as `ContextNet` does."""
        return KnownTracks(self, signal, visible).predict(celltype, assay)


class KnownTracks:
    """What an ensemble knows of the tracks at some bins: targets are predicted from it, a few at a time.

    What does not depend on the target is computed once for all of them, and what depends on no parameter once for all members.

    Parameters
    ----------
    net
        The ensemble.
    signal, visible
        As `ContextNet` takes them.
    """

    def __init__(self, net: ContextEnsemble, signal: Tensor, visible: Tensor) -> None:
        self.tracks = Tracks.of(signal, visible, net.first.mean, net.first.spread)
        self.members = [cast(ContextNet, member) for member in net.members]
        self.units = [member.units(self.tracks) for member in self.members]
        self.known = [member.known(self.tracks, units) for member, units in zip(self.members, self.units, strict=True)]

    def predict(self, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict targets that are not visible (bins x k): bins x k."""
        shown = self.tracks.shown(celltype, assay)
        parts = [
            member.read_shown(shown, functional.relu(known), of_assay(units, assay))
            for member, units, known in zip(self.members, self.units, self.known, strict=True)
        ]
        return torch.stack(parts).mean((0, 1))

    def predict_visible(self, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict targets that are visible, all of one assay (bins x k), each as if it was not: bins x k."""
        shown = self.tracks.shown_without(celltype, assay)
        parts = [
            member.read_shown(shown, *member.known_without(self.tracks, units, shown))
            for member, units in zip(self.members, self.units, strict=True)
        ]
        return torch.stack(parts).mean((0, 1))


def n_columns(n_assays: int, config: Config) -> int:
    """Columns of the plain table that a target is read from: those of every assay and of its own, as they are and compressed; its name."""
    scales = len(config.context_scales)
    return 2 * (n_assays * (3 * scales + 2) + 6 * scales) + config.context_assay_factors


def _after(layer: nn.Linear, given: Tensor, read: Tensor) -> Tensor:
    """Apply a layer to both side by side. Of what is given no gradient is needed, which would cost as much as the product."""
    of_given, of_read = layer.weight.split([given.shape[-1], read.shape[-1]], 1)
    return functional.linear(given, of_given, layer.bias) + functional.linear(read, of_read)


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
