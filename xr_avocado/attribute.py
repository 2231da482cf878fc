"""attribute: what a prediction is made of, by integrated gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr

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
    check_bins,
    check_cube,
    check_number,
    check_whole,
    genome_factors,
    label_rows,
    position_dim,
)
from xr_avocado.generations import as_known_to, generations_of
from xr_avocado.index import bins_of, select
from xr_avocado.predictors import ContextPredictor, FactorPredictor

if TYPE_CHECKING:
    import torch

__all__ = ["Explained", "Part", "attribute", "explain"]

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
    explained = explain(ds, celltype, assay, of, steps, tolerance, baseline, device)
    here = select(ds[[name for name in (OBSERVED, SIGNAL) if name in ds]], region) if region is not None else ds
    bins = bins_of(ds)
    first, last = bins.overlaps(*bins_of(here).segments.to_numpy(object).T)
    runs = [slice(i, min(i + POSITIONS, b)) for a, b in zip(first, last, strict=True) for i in range(a, b, POSITIONS)]
    return _labelled(ds, here, explained, explained.lazy(runs), (celltype, assay))


def explain(
    ds: xr.Dataset,
    celltype: Any,
    assay: Any,
    of: str | None,
    steps: int,
    tolerance: float,
    baseline: str | None,
    device: Any,
) -> Explained:
    """Check what `attribute` takes, and prepare a part of the model and the tracks of it that are taken apart."""
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
    ds: xr.Dataset, here: xr.Dataset, explained: Explained, parts: da.Array, asked: tuple[Any, Any]
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


class Explained(ABC):
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


class _Factors(Explained):
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


class _Context(Explained):
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
        levels, windows = self.predictor.levels(*self.predictor.tracks_around(rows), rows)
        return attribute_context(
            self.predictor.net,
            levels,
            windows,
            of_model,
            self.celltype,
            self.predictor.model_assay[self.assay],
            source=self.source,
            n_sources=len(self.components) - 1,
            from_mean=self.from_mean,
            steps=self.steps,
            tolerance=self.tolerance,
        )
