"""qc: planted faults are flagged and clean tracks are not; labels that were exchanged are found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado import baselines, labels, qc, sample
from xr_avocado.cli import main
from xr_avocado.cube import CubeError
from xr_avocado.linear import Panel, second_moments

QUICK = {"context_units": 8, "context_nodes": 16, "context_heads": 2, "context_samples": 5_000, "context_batch": 512}
TRACK = {"celltype": "C3", "assay": "H3K4me1"}


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return xa.datasets.simulate(n_celltypes=6, n_assays=4, chromsizes={"chr1": 600_010, "chr2": 400_017})


@pytest.fixture(scope="module")
def table(cube: xr.Dataset) -> pd.DataFrame:
    return cube.avocado.qc(progress=False)


def flags(cube: xr.Dataset) -> dict[tuple[str, str], str]:
    found = cube.avocado.qc(progress=False)
    return {(c, a): flag for c, a, flag in found[["celltype", "assay", "flag"]].values if flag}


def changed(cube: xr.Dataset, change: Callable[[np.ndarray], np.ndarray]) -> xr.Dataset:
    """Change one track, in the signal's own units."""
    out = cube.copy(deep=True)
    signal = np.sinh(cube.signal.sel(TRACK).values.astype(float))
    out.signal.loc[TRACK] = np.arcsinh(change(signal)).astype(np.float32)
    return out


def exchanged(cube: xr.Dataset, first: tuple[str, str], second: tuple[str, str]) -> xr.Dataset:
    out = cube.copy(deep=True)
    for one, other in ((first, second), (second, first)):
        out.signal.loc[one] = cube.signal.sel(celltype=other[0], assay=other[1]).values
    return out


def half_missing(signal: np.ndarray) -> np.ndarray:
    return np.where(np.arange(signal.size) < signal.size / 2, np.nan, signal)


def shuffled(signal: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(signal)


FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "times 3": (lambda x: 3 * x, "scale"),
    "a third": (lambda x: x / 3, "scale"),
    "peaks times 20": (lambda x: np.where(x > np.quantile(x, 0.98), 20 * x, x), "peaks"),
    "all zero": (lambda x: 0 * x, "dead"),
    "constant": (lambda x: 0 * x + 1.3, "dead"),
    "flat": (lambda x: 1 + 0.1 * x / x.max(), "dead"),
    "clipped": (lambda x: np.minimum(x, np.quantile(x, 0.998)), "saturated"),
    "nothing": (lambda x: np.nan * x, "empty"),
    "half missing": (half_missing, "gaps"),
    "half zero": (lambda x: np.nan_to_num(half_missing(x)), "gaps"),
    "at other places": (shuffled, "noisy"),
    "moved": (lambda x: np.roll(x, 10_000), "noisy"),
}


def test_clean_tracks_have_no_flag(table, cube):
    assert list(table.columns) == list(qc.COLUMNS)
    assert [tuple(pair) for pair in table[["celltype", "assay"]].values] == cube.avocado.experiments
    assert not table[table.flag != ""].values.tolist()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_track_is_flagged_and_no_other(cube, fault):
    change, flag = FAULTS[fault]
    found = flags(changed(cube, change))
    assert flag in found.pop(tuple(TRACK.values())).split(", ")
    assert not found


@pytest.mark.parametrize(
    "second",
    [("C3", "H3K27ac"), ("C5", "H3K4me1"), ("C6", "DNase")],
    ids=["two marks of a cell type", "two cell types of a mark", "neither shared"],
)
def test_exchanged_labels_are_flagged_and_no_other(cube, second):
    first = ("C3", "H3K4me1")
    found = cube.pipe(exchanged, first, second).avocado.qc(progress=False)
    wrong = found[found.flag != ""].set_index(["celltype", "assay"])
    assert set(wrong.index) == {first, second}
    assert all("swapped?" in flag.split(", ") for flag in wrong.flag)
    assert wrong.swap_with[first] == " ".join(second) and wrong.swap_with[second] == " ".join(first)
    assert wrong.swap.max() < -0.05


def test_a_track_of_another_mark_alone_is_flagged(cube):
    out = cube.copy(deep=True)
    out.signal.loc[TRACK] = cube.signal.sel(celltype="C4", assay="H3K4me3").values
    found = out.avocado.qc(progress=False).set_index(["celltype", "assay"])
    wrong = found.loc[("C3", "H3K4me1")]
    assert wrong.best_assay == "H3K4me3" and "assay?" in wrong.flag.split(", ")


def test_figures_are_those_of_the_definitions(cube, table):
    row = table.set_index(["celltype", "assay"]).loc[("C3", "H3K4me1")]
    x = cube.signal.sel(TRACK).values.astype(float)
    signal, n = np.sort(np.sinh(x)), x.size
    assert row["mean"] == pytest.approx(x.mean()) and row["std"] == pytest.approx(x.std())
    assert row.zeros == (x == 0).mean() and row.missing == 0 and row.at_max == (x == x.max()).mean()
    assert row.q99 == pytest.approx(np.quantile(x, 0.99), abs=1e-3)
    assert row.top1 == pytest.approx(signal[-(n // 100) :].sum() / signal.sum())
    others = cube.signal.sel(assay="H3K4me1").drop_sel(celltype="C3").values.astype(float)
    tops = [np.sort(np.sinh(other))[-(n // 100) :].mean() for other in others]
    assert row.peaks == pytest.approx(np.log2(signal[-(n // 100) :].mean()) - np.median(np.log2(tops)))
    assert row.average == pytest.approx(np.corrcoef(x, others.mean(0))[0, 1], abs=0.01)


def test_the_imputation_leaves_the_track_out(cube, table):
    """Ridge imputation of the track when hidden, worked out on the bins and not from moments."""
    z = (cube.signal - cube.signal.mean("position")) / cube.signal.std("position")
    standard = cube.assign(signal=z.astype(np.float32))
    pair = tuple(TRACK.values())
    p = baselines.ridge(standard.avocado.hold_out([pair]), tracks=[pair], training_bins=None).sel(TRACK).values
    row = table.set_index(["celltype", "assay"]).loc[pair]
    assert row.imputed == pytest.approx(np.corrcoef(z.sel(TRACK), p)[0, 1], abs=1e-4)


def test_a_swap_is_scored_by_imputations_without_both(cube):
    pairs = [("C3", "H3K4me1"), ("C5", "H3K4me1")]
    z = (cube.signal - cube.signal.mean("position")) / cube.signal.std("position")
    held = cube.assign(signal=z.astype(np.float32)).avocado.hold_out(pairs)
    p = baselines.ridge(held, tracks=pairs, training_bins=None)
    (t1, p1), (t2, p2) = [[x.sel(celltype=c, assay=a).values for x in (z, p)] for c, a in pairs]
    experiments = cube.avocado.experiments
    scores = labels.swap_scores(panel_of(z))
    i, j = (experiments.index(pair) for pair in pairs)
    assert scores[i, j] == pytest.approx(np.corrcoef(t1 - t2, p1 - p2)[0, 1], abs=1e-4)


def panel_of(standard: xr.DataArray) -> Panel:
    """A panel of standardised tracks, all experiments run."""
    n_celltypes, n_assays, n = standard.shape
    tracks = standard.values.reshape(-1, n).astype(float)
    celltype, assay = np.divmod(np.arange(len(tracks)), n_assays)
    return Panel(celltype, assay, second_moments([tracks], len(tracks)))


def test_exchanging_labels_turns_the_sign_of_the_score(cube):
    panel = panel_of((cube.signal - cube.signal.mean("position")) / cube.signal.std("position"))
    scores = labels.swap_scores(panel)
    assert min(scores.values()) > 0
    order = np.arange(len(panel))
    order[[3, 8]] = 8, 3
    other_way = labels.swap_scores(Panel(panel.celltype[order], panel.assay[order], panel.moments))
    assert other_way[3, 8] == pytest.approx(-scores[3, 8])


def test_large_panels_score_the_most_suspect_pairs(cube, monkeypatch):
    swapped = exchanged(cube, ("C3", "H3K4me1"), ("C5", "H3K4me1")).signal
    panel = panel_of((swapped - swapped.mean("position")) / swapped.std("position"))
    every = labels.swap_scores(panel)
    monkeypatch.setattr(labels, "PAIRS", 40)
    some = labels.swap_scores(panel)
    assert len(some) == 40 and min(some, key=some.get) == min(every, key=every.get)
    assert all(every[pair] == score for pair, score in some.items())


def test_what_is_undefined_is_nan_and_not_flagged():
    lone = xa.datasets.simulate(n_celltypes=3, n_assays=3).avocado.hold_out(
        [("C2", "H3K4me3"), ("C3", "H3K4me3"), ("C3", "H3K27ac")]
    )
    found = lone.avocado.qc(progress=False).set_index(["celltype", "assay"])
    only = found.loc[("C1", "H3K4me3")]
    assert np.isnan(only[["scale", "peaks", "average", "imputed", "swap"]].astype(float)).all()
    assert only["mean"] > 0 and not (found.flag != "").any()
    single = xa.datasets.simulate(1, 1, {"chr1": 50_000}).avocado.qc(progress=False)
    assert len(single) == 1 and single.flag[0] == "" and single.best_assay[0] == ""


def test_a_panel_of_empty_tracks_is_told():
    cube = xa.datasets.simulate(2, 2, {"chr1": 10_000})
    cube["signal"] = cube.signal * np.nan
    assert cube.avocado.qc(progress=False).flag.tolist() == ["empty"] * 4
    with pytest.raises(CubeError, match="no experiment of this cube was run"):
        cube.assign(observed=cube.observed & False).avocado.qc(progress=False)


def test_the_sample_is_bounded_and_spread(cube, table, monkeypatch):
    assert sample.sample_runs(1000, 20) == [slice(0, 1000)]
    for n, tracks in [(121_241_684, 20), (121_241_684, 1014), (3_000_000, 1)]:
        runs = sample.sample_runs(n, tracks)
        taken = sum(run.stop - run.start for run in runs)
        assert (
            taken <= sample.BINS
            and taken * tracks <= sample.VALUES
            and taken > 0.9 * min(sample.BINS, sample.VALUES // tracks)
        )
        assert runs[0].start == 0 and runs[-1].stop == n
        assert all(a.stop <= b.start for a, b in zip(runs, runs[1:], strict=False))
    monkeypatch.setattr(sample, "BINS", 40_000)
    part = cube.chunk(position=7_000).avocado.qc(progress=False)
    assert not (part.flag != "").any()
    np.testing.assert_allclose(part["mean"], table["mean"], rtol=0.2)
    assert not np.allclose(part["mean"], table["mean"])


def test_other_transforms_and_orders_give_the_same_ratios(cube, table):
    plain = cube.assign(signal=np.sinh(cube.signal.astype(float))).assign_attrs(transform="none")
    found = plain.transpose("position", "assay", "celltype").avocado.qc(progress=False)
    for name in ("scale", "peaks", "top1", "imputed", "swap"):
        np.testing.assert_allclose(found[name], table[name], atol=1e-3)


def test_a_fitted_model_gives_the_imputation(cube):
    small = cube.avocado.sel("chr2:0-100kb")
    fitted = small.avocado.fit(epochs=1, progress=False, config=QUICK)
    plain, found = small.avocado.qc(progress=False), fitted.avocado.qc(progress=False)
    imputed = fitted.avocado.impute(tracks=[TRACK.values()]).imputed.sel(TRACK).values
    row = found.set_index(["celltype", "assay"]).loc[tuple(TRACK.values())]
    assert row.imputed == pytest.approx(np.corrcoef(imputed, small.signal.sel(TRACK))[0, 1], abs=1e-4)
    rest = [name for name in qc.COLUMNS if name not in ("imputed", "flag")]
    pd.testing.assert_frame_equal(found[rest], plain[rest])


def test_the_figure_frames_what_is_flagged(cube):
    found = cube.pipe(changed, lambda x: 3 * x).avocado.qc(progress=False)
    axes = xa.plot.qc(found)
    for ax in axes:
        (frame,) = ax.patches
        assert frame.get_xy() == (2, 2)
        assert [label.get_text() for label in ax.get_xticklabels()] == cube.assay.values.tolist()
    scale = np.asarray(axes[0].collections[0].get_array()).reshape(6, 4)
    assert scale[2, 2] == pytest.approx(found.set_index(["celltype", "assay"]).scale["C3", "H3K4me1"])
    assert axes[0].figure.axes[4].texts[0].get_text() == "C3 H3K4me1: scale"
    with pytest.raises(CubeError, match="no column swap, flag"):
        xa.plot.qc(found.drop(columns=["swap", "flag"]))
    with pytest.raises(CubeError, match="4 maps to draw, but 2 axes"):
        xa.plot.qc(found, axes=plt.subplots(1, 2)[1])
    plt.close("all")


def test_the_command_shows_writes_and_draws(tmp_path: Path, capsys):
    store, figure, out = (str(tmp_path / name) for name in ("cube.zarr", "qc.png", "qc.tsv"))
    cube = xa.datasets.simulate(3, 3, {"chr1": 500_000})
    cube.signal.loc["C2", "H3K4me1"] = 0
    cube.avocado.to_zarr(store, progress=False)
    assert main(["qc", store, "--quiet"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.endswith("dead")] == [
        ["C2", "H3K4me1"]
    ]
    assert main(["qc", store, "--quiet", "--plot", figure, "--out", out]) == 0
    assert Path(figure).read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(out, sep="\t", keep_default_na=False).flag.tolist().count("dead") == 1
    assert main(["qc", store, "--quiet", "--plot", str(tmp_path / "qc.xyz")]) == 2
    assert "xyz" in capsys.readouterr().err


@pytest.mark.slow
def test_real_tracks_have_few_flags_and_exchanged_ones_are_found(shared, tmp_path):
    """H3K27me3 of embryonic stem cells alone is flagged: its peaks are 23 times as high as those of the other cell types."""
    folder = shared / "data" / "roadmap_pilot"
    regions = folder / "pilot_regions.hg19.bed"
    options = {"genome": folder / "hg19.chrom.sizes", "regions": regions, "n_jobs": 1, "progress": False}
    cube = xa.build_cube(folder / "samples.tsv", tmp_path / "cube.zarr", **options).load()
    assert flags(cube) == {("E003", "H3K27me3"): "peaks"}
    for first, second in [
        (("E116", "H3K4me3"), ("E116", "H3K9me3")),
        (("E017", "H3K36me3"), ("E116", "H3K36me3")),
    ]:
        found = flags(exchanged(cube, first, second))
        assert {pair for pair, flag in found.items() if "swapped?" in flag} == {first, second}
    part = cube.avocado.sel(["chr21", "chr22", "chr11"])
    found = flags(exchanged(part, ("E003", "H3K4me1"), ("E003", "H3K27me3")))
    assert {pair for pair, flag in found.items() if "swapped?" in flag} == {("E003", "H3K4me1"), ("E003", "H3K27me3")}
