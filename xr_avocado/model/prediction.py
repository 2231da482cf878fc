"""Prediction for a run of positions: the genome term once, the tracks asked for on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextEnsemble, ContextNet
from xr_avocado.model.levels import Levels
from xr_avocado.model.network import AvocadoNet

__all__ = ["context_from_vector", "network_from_arrays", "predict_context", "predict_positions"]

ACTIVATIONS = 1 << 24
"""Activations (positions x tracks x units) held at a time: 64 MB, which any device bears."""
CACHED = 1 << 20
"""The same for the factors' network on a processor, which passes over them several times: 4 MB stay in its cache."""


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
    return ContextEnsemble(members).to(device).eval()


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
    step = max(1, (CACHED if device.type == "cpu" else ACTIVATIONS) // (term.numel() or 1))
    for first in range(0, len(rows[0]), step):
        at = slice(first, first + step)
        genome = net.biases[0] + sum(part[row[at]] for part, row in zip(coarse, positions, strict=True))
        out[:, at] = net.above(genome[:, None] + term).T
    return out.cpu().numpy()


@torch.inference_mode()
def predict_context(
    net: ContextEnsemble,
    levels: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
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
    rows
        For each scale, the bin of ``levels`` that each position lies in.
    cells
        Flat index (cell type x assay) of each observed track.
    celltype, assay
        Indices of the tracks to predict.
    """
    device, config = net.first.mean.device, net.first.config
    n_celltypes, n_assays = net.first.mean.shape
    asked = torch.from_numpy(celltype * n_assays + assay).to(device)
    observed = torch.from_numpy(cells).to(device)
    own = torch.isin(asked, observed)
    groups = [g for g in [(~own).nonzero().squeeze(1), *own.nonzero()] if len(g)]
    largest = max(len(g) for g in groups)
    tracks = n_celltypes * n_assays * config.context_units
    scales = len(config.context_scales)
    table = n_assays * (3 * scales + 2) + 3 * n_celltypes * scales
    targets = largest * (n_celltypes * (config.context_units + config.context_nodes) + 4 * config.context_nodes + table)
    step = max(1, ACTIVATIONS // (tracks + n_celltypes**2 * scales + targets))
    out = torch.empty(len(asked), len(rows[0]), device=device)
    for first in range(0, len(rows[0]), step):
        at = slice(first, first + step)
        pieces = [torch.from_numpy(level[:, row[at]]).to(device) for level, row in zip(levels, rows, strict=True)]
        by_track = torch.stack(pieces, -1).transpose(0, 1)
        signal = torch.zeros(len(by_track), n_celltypes * n_assays, len(levels), device=device)
        signal[:, observed] = by_track.nan_to_num()
        known = torch.zeros(signal.shape[:2], device=device)
        known[:, observed] = (~by_track[..., 0].isnan()).float()
        for group in groups:
            visible = known.clone()
            visible[:, asked[group]] = 0
            labels = (
                asked[group].expand(len(by_track), -1) // n_assays,
                asked[group].expand(len(by_track), -1) % n_assays,
            )
            shape = (n_celltypes, n_assays)
            out[group, at] = net(signal.unflatten(1, shape), visible.unflatten(1, shape), *labels).T
    return out.cpu().numpy()


def _coarse_terms(net: AvocadoNet, tables: Sequence[Tensor]) -> list[Tensor]:
    """First layer's product with the factors of each scale, at that scale's own resolution."""
    columns = net.config.celltype_factors + net.config.assay_factors
    terms = []
    for table in tables:
        terms.append(torch.nn.functional.linear(table, net.weights[0][:, columns : columns + table.shape[1]]))
        columns += table.shape[1]
    return terms
