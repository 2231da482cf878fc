"""Cubes in zarr stores: what is written comes back, whole or not at all."""

from __future__ import annotations

import json
import os
import weakref

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins, bins_of
from xr_avocado.io import encoding
from xr_avocado.io.zarr import open_cube, to_zarr

BINS = GenomeBins([("chr2", 0, 110_013), ("chr1", 300, 10_000), ("chr1", 12_510, 12_520)], 25)


def make_cube(bins=BINS, *, transform="arcsinh", seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    observed = np.array([[True, False], [True, True], [False, True]])
    signal = np.where(observed[..., None], scale * rng.gamma(1, 1, (3, 2, len(bins))), np.nan).astype(np.float32)
    ds = xr.Dataset(
        {
            "signal": (("celltype", "assay", "position"), signal, {"long_name": "signal"}),
            "observed": (("celltype", "assay"), observed),
        },
        coords={"celltype": ["E1", "T cell/CD4+ é", "001"], "assay": ["H3K4me3", "DNase"]},
        attrs={
            "genome": "made up",
            "chromsizes": {"chr2": np.int64(110_013), "chr10": 500, "chr1": 20_000},
            "transform": transform,
            "uncovered": "zero",
        },
    )
    return assign_bins(ds, bins)


def make_fitted(bins=BINS):
    rng, ds = np.random.default_rng(1), make_cube(bins)
    for factor, name in ((10, "250bp"), (200, "5kbp")):
        coarse = bins.coarsen(factor)
        values = rng.normal(size=(len(coarse), 4)).astype(np.float32)
        ds[f"genome_factors_{name}"] = ((f"position_{name}", f"factor_{name}"), values)
        ds = assign_bins(ds, coarse, f"position_{name}")
    ds["genome_factors_25bp"] = (("position", "factor_25bp"), rng.normal(size=(len(bins), 3)).astype(np.float32))
    ds["celltype_factors"] = (("celltype", "celltype_factor"), rng.normal(size=(3, 4)).astype(np.float32))
    ds["network_bias"] = ((), np.float32(0.1))
    ds["history"] = (("epoch", "metric"), rng.normal(size=(2, 2)))
    ds = ds.assign_coords(metric=["mse", "r"], epoch=[0, 1])
    ds = ds.assign_coords(start_of_gene=("position", np.arange(len(bins)) % 7 == 0))
    return ds.assign_attrs(avocado={"config": {"layers": (64, 64)}, "seed": 3})


def same_but_for_signal(a, b):
    xr.testing.assert_identical(a.drop_vars("signal").compute(), b.drop_vars("signal").compute())


def test_a_cube_comes_back(tmp_path):
    cube = make_cube()
    back = to_zarr(cube, tmp_path / "cube.zarr", progress=False)
    assert bins_of(back) == BINS
    same_but_for_signal(back, cube.assign_attrs(chromsizes={"chr2": 110_013, "chr10": 500, "chr1": 20_000}))
    assert list(back.attrs["chromsizes"]) == ["chr2", "chr10", "chr1"]
    error = abs(back.signal - cube.signal) / cube.signal
    assert back.signal.isnull().equals(cube.signal.isnull())
    assert 0 < float(error.where(cube.signal > 1e-4).max()) <= 2**-11
    assert back.signal.attrs == {"long_name": "signal"}


def test_a_fitted_cube_comes_back_with_its_model(tmp_path):
    fitted = make_fitted()
    back = to_zarr(fitted, tmp_path / "model.zarr", progress=False)
    assert bins_of(back, "position_250bp") == BINS.coarsen(10)
    assert bins_of(back, "position_5kbp") == BINS.coarsen(200)
    for name in set(fitted.data_vars) - {"signal"}:
        xr.testing.assert_identical(back[name].compute(), fitted[name])
        assert back[name].dtype == fitted[name].dtype
    assert back.attrs["avocado"] == {"config": {"layers": [64, 64]}, "seed": 3}
    again = to_zarr(back, tmp_path / "again.zarr", progress=False)
    xr.testing.assert_identical(again.compute(), back.compute())


@settings(max_examples=25)
@given(data=st.data())
def test_a_part_of_a_cube_comes_back(data, tmp_path_factory):
    cube = make_fitted()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(BINS)), min_size=2, max_size=2)))
    part = cube.isel(position=slice(*cuts), celltype=data.draw(st.sampled_from([[0], [2, 1], [0, 1, 2]])))
    if data.draw(st.booleans()):
        part = part.chunk(position=data.draw(st.integers(100, 3000)))
    back = to_zarr(
        part, tmp_path_factory.getbasetemp() / "part.zarr", precision="float32", overwrite=True, progress=False
    )
    assert bins_of(back) == bins_of(part)
    same_but_for_signal(back, part.assign_attrs(back.attrs))
    np.testing.assert_array_equal(back.signal, part.signal)


@pytest.mark.parametrize("mask", ["scattered", "whole"])
def test_a_masked_axis_comes_back(tmp_path, mask):
    keep = np.arange(len(BINS)) % 3 == 0 if mask == "scattered" else np.ones(len(BINS), bool)
    part = make_cube().isel(position=keep)
    back = to_zarr(part, tmp_path / "part.zarr", progress=False)
    assert bins_of(back) == BINS[keep]


# --- what is on disk -------------------------------------------------------------------------------------------------------


def test_the_layout_is_the_specification_s_own(tmp_path):
    to_zarr(make_fitted(), tmp_path / "cube.zarr", progress=False)
    group = zarr.open_group(tmp_path / "cube.zarr", mode="r")
    assert group.metadata.zarr_format == 3 and group.metadata.consolidated_metadata is None
    signal = json.loads((tmp_path / "cube.zarr" / "signal" / "zarr.json").read_text())
    blosc = {"typesize": 2, "cname": "zstd", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
    assert [codec["name"] for codec in signal["codecs"]] == ["bytes", "blosc", "crc32c"]
    assert signal["codecs"][1]["configuration"] == blosc
    assert (signal["data_type"], signal["fill_value"]) == ("float16", "NaN")
    assert group["genome_factors_250bp"].dtype == np.float32
    assert {"chrom", "start", "end", "chrom_250bp"}.isdisjoint(group.array_keys())
    assert group.attrs["segments"] == [["chr2", 0, 110_013], ["chr1", 300, 10_000], ["chr1", 12_510, 12_520]]
    assert group.attrs["xr_avocado_format"] == 1


def test_missing_experiments_cost_no_chunk(tmp_path):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    chunks = {
        tuple(path.relative_to(tmp_path / "cube.zarr/signal/c").parts)
        for path in (tmp_path / "cube.zarr/signal/c").rglob("*")
        if path.is_file()
    }
    assert chunks == {("0", "0", "0"), ("1", "0", "0"), ("1", "1", "0"), ("2", "1", "0")}


def test_chunks_are_tracks_cut_into_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 1024)
    back = to_zarr(make_fitted(), tmp_path / "cube.zarr", progress=False)
    assert back.signal.encoding["chunks"] == (1, 1, 1024)
    assert back.signal.chunks[:2] == ((1, 1, 1), (1, 1))
    assert back.signal.chunks[2][:4] == (1024, 1024, 1024, 1024)
    assert back.genome_factors_25bp.encoding["chunks"] == (1024, 3)
    np.testing.assert_allclose(back.signal, make_cube().signal, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "transform", "dtype", "bits"),
    [("float16", "arcsinh", "float16", 10), ("float32", "arcsinh", "float32", 23), (7, "arcsinh", "float16", 7), (10, "log1p", "float16", 10),
     (12, "arcsinh", "float32", 12), ("float16", "none", "float32", 23), (7, "none", "float32", 7)],
)  # fmt: skip
def test_precision(tmp_path, precision, transform, dtype, bits):
    cube = make_cube(transform=transform, scale=1e5 if transform == "none" else 1)
    back = to_zarr(cube, tmp_path / "cube.zarr", precision=precision, progress=False)
    assert zarr.open_array(tmp_path / "cube.zarr/signal", mode="r").dtype == dtype
    assert back.signal.dtype == np.float32
    error = (abs(back.signal - cube.signal) / cube.signal).where(cube.signal > 1e-3)
    assert float(error.max()) <= 2.0 ** -(bits + 1)
    assert float(error.max()) > 2.0 ** -(bits + 3) or bits == 23
    if bits < 23:
        left = np.frexp(back.signal.values[0, 0])[0] * 2.0 ** (bits + 1)
        np.testing.assert_array_equal(left, np.round(left))


def test_rounding_is_to_nearest_and_keeps_what_is_no_number():
    values = np.array(
        [1.0, 1 + 2**-9, 1 + 3 * 2**-9, -1 - 2**-9, np.nan, np.inf, -np.inf, 0.0, np.float32(np.nan)], np.float32
    )
    values[-1:].view(np.uint32)[:] = 0x7FFFFFFF
    rounded = encoding.narrow(values, dtype=np.dtype(np.float32), keepbits=8)
    np.testing.assert_array_equal(rounded, [1, 1, 1 + 2**-7, -1, np.nan, np.inf, -np.inf, 0, np.nan])


@pytest.mark.parametrize("precision", ["float64", 0, 24, True, None, 8.0])
def test_an_unknown_precision_is_told(tmp_path, precision):
    with pytest.raises(ValueError, match="precision must be"):
        to_zarr(make_cube(), tmp_path / "cube.zarr", precision=precision)
    assert os.listdir(tmp_path) == []


def test_signal_that_float16_cannot_hold_is_told(tmp_path):
    with pytest.raises(CubeError, match="does not fit float16; write with precision='float32'"):
        to_zarr(make_cube(scale=1e6), tmp_path / "cube.zarr", progress=False)
    assert os.listdir(tmp_path) == []


def test_plain_xarray_writes_float16_again(tmp_path):
    back = to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    assert back.signal.encoding["dtype"] == np.float16
    # Without the labels, which plain xarray stores in a way that the specification has not settled.
    back[["signal"]].drop_vars(["celltype", "assay", "chrom", "start", "end"]).to_zarr(
        tmp_path / "plain.zarr", consolidated=False
    )
    assert zarr.open_array(tmp_path / "plain.zarr/signal", mode="r").dtype == np.float16


def test_plain_xarray_reads_the_arrays(tmp_path):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    plain = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    np.testing.assert_allclose(
        plain.signal.sel(celltype="E1", assay="H3K4me3"), make_cube().signal[0, 0], rtol=2**-10, atol=1e-6
    )


# --- lazy ------------------------------------------------------------------------------------------------------------------


def test_opening_reads_labels_and_observed_only(tmp_path):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    for path in (tmp_path / "cube.zarr/signal/c").rglob("*"):
        if path.is_file():
            path.unlink()
    cube = open_cube(tmp_path / "cube.zarr")
    assert cube.observed.sum() == 4
    assert dask.is_dask_collection(cube.signal)


def test_chunks_are_the_users_choice(tmp_path):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    cube = open_cube(tmp_path / "cube.zarr", chunks={"celltype": 3, "position": -1})
    assert cube.signal.chunks == ((3,), (1, 1), (len(BINS),))


def test_a_cube_larger_than_memory_is_written_block_by_block(tmp_path):
    alive, most, blocks, step = 0, 0, 40, 20_000

    def gone():
        nonlocal alive
        alive -= 1

    def block(block_info=None):
        nonlocal alive, most
        out = np.zeros([b - a for a, b in block_info[None]["array-location"]], np.float32)
        alive += 1
        most = max(most, alive)
        weakref.finalize(out, gone)
        return out

    bins = GenomeBins([("chr1", 0, blocks * step * 25)], 25)
    chunks = ((3,), (2,), (step,) * blocks)
    lazy = da.map_blocks(block, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    cube = make_cube(GenomeBins([("chr1", 0, 25)], 25)).isel(position=[]).drop_vars(["signal", "chrom", "start", "end"])
    cube = assign_bins(cube.assign(signal=(("celltype", "assay", "position"), lazy)), bins)
    with dask.config.set(scheduler="threads", num_workers=1):
        back = to_zarr(cube, tmp_path / "cube.zarr", progress=False)
    assert most < 8
    assert bins_of(back) == bins
    assert back.signal.encoding["chunks"] == (1, 1, step)


# --- whole or not at all ---------------------------------------------------------------------------------------------------


def failing(cube):
    def fail(block):
        raise RuntimeError("the power went")

    signal = cube.signal.chunk(position=1000)
    return cube.assign(signal=signal.copy(data=signal.data.map_blocks(fail, meta=np.empty((0, 0, 0), np.float32))))


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="the power went"):
        to_zarr(failing(make_cube()), tmp_path / "cube.zarr", progress=False)
    assert os.listdir(tmp_path) == []


def test_a_failed_overwrite_leaves_the_old_store(tmp_path):
    before = to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False).compute()
    with pytest.raises(RuntimeError, match="the power went"):
        to_zarr(failing(make_cube(seed=1)), tmp_path / "cube.zarr", overwrite=True, progress=False)
    assert os.listdir(tmp_path) == ["cube.zarr"]
    xr.testing.assert_identical(open_cube(tmp_path / "cube.zarr").compute(), before)


def test_a_store_may_be_replaced_by_a_part_of_itself(tmp_path):
    store = to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    expected = store.isel(position=slice(1000, 3000), celltype=[1]).compute()
    back = to_zarr(
        store.isel(position=slice(1000, 3000), celltype=[1]), tmp_path / "cube.zarr", overwrite=True, progress=False
    )
    xr.testing.assert_identical(back.compute(), expected)
    assert os.listdir(tmp_path) == ["cube.zarr"]


def test_a_kill_amid_a_replacement_is_told(tmp_path):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    (tmp_path / "cube.zarr").rename(tmp_path / ".cube.zarr.0123abcd.tmp.old")
    with pytest.raises(CubeError, match=r"Its former contents are .*\.cube\.zarr\.0123abcd\.tmp\.old; rename it"):
        open_cube(tmp_path / "cube.zarr")


def test_nothing_is_replaced_unasked(tmp_path):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    with pytest.raises(CubeError, match="is there already; give overwrite=True"):
        to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    for mine in ("thesis", "thesis/chapter1.tex"):
        with pytest.raises(CubeError, match="is no zarr store, so it is not replaced"):
            to_zarr(make_cube(), tmp_path / mine, overwrite=True, progress=False)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    with pytest.raises(CubeError, match="a path of this machine"):
        to_zarr(make_cube(), "s3://bucket/cube.zarr")


def test_attributes_that_no_store_can_hold_are_told_before_writing(tmp_path):
    with pytest.raises(CubeError, match=r"attrs\['model'\] is of type object"):
        to_zarr(make_cube().assign_attrs(model=object()), tmp_path / "cube.zarr", progress=False)
    assert os.listdir(tmp_path) == []


# --- stores from elsewhere -------------------------------------------------------------------------------------------------


def test_a_store_of_plain_coordinates_opens(tmp_path):
    cube = make_cube()
    plain = cube.drop_vars(["chrom", "start", "end", "celltype", "assay"]).assign_coords(
        celltype=cube.celltype.values.astype(object),
        assay=cube.assay.values.astype(object),
        **{
            name: ("position", cube[name].values.astype(object if name == "chrom" else int))
            for name in ("chrom", "start", "end")
        },
    )
    for attrs in ({**plain.attrs}, {k: v for k, v in plain.attrs.items() if k != "binsize"}):
        plain.attrs = {**attrs, "chromsizes": {"chr2": 110_013, "chr1": 20_000}}
        plain.to_zarr(tmp_path / "plain.zarr", consolidated=False, mode="w")
        back = open_cube(tmp_path / "plain.zarr")
        assert bins_of(back) == BINS
        np.testing.assert_array_equal(back.signal, cube.signal)


def edit(path, change):
    metadata = json.loads((path / "zarr.json").read_text())
    change(metadata["attributes"])
    (path / "zarr.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(xr_avocado_format=2), "has format 2; this xr_avocado reads up to 1: install a newer one"),
        (lambda a: a.pop("segments"), "does not say which bins lie along 'position'"),
        (lambda a: a["segments"].pop(), "is damaged: 'position' has .* but its segments have"),
        (lambda a: a["segments"].reverse(), "bins along 'position' cannot be read"),
        (lambda a: a.update(transform="sqrt"), "unknown transform 'sqrt'"),
    ],
)
def test_a_store_that_does_not_fit_is_told(tmp_path, change, message):
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    edit(tmp_path / "cube.zarr", change)
    with pytest.raises(CubeError, match=message):
        open_cube(tmp_path / "cube.zarr")


def test_what_is_no_cube_is_told(tmp_path):
    with pytest.raises(CubeError, match=r"there is no store .*absent\.zarr; make one with"):
        open_cube(tmp_path / "absent.zarr")
    with pytest.raises(CubeError, match="cannot be read as a zarr store"):
        open_cube(tmp_path)
    (tmp_path / "file.zarr").write_text("zarr?")
    with pytest.raises(CubeError, match="cannot be read as a zarr store"):
        open_cube(tmp_path / "file.zarr")
    xr.Dataset({"temperature": ("time", np.arange(3.0))}).to_zarr(tmp_path / "weather.zarr", consolidated=False)
    with pytest.raises(CubeError, match="has no 'celltype' labels, so it is no cube"):
        open_cube(tmp_path / "weather.zarr")
    to_zarr(make_cube(), tmp_path / "cube.zarr", progress=False)
    (tmp_path / "cube.zarr/zarr.json").write_text("{")
    with pytest.raises(CubeError, match="cannot be read as a zarr store"):
        open_cube(tmp_path / "cube.zarr")
