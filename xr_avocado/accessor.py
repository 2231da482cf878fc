"""The accessor ``ds.avocado``: every method is the verb of that name, called on the dataset."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import xarray as xr

from xr_avocado import (
    attribute,
    attribution_by_peaks,
    baselines,
    calibrate,
    cube,
    embed,
    evaluate,
    extend,
    fit,
    impute,
    index,
    interval,
    loci,
    normalize,
    plot,
    qc,
    report,
    search,
    segment,
    summary,
    weights,
)
from xr_avocado.genome import GenomeBins
from xr_avocado.io import chromhmm, export, zarr

__all__ = ["AvocadoAccessor"]

P = ParamSpec("P")
R = TypeVar("R")


def _verb(function: Callable[Concatenate[xr.Dataset, P], R]) -> Callable[Concatenate[AvocadoAccessor, P], R]:
    @wraps(function)
    def method(self: AvocadoAccessor, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self._ds, *args, **kwargs)

    signature = inspect.signature(function)
    _, *others = signature.parameters.values()
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(parameters=[self_parameter, *others])  # type: ignore[attr-defined]
    return method


class Figures:
    """Figures of a dataset, as ``ds.avocado.plot``: the functions of `xr_avocado.plot`, and three that compute their table first."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    tracks = _verb(plot.tracks)
    attributions = _verb(plot.attributions)
    embedding = _verb(plot.embedding)
    history = _verb(plot.history)
    panel = _verb(plot.panel)

    def qc(self, *, axes: Any = None, **options: Any) -> Any:
        """Check the observed tracks (options as `qc` has them) and draw what was found."""
        return plot.qc(qc.qc(self._ds, **options), axes=axes)

    def scores(self, truth: xr.Dataset | None = None, *, axes: Any = None, **options: Any) -> Any:
        """Score against truth (options as `evaluate` has them) and draw the scores."""
        return plot.scores(evaluate.evaluate(self._ds, truth, **options), axes=axes)

    def loci(self, truth: xr.Dataset | None = None, **options: Any) -> Any:
        """Score by how many cell types share a peak (options as `variable_loci` has them) and draw the scores."""
        return plot.loci(loci.variable_loci(self._ds, truth, **options))


@xr.register_dataset_accessor("avocado")
class AvocadoAccessor:
    """Verbs on a cube of epigenomic signal; each returns a new object, so they chain.

    - Choose: ``sel`` a region, ``coarsen`` the bins, ``hold_out`` experiments.
    - Check what was observed: ``qc``; bring a mark's tracks to one scale with ``normalize``, and back with ``denormalize``.
    - Model: ``fit``; ``extend`` by cell types, assays and positions; ``search`` for settings.
    - Impute: ``impute`` tracks; ``calibrate`` their errors, and the ``interval`` that follows; ``average`` activity to compare.
    - Score: ``evaluate`` against truth, ``cross_validate``, ``variable_loci``, ``relationships`` between marks.
    - Understand: ``embed`` bins, cell types and assays, ``attribute`` predictions, ``attribution_by_peaks``, ``segment`` the genome.
    - Write: ``to_zarr``, ``to_bigwig``, ``to_keras``, ``to_chromhmm``; ``to_anndata`` for scanpy; a ``report`` for people.
    - Look: ``experiments`` that were run, ``bins`` of the genome axis, and figures as ``plot.tracks``, ``plot.attributions`` and so on.

    ``ds.avocado`` by itself shows what the cube holds.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def __repr__(self) -> str:
        return summary.as_text(self._ds)

    def _repr_html_(self) -> str:
        return summary.as_html(self._ds)

    sel = _verb(index.select)
    coarsen = _verb(index.coarsen)
    hold_out = _verb(cube.hold_out)
    average = _verb(baselines.add_average)
    fit = _verb(fit.fit)
    impute = _verb(impute.impute)
    extend = _verb(extend.extend)
    calibrate = _verb(calibrate.calibrate)
    interval = _verb(interval.interval)
    to_anndata = _verb(embed.to_anndata)
    embed = _verb(embed.embed)
    segment = _verb(segment.segment)
    attribution_by_peaks = _verb(attribution_by_peaks.attribution_by_peaks)
    attribute = _verb(attribute.attribute)
    qc = _verb(qc.qc)
    denormalize = _verb(normalize.denormalize)
    normalize = _verb(normalize.normalize)
    # Within the class body, `evaluate` is the module up to the line that names the method.
    cross_validate = _verb(evaluate.cross_validate)
    evaluate = _verb(evaluate.evaluate)
    variable_loci = _verb(loci.variable_loci)
    relationships = _verb(loci.relationships)
    search = _verb(search.search)
    report = _verb(report.report)
    to_zarr = _verb(zarr.to_zarr)
    to_bigwig = _verb(export.to_bigwig)
    to_chromhmm = _verb(chromhmm.to_chromhmm)
    to_keras = _verb(weights.to_keras)

    @property
    def experiments(self) -> list[cube.Experiment]:
        """The experiments that were run, cell type by cell type.

        Examples
        --------
        >>> import xr_avocado as xa
        >>> xa.datasets.simulate(n_celltypes=2, n_assays=1).avocado.experiments
        [Experiment(celltype='C1', assay='H3K4me3'), Experiment(celltype='C2', assay='H3K4me3')]
        """
        return cube.experiments(self._ds)

    @property
    def bins(self) -> GenomeBins:
        """The genome axis: its segments and bin size.

        Examples
        --------
        >>> import xr_avocado as xa
        >>> xa.datasets.simulate(n_celltypes=2, n_assays=1).avocado.bins.chroms
        ('chr1', 'chr2')
        """
        return index.bins_of(self._ds)

    @property
    def plot(self) -> Figures:
        """The figures of the dataset.

        Examples
        --------
        >>> import xr_avocado as xa
        >>> ax = xa.datasets.simulate().avocado.plot.panel()
        >>> ax.get_title(loc="left")
        '48 of 48 experiments were run'
        """
        return Figures(self._ds)
