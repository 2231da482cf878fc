"""report: one self-contained page about a cube and its model, for whoever cannot run Python."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from xr_avocado import plot
from xr_avocado.baselines import add_average
from xr_avocado.cube import (
    ASSAY,
    ASSAY_FACTORS,
    CELLTYPE,
    CELLTYPE_FACTORS,
    DIMS,
    FITTED,
    HISTORY,
    IMPUTED,
    OBSERVED,
    POSITION,
    SIGNAL,
    CubeError,
    Experiment,
    check_cube,
    experiments,
)
from xr_avocado.evaluate import evaluate
from xr_avocado.fit import without_parameters
from xr_avocado.impute import impute
from xr_avocado.index import bins_of, select
from xr_avocado.intervals import as_frame
from xr_avocado.io.atomic import file_to_write, replacing
from xr_avocado.methods import tracks_to_score
from xr_avocado.qc import qc
from xr_avocado.summary import summary

__all__ = ["report"]

WINDOW = 50_000
"""Length of an example locus, in bp."""
LOOKED_AT = 200
"""Windows among which example loci are chosen."""
SHOWN = 2
"""Tracks drawn at a locus."""
WIDE = 11
"""Inches from which a figure is too wide for a page."""
MEASURES = ("mse", "gwcorr", "gwspear", "match1")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
nav a { margin-right: 1rem; white-space: nowrap; display: inline-block; } a { color: #0a5c91; }
figure { margin: 1rem 0; overflow-x: auto; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .8rem 0; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: 600; } tbody tr { border-top: 1px solid #eee; } pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: .8rem; }
img.wide { max-width: none; height: 26rem; }
@media (max-width: 40rem) { img { min-width: 34rem; } body { padding: .6rem .7rem 3rem; } }
@media print { nav { display: none; } h2, figure { break-inside: avoid; } }
"""


def report(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    truth: xr.Dataset | None = None,
    scores: pd.DataFrame | None = None,
    regions: Iterable[str] | str | None = None,
    genes: Any = None,
    title: str | None = None,
    device: Any = None,
    progress: bool = True,
) -> Path:
    """Write a page about a cube: what there is, checks of the tracks, training, scores beside baselines, loci, embeddings.

    One HTML file with everything in it, which opens without a network and without JavaScript. Sections that the cube has nothing for
    say what they would need. Scores stand there only for tracks that the model has not seen: give ``truth``, the cube before
    ``hold_out``, or the table of an ``evaluate`` or ``cross_validate`` of your own.

    Memory: that of `qc`, of `evaluate` with ``truth``, and three loci of 50 kb.

    Parameters
    ----------
    ds
        A cube, fitted or not.
    path
        The file to write; it is complete or absent, and replaced if it is there.
    truth
        The cube with the tracks that ``ds`` lacks; they are scored and shown.
    scores
        Instead of scoring against ``truth``: a frame from ``evaluate`` or ``cross_validate``.
    regions
        Example loci, as region strings; by default three of 50 kb where the tracks shown vary most, among 200 looked at.
    genes
        Intervals to draw below loci: PyRanges, frame or BED file.
    title
        Of the page.
    device
        Where to impute; by default the fastest at hand.
    progress
        Show a progress bar.

    Returns
    -------
    The path of the page.

    Raises
    ------
    CubeError
        Where the dataset is no cube, nothing of it can be shown, ``scores`` is no such frame, or the file cannot be written.
    GenomeError
        Where a region is not on the cube.

    Examples
    --------
    >>> import tempfile, xr_avocado as xa
    >>> cube = xa.datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr1": 200_000})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = cube.avocado.report(f"{folder}/report.html", progress=False).read_text()
    >>> "<h2 id='panel'>" in page, "<script" in page
    (True, False)
    """
    if empty := [dim for dim in DIMS if not check_cube(ds).sizes.get(dim, 1)]:
        raise CubeError(f"this cube has no {empty[0]} to report on; choose others")
    if scores is not None and not (isinstance(scores, pd.DataFrame) and {"method", CELLTYPE, ASSAY} <= {*scores}):
        what = list(scores) if isinstance(scores, pd.DataFrame) else type(scores).__name__
        raise CubeError(f"scores is a frame as evaluate and cross_validate give it; got {what}")
    if not isinstance(regions, Iterable | None):
        raise CubeError(f"regions are strings such as 'chr1:1Mb-2Mb'; got {regions!r}")
    if truth is not None:
        check_cube(truth)
    genes = None if genes is None else as_frame(genes)
    loci = [regions] if isinstance(regions, str) else None if regions is None else list(regions)
    for region in loci or []:
        select(ds, region)
    target = file_to_write(path, "a report is")
    sections: dict[str, Callable[[], str]] = {
        "panel": lambda: _panel(ds),
        "checks": lambda: _checks(ds),
        "training": lambda: _training(ds),
        "scores": lambda: _scores(ds, truth, scores, device),
        "loci": lambda: _loci(ds, truth, loci, genes, device),
        "embeddings": lambda: _embeddings(ds),
        "model": lambda: _model(ds),
    }
    name = str(
        title
        or f"Report on {ds.attrs.get('genome', 'a cube')}: {ds.sizes[CELLTYPE]} cell types, {ds.sizes[ASSAY]} assays"
    )
    with tqdm(sections.items(), desc="report", unit="section", disable=not progress) as bar:
        bodies = {section: f"<h2 id='{section}'>{section.capitalize()}</h2>\n{make()}" for section, make in bar}
    with replacing(target) as temporary:
        temporary.write_text(_page(name, summary(ds), bodies), encoding="utf-8")
    return Path(path)


def _page(title: str, about: dict[str, str], sections: dict[str, str]) -> str:
    from xr_avocado import __version__

    links = "".join(f"<a href='#{name}'>{name}</a>" for name in sections)
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in about.items())
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\n"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n<nav>{links}</nav>\n"
        f"<div class='table'><table><tbody>{rows}</tbody></table></div>\n" + "\n".join(sections.values()) + "\n"
        f"<p><small>Written by xr_avocado {escape(__version__)}.</small></p></body></html>\n"
    )


def _panel(ds: xr.Dataset) -> str:
    return _figure(plot.panel(ds), "Which experiments were run: cell types down, assays across.")


def _checks(ds: xr.Dataset) -> str:
    if SIGNAL not in ds:
        return _note("This cube has no signal to check.")
    try:
        # Without the model, whose imputation of every track would take longer than all the rest of the page.
        table = qc(without_parameters(ds), progress=False)
    except CubeError as error:
        return _note(f"The tracks could not be checked: {error}.")
    flagged = table[table["flag"] != ""]
    found = (
        f"{len(flagged)} of {len(table)} tracks are flagged."
        if len(flagged)
        else f"None of {len(table)} tracks is flagged."
    )
    return _note(found) + _figure(
        plot.qc(table)[0], "Each observed track beside its mark's others; flagged tracks are framed."
    )


def _training(ds: xr.Dataset) -> str:
    if HISTORY not in ds:
        return _note("This cube has no model, or one that came without its history; .avocado.fit() trains one.")
    text = "Errors of the factors in training, epoch by epoch."
    if ds.attrs.get(FITTED, {}).get("config", {}).get("context"):
        text += " This model imputes with its context term, which is trained apart and is not in this figure."
    return _figure(plot.history(ds), text)


def _scores(ds: xr.Dataset, truth: xr.Dataset | None, scores: pd.DataFrame | None, device: Any) -> str:
    seen = ""
    if scores is None:
        if truth is None or CELLTYPE_FACTORS not in ds:
            return _note(
                "No scores: a model can be judged only by tracks that it has not seen. Hide some with hold_out before fit, and give "
                "the whole cube as truth=, or a table of cross_validate as scores=."
            )
        full = _imputed(ds, tracks_to_score(ds, truth, None), device)
        scores = evaluate(full, truth, measures=list(MEASURES), progress=False)
        seen = "" if _unseen(ds, scores) else " Some of them were seen in training."
    names = [name for name in MEASURES if name in scores]
    means = scores.groupby("method", sort=False)[names].mean().reset_index()
    tracks = len(scores[[CELLTYPE, ASSAY]].drop_duplicates())
    space = ", ".join(map(str, scores["space"].unique())) if "space" in scores else "unknown"
    text = f"Means over {tracks} tracks, in {space} space; mse: lower is better, the others: higher.{seen}"
    drawn = plot.scores(scores, measures=names)[0]
    return _note(text) + _table(means) + _figure(drawn, "A dot a track, a bar the mean of a mark.")


def _unseen(ds: xr.Dataset, table: pd.DataFrame) -> bool:
    run = set(experiments(ds))
    return not any(Experiment(c, a) in run for c, a in table[[CELLTYPE, ASSAY]].drop_duplicates().values)


def _imputed(ds: xr.Dataset, tracks: list[Experiment], device: Any) -> xr.Dataset:
    return ds if IMPUTED in ds else impute(ds, tracks=tracks, device=device)


def _loci(ds: xr.Dataset, truth: xr.Dataset | None, regions: list[str] | None, genes: Any, device: Any) -> str:
    fitted = CELLTYPE_FACTORS in ds
    source = ds if truth is None else truth
    if SIGNAL not in source and not fitted:
        return _note("This cube has neither signal nor a model to show.")
    pairs = _shown(ds, truth)
    regions = _chosen(source if SIGNAL in source else ds, pairs) if regions is None else regions
    full = impute(ds, tracks=pairs, device=device) if fitted and IMPUTED not in ds else ds
    if SIGNAL in ds:
        full = add_average(full)
    figures = []
    for region in regions:
        here = select(full, region)
        if truth is not None and SIGNAL in truth:
            here = here.assign(
                {SIGNAL: select(truth, region)[SIGNAL].sel({CELLTYPE: ds[CELLTYPE].values, ASSAY: ds[ASSAY].values})}
            )
        axes = plot.tracks(here, region, pairs=pairs, genes=genes)
        figures.append(_figure(axes[0], region))
    unseen = [str(pair) for pair in pairs if pair not in set(experiments(ds))]
    text = f"{' and '.join(map(str, pairs))} at {len(regions)} loci."
    return _note(text + (f" The model did not see {' or '.join(unseen)}." if unseen and fitted else "")) + "".join(
        figures
    )


def _shown(ds: xr.Dataset, truth: xr.Dataset | None) -> list[Experiment]:
    """Tracks that were held out, where the truth is given; else some that were observed, of assays that differ."""
    found = tracks_to_score(ds, truth, None) if truth is not None else experiments(ds)
    if not found:
        found = [Experiment(str(ds[CELLTYPE].values[0]), str(label)) for label in ds[ASSAY].values]
    differing = list({pair.assay: pair for pair in reversed(found)}.values())[::-1]
    return (differing + [pair for pair in found if pair not in differing])[:SHOWN]


def _chosen(ds: xr.Dataset, pairs: list[Experiment]) -> list[str]:
    """Three windows, apart from each other, where the tracks shown vary most among some looked at."""
    bins = bins_of(ds)
    wide = bins.coarsen(max(1, WINDOW // bins.binsize))
    at = np.unique(np.linspace(0, len(wide) - 1, min(LOOKED_AT, len(wide))).astype(int))
    chrom, start, end = wide.at(at)
    first, last = bins.overlaps(chrom, start, end)
    variety = np.zeros(len(at))
    known = [pair for pair in pairs if SIGNAL in ds and bool(ds[OBSERVED].sel(pair._asdict()))]
    for pair in known:
        track = ds[SIGNAL].sel(pair._asdict())
        values = [track.isel({POSITION: slice(int(a), int(b))}).values for a, b in zip(first, last, strict=True)]
        spread = np.array([np.nanstd(v) if np.isfinite(v).any() else 0.0 for v in values])
        variety += spread / (spread.max() or 1.0)
    best = np.sort(np.argsort(-variety, kind="stable")[:3])
    return [f"{chrom[i]}:{start[i]:,}-{end[i]:,}" for i in best]


def _embeddings(ds: xr.Dataset) -> str:
    figures = ""
    if CELLTYPE_FACTORS in ds and ds.sizes[CELLTYPE] >= 3:
        text = "Cell types, near each other where the model learned similar factors."
        figures += _figure(plot.embedding(ds, "celltype"), text)
    if ASSAY_FACTORS in ds and ds.sizes[ASSAY] >= 3:
        figures += _figure(plot.embedding(ds, "assay"), "Assays, likewise.")
    return figures or _note("There are no factors of three or more cell types or assays to show.")


def _model(ds: xr.Dataset) -> str:
    if FITTED not in ds.attrs:
        return _note("This cube has no model.")
    about = {k: v for k, v in ds.attrs[FITTED].items() if k not in ("celltypes", "assays")}
    return f"<p>Settings and provenance, as the file has them.</p>\n<pre>{escape(json.dumps(about, indent=1))}</pre>"


def _note(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    return f"<div class='table'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n"


def _cell(value: Any) -> str:
    return f"<td class='n'>{value:.3f}</td>" if isinstance(value, float) else f"<td>{escape(str(value))}</td>"


def _figure(ax: Any, caption: str) -> str:
    """Draw a figure into the page, and close it."""
    import matplotlib.pyplot as plt

    figure, buffer = ax.figure, io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    alt = escape(caption, quote=True)
    # Of a figure much wider than a page nothing could be read: it keeps its size, and is scrolled.
    kind, more = ("wide", " Wider than the page: scroll it sideways.") if figure.get_figwidth() > WIDE else ("fits", "")
    return f"<figure><img class='{kind}' alt=\"{alt}\" src='data:image/png;base64,{text}'><figcaption>{escape(caption + more)}</figcaption></figure>\n"
