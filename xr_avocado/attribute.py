"""attribute: what a prediction is made of, by integrated gradients, and how that goes with peaks that cell types share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.annotations import Peaks
from xr_avocado.axis import every_row
from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    AVERAGE,
    CELLTYPE,
    CELLTYPE_FACTORS,
    COMPONENT,
    FITTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    check_bins,
    check_cube,
    check_number,
    check_whole,
    genome_factors,
    label_rows,
    position_dim,
)
from xr_avocado.generations import as_known_to, generations_of
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of, select
from xr_avocado.pair import Spans
from xr_avocado.predictors import ContextPredictor, FactorPredictor

if TYPE_CHECKING:
    import torch

__all__ = ["attribute", "attribution_by_peaks"]

Part = Literal["factors", "context"]
POSITIONS = 1 << 13
"""Positions of a dask chunk, at most: a gradient at every step makes each cost as much as some hundred predictions."""
SAME_ASSAY, ELSEWHERE, OWN = "same_assay", "elsewhere", "own_"


def attribute(
    ds: xr.Dataset,
    celltype: str | Iterable[str],
    assay: str | Iterable[str],
    region: Any = None,
    *,
    of: Part | None = None,
    steps: int = 16,
    tolerance: float = 5e-4,
    baseline: Literal["zero", "mean"] | None = None,
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Take predictions apart: what each component that the model reads adds to them, by integrated gradients.

    The gradient of the prediction is averaged along the straight way from a baseline to what the model reads here, and multiplied by the
    way. Attributions then add up to the prediction less the prediction at the baseline, but for the error of averaging over points,
    which is given for each bin. Where it exceeds ``tolerance``, the stretches of the way that it comes from get more points, up to 512.

    A model with a context term imputes with that term, and the factors beside it are another network with predictions of its own: ``of``
    says which of the two is taken apart. Lazy: nothing is computed until it is asked for; a chunk of up to 8,192 bins then takes some 200
    MB, and the time of some hundred predictions.

    Parameters
    ----------
    ds
        A fitted cube.
    celltype, assay
        A label or several; each label given as such is no dim of what comes back.
    region
        A region string, PyRanges, frame or BED file; by default the whole cube. The context term reads out to the ends of the
        5-kbp bins that hold it.
    of
        ``"context"`` or ``"factors"``; by default the part that imputes.
    steps
        Points at which the gradient is taken at first.
    tolerance
        Error of completeness above which a bin gets more points, as a fraction of the range of the predictions that are computed
        together, those at the baseline among them.
    baseline
        Where the way starts. For factors ``"zero"`` (by default): all factors 0; or ``"mean"``: those of the mean cell type, the mean
        assay and the mean of all genome bins of the cube, which are read for it. For the context term ``"mean"`` (by default): every track
        at its own mean, which is 0 in the units it is read in; or ``"zero"``: no signal anywhere. Which tracks there are stays as it is.
    device
        Where to compute; by default the fastest at hand.

    Returns
    -------
    A dataset along the region's bins: ``attribution`` (celltype x assay x component x position, float32, in the units of the cube),
    ``prediction``, ``baseline`` (the prediction there), ``completeness_error`` (what attributions and baseline add up to, less the
    prediction) and, where the cube has it, ``signal``. ``attribution.to_dataset("component")`` has a variable a component.

    Components of the factors are named as the variables that hold them: ``celltype_factors``, ``assay_factors``,
    ``genome_factors_25bp``, …, and ``average`` where the model adds average activity. Those of the context term: ``average``, average
    activity, to which the term adds a correction; and of that correction ``same_assay``, what is read from the tracks of the assay in
    other cell types; ``own_X``, from assay X of the cell type itself; ``elsewhere``, from other assays of other cell types.

    Raises
    ------
    CubeError
        Where the cube is not fitted, has no context term to take apart, or a label is not on it; or where some pairs were learnt by fit
        and others by ``extend``, which are imputed from different tracks.
    ValueError
        Where ``of``, ``baseline`` or ``steps`` is none of these.

    References
    ----------
    Sundararajan et al. 2017, arXiv:1703.01365. Schreiber et al. 2020, figure 5, has the factors' part; whether from the same
    baseline we could not check. ``xr_avocado.plot.attributions`` draws it.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> parts = fitted.avocado.attribute("C1", "H3K4me3", "chr1:10kb-12kb").compute()
    >>> parts.attribution.component.values.tolist()
    ['celltype_factors', 'assay_factors', 'genome_factors_25bp', 'genome_factors_250bp', 'genome_factors_5kbp']
    >>> bool(abs(parts.completeness_error).max() < 1e-3 * parts.prediction.max())
    True
    """
    explained = _explained(ds, celltype, assay, of, steps, tolerance, baseline, device)
    here = select(ds[[name for name in (OBSERVED, SIGNAL) if name in ds]], region) if region is not None else ds
    bins = bins_of(ds)
    first, last = bins.overlaps(*bins_of(here).segments.to_numpy(object).T)
    runs = [slice(i, min(i + POSITIONS, b)) for a, b in zip(first, last, strict=True) for i in range(a, b, POSITIONS)]
    return _labelled(ds, here, explained, explained.lazy(runs), (celltype, assay))


def _explained(
    ds: xr.Dataset,
    celltype: Any,
    assay: Any,
    of: str | None,
    steps: int,
    tolerance: float,
    baseline: str | None,
    device: Any,
) -> _Explained:
    from xr_avocado.model.config import Config
    from xr_avocado.model.training import device_named

    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    config = Config.from_attrs(ds.attrs[FITTED]["config"])
    of = ("context" if config.context else "factors") if of is None else of
    if of not in ("factors", "context"):
        raise ValueError(f"of is 'factors' or 'context'; got {of!r}")
    if of == "context" and not config.context:
        raise CubeError("this model has no context term; take its factors apart with of='factors'")
    if baseline not in (None, "zero", "mean"):
        raise ValueError(f"baseline is 'zero' or 'mean'; got {baseline!r}")
    steps = check_whole("steps", steps)
    if tolerance != np.inf:
        check_number("tolerance", tolerance)
    if not tolerance > 0:
        raise ValueError(f"tolerance is a fraction of the range, above 0; got {tolerance!r}")
    check_bins(ds, "take apart")
    labels = [[x] if isinstance(x, str) else list(dict.fromkeys(map(str, x))) for x in (celltype, assay)]
    kind = _Context if of == "context" else _Factors
    ds = _as_imputed(ds, labels) if of == "context" or config.average else ds
    return kind(ds, labels, config, (steps, float(tolerance)), baseline, str(device_named(device)))


def _as_imputed(ds: xr.Dataset, labels: list[list[str]]) -> xr.Dataset:
    """Cut an extended cube to what `impute` reads for these pairs: the labels that the model knew when it learnt them."""
    celltype, assay = generations_of(ds)
    rows = [label_rows(ds, dim, of) for dim, of in zip((CELLTYPE, ASSAY), labels, strict=True)]
    numbers = np.unique(np.maximum.outer(celltype[rows[0]], assay[rows[1]]))
    if len(numbers) > 1:
        raise CubeError(
            f"{', '.join(labels[0])} and {', '.join(labels[1])} were not all learnt at one time (some by extend), and what was learnt later "
            "is imputed from more tracks; take apart those of one time in a call"
        )
    return as_known_to(ds, int(numbers[0])) if len(numbers) else ds


def _labelled(
    ds: xr.Dataset, here: xr.Dataset, explained: _Explained, parts: da.Array, asked: tuple[Any, Any]
) -> xr.Dataset:
    """Name the parts, and put what was observed beside them."""
    celltypes, assays = explained.labels
    dims, components = (CELLTYPE, ASSAY, COMPONENT, POSITION), explained.components
    units = {"transform": ds.attrs.get("transform", "none")}
    out = here[[name for name in (OBSERVED, SIGNAL) if name in here]].sel({CELLTYPE: celltypes, ASSAY: assays})
    values, prediction, baseline = parts[:, :, :-2], parts[:, :, -2], parts[:, :, -1]
    out = out.assign_coords({COMPONENT: components}).assign(
        attribution=(dims, values, {"long_name": "attribution", **units}),
        prediction=((CELLTYPE, ASSAY, POSITION), prediction, {"long_name": "prediction", **units}),
        baseline=((CELLTYPE, ASSAY, POSITION), baseline, {"long_name": "prediction at the baseline", **units}),
        completeness_error=((CELLTYPE, ASSAY, POSITION), values.sum(2) + baseline - prediction),
    )
    out.attrs = {key: value for key, value in out.attrs.items() if key != FITTED} | {"attribution": explained.about}
    chosen = {dim: label for dim, label in zip((CELLTYPE, ASSAY), asked, strict=True) if isinstance(label, str)}
    return out.sel(chosen) if chosen else out


class _Explained(ABC):
    """A part of a model and the tracks of it that are taken apart; pickles as predictors do, without the network."""

    components: list[str]
    predictor: FactorPredictor | ContextPredictor

    def __init__(
        self, ds: xr.Dataset, labels: list[list[str]], config: Any, steps: tuple[int, float], baseline: Any, device: str
    ):
        self.labels, self.from_mean = labels, baseline == "mean"
        self.steps, self.tolerance = steps
        rows = [label_rows(ds, dim, of) for dim, of in zip((CELLTYPE, ASSAY), labels, strict=True)]
        self.celltype, self.assay = (grid.ravel() for grid in np.meshgrid(*rows, indexing="ij"))
        self.asked = np.zeros((ds.sizes[CELLTYPE], ds.sizes[ASSAY]), bool)
        self.asked[self.celltype, self.assay] = True
        self.about: dict[str, Any] = {
            "steps": self.steps,
            "tolerance": self.tolerance,
            "baseline": "mean" if self.from_mean else "zero",
        }

    @abstractmethod
    def parts(self, rows: slice) -> np.ndarray:
        """Components, prediction and baseline of every track: tracks x parts x positions."""

    def lazy(self, runs: list[slice]) -> da.Array:
        """All runs of rows as one lazy array: celltype x assay x parts x position."""
        head = tuple(len(labels) for labels in self.labels)
        whole = dask.delayed(self, traverse=False, pure=False)
        n = len(self.components) + 2
        blocks = [
            da.from_delayed(whole.by_labels(rows), (*head, n, rows.stop - rows.start), np.float32) for rows in runs
        ]
        return da.concatenate(blocks, axis=3)

    def by_labels(self, rows: slice) -> np.ndarray:
        """Give the parts of a run of rows as cell type x assay x parts x position."""
        return self.parts(rows).reshape(*(len(labels) for labels in self.labels), -1, rows.stop - rows.start)


class _Factors(_Explained):
    """The network on the factors, and average activity where the model adds it."""

    predictor: FactorPredictor

    def __init__(
        self, ds: xr.Dataset, labels: list[list[str]], config: Any, steps: tuple[int, float], baseline: Any, device: str
    ):
        super().__init__(ds, labels, config, steps, baseline, device)
        self.predictor = FactorPredictor(ds, self.asked, config, device)
        binsize = bins_of(ds).binsize
        widths = [binsize * scale for scale in config.scales]
        names = [CELLTYPE_FACTORS, ASSAY_FACTORS, *map(genome_factors, widths)]
        dims = [CELLTYPE, ASSAY, *(position_dim(bp, binsize) for bp in widths)]
        means = [
            ds[name].mean(dim) if self.from_mean else ds[name].isel({dim: 0}) * 0
            for name, dim in zip(names, dims, strict=True)
        ]
        self.baseline = [np.asarray(mean.values, np.float32) for mean in means]
        self.components = [*names, AVERAGE] if config.average else names
        self.about["of"] = "factors"

    def parts(self, rows: slice) -> np.ndarray:
        from xr_avocado.model.attribution import attribute_factors

        parts = attribute_factors(
            self.predictor.net,
            *self.predictor.factors_at(rows),
            self.baseline,
            self.celltype,
            self.assay,
            steps=self.steps,
            tolerance=self.tolerance,
        )
        if AVERAGE not in self.components:
            return parts
        average = self.predictor.average(self.celltype, self.assay, rows)
        parts[:, -2] += average
        return np.insert(parts, len(self.components) - 1, average, axis=1)


class _Context(_Explained):
    """The context term: average activity, and a correction read from the other tracks."""

    predictor: ContextPredictor

    def __init__(
        self, ds: xr.Dataset, labels: list[list[str]], config: Any, steps: tuple[int, float], baseline: Any, device: str
    ):
        super().__init__(ds, labels, config, steps, baseline or "mean", device)
        self.predictor = ContextPredictor(ds, self.asked, config, device)
        own = [a for a in range(ds.sizes[ASSAY]) if self._is_read(a)]
        self.components = [AVERAGE, SAME_ASSAY, ELSEWHERE, *(f"{OWN}{ds[ASSAY].values[a]}" for a in own)]
        self.source = np.stack([self._sources(c, a, own) for c, a in zip(self.celltype, self.assay, strict=True)])
        self.about["of"] = "context"

    def _is_read(self, a: int) -> bool:
        """Whether an assay of an own cell type is read for any of the tracks: it was observed, and is not the target itself."""
        return any(self.predictor.observed[c, a] and b != a for c, b in zip(self.celltype, self.assay, strict=True))

    def _sources(self, celltype: int, assay: int, own: list[int]) -> np.ndarray:
        """Number the source that each cell of the model's panel is for a track."""
        source = np.full((self.predictor.asked.shape[0], self.predictor.n_assays), 1)
        source[:, self.predictor.model_assay[assay]] = 0
        for number, a in enumerate(own, start=2):
            if a != assay:
                source[celltype, self.predictor.model_assay[a]] = number
        return source.ravel()

    def parts(self, rows: slice) -> np.ndarray:
        from xr_avocado.model.attribution import attribute_context

        cells = np.nonzero(self.predictor.observed)
        of_model = cells[0] * self.predictor.n_assays + self.predictor.model_assay[cells[1]]
        levels, at = self.predictor.levels(*self.predictor.tracks_around(rows), rows)
        return attribute_context(
            self.predictor.net,
            levels,
            at,
            of_model,
            self.celltype,
            self.predictor.model_assay[self.assay],
            source=self.source,
            n_sources=len(self.components) - 1,
            from_mean=self.from_mean,
            steps=self.steps,
            tolerance=self.tolerance,
        )


def attribution_by_peaks(
    ds: xr.Dataset,
    assay: str,
    *,
    peaks: Any,
    celltype: str | Iterable[str] | None = None,
    of: Part | None = None,
    steps: int = 32,
    baseline: Literal["zero", "mean"] | None = None,
    blocks: int = 50,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Average attributions by how many cell types share a peak, where a cell type has it and where it has not.

    The systematic form of figure 5: a peak of all cell types can be foretold from the position alone, one of few only from the cell type
    too. Bins under a peak of any cell type count, as in `variable_loci`, in a random draw of the 5-kbp blocks that hold one.

    Memory: a block at a time.

    Parameters
    ----------
    ds, of, steps, baseline, device
        As in `attribute`; all bins have the same number of points, whose errors cancel in a mean.
    assay
        An assay.
    peaks
        Peaks called on observed tracks: a frame with the columns celltype and assay, or a mapping from ``(celltype,
        assay)`` to a track's intervals.
    celltype
        The cell types whose predictions are taken apart; by default all that have peaks of the assay, which count in any case.
    blocks
        Blocks drawn, at most.
    seed
        Fixes the draw.
    progress
        Show a progress bar.

    Returns
    -------
    A frame of assay, celltypes (with a peak at the bin), peak (bool: whether the cell type itself has it), component, bins (of all cell
    types that have the component) and attribution (mean); prediction, baseline and, for a cube with signal, signal are among the components.

    Raises
    ------
    CubeError
        Where no cell type has peaks of the assay on this cube.

    Examples
    --------
    >>> import pandas as pd, xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> peaks = pd.DataFrame(
    ...     {
    ...         "chrom": "chr1",
    ...         "start": [50_000, 51_000],
    ...         "end": [52_000, 53_000],
    ...         "celltype": ["C1", "C2"],
    ...         "assay": "DNase",
    ...     }
    ... )
    >>> table = fitted.avocado.attribution_by_peaks("DNase", peaks=peaks, steps=8, progress=False)
    >>> table[table.component == "prediction"][["celltypes", "peak", "bins"]].values.tolist()
    [[1, False, 80], [1, True, 80], [2, True, 80]]
    """
    called, bins = Peaks(peaks), bins_of(check_cube(ds))
    known = [c for c in called.celltypes(assay) if c in ds[CELLTYPE].values]
    if not known:
        raise CubeError(f"no cell type of this cube has peaks of {assay!r}; give them as peaks=")
    wanted = known if celltype is None else ds[CELLTYPE].values[label_rows(ds, CELLTYPE, celltype)].tolist()
    if not wanted:
        raise CubeError(f"celltype is empty: name one of those with peaks of {assay!r}, or leave it out")
    if missing := [c for c in wanted if c not in known]:
        raise CubeError(f"{missing[0]} has no peaks of {assay!r}: they say where it has one and where not")
    blocks, seed = check_whole("blocks", blocks), check_whole("seed", seed, least=0)
    explained = _explained(ds, wanted, [assay], of, steps, np.inf, baseline, device)
    spans = {c: called.rows(bins, Experiment(c, assay)) for c in known}
    names = [*explained.components, "prediction", "baseline", *([SIGNAL] if SIGNAL in ds else [])]
    sums, counts = np.zeros((2, len(names), 2 * len(known) + 2))
    for rows in tqdm(_drawn(bins, spans.values(), blocks, seed), desc="attribute", unit="block", disable=not progress):
        cover = {c: spans[c].cover(rows) > 0 for c in known}
        shared = np.sum(list(cover.values()), axis=0)
        parts = list(explained.parts(rows))
        if SIGNAL in ds:
            own = ds[SIGNAL].sel({CELLTYPE: wanted, ASSAY: assay}).isel({POSITION: rows})
            parts = [np.vstack([p, s]) for p, s in zip(parts, own.transpose(CELLTYPE, POSITION).values, strict=True)]
        for c, values in zip(wanted, parts, strict=True):
            group, size = 2 * shared + cover[c], sums.shape[1]
            sums += [np.bincount(group, np.nan_to_num(v), minlength=size) for v in values]
            # A cell type whose track was not observed has no signal to count.
            counts += [np.bincount(group, ~np.isnan(v), minlength=size) for v in values]
    return _by_peaks(assay, names, sums.reshape(len(names), -1, 2), counts.reshape(len(names), -1, 2))


def _drawn(bins: GenomeBins, spans: Iterable[Spans], blocks: int, seed: int) -> list[slice]:
    """Draw blocks of 200 bins (5 kbp of 25 bp) that hold a peak."""
    wide = bins.coarsen(200)
    held = np.unique(np.concatenate([_blocks_under(bins, wide, under) for under in spans]))
    if not len(held):
        raise CubeError("no peak lies on this cube: are the chromosomes named the same, and is it the same assembly?")
    chosen = np.sort(np.random.default_rng(seed).permutation(held)[:blocks])
    first, last = bins.overlaps(*wide.at(chosen))
    return [slice(int(a), int(b)) for a, b in zip(first, last, strict=True)]


def _blocks_under(bins: GenomeBins, wide: GenomeBins, spans: Spans) -> np.ndarray:
    chrom, start, _ = bins.at(spans.first)
    _, _, end = bins.at(spans.last - 1)
    return every_row(*wide.overlaps(chrom, start, end))


def _by_peaks(assay: str, names: list[str], sums: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    with np.errstate(invalid="ignore"):
        means = sums / counts
    rows = [
        (assay, k, bool(peak), name, int(counts[i, k, peak]), means[i, k, peak])
        for k, peak in np.argwhere(counts[0] > 0).tolist()
        if k
        for i, name in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=[ASSAY, "celltypes", "peak", COMPONENT, "bins", "attribution"])
