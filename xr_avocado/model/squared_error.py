"""The squared error of a batch and its gradient in one go, piece by piece, so that no piece's activations leave the cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["piece_of", "squared_error"]

VALUES = 1 << 18
"""Activations of a layer that a piece has on a CPU, about: 1 MB, what a core's own cache holds."""
SAMPLES = 1 << 11
"""Samples that a piece has at least, about: fewer do not pay for adding up the gradients of wide layers."""

_mask = torch.ops.aten.threshold_backward.grad_input


def piece_of(n_blocks: int, samples: int, nodes: int, device: torch.device) -> int:
    """Choose the blocks of a piece, of so many samples each: few on a CPU, all of them elsewhere."""
    return n_blocks if device.type != "cpu" else max(1, max(VALUES // nodes, SAMPLES) // samples)


def squared_error(
    genome: Tensor,
    track: Tensor,
    truth: Tensor,
    weights: Iterable[Tensor],
    biases: Iterable[Tensor],
    *,
    piece: int,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sum the squared errors of ReLU layers on genome term plus track term; what is NaN in the truth has none.

    The usual way round, all of the batch forward and then all of it backward, writes each layer's activations to memory and reads them
    back several times, which is what bounds narrow networks. Here a piece goes forward and back at once, and only its gradients
    stay. Memory beside the arguments': activations of one piece, and the gradients.

    Parameters
    ----------
    genome
        First layer's share of the genome: blocks x bins x nodes.
    track
        First layer's share of the tracks: blocks x k x nodes.
    truth
        Blocks x bins x k.
    weights, biases
        Of the layers after the first; no gradient is computed for them where none of them takes one.
    piece
        Blocks that go forward and back together; the result does not depend on it.
    dropout
        Rate after each ReLU.
    dtype
        Of activations and products; sums and gradients are float32.
    """
    return _SquaredError.apply(genome, track, truth, (piece, dropout, dtype), *weights, *biases)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, genome: Tensor, track: Tensor, truth: Tensor, how: tuple, *layers: Tensor) -> Tensor:
        piece, dropout, dtype = how
        weights = [w.to(dtype) for w in layers[: len(layers) // 2]]
        biases = [b.to(dtype) for b in layers[len(layers) // 2 :]]
        # Frozen layers take no gradient, which is a third of the work.
        learnt = layers if any(ctx.needs_input_grad[4:]) else ()
        kept = torch.empty_like(genome), torch.empty_like(track), *map(torch.zeros_like, learnt)
        total = genome.new_zeros(())
        for first in range(0, len(genome), piece):
            part = slice(first, first + piece)
            terms = genome[part], track[part], truth[part]
            total += _piece(terms, weights, biases, dropout, (kept[0][part], kept[1][part], *kept[2:]))
        ctx.kept, ctx.frozen = kept, len(layers) - len(learnt)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        genome, track, *layers = (kept.mul_(grads[0]) for kept in ctx.kept)
        return genome, track, None, None, *layers, *[None] * ctx.frozen


def _piece(
    terms: tuple[Tensor, ...], weights: list[Tensor], biases: list[Tensor], dropout: float, into: tuple[Tensor, ...]
) -> Tensor:
    """Go forward and back with some blocks: add the gradients up in ``into``, return the sum of squared errors."""
    genome, track, truth = terms
    of_genome, of_track, *of_layers = into
    of_weights, of_biases = of_layers[: len(weights)], of_layers[len(weights) :]
    drop = lambda hidden: functional.dropout(hidden, dropout) if dropout else hidden
    hidden = [drop(torch.relu_(genome[:, :, None] + track[:, None]).to(weights[0].dtype)).flatten(0, 2)]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden.append(drop(torch.relu_(torch.addmm(bias, hidden[-1], weight.T))))
    asked = truth.flatten()
    error = torch.where(asked.isnan(), 0.0, (hidden[-1].mv(weights[-1][0]) + biases[-1]).to(asked.dtype) - asked)
    slope = (2 * error).to(hidden[-1].dtype)
    if of_layers:
        of_weights[-1][0] += hidden[-1].T.mv(slope)
        of_biases[-1] += slope.sum(dtype=asked.dtype)
    back = slope[:, None] * weights[-1]
    for i in range(len(weights) - 1, 0, -1):
        _through(back, hidden[i], dropout)
        if of_layers:
            _add_product(of_weights[i - 1], back.T, hidden[i - 1])
            of_biases[i - 1] += back.sum(0, dtype=asked.dtype)
        back = back @ weights[i - 1]
    _through(back, hidden[0], dropout)
    back = back.view(*truth.shape, -1)
    torch.sum(back, 2, out=of_genome, dtype=of_genome.dtype)
    torch.sum(back, 1, out=of_track, dtype=of_track.dtype)
    return error.dot(error)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _through(back: Tensor, hidden: Tensor, dropout: float) -> None:
    """Take a gradient back through ReLU and dropout, in place: what either made 0 passes nothing on."""
    _mask(back, hidden, 0, grad_input=back)
    if dropout:
        back /= 1 - dropout
