"""The context term: a track at a bin from the observed tracks around it, with no parameter of the position's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from xr_avocado.model.config import Config

__all__ = ["ContextNet"]


class ContextNet(nn.Module):
    """Average activity of the assay plus a correction read from the other tracks at the bin, at a few scales.

    For a target (cell type c, assay a) at a bin the correction reads three things: what else is known of c there (its other assays, a
    slot each); the same assay in the other cell types, weighted by attention that compares what is known of c with what is known of
    each of them, at this bin; and the mean of every assay over the other cell types. The target itself is never among what is read. Cost
    a bin: what is known of each cell type is read once for all targets.

    It holds nothing per position, so it cannot over-fit a small panel's bins, and it predicts where it never trained.

    Parameters
    ----------
    config
        Sizes.
    n_celltypes, n_assays
        Labels on each axis.
    generator
        Source of the initial values.
    """

    def __init__(
        self, config: Config, n_celltypes: int, n_assays: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        scales, units, nodes = len(config.context_scales), config.context_units, config.context_nodes
        heads, n_c, n_a = config.context_heads, config.context_celltype_factors, config.context_assay_factors
        self.celltype = _normal((n_celltypes, n_c), 1.0, generator)
        self.assay = _normal((n_assays, n_a), 1.0, generator)
        # One slot an assay: what its signal means, and that it was measured at all.
        self.read = _normal((n_assays, scales, units), 0.5, generator)
        self.read_bias = _normal((n_assays, units), 0.1, generator)
        self.read_celltype = _linear(n_c, units, generator)
        self.slot = _normal((n_assays * units, nodes // 2), units**-0.5, generator)
        self.slot_seen = _normal((n_assays, nodes // 2), 0.1, generator)
        self.slot_bias = nn.Parameter(torch.zeros(nodes // 2))
        self.value = _linear(units, units, generator)
        self.query = _linear(nodes // 2 + n_c + n_a, heads * KEY, generator)
        self.key = _linear(nodes // 2 + n_c, heads * KEY, generator)
        self.others = _linear(n_assays * (scales + 1), nodes // 2, generator)
        inputs = nodes // 2 + heads * scales + units + n_c + n_a + scales + nodes // 2
        self.hidden = nn.ModuleList([_linear(inputs, nodes, generator), _linear(nodes, nodes, generator)])
        self.out = _linear(nodes, 1, generator)
        # Start at the average itself: the network learns the difference.
        nn.init.zeros_(self.out.weight)

    def forward(self, signal: Tensor, visible: Tensor, celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict targets (celltype, assay: bins x k): bins x k.

        Parameters
        ----------
        signal
            Bins x cell types x assays x scales; what is not visible is not read.
        visible
            Bins x cell types x assays: 1 where the track may be read, else 0; 0 at every target.
        celltype, assay
            The targets of each bin.
        """
        signal = signal * visible[..., None]
        names = self._names()
        bins = torch.arange(len(signal), device=signal.device)[:, None]
        cells = functional.relu(self._read(signal, names)) * visible[..., None]
        known = functional.relu(cells.flatten(2) @ self.slot + visible @ self.slot_seen + self.slot_bias)
        of_target = known[bins, celltype]
        e_celltype, e_assay = names[celltype], self.assay[assay]
        weights = self._attention(torch.cat([of_target, e_celltype, e_assay], -1), known, names, visible, assay)
        column = signal[bins, :, assay]
        seen = visible[bins, :, assay]
        average = column.sum(2) / seen.sum(2, keepdim=True).clamp(min=1)
        values = functional.relu(self.value(cells))[bins, :, assay].unflatten(-1, (self.config.context_heads, -1))
        read = torch.cat(
            [
                of_target,
                torch.einsum("pkhc,pkcs->pkhs", weights, column).flatten(2),
                torch.einsum("pkhc,pkchf->pkhf", weights, values).flatten(2),
                e_celltype,
                e_assay,
                average,
                functional.relu(self._others(signal, visible, bins, celltype)),
            ],
            -1,
        )
        for layer in self.hidden:
            read = functional.relu(layer(read))
            read = functional.dropout(read, self.config.context_dropout, self.training)
        return average[..., 0] + self.out(read).squeeze(-1)

    def _names(self) -> Tensor:
        """Vectors of the cell types; in training each is forgotten now and then."""
        if not self.training or not self.config.context_forget:
            return self.celltype
        kept = torch.rand(len(self.celltype), 1, device=self.celltype.device) >= self.config.context_forget
        return self.celltype * kept

    def _read(self, signal: Tensor, names: Tensor) -> Tensor:
        """Each track on its own: bins x cell types x assays x units."""
        by_track = torch.einsum("pcas,asf->pcaf", signal, self.read)
        return by_track + self.read_bias + self.read_celltype(names)[:, None]

    def _attention(self, target: Tensor, known: Tensor, names: Tensor, visible: Tensor, assay: Tensor) -> Tensor:
        """Weights of the cell types that have the target's assay: bins x k x heads x cell types; all 0 where none has."""
        heads = self.config.context_heads
        query = self.query(target).unflatten(-1, (heads, KEY))
        labels = names.expand(len(known), -1, -1)
        key = self.key(torch.cat([known, labels], -1)).unflatten(-1, (heads, KEY))
        seen = visible.transpose(1, 2)[torch.arange(len(assay), device=assay.device)[:, None], assay][:, :, None]
        scores = torch.einsum("pkhd,pchd->pkhc", query, key) * KEY**-0.5
        weights = scores.masked_fill(seen == 0, -1e4).softmax(-1)
        return weights * (seen.sum(-1, keepdim=True) > 0)

    def _others(self, signal: Tensor, visible: Tensor, bins: Tensor, celltype: Tensor) -> Tensor:
        """Mean of every assay over the cell types other than the target's, and whether there is one."""
        count = visible.sum(1)[:, None] - visible[bins, celltype]
        total = signal.sum(1)[:, None] - signal[bins, celltype]
        mean = total / count.clamp(min=1)[..., None]
        return self.others(torch.cat([mean.flatten(2), (count > 0).to(mean.dtype)], -1))


KEY = 16
"""Length of the queries and keys of a head."""


def _normal(shape: tuple[int, ...], scale: float, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) * scale)


def _linear(n_in: int, n_out: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    with torch.no_grad():
        bound = n_in**-0.5
        for parameter in (layer.weight, layer.bias):
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
    return layer
