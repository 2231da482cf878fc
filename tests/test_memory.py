"""Memory of the verbs that go along the genome: what the docstrings say, on a cube whose layers are larger than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import CONFIG

import xr_avocado as xa
from xr_avocado.accessor import AvocadoAccessor

CHILD = """
import json, sys
import dask, dask.array as da, matplotlib.pyplot as plt, numpy as np, pandas as pd
import xr_avocado as xa
from xr_avocado import (
    aggregate, attribute, baselines, extend_labels, extend_positions, impute, pieces, qc, sample, search, segment, track_reader
)
from xr_avocado.cube import CONTEXT, ERROR_LEVEL, ERROR_PROBABILITY, ERRORS, FITTED, TRACK_MEAN, TRACK_SPREAD
from xr_avocado.io import chromhmm, export, keras
from xr_avocado.loci import Relationship

QUIET = {"progress": False}
small, large, context, out, *chosen = sys.argv[1:]

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

def genes(ds):
    start = np.arange(5_000, ds.sizes["position"] * 25 - 5_000, 40_000)
    return pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 2_000, "strand": "+"})

def peaks(ds):
    return pd.concat([genes(ds).assign(celltype=c, assay=a) for c, a in ds.avocado.experiments])

def at_loci(ds):
    tracks = [(c, ds.assay.values[0]) for c in ds.celltype.values]
    ds.avocado.variable_loci(ds, peaks=peaks(ds), tracks=tracks, methods={"itself": "signal"}, **QUIET)

def related(ds):
    first, second = ds.assay.values[:2]
    pairs = [Relationship(first, "promoter", second, "promoter", 1)]
    ds.avocado.relationships(ds, genes=genes(ds), methods={"itself": "signal"}, pairs=pairs, **QUIET)

def explained(ds):
    region = f"chr1:0-{min(10_000_000, 25 * ds.sizes['position'])}"
    return ds.avocado.attribute("C1", ds.assay.values[0], region, steps=1, tolerance=1.0).attribution

def bare(ds):
    ds = ds[["signal", "observed"]]
    ds.attrs = {k: v for k, v in ds.attrs.items() if k != FITTED}
    return ds

def with_parts(ds, *names):
    # Of another model what is asked of this cube: its own is one of factors.
    other = xa.open_cube(context)
    return bare(ds).assign({name: other[name].variable for name in names}).assign_attrs({FITTED: other.attrs[FITTED]})

def calibrated(ds):
    other = xa.open_cube(context)
    return ds.assign({name: other[name].variable for name in (*ERRORS, ERROR_LEVEL, ERROR_PROBABILITY, TRACK_SPREAD)})

def renamed(ds):
    return bare(ds).assign_coords(celltype=["N1", "N2", "N3"])

def published(ds):
    about = ds.attrs[FITTED]
    wide = da.zeros((ds.sizes["position"], 25), chunks=(50_000, 25), dtype=np.float32)
    ds = ds.drop_vars("genome_factors_25bp").assign(genome_factors_25bp=(("position", "factor_25bp"), wide))
    return ds.assign_attrs({FITTED: about | {"config": about["config"] | {"average": False}}})

def figure(axes):
    plt.close(np.ravel(axes)[0].figure)

REGION = "chr1:100,000-400,000"
FIT = {"config": {"nodes": 2, "layers": 1, "genome_factors": (1, 2, 1), "context": False, "average": True}, "epochs": 1, "validation": None}
SPACE = {"nodes": [2, 3]}

verbs = {
    "summary": lambda ds, out: (repr(ds.avocado), ds.avocado._repr_html_()),
    "sel": lambda ds, out: float(ds.avocado.sel(REGION).signal.max()),
    "hold_out": lambda ds, out: float(ds.avocado.hold_out(ds.avocado.experiments[:2]).signal.max()),
    "average": lambda ds, out: float(ds.avocado.average().average.max()),
    "additive": lambda ds, out: float(xa.baselines.additive(ds).max()),
    "ridge": lambda ds, out: float(xa.baselines.ridge(ds).max()),
    "impute": lambda ds, out: float(ds.avocado.impute().imputed.max()),
    "interval": lambda ds, out: float(calibrated(ds).avocado.impute(uncertainty=True).avocado.interval().imputed_upper.max()),
    "normalize": lambda ds, out: float(bare(ds).avocado.normalize(**QUIET).signal.max()),
    "denormalize": lambda ds, out: float(bare(ds).avocado.normalize(**QUIET).avocado.denormalize().signal.max()),
    "to_zarr": lambda ds, out: ds.avocado.impute()[["imputed", "imputed_tracks", "observed"]].avocado.to_zarr(out, **QUIET),
    "to_bigwig": lambda ds, out: ds.avocado.impute().avocado.to_bigwig(out, n_jobs=0, **QUIET),
    "to_chromhmm": lambda ds, out: ds.avocado.to_chromhmm(out, variable="signal", **QUIET),
    "to_keras": lambda ds, out: published(ds).avocado.to_keras(out, **QUIET),
    "coarsen": lambda ds, out: float(ds.avocado.coarsen(250).signal.max()),
    "embed": lambda ds, out: ds.avocado.embed("position", regions=genes(ds), agg="mean", as_="frame"),
    "to_anndata": lambda ds, out: ds.avocado.to_anndata(regions="chr1:0-250,000"),
    "attribute": lambda ds, out: float(explained(ds).max()),
    "attribution_by_peaks": lambda ds, out: ds.avocado.attribution_by_peaks(ds.assay.values[0], peaks=peaks(ds), steps=2, **QUIET),
    "qc": lambda ds, out: ds.avocado.qc(**QUIET),
    "qc, context": lambda ds, out: with_parts(ds, *CONTEXT_PARTS).avocado.qc(**QUIET),
    "segment": lambda ds, out: ds.avocado.segment(3, sample=20_000, iterations=1, starts=1, **QUIET),
    "variable_loci": lambda ds, out: at_loci(ds),
    "relationships": lambda ds, out: related(ds),
    "report": lambda ds, out: ds.avocado.report(f"{out}.html", **QUIET),
    "plot.tracks": lambda ds, out: figure(ds.avocado.impute().avocado.average().avocado.plot.tracks(REGION)),
    "plot.attributions": lambda ds, out: figure(ds.avocado.plot.attributions("C1", ds.assay.values[0], "chr1:100,000-110,000")),
    "extend, cell types": lambda ds, out: ds.avocado.extend(renamed(ds), epochs=1, **QUIET),
    "extend, positions": lambda ds, out: xa.open_cube(small).avocado.sel("chr1:0-250,000").avocado.extend(bare(ds), store=out, epochs=1, **QUIET),
    "calibrate": lambda ds, out: with_parts(ds, *CONTEXT_PARTS).avocado.calibrate(3, **QUIET),
    "cross_validate": lambda ds, out: bare(ds).avocado.cross_validate([ds.avocado.experiments[:1]] * 2, fit=FIT, measures=["mse"], **QUIET),
    "search": lambda ds, out: bare(ds).avocado.search(2, folds=[ds.avocado.experiments[:1]], space=SPACE, fit=FIT, **QUIET),
}
CONTEXT_PARTS = ("celltype_factors", "assay_factors", CONTEXT, TRACK_MEAN, TRACK_SPREAD)

# A part of what is computed at once otherwise, so that a layer of some seconds is larger than what is held.
impute.POSITIONS //= 4
baselines.POSITIONS //= 4
for module, name in [
    (export, "VALUES"), (sample, "BINS"), (pieces, "PIECE"), (aggregate, "SPAN"), (aggregate, "ROWS"), (segment, "PIECE"),
    (chromhmm, "PIECE"), (keras, "STEP"), (search, "BINS"),
]:
    setattr(module, name, getattr(module, name) // 8)
for module, name in [(extend_labels, "MEMORY"), (extend_positions, "MEMORY"), (track_reader, "VALUES"), (track_reader, "KEPT")]:
    setattr(module, name, getattr(module, name) // 32)
grown = {}
with dask.config.set(scheduler="threads", num_workers=2):
    for name in chosen:
        # Once for what libraries hold.
        verbs[name](xa.open_cube(small), f"{out}/small-{name}")
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        verbs[name](xa.open_cube(large), f"{out}/large-{name}")
        grown[name] = peak() - before
print(json.dumps(grown))
"""
TRACKS, BINS = 9, 2_000_000
FIXED = 48e6
"""Bytes that do not grow with the layer, which takes 72e6: in each of two threads a chunk, what it is computed from, and a decoded chunk of the store."""
SAMPLE = (1 << 21) // 8
READ_SAMPLE = (4 * TRACKS + 32) * SAMPLE
PART = (1 << 30) // 32
FIT = 2.6 * TRACKS * BINS + 48 * BINS + 16 * (1 + 2 / 10 + 1 / 200) * BINS

ABOVE_FIXED = {
    "ridge": 24 * TRACKS * (1 << 18),
    # Zoom levels take 14 bytes a bin, of one file at a time.
    "to_bigwig": 14 * BINS,
    "to_chromhmm": 3 * 3 * BINS // 8,
    "qc": READ_SAMPLE,
    "qc, context": READ_SAMPLE + (512 << 20) // 32,
    "normalize": READ_SAMPLE,
    "denormalize": READ_SAMPLE,
    "report": READ_SAMPLE,
    # Of bins of 250 bp: components as they are and in order (3 and 1), and what decoding takes with 3 states.
    "segment": 8 * (16 + 3 * 3) * BINS // 10,
    "extend, cell types": PART,
    "extend, positions": PART,
    # Less what is fixed, or a third copy of the tracks would go unseen.
    "calibrate": 2 * 2.6 * TRACKS * BINS + 48 * BINS - FIXED,
    "cross_validate": FIT,
    "search": FIT,
}
"""What the docstrings say beside; 0 for all other verbs."""
GROUPS = {
    "layers": [
        "sel", "hold_out", "average", "additive", "ridge", "impute", "interval", "normalize", "denormalize", "coarsen"
    ],
    "written": ["to_zarr", "to_bigwig", "to_chromhmm", "to_keras", "to_anndata", "embed"],
    "looked at": ["summary", "plot.tracks", "plot.attributions", "report", "qc", "qc, context", "segment"],
    "scored and explained": ["variable_loci", "relationships", "attribute", "attribution_by_peaks"],
    "trained": ["extend, cell types", "extend, positions", "calibrate", "cross_validate", "search"],
}  # fmt: skip
ELSEWHERE = {"fit": "test_training.py", "evaluate": "test_evaluate.py"}
LABELS_ONLY = {"experiments", "bins", "plot", "summary"}


def test_every_verb_is_watched() -> None:
    watched = {name.split(",")[0].split(".")[0] for group in GROUPS.values() for name in group}
    verbs = {name for name in dir(AvocadoAccessor) if not name.startswith("_")}
    assert verbs - watched - LABELS_ONLY == ELSEWHERE.keys()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    factors = {"nodes": 2, "layers": 1, "genome_factors": (1, 2, 1)}
    config = factors | {"context": False, "average": True}
    *paths, context = [folder / f"{name}.zarr" for name in ("small", "large", "context")]
    for path, bins in zip(paths, (20_000, BINS), strict=True):
        cube = xa.datasets.simulate(3, 3, {"chr1": bins * 25})
        cube.avocado.fit(config=config, epochs=1, validation=None, store=path, progress=False)
    model = xa.open_cube(paths[0])[["signal", "observed"]].avocado.fit(
        config=CONFIG | factors, epochs=1, progress=False
    )
    model.avocado.calibrate(progress=False).avocado.to_zarr(context, progress=False)
    return [*paths, context]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak where Linux keeps it")
@pytest.mark.parametrize("verbs", GROUPS.values(), ids=GROUPS)
def test_a_layer_larger_than_memory_goes_through_chunk_by_chunk(
    stores: list[Path], tmp_path: Path, verbs: list[str]
) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, *stores, tmp_path, *verbs]
    # Memory of arrays that are gone goes back at once, so that the peak is of what was held and not of how malloc reuses it.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    env = os.environ | malloc | {"PYTHONPATH": paths}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    held = json.loads(run.stdout)
    assert held.keys() == set(verbs)
    over = {verb: n / 1e6 for verb, n in held.items() if n > FIXED + ABOVE_FIXED.get(verb, 0)}
    assert not over, held
