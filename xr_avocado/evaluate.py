"""evaluate: score imputed tracks against held-out truth, beside the baselines; the measures as plain functions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.annotations import Marks
from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    ERROR_QUANTILES,
    FITTED,
    IMPUTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    Experiment,
    check_cube,
    experiments,
    hold_out,
)
from xr_avocado.folds import folds_of
from xr_avocado.impute import computed_together
from xr_avocado.interval_scores import LEVELS, IntervalScores
from xr_avocado.measures import *  # noqa: F403
from xr_avocado.measures import CONVENTIONS, MEASURES, Convention, check_measures, scores_of
from xr_avocado.methods import (
    Space,
    in_space,
    layers_of,
    read_tracks,
    sources_of,
    tracks_to_score,
    true_layer,
    was_observed,
)
from xr_avocado.pair import Pair, Track
from xr_avocado.pieces import check_room, empty, pieces_of
from xr_avocado.ranking import rank

__all__ = ["cross_validate", "evaluate", "rank", *MEASURES]

logger = logging.getLogger("xr_avocado")

TRUTH = ""
BLOCK = 1 << 16
"""Bins that are dealt out to bootstrap parts at a time."""
BESIDE = 42
"""Bytes a bin of temporary files beside the layers': ranks, copies without NaN, variance, parts and masks."""


def evaluate(
    ds: xr.Dataset,
    truth: xr.Dataset | None = None,
    *,
    tracks: Iterable[Any] | None = None,
    methods: Iterable[str] | Mapping[str, Any] | None = None,
    annotations: Mapping[str, Any] | None = None,
    space: Space = "arcsinh",
    measures: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
    convention: Convention = "avocado",
    bootstraps: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Score imputed tracks against the truth, beside the baselines: one row a track and method.

    A score says something about imputation only for tracks that the method has not seen. So hide some, fit, impute, and
    give the whole cube as the truth:
    ``cube.avocado.hold_out(tracks).avocado.fit().avocado.impute().avocado.evaluate(cube)``. Baselines leave each track
    out of its own prediction; a model cannot, and the column ``trained`` marks the tracks that it was fitted to.

    Memory: under 0.5 GB, however long the axis, beside what the layers take to be computed. Axes of up to 2^22 bins (105
    Mb at 25 bp) are scored in memory, as many tracks at a time as fit 64 MB a method; longer ones piece by piece, with
    one track of each method and what is derived of it in temporary files (in ``TMPDIR``), 35 bytes a bin for two
    methods: 4 GB for a human genome, up to half as much again where bins are missing. Each layer is computed once, the
    imputed tracks of one of up to 256 MB together. No score is approximate. Measured on 121 million bins, one track, two methods, all measures: 0.35 GB.

    Parameters
    ----------
    ds
        A cube with the layers to score.
    truth
        A cube that holds the true tracks; by default ``ds`` itself.
    tracks
        ``(celltype, assay)`` pairs to score. By default those that the truth has and ``ds`` has not; where there are
        none, all that the truth has.
    methods
        Names of layers of ``ds`` and of baselines (average, celltype_average, additive, ridge, cp), or a mapping from
        names of your own to these, to a DataArray, or to a folder of bigWigs imputed elsewhere. By default ``imputed``,
        where ``ds`` has it, and ``average``.
    annotations
        Intervals (PyRanges, frames, BED paths) by kind: ``genes``, with a strand; ``promoters``, by default the 2 kb
        upstream of the genes; ``enhancers``; ``peaks``, with the columns celltype and assay, or as a mapping from
        ``(celltype, assay)`` to a track's own. Measures whose annotation is not given are NaN.
    space
        ``"arcsinh"`` or ``"signal"`` (the track's own units, -log10 p as a rule): what the scores are computed on.
    measures
        Names among ``measures.MEASURES``; by default all.
    levels
        Shares of the truth that intervals of ``imputed`` should hold (see `interval`), to be scored as well: by default 0.5, 0.8 and 0.95
        where the cube is calibrated, else none.
    convention
        ``"avocado"``, ``"challenge"`` or ``"chromimpute"``: how ties, NaN and annotations are counted, see
        `xr_avocado.measures`.
    bootstraps
        Score this many samples of the bins instead of all: each leaves out one part of as many random parts. Adds the
        column ``bootstrap``, which `rank` uses; the challenge had 10.
    seed
        Fixes these parts.
    progress
        Show a progress bar.

    Returns
    -------
    A frame of celltype, assay, method, space, observed (the track was there for the method to see),
    trained (the model was fitted to it), bins (that were scored), one column a measure, NaN where it is undefined, and for each level
    ``coverage80`` (share of the truth in the interval), ``width80`` (mean width) and ``score80`` (interval score: the width, plus
    2 / (1 - level) times how far the truth lies outside; lower is better), in the space that is scored; NaN but for ``imputed``.

    Raises
    ------
    CubeError
        Where a layer is missing, a pair is not on the cubes or not in the truth, the truth or a layer lacks bins of
        ``ds``, or no interval of an annotation is on it.
    ValueError
        Where a method, measure, space or convention is unknown.
    OSError
        Where the disk has no room for the temporary files.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate()
    >>> table = cube.avocado.evaluate(methods=["average"], measures=["mse", "gwcorr"], progress=False)
    >>> list(table.columns[-2:])
    ['mse', 'gwcorr']
    """
    scorer = Scorer(check_measures(measures), space, convention, bootstraps, seed)
    asked = (LEVELS if ERROR_QUANTILES in ds else ()) if levels is None else tuple(levels)
    intervals = IntervalScores(ds, asked, space) if asked else None
    true_cube = check_cube(ds if truth is None else truth, SIGNAL)
    pairs = tracks_to_score(ds, true_cube, tracks)
    sources = sources_of(ds, methods)
    layers = {TRUTH: true_layer(true_cube, ds), **layers_of(ds, sources, pairs)}
    layers = {name: computed_together(layer, pairs) for name, layer in layers.items()}
    marks = Marks(ds, annotations, convention)
    check_room(ds.sizes[POSITION], 4 * len(layers) + BESIDE)
    variances = Variances(true_cube, layers[TRUTH], scorer)
    fitted_to = _fitted_to(ds)
    rows = []
    with tqdm(total=len(pairs) * len(sources), desc="evaluate", unit="track", disable=not progress) as bar:
        for pair, values in read_tracks(layers, _by_assay(pairs), space):
            given = {**marks.of(pair), "variance": variances.of(pair.assay)}
            y = Track(values.pop(TRUTH))
            for method, sample, scores in scorer.scores(y, values, given):
                about = {"method": method, "space": space, OBSERVED: was_observed(ds, pair)}
                about["trained"] = pair in fitted_to and sources[method] is IMPUTED
                if intervals is not None and sources[method] == IMPUTED:
                    scores |= intervals.of(pair, y.values, values[method], scorer.kept(sample, len(y)))
                rows.append({**pair._asdict(), **about, "bootstrap": sample, **scores})
                bar.update(int(sample == max(0, bootstraps - 1)))
            # The files of a long track go before those of the next one come.
            del y, values
    order = {(celltype, assay): i for i, (celltype, assay) in enumerate(pairs)}
    rows.sort(key=lambda row: (order[row[CELLTYPE], row[ASSAY]], list(sources).index(row["method"])))
    columns = [CELLTYPE, ASSAY, "method", "space", OBSERVED, "trained", *scorer.columns]
    return pd.DataFrame(rows, columns=[*columns, *IntervalScores.columns(asked)])


class Scorer:
    """What to compute on each pair of tracks: measures, and samples of the bins."""

    def __init__(self, measures: list[str], space: Space, convention: Convention, bootstraps: int, seed: int) -> None:
        if space not in ("arcsinh", "signal"):
            raise ValueError(f"{space!r} is not a space to score in; choose 'arcsinh' or 'signal'")
        if bootstraps < 0 or bootstraps == 1:
            raise ValueError(f"bootstraps must be 0, for none, or at least 2; got {bootstraps}")
        if convention not in CONVENTIONS:
            raise ValueError(f"{convention!r} is not a convention; choose one of {', '.join(CONVENTIONS)}")
        self.measures, self.space, self.convention, self.bootstraps, self.seed = (
            measures,
            space,
            convention,
            bootstraps,
            seed,
        )
        self._parts: np.ndarray | None = None

    @property
    def columns(self) -> list[str]:
        """Columns of the rows it gives."""
        return [*(["bootstrap"] if self.bootstraps else []), "bins", *self.measures]

    def scores(
        self, y: Track, predictions: Mapping[str, np.ndarray], given: Mapping[str, Any]
    ) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Score each method's prediction of a track once, or once a bootstrap: method, bootstrap and scores."""
        for sample in range(max(1, self.bootstraps)):
            keep = self.kept(sample, len(y))
            for method, p in predictions.items():
                pair = Pair(y, p, convention=self.convention, keep=keep)
                yield method, sample, {"bins": len(pair), **scores_of(pair, self.measures, given)}

    def kept(self, part: int, n: int) -> np.ndarray | None:
        """Mark the bins outside a part; None, for all, where there are no bootstraps."""
        if not self.bootstraps:
            return None
        if self._parts is None:
            self._parts = _random_parts(n, self.bootstraps, self.seed)
        keep = empty(n, bool)
        for rows in pieces_of(n):
            keep[rows] = self._parts[rows] != part
        return keep


def _random_parts(n: int, parts: int, seed: int) -> np.ndarray:
    """Deal bins out to parts of equal size, block by block."""
    rng, part_of = np.random.default_rng(seed), empty(n, np.min_scalar_type(parts))
    for start in range(0, n, BLOCK):
        block = part_of[start : start + BLOCK]
        block[:] = rng.permutation(block.size) % parts
    return part_of


class Variances:
    """Variance of each bin over the true tracks of an assay (ddof 0); one assay's is held at a time."""

    def __init__(self, truth: xr.Dataset, layer: xr.DataArray, scorer: Scorer) -> None:
        self.there, self.layer, self.scorer = experiments(truth), layer, scorer
        self._held: tuple[str, np.ndarray | None] = ("", None)

    def of(self, assay: str) -> np.ndarray | None:
        """Compute the variance of an assay's tracks, reading a piece of one at a time; None where it is not asked for."""
        if "msevar" in self.scorer.measures and self._held[0] != assay:
            tracks = [self.layer.sel(pair._asdict()).variable for pair in self.there if pair.assay == assay]
            variance = empty(self.layer.sizes[POSITION], np.float32)
            for rows in pieces_of(variance.size):
                variance[rows] = self._compute([track[{POSITION: rows}] for track in tracks])
            self._held = (assay, variance)
        return self._held[1]

    def _compute(self, tracks: list[xr.Variable]) -> np.ndarray:
        count, mean, square = np.zeros((3, tracks[0].size))
        for track in tracks:
            y = in_space(track.values, self.layer.attrs["transform"], self.scorer.space).astype(np.float64)
            y = np.nan_to_num(y) if self.scorer.convention == "challenge" else y
            there = ~np.isnan(y)
            count = count + there
            off = np.where(there, y - mean, 0.0)
            mean = mean + off / np.maximum(count, 1)
            square = square + off * np.where(there, y - mean, 0.0)
        return square / np.maximum(count, 1)


def _fitted_to(ds: xr.Dataset) -> set[Experiment]:
    fitted = ds.attrs.get(FITTED, {})
    return {Experiment(*pair) for key in ("trained_on", "validation") for pair in fitted.get(key, ())}


def _by_assay(pairs: list[Experiment]) -> list[Experiment]:
    return sorted(pairs, key=lambda pair: pair.assay)


def cross_validate(
    ds: xr.Dataset,
    folds: Any = "latin",
    *,
    methods: Iterable[str] | Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Hold out experiments fold by fold, fit, impute and score them: how well would this model impute this panel?

    Each fold trains a model from scratch on what is left. Memory is that of `fit` and of `evaluate`.

    Parameters
    ----------
    ds
        A cube.
    folds
        ``"latin"``: as many folds as it takes to hide every track once, each hiding at most one track of every cell
        type and assay. A number of folds, with tracks spread evenly over them. Or the folds themselves: lists of
        ``(celltype, assay)`` pairs. A cell type's or an assay's only track is never hidden, since nothing would be left
        to learn it from.
    methods
        What to score, as `evaluate` takes it; ``imputed`` and ``average`` by default. Without ``imputed`` no model is
        fitted.
    fit
        Options of `fit`, such as ``{"preset": "small", "epochs": 20}``.
    seed
        Fixes the folds, and the model unless ``fit`` has a seed of its own.
    progress
        Show progress bars: one over folds, and those of each fit.
    **options
        Passed on to `evaluate`: annotations, space, measures, levels (each fold is then calibrated as well), convention, bootstraps.

    Returns
    -------
    What `evaluate` returns, with the column ``fold`` (from 1) in front.

    Raises
    ------
    CubeError
        Where a fold is empty, names a track that was not observed, or would hide all tracks of a cell type or an assay.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=3)
    >>> table = cube.avocado.cross_validate(folds=3, methods=["average", "ridge"], measures=["mse"], progress=False)
    >>> table.groupby("fold").size().tolist()
    [8, 8, 8]
    """
    from xr_avocado.calibrate import calibrate
    from xr_avocado.fit import fit as train
    from xr_avocado.fit import options_of
    from xr_avocado.impute import impute

    sources = sources_of(ds, [IMPUTED, "average"] if methods is None else methods)
    chosen = folds_of(ds, folds, seed=seed)
    fits = IMPUTED in sources.values()
    settings = {"seed": seed, "progress": progress, **(options_of(ds, fit) if fits else {})}
    # What is wrong with the options of evaluate is told here, and not after the first fit.
    evaluate(ds, tracks=[], methods=[], seed=seed, progress=False, **{**options, "levels": ()})
    tables = []
    for i, tracks in enumerate(tqdm(chosen, desc="folds", disable=not progress), 1):
        held = hold_out(ds, tracks)
        if fits:
            held = train(held, **settings)
            held = calibrate(held, seed=seed, progress=progress) if options.get("levels") else held
            held = impute(held, tracks=tracks)
        table = evaluate(held, ds, tracks=tracks, methods=sources, seed=seed, progress=False, **options)
        table.insert(0, "fold", i)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
