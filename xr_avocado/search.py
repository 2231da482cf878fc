"""search: try settings of the model on held-out tracks, one after the other, and keep the best."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    IMPUTED,
    SIGNAL,
    CubeError,
    Experiment,
    as_experiments,
    check_cube,
    check_whole,
    experiments,
    hold_out,
)
from xr_avocado.evaluate import evaluate
from xr_avocado.fit import fit as train
from xr_avocado.fit import options_of, resolve_config
from xr_avocado.folds import folds_of
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.impute import impute
from xr_avocado.index import bins_of, select
from xr_avocado.measures import MEASURES, check_measures
from xr_avocado.space import Space
from xr_avocado.study import Interrupted, interruptible, load_optuna, open_study, quiet

if TYPE_CHECKING:
    from xr_avocado.model.config import Config

__all__ = ["Search", "search"]

logger = logging.getLogger("xr_avocado")

FOLDS = 3
"""Folds of a trial, unless they are given."""
BINS = 1 << 17
"""Bins on which a trial is scored, at most; the same in every trial."""
STARTUP = 4
"""Trials that run through all folds before any is pruned, and that importances need."""
AVERAGE_SCORE, ERROR = "average", "error"
SMALLEST: Mapping[str, Any] = {
    "celltype_factors": 1, "assay_factors": 1, "layers": 1, "nodes": 1, "tracks_per_position": 1
}  # fmt: skip
"""Sizes of the factors in a trial of a model with a context term, which imputes without them."""


@dataclass(frozen=True, repr=False)
class Search:
    """What a search found.

    Parameters
    ----------
    measure
        Name of the measure.
    table
        One row a trial: trial (from 0; 0 has the model's own settings, as far as they lie in the space), state
        (``complete``, ``pruned``, ``failed``), folds (that it ran), value (the measure's mean over their tracks),
        average (average activity's on the same tracks), ratio (value / average), seconds, and one column a setting.
    importance
        Share of the variance of the complete trials' values that each setting explains on its own (fANOVA, Hutter et
        al. 2014), the largest first; NaN where fewer than four are complete. Few trials say little of many settings.
    """

    measure: str
    table: pd.DataFrame
    importance: pd.Series
    _best: Config | None = field(default=None)

    @property
    def best(self) -> Config:
        """Configuration of the best complete trial, ready for ``fit(config=)``; an error where none is complete."""
        if self._best is None:
            raise ValueError(
                f"no trial is complete ({len(self.table)} were run): search on; the log says why a trial failed"
            )
        return self._best

    def __repr__(self) -> str:
        counts = self.table["state"].value_counts()
        states = ", ".join(f"{counts[s]} {s}" for s in ("complete", "pruned", "failed") if s in counts) or "none run"
        lines = [f"<Search by {self.measure}: {len(self.table)} trials ({states})>"]
        if self._best is not None:
            row = self.table.to_dict("records")[_best_row(self.table, self.measure)]
            value, ratio, average = (_shown(row[name]) for name in ("value", "ratio", "average"))
            lines.append(f"best is trial {row['trial']}: {value}, {ratio} of average activity's {average}")
            width = max(len(name) for name in self.importance.index)
            lines += [f"    {name:<{width}}  {_shown(row[name])}" for name in row if name in self.importance.index]
        return "\n".join(lines)


def search(
    ds: xr.Dataset,
    trials: int = 20,
    *,
    space: Mapping[str, Any] | None = None,
    folds: Any = None,
    file: str | Path | None = None,
    fit: Mapping[str, Any] | None = None,
    measure: str = "mse",
    seed: int = 0,
    progress: bool = True,
) -> Search:
    """Search for settings of the model that impute held-out tracks of this cube best.

    Each trial hides the tracks of a fold, fits on the rest and scores what it imputes, fold by fold, on the same bins
    (131,072 at most) in arcsinh space. The first trial has the model's own settings, the next nine are drawn at random,
    and later ones near those that did well (optuna's TPE). A trial that is worse after a fold than the median of the
    complete trials was there is pruned. Schreiber et al. 2020 drew settings at random and scored them on the ENCODE
    pilot regions: restrict the cube with ``.avocado.sel`` likewise, since a trial costs a ``fit`` a fold.

    With ``file=`` every step is written down, and the same call goes on where an earlier one was killed: finished
    trials count, and the one that was running is run anew. What is tried is what an undisturbed search would have
    tried. Ctrl-C ends the search and returns what was done.

    Memory: that of ``fit`` for the largest model in the space, and of ``impute`` and ``evaluate`` on 131,072 bins.

    Parameters
    ----------
    ds
        A cube.
    trials
        How many to have in the end, those in the file included; complete, pruned and failed ones (training diverged)
        count.
    space
        Settings of ``Config`` to vary: ``(low, high)``, ``(low, high, "log")``, or a list of choices. The length of the
        genome factors of a scale is ``"genome_factors[0]"``, finest first. Only settings of the part that imputes: with
        a context term, those of the context term. By default see `xr_avocado.space.default_space`.
    folds
        As in ``cross_validate``; by default the first three of ``"latin"``, each of which hides at most one track of
        every cell type and assay. With one fold no trial is pruned.
    file
        Where to keep the search: JSON lines, no pickle. One process at a time writes to it.
    fit
        Options of ``fit`` that are the same in all trials, such as ``{"preset": "paper", "epochs": 20}`` or
        ``{"device": "cuda"}``.
    measure
        What to compare by: any measure that needs no annotation.
    seed
        Fixes the folds, the trials and the models: the same call finds the same.
    progress
        Show a progress bar.

    Returns
    -------
    A `Search`: ``table``, ``importance``, and ``best``, a ``Config`` with the search's own ``epochs`` and samples. See also
    ``plot.search``.

    Raises
    ------
    ImportError
        Where optuna is not installed.
    CubeError
        Where the cube cannot be fitted, a fold is not on it, or the file holds another search.
    ValueError
        Where a setting, a range, an option or the measure is unknown or out of place.

    Notes
    -----
    The best score is the best of many on the same tracks, so it flatters. For a figure to report hide other tracks,
    such as those of the folds that were not used:
    ``ds.avocado.cross_validate(folds_of(ds, seed=seed)[3:], fit={"config": found.best})``.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(3, 3, {"chr1": 50_000})
    >>> space = {"nodes": (4, 32, "log"), "genome_factors[2]": (1, 8), "layers": [1, 2]}
    >>> found = cube.avocado.search(2, space=space, fit={"preset": "small", "epochs": 2}, progress=False)
    >>> found.table[["trial", "state", "folds"]].values.tolist()
    [[0, 'complete', 3], [1, 'complete', 3]]
    >>> fitted = cube.avocado.fit(config=found.best, progress=False)
    """
    optuna = load_optuna()
    trials, seed = check_whole("trials", trials), check_whole("seed", seed, least=0)
    plan = Plan.of(ds, space, folds, fit, measure, seed)
    with quiet(optuna), open_study(optuna, file, plan.direction, plan.to_attrs()) as study:
        try:
            with interruptible():
                _run(optuna, study, plan, trials, progress=progress)
        except (Interrupted, KeyboardInterrupt):
            logger.warning("interrupted after %d trials", len(_finished(study)))
        return _found(optuna, study, plan)


@dataclass(frozen=True)
class Plan:
    """What is the same in all trials."""

    ds: xr.Dataset
    folds: list[list[Experiment]]
    space: Space
    options: Mapping[str, Any]
    measure: str
    seed: int

    @classmethod
    def of(cls, ds: xr.Dataset, space: Any, folds: Any, fit: Mapping[str, Any] | None, measure: str, seed: int) -> Plan:
        """Settle and check everything that a call says."""
        (measure,) = check_measures([measure])
        if MEASURES[measure] not in (None, "variance"):
            usable = [name for name, needs in MEASURES.items() if needs in (None, "variance")]
            raise ValueError(f"{measure!r} needs an annotation; search by one of {', '.join(usable)}")
        there = experiments(check_cube(ds, SIGNAL))
        options = options_of(ds, fit)
        options.pop("progress", None)
        base = resolve_config(len(there), *(options.pop(name, None) for name in ("preset", "config", "epochs")))
        chosen = folds_of(ds, "latin" if folds is None else folds, seed=seed)
        return cls(ds, chosen[:FOLDS] if folds is None else chosen, Space.read(base, space), options, measure, seed)

    @property
    def direction(self) -> str:
        """Tell which way is better, in optuna's word."""
        return "minimize" if self.measure.startswith("mse") else "maximize"

    def score(self, config: Config, tracks: list[Experiment]) -> pd.DataFrame:
        """Hide tracks, fit, impute and score them: one row a track, the model's score and average activity's."""
        if config.context:
            config = config.updated({**SMALLEST, "genome_factors": (1,) * len(config.scales)})
        options = {"seed": self.seed, **self.options}
        fitted = train(hold_out(self.ds, tracks), config=config, progress=False, **options)
        # A context term reads the blocks beside as well.
        around = self._sample(fitted, beside=int(config.context))
        here = self._sample(impute(around, tracks=tracks, device=options.get("device")))
        methods = [IMPUTED, "average"]
        table = evaluate(
            here, self._sample(self.ds), tracks=tracks, methods=methods, measures=[self.measure], progress=False
        )
        return table.pivot(index=[CELLTYPE, ASSAY], columns="method", values=self.measure)[methods]

    def _sample(self, ds: xr.Dataset, *, beside: int = 0) -> xr.Dataset:
        blocks = sample_of(bins_of(self.ds), self.space.base.block, beside=beside)
        return ds if blocks is None else select(ds, blocks)

    def to_attrs(self) -> dict[str, Any]:
        """Give the JSON form that a file keeps: a search goes on with the same one only."""
        bins = bins_of(self.ds)
        segments = json.dumps(bins.segments.values.tolist()).encode()
        others = {k: v for k, v in self.options.items() if k not in ("device", "validation")}
        validation = self.options.get("validation", "auto")
        if validation is not None and not isinstance(validation, str | float | int):
            validation = as_experiments(self.ds, validation)
        record = {
            "cell types": [str(label) for label in self.ds[CELLTYPE].values],
            "assays": [str(label) for label in self.ds[ASSAY].values],
            "experiments": [list(pair) for pair in experiments(self.ds)],
            "bins": f"{len(bins):,} bins of {bins.binsize} bp, {hashlib.sha256(segments).hexdigest()[:12]}",
            "transform": self.ds.attrs.get("transform", "none"),
            "folds": [[list(pair) for pair in fold] for fold in self.folds],
            "space": self.space.to_attrs(),
            "model": self.space.base.to_attrs(),
            "options of fit": others | {"validation": validation},
            "measure": self.measure,
            "seed": self.seed,
        }
        return json.loads(json.dumps(record, default=float))


def sample_of(bins: GenomeBins, block: int, *, beside: int = 0) -> pd.DataFrame | None:
    """Choose blocks spread evenly over an axis, as many as have ``BINS`` bins, and some on either side; None where it has no more."""
    if len(bins) <= BINS:
        return None
    coarse = bins.coarsen(block)
    rows = np.linspace(0, len(coarse) - 1, max(1, BINS // block)).astype(int)
    rows = np.unique((rows[:, None] + np.arange(-beside, beside + 1)).clip(0, len(coarse) - 1))
    return pd.DataFrame(dict(zip(("chrom", "start", "end"), coarse.at(rows), strict=True)))


def _run(optuna: ModuleType, study: Any, plan: Plan, trials: int, *, progress: bool) -> None:
    done = len(_finished(study))
    with tqdm(total=trials, initial=min(done, trials), desc="search", unit="trial", disable=not progress) as bar:
        while done < trials:
            trial = _next(optuna, study, plan, done)
            try:
                state, value = _try(trial, study, plan, bar)
            except BaseException:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            study.tell(trial, value, state=optuna.trial.TrialState[state])
            done += 1
            bar.update()


def _next(optuna: ModuleType, study: Any, plan: Plan, done: int) -> Any:
    """Draw a trial from the seed and the trials finished alone, so that a search taken up again draws the same."""
    own = int(np.random.SeedSequence([plan.seed, done]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=own)
    if not done and not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
        study.enqueue_trial(plan.space.start())
    return study.ask(plan.space.distributions())


def _try(trial: Any, study: Any, plan: Plan, bar: tqdm) -> tuple[str, float | None]:
    """Run a trial; return its state in optuna's word, and its value."""
    from torch.cuda import OutOfMemoryError

    scores: list[pd.DataFrame] = []
    value = np.nan
    try:
        config = plan.space.config(trial.params)
        for number, tracks in enumerate(plan.folds, 1):
            bar.set_postfix_str(f"fold {number} of {len(plan.folds)}")
            scores.append(plan.score(config, tracks))
            both = pd.concat(scores).dropna(subset="average")
            value, average = float(both[IMPUTED].mean(skipna=False)), float(both["average"].mean())
            if not np.isfinite(value):
                raise ValueError(f"the {plan.measure} of what it imputes is not finite")
            trial.set_user_attr(AVERAGE_SCORE, average)
            trial.report(value, number)
            if number < len(plan.folds) and _falls_behind(study, plan, number, value):
                return "PRUNED", None
    except (CubeError, GenomeError):
        raise
    except (ValueError, OutOfMemoryError) as error:
        logger.warning("trial with %s failed: %s", plan.space.settings(trial.params), error)
        trial.set_user_attr(ERROR, str(error))
        # To the sampler a failure is a bad trial, where it would pass over one of optuna's state of that name.
        return "PRUNED", None
    return "COMPLETE", value


def _falls_behind(study: Any, plan: Plan, fold: int, value: float) -> bool:
    """Compare with the median at the same fold; optuna's pruner compares a trial's best fold, and folds differ."""
    there = [t.intermediate_values[fold] for t in _finished(study) if t.state.name == "COMPLETE"]
    if len(there) < STARTUP:
        return False
    median = float(np.median(there))
    return value > median if plan.direction == "minimize" else value < median


def _finished(study: Any) -> list[Any]:
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]


def _found(optuna: ModuleType, study: Any, plan: Plan) -> Search:
    names = list(plan.space.ranges)
    finished = _finished(study)
    rows = [_row(i, trial) | plan.space.settings(trial.params) for i, trial in enumerate(finished)]
    table = pd.DataFrame(rows, columns=["trial", "state", "folds", "value", "average", "ratio", "seconds", *names])
    complete = [t for t in finished if t.state.name == "COMPLETE"]
    importance = pd.Series(np.nan, index=names, name="importance")
    if len(complete) >= STARTUP:
        # A forest cannot split what does not vary.
        varies = len({t.value for t in complete}) > 1
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=plan.seed)
        shares = evaluator.evaluate(study, params=names) if varies else dict.fromkeys(names, 0.0)
        importance = pd.Series(shares, name="importance").sort_values(ascending=False, kind="stable")
    best = plan.space.config(finished[_best_row(table, plan.measure)].params) if complete else None
    return Search(plan.measure, table, importance, best)


def _row(number: int, trial: Any) -> dict[str, Any]:
    failed = ERROR in trial.user_attrs
    value = np.nan if failed or trial.value is None else trial.value
    average = trial.user_attrs.get(AVERAGE_SCORE, np.nan)
    return {
        "trial": number,
        "state": "failed" if failed else trial.state.name.lower(),
        "folds": len(trial.intermediate_values),
        "value": value,
        "average": average,
        "ratio": value / average if average else np.nan,
        "seconds": trial.duration.total_seconds(),
    }


def _best_row(table: pd.DataFrame, measure: str) -> int:
    values = table["value"].where(table["state"] == "complete").to_numpy(float)
    return int(np.nanargmin(values) if measure.startswith("mse") else np.nanargmax(values))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
