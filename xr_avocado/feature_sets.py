"""feature_sets: the tracks and factors of intervals, as the tables that the paper compares in its downstream tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.aggregate import QUANTILES, Aggregation, Anchor, Windows, aggregate, check_aggregation
from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    CELLTYPE_FACTORS,
    DIMS,
    FITTED,
    IMPUTED,
    IMPUTED_TRACKS,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    as_experiments,
    check_cube,
    check_known,
    experiments,
    hold_out,
)
from xr_avocado.embed import interval_table, share_covered
from xr_avocado.genome import GenomeBins
from xr_avocado.impute import impute
from xr_avocado.index import bins_of
from xr_avocado.intervals import as_frame
from xr_avocado.methods import aligned, layers_of
from xr_avocado.task_folds import PAIR
from xr_avocado.task_tables import PLACE, with_index

__all__ = ["feature_sets", "pair_feature_sets"]

logger = logging.getLogger("xr_avocado")

OWN, FACTORS, ALL = "own", "factors", "all"
SETS = (OWN, IMPUTED, FACTORS, ALL)
TOGETHER = 128
"""Tracks read at once: 128 MB for the 2^18 bins that intervals are worked on in."""


def feature_sets(
    ds: xr.Dataset,
    regions: Any,
    *,
    celltype: str,
    sets: Iterable[str] | None = None,
    others: Mapping[str, Any] | None = None,
    without: Iterable[Any] = (),
    agg: Aggregation = "mean",
    anchor: Anchor | None = None,
    flank: int | tuple[int, int] = 0,
    windows: int | None = None,
    scales: int | Sequence[int] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Make the paper's sets of features of intervals for a cell type: its own tracks, imputed ones, factors, and all tracks.

    The question that they answer is whether factors can stand in for a thousand tracks: give them to
    ``xr_avocado.tasks.cross_validate`` with a label an interval. Values are in the cube's transformed units, and aggregated in all sets
    alike, as `embed` aggregates factors.

    Memory: the tables, and while one is made 0.3 GB, or the tracks over the longest interval where that is longer than 6 Mb.
    Lazy tracks are read, and imputed ones computed, chunk by chunk, under the intervals alone.

    Parameters
    ----------
    ds
        A cube, fitted for imputed tracks and factors.
    regions
        PyRanges, a frame or a BED file: genes, bins of 40 kb. A frame of labels will do.
    celltype
        Whose tracks are its own, and are imputed.
    sets
        Which to make, of those below; by default all that the cube has.
    others
        What other methods made, by name: tracks, as a layer (cell type x assay x position), the name of one or of a baseline, or a folder
        of bigWigs, in all of which the cell type has the assays of ``imputed``; or factors, as a fitted cube, a DataArray of position x factor, or a table with one row an interval.
    without
        What labels were made of: assays (of all cell types), or ``(celltype, assay)`` pairs. No set has these tracks, imputed or observed,
        and none is imputed from them (a cube in memory is copied for that). A model that was fitted to them still knows them, which a
        warning says.
    agg, anchor, flank, windows, scales
        As for `embed`, e.g. ``anchor="start", flank=(2000, 0), windows=8`` for the paper's promoters. A cube's bins wider than a window
        count once an interval; ``scales`` is for factors.
    device
        Where to impute.
    progress
        Show a progress bar over sets.

    Returns
    -------
    Tables by name, one row an interval in the order of ``regions``, whose index is chrom, start, end; one float32 column a track or
    factor (times windows, times quantiles):

    - ``own``: the observed tracks of the cell type.
    - ``imputed``: its imputed tracks, of every assay; from the layer ``imputed`` where the cube has it, or else from its model.
    - ``others``, in the order given.
    - ``factors``: the genome's, which are the same for every cell type.
    - ``all``: every observed track of every cell type.

    Bins without a value are left out of means, and make other aggregates NaN. So does an interval off the cube; a warning says how many.

    Raises
    ------
    CubeError
        Where a label is unknown, a set asked for cannot be made, or intervals do not suit the options.
    GenomeError
        Where no interval overlaps the cube.

    References
    ----------
    Schreiber et al. 2020, section 4.6 (doi:10.1186/s13059-020-1977-6).

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=4)
    >>> genes = pd.DataFrame(
    ...     {"chrom": "chr1", "start": [10_000, 90_000], "end": [20_000, 95_000], "strand": ["+", "-"]}
    ... )
    >>> sets = xa.tasks.feature_sets(
    ...     cube, genes, celltype="C1", anchor="start", flank=(2000, 0), windows=2, progress=False
    ... )
    >>> {name: table.shape for name, table in sets.items()}
    {'own': (2, 8), 'all': (2, 32)}
    >>> sets["own"].columns[:2].tolist()
    ['H3K4me3_w0', 'H3K27ac_w0']
    """
    check_cube(ds)
    check_known(CELLTYPE, [celltype], ds[CELLTYPE].values)
    check_aggregation(agg)
    intervals = as_frame(regions, sizes=ds.attrs.get("chromsizes"))
    place = intervals[[*PLACE, *(["strand"] if "strand" in intervals else [])]]
    cut = Windows.of(place, anchor=anchor, flank=flank, windows=windows)
    left_out = _left_out(ds, without)
    _warn_of_training(ds, left_out)
    # Imputation reads observed tracks: those that are left out are not to come back that way.
    ds = hold_out(ds, [pair for pair in experiments(ds) if pair in left_out]) if left_out else ds
    options: dict[str, Any] = {"anchor": anchor, "flank": flank, "windows": windows, "scales": scales}
    sources = _sources(ds, celltype, left_out, sets, others or {}, device)
    if not any(isinstance(source, xr.Dataset) for source in sources.values()):
        share_covered(bins_of(ds), place, cut)
    out = {}
    for name, source in tqdm(sources.items(), desc="feature sets", unit="set", disable=not progress):
        if isinstance(source, Tracks):
            table = _aggregated(source, cut, agg, split=windows is not None)
        elif isinstance(source, xr.Dataset):
            table = interval_table(source, place, agg, **options).iloc[:, len(place.columns) + 1 :]
        else:
            table = _given(name, source, len(place))
        out[name] = with_index(table, place)
    return out


class Tracks:
    """Bins x columns of tracks, computed on slicing: float32."""

    def __init__(self, rows: list[xr.Variable], names: list[str], bins: GenomeBins) -> None:
        self.rows, self.names, self.bins = rows, names, bins

    @classmethod
    def of(cls, layer: xr.DataArray, pairs: list[Experiment], names: list[str]) -> Tracks:
        """Tracks of a layer along position."""
        return cls([layer.sel(pair._asdict()).variable for pair in pairs], names, bins_of(layer))

    @property
    def shape(self) -> tuple[int, int]:
        """Bins and columns."""
        return len(self.bins), len(self.rows)

    def parts(self) -> Iterable[Tracks]:
        """No more tracks at a time than memory has room for."""
        for i in range(0, len(self.rows), TOGETHER):
            yield Tracks(self.rows[i : i + TOGETHER], self.names[i : i + TOGETHER], self.bins)

    def __getitem__(self, rows: slice) -> np.ndarray:
        # Computed together, tracks share what they read.
        lazy = [track[{POSITION: rows}].data for track in self.rows]
        return np.stack([np.asarray(track, np.float32) for track in dask.compute(lazy)[0]], axis=1)


class _ValuesAndThere:
    """Values, 0 where there is none, and beside them whether there is one: their means make a mean over what is there."""

    def __init__(self, tracks: Tracks) -> None:
        self.tracks, self.shape = tracks, (tracks.shape[0], 2 * tracks.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        values = self.tracks[rows]
        there = np.isfinite(values)
        return np.concatenate([np.where(there, values, 0), there], axis=1, dtype=np.float32)


def _aggregated(tracks: Tracks, cut: Windows, agg: Aggregation, *, split: bool) -> pd.DataFrame:
    """Aggregate tracks over the windows of intervals, where bins are no wider than these, else over intervals."""
    inner = split and tracks.bins.binsize <= cut.width
    at = cut if inner else cut.whole
    parts = []
    for part in tracks.parts():
        if agg == "mean":
            total, there = np.split(aggregate(_ValuesAndThere(part), part.bins, at, agg), 2, axis=2)
            parts.append(np.divide(total, there, out=np.full_like(total, np.nan), where=there > 0))
        else:
            parts.append(aggregate(part, part.bins, at, agg))
    suffixes = [f"_w{i}" for i in range(at.start.shape[1])] if inner else [""]
    levels = [f"_q{100 * q:.0f}" for q in QUANTILES] if agg == "quantile" else [""]
    if agg == "quantile":
        parts = [part.reshape(*part.shape[:2], len(QUANTILES), -1) for part in parts]
    values = np.concatenate(parts, axis=-1).reshape(len(at.start), -1)
    names = [f"{name}{suffix}{level}" for suffix in suffixes for level in levels for name in tracks.names]
    return pd.DataFrame(values, columns=names)


def _left_out(ds: xr.Dataset, without: Iterable[Any]) -> set[Experiment]:
    if isinstance(without, str) or not isinstance(without, Iterable):
        raise CubeError(f"without is a list of assays or (celltype, assay) pairs; got {without!r}: write [{without!r}]")
    left_out = set()
    for each in without:
        if isinstance(each, str):
            check_known(ASSAY, [each], ds[ASSAY].values)
            left_out |= {Experiment(str(c), each) for c in ds[CELLTYPE].values}
        else:
            left_out |= set(as_experiments(ds, [each]))
    return left_out


def _sources(
    ds: xr.Dataset,
    celltype: str,
    left_out: set[Experiment],
    sets: Iterable[str] | None,
    others: Mapping[str, Any],
    device: str | None,
) -> dict[str, Any]:
    """What each set is made of: `Tracks`, a fitted cube, or a table."""
    if isinstance(sets, str) or not isinstance(sets, Iterable | None):
        raise CubeError(f"sets is a list of {', '.join(SETS)}; got {sets!r}")
    if not isinstance(others, Mapping):
        raise CubeError(f"others is a mapping from names to what other methods made; got {others!r}")
    if taken := sorted(set(others) & set(SETS)):
        raise CubeError(f"others has a {taken[0]!r}, which is a set of the cube's own; give it another name")
    wanted = list(SETS if sets is None else sets)
    if unknown := [name for name in wanted if name not in SETS]:
        raise CubeError(f"{unknown[0]!r} is not a set of features; there are {', '.join(SETS)}, and others= by name")
    run = [pair for pair in experiments(ds) if pair not in left_out] if SIGNAL in ds else []
    own = [pair for pair in run if pair.celltype == celltype]
    every = [pair for a in ds[ASSAY].values if (pair := Experiment(celltype, str(a))) not in left_out]
    has = {
        OWN: bool(own),
        IMPUTED: bool(every) and (IMPUTED in ds or FITTED in ds.attrs),
        FACTORS: CELLTYPE_FACTORS in ds,
        ALL: bool(run),
    }
    if sets is not None and (missing := [name for name in wanted if not has[name]]):
        raise CubeError(f"the set {missing[0]!r} cannot be made: {_NEEDS[missing[0]].format(celltype=celltype)}")
    found: dict[str, Any] = {}
    if OWN in wanted and own:
        found[OWN] = Tracks.of(ds[SIGNAL], own, [pair.assay for pair in own])
    if IMPUTED in wanted and has[IMPUTED]:
        full, pairs = _imputed(ds, every, device)
        found[IMPUTED] = Tracks.of(full, pairs, [pair.assay for pair in pairs])
    found |= {name: _other(ds, source, every) for name, source in others.items()}
    if FACTORS in wanted and has[FACTORS]:
        found[FACTORS] = ds
    if ALL in wanted and run:
        found[ALL] = Tracks.of(ds[SIGNAL], run, [str(pair) for pair in run])
    if not found:
        raise CubeError(
            "this cube has no set of features: it has neither observed tracks nor a model, and others= is empty"
        )
    return found


_NEEDS = {
    OWN: "no track of {celltype} was observed, or all are left out",
    IMPUTED: "the cube is not fitted (call .avocado.fit() first), or all assays are left out",
    FACTORS: "the cube is not fitted; call .avocado.fit() first",
    ALL: "no track was observed, or all are left out",
}


def _imputed(ds: xr.Dataset, pairs: list[Experiment], device: str | None) -> tuple[xr.DataArray, list[Experiment]]:
    if IMPUTED not in ds:
        return impute(ds, tracks=pairs, device=device)[IMPUTED], pairs
    if IMPUTED_TRACKS in ds:
        pairs = [pair for pair in pairs if ds[IMPUTED_TRACKS].sel(pair._asdict())]
    if not pairs:
        raise CubeError(
            "the layer 'imputed' has no track of this cell type; impute it, or drop the layer to have it imputed here"
        )
    return ds[IMPUTED], pairs


def _other(ds: xr.Dataset, source: Any, pairs: list[Experiment]) -> Any:
    if isinstance(source, str | os.PathLike) or (isinstance(source, xr.DataArray) and set(source.dims) == set(DIMS)):
        layer = layers_of(ds, {"other": source}, pairs)["other"]
        return Tracks.of(layer, pairs, [pair.assay for pair in pairs])
    if isinstance(source, xr.DataArray):
        return _factor_columns(ds, source)
    if isinstance(source, xr.Dataset):
        return check_cube(source, CELLTYPE_FACTORS)
    return source


def _factor_columns(ds: xr.Dataset, factors: xr.DataArray) -> Tracks:
    other = [str(dim) for dim in factors.dims if dim != POSITION]
    if factors.ndim != 2 or len(other) != 1:
        raise CubeError(
            f"factors lie along {POSITION!r} and one other dim, layers of tracks along {', '.join(DIMS)}; got the dims "
            f"{', '.join(map(str, factors.dims))}"
        )
    factors = aligned(factors, ds)
    labels = factors[other[0]].values if other[0] in factors.coords else range(factors.sizes[other[0]])
    columns = [factors[{other[0]: i}].variable for i in range(factors.sizes[other[0]])]
    return Tracks(columns, [f"{other[0]}_{label}" for label in labels], bins_of(factors))


def _given(name: str, table: Any, n: int) -> pd.DataFrame:
    try:
        frame = pd.DataFrame(table).reset_index(drop=True).astype(np.float32)
    except (TypeError, ValueError):
        raise CubeError(
            f"others[{name!r}] is no tracks, factors or table of numbers; got {type(table).__name__}"
        ) from None
    if len(frame) != n:
        raise CubeError(
            f"the table {name!r} has {len(frame):,} rows, and there are {n:,} intervals: one row an interval"
        )
    return frame


def _warn_of_training(ds: xr.Dataset, left_out: set[Experiment]) -> None:
    fitted = ds.attrs.get(FITTED, {})
    seen = [Experiment(*pair) for key in ("trained_on", "validation") for pair in fitted.get(key, ())]
    if learned := [str(pair) for pair in seen if pair in left_out]:
        logger.warning(
            "the model was fitted to tracks that the sets are to do without (%s): its factors, and what it imputes, know these; hide them "
            "with hold_out before fit",
            ", ".join(learned[:5]),
        )


def pair_feature_sets(
    ds: xr.Dataset, pairs: Any, *, celltype: str, between: bool = False, **options: Any
) -> dict[str, pd.DataFrame]:
    """Make the sets of `feature_sets` for pairs of intervals: the features of both ends, and of the window between them.

    Each distinct end is aggregated once, in however many pairs it is.

    Parameters
    ----------
    ds
        A cube, fitted for imputed tracks and factors.
    pairs
        A frame with chrom1, start1, end1, chrom2, start2, end2, as `tasks.interactions` gives it; strand1 and strand2 where
        ``options`` need a strand.
    celltype
        Whose tracks are its own, and are imputed.
    between
        Add the features of the stretch from one end to the other. NaN for ends that touch or lie on two chromosomes.
    **options
        Passed on to `feature_sets`. Windows are cut from the ends alone.

    Returns
    -------
    Tables by name, one row a pair, with the columns of the first end (``_1``), of the second (``_2``), and ``_between``.

    Raises
    ------
    CubeError
        As for `feature_sets`; or where columns of ``pairs`` are missing.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=4)
    >>> ends = {"chrom1": "chr1", "start1": 1_000, "end1": 2_000, "chrom2": "chr1", "start2": 9_000, "end2": 9_500}
    >>> sets = xa.tasks.pair_feature_sets(cube, pd.DataFrame([ends]), celltype="C1", between=True, progress=False)
    >>> sets["own"].shape
    (1, 12)
    """
    if missing := [name for name in PAIR if name not in getattr(pairs, "columns", ())]:
        raise CubeError(f"pairs have no column {', '.join(missing)}; read them with xr_avocado.tasks.interactions")
    pairs = pairs.reset_index(drop=True)
    ends = pd.concat([_end(pairs, 1), _end(pairs, 2)], ignore_index=True)
    distinct, which = _distinct(ends)
    sets = feature_sets(ds, distinct, celltype=celltype, **options)
    parts = {
        name: [(table, which[: len(pairs)], "_1"), (table, which[len(pairs) :], "_2")] for name, table in sets.items()
    }
    if between:
        gaps, gap_of = _gaps(pairs)
        plain = {k: v for k, v in options.items() if k not in ("anchor", "flank", "windows")}
        for name, table in feature_sets(ds, gaps, celltype=celltype, **plain).items():
            parts[name].append((table, gap_of, "_between"))
    return {
        name: with_index(pd.concat([_rows(*part) for part in of_set], axis=1), pairs) for name, of_set in parts.items()
    }


def _end(pairs: pd.DataFrame, i: int) -> pd.DataFrame:
    names = [*PLACE, *(["strand"] if {"strand1", "strand2"} <= set(pairs.columns) else [])]
    return pairs[[f"{name}{i}" for name in names]].set_axis(names, axis=1)


def _distinct(intervals: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Distinct intervals, and which of them each is."""
    which = intervals.groupby(list(intervals.columns), sort=False).ngroup().to_numpy()
    return intervals.drop_duplicates(ignore_index=True), which


def _gaps(pairs: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The stretches between ends, and which of them each pair has; -1 for none."""
    start, end = pairs[["end1", "end2"]].min(axis=1), pairs[["start1", "start2"]].max(axis=1)
    there = ((pairs["chrom1"] == pairs["chrom2"]) & (start < end)).to_numpy()
    if not there.any():
        raise CubeError(
            "no pair has anything between its ends: all touch, or lie on two chromosomes; leave out between=True"
        )
    gaps, which = _distinct(pd.DataFrame({"chrom": pairs["chrom1"], "start": start, "end": end})[there])
    gap_of = np.full(len(pairs), -1)
    gap_of[there] = which
    return gaps, gap_of


def _rows(table: pd.DataFrame, which: np.ndarray, suffix: str) -> pd.DataFrame:
    values = np.where((which >= 0)[:, None], table.to_numpy()[which], np.float32(np.nan))
    return pd.DataFrame(values, columns=[f"{name}{suffix}" for name in table.columns])
