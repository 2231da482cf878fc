"""Public functions beside the verbs against wrong arguments, and every verb on cubes at the edge of what is one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tiny import CONFIG, QUIET
from told import Call, says

import xr_avocado as xa
from xr_avocado import datasets, evaluate, plot, tasks
from xr_avocado.accessor import AvocadoAccessor, Figures
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.model.config import Config

SIZES = {"chr1": 20_010}
TRAIN = {"config": CONFIG, "epochs": 1, **QUIET}
GENES = pd.DataFrame(
    {"chrom": ["chr1"] * 3, "start": [1_000, 9_000, 30_000], "end": [2_000, 12_000, 31_000], "strand": "+"}
)
CUBE = datasets.simulate(n_celltypes=3, n_assays=3, chromsizes=SIZES)
SHEET = pd.DataFrame({"celltype": ["C1"], "assay": ["A"], "path": ["x.bw"]})
LABELS = np.arange(60) % 3 == 0
FEATURES = {"x": LABELS[:, None] * 1.0}
SCORES = pd.DataFrame({"celltype": ["C1"], "assay": ["DNase"], "method": ["average"], "mse": [1.0]})


def call(function: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """A call of a function, named for the report of a failure."""
    shown = ", ".join([*(repr(a)[:24] for a in args), *(f"{k}={v!r}"[:40] for k, v in how.items())])
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}".replace("build.", "")
    return pytest.param(lambda _: function(*args, **how), id=f"{name}({shown})")


WRONG = [
    *(call(xa.build_cube, *args, **{"genome": SIZES, **QUIET, **how}) for args, how in [
        ((7, "x.zarr"), {}),
        ((None, "x.zarr"), {}),
        ((SHEET[:0], "x.zarr"), {}),
        ((SHEET.drop(columns="assay"), "x.zarr"), {}),
        ((SHEET, 7), {}),
        ((SHEET, "x.zarr"), {"genome": 7}),
        ((SHEET, "x.zarr"), {"genome": None}),
        ((SHEET, "x.zarr"), {"genome": {}}),
        ((SHEET, "x.zarr"), {"genome": "hg99"}),
        ((SHEET, "x.zarr"), {"regions": 7}),
        ((SHEET, "x.zarr"), {"regions": []}),
        ((SHEET, "x.zarr"), {"transform": "log"}),
        ((SHEET, "x.zarr"), {"transform": 7}),
        ((SHEET, "x.zarr"), {"uncovered": "nan"}),
        ((SHEET, "x.zarr"), {"replicates": "sum"}),
        ((SHEET, "x.zarr"), {"precision": "float8"}),
        ((SHEET, "x.zarr"), {"precision": 0}),
        ((SHEET, "x.zarr"), {"precision": None}),
        ((SHEET, "x.zarr"), {"n_jobs": 0}),
        ((SHEET, "x.zarr"), {"n_jobs": "many"}),
        ((SHEET, "x.zarr"), {"n_jobs": 1.5}),
        ((SHEET, "x.zarr"), {"binsize": 0}),
        ((SHEET, "x.zarr"), {"binsize": "wide"}),
        ((SHEET, "x.zarr"), {"binsize": 2.5}),
    ]),
    *(call(xa.open_cube, store) for store in (7, None, [], {}, "", "none.zarr")),
    call(xa.read_keras, 7),
    call(xa.read_keras, None),
    call(xa.read_keras, []),
    call(xa.read_keras, ""),
    call(xa.read_keras, "none", genome="hg99"),
    call(xa.read_keras, "none", chrom=7),
    *(call(datasets.simulate, *args, **how) for args, how in [
        ((0,), {}), ((-1,), {}), (("many",), {}), ((1.5,), {}), ((None,), {}), ((2, 0), {}), ((2, "some"), {}),
        ((2, 2, 7), {}), ((2, 2, {}), {}), ((2, 2, "hg38"), {}), ((2, 2, {"chr1": 0}), {}), ((2, 2, {"chr1": "long"}), {}),
        ((2, 2, {"chr1": 1_000.5}), {}), ((), {"binsize": 0}), ((), {"binsize": "wide"}), ((), {"seed": "lucky"}), ((), {"seed": -1}),
    ]),
    call(datasets.simulated_elements, 7),
    call(datasets.simulated_elements, {}),
    call(datasets.simulated_elements, seed="lucky"),
    call(datasets.pretrained, "avocado", chrom="chr1"),
    call(datasets.pretrained, 7, chrom="chr1"),
    call(datasets.pretrained, [], chrom="chr1"),
    call(datasets.pretrained, "roadmap-hg19", chrom="21"),
    call(datasets.pretrained, "roadmap-hg19", chrom=7),
    call(datasets.pretrained, "roadmap-hg19", chrom=[]),
    call(datasets.pretrained, "roadmap-hg19", chrom="chr21", cache=7),
    call(datasets.roadmap_pilot, cache=7),
    *(call(plot.tracks, CUBE, *args, **how) for args, how in [
        (("chr9:0-100",), {}), ((7,), {}), (("chr1:0-900",), {"celltype": "C9"}), (("chr1:0-900",), {"assay": 7}),
        (("chr1:0-900",), {"pairs": 7}), (("chr1:0-900",), {"pairs": []}), (("chr1:0-900",), {"variables": "coverage"}),
        (("chr1:0-900",), {"variables": []}), (("chr1:0-900",), {"genes": 7}), (("chr1:0-900",), {"axes": []}),
    ]),
    call(plot.history, CUBE),
    call(plot.attributions, CUBE, "C1", "H3K4me3"),
    call(plot.attributions, CUBE, "C9", "H3K4me3"),
    call(plot.embedding, CUBE),
    call(plot.attribution_by_peaks, SCORES),
    call(plot.attribution_by_peaks, 7),
    call(plot.browser_tracks, SHEET[:0], "x.ini"),
    call(plot.browser_tracks, SCORES, "x.ini"),
    call(plot.browser_tracks, 7, "x.ini"),
    call(plot.qc, SCORES),
    call(plot.qc, 7),
    call(plot.scores, SCORES[:0]),
    call(plot.scores, SCORES, measures="accuracy"),
    call(plot.scores, SCORES, measures=[]),
    call(plot.scores, SCORES, axes=[]),
    call(plot.scores, 7),
    call(plot.loci, SCORES),
    call(plot.loci, 7),
    call(plot.search, 7),
    call(plot.search, SCORES),
    call(plot.tasks, SCORES),
    call(plot.tasks, 7),
    *(call(getattr(evaluate, name), *args) for name in ("mse", "gwcorr", "match1", "aucobs1") for args in [
        ([1.0, 2.0], [1.0]), ("ab", "ab"), ([[1.0]], [[1.0]]), (None, None), (["a", "b"], [1.0, 2.0]),
    ]),
    call(evaluate.mse, [1.0], [1.0], convention="ours"),
    call(evaluate.msegene, [1.0, 2.0], [1.0, 2.0], [0.5, 1.0]),
    call(evaluate.msegene, [1.0, 2.0], [1.0, 2.0], np.ones(3, bool)),
    call(evaluate.msegene, [1.0, 2.0], [1.0, 2.0], "genes"),
    call(evaluate.msegene, [1.0, 2.0], [1.0, 2.0], None),
    call(evaluate.msevar, [1.0, 2.0], [1.0, 2.0], [1.0]),
    call(evaluate.msevar, [1.0, 2.0], [1.0, 2.0], "variance"),
    call(tasks.cross_validate, {}, LABELS, **QUIET),
    call(tasks.cross_validate, 7, LABELS, **QUIET),
    call(tasks.cross_validate, FEATURES, 7, **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS[:9], **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, task="genes", **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, folds=1, **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, folds="many", **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, repeats=0, **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, repeats="many", **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, groups=7, **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, seed="lucky", **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, n_jobs="many", **QUIET),
    call(tasks.cross_validate, FEATURES, LABELS, device="tpu-ish", **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C9", **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype=7, **QUIET),
    call(tasks.feature_sets, CUBE, 7, celltype="C1", **QUIET),
    call(tasks.feature_sets, CUBE, [], celltype="C1", **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", sets=["theirs"], **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", sets=7, **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", sets=[], **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", others=7, **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", others={"theirs": 7}, **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", without=["ATAC"], **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", without=7, **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", agg="sum of squares", **QUIET),
    call(tasks.feature_sets, CUBE, GENES, celltype="C1", windows=0, **QUIET),
    call(tasks.pair_feature_sets, CUBE, GENES, celltype="C1", **QUIET),
    call(tasks.pair_feature_sets, CUBE, 7, celltype="C1", **QUIET),
    call(tasks.expression, 7, GENES),
    call(tasks.expression, CUBE.signal, GENES),
    call(tasks.expression, CUBE.signal[0, 0], 7),
    call(tasks.expression, CUBE.signal[0, 0], GENES[:0]),
    call(tasks.expression, CUBE.signal[0, 0], GENES, threshold="high"),
    call(tasks.expression, CUBE.signal[0, 0], GENES, transform="log"),
    call(tasks.expression, {"+": "x.bw"}, GENES),
    call(tasks.replication_timing, 7),
    call(tasks.replication_timing, GENES),
    call(tasks.replication_timing, GENES.assign(score=1.0), binsize=0),
    call(tasks.replication_timing, GENES.assign(score=1.0), threshold="late"),
    call(tasks.fire, 7),
    call(tasks.fire, GENES[:0]),
    call(tasks.fire, GENES, binsize="wide"),
    call(tasks.interactions, 7),
    call(tasks.interactions, GENES),
    call(tasks.interactions, None),
    call(tasks.summary, 7),
    call(tasks.summary, SCORES),
    call(tasks.compare, 7),
    call(tasks.compare, SCORES),
    *(call(GenomeBins, *args) for args in [
        (7, 25), ("chr1", 25), (None, 25), ([("chr1", 0)], 25), ([("chr1", 0, 0)], 25), ([("chr1", 5, 1)], 25), ([("chr1", -5, 10)], 25),
        ([("chr1", "a", "b")], 25), ([("chr1", 0, 100)], 0), ([("chr1", 0, 100)], "wide"), ([("chr1", 0, 100)], 2.5),
        ([("chr1", 0, 100)], None), ([("chr1", 0, 100), ("chr1", 50, 200)], 25), ([("chr1", 0, np.nan)], 25),
    ]),
    *(call(Config, **settings) for settings in [
        {"nodes": 0}, {"nodes": "wide"}, {"layers": -1}, {"scales": ()}, {"scales": (2, 10)}, {"scales": "fine"},
        {"genome_factors": (1,)}, {"learning_rate": "fast"}, {"learning_rate": float("nan")}, {"epochs": None},
    ]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where a call writes in spite of itself, it writes here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XR_AVOCADO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("function", WRONG)
def test_a_wrong_argument_of_a_public_function_is_told(function, tmp_path):
    says(function, None)
    assert list(tmp_path.iterdir()) == []


# --- cubes at the edge -------------------------------------------------------------------------------------------------------

NEWCOMER = datasets.simulate(n_celltypes=5, n_assays=4, chromsizes={"chr1": 50_010}).isel(celltype=[4])
VERBS: dict[str, Call] = {
    "sel": lambda ds: ds.avocado.sel("chr1"),
    "coarsen": lambda ds: ds.avocado.coarsen(2).compute(),
    "hold_out": lambda ds: ds.avocado.hold_out(ds.avocado.experiments[-1:]).compute(),
    "average": lambda ds: ds.avocado.average().compute(),
    "fit": lambda ds: ds.avocado.fit(**TRAIN),
    "fit small": lambda ds: ds.avocado.fit("small", epochs=1, **QUIET),
    "impute": lambda ds: ds.avocado.impute().compute(),
    "extend": lambda ds: ds.avocado.extend(NEWCOMER.sel(assay=ds.assay), epochs=1, **QUIET).avocado.impute().compute(),
    "calibrate": lambda ds: ds.avocado.calibrate(**QUIET),
    "interval": lambda ds: ds.avocado.impute().avocado.interval().compute(),
    "to_anndata": lambda ds: ds.avocado.to_anndata(),
    "embed": lambda ds: ds.avocado.embed(),
    "embed celltype": lambda ds: ds.avocado.embed("celltype"),
    "attribute": lambda ds: ds.avocado.attribute(str(ds.celltype[0].item()), str(ds.assay[0].item())).compute(),
    "attribution_by_peaks": lambda ds: ds.avocado.attribution_by_peaks(
        str(ds.assay[0].item()), peaks={(str(c), str(ds.assay[0].item())): GENES for c in ds.celltype.values}, **QUIET
    ),
    "segment": lambda ds: ds.avocado.segment(2, as_="frame", **QUIET),
    "qc": lambda ds: ds.avocado.qc(**QUIET),
    "normalize": lambda ds: ds.avocado.normalize(**QUIET).compute(),
    "denormalize": lambda ds: ds.avocado.normalize(**QUIET).avocado.denormalize().compute(),
    "cross_validate": lambda ds: ds.avocado.cross_validate(folds=2, fit=TRAIN, **QUIET),
    "evaluate": lambda ds: ds.avocado.impute().avocado.evaluate(**QUIET),
    "variable_loci": lambda ds: ds.avocado.variable_loci(
        peaks=dict.fromkeys(ds.avocado.experiments, GENES), methods=["average"], **QUIET
    ),
    "relationships": lambda ds: ds.avocado.relationships(genes=GENES, methods=["average"], **QUIET),
    "search": lambda ds: ds.avocado.search(1, fit={"config": CONFIG, "epochs": 1}, folds=2, **QUIET),
    "report": lambda ds: ds.avocado.report("x.html", **QUIET),
    "to_zarr": lambda ds: ds.avocado.to_zarr("x.zarr", **QUIET).compute(),
    "to_bigwig": lambda ds: ds.avocado.to_bigwig("out", variable="signal", **QUIET),
    "to_bigwig imputed": lambda ds: ds.avocado.impute().avocado.to_bigwig("out", **QUIET),
    "to_chromhmm": lambda ds: ds.avocado.to_chromhmm("out", variable="signal", **QUIET),
    "to_keras": lambda ds: ds.avocado.to_keras("model", **QUIET),
    "experiments": lambda ds: ds.avocado.experiments,
    "bins": lambda ds: ds.avocado.bins,
    "plot.tracks": lambda ds: ds.avocado.plot.tracks("chr1", celltype=str(ds.celltype[0].item())),
    "plot.attributions": lambda ds: ds.avocado.plot.attributions(str(ds.celltype[0].item()), str(ds.assay[0].item()), "chr1"),
    "plot.embedding": lambda ds: ds.avocado.plot.embedding(),
    "plot.history": lambda ds: ds.avocado.plot.history(),
    "plot.panel": lambda ds: ds.avocado.plot.panel(),
    "plot.qc": lambda ds: ds.avocado.plot.qc(**QUIET),
    "plot.scores": lambda ds: ds.avocado.impute().avocado.plot.scores(**QUIET),
    "plot.loci": lambda ds: ds.avocado.plot.loci(
        peaks=dict.fromkeys(ds.avocado.experiments, GENES), methods=["average"], **QUIET
    ),
    "repr": lambda ds: (repr(ds.avocado), ds.avocado._repr_html_()),
}  # fmt: skip
EDGES: dict[str, Call] = {
    "a track that is NaN": lambda ds: ds.assign(signal=ds.signal.where((ds.celltype != "C1") | (ds.assay != "H3K4me3"))),
    "all tracks NaN": lambda ds: ds.assign(signal=ds.signal * np.nan),
    "a cell type without a track": lambda ds: ds.avocado.hold_out([("C1", str(a)) for a in ds.assay.values]),
    "an assay without a track": lambda ds: ds.avocado.hold_out([(str(c), "H3K4me3") for c in ds.celltype.values]),
    "no track at all": lambda ds: ds.avocado.hold_out(ds.avocado.experiments),
    "one track": lambda ds: ds.isel(celltype=[0], assay=[0]),
    "one cell type": lambda ds: ds.isel(celltype=[0]),
    "one assay": lambda ds: ds.isel(assay=[0]),
    "one position": lambda ds: ds.isel(position=[7]),
    "two positions far apart": lambda ds: ds.isel(position=[7, -1]),
    "constant signal": lambda ds: ds.assign(signal=ds.signal * 0),
}  # fmt: skip


@pytest.fixture(scope="module", params=["context", "factors"])
def model(request: pytest.FixtureRequest) -> xr.Dataset:
    cube = datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr1": 50_010})
    if request.param == "factors":
        return cube.avocado.fit("small", epochs=1, **QUIET)
    return cube.avocado.fit(**TRAIN).avocado.calibrate(**QUIET)


def test_every_verb_and_figure_is_tried():
    verbs = {name for name in vars(AvocadoAccessor) if not name.startswith("_") and name != "plot"}
    figures = {f"plot.{name}" for name in vars(Figures) if not name.startswith("_")}
    assert {name.split()[0] for name in VERBS} == {*verbs, *figures, "repr"}
    functions = [*(getattr(plot, name) for name in plot.__all__), *(getattr(tasks, name) for name in tasks.__all__)]
    functions += [xa.build_cube, xa.open_cube, xa.read_keras, *(getattr(datasets, name) for name in datasets.__all__)]
    tried = " ".join(parameter.id for parameter in WRONG) + " ".join(figures)
    for function in functions:
        assert inspect.isclass(function) or f".{function.__name__}" in tried or f"{function.__name__}(" in tried, (
            function
        )


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", VERBS)
def test_a_cube_at_the_edge_gives_a_result_or_is_told(model, name, edge):
    from matplotlib import pyplot as plt

    cube = EDGES[edge](model)
    try:
        VERBS[name](cube)
    except (CubeError, GenomeError, ValueError):
        says(VERBS[name], cube)
    finally:
        plt.close("all")
