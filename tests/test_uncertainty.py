from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from xr_avocado import datasets
from xr_avocado.cube import CubeError

QUICK = {"epochs": 1, "context_samples": 4_000, "context_members": 1, "nodes": 8, "genome_factors": (2, 2, 2)}


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return datasets.simulate(n_celltypes=5, n_assays=4, chromsizes={"chr1": 100_010, "chr2": 50_007})


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
