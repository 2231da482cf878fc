"""segment: states of the genome, from a hidden Markov model over its factors: one annotation for all cell types."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado.axis import rows_of_runs
from xr_avocado.cube import (
    ASSAY_FACTORS,
    CELLTYPE_FACTORS,
    FITTED,
    CubeError,
    check_cube,
    check_whole,
    genome_factors,
    position_dim,
)
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of, select
from xr_avocado.intervals import to_pyranges
from xr_avocado.io.atomic import file_to_write, replacing

if TYPE_CHECKING:
    import pyranges
    from hmmlearn.hmm import GaussianHMM

__all__ = ["segment"]

RUN = 1_000
"""Bins of a sequence that the model is trained on, at most."""
PIECE = 1 << 17
"""Bins whose factors are read at a time."""
COMPONENTS = 16
"""Principal components of the factors that the model sees, at most."""
VARIANCE = 0.95
"""Part of the factors' variance that these keep, unless they are too many."""
COLORS = ("#D9D9D9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7F3C8D", "#6B4C2A")


def segment(
    ds: xr.Dataset,
    n_states: int = 10,
    *,
    regions: Any = None,
    scales: int | Sequence[int] | None = None,
    sample: int = 100_000,
    iterations: int = 50,
    starts: int = 4,
    seed: int = 0,
    bed: str | os.PathLike[str] | None = None,
    as_: Literal["pyranges", "frame"] = "pyranges",
    progress: bool = True,
) -> pyranges.PyRanges | pd.DataFrame:
    """Divide the genome into states: runs of bins whose learned factors are alike.

    Genome factors say what a bin is in all cell types at once, so this annotation belongs to no cell type; the paper names it as
    future work. A hidden Markov model with Gaussian emissions is trained on the principal components of the factors, on a random draw of
    runs of up to 1,000 bins; each segment of the cube is then decoded as a whole (Viterbi). Needs hmmlearn: the extra ``states``.

    Memory: the sample, 8 bytes a bin and component (up to 16), and for decoding about 8 x (16 + 3 x ``n_states``) bytes a bin of the longest
    segment; chromosome 1 in bins of 250 bp and 10 states takes 0.4 GB. Lazy factors are read 131,072 bins at a time.

    Parameters
    ----------
    ds
        A fitted cube.
    n_states
        Number of states, at least 2.
    regions
        A region string, PyRanges, frame or BED file; by default the whole cube.
    scales
        Widths in bp of the bins whose factors count; the finest of them are the bins that get a state. By default all but the model's
        finest, which is too noisy for it to have runs; give it too for states at its resolution.
    sample
        Bins to train on, at most.
    iterations
        Passes of expectation maximization, at most, from each start.
    starts
        Times that training begins anew; the most likely model is kept, since a single start often ends with one state split in two.
    seed
        Fixes the draw and the initial values.
    bed
        Write the states there too, as BED with nine columns, whose colors genome browsers show.
    as_
        ``"pyranges"`` or ``"frame"``.
    progress
        Show a progress bar.

    Returns
    -------
    One row a run: chrom, start, end (in PyRanges Chromosome, Start and End), ``state`` (int, 1 the one that covers most bins), ``name``
    (``"E1"``, …) and ``rgb`` (``"217,217,217"``: its color).

    Raises
    ------
    CubeError
        Where the cube is not fitted, a scale or a number is none, there are fewer bins than would tell states apart, or the BED file
        cannot be written.
    ImportError
        Where hmmlearn is not installed.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> states = fitted.avocado.segment(3, regions="chr1", as_="frame", progress=False)
    >>> states.columns.tolist(), int((states.end - states.start).sum())
    (['chrom', 'start', 'end', 'state', 'name', 'rgb'], 1200010)
    """
    check_cube(ds, CELLTYPE_FACTORS, ASSAY_FACTORS)
    n_states = check_whole("n_states", n_states, least=2)
    if as_ not in ("pyranges", "frame"):
        raise ValueError(f"as_ is 'pyranges' or 'frame'; got {as_!r}")
    seed = check_whole("seed", seed, least=0)
    sample, iterations, starts = (
        check_whole(name, given) for name, given in (("sample", sample), ("iterations", iterations), ("starts", starts))
    )
    features = _Features.of(ds if regions is None else select(ds, regions), scales)
    drawn = _drawn(features.bins, sample, seed)
    if sum(run.stop - run.start for run in drawn) < 10 * n_states:
        raise CubeError(
            f"{len(features.bins):,} bins are too few for {n_states} states: give ten bins a state, at least"
        )
    target = None if bed is None else file_to_write(bed, "a BED file is")
    model, projection = _trained(features, drawn, n_states, (iterations, starts), seed)
    states = np.empty(len(features.bins), np.int16)
    with tqdm(total=len(states), desc="segment", unit="bin", unit_scale=True, disable=not progress) as bar:
        for run in features.bins.segment_slices:
            states[run] = model.predict(np.concatenate([projection.of(piece) for piece in features.read(run)]))
            bar.update(run.stop - run.start)
    frame = _runs(features.bins, states, n_states)
    if target is not None:
        _write_bed(frame, target)
    return to_pyranges(frame) if as_ == "pyranges" else frame


class _Features(NamedTuple):
    """The bins that get a state, and the factors of each scale, with the axis these lie on."""

    bins: GenomeBins
    axes: list[GenomeBins]
    factors: list[xr.DataArray]

    @classmethod
    def of(cls, ds: xr.Dataset, scales: Any) -> _Features:
        binsize = bins_of(ds).binsize
        known = [binsize * scale for scale in ds.attrs[FITTED]["config"]["scales"]]
        wanted = (known[1:] or known) if scales is None else sorted(np.unique(scales).tolist())
        if unknown := set(wanted) - set(known) or not wanted:
            what = f"{min(unknown)} bp" if isinstance(unknown, set) else "no width"
            raise CubeError(f"there are no factors of {what}; this model has {', '.join(map(str, known))} bp")
        dims = [position_dim(bp, binsize) for bp in wanted]
        axes = [bins_of(ds, dim) for dim in dims]
        factors = [ds[genome_factors(bp)].transpose(dim, ...) for bp, dim in zip(wanted, dims, strict=True)]
        # After a plain isel the coarse scales reach further than the positions that were chosen.
        segments = bins_of(ds).segments
        runs = axes[0].overlaps(segments["chrom"], segments["start"], segments["end"])
        return cls(axes[0][rows_of_runs(*runs)], axes, factors)

    def read(self, rows: slice) -> Iterator[np.ndarray]:
        """Factors of a run of bins, all scales side by side, a piece at a time: bins x factors."""
        for first in range(rows.start, rows.stop, PIECE):
            bins = self.bins[first : min(first + PIECE, rows.stop)]
            columns = []
            for axis, table in zip(self.axes, self.factors, strict=True):
                at = axis.rows_of(bins)
                columns.append(table[int(at.min()) : int(at.max()) + 1].values[at - at.min()])
            yield np.concatenate(columns, axis=1)


class _Projection(NamedTuple):
    """The way from factors to the principal components that the model sees."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> _Projection:
        mean = values.mean(0)
        variance, axes = np.linalg.eigh(np.cov(values - mean, rowvar=False).reshape(values.shape[1], -1))
        variance, axes = variance[::-1], axes[:, ::-1]
        share = np.cumsum(variance) / (variance.sum() or 1.0)
        # In units of the first component: hmmlearn's priors are meant for variances about 1, and factors are small.
        return cls(mean, axes[:, : min(COMPONENTS, 1 + int((share < VARIANCE).sum()))] / np.sqrt(variance[0] or 1.0))

    def of(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) @ self.axes


def _drawn(bins: GenomeBins, sample: int, seed: int) -> list[slice]:
    """Draw runs of bins, none across two segments, until they are enough."""
    runs = [
        slice(first, min(first + RUN, whole.stop))
        for whole in bins.segment_slices
        for first in range(whole.start, whole.stop, RUN)
    ]
    order = np.random.default_rng(seed).permutation(len(runs))
    upto = np.cumsum([runs[i].stop - runs[i].start for i in order])
    enough = 1 + int(np.searchsorted(upto, sample))
    return [runs[i] for i in sorted(order[:enough])]


def _trained(
    features: _Features, drawn: list[slice], n_states: int, effort: tuple[int, int], seed: int
) -> tuple[GaussianHMM, _Projection]:
    try:
        from hmmlearn.hmm import GaussianHMM
    except ImportError:
        raise ImportError("segment needs hmmlearn: pip install hmmlearn") from None
    values = np.concatenate([piece for run in drawn for piece in features.read(run)]).astype(np.float64)
    projection = _Projection.fit(values)
    seen = projection.of(values)
    lengths, (iterations, starts) = [run.stop - run.start for run in drawn], effort
    models = [
        GaussianHMM(n_states, covariance_type="diag", n_iter=iterations, random_state=seed + k).fit(seen, lengths)
        for k in range(starts)
    ]
    return max(models, key=lambda model: model.score(seen, lengths)), projection


def _runs(bins: GenomeBins, states: np.ndarray, n_states: int) -> pd.DataFrame:
    """Join neighbouring bins of one state; the state of most bins is the first."""
    rank = np.empty(n_states, int)
    rank[np.argsort(-np.bincount(states, minlength=n_states), kind="stable")] = np.arange(n_states)
    states = rank[states]
    edge = np.concatenate([[True], states[1:] != states[:-1]])
    edge[[run.start for run in bins.segment_slices]] = True
    first = np.flatnonzero(edge)
    chrom, start, _ = bins.at(first)
    _, _, end = bins.at(np.append(first[1:], len(bins)) - 1)
    colors = [_rgb(k, n_states) for k in range(n_states)]
    own = states[first]
    return pd.DataFrame(
        {
            "chrom": chrom,
            "start": start,
            "end": end,
            "state": own + 1,
            "name": [f"E{k + 1}" for k in own],
            "rgb": [colors[k] for k in own],
        }
    )


def _rgb(k: int, n_states: int) -> str:
    """Give a state its color, gray to the first; beyond those chosen by hand, hues at equal distances."""
    if k < len(COLORS):
        return ",".join(str(int(COLORS[k][i : i + 2], 16)) for i in (1, 3, 5))
    hue = (k - len(COLORS)) / max(1, n_states - len(COLORS))
    return ",".join(str(round(255 * part)) for part in colorsys.hls_to_rgb(hue, 0.35, 0.8))


def _write_bed(frame: pd.DataFrame, path: Path) -> None:
    columns = ["chrom", "start", "end", "name", "score", "strand", "thick_start", "thick_end", "rgb"]
    table = frame.assign(score=0, strand=".", thick_start=frame["start"], thick_end=frame["end"])
    with replacing(path) as temporary:
        table[columns].to_csv(temporary, sep="\t", header=False, index=False, lineterminator="\n")
