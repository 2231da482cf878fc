from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from xr_avocado import datasets, plot
from xr_avocado.cube import CubeError
from xr_avocado.error_table import ErrorTable

ERRORS = ("error_quantiles", "error_rms", "error_floor")
QUICK = {
    "epochs": 1,
    "context_samples": 4_000,
    "context_members": 1,
    "context_units": 8,
    "context_nodes": 32,
    "nodes": 8,
    "genome_factors": (2, 2, 2),
}


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return datasets.simulate(n_celltypes=5, n_assays=4, chromsizes={"chr1": 60_010, "chr2": 20_007})


@pytest.fixture(scope="module")
def lonely(truth: xr.Dataset) -> xr.Dataset:
    """C1 has no track at all, H3K4me1 those of C2 and C3 alone."""
    rest = [("C4", "H3K4me1"), ("C5", "H3K4me1")]
    return truth.avocado.hold_out([("C1", str(a)) for a in truth.assay.values] + rest)


@pytest.fixture(scope="module", params=["context", "factors"])
def fitted(lonely: xr.Dataset, request: pytest.FixtureRequest) -> xr.Dataset:
    return lonely.avocado.fit(config={**QUICK, "context": request.param == "context"}, validation=None, progress=False)


def test_support_counts_the_other_tracks(fitted: xr.Dataset, lonely: xr.Dataset) -> None:
    full = fitted.avocado.impute()
    for c in full.celltype.values:
        for a in full.assay.values:
            here, there = full.sel(celltype=c, assay=a), lonely.observed
            own = bool(there.sel(celltype=c, assay=a))
            beside = int(there.sel(celltype=c).sum()) - own, int(there.sel(assay=a).sum()) - own
            assert (int(here.support_celltype), int(here.support_assay)) == beside
            expected = "observed" if own else "imputed" if min(beside) else "extrapolated"
            assert here.support.item() == expected
    assert set(np.unique(full.support)) == {"observed", "imputed", "extrapolated"}


def test_support_knows_what_was_trained_on_though_the_cube_no_longer_has_it(fitted: xr.Dataset) -> None:
    hidden = fitted.avocado.hold_out([("C2", "H3K4me1")]).avocado.impute()
    assert hidden.support.sel(celltype="C2", assay="H3K4me1") == "imputed"
    assert hidden.support_assay.sel(celltype="C5", assay="H3K4me1") == 2


def test_support_is_kept_in_a_store_and_goes_with_the_imputation(fitted: xr.Dataset, tmp_path: Path) -> None:
    full = fitted.avocado.impute("C2")
    stored = full.avocado.to_zarr(tmp_path / "full.zarr", progress=False)
    assert (stored.support == full.support).all() and (stored.support_assay == full.support_assay).all()
    again = full.avocado.fit(config=QUICK, progress=False)
    assert not [name for name in again.data_vars if str(name).startswith("support")]


@pytest.fixture(scope="module")
def trained(truth: xr.Dataset) -> xr.Dataset:
    return truth.avocado.hold_out([("C1", "H3K4me1")]).avocado.fit(config=QUICK, progress=False)


def test_leaving_one_out_is_imputing_without_the_track(trained: xr.Dataset) -> None:
    """Without the track on the cube, and with the levels that a fit without it would have begun with."""
    from xr_avocado.model.levels import Levels

    pair = {"celltype": "C3", "assay": "H3K4me1"}
    hidden = trained.avocado.hold_out([("C3", "H3K4me1")])
    levels = [trained[name].where(hidden.observed).values for name in ("track_mean", "track_spread")]
    filled = Levels.completed(*levels)
    hidden = hidden.assign(
        track_mean=(("celltype", "assay"), filled.mean), track_spread=(("celltype", "assay"), filled.spread)
    )
    expected = hidden.avocado.impute(tracks=[("C3", "H3K4me1")]).imputed.sel(pair).values
    full = trained.avocado.impute(leave_one_out=True)
    np.testing.assert_allclose(full.imputed.sel(pair).values, expected, atol=1e-4)
    assert abs(trained.avocado.impute().imputed.sel(pair).values - expected).max() > 1e-3


def test_leaving_one_out_uses_nothing_of_the_track_itself(trained: xr.Dataset) -> None:
    """Another signal, mean and spread in its place, and it is imputed the same."""
    pair = {"celltype": "C2", "assay": "H3K4me1"}
    other = trained.copy(deep=True)
    for name in ("signal", "track_mean", "track_spread"):
        other[name].loc[pair] = 7.0
    one, two = (ds.avocado.impute(leave_one_out=True).imputed.sel(pair).values for ds in (trained, other))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_leaving_one_out_changes_nothing_that_was_not_observed(trained: xr.Dataset) -> None:
    one, two = (trained.avocado.impute(leave_one_out=flag).imputed.sel(celltype="C1") for flag in (True, False))
    np.testing.assert_array_equal(one.sel(assay="H3K4me1").values, two.sel(assay="H3K4me1").values)
    assert (one.values != two.values).any()


def test_leaving_one_out_slices_as_imputing_does(trained: xr.Dataset) -> None:
    full = trained.avocado.impute(leave_one_out=True)
    rows = trained.avocado.bins.rows("chr2", 1_000, 9_000)
    here = full.avocado.sel("chr2:1,000-9,000").imputed.sel(assay="DNase")
    np.testing.assert_allclose(
        here.values, full.imputed.values[:, list(full.assay.values).index("DNase"), rows], atol=1e-5
    )


def test_a_model_of_factors_has_no_leave_one_out(truth: xr.Dataset) -> None:
    fitted = truth.avocado.fit(config={**QUICK, "context": False}, progress=False)
    with pytest.raises(CubeError, match="cross_validate"):
        fitted.avocado.impute(leave_one_out=True)


def planted(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and errors of known quantiles that grow with them: exponential, skewed, with mean 0."""
    predicted = random.exponential(size=shape)
    return predicted, (1 + predicted) * (random.exponential(size=shape) - 1)


def table_of(predicted: np.ndarray, error: np.ndarray, assay: list[int], **others: np.ndarray) -> ErrorTable:
    plain = {"weight": np.ones(predicted.shape), "floored": np.zeros(predicted.shape, bool)}
    return ErrorTable.of(predicted, error, assay=np.array(assay), n_assays=3, **(plain | others))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_bounds_of_planted_errors_are_their_quantiles(level: float) -> None:
    random = np.random.default_rng(0)
    table = table_of(*planted(random, (12, 20_000)), [0, 1] * 6)
    predicted, error = planted(random, (100_000,))
    for assay in (0, 1, 2):
        below, above, starts = table.bounds(predicted, assay, level)
        assert not starts.any()
        assert np.mean(error < below) == pytest.approx((1 - level) / 2, abs=0.02)
        assert np.mean(error > above) == pytest.approx((1 - level) / 2, abs=0.01)
        assert np.sqrt(np.mean(table.deviation(predicted, assay) ** 2)) == pytest.approx(error.std(), rel=0.05)
        at = np.array([0.1, 1.0, 2.0])
        expected = (1 + at) * (-np.log((1 - level) / 2) - 1)
        np.testing.assert_allclose(table.bounds(at, assay, level)[1], expected, rtol=0.15, atol=0.1)


def test_an_assay_has_its_own_errors_and_leans_on_all_where_it_has_few_tracks() -> None:
    random = np.random.default_rng(0)
    predicted, error = planted(random, (13, 20_000))
    error[9:] *= 4
    table = table_of(predicted, error, [0] * 9 + [1] * 3 + [2])
    usual, three, one = (table.deviation(np.array([1.0]), assay)[0] for assay in (0, 1, 2))
    assert usual == pytest.approx(2, rel=0.35) and three == pytest.approx(8, rel=0.2)
    assert usual < one < three


def test_bins_that_were_drawn_more_often_count_less() -> None:
    random = np.random.default_rng(0)
    predicted, error = planted(random, (2, 200_000))
    share = np.where(error > 0, 1.0, 0.1)
    drawn = random.random(error.shape) < share
    table = table_of(predicted, error, [0, 1], weight=drawn / share)
    fresh, truth = planted(random, (100_000,))
    below, above, _ = table.bounds(fresh, 0, 0.8)
    assert np.mean(truth < below) == pytest.approx(0.1, abs=0.015)
    assert np.mean(truth > above) == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize("share", [0.08, 0.3, 0.9])
def test_many_bins_at_the_floor_are_not_counted_as_left_out(share: float) -> None:
    """A central interval would hold all of the floor, and up to half as much again as it should."""
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        predicted = 1 + random.random(shape)
        return predicted, np.where(random.random(shape) < share, 0, predicted * random.exponential(size=shape))

    predicted, truth = draw((4, 20_000))
    table = table_of(predicted, truth - predicted, [0, 0, 1, 1], floored=truth == 0)
    fresh, truth = draw((50_000,))
    for level in (0.5, 0.8, 0.95):
        below, above, starts = table.bounds(fresh, 0, level)
        lower, upper = np.where(starts, 0, np.maximum(fresh + below, 0)), np.maximum(fresh + above, 0)
        held = np.mean((truth >= lower) & (truth <= upper))
        expected = max(level, 1 - share) if share >= (1 - level) / 2 else level
        assert held == pytest.approx(max(expected, share), abs=0.02)


def test_a_wider_interval_holds_a_narrower_one() -> None:
    random = np.random.default_rng(0)
    predicted, error = planted(random, (6, 5_000))
    truth = np.maximum(predicted + error, 0)
    table = table_of(predicted, truth - predicted, [0, 0, 1, 1, 2, 2], floored=truth == 0)
    at = np.linspace(-1, 8, 200)
    lower, upper = np.full(at.size, np.inf), np.full(at.size, -np.inf)
    for level in np.linspace(0.02, 0.98, 40):
        below, above, starts = table.bounds(at, 1, level)
        below = np.where(starts, -np.inf, below)
        assert (below <= lower).all() and (above >= upper).all() and (below <= above).all()
        lower, upper = below, above


@pytest.fixture(scope="module")
def calibrated(trained: xr.Dataset) -> xr.Dataset:
    return trained.avocado.calibrate(effort=2, progress=False)


def test_bounds_and_deviations_are_lazy_and_slice(calibrated: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("xr_avocado.predictors.ContextPredictor.predict", None)
        full = calibrated.avocado.impute(uncertainty=True).avocado.interval(0.9)
    names = ["imputed", "imputed_sd", "imputed_lower", "imputed_upper"]
    whole = full[names].compute()
    assert (whole.imputed_sd > 0).all() and (whole.imputed_lower <= whole.imputed_upper).all()
    rows = calibrated.avocado.bins.rows("chr2", 1_000, 9_000)
    expected = whole.isel(position=rows).sel(celltype=["C3", "C1"], assay="DNase")
    here = full.avocado.sel("chr2:1,000-9,000").sel(celltype=["C3", "C1"], assay="DNase")
    cut = full.avocado.sel("chr2:1,000-9,000").sel(celltype=["C3", "C1"], assay=["DNase"])
    again = cut.avocado.interval(0.9).isel(assay=0)
    for name in names:
        np.testing.assert_allclose(here[name].values, expected[name].values, atol=1e-5)
        np.testing.assert_allclose(again[name].values, expected[name].values, atol=1e-5)


def test_a_layer_that_was_stored_has_the_same_bounds(calibrated: xr.Dataset, tmp_path: Path) -> None:
    full = calibrated.avocado.impute(["C1", "C2"], uncertainty=True)
    stored = full.avocado.to_zarr(tmp_path / "full.zarr", precision="float32", progress=False)
    one, two, three = (ds.avocado.interval(0.5) for ds in (full, stored, stored.load()))
    for name in ("imputed_lower", "imputed_upper"):
        np.testing.assert_allclose(one[name].values, two[name].values, atol=1e-5)
        np.testing.assert_allclose(one[name].values, three[name].values, atol=1e-5)
    assert one.imputed_lower.sel(celltype="C3").isnull().all()
    assert one.imputed_lower.sel(celltype="C2").notnull().all()


def test_a_model_takes_its_errors_to_another_cube(calibrated: xr.Dataset, truth: xr.Dataset) -> None:
    elsewhere = truth.avocado.sel("chr2:10,000-20,000").isel(assay=[2, 0])[["signal", "observed"]]
    full = elsewhere.avocado.impute("C1", model=calibrated, uncertainty=True).avocado.interval()
    for assay in elsewhere.assay.values:
        pair = {"celltype": "C1", "assay": assay}
        unit = np.sqrt(calibrated.track_spread.sel(pair) * calibrated.error_quantiles.attrs["spread"])
        rms = np.interp(full.imputed.sel(pair), calibrated.error_level, calibrated.error_rms.sel(assay=assay))
        np.testing.assert_allclose(full.imputed_sd.sel(pair), unit.item() * rms, rtol=1e-4)
        assert full.imputed_upper.sel(pair).notnull().all()
    with pytest.raises(CubeError, match="model of its own"):
        calibrated.avocado.impute(model=calibrated, uncertainty=True)


def test_calibration_is_kept_and_leaves_the_model_as_it_is(
    calibrated: xr.Dataset, trained: xr.Dataset, tmp_path: Path
) -> None:
    stored = calibrated.avocado.to_zarr(tmp_path / "fitted.zarr", progress=False)
    for name in ERRORS:
        np.testing.assert_array_equal(stored[name].values, calibrated[name].values)
    xr.testing.assert_identical(calibrated.drop_vars([*ERRORS, "error_level", "error_probability"]), trained)
    again = calibrated.avocado.fit(config=QUICK, progress=False)
    assert not [name for name in again.variables if str(name).startswith("error_")]


def test_the_same_seed_calibrates_the_same(trained: xr.Dataset, calibrated: xr.Dataset) -> None:
    again = trained.avocado.calibrate(effort=2, progress=False)
    for name in ERRORS:
        np.testing.assert_array_equal(again[name].values, calibrated[name].values)


def test_intervals_hold_their_share_of_tracks_never_seen(calibrated: xr.Dataset, truth: xr.Dataset) -> None:
    """On average over tracks; each of them may differ by more."""
    full = calibrated.avocado.impute(leave_one_out=True)
    known = truth.signal
    for level in (0.5, 0.8, 0.95):
        bounds = full.avocado.interval(level)
        held = ((known >= bounds.imputed_lower) & (known <= bounds.imputed_upper)).mean("position")
        assert float(held.mean()) == pytest.approx(level, abs=0.06)


def test_what_uncertainty_needs_is_said(trained: xr.Dataset, calibrated: xr.Dataset) -> None:
    with pytest.raises(CubeError, match="calibrate"):
        trained.avocado.impute(uncertainty=True)
    with pytest.raises(CubeError, match="calibrate"):
        trained.avocado.impute().avocado.interval()
    with pytest.raises(CubeError, match="impute"):
        calibrated.avocado.interval()
    for level in (0, 1, -0.5, 80, np.nan):
        with pytest.raises(ValueError, match="level"):
            calibrated.avocado.impute().avocado.interval(level)
    with pytest.raises(ValueError, match="effort"):
        trained.avocado.calibrate(effort=0)
    with pytest.raises(CubeError, match="fit"):
        trained[["signal", "observed"]].avocado.calibrate()


def test_evaluate_scores_intervals(calibrated: xr.Dataset, truth: xr.Dataset) -> None:
    """Coverage, width and interval score as they are by hand, in the space asked for; NaN for baselines."""
    pair = {"celltype": "C1", "assay": "H3K4me1"}
    full = calibrated.avocado.impute()
    bounds = full.avocado.interval(0.8).sel(pair)
    y, lower, upper = truth.signal.sel(pair).values, bounds.imputed_lower.values, bounds.imputed_upper.values
    for space in ("arcsinh", "signal"):
        table = full.avocado.evaluate(truth, measures=["mse"], levels=[0.8], space=space, progress=False)
        assert list(table.columns[-3:]) == ["coverage80", "width80", "score80"]
        assert table[table.method == "average"][["coverage80", "width80", "score80"]].isna().all(axis=None)
        row = table[table.method == "imputed"].iloc[0]
        t, low, high = (x if space == "arcsinh" else np.sinh(x.astype(float)) for x in (y, lower, upper))
        missed = np.where(t < low, low - t, np.where(t > high, t - high, 0))
        assert row.coverage80 == pytest.approx(np.mean((t >= low) & (t <= high)), abs=2e-3)
        assert row.width80 == pytest.approx(np.mean(high - low), rel=1e-3)
        assert row.score80 == pytest.approx(np.mean(high - low + 10 * missed), rel=1e-3)


def test_evaluate_scores_intervals_where_there_are_any(
    calibrated: xr.Dataset, trained: xr.Dataset, truth: xr.Dataset
) -> None:
    options = {"measures": ["mse"], "progress": False}
    own = calibrated.avocado.impute().avocado.evaluate(truth, bootstraps=3, **options)
    assert list(own.columns[-9::3]) == ["coverage50", "coverage80", "coverage95"]
    imputed = own[own.method == "imputed"]
    assert imputed.width95.nunique() == 3 and (imputed.width95 > imputed.width50).all()
    plain = trained.avocado.impute()
    assert plain.avocado.evaluate(truth, **options).columns[-1] == "mse"
    with pytest.raises(CubeError, match="calibrate"):
        plain.avocado.evaluate(truth, levels=[0.8], **options)


def test_cross_validation_calibrates_each_fold_for_intervals(truth: xr.Dataset) -> None:
    table = truth.avocado.cross_validate(
        [[("C1", "H3K4me1"), ("C2", "DNase")]], fit={"config": QUICK}, levels=[0.9], measures=["mse"], progress=False
    )
    assert table[table.method == "imputed"].coverage90.between(0.5, 1).all()


def test_tracks_are_drawn_with_their_interval(calibrated: xr.Dataset) -> None:
    import matplotlib.pyplot as plt

    full = calibrated.avocado.impute().avocado.interval(0.8)
    drawn = []
    for ds in (full, full.drop_vars(["imputed_lower", "imputed_upper"])):
        axes = plot.tracks(ds, "chr1:10,000-20,000", celltype="C2", assay="DNase", variables=["signal", "imputed"])
        drawn.append([len(ax.patches) for ax in axes])
        plt.close(axes[0].figure)
        if ds is full:
            band = axes[1].patches[1]
            here = full.avocado.sel("chr1:10,000-20,000").sel(celltype="C2", assay="DNase")
            np.testing.assert_allclose(band.get_data().values, here.imputed_upper.values, atol=1e-5)
            np.testing.assert_allclose(band.get_data().baseline, here.imputed_lower.values, atol=1e-5)
    # The band, and its two edges.
    assert drawn == [[1, 4], [1, 1]]
