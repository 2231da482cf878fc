"""fit: train a model on a cube, and return the cube with its model inside."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTOR,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTOR,
    CELLTYPE_FACTORS,
    CONTEXT,
    CONTEXT_HISTORY,
    CONTEXT_MEMBER,
    CONTEXT_PARAMETER,
    ERROR_LEVEL,
    ERROR_PROBABILITY,
    FITTED,
    HISTORY,
    IMPUTATION,
    MODEL,
    NETWORK,
    POSITION,
    SIGNAL,
    TRACK_MEAN,
    TRACK_SPREAD,
    CubeError,
    Experiment,
    as_experiments,
    check_bins,
    check_cube,
    check_whole,
    experiments,
    factor_dim,
    genome_factors,
    label_rows,
    position_dim,
)
from xr_avocado.fit_store import FitStore, identity
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins, bins_of

if TYPE_CHECKING:
    import torch

    from xr_avocado.model.config import Config
    from xr_avocado.model.context_training import TrainedContext
    from xr_avocado.model.sampling import Panel
    from xr_avocado.model.sharing import Share
    from xr_avocado.model.training import Trained

__all__ = ["fit"]

logger = logging.getLogger("xr_avocado")

ONCE = ("ds", "store", "overwrite", "checkpoint_minutes")
"""Arguments of ``fit`` that are no options where it is called several times."""


@dataclass(frozen=True)
class Layout:
    """Where each bin of each scale goes in the blocks of training: ``slots[i]`` indexes blocks x bins, flattened.

    ``continues`` says of each block whether it goes on, on the genome, from the one before.
    """

    coarse: tuple[GenomeBins, ...]
    slots: tuple[np.ndarray, ...]
    continues: np.ndarray

    @property
    def n_blocks(self) -> int:
        """Blocks that hold all bins."""
        return len(self.continues)

    @classmethod
    def of(cls, bins: GenomeBins, config: Config) -> Layout:
        """Lay the bins of an axis out in blocks."""
        blocks = bins.coarsen(config.block)
        scales = tuple(bins.coarsen(scale) for scale in config.scales)
        slots = []
        for axis, scale in zip(scales, config.scales, strict=True):
            per_block = config.block // scale
            slots.append(blocks.rows_of(axis) * per_block + axis.start // axis.binsize % per_block)
        return cls(scales, tuple(slots), blocks.continues)


def fit(
    ds: xr.Dataset,
    preset: str | None = None,
    *,
    config: Config | dict[str, Any] | None = None,
    validation: str | float | Iterable[Any] | None = "auto",
    epochs: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    store: str | os.PathLike[str] | None = None,
    checkpoint_minutes: float = 10.0,
    overwrite: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Train a model on the observed experiments, and return the cube with the model's parameters as variables.

    By default two parts are trained. The *context term* is what ``impute`` answers with: average activity plus a correction read from
    the bin's other observed tracks; it has nothing per position to over-fit, and learns from every observed experiment. The *factors*
    are Avocado's, and what ``embed`` gives out. On a small panel they over-fit within a few passes, so some experiments are set aside
    from them, and the epoch at which those are predicted best comes back. Presets have the factors alone, which then impute.

    Ctrl-C ends the part in training early and keeps what was learned.

    With ``store`` the fitted cube is written there, and training can be taken up again: every ``checkpoint_minutes`` all that it
    has changed is kept in a folder beside the store. Whatever ends the process, and whenever, the same call goes on from there, on
    the CPU to the same result bit for bit. It also goes on after Ctrl-C; a call that was finished before opens the store.

    Several processes may train the factors together, each on a GPU: where ``torch.distributed`` is initialized, as a script that
    ``torchrun`` starts does, each has a share of the blocks, a batch is that of all together, and all return the same model, that of
    one process but for rounding. Each trains the context term as a whole. The first should write what comes back.

    Memory: the observed tracks at 2.6 bytes a bin each (twice that if untransformed), 48 bytes a bin, 16 bytes a genome factor (values,
    Adam's moments, the best epoch's copy; the default on a small panel learns some 10 factors a bin), and some 50 MB. One track at a
    time is read. On CUDA the same is on the device; where the tracks do not fit it beside the rest they stay on the host, from where each
    step moves what it reads, and where a step does not fit it is computed in parts, with one warning.

    Parameters
    ----------
    ds
        A cube; restrict it with ``.avocado.sel`` to train on some regions.
    preset
        ``"paper"`` (Schreiber et al. 2020: 398 -> 2,048 -> 2,048 -> 1, no average) or ``"small"``; by default sizes follow the
        number of experiments.
    config
        Settings of your own: a ``Config``, or a mapping of settings to change in the preset.
    validation
        Experiments to set aside from the factors: ``"auto"`` (a tenth, at least one, such that their cell type and assay keep another track), a
        fraction, ``(celltype, assay)`` pairs, or None to train all epochs on everything.
    epochs
        Passes over the positions, at most; short for ``config={"epochs": ...}``.
    seed
        Fixes the run: same cube, settings, device and number of threads give the same model.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``; by default the fastest at hand.
    store
        Folder to write the fitted cube to, as ``to_zarr`` does; what comes back is opened from it, and lazy.
    checkpoint_minutes
        Least time from one checkpoint to the next; each takes 16 bytes a genome factor on the disk.
    overwrite
        Replace a store, and checkpoints, that are of another call.
    progress
        Show a progress bar.

    Returns
    -------
    The cube plus ``celltype_factors``, ``assay_factors``, ``genome_factors_*`` along their own position dims, ``network_*``,
    ``history`` (epoch x metric), ``context_net`` and ``context_history`` (of the context term), and ``attrs["avocado"]``.

    Raises
    ------
    CubeError
        Where the cube has no signal, too few observed experiments, or a label given is not on it; where ``store`` holds something
        else than this call's fit, and which setting or part of the cube differs; where another process trains towards it; where its
        disk is full: with room, the same call goes on.
    ValueError
        Where a preset, a setting or the device is unknown, or training diverged in its first epoch.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=4)
    >>> fitted = cube.avocado.fit(config={"epochs": 1, "context_samples": 5_000}, progress=False)
    >>> fitted.celltype_factors.dims
    ('celltype', 'celltype_factor')
    """
    from xr_avocado.model.sharing import Share
    from xr_avocado.model.training import device_named

    check_cube(ds, SIGNAL)
    check_bins(ds, "train on")
    seed = check_whole("seed", seed, least=0)
    chosen = device_named(device)
    held = validation_tracks(ds, validation, seed=seed)
    trained_on = [pair for pair in experiments(ds) if pair not in set(held)]
    if not trained_on:
        raise CubeError(
            f"no experiment is left to train on: the cube has {len(held)} and validation takes them; hold fewer out"
        )
    settings = resolve_config(len(trained_on), preset, config, epochs)
    about = provenance(ds, settings, trained_on, held, seed)
    if store is None:
        return _trained(ds, settings, about, chosen, None, progress=progress)
    if Share.present().world > 1:
        raise ValueError("store is for one process; of several, let the first write what comes back: to_zarr")
    with FitStore(store, about, minutes=checkpoint_minutes, overwrite=overwrite).alone() as kept:
        if kept.finished is not None:
            return kept.finished
        return _trained(ds, settings, about, chosen, kept, progress=progress)


def _trained(
    ds: xr.Dataset,
    settings: Config,
    about: dict[str, Any],
    device: torch.device,
    kept: FitStore | None,
    *,
    progress: bool,
) -> xr.Dataset:
    """Train what is to be trained, and put it on the cube."""
    from xr_avocado.model.context_training import train_context
    from xr_avocado.model.sharing import Share
    from xr_avocado.model.training import train

    trained_on, held = ([Experiment(*pair) for pair in about[name]] for name in ("trained_on", "validation"))
    seed, share = about["seed"], Share.present()
    progress = progress and share.rank == 0
    layout = Layout.of(bins_of(ds), settings)
    # The context term reads blocks of all shares.
    every = load_panel(ds, trained_on + held, layout, settings, device, Share() if settings.context else share)
    panel, aside = every.some(slice(len(trained_on))), every.some(slice(len(trained_on), None)) if held else None
    labels = ds.sizes[CELLTYPE], ds.sizes[ASSAY]
    context = None
    if settings.context:
        # The context term over-fits no bins and stops at no epoch, so it may learn from every track.
        at = None if kept is None else kept.checkpoint("context")
        context = train_context(every, settings, labels, seed=seed, progress=progress, checkpoint=at)
        panel, aside = panel.cut(share), None if aside is None else aside.cut(share)
    at = None if kept is None else kept.checkpoint("factors")
    trained = train(panel, aside, settings, labels, seed=seed, progress=progress, checkpoint=at)
    out = with_parameters(ds, trained, layout, about)
    out = out if context is None else with_context(out, context)
    if kept is None:
        return out
    interrupted = trained.interrupted or (context is not None and context.interrupted)
    return kept.write(out, interrupted=interrupted, progress=progress)


def provenance(
    ds: xr.Dataset, config: Config, trained_on: list[Experiment], held: list[Experiment], seed: int
) -> dict[str, Any]:
    """Say what a fit is of and how it is made: all that its result depends on, but for the device."""
    return {
        **identity(ds, trained_on),
        "config": config.to_attrs(),
        "seed": seed,
        "trained_on": [list(pair) for pair in trained_on],
        "validation": [list(pair) for pair in held],
    }


def options_of(ds: xr.Dataset, given: Any) -> dict[str, Any]:
    """Return options of ``fit`` that another verb was given; raise, before any work, where one is unknown or cannot be."""
    from xr_avocado.model.training import device_named

    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"fit is a mapping of options of fit, as in {{'epochs': 20}}; got {given!r}")
    options = dict(given or {})
    known = [name for name in inspect.signature(fit).parameters if name not in ONCE]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{unknown[0]!r} is not an option of fit; there are {', '.join(known)}")
    device_named(options.get("device"))
    check_whole("seed", options.get("seed", 0), least=0)
    validation_tracks(ds, options.get("validation", "auto"), seed=0)
    resolve_config(len(experiments(ds)), *(options.get(name) for name in ("preset", "config", "epochs")))
    return options


def resolve_config(
    n_experiments: int, preset: str | None, config: Config | dict[str, Any] | None, epochs: int | None
) -> Config:
    """Settle sizes and settings from preset, mapping and panel size."""
    from xr_avocado.model.config import PRESETS, Config, config_for

    if preset is not None and preset not in PRESETS:
        raise ValueError(
            f"preset {preset!r} is unknown; choose {', '.join(map(repr, PRESETS))}, or None to follow the panel's size"
        )
    if config is not None and not isinstance(config, Config | Mapping):
        raise ValueError(f"config is a Config, or a mapping of settings, as in {{'nodes': 64}}; got {config!r}")
    if isinstance(config, Config):
        settings = config
    else:
        settings = (config_for(n_experiments) if preset is None else PRESETS[preset]).updated(config or {})
    return settings if epochs is None else settings.updated({"epochs": epochs})


def validation_tracks(ds: xr.Dataset, validation: Any, *, seed: int) -> list[Experiment]:
    """Choose the experiments set aside: given pairs, or a random fraction whose cell types and assays keep another track."""
    if validation is None:
        return []
    run = experiments(ds)
    if not isinstance(validation, str | float | int):
        pairs = as_experiments(ds, validation)
        if missing := [str(pair) for pair in pairs if pair not in set(run)]:
            raise CubeError(f"{', '.join(missing)}: not observed, so not fit for validation")
        return pairs
    fraction = 0.1 if validation == "auto" else validation
    if isinstance(fraction, str) or not 0 < fraction < 1:
        raise ValueError(
            f"validation is 'auto', a fraction between 0 and 1, (celltype, assay) pairs or None; got {validation!r}"
        )
    wanted = max(1, round(fraction * len(run)))
    chosen: list[Experiment] = []
    for i in np.random.default_rng(seed).permutation(len(run)):
        rest = [pair for pair in run if pair not in chosen and pair != run[i]]
        if any(p.celltype == run[i].celltype for p in rest) and any(p.assay == run[i].assay for p in rest):
            chosen.append(run[i])
        if len(chosen) == wanted:
            break
    if not chosen:
        logger.info("no experiment can be set aside for validation; training all epochs")
    return chosen


def load_panel(
    ds: xr.Dataset,
    tracks: list[Experiment],
    layout: Layout,
    config: Config,
    device: torch.device,
    share: Share | None = None,
) -> Panel:
    """Read tracks, one at a time, into blocks (tracks x blocks x bins a block), and move them to the device if they fit.

    What is not finite is NaN. Of a share of the blocks only these are kept.
    """
    import torch

    from xr_avocado.model.sampling import Panel
    from xr_avocado.model.sharing import Share

    share = share or Share()
    celltype = label_rows(ds, CELLTYPE, [t.celltype for t in tracks])
    assay = label_rows(ds, ASSAY, [t.assay for t in tracks])
    signal = ds[SIGNAL].transpose(CELLTYPE, ASSAY, POSITION)
    # Untransformed signal reaches past what float16 holds.
    dtype = torch.float32 if ds.attrs.get("transform", "none") == "none" else torch.float16
    one = torch.full((layout.n_blocks * config.block,), torch.nan, dtype=dtype)
    blocks = share.cut(one.view(layout.n_blocks, config.block))
    values = torch.empty(len(tracks), *blocks.shape, dtype=dtype)
    slots = torch.from_numpy(layout.slots[0])
    for i, (c, a) in enumerate(zip(celltype, assay, strict=True)):
        track = signal[int(c), int(a)].values
        if not np.isfinite(track).any():
            raise CubeError(
                f"{tracks[i]} is marked as observed but its signal is all NaN; set observed to False or rebuild it"
            )
        one[slots] = torch.from_numpy(np.where(np.isfinite(track), track, np.float32(np.nan))).to(dtype)
        values[i] = blocks
    factors = sum(
        len(blocks) * config.block // s * n for s, n in zip(config.scales, config.genome_factors, strict=True)
    )
    labels = torch.from_numpy(celltype), torch.from_numpy(assay)
    continues = torch.from_numpy(layout.continues)
    panel = Panel(values, *labels, continues=continues, share=share, total=layout.n_blocks)
    return panel.on(device, beside=16 * (factors + blocks.numel()))


def with_parameters(ds: xr.Dataset, trained: Trained, layout: Layout, about: dict[str, Any]) -> xr.Dataset:
    """Put a trained model's parameters on the cube, labelled."""
    from xr_avocado import __version__
    from xr_avocado.model.training import METRICS

    net = trained.net
    out = without_parameters(ds).assign(
        {
            CELLTYPE_FACTORS: ((CELLTYPE, CELLTYPE_FACTOR), _array(net.celltype_factors)),
            ASSAY_FACTORS: ((ASSAY, ASSAY_FACTOR), _array(net.assay_factors)),
            HISTORY: (("epoch", "metric"), np.array(trained.history), {"best_epoch": trained.best_epoch}),
        }
    )
    out = out.assign_coords(epoch=np.arange(1, len(trained.history) + 1), metric=list(METRICS))
    for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        dims = (f"{NETWORK}{i}_out", f"{NETWORK}{i}_in")
        out[f"{NETWORK}weight_{i}"] = (dims, _array(weight))
        out[f"{NETWORK}bias_{i}"] = (dims[:1], _array(bias))
    for table, bins, slots in zip(trained.genome, layout.coarse, layout.slots, strict=True):
        dim = position_dim(bins.binsize, layout.coarse[0].binsize)
        rows = _array(table.flatten(0, 1)[slots])
        out[genome_factors(bins.binsize)] = ((dim, factor_dim(bins.binsize)), rows)
        out = out if dim == POSITION else assign_bins(out, bins, dim)
    return out.assign_attrs({FITTED: {"version": __version__, **about, "best_epoch": trained.best_epoch + 1}})


def with_context(ds: xr.Dataset, context: TrainedContext) -> xr.Dataset:
    """Put a trained context term on the cube."""
    from torch.nn.utils import parameters_to_vector

    about = {
        "long_name": "parameters of the context term, one after the other; their shapes follow from attrs['avocado']['config']"
    }
    vectors = np.stack([_array(parameters_to_vector(net.parameters())) for net in context.members])
    parameters = {CONTEXT: ((CONTEXT_MEMBER, CONTEXT_PARAMETER), vectors, about)}
    samples, mse = np.array(context.history).reshape(-1, 2).T
    curve = {CONTEXT_HISTORY: ("context_sample", mse, {"long_name": "mean squared error in training"})}
    levels = {
        TRACK_MEAN: (
            (CELLTYPE, ASSAY),
            _array(context.members[0].mean),
            {"long_name": "mean signal, estimated where not observed"},
        ),
        TRACK_SPREAD: (
            (CELLTYPE, ASSAY),
            _array(context.members[0].spread),
            {"long_name": "standard deviation of the signal over bins, estimated where not observed"},
        ),
    }
    return ds.assign(parameters | levels | curve).assign_coords(context_sample=samples)


def without_parameters(ds: xr.Dataset) -> xr.Dataset:
    """Drop an earlier fit and what it imputed, so that a cube can be fitted again."""
    names = [n for n in ds.data_vars if str(n).startswith((*MODEL, *IMPUTATION))]
    bare = ds.drop_vars(names)
    unused = [
        n
        for n, c in bare.coords.items()
        if c.dims and not any(set(c.dims) & set(v.dims) for v in bare.data_vars.values())
    ]
    own = ("epoch", "metric", "context_sample", ERROR_LEVEL, ERROR_PROBABILITY)
    return bare.drop_vars([n for n in unused if n in own or POSITION in str(bare[n].dims[0])])


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
