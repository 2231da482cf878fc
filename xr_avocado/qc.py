"""qc: one row an observed track, beside its mark's others: dead, shifted, clipped, noisy, or under another's label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.cube import (
    ASSAY,
    CELLTYPE,
    CONTEXT,
    DIMS,
    IMPUTED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    check_cube,
    experiments,
    label_rows,
)
from xr_avocado.impute import impute
from xr_avocado.labels import assay_fit, own_fit, part_of, strangers, swaps
from xr_avocado.linear import Panel, second_moments
from xr_avocado.measures import gwcorr
from xr_avocado.methods import in_space
from xr_avocado.sample import VALUES, read_sample, sample_runs
from xr_avocado.transforms import transform_named

__all__ = ["COLUMNS", "LIMITS", "qc"]

MODEL_BINS = 1 << 17
"""Bins of the sample that a fitted model imputes: a correlation needs no more, and the model is slower than all the rest."""

LIMITS = {
    # Constant. Or flat: of pure noise the top 1 % of bins hold 6 % as -log10 p, and of a flat track 1 %.
    "dead": 0.02,
    # Tracks of a mark have about as many bins uncovered, or 0, as each other; where reads are few, a sixth more or less.
    "gaps": 0.3,
    # A track's highest value is one bin of a million, or the few of one summit; a clipped track has plateaus there.
    "saturated": 1e-3,
    # Factor 2. Real tracks keep within 1.54 of their mark's others (2.04 in a quarter of their bins), simulated within 1.67.
    "scale": 1.0,
    # Factor 8. Depth and antibody alone make top peaks of good tracks differ up to 7.7-fold.
    "peaks": 3.0,
    # Real tracks reach two thirds or more of their mark's usual correlation with the imputation; noise has no correlation.
    "noisy": 0.5,
    # The real track that resembles another mark most does so by 0.02; with labels of two marks exchanged it is about 0.3.
    "assay?": 0.1,
    # The worst of all 190 pairs of real tracks scores +0.06, and exchanging a pair's labels turns its sign.
    "swapped?": -0.05,
}
"""How far a figure may go before its flag is raised, in the order of flags; each figure is defined in `qc`."""
PLATEAU = 50
"""Bins at the highest value that make a plateau, at least: one summit alone has as many as a fragment is long."""

COLUMNS = (
    CELLTYPE, ASSAY, "bins", "missing", "zeros", "mean", "std", "q50", "q99", "top1", "at_max", "scale", "peaks", "average",
    "best_assay", "best_average", "imputed", "swap_with", "swap", "flag",
)  # fmt: skip
"""Columns of what `qc` returns."""


def qc(ds: xr.Dataset, *, progress: bool = True) -> pd.DataFrame:
    """Check each observed track against its mark's other tracks and its own imputation: one row a track, with flags.

    A flag says "look at this track", not "leave it out"; ``plot.qc`` draws the table. Labels are judged by ridge
    imputations that leave the tracks judged out altogether, in what they read and in what they learn from.

    Works on at most 2 million bins, in 16 runs spread evenly over the axis, and on fewer where all tracks would not fit
    256 MB together: what happens elsewhere goes unseen. In less than some 10 Mb (1 Mb of simulated tracks) good tracks differ enough by
    chance to be flagged. Holds that sample, 32 bytes a bin of it, and under 50 MB; where a model with a context term imputes a lazy cube, up
    to 512 MB of its tracks beside, as `impute` does. Judging labels takes a second for 20 tracks, a few for 50, and grows with the third
    power of their number.

    Parameters
    ----------
    ds
        A cube. Where it is fitted and its model has a context term, ``imputed`` is that model's with ``leave_one_out=True``: it never
        reads the track for its own imputation, but was trained on it among others, under the label that it has, and so is lenient.
    progress
        Show a progress bar.

    Returns
    -------
    One row an observed track, with these columns. A *ratio* is the log2 of a mean of the track, in the signal's own units,
    over the median of that mean in the mark's other tracks; correlations are of arcsinh values. What is undefined is NaN: a
    mark's only track has no ratios.

    - ``celltype``, ``assay``
    - ``bins``, ``missing``, ``zeros``: bins looked at that have a value; share of those without; share of the former that
      are 0.
    - ``mean``, ``std``, ``q50``, ``q99``: mean, standard deviation, median and 99th percentile, in the cube's units.
    - ``top1``: share of the signal that lies in the top 1 % of bins: signal to noise.
    - ``at_max``: share of bins at the track's highest value.
    - ``scale``: ratio of the mean of the lower three quarters of bins or of the lower nine tenths, whichever is nearer 0,
      and 0 if they disagree: other units move both, broad or sharp signal only one.
    - ``peaks``: ratio of the mean of the top 1 % of bins.
    - ``average``: correlation with its mark's average activity in other cell types; ``best_assay`` and ``best_average``:
      the mark whose average it correlates with most, and how much.
    - ``imputed``: correlation with its leave-one-out imputation.
    - ``swap_with``, ``swap``: the track with which an exchange of labels is contradicted least, and its score: the
      correlation of the difference of the two tracks with the difference of their imputations, each made without both. It
      is well above 0 for right labels and below for exchanged ones. Of large panels only the 256 most suspect pairs are
      scored.
    - ``flag``, comma-separated: ``empty`` (no value), ``dead`` (constant or flat), ``gaps`` (many more bins missing or 0
      than in the mark's others), ``saturated`` (a plateau at the highest value), ``scale``, ``peaks``, ``noisy`` (fits its
      imputation less than half as well as is usual for the mark, and no other mark either), ``assay?`` (resembles another mark), ``swapped?``
      (labels exchanged with ``swap_with``). ``xr_avocado.qc.LIMITS`` has the limits and their reasons. The rest
      is judged without tracks that fit no label at all, and with exchanged labels put right.

    Raises
    ------
    CubeError
        Where the cube has no signal, or no experiment was run.

    Notes
    -----
    Exchanges that the tracks cannot tell are not seen: within a mark that fewer than four cell types have, or between cell
    types that differ in no other mark. Ernst and Kellis 2015 (doi:10.1038/nbt.3157) introduced imputation as quality
    control; that shifts between tracks weigh more than models is the lesson of Schreiber et al. 2023
    (doi:10.1186/s13059-023-02915-y).

    Examples
    --------
    >>> import xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=5, n_assays=3)
    >>> cube.signal.loc["C2", "H3K4me1"] = 0
    >>> table = cube.avocado.qc(progress=False)
    >>> table[table.flag != ""][["celltype", "assay", "flag"]].values.tolist()
    [['C2', 'H3K4me1', 'dead']]
    """
    run = experiments(check_cube(ds, SIGNAL))
    if not run:
        raise CubeError("no experiment of this cube was run (observed is all False), so there is nothing to check")
    runs = sample_runs(ds.sizes[POSITION], len(run))
    values = read_sample(ds, run, runs, progress=progress)
    transform = ds.attrs.get("transform", "none")
    inverse = transform_named(transform).inverse
    table = pd.DataFrame([{**t._asdict(), **_own_figures(x, inverse)} for t, x in zip(run, values, strict=True)])
    table = _with_ratios(table.reindex(columns=[CELLTYPE, ASSAY, *_MEASURED]))
    alive = np.flatnonzero(~(_empty(table) | _dead(table)))
    # In place, since the sample is the largest thing that is held.
    for i in alive:
        values[i] = _standardised(in_space(values[i], transform, "arcsinh"))
    table = table.join(_fits([run[i] for i in alive], values, alive))
    if CONTEXT in ds and len(alive):
        table.loc[alive, "imputed"] = _model_fit(ds, [run[i] for i in alive], runs, values, alive, progress=progress)
    return table.assign(flag=_flags(table))[list(COLUMNS)]


_MEASURED = ("bins", "missing", "zeros", "mean", "std", "q50", "q99", "top1", "at_max", "low75", "low90", "high")


def _own_figures(values: np.ndarray, inverse: Callable[[Any], Any]) -> dict[str, float]:
    """Measure a track by itself; ``low75``, ``low90`` and ``high`` are means in the signal's own units."""
    there = np.sort(values[~np.isnan(values)])
    n = there.size
    if not n:
        return {"bins": 0, "missing": 1.0}
    signal = inverse(there.astype(np.float64))
    total, top = float(signal.sum()), signal[-max(1, n // 100) :]
    return {
        "bins": n,
        "missing": 1 - n / values.size,
        "zeros": float((there == 0).mean()),
        "mean": float(there.mean(dtype=np.float64)),
        "std": float(there.std(dtype=np.float64)) if there[0] != there[-1] else 0.0,
        "q50": float(there[n // 2]),
        "q99": float(there[99 * n // 100]),
        "top1": float(top.sum()) / total if total > 0 else np.nan,
        "at_max": float((there == there[-1]).mean()),
        "low75": float(signal[: max(1, 3 * n // 4)].mean()),
        "low90": float(signal[: max(1, 9 * n // 10)].mean()),
        "high": float(top.mean()),
    }


def _with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    ratio = {}
    for name in ("low75", "low90", "high"):
        log = np.log2(table[name].where(table[name] > 0))
        ratio[name] = log - _of_others(table, log)
    lower, wider = ratio["low75"], ratio["low90"]
    nearer = np.sign(lower) * np.minimum(lower.abs(), wider.abs())
    return table.assign(scale=nearer.where(lower * wider >= 0, lower * wider * 0), peaks=ratio["high"])


def _of_others(table: pd.DataFrame, figure: pd.Series) -> pd.Series:
    """Median of a figure over the other tracks of each track's mark."""
    values, assay, known = figure.to_numpy(float), table[ASSAY].to_numpy(), figure.notna().to_numpy()
    out = np.full(len(table), np.nan)
    for i in range(len(table)):
        others = known & (assay == assay[i])
        others[i] = False
        out[i] = np.median(values[others]) if others.any() else np.nan
    return pd.Series(out, table.index)


def _empty(table: pd.DataFrame) -> pd.Series:
    return table["missing"] == 1


def _dead(table: pd.DataFrame) -> pd.Series:
    return (table["std"] == 0) | (table["top1"] < LIMITS["dead"])


def _standardised(values: np.ndarray) -> np.ndarray:
    """Bring a track to mean 0 and standard deviation 1, so that its scale says nothing; missing bins count as the mean."""
    mean, std = np.nanmean(values, dtype=np.float64), np.nanstd(values, dtype=np.float64)
    return np.nan_to_num((values - mean) / std)


def _fits(tracks: list[Experiment], standard: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """How well tracks (those rows of the sample) fit averages, imputations and each other's labels."""
    columns = ["average", "best_assay", "best_average", "imputed", "swap_with", "swap", "stranger", "swapped"]
    if not tracks:
        return pd.DataFrame(columns=columns)
    (celltype, _), (assay, marks) = (pd.factorize(np.array(labels)) for labels in zip(*tracks, strict=True))
    panel = Panel(celltype, assay, second_moments(_blocks(standard, rows), len(rows)))
    strange = strangers(panel, limit=LIMITS["noisy"])
    sound = np.delete(np.arange(len(panel)), strange)
    found, righted, scores = swaps(part_of(panel, sound), limit=LIMITS["swapped?"])
    partner = {sound[i]: (sound[j], score) for a, b, score in found for i, j in ((a, b), (b, a))}
    pairs = {frozenset(sound[list(pair)]): score for pair, score in scores.items()}
    right = Panel(celltype.copy(), assay.copy(), panel.moments)
    right.celltype[sound], right.assay[sound] = righted.celltype, righted.assay
    out = []
    for i in range(len(panel)):
        # Others are judged with exchanged labels put right, an exchanged track by the label that it has.
        here = np.union1d(sound, i)
        part, at = part_of(panel if i in partner else right, here), int(np.searchsorted(here, i))
        averages = assay_fit(part, at)
        best = int(np.argmax(np.nan_to_num(averages, nan=-np.inf)))
        known = averages[best] > -np.inf
        near = [(score, j) for pair, score in pairs.items() if i in pair for j in pair - {i} if j not in partner]
        score, j = min(near, default=(np.nan, None))
        j, score = partner.get(i, (j, score))
        name = "" if j is None else str(tracks[j])
        fit = averages[assay[i]], marks[best] if known else "", averages[best], own_fit(part, np.array([at]))[0]
        out.append((*fit, name, score, i in strange, i in partner))
    return pd.DataFrame(out, index=rows, columns=columns)


def _blocks(standard: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, (1 << 20) // len(rows))
    yield from (standard[rows, first : first + step] for first in range(0, standard.shape[1], step))


def _model_fit(
    ds: xr.Dataset,
    tracks: list[Experiment],
    runs: list[slice],
    standard: np.ndarray,
    rows: np.ndarray,
    *,
    progress: bool,
) -> list[float]:
    """Correlation of tracks with what the cube's model imputes for them, on the first bins of each run of the sample."""
    layer = impute(ds, tracks=tracks, leave_one_out=True)[IMPUTED].transpose(*DIMS)
    at = tuple(label_rows(ds, dim, labels) for dim, labels in zip(DIMS, zip(*tracks, strict=True), strict=False))
    bins = min(MODEL_BINS, VALUES // ds[SIGNAL].isel({POSITION: 0}).size) // len(runs)
    observed, imputed, first = [], [], 0
    for run in tqdm(runs, desc="impute", unit="run", disable=not progress):
        head = slice(run.start, min(run.stop, run.start + max(1, bins)))
        imputed.append(layer.isel({POSITION: head}).values[at])
        observed.append(standard[rows, first : first + head.stop - head.start])
        first += run.stop - run.start
    pairs = zip(np.concatenate(observed, 1), np.concatenate(imputed, 1), strict=True)
    return [gwcorr(y, p) for y, p in pairs]


def _flags(table: pd.DataFrame) -> pd.Series:
    """Name what is odd about each track."""
    uncovered = [table[name] - _of_others(table, table[name]) for name in ("missing", "zeros")]
    flat, fit = table["at_max"], table["imputed"]
    # NaN where the track was not judged.
    stranger, swapped = (table[name].eq(True) for name in ("stranger", "swapped"))
    other = swapped | ~stranger & (table["best_average"] - table["average"] > LIMITS["assay?"])
    raised = {
        "empty": _empty(table),
        "dead": _dead(table),
        "gaps": (uncovered[0] > LIMITS["gaps"]) | (uncovered[1] > LIMITS["gaps"]),
        "saturated": (flat >= LIMITS["saturated"])
        & (flat * table["bins"] >= PLATEAU)
        & ~(_of_others(table, flat) > flat / 2),
        "scale": table["scale"].abs() > LIMITS["scale"],
        "peaks": table["peaks"].abs() > LIMITS["peaks"],
        "noisy": stranger | (fit < LIMITS["noisy"] * _of_others(table, fit)) & ~other,
        "assay?": other & ~swapped,
        "swapped?": swapped,
    }
    nothing = raised["empty"] | raised["dead"]
    words = pd.DataFrame({name: on & (~nothing | (name in ("empty", "dead"))) for name, on in raised.items()})
    return words.apply(lambda row: ", ".join(row.index[row]), axis=1)
