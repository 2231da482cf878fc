"""normalize: the tracks of a mark get one distribution, peaks and background apart, and every way back is exact."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xr_avocado as xa
from xr_avocado.cube import CubeError, Experiment
from xr_avocado.io.bigwig import read_bins
from xr_avocado.normalize import denormalize, normalize
from xr_avocado.quantile_map import apply_map, undo_of

SPLIT = np.arcsinh(2)
QUICK = {"context_units": 8, "context_nodes": 16, "context_heads": 2, "context_samples": 5_000, "context_batch": 512}
PAIR = {"celltype": "C3", "assay": "H3K4me3"}


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return xa.datasets.simulate(n_celltypes=5, n_assays=3, chromsizes={"chr1": 500_010, "chr2": 300_017})


@pytest.fixture(scope="module")
def even(cube: xr.Dataset) -> xr.Dataset:
    return normalize(cube, progress=False)


def parts(track: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    values = track.values.astype(float)
    return values[values < SPLIT], values[values >= SPLIT]


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    steps = st.lists(st.floats(0.01, 2), min_size=5, max_size=5)
    return tuple(np.cumsum(draw(steps)) - draw(st.floats(-3, 3)) for _ in range(2))


@given(maps(), st.lists(st.floats(-20, 20), min_size=1))
def test_a_map_is_monotone_and_undone_by_its_reverse(knots, values):
    own, reference = knots
    x = np.sort(np.array(values))
    y = apply_map(x, own, reference)
    assert (np.diff(y) >= 0).all()
    np.testing.assert_allclose(apply_map(y, reference, own), x, atol=1e-9)
    np.testing.assert_allclose(apply_map(own, own, reference), reference)


def test_background_and_peaks_get_the_mean_of_their_own_quantiles(cube, even):
    """The levels are looked up anew, on the tracks themselves."""
    levels = [0.25, 0.5, 0.75, 0.9]
    for assay in cube.assay.values:
        for part in (0, 1):
            own = [np.quantile(parts(track)[part], levels) for track in cube.signal.sel(assay=assay)]
            for track in even.signal.sel(assay=assay):
                # Reads are counted, so that values are few and ties many: quantiles of tied values jump.
                np.testing.assert_allclose(np.quantile(parts(track)[part], levels), np.mean(own, 0), atol=0.25)


def test_a_track_keeps_its_peaks(cube, even):
    np.testing.assert_array_equal(even.signal.values >= SPLIT, cube.signal.values >= SPLIT)
    tracks = zip(cube.signal.values.reshape(15, -1), even.signal.values.reshape(15, -1), strict=True)
    assert all((np.diff(mapped[np.argsort(own, kind="stable")]) >= 0).all() for own, mapped in tracks)


def test_a_track_of_another_scale_comes_to_the_others(cube):
    """Peaks three times as high, as deeper reads have them: their shift is gone afterwards."""
    deep = cube.copy(deep=True)
    signal = np.sinh(cube.signal.sel(PAIR).astype(float))
    deep.signal.loc[PAIR] = np.arcsinh(xr.where(signal > 2, 2 + 3 * (signal - 2), signal)).astype(np.float32)
    before, after = (
        x.avocado.qc(progress=False).set_index(["celltype", "assay"]).peaks[tuple(PAIR.values())]
        for x in (deep, normalize(deep, progress=False))
    )
    assert before > 1 and abs(after) < 0.1


def test_it_goes_back(cube, even):
    back = denormalize(even)
    np.testing.assert_allclose(back.signal.values, cube.signal.values, atol=1e-5)
    assert set(back.data_vars) == set(cube.data_vars) and back.attrs == cube.attrs


def test_missing_bins_tracks_and_orders(cube):
    some = cube.copy(deep=True)
    some.signal.loc[PAIR][:] = np.nan
    some.signal.loc["C1", "H3K27ac"] = 0.7
    some.signal.loc["C2", "H3K27ac"][:4_000] = np.nan
    some = some.avocado.hold_out([("C4", "H3K4me1")])
    even = normalize(some.transpose("position", "assay", "celltype"), progress=False)
    assert (
        np.isnan(even.signal.sel(PAIR)).all()
        and (even.signal.sel(celltype="C1", assay="H3K27ac") == np.float32(0.7)).all()
    )
    np.testing.assert_array_equal(np.isnan(even.signal.transpose(*some.signal.dims)), np.isnan(some.signal))
    whole = normalize(cube.avocado.hold_out([("C1", "H3K27ac"), tuple(PAIR.values())]), progress=False)
    np.testing.assert_allclose(even.signal.sel(assay="H3K4me3"), whole.signal.sel(assay="H3K4me3"), atol=1e-6)
    back = denormalize(even).signal.transpose(*some.signal.dims)
    np.testing.assert_allclose(back, some.signal, atol=1e-5)


def test_the_only_track_of_a_mark_stays(cube):
    one = cube.avocado.hold_out([(c, "H3K27ac") for c in ("C1", "C2", "C3", "C5")])
    kept, own = (x.signal.sel(celltype="C4", assay="H3K27ac") for x in (normalize(one, progress=False), cube))
    np.testing.assert_allclose(kept, own, atol=1e-6)


def test_few_peaks_are_left_alone(cube):
    quiet = cube.copy(deep=True)
    track = quiet.signal.sel(PAIR).values
    high = np.flatnonzero(track >= SPLIT)
    track[high[50:]] = 0.5
    quiet.signal.loc[PAIR] = track
    even = normalize(quiet, progress=False)
    np.testing.assert_allclose(even.signal.sel(PAIR).values[high[:50]], track[high[:50]], atol=1e-6)


def test_it_is_lazy_and_the_same_chunk_by_chunk(cube, even):
    lazy = normalize(cube.chunk(celltype=2, assay=1, position=7_000), progress=False)
    assert lazy.signal.chunks is not None
    xr.testing.assert_allclose(lazy.signal.compute(), even.signal)
    region = lazy.avocado.sel("chr2:100,000-110,000").signal
    xr.testing.assert_allclose(region.compute(), even.avocado.sel("chr2:100,000-110,000").signal)


def test_it_survives_a_store(cube, even, tmp_path):
    stored = even.avocado.to_zarr(tmp_path / "even.zarr", precision="float32", progress=False)
    np.testing.assert_array_equal(stored.signal, even.signal)
    np.testing.assert_allclose(denormalize(stored).signal, cube.signal, atol=1e-5)
    assert stored.attrs["normalized"]["peak"] == 2 and len(stored.attrs["normalized"]["tracks"]) == 15


def test_bigwigs_are_in_the_units_of_the_files(cube, even, tmp_path):
    even.avocado.to_bigwig(tmp_path / "out", variable="signal", tracks=[PAIR.values()], progress=False)
    values = read_bins(tmp_path / "out" / "C3.H3K4me3.signal.bw", cube.avocado.bins)
    np.testing.assert_allclose(values, np.sinh(cube.signal.sel(PAIR).astype(float)), rtol=1e-4, atol=1e-5)
    even.avocado.to_bigwig(
        tmp_path / "as_is", variable="signal", tracks=[PAIR.values()], untransform=False, progress=False
    )
    values = read_bins(tmp_path / "as_is" / "C3.H3K4me3.signal.bw", cube.avocado.bins)
    np.testing.assert_allclose(values, even.signal.sel(PAIR), rtol=1e-6)


def test_imputed_tracks_go_back_by_their_own_map_or_stay(cube, tmp_path):
    hidden, seen = ("C2", "H3K27ac"), tuple(PAIR.values())
    held = normalize(cube.avocado.hold_out([hidden]).avocado.sel("chr2:0-100kb"), progress=False)
    full = held.avocado.fit(epochs=1, progress=False, config=QUICK).avocado.impute(tracks=[hidden, seen])
    plain = denormalize(full)
    assert plain.imputed.chunks is not None
    expected = undo_of(full, Experiment(*seen))(full.imputed.sel(PAIR).values)
    np.testing.assert_allclose(plain.imputed.sel(PAIR), expected, atol=1e-6)
    assert not np.allclose(expected, full.imputed.sel(PAIR))
    np.testing.assert_array_equal(*(x.imputed.sel(celltype="C2", assay="H3K27ac") for x in (plain, full)))
    full.avocado.to_bigwig(tmp_path, progress=False)
    for celltype, assay in (hidden, seen):
        values = read_bins(tmp_path / f"{celltype}.{assay}.imputed.bw", full.avocado.bins)
        np.testing.assert_allclose(
            values, np.sinh(plain.imputed.sel(celltype=celltype, assay=assay).astype(float)), rtol=1e-5, atol=1e-6
        )
    scores = plain.avocado.evaluate(
        cube.avocado.sel("chr2:0-100kb"), tracks=[hidden, seen], measures=["mse"], progress=False
    )
    assert scores[scores.method == "imputed"].trained.tolist() == [False, True]
    with pytest.raises(CubeError, match="not fitted yet"):
        plain.avocado.impute()


def test_what_cannot_be_is_told(cube, even):
    with pytest.raises(CubeError, match="normalized already"):
        normalize(even, progress=False)
    with pytest.raises(CubeError, match="not normalized"):
        denormalize(cube)
    with pytest.raises(ValueError, match="peak is a signal"):
        normalize(cube, peak=np.inf, progress=False)
    with pytest.raises(CubeError, match="fitted on its signal as it is"):
        normalize(cube.assign_attrs(avocado={}), progress=False)
    with pytest.raises(CubeError, match="no experiment of this cube was run"):
        normalize(cube.assign(observed=cube.observed & False), progress=False)


def test_a_model_of_one_scale_is_not_put_on_a_cube_of_the_other(cube, even):
    fitted = even.avocado.sel("chr2:0-100kb").avocado.fit(epochs=1, progress=False, config=QUICK)
    with pytest.raises(CubeError, match=r"one of the model and the cube is normalized"):
        cube.avocado.impute("C1", model=fitted)
