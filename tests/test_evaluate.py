"""The table of scores: which tracks, methods and bins it is about, and that its numbers are the plain measures'."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado import baselines, impute, measures, predictors
from xr_avocado.annotations import promoters_of, rows_under, spans_of
from xr_avocado.cube import CubeError, hold_out
from xr_avocado.evaluate import cross_validate, evaluate
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins, bins_of, select
from xr_avocado.io.bigwig_writer import write_bins

HELD = [("C1", "H3K4me3"), ("C2", "H3K27ac")]
GENES = pd.DataFrame(
    {
        "chrom": ["chr1", "chr1", "chr2", "chr2"],
        "start": [10_010, 12_000, 100_000, 790_000],
        "end": [14_020, 30_000, 100_030, 799_990],
        "strand": ["+", "-", "+", "-"],
    }
)


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return xa.datasets.simulate(n_celltypes=4, n_assays=3)


@pytest.fixture(scope="module")
def held(cube: xr.Dataset) -> xr.Dataset:
    """The cube less two tracks, with a layer in place of a model's."""
    hidden = hold_out(cube, HELD)
    return hidden.assign(guess=baselines.average(hidden) + 0.5)


def score(table: pd.DataFrame, pair: tuple[str, str], method: str, measure: str) -> float:
    row = table[(table.celltype == pair[0]) & (table.assay == pair[1]) & (table.method == method)]
    assert len(row) == 1
    return row[measure].item()


# --- which tracks and methods -------------------------------------------------------------------------------


def test_the_held_out_tracks_are_scored_beside_the_average(cube: xr.Dataset, held: xr.Dataset) -> None:
    table = evaluate(held, cube, methods=["guess", "average"], progress=False)
    assert list(zip(table.celltype, table.assay, table.method, strict=True)) == [
        (*pair, method) for pair in HELD for method in ("guess", "average")
    ]
    assert not table.observed.any()
    assert not table.trained.any()
    assert (table.bins == cube.sizes["position"]).all()
    for pair in HELD:
        y = cube.signal.sel(celltype=pair[0], assay=pair[1]).values
        others = [c for c in cube.celltype.values if c != pair[0]]
        p = cube.signal.sel(celltype=others, assay=pair[1]).mean("celltype").values
        for name in ("mse", "gwcorr", "gwspear", "mse1obs", "mse1imp", "match1", "aucobs1"):
            assert score(table, pair, "average", name) == pytest.approx(getattr(measures, name)(y, p), rel=1e-4)
            assert score(table, pair, "guess", name) == pytest.approx(getattr(measures, name)(y, p + 0.5), rel=1e-4)


def test_without_held_out_tracks_all_are_scored_leave_one_out(cube: xr.Dataset) -> None:
    table = evaluate(cube, measures=["mse"], progress=False)
    assert len(table) == 12
    assert table.method.unique().tolist() == ["average"]
    assert table.observed.all()
    assert (table.mse > 0.01).all()


def test_a_model_scored_on_what_it_was_trained_on_is_marked(held: xr.Dataset, cube: xr.Dataset) -> None:
    provenance = {"trained_on": [["C1", "H3K27ac"]], "validation": [["C3", "H3K4me3"]]}
    imputed = held.assign(imputed=held.guess).assign_attrs(avocado=provenance)
    pairs = [*HELD, ("C1", "H3K27ac"), ("C3", "H3K4me3")]
    table = evaluate(imputed, cube, tracks=pairs, measures=["mse"], progress=False)
    assert table[table.method == "imputed"].trained.tolist() == [False, False, True, True]
    assert not table[table.method == "average"].trained.any()
    renamed = evaluate(imputed, cube, tracks=pairs, methods={"ours": "imputed"}, measures=["mse"], progress=False)
    assert renamed.method.unique().tolist() == ["ours"]
    assert renamed.trained.sum() == 2


def test_rows_keep_the_order_that_tracks_were_given_in(cube: xr.Dataset) -> None:
    pairs = [("C3", "H3K4me3"), ("C1", "H3K27ac"), ("C2", "H3K4me3")]
    table = evaluate(cube, tracks=pairs, measures=["mse"], progress=False)
    assert list(zip(table.celltype, table.assay, strict=True)) == pairs


def test_a_perfect_layer_has_no_error(cube: xr.Dataset) -> None:
    table = evaluate(
        cube.assign(same=cube.signal), methods=["same"], measures=["mse", "gwcorr", "match1"], progress=False
    )
    np.testing.assert_allclose(table[["mse", "gwcorr", "match1"]], np.tile([0, 1, 1], (12, 1)), atol=1e-9)


def test_batches_of_tracks_change_nothing(held: xr.Dataset, cube: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(held, cube, methods=["guess"], progress=False)
    monkeypatch.setattr("xr_avocado.methods.BATCH", 1)
    pd.testing.assert_frame_equal(evaluate(held, cube, methods=["guess"], progress=False), whole)


# --- spaces, conventions, bins ------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["arcsinh", "log1p", "none"])
def test_scores_are_of_the_space_asked_for_however_the_cube_is_stored(
    held: xr.Dataset, cube: xr.Dataset, stored: str
) -> None:
    def restored(ds: xr.Dataset, name: str) -> xr.DataArray:
        signal = np.sinh(ds[name])
        return {"arcsinh": np.arcsinh, "log1p": np.log1p, "none": lambda x: x}[stored](signal).assign_attrs(
            transform=stored
        )

    other = held.assign(guess=restored(held, "guess"), signal=restored(held, "signal")).assign_attrs(transform=stored)
    truth = cube.assign(signal=restored(cube, "signal")).assign_attrs(transform=stored)
    for space, convert in (("arcsinh", lambda x: x), ("signal", np.sinh)):
        got = evaluate(other, truth, methods=["guess"], space=space, progress=False)
        assert (got.space == space).all()
        for pair in HELD:
            y, p = (
                ds[name].sel(celltype=pair[0], assay=pair[1]).values for ds, name in ((cube, "signal"), (held, "guess"))
            )
            assert score(got, pair, "guess", "mse") == pytest.approx(measures.mse(convert(y), convert(p)), rel=1e-3)


def test_a_truth_of_more_bins_is_cut_to_the_cube(held: xr.Dataset, cube: xr.Dataset) -> None:
    region = "chr1:200,000-300,000"
    part = select(held, region)
    expected = evaluate(part, select(cube, region), methods=["guess"], progress=False)
    pd.testing.assert_frame_equal(evaluate(part, cube, methods=["guess"], progress=False), expected)
    with pytest.raises(ValueError, match="not covered"):
        evaluate(held, select(cube, region), methods=["guess"], progress=False)


def test_nan_bins_are_left_out_or_zero_by_convention(cube: xr.Dataset) -> None:
    signal = cube.signal.copy()
    signal[{"celltype": 0, "assay": 0, "position": slice(0, 1000)}] = np.nan
    holes = cube.assign(signal=signal, guess=xr.ones_like(cube.signal))
    own = {"tracks": [HELD[0]], "methods": ["guess"], "measures": ["mse"], "progress": False}
    y = cube.signal.sel(celltype="C1", assay="H3K4me3").values
    left_out, zero = evaluate(holes, **own), evaluate(holes, convention="challenge", **own)
    assert left_out.bins.item() == y.size - 1000
    assert left_out.mse.item() == pytest.approx(np.mean((y[1000:] - 1) ** 2))
    assert zero.bins.item() == y.size
    assert zero.mse.item() == pytest.approx((np.sum((y[1000:] - 1.0) ** 2) + 1000) / y.size)


def test_msevar_weighs_by_the_variance_over_all_true_tracks(held: xr.Dataset, cube: xr.Dataset) -> None:
    table = evaluate(held, cube, methods=["guess"], measures=["msevar"], progress=False)
    for pair in HELD:
        v = cube.signal.sel(assay=pair[1]).values.astype(float).var(0)
        y, p = (
            ds[name].sel(celltype=pair[0], assay=pair[1]).values for ds, name in ((cube, "signal"), (held, "guess"))
        )
        assert score(table, pair, "guess", "msevar") == pytest.approx(np.sum((y - p) ** 2.0 * v) / v.sum(), rel=1e-4)


def test_bootstraps_each_leave_another_part_out(held: xr.Dataset, cube: xr.Dataset) -> None:
    table = evaluate(held, cube, methods=["guess"], measures=["mse"], bootstraps=4, progress=False)
    assert table.bootstrap.tolist() == [0, 1, 2, 3] * 2
    n = cube.sizes["position"]
    whole = evaluate(held, cube, methods=["guess"], measures=["mse"], progress=False)
    # Every bin is in three of the four samples, so that their sums of squared errors make three times the whole's.
    sums = (table.mse * table.bins).groupby([table.celltype, table.assay]).sum()
    np.testing.assert_allclose(sums.to_numpy(), 3 * n * whole.mse.to_numpy(), rtol=1e-6)
    assert table.groupby("celltype").mse.nunique().tolist() == [4, 4]


# --- axes of many pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", measures.CONVENTIONS)
@pytest.mark.parametrize("bootstraps", [0, 3])
def test_an_axis_of_many_pieces_is_scored_as_one(
    held: xr.Dataset,
    cube: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    convention: str,
    bootstraps: int,
) -> None:
    holes = held.guess.where(np.arange(cube.sizes["position"]) % 11 > 0)
    for c, a in HELD:
        values = np.sinh(held.guess.sel(celltype=c, assay=a).values)
        write_bins(tmp_path / f"{c}.{a}.bw", bins_of(cube), values, cube.attrs["chromsizes"])
    peaks = GENES.assign(celltype="C1", assay="H3K4me3")
    own = {
        "methods": {"guess": "guess", "holes": holes, "average": "average", "elsewhere": tmp_path},
        "annotations": {"genes": GENES, "enhancers": GENES[:2], "peaks": peaks},
        "space": "signal",
        "convention": convention,
        "bootstraps": bootstraps,
        "progress": False,
    }
    whole = evaluate(held.chunk(position=9_000), cube, **own)
    assert whole.drop(columns="catchpeakobs").notna().all(axis=None)
    monkeypatch.setattr("xr_avocado.pieces.PIECE", 10_007)
    pieces = evaluate(held.chunk(position=9_000), cube, **own)
    pd.testing.assert_frame_equal(pieces, whole, rtol=1e-9, atol=1e-12)


class Counted:
    """A lazy layer of two cell types that counts how often each of its bins is computed."""

    dtype, ndim = np.dtype(np.float32), 3

    def __init__(self, bins: int, seed: int) -> None:
        self.shape, self.times, self.seed = (2, 1, bins), np.zeros((2, bins), int), seed

    def __getitem__(self, key: tuple) -> np.ndarray:
        self.times[key[0], key[2]] += 1
        start, stop, _ = key[2].indices(self.shape[2])
        block = np.random.default_rng([self.seed, start]).random((2, 1, stop - start), np.float32)
        return block[(*key[:2], slice(None))]


def long_cube(bins: int) -> tuple[xr.Dataset, Counted]:
    layers = Counted(bins, 0), Counted(bins, 1)
    signal, guess = (
        (("celltype", "assay", "position"), da.from_array(layer, (1, 1, 5_000), asarray=False, name=False))
        for layer in layers
    )
    cube = xr.Dataset(
        {"signal": signal, "guess": guess, "observed": (("celltype", "assay"), [[True], [True]])},
        {"celltype": ["C1", "C2"], "assay": ["H3K4me3"]},
        {"transform": "arcsinh"},
    )
    return assign_bins(cube, GenomeBins([("chr1", 0, 25 * bins)], 25)), layers[1]


def peak_memory(bins: int) -> float:
    """Bytes that scoring a cube of so many bins takes at most."""
    genes = GENES[:2]
    annotations = {"genes": genes, "enhancers": genes, "peaks": genes.assign(celltype="C1", assay="H3K4me3")}
    cube, guess = long_cube(bins)
    gc.collect()
    tracemalloc.start()
    table = evaluate(
        cube, tracks=[("C1", "H3K4me3")], methods=["guess"], annotations=annotations, bootstraps=2, progress=False
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.notna().all(axis=None)
    assert (guess.times == [[1], [0]]).all(), "each bin of a layer is computed once"
    return peak


def test_memory_does_not_grow_with_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xr_avocado.pieces.PIECE", 20_000)
    monkeypatch.setattr("xr_avocado.pieces.SAMPLE", 2_000)
    peak_memory(50_000)
    short, long = peak_memory(100_000), peak_memory(400_000)
    assert long < 1.5 * short
    assert long < 2 * 400_000 * 4, "less than the two tracks themselves"


# --- annotations --------------------------------------------------------------------------------------------


def slow_challenge(y: np.ndarray, p: np.ndarray, bins: GenomeBins, kind: str) -> float:
    """The challenge's loops over genes, one chromosome's arrays at a time."""
    sse, n = 0.0, 0
    for gene in GENES.itertuples():
        at = bins.rows(gene.chrom)
        yc, pc = y[at].astype(float), p[at].astype(float)
        start, end = gene.start // 25, gene.end // 25 + 1
        if kind == "gene":
            sse += ((yc[start:end] - pc[start:end]) ** 2).sum()
            n += end - start
        else:
            where = slice(start - 80, start) if gene.strand == "+" else slice(end, end + 80)
            sse += ((yc[where] - pc[where]) ** 2).sum()
            n += yc[where].shape[0]
    return sse / n


def test_annotated_measures_are_the_challenges(held: xr.Dataset, cube: xr.Dataset) -> None:
    # A gene that reaches past the end of its chromosome shows the quirk of the denominator.
    past = GENES.assign(end=[*GENES.end[:3], 801_000])
    own = {
        "annotations": {"genes": past, "enhancers": past},
        "methods": ["guess"],
        "convention": "challenge",
        "progress": False,
    }
    table = evaluate(held, cube, measures=["mseprom", "msegene", "mseenh"], **own)
    bins = bins_of(cube)
    for pair in HELD:
        y, p = (
            ds[name].sel(celltype=pair[0], assay=pair[1]).values for ds, name in ((cube, "signal"), (held, "guess"))
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "GENES", past)
            gene, promoter = slow_challenge(y, p, bins, "gene"), slow_challenge(y, p, bins, "promoter")
        assert score(table, pair, "guess", "msegene") == pytest.approx(gene, rel=1e-5)
        assert score(table, pair, "guess", "mseenh") == pytest.approx(gene, rel=1e-5)
        assert score(table, pair, "guess", "mseprom") == pytest.approx(promoter, rel=1e-5)


def test_annotated_measures_count_each_bin_once_by_default(held: xr.Dataset, cube: xr.Dataset) -> None:
    table = evaluate(held, cube, annotations={"genes": GENES}, methods=["guess"], progress=False)
    chrom, start, end = cube.chrom.values, cube.start.values, cube.end.values
    in_gene, in_promoter = np.zeros(len(chrom), bool), np.zeros(len(chrom), bool)
    for gene in GENES.itertuples():
        in_gene |= (chrom == gene.chrom) & (start < gene.end) & (end > gene.start)
        a, b = (gene.start - 2000, gene.start) if gene.strand == "+" else (gene.end, gene.end + 2000)
        in_promoter |= (chrom == gene.chrom) & (start < b) & (end > a)
    for pair in HELD:
        y, p = (
            ds[name].sel(celltype=pair[0], assay=pair[1]).values for ds, name in ((cube, "signal"), (held, "guess"))
        )
        error = (y - p).astype(float) ** 2
        assert score(table, pair, "guess", "msegene") == pytest.approx(error[in_gene].mean(), rel=1e-5)
        assert score(table, pair, "guess", "mseprom") == pytest.approx(error[in_promoter].mean(), rel=1e-5)
    assert table.mseenh.isna().all()
    assert table.catchpeakobs.isna().all()


def test_peaks_belong_to_their_track(held: xr.Dataset, cube: xr.Dataset, tmp_path: Path) -> None:
    peaks = pd.DataFrame({"chrom": ["chr1", "chr2"], "start": [50_000, 300_000], "end": [90_000, 340_000]})
    as_table = peaks.assign(celltype="C1", assay="H3K4me3")
    peaks.to_csv(tmp_path / "peaks.narrowPeak", sep="\t", header=False, index=False)
    for given in (as_table, {HELD[0]: tmp_path / "peaks.narrowPeak"}):
        table = evaluate(
            held, cube, annotations={"peaks": given}, methods=["guess"], measures=["catchpeakobs"], progress=False
        )
        p = held.guess.sel(celltype="C1", assay="H3K4me3").values
        chrom, start = cube.chrom.values, cube.start.values
        under = ((chrom == "chr1") & (start >= 50_000) & (start < 90_000)) | (
            (chrom == "chr2") & (start >= 300_000) & (start < 340_000)
        )
        expected = measures.catchpeakobs(p, p, under)
        assert score(table, HELD[0], "guess", "catchpeakobs") == pytest.approx(expected)
        assert np.isnan(score(table, HELD[1], "guess", "catchpeakobs"))


def test_rows_and_spans_of_intervals() -> None:
    bins = GenomeBins([("chr1", 100, 310), ("chr1", 1000, 1100)], 50)
    intervals = pd.DataFrame({"chrom": ["chr1", "chr1", "chr9"], "start": [149, 290, 5], "end": [150, 1001, 9]})
    assert rows_under(bins, intervals).cover(slice(0, 7)).tolist() == [1, 0, 0, 1, 1, 1, 0]
    assert rows_under(bins, intervals).cover(slice(2, 5)).tolist() == [0, 1, 1]
    twice = pd.concat([intervals[:1], intervals[:1]])
    assert rows_under(bins, twice).cover(slice(0, 7)).tolist() == [1, *[0] * 6]
    spans = spans_of(bins, intervals, "genes", {"chr1": 2000})
    assert (spans.first.tolist(), spans.last.tolist(), spans.size.tolist()) == ([0, 3], [2, 6], [2, 3])
    with pytest.raises(CubeError, match="none of the 1 genes overlaps a bin"):
        rows_under(bins, intervals[2:], "genes")


def test_promoters_lie_upstream_within_the_genome() -> None:
    genes = pd.DataFrame(
        {"chrom": "chr1", "start": [500, 0, 9_000], "end": [900, 50, 9_500], "strand": ["+", "+", "-"]}
    )
    assert promoters_of(genes)[["start", "end"]].to_numpy().tolist() == [[0, 500], [9_500, 11_500]]
    with pytest.raises(CubeError, match="'strand' column"):
        promoters_of(genes.drop(columns="strand"))


# --- tracks imputed elsewhere -------------------------------------------------------------------------------


def test_a_folder_of_bigwigs_is_scored_like_a_layer(held: xr.Dataset, cube: xr.Dataset, tmp_path: Path) -> None:
    bins = bins_of(cube)
    for pair, name in zip(HELD, ("C1.H3K4me3.imputed.bw", "C2_H3K27ac.bigWig"), strict=True):
        values = np.sinh(held.guess.sel(celltype=pair[0], assay=pair[1]).values)
        write_bins(tmp_path / name, bins, values, cube.attrs["chromsizes"])
    table = evaluate(
        held, cube, methods={"elsewhere": tmp_path, "guess": "guess"}, measures=["mse", "gwcorr"], progress=False
    )
    for pair in HELD:
        for name in ("mse", "gwcorr"):
            assert score(table, pair, "elsewhere", name) == pytest.approx(score(table, pair, "guess", name), rel=1e-4)
    (tmp_path / "C1.H3K4me3.imputed.bw").rename(tmp_path / "other.bw")
    with pytest.raises(CubeError, match="no bigWig of C1 H3K4me3: name it C1.H3K4me3.bw"):
        evaluate(held, cube, methods={"elsewhere": tmp_path}, progress=False)
    sheet = pd.DataFrame(HELD, columns=["celltype", "assay"]).assign(path=["other.bw", "C2_H3K27ac.bigWig"])
    sheet.to_csv(tmp_path / "samples.tsv", sep="\t", index=False)
    again = evaluate(held, cube, methods={"elsewhere": tmp_path}, measures=["mse", "gwcorr"], progress=False)
    assert again.mse.tolist() == table[table.method == "elsewhere"].mse.tolist()


def test_an_array_from_elsewhere_is_scored_like_a_layer(held: xr.Dataset, cube: xr.Dataset) -> None:
    array = np.sinh(held.guess.sel(celltype=["C2", "C1"])).assign_attrs(transform="none")
    table = evaluate(held, cube, methods={"theirs": array, "guess": "guess"}, measures=["mse"], progress=False)
    for pair in HELD:
        assert score(table, pair, "theirs", "mse") == pytest.approx(score(table, pair, "guess", "mse"), rel=1e-5)
    with pytest.raises(CubeError, match="no celltype C1"):
        evaluate(held, cube, methods={"theirs": array.sel(celltype=["C2"])}, progress=False)


# --- what does not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ["imputed"]}, CubeError, "no 'imputed'.*impute"),
        ({"methods": ["nearest"]}, ValueError, "'nearest' is neither a layer.*average, celltype_average"),
        ({"space": "log"}, ValueError, "'arcsinh' or 'signal'"),
        ({"convention": "theirs"}, ValueError, "not a convention"),
        ({"measures": ["r2"]}, ValueError, "'r2' is not a measure"),
        ({"bootstraps": 1}, ValueError, "at least 2"),
        ({"annotations": {"exons": GENES}}, ValueError, "'exons'.*genes, promoters"),
        ({"annotations": {"genes": GENES.assign(chrom="1")}}, CubeError, "named the same"),
        ({"annotations": {"peaks": GENES}}, CubeError, "columns 'celltype' and 'assay'"),
        ({"tracks": [("C9", "H3K4me3")]}, CubeError, "'C9' is not a celltype"),
        ({"methods": ["cp"], "tracks": [("C3", "H3K4me3")]}, CubeError, "hide it first"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_so(
    held: xr.Dataset, cube: xr.Dataset, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(held, cube, **{"methods": ["guess"], "progress": False, **options})


def test_a_track_that_the_truth_lacks_cannot_be_scored(held: xr.Dataset) -> None:
    with pytest.raises(CubeError, match="the truth has no track of C1 H3K4me3"):
        evaluate(held, tracks=HELD[:1], progress=False)


# --- cross-validation ---------------------------------------------------------------------------------------


def test_cross_validation_scores_every_track_once_by_a_model_that_has_not_seen_it() -> None:
    cube = xa.datasets.simulate(n_celltypes=3, n_assays=3, chromsizes={"chr1": 100_000})
    table = cross_validate(cube, fit={"preset": "small", "epochs": 1}, measures=["mse"], progress=False)
    assert sorted(table.columns[:4]) == ["assay", "celltype", "fold", "method"]
    for _, rows in table.groupby("method"):
        assert len(rows) == 9
        assert not rows.duplicated(["celltype", "assay"]).any()
    assert table.method.unique().tolist() == ["imputed", "average"]
    assert not table.observed.any()
    assert not table.trained.any()
    assert table.mse.notna().all()


def test_cross_validation_of_baselines_fits_no_model(cube: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xr_avocado.fit.fit", lambda *_, **__: pytest.fail("a model was fitted"))
    table = cross_validate(cube, [[("C1", "H3K4me3")]], methods=["cp", "average"], measures=["mse"], progress=False)
    assert table.method.tolist() == ["cp", "average"]


# --- real tracks --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_average_activity_on_the_first_fold_of_the_real_tracks(shared: Path) -> None:
    """Known from elsewhere: MSE 0.212 and correlation 0.433, arcsinh, mean over the five tracks that the fold hides."""
    from xr_avocado.io.bigwig import read_bins

    folder = shared / "data" / "roadmap_pilot"
    sizes = dict(pd.read_csv(folder / "hg19.chrom.sizes", sep="\t", header=None).itertuples(index=False))
    regions = pd.read_csv(folder / "pilot_regions.hg19.bed", sep="\t", header=None).iloc[:, :3]
    bins = GenomeBins.from_regions(regions, 25, sizes)
    sheet = pd.read_csv(folder / "samples.tsv", sep="\t")
    celltypes, assays = sorted(sheet.celltype.unique()), ["H3K4me1", "H3K4me3", "H3K9me3", "H3K27me3", "H3K36me3"]
    signal = np.full((5, 5, len(bins)), np.nan, np.float32)
    for row in sheet.itertuples():
        signal[celltypes.index(row.celltype), assays.index(row.assay)] = np.arcsinh(read_bins(folder / row.path, bins))
    observed = ~np.isnan(signal[:, :, 0])
    cube = xr.Dataset(
        {"signal": (("celltype", "assay", "position"), signal), "observed": (("celltype", "assay"), observed)},
        {"celltype": celltypes, "assay": assays},
        {"transform": "arcsinh"},
    )
    missing = {c: int(np.flatnonzero(~observed[i])[0]) for i, c in enumerate(celltypes)}
    fold = [(c, assays[(missing[c] + 1) % 5]) for c in celltypes]
    table = evaluate(
        hold_out(assign_bins(cube, bins), fold), assign_bins(cube, bins), measures=["mse", "gwcorr"], progress=False
    )
    assert table.mse.mean() == pytest.approx(0.212, abs=5e-4)
    assert table.gwcorr.mean() == pytest.approx(0.433, abs=5e-4)


def test_imputed_tracks_are_computed_once_for_all(cube, monkeypatch):
    config = {"context_units": 8, "context_nodes": 16, "context_samples": 2_000, "nodes": 8, "layers": 1}
    pairs = [*HELD, ("C3", "H3K4me3")]
    full = cube.avocado.hold_out(pairs).avocado.fit(epochs=1, config=config, progress=False).avocado.impute()
    calls = []
    predict = predictors.ContextPredictor.predict
    monkeypatch.setattr(
        predictors.ContextPredictor, "predict", lambda self, *a: calls.append(len(a[0])) or predict(self, *a)
    )
    options = {"tracks": pairs, "methods": ["imputed"], "measures": ["mse", "gwcorr"], "progress": False}
    together = full.avocado.evaluate(cube, **options)
    assert calls == [3]
    monkeypatch.setattr(impute, "TOGETHER", 0)
    pd.testing.assert_frame_equal(full.avocado.evaluate(cube, **options), together, rtol=1e-4)
    assert calls == [3, 1, 1, 1]
    narrow = full.sel(celltype=["C2", "C1"]).avocado.evaluate(cube, **{**options, "tracks": pairs[:2]})
    np.testing.assert_allclose(narrow.mse, together.mse[:2], rtol=1e-4)
