"""Figures of attributions: what predictions along a region are made of, and how that goes with shared peaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xr_avocado.attribute import ELSEWHERE, OWN, SAME_ASSAY, attribute
from xr_avocado.cube import ASSAY_FACTORS, AVERAGE, CELLTYPE_FACTORS, COMPONENT, IMPUTED, SIGNAL, CubeError, Experiment
from xr_avocado.genome import GenomeError
from xr_avocado.index import bins_of
from xr_avocado.intervals import as_frame
from xr_avocado.plot_genes import draw_genes, lanes_of
from xr_avocado.plot_rows import HEIGHT, Row, Steps, draw_row, label_positions, label_signal, new_rows, quiet_row
from xr_avocado.plot_style import COLORS, FAINT, INK, NAMES, check_table, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["attribution_by_peaks", "attributions"]

NAMED = {
    AVERAGE: (NAMES[AVERAGE], COLORS[AVERAGE]),
    CELLTYPE_FACTORS: ("cell type", "#CC79A7"),
    ASSAY_FACTORS: ("assay", "#E69F00"),
    SAME_ASSAY: ("same assay, other cell types", "#0072B2"),
    ELSEWHERE: ("other assays, other cell types", "#8C8C8C"),
}
SCALES = ("#A9D6F5", "#4FA3DB", "#1C5C94", "#0B2A47")
"""Colors of genome factors, from the finest scale to the coarsest."""
OWN_COLORS = ("#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
REST = "all others"
STACK = 2.2
"""Height of a stack, in rows."""


def attributions(
    ds: xr.Dataset,
    celltype: str | Iterable[str] | None = None,
    assay: str | None = None,
    region: Any = None,
    *,
    of: Literal["factors", "context"] | None = None,
    baseline: Literal["zero", "mean"] | None = None,
    genes: Any = None,
    device: Any = None,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw what predictions are made of: for each cell type the observed signal, the prediction, and its parts as a stack.

    Parts that raise the prediction are stacked upwards, those that lower it downwards; the line is what they add up to, the
    prediction less the prediction at the baseline. Stacks have one scale, so that cell types compare.

    Parameters
    ----------
    ds
        A fitted cube, or what ``.avocado.attribute`` returned for one assay and one region, which needs none of the next five.
    celltype, assay, region, of, baseline, device
        As `attribute` takes them: one cell type or a few, one assay, one region of one chromosome.
    genes
        Intervals to draw below: PyRanges, frame or BED file, best with columns ``strand`` and ``name``.
    axes
        Draw into these, one a row; by default a new figure.

    Returns
    -------
    The axes, top to bottom: of each cell type the signal, where it was observed, the prediction and the stack; then genes.

    Raises
    ------
    CubeError
        Where a label is not on the cube, there are several assays, or another number of axes was given.
    GenomeError
        Where the region is not on the cube, or lies on several chromosomes.

    References
    ----------
    Schreiber et al. 2020, figure 5.

    Examples
    --------
    >>> import xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> axes = xa.plot.attributions(fitted, ["C1", "C4"], "H3K4me3", "chr1:10kb-12kb")
    >>> [ax.get_title(loc="left") for ax in axes]
    ['C1 H3K4me3', '', '', 'C4 H3K4me3', '', '']
    """
    parts = _parts(ds, celltype, assay, region, of=of, baseline=baseline, device=device)
    bins = bins_of(parts)
    if len(bins.chroms) != 1:
        raise GenomeError(f"a figure shows one chromosome; these attributions lie on {', '.join(bins.chroms)}")
    steps = Steps.of(bins)
    tracks = [_Parts(parts.sel(celltype=label), steps) for label in parts["celltype"].values.tolist()]
    lanes = None if genes is None else lanes_of(as_frame(genes), bins)
    heights = [HEIGHT * h for track in tracks for h in (*[1] * len(track.rows), STACK)]
    heights += [] if lanes is None else [lanes.height]
    if axes is not None and len(axes) != len(heights):
        raise CubeError(f"there are {len(heights)} rows to draw, but {len(axes)} axes were given")
    drawn = new_rows(heights, len(tracks)) if axes is None else list(axes)
    chosen = _colors({name: max(np.nanmean(np.abs(t.values[name])) for t in tracks) for name in tracks[0].values})
    limits = _limits([track.stack(chosen) for track in tracks])
    left = iter(drawn)
    for track in tracks:
        for row in track.rows:
            draw_row(next(left), row, steps)
        _draw_stack(next(left), track, chosen, limits, legend=track is tracks[0])
    if lanes is not None:
        draw_genes(drawn[-1], lanes, steps)
    label_positions(drawn[-1], bins)
    label_signal(drawn, parts.attrs.get("transform", "none"), own=axes is None)
    return np.asarray(drawn)


def _parts(ds: xr.Dataset, celltype: Any, assay: Any, region: Any, **options: Any) -> xr.Dataset:
    """Compute what is drawn, with cell types as a dim and one assay."""
    if "attribution" not in ds:
        if celltype is None or assay is None or region is None:
            raise CubeError("say what to take apart: a cell type or a few, an assay, and a region")
        ds = attribute(ds, [celltype] if isinstance(celltype, str) else celltype, assay, region, **options)
    ds = ds if "celltype" in ds.dims else ds.expand_dims("celltype")
    if "assay" in ds.dims:
        if ds.sizes["assay"] != 1:
            raise CubeError(f"a figure shows one assay; choose one of {', '.join(map(str, ds['assay'].values[:8]))}")
        ds = ds.isel(assay=0)
    return ds.compute()


class _Parts:
    """One cell type's rows, and its parts averaged over the steps drawn."""

    def __init__(self, parts: xr.Dataset, steps: Steps) -> None:
        pair = Experiment(str(parts["celltype"].item()), str(parts["assay"].item()))
        self.steps = steps
        self.values = {
            str(name): steps.mean(parts["attribution"].sel({COMPONENT: name}).values)
            for name in parts[COMPONENT].values
        }
        self.change = steps.mean((parts["prediction"] - parts["baseline"]).values)
        layers = {SIGNAL: parts[SIGNAL].values} if SIGNAL in parts else {}
        layers["prediction"] = parts["prediction"].values
        means = {name: steps.mean(v) for name, v in layers.items() if np.isfinite(v).any()}
        top = max(float(np.nanmax(v)) for v in means.values()) or 1.0
        colors = {SIGNAL: COLORS[SIGNAL], "prediction": COLORS[IMPUTED]}
        self.rows = [Row(pair, n, colors[n], v, top, first=i == 0) for i, (n, v) in enumerate(means.items())]

    def stack(self, colors: dict[str, tuple[str, str]]) -> np.ndarray:
        """Parts to stack, those without a color of their own as one: components x steps."""
        named = {name: self.values[name] for name in colors if name != REST}
        rest = [v for name, v in self.values.items() if name not in colors]
        return np.stack([*named.values(), *([np.sum(rest, axis=0)] if rest else [])])


def _colors(sizes: dict[str, float]) -> dict[str, tuple[str, str]]:
    """Name and color of each component; of the own assays those that matter most (by size), the others as one."""
    scales = [name for name in sizes if name.startswith("genome_factors_")]
    own = sorted((name for name in sizes if name.startswith(OWN)), key=lambda name: -sizes[name])
    chosen = {name: NAMED[name] for name in sizes if name in NAMED}
    for i, name in enumerate(scales):
        bp = name.removeprefix("genome_factors_").replace("bp", " bp").replace("k bp", " kbp").replace("M bp", " Mbp")
        chosen[name] = (bp if len(scales) > 1 else "genome", SCALES[i % len(SCALES)])
    for name, color in zip(own, OWN_COLORS, strict=False):
        chosen[name] = (f"own {name.removeprefix(OWN)}", color)
    return chosen if len(chosen) == len(sizes) else chosen | {REST: (REST, "#C9C9C9")}


def _limits(stacks: list[np.ndarray]) -> tuple[float, float]:
    low, high = (
        max(float(np.nanmax(np.maximum(sign * stack, 0).sum(0))) for stack in stacks) or 0.0 for sign in (-1, 1)
    )
    room = 0.05 * (low + high) or 1.0
    return -low - room, high + room


def _draw_stack(
    ax: Axes, track: _Parts, colors: dict[str, tuple[str, str]], limits: tuple[float, float], *, legend: bool
) -> None:
    edges = track.steps.edges
    stack = track.stack(colors)
    for sign in (1, -1):
        bottom = np.zeros(stack.shape[1])
        for (label, color), values in zip(colors.values(), stack, strict=True):
            top = bottom + sign * np.maximum(sign * values, 0)
            ax.stairs(
                top, edges, baseline=bottom, fill=True, color=color, linewidth=0, label=label if sign > 0 else None
            )
            bottom = np.nan_to_num(top)
    ax.stairs(track.change, edges, color=INK, linewidth=0.9, label="all together", baseline=None)
    ax.axhline(0, color=INK, linewidth=0.5)
    ax.set_ylim(*limits)
    quiet_row(ax, track.steps)
    if legend:
        ax.legend(
            loc="upper left", bbox_to_anchor=(1.002, 1.05), frameon=False, labelcolor=INK, fontsize="small",
            labelspacing=0.2, handlelength=1.2,
        )  # fmt: skip


def attribution_by_peaks(table: pd.DataFrame, *, axes: np.ndarray | None = None) -> np.ndarray:
    """Draw what ``.avocado.attribution_by_peaks`` returned: mean parts of predictions by how many cell types share a peak.

    Left, where the cell type has no peak itself; right, where it has one. The line is what the parts add up to, dots are the observed
    signal less the same baseline; below, how many bins of cell types each bar is about.

    Parameters
    ----------
    table
        The frame from ``.avocado.attribution_by_peaks``.
    axes
        Draw into these, 2 x 2; by default a new figure.

    Returns
    -------
    The axes: parts and bins x without and with the peak.

    Raises
    ------
    ValueError
        Where the table has no rows, or axes are not 2 x 2.

    Examples
    --------
    >>> import pandas as pd, xr_avocado as xa
    >>> fitted = xa.datasets.simulate(n_celltypes=4, n_assays=4).avocado.fit("small", epochs=1, progress=False)
    >>> peaks = pd.DataFrame(
    ...     {
    ...         "chrom": "chr1",
    ...         "start": [50_000, 51_000],
    ...         "end": [52_000, 53_000],
    ...         "celltype": ["C1", "C2"],
    ...         "assay": "DNase",
    ...     }
    ... )
    >>> table = fitted.avocado.attribution_by_peaks("DNase", peaks=peaks, steps=8, progress=False)
    >>> xa.plot.attribution_by_peaks(table).shape
    (2, 2)
    """
    from matplotlib.ticker import MaxNLocator

    check_table(table, (COMPONENT, "peak", "celltypes", "attribution", "bins", "assay"), "attribution_by_peaks")
    if table.empty:
        raise ValueError("there is nothing to draw: the table has no rows")
    axes = _new_columns() if axes is None else np.asarray(axes)
    if axes.shape != (2, 2):
        raise ValueError(f"there are 2 x 2 axes to draw into; got {axes.shape}")
    ends = ("prediction", "baseline", SIGNAL)
    components = [str(name) for name in table[COMPONENT].unique() if name not in ends]
    for column, peak in zip(axes.T, (False, True), strict=True):
        own = table[table["peak"] == peak].pivot(index="celltypes", columns=COMPONENT, values="attribution")
        bins = table[table["peak"] == peak].groupby("celltypes")["bins"].first()
        _draw_bars(column[0], own, components)
        column[0].set_title("with the peak" if peak else "without it", loc="left", fontsize="medium", color=INK)
        column[1].bar(bins.index, bins, color="#BBBBBB", width=0.8)
        column[1].set_yscale("log")
        # Bars of a logarithm have no natural foot; at 1 none that is drawn vanishes.
        column[1].set_ylim(bottom=0.8)
        column[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        column[1].set_xlabel("cell types with a peak", color=INK)
        for ax in column:
            quiet(ax)
    axes[0, 0].set_ylabel(f"mean attribution, {table['assay'].iloc[0]}", color=INK)
    axes[1, 0].set_ylabel("bins", color=INK)
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelcolor=INK, fontsize="small")
    return axes


def _new_columns() -> np.ndarray:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(
        2, 2, figsize=(9, 4.6), sharex=True, sharey="row", height_ratios=(3, 1), layout="constrained", squeeze=False
    )
    return axes


def _draw_bars(ax: Axes, means: pd.DataFrame, components: list[str]) -> None:
    """Stack the parts of each number of cell types, up where they raise the prediction and down where they lower it."""
    order = _colors(means[components].abs().mean().to_dict())
    up, down = np.zeros(len(means)), np.zeros(len(means))
    for name, (label, color) in order.items():
        values = means[[c for c in components if c not in order] if name == REST else [name]].sum(axis=1).to_numpy()
        bottom = np.where(values >= 0, up, down)
        ax.bar(means.index, values, bottom=bottom, color=color, width=0.8, label=label)
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    change = means["prediction"] - means["baseline"]
    ax.plot(means.index, change, color=INK, linewidth=1.2, marker="_", label="all together")
    if SIGNAL in means:
        seen = means[SIGNAL] - means["baseline"]
        ax.plot(means.index, seen, linestyle="", marker="o", mfc="white", mec=INK, markersize=4, label="observed")
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
