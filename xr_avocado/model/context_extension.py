"""The context term of more assays than it was trained with: what belongs to an assay is added and learnt, all else frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm.auto import tqdm

from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextNet, n_columns
from xr_avocado.model.context_training import ContextSampler, Task, learn
from xr_avocado.model.levels import Levels
from xr_avocado.model.sampling import Panel

__all__ = ["assay_of_parameters", "learn_assays", "of_assays"]

VALUES = 1 << 16
"""Values (bins x cell types x assays) that a step reads, at most, as in training."""


def assay_of_parameters(net: ContextNet) -> Tensor:
    """Tell the assay that each parameter belongs to, in the order of ``parameters_to_vector``; -1 where to none."""
    n, scales = net.mean.shape[1], len(net.config.context_scales)
    # What is read of others: means of each assay at each scale, then whether there is one.
    others = torch.cat([torch.arange(n).repeat_interleave(scales), torch.arange(n)])
    # The table begins with the target's own tracks, each twice at each scale, and which are seen, and ends with the others; it is
    # there twice, and the name of the target's assay after it.
    of_name = net.config.context_assay_factors
    table = torch.full(((n_columns(n, net.config) - of_name) // 2,), -1)
    own = torch.cat([torch.arange(n).repeat_interleave(2 * scales), torch.arange(n)])
    table[: len(own)], table[-len(others) :] = own, others
    inputs = {"others.weight": others, "table.0.weight": torch.cat([table, table, torch.full((of_name,), -1)])}
    parts = []
    for name, parameter in net.named_parameters():
        of = torch.full(parameter.shape, -1)
        if name in inputs:
            of[:] = inputs[name]
        elif name in ("assay", "read", "read_bias", "slot", "slot_seen"):
            rows = torch.arange(n).repeat_interleave(len(parameter) // n)
            of[:] = rows.view(-1, *[1] * (parameter.ndim - 1))
        parts.append(of.flatten())
    return torch.cat(parts)


def of_assays(config: Config, parameters: np.ndarray, n_assays: int, keep: Sequence[int] | np.ndarray) -> np.ndarray:
    """Cut parameters (members x parameters) of a context term to some of its assays."""
    of = assay_of_parameters(_net(config, (1, n_assays))).numpy()
    return parameters[:, (of < 0) | np.isin(of, np.asarray(keep))]


def learn_assays(
    config: Config,
    parameters: np.ndarray,
    levels: Levels,
    panel: Panel,
    known: int,
    *,
    samples: int,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """Add assays to a context term: members x parameters of the larger one. What it had stays bit for bit.

    In every other step some tracks of new assays are hidden at each bin and predicted, so that the term learns to tell them; in the
    others any tracks, so that it learns what the new assays tell of those it knows.

    Parameters
    ----------
    config
        Sizes and rates of the context term.
    parameters
        Those that it has: members x parameters.
    levels
        Levels of all pairs; the last columns are the new assays'.
    panel
        All observed tracks, those of the new assays among them.
    known
        Number of assays that are not new.
    samples
        Targets (bin x track) that each member sees.
    seed
        Fixes the draws.
    progress
        Show a bar.
    """
    labels = (levels.mean.shape[0], levels.mean.shape[1])
    random = torch.Generator().manual_seed(seed)
    sampler = ContextSampler(panel, config, labels, random)
    out = []
    with (
        torch.random.fork_rng(devices=[panel.values.device] if panel.values.device.type == "cuda" else []),
        tqdm(total=samples * len(parameters), desc="extend context", unit="sample", unit_scale=True, disable=not progress) as bar,
    ):  # fmt: skip
        torch.manual_seed(seed)
        for values in parameters:
            net = _grown(config, torch.from_numpy(np.array(values, np.float32)), levels, known)
            before = parameters_to_vector(net.parameters()).detach().clone()
            _train(net.to(panel.values.device), sampler, known, samples, bar)
            after = parameters_to_vector(net.parameters()).detach().cpu()
            out.append(torch.where(assay_of_parameters(net) >= known, after, before).numpy())
    return np.stack(out)


def _net(config: Config, labels: tuple[int, int]) -> ContextNet:
    return ContextNet(config, Levels(*np.ones((2, *labels), np.float32)), generator=torch.Generator().manual_seed(0))


def _grown(config: Config, values: Tensor, levels: Levels, known: int) -> ContextNet:
    """Make a net for more assays, whose own parameters start at the mean of those that are known."""
    net = ContextNet(config, levels, generator=torch.Generator().manual_seed(0))
    small = _net(config, (1, known))
    of_small, of = assay_of_parameters(small), assay_of_parameters(net)
    grown = torch.empty(len(of))
    grown[of < known] = values
    # Parameters of an assay come in the same order in each.
    mean = torch.stack([values[of_small == a] for a in range(known)]).mean(0)
    for a in range(known, levels.mean.shape[1]):
        grown[of == a] = mean
    vector_to_parameters(grown, net.parameters())
    return net


def _train(net: ContextNet, sampler: ContextSampler, known: int, samples: int, bar: tqdm) -> None:
    mine = _own_parameters(net, known)
    rate = net.config.context_learning_rate
    # Plain Adam: with a gradient of 0 it leaves a parameter as it is, which decay would not.
    optimizer = torch.optim.Adam(mine, lr=rate)
    seen = 0
    for number in range(1 << 60):
        if seen >= samples:
            break
        optimizer.param_groups[0]["lr"] = rate * (0.02 + 0.49 * (1 + math.cos(math.pi * seen / samples)))
        task = _draw_new(sampler, net.spread, known) if number % 2 else Task.draw(sampler, net.spread)
        learn(net, task)
        optimizer.step()
        seen += task.truth.numel()
        bar.update(task.truth.numel())
    net.eval()


def _own_parameters(net: ContextNet, known: int) -> list[nn.Parameter]:
    """Parameters that some of the new assays own, which let only these entries' gradients through."""
    of = assay_of_parameters(net)
    parts = of.split([p.numel() for p in net.parameters()])
    mine = []
    for parameter, part in zip(net.parameters(), parts, strict=True):
        new = (part >= known).view_as(parameter)
        parameter.requires_grad_(bool(new.any()))
        if new.any():
            mask = new.to(parameter.device)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
            mine.append(parameter)
    return mine


def _draw_new(sampler: ContextSampler, spread: Tensor, known: int) -> Task:
    """Draw bins, hide some tracks of new assays there as targets, and a share of the other tracks."""
    config, random, n_assays = sampler.config, sampler.random, sampler.labels[1]
    rows = _some_celltypes(sampler, known)
    bins = min(config.context_batch, max(32, VALUES // (len(rows) * n_assays)))
    slots, weight = sampler.draw(bins)
    signal, there, cell = sampler.read(slots, rows)
    device = slots.device
    new = cell[cell % n_assays >= known]
    targets = int(torch.randint(1, min(len(new), config.context_targets) + 1, (1,), generator=random))
    asked = new[torch.rand(bins, len(new), generator=random).topk(targets, dim=1).indices.to(device)]
    share = config.context_mask * float(torch.rand(1, generator=random))
    shown = torch.rand(bins, len(cell), generator=random).to(device) >= share
    visible = torch.zeros_like(there).flatten(1)
    visible[:, cell] = shown.float()
    visible = (visible.view_as(there) * there).flatten(1).scatter(1, asked, 0.0).view_as(there)
    celltype, assay = asked // n_assays, asked % n_assays
    at = torch.arange(bins, device=device)[:, None]
    units = spread.mean() / spread[rows[celltype], assay]
    weights = there[at, celltype, assay] * weight[:, None] * units
    return Task((signal, visible, celltype, assay, rows), signal[at, celltype, assay, 0], weights)


def _some_celltypes(sampler: ContextSampler, known: int) -> Tensor:
    """Draw the cell types of a step, ascending: up to half of them with tracks of new assays, all of a small panel."""
    most = sampler.config.context_celltypes
    if len(sampler.celltypes) <= most:
        return sampler.celltypes
    has = sampler.panel.celltype[sampler.panel.assay >= known].unique().cpu()
    first = _shuffled(has, sampler.random)[: max(1, most // 2)]
    rest = sampler.celltypes.cpu()
    rest = _shuffled(rest[~torch.isin(rest, first)], sampler.random)[: most - len(first)]
    return torch.cat([first, rest]).sort().values.to(sampler.celltypes.device)


def _shuffled(values: Tensor, random: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=random)]
