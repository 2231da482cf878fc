from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from xr_avocado import datasets

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
