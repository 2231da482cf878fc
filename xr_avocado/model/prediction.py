"""Prediction for a run of positions: the genome term once, the tracks asked for on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xr_avocado.model.config import Config
from xr_avocado.model.network import AvocadoNet

__all__ = ["network_from_arrays", "predict_positions"]

ACTIVATIONS = 1 << 24
"""Activations (positions x tracks x units) held at a time: 64 MB, which a processor's cache levels and any device bear."""


def network_from_arrays(config: Config, arrays: Mapping[str, np.ndarray], device: torch.device) -> AvocadoNet:
    """Rebuild the network from its parameters by name, as the state dict has them."""
    net = AvocadoNet(config, len(arrays["celltype_factors"]), len(arrays["assay_factors"]))
    # Copies: arrays read from a store may be read-only, which torch does not know.
    net.load_state_dict({name: torch.from_numpy(np.array(values, np.float32)) for name, values in arrays.items()})
    return net.to(device).eval()


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
    step = max(1, ACTIVATIONS // (term.numel() or 1))
    for first in range(0, len(rows[0]), step):
        at = slice(first, first + step)
        genome = net.biases[0] + sum(part[row[at]] for part, row in zip(coarse, positions, strict=True))
        out[:, at] = net.above(genome[:, None] + term).T
    return out.cpu().numpy()


def _coarse_terms(net: AvocadoNet, tables: Sequence[Tensor]) -> list[Tensor]:
    """First layer's product with the factors of each scale, at that scale's own resolution."""
    columns = net.config.celltype_factors + net.config.assay_factors
    terms = []
    for table in tables:
        terms.append(torch.nn.functional.linear(table, net.weights[0][:, columns : columns + table.shape[1]]))
        columns += table.shape[1]
    return terms
