"""The challenge's rank rule, against the rule written out in loops and a case worked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from xr_avocado.ranking import rank

LARGER_IS_BETTER = {"gwcorr", "gwspear"}


def table_of(n_tracks: int, n_bootstraps: int, methods: list[str], names: list[str], seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {"celltype": f"C{t}", "assay": "A", "method": m, "bootstrap": b} | {n: rng.integers(0, 9) / 10 for n in names}
        for t in range(n_tracks)
        for b in range(n_bootstraps)
        for m in methods
    ]
    return pd.DataFrame(rows)


def slow_rank(table: pd.DataFrame, names: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The rule of the challenge's own script: rank by track, sum over tracks, rank, take the second best bootstrap."""
    everybody = set(table.method)
    final: dict[str, list[float]] = {m: [] for m in everybody}
    mean: dict[str, list[float]] = {m: [] for m in everybody}
    for _, sample in table.groupby("bootstrap"):
        contributions: dict[str, list[float]] = {m: [] for m in everybody}
        for _, track in sample.groupby(["celltype", "assay"]):
            total = np.zeros(len(track))
            for name in names:
                values = track[name].to_numpy()
                total += np.log(rankdata(-values if name in LARGER_IS_BETTER else values) / (len(track) + 1))
            for method, place in zip(track.method, rankdata(total.round(9)), strict=True):
                contributions[method].append(min(0.5, place / (len(track) + 1)))
            for method in everybody - set(track.method):
                contributions[method].append(0.5)
        order = sorted(everybody)
        for method, place in zip(order, rankdata([round(sum(contributions[m]), 9) for m in order]), strict=True):
            final[method].append(place)
            mean[method].append(float(np.mean(contributions[method])))
    return {m: sorted(v)[1] for m, v in final.items()}, {m: float(np.mean(v)) for m, v in mean.items()}


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_the_challenges(seed: int) -> None:
    names = ["mse", "gwcorr", "gwspear", "mse1obs"]
    table = table_of(6, 10, ["a", "b", "c", "d", "e"], names, seed).sample(frac=1, random_state=seed)
    lacking = table[~((table.method == "b") & (table.celltype == "C2"))]
    ranked = rank(lacking)
    ranks, scores = slow_rank(lacking, names)
    assert ranked["rank"].to_dict() == pytest.approx(ranks)
    assert ranked["score"].to_dict() == pytest.approx(scores)
    assert ranked["rank"].is_monotonic_increasing


def test_one_track_by_hand() -> None:
    table = pd.DataFrame(
        {"celltype": "C", "assay": "A", "method": list("xyz"), "mse": [1, 2, 3], "gwcorr": [0.9, 0.8, 0.1]}
    )
    ranked = rank(table)
    # Places 1, 2, 3 of 3 methods: 1/4, 2/4, and 3/4 cut to 1/2.
    assert ranked["score"].to_dict() == {"x": 0.25, "y": 0.5, "z": 0.5}
    assert ranked["rank"].to_dict() == {"x": 1.0, "y": 2.5, "z": 2.5}


def test_measures_that_are_undefined_everywhere_take_no_part() -> None:
    table = table_of(3, 1, ["a", "b", "c"], ["mse", "gwcorr"])
    pd.testing.assert_frame_equal(rank(table.assign(msegene=np.nan)), rank(table))
    pd.testing.assert_frame_equal(rank(table, measures=["mse"]), rank(table.drop(columns="gwcorr")))


def test_what_cannot_be_ranked_is_an_error() -> None:
    table = table_of(2, 1, ["a", "b"], ["mse"])
    with pytest.raises(ValueError, match="no measure 'gwcorr'"):
        rank(table, measures=["gwcorr"])
    with pytest.raises(ValueError, match="nothing to rank"):
        rank(table.assign(mse=np.nan))
    with pytest.raises(ValueError, match="several rows for a track"):
        rank(pd.concat([table, table]))
