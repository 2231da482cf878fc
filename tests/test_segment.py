from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xr_avocado as xa
from xr_avocado.cube import CubeError
from xr_avocado.genome import GenomeBins
from xr_avocado.index import assign_bins

pytest.importorskip("hmmlearn")

SEGMENTS = [("chr1", 0, 500_000), ("chr1", 600_100, 700_000), ("chr2", 0, 250_010)]
SIZES = {"chr1": 800_000, "chr2": 250_010}


@pytest.fixture(scope="module")
def planted() -> tuple[xr.Dataset, np.ndarray]:
    """A cube whose factors of 250 bp are those of three states that last 20 bins on average, and the state of each bin."""
    random = np.random.default_rng(0)
    fine, coarse, coarsest = (GenomeBins(SEGMENTS, bp) for bp in (25, 250, 5_000))
    states = np.zeros(len(coarse), int)
    for i in range(1, len(states)):
        states[i] = states[i - 1] if random.random() < 0.95 else random.choice(3, p=[0.6, 0.3, 0.1])
    centers = random.normal(size=(3, 8))
    tables = {
        "25bp": (fine, random.normal(size=(len(fine), 2))),
        "250bp": (coarse, centers[states] + 0.4 * random.normal(size=(len(coarse), 8))),
        "5kbp": (coarsest, 0.1 * random.normal(size=(len(coarsest), 2))),
    }
    ds = xr.Dataset(
        {
            "observed": (("celltype", "assay"), np.ones((1, 1), bool)),
            "celltype_factors": (("celltype", "celltype_factor"), np.ones((1, 2))),
            "assay_factors": (("assay", "assay_factor"), np.ones((1, 2))),
        },
        coords={"celltype": ["C1"], "assay": ["A1"]},
        attrs={"binsize": 25, "avocado": {"config": {"scales": [1, 10, 200]}}, "chromsizes": SIZES},
    )
    for name, (bins, values) in tables.items():
        dim = "position" if name == "25bp" else f"position_{name}"
        ds[f"genome_factors_{name}"] = ((dim, f"factor_{name}"), values)
        ds = assign_bins(ds, bins, dim)
    return ds, states


def spelled(frame: pd.DataFrame, bins: GenomeBins) -> np.ndarray:
    """The state of each bin, looked up by its coordinates."""
    out = np.zeros(len(bins), int)
    for row in frame.itertuples():
        out[bins.rows(row.chrom, row.start, row.end)] = row.state
    return out


def test_states_that_were_planted_are_found(planted):
    from sklearn.metrics import adjusted_rand_score

    ds, states = planted
    frame = ds.avocado.segment(3, as_="frame", progress=False)
    found = spelled(frame, ds.avocado.bins.coarsen(10))
    assert adjusted_rand_score(states, found) > 0.95
    largest = np.bincount(found)[1:]
    assert (np.diff(largest) < 0).all(), "states are numbered by how much they cover"


def test_runs_cover_each_segment_once_and_change_at_each_edge(planted):
    ds, _ = planted
    frame = ds.avocado.segment(3, as_="frame", progress=False)
    assert (frame.end > frame.start).all()
    merged = GenomeBins(frame[["chrom", "start", "end"]], 250).segments
    assert merged.values.tolist() == [list(segment) for segment in SEGMENTS], "the last, shorter bin too"
    follows = (frame.chrom[1:].values == frame.chrom[:-1].values) & (frame.start[1:].values == frame.end[:-1].values)
    assert (frame.state[1:].values != frame.state[:-1].values)[follows].all()


def test_the_seed_fixes_the_states_and_a_sample_is_enough(planted):
    ds, _ = planted
    one, again = (ds.avocado.segment(3, seed=1, sample=1_500, as_="frame", progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    whole = ds.avocado.segment(3, as_="frame", progress=False)
    bins = ds.avocado.bins.coarsen(10)
    assert (spelled(one, bins) == spelled(whole, bins)).mean() > 0.95


def test_regions_scales_and_lazy_factors(planted):
    ds, _ = planted
    lazy = ds.chunk({"position_250bp": 300})
    part = lazy.avocado.segment(2, regions="chr2:50kb-100kb", starts=1, as_="frame", progress=False)
    assert part.start.iloc[0] == 50_000 and part.end.iloc[-1] == 100_000 and set(part.chrom) == {"chr2"}
    wide = ds.avocado.segment(2, scales=5_000, starts=1, as_="frame", progress=False)
    assert (wide.start[wide.chrom == "chr2"] % 5_000 == 0).all()


def test_states_go_to_genome_browsers(planted, tmp_path):
    ds, _ = planted
    ranges = ds.avocado.segment(3, bed=tmp_path / "states.bed", progress=False)
    frame = ds.avocado.segment(3, as_="frame", progress=False)
    assert set(ranges.df.columns) == {"Chromosome", "Start", "End", "state", "name", "rgb"}
    bed = pd.read_csv(tmp_path / "states.bed", sep="\t", header=None)
    assert bed.shape == (len(frame), 9)
    assert bed[[0, 1, 2, 3, 8]].values.tolist() == frame[["chrom", "start", "end", "name", "rgb"]].values.tolist()
    assert bed[[6, 7]].values.tolist() == frame[["start", "end"]].values.tolist()
    assert len(set(frame.rgb)) == 3 and all(len(rgb.split(",")) == 3 for rgb in frame.rgb)


def test_many_states_have_colors_of_their_own():
    from xr_avocado.segment import _rgb

    assert len({_rgb(k, 25) for k in range(25)}) == 25


def test_what_cannot_be_segmented_is_refused(planted, simulated, monkeypatch):
    ds, _ = planted
    with pytest.raises(CubeError, match="at least 2; got 1"):
        ds.avocado.segment(1)
    with pytest.raises(CubeError, match="no factors of 100 bp; this model has 25, 250, 5000 bp"):
        ds.avocado.segment(scales=100)
    with pytest.raises(CubeError, match="too few for 10 states"):
        ds.avocado.segment(regions="chr1:0-10kb")
    with pytest.raises(ValueError, match="'pyranges' or 'frame'"):
        ds.avocado.segment(as_="bed")
    with pytest.raises(CubeError, match="fit"):
        simulated.avocado.segment()
    monkeypatch.setitem(sys.modules, "hmmlearn.hmm", None)
    with pytest.raises(ImportError, match="pip install hmmlearn"):
        ds.avocado.segment(3)


def test_a_fitted_model_can_be_segmented():
    fitted = xa.datasets.simulate(3, 2, {"chr1": 100_010}).avocado.fit("small", epochs=1, progress=False)
    frame = fitted.avocado.segment(2, starts=1, as_="frame", progress=False)
    assert frame.end.max() == 100_010 and frame.start.min() == 0
