"""Average activity on blocks: the mean of an assay over the observed cell types, the target left out."""

from __future__ import annotations

import torch
from torch import Tensor

from xr_avocado.model.sampling import Panel

__all__ = ["AverageActivity"]


class AverageActivity:
    """Sum and number of the tracks of each assay, per bin; memory: 8 bytes an assay and bin (4 where no value is missing).

    Parameters
    ----------
    panel
        The tracks averaged over.
    n_assays
        Assays of the model; those without a track average to 0.
    """

    def __init__(self, panel: Panel, n_assays: int) -> None:
        shape = panel.values.shape[1:]
        self.panel = panel
        self.total = torch.zeros(n_assays, *shape, device=panel.values.device)
        self.count = torch.zeros(n_assays, *shape, device=panel.values.device)
        for values, assay in zip(panel.values, panel.assay.tolist(), strict=True):
            self.total[assay] += values.float().nan_to_num()
            self.count[assay] += ~values.isnan()

    def __call__(self, blocks: Tensor, celltype: Tensor, assay: Tensor) -> Tensor:
        """Average activity for targets (celltype, assay: blocks x k) in blocks: blocks x bins x k; 0 where no other track is."""
        device = celltype.device
        blocks, celltype, assay = (index.to(self.total.device) for index in (blocks, celltype, assay))
        total = self.total[assay, blocks[:, None]]
        count = self.count[assay, blocks[:, None]]
        own = self._own_track(celltype, assay)
        values = self.panel.values[own.clamp(min=0), blocks[:, None]].float()
        seen = (own >= 0)[..., None] & ~values.isnan()
        total = total - torch.where(seen, values, 0.0)
        return (total / (count - seen.float()).clamp(min=1)).transpose(1, 2).to(device)

    def _own_track(self, celltype: Tensor, assay: Tensor) -> Tensor:
        """Index of the panel's track that is the target itself, -1 where the panel does not hold it."""
        celltypes, assays = self.panel.celltype.to(celltype.device), self.panel.assay.to(assay.device)
        same = (celltypes == celltype[..., None]) & (assays == assay[..., None])
        return torch.where(same.any(-1), same.int().argmax(-1), -1)
