from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xr_avocado import simulation
from xr_avocado.cube import CubeError, check_cube
from xr_avocado.datasets import simulate, simulated_elements
from xr_avocado.genome import GenomeBins
from xr_avocado.index import bins_of


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def mean_over(cube: xr.Dataset, assay: str, where: np.ndarray, celltype: str | None = None) -> float:
    track = cube.signal.sel(assay=assay)
    return float((track if celltype is None else track.sel(celltype=celltype)).values[..., where].mean())


def rows_at(cube: xr.Dataset, kind: str, *, inside: int) -> np.ndarray:
    """Rows of the bins within ``inside`` bp of the middle of each element of a kind."""
    table = simulated_elements().query("kind == @kind")
    middle = (table.start + table.end) // 2
    low = np.maximum(middle - inside, 0)
    first, last = bins_of(cube).overlaps(table.chrom.to_numpy(str), low.to_numpy(), (middle + inside).to_numpy())
    return np.unique(np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]))


def test_is_a_cube_with_every_experiment_observed(simulated):
    check_cube(simulated, "signal")
    assert simulated.observed.values.all()
    assert simulated.signal.dtype == np.float32
    assert simulated.signal.dims == ("celltype", "assay", "position")
    assert simulated.attrs["transform"] == "arcsinh"


def test_values_are_transformed_p_values(simulated):
    values = simulated.signal.values
    assert np.isfinite(values).all() and values.min() >= 0
    assert np.mean(np.sinh(values) > 2) < 0.2, "peaks are the exception"
    assert values.max() > 4, "and they are high: -log10 p above 27"


def test_last_bins_are_partial(simulated):
    bins = bins_of(simulated)
    assert [size % 25 for size in simulated.attrs["chromsizes"].values()] == [10, 17]
    last = [rows.stop - 1 for rows in bins.segment_slices]
    assert (bins.end[last] - bins.start[last]).tolist() == [10, 17]


def test_same_seed_same_panel():
    small = {"chr1": 60_003}
    assert simulate(2, 2, small, seed=3).identical(simulate(2, 2, small, seed=3))
    assert not np.array_equal(simulate(2, 2, small, seed=3).signal, simulate(2, 2, small, seed=4).signal)


def test_elements_do_not_depend_on_the_panel():
    table = simulation.elements({"chr1": 500_000}, seed=1)
    listed = simulated_elements({"chr1": 500_000}, seed=1)
    assert listed.equals(table[list(listed)])


@given(
    sizes=st.dictionaries(st.sampled_from(["chr1", "chr2", "chrX"]), st.integers(1, 30_000), min_size=1),
    binsize=st.sampled_from([1, 25, 200, 1000]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 14)),
)
def test_any_genome_and_bin_size(sizes, binsize, shape):
    cube = simulate(*shape, sizes, binsize=binsize)
    assert len(bins_of(cube)) == sum(-(-size // binsize) for size in sizes.values())
    assert cube.signal.shape[:2] == shape
    assert np.isfinite(cube.signal.values).all()


def test_assays_beyond_the_named_ones_have_names_of_their_own():
    names = simulate(1, 20, {"chr1": 5_000}).assay.values.tolist()
    assert len(set(names)) == 20
    assert names[:4] == ["H3K4me3", "H3K27ac", "H3K4me1", "DNase"]
    assert names[12:] == [f"mark{i}" for i in range(13, 21)]


def test_marks_lie_on_their_elements(simulated):
    everywhere = np.ones(simulated.sizes["position"], bool)
    enhancers = rows_at(simulated, "enhancer", inside=300)
    polycomb = rows_at(simulated, "polycomb", inside=3_000)
    for assay in ("H3K4me1", "H3K27ac", "DNase"):
        assert mean_over(simulated, assay, enhancers) > 1.5 * mean_over(simulated, assay, everywhere)
    assert mean_over(simulated, "H3K27me3", polycomb) > 1.5 * mean_over(simulated, "H3K27me3", everywhere)
    assert mean_over(simulated, "H3K4me3", polycomb) < 1.5 * mean_over(simulated, "H3K4me3", everywhere)


def test_promoter_peaks_are_sharp_and_body_marks_broad(simulated):
    def persistence(assay: str) -> float:
        values = simulated.signal.sel(assay=assay).values[:, :40_000]
        return float(np.mean([correlation(track[:-200], track[200:]) for track in values]))

    assert persistence("DNase") < 0.15 < 0.3 < persistence("H3K36me3"), "at a distance of 5 kb"


def test_relatives_resemble_each_other_more(simulated):
    lineage, _ = simulation.lineages(8, seed=0)
    pairs = [(c, d) for c in range(8) for d in range(c)]
    for assay in ("H3K27ac", "H3K4me1", "H3K4me3"):
        tracks = simulated.signal.sel(assay=assay).values
        alike = np.mean([correlation(tracks[c], tracks[d]) for c, d in pairs if lineage[c] == lineage[d]])
        apart = np.mean([correlation(tracks[c], tracks[d]) for c, d in pairs if lineage[c] != lineage[d]])
        assert alike > apart + 0.03


def test_average_activity_is_fair_and_can_be_beaten(simulated):
    """Ordinary least squares on relatives and other assays, judged where it was not fitted, beats the average clearly."""
    signal = simulated.signal.values
    train = np.arange(signal.shape[2]) // 4000 % 2 == 0
    average_error, fitted_error, constant_error = [], [], []
    for c in range(signal.shape[0]):
        track, others = signal[c, 1], np.delete(signal[:, 1], c, 0)
        inputs = np.vstack([others, np.delete(signal[c], 1, 0), np.ones(signal.shape[2])]).T
        weights = np.linalg.lstsq(inputs[train], track[train], rcond=None)[0]
        average_error.append(np.mean((track - others.mean(0))[~train] ** 2))
        fitted_error.append(np.mean((track - inputs @ weights)[~train] ** 2))
        constant_error.append(track[~train].var())
    assert np.mean(average_error) < 0.7 * np.mean(constant_error)
    assert np.mean(fitted_error) < 0.85 * np.mean(average_error)


def test_experiments_differ_in_depth(simulated):
    """Signal strength is a property of the experiment, not of the assay alone."""
    level = simulated.signal.mean("position")
    spread = (level.std("celltype") / level.mean("celltype")).values
    assert (spread > 0.05).all()


def test_background_is_poisson_surprise():
    """The golden values are -log10 of the upper tail of a Poisson distribution with mean 3, from its definition."""
    k = np.arange(400)
    pmf = np.exp(-3.0) * np.concatenate([[1], np.cumprod(3.0 / k[1:])])
    expected = [-np.log10(pmf[i:].sum()) for i in range(30)]
    np.testing.assert_allclose(simulation.surprise(29, 3.0), np.maximum(expected, 0), atol=1e-9)


def test_a_track_of_background_has_the_tail_it_claims():
    bins = GenomeBins.from_chromsizes({"chr1": 5_000_000}, 25)
    values = simulation.track(np.ones(len(bins)), bins, reads=3.0, random=np.random.default_rng(0))
    assert np.mean(values > 2) < 0.01, "p < 0.01 in less than 1 % of bins: Poisson p values are conservative"
    assert np.mean(values > 1) > 0.02


@pytest.mark.parametrize("wrong", [(0, 3), (3, 0)])
def test_empty_panels_are_refused(wrong):
    with pytest.raises(CubeError, match="must be at least 1; got 0"):
        simulate(*wrong)


def test_empty_chromosomes_are_refused():
    with pytest.raises(CubeError, match="the length of chr2 must be at least 1; got 0"):
        simulate(1, 1, {"chr1": 100, "chr2": 0})
