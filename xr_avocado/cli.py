"""The command line: each command is a thin call of the verb of its name."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xr_avocado.cube import (
    ASSAY,
    AVERAGE,
    CELLTYPE,
    CELLTYPE_FACTORS,
    IMPUTED,
    IMPUTED_TRACKS,
    OBSERVED,
    POSITION,
    CubeError,
    check_cube,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["main"]

Run = Callable[[argparse.Namespace], None]
FIGURES = (".png", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 where something given was wrong, which one line on stderr tells."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="xr-avocado: %(message)s")
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        # Of a RuntimeError only torch's: out of memory on a device. Another is a fault of ours, and shows where.
        if arguments.verbose or (isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError"):
            raise
        print(f"xr-avocado: error: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xr-avocado: interrupted", file=sys.stderr)
        return 130
    return 0


def demo(a: argparse.Namespace) -> None:
    """Simulate a panel, hold tracks out, fit, impute and score them: a minute or two."""
    from xr_avocado.demo import run_demo

    done = run_demo(a.out, progress=a.progress)
    print("Six tracks that the model did not see, scored in arcsinh space (mse: lower is better; gwcorr: higher):\n")
    print("\n".join(line.rstrip() for line in done.scores.to_string(float_format="{:.3f}".format).splitlines()))
    print(f"\nfitted cube    {done.store}\nimputed tracks {done.bigwigs}\nfigure         {done.figure}")


def build(a: argparse.Namespace) -> None:
    """Build a cube from a sheet of bigWig files (columns celltype, assay, path)."""
    from xr_avocado.io.build import build_cube

    cube = build_cube(
        a.sheet,
        a.store,
        genome=a.genome,
        regions=a.regions,
        binsize=a.binsize,
        transform=a.transform,
        uncovered=a.uncovered,
        replicates=a.replicates,
        n_jobs=a.n_jobs,
        progress=a.progress,
    )
    print(_summary(cube, a.store))


def fit(a: argparse.Namespace) -> None:
    """Train a model on a cube, and write the cube with the model inside; run again, it goes on where it was stopped."""
    from xr_avocado import fit as verb
    from xr_avocado.cube import hold_out
    from xr_avocado.io.atomic import local_path
    from xr_avocado.io.zarr import open_cube

    cube = open_cube(a.cube)
    if a.hold_out:
        cube = hold_out(cube, [_track(text) for text in a.hold_out])
    store = _beside(a.cube, ".fitted.zarr") if a.out is None else local_path(a.out, "a fit is")
    fitted = verb.fit(
        cube,
        a.preset,
        config=None if a.config is None else _json(a.config),
        epochs=a.epochs,
        seed=a.seed,
        device=a.device,
        store=store,
        checkpoint_minutes=a.checkpoint_minutes,
        overwrite=a.overwrite,
        progress=a.progress,
    )
    print(_summary(fitted, store))


def extend(a: argparse.Namespace) -> None:
    """Learn the cell types, assays or positions that a cube has and a fitted one lacks; run again, it goes on where it was stopped."""
    from xr_avocado import extend as verb
    from xr_avocado.io.atomic import local_path, remove
    from xr_avocado.io.zarr import check_replaceable, open_cube, to_zarr

    fitted = open_cube(a.fitted)
    out = _beside(a.fitted, ".extended.zarr") if a.out is None else local_path(a.out, "a cube is")
    if not os.path.exists(out):
        _check_written(out)
    elif not a.overwrite:
        raise CubeError(f"{out} is there already; give --overwrite to replace it, or another name with --out")
    check_replaceable(out)
    # The model on its own, so that work can be taken up again; what is written in the end has the signal too.
    model = out.with_name(f".{out.name}.model")
    more = verb.extend(
        fitted,
        open_cube(a.cube),
        epochs=a.epochs,
        refine=a.refine,
        only_new=a.only_new,
        store=model,
        overwrite=a.overwrite,
        seed=a.seed,
        device=a.device,
        progress=a.progress,
    )
    stored = to_zarr(more, out, overwrite=a.overwrite, progress=a.progress)
    remove(model)
    print(_summary(stored, out))


def search(a: argparse.Namespace) -> None:
    """Try settings of the model on held-out tracks; show the trials, and write the best settings for fit --config."""
    from xr_avocado import plot
    from xr_avocado import search as verb
    from xr_avocado.io.atomic import replacing
    from xr_avocado.io.zarr import open_cube

    cube = open_cube(a.cube)
    out = _beside(a.cube, ".best.json") if a.out is None else a.out
    _check_written(out, figure=a.plot)
    found = verb.search(
        cube,
        a.trials,
        space=None if a.space is None else _json(a.space),
        folds=int(a.folds) if a.folds and a.folds.isdecimal() else a.folds,
        file=_beside(a.cube, ".search.jsonl") if a.file is None else a.file,
        fit={"preset": a.preset, "epochs": a.epochs, "device": a.device},
        measure=a.measure,
        seed=a.seed,
        progress=a.progress,
    )
    print(found.table.to_string(index=False, float_format="{:.4g}".format))
    print(f"\n{found}")
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(found.best.to_attrs(), indent=1) + "\n")
    if a.plot:
        _draw(plot.search(found)[0].figure, a.plot)
    print(f"\nfit with them: xr-avocado fit {a.cube} --config {out}")


def impute(a: argparse.Namespace) -> None:
    """Write imputed tracks of a fitted cube as bigWig files, or as one zarr store."""
    from xr_avocado import impute as verb
    from xr_avocado.index import select
    from xr_avocado.io.export import to_bigwig
    from xr_avocado.io.zarr import open_cube, to_zarr

    cube = open_cube(a.fitted)
    chosen = {"tracks": [_track(text) for text in a.track]} if a.track else {"celltype": a.celltype, "assay": a.assay}
    full = verb.impute(cube, **chosen, only_missing=a.only_missing, device=a.device)
    # After imputing, so that the context term sees past the region's ends.
    full = full if a.region is None else select(full, a.region)
    if a.format == "zarr":
        to_zarr(full[[IMPUTED, IMPUTED_TRACKS, OBSERVED]], a.out, progress=a.progress)
        print(a.out)
    else:
        files = to_bigwig(full, a.out, progress=a.progress)
        print(f"{len(files)} bigWig file{'s' if len(files) != 1 else ''} and their sheet in {a.out}")


def embed(a: argparse.Namespace) -> None:
    """Write the learned factors: .tsv or .bed of positions, .tsv or .h5ad of cell types or assays."""
    from xr_avocado.io.zarr import open_cube

    kind = Path(a.out).suffix
    cube, axis = open_cube(a.fitted), a.axis or (CELLTYPE if kind == ".h5ad" else POSITION)
    if kind not in (".tsv", ".bed" if axis == POSITION else ".h5ad"):
        raise CubeError(f"{a.out!r}: write positions to .tsv or .bed, and cell types or assays to .tsv or .h5ad")
    check_cube(cube, CELLTYPE_FACTORS)
    _check_written(a.out)
    _write_factors(cube, axis, Path(a.out), a)
    print(a.out)


def _write_factors(cube: xr.Dataset, axis: str, out: Path, a: argparse.Namespace) -> None:
    from xr_avocado import embed as verb
    from xr_avocado.io.atomic import replacing

    table: Any
    if axis == POSITION:
        table = verb.embed(cube, regions=a.regions, scales=a.scale, as_="frame")
    else:
        table = verb.embed(cube, axis)
    with replacing(out) as temporary:
        if out.suffix == ".h5ad":
            table.write_h5ad(temporary)
            return
        if axis != POSITION:
            import pandas as pd

            table = pd.DataFrame(table.obsm["X_avocado"], index=table.obs_names).add_prefix("factor_")
            table = table.rename_axis(axis).reset_index()
        # BED readers take a line that starts with # as a comment, and the fields after the third as they are.
        header = ["#chrom", *table.columns[1:]] if out.suffix == ".bed" else list(table.columns)
        table.to_csv(temporary, sep="\t", index=False, header=header)


def evaluate(a: argparse.Namespace) -> None:
    """Score imputed tracks against a cube that has them, beside baselines and tracks imputed elsewhere."""
    from xr_avocado import evaluate as verb
    from xr_avocado import impute as imputation
    from xr_avocado import plot
    from xr_avocado.io.zarr import open_cube

    cube = open_cube(a.fitted)
    truth = None if a.truth is None else open_cube(a.truth)
    _check_written(a.out, figure=a.plot)
    tracks = [_track(text) for text in a.track] if a.track else None
    methods = dict(_method(text) for text in a.method or (IMPUTED, AVERAGE))
    if IMPUTED in methods.values() and IMPUTED not in cube:
        cube = imputation.impute(cube, tracks=tracks, device=a.device)
    table = verb.evaluate(
        cube,
        truth,
        tracks=tracks,
        methods=methods,
        annotations={"genes": a.genes, "enhancers": a.enhancers},
        space=a.space,
        convention=a.convention,
        measures=a.measure or None,
        progress=a.progress,
    )
    _show(table, a.out)
    if a.plot:
        _draw(plot.scores(table)[0].figure, a.plot)


def _method(text: str) -> tuple[str, str]:
    name, _, source = text.partition("=")
    return name, source or name


def _check_written(file: str | Path | None, *, figure: str | None = None) -> None:
    """Raise, before any work, where a file or a figure cannot be written."""
    from xr_avocado.io.atomic import file_to_write

    if figure is not None and Path(figure).suffix not in FIGURES:
        raise CubeError(f"{figure!r}: write figures to {', '.join(FIGURES)}")
    for target in (file, figure):
        if target is not None:
            file_to_write(target, "results are")


def _draw(figure: Any, target: str) -> None:
    from matplotlib import pyplot as plt

    from xr_avocado.io.atomic import replacing

    with replacing(Path(target)) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(target).suffix[1:])
    plt.close(figure)
    print(target)


def qc(a: argparse.Namespace) -> None:
    """Check the observed tracks of a cube against each other: one row a track, and flags."""
    from xr_avocado import plot
    from xr_avocado import qc as verb
    from xr_avocado.io.zarr import open_cube

    cube = open_cube(a.cube)
    _check_written(a.out, figure=a.plot)
    table = verb.qc(cube, progress=a.progress)
    if a.plot:
        _draw(plot.qc(table)[0].figure, a.plot)
    _show(table, a.out)


def segment(a: argparse.Namespace) -> None:
    """Divide the genome into states by a fitted cube's factors, and write them as BED with colors."""
    from xr_avocado import segment as verb
    from xr_avocado.io.zarr import open_cube

    frame = verb.segment(
        open_cube(a.fitted), a.states, regions=a.regions, seed=a.seed, bed=a.out, as_="frame", progress=a.progress
    )
    print(f"{len(frame):,} runs of {frame['state'].nunique()} states in {a.out}")


def report(a: argparse.Namespace) -> None:
    """Write one self-contained HTML page about a cube and its model."""
    from xr_avocado import report as verb
    from xr_avocado.io.zarr import open_cube

    truth = None if a.truth is None else open_cube(a.truth)
    page = verb.report(
        open_cube(a.cube), a.out, truth=truth, regions=a.region, genes=a.genes, device=a.device, progress=a.progress
    )
    print(page)


def info(a: argparse.Namespace) -> None:
    """Say what a store holds."""
    from xr_avocado.io.zarr import open_cube

    print(_summary(open_cube(a.cube), a.cube))


def _show(table: pd.DataFrame, out: str | None) -> None:
    from xr_avocado.io.atomic import replacing

    if out is None:
        print(table.to_string(index=False, float_format="{:.4f}".format))
        return
    with replacing(out) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
    print(out)


def _summary(ds: xr.Dataset, store: str | Path) -> str:
    from xr_avocado.summary import as_text, summary

    summary(ds)  # which raises where the store is no cube
    return f"{'store':<12} {store}\n{as_text(ds)}"


def _track(text: str) -> tuple[str, str]:
    celltype, colon, assay = text.rpartition(":")
    if not (celltype and colon and assay):
        raise CubeError(f"{text!r} is not a track; write CELLTYPE:ASSAY, as in E003:H3K4me1")
    return celltype, assay


def _beside(store: str, suffix: str) -> Path:
    path = Path(store)
    return path.with_name(path.name.removesuffix(".zarr") + suffix)


def _json(path: str) -> dict[str, Any]:
    try:
        settings = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise CubeError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CubeError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise CubeError(f'{path} does not hold settings by name, as in {{"nodes": 64}}')
    return settings


def _parser() -> argparse.ArgumentParser:
    from xr_avocado import __version__

    parser = argparse.ArgumentParser(
        prog="xr-avocado", description="Impute the epigenomic experiments that nobody ran."
    )
    parser.add_argument("--version", action="version", version=f"xr-avocado {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, add) in _COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        add(command.add_argument)
        command.add_argument("--quiet", dest="progress", action="store_false", help="show no progress bar")
        command.add_argument("--verbose", action="store_true", help="log what is done; show an error's traceback")
        command.set_defaults(run=run)
    return parser


def _demo_options(add: Callable[..., Any]) -> None:
    add("--out", default="demo", metavar="DIR", help="folder to write (default: demo)")


def _build_options(add: Callable[..., Any]) -> None:
    add("sheet", metavar="SHEET", help="TSV or CSV with the columns celltype, assay, path")
    add("store", metavar="STORE", help="folder to write, such as pilot.zarr")
    add("--genome", required=True, help="assembly (hg38, mm10, …) or chrom.sizes file")
    add("--regions", metavar="BED", help="BED file of the regions to take (default: whole chromosomes)")
    add("--binsize", type=int, default=25, metavar="BP", help="width of a bin (default: 25)")
    add(
        "--transform",
        default="arcsinh",
        choices=["arcsinh", "log1p", "none"],
        help="of each bin's mean (default: arcsinh)",
    )
    add(
        "--uncovered",
        default="zero",
        choices=["zero", "ignore"],
        help="what bases without a record are (default: zero)",
    )
    add("--replicates", choices=["mean"], help="average the files of an experiment that has several")
    add("--n-jobs", type=int, metavar="N", help="processes at a time (default: one a core)")


def _fit_options(add: Callable[..., Any]) -> None:
    add("cube", metavar="CUBE", help="store that build wrote")
    add("--out", metavar="STORE", help="folder to write (default: CUBE's name with .fitted.zarr)")
    add("--overwrite", action="store_true", help="replace it where it is another fit")
    add("--checkpoint-minutes", type=float, default=10, metavar="N", help="time between checkpoints (default: 10)")
    add("--preset", choices=["paper", "small"], help="sizes of the model (default: by the number of experiments)")
    add("--config", metavar="JSON", help="file of model settings, such as search writes")
    add("--epochs", type=int, metavar="N", help="passes over the positions, at most")
    add("--hold-out", action="append", default=[], metavar="CELLTYPE:ASSAY", help="hide this track; may be repeated")
    add("--seed", type=int, default=0, metavar="N", help="fixes the run (default: 0)")
    _device_option(add)


def _extend_options(add: Callable[..., Any]) -> None:
    add("fitted", metavar="FITTED", help="store that fit wrote")
    add("cube", metavar="CUBE", help="store that build wrote: new cell types, new assays or new positions")
    add("--out", metavar="STORE", help="folder to write (default: FITTED's name with .extended.zarr)")
    add(
        "--overwrite",
        action="store_true",
        help="replace it if it is there, and work towards it that is of another call",
    )
    add(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the positions (default: 4; new positions: as many as fit kept)",
    )
    add("--refine", action="store_true", help="then train everything further, the old with the new")
    add("--only-new", action="store_true", help="write the new positions alone")
    add("--seed", type=int, default=0, metavar="N", help="fixes the run (default: 0)")
    _device_option(add)


def _search_options(add: Callable[..., Any]) -> None:
    add("cube", metavar="CUBE", help="store that build wrote")
    add("--trials", type=int, default=20, metavar="N", help="how many in the end (default: 20)")
    add(
        "--file",
        metavar="FILE",
        help="where to keep the search, to go on with it (default: CUBE's name with .search.jsonl)",
    )
    add("--space", metavar="JSON", help='file of ranges by setting, as {"nodes": {"low": 8, "high": 64, "log": true}}')
    add("--preset", choices=["paper", "small"], help="the model to vary (default: by the number of experiments)")
    add("--epochs", type=int, metavar="N", help="passes over the positions in each fit, at most")
    add("--folds", metavar="N", help="folds of a trial: a number, or latin (default: the first three of latin)")
    add("--measure", default="mse", metavar="NAME", help="what to compare by (default: mse)")
    add("--out", metavar="JSON", help="file for the best settings (default: CUBE's name with .best.json)")
    add("--plot", metavar="FILE", help="draw the trials and the importance of settings: .png, .pdf or .svg")
    add("--seed", type=int, default=0, metavar="N", help="fixes the search (default: 0)")
    _device_option(add)


def _impute_options(add: Callable[..., Any]) -> None:
    add("fitted", metavar="FITTED", help="store that fit wrote")
    add("out", metavar="OUT", help="folder to write")
    add("--region", metavar="REGION", help="as chr1:1Mb-2Mb, or a BED file (default: everything)")
    add("--celltype", action="append", metavar="LABEL", help="only this cell type; may be repeated")
    add("--assay", action="append", metavar="LABEL", help="only this assay; may be repeated")
    add("--track", action="append", default=[], metavar="CELLTYPE:ASSAY", help="just this track; may be repeated")
    add("--only-missing", action="store_true", help="leave out experiments that were run")
    add("--format", default="bigwig", choices=["bigwig", "zarr"], help="what to write (default: bigwig)")
    _device_option(add)


def _embed_options(add: Callable[..., Any]) -> None:
    add("fitted", metavar="FITTED", help="store that fit wrote")
    add("out", metavar="OUT", help="file to write: .tsv, .bed (positions) or .h5ad (cell types, assays)")
    add("--axis", choices=[POSITION, CELLTYPE, ASSAY], help="default: celltype for .h5ad, else position")
    add("--regions", metavar="REGION", help="positions of these only: as chr1:1Mb-2Mb, or a BED file")
    add("--scale", type=int, action="append", metavar="BP", help="factors of this bin width only; may be repeated")


def _evaluate_options(add: Callable[..., Any]) -> None:
    add("fitted", metavar="FITTED", help="store that fit wrote")
    add("--truth", metavar="CUBE", help="store with the tracks that were held out (default: FITTED itself)")
    add("--track", action="append", default=[], metavar="CELLTYPE:ASSAY", help="score this track; may be repeated")
    add(
        "--method",
        action="append",
        metavar="NAME[=FOLDER]",
        help="a layer or baseline (imputed, average, celltype_average, additive, ridge, cp), or a name of yours for a "
        "folder of bigWigs; may be repeated (default: imputed and average)",
    )
    add("--genes", metavar="BED", help="genes with their strand, for the scores in genes and promoters")
    add("--enhancers", metavar="BED", help="enhancers, for the score in them")
    add(
        "--convention",
        default="avocado",
        choices=["avocado", "challenge", "chromimpute"],
        help="how ties, missing bins and annotations are counted (default: avocado)",
    )
    add(
        "--space",
        default="arcsinh",
        choices=["arcsinh", "signal"],
        help="what scores are computed on (default: arcsinh)",
    )
    add("--measure", action="append", metavar="NAME", help="such as mse, gwcorr; may be repeated (default: all)")
    add("--out", metavar="TSV", help="write the table there instead of showing it")
    add("--plot", metavar="FILE", help="draw the scores by mark and method: .png, .pdf or .svg")
    _device_option(add)


def _qc_options(add: Callable[..., Any]) -> None:
    add("cube", metavar="CUBE", help="any store that build or fit wrote")
    add("--plot", metavar="FILE", help="draw the table, as .png, .pdf or .svg")
    add("--out", metavar="TSV", help="write the table there instead of showing it")


def _segment_options(add: Callable[..., Any]) -> None:
    add("fitted", metavar="FITTED", help="store that fit wrote")
    add("out", metavar="OUT", help="BED file to write")
    add("--states", type=int, default=10, metavar="N", help="number of states (default: 10)")
    add("--regions", metavar="REGION", help="of these only: as chr1:1Mb-2Mb, or a BED file")
    add("--seed", type=int, default=0, metavar="N", help="fixes the states (default: 0)")


def _report_options(add: Callable[..., Any]) -> None:
    add("cube", metavar="CUBE", help="any store that build or fit wrote")
    add("out", metavar="OUT", help="HTML file to write")
    add("--truth", metavar="CUBE", help="store with the tracks that were held out, to score and show them")
    add("--region", action="append", metavar="REGION", help="an example locus; may be repeated (default: three chosen)")
    add("--genes", metavar="BED", help="genes to draw below the loci")
    _device_option(add)


def _info_options(add: Callable[..., Any]) -> None:
    add("cube", metavar="CUBE", help="any store that build or fit wrote")


def _device_option(add: Callable[..., Any]) -> None:
    add("--device", help="cpu, cuda or mps (default: the fastest at hand)")


_COMMANDS: dict[str, tuple[Run, Callable[[Callable[..., Any]], None]]] = {
    "demo": (demo, _demo_options),
    "build": (build, _build_options),
    "fit": (fit, _fit_options),
    "extend": (extend, _extend_options),
    "search": (search, _search_options),
    "impute": (impute, _impute_options),
    "embed": (embed, _embed_options),
    "evaluate": (evaluate, _evaluate_options),
    "qc": (qc, _qc_options),
    "segment": (segment, _segment_options),
    "report": (report, _report_options),
    "info": (info, _info_options),
}
