"""Training by several processes of torch.distributed: each has a share of the blocks; gradients and errors are summed over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

__all__ = ["Share"]


@dataclass(frozen=True)
class Share:
    """Every ``world``-th block from the ``rank``-th on; by default, all of them.

    Blocks are dealt like cards, so that every process has some of each chromosome and about as many of each batch as the others.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def present(cls) -> Share:
        """The share of this process in the default process group, which ``torchrun`` scripts set up; all, where there is none."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    def cut(self, blocks: Tensor, dim: int = 0) -> Tensor:
        """Take the share of something that has an entry for each block, without a copy."""
        return blocks if self.world == 1 else blocks[(slice(None),) * dim + (slice(self.rank, None, self.world),)]

    def mine(self, blocks: Tensor) -> Tensor:
        """Which of some blocks are in the share: bool."""
        return blocks % self.world == self.rank

    def rows(self, blocks: Tensor) -> Tensor:
        """Where blocks of the share lie in it."""
        return blocks // self.world

    def add_up(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in place and at once."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, total in zip(tensors, flat.split(sizes), strict=True):
            tensor.copy_(total.view_as(tensor))

    def whole(self, share: Tensor, n_blocks: int) -> Tensor:
        """Put the shares of all processes together again, in each of them."""
        if self.world == 1:
            return share
        most = -(-n_blocks // self.world)
        padded = share.new_zeros(most, *share.shape[1:])
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        distributed.all_gather(parts, padded)
        # Dealt like cards, and so taken up again.
        return torch.stack(parts, 1).flatten(0, 1)[:n_blocks]


def gradients(parameters: Sequence[torch.nn.Parameter]) -> list[Tensor]:
    """Gradients of parameters, zeros where a process had nothing to learn from."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
