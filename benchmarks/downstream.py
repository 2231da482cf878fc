"""Downstream tasks on real data: the paper's reference values beside ours, and genes of the pilot regions told from factors.

``python benchmarks/downstream.py [DATA_FOLDER] [--task fire|rna] [--sets ...] [--convention paper|today]`` foretells FIREs of GM12878 and expression in
IMR90 from the features that the authors of Avocado published, by their protocol (20 folds), and prints our average precision beside the
values it is to reproduce, and how many of their standard errors lie between.

``--pilot`` builds the 20 pilot tracks, hides H3K36me3 of a cell type, fits presets on the rest, and tells which genes are active there, that
is have H3K36me3 over their bodies, from factors of their promoters, from the cell type's other tracks, and from all other tracks, with folds
of whole chromosomes. It prints every score, and paired tests between the sets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import xr_avocado as xa
from xr_avocado import tasks

REFERENCE = {
    ("fire", "paper"): {
        "Roadmap": (0.469, 0.025),
        "ChromImpute": (0.375, None),
        "PREDICTD": (0.420, None),
        "AvocadoImp": (0.422, None),
        "AvocadoFac": (0.470, 0.030),
        "majority": (0.078, None),
    },
    ("rna", "paper"): {
        "Roadmap": (0.467, 0.008),
        "ChromImpute": (0.460, None),
        "PREDICTD": (0.430, None),
        "AvocadoImp": (0.468, None),
        "majority": (0.172, None),
    },
    ("fire", "today"): {"Roadmap": (0.445, None), "AvocadoFac": (0.486, None)},
    ("rna", "today"): {"Roadmap": (0.451, None), "AvocadoImp": (0.456, None)},
}
"""Mean average precision and its standard error, where it is known; else ours stands in for it."""
FILES = {"fire": ("FIREs.E116", "fire"), "rna": ("RNAseq.E017", "expression")}
PROMOTER = {"anchor": "start", "flank": (2000, 0), "windows": 8}
PRESETS = {"default": {"config": {"context": False}}, "small": {"preset": "small"}}
"""The default's context term shares nothing with its factors, so these are the same without it."""


def score(folder: Path, task: str, convention: str, chosen: list[str] | None, jobs: int | None) -> pd.DataFrame:
    """Score the feature sets of a task, and say of each how it compares with its reference value as soon as that is known."""
    name, kind = FILES[task]
    reference = REFERENCE[task, convention]
    y, tables = np.load(folder / f"{name}.y.npy"), []
    for each in (each for each in reference if each != tasks.MAJORITY and each in (chosen or reference)):
        start = time.process_time()
        x = np.load(folder / f"{name}.{each}.npy")
        own = tasks.cross_validate({each: x}, y[: len(x)] >= 0.5, task=kind, convention=convention, n_jobs=jobs)
        baseline = not tables and tasks.MAJORITY in reference
        for row in tasks.summary(own).itertuples():
            if row.features == each or baseline:
                value, se = reference[row.features]
                apart = abs(row.mean - value) / (se or row.se)
                print(
                    f"{name:<13}{convention:<8}{row.features:<13}{value:7.3f}{row.mean:9.3f}{row.se:9.3f}{apart:9.1f}",
                    end="",
                )
                print(f"{time.process_time() - start:9.0f} s", flush=True)
        tables.append(own[(own["features"] == each) | baseline])
    return pd.concat(tables, ignore_index=True).assign(of=name)


def main_reference(folder: Path, a: argparse.Namespace) -> None:
    print(
        "20 shuffled folds, seed 0: average precision; how many standard errors apart (of the reference where known); CPU time"
    )
    print(f"{'of':<13}{'':<8}{'features':<13}{'theirs':>7}{'ours':>9}{'se':>9}{'apart':>9}")
    conventions = [a.convention] if a.convention else ["paper", "today"]
    table = pd.concat([score(folder, task, c, a.sets, a.jobs) for task in a.task for c in conventions])
    if a.table:
        table.to_csv(a.table, sep="\t", index=False)


def genes_of(folder: Path) -> pd.DataFrame:
    genes = pd.read_csv(folder / "genes.hg19.pilot.tsv", sep="\t")
    return genes[["chrom", "start", "end", "strand", "gene_name", "gene_type"]]


def active_genes(cube: xr.Dataset, genes: pd.DataFrame, celltype: str, threshold: float) -> pd.DataFrame:
    """Genes at least half of whose body and all of whose promoter are in the pilot regions, and whether they are active."""
    track = cube.signal.sel(celltype=celltype, assay="H3K36me3")
    labels = tasks.expression(track, genes, threshold=threshold)
    upstream = labels.assign(
        start=np.where(labels.strand == "+", labels.start - 2000, labels.end),
        end=np.where(labels.strand == "+", labels.start, labels.end + 2000),
    )
    promoter = tasks.expression(track, upstream.assign(row=labels.index)).set_index("row").covered
    return labels[(labels.covered >= 0.5) & (promoter.reindex(labels.index) == 1)].reset_index(drop=True)


def main_pilot(folder: Path, a: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as store:
        regions = folder / "pilot_regions.hg19.bed"
        cube = xa.build_cube(
            folder / "samples.tsv", f"{store}/pilot.zarr", genome="hg19", regions=regions, progress=False
        )
        cube = cube.load()
    tables = [score_celltype(cube, genes_of(folder), celltype, a) for celltype in a.celltype]
    table = pd.concat(tables, ignore_index=True)
    if a.table:
        table.to_csv(a.table, sep="\t", index=False)
    print(f"\naverage precision of {a.folds} folds of whole chromosomes, convention {a.convention!r}, seed {a.seed}")
    print(tasks.summary(table, by="celltype").drop(columns="task").round(3).to_string())
    print("\ndifferences, with a t test corrected for shared training rows, and after Holm")
    print(tasks.compare(table, by="celltype").drop(columns=["task", "convention", "groups"]).round(3).to_string())


def score_celltype(cube: xr.Dataset, genes: pd.DataFrame, celltype: str, a: argparse.Namespace) -> pd.DataFrame:
    """Fit each preset without the track that labels are made of, and score the sets."""
    hidden = (celltype, "H3K36me3")
    held = cube.avocado.hold_out([hidden])
    labels = active_genes(cube, genes, celltype, a.threshold)
    sets = tasks.feature_sets(held, labels, celltype=celltype, **PROMOTER, progress=False)
    for preset in a.presets:
        start = time.perf_counter()
        fitted = held.avocado.fit(**PRESETS[preset], seed=a.seed, progress=False)
        made = tasks.feature_sets(fitted, labels, celltype=celltype, sets=["factors"], **PROMOTER, progress=False)
        sets[f"factors, {preset}"] = made["factors"]
        epochs = fitted.attrs["avocado"]["best_epoch"]
        print(
            f"{celltype} {preset}: epoch {epochs} of {fitted.sizes['epoch']}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    table = tasks.cross_validate(
        sets, labels, folds=a.folds, groups="chromosome", convention=a.convention, n_jobs=a.jobs, progress=False
    )
    print(f"{celltype}: {len(labels)} genes, {labels.label.sum()} of them active", flush=True)
    return table.assign(celltype=celltype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--task", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--convention", choices=["paper", "today"], help="by default both, and today's for --pilot")
    parser.add_argument(
        "--sets", nargs="+", help="of the features published, those named, such as Roadmap AvocadoFac; by default all"
    )
    parser.add_argument("--jobs", type=int, help="folds at a time; by default one a core")
    parser.add_argument("--pilot", action="store_true", help="genes of the pilot regions instead")
    parser.add_argument("--celltype", nargs="+", default=["E017", "E116", "E117"])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--threshold", type=float, default=0.5, help="of mean arcsinh H3K36me3 over the body")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write every fold's scores here, as TSV")
    a = parser.parse_args()
    if not a.folder.is_dir():
        print(f"skipped: the real data are not here ({a.folder})")
        return
    if a.pilot:
        a.convention = a.convention or "today"
        main_pilot(a.folder / "roadmap_pilot", a)
    else:
        main_reference(a.folder / "downstream", a)


if __name__ == "__main__":
    main()
