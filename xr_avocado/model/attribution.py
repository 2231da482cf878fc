"""Integrated gradients of a prediction: how much of it each part of what a network reads is answerable for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from xr_avocado.model.context import ContextEnsemble
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.path_integral import Ways, integrate
from xr_avocado.model.prediction import laid_out
from xr_avocado.model.windows import Windows

__all__ = ["attribute_context", "attribute_factors"]

CACHED = 1 << 18
"""Activations (ways x units) that go forward and back together on a processor: 1 MB, what a core's own cache holds."""
HELD = 1 << 24
"""The same on other devices: 64 MB, and with the gradients some times that."""


def attribute_factors(
    net: AvocadoNet,
    factors: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    celltype: np.ndarray,
    assay: np.ndarray,
    *,
    steps: int,
    tolerance: float,
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
        Points of the path to begin with, in the middle of as many equal parts.
    tolerance
        Error that a position may have before parts of its path are halved, as a fraction of the range of a track's predictions here.

    Returns
    -------
    Tracks x (components, then prediction, then prediction at the baseline) x positions, float32.
    """
    return _attributed(_FactorWays(net, factors, rows, baseline, celltype, assay), len(celltype), steps, tolerance)


def attribute_context(
    net: ContextEnsemble,
    levels: Sequence[np.ndarray],
    windows: Sequence[Windows],
    cells: np.ndarray,
    celltype: np.ndarray,
    assay: np.ndarray,
    *,
    source: np.ndarray,
    n_sources: int,
    from_mean: bool,
    steps: int,
    tolerance: float,
) -> np.ndarray:
    """Attribute predictions of the context term to the tracks that it reads.

    Which tracks are there is held as it is; the path goes over their values at all scales together.

    Parameters
    ----------
    net, levels, windows, cells, celltype, assay
        As `predict_context` has them.
    source
        Tracks x (cell type x assay): which source each cell of the panel is for a track to predict.
    n_sources
        Number of sources.
    from_mean
        Start with every track at its own mean, 0 in the units that the network reads; if False, at a signal of 0.
    steps, tolerance
        As `attribute_factors` has them.

    Returns
    -------
    Tracks x (average activity, then sources, then prediction, then prediction at the baseline) x positions, float32. What average
    activity, which the term adds its correction to, is answerable for is known exactly, and not counted again with the source it is the
    mean of, the tracks of the same assay (source 0).
    """
    ways = _ContextWays(net, levels, windows, cells, celltype, assay, source, n_sources=n_sources, from_mean=from_mean)
    parts = _attributed(ways, len(celltype), steps, tolerance)
    average = ways.average().reshape(len(celltype), 1, -1)
    parts[:, :1] -= average
    return np.concatenate([average, parts], axis=1)


def _attributed(ways: _NetworkWays, n_tracks: int, steps: int, tolerance: float) -> np.ndarray:
    """Parts, value at the end and value at the start of the ways of each track: tracks x (parts + 2) x positions."""
    every = np.arange(ways.n_ways)
    ends = np.stack([ways.values(every, np.full(len(every), point)) for point in (0.0, 1.0)], axis=1)
    of_track = np.ptp(ends.reshape(n_tracks, -1), axis=1).repeat(len(every) // n_tracks)
    # Of a track that is the same everywhere, infinity would be no number.
    allowed = np.full_like(of_track, np.inf) if np.isinf(tolerance) else tolerance * of_track
    parts = integrate(ways, ends, steps=steps, allowed=allowed)
    return np.concatenate([parts, ends[:, ::-1]], axis=1).reshape(n_tracks, -1, parts.shape[1] + 2).swapaxes(1, 2)


class _NetworkWays(Ways):
    """Ways of what a network reads, numbered track by track, and within a track position by position."""

    device: torch.device
    units: int

    @abstractmethod
    def _reach(
        self, way: Tensor, point: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """What is read at the points, the value of that, and the slopes of the parts by the gradient there."""

    def values(self, way: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Value of each way at a point of it."""
        out = np.empty(len(way), np.float32)
        for at, some, points in self._pieces(way, point):
            with torch.inference_mode():
                read, value, _ = self._reach(some, points)
                out[at] = value(read).cpu().numpy()
        return out

    def slopes(self, way: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values likewise, and the slope of each part of the way there."""
        values, slopes = [], []
        for _, some, points in self._pieces(way, point):
            with torch.no_grad():
                read, value, parts = self._reach(some, points)
            with torch.enable_grad():
                found = value(read.requires_grad_())
                (gradient,) = torch.autograd.grad(found.sum(), read)
            values.append(found.detach().cpu().numpy())
            slopes.append(parts(gradient).cpu().numpy())
        return np.concatenate(values), np.concatenate(slopes)

    def _pieces(self, way: np.ndarray, point: np.ndarray) -> Any:
        step = max(1, (CACHED if self.device.type == "cpu" else HELD) // self.units)
        for first in range(0, len(way), step):
            at = slice(first, first + step)
            yield at, torch.from_numpy(way[at]).to(self.device), torch.from_numpy(point[at]).float().to(self.device)


class _FactorWays(_NetworkWays):
    """Ways of the first layer's sum, whose parts are the shares of cell type, assay and each scale."""

    @torch.no_grad()
    def __init__(
        self,
        net: AvocadoNet,
        factors: Sequence[np.ndarray],
        rows: Sequence[np.ndarray],
        baseline: Sequence[np.ndarray],
        celltype: np.ndarray,
        assay: np.ndarray,
    ) -> None:
        self.net, self.device, self.units = net, net.celltype_factors.device, net.config.nodes
        self.n_ways = len(celltype) * len(rows[0])
        self.rows = [self._here(row) for row in rows]
        values = [net.celltype_factors[self._here(celltype)], net.assay_factors[self._here(assay)]]
        values += [self._here(np.ascontiguousarray(of, np.float32)) for of in factors]
        weights = net.weights[0].split([v.shape[1] for v in values], dim=1)
        bases = [self._here(np.asarray(base, np.float32)) for base in baseline]
        self.start = net.biases[0] + sum(weight @ base for weight, base in zip(weights, bases, strict=True))
        self.shares = [functional.linear(v - base, w) for v, base, w in zip(values, bases, weights, strict=True)]

    def _here(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _reach(
        self, way: Tensor, point: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        track, position = way // len(self.rows[0]), way % len(self.rows[0])
        at = [track, track, *(row[position] for row in self.rows)]
        shares = torch.stack([share[rows] for share, rows in zip(self.shares, at, strict=True)], 1)
        read = self.start + point[:, None] * shares.sum(1)
        # The network works in place on what it is given.
        return read, lambda read: self.net.above(read.clone()), lambda slope: (shares @ slope[..., None])[..., 0]


class _ContextWays(_NetworkWays):
    """Ways of all tracks that are read, at all scales, whose parts are the sources that tracks are of."""

    def __init__(
        self,
        net: ContextEnsemble,
        levels: Sequence[np.ndarray],
        windows: Sequence[Windows],
        cells: np.ndarray,
        celltype: np.ndarray,
        assay: np.ndarray,
        source: np.ndarray,
        *,
        n_sources: int,
        from_mean: bool,
    ) -> None:
        self.net, self.device = net, net.first.mean.device
        self.positions = len(windows[0].place)
        self.n_ways, self.from_mean, self.n_sources = len(celltype) * self.positions, from_mean, n_sources
        arrays = [torch.from_numpy(of).to(self.device) for of in (cells, celltype, assay, source)]
        self.cells, self.celltype, self.assay, self.source = arrays
        self.windows = [window.to(self.device) for window in windows]
        self.levels = [torch.from_numpy(level).to(self.device) for level in levels]
        self.units = net.first.mean.numel() * net.first.config.context_units

    def _reach(
        self, way: Tensor, point: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        signal, visible, target = self._read(way)
        base = self.net.first.mean[..., None] if self.from_mean else torch.zeros_like(signal)
        change, source = signal - base, self.source[way // self.positions]
        sums = signal.new_zeros(len(way), self.n_sources)
        return (
            base + point[:, None, None, None] * change,
            lambda read: self.net(read, visible, *target)[:, 0],
            lambda slope: sums.scatter_add(1, source, (slope * change).sum(-1).flatten(1)),
        )

    def _read(self, way: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Signal, what of it is visible, and the target's cell type and assay, as the network takes them."""
        track, position = way // self.positions, way % self.positions
        pieces = [of.at(position).read(level) for level, of in zip(self.levels, self.windows, strict=True)]
        signal, visible = laid_out(torch.stack(pieces, -1).transpose(0, 1), self.cells, self.net.first.mean.shape)
        celltype, assay = self.celltype[track], self.assay[track]
        visible[torch.arange(len(way), device=self.device), celltype, assay] = 0
        return signal, visible, (celltype[:, None], assay[:, None])

    @torch.inference_mode()
    def average(self) -> np.ndarray:
        """What average activity changes the value of each way by: the term adds it as it is."""
        first, out = self.net.first, []
        for _, way, _ in self._pieces(every := np.arange(self.n_ways), every):
            signal, visible, (celltype, assay) = self._read(way)
            bins = torch.arange(len(way), device=self.device)[:, None]
            seen, spread = visible[bins, :, assay], first.spread[:, assay].permute(1, 2, 0)
            base = first.mean[:, assay].permute(1, 2, 0) if self.from_mean else 0
            column = (signal[bins, :, assay][..., 0] - base) / spread * seen
            mean = column.sum(2) / seen.sum(2).clamp(min=1)
            out.append((first.spread[celltype, assay] * first.config.context_stretch * mean)[:, 0].cpu().numpy())
        return np.concatenate(out)
