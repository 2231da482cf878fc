from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xr_avocado import datasets
from xr_avocado.cube import CubeError


@pytest.fixture(scope="module")
def fitted() -> xr.Dataset:
    cube = datasets.simulate(n_celltypes=4, n_assays=3, chromsizes={"chr1": 60_010, "chr2": 30_007})
    return cube.avocado.fit(config={"nodes": 8, "context": False}, epochs=1, validation=None, progress=False)


def test_positions_come_as_pyranges_with_every_factor(fitted: xr.Dataset) -> None:
    gr = fitted.avocado.embed("position", regions="chr1:990-1,060")
    df = gr.df
    assert df[["Chromosome", "Start", "End"]].astype(str).values.tolist() == [
        ["chr1", str(s), str(s + 25)] for s in (975, 1000, 1025, 1050)
    ]
    np.testing.assert_array_equal(df["factor_25bp_2"], fitted.genome_factors_25bp[39:43, 2])
    np.testing.assert_array_equal(df["factor_250bp_1"], fitted.genome_factors_250bp.values[[3, 4, 4, 4], 1])
    np.testing.assert_array_equal(df["factor_5kbp_0"], fitted.genome_factors_5kbp.values[[0, 0, 0, 0], 0])


def test_coarse_scales_have_a_row_a_coarse_bin(fitted: xr.Dataset) -> None:
    frame = fitted.avocado.embed("position", scales=5000, as_="frame")
    assert len(frame) == 13 + 7
    assert frame.iloc[-1][["chrom", "start", "end"]].tolist() == ["chr2", 30000, 30007]
    np.testing.assert_array_equal(frame.filter(like="factor_5kbp"), fitted.genome_factors_5kbp)


def test_regions_as_a_table_keep_only_the_bins_they_touch(fitted: xr.Dataset) -> None:
    import pyranges as pr

    genes = pr.from_dict({"Chromosome": ["chr2", "chr1"], "Start": [100, 5_010], "End": [130, 5_020]})
    frame = fitted.avocado.embed("position", regions=genes, as_="frame")
    assert frame[["chrom", "start"]].values.tolist() == [["chr1", 5000], ["chr2", 100], ["chr2", 125]]


def test_celltypes_and_assays_come_as_anndata(fitted: xr.Dataset) -> None:
    for axis, name in (("celltype", "celltype_factors"), ("assay", "assay_factors")):
        table = fitted.avocado.embed(axis)
        assert list(table.obs_names) == list(fitted[axis].values)
        np.testing.assert_array_equal(table.obsm["X_avocado"], fitted[name])


def test_what_cannot_be_embedded_is_told(fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import xr_avocado.embed

    with pytest.raises(CubeError, match="'gene' is unknown"):
        fitted.avocado.embed("gene")
    with pytest.raises(CubeError, match="no factors of 100 bp; this model has 25, 250, 5000 bp"):
        fitted.avocado.embed("position", scales=100)
    monkeypatch.setattr(xr_avocado.embed, "LARGEST_TABLE", 100)
    with pytest.raises(CubeError, match="too large to hold"):
        fitted.avocado.embed("position")
    assert len(fitted.avocado.embed("position", scales=5000, as_="frame")) == 20
