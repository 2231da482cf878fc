"""Folds hide every track once, and leave of every label something to learn from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xr_avocado.cube import CubeError, experiments
from xr_avocado.folds import folds_of


def panel(observed: np.ndarray) -> xr.Dataset:
    """Make a cube without signal, of which only the labels matter."""
    coords = {
        "celltype": [f"C{i}" for i in range(observed.shape[0])],
        "assay": [f"A{i}" for i in range(observed.shape[1])],
    }
    return xr.Dataset({"observed": (("celltype", "assay"), observed)}, coords)


@st.composite
def panels(draw: st.DrawFn) -> xr.Dataset:
    rows, columns = draw(st.integers(2, 7)), draw(st.integers(2, 7))
    flags = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    observed = np.array(flags).reshape(rows, columns)
    observed[:2, :2] = True
    return panel(observed)


@given(panels(), st.integers(0, 3))
def test_latin_folds_hide_no_label_twice_and_every_track_once(ds: xr.Dataset, seed: int) -> None:
    folds = folds_of(ds, seed=seed)
    tracks = [track for fold in folds for track in fold]
    assert len(tracks) == len(set(tracks))
    celltypes, assays = (Counter(t[axis] for t in experiments(ds)) for axis in (0, 1))
    alone = {t for t in experiments(ds) if celltypes[t.celltype] == 1 or assays[t.assay] == 1}
    assert set(tracks) == set(experiments(ds)) - alone
    for fold in folds:
        assert len({t.celltype for t in fold}) == len({t.assay for t in fold}) == len(fold)


def test_a_regular_panel_has_folds_of_every_label() -> None:
    observed = ~np.eye(5, dtype=bool)
    folds = folds_of(panel(observed))
    assert [len(fold) for fold in folds] == [5, 5, 5, 5]


@pytest.mark.parametrize("k", [2, 3, 5, 20])
def test_a_number_of_folds_spreads_labels_evenly(k: int) -> None:
    folds = folds_of(panel(~np.eye(5, dtype=bool)), k)
    assert len(folds) == k
    assert len({track for fold in folds for track in fold}) == 20
    for axis in (0, 1):
        most = max(max(Counter(track[axis] for track in fold).values()) for fold in folds)
        assert most <= -(-4 // k) + 1


def test_the_seed_fixes_the_folds() -> None:
    ds = panel(np.ones((6, 5), bool))
    assert folds_of(ds, seed=1) == folds_of(ds, seed=1)
    assert folds_of(ds, seed=1) != folds_of(ds, seed=2)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([[]], "fold 1 holds out nothing"),
        ([[("C0", "A1")], [("C0", "A0")]], "fold 2: C0 A0 was not observed"),
        ([[("C1", "A0"), ("C1", "A2")]], "every track of the cell type C1"),
        ([[("C0", "A1"), ("C2", "A1")]], "every track of the assay A1"),
        (1, "between 2 and the 6 tracks"),
        (7, "between 2 and the 6 tracks"),
        ("random", "folds are 'latin'"),
    ],
)
def test_folds_that_cannot_be_are_an_error(folds: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folds_of(panel(~np.eye(3, dtype=bool)), folds)


def test_a_panel_of_lone_tracks_has_no_folds() -> None:
    with pytest.raises(CubeError, match="no experiment can be held out"):
        folds_of(panel(np.eye(3, dtype=bool)))
