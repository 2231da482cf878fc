"""Divide the rows of a downstream task into folds: shuffled as the paper did, or with what belongs together kept together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

__all__ = ["PAIR", "Split", "connected_pairs", "deal_groups", "deal_rows", "splits"]

logger = logging.getLogger("xr_avocado")

PAIR = ("chrom1", "start1", "end1", "chrom2", "start2", "end2")
"""Columns of a table of pairs, as BEDPE has them."""


class Split(NamedTuple):
    """One division of the rows: what to train on, what to stop early by (may be empty), and what to score."""

    repeat: int
    fold: int
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def splits(
    n: int, folds: int, *, repeats: int = 1, groups: np.ndarray | None = None, validation: bool = True, seed: int = 0
) -> Iterator[Split]:
    """Let each fold be the test rows once, the next one the validation rows, and the others the training rows; all repeatedly.

    Without ``validation`` that fold is trained on too. With ``groups`` (a label a row) there are as many folds as groups, at most.
    """
    for repeat in range(repeats):
        dealt = (
            deal_rows(n, folds, seed=seed + repeat)
            if groups is None
            else deal_groups(groups, folds, seed=seed + repeat)
        )
        for i, test in enumerate(dealt):
            after = (i + 1) % len(dealt) if validation else i
            train = np.concatenate([test[:0], *(rows for j, rows in enumerate(dealt) if j not in (i, after))])
            yield Split(repeat, i, train, dealt[after] if validation else test[:0], test)


def deal_rows(n: int, folds: int, *, seed: int = 0) -> list[np.ndarray]:
    """Shuffle n rows once and deal them out: fold i has every ``folds``-th of them, from the i-th.

    The shuffle is that of numpy's older generator (``numpy.random.seed(seed)``), which the reference values were computed with.

    Examples
    --------
    >>> [rows.tolist() for rows in deal_rows(5, 2)]
    [[2, 1, 4], [0, 3]]
    """
    if not 2 <= folds <= n:
        raise ValueError(f"folds must be from 2 to the {n:,} rows; got {folds}")
    rows = np.random.RandomState(seed).permutation(n)
    return [rows[i::folds] for i in range(folds)]


def deal_groups(groups: Any, folds: int, *, seed: int = 0) -> list[np.ndarray]:
    """Deal whole groups of rows out, the largest first, each to the fold with the fewest rows so far; equal ones in random order.

    With fewer groups than ``folds`` each group is a fold.

    Examples
    --------
    >>> [rows.tolist() for rows in deal_groups(["chr1", "chr1", "chr1", "chr2", "chr3"], 2)]
    [[0, 1, 2], [3, 4]]
    """
    _, group, size = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
    if not 2 <= folds <= len(group):
        raise ValueError(f"folds must be from 2 to the {len(group):,} rows; got {folds}")
    if len(size) < 2:
        raise ValueError(
            "all rows are of one group, so there is nothing to score on; give rows of several, or groups=None"
        )
    order = np.random.RandomState(seed).permutation(len(size))
    rows, fold_of = np.zeros(min(folds, len(size)), np.int64), np.empty(len(size), np.int64)
    for each in order[np.argsort(-size[order], kind="stable")]:
        fold_of[each] = rows.argmin()
        rows[fold_of[each]] += size[each]
    if rows.max() > 2 * len(group) / len(rows):
        logger.warning(
            "folds are uneven, since groups are kept whole: the largest has %d of %d rows, and there are %d folds",
            rows.max(),
            len(group),
            len(rows),
        )
    return [np.flatnonzero(fold_of[group] == i) for i in range(len(rows))]


def connected_pairs(pairs: pd.DataFrame) -> np.ndarray:
    """Number the pairs such that those which share an end, directly or through other pairs, have the same number: int64.

    Ends that overlap count as one end, be it the first or the second of its pair: a promoter of one pair is kept together with the same
    promoter in another, and folds of whole numbers never have an end on both sides of a split.

    Examples
    --------
    >>> ends = {"chrom1": "chr1", "start1": [0, 0, 500], "end1": [100, 100, 600]}
    >>> more = {"chrom2": "chr1", "start2": [1000, 2000, 3000], "end2": [1100, 2100, 3100]}
    >>> connected_pairs(pd.DataFrame({**ends, **more})).tolist()
    [0, 0, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(pairs)
    chrom, start, end = (np.concatenate([pairs[f"{name}{i}"] for i in (1, 2)]) for name in ("chrom", "start", "end"))
    element = _overlapping(chrom, start.astype(np.int64), end.astype(np.int64))
    edges = coo_array((np.ones(n, bool), (element[:n], element[n:])), shape=(2 * n, 2 * n))
    return connected_components(edges, directed=False)[1][element[:n]].astype(np.int64)


def _overlapping(chrom: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Number intervals such that those which overlap, directly or in a chain, have the same number."""
    offset = pd.factorize(chrom)[0].astype(np.int64) << 42
    order = np.argsort(offset + start, kind="stable")
    reach = np.maximum.accumulate((offset + end)[order])
    new = (offset + start)[order][1:] >= reach[:-1]
    numbers = np.empty(len(chrom), np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(new)])[: len(chrom)]
    return numbers
