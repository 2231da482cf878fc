"""What a downstream task is given: tables of features, labels and groups, checked against each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xr_avocado.task_folds import PAIR, connected_pairs

__all__ = ["LABEL", "PLACE", "Rows", "with_index"]

logger = logging.getLogger("xr_avocado")

LABEL = "label"
PLACE = ("chrom", "start", "end")


def with_index(table: pd.DataFrame, intervals: pd.DataFrame) -> pd.DataFrame:
    """Name each row of a table by its interval or pair, so that it stays known which row is which."""
    names = PAIR if PAIR[0] in intervals.columns else PLACE
    return table.set_index(pd.MultiIndex.from_frame(intervals[list(names)]))


class Rows(NamedTuple):
    """The rows that have a label: a float32 table a feature set, whether each is positive, and its group."""

    tables: dict[str, np.ndarray]
    y: np.ndarray
    groups: np.ndarray | None

    @classmethod
    def of(cls, features: Any, labels: Any, groups: Any) -> Rows:
        """Check what a user gave.

        Raises
        ------
        ValueError
            Where tables and labels do not match, or hold what no classifier takes.
        """
        sets = dict(features) if isinstance(features, Mapping) else {"features": features}
        if not sets:
            raise ValueError("features names no table: give a table, or a mapping from names to tables")
        tables = {str(name): _values(name, table) for name, table in sets.items()}
        label = _labels(labels)
        for name, table in tables.items():
            if len(table) != len(label):
                raise ValueError(
                    f"there are {len(label):,} labels and {len(table):,} rows of {name!r}: there is one label a row"
                )
        places = _places(sets, labels)
        known = ~np.isnan(label)
        if not known.all():
            logger.warning("%d of %d rows have no label and are left out", (~known).sum(), len(known))
        _check_labels(label[known])
        grouped = _groups(groups, places, len(label))
        return cls(
            {name: table[known] for name, table in tables.items()},
            label[known] == 1,
            None if grouped is None else grouped[known],
        )


def _values(name: Any, table: Any) -> np.ndarray:
    values = np.asarray(table, np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"the table {name!r} is rows x columns, at least one of each; got the shape {values.shape}")
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise ValueError(
            f"the table {name!r} has an infinite value in row {row}, column {column}; NaN is a missing value"
        )
    return values


def _labels(labels: Any) -> np.ndarray:
    if isinstance(labels, pd.DataFrame):
        if LABEL not in labels:
            raise ValueError(
                f"the frame of labels has no column {LABEL!r}; it has {', '.join(map(str, labels.columns))}"
            )
        labels = labels[LABEL]
    try:
        values = pd.Series(labels).to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise ValueError(f"labels are 0 and 1, or bool, one a row; got {str(labels)[:60]!r}") from None
    return values


def _check_labels(label: np.ndarray) -> None:
    if other := sorted(set(np.unique(label)) - {0.0, 1.0}):
        raise ValueError(
            f"labels are 0 and 1, or bool; got {other[0]}. Set a threshold first, as labels = signal >= 0.5 does"
        )
    if not label.size or label.min() == label.max():
        raise ValueError(f"all of the {label.size:,} labels are alike, so there is nothing to tell apart")


def _places(sets: Mapping[str, Any], labels: Any) -> pd.DataFrame | None:
    """Where the rows lie, if anything given says so; all that say so agree."""
    told = {
        f"the table {name!r}": table.index.to_frame(index=False)
        for name, table in sets.items()
        if isinstance(table, pd.DataFrame) and set(table.index.names) in (set(PAIR), set(PLACE))
    }
    for names in (PAIR, PLACE):
        if isinstance(labels, pd.DataFrame) and set(names) <= set(labels.columns):
            told = {"the labels": labels[list(names)].reset_index(drop=True), **told}
            break
    first: tuple[str, pd.DataFrame] | None = None
    for who, places in told.items():
        if first is None:
            first = who, places
            continue
        if set(places.columns) != set(first[1].columns):
            raise ValueError(f"{first[0]} and {who} differ in kind: one has intervals and the other pairs of them")
        if (differ := (places[first[1].columns].to_numpy(object) != first[1].to_numpy(object)).any(axis=1)).any():
            i = int(differ.argmax())
            raise ValueError(
                f"row {i} is {_tell(first[1].iloc[i])} in {first[0]}, and {_tell(places.iloc[i])} in {who}: make all of the "
                "same intervals, in the same order"
            )
    return None if first is None else first[1]


def _tell(row: pd.Series) -> str:
    return " ".join(map(str, row))


def _groups(groups: Any, places: pd.DataFrame | None, n: int) -> np.ndarray | None:
    if groups is None:
        return None
    if not isinstance(groups, str):
        given = np.asarray(groups)
        if given.shape != (n,):
            raise ValueError(f"groups is a label a row, of which there are {n:,}; got the shape {given.shape}")
        return given.astype(str)
    if groups not in ("chromosome", "ends"):
        raise ValueError(f"groups is None, 'chromosome', 'ends' or a label a row; got {groups!r}")
    if places is None:
        raise ValueError(
            f"groups={groups!r} needs to know where rows lie: give tables of feature_sets, or labels as a frame with the columns "
            f"{', '.join(PLACE)}, or a label a row as groups"
        )
    if groups == "chromosome":
        return _chromosomes(places)
    if PAIR[0] not in places:
        raise ValueError(f"groups='ends' is for pairs, with the columns {', '.join(PAIR)}")
    return connected_pairs(places).astype(str)


def _chromosomes(places: pd.DataFrame) -> np.ndarray:
    if "chrom" in places:
        return places["chrom"].to_numpy().astype(str)
    # Pairs across chromosomes tie these together.
    whole = places.assign(start1=0, start2=0, end1=1, end2=1)
    return connected_pairs(whole).astype(str)
