from __future__ import annotations

import itertools
import logging

import numpy as np
import pandas as pd
import pytest
import strategies as own
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xr_avocado.embed
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.index import assign_bins

SIZES = {25: 3, 250: 4, 5000: 5}


def fitted_on(segments: list[own.Interval], sizes: dict[int, int] = SIZES) -> xr.Dataset:
    """A cube with factors drawn at random, as if it had been fitted."""
    random = np.random.default_rng(0)
    cube = own.cube_of(GenomeBins(segments, 25), n_celltypes=4, n_assays=3)
    cube.attrs["chromsizes"] = {chrom: 1_000_000 for chrom, _, _ in segments}
    cube.attrs["avocado"] = {"config": {"scales": [bp // 25 for bp in sizes]}}
    for bp, n in sizes.items():
        name = f"{bp}bp" if bp < 1000 else f"{bp // 1000}kbp"
        dim = "position" if bp == 25 else f"position_{name}"
        axis = GenomeBins(segments, 25).coarsen(bp // 25)
        cube[f"genome_factors_{name}"] = ((dim, f"factor_{name}"), random.normal(size=(len(axis), n)).astype("f4"))
        cube = assign_bins(cube, axis, dim)
    for dim in ("celltype", "assay"):
        cube[f"{dim}_factors"] = ((dim, f"{dim}_factor"), random.normal(size=(cube.sizes[dim], 6)).astype("f4"))
    return cube


WHOLE = [("chr1", 0, 60_010), ("chr2", 0, 30_007)]
PIECES = [("chr1", 0, 410), ("chr1", 1_000, 7_010), ("chr1", 7_600, 12_035), ("chr2", 4_875, 9_990)]


@pytest.fixture(scope="module")
def fitted() -> xr.Dataset:
    return fitted_on(WHOLE)


@pytest.fixture(scope="module")
def pieces() -> xr.Dataset:
    return fitted_on(PIECES)


# --- bins ---------------------------------------------------------------------------------------------------------------


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
    part = fitted.isel(position=slice(390, 810)).avocado.embed("position", scales=5000, as_="frame")
    assert part["start"].tolist() == [5000, 10_000, 15_000, 20_000]


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
    with pytest.raises(CubeError, match="'gene' is unknown"):
        fitted.avocado.embed("gene")
    with pytest.raises(CubeError, match="are for positions; leave them out for 'assay'"):
        fitted.avocado.embed("assay", regions="chr1:0-1,000")
    with pytest.raises(CubeError, match="no factors of 100 bp; this model has 25, 250, 5000 bp"):
        fitted.avocado.embed("position", scales=100)
    monkeypatch.setattr(xr_avocado.embed, "LARGEST_TABLE", 100)
    with pytest.raises(CubeError, match="too large to hold"):
        fitted.avocado.embed("position")
    assert len(fitted.avocado.embed("position", scales=5000, as_="frame")) == 20


def test_a_table_of_the_genome_is_refused_before_anything_is_computed() -> None:
    import dask.array as da

    def read(block_info: object = None) -> np.ndarray:
        raise AssertionError("factors were read")

    n = 3_000_000_000
    cube = fitted_on([("chr1", 0, 100)]).drop_dims(["position", "position_250bp", "position_5kbp"])
    for dim, bp in (("position", 25), ("position_250bp", 250), ("position_5kbp", 5000)):
        lazy = da.map_blocks(read, chunks=((n // bp,), (2,)), dtype="f4", meta=np.empty((0, 0), "f4"))
        name = dim.replace("position_", "") if "_" in dim else "25bp"
        cube[f"genome_factors_{name}"] = ((dim, f"factor_{name}"), lazy)
        cube = assign_bins(cube, GenomeBins([("chr1", 0, n)], bp), dim)
    with pytest.raises(CubeError, match=r"120,000,000 bins is too large .* aggregate over genes .* scales=5000"):
        cube.avocado.embed("position")


# --- intervals ----------------------------------------------------------------------------------------------------------


def by_hand(cube: xr.Dataset, bp: int, chrom: str, start: int, end: int, agg: str) -> list[float]:
    """Factors of a stretch, found by walking over every bin: the mean counts bases, the others count bins."""
    name = {25: "25bp", 250: "250bp", 5000: "5kbp"}[bp]
    axis = own.spell_out(PIECES, bp)
    held = []
    for row, (c, left, right) in zip(cube[f"genome_factors_{name}"].values.astype(float), axis, strict=True):
        shared = min(right, end) - max(left, start)
        if c == chrom and shared > 0:
            held.append((shared, row))
    if not held:
        return [np.nan] * (SIZES[bp] * (3 if agg == "quantile" else 1))
    if agg == "mean":
        return (sum(n * row for n, row in held) / sum(n for n, _ in held)).tolist()
    columns = [sorted(row[i] for _, row in held) for i in range(SIZES[bp])]
    if agg == "max":
        return [column[-1] for column in columns]
    return [linear(column, q) for q in (0.1, 0.5, 0.9) for column in columns]


def linear(ordered: list[float], q: float) -> float:
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@st.composite
def some_intervals(draw: st.DrawFn) -> pd.DataFrame:
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 13_000))
        rows.append((draw(st.sampled_from(["chr1", "chr2", "chr3"])), start, start + draw(st.integers(1, 9_000))))
    frame = pd.DataFrame([("chr1", 380, 420), ("chr1", 3_000, 3_500), *rows], columns=["chrom", "start", "end"])
    return frame.assign(strand=[draw(st.sampled_from("+-.")) for _ in range(len(frame))])


def stretch(row: object, anchor: str | None, flank: tuple[int, int]) -> tuple[int, int]:
    start, end, minus = row.start, row.end, row.strand == "-"
    if anchor == "center":
        start = end = (start + end) // 2
    elif anchor == "start":
        start = end = end if minus else start
    elif anchor == "end":
        start = end = start if minus else end
    up, down = flank
    return (start - down, end + up) if minus else (start - up, end + down)


many = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@many
@given(
    some_intervals(),
    st.sampled_from(["mean", "max", "quantile"]),
    st.sampled_from([None, "start", "center", "end"]),
    st.tuples(st.integers(0, 3_000), st.integers(1, 3_000)),
)
def test_intervals_are_what_a_walk_over_the_bins_finds(pieces, intervals, agg, anchor, flank) -> None:
    table = pieces.avocado.embed("position", regions=intervals, agg=agg, anchor=anchor, flank=flank, as_="frame")
    assert table[["chrom", "start", "end", "strand"]].equals(intervals)
    for row, found in zip(intervals.itertuples(), table.itertuples(), strict=True):
        start, end = stretch(row, anchor, flank)
        bases = sum(max(0, min(b, end) - max(a, start)) for c, a, b in PIECES if c == row.chrom)
        assert found.covered == pytest.approx(bases / (end - start))
        expected = list(itertools.chain(*(by_hand(pieces, bp, row.chrom, start, end, agg) for bp in SIZES)))
        np.testing.assert_allclose(found[6:], expected, rtol=1e-4, atol=1e-5)


@many
@given(some_intervals(), st.sampled_from(["mean", "max"]), st.integers(1, 12), st.integers(30, 4_000))
def test_windows_run_from_5_to_3_and_coarse_scales_come_once(pieces, intervals, agg, windows, flank) -> None:
    table = pieces.avocado.embed(
        "position", regions=intervals, agg=agg, anchor="start", flank=(flank, 0), windows=windows, as_="frame"
    )
    inner = [bp for bp in SIZES if bp <= flank // windows]
    for row, found in zip(intervals.itertuples(), table.iloc[:, 5:].itertuples(index=False), strict=True):
        start, end = stretch(row, "start", (flank, 0))
        expected = []
        for w in range(windows if inner else 0):
            a, b = flank * w // windows, flank * (w + 1) // windows
            left, right = (end - b, end - a) if row.strand == "-" else (start + a, start + b)
            for bp in inner:
                expected += by_hand(pieces, bp, row.chrom, left, right, agg)
        for bp in SIZES:
            if bp not in inner:
                expected += by_hand(pieces, bp, row.chrom, start, end, agg)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_promoter_recipe_has_565_columns() -> None:
    cube = fitted_on([("chr1", 0, 40_000)], {25: 25, 250: 40, 5000: 45})
    genes = pd.DataFrame({"chrom": "chr1", "start": [7_000, 15_000], "end": [9_000, 23_000], "strand": ["+", "-"]})
    table = cube.avocado.embed("position", regions=genes, anchor="start", flank=(2000, 0), windows=8, as_="frame")
    features = table.filter(like="factor_")
    assert features.shape == (2, 8 * (25 + 40) + 45) == (2, 565)
    assert list(features.columns[[0, 25, 65, 520]]) == [
        "factor_25bp_0_w0",
        "factor_250bp_0_w0",
        "factor_25bp_0_w1",
        "factor_5kbp_0",
    ]
    fine, middle, coarse = (cube[f"genome_factors_{name}"].values for name in ("25bp", "250bp", "5kbp"))
    for i, starts in enumerate([range(5_000, 7_000, 250), range(24_750, 22_750, -250)]):
        for w, start in enumerate(starts):
            window = features.filter(regex=f"_w{w}$").to_numpy()[i]
            np.testing.assert_allclose(window[:25], fine[start // 25 : start // 25 + 10].mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(window[25:], middle[start // 250], rtol=1e-6)
    np.testing.assert_allclose(features.filter(like="5kbp"), coarse[[1, 4]], rtol=1e-6)


def test_any_reduction_of_numpy_aggregates(fitted: xr.Dataset) -> None:
    regions = ["chr1:40,000-45,010", "chr1:0-1,000", "chr2:2,000-3,000"]
    table = fitted.avocado.embed("position", regions=regions, agg=np.std, scales=(25, 250), as_="frame")
    rows = fitted.genome_factors_25bp.values
    expected = [rows[1600:1801].std(0), rows[:40].std(0), rows[2401 + 80 : 2401 + 120].std(0)]
    np.testing.assert_allclose(table.filter(like="25bp_"), expected, rtol=1e-4)
    assert not table.filter(like="5kbp").size
    with pytest.raises(ValueError, match="it is to reduce axis=1"):
        fitted.avocado.embed("position", regions=regions, agg=lambda values, axis: values.sum())


def test_quantiles_are_named(fitted: xr.Dataset) -> None:
    table = fitted.avocado.embed("position", regions=["chr1:0-5,000"], agg="quantile", scales=25, as_="frame")
    expected = np.quantile(fitted.genome_factors_25bp.values[:200].astype(float), 0.9, axis=0)
    np.testing.assert_allclose(table[[f"factor_25bp_{i}_q90" for i in range(3)]].iloc[0], expected, rtol=1e-5)
    assert table.filter(like="factor_").shape == (1, 9)


@pytest.mark.parametrize("agg", ["mean", "max"])
def test_batches_and_lazy_factors_give_what_one_piece_in_memory_does(fitted, monkeypatch, agg) -> None:
    import xr_avocado.aggregate

    random = np.random.default_rng(1)
    start = random.integers(0, 55_000, 200)
    regions = pd.DataFrame({"chrom": "chr1", "start": start, "end": start + random.integers(1, 5_000, 200)})
    whole = fitted.avocado.embed("position", regions=regions, agg=agg, as_="frame")
    monkeypatch.setattr(xr_avocado.aggregate, "SPAN", 64)
    monkeypatch.setattr(xr_avocado.aggregate, "ROWS", 100)
    lazy = fitted.chunk(position=300, position_250bp=70).avocado.embed(
        "position", regions=regions, agg=agg, as_="frame"
    )
    pd.testing.assert_frame_equal(whole, lazy, rtol=1e-5)


def test_means_of_long_intervals_keep_their_digits() -> None:
    n = 400_000
    cube = fitted_on([("chr1", 0, 25 * n)], {25: 2})
    cube["genome_factors_25bp"] = cube.genome_factors_25bp + 1000
    table = cube.avocado.embed("position", regions=[f"chr1:0-{25 * n}"], agg="mean", as_="frame")
    expected = cube.genome_factors_25bp.values.astype(float).mean(0)
    np.testing.assert_allclose(table.filter(like="factor_").iloc[0], expected, rtol=1e-6)


def test_intervals_off_the_cube_are_nan_and_said(fitted: xr.Dataset, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("chr2", 30_000, 30_100), ("chr9", 0, 100), ("chr1", 0, 100)]
    genes = pd.DataFrame(rows, columns=["chrom", "start", "end"]).assign(name=["a", "b", "c"])
    with caplog.at_level(logging.WARNING, logger="xr_avocado"):
        table = fitted.avocado.embed("position", regions=genes, agg="mean", as_="frame")
    assert "of 3 intervals 1 lie off the cube's segments and are NaN, and 1 run off a segment" in caplog.text
    assert table["covered"].tolist() == [0.07, 0, 1] and table["name"].tolist() == ["a", "b", "c"]
    factors = table.filter(like="factor_")
    assert factors.isna().all(axis=1).tolist() == [False, True, False]
    np.testing.assert_allclose(factors.filter(like="_25bp").iloc[0], fitted.genome_factors_25bp[-1], rtol=1e-6)
    with pytest.raises(GenomeError, match="none of the 1 intervals overlaps a bin"):
        fitted.avocado.embed("position", regions=genes[1:2], agg="mean")


def test_a_cut_cube_aggregates_what_it_holds(fitted: xr.Dataset) -> None:
    regions = ["chr1:10,000-20,000", "chr1:50,000-50,100"]
    part = fitted.isel(position=slice(400, 500)).avocado.embed("position", regions=regions, agg="mean", as_="frame")
    assert part["covered"].tolist() == [0.25, 0]
    np.testing.assert_allclose(
        part.filter(like="_25bp").iloc[0], fitted.genome_factors_25bp[400:500].mean("position"), rtol=1e-4, atol=1e-6
    )
    assert part.iloc[1, 4:].isna().all()


def test_genes_come_back_as_pyranges_with_their_columns(fitted: xr.Dataset) -> None:
    import pyranges as pr

    genes = pr.from_dict(
        {"Chromosome": ["chr2", "chr1"], "Start": [100, 50], "End": [300, 90], "Strand": ["-", "+"], "gene": ["b", "a"]}
    )
    table = fitted.avocado.embed("position", regions=genes, flank=(1000, 0))
    assert table.df["gene"].tolist() == ["a", "b"] and table.df["Start"].tolist() == [50, 100]
    assert table.df["covered"].tolist() == [pytest.approx(90 / 1040), 1]
    unstranded = fitted.avocado.embed(
        "position", regions=pd.DataFrame(table.df).assign(Strand=".").iloc[:, :5], agg="max"
    )
    assert unstranded.df["Start"].tolist() == [50, 100]


def test_what_cannot_be_aggregated_is_told(fitted: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    genes = pd.DataFrame({"chrom": "chr1", "start": [100, 900], "end": [600, 1000], "strand": "+"})

    def refused(error: type[Exception], match: str, regions: object = genes, **options: object) -> None:
        with pytest.raises(error, match=match):
            fitted.avocado.embed("position", regions=regions, **options)

    refused(ValueError, "agg is 'mean', 'max', 'quantile' or a callable; got 'median'", agg="median")
    refused(CubeError, "give the intervals to aggregate over as regions=", None, agg="mean")
    refused(CubeError, "of one length; these have 100 to 500 bp.* anchor='start'", windows=8)
    refused(CubeError, "regions have no strand", genes.drop(columns="strand"), flank=(2000, 0))
    refused(CubeError, "regions have no strand", genes.drop(columns="strand"), anchor="end", flank=10)
    refused(CubeError, "leaves a point of each interval", anchor="start")
    refused(ValueError, "anchor is one of 'start', 'center', 'end', or None; got 'tss'", anchor="tss", flank=10)
    refused(ValueError, "flank is a number of bp", flank=-5)
    refused(ValueError, "flank is a number of bp", flank=(1, 2, 3))
    refused(ValueError, "at least 1; got 0", windows=0)
    refused(ValueError, "40 windows are more than the 20 bp", anchor="center", flank=10, windows=40)
    refused(CubeError, "regions have a column 'covered'", genes.assign(covered=1), agg="max")
    monkeypatch.setattr(xr_avocado.embed, "LARGEST_VALUES", 20)
    refused(CubeError, "2 intervals x 12 columns is too large to hold", agg="max")


# --- tracks as AnnData --------------------------------------------------------------------------------------------------


@pytest.fixture
def partly(pieces: xr.Dataset) -> xr.Dataset:
    """A cube with one experiment missing, and that and another one imputed."""
    cube = pieces.avocado.hold_out([("C2", "A3")])
    asked = np.zeros((4, 3), bool)
    asked[1, 2] = asked[0, 0] = True
    imputed = np.where(asked[:, :, None], np.random.default_rng(2).random(cube.signal.shape, np.float32), np.nan)
    return cube.assign(
        imputed=(("celltype", "assay", "position"), imputed.astype("f4")),
        imputed_tracks=(("celltype", "assay"), asked),
    )


@pytest.mark.parametrize("by", ["position", "celltype", "assay"])
def test_every_value_of_the_cube_is_where_its_labels_say(partly: xr.Dataset, by: str) -> None:
    table = partly.avocado.to_anndata(by, regions=["chr1:380-1,090", "chr2:9,950-9,990"])
    bins = [bin for bin in own.spell_out(PIECES, 25) if bin[:2] in [("chr1", 375), ("chr1", 400), ("chr2", 9_950), ("chr2", 9_975)]
            or (bin[0] == "chr1" and 1_000 <= bin[1] < 1_090)]  # fmt: skip
    every = own.spell_out(PIECES, 25)
    assert table.n_obs * table.n_vars == 4 * 3 * len(bins)
    for i, j in itertools.product(range(table.n_obs), range(table.n_vars)):
        labels = {**table.obs.iloc[i].to_dict(), **table.var.iloc[j].to_dict()}
        row = every.index((labels["chrom"], labels["start"], labels["end"]))
        at = {"celltype": labels["celltype"], "assay": labels["assay"]}
        np.testing.assert_equal(table.X[i, j], partly.signal.sel(at).values[row])
        np.testing.assert_equal(table.layers["imputed"][i, j], partly.imputed.sel(at).values[row])
    expected = {"position": 3 + 4 + 5, "celltype": 6, "assay": 6}[by]
    assert table.obsm["X_avocado"].shape == (table.n_obs, expected)
    assert table.obs_names.is_unique and table.var_names.is_unique


def test_positions_have_only_the_tracks_there_are(pieces: xr.Dataset) -> None:
    held = pieces.avocado.hold_out([("C2", "A3")])
    table = held.avocado.to_anndata(regions="chr1:0-100")
    assert table.shape == (4, 11) and "C2 A3" not in table.var_names
    assert table.obs_names[0] == "chr1:0-25" and not table.layers


def test_a_cube_without_signal_gives_its_imputed_layer(partly: xr.Dataset, tmp_path) -> None:
    import anndata

    table = partly.drop_vars("signal").avocado.to_anndata("celltype", regions="chr1:0-100")
    assert table.X is None and table.layers["imputed"].shape == (4, 12)
    table.write_h5ad(tmp_path / "table.h5ad")
    read = anndata.read_h5ad(tmp_path / "table.h5ad")
    np.testing.assert_array_equal(read.layers["imputed"], table.layers["imputed"])
    assert read.var["start"].tolist() == [0, 25, 50, 75] * 3


def test_what_makes_no_anndata_is_told(pieces: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CubeError, match="'track' is unknown"):
        pieces.avocado.to_anndata("track")
    with pytest.raises(CubeError, match="neither 'signal' nor 'imputed'"):
        pieces.drop_vars("signal").avocado.to_anndata()
    monkeypatch.setattr(xr_avocado.embed, "LARGEST_VALUES", 100)
    with pytest.raises(CubeError, match=r"too large to hold .* give regions="):
        pieces.avocado.to_anndata()
