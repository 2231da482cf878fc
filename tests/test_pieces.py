"""A track in pieces is what it is as a whole: ranks, largest values and every measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xr_avocado import measures
from xr_avocado.measures import Spans, score
from xr_avocado.pieces import average_ranks, check_room, nth_largest


@st.composite
def pairs_of_tracks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two tracks: of any length, rounded so that values tie, with NaN bins, a value that fills a part, or constant."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, dtype = draw(st.integers(0, 700)), draw(st.sampled_from([np.float16, np.float32, np.float64]))
    tracks = []
    for _ in range(2):
        values = rng.normal(0, 10.0 ** draw(st.integers(-6, 3)), n)
        values = (values.round(draw(st.integers(0, 2))) if draw(st.booleans()) else values).astype(dtype)
        values[rng.random(n) < draw(st.sampled_from([0, 0.3, 0.95, 1]))] = draw(st.sampled_from([0.0, -0.0, 1.5]))
        values[rng.random(n) < draw(st.sampled_from([0, 0, 0.1]))] = np.nan
        tracks.append(values)
    return tracks[0], tracks[1]


@settings(max_examples=60)
@given(pairs_of_tracks(), st.integers(1, 300), st.sampled_from(measures.CONVENTIONS), st.booleans())
def test_pieces_score_what_the_whole_scores(
    tracks: tuple[np.ndarray, np.ndarray], piece: int, convention: str, part: bool
) -> None:
    y, p = tracks
    rng = np.random.default_rng(y.size)
    first = rng.integers(0, y.size + 1, 20)
    spans = Spans(first, np.minimum(first + rng.integers(0, 90, 20), y.size), np.full(20, 90))
    given = {"promoters": spans, "genes": spans.once(), "enhancers": rng.random(y.size) < 0.2}
    given |= {"peaks": rng.random(y.size) < 0.1, "variance": rng.random(y.size)}
    options = {"annotations": given, "convention": convention, "keep": rng.random(y.size) < 0.9 if part else None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xr_avocado.pieces.PIECE", 1 << 22)
        whole = score(y, p, **options)
        patch.setattr("xr_avocado.pieces.PIECE", piece)
        assert score(y, p, **options) == pytest.approx(whole, rel=1e-9, abs=1e-12, nan_ok=True)


@settings(max_examples=60)
@given(pairs_of_tracks(), st.integers(1, 300))
def test_ranks_and_largest_values_are_exact_however_long_the_track(
    tracks: tuple[np.ndarray, np.ndarray], piece: int
) -> None:
    values = tracks[0][~np.isnan(tracks[0])]
    values = values.astype(np.result_type(values, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xr_avocado.pieces.PIECE", piece)
        assert average_ranks(values).tolist() == stats.rankdata(values).tolist()
        for n in {1, values.size // 20, values.size} - {0}:
            assert values.size == 0 or nth_largest(values, n) == np.sort(values)[-n]


def test_spans_cover_rows_as_often_as_they_lie_on_them() -> None:
    spans = Spans(np.array([1, 2, 6, 3]), np.array([4, 5, 9, 3]))
    assert spans.cover(slice(0, 10)).tolist() == [0, 1, 2, 2, 1, 0, 1, 1, 1, 0]
    assert spans.cover(slice(3, 7)).tolist() == [2, 1, 0, 1]
    assert spans.once().cover(slice(0, 10)).tolist() == [0, 1, 1, 1, 1, 0, 1, 1, 1, 0]


def test_a_full_disk_is_told_before_the_work() -> None:
    check_room(1 << 22, 1 << 40)
    with pytest.raises(OSError, match="GB of temporary files.*TMPDIR"):
        check_room(1 << 50, 1 << 10)
