"""Results are what a plain computation gives, whatever the chunks, the workers and the kind of array."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import coordinates, cubes, spell_out

from xr_avocado import datasets
from xr_avocado.genome import GenomeBins
from xr_avocado.io.bigwig import write_bins
from xr_avocado.io.build import build_cube
from xr_avocado.io.encoding import narrow
from xr_avocado.transforms import TRANSFORMS, transform_named

QUIET = {"progress": False}
LARGEST = float(np.finfo(np.float32).max)
FLOATS = st.floats(0, LARGEST, width=32)


@pytest.mark.parametrize("name", TRANSFORMS)
@given(values=st.lists(FLOATS, min_size=1, max_size=20))
def test_a_transform_and_its_inverse_are_the_values(name, values):
    transform, x = transform_named(name), np.array(values, np.float64)
    np.testing.assert_allclose(transform.inverse(transform.forward(x)), x, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", ["arcsinh", "none"])
@given(value=st.floats(-LARGEST, LARGEST, width=32))
def test_transforms_of_signed_signal_are_odd(name, value):
    transform, x = transform_named(name), np.array([value, -value], np.float64)
    forward = transform.forward(x)
    assert forward[0] == -forward[1]
    np.testing.assert_allclose(transform.inverse(forward), x, rtol=1e-12)


@given(values=st.lists(st.floats(2.0**-14, 65_504, width=32), min_size=1, max_size=30))
def test_float16_errs_by_at_most_one_part_in_2048(values):
    x = np.array(values, np.float32)
    stored = narrow(x, dtype=np.dtype(np.float16), keepbits=None).astype(np.float64)
    assert (abs(stored - x) <= x.astype(np.float64) * 2.0**-11).all()


# --- dask and numpy, chunks and workers ----------------------------------------------------------------------------------


@settings(max_examples=8)
@given(cube=cubes(lazy=True), factor=st.sampled_from([1, 2, 3]))
def test_dask_gives_what_numpy_gives(cube, factor):
    whole = cube.compute()
    for verb in (
        lambda ds: ds.avocado.coarsen(factor),
        lambda ds: ds.avocado.average(),
        lambda ds: ds.avocado.hold_out(ds.avocado.experiments[:1]),
    ):
        xr.testing.assert_allclose(verb(cube).compute(), verb(whole).compute(), rtol=1e-6)


@settings(max_examples=8)
@given(cube=cubes(), factor=st.sampled_from([2, 3]))
def test_wider_bins_are_means_of_their_bases(cube, factor):
    wide, model = cube.avocado.coarsen(factor).compute(), cube.compute()
    per_base = {}
    for (chrom, start, end), values in zip(coordinates(model), model.signal.values[0, 0], strict=True):
        per_base |= {(chrom, base): values for base in range(start, end)}
    expected = [
        np.mean([per_base[chrom, base] for base in range(start, end)]) for chrom, start, end in coordinates(wide)
    ]
    np.testing.assert_allclose(wide.signal.values[0, 0], expected, rtol=1e-5)
    segments = list(model.avocado.bins.segments.itertuples(index=False, name=None))
    assert coordinates(wide) == spell_out(segments, model.avocado.bins.binsize * factor)


@settings(max_examples=8)
@given(cube=cubes(), data=st.data())
def test_average_activity_is_the_mean_of_the_other_cell_types(cube, data):
    average = cube.avocado.average().average.compute()
    c, a, p = (data.draw(st.integers(0, n - 1)) for n in cube.signal.shape)
    others = [cube.signal.values[k, a, p] for k in range(cube.sizes["celltype"]) if k != c and cube.observed[k, a]]
    if others:
        np.testing.assert_allclose(average.values[c, a, p], np.mean(others, dtype=np.float64), rtol=1e-5)


@pytest.fixture(scope="module")
def panel() -> xr.Dataset:
    return datasets.simulate(n_celltypes=4, n_assays=3, chromsizes={"chr1": 120_010, "chr2": 30_000})


@pytest.mark.parametrize("chunks", [{"celltype": 1, "assay": 1}, {"position": 777}, {"position": -1, "celltype": 3}])
def test_chunks_change_no_score_no_factor_and_no_report(panel, chunks):
    lazy = panel.chunk(chunks)
    held = [("C1", "H3K4me3"), ("C2", "H3K27ac")]
    config = {"nodes": 8, "layers": 1, "context": False}
    for verb in (
        lambda ds: ds.avocado.qc(**QUIET),
        lambda ds: ds.avocado.hold_out(held).avocado.evaluate(ds, methods=["average"], **QUIET),
    ):
        pd.testing.assert_frame_equal(verb(lazy), verb(panel), rtol=1e-6)
    for verb in (
        lambda ds: ds.avocado.normalize(**QUIET).compute(),
        lambda ds: ds.avocado.fit(config=config, epochs=1, **QUIET).avocado.impute().compute(),
    ):
        xr.testing.assert_allclose(verb(lazy), verb(panel), rtol=1e-6)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_scheduler_changes_nothing(panel, scheduler):
    lazy = panel.chunk(position=500).avocado.average().avocado.coarsen(2)
    with dask.config.set(scheduler=scheduler):
        xr.testing.assert_identical(lazy.compute(), panel.avocado.average().avocado.coarsen(2).compute())


def test_the_number_of_workers_changes_no_byte(tmp_path):
    sizes = {"chr1": 60_010, "chr2": 9_000}
    bins = GenomeBins.from_chromsizes(sizes, 25)
    for i in range(3):
        values = np.random.default_rng(i).gamma(0.5, 4, len(bins))
        write_bins(tmp_path / f"{i}.bw", bins, values, sizes, progress=False)
    paths = [str(tmp_path / f"{i}.bw") for i in range(3)]
    sheet = pd.DataFrame({"celltype": list("aba"), "assay": list("xxy"), "path": paths})
    stores = []
    for n_jobs in (1, 2):
        store = tmp_path / f"{n_jobs}.zarr"
        build_cube(sheet, store, genome=sizes, n_jobs=n_jobs, progress=False)
        stores.append(files_of(store))
    assert stores[0] == stores[1]


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@settings(max_examples=8)
@given(cube=cubes(), data=st.data())
def test_a_region_of_a_result_is_the_result_of_the_region(cube, data):
    first = data.draw(st.integers(0, cube.sizes["position"] - 1))
    rows = slice(first, data.draw(st.integers(first + 1, cube.sizes["position"])))
    xr.testing.assert_allclose(
        cube.avocado.average().isel(position=rows).compute(), cube.isel(position=rows).avocado.average().compute()
    )


@settings(max_examples=20)
@given(cube=cubes())
def test_the_shipped_strategy_draws_cubes(cube):
    assert cube.avocado.experiments
    assert coordinates(cube) == spell_out(cube.avocado.bins)
    assert (cube.signal.notnull().all("position") == cube.observed).all()
