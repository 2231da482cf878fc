"""The baselines against loops over bins and tracks, and the property that makes them fair: no track sees itself."""

from __future__ import annotations

import pickle

import dask
import numpy as np
import pytest
import xarray as xr

from xr_avocado import baselines
from xr_avocado.baselines import BASELINES
from xr_avocado.cube import CubeError, hold_out
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins, bins_of

LEAVE_ONE_OUT = [name for name in BASELINES if name != "cp"]


def make_cube(signal: np.ndarray) -> xr.Dataset:
    """Make a cube of an array, celltype x assay x position; an experiment that is all NaN was not run."""
    n_celltypes, n_assays, n = signal.shape
    ds = xr.Dataset(
        {
            "signal": (("celltype", "assay", "position"), signal),
            "observed": (("celltype", "assay"), ~np.isnan(signal).all(2)),
        },
        coords={"celltype": [f"C{i}" for i in range(n_celltypes)], "assay": [f"A{i}" for i in range(n_assays)]},
        attrs={"transform": "arcsinh", "chromsizes": {"chr1": 25 * n}},
    )
    return assign_bins(ds, GenomeBins([("chr1", 0, 25 * n)], 25))


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    """5 cell types x 4 assays x 300 bins, correlated, with four experiments missing and a few bins not covered."""
    rng = np.random.default_rng(0)
    shared, own = rng.gamma(1, 1, (1, 4, 300)), rng.gamma(0.5, 1, (5, 1, 300))
    x = (shared + own + rng.gamma(0.3, 1, (5, 4, 300))).astype(np.float32)
    for c, a in [(0, 0), (1, 1), (2, 2), (4, 0)]:
        x[c, a] = np.nan
    x[3, 0, :5] = np.nan
    return x


def observed(x: np.ndarray) -> list[tuple[int, int]]:
    return [(int(c), int(a)) for c, a in np.argwhere(~np.isnan(x).all(2))]


def mean(values: list[float]) -> float:
    there = [v for v in values if not np.isnan(v)]
    return float(np.mean(there)) if there else np.nan


@pytest.mark.parametrize("bin_", [0, 7, 299])
def test_means_are_those_of_loops(signal: np.ndarray, bin_: int) -> None:
    cube, at = make_cube(signal), signal[:, :, bin_].astype(float)
    got = {name: BASELINES[name](cube).values[:, :, bin_] for name in ("average", "celltype_average", "additive")}
    for c in range(5):
        for a in range(4):
            column = mean([at[d, a] for d in range(5) if d != c])
            row = mean([at[c, b] for b in range(4) if b != a])
            grand = mean([at[d, b] for d in range(5) for b in range(4) if (d, b) != (c, a)])
            assert got["average"][c, a] == pytest.approx(column)
            assert got["celltype_average"][c, a] == pytest.approx(row)
            assert got["additive"][c, a] == pytest.approx(column + row - grand)


def test_average_is_nan_where_nobody_else_was_measured(signal: np.ndarray) -> None:
    alone = signal.copy()
    alone[1:, 3] = np.nan
    got = baselines.average(make_cube(alone))
    assert np.isnan(got.values[0, 3]).all()
    assert not np.isnan(got.values[1:, 3]).any()


@pytest.mark.parametrize("name", LEAVE_ONE_OUT)
def test_no_track_sees_itself(signal: np.ndarray, name: str) -> None:
    swapped = signal.copy()
    swapped[1, 3] = np.random.default_rng(9).gamma(2, 3, 300)
    before, after = (BASELINES[name](make_cube(x), tracks=[("C1", "A3")]).values[1, 3] for x in (signal, swapped))
    # To the last bit: a trace of the track, however small, would order bins that are level otherwise.
    np.testing.assert_array_equal(before, after)
    beside = (0, 3) if name == "average" else (1, 2)
    assert not np.array_equal(*(BASELINES[name](make_cube(x)).values[beside] for x in (signal, swapped)))


@pytest.mark.parametrize("name", LEAVE_ONE_OUT)
def test_an_observed_track_is_predicted_as_if_it_were_hidden(signal: np.ndarray, name: str) -> None:
    cube, pair = make_cube(signal), ("C1", "A3")
    seen, hidden = BASELINES[name](cube), BASELINES[name](hold_out(cube, [pair]))
    np.testing.assert_allclose(seen.values[1, 3], hidden.values[1, 3], rtol=1e-6)


def slow_ridge(x: np.ndarray, c: int, a: int, penalty: float) -> np.ndarray:
    """Ridge regression with every bin of every training cell type as a row of one design matrix."""
    there, n = observed(x), x.shape[2]
    x = np.nan_to_num(x).astype(float)
    others = [b for b in range(x.shape[1]) if b != a and (c, b) in there]

    def describe(d: int) -> np.ndarray | None:
        columns = [x[e, a] for e in range(x.shape[0]) if (e, a) in there and e not in (c, d)]
        if not columns:
            return None
        features = [np.mean(columns, 0)]
        for b in others:
            rest = [x[e, b] for e in range(x.shape[0]) if (e, b) in there and e != d]
            features.append(x[d, b] - np.mean(rest, 0) if (d, b) in there and rest else np.zeros(n))
        return np.stack([*features, np.ones(n)], 1)

    teachers = [d for d in range(x.shape[0]) if d != c and (d, a) in there]
    design = np.concatenate([describe(d) for d in teachers])
    answer = np.concatenate([x[d, a] for d in teachers]) - design[:, 0]
    # The penalty as further rows, so that this shares no formula with the code it checks.
    strength = penalty * np.mean((design**2).sum(0))
    design = np.concatenate([design, np.sqrt(strength) * np.eye(design.shape[1])])
    coefficients = np.linalg.lstsq(design, np.append(answer, np.zeros(design.shape[1])), rcond=None)[0]
    coefficients[0] += 1
    return describe(c) @ coefficients


@pytest.mark.parametrize("pair", [(0, 0), (1, 1), (3, 0)])
@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_ridge_is_the_regression_over_all_bins(signal: np.ndarray, pair: tuple[int, int], penalty: float) -> None:
    got = baselines.ridge(make_cube(signal), penalty=penalty).values[pair]
    np.testing.assert_allclose(got, slow_ridge(signal, *pair, penalty), rtol=1e-4, atol=1e-5)


def test_ridge_falls_back_on_what_little_there_is(signal: np.ndarray) -> None:
    few = signal.copy()
    few[2:, 1] = np.nan
    got = baselines.ridge(make_cube(few)).values
    np.testing.assert_allclose(got[1, 1], few[0, 1], rtol=1e-6)
    few[0, 1] = np.nan
    assert np.isnan(baselines.ridge(make_cube(few)).values[1, 1]).all()


def test_cp_recovers_a_planted_factorization() -> None:
    rng = np.random.default_rng(3)
    celltypes, assays, bins = rng.uniform(0.5, 2, (6, 2)), rng.uniform(0.5, 2, (5, 2)), rng.gamma(1, 1, (400, 2))
    truth = np.einsum("cr,ar,pr->cap", celltypes, assays, bins).astype(np.float32)
    hidden = truth.copy()
    held = [(0, 1), (3, 4), (5, 0)]
    for c, a in held:
        hidden[c, a] = np.nan
    got = baselines.cp(make_cube(hidden), rank=2, penalty=1e-4, seeds=2).values
    for pair in held:
        assert np.mean((got[pair] - truth[pair]) ** 2) < 0.01 * truth[pair].var()


def test_cp_says_that_it_cannot_leave_a_track_out(signal: np.ndarray) -> None:
    cube = make_cube(signal)
    with pytest.raises(CubeError, match="C1 A3 is observed.*hold_out"):
        baselines.cp(cube, tracks=[("C1", "A3")])
    got = baselines.cp(cube, seeds=1)
    np.testing.assert_array_equal(~np.isnan(got.values).all(2), ~cube.observed.values)


def test_training_bins_in_several_runs_are_all_bins(signal: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = make_cube(signal)
    whole = baselines.ridge(cube).values
    monkeypatch.setattr(baselines, "RUN", (64, 64))
    np.testing.assert_allclose(baselines.ridge(cube, training_bins=None).values, whole, rtol=1e-4)
    some = baselines.ridge(cube, training_bins=128).values
    assert 0 < np.nanmax(np.abs(some - whole)) < 1
    with pytest.raises(ValueError, match="training_bins must be at least 1"):
        baselines.ridge(cube, training_bins=0)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_layer_is_lazy_labelled_and_read_piece_by_piece(signal: np.ndarray, name: str) -> None:
    cube = make_cube(signal).chunk(position=100)
    layer = BASELINES[name](cube, tracks=[("C0", "A0"), ("C2", "A2")])
    assert dask.is_dask_collection(layer.data)
    assert layer.dims == ("celltype", "assay", "position")
    assert layer.dtype == np.float32
    assert layer.attrs["transform"] == "arcsinh"
    assert bins_of(layer) == bins_of(cube)
    whole = layer.values
    assert np.argwhere(~np.isnan(whole).all(2)).tolist() == [[0, 0], [2, 2]]
    np.testing.assert_array_equal(
        layer.sel(celltype="C2", assay="A2").isel(position=slice(50, 130)).values, whole[2, 2, 50:130]
    )
    np.testing.assert_array_equal(layer.isel(position=[250, 3, 120]).values, whole[:, :, [250, 3, 120]])
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(again.values, whole)


def test_only_the_piece_asked_for_is_read(signal: np.ndarray) -> None:
    read: list[tuple[int, ...]] = []

    def watch(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        if block_info:
            read.append(tuple(block_info[0]["chunk-location"]))
        return block

    cube = make_cube(signal).chunk(celltype=1, assay=1, position=100)
    cube["signal"] = cube.signal.copy(data=cube.signal.data.map_blocks(watch, dtype=np.float32))
    baselines.average(cube).isel(celltype=1, assay=3, position=slice(110, 120)).compute()
    assert set(read) == {(c, 3, 1) for c in range(5)}


def test_average_is_added_as_a_layer(signal: np.ndarray) -> None:
    cube = make_cube(signal)
    xr.testing.assert_identical(baselines.add_average(cube).average.compute(), baselines.average(cube).compute())


def test_labels_that_are_not_there_are_an_error(signal: np.ndarray) -> None:
    cube = make_cube(signal)
    with pytest.raises(CubeError, match="'A9' is not an assay of this cube"):
        baselines.average(cube, tracks=[("C1", "A9")])
    with pytest.raises(CubeError, match="no 'signal'"):
        baselines.ridge(cube.drop_vars("signal"))
