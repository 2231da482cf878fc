from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

import xr_avocado as xa
from xr_avocado import datasets
from xr_avocado.baselines import average
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeError

SMALL = {"epochs": 2, "nodes": 16, "layers": 2, "batch": 8_000, "average": True, "context": False}


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return datasets.simulate(n_celltypes=4, n_assays=3, chromsizes={"chr1": 100_010, "chr2": 50_007})


@pytest.fixture(scope="module", params=[True, False], ids=["average", "plain"])
def fitted(truth: xr.Dataset, request: pytest.FixtureRequest) -> xr.Dataset:
    held = truth.avocado.hold_out([("C1", "H3K4me3"), ("C3", "H3K27ac")])
    return held.avocado.fit(config={**SMALL, "average": request.param}, progress=False)


def by_hand(ds: xr.Dataset, celltype: str, assay: str, position: int) -> float:
    """The prediction from the labelled variables alone: concatenate, multiply, rectify, add the average."""
    at = ds.isel(position=position)
    chrom, start = at.chrom.item(), at.start.item()
    x = [ds.celltype_factors.sel(celltype=celltype), ds.assay_factors.sel(assay=assay)]
    for scale, bp in (("25bp", 25), ("250bp", 250), ("5kbp", 5000)):
        dim = "" if bp == 25 else f"_{scale}"
        hit = (ds[f"chrom{dim}"].values == chrom) & (ds[f"start{dim}"].values // bp == start // bp)
        x.append(ds[f"genome_factors_{scale}"].values[hit][0])
    h = np.concatenate(x).astype(float)
    for i in range(3):
        h = ds[f"network_weight_{i}"].values @ h + ds[f"network_bias_{i}"].values
        h = np.maximum(h, 0) if i < 2 else h
    if ds.attrs["avocado"]["config"]["average"]:
        others = [c for c in ds.celltype.values if c != celltype and ds.observed.sel(celltype=c, assay=assay)]
        h = h + np.mean([at.signal.sel(celltype=c, assay=assay).item() for c in others])
    return h.item()


def test_imputed_is_the_network_on_the_labelled_variables(fitted: xr.Dataset) -> None:
    imputed = fitted.avocado.impute().imputed
    for celltype, assay, position in [
        ("C1", "H3K4me3", 0),
        ("C2", "H3K27ac", 3999),
        ("C4", "H3K4me3", 4001),
        ("C3", "H3K27ac", 6000),
    ]:
        got = imputed.sel(celltype=celltype, assay=assay)[position].values
        assert got == pytest.approx(by_hand(fitted, celltype, assay, position), abs=2e-5)


def test_slicing_commutes_with_imputing(fitted: xr.Dataset) -> None:
    whole = fitted.avocado.impute().imputed.values
    rows = fitted.avocado.bins.rows("chr1", 77_001, 91_000)
    for part in (
        fitted.avocado.sel("chr1:77,001-91,000").avocado.impute().imputed,
        fitted.avocado.impute().avocado.sel("chr1:77,001-91,000").imputed,
        fitted.isel(position=rows).avocado.impute().imputed,
        fitted.avocado.impute().imputed.isel(position=rows),
    ):
        np.testing.assert_allclose(part.values, whole[..., rows], atol=1e-5)
    scattered = np.array([3, 8, 4100, 5000])
    np.testing.assert_allclose(
        fitted.avocado.impute().imputed[:, :, scattered].values, whole[..., scattered], atol=1e-5
    )
    np.testing.assert_allclose(
        fitted.isel(position=scattered).avocado.impute().imputed.values, whole[..., scattered], atol=1e-5
    )


def test_a_cube_is_computed_whole_though_its_signal_is_lazy_too(fitted: xr.Dataset) -> None:
    full = fitted.chunk({"position": 1_000}).avocado.impute()
    np.testing.assert_array_equal(full.compute().imputed.values, full.imputed.values)
    np.testing.assert_array_equal(full.load().imputed.values, full.imputed.values)


def test_results_do_not_depend_on_chunks_or_scheduler(fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import xr_avocado.impute
    from xr_avocado.model import prediction

    whole = fitted.avocado.impute().imputed.values
    monkeypatch.setattr(xr_avocado.impute, "POSITIONS", 1_000)
    monkeypatch.setattr(xr_avocado.impute, "CHUNK", 5_000)
    monkeypatch.setattr(prediction, "ACTIVATIONS", 10_000)
    chunked = fitted.chunk(position=777).avocado.impute().imputed
    assert chunked.chunks[1] == (1, 1, 1)
    np.testing.assert_allclose(chunked.values, whole, atol=1e-5)
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(chunked.values, whole, atol=1e-5)


def test_out_of_memory_halves_what_is_predicted_at_once_and_nothing_else(
    fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from xr_avocado.model.network import AvocadoNet

    whole = fitted.avocado.impute().imputed.values
    above, sizes = AvocadoNet.above, []

    def small(net: AvocadoNet, hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        if len(hidden) > 1_000:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return above(net, hidden)

    monkeypatch.setattr(AvocadoNet, "above", small)
    imputed = fitted.avocado.impute().imputed
    with caplog.at_level("WARNING"):
        np.testing.assert_allclose(imputed.values, whole, atol=1e-5)
        failed = [size for size in sizes if size > 1_000]
        np.testing.assert_allclose(imputed.values, whole, atol=1e-5)
    assert failed and failed == [size for size in sizes if size > 1_000], "what failed once is not tried again"
    assert [record.message.split(":")[0] for record in caplog.records] == ["out of memory on the device"]


def test_out_of_memory_with_one_position_is_told(fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from xr_avocado.model.network import AvocadoNet

    def never(*_: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AvocadoNet, "above", never)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fitted.avocado.impute().imputed[0, 0].values  # noqa: B018


def test_bfloat16_is_near_float32(fitted: xr.Dataset, truth: xr.Dataset) -> None:
    exact, rounded = (fitted.avocado.impute(precision=p).imputed.values for p in ("float32", "bfloat16"))
    error = np.sqrt(np.square(rounded - exact).mean()) / exact.std()
    assert 0 < error < 0.02
    context = {"context_units": 4, "context_nodes": 8, "context_members": 1, "context_samples": 100}
    other = truth.avocado.fit(config=SMALL | context | {"context": True, "epochs": 1}, progress=False)
    with pytest.raises(ValueError, match="has a context term"):
        other.avocado.impute(precision="bfloat16")
    with pytest.raises(ValueError, match="'float32' or 'bfloat16'; got 'float16'"):
        fitted.avocado.impute(precision="float16")


def test_the_layer_travels_to_other_processes(fitted: xr.Dataset) -> None:
    part = fitted.avocado.impute().avocado.sel("chr2:1,000-9,000").imputed
    part[0, 0, :5].compute()
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_allclose(again.values, part.values, atol=1e-6)


def test_one_region_of_one_track_reads_one_region_of_one_assay(truth: xr.Dataset) -> None:
    read = []

    class Spy:
        shape, dtype, ndim = truth.signal.shape, truth.signal.dtype, 3

        def __getitem__(self, key: tuple) -> np.ndarray:
            read.append(key)
            return truth.signal.values[key]

    fitted = truth.avocado.fit(config={**SMALL, "epochs": 1}, validation=None, progress=False)
    signal = da.from_array(Spy(), chunks=(1, 1, 1_000), asarray=False, meta=np.empty((0, 0, 0), "f4"), name="spy")
    watched = fitted.assign(signal=(truth.signal.dims, signal))
    full = watched.avocado.impute()
    assert not read, "asking for the layer reads nothing"
    full.imputed.sel(celltype="C1", assay="H3K4me3").isel(position=slice(2_100, 2_200)).values  # noqa: B018
    touched = {(int(np.arange(4)[c].min()), int(np.arange(3)[a].min()), p.start // 1000) for c, a, p in read}
    assert touched == {(c, 0, 2) for c in range(4)}
    read.clear()
    full.isel(position=slice(5_100, 5_300)).imputed.isel(assay=2)[1:3][:, 10:20].values  # noqa: B018
    touched = {(int(np.arange(4)[c].min()), int(np.arange(3)[a].min()), p.start, p.stop) for c, a, p in read}
    assert touched == {(c, 2, 5_110, 5_120) for c in range(4)}


def test_labels_tracks_and_only_missing(fitted: xr.Dataset) -> None:
    def asked(**arguments: object) -> set[tuple[str, str]]:
        full = fitted.avocado.impute(**arguments)
        has = ~np.isnan(full.imputed[..., :3].values).any(-1)
        np.testing.assert_array_equal(has, full.imputed_tracks)
        return {(str(full.celltype.values[c]), str(full.assay.values[a])) for c, a in np.argwhere(has)}

    assert asked(celltype="C1", assay=["H3K4me3", "H3K4me1"]) == {("C1", "H3K4me3"), ("C1", "H3K4me1")}
    assert asked(only_missing=True) == {("C1", "H3K4me3"), ("C3", "H3K27ac")}
    assert asked(tracks=[("C4", "H3K4me1")]) == {("C4", "H3K4me1")}
    assert len(asked()) == 12


def test_the_average_leaves_the_track_itself_out(truth: xr.Dataset) -> None:
    fitted = truth.avocado.fit(config={**SMALL, "average": True}, epochs=1, validation=None, progress=False)
    silent = fitted.assign(network_weight_2=fitted.network_weight_2 * 0, network_bias_2=fitted.network_bias_2 * 0)
    np.testing.assert_allclose(silent.avocado.impute().imputed, average(truth).transpose(*truth.signal.dims), atol=1e-6)


def test_a_store_gives_the_same_imputation(fitted: xr.Dataset, tmp_path) -> None:
    import xr_avocado as xa

    fitted.avocado.to_zarr(tmp_path / "model.zarr", progress=False)
    again = xa.open_cube(tmp_path / "model.zarr")
    assert again.genome_factors_25bp.chunks is not None
    np.testing.assert_allclose(again.avocado.impute().imputed, fitted.avocado.impute().imputed, atol=2e-2)
    region = "chr2:10,000-20,000"
    np.testing.assert_allclose(
        again.avocado.sel(region).avocado.impute().imputed,
        fitted.avocado.impute().avocado.sel(region).imputed,
        atol=2e-2,
    )


def test_what_cannot_be_imputed_is_told(truth: xr.Dataset, fitted: xr.Dataset) -> None:
    with pytest.raises(CubeError, match=r"call \.avocado\.fit"):
        truth.avocado.impute()
    with pytest.raises(CubeError, match="'H3K9ac' is not an assay of this cube; it has H3K4me3"):
        fitted.avocado.impute(assay="H3K9ac")
    with pytest.raises(ValueError, match="not both"):
        fitted.avocado.impute("C1", tracks=[("C1", "H3K4me3")])
    elsewhere = fitted.isel(position_250bp=slice(10, 20))
    with pytest.raises(GenomeError, match="is not covered"):
        elsewhere.avocado.impute()


@pytest.mark.parametrize(
    "steps",
    [
        [np.s_[0]],
        [np.s_[1, 2, 3_999]],
        [np.s_[::-1, [2, 0]], np.s_[..., 4_000:100:-7]],
        [np.s_[:, 1], np.s_[2], np.s_[-5:]],
        [np.s_[..., -1]],
        [np.s_[[1, 3]], np.s_[:, [0, 1], 5]],
        [np.s_[..., np.array([5, 2, 6_000])]],
        [np.s_[np.array([True, False, True, False])], np.s_[..., 6:4]],
    ],
)
def test_any_chain_of_slices_is_numpys(fitted: xr.Dataset, steps: list) -> None:
    lazy = fitted.avocado.impute().imputed.data
    whole = lazy.compute()
    for step in steps:
        lazy, whole = lazy[step], whole[step]
    assert lazy.shape == whole.shape
    np.testing.assert_allclose(lazy.compute(), whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["factors", "context"])
def test_a_cluster_imputes_what_one_process_imputes(
    truth: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Chunks side by side on two workers, one of which is killed while it works; both write and reduce."""
    from distributed import Client, LocalCluster

    import xr_avocado.impute
    import xr_avocado.io.encoding

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(xr_avocado.impute, "POSITIONS", 500)
    monkeypatch.setattr(xr_avocado.io.encoding, "SHORTEST", 1)
    context = {"context": True, "context_units": 4, "context_nodes": 8, "context_members": 1, "context_samples": 2_000}
    config = SMALL | ({"epochs": 1} if kind == "factors" else {"epochs": 1} | context)
    truth.avocado.fit(config=config, store=tmp_path / "model.zarr", progress=False)
    full = xa.open_cube(tmp_path / "model.zarr").avocado.impute()
    serial = full.imputed.compute(scheduler="synchronous")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        first = next(iter(client.run(os.getpid).values()))
        pending = client.compute(full.imputed)
        os.kill(first, signal.SIGKILL)
        np.testing.assert_array_equal(pending.result(), serial)
        written = full.avocado.to_zarr(tmp_path / "full.zarr", precision="float32", progress=False)
        np.testing.assert_array_equal(written.imputed, serial)
