"""The comparison of cell types in the context term, forward and back, a few bins at a time, so that no piece leaves the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compare"]

VALUES = 1 << 18
"""Values (bins x targets x cell types x nodes) that go forward or back together on a CPU, about: 1 MB."""

_mask = torch.ops.aten.threshold_backward.grad_input


def compare(
    target: Tensor,
    other: Tensor,
    tracks: Tensor,
    share: Tensor,
    of_track: nn.Linear,
    weight: nn.Linear,
    told: nn.Linear,
) -> tuple[Tensor, Tensor]:
    """Read every cell type as a source for each target, by ``read = relu(target + other + of_track(tracks))``.

    With torch's own gradient each of some twenty operations passes over all pairs of target and cell type in memory, which takes longer than
    the products do.

    Parameters
    ----------
    target
        What is read of targets: bins x k x nodes.
    other
        What is read of cell types: bins x 1 x cell types x nodes, or bins x k for the 1 where that differs between targets.
    tracks
        Tracks of each target's assay: bins x k x cell types x units.
    share
        Weights of cell types in a mean: bins x k x cell types. No gradient is taken of them.
    of_track, weight, told
        Layers, the first without a bias.

    Returns
    -------
    ``weight(read)``: bins x k x cell types x heads; and the mean of ``relu(told(read))`` over cell types: bins x k x nodes.
    """
    return _Compared.apply(
        target, other, tracks, share, of_track.weight, weight.weight, weight.bias, told.weight, told.bias
    )


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, other: Tensor, tracks: Tensor, share: Tensor, *layers: Tensor) -> Any:
        of_track, weight, weight_bias, tell, tell_bias = layers
        (bins, k, n), nodes = share.shape, target.shape[-1]
        read, told = (target.new_empty(bins, k, n, nodes) for _ in range(2))
        weights, mean = target.new_empty(bins, k, n, len(weight)), torch.empty_like(target)
        for at in _pieces(share, nodes):
            rows = torch.add(target[at, :, None], other[at], out=read[at]).flatten(0, 2)
            torch.relu_(rows.addmm_(tracks[at].flatten(0, 2), of_track.T))
            torch.addmm(weight_bias, rows, weight.T, out=weights[at].flatten(0, 2))
            torch.relu_(torch.addmm(tell_bias, rows, tell.T, out=told[at].flatten(0, 2)))
            torch.bmm(share[at].flatten(0, 1)[:, None], told[at].flatten(0, 1), out=mean[at].flatten(0, 1)[:, None])
        ctx.save_for_backward(tracks, share, read, told, of_track, weight, tell)
        ctx.together = other.shape[1] == 1
        return weights, mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tracks, share, read, told, of_track, weight, tell = ctx.saved_tensors
        (bins, k, n, nodes), of_weights, of_mean = read.shape, grads[0].contiguous(), grads[1].contiguous()
        to_target, to_tracks = torch.empty_like(of_mean), torch.empty_like(tracks)
        to_other = read.new_empty(bins, 1 if ctx.together else k, n, nodes)
        learnt = [torch.zeros_like(of) for of in (of_track, weight, weight[:, 0], tell, tell[:, 0])]
        learns = any(ctx.needs_input_grad[4:])
        for at in _pieces(share, nodes):
            rows, slopes = read[at].flatten(0, 2), of_weights[at].flatten(0, 2)
            slope = (share[at, ..., None] * of_mean[at, :, None]).flatten(0, 2)
            _mask(slope, told[at].flatten(0, 2), 0, grad_input=slope)
            back = (slope @ tell).addmm_(slopes, weight)
            _mask(back, rows, 0, grad_input=back)
            torch.mm(back, of_track, out=to_tracks[at].flatten(0, 2))
            if learns:
                pairs = (back, tracks[at].flatten(0, 2)), (slopes, rows), (slope, rows)
                for into, (of, by) in zip((learnt[0], learnt[1], learnt[3]), pairs, strict=True):
                    into.addmm_(of.T, by)
                learnt[2] += slopes.sum(0)
                learnt[4] += slope.sum(0)
            back = back.view(-1, k, n, nodes)
            torch.sum(back, 2, out=to_target[at])
            to_other[at] = back.sum(1, keepdim=True) if ctx.together else back
        return to_target, to_other, to_tracks, None, *learnt


def _pieces(share: Tensor, nodes: int) -> Iterator[slice]:
    """Bins that go together: few on a CPU, all of them elsewhere."""
    bins, k, n = share.shape
    step = max(1, VALUES // (k * n * nodes)) if share.device.type == "cpu" else max(1, bins)
    for first in range(0, bins, step):
        yield slice(first, first + step)
