"""Downstream tasks: folds that do not leak, scores that are right, tables and labels that say what they should."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cube_of

import xr_avocado as xa
from xr_avocado import task_classifiers, tasks
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins, GenomeError
from xr_avocado.io.bigwig import write_bins
from xr_avocado.task_folds import PAIR, connected_pairs, deal_groups, deal_rows, splits

QUIET = {"progress": False, "n_jobs": 1}


def precision_by_definition(y: np.ndarray, scores: np.ndarray) -> float:
    """The sum over thresholds, highest first, of (recall - recall before) x precision."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        recall, precision = (called & y).sum() / y.sum(), (called & y).sum() / called.sum()
        total += (recall - recall_before) * precision
        recall_before = recall
    return total


def planted(n: int = 400, *, strength: float = 1.5, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Labels, a table that tells them, and one that does not."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    return {"told": strength * y[:, None] + rng.normal(size=(n, 3)), "noise": rng.normal(size=(n, 3))}, y


# --- folds --------------------------------------------------------------------------------------------------------------


def test_rows_are_dealt_as_the_reference_values_were():
    rows = np.arange(47)
    np.random.seed(3)
    np.random.shuffle(rows)
    for i, fold in enumerate(deal_rows(47, 20, seed=3)):
        assert fold.tolist() == rows[i::20].tolist()


@given(n=st.integers(3, 60), folds=st.integers(3, 8), seed=st.integers(0, 99), validation=st.booleans())
def test_each_row_is_scored_once_by_a_model_that_did_not_see_it(n, folds, seed, validation):
    folds = min(folds, n)
    divided = list(splits(n, folds, seed=seed, validation=validation))
    assert sorted(np.concatenate([s.test for s in divided]).tolist()) == list(range(n))
    for i, split in enumerate(divided):
        together = np.concatenate([split.train, split.valid, split.test])
        assert sorted(together.tolist()) == list(range(n))
        if validation:
            assert split.valid.tolist() == divided[(i + 1) % folds].test.tolist()


@given(
    groups=st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 9),
)
def test_a_group_is_in_one_fold(groups, folds, seed):
    if len(set(groups)) < 2 or folds > len(groups):
        return
    dealt = deal_groups(groups, folds, seed=seed)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(groups)))
    assert len(dealt) == min(folds, len(set(groups))) and all(len(rows) for rows in dealt)
    for group in set(groups):
        assert sum(group in np.array(groups)[rows] for rows in dealt) == 1


def test_the_largest_group_goes_first_and_then_to_the_emptiest_fold():
    groups = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    dealt = [sorted(set(np.array(groups)[rows])) for rows in deal_groups(groups, 2)]
    assert dealt == [["a", "d"], ["b", "c"]]


@st.composite
def pair_tables(draw) -> pd.DataFrame:
    """Pairs among a few ends, which are often shared and sometimes overlap."""
    ends = draw(
        st.lists(
            st.tuples(st.sampled_from(["chr1", "chr2"]), st.integers(0, 60), st.integers(1, 6)), min_size=2, max_size=9
        )
    )
    n = draw(st.integers(2, 25))
    chosen = [(draw(st.sampled_from(ends)), draw(st.sampled_from(ends))) for _ in range(n)]
    rows = [(a[0], a[1], a[1] + a[2], b[0], b[1], b[1] + b[2]) for a, b in chosen]
    return pd.DataFrame(rows, columns=list(PAIR))


def ends_of(pairs: pd.DataFrame) -> list[tuple[str, int, int]]:
    return [tuple(row[3 * i : 3 * i + 3]) for row in pairs.itertuples(index=False, name=None) for i in (0, 1)]


@settings(max_examples=60)
@given(pairs=pair_tables(), folds=st.integers(2, 5), seed=st.integers(0, 9))
def test_no_end_is_on_both_sides_of_a_split(pairs, folds, seed):
    number = connected_pairs(pairs)
    if len(set(number)) < 2 or folds > len(pairs):
        return
    for split in splits(len(pairs), folds, groups=number, validation=False, seed=seed):
        for chrom, start, end in ends_of(pairs.iloc[split.test]):
            assert not any(
                chrom == other and start < stop and first < end
                for other, first, stop in ends_of(pairs.iloc[split.train])
            )


@settings(max_examples=40)
@given(pairs=pair_tables())
def test_pairs_are_joined_only_where_a_chain_of_ends_joins_them(pairs):
    """The coarsest division that never parts two pairs with overlapping ends, found by spreading numbers until none changes."""
    expected = list(range(len(pairs)))
    ends = ends_of(pairs)
    changed = True
    while changed:
        changed = False
        for i, (chrom, start, end) in enumerate(ends):
            for j, (other, first, stop) in enumerate(ends):
                joined = chrom == other and start < stop and first < end
                if joined and expected[i // 2] != expected[j // 2]:
                    expected[i // 2] = expected[j // 2] = min(expected[i // 2], expected[j // 2])
                    changed = True
    number = connected_pairs(pairs)
    same = np.equal.outer(number, number)
    assert (same == np.equal.outer(expected, expected)).all()


# --- scores -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["paper", "today"])
def test_scores_are_those_of_the_protocol_written_out(convention):
    import xgboost

    features, y = planted(200)
    table = tasks.cross_validate(features, y, folds=5, convention=convention, **QUIET)
    rows = np.arange(len(y))
    np.random.seed(0)
    np.random.shuffle(rows)
    folds = [rows[i::5] for i in range(5)]
    settings = {"objective": "binary:logistic", "max_depth": 6, "nthread": 1, "eval_metric": "aucpr"}
    if convention == "paper":
        settings |= {"tree_method": "exact", "base_score": 0.5, "eta": 0.1}
    for i, score in enumerate(table[table.features == "told"].average_precision):
        valid, test = folds[(i + 1) % 5], folds[i]
        train = np.concatenate([folds[j] for j in range(5) if j not in (i, (i + 1) % 5)])
        x = features["told"].astype(np.float32)
        data = {
            name: xgboost.DMatrix(x[at], y[at]) for name, at in (("train", train), ("valid", valid), ("test", test))
        }
        model = xgboost.train(
            settings, data["train"], 5000, evals=[(data["valid"], "v")], early_stopping_rounds=20, verbose_eval=False
        )
        last = model.num_boosted_rounds() if convention == "paper" else model.best_iteration + 1
        p = model.predict(data["test"], iteration_range=(0, last))
        assert score == pytest.approx(precision_by_definition(y[test], p))


def test_what_tells_labels_is_told_from_what_does_not():
    features, y = planted()
    table = tasks.cross_validate(features, y, folds=10, **QUIET)
    mean = tasks.summary(table).set_index("features")["mean"]
    assert mean["told"] > 0.6 and abs(mean["noise"] - mean["majority"]) < 0.12
    majority = table[table.features == "majority"]
    assert (majority.average_precision * majority.test).sum() == pytest.approx(y.sum())
    tested = tasks.compare(table).iloc[0]
    assert tested.p < 0.01 and tested.difference == pytest.approx(mean["told"] - mean["noise"])
    assert tasks.compare(table, test="wilcoxon").p[0] == pytest.approx(2 / 2**10)


def test_groups_take_away_what_rows_of_a_group_share():
    """Each group has a label and a value of its own: known neighbours tell all, and other groups nothing."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 12)
    y = (rng.random(60) < 0.3)[group]
    x = rng.normal(size=(60, 3))[group] + 0.01 * rng.normal(size=(720, 3))
    shuffled = tasks.summary(tasks.cross_validate(x, y, folds=6, **QUIET))["mean"]
    grouped = tasks.summary(tasks.cross_validate(x, y, folds=6, groups=group, **QUIET))["mean"]
    assert shuffled[0] > 0.95
    assert grouped[0] < 0.55


def test_jobs_and_order_of_sets_do_not_change_scores():
    features, y = planted(150)
    one = tasks.cross_validate(features, y, folds=4, **QUIET)
    two = tasks.cross_validate(dict(reversed(features.items())), y, folds=4, n_jobs=3, progress=False)
    keys = ["features", "fold"]
    pd.testing.assert_frame_equal(one.sort_values(keys, ignore_index=True), two.sort_values(keys, ignore_index=True))


@pytest.mark.parametrize("convention", ["paper", "today"])
def test_interactions_are_scored_by_a_tuned_logistic_regression(convention):
    features, y = planted(200, strength=1.0)
    features["told"][::17, 0] = np.nan
    table = tasks.cross_validate(features, y, task="interactions", folds=4, repeats=2, convention=convention, **QUIET)
    assert table.groupby("features", sort=False).size().tolist() == [8, 8, 8]
    told = table[table.features == "told"]
    assert told.average_precision.mean() > 0.6 > table[table.features == "noise"].average_precision.mean()
    steps = np.log10(told.C) * 9 / 8
    assert np.allclose(steps + 4.5, np.round(steps + 4.5)) and told.C.between(1e-4, 1e4).all()
    assert set(told.train) == {150}


def test_interactions_by_default_are_the_papers_folds(monkeypatch):
    monkeypatch.setattr(
        task_classifiers.Logistic, "scores", lambda self, x, y, train, valid, test, inner: (x[test, 0], {})
    )
    features, y = planted(60)
    table = tasks.cross_validate({"x": features["told"]}, y, task="interactions", **QUIET)
    assert table[table.features == "x"].groupby("repeat").size().tolist() == [5] * 20


def test_missing_labels_are_left_out_and_said(caplog):
    features, y = planted(100)
    labels = y.astype(float)
    labels[::10] = np.nan
    with caplog.at_level(logging.WARNING):
        table = tasks.cross_validate(features["told"], labels, folds=4, **QUIET)
    assert table[table.features == "features"].test.sum() == 90
    assert "10 of 100 rows have no label" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(40)}, "all of the 40 labels are alike"),
        ({"labels": np.arange(40)}, "labels are 0 and 1, or bool; got 2"),
        ({"labels": np.array(["a"] * 40)}, "labels are 0 and 1"),
        ({"labels": pd.DataFrame({"y": [0, 1] * 20})}, "no column 'label'; it has y"),
        ({"labels": np.array([0, 1] * 10)}, "20 labels and 40 rows of 'x'"),
        ({"features": {}}, "names no table"),
        ({"features": {"x": np.ones(40)}}, r"rows x columns.*\(40,\)"),
        ({"features": {"x": np.full((40, 1), np.inf)}}, "infinite value in row 0"),
        ({"task": "genes"}, "task is one of 'expression'"),
        ({"convention": "0.7"}, "'paper' or 'today'"),
        ({"folds": 41}, "from 2 to the 40 rows"),
        ({"folds": 2}, "leaves 0 rows to train on"),
        ({"n_jobs": 0}, "at least 1"),
        ({"groups": "region"}, "'chromosome', 'ends'"),
        ({"groups": "chromosome"}, "needs to know where rows lie"),
        ({"groups": ["a"] * 3}, "a label a row, of which there are 40"),
        ({"groups": ["a"] * 40}, "all rows are of one group"),
        ({"device": "cuda"}, "no exact splits"),
    ],
)  # fmt: skip
def test_bad_input_is_told_before_any_work(change, message):
    given = {"features": {"x": np.random.default_rng(0).random((40, 2))}, "labels": np.array([0, 1] * 20), **change}
    with pytest.raises(ValueError, match=message):
        tasks.cross_validate(given.pop("features"), given.pop("labels"), **{**QUIET, **given})


def test_tables_and_labels_of_other_intervals_are_refused():
    intervals = pd.DataFrame({"chrom": "chr1", "start": np.arange(6) * 100, "end": np.arange(6) * 100 + 50})
    table = pd.DataFrame({"x": np.arange(6.0)}, index=pd.MultiIndex.from_frame(intervals))
    labels = intervals.iloc[[0, 1, 3, 2, 4, 5]].assign(label=[0, 1] * 3)
    with pytest.raises(ValueError, match="row 2 is chr1 300 350 in the labels, and chr1 200 250 in the table 'own'"):
        tasks.cross_validate({"own": table}, labels, folds=3, **QUIET)


def test_chromosomes_of_pairs_that_cross_them_are_kept_together():
    rng = np.random.default_rng(0)
    chrom = np.array([f"chr{i % 6}" for i in range(90)])
    pairs = pd.DataFrame({"chrom1": chrom, "start1": 0, "end1": 5, "chrom2": chrom, "start2": np.arange(90) + 9})
    pairs = pairs.assign(end2=pairs.start2 + 1, label=rng.random(90) < 0.4)
    pairs.loc[0, "chrom2"] = "chr1"
    table = tasks.cross_validate(
        rng.random((90, 2)), pairs, task="interactions", folds=6, repeats=1, groups="chromosome", **QUIET
    )
    assert sorted(table[table.features == "features"].test) == [15, 15, 15, 15, 30]


# --- comparison ---------------------------------------------------------------------------------------------------------


def folds_table(**scores: list[float]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"features": name, "average_precision": s, "fold": range(len(s))}) for name, s in scores.items()
    ]
    return pd.concat(parts).assign(task="fire", convention="paper", groups="none", repeat=0, train=80, test=20)


def test_paired_tests_by_hand():
    from scipy.stats import t

    table = folds_table(a=[0.5, 0.6, 0.7, 0.4], b=[0.4, 0.4, 0.4, 0.4], c=[0.5, 0.6, 0.7, 0.4])
    tested = tasks.compare(table).set_index(["a", "b"])
    # Differences 0.1, 0.2, 0.3, 0: mean 0.15, variance 1/60, and the test share 20 / 80.
    expected = 2 * t.sf(0.15 / np.sqrt((1 / 4 + 1 / 4) / 60), 3)
    assert tested.p["a", "b"] == pytest.approx(expected)
    assert tested.p["a", "c"] == 1.0
    assert tested.p_holm["a", "b"] == pytest.approx(min(1, 3 * expected))
    assert tested.p_holm["b", "c"] == pytest.approx(min(1, 3 * expected))
    assert tested.better["a", "b"] == 3 and tested.folds["a", "b"] == 4


def test_corrected_p_values_after_holm_by_hand():
    from xr_avocado.tasks import _holm

    assert _holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert _holm(np.array([0.5, np.nan, 0.9]))[[0, 2]].tolist() == [1.0, 1.0]


def test_summary_keeps_apart_what_it_is_told_to():
    table = pd.concat([folds_table(x=[0.2, 0.4]).assign(celltype=c) for c in ("E003", "E017")])
    assert tasks.summary(table, by="celltype")[["celltype", "mean", "folds"]].values.tolist() == [
        ["E003", pytest.approx(0.3), 2],
        ["E017", pytest.approx(0.3), 2],
    ]
    with pytest.raises(ValueError, match="no two feature sets"):
        tasks.compare(table, by="celltype")


def test_the_figure_has_a_panel_a_cell_type_and_shows_means_and_the_majority():
    table = pd.concat(
        [folds_table(own=[0.5, 0.7], all=[0.6, np.nan], majority=[0.1, 0.3]).assign(celltype=c) for c in ("A", "B")]
    )
    axes = xa.plot.tasks(table, by="celltype")
    assert [ax.get_title(loc="left") for ax in axes] == ["A", "B"]
    means = [line.get_xdata()[0] for line in axes[0].containers[0].lines[:1]]
    assert means == [pytest.approx(0.6)]
    assert [line.get_xdata()[0] for line in axes[0].lines if line.get_label() == "majority"] == [pytest.approx(0.2)]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["own tracks", "all tracks"]
    with pytest.raises(ValueError, match="no column 'cell'"):
        xa.plot.tasks(table, by="cell")
    with pytest.raises(ValueError, match="2 panels to draw, but 1 axes"):
        xa.plot.tasks(table, by="celltype", axes=axes[:1])


# --- feature sets -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    sizes = {"chr1": 400_010, "chr2": 100_017}
    return xa.datasets.simulate(n_celltypes=4, n_assays=4, chromsizes=sizes).avocado.hold_out([("C2", "H3K4me1")])


@pytest.fixture(scope="module")
def fitted(cube) -> xr.Dataset:
    config = {"genome_factors": (3, 4, 5), "context_samples": 2_000, "context_members": 1}
    return cube.avocado.fit(epochs=1, config=config, progress=False)


@pytest.fixture
def genes() -> pd.DataFrame:
    rows = [("chr1", 10_010, 20_000, "+"), ("chr2", 50_000, 51_990, "-"), ("chr1", 300_000, 300_010, "+")]
    return pd.DataFrame(rows, columns=["chrom", "start", "end", "strand"])


def base_by_base(cube: xr.Dataset, celltype: str, assay: str, chrom: str, start: int, end: int) -> np.ndarray:
    """The signal at each base of an interval."""
    track = cube.signal.sel(celltype=celltype, assay=assay)
    here = track.where((track.chrom == chrom) & (track.start < end) & (track.end > start), drop=True)
    return np.concatenate(
        [
            np.repeat(v, min(b, end) - max(a, start))
            for v, a, b in zip(here.values, here.start.values, here.end.values, strict=True)
        ]
    )


def test_tables_of_tracks_are_means_over_bases(cube, genes):
    sets = tasks.feature_sets(cube, genes, celltype="C2", progress=False)
    assert list(sets) == ["own", "all"]
    assert sets["own"].columns.tolist() == ["H3K4me3", "H3K27ac", "DNase"]
    assert sets["all"].shape == (3, 15) and "C2 H3K4me1" not in sets["all"]
    for table, column in ((sets["own"], "DNase"), (sets["all"], "C2 DNase")):
        for (chrom, start, end), value in table[column].items():
            assert value == pytest.approx(base_by_base(cube, "C2", "DNase", chrom, start, end).mean(), rel=1e-5)


def test_windows_run_from_five_prime_to_three_prime(cube, genes):
    table = tasks.feature_sets(
        cube, genes, celltype="C1", sets=["own"], anchor="start", flank=(2000, 0), windows=8, progress=False
    )["own"]
    assert table.columns[:2].tolist() == ["H3K4me3_w0", "H3K27ac_w0"] and table.shape == (3, 32)
    assert table["DNase_w0"].iloc[1] == pytest.approx(
        base_by_base(cube, "C1", "DNase", "chr2", 51_990 + 1750, 51_990 + 2000).mean(), rel=1e-5
    )
    assert table["DNase_w7"].iloc[0] == pytest.approx(
        base_by_base(cube, "C1", "DNase", "chr1", 10_010 - 250, 10_010).mean(), rel=1e-5
    )


def test_quantiles_and_maxima_have_their_columns(cube, genes):
    tables = {
        agg: tasks.feature_sets(cube, genes, celltype="C1", sets=["own"], agg=agg, progress=False)["own"]
        for agg in ("max", "quantile", np.max)
    }
    pd.testing.assert_frame_equal(tables["max"], tables[np.max])
    bins = base_by_base(cube, "C1", "DNase", "chr2", 50_000, 52_000)[::25]
    assert tables["quantile"]["DNase_q90"].iloc[1] == pytest.approx(np.quantile(bins, 0.9), rel=1e-5)
    assert tables["max"]["DNase"].iloc[1] == bins.max()


def test_bins_without_a_value_are_left_out_of_means(cube, genes):
    holes = cube.copy()
    gap = (holes.chrom == "chr2") & (holes.start < 51_000)
    holes["signal"] = holes.signal.where(~gap)
    table = tasks.feature_sets(holes, genes, celltype="C1", sets=["own"], progress=False)["own"]
    rest = base_by_base(cube, "C1", "DNase", "chr2", 51_000, 51_990).mean()
    assert table["DNase"].iloc[1] == pytest.approx(rest, rel=1e-5)


def test_imputed_tracks_and_factors_are_those_of_the_model(fitted, genes):
    sets = tasks.feature_sets(fitted, genes, celltype="C2", progress=False)
    assert list(sets) == ["own", "imputed", "factors", "all"]
    assert sets["imputed"].columns.tolist() == fitted.assay.values.tolist()
    imputed = fitted.avocado.impute("C2")
    ready = tasks.feature_sets(imputed.compute(), genes, celltype="C2", sets=["imputed"], progress=False)["imputed"]
    pd.testing.assert_frame_equal(sets["imputed"], ready, rtol=1e-4)
    by_hand = base_by_base(imputed.assign(signal=imputed.imputed), "C2", "H3K4me1", *ready.index[0]).mean()
    assert ready["H3K4me1"].iloc[0] == pytest.approx(by_hand, rel=1e-4)
    factors = fitted.avocado.embed("position", regions=genes, agg="mean", as_="frame").filter(like="factor_")
    np.testing.assert_array_equal(sets["factors"], factors)


def test_what_labels_were_made_of_is_in_no_set(fitted, genes, caplog):
    with caplog.at_level(logging.WARNING):
        sets = tasks.feature_sets(fitted, genes, celltype="C1", without=["DNase", ("C2", "H3K4me3")], progress=False)
    assert not any("DNase" in column for name in ("own", "imputed", "all") for column in sets[name])
    hidden = [pair for pair in fitted.avocado.experiments if pair.assay == "DNase" or pair == ("C2", "H3K4me3")]
    held = fitted.avocado.hold_out(hidden)
    alone = tasks.feature_sets(held, genes, celltype="C1", sets=["imputed"], progress=False)["imputed"]
    pd.testing.assert_frame_equal(sets["imputed"], alone.drop(columns="DNase"), rtol=1e-4)
    assert "C2 H3K4me3" not in sets["all"] and "C3 H3K4me3" in sets["all"] and "H3K4me3" in sets["own"]
    assert "the model was fitted to tracks that the sets are to do without (C1 DNase" in caplog.text


def test_others_come_as_folders_layers_and_factors(fitted, genes, tmp_path):
    pairs = [("C1", assay) for assay in fitted.assay.values]
    full = fitted.avocado.impute(tracks=pairs)
    full.avocado.to_bigwig(tmp_path / "theirs", progress=False)
    others = {
        "folder": tmp_path / "theirs",
        "layer": full.imputed,
        "their factors": fitted.genome_factors_25bp,
        "their model": fitted,
        "table": np.arange(6.0).reshape(3, 2),
    }
    sets = tasks.feature_sets(full, genes, celltype="C1", others=others, progress=False)
    assert list(sets) == ["own", "imputed", *others, "factors", "all"]
    pd.testing.assert_frame_equal(sets["layer"], sets["imputed"])
    # A folder is in the signal's units, and its mean is not the mean of what is transformed.
    bins = full.avocado.sel("chr1:300,000-300,010").imputed.sel(celltype="C1").values[:, 0]
    np.testing.assert_allclose(sets["folder"].iloc[2], np.sinh(bins), rtol=1e-2)
    np.testing.assert_allclose(sets["their factors"], sets["factors"].filter(like="factor_25bp"), rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(sets["their model"], sets["factors"])
    assert sets["table"].index.equals(sets["own"].index)


def test_lazy_tracks_are_read_under_the_intervals_alone(cube, genes):
    read = []

    def count(block, block_info=None):
        read.append(block_info[0]["chunk-location"][2])
        return block

    lazy = cube.chunk({"position": 1_000, "celltype": 1, "assay": 1})
    watched = lazy.assign(signal=lazy.signal.copy(data=lazy.signal.data.map_blocks(count, dtype=np.float32)))
    read.clear()
    sets = tasks.feature_sets(watched, genes.iloc[:1], celltype="C1", sets=["own"], progress=False)
    assert set(read) == {0} and len(read) == 4
    eager = tasks.feature_sets(cube, genes.iloc[:1], celltype="C1", sets=["own"], progress=False)
    pd.testing.assert_frame_equal(sets["own"], eager["own"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"celltype": "C9"}, "'C9' is not a celltype"),
        ({"sets": ["factors"]}, "the cube is not fitted"),
        ({"sets": ["both"]}, "'both' is not a set of features; there are own, imputed, factors, all"),
        ({"without": "DNase"}, "list of assays"),
        ({"without": ["RNA"]}, "'RNA' is not an assay"),
        ({"others": {"own": np.ones((3, 1))}}, "give it another name"),
        ({"others": {"x": np.ones((2, 1))}}, "has 2 rows, and there are 3 intervals"),
        ({"others": {"x": xr.DataArray(np.ones(3), dims="position")}}, "factors lie along 'position' and one other dim"),
        ({"windows": 2}, "intervals of one length"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_made_are_told(cube, genes, options, message):
    with pytest.raises(CubeError, match=message):
        tasks.feature_sets(cube, genes, **{"celltype": "C1", "progress": False, **options})


def test_intervals_on_no_chromosome_of_the_cube_are_told(cube):
    with pytest.raises(GenomeError, match="none of the 1 intervals overlaps"):
        tasks.feature_sets(cube, [("1", 0, 100)], celltype="C1", progress=False)


def test_pairs_have_the_features_of_both_ends_and_between(cube, genes):
    rows = [
        ("chr1", 10_000, 10_500, "chr1", 20_000, 20_500),
        ("chr1", 20_000, 20_500, "chr1", 4_000, 5_000),
        ("chr1", 10_000, 10_500, "chr2", 4_000, 5_000),
    ]
    pairs = pd.DataFrame(rows, columns=list(PAIR))
    table = tasks.pair_feature_sets(cube, pairs, celltype="C1", sets=["own"], between=True, progress=False)["own"]
    assert table.shape == (3, 12) and table.index.names == list(PAIR)
    for column, place in (
        ("DNase_1", ("chr1", 20_000, 20_500)),
        ("DNase_2", ("chr1", 4_000, 5_000)),
        ("DNase_between", ("chr1", 5_000, 20_000)),
    ):
        assert table[column].iloc[1] == pytest.approx(base_by_base(cube, "C1", "DNase", *place).mean(), rel=1e-5)
    assert table.filter(like="_between").isna().all(axis=1).tolist() == [False, False, True]
    assert table["DNase_1"].iloc[0] == table["DNase_1"].iloc[2]


def test_a_task_from_tracks_to_scores():
    """Genes are active where H3K27ac is: their other marks tell, on chromosomes that were not trained on."""
    cube = xa.datasets.simulate(n_celltypes=4, n_assays=4)
    starts = np.arange(0, 780_000, 5_000)
    places = pd.concat([pd.DataFrame({"chrom": c, "start": starts, "end": starts + 5_000}) for c in ("chr1", "chr2")])
    labels = tasks.expression(cube.signal.sel(celltype="C1", assay="H3K27ac"), places, threshold=0.9)
    sets = tasks.feature_sets(cube, labels, celltype="C1", without=["H3K27ac"], progress=False)
    group = np.arange(len(labels)) // 20
    table = tasks.cross_validate(sets, labels, folds=5, groups=group, **QUIET)
    mean = tasks.summary(table).set_index("features")["mean"]
    assert mean["own"] > mean["majority"] + 0.15


# --- labels -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rna(tmp_path):
    """Two stranded files whose value at base i of chr1 is i // 100 and -2."""
    bins = GenomeBins([("chr1", 0, 10_000)], 25)
    paths = {"+": tmp_path / "plus.bw", "-": tmp_path / "minus.bw"}
    write_bins(paths["+"], bins, (bins.start // 100).astype(np.float32), {"chr1": 10_000, "chr2": 5_000})
    write_bins(paths["-"], bins, np.full(len(bins), -2, np.float32), {"chr1": 10_000, "chr2": 5_000})
    return paths


def test_genes_are_labelled_by_the_mean_over_their_bodies(rna):
    rows = [
        ("chr1", 310, 435, "+", "a"),
        ("chr1", 300, 700, "+", "b"),
        ("chr1", 0, 100, "-", "c"),
        ("chr2", 0, 75, "+", "d"),
    ]
    genes = pd.DataFrame(rows, columns=["chrom", "start", "end", "strand", "name"])
    one = tasks.expression(rna["+"], genes, threshold=2.0)
    bodies = [np.arcsinh(np.arange(start, end) // 100).mean() for _, start, end, *_ in rows[:3]]
    np.testing.assert_allclose(one.signal, [*bodies, 0.0], rtol=1e-5)
    assert one.label.tolist() == [value >= 2.0 for value in [*bodies, 0.0]] and one.name.tolist() == list("abcd")
    both = tasks.expression(rna, genes, transform="none")
    np.testing.assert_allclose(both.signal, [(90 * 3 + 35 * 4) / 125, 4.5, 2.0, 0.0], rtol=1e-5)


def test_genes_off_the_track_are_left_out_and_said(rna, cube, caplog):
    genes = pd.DataFrame({"chrom": ["chr1", "chr9"], "start": 0, "end": 100})
    with caplog.at_level(logging.WARNING):
        assert len(tasks.expression(rna["+"], genes)) == 1
    assert "1 of 2 genes are not on the track" in caplog.text
    half = cube.avocado.sel("chr1:0-50")
    labels = tasks.expression(half.signal.sel(celltype="C1", assay="DNase"), genes)
    assert labels.covered.tolist() == [0.5]
    with pytest.raises(CubeError, match="choose one with"):
        tasks.expression(cube.signal, genes)
    with pytest.raises(GenomeError, match="none of the chromosomes"):
        tasks.expression(rna["+"], genes.assign(chrom="1"))
    with pytest.raises(GenomeError, match="genes need a column 'strand'"):
        tasks.expression(rna, genes)
    with pytest.raises(ValueError, match="keys plus, minus"):
        tasks.expression({"plus": rna["+"], "minus": rna["-"]}, genes)


def test_timing_is_labelled_by_its_sign(tmp_path):
    bins = GenomeBins([("chr1", 0, 130_000)], 1000)
    values = np.where(bins.start < 40_000, 1.5, -0.5).astype(np.float32)
    values[80:120] = np.nan
    write_bins(tmp_path / "timing.bw", bins, values, {"chr1": 130_000})
    labels = tasks.replication_timing(tmp_path / "timing.bw")
    assert labels[["start", "end", "label"]].values.tolist() == [
        [0, 40_000, True],
        [40_000, 80_000, False],
        [120_000, 130_000, False],
    ]
    np.testing.assert_allclose(labels.signal, [1.5, -0.5, -0.5])
    some = tasks.replication_timing(tmp_path / "timing.bw", regions="chr1:40,000-80,000")
    assert some.start.tolist() == [40_000]
    with pytest.raises(GenomeError, match="no column 'score' of numbers"):
        tasks.replication_timing([("chr1", 0, 10)])


def test_fires_are_bins_with_a_flag_or_intervals(tmp_path):
    table = pd.DataFrame({"chrom": "chr1", "start": [0, 40_000], "end": [40_000, 80_000], "fire": [0, 1]})
    table.to_csv(tmp_path / "fire.tsv", sep="\t", index=False)
    assert tasks.fire(tmp_path / "fire.tsv").label.tolist() == [False, True]
    assert tasks.fire(table.iloc[1:], regions="chr1:0-120,000").label.tolist() == [False, True, False]
    with pytest.raises(GenomeError, match="no column 'fire'"):
        tasks.fire(table.drop(columns="fire"))
    with pytest.raises(GenomeError, match="row 1 has 2"):
        tasks.fire(table.assign(fire=[0, 2]))
    with pytest.raises(GenomeError, match="none of the 2 FIREs lies in regions"):
        tasks.fire(table, regions="chr2:0-80,000")


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("opener", [open, gzip.open])
def test_pairs_are_read_from_bedpe(tmp_path, header, opener):
    path = tmp_path / "pairs.bedpe"
    with opener(path, "wt") as file:
        file.write("#chrom1\tstart1\tend1\tchrom2\tstart2\tend2\tname\tscore\tstrand1\tstrand2\tlabel\n" * header)
        file.write("chr1\t0\t10\tchr1\t90\t95\tp\t0\t+\t-\t1\nchr1\t5\t10\tchr2\t90\t95\tq\t0\t+\t+\t0\n")
    pairs = tasks.interactions(path, column=None if header else "column11")
    assert pairs.label.tolist() == [True, False] and pairs.start2.tolist() == [90, 90]
    assert pairs.strand2.tolist() == ["-", "+"]


def test_pairs_with_unknown_ends_or_without_labels_are_refused():
    row = {"chrom1": "chr1", "start1": 0, "end1": 10, "chrom2": "chr1", "start2": 20, "end2": 30}
    pairs = pd.DataFrame([row, {**row, "chrom2": ".", "start2": -1, "end2": -1}])
    with pytest.raises(GenomeError, match="pair 2 has an end that is not known"):
        tasks.interactions(pairs, pairs)
    with pytest.raises(GenomeError, match="no column 'label' of 0 and 1"):
        tasks.interactions(pairs[:1])
    with pytest.raises(GenomeError, match="end 2 of the pairs.*does not start below its end"):
        tasks.interactions(pairs[:1].assign(end2=20), pairs[:1])
    with pytest.raises(GenomeError, match="no column chrom2"):
        tasks.interactions(pairs.drop(columns="chrom2"))
    both = tasks.interactions(pairs[:1], pairs[:1].assign(start1=5))
    assert both.label.tolist() == [True, False]


def test_cubes_of_wide_bins_have_no_windows():
    wide = cube_of(GenomeBins([("chr1", 0, 4_000)], 500))
    genes = pd.DataFrame({"chrom": ["chr1"], "start": [2_000], "end": [2_100], "strand": ["+"]})
    table = tasks.feature_sets(
        wide, genes, celltype="C1", sets=["own"], anchor="start", flank=(2000, 0), windows=8, progress=False
    )["own"]
    assert table.columns.tolist() == ["A1", "A2"]


@pytest.mark.slow
@pytest.mark.parametrize(("convention", "reference", "se"), [("paper", 0.469, 0.025), ("today", 0.445, 0.027)])
def test_the_reference_values_of_a_real_task(shared, convention, reference, se):
    folder = shared / "data" / "downstream"
    y = np.load(folder / "FIREs.E116.y.npy")[:3000]
    x = np.load(folder / "FIREs.E116.Roadmap.npy")
    table = tasks.cross_validate(x, y, task="fire", convention=convention, **QUIET)
    roadmap, majority = tasks.summary(table)["mean"]
    assert abs(roadmap - reference) < se
    assert majority == pytest.approx(0.078, abs=0.0005)
