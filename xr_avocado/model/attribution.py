"""Integrated gradients of a prediction: how much of it each part of what a network reads is answerable for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from xr_avocado.model.context import ContextEnsemble
from xr_avocado.model.network import AvocadoNet

__all__ = ["attribute_context", "attribute_factors", "refined"]

ACTIVATIONS = 1 << 22
"""Activations (positions x tracks x units) of a step, at most: with their gradients some 100 MB."""

DOUBLINGS = 5
"""Times that the points of a path are doubled, at most."""


def refined(
    attributed: Callable[[Sequence[np.ndarray], int], np.ndarray],
    rows: Sequence[np.ndarray],
    *,
    steps: int,
    tolerance: float,
) -> np.ndarray:
    """Attribute at ``steps`` points, and at twice as many, again and again, where the parts do not add up.

    A network of ReLUs bends at a few points of a path; few positions bend so badly that they need many points.

    Parameters
    ----------
    attributed
        Gives parts (as `attribute_factors` does) from rows and a number of steps.
    rows
        For each scale, the row that each position lies in.
    steps, tolerance
        Points to begin with, and the error that a position may have, as a fraction of the range of a track's predictions here.
    """
    parts = attributed(rows, steps)
    allowed = tolerance * np.ptp(parts[:, -2:], axis=(1, 2))[:, None]
    for _ in range(DOUBLINGS):
        error = np.abs(parts[:, :-2].sum(1) + parts[:, -1] - parts[:, -2])
        again = np.flatnonzero((error > allowed).any(0))
        if not len(again):
            break
        steps *= 2
        parts[..., again] = attributed([row[again] for row in rows], steps)
    return parts


def attribute_factors(
    net: AvocadoNet,
    factors: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    celltype: np.ndarray,
    assay: np.ndarray,
    *,
    steps: int,
) -> np.ndarray:
    """Attribute predictions of the factors' network to cell type, assay and each scale's factors.

    The gradient is needed for the first layer's sum alone: a component's attribution is its inner product, averaged over the path,
    with the component's own share of that sum. So a component costs nothing, and the concatenated input is never built.

    Parameters
    ----------
    net
        The network.
    factors, rows
        Genome factors of each scale, and the row of them that each position lies in.
    baseline
        Where the path starts: a vector each for cell type, assay and every scale.
    celltype, assay
        Indices of the tracks.
    steps
        Points of the path, in the middle of as many equal parts.

    Returns
    -------
    Tracks x (components, then prediction, then prediction at the baseline) x positions, float32.
    """
    device = net.celltype_factors.device
    start, of_track, of_scale = _first_layer(net, factors, baseline, celltype, assay)
    positions = [torch.from_numpy(row).to(device) for row in rows]
    out = torch.empty(len(celltype), 2 + len(of_scale) + 2, len(rows[0]), device=device)
    step = max(1, ACTIVATIONS // (of_track[0].numel() or 1))
    for first in range(0, len(rows[0]), step):
        at = slice(first, first + step)
        # Each share is positions x tracks x nodes, with one entry where it is the same for all.
        shares = [part[None] for part in of_track]
        shares += [part[row[at]][:, None] for part, row in zip(of_scale, positions, strict=True)]
        change = torch.stack(torch.broadcast_tensors(*shares)).sum(0)
        gradient = torch.zeros_like(change)
        for k in range(steps):
            hidden = (start + (k + 0.5) / steps * change).requires_grad_()
            (slope,) = torch.autograd.grad(net.above(hidden.clone()).sum(), hidden)
            gradient += slope / steps
        with torch.no_grad():
            parts = [(gradient * share).sum(-1) for share in shares]
            ends = [net.above(start + change), net.above(start.expand_as(change).clone())]
            out[..., at] = torch.stack([*parts, *ends]).permute(2, 0, 1)
    return out.cpu().numpy()


@torch.no_grad()
def _first_layer(
    net: AvocadoNet,
    factors: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    celltype: np.ndarray,
    assay: np.ndarray,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Its sum at the baseline; what cell type and assay add to it (tracks x nodes); what each scale adds (rows x nodes)."""
    device = net.celltype_factors.device
    values = [net.celltype_factors[torch.from_numpy(celltype).to(device)]]
    values += [net.assay_factors[torch.from_numpy(assay).to(device)]]
    values += [torch.from_numpy(np.ascontiguousarray(f, np.float32)).to(device) for f in factors]
    weights = net.weights[0].split([v.shape[1] for v in values], dim=1)
    bases = [torch.from_numpy(np.asarray(base, np.float32)).to(device) for base in baseline]
    start = net.biases[0] + sum(weight @ base for weight, base in zip(weights, bases, strict=True))
    shares = [functional.linear(v - base, w) for v, base, w in zip(values, bases, weights, strict=True)]
    return start, shares[:2], shares[2:]


def attribute_context(
    net: ContextEnsemble,
    levels: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    cells: np.ndarray,
    celltype: np.ndarray,
    assay: np.ndarray,
    *,
    source: np.ndarray,
    n_sources: int,
    from_mean: bool,
    steps: int,
) -> np.ndarray:
    """Attribute predictions of the context term to the tracks that it reads.

    Which tracks are there is held as it is; the path goes over their values at all scales together.

    Parameters
    ----------
    net, levels, rows, cells, celltype, assay
        As `predict_context` has them.
    source
        Tracks x (cell type x assay): which source each cell of the panel is for a track to predict.
    n_sources
        Number of sources.
    from_mean
        Start with every track at its own mean, 0 in the units that the network reads; if False, at a signal of 0.
    steps
        Points of the path.

    Returns
    -------
    Tracks x (average activity, then sources, then prediction, then prediction at the baseline) x positions, float32. What average
    activity, which the term adds its correction to, is answerable for is known exactly, and not counted again with the source it is the
    mean of, the tracks of the same assay (source 0).
    """
    device = net.first.mean.device
    size = sum(p.numel() for p in (net.first.slot, net.first.read)) // net.first.config.context_units + 1
    step = max(1, ACTIVATIONS // (size * max(1, net.first.config.context_units // 8)))
    out = np.empty((len(celltype), n_sources + 3, len(rows[0])), np.float32)
    for first in range(0, len(rows[0]), step):
        at = slice(first, first + step)
        pieces = [torch.from_numpy(level[:, row[at]]).to(device) for level, row in zip(levels, rows, strict=True)]
        signal, known = _spread(net, torch.stack(pieces, -1).transpose(0, 1), torch.from_numpy(cells).to(device))
        for track, (c, a) in enumerate(zip(celltype.tolist(), assay.tolist(), strict=True)):
            visible = known.clone()
            visible[:, c, a] = 0
            base = net.first.mean[..., None].expand_as(signal) if from_mean else torch.zeros_like(signal)
            of_source = torch.from_numpy(source[track]).to(device)
            parts = _context_parts(net, (base, signal, visible), (c, a), of_source, n_sources, steps)
            out[track, :, at] = parts.cpu().numpy()
    return out


def _spread(net: ContextEnsemble, by_track: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Lay tracks (bins x tracks x scales) out by cell type and assay: signal, and 1 where there is one."""
    n_celltypes, n_assays = net.first.mean.shape
    signal = torch.zeros(len(by_track), n_celltypes * n_assays, by_track.shape[2], device=by_track.device)
    signal[:, cells] = by_track.nan_to_num()
    known = torch.zeros(signal.shape[:2], device=by_track.device)
    known[:, cells] = (~by_track[..., 0].isnan()).float()
    return signal.unflatten(1, (n_celltypes, n_assays)), known.unflatten(1, (n_celltypes, n_assays))


def _context_parts(
    net: ContextEnsemble,
    inputs: tuple[Tensor, Tensor, Tensor],
    target: tuple[int, int],
    source: Tensor,
    n_sources: int,
    steps: int,
) -> Tensor:
    """Parts of one track's prediction: (average, sources, prediction, baseline) x bins."""
    base, signal, visible = inputs
    c, a = (torch.full((len(signal), 1), i, device=signal.device) for i in target)
    change = signal - base
    total = torch.zeros_like(change)
    for k in range(steps):
        read = (base + (k + 0.5) / steps * change).requires_grad_()
        (slope,) = torch.autograd.grad(net(read, visible, c, a).sum(), read)
        total += slope / steps
    with torch.no_grad():
        of_cells = (total * change).sum(-1).flatten(1)
        parts = torch.zeros(len(signal), n_sources, device=signal.device).index_add_(1, source, of_cells)
        average = _average_change(net, change, visible, target)
        parts[:, 0] -= average
        ends = [net(values, visible, c, a) for values in (signal, base)]
        return torch.cat([average[:, None], parts, *ends], 1).T


def _average_change(net: ContextEnsemble, change: Tensor, visible: Tensor, target: tuple[int, int]) -> Tensor:
    """What average activity changes a prediction by, from the baseline to here: the term adds it as it is."""
    c, a = target
    seen = visible[:, :, a]
    column = change[:, :, a, 0] / net.first.spread[:, a] * seen
    mean = column.sum(1) / seen.sum(1).clamp(min=1)
    return net.first.spread[c, a] * net.first.config.context_stretch * mean
