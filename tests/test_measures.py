"""The measures against values worked by hand, scipy, scikit-learn and published codes written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from xr_avocado import measures
from xr_avocado.measures import MEASURES, Pair, Spans, score
from xr_avocado.pieces import average_ranks

PLAIN = [name for name, needs in MEASURES.items() if needs is None]


@pytest.fixture(autouse=True, params=[None, 64], ids=["whole", "pieces"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on tracks in memory and on tracks of many pieces, whose ranks and copies lie in files."""
    if request.param is not None:
        monkeypatch.setattr("xr_avocado.pieces.PIECE", request.param)


@pytest.fixture(scope="module")
def tracks() -> tuple[np.ndarray, np.ndarray]:
    """1,037 bins with many ties, as real tracks have: most bins 0, values of two digits."""
    rng = np.random.default_rng(4)
    y = np.maximum(0, rng.normal(0, 1, 1037)).round(1)
    p = np.maximum(0, y + rng.normal(0, 0.7, y.size)).round(1)
    return y, p


def slow_top(values: np.ndarray, fraction: float) -> set[int]:
    """ChromImpute's selection: sort by value, of equal values the earlier bin first, and take the first n."""
    n = int(fraction * len(values))
    return {i for _, i in sorted((-v, i) for i, v in enumerate(values))[:n]}


def slow_challenge_top(values: np.ndarray) -> list[int]:
    nth = sorted(values)[-int(0.01 * len(values))]
    return [i for i, v in enumerate(values) if v >= nth]


def one_hot(rows: set[int], n: int) -> np.ndarray:
    return np.isin(np.arange(n), list(rows))


# --- by hand ------------------------------------------------------------------------------------------------


def test_mse_by_hand() -> None:
    assert measures.mse([1, 2, 3, 4], [1, 0, 3, 1]) == (4 + 9) / 4


def test_gwcorr_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6).
    assert measures.gwcorr([1, 2, 3], [0, 3, 3]) == pytest.approx(3 / np.sqrt(12))


def test_gwspear_gives_ties_their_average_rank_by_hand() -> None:
    # Ranks (1, 2, 3) and (1, 2.5, 2.5): deviations (-1, 0, 1) and (-1, 0.5, 0.5).
    assert measures.gwspear([10, 20, 300], [0, 7, 7]) == pytest.approx(1.5 / np.sqrt(2 * 1.5))


def test_top_of_ties_takes_the_earlier_bin_and_the_challenge_takes_them_all() -> None:
    y = np.zeros(200)
    y[[10, 50, 90, 150]] = [5, 9, 5, 5]
    error = np.zeros(200)
    error[[10, 50, 90, 150]] = [1, 2, 3, 4]
    assert measures.mse1obs(y, y + error) == (1 + 4) / 2
    assert measures.mse1obs(y, y + error, convention="chromimpute") == (1 + 4) / 2
    assert measures.mse1obs(y, y + error, convention="challenge") == (1 + 4 + 9 + 16) / 4


def test_matches_are_fractions_by_hand() -> None:
    y, p = np.zeros(400), np.zeros(400)
    y[[1, 2, 3, 4]], p[[3, 4, 5, 6]] = 9, 9
    y[[5]], p[[1]] = 1, 1
    assert measures.match1(y, p) == 0.5
    # The prediction's top 20 hold bins 3-6, 1, and the first 15 of the zeros: 0, 2, 7, ...
    assert measures.catch1obs(y, p) == 1.0
    # Likewise the truth's top 20: 1-4, 5, then 0, 6, 7, ...
    assert measures.catch1imp(y, p) == 1.0


def test_auc_counts_a_tie_as_half_by_hand() -> None:
    y, p = np.zeros(100), np.zeros(100)
    y[7], p[7] = 1, 3
    p[:5] = 3
    # The positive bin is above 94 others and level with 5.
    assert measures.aucobs1(y, p) == pytest.approx((94 + 2.5) / 99)


def test_spans_count_overlapping_genes_twice_and_masks_once() -> None:
    y, p = np.zeros(6), np.array([0.0, 1, 2, 3, 0, 0])
    spans = Spans(np.array([1, 2]), np.array([3, 4]))
    assert measures.msegene(y, p, spans) == (1 + 4 + 4 + 9) / 4
    mask = np.array([False, True, True, True, False, False])
    assert measures.msegene(y, p, mask) == (1 + 4 + 9) / 3


def test_a_clipped_span_keeps_its_whole_size_in_the_denominator_when_told_so() -> None:
    spans = Spans(np.array([2]), np.array([4]), np.array([5]))
    assert measures.mseenh(np.zeros(4), np.ones(4), spans, convention="challenge") == 2 / 5


def test_msevar_by_hand() -> None:
    assert measures.msevar([0, 0, 0], [1, 2, 3], np.array([0.0, 1.0, 3.0])) == (4 + 27) / 4


def test_catchpeakobs_by_hand() -> None:
    peaks = np.array([True, False, True, False])
    # Of the four (peak, background) pairs three are in order.
    assert measures.catchpeakobs(np.zeros(4), np.array([4.0, 3.0, 2.0, 1.0]), peaks) == 0.75


# --- against other people's code ----------------------------------------------------------------------------


def test_correlations_are_scipys(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    assert measures.gwcorr(y, p) == pytest.approx(stats.pearsonr(y, p).statistic)
    assert measures.gwspear(y, p) == pytest.approx(stats.spearmanr(y, p).statistic)


@given(st.lists(st.integers(-3, 3), max_size=30))
def test_ranks_are_scipys(values: list[int]) -> None:
    ranks = average_ranks(np.array(values, float))
    np.testing.assert_array_equal(ranks, stats.rankdata(np.array(values, float)))


def test_areas_are_scikit_learns(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    observed, imputed = one_hot(slow_top(y, 0.01), y.size), one_hot(slow_top(p, 0.01), y.size)
    assert measures.aucobs1(y, p) == pytest.approx(roc_auc_score(observed, p))
    assert measures.aucimp1(y, p) == pytest.approx(roc_auc_score(imputed, y))
    peaks = y > 1
    assert measures.catchpeakobs(y, p, peaks) == pytest.approx(roc_auc_score(peaks, p))


def test_selections_are_chromimputes(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    o1, i1, o5, i5 = slow_top(y, 0.01), slow_top(p, 0.01), slow_top(y, 0.05), slow_top(p, 0.05)
    assert measures.match1(y, p) == len(o1 & i1) / 10
    assert measures.catch1obs(y, p) == len(o1 & i5) / 10
    assert measures.catch1imp(y, p) == len(i1 & o5) / 10
    assert measures.mse1obs(y, p) == pytest.approx(np.mean([(y[i] - p[i]) ** 2 for i in o1]))
    assert measures.mse1imp(y, p) == pytest.approx(np.mean([(y[i] - p[i]) ** 2 for i in i1]))


def test_top_measures_are_the_challenges(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    assert len(slow_challenge_top(y)) > 10, "the fixture must have ties for this to say anything"
    expected_obs = np.mean([(y[i] - p[i]) ** 2 for i in slow_challenge_top(y)])
    expected_imp = np.mean([(y[i] - p[i]) ** 2 for i in slow_challenge_top(p)])
    assert measures.mse1obs(y, p, convention="challenge") == pytest.approx(expected_obs)
    assert measures.mse1imp(y, p, convention="challenge") == pytest.approx(expected_imp)


def test_span_measures_are_the_challenges(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    rng = np.random.default_rng(0)
    first = rng.integers(0, y.size - 40, 60)
    last = first + rng.integers(1, 60, 60)
    sse = sum(((y[s:e] - p[s:e]) ** 2).sum() for s, e in zip(first, last, strict=True))
    spans = Spans(first, np.minimum(last, y.size), last - first)
    assert measures.msegene(y, p, spans, convention="challenge") == pytest.approx(sse / (last - first).sum())


# --- properties ---------------------------------------------------------------------------------------------


def test_score_gives_what_the_functions_give(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    annotations = {"promoters": y > 0.5, "genes": p > 0.5, "enhancers": y > 2, "peaks": y > 1.5, "variance": y + 1}
    for convention in measures.CONVENTIONS:
        scores = score(y, p, annotations=annotations, convention=convention)
        assert list(scores) == list(MEASURES)
        for name, needs in MEASURES.items():
            extra = [] if needs is None else [annotations[needs]]
            assert scores[name] == getattr(measures, name)(y, p, *extra, convention=convention)


def test_nan_bins_are_dropped_with_their_annotations(tracks: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = tracks
    holes = np.arange(y.size) % 7 == 3
    keep, annotations = ~holes, {"genes": p > 0.5, "peaks": y > 1.5, "variance": y + 1}
    scores = score(np.where(holes, np.nan, y), p, annotations=annotations)
    expected = score(y[keep], p[keep], annotations={k: v[keep] for k, v in annotations.items()})
    assert scores == pytest.approx(expected, nan_ok=True)


def test_spans_over_nan_bins_count_only_what_is_scored() -> None:
    y = np.array([0.0, np.nan, 0.0, 0.0])
    assert measures.mseprom(y, np.array([1.0, 9.0, 3.0, 0.0]), Spans(np.array([0]), np.array([3]))) == (1 + 9) / 2


@pytest.mark.parametrize("convention", measures.CONVENTIONS)
def test_keeping_some_bins_is_scoring_these_alone(tracks: tuple[np.ndarray, np.ndarray], convention: str) -> None:
    y, p = tracks
    keep = np.arange(y.size) % 10 != 3
    scores = score(y, p, annotations={"genes": p > 0.5, "peaks": y > 1.5}, convention=convention, keep=keep)
    alone = score(y[keep], p[keep], annotations={"genes": p[keep] > 0.5, "peaks": y[keep] > 1.5}, convention=convention)
    assert scores == pytest.approx(alone, nan_ok=True)


def test_nan_is_zero_for_the_challenge() -> None:
    y, p = np.array([np.nan, 1.0, 2.0]), np.array([3.0, np.nan, 2.0])
    assert measures.mse(y, p, convention="challenge") == (9 + 1 + 0) / 3
    assert measures.mse(y, p) == 0.0


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("convention", measures.CONVENTIONS)
def test_a_perfect_prediction_scores_perfectly(name: str, convention: str) -> None:
    y = np.random.default_rng(1).permutation(1000).astype(np.float32)
    assert getattr(measures, name)(y, y, convention=convention) == pytest.approx(0 if name.startswith("mse") else 1)


@pytest.mark.parametrize("name", PLAIN)
def test_a_permutation_of_the_bins_changes_nothing_without_ties(name: str) -> None:
    rng = np.random.default_rng(2)
    y, p, order = rng.normal(size=500), rng.normal(size=500), rng.permutation(500)
    assert getattr(measures, name)(y, p) == pytest.approx(getattr(measures, name)(y[order], p[order]))


@pytest.mark.parametrize("name", list(MEASURES))
def test_what_is_undefined_is_nan(name: str) -> None:
    nothing = {"promoters": np.zeros(0, bool), "genes": np.zeros(0, bool), "enhancers": np.zeros(0, bool)}
    empty = score([], [], measures=[name], annotations={**nothing, "peaks": np.zeros(0, bool), "variance": np.zeros(0)})
    assert np.isnan(empty[name])
    if MEASURES[name]:
        assert np.isnan(score(np.arange(200.0), np.arange(200.0), measures=[name])[name])


def test_constant_tracks_have_no_correlation_and_few_bins_no_top() -> None:
    assert np.isnan(measures.gwcorr([0.1, 0.1, 0.1], [1, 2, 3]))
    assert np.isnan(measures.gwspear([1, 2, 3], [0.1, 0.1, 0.1]))
    y = np.arange(99.0)
    for name in ("mse1obs", "mse1imp", "match1", "catch1obs", "catch1imp", "aucobs1", "aucimp1"):
        assert np.isnan(getattr(measures, name)(y, y, convention="challenge"))
    assert np.isnan(measures.msegene(y, y, np.zeros(99, bool)))
    assert np.isnan(measures.catchpeakobs(y, y, np.ones(99, bool)))
    assert np.isnan(measures.msevar(y, y, np.zeros(99)))


def test_float16_and_integers_are_scored_as_numbers() -> None:
    y = np.full(100_000, 8.0, np.float16)
    assert measures.mse(y, np.zeros(100_000, np.int64)) == 64.0


def test_what_does_not_fit_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="same bins; got 3 and 2"):
        Pair([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one track"):
        Pair(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not a convention; choose one of avocado"):
        Pair([1], [1], convention="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mae' is not a measure; choose among mse"):
        score([1], [1], measures=["mae"])
    with pytest.raises(ValueError, match="one value a bin, 3"):
        measures.msegene([1, 2, 3], [1, 2, 3], np.ones(2, bool))
    with pytest.raises(ValueError, match="bool"):
        measures.msegene([1, 2, 3], [1, 2, 3], np.ones(3))
