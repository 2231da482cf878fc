"""Prediction for a run of positions: the genome term once, the tracks asked for on top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextEnsemble, ContextNet, KnownTracks
from xr_avocado.model.levels import Levels
from xr_avocado.model.network import AvocadoNet
from xr_avocado.model.windows import Windows

__all__ = ["context_from_vector", "laid_out", "network_from_arrays", "predict_context", "predict_positions"]

ACTIVATIONS = 1 << 24
"""Activations (positions x tracks x units) held at a time: 64 MB, which any device bears."""
CACHED = 1 << 20
"""The same on a processor, which passes over them several times: 4 MB stay in its cache."""
TOGETHER = 8
"""Targets that the context term predicts together, at least: what they share is little beside."""


def network_from_arrays(config: Config, arrays: Mapping[str, np.ndarray], device: torch.device) -> AvocadoNet:
    """Rebuild the network from its parameters by name, as the state dict has them."""
    net = AvocadoNet(config, len(arrays["celltype_factors"]), len(arrays["assay_factors"]))
    # Copies: arrays read from a store may be read-only, which torch does not know.
    net.load_state_dict({name: torch.from_numpy(np.array(values, np.float32)) for name, values in arrays.items()})
    return net.to(device).eval()


def context_from_vector(
    config: Config, parameters: np.ndarray, levels: Levels, device: torch.device
) -> ContextEnsemble:
    """Rebuild the context term from its parameters: members x parameters, laid one after the other.

    Raises
    ------
    ValueError
        Where there are more or fewer than the configuration calls for.
    """
    members = [ContextNet(config, levels) for _ in parameters]
    needed = sum(parameter.numel() for parameter in members[0].parameters())
    if parameters.shape[1] != needed:
        raise ValueError(
            f"this context term has {parameters.shape[1]:,} parameters, but its configuration calls for {needed:,}"
        )
    for member, values in zip(members, parameters, strict=True):
        vector_to_parameters(torch.from_numpy(np.array(values, np.float32)), member.parameters())
    return ContextEnsemble(members).to(device).eval().requires_grad_(False)


@torch.inference_mode()
def predict_positions(
    net: AvocadoNet,
    factors: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    celltype: np.ndarray,
    assay: np.ndarray,
) -> np.ndarray:
    """Predict tracks at positions: tracks x positions, float32, the average not yet added.

    Parameters
    ----------
    net
        The network.
    factors
        Genome factors of each scale: bins of that scale x factors.
    rows
        For each scale, the row of ``factors`` that each position lies in.
    celltype, assay
        Indices of the tracks.
    """
    device = net.celltype_factors.device
    tables = [torch.from_numpy(np.ascontiguousarray(f, np.float32)).to(device) for f in factors]
    positions = [torch.from_numpy(r).to(device) for r in rows]
    term = net.track_term(torch.from_numpy(celltype).to(device), torch.from_numpy(assay).to(device))
    out = torch.empty(len(celltype), len(rows[0]), device=device)
    coarse = _coarse_terms(net, tables)

    def predict(at: slice) -> None:
        genome = net.biases[0] + sum(part[row[at]] for part, row in zip(coarse, positions, strict=True))
        out[:, at] = net.above(genome[:, None] + term).T

    most = CACHED if device.type == "cpu" else ACTIVATIONS
    net.halving.run(len(rows[0]), max(1, most // (term.numel() or 1)), predict)
    return out.cpu().numpy()


@torch.inference_mode()
def predict_context(
    net: ContextEnsemble,
    levels: Sequence[np.ndarray],
    windows: Sequence[Windows],
    cells: np.ndarray,
    celltype: np.ndarray,
    assay: np.ndarray,
) -> np.ndarray:
    """Predict tracks at positions from the observed ones: tracks x positions, float32. No track is read for its own prediction.

    Parameters
    ----------
    net
        The context term.
    levels
        Observed tracks at each scale: tracks x bins of that scale; NaN where not measured.
    windows
        For each scale, the bins of ``levels`` that each position is read from.
    cells
        Flat index (cell type x assay) of each observed track.
    celltype, assay
        Indices of the tracks to predict.
    """
    device = net.first.mean.device
    n_assays = net.first.mean.shape[1]
    observed = torch.from_numpy(cells).to(device)
    own = np.isin(celltype * n_assays + assay, cells)
    step, together = _context_sizes(net)
    groups = [(KnownTracks.predict, part) for part in _parts(np.flatnonzero(~own), together)]
    for a in np.unique(assay[own]):
        groups += [(KnownTracks.predict_visible, part) for part in _parts(np.flatnonzero(own & (assay == a)), together)]
    labels = [tuple(torch.from_numpy(of[part]).to(device) for of in (celltype, assay)) for _, part in groups]
    means = [torch.from_numpy(level) for level in levels]
    out = torch.empty(len(windows[0].place), len(celltype), device=device)

    def predict(at: slice) -> None:
        pieces = [window.at(at).read(level).to(device) for level, window in zip(means, windows, strict=True)]
        known = KnownTracks(net, *laid_out(torch.stack(pieces, -1).transpose(0, 1), observed, net.first.mean.shape))
        for (method, part), of in zip(groups, labels, strict=True):
            out[at, part] = method(known, *(label.expand(at.stop - at.start, -1) for label in of))

    net.halving.run(len(out), step, predict)
    return out.T.cpu().numpy()


def laid_out(tracks: Tensor, cells: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Spread tracks (bins x tracks x scales) over pairs of cell type and assay; and which of these have a value at each bin."""
    signal = tracks.new_zeros(len(tracks), math.prod(shape), tracks.shape[-1])
    signal[:, cells] = tracks.nan_to_num()
    visible = tracks.new_zeros(signal.shape[:2])
    visible[:, cells] = (~tracks[..., 0].isnan()).float()
    return signal.unflatten(1, tuple(shape)), visible.unflatten(1, tuple(shape))


def _context_sizes(net: ContextEnsemble) -> tuple[int, int]:
    """Positions whose tracks are read at once, and targets that are predicted of them at once."""
    config, mean = net.first.config, net.first.mean
    (n_celltypes, n_assays), scales, members = mean.shape, len(config.context_scales), len(net.members)
    most = CACHED if mean.device.type == "cpu" else ACTIVATIONS
    tracks = n_celltypes * n_assays * (4 * scales + members * config.context_units)
    distances = n_celltypes * (members * config.context_nodes + 3 * n_celltypes * scales)
    others = n_celltypes * (config.context_units + 2 * config.context_nodes + 6 * scales)
    target = others + 4 * config.context_nodes + n_assays * (3 * scales + 2)
    step = max(1, most // (tracks + distances + TOGETHER * target))
    return step, max(1, most // (step * target))


def _parts(places: np.ndarray, most: int) -> list[np.ndarray]:
    return [places[first : first + most] for first in range(0, len(places), most)]


def _coarse_terms(net: AvocadoNet, tables: Sequence[Tensor]) -> list[Tensor]:
    """First layer's product with the factors of each scale, at that scale's own resolution."""
    columns = net.config.celltype_factors + net.config.assay_factors
    terms = []
    for table in tables:
        terms.append(torch.nn.functional.linear(table, net.weights[0][:, columns : columns + table.shape[1]]))
        columns += table.shape[1]
    return terms
