"""Row-wise Adam: genome factors move only when their block is visited."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["BlockTable"]


class BlockTable:
    """Factors of one scale (blocks x bins of that scale x factors) with Adam's two moments: 12 bytes a parameter.

    A step touches the blocks of its batch and nothing else, so its cost does not grow with the genome. Every block is visited once
    an epoch; the bias correction counts those visits.

    Parameters
    ----------
    values
        Initial factors.
    decay
        Decoupled decay at each visit, as a fraction of the learning rate.
    """

    def __init__(self, values: Tensor, *, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.values = values
        self.mean = torch.zeros_like(values)
        self.square = torch.zeros_like(values)
        self.decay, self.betas = decay, betas

    def state(self) -> dict[str, Tensor]:
        """Name all that training has changed; the tensors are the table's own."""
        return {"values": self.values, "mean": self.mean, "square": self.square}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` named."""
        for name, tensor in self.state().items():
            tensor.copy_(kept[name])

    def read(self, blocks: Tensor) -> Tensor:
        """Copy the factors of some blocks as a leaf that collects its gradient."""
        return self.values[blocks].requires_grad_()

    @torch.no_grad()
    def step(self, blocks: Tensor, rows: Tensor, *, rate: float, visit: int) -> None:
        """Move the blocks read as ``rows`` along their gradient; ``visit`` counts from 1."""
        gradient = rows.grad
        if gradient is None:
            return
        b1, b2 = self.betas
        mean = self.mean[blocks].lerp_(gradient, 1 - b1)
        square = self.square[blocks].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        spread = (square / (1 - b2**visit)).sqrt_().add_(1e-12)  # a row's share of a batch's mean error is small
        moved = rows.detach().mul_(1 - rate * self.decay).addcdiv_(mean, spread, value=-rate / (1 - b1**visit))
        self.values[blocks], self.mean[blocks], self.square[blocks] = moved, mean, square
