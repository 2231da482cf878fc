"""Variable loci and relationships between marks, against loops over bins and genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado import baselines
from xr_avocado.cube import CubeError, hold_out
from xr_avocado.index import bins_of
from xr_avocado.loci import Relationship, relationships, variable_loci

HELD = [("C1", "H3K4me3"), ("C2", "H3K4me3"), ("C2", "H3K27ac")]


@pytest.fixture(autouse=True, params=[None, 1_000], ids=["whole", "pieces"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on an axis in memory and on one of many pieces."""
    if request.param is not None:
        monkeypatch.setattr("xr_avocado.pieces.PIECE", request.param)


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return xa.datasets.simulate(n_celltypes=4, n_assays=3, chromsizes={"chr1": 400_000})


@pytest.fixture(scope="module")
def held(cube: xr.Dataset) -> xr.Dataset:
    hidden = hold_out(cube, HELD)
    return hidden.assign(guess=baselines.average(hidden))


def called(cube: xr.Dataset, threshold: float) -> pd.DataFrame:
    """Call the runs of bins above a threshold, track by track."""
    start, end, rows = cube.start.values, cube.end.values, []
    for c in cube.celltype.values:
        for a in cube.assay.values:
            above = np.flatnonzero(cube.signal.sel(celltype=c, assay=a).values > threshold)
            rows += [(c, a, "chr1", start[i], end[i]) for i in above]
    return pd.DataFrame(rows, columns=["celltype", "assay", "chrom", "start", "end"])


def test_variable_loci_are_counted_as_by_loops(cube: xr.Dataset, held: xr.Dataset) -> None:
    table = variable_loci(held, cube, peaks=called(cube, 2.0), methods=["guess"], progress=False)
    assert set(table.method) == {"observed", "guess"}
    peaks = cube.signal.values > 2.0
    shared = peaks.sum(0)
    for assay, celltypes in (("H3K4me3", ["C1", "C2"]), ("H3K27ac", ["C2"])):
        a = cube.assay.values.tolist().index(assay)
        for method, layer in (("guess", held.guess), ("observed", cube.signal)):
            own = table[(table.assay == assay) & (table.method == method)].set_index("celltypes")
            assert set(own.index) == set(shared[a][shared[a] > 0].tolist())
            for k, row in own.iterrows():
                at = shared[a] == k
                y = np.concatenate([cube.signal.sel(celltype=c, assay=assay).values[at] for c in celltypes])
                p = np.concatenate([layer.sel(celltype=c, assay=assay).values[at] for c in celltypes])
                is_peak, is_called = y > 2.0, p > 1.4436
                assert row.bins == y.size
                assert row.mse == pytest.approx(np.mean((y - p) ** 2.0), rel=1e-5)
                expected = [(is_peak & is_called).sum() / n if n else np.nan for n in (is_peak.sum(), is_called.sum())]
                assert [row.recall, row.precision] == pytest.approx(expected, nan_ok=True)


def test_observed_signal_finds_all_its_peaks(cube: xr.Dataset, held: xr.Dataset) -> None:
    table = variable_loci(held, cube, peaks=called(cube, float(np.arcsinh(2))), methods=["guess"], progress=False)
    reference = table[table.method == "observed"]
    assert (reference.mse == 0).all()
    assert (reference.recall == 1).all()
    assert (reference.precision == 1).all()


def test_variable_loci_need_peaks_of_the_tracks(cube: xr.Dataset, held: xr.Dataset) -> None:
    peaks = called(cube, 2.0)
    with pytest.raises(CubeError, match="none of the tracks to be scored has peaks"):
        variable_loci(held, cube, peaks=peaks[peaks.celltype == "C4"], methods=["guess"], progress=False)


@pytest.fixture(scope="module")
def genes() -> pd.DataFrame:
    start = np.arange(3_000, 380_000, 7_000)
    strand = np.where(np.arange(len(start)) % 2, "+", "-")
    return pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 3_000, "strand": strand})


def test_relationships_are_correlations_over_genes(cube: xr.Dataset, held: xr.Dataset, genes: pd.DataFrame) -> None:
    pair = Relationship("H3K4me3", "promoter", "H3K27ac", "body", 1)
    table = relationships(held, cube, genes=genes, pairs=[pair], methods=["average", "additive"], progress=False)
    assert len(table) == 8
    assert (table.genes == len(genes)).all()
    bins = bins_of(cube)
    layers = {"average": baselines.average(held), "additive": baselines.additive(held)}
    for row in table.itertuples():
        for r, layer in ((row.r_observed, cube.signal), (row.r, layers[row.method])):
            first, second = (layer.sel(celltype=row.celltype, assay=a).values for a in ("H3K4me3", "H3K27ac"))
            promoter, body = [], []
            for gene in genes.itertuples():
                a, b = (gene.start - 2000, gene.start) if gene.strand == "+" else (gene.end, gene.end + 2000)
                promoter.append(first[bins.rows("chr1", a, b)].mean())
                body.append(second[bins.rows("chr1", gene.start, gene.end)].mean())
            assert r == pytest.approx(np.corrcoef(promoter, body)[0, 1], rel=1e-4)


def test_relationships_need_both_marks_and_genes(cube: xr.Dataset, genes: pd.DataFrame) -> None:
    with pytest.raises(CubeError, match="both marks"):
        relationships(cube, genes=genes, methods=["average"], progress=False)
    pair = Relationship("H3K4me3", "promoter", "H3K27ac", "body", 1)
    with pytest.raises(CubeError, match="none of the 1 genes"):
        relationships(cube, genes=genes[:1].assign(chrom="chr7"), pairs=[pair], methods=["average"], progress=False)
