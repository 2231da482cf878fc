"""The network: factors in, one value a (position, track) out, its first layer split by component."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from xr_avocado.model.config import Config
from xr_avocado.model.halving import Halving

__all__ = ["AvocadoNet"]


class AvocadoNet(nn.Module):
    """Cell type, assay and genome factors -> ReLU layers -> one value.

    The first layer's product splits, ``W [c; a; g] = Wc c + Wa a + Wg g``: the genome term is computed once a position (its coarse
    scales once a coarse bin), the track term once a track, and the concatenated input is never built.

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
        self.config, self.halving = config, Halving()
        self.celltype_factors = nn.Parameter(
            _uniform((n_celltypes, config.celltype_factors), config.factor_scale, generator)
        )
        self.assay_factors = nn.Parameter(_uniform((n_assays, config.assay_factors), config.factor_scale, generator))
        sizes = [config.inputs, *[config.nodes] * config.layers, 1]
        self.weights = nn.ParameterList(
            _glorot(n_out, n_in, generator) for n_in, n_out in zip(sizes, sizes[1:], strict=False)
        )
        self.biases = nn.ParameterList(torch.zeros(n) for n in sizes[1:])
        if config.average:
            # Start at the average itself: the network learns the difference.
            nn.init.zeros_(self.weights[-1])

    def genome_term(self, factors: Sequence[Tensor]) -> Tensor:
        """First layer's share of the genome: factors per scale, each blocks x bins of that scale x factors -> blocks x bins x nodes."""
        widths = [values.shape[-1] for values in factors]
        weights = self.weights[0][:, self.config.inputs - sum(widths) :].split(widths, dim=1)
        term = self.biases[0].expand(len(factors[0]), 1, -1)
        # From the coarsest scale to the finest, so that what is shared is added, and its gradient summed, once.
        for values, weight in zip(reversed(factors), reversed(weights), strict=True):
            finer = functional.linear(values, weight).unflatten(1, (term.shape[1], -1))
            term = (finer + term[:, :, None]).flatten(1, 2)
        return term

    def track_term(self, celltype: Tensor, assay: Tensor) -> Tensor:
        """First layer's share of the tracks (celltype, assay: any shape of indices): that shape x nodes."""
        n_c, n_a = self.config.celltype_factors, self.config.assay_factors
        by_celltype = functional.linear(self.celltype_factors, self.weights[0][:, :n_c])
        by_assay = functional.linear(self.assay_factors, self.weights[0][:, n_c : n_c + n_a])
        return by_celltype[celltype] + by_assay[assay]

    def above(self, hidden: Tensor) -> Tensor:
        """Everything after the first layer's sum: ... x nodes -> ... ; what is given is overwritten."""
        hidden = self._drop(functional.relu_(hidden))
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden = self._drop(functional.relu_(functional.linear(hidden.to(weight.dtype), weight, bias)))
        return functional.linear(hidden.to(self.weights[-1].dtype), self.weights[-1], self.biases[-1]).squeeze(-1)

    def narrow(self) -> AvocadoNet:
        """Round the hidden layers after the first to bfloat16, in place, and compute their products so."""
        for parameter in (*self.weights[1:-1], *self.biases[1:-1]):
            parameter.data = parameter.data.bfloat16()
        return self

    def forward(self, genome: Sequence[Tensor], celltype: Tensor, assay: Tensor) -> Tensor:
        """Predict tracks (celltype, assay: blocks x k) in blocks: blocks x bins x k, the average not yet added."""
        return self.above(self.genome_term(genome)[:, :, None] + self.track_term(celltype, assay)[:, None])

    def _drop(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, self.config.dropout, self.training) if self.config.dropout else hidden


def _uniform(shape: tuple[int, ...], scale: float, generator: torch.Generator | None) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * scale


def _glorot(n_out: int, n_in: int, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(_uniform((n_out, n_in), (6 / (n_in + n_out)) ** 0.5, generator))
