from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import threading
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xr_avocado as xa
from xr_avocado import search as module
from xr_avocado.cli import main
from xr_avocado.cube import CubeError
from xr_avocado.folds import folds_of
from xr_avocado.model.config import PRESETS, Config, config_for
from xr_avocado.search import Plan, Search, sample_of
from xr_avocado.space import Space

pytest.importorskip("optuna")

SMALL = {"preset": "small", "epochs": 1}
SPACE = {"nodes": (2, 128, "log"), "dropout": (0.0, 0.5), "genome_factors[2]": (1, 40)}


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return xa.datasets.simulate(4, 3, {"chr1": 20_000})


def pretended(plan: Any, config: Any, tracks: Any) -> Any:
    """Stand in for a fit: nodes are best near 16, dropout matters less, and folds differ in difficulty."""
    import numpy as np
    import pandas as pd

    fold = plan.folds.index(tracks)
    value = 0.1 + np.log2(config.nodes / 16) ** 2 + config.dropout + 2 * (fold == 0)
    index = pd.MultiIndex.from_tuples(tracks, names=["celltype", "assay"])
    return pd.DataFrame({"imputed": value, "average": 1.0 + fold}, index=index)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "score", pretended)


def searched(cube: xr.Dataset, trials: int = 8, **options: Any) -> Search:
    return cube.avocado.search(trials, **{"space": SPACE, "fit": SMALL, "progress": False, **options})


def trials_of(found: Search) -> pd.DataFrame:
    return found.table.drop(columns="seconds")


def test_the_best_settings_are_found_and_a_bad_choice_is_not_among_them(cube):
    space = {"genome_learning_rate": [1e-6, 0.05], "nodes": [16, 32]}
    found = searched(cube, 4, space=space, fit={"preset": "small", "epochs": 8}, folds=folds_of(cube)[:1], seed=1)
    complete = found.table[found.table.state == "complete"]
    assert set(complete.genome_learning_rate) == {1e-6, 0.05}, "both were tried"
    assert found.best.genome_learning_rate == 0.05
    assert complete.value.min() < 0.9 * complete.value[complete.genome_learning_rate == 1e-6].min()
    assert cube.avocado.fit(config=found.best, progress=False).attrs["avocado"]["config"] == found.best.to_attrs()


@pytest.mark.parametrize(
    "fit",
    [
        {"preset": "small", "epochs": 2},
        {"config": {"context_samples": 600, "context_units": 8, "context_nodes": 16, "nodes": 8}, "epochs": 2},
    ],
    ids=["factors", "context"],
)
def test_a_value_is_what_cross_validation_gives(cube, fit):
    space = {"learning_rate": [1e-3, 1e-2]} if "preset" in fit else {"context_learning_rate": [1e-3, 1e-2]}
    found = searched(cube, 1, space=space, fit=fit)
    table = cube.avocado.cross_validate(
        folds_of(cube)[:3], fit={"config": found.best}, measures=["mse"], progress=False
    )
    expected = table.groupby("method").mse.mean()
    (row,) = found.table.to_dict("records")
    assert (row["trial"], row["state"], row["folds"]) == (0, "complete", 3)
    assert row["value"] == pytest.approx(expected["imputed"], rel=1e-6)
    assert row["average"] == pytest.approx(expected["average"], rel=1e-6)
    assert row["ratio"] == pytest.approx(expected["imputed"] / expected["average"], rel=1e-6)


def test_scoring_a_sample_imputes_what_the_whole_would(cube, monkeypatch):
    space, fit = {"context_mask": [0.2, 0.5]}, {"config": {"context_samples": 5_000, "context_nodes": 16}, "epochs": 1}
    plan = Plan.of(cube, space, None, fit, "mse", 0)
    whole = cube.avocado.hold_out(plan.folds[0]).avocado.fit(config=plan.space.base, progress=False)
    monkeypatch.setattr(module, "BINS", 450)
    scores = plan.score(plan.space.base, plan.folds[0])
    blocks = sample_of(cube.avocado.bins, 200)
    # 800 bins are four blocks of 200, of which two fit into 450: the first and the last.
    assert blocks.values.tolist() == [["chr1", 0, 5_000], ["chr1", 15_000, 20_000]]
    full = whole.avocado.impute(tracks=plan.folds[0]).imputed
    for (celltype, assay), row in scores.iterrows():
        at = np.r_[0:200, 600:800]
        p, y = (layer.sel(celltype=celltype, assay=assay).values[at] for layer in (full, cube.signal))
        assert row["imputed"] == pytest.approx(np.mean((p - y) ** 2), rel=1e-4)


def test_a_small_axis_is_scored_whole(cube):
    assert sample_of(cube.avocado.bins, 200) is None


def test_the_table_is_tidy(cube, pretend):
    found = searched(cube, 3)
    assert list(found.table) == ["trial", "state", "folds", "value", "average", "ratio", "seconds", *SPACE]
    assert found.table.trial.tolist() == [0, 1, 2]
    assert found.table.nodes[0] == 64 and found.table["genome_factors[2]"][0] == 30, "first the model's own settings"
    # Fold 1 has four tracks, as have the others: the mean over tracks is that over folds.
    np.testing.assert_allclose(found.table.average, 2.0)
    np.testing.assert_allclose(found.table.ratio, found.table.value / 2)
    expected = 0.1 + np.log2(found.table.nodes / 16) ** 2 + found.table.dropout + 2 / 3
    np.testing.assert_allclose(found.table.value, expected)


def test_best_is_a_whole_configuration(cube, pretend):
    found = searched(cube)
    row = found.table[found.table.state == "complete"].sort_values("value").iloc[0]
    own = PRESETS["small"].updated({"epochs": 1})
    factors = (*own.genome_factors[:2], int(row["genome_factors[2]"]))
    assert found.best == own.updated({"nodes": int(row.nodes), "dropout": row.dropout, "genome_factors": factors})


def test_correlations_are_to_be_high(cube, pretend):
    found = searched(cube, 16, measure="gwcorr")
    complete = found.table[found.table.state == "complete"]
    assert found.best.nodes == complete.nodes[complete.value.idxmax()]
    pruned = found.table[found.table.state == "pruned"]
    assert len(pruned) and pruned.value.max() < (complete.value + 4 / 3).max(), "held against their first folds"
    assert complete.nodes.sub(16).abs().mean() > pruned.nodes.sub(16).abs().mean(), "here far from 16 is good"


def test_the_seed_fixes_the_trials(cube, pretend):
    pd.testing.assert_frame_equal(trials_of(searched(cube, 14)), trials_of(searched(cube, 14)))
    assert searched(cube, 4).table.nodes.tolist() != searched(cube, 4, seed=1).table.nodes.tolist()


def test_no_two_trials_are_drawn_alike(cube, pretend):
    assert not searched(cube, 14).table.dropout.duplicated().any()


def test_trials_that_fall_behind_are_pruned(cube, pretend):
    table = searched(cube, 20).table
    pruned, complete = table[table.state == "pruned"], table[table.state == "complete"]
    assert len(pruned) > 3 and len(pruned) + len(complete) == 20
    assert set(pruned.folds) == {1} and set(complete.folds) == {3}
    # The first fold alone is harder by 4/3 than the three together; there a trial is held against those complete before.
    at_first = table.value + np.where(table.state == "complete", 4 / 3, 0)
    for trial, state in zip(table.trial, table.state, strict=True):
        before = at_first[(table.trial < trial) & (table.state == "complete")]
        assert (state == "pruned") == (len(before) >= 4 and at_first[trial] > np.median(before))
    np.testing.assert_array_equal(pruned.average, 1.0)


def test_with_one_fold_nothing_is_pruned(cube, pretend):
    assert set(searched(cube, 12, folds=folds_of(cube)[:1]).table.state) == {"complete"}


def test_folds_may_be_given(cube, pretend):
    assert searched(cube, 1).table.folds[0] == 3
    assert searched(cube, 1, folds="latin").table.folds[0] == len(folds_of(cube)) == 4
    assert searched(cube, 1, folds=5).table.folds[0] == 5
    with pytest.raises(CubeError, match="'C9' is not a celltype"):
        searched(cube, 1, folds=[[("C9", "H3K4me3")]])


def test_a_file_goes_on_where_it_was(cube, pretend, tmp_path, monkeypatch):
    file = tmp_path / "new" / "search.jsonl"
    assert len(searched(cube, 3, file=file).table) == 3
    found = searched(cube, 13, file=file)
    pd.testing.assert_frame_equal(trials_of(found), trials_of(searched(cube, 13)))
    monkeypatch.setattr(Plan, "score", lambda *_: pytest.fail("nothing is left to run"))
    again = searched(cube, 5, file=str(file))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.best == found.best
    pd.testing.assert_series_equal(again.importance, found.importance)


def test_the_file_is_lines_of_json(cube, pretend, tmp_path):
    searched(cube, 12, file=tmp_path / "s", space={**SPACE, "scales": [[1, 10, 200], [1, 5, 100]]})
    lines = (tmp_path / "s").read_text().splitlines()
    assert all("op_code" in json.loads(line) for line in lines) and len(lines) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


KILLED = """
from __future__ import annotations
import os, signal, sys
import xr_avocado as xa
from xr_avocado.search import Plan

{source}

def killed(plan, config, tracks):
    global calls
    calls += 1
    if calls == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return pretended(plan, config, tracks)

calls = 0
Plan.score = killed
cube = xa.datasets.simulate(4, 3, {{"chr1": 20_000}})
cube.avocado.search(5, space={space!r}, fit={fit!r}, file=sys.argv[1], progress=False)
"""


def test_a_killed_search_goes_on(cube, pretend, tmp_path):
    file = tmp_path / "search.jsonl"
    code = KILLED.format(source=inspect.getsource(pretended), space=SPACE, fit=SMALL)
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    written = file.read_text()
    found = searched(cube, 5, file=file)
    assert file.read_text().startswith(written), "what was there stays"
    # Two trials of three folds were done, and the third was in its second fold: it is run again with the same settings.
    pd.testing.assert_frame_equal(trials_of(found), trials_of(searched(cube, 5)))
    drawn = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(line["op_code"] == 4 for line in drawn) == 6, "five trials, and the one that was killed"
    ended = [line["state"] for line in drawn if line["op_code"] == 6]
    assert sorted(ended[-4:]) == [1, 1, 1, 3], "which is marked as failed, once, before the others go on"


def test_a_line_that_a_kill_cut_short_is_dropped(cube, pretend, tmp_path):
    file = tmp_path / "search.jsonl"
    searched(cube, 3, file=file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    pd.testing.assert_frame_equal(trials_of(searched(cube, 6, file=file)), trials_of(searched(cube, 6)))


def test_one_process_at_a_time_writes_to_a_file(cube, pretend, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    searched(cube, 1, file=tmp_path / "s")
    with open(tmp_path / "s") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CubeError, match="another search is writing to"):
            searched(cube, 2, file=tmp_path / "s")
    assert len(searched(cube, 2, file=tmp_path / "s").table) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1, "folds": [[("C1", "H3K4me3")], [("C2", "H3K4me3")]]}, "it has other folds; its seed is 0, not 1"),
        ({"measure": "mse1obs"}, "its measure is mse, not mse1obs"),
        ({"space": {**SPACE, "nodes": (2, 64)}}, "its space has other nodes"),
        ({"space": {"nodes": (2, 128, "log"), "layers": [1, 2]}}, "space has other dropout, genome_factors[2], layers"),
        ({"fit": {"preset": "small", "epochs": 3}}, "its model has other epochs"),
        ({"fit": {**SMALL, "validation": [("C1", "H3K4me3")]}}, "its options of fit has other validation"),
    ],
)
def test_a_file_of_another_search_is_refused(cube, pretend, tmp_path, changes, named):
    file = tmp_path / "search.jsonl"
    searched(cube, 2, file=file)
    held = file.read_bytes()
    with pytest.raises(CubeError, match="holds another search") as error:
        searched(cube, 3, **{"file": file, **changes})
    assert named in str(error.value) and "give another file" in str(error.value)
    assert file.read_bytes() == held


def test_a_file_of_another_cube_is_refused(cube, pretend, tmp_path):
    file = tmp_path / "search.jsonl"
    folds = [[("C1", "H3K4me3")], [("C2", "H3K4me3")]]
    searched(cube, 2, file=file, folds=folds)
    others = {
        "experiments": cube.avocado.hold_out([("C3", "H3K27ac")]),
        "cell types": cube.assign_coords(celltype=["C1", "C2", "C3", "C9"]),
        "bins": cube.avocado.sel("chr1:0-10,000"),
        "transform": cube.assign_attrs(transform="log1p"),
    }
    for what, other in others.items():
        with pytest.raises(CubeError, match=f"its? (has other )?{what}"):
            searched(other, 3, file=file, folds=folds)


@pytest.mark.parametrize("content", ["celltype\tassay\tpath\n", '{"nodes": 3}\n', "no line"])
def test_other_files_are_left_alone(cube, pretend, tmp_path, content):
    file = tmp_path / "other"
    file.write_text(content)
    with pytest.raises(CubeError, match="holds no search"):
        searched(cube, 1, file=file)
    with pytest.raises(CubeError, match="a folder is there: choose another name"):
        searched(cube, 1, file=tmp_path)
    assert file.read_text() == content


def test_ctrl_c_returns_what_was_done(cube, tmp_path, monkeypatch, caplog):
    calls = 0

    def interrupted(plan, config, tracks):
        nonlocal calls
        calls += 1
        try:
            if calls == 5:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pytest.fail("fit would take this for the wish to score what was learned so far")
        return pretended(plan, config, tracks)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Plan, "score", interrupted)
    found = searched(cube, 6, file=tmp_path / "s")
    assert len(found.table) == 1 and found.best.nodes == 64
    assert signal.getsignal(signal.SIGINT) is before
    assert "interrupted after 1 trials" in caplog.text
    pd.testing.assert_frame_equal(trials_of(searched(cube, 6, file=tmp_path / "s")), trials_of(searched(cube, 6)))


def test_ctrl_c_before_the_first_trial_leaves_no_best(cube, monkeypatch):
    monkeypatch.setattr(Plan, "score", lambda *_: signal.raise_signal(signal.SIGINT))
    found = searched(cube, 2)
    assert found.table.empty and "none run" in repr(found)
    with pytest.raises(ValueError, match="no trial is complete"):
        _ = found.best


def test_it_runs_outside_the_main_thread(cube, pretend):
    found: list[Search] = []
    thread = threading.Thread(target=lambda: found.append(searched(cube, 2)))
    thread.start()
    thread.join()
    assert len(found[0].table) == 2


def test_a_trial_that_diverges_fails_and_counts(cube, tmp_path, monkeypatch, caplog):
    def diverging(plan, config, tracks):
        if config.nodes > 20:
            raise ValueError("training did not finish one epoch with a finite error")
        return pretended(plan, config, tracks)

    monkeypatch.setattr(Plan, "score", diverging)
    found = searched(cube, 9, file=tmp_path / "s")
    failed = found.table.nodes > 20
    assert 1 <= failed.sum() < 9 and len(found.table) == 9
    assert (found.table.state[failed] == "failed").all() and found.table.value[failed].isna().all()
    assert "failed" not in set(found.table.state[~failed])
    assert found.best.nodes <= 20 and f"{failed.sum()} failed" in repr(found)
    assert "finite error" in caplog.text


def test_a_score_that_is_no_number_fails(cube, monkeypatch):
    def undefined(plan, config, tracks):
        return pretended(plan, config, tracks).assign(imputed=np.nan)

    monkeypatch.setattr(Plan, "score", undefined)
    assert searched(cube, 2).table.state.tolist() == ["failed"] * 2


def test_a_cube_that_cannot_be_fitted_ends_the_search(cube):
    bad = cube.assign(signal=cube.signal.where(cube.celltype != "C4"))
    with pytest.raises(CubeError, match="all NaN"):
        searched(bad, 5)


def test_importance_is_of_the_setting_that_matters(cube, pretend):
    found = searched(cube, 30)
    assert found.importance.index[0] == "nodes" and found.importance["nodes"] > 0.6
    assert set(found.importance.index) == set(SPACE) and found.importance.sum() <= 1 + 1e-9
    assert searched(cube, 3).importance.isna().all()


def test_importance_of_equal_trials_is_none(cube, monkeypatch):
    def flat(plan, config, tracks):
        return pretended(plan, config, tracks).assign(imputed=1.0)

    monkeypatch.setattr(Plan, "score", flat)
    assert (searched(cube, 5).importance == 0).all()


def test_it_reads_well(cube, pretend):
    found = searched(cube, 20)
    first, best, *settings = repr(found).splitlines()
    row = found.table[found.table.state == "complete"].sort_values("value").iloc[0]
    states = found.table.state.value_counts()
    assert first == f"<Search by mse: 20 trials ({states['complete']} complete, {states['pruned']} pruned)>"
    assert best.startswith(f"best is trial {row.trial}: {row.value:.4g}, {row.ratio:.4g} of average activity's 2")
    assert [line.split()[0] for line in settings] == list(SPACE)


def test_the_figure_shows_trials_and_importance(cube, pretend):
    found = searched(cube, 20)
    trials, settings = xa.plot.search(found)
    points = {dots.get_label(): dots.get_offsets() for dots in trials.collections}
    complete = found.table[found.table.state == "complete"]
    np.testing.assert_allclose(points["complete"], complete[["trial", "ratio"]])
    np.testing.assert_allclose(points["pruned"][:, 0], found.table.trial[found.table.state == "pruned"])
    best = next(line for line in trials.lines if line.get_label() == "best so far")
    assert best.get_ydata()[-1] == complete.ratio.min()
    assert [tick.get_text() for tick in settings.get_yticklabels()] == list(found.importance.index[::-1])
    np.testing.assert_allclose([bar.get_width() for bar in settings.patches], found.importance[::-1])
    assert settings.get_title(loc="left") == f"importance among {len(complete)} complete trials"
    plt.close("all")


SETTINGS = "is not a model setting; there are .*genome_factors\\[2\\].*nodes"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "the space is empty: name at least one setting of"),
        ({"node": (1, 2)}, f"'node' {SETTINGS}"),
        ({"genome_factors[3]": (1, 2)}, SETTINGS),
        ({"nodes": 3}, r"nodes: a range is \(low, high\) .* and choices are a list; got 3"),
        ({"nodes": (8, 4)}, "low must be below high; got"),
        ({"nodes": (8, 8)}, "low must be below high"),
        ({"nodes": (1, 8, "linear")}, "a range is"),
        ({"nodes": {"low": 1}}, "a range is"),
        ({"nodes": (1.5, 8)}, "nodes is a whole number; got 1.5"),
        ({"nodes": (0, 8)}, "nodes cannot be 0: nodes must be at least 1"),
        ({"nodes": [8]}, "at least two different values"),
        ({"nodes": [8, 8]}, "at least two different values"),
        ({"nodes": [8, "many"]}, "nodes is a whole number; got 'many'"),
        ({"dropout": (0.0, 0.5, "log")}, "above 0 on a log scale"),
        ({"dropout": (0.0, 1.0)}, r"dropout cannot be 1.0: dropout must be in \[0, 1\)"),
        ({"dropout": (False, True)}, "dropout is a number; got False"),
        ({"average": (0, 1)}, "average has no range, so give a list of choices"),
        ({"average": [0, 1]}, "average is true or false; got 0"),
        ({"scales": (1, 200)}, "scales has no range"),
        ({"scales": [1, 200]}, "its choices a list of such lists"),
        ({"scales": [[1, 10, 200], [1, 3, 10]]}, "scales cannot be .* each divides the next"),
        ({"genome_factors": [[1, 1, 1], [2, 2, 2]], "genome_factors[0]": (1, 2)}, "are both in the space"),
        ({"context_mask": (0.1, 0.2)}, "context_mask is a setting of the context term, and this model has none"),
    ],
)
def test_a_space_that_is_none_is_refused_before_training(cube, monkeypatch, space, message):
    monkeypatch.setattr(Plan, "score", lambda *_: pytest.fail("something was trained"))
    with pytest.raises(ValueError, match=message):
        searched(cube, 1, space=space)


def test_settings_that_no_score_depends_on_are_refused(cube):
    with pytest.raises(ValueError, match="nodes is a setting of the factors, which do not impute"):
        cube.avocado.search(1, space={"nodes": (1, 8)}, progress=False)
    both = Space.read(Config(), {"context": [True, False], "nodes": (1, 8), "context_mask": (0.1, 0.2)})
    assert both.config({"context": False, "nodes": 3, "context_mask": 0.1}).nodes == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be at least 1; got 0"),
        ({"measure": "r2"}, "'r2' is not a measure"),
        ({"measure": "mseprom"}, "'mseprom' needs an annotation; search by one of mse, gwcorr"),
        ({"fit": {"epoch": 3}}, "'epoch' is not an option of fit; there are preset, config"),
        ({"fit": {"preset": "big"}}, "preset 'big' is unknown"),
        ({"fit": {**SMALL, "device": "abacus"}}, "device 'abacus' is not at hand"),
        ({"folds": 1}, "folds must be between 2 and"),
    ],
)
def test_other_arguments_are_checked_before_training(cube, monkeypatch, options, message):
    monkeypatch.setattr(Plan, "score", lambda *_: pytest.fail("something was trained"))
    with pytest.raises(ValueError, match=message):
        searched(cube, **{"trials": 1, **options})


@pytest.mark.parametrize("base", [Config(), config_for(20), *PRESETS.values()], ids=["large", "panel", *PRESETS])
def test_default_spaces_hold_the_model_itself(base):
    space = Space.read(base, None)
    assert set(space.start()) == set(space.ranges)
    assert space.config(space.start()) == base
    if not base.context:
        sizes = {"celltype_factors", "assay_factors", "layers", "nodes", *(f"genome_factors[{i}]" for i in range(3))}
        assert sizes < set(space.ranges), "the seven of the paper"


def ranges() -> st.SearchStrategy[dict[str, Any]]:
    """Spaces of a model without context."""
    whole = st.tuples(st.integers(1, 50), st.integers(51, 99))
    share = st.tuples(st.floats(0.01, 0.4), st.floats(0.41, 0.9))
    layers = st.lists(st.integers(1, 9), min_size=2, unique=True)
    factors = st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=2, unique=True).map(lambda v: [list(x) for x in v])
    log = st.sampled_from([(), ("log",)])
    with_log = {
        "nodes": st.tuples(whole, log).map(lambda v: v[0] + v[1]),
        "dropout": st.tuples(share, log).map(lambda v: v[0] + v[1]),
        "genome_factors[1]": whole,
    }
    one_by_one = st.fixed_dictionaries({}, optional={**with_log, "layers": layers, "average": st.just([False, True])})
    return st.one_of(one_by_one, st.fixed_dictionaries({"genome_factors": factors})).filter(bool)


@given(space=ranges(), seed=st.integers(0, 1_000))
def test_what_is_drawn_lies_in_the_space_and_json_keeps_it(space, seed):
    import optuna

    base = PRESETS["small"]
    read = Space.read(base, space)
    assert Space.read(base, json.loads(json.dumps(read.to_attrs()))) == read
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    config = read.config(study.ask(read.distributions()).params)
    assert Config.from_attrs(json.loads(json.dumps(config.to_attrs()))) == config
    for name, given_range in space.items():
        value = config.genome_factors[1] if "[" in name else getattr(config, name)
        if isinstance(given_range, tuple):
            assert given_range[0] <= value <= given_range[1]
        else:
            assert value in [tuple(v) if isinstance(v, list) else v for v in given_range]


def test_without_optuna_it_says_what_to_install(cube, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="pip install optuna"):
        searched(cube, 1)


def test_optuna_speaks_as_loud_as_before(cube, pretend, capfd):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO)
    searched(cube, 2)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr() == ("", "")


def test_the_command_line_searches_and_fits_what_it_found(cube, pretend, tmp_path, capsys):
    store = tmp_path / "cube.zarr"
    cube.avocado.to_zarr(store, progress=False)
    (tmp_path / "space.json").write_text('{"nodes": {"low": 4, "high": 32, "log": true}, "layers": [1, 2]}')
    command = ["search", str(store), "--trials", "4", "--space", str(tmp_path / "space.json"), "--preset", "small"]
    command += ["--epochs", "1", "--plot", str(tmp_path / "search.pdf"), "--quiet"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "ratio" in out and "<Search by mse: 4 trials" in out and "--config" in out
    assert (tmp_path / "search.pdf").read_bytes().startswith(b"%PDF")
    best = tmp_path / "cube.best.json"
    expected = searched(cube, 4, space={"nodes": (4, 32, "log"), "layers": [1, 2]}, file=tmp_path / "cube.search.jsonl")
    assert Config.from_attrs(json.loads(best.read_text())) == expected.best
    assert main(["fit", str(store), "--config", str(best), "--quiet"]) == 0
    assert xa.open_cube(tmp_path / "cube.fitted.zarr").attrs["avocado"]["config"] == expected.best.to_attrs()
    plt.close("all")


def test_the_command_line_tells_mistakes_in_one_line(cube, tmp_path, capsys, monkeypatch):
    store = tmp_path / "cube.zarr"
    cube.avocado.to_zarr(store, progress=False)

    def told(*command: str) -> str:
        assert main([*command, "--quiet"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json").write_text("{")
    assert "settings by name" in told("fit", str(store), "--config", str(tmp_path / "list.json"))
    assert "torn.json is not JSON" in told("search", str(store), "--space", str(tmp_path / "torn.json"))
    assert "got 'tin'" in told("search", str(store), "--folds", "tin")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in told("search", str(store))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube.zarr", "list.json", "torn.json"]
