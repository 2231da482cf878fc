"""Predictions of tracks by context terms that have seen nothing of them: what errors are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from xr_avocado.model.config import Config
from xr_avocado.model.context import ContextNet
from xr_avocado.model.context_training import VALUES, ContextSampler, train_context
from xr_avocado.model.sampling import Panel

__all__ = ["HeldOut", "predict_held_out"]


@dataclass(frozen=True)
class HeldOut:
    """Tracks that were held out, at bins drawn at random: tracks x bins each.

    Parameters
    ----------
    truth, predicted
        In the units of the signal; truth is NaN where it was not measured.
    weight
        How many bins of the axis each stands for, relative to the others: bins with signal are drawn more often.
    spread
        What the prediction took the track's own to be: tracks.
    assay
        Of each track.
    """

    truth: np.ndarray
    predicted: np.ndarray
    weight: np.ndarray
    spread: np.ndarray
    assay: np.ndarray


def predict_held_out(
    panel: Panel,
    folds: Sequence[Sequence[int]],
    config: Config,
    labels: tuple[int, int],
    *,
    bins: int,
    seed: int = 0,
    progress: bool = True,
) -> HeldOut:
    """Hold folds of a panel's tracks out in turn, train a context term on the rest, and predict them at bins drawn at random.

    Memory: that of training the context term, and the panel once more.

    Parameters
    ----------
    panel
        The tracks.
    folds
        Which of them are held out together.
    config
        Sizes and rates of the context term.
    labels
        Number of cell types and of assays.
    bins
        Drawn in each fold.
    seed
        Fixes initial values and draws.
    progress
        Show a bar.
    """
    parts = [
        _fold(panel, list(fold), config, labels, bins, seed + i)
        for i, fold in enumerate(tqdm(folds, desc="calibrate", unit="fold", disable=not progress))
    ]
    return HeldOut(*(np.concatenate([getattr(part, name) for part in parts]) for name in HeldOut.__annotations__))


def _fold(panel: Panel, fold: list[int], config: Config, labels: tuple[int, int], bins: int, seed: int) -> HeldOut:
    """Train on all tracks but a fold's, and predict these; what it made of the panel is gone when the next fold's is made."""
    others = sorted(set(range(len(panel.values))) - set(fold))
    aside, rest = panel.some(fold), panel.some(others)
    trained = train_context(rest, config, labels, seed=seed, progress=False)
    if trained.interrupted:
        raise KeyboardInterrupt
    sampler = ContextSampler(rest, config, labels, torch.Generator().manual_seed(seed))
    return _predict(trained.members[0], sampler, aside, bins)


@torch.inference_mode()
def _predict(net: ContextNet, sampler: ContextSampler, aside: Panel, bins: int) -> HeldOut:
    """Predict all tracks set aside at bins that the sampler draws."""
    rows = torch.arange(sampler.labels[0], device=aside.device)
    slots, weight = sampler.draw(bins)
    predicted = torch.empty(len(aside.values), bins)
    step = max(32, VALUES // (sampler.labels[0] * sampler.labels[1]))
    for first in range(0, bins, step):
        at = slots[first : first + step]
        signal, visible, _ = sampler.read(at, rows)
        pairs = aside.celltype.expand(len(at), -1), aside.assay.expand(len(at), -1)
        predicted[:, first : first + step] = net(signal, visible, *pairs).T
    return HeldOut(
        truth=aside.values.flatten(1)[:, slots].float().cpu().numpy(),
        predicted=predicted.numpy(),
        weight=np.tile(weight.cpu().numpy(), (len(predicted), 1)),
        spread=net.spread[aside.celltype, aside.assay].cpu().numpy(),
        assay=aside.assay.cpu().numpy(),
    )
