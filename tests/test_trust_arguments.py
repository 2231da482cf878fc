"""Every public function against what people give by mistake: an error of ours that says what is allowed, before any long work."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tiny import CONFIG, QUIET
from told import says

from xr_avocado import datasets
from xr_avocado.accessor import AvocadoAccessor
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeError

TRAIN = {"config": CONFIG, "epochs": 1, **QUIET}
GENES = pd.DataFrame(
    {"chrom": ["chr1"] * 3, "start": [1_000, 9_000, 30_000], "end": [2_000, 12_000, 31_000], "strand": "+"}
)
PEAKS = {("C1", "DNase"): GENES}
NEW = datasets.simulate(n_celltypes=5, n_assays=4, chromsizes={"chr1": 50_010})


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return datasets.simulate(n_celltypes=4, n_assays=4, chromsizes={"chr1": 50_010})


@pytest.fixture(scope="module")
def fitted(cube: xr.Dataset) -> xr.Dataset:
    return cube.avocado.fit(**TRAIN).avocado.calibrate(**QUIET).avocado.impute()


def verb(name: str, *args: Any, **how: Any) -> Any:
    """A call of a verb, named for the report of a failure."""
    shown = ", ".join([*(repr(a)[:30] for a in args), *(f"{k}={v!r}"[:40] for k, v in how.items())])
    return pytest.param(lambda ds: getattr(ds.avocado, name)(*args, **how), id=f"{name}({shown})")


NOWHERE = [
    verb(name, *args, **{**how, key: "chr9:0-100"})
    for name, key, args, how in [
        ("sel", "region", (), {}),
        ("embed", "regions", (), {}),
        ("to_anndata", "regions", (), {}),
        ("attribute", "region", ("C1", "DNase"), {}),
    ]
]
UNKNOWN = [
    verb("hold_out", [("C9", "DNase")]),
    verb("hold_out", [("C1", "ATAC")]),
    verb("impute", "C9"),
    verb("impute", "C1", "ATAC"),
    verb("impute", tracks=[("C1", "ATAC")]),
    verb("attribute", "C9", "DNase"),
    verb("attribute", "C1", "ATAC"),
    verb("evaluate", tracks=[("C9", "DNase")], **QUIET),
    verb("evaluate", methods=["guess"], **QUIET),
    verb("evaluate", measures=["accuracy"], **QUIET),
    verb("evaluate", space="log", **QUIET),
    verb("evaluate", convention="ours", **QUIET),
    verb("evaluate", annotations={"introns": GENES}, **QUIET),
    verb("average", tracks=[("C9", "DNase")]),
    verb("embed", "tissue"),
    verb("embed", "position", scales=[7]),
    verb("embed", "position", regions=GENES, agg="sum of squares"),
    verb("embed", "position", regions=GENES, agg="mean", anchor="middle-ish", flank=100),
    verb("embed", "position", regions=GENES, as_="polars"),
    verb("to_anndata", "tissue"),
    verb("fit", "huge", **QUIET),
    verb("fit", config={"depth": 3}, **QUIET),
    verb("fit", validation=[("C9", "DNase")], **TRAIN),
    verb("cross_validate", folds="random-ish", fit=TRAIN, **QUIET),
    verb("variable_loci", peaks=PEAKS, methods=["guess"], **QUIET),
    verb("relationships", genes=GENES, methods=["guess"], **QUIET),
    verb("to_bigwig", "out", variable="coverage", **QUIET),
    verb("to_bigwig", "out", tracks=[("C9", "DNase")], **QUIET),
    verb("to_zarr", "x.zarr", precision="float8", **QUIET),
    verb("calibrate", "random-ish", **QUIET),
    verb("segment", 2, scales=[7], **QUIET),
    verb("segment", 2, scales=[], **QUIET),
    verb("segment", 2, regions="chr9:0-100", **QUIET),
    verb("segment", 2, as_="polars", **QUIET),
    verb("to_chromhmm", "out", variable="coverage", **QUIET),
    verb("to_chromhmm", "out", variable="celltype_factors", **QUIET),
    verb("to_chromhmm", "out", celltype="C9", **QUIET),
    verb("to_chromhmm", "out", assay=["DNase", "ATAC"], **QUIET),
    verb("report", "x.html", regions="chr9:0-100", **QUIET),
    verb("report", "x.html", regions=["chr1:0-100", "chr1:900,000,000-900,000,100"], **QUIET),
]
OF_ANOTHER_KIND = [
    verb("sel", 7),
    verb("sel", None),
    verb("sel", {"chrom": "chr1"}),
    verb("coarsen", "wide"),
    verb("coarsen", 0),
    verb("coarsen", 1.5),
    verb("coarsen", -2),
    verb("hold_out", "C1"),
    verb("hold_out", ["C1"]),
    verb("hold_out", 7),
    verb("hold_out", [("C1", "DNase", "more")]),
    verb("impute", 7),
    verb("impute", tracks="C1"),
    verb("impute", tracks=7),
    verb("impute", model="model.zarr"),
    verb("attribute", "C1", "DNase", steps=0),
    verb("attribute", "C1", "DNase", steps="many"),
    verb("attribute", "C1", "DNase", tolerance="tight"),
    verb("evaluate", "truth.zarr", **QUIET),
    verb("evaluate", tracks=7, **QUIET),
    verb("evaluate", bootstraps=-1, **QUIET),
    verb("evaluate", measures="mean", **QUIET),
    verb("embed", 7),
    verb("embed", "position", regions=GENES, agg="mean", flank=-5),
    verb("embed", "position", regions=GENES, agg="mean", windows=0),
    verb("embed", "position", regions=7),
    verb("fit", 7, **QUIET),
    verb("fit", config=7, **QUIET),
    verb("fit", epochs="many", config=CONFIG, **QUIET),
    verb("fit", epochs=-1, config=CONFIG, **QUIET),
    verb("fit", validation=7, **TRAIN),
    verb("fit", validation=2.0, **TRAIN),
    verb("fit", seed="lucky", **TRAIN),
    verb("fit", config={**CONFIG, "nodes": 0}, **QUIET),
    verb("fit", config={**CONFIG, "nodes": "wide"}, **QUIET),
    verb("fit", config={**CONFIG, "learning_rate": -1}, **QUIET),
    verb("fit", config={**CONFIG, "learning_rate": math.nan}, **QUIET),
    verb("fit", device="tpu-ish", **TRAIN),
    verb("extend", "cube.zarr", **QUIET),
    verb("extend", None, **QUIET),
    verb("extend", NEW, seed="lucky", **QUIET),
    verb("extend", NEW, seed=-1, **QUIET),
    verb("extend", NEW, epochs="many", **QUIET),
    verb("extend", NEW, epochs=0, **QUIET),
    verb("extend", NEW, epochs=1.5, **QUIET),
    verb("extend", NEW, store=7, **QUIET),
    verb("extend", NEW, device="tpu-ish", **QUIET),
    verb("extend", NEW, client=7, **QUIET),
    verb("normalize", peak="high", **QUIET),
    verb("normalize", peak=-1, **QUIET),
    verb("cross_validate", folds=7.5, fit=TRAIN, **QUIET),
    verb("cross_validate", folds=[], fit=TRAIN, **QUIET),
    verb("cross_validate", folds=[[]], fit=TRAIN, **QUIET),
    verb("cross_validate", folds=[7], fit=TRAIN, **QUIET),
    verb("cross_validate", folds=1000, fit=TRAIN, **QUIET),
    verb("cross_validate", seed="lucky", fit=TRAIN, **QUIET),
    verb("cross_validate", seed=-1, fit=TRAIN, **QUIET),
    verb("cross_validate", seed=1.5, fit=TRAIN, **QUIET),
    verb("cross_validate", methods=7, fit=TRAIN, **QUIET),
    verb("cross_validate", fit=7, **QUIET),
    verb("cross_validate", fit={"epoks": 1}, **QUIET),
    verb("cross_validate", fit={**TRAIN, "epochs": "many"}, **QUIET),
    verb("cross_validate", fit={**TRAIN, "store": "x.zarr"}, **QUIET),
    verb("cross_validate", fit={**TRAIN, "validation": 7}, **QUIET),
    verb("attribution_by_peaks", "DNase", peaks={7: GENES}, **QUIET),
    verb("attribution_by_peaks", "DNase", peaks={("C1", "DNase", "more"): GENES}, **QUIET),
    verb("attribution_by_peaks", "DNase", peaks=PEAKS, celltype=7, **QUIET),
    verb("attribution_by_peaks", "DNase", peaks=PEAKS, blocks=0, **QUIET),
    verb("attribution_by_peaks", "DNase", peaks=PEAKS, seed="lucky", **QUIET),
    verb("variable_loci", peaks={7: GENES}, **QUIET),
    verb("variable_loci", peaks=PEAKS, tracks=7, **QUIET),
    verb("variable_loci", peaks=PEAKS, methods={"mine": 7}, **QUIET),
    verb("relationships", genes=GENES, pairs=7, **QUIET),
    verb("relationships", genes=GENES, pairs=["H3K4me3"], **QUIET),
    verb("relationships", genes=GENES, pairs=[("H3K4me3", "summit", "H3K4me1", "body", 1)], **QUIET),
    verb("search", "many", **QUIET),
    verb("search", None, **QUIET),
    verb("search", math.nan, **QUIET),
    verb("search", 0, **QUIET),
    verb("search", 1, space=7, **QUIET),
    verb("search", 1, space=["nodes"], **QUIET),
    verb("search", 1, space={"context_units": (8, 4)}, **QUIET),
    verb("search", 1, folds=2.5, **QUIET),
    verb("search", 1, measure=["mse"], **QUIET),
    verb("search", 1, measure="mseprom", **QUIET),
    verb("search", 1, seed="lucky", **QUIET),
    verb("search", 1, seed=-1, **QUIET),
    verb("search", 1, file=7, **QUIET),
    verb("search", 1, fit=7, **QUIET),
    verb("search", 1, fit={"seed": "lucky"}, **QUIET),
    verb("search", 1, fit={"validation": 7}, **QUIET),
    verb("search", 1, fit={"epochs": "many"}, **QUIET),
    verb("variable_loci", peaks=7, **QUIET),
    verb("relationships", genes=GENES.drop(columns="strand"), **QUIET),
    verb("relationships", genes=7, **QUIET),
    verb("to_zarr", 7, **QUIET),
    verb("to_bigwig", 7, **QUIET),
    verb("to_bigwig", "out", n_jobs="many", **QUIET),
    verb("to_bigwig", "out", n_jobs=-1, **QUIET),
    verb("to_keras", 7, **QUIET),
    verb("calibrate", 7.5, **QUIET),
    verb("calibrate", 1, **QUIET),
    verb("calibrate", effort=0, **QUIET),
    verb("calibrate", effort=math.nan, **QUIET),
    verb("calibrate", effort="much", **QUIET),
    verb("calibrate", seed="lucky", **QUIET),
    verb("calibrate", device="tpu-ish", **QUIET),
    verb("interval", 0),
    verb("interval", 1.0),
    verb("interval", 80),
    verb("interval", math.nan),
    verb("interval", "wide"),
    verb("interval", None),
    verb("segment", 1, **QUIET),
    verb("segment", 2.5, **QUIET),
    verb("segment", "many", **QUIET),
    verb("segment", None, **QUIET),
    verb("segment", 100_000, **QUIET),
    verb("segment", 2, regions=7, **QUIET),
    verb("segment", 2, scales="fine", **QUIET),
    verb("segment", 2, sample=0, **QUIET),
    verb("segment", 2, sample="all", **QUIET),
    verb("segment", 2, iterations=0, **QUIET),
    verb("segment", 2, starts=0, **QUIET),
    verb("segment", 2, seed="lucky", **QUIET),
    verb("segment", 2, bed=7, **QUIET),
    verb("to_chromhmm", 7, **QUIET),
    verb("to_chromhmm", "out", variable=7, **QUIET),
    verb("to_chromhmm", "out", celltype=7, **QUIET),
    verb("to_chromhmm", "out", threshold="high", **QUIET),
    verb("to_chromhmm", "out", threshold=math.nan, **QUIET),
    verb("to_chromhmm", "out", binsize=0, **QUIET),
    verb("to_chromhmm", "out", binsize=-200, **QUIET),
    verb("to_chromhmm", "out", binsize=30, **QUIET),
    verb("to_chromhmm", "out", binsize="wide", **QUIET),
    verb("report", 7, **QUIET),
    verb("report", "x.html", truth="truth.zarr", **QUIET),
    verb("report", "x.html", scores="scores.tsv", **QUIET),
    verb("report", "x.html", scores=GENES, **QUIET),
    verb("report", "x.html", regions=7, **QUIET),
    verb("report", "x.html", genes=7, **QUIET),
    verb("report", "x.html", genes="none.bed", **QUIET),
]
EMPTY = [
    verb("sel", []),
    verb("sel", ""),
    verb("hold_out", []),
    verb("embed", "position", regions=[], agg="mean"),
    verb("evaluate", tracks=[], **QUIET),
    verb("evaluate", methods=[], **QUIET),
    verb("variable_loci", peaks={}, **QUIET),
    verb("attribution_by_peaks", "DNase", peaks=PEAKS, celltype=[], **QUIET),
    verb("relationships", genes=GENES, pairs=[], **QUIET),
    verb("relationships", genes=GENES[:0], **QUIET),
    verb("to_bigwig", "out", tracks=[], **QUIET),
    verb("impute", []),
    verb("calibrate", [], **QUIET),
    verb("segment", 2, regions=[], **QUIET),
    verb("to_chromhmm", "out", celltype=[], **QUIET),
    verb("to_chromhmm", "out", assay=[], **QUIET),
    verb("report", "x.html", regions=[], **QUIET),
]
MAY_BE_EMPTY = {
    "hold_out([])",
    "impute([])",
    "report('x.html', regions=[], progress=False)",
    *(f"evaluate({of}=[], progress=False)" for of in ("tracks", "methods")),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where a call writes in spite of itself, it writes here."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("call", [*NOWHERE, *UNKNOWN, *OF_ANOTHER_KIND])
def test_what_is_not_there_or_of_another_kind_is_told(fitted, call):
    says(call, fitted)


@pytest.mark.parametrize("call", EMPTY)
def test_nothing_is_told_or_is_nothing(fitted, call, request):
    try:
        call(fitted)
    except (CubeError, GenomeError, ValueError) as error:
        assert len(str(error)) > 15
    else:
        assert request.node.callspec.id in MAY_BE_EMPTY


NEEDS_A_MODEL = [
    verb("embed"),
    verb("embed", "celltype"),
    verb("attribute", "C1", "DNase"),
    verb("extend", datasets.simulate(chromsizes={"chr1": 50_010}), **QUIET),
    verb("to_keras", "model", **QUIET),
    verb("impute"),
    verb("to_bigwig", "out", **QUIET),
    verb("denormalize"),
    verb("calibrate", **QUIET),
    verb("interval"),
    verb("segment", 2, **QUIET),
    verb("to_chromhmm", "out", **QUIET),
]


@pytest.mark.parametrize("call", NEEDS_A_MODEL)
def test_a_cube_without_a_model_says_how_to_get_one(cube, call):
    assert "fit" in (message := says(call, cube)) or "impute" in message or "normal" in message


VERBS = {
    "sel": ("chr1:0-1,000",),
    "coarsen": (2,),
    "hold_out": ([("C1", "DNase")],),
    "average": (),
    "fit": (),
    "impute": (),
    "extend": (datasets.simulate(chromsizes={"chr1": 50_010}),),
    "to_anndata": (),
    "embed": (),
    "attribution_by_peaks": (GENES,),
    "attribute": ("C1", "DNase"),
    "qc": (),
    "denormalize": (),
    "normalize": (),
    "cross_validate": (),
    "evaluate": (),
    "variable_loci": (None, GENES),
    "relationships": (None, GENES),
    "search": (1,),
    "to_zarr": ("x.zarr",),
    "to_bigwig": ("out",),
    "to_keras": ("model",),
}
"""What a verb is called with on a dataset that is none of its kind; one that is not here is called with nothing."""
ALL = sorted(name for name, value in vars(AvocadoAccessor).items() if not name.startswith("_") and callable(value))


@pytest.mark.parametrize(
    "ds",
    [
        xr.Dataset(),
        xr.Dataset({"temperature": ("time", [1.0, 2.0])}),
        xr.Dataset({"signal": ("position", [1.0])}),
        datasets.simulate(chromsizes={"chr1": 5_000}).drop_vars("observed"),
        datasets.simulate(chromsizes={"chr1": 5_000}).isel(celltype=0),
        datasets.simulate(chromsizes={"chr1": 5_000}).isel(position=0),
    ],
    ids=["nothing", "weather", "no labels", "no observed", "one cell type's slice", "one position's slice"],
)
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("sel", "coarsen")])
def test_a_dataset_that_is_no_cube_is_told(ds, name):
    if name == "relationships":
        says(lambda ds: ds.avocado.relationships(genes=GENES, **QUIET), ds)
    elif name == "variable_loci":
        says(lambda ds: ds.avocado.variable_loci(peaks=PEAKS, **QUIET), ds)
    else:
        says(lambda ds: getattr(ds.avocado, name)(*VERBS.get(name, ())), ds)


# --- cubes at the edge of what is one -------------------------------------------------------------------------------------


def test_a_track_of_nothing_but_nan_is_told(cube):
    hollow = cube.assign(signal=cube.signal.where((cube.celltype != "C1") | (cube.assay != "DNase")))
    with pytest.raises(CubeError, match="C1 DNase is marked as observed but its signal is all NaN"):
        hollow.avocado.fit(**TRAIN)
    assert len(hollow.avocado.qc(**QUIET)) == int(cube.observed.sum())


def test_a_cell_type_without_a_track_is_imputed_from_what_there_is(cube):
    bare = cube.avocado.hold_out([("C1", str(assay)) for assay in cube.assay.values])
    fitted = bare.avocado.fit(**TRAIN)
    assert np.isfinite(fitted.avocado.impute("C1").imputed.sel(celltype="C1")).all()


def test_one_track_one_position_and_none(cube):
    one = cube.isel(celltype=[0], assay=[0])
    with pytest.raises(CubeError):
        one.avocado.hold_out([(str(one.celltype[0].item()), str(one.assay[0].item()))]).avocado.fit(**TRAIN)
    for edge in (one, cube.isel(position=[7])):
        assert np.isfinite(edge.avocado.fit(**TRAIN).avocado.impute().imputed).all()
    empty = cube.isel(position=slice(0))
    with pytest.raises(CubeError, match="has no bins"):
        empty.avocado.fit(**TRAIN)
    assert empty.avocado.evaluate(**QUIET).mse.isnull().all()


@pytest.mark.parametrize(
    "call",
    [
        verb("attribute", "C1", "DNase"),
        verb("embed"),
        verb("to_anndata"),
        verb("to_bigwig", "out", **QUIET),
        verb("calibrate", **QUIET),
        verb("segment", 2, **QUIET),
        verb("report", "x.html", **QUIET),
    ],
)
def test_a_cube_without_bins_is_told(fitted, call):
    says(call, fitted.isel(position=slice(0)))


def test_what_one_track_or_one_bin_can_tell_is_told(fitted):
    one = fitted.isel(celltype=[0], assay=[0])
    assert np.isnan(one.avocado.qc(**QUIET).imputed).all()
    assert one.avocado.attribute("C1", "H3K4me3").attribution.notnull().all()
    # Calibrated before, at other levels.
    again = fitted.isel(position=[7]).avocado.calibrate(**QUIET)
    assert again.error_quantiles.notnull().all()


def test_no_epochs_are_told(cube):
    with pytest.raises(ValueError, match="epochs must be at least 1; got 0"):
        cube.avocado.fit(config=CONFIG, epochs=0, **QUIET)


@pytest.mark.parametrize("which", ["learning_rate", "context_learning_rate", "genome_learning_rate"])
def test_a_learning_rate_that_is_far_too_high_ends_with_an_explanation_or_a_model(cube, which):
    from dataclasses import fields

    from xr_avocado.model.config import Config

    if which not in {field.name for field in fields(Config)}:
        pytest.skip(f"there is no {which}")
    try:
        fitted = cube.avocado.fit(config={**CONFIG, which: 1e12}, epochs=3, **QUIET)
    except (CubeError, ValueError, FloatingPointError, RuntimeError, ArithmeticError) as error:
        assert "learning rate" in str(error) or "learning_rate" in str(error) or "diverge" in str(error)
    else:
        assert np.isfinite(fitted.avocado.impute().imputed).all()


def test_a_gpu_that_is_not_there_is_told_before_training(cube):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    message = says(lambda ds: ds.avocado.fit(device="cuda", **TRAIN), cube)
    assert "cuda" in message.lower()


def test_arguments_after_the_first_have_names():
    for name, value in vars(AvocadoAccessor).items():
        if name.startswith("_") or not callable(value):
            continue
        positional = [p for p in inspect.signature(value).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= 4, f"{name} takes {len(positional) - 1} arguments by place"
