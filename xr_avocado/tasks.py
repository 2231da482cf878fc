"""Downstream tasks: how well do tracks or factors foretell expression, replication timing, FIREs or interactions?"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from xr_avocado.cube import check_whole
from xr_avocado.feature_sets import feature_sets, pair_feature_sets
from xr_avocado.task_classifiers import INNER_FOLDS, Convention, Logistic, Trees, device_for
from xr_avocado.task_folds import Split, deal_groups, splits
from xr_avocado.task_labels import expression, fire, interactions, replication_timing
from xr_avocado.task_tables import Rows

__all__ = [
    "compare",
    "cross_validate",
    "expression",
    "feature_sets",
    "fire",
    "interactions",
    "pair_feature_sets",
    "replication_timing",
    "summary",
]

logger = logging.getLogger("xr_avocado")

Task = Literal["expression", "replication_timing", "fire", "interactions"]
TASKS = ("expression", "replication_timing", "fire", "interactions")
MAJORITY = "majority"
"""A guess that is the same for every row: its average precision is the fraction of positive rows."""


def cross_validate(
    features: Mapping[str, Any] | pd.DataFrame | np.ndarray,
    labels: Any,
    *,
    task: Task = "expression",
    folds: int | None = None,
    repeats: int | None = None,
    groups: Any = None,
    convention: Convention = "paper",
    seed: int = 0,
    n_jobs: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Foretell labels from each feature set, fold by fold, with the paper's classifiers: one row a set and fold.

    All sets are scored on the same folds, so that `compare` can test them in pairs, beside a majority baseline. The paper
    deals rows out at random. Neighbours in the genome resemble each other and then lie on both sides of a split, so such scores are too
    good for rows that lie elsewhere; ``groups`` keeps together what belongs together.

    Memory: the tables as float32, and for each fold at work a copy of its rows, and XGBoost's of that.

    Parameters
    ----------
    features
        Tables by name, rows x columns, as `feature_sets` gives them; or one table. NaN is a missing value.
    labels
        One a row: 0 and 1, or bool. Or a frame with a column ``label``, as the label builders give it, whose coordinates are then
        checked against those of the tables. Rows with NaN are left out.
    task
        ``"expression"``, ``"replication_timing"`` and ``"fire"``: XGBoost, at most 5,000 trees of depth 6, early stopping after 20 rounds on
        the fold after the one to score. ``"interactions"``: logistic regression, C chosen of 10 by inner 3-fold cross-validation.
    folds
        How many; by default 20, and 5 for interactions. With fewer groups, one a group.
    repeats
        How often to divide the rows anew; by default once, and 20 times for interactions.
    groups
        What to keep in one fold: None for nothing, as in the paper; ``"chromosome"``; ``"ends"`` for pairs that share an end, directly or
        through other pairs; or a label a row. Inner folds keep it too.
    convention
        ``"paper"``: what the versions of then did (xgboost 0.7: rate 0.1, exact splits, base score 0.5, predictions with all
        trees grown; scikit-learn 0.19: columns as they are, C chosen by accuracy). ``"today"``: xgboost's defaults and the best round;
        columns at unit variance, C chosen by average precision.
    seed
        Fixes the folds.
    n_jobs
        Folds at a time, one thread each; by default one a core.
    device
        ``"cpu"`` or ``"cuda"`` for XGBoost; by default, with the convention of today, CUDA where it is. Exact splits need the CPU.
    progress
        Show a progress bar over sets and folds.

    Returns
    -------
    A frame of task, features (the set's name, and ``"majority"``), columns (how many), convention, groups, repeat, fold, train and
    test (numbers of rows), ``average_precision`` (NaN where no test row is positive), and ``trees`` or ``C``.

    Raises
    ------
    ValueError
        Where tables and labels do not match, labels are not 0 and 1 or all alike, values are infinite, or there are too few groups.

    References
    ----------
    Schreiber et al. 2020, sections 2.3 and 4.6 (doi:10.1186/s13059-020-1977-6).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random(300) < 0.3
    >>> features = {"told": labels[:, None] + rng.normal(size=(300, 2)), "noise": rng.normal(size=(300, 2))}
    >>> table = cross_validate(features, labels, folds=5, progress=False)
    >>> table.groupby("features", sort=False).size().to_dict()
    {'told': 5, 'noise': 5, 'majority': 5}
    """
    classifier = _classifier(task, convention, device, seed)
    seed = check_whole("seed", seed, least=0)
    n_jobs, folds, repeats = (
        None if given is None else check_whole(name, given)
        for name, given in (("n_jobs", n_jobs), ("folds", folds), ("repeats", repeats))
    )
    pairs = task == "interactions"
    rows = Rows.of(features, labels, groups)
    divided = list(
        splits(
            len(rows.y),
            (5 if pairs else 20) if folds is None else folds,
            repeats=(20 if pairs else 1) if repeats is None else repeats,
            groups=rows.groups,
            validation=not pairs,
            seed=seed,
        )
    )
    _check_splits(divided, rows.y)
    jobs = [(name, split) for name in rows.tables for split in divided]
    with ThreadPoolExecutor(n_jobs or _cores()) as pool, _no_word_of_convergence():
        done = pool.map(lambda job: _score(classifier, rows, *job), jobs)
        scored = list(tqdm(done, total=len(jobs), desc=task, unit="fold", disable=not progress))
    table = [
        {"features": name, "columns": rows.tables[name].shape[1], **_sizes(split), **score}
        for (name, split), score in zip(jobs, scored, strict=True)
    ]
    table += [
        {"features": MAJORITY, "columns": 0, **_sizes(split), "average_precision": rows.y[split.test].mean() or np.nan}
        for split in divided
    ]
    kept = groups if isinstance(groups, str) else "none" if groups is None else "given"
    out = pd.DataFrame(table)
    out.insert(0, "task", task)
    out.insert(3, "convention", convention)
    out.insert(4, "groups", kept)
    return out


def _classifier(task: str, convention: Convention, device: str | None, seed: int) -> Trees | Logistic:
    if task not in TASKS:
        raise ValueError(f"task is one of {', '.join(map(repr, TASKS))}; got {task!r}")
    if convention not in ("paper", "today"):
        raise ValueError(f"convention is 'paper' or 'today'; got {convention!r}")
    if task == "interactions":
        return Logistic(convention, seed)
    return Trees(convention, device_for(device, convention), seed)


def _check_splits(divided: list[Split], y: np.ndarray) -> None:
    for split in divided:
        if len(split.train) == 0 or y[split.train].min() == y[split.train].max():
            raise ValueError(
                f"fold {split.fold} leaves {len(split.train):,} rows to train on, with labels all alike; take more folds, at least 3 for "
                "XGBoost, or smaller groups"
            )
    if without := sum(not y[split.test].any() for split in divided):
        logger.warning(
            "%d of %d folds have no positive row to score, and are NaN: take fewer folds", without, len(divided)
        )


def _score(classifier: Trees | Logistic, rows: Rows, name: str, split: Split) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score

    inner = None
    if isinstance(classifier, Logistic) and rows.groups is not None:
        parts = deal_groups(rows.groups[split.train], INNER_FOLDS, seed=classifier.seed)
        inner = [(np.concatenate([*parts[:i], *parts[i + 1 :]]), part) for i, part in enumerate(parts)]
    given, about = classifier.scores(rows.tables[name], rows.y, split.train, split.valid, split.test, inner)
    y = rows.y[split.test]
    return {"average_precision": average_precision_score(y, given) if y.any() else np.nan, **about}


def _sizes(split: Split) -> dict[str, int]:
    return {"repeat": split.repeat, "fold": split.fold, "train": len(split.train), "test": len(split.test)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _no_word_of_convergence() -> Iterator[None]:
    """Some of the 10 values of C are too weak to converge by; they are there to be rejected."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def summary(table: pd.DataFrame, *, by: str | Iterable[str] = ()) -> pd.DataFrame:
    """Average the folds of each feature set: mean average precision and its standard error over folds.

    Parameters
    ----------
    table
        What `cross_validate` returned, or several of these after one another.
    by
        Further columns to keep apart, such as a ``celltype`` that you added.

    Returns
    -------
    One row a task, set and ``by``, in the order of the table: folds (that have a score), ``mean`` and ``se``. Folds share training
    rows, and repeats share all rows, so the standard error is too small, the more so the more repeats.

    Examples
    --------
    >>> folds = pd.DataFrame(
    ...     {"task": "fire", "features": "own", "convention": "paper", "groups": "none"}, index=range(2)
    ... )
    >>> summary(folds.assign(average_precision=[0.25, 0.75]))[["features", "folds", "mean", "se"]].values.tolist()
    [['own', 2, 0.5, 0.25]]
    """
    keys = _keys(table, [*_columns(by), "task", "convention", "groups", "features"])
    grouped = table.groupby(keys, sort=False)["average_precision"]
    return grouped.agg(folds="count", mean="mean", se="sem").reset_index()


def compare(
    table: pd.DataFrame, *, test: Literal["corrected_t", "wilcoxon"] = "corrected_t", by: str | Iterable[str] = ()
) -> pd.DataFrame:
    """Test the feature sets in pairs, over the folds that they were both scored on.

    Parameters
    ----------
    table
        What `cross_validate` returned, or several of these after one another.
    test
        ``"corrected_t"``: a paired t test whose variance allows for training rows that folds share (Nadeau and Bengio 2003,
        doi:10.1023/A:1024068626366). ``"wilcoxon"``: the signed-rank test, which takes folds to be independent and is too sure of itself,
        above all with repeats.
    by
        Further columns to keep apart, such as a ``celltype`` that you added.

    Returns
    -------
    One row a pair of sets: ``a``, ``b``, folds, ``difference`` (mean of a minus b), better (folds in which a is), ``p``, and ``p_holm``,
    corrected after Holm over all rows.

    Raises
    ------
    ValueError
        Where the test is unknown, or there are no two sets to compare.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random(300) < 0.3
    >>> features = {"told": labels[:, None] + rng.normal(size=(300, 2)), "noise": rng.normal(size=(300, 2))}
    >>> tested = compare(cross_validate(features, labels, folds=5, progress=False))
    >>> tested[["a", "b", "better"]].values.tolist()
    [['told', 'noise', 5]]
    """
    if test not in ("corrected_t", "wilcoxon"):
        raise ValueError(f"test is 'corrected_t' or 'wilcoxon'; got {test!r}")
    keys = _keys(table, [*_columns(by), "task", "convention", "groups"])
    found = []
    for key, own in table[table["features"] != MAJORITY].groupby(keys, sort=False):
        folds = own.pivot(index=["repeat", "fold"], columns="features", values="average_precision")
        share = float((own["test"] / own["train"]).mean())
        for a, b in combinations(own["features"].unique(), 2):
            difference = (folds[a] - folds[b]).dropna().to_numpy()
            p = _corrected_t(difference, share) if test == "corrected_t" else _wilcoxon(difference)
            about = {"folds": len(difference), "difference": difference.mean(), "better": int((difference > 0).sum())}
            found.append({**dict(zip(keys, key, strict=True)), "a": a, "b": b, **about, "p": p})
    if not found:
        raise ValueError("there are no two feature sets to compare")
    out = pd.DataFrame(found)
    return out.assign(p_holm=_holm(out["p"].to_numpy()))


def _keys(table: Any, names: list[str]) -> list[str]:
    """Return names of columns; raise where a table of scores lacks one."""
    if missing := [name for name in (*names, "average_precision") if name not in getattr(table, "columns", ())]:
        raise ValueError(f"the table has no column {missing[0]!r}; give the frame that tasks.cross_validate returns")
    return names


def _columns(by: str | Iterable[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _corrected_t(difference: np.ndarray, share: float) -> float:
    from scipy.stats import t

    n = len(difference)
    variance = difference.var(ddof=1) if n > 1 else np.nan
    if not variance > 0:
        return 1.0 if variance == 0 and difference[0] == 0 else np.nan
    return float(2 * t.sf(abs(difference.mean()) / np.sqrt((1 / n + share) * variance), n - 1))


def _wilcoxon(difference: np.ndarray) -> float:
    from scipy.stats import wilcoxon

    return float(wilcoxon(difference).pvalue) if difference.any() else 1.0


def _holm(p: np.ndarray) -> np.ndarray:
    """Correct p values for their number, the smallest first; NaN where one is."""
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return out
